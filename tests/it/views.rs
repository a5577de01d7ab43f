//! What a pod sees.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt, path::Path, time::SystemTime};

use aws_sdk_s3::types::ServerSideEncryption;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Code;

use crate::{
    fixture::{Fixture, files, owner, tree},
    protocol::{http_get, serve_metrics},
    refresh::eventually,
    support::kubelet::Pod,
};

pub(crate) async fn an_inline_volume_shows_the_prefix(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.put("elsewhere/x", "no").await;
    let target = fixture.publish(&fixture.pod("certs/")).await;
    let expected = [
        ("keystore.jks", "keystore"),
        ("truststore.jks", "truststore"),
        ("sub/", ""),
        ("sub/password", "secret"),
    ];
    assert_eq!(tree(&target), files(&expected));
    assert_eq!(owner(&target.join("keystore.jks")), "0:0 0444");
    assert_eq!(owner(&target.join("sub")), "0:0 0555");
}

pub(crate) async fn owner_and_modes_are_as_asked(fixture: Fixture) {
    fixture.put_certificates().await;
    let uid = fixture.spark();
    for layout in ["symlinks", "files"] {
        let pod = fixture.pod("certs").with("uid", uid).with("gid", uid);
        let pod = pod.with("fileMode", "0400").with("dirMode", "0500").with("layout", layout);
        let target = fixture.publish(&pod).await;
        assert_eq!(owner(&target.join("keystore.jks")), format!("{uid}:{uid} 0400"));
        assert_eq!(owner(&target.join("sub/password")), format!("{uid}:{uid} 0400"));
        assert_eq!(owner(&target.join("sub")), format!("{uid}:{uid} 0500"));
        assert_eq!(owner(&target), format!("{uid}:{uid} 0500"));
    }
}

pub(crate) async fn the_mount_group_owns_the_files(fixture: Fixture) {
    fixture.put_certificates().await;
    let group = fixture.spark();
    let mut pod = fixture.pod("certs");
    pod.fs_group = Some(group.to_owned());
    let target = fixture.publish(&pod).await;
    assert_eq!(owner(&target.join("keystore.jks")), format!("0:{group} 0440"));
    assert_eq!(owner(&target.join("sub")), format!("0:{group} 0550"));
}

pub(crate) async fn symlinks_lead_through_data(fixture: Fixture) {
    fixture.put_certificates().await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    let link = |name: &str| std::fs::read_link(target.join(name)).unwrap();
    assert_eq!(link("keystore.jks"), Path::new("..data/keystore.jks"));
    assert_eq!(link("sub"), Path::new("..data/sub"));
    let revision = link("..data");
    assert!(revision.to_str().unwrap().starts_with(".."), "{}", revision.display());
    assert!(target.join(revision).join("keystore.jks").is_file());
}

pub(crate) async fn files_are_plain_in_the_other_layout(fixture: Fixture) {
    fixture.put_certificates().await;
    let target = fixture.publish(&fixture.pod("certs").with("layout", "files")).await;
    let names: Vec<_> = std::fs::read_dir(&target).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|entry| !entry.file_type().unwrap().is_symlink()));
    assert_eq!(tree(&target)["sub/password"], "secret");
}

pub(crate) async fn the_view_is_read_only_for_root(fixture: Fixture) {
    fixture.put_certificates().await;
    for view in ["tmpfs", "disk"] {
        let target = fixture.publish(&fixture.pod("certs").with("view", view)).await;
        let refused = |error: std::io::Error| error.raw_os_error() == Some(nix::libc::EROFS);
        assert!(refused(std::fs::write(target.join("new"), "x").unwrap_err()));
        assert!(refused(std::fs::write(target.join("keystore.jks"), "x").unwrap_err()));
        assert!(refused(std::fs::remove_file(target.join("..data")).unwrap_err()));
        assert!(refused(std::fs::remove_file(target.join("..data/keystore.jks")).unwrap_err()));
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap();
        let options = line.split(' ').nth(5).unwrap();
        for option in ["ro", "nosuid", "nodev"] {
            assert!(options.split(',').any(|o| o == option), "{option} is not in {options}");
        }
    }
}

pub(crate) async fn mtime_is_last_modified(fixture: Fixture) {
    fixture.put_certificates().await;
    let client = fixture.server.client();
    let head = client.head_object().bucket(&fixture.bucket).key("certs/keystore.jks").send().await;
    let modified = *head.unwrap().last_modified().unwrap();
    let target = fixture.publish(&fixture.pod("certs")).await;
    let shown = std::fs::metadata(target.join("keystore.jks")).unwrap().modified().unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(i64::try_from(seconds(shown)).unwrap(), modified.secs());
}

pub(crate) async fn a_disk_view_is_on_the_disk_store(fixture: Fixture) {
    fixture.put_certificates().await;
    let target = fixture.publish(&fixture.pod("certs").with("view", "disk")).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    assert_eq!(device(&target.join("keystore.jks")), device(&fixture.home.path().join("disk")));
}

pub(crate) async fn a_tmpfs_view_never_touches_the_disk(fixture: Fixture) {
    fixture.put_certificates().await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    let kind = nix::sys::statfs::statfs(&target).unwrap().filesystem_type();
    assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC);
    let blobs = std::fs::read_dir(fixture.home.path().join("disk/v1/blobs")).unwrap();
    assert_eq!(blobs.count(), 0);
}

pub(crate) async fn several_sources_make_one_volume(fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.put("apps/sparkapp.py", "print()").await;
    fixture.put("apps/lib/util.py", "pass").await;
    let sources = "- { prefix: certs, path: ssl, include: '*.jks' }\n- { prefix: apps, exclude: ['lib/**'] }\n- { key: apps/lib/util.py, path: python/tools.py }";
    let pod = Pod::new("driver", &[("bucket", &fixture.bucket), ("sources", sources)]);
    let target = fixture.publish(&pod).await;
    let expected = [
        ("ssl/", ""),
        ("ssl/keystore.jks", "keystore"),
        ("ssl/truststore.jks", "truststore"),
        ("sparkapp.py", "print()"),
        ("python/", ""),
        ("python/tools.py", "pass"),
    ];
    assert_eq!(tree(&target), files(&expected));
}

pub(crate) async fn two_keys_at_one_path_are_refused(fixture: Fixture) {
    fixture.put("a/x", "1").await;
    fixture.put("b/x", "2").await;
    let sources = "[{ prefix: a }, { prefix: b }]";
    let pod = Pod::new("driver", &[("bucket", &fixture.bucket), ("sources", sources)]);
    let status = fixture.refused(&pod, Code::InvalidArgument).await;
    assert!(status.message().contains("/a/x") && status.message().contains("/b/x"), "{status:?}");
}

pub(crate) async fn a_single_key_is_a_file(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = Pod::new(
        "driver",
        &[("bucket", &fixture.bucket), ("sources", "[{ key: certs/keystore.jks }]")],
    );
    assert_eq!(tree(&fixture.publish(&pod).await), files(&[("keystore.jks", "keystore")]));
}

pub(crate) async fn a_version_id_selects_an_old_version(fixture: Fixture) {
    fixture.put("app.py", "old").await;
    let client = fixture.server.client();
    let head = client.head_object().bucket(&fixture.bucket).key("app.py").send().await.unwrap();
    let old = head.version_id().unwrap().to_owned();
    fixture.put("app.py", "new").await;
    let sources =
        format!("[{{ key: app.py, versionId: '{old}' }}, {{ key: app.py, path: new.py }}]");
    let pod = Pod::new("driver", &[("bucket", &fixture.bucket), ("sources", &sources)]);
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target), files(&[("app.py", "old"), ("new.py", "new")]));
}

pub(crate) async fn include_and_exclude_select(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("include", "*.jks\nsub/**").with("exclude", "trust*");
    let expected = [("keystore.jks", "keystore"), ("sub/", ""), ("sub/password", "secret")];
    assert_eq!(tree(&fixture.publish(&pod).await), files(&expected));
}

pub(crate) async fn odd_keys_are_shown_or_reported(fixture: Fixture) {
    let shown = [
        "k/with space",
        "k/a+b",
        "k/100%",
        "k/q?&=#",
        "k/\u{444}\u{430}\u{439}\u{43b}",
        "k/'\"<>",
        "k/sub/..hidden",
    ];
    for key in shown {
        fixture.put(key, key).await;
    }
    let mut reported = vec!["k/..data".to_owned(), format!("k/{}", "x".repeat(256))];
    fixture.put("k/file", "hidden by its directory").await;
    // MinIO refuses keys that its own disks cannot hold.
    if matches!(fixture.server, crate::support::server::Server::Embedded(_)) {
        reported.extend(["k/a//b", "k/../../etc/passwd", "k/./c"].map(str::to_owned));
        fixture.put("k/file/below", "below").await;
        reported.push("k/file".to_owned());
    }
    let mut skipped = 0;
    for key in &reported {
        let client = fixture.server.client();
        let put = client.put_object().bucket(&fixture.bucket).key(key);
        skipped += usize::from(key == "k/file" || put.send().await.is_ok());
    }
    let pod = fixture.pod("k");
    let seen = tree(&fixture.publish(&pod).await);
    for key in shown {
        assert_eq!(seen.get(key.strip_prefix("k/").unwrap()).map(String::as_str), Some(key));
    }
    let files = seen.keys().filter(|name| !name.ends_with('/')).count();
    assert_eq!(files, shown.len() + 1, "{seen:?}");
    let condition = fixture.kubelet.stats(&pod).await.unwrap().volume_condition.unwrap();
    assert!(!condition.abnormal);
    let told = format!("{skipped} keys skipped");
    assert!(condition.message.contains(&told), "{} lacks {told}", condition.message);
    assert!(fixture.home.log().contains("some keys cannot be shown"));
}

/// Of more pages than are listed in turn; no more than it takes to see that they are not.
pub(crate) async fn a_long_prefix_is_shown_whole(mut fixture: Fixture) {
    const PAGES: usize = 7;
    let metrics = serve_metrics(&mut fixture).await;
    let name = |number: usize| {
        let other = ["", "-x", ".y", " z"][number / 50 % 4];
        format!("{:03}{other}/f+{number:04}", number / 100)
    };
    let names: BTreeSet<String> = (0..PAGES * 1000 - 500).map(name).collect();
    let client = fixture.server.client();
    let put = |name: &String| {
        let (bucket, key) = (&fixture.bucket, format!("long/{name}"));
        client.put_object().bucket(bucket).key(key).send()
    };
    stream::iter(names.iter().map(put)).buffer_unordered(16).try_collect::<Vec<_>>().await.unwrap();
    let target = fixture.publish(&fixture.pod("long").with("refresh", "never")).await;
    let seen = tree(&target).into_keys().filter(|name| !name.ends_with('/'));
    assert_eq!(seen.collect::<BTreeSet<_>>(), names);
    let requests = "s3view_s3_requests_total{operation=\"ListObjectsV2\"} ";
    let metrics = http_get(metrics, "/metrics");
    let lists = metrics.lines().find_map(|line| line.strip_prefix(requests)).unwrap();
    // A question, and a page that another stretch begins with.
    assert!(lists.parse::<usize>().unwrap() > PAGES + 1, "{lists} requests");
}

pub(crate) async fn markers_are_empty_directories(fixture: Fixture) {
    fixture.put("m/", "").await;
    fixture.put("m/logs/", "").await;
    fixture.put("m/a", "a").await;
    let target = fixture.publish(&fixture.pod("m")).await;
    assert_eq!(tree(&target), files(&[("a", "a"), ("logs/", "")]));
}

pub(crate) async fn large_objects_arrive_whole(mut fixture: Fixture) {
    fixture.reconfigure("fetch: { partSize: 64Ki, bytesInFlight: 1Mi, requests: 8 }\n").await;
    let content: Vec<u8> =
        (0..1_000_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fixture.put("big/plain", content.clone()).await;
    for view in ["tmpfs", "disk"] {
        let target = fixture.publish(&fixture.pod("big").with("view", view)).await;
        assert!(std::fs::read(target.join("plain")).unwrap() == content, "{view}");
    }
}

pub(crate) async fn an_empty_object_is_an_empty_file(fixture: Fixture) {
    fixture.put("e/empty", "").await;
    assert_eq!(tree(&fixture.publish(&fixture.pod("e")).await), files(&[("empty", "")]));
}

pub(crate) async fn a_prefix_does_not_match_its_siblings(fixture: Fixture) {
    fixture.put("certs/a", "a").await;
    fixture.put("certs-old/b", "b").await;
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(tree(&target), files(&[("a", "a")]));
}

pub(crate) async fn encrypted_objects_are_files_like_others(mut fixture: Fixture) {
    let more = "fetch: { partSize: 64Ki }\nlimits: { minRefresh: 50ms }\n";
    fixture.reconfigure(more).await;
    let put = |key: &str, content: Vec<u8>, how: ServerSideEncryption| {
        let put = fixture.server.client().put_object().bucket(&fixture.bucket).key(key);
        let put = put.body(content.into()).server_side_encryption(how.clone());
        let with_key = how == ServerSideEncryption::AwsKms;
        let put = if with_key { put.ssekms_key_id("tests") } else { put };
        async move { put.send().await.expect("MinIO has a key service") }
    };
    let large = vec![7; 200_000];
    for (name, how) in [("s3", ServerSideEncryption::Aes256), ("kms", ServerSideEncryption::AwsKms)]
    {
        let answer = put(&format!("{name}/small"), b"sealed".to_vec(), how.clone()).await;
        assert_eq!(answer.server_side_encryption(), Some(&how), "it is encrypted");
        put(&format!("{name}/large"), large.clone(), how.clone()).await;
        put(&format!("{name}/empty"), Vec::new(), how.clone()).await;
        for view in ["tmpfs", "disk"] {
            let pod = fixture.pod(name).with("view", view).with("refresh", "100ms");
            let target = fixture.publish(&pod).await;
            assert_eq!(std::fs::read(target.join("small")).unwrap(), b"sealed");
            assert_eq!(std::fs::read(target.join("large")).unwrap(), large);
            assert_eq!(std::fs::read(target.join("empty")).unwrap(), b"");
            put(&format!("{name}/small"), format!("rotated {view}").into(), how.clone()).await;
            let content = || std::fs::read_to_string(target.join("small")).unwrap();
            let is_rotated = || (content() == format!("rotated {view}")).then_some(());
            eventually("the new content", is_rotated).await;
            put(&format!("{name}/small"), b"sealed".to_vec(), how.clone()).await;
        }
    }
}
