//! The programs that people copy prefixes with today.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::server::CREDENTIALS;

const S5CMD: &str = "github.com/peak/s5cmd/v2@v2.3.0";

/// Why a program cannot be compared with: it is not here, or it fails.
pub(crate) type Missing = String;

/// A program that copies a prefix to a directory.
#[derive(Debug)]
pub(crate) struct Tool {
    program: PathBuf,
    arguments: fn(url: &str, prefix: &str, at_once: usize) -> Vec<String>,
}

impl Tool {
    /// How long it takes to copy `prefix` (with its bucket) to a directory, start included.
    pub(crate) fn copy(
        &self,
        url: &str,
        prefix: &str,
        to: &Path,
        at_once: usize,
    ) -> Result<Duration, Missing> {
        let mut command = command(&self.program);
        command.args((self.arguments)(url, prefix, at_once)).arg(to);
        run(command)
    }
}

/// s5cmd from the path, or installed by Go's ordinary client.
pub(crate) fn s5cmd() -> Result<Tool, Missing> {
    let program = version("s5cmd", "version").map(|_| "s5cmd".into()).or_else(|_| install())?;
    let arguments = |url: &str, prefix: &str, at_once: usize| {
        let (workers, from) = (at_once.to_string(), format!("s3://{prefix}/*"));
        let words =
            ["--endpoint-url", url, "--log", "error", "--numworkers", &workers, "cp", &from];
        words.map(str::to_owned).to_vec()
    };
    Ok(Tool { program, arguments })
}

fn install() -> Result<PathBuf, Missing> {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tools");
    let program = tools.join("s5cmd");
    if program.exists() {
        return Ok(program);
    }
    let install = Command::new("go")
        .args(["install", S5CMD])
        .env("GOBIN", &tools)
        .stderr(Stdio::null())
        .status();
    match install {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(format!("go install {S5CMD} ended with {status}")),
        Err(error) => Err(format!("Go is not here ({error})")),
    }
}

/// rclone from the path.
pub(crate) fn rclone() -> Result<Tool, Missing> {
    version("rclone", "version")?;
    let arguments = |url: &str, prefix: &str, at_once: usize| {
        let (from, at_once) = (format!(":s3:{prefix}"), at_once.to_string());
        let source = ["copy", "--s3-provider=Minio", "--s3-env-auth", "--s3-endpoint", url, &from];
        // Without the modification time in the metadata, which takes a HEAD for each object.
        let speed = ["--use-server-modtime", "--transfers", &at_once, "--checkers", &at_once];
        speed.iter().chain(&source).map(|word| (*word).to_owned()).collect()
    };
    Ok(Tool { program: "rclone".into(), arguments })
}

/// The first line that a program on the path says about its version.
pub(crate) fn version(program: &str, argument: &str) -> Result<String, Missing> {
    let output = Command::new(program).arg(argument).output();
    let output = output.map_err(|error| format!("{program} is not on the path ({error})"))?;
    if !output.status.success() {
        return Err(format!("{program} {argument} ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A program that is to use our server with our credentials, whatever the user has configured.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    let (key, secret) = CREDENTIALS;
    command
        .envs([("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)])
        .envs([("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")])
        .envs(["AWS_CONFIG_FILE", "RCLONE_CONFIG"].map(|name| (name, "/dev/null")))
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_PROFILE")
        // rclone refuses to start with it, and our server speaks plain HTTP.
        .env_remove("AWS_CA_BUNDLE")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// How long the program runs. What it says stands on standard error.
pub(crate) fn run(mut command: Command) -> Result<Duration, Missing> {
    let began = Instant::now();
    let status = command.status().expect("the program was here a moment ago");
    let time = began.elapsed();
    if status.success() { Ok(time) } else { Err(format!("it ended with {status}")) }
}
