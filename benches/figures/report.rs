//! The table: one line for each figure, printed as soon as it is known.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::fmt::{self, Display};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Nothing was promised.
    None,
}

impl Target {
    fn verdict(self, value: f64) -> &'static str {
        match self {
            Self::None => "",
            Self::AtMost(limit) if value <= limit => "ok",
            Self::AtLeast(limit) if value >= limit => "ok",
            Self::AtMost(_) | Self::AtLeast(_) => "MISSED",
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
            Self::None => Ok(()),
        }
    }
}

/// Prints where this is measured, and the head of the table.
pub(crate) fn begin() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let temporary = std::env::temp_dir();
    let is_memory = statfs(&temporary).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let disk = if is_memory { "a tmpfs, no disk: set TMPDIR" } else { "the machine's disk" };
    println!("{cores} cores; state and disk views are on {} ({disk})", temporary.display());
    line("figure", "measured", "target", "", "how");
}

/// Prints a heading.
pub(crate) fn section(title: &str) {
    println!("\n{title}");
}

/// Prints one figure. `how` says what it was computed from.
pub(crate) fn figure(name: &str, value: f64, target: Target, how: impl Display) {
    let shown = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    line(&format!("  {name}"), &shown, &target.to_string(), target.verdict(value), how);
}

/// Prints why a figure is missing.
pub(crate) fn skipped(name: &str, why: impl Display) {
    line(&format!("  {name}"), "skipped", "", "", why);
}

/// Prints one line of a table whose columns are those who are compared.
pub(crate) fn row(name: &str, cells: &[String]) {
    let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:>24}")).collect();
    println!("  {name:<32} {}", cells.join(" "));
}

fn line(figure: &str, measured: &str, target: &str, verdict: &str, how: impl Display) {
    println!("{figure:<46} {measured:>9}  {target:<8} {verdict:<7} {how}");
}
