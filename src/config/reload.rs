//! What of a changed file takes effect in a running plugin.
//!
//! `policy`, `defaults`, `limits` and `authorization` are looked at anew by each publish and refresh.
//! The rest shaped something at start (a mount, a pool, a socket) and stays as it was: a plugin that
//! ran with half of a new file in places nobody can see would be worse than one that is restarted.

use std::collections::BTreeSet;

use super::{Config, EndpointConfig};

/// What became of a changed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The sections that are in force now, and were others before.
    pub in_force: Vec<&'static str>,
    /// The keys that wait for a restart.
    pub need_restart: Vec<String>,
}

impl Config {
    /// What is in force once `file` has been read, and what that changes.
    pub fn take_over(&self, file: &Self) -> (Self, Reloaded) {
        let outcome =
            Reloaded { in_force: self.reloads(file), need_restart: self.needs_restart(file) };
        (self.reloaded(file), outcome)
    }

    /// This configuration with what a running plugin takes over from `file`: what is in force once
    /// the file has been read.
    ///
    /// Endpoints that `file` names in its policy are those that the plugin was started with.
    #[must_use]
    pub fn reloaded(&self, file: &Self) -> Self {
        Self {
            policy: file.policy.clone(),
            defaults: file.defaults.clone(),
            limits: file.limits.clone(),
            authorization: file.authorization.clone(),
            ..self.clone()
        }
    }

    /// The sections that [`Config::reloaded`] would change.
    pub fn reloads(&self, file: &Self) -> Vec<&'static str> {
        let sections = [
            ("policy", self.policy != file.policy),
            ("defaults", self.defaults != file.defaults),
            ("limits", self.limits != file.limits),
            ("authorization", self.authorization != file.authorization),
        ];
        sections.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }

    /// The keys in which `file` differs and which take effect only in a plugin that is started with
    /// it.
    pub fn needs_restart(&self, file: &Self) -> Vec<String> {
        // Taken apart, so that a new section cannot be forgotten here.
        let Self {
            driver_name,
            kubelet_dir,
            default_endpoint,
            endpoints,
            store,
            keeper,
            fuse,
            fetch,
            authorization: _,
            trust,
            metrics,
            kubernetes,
            limits: _,
            defaults: _,
            policy: _,
        } = self;
        let keys = [
            ("driverName", *driver_name != file.driver_name),
            ("kubeletDir", *kubelet_dir != file.kubelet_dir),
            ("defaultEndpoint", *default_endpoint != file.default_endpoint),
            ("store.share", store.share != file.store.share),
            ("store.memory.size", store.memory.size != file.store.memory.size),
            ("store.memory.allowSwap", store.memory.allow_swap != file.store.memory.allow_swap),
            ("store.disk.path", store.disk.path != file.store.disk.path),
            ("store.disk.size", store.disk.size != file.store.disk.size),
            ("keeper", *keeper != file.keeper),
            ("fuse", *fuse != file.fuse),
            ("fetch.requests", fetch.requests != file.fetch.requests),
            ("fetch.bytesInFlight", fetch.bytes_in_flight != file.fetch.bytes_in_flight),
            ("fetch.partSize", fetch.part_size != file.fetch.part_size),
            ("trust.podInfo", trust.pod_info != file.trust.pod_info),
            ("trust.contextTokens", trust.context_tokens != file.trust.context_tokens),
            ("metrics.address", metrics.address != file.metrics.address),
            ("kubernetes", *kubernetes != file.kubernetes),
        ];
        let names: BTreeSet<&String> = endpoints.keys().chain(file.endpoints.keys()).collect();
        let of = |config: &'_ Self, name: &String| -> Option<EndpointConfig> {
            config.endpoints.get(name).cloned()
        };
        let changed = names.into_iter().filter(|name| of(self, name) != of(file, name));
        let endpoints = changed.map(|name| format!("endpoints.{name}"));
        let keys = keys.into_iter().filter(|(_, differs)| *differs);
        keys.map(|(key, _)| key.to_owned()).chain(endpoints).collect()
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const RUNNING: &str = "
        endpoints: { minio: { url: http://minio } }
        limits: { namespace: { volumes: 3 } }
        ";

    fn parse(yaml: &str) -> Config {
        Config::parse(yaml).unwrap()
    }

    #[test]
    fn four_sections_are_taken_over_and_nothing_else() {
        let file = parse(
            "
            driverName: other.dev
            endpoints: { ceph: { url: http://ceph } }
            policy: { authentication: [anonymous] }
            defaults: { refresh: 5m }
            limits: { minRefresh: 2s }
            authorization: { lifetime: 1m }
            ",
        );
        let running = parse(RUNNING);
        let expected = Config {
            policy: file.policy.clone(),
            defaults: file.defaults.clone(),
            limits: file.limits.clone(),
            authorization: file.authorization.clone(),
            ..running.clone()
        };
        assert_eq!(running.reloaded(&file), expected);
        assert_eq!(running.reloads(&file), ["policy", "defaults", "limits", "authorization"]);
        assert_eq!(expected.reloads(&file), Vec::<&str>::new());
        assert_eq!(
            expected.needs_restart(&file),
            ["driverName", "endpoints.ceph", "endpoints.minio"]
        );
    }

    #[test_case("driverName: a.dev" => vec!["driverName"])]
    #[test_case("kubeletDir: /k" => vec!["kubeletDir"])]
    #[test_case("defaultEndpoint: minio" => vec!["defaultEndpoint"])]
    #[test_case("store: { share: namespace }" => vec!["store.share"])]
    #[test_case("store: { memory: { size: 300Mi } }" => vec!["store.memory.size"])]
    #[test_case("store: { memory: { allowSwap: true } }" => vec!["store.memory.allowSwap"])]
    #[test_case("store: { disk: { path: /d, size: 30Gi } }" => vec!["store.disk.path", "store.disk.size"])]
    #[test_case("keeper: { holdFor: 1m }" => vec!["keeper"])]
    #[test_case("fuse: { waitForS3: 1m1s }" => vec!["fuse"])]
    #[test_case("fetch: { requests: 1, bytesInFlight: 1Mi }" => vec!["fetch.requests", "fetch.bytesInFlight", "fetch.partSize"])]
    #[test_case("trust: { podInfo: true, contextTokens: true }" => vec!["trust.podInfo", "trust.contextTokens"])]
    #[test_case("metrics: { address: '0.0.0.0:9' }" => vec!["metrics.address"])]
    #[test_case("kubernetes: { removeStartupTaint: true }" => vec!["kubernetes"])]
    #[test_case("authorization: { cachedFor: 1h }" => Vec::<String>::new(); "reloaded")]
    fn a_key_that_waits_for_a_restart_is_named(line: &str) -> Vec<String> {
        parse(RUNNING).needs_restart(&parse(&format!("{RUNNING}\n        {line}")))
    }
}
