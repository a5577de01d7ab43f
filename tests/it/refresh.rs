//! Volumes follow their sources: whole, with the fewest requests, and never to a pod's harm.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::{
    fixture::{Fixture, files, tree},
    support::{
        address::free_address,
        kubelet::Pod,
        s3::{Action, Fault},
    },
};

/// How long a case waits for what must come.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `look` gives something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "this never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the volume shows exactly that.
pub(crate) async fn shows(target: &Path, expected: &BTreeMap<String, String>) {
    let mut last = BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        // A name at the top may dangle for a moment: it is removed after the swap.
        last = std::panic::catch_unwind(|| tree(target)).unwrap_or_default();
        if last == *expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(last, *expected);
}

impl Fixture {
    /// Lets volumes refresh as often as the cases want.
    pub(crate) async fn often(&mut self) {
        self.reconfigure("limits: { minRefresh: 50ms }\n").await;
    }

    /// A pod whose volume refreshes at that interval.
    pub(crate) fn following(&self, prefix: &str, interval: &str) -> Pod {
        self.pod(prefix).with("refresh", interval)
    }

    /// The message of the volume condition, and whether it is abnormal.
    pub(crate) async fn condition(&self, pod: &Pod) -> (String, bool) {
        let condition = self.kubelet.stats(pod).await.unwrap().volume_condition.unwrap();
        (condition.message, condition.abnormal)
    }

    /// Waits until the condition says this.
    pub(crate) async fn says(&self, pod: &Pod, text: &str) -> String {
        let began = Instant::now();
        loop {
            let (message, _) = self.condition(pod).await;
            if message.contains(text) {
                return message;
            }
            assert!(began.elapsed() < LIMIT, "{message:?} never says {text:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the condition does not say this any more.
    pub(crate) async fn says_no_more(&self, pod: &Pod, text: &str) {
        let began = Instant::now();
        while self.condition(pod).await.0.contains(text) {
            assert!(began.elapsed() < LIMIT, "the condition still says {text:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the listing of a refresh, and forgets the requests so far: the next refresh is an
    /// interval away.
    async fn just_refreshed(&self) {
        self.embedded().reset_requests();
        eventually("a refresh", || (self.embedded().requests().lists() > 0).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.embedded().reset_requests();
    }
}

pub(crate) async fn an_overwritten_object_is_replaced_whole(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    for (view, layout) in [("tmpfs", "symlinks"), ("tmpfs", "files"), ("disk", "symlinks")] {
        fixture.put("certs/keystore.jks", "keystore").await;
        let pod = fixture.following("certs", "200ms").with("view", view).with("layout", layout);
        let target = fixture.publish(&pod).await;
        let before = std::fs::metadata(target.join("truststore.jks")).unwrap();
        fixture.put("certs/keystore.jks", "rotated").await;
        let sub = [("sub/", ""), ("sub/password", "secret"), ("truststore.jks", "truststore")];
        let expected = files(&[&[("keystore.jks", "rotated")][..], &sub].concat());
        shows(&target, &expected).await;
        let after = std::fs::metadata(target.join("truststore.jks")).unwrap();
        assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()), "the rest stays");
        assert_eq!(fixture.home.mounts().len(), 1, "no mount was touched");
        fixture.unpublish(&pod).await;
        fixture.assert_nothing_left();
    }
}

pub(crate) async fn objects_come_and_go(mut fixture: Fixture) {
    fixture.often().await;
    for layout in ["symlinks", "files"] {
        fixture.put("r/a", "1").await;
        fixture.put("r/d/b", "2").await;
        let target = fixture.publish(&fixture.following("r", "100ms").with("layout", layout)).await;
        fixture.put("r/d/c/e", "3").await;
        fixture.put("r/f", "4").await;
        let all = [("a", "1"), ("d/", ""), ("d/b", "2"), ("d/c/", ""), ("d/c/e", "3"), ("f", "4")];
        shows(&target, &files(&all)).await;
        // A file becomes a directory, a directory a file; names go.
        for key in ["r/a", "r/d/b", "r/d/c/e"] {
            fixture.server.delete(&fixture.bucket, key).await;
        }
        fixture.put("r/a/b", "5").await;
        fixture.put("r/d", "6").await;
        shows(&target, &files(&[("a/", ""), ("a/b", "5"), ("d", "6"), ("f", "4")])).await;
        for key in ["r/a/b", "r/d"] {
            fixture.server.delete(&fixture.bucket, key).await;
        }
        shows(&target, &files(&[("f", "4")])).await;
    }
}

pub(crate) async fn three_of_a_thousand_are_three_gets(mut fixture: Fixture) {
    fixture.often().await;
    for index in 0..1000 {
        let key = format!("many/{index:03}");
        fixture.embedded().put(&fixture.bucket, &key, format!("content {index}"));
    }
    let pods: Vec<Pod> = (0..50).map(|_| fixture.following("many", "4s")).collect();
    let targets = futures::future::join_all(pods.iter().map(|pod| fixture.publish(pod))).await;
    fixture.just_refreshed().await;
    for index in [3, 500, 999] {
        let key = format!("many/{index:03}");
        fixture.embedded().put(&fixture.bucket, &key, format!("changed {index}"));
    }
    for target in &targets {
        let changed = |index: u32| {
            let content = std::fs::read_to_string(target.join(format!("{index:03}"))).unwrap();
            content == format!("changed {index}")
        };
        let all = || [3, 500, 999].into_iter().all(changed).then_some(());
        eventually("the changed objects", all).await;
    }
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets(), requests.total()), (1, 3, 4));
    let inodes: std::collections::HashSet<_> =
        targets.iter().map(|target| std::fs::metadata(target.join("003")).unwrap().ino()).collect();
    assert_eq!(inodes.len(), 1, "all pods share one copy");
}

pub(crate) async fn an_unchanged_source_costs_one_list(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    // The shortest interval of several volumes counts; jitter only shortens it.
    let pods = [fixture.following("certs", "1h"), fixture.following("certs", "1s")];
    let mut targets = Vec::new();
    for pod in &pods {
        targets.push(fixture.publish(pod).await);
    }
    let revision = |target: &PathBuf| std::fs::read_link(target.join("..data")).unwrap();
    let before: Vec<_> = targets.iter().map(revision).collect();
    fixture.embedded().reset_requests();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let requests = fixture.embedded().requests();
    assert!((2..=4).contains(&requests.lists()), "{} listings in 3.1 s", requests.lists());
    assert_eq!(requests.total(), requests.lists());
    assert_eq!(targets.iter().map(revision).collect::<Vec<_>>(), before, "nothing is swapped");
    // An upload of the same content changes nothing either.
    fixture.put("certs/keystore.jks", "keystore").await;
    fixture.just_refreshed().await;
    assert_eq!(targets.iter().map(revision).collect::<Vec<_>>(), before);
    // Without volumes nobody asks.
    for pod in &pods {
        fixture.unpublish(pod).await;
    }
    fixture.embedded().reset_requests();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(fixture.embedded().requests().total(), 0);
}

pub(crate) async fn a_volume_that_never_refreshes_asks_nothing(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "never");
    let target = fixture.publish(&pod).await;
    fixture.embedded().reset_requests();
    fixture.put("certs/keystore.jks", "rotated").await;
    let other = pod.clone().with_secrets(&[("accesskey", "a"), ("secretkey", "other-secret-key")]);
    fixture.publish(&other).await;
    fixture.restart().await;
    fixture.publish(&pod).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (0, 0));
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
}

pub(crate) async fn inotify_and_mtime_show_the_change(mut fixture: Fixture) {
    fixture.often().await;
    for layout in ["symlinks", "files"] {
        fixture.put("n/file", "one").await;
        let pod = fixture.following("n", "100ms").with("layout", layout);
        let target = fixture.publish(&pod).await;
        let modified = || std::fs::metadata(target.join("file")).unwrap().modified().unwrap();
        let before = modified();
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        watch.add_watch(&target, AddWatchFlags::IN_MOVED_TO).unwrap();
        // S3 counts time in seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        fixture.put("n/file", "two").await;
        let name = if layout == "files" { "file" } else { "..data" };
        eventually("an event", || {
            let events = watch.read_events().unwrap_or_default();
            events.iter().any(|event| event.name.as_deref() == Some(name.as_ref())).then_some(())
        })
        .await;
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "two");
        assert!(modified() > before);
        fixture.unpublish(&pod).await;
    }
}

pub(crate) async fn a_failed_refresh_keeps_the_revision_and_says_why(mut fixture: Fixture) {
    let address = free_address();
    let more = format!("limits: {{ minRefresh: 50ms }}\nmetrics: {{ address: '{address}' }}\n");
    let config = Fixture::config(&fixture.server, &more).replace("retries: 3", "retries: 0");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "100ms");
    let target = fixture.publish(&pod).await;
    let before = tree(&target);
    fixture.embedded().set_down(true);
    let message = fixture.says(&pod, "refreshes failed").await;
    for part in ["the last success was", "s ago", &fixture.server.url(), "cannot be reached"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(tree(&target), before);
    // Behind by three intervals and more: Kubernetes should know.
    let began = Instant::now();
    while !fixture.condition(&pod).await.1 {
        assert!(began.elapsed() < LIMIT, "the condition never is abnormal");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let metrics = crate::protocol::scrape(address);
    assert!(metrics.contains("s3view_stale_volumes{view=\"tmpfs\"} 1"), "{metrics}");
    assert!(metrics.contains("s3view_refreshes_total{outcome=\"failed\"}"), "{metrics}");
    let warnings = fixture.home.log().matches("a refresh failed").count();
    assert!(warnings <= 2, "{warnings} warnings for one reason");
    // The kubelet's republish is well all the same.
    fixture.publish(&pod).await;
    fixture.embedded().set_down(false);
    fixture.put("certs/keystore.jks", "rotated").await;
    let mut after = before.clone();
    after.insert("keystore.jks".into(), "rotated".into());
    shows(&target, &after).await;
    let (message, abnormal) = fixture.condition(&pod).await;
    assert!(!abnormal && !message.contains("failed"), "{message}");
    let metrics = crate::protocol::scrape(address);
    assert!(metrics.contains("s3view_stale_volumes{view=\"tmpfs\"} 0"), "{metrics}");
}

pub(crate) async fn a_failing_endpoint_is_asked_less_and_less(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "limits: { minRefresh: 50ms }\n");
    fixture.home.configure(&config.replace("retries: 3", "retries: 0"));
    fixture.restart().await;
    fixture.put_certificates().await;
    fixture.publish(&fixture.following("certs", "100ms")).await;
    fixture.embedded().faults().add(Fault::new(Action::SLOW_DOWN));
    fixture.embedded().reset_requests();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let lists = fixture.embedded().requests().lists();
    // At 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 s of pause: not forty.
    assert!((3..=8).contains(&lists), "{lists} listings in 4 s");
}

pub(crate) async fn a_source_that_suddenly_is_empty_is_a_failure(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("e/file", "here").await;
    let strict = fixture.following("e", "100ms");
    let lenient = strict.clone().with("allowEmpty", "true");
    let (strict, lenient) = (strict, Pod { uid: "1f9e6a1c-0000-4000-8000-0e".into(), ..lenient });
    let kept = fixture.publish(&strict).await;
    let emptied = fixture.publish(&lenient).await;
    fixture.server.delete(&fixture.bucket, "e/file").await;
    shows(&emptied, &BTreeMap::new()).await;
    let message = fixture.says(&strict, "no object is found").await;
    assert!(message.contains("allowEmpty"), "{message}");
    assert_eq!(tree(&kept), files(&[("file", "here")]));
}

pub(crate) async fn a_volume_that_grows_too_large_stays_as_it_is(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("g/a", vec![b'a'; 4096]).await;
    let pod = fixture.following("g", "100ms").with("maxSize", "8Ki");
    let target = fixture.publish(&pod).await;
    fixture.put("g/b", vec![b'b'; 8192]).await;
    fixture.says(&pod, "maxSize").await;
    assert_eq!(tree(&target).len(), 1);
    fixture.server.delete(&fixture.bucket, "g/b").await;
    fixture.says_no_more(&pod, "maxSize").await;
}

pub(crate) async fn an_object_that_changes_under_a_refresh_is_listed_again(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("c/file", "one").await;
    let target = fixture.publish(&fixture.following("c", "1s")).await;
    let embedded = fixture.embedded();
    embedded.faults().add(Fault::get(Action::ChangeETag).key("c/file").times(2));
    fixture.put("c/file", "two").await;
    eventually("the last content", || {
        let now = embedded.content(&fixture.bucket, "c/file").unwrap();
        let shown = std::fs::read(target.join("file")).unwrap();
        (shown == now && shown != b"one").then_some(())
    })
    .await;
}

pub(crate) async fn new_credentials_are_used_at_once(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let rights = fixture.embedded().rights();
    rights.add_credential("first", "first-secret");
    rights.add_credential("second", "second-secret");
    let first = [("accesskey", "first"), ("secretkey", "first-secret")];
    let second = [("accesskey", "second"), ("secretkey", "second-secret")];
    let pod = fixture.following("certs", "1h").with_secrets(&first);
    let target = fixture.publish(&pod).await;
    fixture.put("certs/keystore.jks", "rotated").await;
    fixture.embedded().reset_requests();
    fixture.publish(&pod).await;
    assert_eq!(fixture.embedded().requests().total(), 0, "nothing is due");
    fixture.publish(&pod.clone().with_secrets(&second)).await;
    eventually("the new content", || {
        let content = std::fs::read_to_string(target.join("keystore.jks")).unwrap();
        (content == "rotated").then_some(())
    })
    .await;
    // The first is not needed any more.
    fixture.embedded().rights().remove_credential("first");
    fixture.embedded().reset_requests();
    fixture.publish(&pod.clone().with_secrets(&second)).await;
    assert_eq!(fixture.embedded().requests().total(), 0, "these are known now");
    assert!(!fixture.condition(&pod).await.0.contains("credentials"));
}

pub(crate) async fn credentials_that_s3_refuses_change_nothing(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "300ms");
    let target = fixture.publish(&pod).await;
    let wrong = [("accesskey", "minio"), ("secretkey", "not-the-secret")];
    fixture.publish(&pod.clone().with_secrets(&wrong)).await;
    let message = fixture.says(&pod, "credentials are not used").await;
    assert!(!message.contains("not-the-secret"), "{message}");
    // The earlier ones go on.
    fixture.put("certs/keystore.jks", "rotated").await;
    eventually("the new content", || {
        let content = std::fs::read_to_string(target.join("keystore.jks")).unwrap();
        (content == "rotated").then_some(())
    })
    .await;
    fixture.publish(&pod).await;
    fixture.says_no_more(&pod, "credentials").await;
}

pub(crate) async fn nothing_is_shown_that_new_credentials_may_not_read(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("p/file", "one").await;
    // A principal who may list and not read, and another pod that brings the content to the node.
    fixture.embedded().rights().add_credential("lister", "lister-secret");
    let denied = Fault::get(Action::ACCESS_DENIED).access_key("lister");
    fixture.embedded().faults().add(denied);
    let (pod, reader) = (fixture.following("p", "1h"), fixture.following("p", "100ms"));
    // Another source for s3view, so that the two share no timer.
    let pod = pod.with("maxObjects", "7");
    let (target, known) = (fixture.publish(&pod).await, fixture.publish(&reader).await);
    fixture.put("p/file", "two").await;
    eventually("the rightful reader", || (tree(&known)["file"] == "two").then_some(())).await;
    let lister = [("accesskey", "lister"), ("secretkey", "lister-secret")];
    fixture.publish(&pod.clone().with_secrets(&lister)).await;
    fixture.says(&pod, "credentials are not used").await;
    assert_eq!(tree(&target)["file"], "one", "neither new nor taken away");
    // After a restart there are no earlier credentials to go on with.
    fixture.restart().await;
    fixture.publish(&pod.clone().with_secrets(&lister)).await;
    fixture.says(&pod, "failed").await;
    assert_eq!(tree(&target)["file"], "one");
    fixture.publish(&pod).await;
    eventually("the rightful owner", || (tree(&target)["file"] == "two").then_some(())).await;
}

pub(crate) async fn a_restart_goes_on_where_it_was(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    for (view, layout) in [("tmpfs", "symlinks"), ("disk", "files"), ("disk", "symlinks")] {
        fixture.put("certs/keystore.jks", "keystore").await;
        let pod = fixture.following("certs", "300ms").with("view", view).with("layout", layout);
        let target = fixture.publish(&pod).await;
        fixture.put("certs/keystore.jks", "second").await;
        let second = || tree(&target)["keystore.jks"] == "second";
        eventually("the second content", || second().then_some(())).await;
        fixture.restart().await;
        // No credentials, so nothing can be asked.
        assert!(fixture.condition(&pod).await.0.contains("credentials again"));
        fixture.embedded().reset_requests();
        fixture.publish(&pod).await;
        fixture.says_no_more(&pod, "credentials again").await;
        let requests = fixture.embedded().requests();
        assert_eq!(requests.gets(), 0, "what is unchanged is not asked for: {view} {layout}");
        assert!(requests.lists() >= 1);
        fixture.put("certs/keystore.jks", "third").await;
        let third = || tree(&target)["keystore.jks"] == "third";
        eventually("the third content", || third().then_some(())).await;
        assert_eq!(fixture.embedded().requests().gets(), 1, "{view} {layout}");
        fixture.unpublish(&pod).await;
        fixture.assert_nothing_left();
    }
}

pub(crate) async fn other_credentials_after_a_restart_ask_for_everything(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "1h");
    fixture.publish(&pod).await;
    fixture.embedded().rights().add_credential("other", "other-secret");
    fixture.restart().await;
    fixture.embedded().reset_requests();
    let other = [("accesskey", "other"), ("secretkey", "other-secret")];
    fixture.publish(&pod.clone().with_secrets(&other)).await;
    fixture.says_no_more(&pod, "credentials again").await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (1, 3));
}

pub(crate) async fn a_changed_pair_waits_until_it_has_settled(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("s/key", "1").await;
    fixture.put("s/certificate", "1").await;
    let pod = fixture.following("s", "100ms").with("settle", "3s");
    let target = fixture.publish(&pod).await;
    fixture.put("s/key", "2").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(tree(&target)["key"], "1", "half a pair is not shown");
    fixture.put("s/certificate", "2").await;
    let began = Instant::now();
    eventually("the pair", || {
        // By one look at `..data`: by two, each file would be of the revision of its moment.
        let now = tree(&target.join("..data").canonicalize().unwrap());
        assert_eq!(now["key"], now["certificate"], "never half a pair");
        (now["key"] == "2").then_some(())
    })
    .await;
    // S3 counts seconds, so up to one is lost.
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
}

pub(crate) async fn a_replaced_revision_stays_for_its_readers(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("o/file", "1").await;
    let target = fixture.publish(&fixture.following("o", "100ms")).await;
    let inside = File::open(target.join("..data").canonicalize().unwrap()).unwrap();
    let first = format!("/proc/self/fd/{}/file", inside.as_raw_fd());
    for content in ["2", "3", "4"] {
        fixture.put("o/file", content).await;
        eventually("the change", || (tree(&target)["file"] == content).then_some(())).await;
        assert_eq!(std::fs::read_to_string(&first).unwrap(), "1", "readable for ten seconds");
    }
    let revisions = || {
        let names = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with("..")).count()
    };
    assert_eq!(revisions(), 5, "four revisions and ..data");
    let began = Instant::now();
    eventually("older ones to go", || (revisions() == 3).then_some(())).await;
    assert!(began.elapsed() > Duration::from_secs(5));
    assert_eq!(tree(&target)["file"], "4");
}

pub(crate) async fn a_sub_path_keeps_its_revision(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put("b/lib/file", "1").await;
    let pod = fixture.following("b", "100ms");
    let target = fixture.publish(&pod).await;
    // As the kubelet does for a subPath: it binds what the path leads to at the container's start.
    let place = fixture.home.kubelet_dir().join("subpath");
    std::fs::create_dir(&place).unwrap();
    let directory = target.join("lib").canonicalize().unwrap();
    mount(Some(&directory), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    for content in ["2", "3", "4"] {
        fixture.put("b/lib/file", content).await;
        eventually("the change", || (tree(&target)["lib/file"] == content).then_some(())).await;
    }
    let names = || {
        let names = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names.filter(|name| name.starts_with("..")).collect::<Vec<_>>()
    };
    eventually("the second to go", || (names().len() == 4).then_some(())).await;
    assert!(names().contains(&"..1".to_owned()), "{:?}", names());
    assert_eq!(std::fs::read_to_string(place.join("file")).unwrap(), "1");
    umount2(&place, MntFlags::MNT_DETACH).unwrap();
    fixture.unpublish(&pod).await;
    std::fs::remove_dir(&place).unwrap();
    fixture.assert_nothing_left();
}

pub(crate) async fn unpublish_does_not_wait_for_a_refresh(mut fixture: Fixture) {
    fixture.often().await;
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "100ms");
    fixture.publish(&pod).await;
    let stall = Fault::get(Action::Stall(1));
    fixture.embedded().faults().add(stall);
    fixture.embedded().reset_requests();
    fixture.put("certs/keystore.jks", "rotated").await;
    let hangs = || (fixture.embedded().requests().gets() > 0).then_some(());
    eventually("a refresh that hangs", hangs).await;
    let began = Instant::now();
    fixture.unpublish(&pod).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    fixture.assert_nothing_left();
}
