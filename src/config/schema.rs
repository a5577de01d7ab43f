//! The keys of the configuration file: one function for each mapping, with its defaults and rules.

use std::{collections::BTreeMap, time::Duration};

use super::{
    AuthenticationKind, AuthorizationConfig, Config, DEFAULT_REGION, Defaults, DiskStoreConfig,
    DriverGrant, EndpointConfig, FetchConfig, FuseConfig, KeeperConfig, KubernetesConfig, Limits,
    MaxObjects, MaxSize, MemoryStoreConfig, MetricsConfig, NamespaceLimits, Policy, StoreConfig,
    StsConfig, Timeouts, TrustConfig,
    reader::Section,
    urls::service_url,
    values::{
        absolute_path, count, driver_name, flag, part_size, positive_count, positive_duration,
        region, requests, size, socket_address,
    },
};
use crate::{
    problems::nearest,
    units::{ByteSize, parse_duration},
};

/// The whole file.
pub(super) fn config(file: &mut Section<'_>) -> Config {
    let memory_given = file.is_set(&["store", "memory", "size"]);
    let disk_given = file.is_set(&["store", "disk", "size"]);
    let endpoints = endpoints(file);
    let names: Vec<&str> = endpoints.keys().map(String::as_str).collect();
    let default_endpoint = endpoint_name(file, "defaultEndpoint", &names);
    let policy = file.section("policy", |section| policy(section, &names));
    let store = file.section("store", store);
    let tmpfs = Medium { field: "store.memory.size", size: store.memory.size, given: memory_given };
    let disk = Medium { field: "store.disk.size", size: store.disk.size, given: disk_given };
    Config {
        driver_name: file
            .get("driverName", driver_name)
            .unwrap_or_else(|| "csi.s3view.dev".to_owned()),
        kubelet_dir: file
            .get("kubeletDir", absolute_path)
            .unwrap_or_else(|| "/var/lib/kubelet".into()),
        default_endpoint,
        store,
        keeper: file.section("keeper", keeper),
        fuse: file.section("fuse", fuse),
        fetch: file.section("fetch", fetch),
        authorization: file.section("authorization", authorization),
        trust: file.section("trust", trust),
        metrics: file.section("metrics", metrics),
        kubernetes: file.section("kubernetes", kubernetes),
        limits: file.section("limits", |section| limits(section, &tmpfs, &disk)),
        defaults: file.section("defaults", defaults),
        policy,
        // An endpoint without a URL has been reported, so this configuration is never returned.
        endpoints: endpoints.into_iter().filter_map(|(name, it)| Some((name, it?))).collect(),
    }
}

/// The endpoints by name, those without a usable URL included: a reference to one is not wrong.
fn endpoints(file: &mut Section<'_>) -> BTreeMap<String, Option<EndpointConfig>> {
    let endpoints = file.named("endpoints", endpoint);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    for name in endpoints.keys() {
        // A name is told from a URL by its characters.
        if name.is_empty() || !name.chars().all(allowed) {
            let rule = "must be letters, digits, '-', '_' and '.', such as \"minio\"";
            file.problem("endpoints", format!("the name {name:?} {rule}"));
        }
    }
    endpoints
}

fn endpoint(section: &mut Section<'_>) -> Option<EndpointConfig> {
    let url = section.required("url", service_url);
    let region = section.get("region", region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let path_style = section.get("pathStyle", flag);
    let ca_bundle = section.get("caBundle", absolute_path);
    let sts = section.section("sts", sts);
    let timeouts = section.section("timeouts", timeouts);
    let retries = section.get("retries", count);
    let basis = EndpointConfig::for_url(url?, &region);
    Some(EndpointConfig {
        path_style: path_style.unwrap_or(basis.path_style),
        ca_bundle,
        sts: (sts != StsConfig::default()).then_some(sts),
        timeouts,
        retries: retries.unwrap_or(basis.retries),
        ..basis
    })
}

fn sts(section: &mut Section<'_>) -> StsConfig {
    StsConfig {
        url: section.get("url", service_url),
        role_arn: section.get("roleArn", str::parse),
        audience: section.get("audience", str::parse),
    }
}

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let basis = Timeouts::default();
    Timeouts {
        connect: section.get("connect", positive_duration).unwrap_or(basis.connect),
        stall: section.get("stall", positive_duration).unwrap_or(basis.stall),
        total: section.get("total", positive_duration).unwrap_or(basis.total),
    }
}

fn kubernetes(section: &mut Section<'_>) -> KubernetesConfig {
    let account = section.get("serviceAccount", absolute_path);
    KubernetesConfig {
        remove_startup_taint: section.get("removeStartupTaint", flag).unwrap_or(false),
        service_account: account
            .unwrap_or_else(|| "/var/run/secrets/kubernetes.io/serviceaccount".into()),
    }
}

/// A key that refers to one of the configured endpoints.
fn endpoint_name(section: &mut Section<'_>, key: &'static str, names: &[&str]) -> Option<String> {
    section.get(key, |name| {
        if names.contains(&name) {
            return Ok(name.to_owned());
        }
        let hint = match nearest(name, names) {
            Some(candidate) => format!("did you mean {candidate:?}?"),
            None if names.is_empty() => "there are none".to_owned(),
            None => format!("these are {}", names.join(", ")),
        };
        Err(format!("{name:?} must be one of the configured endpoints; {hint}"))
    })
}

fn store(section: &mut Section<'_>) -> StoreConfig {
    StoreConfig {
        share: section.get("share", str::parse).unwrap_or_default(),
        memory: section.section("memory", |memory| MemoryStoreConfig {
            size: memory.get("size", size).unwrap_or(ByteSize::mebibytes(512)),
            allow_swap: memory.get("allowSwap", flag).unwrap_or(false),
        }),
        disk: section.section("disk", |disk| DiskStoreConfig {
            path: disk.get("path", absolute_path).unwrap_or_else(|| "/var/lib/s3view/disk".into()),
            size: disk.get("size", size).unwrap_or(ByteSize::mebibytes(20 * 1024)),
        }),
    }
}

fn keeper(section: &mut Section<'_>) -> KeeperConfig {
    KeeperConfig {
        socket: section
            .get("socket", absolute_path)
            .unwrap_or_else(|| "/run/s3view/keeper.sock".into()),
        hold_for: section.get("holdFor", parse_duration).unwrap_or(Duration::from_mins(10)),
    }
}

fn fuse(section: &mut Section<'_>) -> FuseConfig {
    FuseConfig {
        wait_for_s3: section.get("waitForS3", parse_duration).unwrap_or(Duration::from_mins(1)),
        wait_for_credentials: section
            .get("waitForCredentials", parse_duration)
            .unwrap_or(Duration::from_mins(3)),
        resend: section.get("resend", flag).unwrap_or(true),
    }
}

fn fetch(section: &mut Section<'_>) -> FetchConfig {
    let requests = section.get("requests", requests).unwrap_or(64);
    let bytes_in_flight =
        section.get("bytesInFlight", part_size).unwrap_or(ByteSize::mebibytes(64));
    let part = section.get("partSize", part_size);
    if let Some(part) = part.filter(|part| *part > bytes_in_flight) {
        let text = format!("{part} must be at most fetch.bytesInFlight, {bytes_in_flight}");
        section.problem("partSize", text);
    }
    let part_size = part.unwrap_or(ByteSize::mebibytes(8).min(bytes_in_flight));
    FetchConfig { requests, bytes_in_flight, part_size }
}

fn authorization(section: &mut Section<'_>) -> AuthorizationConfig {
    AuthorizationConfig {
        lifetime: section.get("lifetime", parse_duration).unwrap_or(Duration::from_mins(10)),
        cached_for: section.get("cachedFor", parse_duration).unwrap_or(Duration::from_hours(24)),
    }
}

fn trust(section: &mut Section<'_>) -> TrustConfig {
    TrustConfig {
        pod_info: section.get("podInfo", flag).unwrap_or(false),
        context_tokens: section.get("contextTokens", flag).unwrap_or(false),
    }
}

fn metrics(section: &mut Section<'_>) -> MetricsConfig {
    MetricsConfig { address: section.get("address", socket_address) }
}

/// A store's size, and whether the file gives it.
struct Medium {
    field: &'static str,
    size: ByteSize,
    given: bool,
}

fn limits(section: &mut Section<'_>, tmpfs: &Medium, disk: &Medium) -> Limits {
    Limits {
        max_size: section.section("maxSize", |sizes| MaxSize {
            tmpfs: max_size(sizes, "tmpfs", ByteSize::mebibytes(256), tmpfs),
            disk: max_size(sizes, "disk", ByteSize::mebibytes(16 * 1024), disk),
        }),
        max_objects: section.section("maxObjects", |objects| MaxObjects {
            tmpfs: objects.get("tmpfs", positive_count).unwrap_or(100_000),
            disk: objects.get("disk", positive_count).unwrap_or(100_000),
            fuse: objects.get("fuse", positive_count).unwrap_or(10_000_000),
        }),
        min_refresh: section.get("minRefresh", positive_duration).unwrap_or(Duration::from_secs(1)),
        namespace: section.section("namespace", |namespace| NamespaceLimits {
            volumes: namespace.get("volumes", count).unwrap_or(0),
            memory: namespace.get("memory", str::parse).unwrap_or_default(),
            disk: namespace.get("disk", str::parse).unwrap_or_default(),
        }),
    }
}

/// A volume that is larger than its store can never be published. Two given values that say so are
/// a mistake; a default gives way to a small store.
fn max_size(
    section: &mut Section<'_>,
    key: &'static str,
    default: ByteSize,
    store: &Medium,
) -> ByteSize {
    let Some(given) = section.get(key, size) else { return default.min(store.size) };
    if store.given && given > store.size {
        section.problem(key, format!("{given} must be at most {}, {}", store.field, store.size));
    }
    given
}

fn defaults(section: &mut Section<'_>) -> Defaults {
    Defaults {
        namespaces: section.named("namespaces", attributes),
        attributes: attributes(section),
    }
}

fn attributes(section: &mut Section<'_>) -> BTreeMap<String, String> {
    section.texts()
}

fn policy(section: &mut Section<'_>, endpoints: &[&str]) -> Policy {
    let grants = section.sections("driverCredentials", |grant| driver_grant(grant, endpoints));
    Policy {
        endpoint_urls: section.list("endpointUrls", str::parse).unwrap_or_default(),
        authentication: section.list("authentication", str::parse).map_or_else(
            || [AuthenticationKind::Secret, AuthenticationKind::Pod].into(),
            |kinds| kinds.into_iter().collect(),
        ),
        driver_credentials: grants.into_iter().flatten().collect(),
    }
}

fn driver_grant(section: &mut Section<'_>, endpoints: &[&str]) -> Option<DriverGrant> {
    let endpoint = endpoint_name(section, "endpoint", endpoints);
    let namespace = section.required("namespace", str::parse);
    let service_account = section.get("serviceAccount", str::parse);
    let bucket = section.required("bucket", str::parse);
    let prefix = section.get("prefix", str::parse);
    Some(DriverGrant { namespace: namespace?, bucket: bucket?, endpoint, service_account, prefix })
}
