//! What is special about `fuse` views: content that comes when it is read, and mounts that outlive
//! the plugin.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use s3view::task::{blocking, spawn_owned};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    fixture::{Fixture, files, is_mount_point, tree},
    protocol::scrape,
    refresh::{eventually, shows},
    support::{
        address::free_address,
        s3::{Action, Fault},
    },
};

/// The parts of large objects.
pub(crate) const PART: usize = 8 << 20;

const ESTALE: i32 = nix::libc::ESTALE;
pub(crate) const EIO: i32 = nix::libc::EIO;

/// Bytes in which no part is like another.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Reads without holding a thread of the runtime.
pub(crate) async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    blocking(move || std::fs::read(path)).await
}

/// Begins to read a range of a file that is open.
pub(crate) fn read_meanwhile(
    file: &File,
    offset: u64,
    size: usize,
) -> AbortOnDropHandle<std::io::Result<Vec<u8>>> {
    let file = file.try_clone().unwrap();
    let read = move || {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    spawn_owned(blocking(read))
}

pub(crate) fn errno(error: &std::io::Error) -> Option<i32> {
    error.raw_os_error()
}

pub(crate) async fn a_publish_lists_and_a_read_gets(fixture: Fixture) {
    fixture.put_certificates().await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (1, 0));
    assert_eq!(std::fs::metadata(target.join("sub/password")).unwrap().size(), 6);
    assert_eq!(fixture.embedded().requests().total(), 1, "names and attributes are known");
    assert_eq!(read(target.join("sub/password")).await.unwrap(), b"secret");
    assert_eq!(read(target.join("sub/password")).await.unwrap(), b"secret");
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (1, 1));
    // What one pod has read is there for the next.
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(read(target.join("sub/password")).await.unwrap(), b"secret");
    let requests = fixture.embedded().requests();
    assert_eq!((requests.lists(), requests.gets()), (2, 1));
}

pub(crate) async fn any_range_of_a_large_file_is_right(fixture: Fixture) {
    let expected = content(3 * PART + 12345);
    fixture.put("big/file", expected.clone()).await;
    let target = fixture.publish(&fixture.pod("big")).await;
    let file = File::open(target.join("file")).unwrap();
    fixture.embedded().reset_requests();
    for (offset, size) in [(2 * PART - 7, 20), (0, 1), (3 * PART + 12340, 5), (PART, 4096)] {
        let read = read_meanwhile(&file, offset as u64, size).await.unwrap().unwrap();
        assert_eq!(read, expected[offset..offset + size]);
    }
    let few = fixture.embedded().requests().gets();
    assert!(few <= 6, "{few} requests for four small reads");
    assert_eq!(read(target.join("file")).await.unwrap(), expected);
    let mut end = file;
    let seek_past = blocking(move || {
        end.seek(SeekFrom::Start(3 * PART as u64 + 12344)).unwrap();
        let mut rest = Vec::new();
        end.read_to_end(&mut rest).map(|_| rest)
    });
    assert_eq!(seek_past.await.unwrap(), expected[expected.len() - 1..]);
}

pub(crate) async fn neighbours_of_a_small_file_come_along(fixture: Fixture) {
    const COUNT: usize = 100;
    let name = |number: usize| format!("{number:03}");
    for number in 0..COUNT {
        fixture.put(&format!("n/{}", name(number)), name(number)).await;
    }
    let target = fixture.publish(&fixture.pod("n")).await;
    fixture.embedded().reset_requests();
    assert_eq!(read(target.join(name(50))).await.unwrap(), name(50).as_bytes());
    let gets = || fixture.embedded().requests().gets();
    eventually("its neighbours", || (gets() > 1).then_some(())).await;
    for number in 0..COUNT {
        assert_eq!(read(target.join(name(number))).await.unwrap(), name(number).as_bytes());
    }
    assert_eq!(gets(), COUNT as u64, "each is fetched once");
    // Who reads what is here brings nothing.
    let again = fixture.publish(&fixture.pod("n")).await;
    assert_eq!(tree(&again).len(), COUNT);
    assert_eq!(gets(), COUNT as u64);
}

pub(crate) async fn extended_attributes_tell_the_version(fixture: Fixture) {
    fixture.put("x/file", "content").await;
    let plain = fixture.publish(&fixture.pod("x")).await;
    let get = |path: &Path, name: &str| {
        let mut value = [0_u8; 256];
        rustix::fs::getxattr(path, name, &mut value[..])
            .map(|length| String::from_utf8(value[..length].to_vec()).unwrap())
    };
    let error = get(&plain.join("file"), "user.s3view.etag").unwrap_err();
    assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
    let target = fixture.publish(&fixture.pod("x").with("xattrs", "true")).await;
    let file = target.join("file");
    assert_eq!(get(&file, "user.s3view.key").unwrap(), "x/file");
    // The MD5 of the content.
    assert_eq!(get(&file, "user.s3view.etag").unwrap(), "9a0364b9e99bb480dd25e1f0284c8555");
    assert_eq!(get(&file, "security.selinux").unwrap_err(), rustix::io::Errno::NODATA);
}

pub(crate) async fn a_replaced_object_is_stale_where_it_was_not_read(mut fixture: Fixture) {
    fixture.often().await;
    let old = content(3 * PART);
    fixture.put("v/file", old.clone()).await;
    fixture.put("v/other", "same").await;
    let target = fixture.publish(&fixture.following("v", "200ms")).await;
    let other = std::fs::metadata(target.join("other")).unwrap().ino();
    let file = File::open(target.join("file")).unwrap();
    assert_eq!(read_meanwhile(&file, 0, 100).await.unwrap().unwrap(), old[..100]);
    let number = std::fs::metadata(target.join("file")).unwrap().ino();
    fixture.put("v/file", "new").await;
    shows(&target, &files(&[("file", "new"), ("other", "same")])).await;
    // The open file is the old one, as far as it was read.
    assert_eq!(read_meanwhile(&file, 0, 100).await.unwrap().unwrap(), old[..100]);
    let error = read_meanwhile(&file, 2 * PART as u64, 100).await.unwrap().unwrap_err();
    assert_eq!(errno(&error), Some(ESTALE), "{error}");
    assert_ne!(std::fs::metadata(target.join("file")).unwrap().ino(), number);
    assert_eq!(std::fs::metadata(target.join("other")).unwrap().ino(), other);
}

pub(crate) async fn without_s3_what_is_here_is_read(mut fixture: Fixture) {
    let address = free_address();
    let more = format!("fuse: {{ waitForS3: 1s }}\nmetrics: {{ address: '{address}' }}\n");
    fixture.reconfigure(&more).await;
    let big = content(3 * PART);
    fixture.put("g/big", big.clone()).await;
    fixture.put("g/small", "here").await;
    fixture.put("g/unread", "not here").await;
    let pod = fixture.following("g", "never");
    let target = fixture.publish(&pod).await;
    let file = File::open(target.join("big")).unwrap();
    read_meanwhile(&file, 0, 100).await.unwrap().unwrap();
    read(target.join("small")).await.unwrap();
    fixture.embedded().set_down(true);
    assert_eq!(read_meanwhile(&file, 50, 100).await.unwrap().unwrap(), big[50..150]);
    assert_eq!(read(target.join("small")).await.unwrap(), b"here");
    let began = Instant::now();
    let error = read_meanwhile(&file, 2 * PART as u64, 1).await.unwrap().unwrap_err();
    assert_eq!(errno(&error), Some(EIO), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let (message, abnormal) = fixture.condition(&pod).await;
    for part in ["g/big", "a read failed lately", &fixture.server.url()] {
        assert!(abnormal && message.contains(part), "{message} lacks {part}");
    }
    let metrics = scrape(address);
    assert!(metrics.contains("s3view_fuse_read_failures_total{kind=\"unavailable\"}"), "{metrics}");
    assert!(fixture.home.log().contains("failed to serve a read"));
    fixture.embedded().set_down(false);
    assert_eq!(read(target.join("big")).await.unwrap(), big);
}

pub(crate) async fn broken_answers_are_never_read(fixture: Fixture) {
    let (expected, large) = (content(2 * PART + 1), 2 * PART + 1);
    let faults = [
        (Action::SLOW_DOWN, vec![5000, large]),
        (Action::INTERNAL_ERROR, vec![5000, large]),
        (Action::Reset, vec![5000, large]),
        (Action::ResetAfter(1000), vec![5000, large]),
        (Action::Truncate(1000), vec![5000, large]),
        // A range of a large object comes with nothing that would tell.
        (Action::Corrupt, vec![5000]),
    ];
    for (number, (fault, lengths)) in faults.into_iter().enumerate() {
        for length in lengths {
            let prefix = format!("f{number}-{length}");
            fixture.put(&format!("{prefix}/file"), expected[..length].to_vec()).await;
            let target = fixture.publish(&fixture.pod(&prefix)).await;
            fixture.embedded().faults().add(Fault::get(fault.clone()).times(2));
            let read = read(target.join("file")).await;
            fixture.embedded().faults().clear();
            match read {
                Ok(bytes) if bytes == expected[..length] => {}
                Ok(bytes) => panic!("{fault:?}: {} wrong bytes", bytes.len()),
                Err(error) => assert_eq!(errno(&error), Some(EIO), "{fault:?}: {error}"),
            }
        }
    }
}

pub(crate) async fn a_read_waits_for_the_plugin_to_come_back(mut fixture: Fixture) {
    let expected = content(3 * PART);
    fixture.put("w/file", expected.clone()).await;
    fixture.put("w/second", "whole").await;
    let pod = fixture.pod("w");
    let target = fixture.publish(&pod).await;
    assert_eq!(read(target.join("second")).await.unwrap(), b"whole");
    // Read by the kernel alone from here on.
    let second = File::open(target.join("second")).unwrap();
    let file = File::open(target.join("file")).unwrap();
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    let reading = read_meanwhile(&file, PART as u64, 1000);
    eventually("the request", || (fixture.embedded().requests().gets() > 1).then_some(())).await;
    fixture.plugin.take().unwrap().kill();
    fixture.embedded().faults().clear();
    assert_eq!(read_meanwhile(&second, 0, 5).await.unwrap().unwrap(), b"whole");
    let number = std::fs::metadata(target.join("file")).unwrap().ino();
    fixture.restart().await;
    // Credentials come with the next publish, and the read waits for them.
    fixture.publish(&pod).await;
    assert_eq!(reading.await.unwrap().unwrap(), expected[PART..PART + 1000]);
    assert_eq!(std::fs::metadata(target.join("file")).unwrap().ino(), number);
    assert_eq!(read(target.join("file")).await.unwrap(), expected);
    assert_eq!(read(target.join("second")).await.unwrap(), b"whole");
    let (message, abnormal) = fixture.condition(&pod).await;
    assert!(!abnormal, "{message}");
    fixture.unpublish(&pod).await;
    drop((file, second));
    fixture.assert_nothing_left();
}

pub(crate) async fn a_restart_asks_for_nothing_that_was_read(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "never");
    let target = fixture.publish(&pod).await;
    let before = tree(&target);
    fixture.restart().await;
    fixture.publish(&pod).await;
    fixture.embedded().reset_requests();
    assert_eq!(tree(&target), before);
    assert_eq!(fixture.embedded().requests().total(), 0);
}

pub(crate) async fn without_credentials_a_read_fails_in_time(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    fixture.reconfigure("fuse: { waitForCredentials: 1s }\n").await;
    let error = read(target.join("keystore.jks")).await.unwrap_err();
    assert_eq!(errno(&error), Some(EIO), "{error}");
    let (message, _) = fixture.condition(&pod).await;
    assert!(message.contains("fuse.waitForCredentials"), "{message}");
    fixture.publish(&pod).await;
    assert_eq!(read(target.join("keystore.jks")).await.unwrap(), b"keystore");
}

pub(crate) async fn a_keeper_that_is_back_is_told_again(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    fixture.home.kill_keeper();
    let target = fixture.publish(&pod).await;
    let message = fixture.says(&pod, "keeper").await;
    assert!(message.contains("a restart of the node plugin"), "{message}");
    fixture.home.start_keeper();
    fixture.says_no_more(&pod, "keeper").await;
    let file = File::open(target.join("keystore.jks")).unwrap();
    fixture.restart().await;
    fixture.publish(&pod).await;
    assert_eq!(read_meanwhile(&file, 0, 8).await.unwrap().unwrap(), b"keystore");
}

pub(crate) async fn a_mount_that_nobody_serves_is_replaced(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pods = [fixture.pod("certs"), fixture.pod("certs")];
    let mut targets = Vec::new();
    for pod in &pods {
        targets.push(fixture.publish(pod).await);
    }
    let before = tree(&targets[0]);
    fixture.plugin.take().unwrap().kill();
    fixture.home.kill_keeper();
    let error = std::fs::read_dir(&targets[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    fixture.home.start_keeper();
    fixture.restart().await;
    let (message, abnormal) = fixture.condition(&pods[0]).await;
    assert!(abnormal && message.contains("nobody serves it"), "{message}");
    fixture.publish(&pods[0]).await;
    assert_eq!(tree(&targets[0]), before);
    let (message, abnormal) = fixture.condition(&pods[0]).await;
    assert!(!abnormal, "{message}");
    // The other one can go as it is.
    for pod in &pods {
        fixture.unpublish(pod).await;
    }
    fixture.assert_nothing_left();
}

pub(crate) async fn unpublish_waits_for_no_reader(fixture: Fixture) {
    fixture.put("u/file", content(2 * PART)).await;
    let pod = fixture.pod("u");
    let target = fixture.publish(&pod).await;
    let file = File::open(target.join("file")).unwrap();
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    let reading = read_meanwhile(&file, 0, 1000);
    eventually("the request", || (fixture.embedded().requests().gets() > 0).then_some(())).await;
    let began = Instant::now();
    fixture.unpublish(&pod).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!is_mount_point(&target));
    // Whoever still reads is not left waiting.
    assert!(reading.await.unwrap().is_err());
    fixture.assert_nothing_left();
}

pub(crate) async fn unpublish_works_while_nobody_serves(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let file = File::open(target.join("keystore.jks")).unwrap();
    fixture.plugin.take().unwrap().kill();
    // The keeper holds the connection, so this waits.
    let waiting = read_meanwhile(&file, 0, 1);
    fixture.restart().await;
    fixture.unpublish(&pod).await;
    assert!(!is_mount_point(&target));
    assert!(waiting.await.unwrap().is_err());
    fixture.assert_nothing_left();
}

pub(crate) async fn a_mount_whose_ledger_is_lost_is_given_up(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    fixture.plugin.take().unwrap().kill();
    let volumes = std::fs::read_dir(fixture.home.state_dir().join("memory/v1/volumes")).unwrap();
    for volume in volumes {
        std::fs::remove_dir_all(volume.unwrap().path()).unwrap();
    }
    fixture.restart().await;
    let error = std::fs::read_dir(&target).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn what_is_read_counts_for_no_namespace(mut fixture: Fixture) {
    let bytes = "memory: 4Ki, disk: 4Ki, volumes: 1";
    let more = format!("trust: {{ podInfo: true }}\nlimits: {{ namespace: {{ {bytes} }} }}\n");
    fixture.reconfigure(&more).await;
    let long = content(PART + 1000);
    fixture.put("n/file", long.clone()).await;
    let pod = fixture.pod("n");
    let target = fixture.publish(&pod).await;
    assert!(read(target.join("file")).await.unwrap() == long);
    // But a volume is a volume.
    let status = fixture.refused(&fixture.pod("n"), tonic::Code::ResourceExhausted).await;
    assert!(status.message().contains("limits.namespace.volumes"), "{status:?}");
}

pub(crate) async fn what_does_not_apply_is_refused(fixture: Fixture) {
    for (attribute, value) in [("layout", "files"), ("whenUnavailable", "cached")] {
        let pod = fixture.pod("certs").with("view", "fuse").with(attribute, value);
        let status = fixture.refused(&pod, tonic::Code::InvalidArgument).await;
        assert!(status.message().contains(attribute), "{status:?}");
    }
}
