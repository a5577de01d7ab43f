//! What it costs that requests and answers go by way of another thread. Run it by hand, and optimised:
//! `cargo test --release --lib -- --ignored --nocapture tests::relayed`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{
    super::{LedgerPlace, ledger::Ledger, taken::Taken},
    mounted::{Mounted, OPTIONS, REPLAYED, file, mounted},
};

/// In MiB.
const LARGE: u32 = 256;
const LOOKUPS: u32 = 20_000;
const SMALL: u32 = 2000;
const PAGES: u64 = 4000;
const TIMES: u32 = 1_000_000;

fn timed(step: impl FnOnce()) -> Duration {
    let started = Instant::now();
    step();
    started.elapsed()
}

fn measure(mounted: &Mounted) -> String {
    let lookup = timed(|| {
        for n in 0..LOOKUPS {
            assert!(!mounted.at(&format!("none-{n}")).exists());
        }
    });
    let small = timed(|| {
        for n in 0..SMALL {
            assert_eq!(mounted.read(&format!("small/{n}")), format!("{n}"));
        }
    });
    let random = File::open(mounted.at("random")).unwrap();
    posix_fadvise(&random, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    let page = timed(|| {
        for n in 0..PAGES {
            random.read_exact_at(&mut [0; 4096], (n * 7919 % PAGES) << 14).unwrap();
        }
    });
    let read = timed(|| drop(fs::read(mounted.at("large")).unwrap()));
    let speed = f64::from(LARGE) / read.as_secs_f64();
    let (lookup, small) = (lookup / LOOKUPS, small / SMALL);
    let page = page / u32::try_from(PAGES).unwrap();
    format!("lookup {lookup:?}, small file {small:?}, page {page:?}, {speed:.0} MiB/s")
}

#[test]
#[ignore = "figures, not a claim"]
fn what_the_relay_costs() {
    let mut files: Vec<_> =
        (0..SMALL).map(|n| file(&format!("small/{n}"), n.to_string())).collect();
    files.push(file("large", vec![7; usize::try_from(LARGE << 20).unwrap()]));
    files.push(file("random", vec![7; 64 << 20]));
    for (way, options) in [("resend", OPTIONS), ("replay", REPLAYED)].repeat(3) {
        mounted(&files, options, |mounted| eprintln!("{way}: {}", measure(mounted)));
    }
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::create(&LedgerPlace::within(directory.path())).unwrap();
    let mut taken = Taken::create(&ledger).unwrap();
    let kept = timed(|| {
        for n in 0..TIMES {
            let request = u64::from(2 * n + 2);
            let landing = taken.landing();
            landing[..4].copy_from_slice(&80_u32.to_ne_bytes());
            landing[8..16].copy_from_slice(&request.to_ne_bytes());
            let asked = taken.landed().unwrap();
            taken.keep(asked);
            taken.answered(request);
        }
    });
    eprintln!("kept and forgotten: {:?} each", kept / TIMES);
}
