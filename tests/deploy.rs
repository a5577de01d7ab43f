//! What the chart, the images and the programs have to agree on. `deploy/check` holds manifests to
//! Kubernetes; this holds them to the code, by the plain manifests that the chart renders.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use s3view::{
    config::Config,
    units::{ByteSize, parse_duration},
};
use serde_json::Value;

#[test]
fn the_flags_in_the_manifests_are_those_of_the_programs() {
    let node = env!("CARGO_BIN_EXE_s3view-node");
    has_flags("node", "s3view-node", &[node, "--help"]);
    has_flags("keeper", "s3view-keeper", &[node, "keeper", "--help"]);
    let controller = env!("CARGO_BIN_EXE_s3view-controller");
    has_flags("controller", "s3view-controller", &[controller, "--help"]);
}

#[test]
fn the_configuration_in_the_manifests_fits_them() {
    let (config, driver) = (config(), driver());
    assert_eq!(driver["metadata"]["name"], config.driver_name.as_str());
    assert_eq!(config.driver_name, Config::default().driver_name);
    let node = container("node", "s3view-node");
    for path in [config.kubelet_dir.to_str().unwrap(), &argument(&node, "--state-dir")] {
        let mount = mount_at(&node, path);
        assert_eq!(mount["mountPropagation"], "Bidirectional", "{path}");
        assert_eq!(host_path("node", mount), path, "the kubelet and mounts have the node's paths");
    }
    let socket = host_path("node", mount_at(&node, "/csi"));
    let registrar = container("node", "node-driver-registrar");
    let registered = argument(&registrar, "--kubelet-registration-path");
    assert_eq!(registered, format!("{socket}/csi.sock"));
    assert_eq!(argument(&node, "--endpoint"), "unix:///csi/csi.sock");
}

/// The kubelet writes what the plugin believes, or the plugin does not believe it.
#[test]
fn only_what_the_kubelet_writes_is_trusted() {
    let (config, driver) = (config(), driver());
    let spec = &driver["spec"];
    assert_eq!(config.trust.pod_info, spec["podInfoOnMount"] == true);
    let tokens = spec["tokenRequests"].as_array().is_some_and(|requests| !requests.is_empty());
    let in_secrets = spec["serviceAccountTokenInSecrets"] == true;
    assert!(tokens && in_secrets, "what the manifests are for");
    assert_eq!(config.trust.context_tokens, tokens && !in_secrets);
}

#[test]
fn plugin_and_keeper_meet_at_one_socket() {
    let (config, keeper) = (config(), container("keeper", "s3view-keeper"));
    assert_eq!(Path::new(&argument(&keeper, "--socket")), config.keeper.socket);
    assert_eq!(parse_duration(&argument(&keeper, "--hold-for")).unwrap(), config.keeper.hold_for);
    assert_eq!(config.keeper, Config::default().keeper);
    let directory = config.keeper.socket.parent().unwrap().to_str().unwrap();
    for (pod, container) in [("keeper", keeper), ("node", container("node", "s3view-node"))] {
        assert_eq!(host_path(pod, mount_at(&container, directory)), directory);
    }
}

#[test]
fn the_memory_limit_has_room_for_the_store() {
    let node = container("node", "s3view-node");
    let limit: ByteSize = text(&node["resources"]["limits"]["memory"]).parse().unwrap();
    let store = config().store.memory.size;
    assert_eq!(limit.bytes(), store.bytes() + ByteSize::mebibytes(256).bytes());
}

/// A key that the schema lacks cannot be set by the chart; one that it invents fails at start.
#[test]
fn the_schema_of_values_has_the_keys_of_the_configuration() {
    let schema: Value =
        serde_json::from_str(&read("deploy/helm/s3view/values.schema.json")).unwrap();
    let mut found = BTreeSet::new();
    keys(&schema, &schema["properties"]["config"], "", &mut found);
    let reference = read("docs/CONFIGURATION.md");
    let (reference, _) = reference.split_once("\n## Volume attributes").unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let ours = ["driverName", "kubeletDir", "metrics", "keeper", "kubernetes", "trust"];
    let is_ours = |key: &&str| ours.contains(&key.split('.').next().unwrap());
    // The rows of the tables about the keeper's flags, and about any attribute.
    let is_key = |key: &&str| !key.starts_with("--") && !key.contains("ATTRIBUTE");
    let told: BTreeSet<_> =
        rows.filter(is_key).filter(|key| !is_ours(key)).map(str::to_owned).collect();
    assert!(told.len() > 40, "the notation changed");
    assert_eq!(found, told);
}

#[test]
fn versions_are_the_packages() {
    let version = env!("CARGO_PKG_VERSION");
    let chart: Value = serde_saphyr::from_str(&read("deploy/helm/s3view/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], version);
    for file in ["Dockerfile.node", "Dockerfile.controller"] {
        let text = read(file);
        assert!(text.contains(&format!("ARG VERSION={version}\n")), "{file}");
        let rust = format!("FROM rust:{}.", env!("CARGO_PKG_RUST_VERSION"));
        assert!(text.contains(&rust), "{file} must build with the Rust of Cargo.toml");
    }
}

/// What the values are is told where people look for it.
#[test]
fn the_readme_of_the_chart_tells_of_each_value() {
    let schema: Value =
        serde_json::from_str(&read("deploy/helm/s3view/values.schema.json")).unwrap();
    let (readme, mut told) = (read("deploy/helm/s3view/README.md"), 0);
    for (section, values) in schema["properties"].as_object().unwrap() {
        // Helm's own, a file with a reference of its own, and what Kubernetes defines.
        if ["global", "config", "seLinuxOptions"].contains(&section.as_str()) {
            continue;
        }
        let inner = values["properties"].as_object().into_iter().flatten();
        let names: Vec<_> = inner.map(|(name, _)| format!("{section}.{name}")).collect();
        let names = if names.is_empty() { vec![section.clone()] } else { names };
        for name in names.iter().filter(|name| !name.starts_with("images.")) {
            let short = name.rsplit('.').next().unwrap();
            let forms = [format!("`{name}`"), format!("`{name}."), format!("`.{short}`")];
            assert!(forms.iter().any(|form| readme.contains(form)), "README.md lacks {name}");
            told += 1;
        }
    }
    assert!(told > 50, "the schema changed");
}

/// The dotted names of the properties below a schema, with `NAME` and `[]` as in the reference.
fn keys(root: &Value, schema: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    if let Some(named) = schema["$ref"].as_str() {
        return keys(root, &root["$defs"][named.rsplit('/').next().unwrap()], prefix, found);
    }
    let join =
        |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        found.insert(join(key));
        keys(root, inner, &join(key), found);
    }
    // Names that the user chooses; attributes are told of elsewhere.
    if schema["additionalProperties"]["properties"].is_object() {
        keys(root, &schema["additionalProperties"], &join("NAME"), found);
    }
    if schema["items"]["properties"].is_object() {
        keys(root, &schema["items"], &format!("{prefix}[]"), found);
    }
}

/// Fails for a flag of the container that the program's help does not tell of.
fn has_flags(file: &str, name: &str, help: &[&str]) {
    let output = Command::new(help[0]).args(&help[1..]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let container = container(file, name);
    let arguments = container["args"].as_array().unwrap().iter().map(text);
    let flags: Vec<_> = arguments
        .filter(|argument| argument.starts_with("--"))
        .map(|argument| argument.split('=').next().unwrap().to_owned())
        .collect();
    assert!(flags.len() >= 4, "{name}: {flags:?}");
    for flag in flags {
        assert!(told.contains(&format!("{flag} <")), "{name}: {flag} is no flag of {help:?}");
    }
}

fn config() -> Config {
    let map: Value = serde_saphyr::from_str(&read("deploy/kustomize/configmap.yaml")).unwrap();
    Config::parse(text(&map["data"]["config.yaml"])).unwrap()
}

fn driver() -> Value {
    serde_saphyr::from_str(&read("deploy/kustomize/csidriver.yaml")).unwrap()
}

/// The pod of the first workload in a file.
fn pod(file: &str) -> Value {
    let manifests = read(&format!("deploy/kustomize/{file}.yaml"));
    let mut objects = manifests.split("\n---\n").map(serde_saphyr::from_str::<Value>);
    objects
        .find_map(|it| it.unwrap()["spec"]["template"]["spec"].as_object().cloned())
        .unwrap()
        .into()
}

fn container(file: &str, name: &str) -> Value {
    let containers = pod(file)["containers"].as_array().unwrap().clone();
    containers.into_iter().find(|container| container["name"] == name).unwrap()
}

fn argument(container: &Value, flag: &str) -> String {
    let arguments = container["args"].as_array().unwrap().iter().map(text);
    let mut values = arguments.filter_map(|it| it.strip_prefix(flag)?.strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("there is no {flag}")).to_owned()
}

fn mount_at<'a>(container: &'a Value, path: &str) -> &'a Value {
    let mut mounts = container["volumeMounts"].as_array().unwrap().iter();
    mounts.find(|mount| mount["mountPath"] == path).unwrap_or_else(|| panic!("no mount at {path}"))
}

/// Where on the node a mount leads.
fn host_path(file: &str, mount: &Value) -> String {
    let pod = pod(file);
    let mut volumes = pod["volumes"].as_array().unwrap().iter();
    let volume = volumes.find(|volume| volume["name"] == mount["name"]).unwrap();
    text(&volume["hostPath"]["path"]).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}
