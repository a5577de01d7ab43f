//! Credentials that change under running volumes, and what volumes must not do to one another.

use std::{fs::File, os::fd::AsRawFd, time::Duration};

use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    refresh::eventually,
    support::s3::{Action, Fault},
};

/// A credential as a Secret spells it.
type Keys = [(&'static str, &'static str); 2];

const FIRST: Keys = [("accesskey", "first"), ("secretkey", "first-secret")];
const SECOND: Keys = [("accesskey", "second"), ("secretkey", "second-secret")];
const THIRD: Keys = [("accesskey", "third"), ("secretkey", "third-secret")];

impl Fixture {
    /// Lets volumes refresh often, with three credentials that may do everything.
    async fn with_three_credentials(&mut self) {
        self.often().await;
        let rights = self.embedded().rights();
        for [(_, id), (_, secret)] in [FIRST, SECOND, THIRD] {
            rights.add_credential(id, secret);
        }
    }
}

pub(crate) async fn newer_content_is_never_taken_back(mut fixture: Fixture) {
    fixture.with_three_credentials().await;
    fixture.put("x/file", "old").await;
    let other = fixture.following("x", "1h").with_secrets(&SECOND);
    fixture.publish(&other).await;
    fixture.put("x/file", "new").await;
    let pod = fixture.following("x", "1h");
    let target = fixture.publish(&pod.clone().with_secrets(&FIRST)).await;
    fixture.embedded().reset_requests();
    // The second credential's last listing on this node is younger than its interval, and older
    // than what this volume shows.
    fixture.publish(&pod.with_secrets(&SECOND)).await;
    let proven = || (fixture.embedded().requests().gets() > 0).then_some(());
    eventually("the trial", proven).await;
    for _ in 0..50 {
        assert_eq!(tree(&target)["file"], "new");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn an_object_that_changes_does_not_end_a_trial(mut fixture: Fixture) {
    fixture.with_three_credentials().await;
    fixture.put("c/file", "one").await;
    let pod = fixture.following("c", "1h");
    let target = fixture.publish(&pod.clone().with_secrets(&FIRST)).await;
    fixture.put("c/file", "two").await;
    let changes = Fault::get(Action::ChangeETag).key("c/file").times(1);
    fixture.embedded().faults().add(changes);
    fixture.publish(&pod.clone().with_secrets(&SECOND)).await;
    eventually("the present content", || {
        let now = fixture.embedded().content(&fixture.bucket, "c/file").unwrap();
        let shown = std::fs::read(target.join("file")).unwrap();
        (shown == now && shown != b"one").then_some(())
    })
    .await;
    assert!(!fixture.condition(&pod).await.0.contains("credentials"));
}

pub(crate) async fn an_outage_does_not_end_a_trial(mut fixture: Fixture) {
    fixture.with_three_credentials().await;
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("retries: 3", "retries: 0"));
    fixture.restart().await;
    fixture.put("c/file", "one").await;
    let pod = fixture.following("c", "500ms");
    let target = fixture.publish(&pod.clone().with_secrets(&FIRST)).await;
    let down = fixture.embedded().faults().add(Fault::new(Action::INTERNAL_ERROR));
    fixture.publish(&pod.clone().with_secrets(&SECOND)).await;
    fixture.says(&pod, "could not be tried yet").await;
    fixture.embedded().faults().remove(down);
    // The first is gone meanwhile: only the second can bring this.
    fixture.embedded().rights().remove_credential("first");
    fixture.put("c/file", "two").await;
    eventually("the second's content", || (tree(&target)["file"] == "two").then_some(())).await;
    fixture.says_no_more(&pod, "could not be tried").await;
}

pub(crate) async fn credentials_may_change_before_a_trial_is_through(mut fixture: Fixture) {
    fixture.with_three_credentials().await;
    fixture.put("c/file", "one").await;
    let pod = fixture.following("c", "200ms");
    let target = fixture.publish(&pod.clone().with_secrets(&FIRST)).await;
    let slow = Fault::get(Action::Delay(Duration::from_secs(1))).access_key("second");
    fixture.embedded().faults().add(slow);
    fixture.embedded().reset_requests();
    fixture.publish(&pod.clone().with_secrets(&SECOND)).await;
    eventually("the slow trial", || (fixture.embedded().requests().gets() > 0).then_some(())).await;
    fixture.publish(&pod.clone().with_secrets(&THIRD)).await;
    // Back and forth, faster than any of them is through.
    for keys in [&FIRST, &SECOND, &FIRST, &THIRD] {
        fixture.publish(&pod.clone().with_secrets(keys)).await;
    }
    for id in ["first", "second"] {
        fixture.embedded().rights().remove_credential(id);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fixture.publish(&pod.clone().with_secrets(&THIRD)).await;
    for content in ["two", "three"] {
        fixture.put("c/file", content).await;
        eventually("the third's content", || (tree(&target)["file"] == content).then_some(()))
            .await;
    }
}

pub(crate) async fn what_started_from_before_heals_after_a_restart(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("retries: 3", "retries: 0"));
    fixture.restart().await;
    fixture.put("c/file", "one").await;
    let cached = || fixture.following("c", "never").with("whenUnavailable", "cached");
    let (first, pod) = (cached(), cached());
    fixture.publish(&first).await;
    fixture.put("c/file", "two").await;
    fixture.embedded().set_down(true);
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["file"], "one");
    fixture.restart().await;
    fixture.embedded().set_down(false);
    fixture.publish(&pod).await;
    eventually("the present content", || (tree(&target)["file"] == "two").then_some(())).await;
    // It has what it was published for, and asks nothing any more.
    fixture.put("c/file", "three").await;
    fixture.embedded().reset_requests();
    fixture.publish(&pod).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fixture.embedded().requests().total(), 0);
}

pub(crate) async fn what_was_read_before_keeps_to_the_limits(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("retries: 3", "retries: 0");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put("c/file", vec![b'x'; 20_000]).await;
    let cached = || fixture.pod("c").with("whenUnavailable", "cached");
    let (first, small, denied) = (cached(), cached().with("maxSize", "4Ki"), cached());
    fixture.publish(&first).await;
    fixture.embedded().set_down(true);
    let status = fixture.refused(&small, Code::Unavailable).await;
    assert!(status.message().contains("maxSize"), "{status:?}");
    // S3 has said no meanwhile: what was read before does not count any more.
    fixture.embedded().set_down(false);
    let fault = fixture.embedded().faults().add(Fault::new(Action::ACCESS_DENIED));
    fixture.refused(&denied, Code::PermissionDenied).await;
    fixture.embedded().faults().remove(fault);
    fixture.embedded().set_down(true);
    fixture.refused(&denied, Code::Unavailable).await;
}

pub(crate) async fn a_volume_that_is_too_large_costs_others_nothing(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("o/file", "1").await;
    fixture.put("big/file", "1").await;
    let target = fixture.publish(&fixture.following("o", "100ms")).await;
    let big = fixture.following("big", "100ms").with("maxSize", "4Ki");
    fixture.publish(&big).await;
    let inside = File::open(target.join("..data").canonicalize().unwrap()).unwrap();
    let first = format!("/proc/self/fd/{}/file", inside.as_raw_fd());
    fixture.put("o/file", "2").await;
    eventually("the change", || (tree(&target)["file"] == "2").then_some(())).await;
    fixture.put("big/file", vec![b'x'; 5000]).await;
    fixture.says(&big, "maxSize").await;
    fixture.says(&big, "3 refreshes failed").await;
    assert_eq!(std::fs::read_to_string(&first).unwrap(), "1", "the ten seconds of another");
}

pub(crate) async fn replaced_revisions_make_room(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("64Mi", "1Mi"));
    fixture.restart().await;
    let large = |byte| vec![byte; 300_000];
    fixture.put("c/file", large(b'1')).await;
    let target = fixture.publish(&fixture.following("c", "100ms")).await;
    let shows =
        |target: &std::path::Path, byte| std::fs::read(target.join("file")).unwrap()[0] == byte;
    // Three fit, and no fourth beside them.
    for byte in *b"234" {
        fixture.put("c/file", large(byte)).await;
        eventually("the change", || shows(&target, byte).then_some(())).await;
    }
    fixture.put("d/file", large(b'5')).await;
    let other = fixture.publish(&fixture.following("d", "100ms")).await;
    assert!(shows(&other, b'5') && shows(&target, b'4'));
}

/// Rights to read that are withdrawn while those to list stay.
pub(crate) async fn a_refusal_ends_what_was_read_before(mut fixture: Fixture) {
    let more = "limits: { minRefresh: 50ms }\nauthorization: { lifetime: 300ms }\n";
    let config = Fixture::config(&fixture.server, more);
    fixture.home.configure(&config.replace("retries: 3", "retries: 0"));
    fixture.restart().await;
    fixture.put("c/file", "secret").await;
    let plain = || fixture.following("c", "100ms");
    let cached = || plain().with("whenUnavailable", "cached");
    // Whoever hears of the refusal, a volume that is cached or one that is not.
    for refused in [cached(), plain()] {
        let running = cached();
        fixture.publish(&running).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let denied = fixture.embedded().faults().add(Fault::get(Action::ACCESS_DENIED));
        fixture.refused(&refused, Code::PermissionDenied).await;
        // The running volume refreshes: it may list, which proves nothing.
        fixture.embedded().reset_requests();
        eventually("refreshes", || (fixture.embedded().requests().lists() > 3).then_some(())).await;
        let down = fixture.embedded().faults().add(Fault::new(Action::INTERNAL_ERROR));
        fixture.refused(&cached(), Code::Unavailable).await;
        fixture.embedded().faults().remove(denied);
        fixture.embedded().faults().remove(down);
        fixture.unpublish(&running).await;
    }
}

pub(crate) async fn what_started_from_before_is_proven_afterwards(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("retries: 3", "retries: 0"));
    fixture.restart().await;
    fixture.put("c/file", "secret").await;
    let cached = || fixture.following("c", "100ms").with("whenUnavailable", "cached");
    let (first, pod) = (cached(), cached());
    fixture.publish(&first).await;
    fixture.unpublish(&first).await;
    fixture.restart().await;
    fixture.embedded().set_down(true);
    fixture.publish(&pod).await;
    let denied = fixture.embedded().faults().add(Fault::get(Action::ACCESS_DENIED));
    fixture.embedded().set_down(false);
    fixture.says(&pod, "s3:GetObject").await;
    fixture.embedded().faults().remove(denied);
    fixture.says_no_more(&pod, "failed").await;
}
