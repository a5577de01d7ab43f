//! How many requests things take, and what the caches hand out to whom.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    support::{
        kubelet::Pod,
        s3::{Action, EmbeddedS3, Fault, Logged, OWNER, Options, PutOptions},
        server::Server,
    },
};

pub(crate) async fn a_cold_publish_is_one_list_and_one_get_each(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets(), requests.total()), (1, 3, 4));
}

pub(crate) async fn a_warm_publish_is_one_list(fixture: Fixture) {
    fixture.put_certificates().await;
    let first = fixture.pod("certs");
    fixture.publish(&first).await;
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod("certs")).await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.total()), (1, 1));
    // What nobody shows any more stays in the store.
    fixture.unpublish(&first).await;
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(fixture.embedded().requests().total(), 1);
    // A republish asks nothing.
    fixture.embedded().reset_requests();
    let pod = fixture.pod("certs");
    fixture.publish(&pod).await;
    fixture.publish(&pod).await;
    assert_eq!(fixture.embedded().requests().total(), 1);
}

pub(crate) async fn a_hundred_publishes_fetch_each_object_once(fixture: Fixture) {
    fixture.put_certificates().await;
    // Long enough for all to arrive while the first listing runs, however busy the machine is.
    fixture.embedded().latency(Some(Duration::from_secs(1)));
    let pods: Vec<Pod> = (0..100).map(|_| fixture.pod("certs")).collect();
    join_all(pods.iter().map(|pod| fixture.publish(pod))).await;
    let requests = fixture.embedded().requests();
    assert_eq!(requests.gets(), 3);
    assert!(requests.lists() <= 3, "{} listings", requests.lists());
    join_all(pods.iter().map(|pod| fixture.unpublish(pod))).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn another_principal_asks_for_one_byte(fixture: Fixture) {
    fixture.put("o/large", vec![7; 500_000]).await;
    fixture.put("o/empty", "").await;
    fixture.embedded().rights().add_credential("other", "other-secret");
    fixture.publish(&fixture.pod("o").with("view", "disk")).await;
    fixture.embedded().reset_requests();
    let pod = fixture.pod("o").with("view", "disk");
    let pod = pod.with_secrets(&[("accessKeyID", "other"), ("secretAccessKey", "other-secret")]);
    let target = fixture.publish(&pod).await;
    assert_eq!(std::fs::read(target.join("large")).unwrap(), vec![7; 500_000]);
    let log = fixture.embedded().log();
    assert_eq!(log.len(), 3, "one listing and two GETs by the other principal");
    assert!(log.iter().all(|logged| logged.call.access_key.as_deref() == Some("other")));
    let ranges: Vec<_> = log.iter().filter_map(|logged| logged.call.range.as_deref()).collect();
    assert_eq!(ranges, ["bytes=0-0"]);
}

pub(crate) async fn a_proof_lasts_as_long_as_it_may(mut fixture: Fixture) {
    fixture.reconfigure("authorization: { lifetime: 500ms }\n").await;
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod("certs")).await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (1, 3), "S3 is asked again");
    // Rights that were withdrawn meanwhile: nothing new, and what runs goes on.
    let denied = Fault::get(Action::ACCESS_DENIED);
    fixture.embedded().faults().add(denied);
    tokio::time::sleep(Duration::from_millis(600)).await;
    fixture.refused(&fixture.pod("certs"), Code::PermissionDenied).await;
    fixture.assert_only_published(2);
}

pub(crate) async fn a_wrong_secret_gets_nothing_from_the_cache(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    let pod = fixture
        .pod("certs")
        .with_secrets(&[("accesskey", "minio"), ("secretkey", "guessed-secret-key")]);
    fixture.refused(&pod, Code::Unauthenticated).await;
}

pub(crate) async fn a_customer_key_is_needed_and_never_shared(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki }\n").await;
    let (key, other) = ([7; 32], [8; 32]);
    let encrypted = PutOptions { customer_key: Some(key), ..PutOptions::default() };
    fixture.embedded().put_with(&fixture.bucket, "sse/small", "small", &encrypted);
    fixture.embedded().put_with(&fixture.bucket, "sse/large", vec![1; 200_000], &encrypted);
    let pod = |key: Option<[u8; 32]>| {
        let mut pod = fixture.pod("sse");
        if let Some(key) = key {
            pod.secrets.insert("sseCustomerKey".to_owned(), STANDARD.encode(key));
        }
        pod
    };
    let target = fixture.publish(&pod(Some(key))).await;
    assert_eq!(std::fs::read(target.join("small")).unwrap(), b"small");
    assert_eq!(std::fs::read(target.join("large")).unwrap().len(), 200_000);
    // The same credential with another key, or none, gets nothing from the store.
    fixture.refused(&pod(Some(other)), Code::PermissionDenied).await;
    let status = fixture.refused(&pod(None), Code::InvalidArgument).await;
    assert!(status.message().contains("sseCustomerKey"), "{status:?}");
}

pub(crate) async fn another_owner_costs_no_request(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    fixture.embedded().reset_requests();
    let target = fixture.publish(&fixture.pod("certs").with("fileMode", "0400")).await;
    assert_eq!(fixture.embedded().requests().total(), 1, "only a listing");
    assert_eq!(crate::fixture::owner(&target.join("keystore.jks")), "0:0 0400");
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
}

pub(crate) async fn the_user_agent_names_the_pod(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("s3view/{version} (pod spark/driver-1) ");
    for logged in fixture.embedded().log() {
        let agent = logged.call.user_agent.as_deref().unwrap_or_default();
        assert!(agent.starts_with(&expected), "{agent}");
    }
}

pub(crate) async fn a_long_listing_is_paged(fixture: Fixture) {
    for number in 0..2500 {
        fixture.embedded().put(&fixture.bucket, &format!("many/{number:04}"), "x");
    }
    fixture.embedded().reset_requests();
    // However slow the machine is: no refresh comes between.
    let pod = fixture.pod("many").with("layout", "files").with("refresh", "never");
    let target = fixture.publish(&pod).await;
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 2500);
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (3, 2500));
}

/// Another server with the same plugin, whose pages are short.
async fn with_short_pages(fixture: &Fixture) -> Fixture {
    let server = EmbeddedS3::start(Options { page_size: 10, ..Options::default() });
    Fixture::start(Server::Embedded(server), fixture.ids).await
}

/// Puts files below `top`, in directories of which some have names that begin alike; as they are seen.
fn put_many(fixture: &Fixture, top: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for number in 0..1000 {
        let directory = number / 20;
        let other = ["", "-x", ".y", " z"][directory % 4];
        let name = format!("{:02}{other}/f+{number:04}", directory / 2);
        fixture.embedded().put(&fixture.bucket, &format!("{top}/{name}"), "x");
        names.insert(name);
    }
    names
}

async fn seen(fixture: &Fixture, prefix: &str) -> BTreeSet<String> {
    let pod = fixture.pod(prefix).with("layout", "files").with("refresh", "never");
    let seen = tree(&fixture.publish(&pod).await).into_keys();
    seen.filter(|name| !name.ends_with('/')).collect()
}

pub(crate) async fn a_longer_listing_is_shared_out(fixture: Fixture) {
    let fixture = with_short_pages(&fixture).await;
    let names = put_many(&fixture, "many");
    fixture.embedded().latency(Some(Duration::from_millis(5)));
    fixture.embedded().reset_requests();
    assert_eq!(seen(&fixture, "many").await, names);
    let lists = fixture.embedded().requests().lists();
    assert!((101..=125).contains(&lists), "{lists} requests for 100 pages");
    // Whatever has to be asked for again.
    let slow = Fault::new(Action::SLOW_DOWN).on("ListObjectsV2").probability(0.05);
    fixture.embedded().faults().add(slow);
    assert_eq!(seen(&fixture, "many").await, names);
}

pub(crate) async fn what_a_longer_listing_asks_beside_is_not_needed(fixture: Fixture) {
    let fixture = with_short_pages(&fixture).await;
    let names = put_many(&fixture, "deep/a");
    // A policy that names the very prefix.
    let denied = Fault::new(Action::ACCESS_DENIED).on("ListObjectsV2").key("deep/a/");
    fixture.embedded().faults().add(denied);
    fixture.embedded().reset_requests();
    let names: BTreeSet<_> = names.iter().map(|name| format!("a/{name}")).collect();
    assert_eq!(seen(&fixture, "deep").await, names);
    let lists = fixture.embedded().requests().lists();
    assert_eq!(lists, 102, "100 pages, and two questions of which one is denied");
}

pub(crate) async fn too_much_is_refused_before_anything_is_fetched(fixture: Fixture) {
    fixture.put_certificates().await;
    let cases = [("maxSize", "8Ki", "maxSize"), ("maxObjects", "2", "maxObjects")];
    for (attribute, value, named) in cases {
        let pod = fixture.pod("certs").with(attribute, value);
        let status = fixture.refused(&pod, Code::ResourceExhausted).await;
        assert!(status.message().contains(named), "{status:?}");
    }
    assert_eq!(fixture.embedded().requests().gets(), 0);
}

pub(crate) async fn a_full_store_names_its_bytes(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("size: 64Mi", "size: 1Mi");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put("a/one", vec![1; 700 << 10]).await;
    fixture.put("b/two", vec![2; 700 << 10]).await;
    fixture.publish(&fixture.pod("a")).await;
    fixture.embedded().reset_requests();
    let status = fixture.refused(&fixture.pod("b"), Code::ResourceExhausted).await;
    assert!(status.message().contains("716800 bytes are needed"), "{status:?}");
    assert!(status.message().contains("of 1048576 bytes are available"), "{status:?}");
    assert_eq!(fixture.embedded().requests().gets(), 0);
}

pub(crate) async fn unused_blobs_make_room(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("size: 64Mi", "size: 1Mi");
    fixture.home.configure(&config);
    fixture.restart().await;
    for (key, byte) in [("a/1", 1), ("b/2", 2), ("c/3", 3)] {
        fixture.put(key, vec![byte; 400 << 10]).await;
    }
    let (a, b) = (fixture.pod("a"), fixture.pod("b"));
    fixture.publish(&a).await;
    let shown = fixture.publish(&b).await;
    fixture.unpublish(&a).await;
    fixture.publish(&fixture.pod("c")).await;
    assert_eq!(std::fs::read(shown.join("2")).unwrap(), vec![2; 400 << 10], "in use: not evicted");
    fixture.embedded().reset_requests();
    fixture.refused(&a, Code::ResourceExhausted).await;
}

pub(crate) async fn those_who_wait_for_one_object_need_its_room_once(fixture: Fixture) {
    fixture.put("a/large", vec![1; 10 << 20]).await;
    fixture.embedded().latency(Some(Duration::from_millis(500)));
    let pods: Vec<Pod> = (0..20).map(|_| fixture.pod("a")).collect();
    join_all(pods.iter().map(|pod| fixture.publish(pod))).await;
}

pub(crate) async fn large_objects_are_asked_for_in_parts(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki, bytesInFlight: 256Ki }\n").await;
    let size = 1_000_000;
    let multipart = PutOptions { part_size: Some(300_000), ..PutOptions::default() };
    fixture.embedded().put_generated(&fixture.bucket, "big/multipart", size, &multipart);
    fixture.embedded().reset_requests();
    let target = fixture.publish(&fixture.pod("big").with("view", "disk")).await;
    let expected = fixture.embedded().content(&fixture.bucket, "big/multipart").unwrap();
    assert!(std::fs::read(target.join("multipart")).unwrap() == expected);
    let requests = fixture.embedded().requests();
    assert_eq!(requests.gets(), 16, "one for each part");
    assert_eq!(requests.of("HeadObject"), 1, "for the checksum");
    let ranged = |logged: &crate::support::s3::Logged| {
        logged.call.operation != "GetObject"
            || (logged.call.range.is_some() && logged.call.if_match.is_some())
    };
    assert!(fixture.embedded().log().iter().all(ranged));
}

pub(crate) async fn many_large_objects_do_not_wait_for_each_other(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki }\n").await;
    // More than the plugin has threads for blocking work.
    for number in 0..80 {
        let content = vec![number; 130_000];
        fixture.embedded().put(&fixture.bucket, &format!("large/{number:02}"), content);
    }
    let mut pod = fixture.pod("large");
    pod.timeout = Duration::from_secs(40);
    let target = fixture.publish(&pod).await;
    for number in 0..80 {
        let content = std::fs::read(target.join(format!("{number:02}"))).unwrap();
        assert!(content == vec![number; 130_000], "{number}");
    }
}

pub(crate) async fn a_key_cannot_ask_for_too_many_directories(fixture: Fixture) {
    for number in 0..20 {
        let key = format!("deep/{number}/{}x", "d/".repeat(100));
        fixture.embedded().put(&fixture.bucket, &key, "x");
    }
    let pod = fixture.pod("deep").with("maxObjects", "1000");
    let status = fixture.refused(&pod, Code::ResourceExhausted).await;
    assert!(status.message().contains("directories"), "{status:?}");
    fixture.publish(&fixture.pod("deep")).await;
}

pub(crate) async fn owner_and_payer_go_with_every_request(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().rights().add_credential("other", "other-secret");
    let other = [("accesskey", "other"), ("secretkey", "other-secret")];
    let named = |pod: Pod, owner: &str| {
        pod.with("expectedBucketOwner", owner).with("requestPayer", "requester")
    };
    let key = || {
        let mut pod = fixture.pod("").with("sources", "[{key: certs/keystore.jks}]");
        pod.attributes.remove("prefix");
        pod
    };
    let moment = "2026-01-01T00:00:00Z";
    // Listings, HEAD, GET, and the one byte that proves a right; what the node holds is no way around.
    for pod in [fixture.pod("certs"), key(), fixture.pod("certs").with_secrets(&other)] {
        fixture.publish(&named(pod.clone(), OWNER)).await;
        let stranger = Pod { uid: "another".into(), ..pod };
        fixture.refused(&named(stranger, "999999999999"), Code::PermissionDenied).await;
    }
    let past = fixture.pod("certs").with("asOf", moment).with("allowEmpty", "true");
    fixture.publish(&named(past, OWNER)).await;
    let calls = fixture.embedded().log();
    let operations: BTreeSet<_> = calls.iter().map(|logged| logged.call.operation).collect();
    for operation in ["ListObjectsV2", "HeadObject", "GetObject", "ListObjectVersions"] {
        assert!(operations.contains(operation), "{operations:?}");
    }
    for Logged { call, .. } in &calls {
        assert!(
            call.bucket_owner.is_some() && call.payer.as_deref() == Some("requester"),
            "{call:?}"
        );
    }
}
