//! The state of a versioned bucket at a moment: `asOf`, and the versions that it is made of.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tonic::Code;

use crate::{
    fixture::{Fixture, PROGRAM, files, tree},
    support::{
        kubelet::{Kubelet, Pod},
        plugin::Home,
        s3::{Action, EmbeddedS3, Fault, Options},
        server::Server,
    },
};

/// The server's clock, in whole seconds as S3 counts them. A MinIO's goes by itself; the embedded
/// server's stands an hour ago until a case moves it.
pub(crate) struct Clock<'a> {
    server: &'a Server,
    now: Timestamp,
}

impl<'a> Clock<'a> {
    pub(crate) fn of(fixture: &'a Fixture) -> Self {
        let now = Timestamp::now().as_second() - 3600;
        let mut clock = Self { server: &fixture.server, now: Timestamp::UNIX_EPOCH };
        clock.set(now);
        clock
    }

    fn set(&mut self, second: i64) {
        self.now = Timestamp::from_second(second).unwrap();
        if let Server::Embedded(embedded) = self.server {
            embedded.set_time(Some(self.now.into()));
        }
    }

    /// The second in which everything so far has happened; what follows happens in a later one.
    pub(crate) async fn moment(&mut self) -> String {
        match self.server {
            Server::Embedded(_) => {
                let moment = self.now;
                self.set(moment.as_second() + 1);
                moment.to_string()
            }
            Server::Minio(_) | Server::Radosgw(_) => {
                let moment = Timestamp::now().as_second();
                while Timestamp::now().as_second() <= moment {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Timestamp::from_second(moment).unwrap().to_string()
            }
        }
    }
}

async fn delete(fixture: &Fixture, key: &str) {
    fixture.server.delete(&fixture.bucket, key).await;
}

async fn delete_version(fixture: &Fixture, key: &str, version_id: &str) {
    let client = fixture.server.client();
    let delete = client.delete_object().bucket(&fixture.bucket).key(key).version_id(version_id);
    delete.send().await.expect("a version can be deleted");
}

/// Makes a bucket that never had versioning the case's own.
async fn without_versioning(fixture: &mut Fixture) {
    fixture.bucket = format!("plain-{}", fixture.bucket);
    let created = fixture.server.client().create_bucket().bucket(&fixture.bucket).send().await;
    created.expect("a bucket can be made");
}

async fn set_versioning(fixture: &Fixture, status: BucketVersioningStatus) {
    let client = fixture.server.client();
    let configuration = VersioningConfiguration::builder().status(status).build();
    let put = client.put_bucket_versioning().bucket(&fixture.bucket);
    put.versioning_configuration(configuration).send().await.expect("versioning can be switched");
}

fn sources(fixture: &Fixture, sources: &str) -> Pod {
    Pod::new("driver", &[("bucket", &fixture.bucket), ("sources", sources)])
}

/// What a new pod sees of the prefix `h` at a moment.
async fn seen(fixture: &Fixture, moment: &str) -> Vec<(String, String)> {
    let pod = fixture.pod("h").with("asOf", moment).with("allowEmpty", "true");
    tree(&fixture.publish(&pod).await).into_iter().collect()
}

fn shown(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    files(expected).into_iter().collect()
}

/// A history with everything in it. The moments after each step, with what existed then.
async fn history(fixture: &Fixture) -> Vec<(String, Vec<(String, String)>)> {
    let mut clock = Clock::of(fixture);
    let before = clock.moment().await;
    fixture.put("h/overwritten", "1").await;
    fixture.put("h/deleted", "1").await;
    fixture.put("h/a b+c/d%", "1").await;
    let first = clock.moment().await;
    fixture.put("h/overwritten", "2").await;
    delete(fixture, "h/deleted").await;
    fixture.put("h/later", "2").await;
    let second = clock.moment().await;
    fixture.put("h/deleted", "created again").await;
    fixture.put("h/overwritten", "3").await;
    delete(fixture, "h/a b+c/d%").await;
    let third = clock.moment().await;
    for key in ["h/overwritten", "h/later", "h/deleted"] {
        delete(fixture, key).await;
    }
    let last = clock.moment().await;
    let odd = [("a b+c/", ""), ("a b+c/d%", "1")];
    let with_odd = |files: &[(&str, &str)]| shown(&[files, &odd].concat());
    vec![
        (before, Vec::new()),
        (first, with_odd(&[("overwritten", "1"), ("deleted", "1")])),
        (second, with_odd(&[("overwritten", "2"), ("later", "2")])),
        (third, shown(&[("overwritten", "3"), ("later", "2"), ("deleted", "created again")])),
        (last, Vec::new()),
    ]
}

pub(crate) async fn an_earlier_state_is_shown(fixture: Fixture) {
    for (moment, expected) in history(&fixture).await {
        assert_eq!(seen(&fixture, &moment).await, expected, "{moment}");
    }
}

pub(crate) async fn every_node_shows_the_same_state(mut fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/app.py", "one").await;
    fixture.put("h/lib/util.py", "one").await;
    fixture.put("h/app.py", "two").await;
    let moment = clock.moment().await;
    let pod = fixture.pod("h").with("asOf", &moment);
    let driver = tree(&fixture.publish(&pod).await);
    assert_eq!(driver, files(&[("app.py", "two"), ("lib/", ""), ("lib/util.py", "one")]));
    // The bucket goes on, on its way to another node.
    fixture.put("h/app.py", "three").await;
    delete(&fixture, "h/lib/util.py").await;
    fixture.put("h/new.py", "three").await;
    let other = Home::new(PROGRAM, &Fixture::config(&fixture.server, ""));
    let _plugin = other.start().await;
    let kubelet = Kubelet::connect(&other).await;
    for view in ["tmpfs", "disk"] {
        let executor = fixture.pod("h").with("asOf", &moment).with("view", view);
        let target = kubelet.publish(&executor).await.unwrap();
        assert_eq!(tree(&target), driver, "another node, {view}");
    }
    // Nor does a restart of the first node's plugin change anything, for old pods and new ones.
    fixture.restart().await;
    delete(&fixture, "h/app.py").await;
    let late = fixture.pod("h").with("asOf", &moment);
    assert_eq!(tree(&fixture.publish(&late).await), driver, "after a restart");
    assert_eq!(tree(&fixture.publish(&pod).await), driver, "a republish");
}

pub(crate) async fn a_rollback_is_a_moment(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/app.py", "good").await;
    fixture.put("h/model.bin", "good").await;
    let good = clock.moment().await;
    fixture.put("h/app.py", "bad").await;
    fixture.put("h/extra.py", "bad").await;
    delete(&fixture, "h/model.bin").await;
    let bad = tree(&fixture.publish(&fixture.pod("h")).await);
    assert_eq!(bad, files(&[("app.py", "bad"), ("extra.py", "bad")]));
    // The user adds one line to the manifest; nobody has touched the bucket.
    let rolled_back = fixture.pod("h").with("asOf", &good);
    let good = files(&[("app.py", "good"), ("model.bin", "good")]);
    assert_eq!(tree(&fixture.publish(&rolled_back).await), good);
}

pub(crate) async fn a_single_key_has_a_past(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    let before = clock.moment().await;
    for key in ["app.py", "app.py.bak", "app.py/x", "app"] {
        fixture.put(key, "old").await;
    }
    let head = fixture.server.client().head_object().bucket(&fixture.bucket).key("app.py");
    let old_id = head.send().await.unwrap().version_id().unwrap().to_owned();
    let old = clock.moment().await;
    fixture.put("app.py", "new").await;
    let new = clock.moment().await;
    delete(&fixture, "app.py").await;
    let gone = clock.moment().await;
    let pod = |moment: &str| sources(&fixture, "[{ key: app.py }]").with("asOf", moment);
    assert_eq!(tree(&fixture.publish(&pod(&old)).await), files(&[("app.py", "old")]));
    assert_eq!(tree(&fixture.publish(&pod(&new)).await), files(&[("app.py", "new")]));
    for absent in [before, gone.clone()] {
        let status = fixture.refused(&pod(&absent), Code::NotFound).await;
        for part in ["app.py", &absent, "asOf"] {
            assert!(status.message().contains(part), "{status:?} lacks {part}");
        }
    }
    // A version id names a state already.
    let fixed = sources(&fixture, &format!("[{{ key: app.py, versionId: '{old_id}' }}]"));
    let target = fixture.publish(&fixed.with("asOf", &gone)).await;
    assert_eq!(tree(&target), files(&[("app.py", "old")]));
}

pub(crate) async fn before_everything_there_is_nothing(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    let before = clock.moment().await;
    fixture.put("h/file", "content").await;
    let pod = fixture.pod("h").with("asOf", &before);
    let status = fixture.refused(&pod, Code::NotFound).await;
    assert!(status.message().contains(&format!("at {before} (asOf)")), "{status:?}");
    let target = fixture.publish(&pod.with("allowEmpty", "true")).await;
    assert_eq!(tree(&target), files(&[]));
}

pub(crate) async fn the_future_is_refused(fixture: Fixture) {
    fixture.put("h/file", "content").await;
    let soon = Timestamp::try_from(SystemTime::now() + Duration::from_mins(1)).unwrap();
    let pod = fixture.pod("h").with("asOf", &soon.to_string());
    let status = fixture.refused(&pod, Code::InvalidArgument).await;
    assert!(status.message().contains("asOf") && status.message().contains("future"), "{status:?}");
}

pub(crate) async fn without_versioning_there_is_no_past(mut fixture: Fixture) {
    without_versioning(&mut fixture).await;
    let mut clock = Clock::of(&fixture);
    let before = clock.moment().await;
    fixture.put("h/file", "content").await;
    let after = clock.moment().await;
    let prefix = |moment: &str| fixture.pod("h").with("asOf", moment);
    let key = sources(&fixture, "[{ key: h/file }]").with("asOf", &after);
    for pod in [prefix(&before), prefix(&after), key] {
        let status = fixture.refused(&pod, Code::FailedPrecondition).await;
        for part in [&fixture.server.url(), &fixture.bucket, "bucket versioning", "Enabled"] {
            assert!(status.message().contains(part), "{status:?} lacks {part}");
        }
    }
    // What was there when versioning was switched on is the first state.
    set_versioning(&fixture, BucketVersioningStatus::Enabled).await;
    assert_eq!(seen(&fixture, &after).await, shown(&[("file", "content")]));
    fixture.put("h/file", "overwritten").await;
    assert_eq!(seen(&fixture, &after).await, shown(&[("file", "content")]));
    assert_eq!(seen(&fixture, &before).await, Vec::new());
}

pub(crate) async fn suspended_versioning_keeps_its_past(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/file", "1").await;
    fixture.put("h/gone", "1").await;
    let first = clock.moment().await;
    set_versioning(&fixture, BucketVersioningStatus::Suspended).await;
    fixture.put("h/file", "2").await;
    delete(&fixture, "h/gone").await;
    fixture.put("h/null", "2").await;
    let second = clock.moment().await;
    assert_eq!(seen(&fixture, &first).await, shown(&[("file", "1"), ("gone", "1")]));
    assert_eq!(seen(&fixture, &second).await, shown(&[("file", "2"), ("null", "2")]));
    // A suspended bucket keeps one version with the id null of each key: this loses the state
    // before it, and not the older ones.
    fixture.put("h/file", "3").await;
    assert_eq!(seen(&fixture, &first).await, shown(&[("file", "1"), ("gone", "1")]));
    assert_eq!(seen(&fixture, &second).await, shown(&[("file", "1"), ("null", "2")]));
    let only_null = sources(&fixture, "[{ key: h/null }]").with("asOf", &second);
    assert_eq!(tree(&fixture.publish(&only_null).await), files(&[("null", "2")]));
}

pub(crate) async fn a_long_history_is_paged(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/a", "first").await;
    fixture.put("h/b", "first").await;
    let first = clock.moment().await;
    // More versions of one key than a page holds.
    let puts = (0..1050).map(|number| fixture.put("h/a", format!("{number}")));
    stream::iter(puts).buffer_unordered(16).collect::<Vec<()>>().await;
    delete(&fixture, "h/a").await;
    fixture.put("h/c", "first").await;
    let second = clock.moment().await;
    assert_eq!(seen(&fixture, &first).await, shown(&[("a", "first"), ("b", "first")]));
    assert_eq!(seen(&fixture, &second).await, shown(&[("b", "first"), ("c", "first")]));
    let key = sources(&fixture, "[{ key: h/a }]").with("asOf", &first);
    assert_eq!(tree(&fixture.publish(&key).await), files(&[("a", "first")]));
}

pub(crate) async fn small_pages_change_nothing(fixture: Fixture) {
    for page_size in [1, 2, 3] {
        let server = EmbeddedS3::start(Options { page_size, ..Options::default() });
        let paged = Fixture::start(Server::Embedded(server), fixture.ids).await;
        for (moment, expected) in history(&paged).await {
            assert_eq!(seen(&paged, &moment).await, expected, "{moment}, pages of {page_size}");
        }
    }
}

pub(crate) async fn within_a_second_the_last_counts(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/deleted", "1").await;
    delete(&fixture, "h/deleted").await;
    delete(&fixture, "h/created").await;
    fixture.put("h/created", "1").await;
    fixture.put("h/overwritten", "1").await;
    fixture.put("h/overwritten", "2").await;
    let moment = clock.moment().await;
    // What S3 calls the latest says nothing about them any more.
    for key in ["h/deleted", "h/created", "h/overwritten"] {
        fixture.put(key, "later").await;
    }
    assert_eq!(seen(&fixture, &moment).await, shown(&[("created", "1"), ("overwritten", "2")]));
}

pub(crate) async fn a_moment_is_what_the_bucket_still_tells(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    let embedded = fixture.embedded();
    embedded.put(&fixture.bucket, "h/file", "1");
    clock.moment().await;
    let kept = embedded.put(&fixture.bucket, "h/file", "2").version_id.unwrap();
    let fresh = embedded.put(&fixture.bucket, "h/new", "2").version_id.unwrap();
    let moment = clock.now.to_string();
    assert_eq!(seen(&fixture, &moment).await, shown(&[("file", "2"), ("new", "2")]));
    // The second goes on.
    embedded.put(&fixture.bucket, "h/same-second", "2");
    let complete = [("file", "2"), ("new", "2"), ("same-second", "2")];
    assert_eq!(seen(&fixture, &moment).await, shown(&complete));
    clock.moment().await;
    assert_eq!(seen(&fixture, &moment).await, shown(&complete));
    // Something arrives late, with the time at which its upload was begun.
    let now = clock.now.as_second();
    clock.set(now - 1);
    embedded.put(&fixture.bucket, "h/begun-then", "2");
    clock.set(now);
    let late = [&complete[..], &[("begun-then", "2")]].concat();
    assert_eq!(seen(&fixture, &moment).await, shown(&late));
    // A rule removes old versions.
    delete_version(&fixture, "h/file", &kept).await;
    delete_version(&fixture, "h/new", &fresh).await;
    let left = [("file", "1"), ("same-second", "2"), ("begun-then", "2")];
    assert_eq!(seen(&fixture, &moment).await, shown(&left));
}

pub(crate) async fn a_moment_costs_one_listing(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    for key in ["h/1", "h/2", "h/3"] {
        fixture.put(key, "old").await;
    }
    let old = clock.moment().await;
    fixture.put("h/3", "new").await;
    let embedded = fixture.embedded();
    embedded.reset_requests();
    let pod = fixture.pod("h").with("asOf", &old);
    fixture.publish(&pod).await;
    let requests = embedded.requests();
    assert_eq!((requests.of("ListObjectVersions"), requests.gets(), requests.total()), (1, 3, 4));
    let of_a_version = |logged: &crate::support::s3::Logged| {
        let call = &logged.call;
        call.operation != "GetObject" || (call.version_id.is_some() && call.if_match.is_some())
    };
    assert!(embedded.log().iter().all(of_a_version));
    // The moment stays as it is, so nothing is asked again.
    embedded.reset_requests();
    fixture.publish(&pod).await;
    assert_eq!(embedded.requests().total(), 0, "a republish");
    // Equal content is one blob, whatever version it is read from.
    fixture.publish(&fixture.pod("h").with("asOf", &old)).await;
    assert_eq!(embedded.requests().total(), 1, "a warm publish");
    embedded.reset_requests();
    fixture.publish(&fixture.pod("h")).await;
    assert_eq!((embedded.requests().lists(), embedded.requests().gets()), (1, 1), "the present");
}

pub(crate) async fn a_bucket_is_asked_only_if_its_history_is_silent(mut fixture: Fixture) {
    without_versioning(&mut fixture).await;
    let mut clock = Clock::of(&fixture);
    fixture.put("h/a", "1").await;
    fixture.put("i/a", "1").await;
    set_versioning(&fixture, BucketVersioningStatus::Enabled).await;
    let moment = clock.moment().await;
    let embedded = fixture.embedded();
    embedded.reset_requests();
    let pod = sources(&fixture, "[{ prefix: h, path: h }, { prefix: i, path: i }]");
    fixture.publish(&pod.clone().with("asOf", &moment)).await;
    let requests = embedded.requests();
    assert_eq!((requests.lists(), requests.of("GetBucketVersioning")), (2, 1), "once");
    // A delete marker says it as well.
    fixture.put("h/a", "2").await;
    fixture.put("i/b", "2").await;
    delete(&fixture, "i/b").await;
    embedded.reset_requests();
    fixture.publish(&pod.with("asOf", &moment)).await;
    assert_eq!(embedded.requests().of("GetBucketVersioning"), 0);
}

pub(crate) async fn missing_rights_are_named(mut fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/file", "content").await;
    let moment = clock.moment().await;
    let denied = |operation: &'static str| Fault::new(Action::ACCESS_DENIED).on(operation);
    let pod = || fixture.pod("h").with("asOf", &moment);
    for (operation, right) in
        [("ListObjectVersions", "s3:ListBucketVersions"), ("GetObject", "s3:GetObjectVersion")]
    {
        let fault = fixture.embedded().faults().add(denied(operation));
        let status = fixture.refused(&pod(), Code::PermissionDenied).await;
        assert!(status.message().contains(right), "{status:?}");
        assert!(status.message().contains(&fixture.bucket), "{status:?}");
        fixture.embedded().faults().remove(fault);
    }
    // Nobody needs to be asked whether a bucket with version ids has versioning.
    fixture.embedded().faults().add(denied("GetBucketVersioning"));
    fixture.publish(&pod()).await;
    // Where there are none, the answer is missing, and only the empty state can be told.
    let nothing = fixture.pod("nothing").with("asOf", &moment);
    fixture.refused(&nothing, Code::NotFound).await;
    let nothing = nothing.with("allowEmpty", "true");
    let status = fixture.refused(&nothing, Code::PermissionDenied).await;
    assert!(status.message().contains("s3:GetBucketVersioning"), "{status:?}");
    without_versioning(&mut fixture).await;
    fixture.put("h/file", "content").await;
    let plain = fixture.pod("h").with("asOf", &moment);
    let status = fixture.refused(&plain, Code::FailedPrecondition).await;
    for part in ["s3:GetBucketVersioning", "bucket versioning", "id null"] {
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
}

pub(crate) async fn a_deleted_version_is_told(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki }\n").await;
    let mut clock = Clock::of(&fixture);
    fixture.put("h/small", "content").await;
    fixture.put("i/large", vec![1; 200_000]).await;
    let moment = clock.moment().await;
    for (prefix, key, operation) in [("h", "h/small", "GetObject"), ("i", "i/large", "HeadObject")]
    {
        let embedded = fixture.embedded();
        let head = fixture.server.client().head_object().bucket(&fixture.bucket).key(key);
        let version_id = head.send().await.unwrap().version_id().unwrap().to_owned();
        fixture.put(key, "later").await;
        embedded.faults().clear();
        embedded.faults().add(Fault::new(Action::Delay(Duration::from_millis(500))).on(operation));
        embedded.reset_requests();
        let publishing = fixture.publish_meanwhile(&fixture.pod(prefix).with("asOf", &moment));
        while embedded.requests().of(operation) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        delete_version(&fixture, key, &version_id).await;
        let status = publishing.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        for part in [key, &version_id, "the version was deleted"] {
            assert!(status.message().contains(part), "{status:?} lacks {part}");
        }
        assert_eq!(embedded.requests().lists(), 1, "listing again would bring nothing back");
    }
}

pub(crate) async fn a_null_version_that_is_replaced_is_listed_again(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    fixture.put("h/file", "1").await;
    fixture.put("h/gone", "1").await;
    set_versioning(&fixture, BucketVersioningStatus::Suspended).await;
    clock.moment().await;
    fixture.put("h/file", "2").await;
    fixture.put("h/gone", "2").await;
    let moment = clock.moment().await;
    let embedded = fixture.embedded();
    let delay = Action::Delay(Duration::from_millis(500));
    embedded.faults().add(Fault::get(delay).times(2));
    embedded.reset_requests();
    let publishing = fixture.publish_meanwhile(&fixture.pod("h").with("asOf", &moment));
    while embedded.requests().gets() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Other content, and a delete marker, take the id null over.
    embedded.put(&fixture.bucket, "h/file", "3");
    embedded.delete(&fixture.bucket, "h/gone");
    let target = publishing.await.unwrap().unwrap();
    assert_eq!(tree(&target), files(&[("file", "1"), ("gone", "1")]), "what is left of the moment");
    assert_eq!(embedded.requests().lists(), 2);
}

pub(crate) async fn broken_histories_are_asked_for_again(fixture: Fixture) {
    let faults = fixture.embedded().faults();
    for (moment, expected) in history(&fixture).await {
        for action in [Action::Truncate(400), Action::ResetAfter(400), Action::Truncate(0)] {
            faults.add(Fault::new(action).on("ListObjectVersions").times(1));
            assert_eq!(seen(&fixture, &moment).await, expected, "{moment}");
        }
    }
}

pub(crate) async fn versions_need_not_fit_below_the_limit(fixture: Fixture) {
    let mut clock = Clock::of(&fixture);
    for number in 0..20 {
        fixture.put("h/file", format!("{number}")).await;
        fixture.put(&format!("h/deleted-{number}"), "x").await;
        delete(&fixture, &format!("h/deleted-{number}")).await;
    }
    fixture.put("h/other", "x").await;
    let moment = clock.moment().await;
    let pod = |limit| fixture.pod("h").with("asOf", &moment).with("maxObjects", limit);
    let target = fixture.publish(&pod("2")).await;
    assert_eq!(tree(&target), files(&[("file", "19"), ("other", "x")]));
    fixture.refused(&pod("1"), Code::ResourceExhausted).await;
}
