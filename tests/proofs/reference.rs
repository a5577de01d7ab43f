//! A reference model: random histories, and after every step each volume shows what the model says.
//!
//! The model knows what a bucket holds and what happened; it does not know how s3view works. A
//! volume shows exactly what its sources hold now, or, if it cannot know that (S3 does not answer or
//! refuses, the sources do not fit together, no credentials), exactly what it showed last. In
//! between it shows the old tree or a newer one, each whole, and never an older one again.

mod generators;
mod harness;
mod model;
mod regressions;
mod volume;

use libtest_mimic::Trial;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::{number, run, support::namespace::Ids, trial};

/// Over how many runners the cases are spread; most of a case is waiting for timers.
const RUNNERS: u64 = 4;

pub(crate) fn trials(ids: Ids) -> Vec<Trial> {
    let mut trials: Vec<_> = regressions::all()
        .into_iter()
        .map(|(name, history)| {
            trial(&format!("reference::regressions::{name}"), move || {
                run(harness::run(ids, &history))
            })
        })
        .collect();
    // A seed is that of one runner.
    let runners = if std::env::var_os("S3VIEW_SEED").is_some() { 1 } else { RUNNERS };
    let cases = number("S3VIEW_CASES", 120).div_ceil(runners);
    trials.extend((0..runners).map(|runner| {
        let name = format!("reference::volumes_show_what_the_model_says::{runner}");
        trial(&name, move || volumes_show_what_the_model_says(ids, runner, cases))
    }));
    trials
}

fn volumes_show_what_the_model_says(ids: Ids, runner: u64, cases: u64) -> Result<(), String> {
    let seed = seed(runner);
    let config = Config {
        cases: u32::try_from(cases).expect("a sensible number of cases"),
        failure_persistence: None,
        max_shrink_iters: 150,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, random);
    let outcome = runner.run(&generators::history(), |history| {
        run(harness::run(ids, &history)).map_err(TestCaseError::fail)
    });
    let counts = harness::counts();
    eprintln!("so far: {counts:?}");
    // Histories in which nothing happens would prove nothing.
    let changes = counts.get("changes that came to be shown").copied().unwrap_or_default();
    if outcome.is_ok() && changes < cases / 2 {
        return Err(format!("only {changes} changes in {cases} cases"));
    }
    outcome.map_err(|error| {
        let seed = hex::encode(seed);
        let failure = match error {
            TestError::Abort(reason) => format!("S3VIEW_SEED={seed}: {reason}"),
            TestError::Fail(reason, history) => {
                format!("S3VIEW_SEED={seed}\n{reason}\nvec!{history:#?}")
            }
        };
        // The other runners may take a while.
        eprintln!("{failure}");
        failure
    })
}

/// The same every time, so that a failure is of what was changed last; other ones if somebody asks
/// for a number of cases. The runner's number is part of it, so that one seed tells all.
fn seed(runner: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    if let Ok(text) = std::env::var("S3VIEW_SEED") {
        hex::decode_to_slice(text, &mut seed).expect("64 hexadecimal digits");
        return seed;
    }
    if std::env::var_os("S3VIEW_CASES").is_some() {
        seed.fill_with(|| fastrand::u8(..));
    }
    seed[0] = u8::try_from(runner).expect("few runners");
    seed
}
