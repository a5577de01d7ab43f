//! The node plugin, end to end: a real `s3view-node` process behind its CSI socket, the requests of
//! a kubelet, real mounts, and S3 over HTTP.
//!
//! Every case runs against the embedded server; those that need neither its counters nor its faults
//! run against a real MinIO as well. Mounting needs root: as another user, the whole program runs
//! itself again in a user and mount namespace.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test without libtest's harness is a test all the same"
)]

#[path = "../support/lib.rs"]
mod support;

mod cases;
mod faults;
mod fixture;
mod lifecycle;
mod protocol;
mod refresh;
mod requests;
mod resources;
mod rotation;
mod versions;
mod views;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

use self::{
    cases::Case,
    support::{minio::Minio, namespace, server::Server},
};

fn main() -> ExitCode {
    let ids = match namespace::enter() {
        Ok(ids) => ids,
        Err(code) => return code,
    };
    if ids == namespace::Ids::RootOnly {
        eprintln!("note: only uid 0 can be mapped here; it stands in for Spark's 185");
    }
    let mut arguments = Arguments::from_args();
    // Each case runs a plugin and a server: more at once only wait for each other.
    arguments.test_threads.get_or_insert(4);
    let cases = cases::all();
    let mut trials: Vec<Trial> = cases.iter().map(|case| embedded(*case, ids)).collect();
    trials.extend(on_minio(&cases, ids, &arguments));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn embedded(case: Case, ids: namespace::Ids) -> Trial {
    Trial::test(format!("embedded::{}", case.name), move || {
        case.run(
            Server::Embedded(support::s3::EmbeddedS3::start(support::s3::Options::default())),
            ids,
        );
        Ok(())
    })
}

/// The cases for MinIO, or one ignored trial that says why there are none. In CI there must be.
fn on_minio(cases: &[Case], ids: namespace::Ids, arguments: &Arguments) -> Vec<Trial> {
    let cases: Vec<Case> = cases.iter().filter(|case| case.on_minio).copied().collect();
    let name = |case: &Case| format!("minio::{}", case.name);
    let wanted = |case: &Case| {
        let name = name(case);
        arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
            && !arguments.skip.iter().any(|skip| name.contains(skip.as_str()))
    };
    if arguments.list || !cases.iter().any(wanted) {
        return Vec::new();
    }
    match Minio::start() {
        Ok(minio) => {
            let minio = Arc::new(minio);
            let trial = |case: Case| {
                let minio = Arc::clone(&minio);
                Trial::test(name(&case), move || {
                    case.run(Server::Minio(minio), ids);
                    Ok(())
                })
            };
            cases.into_iter().map(trial).collect()
        }
        Err(missing) => {
            eprintln!("\nSKIPPED: {} cases on MinIO: {missing}\n", cases.len());
            let in_ci = std::env::var_os("CI").is_some();
            let trial = Trial::test("minio", move || Err(missing.into()));
            vec![trial.with_ignored_flag(!in_ci)]
        }
    }
}
