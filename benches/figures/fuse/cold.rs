//! One large file that is read from its begin to its end by a pod, for the first time.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::{blob, published, read_through};
use crate::{
    bare::Bare,
    large::{SIZE, put},
    measure::{Pairs, mean, median, timed},
    node::server,
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const TURNS: u32 = 3;
const READERS: usize = 8;

/// What the plugin may take beyond `fetch.bytesInFlight`, whose default is as large.
const BEYOND_MIB: f64 = 64.0;
const IN_FLIGHT_MIB: f64 = 64.0;

/// What reading a file of 1 GiB took.
#[derive(Debug, Default)]
struct Readings {
    pairs: Pairs,
    cold_cpu: Vec<f64>,
    warm_cpu: Vec<f64>,
    warm: Vec<Duration>,
    peaks_mib: Vec<f64>,
    gets: Vec<u64>,
}

pub(crate) async fn run() {
    report::section("fuse: cold sequential read of 1 GiB, of a bare parallel ranged GET = 1");
    let (limited, bare) = server(Options { bandwidth: Some(250 << 20), ..Options::default() });
    put(&limited, true);
    let readings = read(&limited, &bare, "parts").await;
    let name = "at 250 MiB/s, multipart (CRC64NVME)";
    report::figure(name, readings.pairs.speedup(), Target::AtLeast(0.9), &readings.pairs);
    readings.report();
    together(&limited, &readings).await;
    drop(limited);

    let (server, bare) = server(Options::default());
    for (prefix, name) in [("parts", "multipart (CRC64NVME)"), ("whole", "single part (MD5)")] {
        put(&server, prefix == "parts");
        let readings = read(&server, &bare, prefix).await;
        let name = format!("unlimited, {name}");
        report::figure(&name, readings.pairs.speedup(), Target::None, &readings.pairs);
        readings.report();
    }
}

impl Readings {
    fn report(&self) {
        report::figure(
            "  CPU seconds of the plugin, cold",
            mean(&self.cold_cpu),
            Target::None,
            "mean",
        );
        let how = format!("mean; {:.2?} to read it, p50", median(&self.warm));
        report::figure(
            "  CPU seconds of the plugin, warm",
            mean(&self.warm_cpu),
            Target::None,
            how,
        );
        let peak = self.peaks_mib.iter().copied().fold(0.0, f64::max);
        let how = format!("{peak:.0} MiB resident, most in any turn");
        let beyond = peak - IN_FLIGHT_MIB;
        let name = "  peak memory beyond bytesInFlight, MiB";
        report::figure(name, beyond, Target::AtMost(BEYOND_MIB), how);
    }
}

async fn read(server: &EmbeddedS3, bare: &Bare, prefix: &str) -> Readings {
    let mut readings = Readings::default();
    for _ in 0..TURNS {
        let (node, target) = published(server, prefix).await;
        nix::unistd::sync();
        node.reset_peak();
        server.reset_requests();
        let (file, before) = (target.join("large"), node.cpu_seconds());
        let ours = read_through(&file).await;
        blob(&node, SIZE).await;
        let cold = node.cpu_seconds();
        readings.gets.push(server.requests().gets());
        readings.cold_cpu.push(cold - before);
        readings.peaks_mib.push(node.memory_kib("VmHWM") / 1024.0);
        readings.warm.push(read_through(&file).await);
        readings.warm_cpu.push(node.cpu_seconds() - cold);
        drop(node);
        let theirs = timed(bare.read_ranges(&format!("{prefix}/large"), SIZE)).await;
        readings.pairs.add(ours, theirs);
    }
    readings
}

/// Many readers of one file, against one.
async fn together(server: &EmbeddedS3, one: &Readings) {
    let (mut times, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (node, target) = published(server, "parts").await;
        nix::unistd::sync();
        server.reset_requests();
        let (file, began) = (target.join("large"), Instant::now());
        join_all((0..READERS).map(|_| read_through(&file))).await;
        times.push(began.elapsed());
        gets.push(server.requests().gets());
        drop(node);
    }
    let (alone, most) = (one.gets.iter().max(), gets.iter().max());
    let how = format!("GETs: {gets:?} of {READERS} readers, {:?} of one", one.gets);
    let count = |gets: Option<&u64>| gets.map_or(f64::NAN, |gets| crate::measure::float(*gets));
    let name = format!("{READERS} readers of one file: GETs, of one reader = 1");
    report::figure(&name, count(most) / count(alone), Target::AtMost(1.05), how);
    let (all, alone) = (median(&times), one.pairs.ours());
    let how = format!("{all:.2?} against {alone:.2?}, p50 of {TURNS}");
    let ratio = all.as_secs_f64() / alone.as_secs_f64();
    let name = format!("{READERS} readers of one file: time, of one reader = 1");
    report::figure(&name, ratio, Target::AtMost(1.05), how);
}
