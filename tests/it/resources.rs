//! What a node runs out of (space, descriptors, a writable disk), and clocks that are wrong: a clear
//! error, nothing lost, and all is well again without a restart once the cause is gone.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::mount::{MsFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    support::{
        kubelet::{Kubelet, Pod},
        plugin::Plugin,
        s3::{Action, Fault},
    },
};

/// The size of the objects `a/file` and `b/file`, in whole pages.
const SIZE: usize = 700 << 10;

/// The codes after which the kubelet asks again, as if nothing was known.
const OPEN: [Code; 2] = [Code::ResourceExhausted, Code::Unavailable];

pub(crate) async fn a_full_disk_is_told_and_passes(mut fixture: Fixture) {
    let disk = on_small_disk(&mut fixture).await;
    put_two(&fixture).await;
    let shown = fixture.publish(&disk_pod(&fixture, "a")).await;
    let stray = fill_up(&disk, 100 << 10);
    let pod = disk_pod(&fixture, "b");
    let status = fixture.refused(&pod, Code::ResourceExhausted).await;
    let place = disk.to_str().unwrap();
    for part in ["disk store", "716800 bytes are needed", "102400 are free", place] {
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
    assert_eq!(fixture.embedded().requests().gets(), 1, "told before anything is fetched");
    assert_only(&fixture, &disk, 1);
    assert_shows(&shown, b'a');
    std::fs::remove_file(stray).unwrap();
    assert_shows(&fixture.publish(&pod).await, b'b');
    // On a full one, what nobody shows makes room.
    fixture.unpublish(&pod).await;
    fill_up(&disk, 0);
    fixture.put("c/file", vec![b'c'; SIZE]).await;
    assert_shows(&fixture.publish(&disk_pod(&fixture, "c")).await, b'c');
    assert_shows(&shown, b'a');
}

pub(crate) async fn a_disk_that_fills_up_meanwhile_is_told_and_passes(mut fixture: Fixture) {
    let disk = on_small_disk(&mut fixture).await;
    put_two(&fixture).await;
    let shown = fixture.publish(&disk_pod(&fixture, "a")).await;
    fixture.embedded().reset_requests();
    let slow = Fault::get(Action::Delay(Duration::from_secs(1)));
    fixture.embedded().faults().add(slow);
    let pod = disk_pod(&fixture, "b");
    let publishing = fixture.publish_meanwhile(&pod);
    while fixture.embedded().requests().gets() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stray = fill_up(&disk, 0);
    let status = publishing.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("write a blob in the disk store"), "{status:?}");
    assert_only(&fixture, &disk, 1);
    assert_shows(&shown, b'a');
    std::fs::remove_file(stray).unwrap();
    fixture.embedded().faults().clear();
    assert_shows(&fixture.publish(&pod).await, b'b');
}

pub(crate) async fn a_full_tmpfs_is_told_and_passes(fixture: Fixture) {
    put_two(&fixture).await;
    let memory = fixture.home.state_dir().join("memory");
    let shown = fixture.publish(&fixture.pod("a")).await;
    let pod = fixture.pod("b");
    // Not even the record of the volume has room, or its content has none.
    for (left, needed) in [(0, "a page"), (100 << 10, "716800 bytes are needed")] {
        let stray = fill_up(&memory, left);
        let status = fixture.refused(&pod, Code::ResourceExhausted).await;
        for part in ["memory store", needed] {
            assert!(status.message().contains(part), "{status:?} lacks {part}");
        }
        assert_only(&fixture, &memory, 1);
        assert_shows(&shown, b'a');
        std::fs::remove_file(stray).unwrap();
    }
    // A full one lets go of what it has.
    assert_shows(&fixture.publish(&pod).await, b'b');
    let stray = fill_up(&memory, 0);
    fixture.unpublish(&pod).await;
    std::fs::remove_file(stray).unwrap();
    assert_only(&fixture, &memory, 1);
}

pub(crate) async fn want_of_descriptors_is_told_and_passes(fixture: Fixture) {
    put_two(&fixture).await;
    let plugin = fixture.plugin.as_ref().unwrap();
    let first = fixture.pod("a");
    let shown = fixture.publish(&first).await;
    let (mut pods, mut failures) = (Vec::new(), 0);
    // Each number of spare descriptors lets the work fail at another place.
    for (spare, view) in (0..12).flat_map(|spare| [(spare, "tmpfs"), (spare, "disk")]) {
        let pod = fixture.pod("b").with("view", view);
        let limit = Descriptors::limit(plugin, spare);
        for outcome in
            [fixture.kubelet.publish(&pod).await.map(drop), fixture.kubelet.unpublish(&pod).await]
        {
            let Err(status) = outcome else { continue };
            assert!(OPEN.contains(&status.code()), "{spare} spare: {status:?}");
            failures += 1;
        }
        assert_shows(&shown, b'a');
        drop(limit);
        pods.push(pod);
    }
    assert!(failures > 4, "the limit was felt");
    for pod in pods {
        assert_shows(&fixture.publish(&pod).await, b'b');
        fixture.unpublish(&pod).await;
    }
    fixture.unpublish(&first).await;
    fixture.assert_nothing_left();
    a_new_connection_waits(&fixture).await;
}

/// Whoever connects meanwhile is heard later, and the plugin does not turn in circles until then.
async fn a_new_connection_waits(fixture: &Fixture) {
    let plugin = fixture.plugin.as_ref().unwrap();
    let limit = Descriptors::limit(plugin, 0);
    let before = processor_time(plugin);
    let unheard = async { Kubelet::connect(&fixture.home).await.is_ready().await };
    tokio::pin!(unheard);
    let patience = Duration::from_millis(600);
    assert!(tokio::time::timeout(patience, &mut unheard).await.is_err(), "nobody was accepted");
    let busy = processor_time(plugin).saturating_sub(before);
    assert!(busy < patience / 3, "the plugin was busy for {busy:?}");
    drop(limit);
    assert!(unheard.await);
}

pub(crate) async fn a_read_only_disk_is_told_and_passes(mut fixture: Fixture) {
    let disk = on_small_disk(&mut fixture).await;
    put_two(&fixture).await;
    let first = disk_pod(&fixture, "a");
    let shown = fixture.publish(&first).await;
    remount(&disk, MsFlags::MS_RDONLY);
    let second = disk_pod(&fixture, "b");
    for pod in [&second, &disk_pod(&fixture, "a")] {
        told_read_only(&fixture, pod, &disk).await;
    }
    assert_shows(&shown, b'a');
    fixture.publish(&first).await;
    fixture.publish(&fixture.pod("b")).await;
    remount(&disk, MsFlags::empty());
    assert_shows(&fixture.publish(&second).await, b'b');
    assert_only(&fixture, &disk, 2);
}

pub(crate) async fn a_start_on_a_read_only_disk_keeps_everything_else_working(
    mut fixture: Fixture,
) {
    let disk = on_small_disk(&mut fixture).await;
    put_two(&fixture).await;
    let (first, second) = (disk_pod(&fixture, "a"), disk_pod(&fixture, "b"));
    let shown = fixture.publish(&first).await;
    remount(&disk, MsFlags::MS_RDONLY);
    fixture.restart().await;
    told_read_only(&fixture, &second, &disk).await;
    fixture.publish(&first).await;
    assert_shows(&shown, b'a');
    let tmpfs = fixture.pod("b");
    assert_shows(&fixture.publish(&tmpfs).await, b'b');
    fixture.unpublish(&tmpfs).await;
    // The pod goes all the same; its files go with the next start that can remove them.
    fixture.unpublish(&first).await;
    assert!(!shown.exists());
    remount(&disk, MsFlags::empty());
    assert_shows(&fixture.publish(&second).await, b'b');
    fixture.unpublish(&second).await;
    fixture.restart().await;
    fixture.assert_nothing_left();
}

pub(crate) async fn odd_times_are_shown(fixture: Fixture) {
    let embedded = fixture.embedded();
    let second = Duration::from_secs(1);
    let times = [
        ("1938", SystemTime::UNIX_EPOCH - second * 1_000_000_000),
        ("1970", SystemTime::UNIX_EPOCH),
        ("2106", SystemTime::UNIX_EPOCH + second * u32::MAX + second),
        ("9999", SystemTime::UNIX_EPOCH + second * 253_402_300),
    ];
    for (name, time) in times {
        embedded.set_time(Some(time));
        embedded.put(&fixture.bucket, &format!("t/{name}"), name);
    }
    embedded.set_time(None);
    let target = fixture.publish(&fixture.pod("t")).await;
    for (name, time) in times {
        let path = target.join(name);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), name);
        // A tmpfs has room for any of them; what a disk's file system has none for, it clamps.
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), time, "{name}");
    }
    let target = fixture.publish(&fixture.pod("t").with("view", "disk")).await;
    assert_eq!(tree(&target).len(), times.len());
}

pub(crate) async fn a_refresh_without_room_is_told_and_passes(mut fixture: Fixture) {
    fixture.often().await;
    let disk = on_small_disk(&mut fixture).await;
    put_two(&fixture).await;
    let pod = disk_pod(&fixture, "a").with("refresh", "200ms");
    let shown = fixture.publish(&pod).await;
    let memory = fixture.home.state_dir().join("memory");
    let in_memory = fixture.pod("b").with("refresh", "200ms");
    let shown_in_memory = fixture.publish(&in_memory).await;
    let strays = [fill_up(&disk, 0), fill_up(&memory, 0)];
    for prefix in ["a", "b"] {
        fixture.put(&format!("{prefix}/file"), vec![b'x'; SIZE]).await;
    }
    for (pod, medium) in [(&pod, "disk store"), (&in_memory, "memory store")] {
        fixture.says(pod, medium).await;
    }
    assert_shows(&shown, b'a');
    assert_shows(&shown_in_memory, b'b');
    for stray in strays {
        std::fs::remove_file(stray).unwrap();
    }
    for (pod, target) in [(&pod, &shown), (&in_memory, &shown_in_memory)] {
        fixture.says_no_more(pod, "failed").await;
        assert_shows(target, b'x');
    }
    // A disk that is read-only for a while.
    remount(&disk, MsFlags::MS_RDONLY);
    fixture.put("a/file", vec![b'y'; SIZE]).await;
    fixture.says(&pod, "read-only").await;
    assert_shows(&shown, b'x');
    remount(&disk, MsFlags::empty());
    fixture.says_no_more(&pod, "failed").await;
    assert_shows(&shown, b'y');
}

/// Puts a small disk below the disk store; returns where.
async fn on_small_disk(fixture: &mut Fixture) -> PathBuf {
    let disk = fixture.home.path().join("disk");
    if let Some(plugin) = fixture.plugin.take() {
        plugin.kill();
    }
    let (flags, size) = (MsFlags::empty(), Some("size=8m"));
    mount(Some("small"), &disk, Some("tmpfs"), flags, size).unwrap();
    fixture.restart().await;
    disk
}

async fn put_two(fixture: &Fixture) {
    fixture.put("a/file", vec![b'a'; SIZE]).await;
    fixture.put("b/file", vec![b'b'; SIZE]).await;
    fixture.embedded().reset_requests();
}

fn disk_pod(fixture: &Fixture, prefix: &str) -> Pod {
    fixture.pod(prefix).with("view", "disk")
}

/// That a volume shows the whole file of that byte, published just now or before things went wrong.
fn assert_shows(target: &Path, byte: u8) {
    let content = std::fs::read(target.join("file")).unwrap();
    assert!(content == vec![byte; SIZE], "{} bytes of {:?}", content.len(), content.first());
}

/// Takes what the file system has but `left` bytes, with a file that is none of the plugin's.
fn fill_up(directory: &Path, left: u64) -> PathBuf {
    let path = directory.join("stray");
    let mut file = File::create(&path).unwrap();
    for chunk in [1 << 20, 4096] {
        loop {
            match file.write_all(&vec![0; chunk]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let length = file.metadata().unwrap().len();
    file.set_len(length - left).unwrap();
    path
}

/// That a store has `volumes` volumes, and nothing half done.
fn assert_only(fixture: &Fixture, store: &Path, volumes: usize) {
    let count = |directory: &str| std::fs::read_dir(store.join(directory)).unwrap().count();
    assert_eq!((count("v1/volumes"), count("v1/tmp")), (volumes, 0), "{}", fixture.home.log());
}

/// Mounts what is mounted at `path` anew, with other flags.
fn remount(path: &Path, flags: MsFlags) {
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
}

async fn told_read_only(fixture: &Fixture, pod: &Pod, disk: &Path) {
    let status = fixture.refused(pod, Code::FailedPrecondition).await;
    for part in ["disk store", "read-only", disk.to_str().unwrap()] {
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
}

/// A lower limit on a plugin's descriptors; as before when dropped.
struct Descriptors {
    pid: Pid,
    hard: Option<u64>,
}

impl Descriptors {
    /// Leaves the plugin at most so many descriptors more than it has.
    fn limit(plugin: &Plugin, spare: u64) -> Self {
        let pid = Pid::from_raw(plugin.pid().try_into().unwrap()).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", plugin.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let hard = line.split_whitespace().nth(4).unwrap().parse().ok();
        let open: Vec<u64> = std::fs::read_dir(format!("/proc/{}/fd", plugin.pid()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        let unused = (0..4096).find(|number| !open.contains(number)).unwrap();
        let limits = Self { pid, hard };
        limits.set(Some(unused + spare));
        limits
    }

    fn set(&self, current: Option<u64>) {
        let limit = Rlimit { current, maximum: self.hard };
        prlimit(Some(self.pid), Resource::Nofile, limit).unwrap();
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.set(self.hard);
    }
}

/// What all threads of the plugin have computed for.
fn processor_time(plugin: &Plugin) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", plugin.pid())).unwrap();
    // Fields 14 and 15 of proc_pid_stat(5), in hundredths of a second; a name may hold blanks.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
