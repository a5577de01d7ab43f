//! What the platform's owner decides: a configuration that changes while the plugin runs, and what
//! one namespace may use.

use std::path::Path;

use tonic::Code;

use crate::{
    fixture::{Fixture, owner, tree},
    protocol::scrape,
    refresh::{eventually, shows},
    support::{
        address::free_address,
        kubelet::Pod,
        s3::{Action, Fault},
    },
};

/// What the log says when a changed file was taken in.
const IN_FORCE: &str = "has changed and is in force";

const REFUSED: &str = "the changed configuration file is refused";

impl Fixture {
    fn told(&self, text: &str) -> usize {
        self.home.log().matches(text).count()
    }

    /// Changes the configuration file under the running plugin, and waits for what it says.
    async fn change(&self, more: &str, says: &str) {
        let before = self.told(says);
        self.home.configure(&Self::config(&self.server, more));
        eventually(says, || (self.told(says) > before).then_some(())).await;
    }

    async fn reload(&self, more: &str) {
        self.change(more, IN_FORCE).await;
    }

    /// Limits for namespaces that the pods' context names.
    async fn limit(&mut self, limits: &str) {
        let more = format!(
            "trust: {{ podInfo: true }}\n\
             limits: {{ minRefresh: 50ms, namespace: {{ {limits} }} }}\n"
        );
        self.reconfigure(&more).await;
    }

    /// Objects of so many pages each.
    async fn put_pages(&self, objects: &[(&str, usize)]) {
        for (key, pages) in objects {
            self.put(key, vec![b'x'; pages * 4096]).await;
        }
    }

    /// Expects that the namespace's limit stands against a publish, which asks for nothing.
    async fn over_limit(&self, pod: &Pod, texts: &[&str]) {
        self.embedded().reset_requests();
        let status = self.refused(pod, Code::ResourceExhausted).await;
        for text in texts {
            assert!(status.message().contains(text), "{} lacks {text}", status.message());
        }
        assert_eq!(self.embedded().requests().gets(), 0, "nothing is fetched");
    }
}

pub(crate) fn of(namespace: &str, mut pod: Pod) -> Pod {
    namespace.clone_into(&mut pod.namespace);
    pod
}

pub(crate) async fn a_changed_policy_counts_for_the_next_publish(fixture: Fixture) {
    fixture.put_certificates().await;
    let (first, url) = (fixture.pod("certs"), fixture.server.url());
    let target = fixture.publish(&first).await;
    fixture.reload("policy: { authentication: [pod] }\n").await;
    let status = fixture.refused(&fixture.pod("certs"), Code::PermissionDenied).await;
    assert!(status.message().contains("policy.authentication"), "{status:?}");
    // What is published stays, and is republished.
    fixture.publish(&first).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // A URL is spelled out, and then only covered by a wildcard, which never leads to the node.
    let by_url = || fixture.pod("certs").with("endpoint", &url);
    fixture.refused(&by_url(), Code::PermissionDenied).await;
    fixture.reload(&format!("policy: {{ endpointUrls: ['{url}'] }}\n")).await;
    let open = by_url();
    fixture.publish(&open).await;
    let wildcard = url.replace("127.0.0.1", "127.0.0.*");
    assert_ne!(wildcard, url);
    fixture.reload(&format!("policy: {{ endpointUrls: ['{wildcard}'] }}\n")).await;
    fixture.refused(&by_url(), Code::PermissionDenied).await;
    fixture.assert_only_published(2);
}

pub(crate) async fn a_withdrawn_policy_keeps_the_revision(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("p/file", "one").await;
    let pod = fixture.following("p", "100ms");
    let target = fixture.publish(&pod).await;
    let more = |policy: &str| format!("limits: {{ minRefresh: 50ms }}\npolicy: {policy}\n");
    fixture.reload(&more("{ authentication: [pod] }")).await;
    fixture.says(&pod, "policy.authentication").await;
    fixture.put("p/file", "two").await;
    fixture.publish(&pod).await;
    assert_eq!(tree(&target)["file"], "one");
    fixture.reload(&more("{ authentication: [pod, secret] }")).await;
    eventually("the new content", || (tree(&target)["file"] == "two").then_some(())).await;
    fixture.says_no_more(&pod, "policy.authentication").await;
}

pub(crate) async fn changed_defaults_count_for_new_volumes_only(fixture: Fixture) {
    fixture.put_certificates().await;
    let first = fixture.pod("certs");
    let mode = |target: &Path| owner(&target.join("keystore.jks"));
    let target = fixture.publish(&first).await;
    fixture.reload("defaults: { fileMode: '0400' }\n").await;
    assert_eq!(mode(&fixture.publish(&fixture.pod("certs")).await), "0:0 0400");
    fixture.publish(&first).await;
    assert_eq!(mode(&target), "0:0 0444");
    fixture.reload("").await;
    assert_eq!(mode(&fixture.publish(&fixture.pod("certs")).await), "0:0 0444");
}

pub(crate) async fn changed_limits_count_for_the_next_publish(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = || fixture.pod("certs").with("refresh", "1s").with("maxSize", "64Ki");
    fixture.publish(&pod()).await;
    fixture.reload("limits: { minRefresh: 2s }\n").await;
    let status = fixture.refused(&pod(), Code::InvalidArgument).await;
    assert!(status.message().contains("limits.minRefresh"), "{status:?}");
    fixture.reload("limits: { maxSize: { tmpfs: 32Ki } }\n").await;
    let status = fixture.refused(&pod(), Code::InvalidArgument).await;
    assert!(status.message().contains("limits.maxSize.tmpfs"), "{status:?}");
    fixture.reload("limits: { namespace: { volumes: 1 } }\n").await;
    fixture.over_limit(&pod(), &["limits.namespace.volumes"]).await;
    fixture.reload("").await;
    fixture.publish(&pod()).await;
}

pub(crate) async fn changed_authorization_counts_from_then_on(fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("retries: 3", "retries: 0");
    fixture.home.configure(&config);
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs").with("whenUnavailable", "cached")).await;
    // The proofs of before are too old at once.
    fixture.reload("authorization: { lifetime: 0s }\n").await;
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(fixture.embedded().requests().gets(), 3, "S3 is asked again");
    // So are the records.
    let cached = || fixture.pod("certs").with("whenUnavailable", "cached");
    let down = fixture.embedded().faults().add(Fault::new(Action::INTERNAL_ERROR));
    fixture.publish(&cached()).await;
    fixture.reload("authorization: { cachedFor: 0s }\n").await;
    let status = fixture.refused(&cached(), Code::Unavailable).await;
    assert!(status.message().contains("nothing that this credential"), "{status:?}");
    fixture.embedded().faults().remove(down);
}

pub(crate) async fn a_bad_file_is_refused_and_the_old_one_stays(mut fixture: Fixture) {
    let address = free_address();
    let more = |text: &str| format!("metrics: {{ address: '{address}' }}\n{text}");
    fixture.reconfigure(&more("defaults: { fileMode: '0400' }\n")).await;
    fixture.put_certificates().await;
    let still = async |fixture: &Fixture| {
        let target = fixture.publish(&fixture.pod("certs")).await;
        assert_eq!(owner(&target.join("keystore.jks")), "0:0 0400");
    };
    assert!(scrape(address).contains("s3view_config_stale{reason=\"refused\"} 0"));
    let bad = "policy: { authentication: [secrets] }\nlimits: { minRefesh: 1s }\n";
    fixture.change(&more(bad), "minRefesh").await;
    assert!(fixture.home.log().contains("policy.authentication[0]"), "all problems are told");
    still(&fixture).await;
    let metrics = scrape(address);
    for line in [
        "s3view_config_stale{reason=\"refused\"} 1",
        "s3view_config_reloads_total{outcome=\"refused\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}\nlacks {line}");
    }
    assert!(crate::protocol::http_get(address, "/healthz").starts_with("HTTP/1.1 200"));
    // What only the attributes' own parser knows, and a file that is gone, are as bad.
    fixture.change(&more("defaults: { fileMod: '0444' }\n"), "defaults.fileMod:").await;
    std::fs::remove_file(fixture.home.path().join("config.yaml")).unwrap();
    eventually("the loss is told", || (fixture.told(REFUSED) == 3).then_some(())).await;
    still(&fixture).await;
    fixture.reload(&more("defaults: { fileMode: '0440' }\n")).await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(owner(&target.join("keystore.jks")), "0:0 0440");
    assert_eq!(fixture.told(REFUSED), 3, "each is told once");
    let metrics = scrape(address);
    for line in [
        "s3view_config_stale{reason=\"refused\"} 0",
        "s3view_config_reloads_total{outcome=\"refused\"} 3",
        "s3view_config_reloads_total{outcome=\"applied\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}\nlacks {line}");
    }
}

/// The kubelet mounts a `ConfigMap` as `config.yaml -> ..data/config.yaml`, `..data -> ..1`, and
/// renames a new `..data` over the old one.
pub(crate) async fn a_config_map_is_followed(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let directory = fixture.home.path().to_owned();
    let (file, data) = (directory.join("config.yaml"), directory.join("..data"));
    std::fs::create_dir(directory.join("..1")).unwrap();
    std::fs::rename(&file, directory.join("..1/config.yaml")).unwrap();
    std::os::unix::fs::symlink("..1", &data).unwrap();
    std::os::unix::fs::symlink("..data/config.yaml", &file).unwrap();
    fixture.restart().await;
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::create_dir(directory.join("..2")).unwrap();
    let changed = format!("{text}\ndefaults: {{ fileMode: '0400' }}\n");
    std::fs::write(directory.join("..2/config.yaml"), changed).unwrap();
    std::os::unix::fs::symlink("..2", directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), &data).unwrap();
    std::fs::remove_dir_all(directory.join("..1")).unwrap();
    eventually(IN_FORCE, || (fixture.told(IN_FORCE) == 1).then_some(())).await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(owner(&target.join("keystore.jks")), "0:0 0400");
}

pub(crate) async fn keys_that_need_a_restart_are_named(mut fixture: Fixture) {
    let address = free_address();
    let more = |text: &str| format!("metrics: {{ address: '{address}' }}\n{text}");
    fixture.reconfigure(&more("")).await;
    fixture.put_certificates().await;
    let changed = "trust: { podInfo: true }\nfetch: { requests: 7 }\n\
                   defaults: { fileMode: '0400', namespaces: { spark: { fileMode: '0404' } } }\n";
    fixture.change(&more(changed), "need a restart").await;
    let log = fixture.home.log();
    assert!(log.contains("fetch.requests, trust.podInfo"), "{log}");
    assert!(scrape(address).contains("s3view_config_stale{reason=\"restart\"} 1"));
    // The rest of the file counts, and trust is as it was.
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(owner(&target.join("keystore.jks")), "0:0 0400");
    fixture.restart().await;
    assert!(scrape(address).contains("s3view_config_stale{reason=\"restart\"} 0"));
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(owner(&target.join("keystore.jks")), "0:0 0404");
}

pub(crate) async fn a_namespace_has_so_many_volumes(mut fixture: Fixture) {
    fixture.limit("volumes: 2").await;
    fixture.put_certificates().await;
    let (first, second) = (fixture.pod("certs"), fixture.pod("certs").with("view", "disk"));
    fixture.publish(&first).await;
    fixture.publish(&second).await;
    let third = fixture.pod("certs");
    let texts = ["limits.namespace.volumes", "namespace \"spark\"", "2 volumes", "2 are there"];
    fixture.over_limit(&third, &texts).await;
    assert_eq!(fixture.embedded().requests().total(), 0, "S3 is not even asked");
    // A republish needs nothing, another namespace has its own, and a restart forgets nobody.
    fixture.publish(&first).await;
    fixture.publish(&of("flink", fixture.pod("certs"))).await;
    fixture.restart().await;
    fixture.over_limit(&third, &texts).await;
    fixture.unpublish(&second).await;
    fixture.publish(&third).await;
    // A publish that fails gives its place back.
    fixture.unpublish(&third).await;
    for _ in 0..3 {
        fixture.refused(&fixture.pod("missing"), Code::NotFound).await;
    }
    fixture.publish(&third).await;
}

pub(crate) async fn a_namespace_has_so_many_bytes_of_each_store(mut fixture: Fixture) {
    fixture.limit("memory: 40Ki, disk: 20Ki").await;
    fixture.put_pages(&[("six/a", 6), ("four/a", 3), ("four/b", 1), ("one/a", 1)]).await;
    let (six, four, one) = (fixture.pod("six"), fixture.pod("four"), fixture.pod("one"));
    fixture.publish(&six).await;
    fixture.publish(&four).await;
    let texts = ["limits.namespace.memory", "namespace \"spark\"", "40Ki", "4Ki more"];
    fixture.over_limit(&one, &texts).await;
    // What is there already costs nothing, as the same variant.
    let again = fixture.pod("six");
    fixture.publish(&again).await;
    fixture.over_limit(&fixture.pod("six").with("fileMode", "0400"), &["24Ki more"]).await;
    // The other store has its own limit, and the other namespace its own count of what is shared.
    let on_disk = fixture.pod("four").with("view", "disk");
    fixture.publish(&on_disk).await;
    let disk = fixture.pod("six").with("view", "disk");
    fixture.over_limit(&disk, &["limits.namespace.disk", "16Ki are held", "24Ki more"]).await;
    fixture.publish(&of("flink", fixture.pod("six"))).await;
    fixture.restart().await;
    fixture.over_limit(&one, &texts).await;
    // The last volume that shows something gives it back.
    fixture.unpublish(&six).await;
    fixture.over_limit(&one, &texts).await;
    fixture.unpublish(&again).await;
    fixture.publish(&one).await;
}

pub(crate) async fn a_refresh_keeps_to_the_limits_of_the_namespace(mut fixture: Fixture) {
    fixture.limit("memory: 40Ki").await;
    fixture.put_pages(&[("g/a", 6), ("other/a", 3)]).await;
    // They move together: the old and the new content are not both counted.
    let pods = [fixture.following("g", "100ms"), fixture.following("g", "100ms")];
    let targets = [fixture.publish(&pods[0]).await, fixture.publish(&pods[1]).await];
    let other = fixture.pod("other");
    fixture.publish(&other).await;
    fixture.put_pages(&[("g/b", 1)]).await;
    let sees = |target: &Path, name: &str| target.join(name).exists();
    for target in &targets {
        eventually("the seventh page", || sees(target, "b").then_some(())).await;
    }
    fixture.put_pages(&[("g/c", 1)]).await;
    for (pod, target) in pods.iter().zip(&targets) {
        let message = fixture.says(pod, "limits.namespace.memory").await;
        assert!(message.contains("namespace \"spark\"") && message.contains("4Ki more"));
        assert!(sees(target, "b") && !sees(target, "c"), "the revision stays");
    }
    // With room again it is shown; what shrinks needs none.
    fixture.unpublish(&other).await;
    for (pod, target) in pods.iter().zip(&targets) {
        eventually("the eighth page", || sees(target, "c").then_some(())).await;
        fixture.says_no_more(pod, "limits.namespace").await;
    }
    fixture
        .reload(
            "trust: { podInfo: true }\nlimits: { minRefresh: 50ms, namespace: { memory: 4Ki } }\n",
        )
        .await;
    fixture.server.delete(&fixture.bucket, "g/a").await;
    for target in &targets {
        eventually("six pages less", || (!sees(target, "a")).then_some(())).await;
    }
}

pub(crate) async fn publishes_at_one_time_do_not_overshoot(mut fixture: Fixture) {
    fixture.limit("memory: 20Ki, volumes: 8").await;
    let prefixes: Vec<String> = (0..12).map(|number| format!("p{number}")).collect();
    for prefix in &prefixes {
        fixture.put(&format!("{prefix}/file"), format!("{prefix:x<4000}")).await;
    }
    let pods: Vec<Pod> = prefixes.iter().map(|prefix| fixture.pod(prefix)).collect();
    let calls: Vec<_> = pods.iter().map(|pod| fixture.publish_meanwhile(pod)).collect();
    let (mut published, mut by_volumes, mut by_bytes) = (0, 0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => published += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                by_volumes += usize::from(status.message().contains("limits.namespace.volumes"));
                by_bytes += usize::from(status.message().contains("limits.namespace.memory"));
            }
        }
    }
    assert_eq!((published, by_volumes + by_bytes), (5, 7));
    fixture.assert_only_published(5);
}

pub(crate) async fn a_forged_namespace_is_nobodys(mut fixture: Fixture) {
    fixture.reconfigure("limits: { namespace: { volumes: 2 } }\n").await;
    fixture.put_certificates().await;
    fixture.publish(&of("a", fixture.pod("certs"))).await;
    fixture.publish(&of("b", fixture.pod("certs"))).await;
    let texts = ["limits.namespace.volumes", "namespaces that nothing vouches for"];
    fixture.over_limit(&of("c", fixture.pod("certs")), &texts).await;
}

pub(crate) async fn what_was_read_before_keeps_to_the_limits_of_the_namespace(
    mut fixture: Fixture,
) {
    fixture.limit("memory: 40Ki").await;
    fixture.put_pages(&[("six/a", 6), ("five/a", 5)]).await;
    let cached = || fixture.pod("six").with("whenUnavailable", "cached");
    let first = cached();
    let expected = tree(&fixture.publish(&first).await);
    fixture.unpublish(&first).await;
    let other = fixture.pod("five");
    fixture.publish(&other).await;
    fixture.embedded().set_down(true);
    let pod = cached();
    let status = fixture.refused(&pod, Code::Unavailable).await;
    assert!(status.message().contains("limits.namespace.memory"), "{status:?}");
    fixture.unpublish(&other).await;
    let target = fixture.publish(&pod).await;
    shows(&target, &expected).await;
}
