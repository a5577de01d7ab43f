//! What is done to `fuse` views again and again, at once, or against all sense.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use s3view::task::{blocking, spawn_owned};

use crate::{
    fixture::{Fixture, files, tree},
    refresh::{eventually, shows},
    served::{EIO, PART, content, errno, read, read_meanwhile},
    support::{
        kubelet::Pod,
        s3::{Action, Fault},
    },
};

/// Volumes that come and go before the figures of the plugin are looked at, and after.
const WARM: usize = 40;
const MANY: usize = 200;

pub(crate) async fn a_read_outlives_an_orderly_stop(mut fixture: Fixture) {
    let expected = content(3 * PART);
    fixture.put("w/file", expected.clone()).await;
    // In another directory: a neighbour would be fetched already.
    fixture.put("w/d/small", "small").await;
    let pod = fixture.pod("w");
    let target = fixture.publish(&pod).await;
    // Past the page cache: what the kernel asks for ahead it would ask for again.
    let mut direct = File::options();
    direct.read(true).custom_flags(nix::libc::O_DIRECT);
    let file = direct.open(target.join("file")).unwrap();
    let small = direct.open(target.join("d/small")).unwrap();
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    let reading = read_meanwhile(&file, PART as u64, 1000);
    let small = read_meanwhile(&small, 0, 5);
    eventually("the requests", || (fixture.embedded().requests().gets() > 1).then_some(())).await;
    let plugin = fixture.plugin.take().unwrap();
    blocking(move || plugin.stop()).await;
    fixture.embedded().faults().clear();
    fixture.restart().await;
    fixture.publish(&pod).await;
    assert_eq!(reading.await.unwrap().unwrap(), expected[PART..PART + 1000]);
    assert_eq!(small.await.unwrap().unwrap(), b"small");
}

pub(crate) async fn a_stalled_answer_ends_the_wait(mut fixture: Fixture) {
    fixture.reconfigure("fuse: { waitForS3: 1s }\n").await;
    fixture.put("s/large", content(3 * PART)).await;
    fixture.put("s/small", content(5000)).await;
    let target = fixture.publish(&fixture.pod("s")).await;
    fixture.embedded().faults().add(Fault::get(Action::Stall(1)));
    for name in ["small", "large"] {
        let began = Instant::now();
        let error = read(target.join(name)).await.unwrap_err();
        assert_eq!(errno(&error), Some(EIO), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
    }
}

pub(crate) async fn credentials_that_s3_refuses_leave_reads_alone(fixture: Fixture) {
    for (prefix, interval) in [("n", "never"), ("m", "60s")] {
        for name in ["one", "two", "three"] {
            fixture.put(&format!("{prefix}/{name}"), name).await;
        }
        let pod = fixture.following(prefix, interval);
        let target = fixture.publish(&pod).await;
        let wrong = pod.clone().with_secrets(&[("accesskey", "minio"), ("secretkey", "wrong")]);
        fixture.publish(&wrong).await;
        fixture.says(&pod, "are not used").await;
        assert_eq!(read(target.join("one")).await.unwrap(), b"one");
        // Others that S3 takes are used, and what the volume shows stays what it is.
        fixture.embedded().rights().add_credential("other", "other-secret");
        let other = [("accesskey", "other"), ("secretkey", "other-secret")];
        fixture.put(&format!("{prefix}/four"), "four").await;
        fixture.publish(&pod.clone().with_secrets(&other)).await;
        fixture.says_no_more(&pod, "are not used").await;
        fixture.embedded().rights().remove_credential("minio");
        assert_eq!(read_soon(target.join("two")).await, b"two");
        fixture.embedded().rights().add_credential("minio", "minio123");
        if interval == "never" {
            let all = [("one", "one"), ("two", "two"), ("three", "three")];
            assert_eq!(tree(&target), files(&all));
        }
    }
}

/// Reads what can be read once other credentials are in use.
async fn read_soon(path: PathBuf) -> Vec<u8> {
    let began = Instant::now();
    loop {
        match read(path.clone()).await {
            Ok(bytes) => return bytes,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn calls_that_race_leave_one_volume_or_none(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.following("certs", "1s");
    let target = fixture.kubelet.target(&pod);
    let stop = Arc::<AtomicBool>::default();
    let reader = {
        let (target, stop) = (target.clone(), Arc::clone(&stop));
        std::thread::spawn(move || read_whatever(&target, &stop))
    };
    for round in 0..30 {
        let call = |number: usize| {
            let (kubelet, pod) = (fixture.kubelet.clone(), pod.clone());
            spawn_owned(async move {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                match number % 3 {
                    // Cut off by the unpublish, or refused while it is under way.
                    0 | 1 => drop(kubelet.publish(&pod).await),
                    _ => kubelet.unpublish(&pod).await.expect("unpublish works"),
                }
            })
        };
        for done in join_all((0..6).map(call)).await {
            done.unwrap();
        }
        if round % 5 == 4 {
            fixture.publish(&pod).await;
            assert_eq!(tree(&target)["keystore.jks"], "keystore");
            assert_eq!(fixture.home.mounts(), std::slice::from_ref(&target));
        }
    }
    stop.store(true, Ordering::Relaxed);
    blocking(move || reader.join()).await.expect("wrong bytes");
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

/// Reads a file that comes and goes: its content, or an error.
fn read_whatever(target: &std::path::Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(bytes) = std::fs::read(target.join("keystore.jks")) {
            assert_eq!(bytes, b"keystore");
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Descriptors, threads and resident KiB of a process.
fn figures(pid: u32) -> (usize, usize, u64) {
    let count = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let resident = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("fd"), count("task"), resident)
}

pub(crate) async fn volumes_that_come_and_go_leave_nothing(fixture: Fixture) {
    for number in 0..50 {
        fixture.put(&format!("c/{number}"), "content").await;
    }
    let (plugin, keeper) = (fixture.plugin.as_ref().unwrap().pid(), fixture.home.keeper_pid());
    let mut before = None;
    for number in 0..WARM + MANY {
        let pod = fixture.following("c", "never");
        let target = fixture.publish(&pod).await;
        assert_eq!(read(target.join((number % 50).to_string())).await.unwrap(), b"content");
        fixture.unpublish(&pod).await;
        if number == WARM {
            before = Some((figures(plugin), figures(keeper)));
        }
    }
    fixture.assert_nothing_left();
    let before = before.unwrap();
    eventually("nothing is left of them", || {
        let (now, kept) = (figures(plugin), figures(keeper));
        let is_little = now.0 <= before.0.0 + 8
            && now.1 <= before.0.1 + 8
            && now.2 <= before.0.2 + (32 << 10)
            && kept.0 <= before.1.0
            && kept.2 <= before.1.2 + 1024;
        if !is_little {
            eprintln!("{before:?} {now:?} {kept:?}");
        }
        is_little.then_some(())
    })
    .await;
}

pub(crate) async fn names_at_the_limits_outlive_a_restart(mut fixture: Fixture) {
    let long = "n".repeat(255);
    let deep = format!("{}/{}/{}/{long}", "d".repeat(250), "e".repeat(250), "f".repeat(240));
    let odd = "a b\u{e9}\n\u{7f}\"'\\%2F+&";
    let names = [long.as_str(), &deep, odd];
    for name in names {
        fixture.put(&format!("k/{name}"), name).await;
    }
    let pod = fixture.pod("k").with("xattrs", "true");
    let target = fixture.publish(&pod).await;
    let open: Vec<_> = names.iter().map(|name| File::open(target.join(name)).unwrap()).collect();
    fixture.restart().await;
    fixture.publish(&pod).await;
    for (file, name) in open.iter().zip(names) {
        let read = read_meanwhile(file, 0, name.len()).await.unwrap().unwrap();
        assert_eq!(read, name.as_bytes());
    }
    let expected: Vec<_> = names.iter().map(|name| (*name, *name)).collect();
    let found = tree(&target);
    for (name, text) in expected {
        assert_eq!(found[name], text);
    }
}

pub(crate) async fn a_smaller_store_serves_what_is_open(mut fixture: Fixture) {
    let large = content(PART + PART / 2);
    fixture.put("l/large", large.clone()).await;
    for number in 0..20 {
        fixture.put(&format!("l/{number}"), vec![number; 300_000]).await;
    }
    let pod = fixture.pod("l");
    let target = fixture.publish(&pod).await;
    let all = |target: PathBuf| async move {
        for number in 0..20_u8 {
            assert_eq!(read(target.join(number.to_string())).await.unwrap(), vec![number; 300_000]);
        }
        read(target.join("large")).await.unwrap()
    };
    assert_eq!(all(target.clone()).await, large);
    let open = File::open(target.join("large")).unwrap();
    let config = Fixture::config(&fixture.server, "").replace("256Mi", "4Mi");
    fixture.home.configure(&config);
    fixture.restart().await;
    fixture.publish(&pod).await;
    let mut bytes = vec![0; 1000];
    let file = open.try_clone().unwrap();
    let bytes = blocking(move || file.read_exact_at(&mut bytes, PART as u64).map(|()| bytes)).await;
    assert_eq!(bytes.unwrap(), large[PART..PART + 1000]);
    assert_eq!(all(target).await, large);
}

pub(crate) async fn namespaces_that_share_nothing_read_the_same(mut fixture: Fixture) {
    let more = "store: { share: namespace }\ntrust: { podInfo: true }\n";
    let config = Fixture::config(&fixture.server, "");
    let config = config.replace("store:\n", "store:\n  share: namespace\n");
    let trust = more.lines().last().unwrap();
    fixture.home.configure(&format!("{config}{trust}\n"));
    fixture.restart().await;
    let large = content(2 * PART + 5);
    fixture.put("t/large", large.clone()).await;
    fixture.put("t/small", "small").await;
    let pods: Vec<Pod> = ["one", "two"]
        .map(|namespace| Pod { namespace: namespace.to_owned(), ..fixture.pod("t") })
        .into();
    let linked = Pod { namespace: "one".to_owned(), ..fixture.pod("t").with("view", "disk") };
    let linked = fixture.publish(&linked).await;
    let expected = files(&[("small", "small"), ("large", &String::from_utf8_lossy(&large))]);
    shows(&linked, &expected).await;
    for pod in &pods {
        let target = fixture.publish(pod).await;
        let (a, b) = (read(target.join("large")), read(target.join("large")));
        let (a, b) = futures::join!(a, b);
        assert!(a.unwrap() == large && b.unwrap() == large);
        assert_eq!(read(target.join("small")).await.unwrap(), b"small");
    }
}
