//! Mounting as an ordinary user: the process runs itself again in a user and mount namespace.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// Set in the second run, so that a namespace that gives no rights ends in an error, not a loop.
const AGAIN: &str = "S3VIEW_IN_NAMESPACE";

/// Who may own files here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Any user and group.
    All,
    /// Only uid and gid 0 of the namespace: no range of subordinate ids could be mapped.
    RootOnly,
}

/// Returns at once as root. Otherwise replaces this process by the same program in a user and mount
/// namespace where it is root; returns only if that is not possible.
pub(crate) fn enter() -> Result<Ids, ExitCode> {
    if nix::unistd::geteuid().is_root() {
        return Ok(if maps_many_ids() { Ids::All } else { Ids::RootOnly });
    }
    if is_second_run() {
        eprintln!("the user namespace gave no rights; run this as root");
        return Err(ExitCode::FAILURE);
    }
    // With a range of subordinate ids if the user has one, else with one id.
    for ids in [&["--map-auto"][..], &[]] {
        let probe = unshare(ids).arg("true").output();
        if probe.is_ok_and(|output| output.status.success()) {
            let program = std::env::current_exe().expect("a running program has a file");
            let error =
                unshare(ids).arg(program).args(std::env::args_os().skip(1)).env(AGAIN, "1").exec();
            eprintln!("failed to start in a user namespace: {error}");
            return Err(ExitCode::FAILURE);
        }
    }
    eprintln!("this needs root, or user namespaces (unshare --user --mount failed)");
    Err(ExitCode::FAILURE)
}

/// Whether this process is in the namespace already.
pub(crate) fn is_second_run() -> bool {
    std::env::var_os(AGAIN).is_some()
}

fn unshare(ids: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).args(ids);
    command
}

/// Whether uid 185 (Spark's) exists in this user namespace.
fn maps_many_ids() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (first, length) = (numbers.next(), numbers.nth(1));
        matches!((first, length), (Some(Ok(first)), Some(Ok(length)))
            if (first..first.saturating_add(length)).contains(&185))
    })
}
