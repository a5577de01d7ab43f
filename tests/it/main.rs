//! The node plugin, end to end: a real `s3view-node` process behind its CSI socket, the requests of
//! a kubelet, real mounts, and S3 over HTTP.
//!
//! Every case runs against the embedded server; those that need neither its counters nor its faults
//! run against a real MinIO as well, and a few that need what only Ceph checks against its gateway. Mounting needs root: as another user, the whole program runs
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
mod clock;
mod driver;
mod endurance;
mod faults;
mod fixture;
mod identity;
mod keeper;
mod lifecycle;
mod mutual;
mod outage;
mod policy;
mod protocol;
mod radosgw;
mod refresh;
mod requests;
mod resources;
mod rotation;
mod secrecy;
mod served;
mod sharing;
mod tenants;
mod versions;
mod views;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

use self::{
    cases::Case,
    support::{
        minio::{Minio, Missing},
        namespace,
        plugin::Shown,
        radosgw::Radosgw,
        server::Server,
    },
};

fn main() -> ExitCode {
    keeper::play_plugin();
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
    trials.extend(fuse(ids));
    trials.extend(keeper::trials());
    let on_minio: Vec<Case> = cases.iter().filter(|case| case.on_minio).copied().collect();
    let in_ci = std::env::var_os("CI").is_some();
    let on_minio = [on_minio, cases::on_minio_alone()].concat();
    trials.extend(on_real("minio", &on_minio, &arguments, (ids, in_ci), minio));
    // Debian has it, others may not: never required.
    let on_radosgw = cases::on_radosgw();
    trials.extend(on_real("ceph", &on_radosgw, &arguments, (ids, false), radosgw));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Cold and warm, where this machine can mount such views.
fn fuse(ids: namespace::Ids) -> Vec<Trial> {
    if std::fs::File::open("/dev/fuse").is_err() {
        eprintln!("\nSKIPPED: all cases over fuse: /dev/fuse cannot be opened\n");
        return Vec::new();
    }
    let cold = [cases::over_fuse(), cases::served()].concat();
    let runs =
        [("cold-fuse", Shown::Fuse, cold), ("warm-fuse", Shown::FuseWarm, cases::over_warm_fuse())];
    let trials = runs.into_iter().flat_map(|(name, shown, cases)| {
        cases.into_iter().map(move |case| on_embedded(name, case, ids, shown))
    });
    trials.collect()
}

fn embedded(case: Case, ids: namespace::Ids) -> Trial {
    on_embedded("embedded", case, ids, Shown::ByDefault)
}

fn on_embedded(name: &str, case: Case, ids: namespace::Ids, shown: Shown) -> Trial {
    Trial::test(format!("{name}::{}", case.name), move || {
        let server = support::s3::EmbeddedS3::start(support::s3::Options::default());
        case.run(Server::Embedded(server), ids, shown);
        Ok(())
    })
}

/// A way to the same server again.
type Again = Box<dyn Fn() -> Server>;

/// The cases for a real server, or one ignored trial that says why there are none; where it is
/// `required`, there must be.
fn on_real(
    name: &str,
    cases: &[Case],
    arguments: &Arguments,
    (ids, required): (namespace::Ids, bool),
    start: impl FnOnce() -> Result<Again, Missing>,
) -> Vec<Trial> {
    let full = |case: &Case| format!("{name}::{}", case.name);
    let wanted = |case: &Case| {
        let name = full(case);
        arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
            && !arguments.skip.iter().any(|skip| name.contains(skip.as_str()))
    };
    if arguments.list || !cases.iter().any(wanted) {
        return Vec::new();
    }
    match start() {
        Ok(again) => {
            let trial = |case: &Case| {
                let (case, server) = (*case, again());
                Trial::test(full(&case), move || {
                    case.run(server, ids, Shown::ByDefault);
                    Ok(())
                })
            };
            cases.iter().map(trial).collect()
        }
        Err(missing) => {
            eprintln!("\nSKIPPED: {} cases on {name}: {missing}\n", cases.len());
            let trial = Trial::test(name, move || Err(missing.into()));
            vec![trial.with_ignored_flag(!required)]
        }
    }
}

fn minio() -> Result<Again, Missing> {
    let minio = Arc::new(Minio::start()?);
    Ok(Box::new(move || Server::Minio(Arc::clone(&minio))))
}

fn radosgw() -> Result<Again, Missing> {
    let radosgw = Arc::new(Radosgw::start()?);
    Ok(Box::new(move || Server::Radosgw(Arc::clone(&radosgw))))
}
