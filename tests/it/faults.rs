//! When S3 fails: retried, refused or undone, and never a wrong byte.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    support::s3::{Action, Fault, PutOptions},
};

pub(crate) async fn passing_failures_are_retried(fixture: Fixture) {
    fixture.put_certificates().await;
    let faults = fixture.embedded().faults();
    faults.add(Fault::new(Action::SLOW_DOWN).on("ListObjectsV2").times(1));
    faults.add(Fault::new(Action::Reset).on("ListObjectsV2").times(1));
    faults.add(Fault::get(Action::INTERNAL_ERROR).times(2));
    faults.add(Fault::get(Action::Reset).times(1));
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
}

pub(crate) async fn broken_bodies_are_fetched_again(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki, bytesInFlight: 1Mi }\n").await;
    let content: Vec<u8> = (0..400_000_u32).map(|n| (n % 251) as u8).collect();
    fixture.put("b/parts", content.clone()).await;
    fixture.put("b/piece", content[..50_000].to_vec()).await;
    let faults = fixture.embedded().faults();
    faults.add(Fault::get(Action::Truncate(1000)).times(2));
    faults.add(Fault::get(Action::ResetAfter(2000)).times(2));
    let target = fixture.publish(&fixture.pod("b")).await;
    assert!(std::fs::read(target.join("parts")).unwrap() == content);
    assert!(std::fs::read(target.join("piece")).unwrap() == content[..50_000]);
}

pub(crate) async fn broken_listings_are_asked_for_again(fixture: Fixture) {
    fixture.put_certificates().await;
    let faults = fixture.embedded().faults();
    for action in [Action::Truncate(300), Action::ResetAfter(300), Action::Truncate(0)] {
        faults.add(Fault::new(action).on("ListObjectsV2").times(1));
        let target = fixture.publish(&fixture.pod("certs")).await;
        assert_eq!(tree(&target).len(), 4);
    }
}

pub(crate) async fn corrupt_bytes_are_never_shown(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki, bytesInFlight: 1Mi }\n").await;
    let multipart = PutOptions { part_size: Some(100_000), ..PutOptions::default() };
    let embedded = fixture.embedded();
    embedded.put(&fixture.bucket, "md5/small", vec![7; 5000]);
    embedded.put(&fixture.bucket, "md5parts/large", vec![7; 300_000]);
    embedded.put_with(&fixture.bucket, "crc/small", vec![7; 50_000], &multipart);
    embedded.put_with(&fixture.bucket, "crcparts/large", vec![7; 300_000], &multipart);
    for prefix in ["md5", "md5parts", "crc", "crcparts"] {
        let always = embedded.faults().add(Fault::get(Action::Corrupt));
        let status = fixture.refused(&fixture.pod(prefix), Code::DataLoss).await;
        assert!(status.message().contains(prefix), "{status:?}");
        embedded.faults().remove(always);
        // One bad answer is made good by the next.
        embedded.faults().add(Fault::get(Action::Corrupt).times(1));
        if prefix.ends_with("parts") {
            // A large object is wrong as a whole: the kubelet's retry fetches it again.
            fixture.refused(&fixture.pod(prefix), Code::DataLoss).await;
        }
        let target = fixture.publish(&fixture.pod(prefix)).await;
        assert!(tree(&target).values().all(|content| content.bytes().all(|byte| byte == 7)));
        embedded.faults().clear();
    }
}

pub(crate) async fn a_stalled_body_is_given_up(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "")
        .replace("retries: 3", "retries: 2\n    timeouts: { stall: 300ms }");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put("s/file", vec![1; 100_000]).await;
    fixture.embedded().faults().add(Fault::get(Action::Stall(10)).times(1));
    let began = Instant::now();
    let target = fixture.publish(&fixture.pod("s")).await;
    assert_eq!(std::fs::read(target.join("file")).unwrap().len(), 100_000);
    assert!(began.elapsed() >= Duration::from_millis(300));
    fixture.home.configure(&config.replace("stall: 300ms", "total: 300ms"));
    fixture.restart().await;
    fixture.put("t/file", vec![1; 100_000]).await;
    fixture.embedded().faults().add(Fault::get(Action::Stall(10)));
    let status = fixture.refused(&fixture.pod("t"), Code::Unavailable).await;
    assert!(status.message().contains("raise timeouts.total"), "{status:?}");
}

pub(crate) async fn a_stalled_object_leaves_room_for_others(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { requests: 8, partSize: 64Ki, bytesInFlight: 512Ki }\n").await;
    fixture.put("large/file", vec![1; 4 << 20]).await;
    fixture.put_certificates().await;
    let embedded = fixture.embedded();
    embedded.rights().add_credential("greedy", "greedy-secret");
    // Every request for the large object hangs, whoever asks.
    embedded.faults().add(Fault::get(Action::Stall(1)).key("large/"));
    let keys = [("accesskey", "greedy"), ("secretkey", "greedy-secret")];
    let greedy = fixture.pod("large").with("view", "disk").with_secrets(&keys);
    embedded.reset_requests();
    let publishing = fixture.publish_meanwhile(&greedy);
    while embedded.requests().gets() < 6 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut pod = fixture.pod("certs");
    pod.timeout = Duration::from_secs(20);
    assert_eq!(tree(&fixture.publish(&pod).await)["keystore.jks"], "keystore");
    fixture.unpublish(&greedy).await;
    assert_eq!(publishing.await.unwrap().unwrap_err().code(), Code::Aborted);
}

pub(crate) async fn an_object_that_changes_is_listed_again(fixture: Fixture) {
    fixture.put("c/file", "before").await;
    fixture.put("c/gone", "gone").await;
    let embedded = fixture.embedded();
    embedded.reset_requests();
    embedded.faults().add(Fault::get(Action::ChangeETag).key("c/file").times(1));
    let target = fixture.publish(&fixture.pod("c")).await;
    let now = embedded.content(&fixture.bucket, "c/file").unwrap();
    assert_eq!(std::fs::read(target.join("file")).unwrap(), now, "the new listing's content");
    assert_eq!(embedded.requests().lists(), 2);
    // One that never stands still is told, and nothing is shown.
    fixture.put("d/file", "restless").await;
    embedded.faults().add(Fault::get(Action::ChangeETag).key("d/file"));
    let status = fixture.refused(&fixture.pod("d"), Code::Unavailable).await;
    assert!(status.message().contains("changed"), "{status:?}");
}

pub(crate) async fn a_large_object_that_goes_is_listed_again(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki }\n").await;
    let embedded = fixture.embedded();
    embedded.put(&fixture.bucket, "g/large", vec![1; 200_000]);
    embedded.put(&fixture.bucket, "g/stays", "stays");
    embedded.faults().add(Fault::new(Action::Delay(Duration::from_millis(500))).on("HeadObject"));
    embedded.reset_requests();
    let publishing = fixture.publish_meanwhile(&fixture.pod("g"));
    while embedded.requests().of("HeadObject") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    embedded.delete(&fixture.bucket, "g/large");
    let target = publishing.await.unwrap().unwrap();
    assert_eq!(tree(&target), crate::fixture::files(&[("stays", "stays")]));
}

pub(crate) async fn an_endpoint_that_is_down_is_unavailable(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().set_down(true);
    let status = fixture.refused(&fixture.pod("certs"), Code::Unavailable).await;
    for part in [&fixture.server.url(), "prefix \"certs/\"", "check its URL"] {
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
    fixture.embedded().set_down(false);
    fixture.publish(&fixture.pod("certs")).await;
}

pub(crate) async fn a_denied_prefix_is_permission_denied(fixture: Fixture) {
    fixture.put_certificates().await;
    let rights = fixture.embedded().rights();
    rights.add_credential("limited", "limited-secret");
    rights.restrict("limited");
    rights.grant("limited", &fixture.bucket, "apps/");
    fixture.put("apps/app.py", "code").await;
    let keys = [("access_key", "limited"), ("secret_key", "limited-secret")];
    let status =
        fixture.refused(&fixture.pod("certs").with_secrets(&keys), Code::PermissionDenied).await;
    for part in ["s3:ListBucket", "s3:GetObject", &fixture.bucket, "certs/"] {
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
    fixture.publish(&fixture.pod("apps").with_secrets(&keys)).await;
}

pub(crate) async fn an_archived_object_is_a_failed_precondition(fixture: Fixture) {
    let archived = PutOptions { storage_class: Some("GLACIER"), ..PutOptions::default() };
    fixture.embedded().put_with(&fixture.bucket, "old/file", "x", &archived);
    let status = fixture.refused(&fixture.pod("old"), Code::FailedPrecondition).await;
    assert!(status.message().contains("archived"), "{status:?}");
}

pub(crate) async fn a_slow_publish_answers_before_the_deadline_and_is_joined(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().faults().add(Fault::get(Action::Delay(Duration::from_secs(3))));
    let mut pod = fixture.pod("certs");
    pod.timeout = Duration::from_secs(3);
    let began = Instant::now();
    let status = fixture.refused(&pod, Code::DeadlineExceeded).await;
    assert!(began.elapsed() < Duration::from_secs(3), "answered by itself");
    assert!(status.message().contains("0 of 3 objects"), "{status:?}");
    // The retry finds the work further, and nothing is asked for twice.
    pod.timeout = Duration::from_mins(1);
    assert_eq!(tree(&fixture.publish(&pod).await)["keystore.jks"], "keystore");
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (1, 3));
}

pub(crate) async fn unpublish_ends_a_publish(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().faults().add(Fault::get(Action::Delay(Duration::from_secs(30))));
    let pod = fixture.pod("certs");
    let publishing = fixture.publish_meanwhile(&pod);
    while fixture.embedded().requests().gets() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    fixture.unpublish(&pod).await;
    assert!(began.elapsed() < Duration::from_secs(10), "did not wait for S3");
    assert_eq!(publishing.await.unwrap().unwrap_err().code(), Code::Aborted);
    fixture.assert_nothing_left();
}

pub(crate) async fn an_error_undoes_everything(fixture: Fixture) {
    fixture.put_certificates().await;
    let denied = Fault::get(Action::ACCESS_DENIED).key("certs/truststore.jks");
    fixture.embedded().faults().add(denied);
    fixture.refused(&fixture.pod("certs"), Code::PermissionDenied).await;
    fixture.assert_nothing_left();
    fixture.embedded().faults().clear();
    fixture.publish(&fixture.pod("certs")).await;
}
