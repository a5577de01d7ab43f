//! Two principals at a server that enforces what each may read: one may read the certificates, and
//! they are on the node for it; the other may not. Here is every way on which the second could come
//! to them. What it answers is what S3 says.
//!
//! More of it stands where its subject is: `identity` (forged namespaces, tokens in the context, other
//! audiences), `requests` (customer keys, proofs that expire), `refresh` and `rotation` (trials of new
//! credentials), `outage`.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt, path::Path, sync::LazyLock};

use serde_json::Value;
use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    identity::Realm,
    refresh::eventually,
    support::{
        issuer::{TOKENS, Token},
        kubelet::Pod,
        server::Server,
        tls::Authority,
    },
    versions::Clock,
};

/// An authority of its own. Unused where the endpoint is no `https` one, and part of its identity all
/// the same.
static CA: LazyLock<Authority> = LazyLock::new(|| Authority::new("another"));

/// The tokens of both, in the form in which they come.
struct Two {
    granted: String,
    stranger: String,
    /// Gone, its token service would be too.
    _realm: Realm,
}

impl Fixture {
    /// Starts the plugin anew, with the server under two names and two URLs.
    async fn two(&mut self) -> Two {
        let (realm, url) = (Realm::of(&self.server), self.server.url());
        let sts = realm.sts_url(&self.server);
        let endpoint = |url: &str| format!("{{ url: {url}, retries: 3, sts: {{ url: '{sts}' }} }}");
        let config = format!(
            "defaultEndpoint: minio\nendpoints:\n  minio: {0}\n  alias: {0}\n  local: {1}\n\
             store:\n  memory: {{ size: 64Mi, allowSwap: true }}\n  disk: {{ path: DISK, size: 256Mi }}\n\
             limits: {{ minRefresh: 50ms }}\n",
            endpoint(&url),
            endpoint(&url.replace("127.0.0.1", "localhost")),
        );
        self.home.configure(&config);
        self.restart().await;
        self.put_certificates().await;
        self.put("other/file", "open").await;
        let granted = realm.issue(&realm.reader(self, "granted", "certs/").await);
        let stranger = realm.issue(&realm.reader(self, "stranger", "other/").await);
        Two { granted, stranger, _realm: realm }
    }
}

/// The same pod with further secrets.
fn and(mut pod: Pod, secrets: &[(&str, &str)]) -> Pod {
    pod.secrets.extend(secrets.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    pod
}

fn inode(target: &Path) -> (u64, u64) {
    let found = std::fs::metadata(target.join("keystore.jks")).expect("the keystore is there");
    (found.dev(), found.ino())
}

pub(crate) async fn no_publish_leads_to_what_another_may_read(mut fixture: Fixture) {
    let two = fixture.two().await;
    for view in ["tmpfs", "disk"] {
        let pod = |prefix: &str, tokens: &str| fixture.pod_with(prefix, tokens).with("view", view);
        let shown = fixture.publish(&pod("certs", &two.granted)).await;
        assert_eq!(tree(&shown)["keystore.jks"], "keystore");
        let asked = || pod("certs", &two.stranger);
        let sources = |sources: &str| {
            let mut pod = asked().with("sources", sources);
            pod.attributes.remove("prefix");
            pod
        };
        let ways = [
            asked(),
            pod("certs/sub", &two.stranger),
            pod("", &two.stranger),
            sources("[{prefix: other, path: o}, {prefix: certs, path: c}]"),
            sources("[{prefix: other, path: o}, {key: certs/keystore.jks, path: k}]"),
            sources("[{key: certs/keystore.jks}]"),
            asked().with("endpoint", "alias"),
            asked().with("endpoint", "local"),
            asked().with("region", "eu-west-1"),
            asked().with("fileMode", "0400").with("layout", "files"),
            asked().with("whenUnavailable", "cached"),
            and(asked(), &[("ca.crt", CA.pem())]),
            // What the context says is nobody's word.
            asked().with(TOKENS, &two.granted),
            Pod { namespace: "granted".into(), ..asked() },
        ];
        for way in &ways {
            fixture.refused(way, Code::PermissionDenied).await;
        }
        let keys = |secret: &str| {
            let keys = [("accesskey", "minio"), ("secretkey", secret)];
            fixture.pod("certs").with("view", view).with_secrets(&keys)
        };
        fixture.refused(&keys("guessed-secret"), Code::Unauthenticated).await;
        let forged = fixture.pod("certs").with_secrets(&[]).with(TOKENS, &two.granted);
        fixture.refused(&forged, Code::Unauthenticated).await;
        // Where both may read, they share; another URL or CA shares nothing with anybody.
        fixture.publish(&pod("other", &two.stranger)).await;
        let mut apart = BTreeSet::new();
        for other in [
            pod("certs", &two.granted).with("endpoint", "local"),
            and(pod("certs", &two.granted), &[("ca.crt", CA.pem())]),
            pod("certs", &two.granted).with("endpoint", "alias"),
            keys("minio123"),
        ] {
            apart.insert(inode(&fixture.publish(&other).await));
        }
        assert!(apart.contains(&inode(&shown)) && apart.len() == 3, "{apart:?}");
    }
}

pub(crate) async fn a_republish_as_another_shows_nothing_new(mut fixture: Fixture) {
    let two = fixture.two().await;
    let following = |tokens: &str| fixture.pod_with("certs", tokens).with("refresh", "100ms");
    let pod = following(&two.granted);
    let swapped = pod.clone().with_secrets(&[(TOKENS, &two.stranger)]);
    let target = fixture.publish(&pod).await;
    fixture.publish(&swapped).await;
    fixture.says(&pod, "credentials are not used").await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // The earlier ones are gone with the process. Another pod brings the new content to the node.
    let known = following(&two.granted);
    fixture.restart().await;
    fixture.publish(&swapped).await;
    fixture.says(&pod, "failed").await;
    let shown = fixture.publish(&known).await;
    fixture.put("certs/keystore.jks", "rotated").await;
    let is_rotated = |target: &Path| tree(target)["keystore.jks"] == "rotated";
    eventually("the rightful reader", || is_rotated(&shown).then_some(())).await;
    for _ in 0..3 {
        fixture.publish(&swapped).await;
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        assert_eq!(tree(&target)["keystore.jks"], "keystore", "neither new nor taken away");
    }
    fixture.publish(&pod).await;
    eventually("the rightful owner", || is_rotated(&target).then_some(())).await;
}

pub(crate) async fn what_was_read_before_is_for_who_read_it(mut fixture: Fixture) {
    let two = fixture.two().await;
    for view in ["tmpfs", "disk"] {
        let cached = |tokens: &str| {
            let pod = fixture.pod_with("certs", tokens).with("view", view);
            pod.with("whenUnavailable", "cached")
        };
        let first = cached(&two.granted);
        let expected = tree(&fixture.publish(&first).await);
        fixture.unpublish(&first).await;
        fixture.embedded().set_down(true);
        for stranger in [
            cached(&two.stranger),
            cached(&two.stranger).with("endpoint", "alias"),
            cached(&two.granted).with("endpoint", "local"),
            and(cached(&two.granted), &[("ca.crt", CA.pem())]),
        ] {
            let status = fixture.refused(&stranger, Code::Unavailable).await;
            assert!(status.message().contains("nothing that this credential"), "{status:?}");
        }
        let alias = cached(&two.granted).with("endpoint", "alias");
        assert_eq!(tree(&fixture.publish(&alias).await), expected);
        fixture.embedded().set_down(false);
    }
}

pub(crate) async fn rights_that_are_withdrawn_bring_nothing_new(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let bucket = fixture.bucket.clone();
    let keys = [("accesskey", "reader"), ("secretkey", "reader-secret")];
    let pod = || {
        let pod = fixture.following("certs", "100ms").with_secrets(&keys);
        pod.with("whenUnavailable", "cached")
    };
    let rights = || fixture.server.embedded().rights();
    rights().add_credential("reader", "reader-secret");
    rights().grant("reader", &bucket, "certs/");
    let running = pod();
    let target = fixture.publish(&running).await;
    let expected = tree(&target);
    rights().revoke("reader", &bucket, "certs/");
    fixture.put("certs/keystore.jks", "rotated").await;
    // Somebody else's volume shows it, so it is here.
    let owner = fixture.following("certs", "100ms");
    assert_eq!(tree(&fixture.publish(&owner).await)["keystore.jks"], "rotated");
    fixture.says(&running, "failed").await;
    fixture.publish(&running).await;
    assert_eq!(tree(&target), expected, "what runs goes on, and gets nothing new");
    let new = pod();
    fixture.refused(&new, Code::PermissionDenied).await;
    // A refusal ends what was allowed before.
    fixture.embedded().set_down(true);
    fixture.refused(&new, Code::Unavailable).await;
    fixture.embedded().set_down(false);
    let (kept, again) = (running.clone(), new.clone());
    fixture.restart().await;
    fixture.publish(&kept).await;
    fixture.says(&kept, "failed").await;
    assert_eq!(tree(&target), expected);
    fixture.refused(&again, Code::PermissionDenied).await;
    fixture.embedded().rights().grant("reader", &bucket, "certs/");
    eventually("what is allowed again", || {
        (tree(&target)["keystore.jks"] == "rotated").then_some(())
    })
    .await;
}

/// The JSON documents of docs/SECURITY.md, in their order, for this case's bucket.
fn documented(bucket: &str) -> Vec<Value> {
    let text = include_str!("../../docs/SECURITY.md");
    let blocks = text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let for_bucket = |text: &str| {
        let text = text.replace("kafka-certs-bucket", bucket).replace("spark-apps", bucket);
        serde_json::from_str(&text).expect("JSON")
    };
    blocks.map(for_bucket).collect()
}

pub(crate) async fn the_documented_policies_suffice(mut fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.put("certs-old/file", "hidden").await;
    fixture.put("jars/app.jar", "one").await;
    let documents = documented(&fixture.bucket);
    let [latest, past] = [&documents[0], &documents[1]];
    let mut single = latest.clone();
    let listing = single["Statement"].as_array_mut().expect("statements").remove(0);
    assert_eq!(listing["Action"], "s3:ListBucket");
    let as_of = Clock::of(&fixture).moment().await;
    fixture.put("jars/app.jar", "two").await;
    let mut holders = Vec::new();
    match &fixture.server {
        Server::Radosgw(server) => {
            for (name, policy) in [("latest", latest), ("past", past), ("single", &single)] {
                let role = server.add_role(&format!("doc-{name}"), policy).await;
                let tokens = server.issuer().issue(&[Token::of("spark", name)]);
                holders.push((tokens, Some(role)));
            }
        }
        Server::Minio(minio) => {
            let realm = Realm::of(&fixture.server);
            for (name, policy) in [("latest", latest), ("past", past), ("single", &single)] {
                let name = format!("{}-{name}", fixture.bucket);
                minio.add_policy(&fixture.server.client(), &name, &policy.to_string()).await;
                let token = Token { policy: Some(name.clone()), ..Token::of("spark", &name) };
                holders.push((realm.issue(&token), None));
            }
        }
        Server::Embedded(_) => panic!("it knows no policies"),
    }
    fixture.reconfigure("limits: { minRefresh: 50ms }\n").await;
    let pod = |holder: usize, prefix: &str| {
        let (tokens, role) = &holders[holder];
        let pod = fixture.pod_with(prefix, tokens);
        if let Some(role) = role { pod.with("roleArn", role) } else { pod }
    };
    // One prefix, and it refreshes.
    let following = pod(0, "certs").with("refresh", "100ms");
    let target = fixture.publish(&following).await;
    assert_eq!(tree(&target)["sub/password"], "secret");
    fixture.put("certs/keystore.jks", "rotated").await;
    let is_rotated = || (tree(&target)["keystore.jks"] == "rotated").then_some(());
    eventually("the new content", is_rotated).await;
    for beyond in ["certs-old", "jars", "certs/sub", ""] {
        fixture.refused(&pod(0, beyond), Code::PermissionDenied).await;
    }
    // A single key, without the right to list.
    let mut by_key = pod(2, "").with("sources", "[{key: certs/keystore.jks}]");
    by_key.attributes.remove("prefix");
    assert_eq!(tree(&fixture.publish(&by_key).await)["keystore.jks"], "rotated");
    fixture.refused(&pod(2, "certs"), Code::PermissionDenied).await;
    // A moment.
    let earlier = pod(1, "jars").with("asOf", &as_of);
    assert_eq!(tree(&fixture.publish(&earlier).await)["app.jar"], "one");
    fixture.refused(&pod(0, "jars").with("asOf", &as_of), Code::PermissionDenied).await;
}
