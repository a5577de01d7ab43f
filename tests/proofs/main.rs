//! Proofs that take long or are random: a reference model, pairs that never tear, and SIGKILL at any
//! moment. As in `tests/it`: a real `s3view-node`, real mounts, and the embedded S3 over HTTP.
//!
//! | variable | meaning |
//! |---|---|
//! | `S3VIEW_CASES` | how many random cases of the reference model, other ones each time |
//! | `S3VIEW_SEED` | 64 hexadecimal digits: the random cases of one earlier run again |
//! | `S3VIEW_SWAPS` | how many replacements the readers of pairs see |
//! | `S3VIEW_KILLS`, `S3VIEW_KILL_SEED` | how many SIGKILLs, and their seed |
//! | `S3VIEW_READ_KILLS` | how many SIGKILLs the readers of a `fuse` view live through |

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test without libtest's harness is a test all the same"
)]

#[path = "../it/fixture.rs"]
#[allow(dead_code, reason = "the cases of tests/it use the rest")]
mod fixture;
#[path = "../support/lib.rs"]
mod support;

mod kills;
mod pairs;
mod reference;
mod served;
mod tree;

use std::{fs::File, future::Future, process::ExitCode, sync::LazyLock};

use libtest_mimic::{Arguments, Trial};

use self::support::namespace;

fn main() -> ExitCode {
    let ids = match namespace::enter() {
        Ok(ids) => ids,
        Err(code) => return code,
    };
    let mut arguments = Arguments::from_args();
    // Their timers leave room for more than there are processors.
    arguments.test_threads.get_or_insert(4);
    let mut trials = pairs::trials(ids);
    trials.extend(kills::trials(ids));
    trials.extend(reference::trials(ids));
    trials.extend(served::trials(ids));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether this machine lets us serve file systems.
fn can_serve() -> bool {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let device = File::open("/dev/fuse");
        if let Err(error) = &device {
            eprintln!("\nSKIPPED: fuse views: /dev/fuse: {error}\n");
        }
        device.is_ok()
    });
    *CAN
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Runs a case on threads of its own.
fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads can be started");
    runtime.block_on(case)
}

/// One claim, and the function that shows it true.
fn trial(name: &str, case: impl FnOnce() -> Result<(), String> + Send + 'static) -> Trial {
    Trial::test(name, move || case().map_err(Into::into))
}
