//! The `s3view-node` that the demo runs: `cargo run --example` builds libraries, not programs.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::support::namespace;

/// The program that `S3VIEW_NODE` names, else the one beside this example. Where cargo started the
/// demo, it brings that one up to date first; where it did not, what is there must do.
pub(crate) fn ready() -> Result<PathBuf> {
    let program = match env::var_os("S3VIEW_NODE") {
        Some(named) => PathBuf::from(named),
        None => beside_the_example()?,
    };
    ensure!(
        program.is_file(),
        "there is no program {}: start the demo with `cargo run --example demo`, \
         or name an s3view-node in S3VIEW_NODE",
        program.display()
    );
    Ok(program)
}

fn beside_the_example() -> Result<PathBuf> {
    if let Some(cargo) = env::var_os("CARGO")
        && !namespace::is_second_run()
    {
        build(&cargo)?;
    }
    // target/<profile>/examples/demo
    let example = env::current_exe().context("failed to find the demo's own file")?;
    let profile = example.ancestors().nth(2).context("the demo is not in a target directory")?;
    Ok(profile.join("s3view-node"))
}

/// Builds the program, and only that: nothing that cargo built for the demo may look stale to it.
///
/// Without the example in the command, the dependencies would lose the features that only tests and
/// examples need; and build scripts ask for the variables by which `cargo run` describes a package.
fn build(cargo: &OsStr) -> Result<()> {
    let mut command = Command::new(cargo);
    command.args(["build", "--bin", "s3view-node", "--example", "demo", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let describes_a_package = |name: &OsString| {
        let name = name.to_string_lossy();
        name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for name in env::vars_os().map(|(name, _)| name).filter(describes_a_package) {
        command.env_remove(name);
    }
    let status = command.stdin(Stdio::null()).status().context("failed to start cargo")?;
    ensure!(status.success(), "cargo could not build s3view-node ({status})");
    Ok(())
}
