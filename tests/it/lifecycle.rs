//! Publish, republish, unpublish, and what survives a restart.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use s3view::csi::proto::{VolumeUsage, volume_usage::Unit};
use tonic::Code;

use crate::{
    fixture::{Fixture, is_mount_point, tree},
    refresh::eventually,
    support::{
        address::free_address,
        kubelet::Pod,
        s3::{Action, Fault},
        server::Server,
    },
};

pub(crate) async fn publish_twice_is_ok(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let before = identity(&target);
    fixture.publish(&pod).await;
    assert_eq!(identity(&target), before);
    assert_eq!(fixture.home.mounts().len(), 1, "no second mount on the first");
}

pub(crate) async fn other_arguments_are_refused(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let changed = pod.clone().with("fileMode", "0400");
    let status = fixture.kubelet.publish(&changed).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("fileMode"), "{status:?}");
    assert!(is_mount_point(&target), "the published volume stays");
    // Secrets, pod information and readonly are no arguments.
    let mut same =
        pod.clone().with_secrets(&[("accesskey", "minio"), ("secretkey", "not-that-of-minio")]);
    "renamed".clone_into(&mut same.name);
    fixture.publish(&same).await;
}

pub(crate) async fn unpublish_leaves_nothing(fixture: Fixture) {
    fixture.put_certificates().await;
    for view in ["tmpfs", "disk"] {
        let pod = fixture.pod("certs").with("view", view);
        let target = fixture.publish(&pod).await;
        // The pod may still hold a file open; its bytes stay readable.
        let open = std::fs::File::open(target.join("keystore.jks")).unwrap();
        fixture.unpublish(&pod).await;
        assert!(!target.exists(), "the target path is removed");
        assert!(target.parent().unwrap().exists(), "its parent is the kubelet's");
        assert_eq!(std::io::read_to_string(open).unwrap(), "keystore");
        fixture.assert_nothing_left();
        fixture.unpublish(&pod).await;
    }
}

pub(crate) async fn unpublish_of_anything_is_ok(fixture: Fixture) {
    let pod = fixture.pod("never");
    fixture.unpublish(&pod).await;
    // A target that the kubelet made, but that was never mounted.
    let target = fixture.kubelet.target(&pod);
    std::fs::create_dir_all(&target).unwrap();
    fixture.unpublish(&pod).await;
    assert!(!target.exists());
    // Somebody else's mount at the target goes as well.
    std::fs::create_dir_all(&target).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &target, Some("tmpfs"), flags, None::<&str>).unwrap();
    fixture.unpublish(&pod).await;
    assert!(!target.exists());
    fixture.assert_nothing_left();
}

pub(crate) async fn a_restart_touches_no_mount(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pods = [fixture.pod("certs"), fixture.pod("certs").with("view", "disk")];
    let mut before = Vec::new();
    for pod in &pods {
        before.push(identity(&fixture.publish(pod).await));
    }
    fixture.restart().await;
    for (pod, before) in pods.iter().zip(&before) {
        assert_eq!(identity(&fixture.kubelet.target(pod)), *before, "the mount is the same");
        fixture.publish(pod).await;
        assert_eq!(identity(&fixture.kubelet.target(pod)), *before, "after a republish too");
        assert_eq!(usage(&fixture, pod, Unit::Bytes).await.used, 8 + 10 + 6);
    }
    let changed = pods[0].clone().with("fileMode", "0400");
    let status = fixture.kubelet.publish(&changed).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "the registry knows the arguments");
    for pod in &pods {
        fixture.unpublish(pod).await;
    }
    fixture.assert_nothing_left();
}

pub(crate) async fn missing_things_are_not_found(fixture: Fixture) {
    fixture.put_certificates().await;
    let url = fixture.server.url();
    let bucket = Pod::new("p", &[("bucket", "no-such-bucket"), ("prefix", "certs")]);
    let sources = "[{ key: no/such/key }]";
    let key = Pod::new("p", &[("bucket", &fixture.bucket), ("sources", sources)]);
    let cases = [(bucket, "no-such-bucket"), (fixture.pod("cert"), "cert/"), (key, "no/such/key")];
    for (pod, named) in cases {
        let status = fixture.refused(&pod, Code::NotFound).await;
        for part in [&url, named] {
            assert!(status.message().contains(part), "{status:?} lacks {part}");
        }
    }
    fixture.assert_nothing_left();
}

pub(crate) async fn an_empty_prefix_may_be_allowed(fixture: Fixture) {
    let target = fixture.publish(&fixture.pod("nothing").with("allowEmpty", "true")).await;
    assert!(tree(&target).is_empty());
}

pub(crate) async fn bad_credentials_are_unauthenticated(fixture: Fixture) {
    fixture.put_certificates().await;
    for keys in [
        [("accesskey", "minio"), ("secretkey", "wrong-secret")],
        [("accesskey", "unknown"), ("secretkey", "minio123")],
    ] {
        let status =
            fixture.refused(&fixture.pod("certs").with_secrets(&keys), Code::Unauthenticated).await;
        assert!(status.message().contains("Secret"), "{status:?}");
        assert!(!status.message().contains("wrong-secret"), "{status:?}");
    }
    let none = fixture.pod("certs").with_secrets(&[]);
    fixture.refused(&none, Code::Unauthenticated).await;
}

pub(crate) async fn stats_tell_bytes_and_inodes(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("maxSize", "1Mi").with("maxObjects", "10");
    fixture.publish(&pod).await;
    let bytes = usage(&fixture, &pod, Unit::Bytes).await;
    assert_eq!((bytes.used, bytes.total, bytes.available), (24, 1 << 20, (1 << 20) - 24));
    let inodes = usage(&fixture, &pod, Unit::Inodes).await;
    assert_eq!((inodes.used, inodes.total), (4, 10));
    let other = fixture.pod("certs");
    assert_eq!(fixture.kubelet.stats(&other).await.unwrap_err().code(), Code::NotFound);
    fixture.unpublish(&pod).await;
    assert_eq!(fixture.kubelet.stats(&pod).await.unwrap_err().code(), Code::NotFound);
}

pub(crate) async fn eleven_pods_share_one_copy(fixture: Fixture) {
    fixture.put_certificates().await;
    let mut inodes = std::collections::HashSet::new();
    for _ in 0..11 {
        let target = fixture.publish(&fixture.pod("certs")).await;
        let metadata = std::fs::metadata(target.join("keystore.jks")).unwrap();
        inodes.insert((metadata.dev(), metadata.ino()));
    }
    assert_eq!(inodes.len(), 1);
}

pub(crate) async fn a_kill_while_fetching_is_cleaned_up(mut fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    let pod = fixture.pod("certs");
    let publishing = fixture.publish_meanwhile(&pod);
    while fixture.embedded().requests().gets() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.restart().await;
    publishing.await.unwrap().expect_err("the connection broke");
    fixture.assert_nothing_left();
    fixture.embedded().faults().clear();
    fixture.publish(&pod).await;
}

pub(crate) async fn a_reboot_is_survived(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("view", "disk");
    let target = fixture.publish(&pod).await;
    if let Some(plugin) = fixture.plugin.take() {
        plugin.kill();
    }
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    umount2(&fixture.home.state_dir().join("memory"), MntFlags::MNT_DETACH).unwrap();
    fixture.restart().await;
    fixture.assert_nothing_left();
    assert_eq!(tree(&fixture.publish(&pod).await)["keystore.jks"], "keystore");
}

pub(crate) async fn a_mount_without_record_is_adopted(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "1s");
    let before = identity(&fixture.publish(&pod).await);
    for entry in std::fs::read_dir(fixture.home.state_dir().join("memory/registry")).unwrap() {
        std::fs::write(entry.unwrap().path(), "{ torn").unwrap();
    }
    fixture.restart().await;
    let target = fixture.kubelet.target(&pod);
    assert_eq!(tree(&target)["keystore.jks"], "keystore", "the pod goes on reading");
    fixture.publish(&pod).await;
    assert_eq!(identity(&target), before);
    // The one republish brought all that it takes to follow S3 again.
    fixture.put("certs/keystore.jks", "rotated").await;
    let is_shown = || (tree(&target)["keystore.jks"] == "rotated").then_some(());
    eventually("what was written after the adoption", is_shown).await;
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn a_lost_mount_is_made_again(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    fixture.embedded().reset_requests();
    fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    assert_eq!(fixture.embedded().requests().total(), 0, "the files were still here");
}

pub(crate) async fn a_foreign_mount_gives_way(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.kubelet.target(&pod);
    std::fs::create_dir_all(&target).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &target, Some("tmpfs"), flags, None::<&str>).unwrap();
    fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn lost_files_are_brought_again(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("view", "disk");
    let target = fixture.publish(&pod).await;
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    for volume in std::fs::read_dir(fixture.home.path().join("disk/v1/volumes")).unwrap() {
        std::fs::remove_dir_all(volume.unwrap().path()).unwrap();
    }
    fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
}

pub(crate) async fn one_bad_volume_stops_no_other(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let (bad, good) = (fixture.pod("certs"), fixture.pod("certs"));
    let target = fixture.publish(&bad).await;
    fixture.publish(&good).await;
    if let Some(plugin) = fixture.plugin.take() {
        plugin.kill();
    }
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    std::fs::write(target.join("stray"), "somebody's").unwrap();
    fixture.restart().await;
    assert!(fixture.home.log().contains("failed to recover a volume"));
    fixture.publish(&good).await;
    fixture.unpublish(&good).await;
    let status = fixture.kubelet.unpublish(&bad).await.unwrap_err();
    assert!(status.message().contains("stray"), "nothing of others is removed: {status:?}");
    std::fs::remove_file(target.join("stray")).unwrap();
    fixture.unpublish(&bad).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn another_kubelet_directory_touches_nothing(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let config = fixture.home.path().join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    let elsewhere = fixture.home.path().join("plugin");
    let moved = format!("kubeletDir: {}\n", elsewhere.display());
    let rest = text.split_once('\n').unwrap().1;
    std::fs::write(&config, format!("{moved}{rest}")).unwrap();
    fixture.restart().await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore", "the pod goes on reading");
    std::fs::write(&config, text).unwrap();
    fixture.restart().await;
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn a_full_store_is_served_after_a_restart(mut fixture: Fixture) {
    let config = Fixture::config(&fixture.server, "").replace("size: 64Mi", "size: 1Mi");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.put("a/large", vec![1; 700 << 10]).await;
    fixture.publish(&fixture.pod("a")).await;
    fixture.restart().await;
    let target = fixture.publish(&fixture.pod("a")).await;
    assert_eq!(std::fs::read(target.join("large")).unwrap(), vec![1; 700 << 10]);
    let blobs = fixture.home.state_dir().join("memory/v1/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 1, "one copy");
}

pub(crate) async fn the_condition_tells_what_is_wrong(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let condition =
        || async { fixture.kubelet.stats(&pod).await.unwrap().volume_condition.unwrap() };
    let good = condition().await;
    assert!(
        !good.abnormal && good.message.starts_with("3 objects, 24 bytes, confirmed by S3 at 20"),
        "{good:?}"
    );
    fixture.publish(&pod.clone().with_secrets(&[("accesskey", "half")])).await;
    let half = condition().await;
    assert!(!half.abnormal && half.message.contains("secretkey"), "{half:?}");
    fixture.publish(&pod).await;
    assert_eq!(condition().await.message, good.message);
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    let lost = condition().await;
    assert!(lost.abnormal && lost.message.contains("not mounted"), "{lost:?}");
}

pub(crate) async fn sigterm_is_bounded(mut fixture: Fixture) {
    use std::io::Write;
    let address = free_address();
    fixture.reconfigure(&format!("metrics: {{ address: '{address}' }}\n")).await;
    fixture.put_certificates().await;
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    let publishing = fixture.publish_meanwhile(&fixture.pod("certs"));
    let mut half = std::net::TcpStream::connect(address).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    while fixture.embedded().requests().gets() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = std::time::Instant::now();
    let plugin = fixture.plugin.take().unwrap();
    let status = tokio::task::spawn_blocking(|| plugin.terminate()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(publishing.await.unwrap().unwrap_err().code(), Code::Unavailable);
}

pub(crate) async fn sigterm_leaves_the_mounts(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let status = fixture.plugin.take().unwrap().terminate();
    assert!(status.success(), "{status}");
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    fixture.restart().await;
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

pub(crate) async fn sigterm_is_orderly_without_a_connection(mut fixture: Fixture) {
    fixture.plugin.take().unwrap().stop();
    let said = |words: &str| fixture.home.log().matches(words).count();
    let stopped = said("mounts stay");
    // Serving ends at once then, and may be seen to end before the signal is.
    for number in 1..=8 {
        let ready = said("ready socket");
        let mut plugin = fixture.home.command().spawn().unwrap();
        while said("ready socket") == ready {
            assert_eq!(plugin.try_wait().unwrap(), None, "{}", fixture.home.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pid = Pid::from_raw(plugin.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(plugin.wait().unwrap().success());
        assert_eq!(said("mounts stay"), stopped + number);
    }
}

pub(crate) async fn republish_is_ok_whatever_else_is_wrong(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let target = fixture.publish(&pod).await;
    let Server::Embedded(server) = &fixture.server else { unreachable!("embedded only") };
    server.set_down(true);
    fixture.publish(&pod).await;
    fixture.publish(&pod.clone().with_secrets(&[])).await;
    fixture.publish(&pod.clone().with_secrets(&[("accesskey", "half a pair")])).await;
    let both = [("accesskey", "a"), ("access_key", "b"), ("secretkey", "c")];
    fixture.publish(&pod.clone().with_secrets(&both)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // Unpublish needs no S3 either.
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

/// What stays the same as long as nobody mounts anew: the file and the mount's id.
fn identity(target: &Path) -> (u64, u64, String) {
    let metadata = std::fs::metadata(target).unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap();
    let id = line.split(' ').next().unwrap().to_owned();
    (metadata.dev(), metadata.ino(), id)
}

async fn usage(fixture: &Fixture, pod: &Pod, unit: Unit) -> VolumeUsage {
    let stats = fixture.kubelet.stats(pod).await.unwrap();
    stats.usage.into_iter().find(|usage| usage.unit() == unit).unwrap()
}
