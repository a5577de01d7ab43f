//! One job of fio, the usual measure of reading.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;

use crate::tools::{self, Missing};

/// How long a job runs.
const SECONDS: &str = "2";

/// How a job reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// fio's `rw`: `read` or `randread`.
    pub(crate) order: &'static str,
    /// fio's `bs`.
    pub(crate) block: &'static str,
}

/// Sequential reads.
pub(crate) const SEQUENTIAL: Job = Job { name: "sequential 1 MiB", order: "read", block: "1M" };

/// Small sequential reads.
pub(crate) const SMALL: Job = Job { name: "sequential 4 KiB", order: "read", block: "4k" };

/// Random reads.
pub(crate) const RANDOM: Job = Job { name: "random 4 KiB", order: "randread", block: "4k" };

/// The version of fio.
pub(crate) fn version() -> Result<String, Missing> {
    tools::version("fio", "--version")
}

impl Job {
    /// How long one read of the file takes, on average.
    ///
    /// What the page cache has stays there, and fio reads the file again when it is through.
    pub(crate) fn per_read(self, file: &Path) -> Result<Duration, Missing> {
        let mut command = tools::command("fio");
        command
            .args(["--name=job", "--readonly", "--ioengine=psync", "--invalidate=0"])
            .args(["--time_based", "--norandommap", "--output-format=json", "--runtime", SECONDS])
            .arg(format!("--rw={}", self.order))
            .arg(format!("--bs={}", self.block))
            .arg(format!("--filename={}", file.display()))
            .stdout(Stdio::piped());
        let output = command.output().map_err(|error| format!("fio is not here ({error})"))?;
        let report: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let per_second = report.and_then(|report| report["jobs"][0]["read"]["iops"].as_f64());
        let per_second = per_second.filter(|iops| output.status.success() && *iops > 0.0);
        let per_second = per_second.ok_or_else(|| format!("fio ended with {}", output.status))?;
        Ok(Duration::from_secs_f64(1.0 / per_second))
    }
}
