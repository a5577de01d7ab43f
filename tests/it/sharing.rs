//! Whose pods see the same files: `store.share`.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    policy::of,
    refresh::eventually,
    support::{
        issuer::{Issuer, TOKENS, Token},
        kubelet::Pod,
        s3::Logged,
    },
};

/// What stands in the configuration beside what all cases share; it goes on with `store`.
const NAMESPACE: &str = "  share: namespace\n";
const CERTAIN: &str = "trust: { podInfo: true }\nlimits: { minRefresh: 50ms }\n";

/// The inode of each file, by its path.
type Inodes = BTreeMap<String, (u64, u64)>;

fn inodes(target: &Path) -> Inodes {
    let files = tree(target).into_keys().filter(|name| !name.ends_with('/'));
    let inode = |name: String| {
        let found = std::fs::metadata(target.join(&name)).expect("the file is there");
        (name, (found.dev(), found.ino()))
    };
    files.map(inode).collect()
}

fn have_nothing_in_common(one: &Inodes, other: &Inodes) -> bool {
    let inodes = |of: &Inodes| of.values().copied().collect::<BTreeSet<_>>();
    assert!(!one.is_empty() && !other.is_empty());
    inodes(one).is_disjoint(&inodes(other))
}

/// Two pods of namespace `a` and one of `b`, and where they see the certificates.
struct Three {
    pods: [Pod; 3],
    targets: [PathBuf; 3],
}

impl Three {
    async fn publish(fixture: &Fixture, view: &str, layout: &str) -> Self {
        let pod = |namespace| {
            let pod = fixture.following("certs", "100ms").with("view", view);
            of(namespace, pod.with("layout", layout))
        };
        let pods = ["a", "a", "b"].map(pod);
        let mut targets = Vec::new();
        for pod in &pods {
            targets.push(fixture.publish(pod).await);
        }
        Self { pods, targets: targets.try_into().expect("three") }
    }

    async fn republish(&self, fixture: &Fixture) {
        for pod in &self.pods {
            fixture.publish(pod).await;
        }
    }

    /// Replaces an object, and waits for all.
    async fn rotate(&self, fixture: &Fixture, content: &str) {
        fixture.put("certs/keystore.jks", content).await;
        for target in &self.targets {
            let read = || std::fs::read_to_string(target.join("keystore.jks"));
            eventually("the new content", || (read().ok()? == content).then_some(())).await;
        }
    }

    fn assert_shared_within_namespaces(&self) {
        let [one, two, other] = self.inodes();
        assert_eq!(one, two);
        assert!(have_nothing_in_common(&one, &other), "{one:?} {other:?}");
    }

    fn assert_shared_by_all(&self) {
        let [one, two, other] = self.inodes();
        assert_eq!([&one, &one], [&two, &other]);
    }

    fn inodes(&self) -> [Inodes; 3] {
        self.targets.each_ref().map(|target| inodes(target))
    }
}

impl Fixture {
    /// How many GETs below the prefix asked for more than the one byte that proves a right.
    fn whole_gets(&self, prefix: &str) -> usize {
        let is_whole = |Logged { call, .. }: &&Logged| {
            let is_proof = call.range.as_deref() == Some("bytes=0-0");
            call.operation == "GetObject" && call.key.starts_with(prefix) && !is_proof
        };
        self.embedded().log().iter().filter(is_whole).count()
    }

    /// The blobs of the memory store that everybody may link, and how often each is linked.
    fn shared_blobs(&self) -> Vec<u64> {
        let blobs = std::fs::read_dir(self.home.state_dir().join("memory/v1/blobs")).unwrap();
        let links = blobs.filter_map(|blob| {
            let blob = blob.unwrap();
            let is_shared = blob.file_name().to_str().unwrap().split('-').count() == 6;
            is_shared.then(|| blob.metadata().unwrap().nlink() - 1)
        });
        links.collect()
    }
}

pub(crate) async fn by_default_all_pods_share(mut fixture: Fixture) {
    fixture.reconfigure(CERTAIN).await;
    fixture.put_certificates().await;
    let three = Three::publish(&fixture, "tmpfs", "symlinks").await;
    three.assert_shared_by_all();
    three.rotate(&fixture, "rotated").await;
    three.assert_shared_by_all();
    fixture.restart().await;
    three.republish(&fixture).await;
    three.rotate(&fixture, "again").await;
    three.assert_shared_by_all();
    assert_eq!(fixture.whole_gets("certs/"), 5, "each object version once");
}

pub(crate) async fn a_namespace_shares_with_no_other(mut fixture: Fixture) {
    fixture.reconfigure(&format!("{NAMESPACE}{CERTAIN}")).await;
    for (view, layout) in [("tmpfs", "symlinks"), ("tmpfs", "files"), ("disk", "symlinks")] {
        // New object versions for each round.
        for key in ["keystore.jks", "truststore.jks", "sub/password"] {
            fixture.put(&format!("certs/{key}"), format!("{key} {view} {layout}")).await;
        }
        fixture.embedded().reset_requests();
        let three = Three::publish(&fixture, view, layout).await;
        three.assert_shared_within_namespaces();
        let requests = fixture.embedded().requests();
        assert_eq!(requests.gets(), 3, "one namespace's bytes are a copy of the other's");
        // A refresh.
        let before = three.inodes();
        three.rotate(&fixture, &format!("rotated {view} {layout}")).await;
        three.assert_shared_within_namespaces();
        let stays = |of: &Inodes| of["truststore.jks"];
        assert_eq!(three.inodes().each_ref().map(stays), before.each_ref().map(stays));
        assert_eq!(fixture.embedded().requests().gets(), 4);
        // A restart changes nothing, and who comes new finds its own namespace's files.
        let before = three.inodes();
        fixture.restart().await;
        three.republish(&fixture).await;
        let new = Three::publish(&fixture, view, layout).await;
        assert_eq!(three.inodes(), before);
        assert_eq!(new.inodes(), before);
        three.rotate(&fixture, &format!("again {view} {layout}")).await;
        three.assert_shared_within_namespaces();
        assert_eq!(fixture.whole_gets("certs/"), 5, "each object version once");
        for pod in three.pods.iter().chain(&new.pods) {
            fixture.unpublish(pod).await;
        }
        fixture.assert_nothing_left();
    }
}

pub(crate) async fn who_is_of_no_certain_namespace_shares_with_nobody(mut fixture: Fixture) {
    let more =
        format!("{NAMESPACE}limits: {{ minRefresh: 50ms, namespace: {{ memory: 20Ki }} }}\n");
    fixture.reconfigure(&more).await;
    fixture.put("p/file", "one").await;
    fixture.embedded().reset_requests();
    let pod = |namespace: &str| of(namespace, fixture.following("p", "100ms"));
    // Their context says who they are, and nothing vouches for it.
    let pods = ["a", "a", "b"].map(pod);
    // A token among the secrets does.
    let issuer = Issuer::start();
    let certain = |namespace: &str, says: &str| {
        let tokens = issuer.issue(&[Token::of(namespace, "spark")]);
        pod(says).with_secrets(&[
            ("accesskey", "minio"),
            ("secretkey", "minio123"),
            (TOKENS, &tokens),
        ])
    };
    let certain = [certain("a", "x"), certain("a", "y"), certain("b", "a")];
    let mut targets = Vec::new();
    for pod in pods.iter().chain(&certain) {
        targets.push(fixture.publish(pod).await);
    }
    let shown = || targets.iter().map(|target| inodes(target)).collect::<Vec<_>>();
    let assert_apart = || {
        let shown = shown();
        let distinct: BTreeSet<_> = shown.iter().collect();
        assert_eq!(distinct.len(), 5, "three alone, and two namespaces");
        assert_eq!(shown[3], shown[4]);
    };
    assert_apart();
    assert_eq!(fixture.embedded().requests().gets(), 1);
    // What nobody shares is counted for each.
    fixture.publish(&pod("c")).await;
    fixture.publish(&pod("c")).await;
    let status = fixture.refused(&pod("c"), Code::ResourceExhausted).await;
    assert!(status.message().contains("20Ki are held"), "{status:?}");
    let before = shown();
    fixture.restart().await;
    for pod in pods.iter().chain(&certain) {
        fixture.publish(pod).await;
    }
    assert_eq!(shown(), before);
    fixture.put("p/file", "two").await;
    for target in &targets {
        eventually("two", || (tree(target)["file"] == "two").then_some(())).await;
    }
    assert_apart();
    assert_eq!(fixture.whole_gets("p/"), 2);
}

pub(crate) async fn a_changed_setting_moves_volumes_at_their_refresh(mut fixture: Fixture) {
    fixture.reconfigure(CERTAIN).await;
    fixture.put_certificates().await;
    let three = Three::publish(&fixture, "tmpfs", "files").await;
    let never = of("a", fixture.pod("certs").with("refresh", "never"));
    let still = fixture.publish(&never).await;
    let shared = inodes(&still);
    three.assert_shared_by_all();
    fixture.reconfigure(&format!("{NAMESPACE}{CERTAIN}")).await;
    assert_eq!(three.inodes()[0], shared, "a restart alone moves nothing");
    three.republish(&fixture).await;
    fixture.publish(&never).await;
    let moved = || three.inodes().iter().all(|it| have_nothing_in_common(it, &shared));
    eventually("files of their own", || moved().then_some(())).await;
    three.assert_shared_within_namespaces();
    assert_eq!(inodes(&still), shared, "what does not refresh stays as it is");
    assert_eq!(fixture.shared_blobs(), [1, 1, 1], "for that one alone");
    // Nobody links them any more: they go when room is wanted.
    fixture.unpublish(&never).await;
    assert_eq!(fixture.shared_blobs(), [0, 0, 0]);
    // The store's 64Mi but for what the two namespaces show.
    fixture.put("large/a", vec![b'x'; (64 << 20) - 6 * 4096]).await;
    let large = fixture.pod("large").with("maxSize", "64Mi");
    fixture.publish(&large).await;
    assert_eq!(fixture.shared_blobs(), Vec::<u64>::new());
    fixture.unpublish(&large).await;
    let before = three.inodes();
    // And back.
    fixture.reconfigure(CERTAIN).await;
    three.republish(&fixture).await;
    let moved = || {
        let [one, two, other] = three.inodes();
        one == two && two == other
    };
    eventually("the same files", || moved().then_some(())).await;
    assert!(have_nothing_in_common(&three.inodes()[0], &before[0]));
    three.rotate(&fixture, "rotated").await;
    three.assert_shared_by_all();
    assert_eq!(fixture.whole_gets("certs/"), 4, "each object version once");
}

pub(crate) async fn each_namespaces_copy_needs_room(mut fixture: Fixture) {
    fixture.reconfigure(&format!("{NAMESPACE}{CERTAIN}")).await;
    fixture.put("p/file", vec![7; 40 << 20]).await;
    let pod = |namespace| of(namespace, fixture.pod("p"));
    let first = pod("a");
    fixture.publish(&first).await;
    fixture.publish(&pod("a")).await;
    fixture.embedded().reset_requests();
    let other = pod("b");
    let status = fixture.refused(&other, Code::ResourceExhausted).await;
    assert!(status.message().contains("the memory store"), "{status:?}");
    assert_eq!(fixture.embedded().requests().gets(), 0, "nothing is fetched");
    // A node that shares needs it once.
    fixture.reconfigure(CERTAIN).await;
    let disk = fixture.pod("p").with("view", "disk");
    let before = fixture.publish(&of("a", disk.clone())).await;
    assert_eq!(std::fs::metadata(before.join("file")).unwrap().len(), 40 << 20);
}

pub(crate) async fn a_volume_without_record_goes_on_in_its_namespace(mut fixture: Fixture) {
    fixture.reconfigure(&format!("{NAMESPACE}{CERTAIN}")).await;
    fixture.put_certificates().await;
    let three = Three::publish(&fixture, "tmpfs", "symlinks").await;
    for entry in std::fs::read_dir(fixture.home.state_dir().join("memory/registry")).unwrap() {
        std::fs::write(entry.unwrap().path(), "{ torn").unwrap();
    }
    let before = three.inodes();
    for content in ["rotated", "again"] {
        fixture.restart().await;
        // The first finds a mount, and the next what to do with it.
        three.republish(&fixture).await;
        three.republish(&fixture).await;
        three.rotate(&fixture, content).await;
        three.assert_shared_within_namespaces();
        let stays = |of: &Inodes| of["truststore.jks"];
        assert_eq!(three.inodes().each_ref().map(stays), before.each_ref().map(stays));
    }
}
