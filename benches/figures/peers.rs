//! What else mounts S3: Debian's s3fs and rclone mount, with their caches on the same disk.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    support::server::CREDENTIALS,
    tools::{self, Missing},
};

pub(crate) mod table;

/// How long a mount may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program that mounts S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// s3fs-fuse.
    S3fs,
    /// rclone mount.
    Rclone,
}

/// What it mounts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The bucket.
    pub(crate) bucket: &'a str,
    /// The prefix, without a slash at its end.
    pub(crate) prefix: &'a str,
}

/// A mount with an empty cache; both go with it.
#[derive(Debug)]
pub(crate) struct Mounted {
    process: Child,
    home: TempDir,
}

impl Peer {
    /// What the table calls it.
    pub(crate) fn version(self) -> Result<String, Missing> {
        match self {
            Self::S3fs => tools::version("s3fs", "--version"),
            Self::Rclone => tools::version("rclone", "version"),
        }
    }

    /// Mounts, and waits until it is mounted.
    pub(crate) fn mount(self, url: &str, source: Source<'_>) -> Result<Mounted, Missing> {
        self.version()?;
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".to_owned());
        }
        let home = tempfile::tempdir().expect("a directory");
        for name in ["mount", "cache"] {
            fs::create_dir(home.path().join(name)).expect("an empty directory");
        }
        let mut command = match self {
            Self::S3fs => s3fs(url, source, home.path()),
            Self::Rclone => rclone(url, source, home.path()),
        };
        let log = fs::File::create(home.path().join("log")).expect("a writable directory");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
        let mut mounted = Mounted { process, home };
        mounted.wait().map(|()| mounted)
    }
}

fn s3fs(url: &str, source: Source<'_>, home: &Path) -> Command {
    let (key, secret) = CREDENTIALS;
    let password = home.join("password");
    fs::write(&password, format!("{key}:{secret}")).expect("a writable directory");
    // It refuses one that others can read.
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("our own file");
    let Source { bucket, prefix } = source;
    let mut command = tools::command("s3fs");
    command.arg(format!("{bucket}:/{prefix}")).arg(home.join("mount")).arg("-f");
    for option in [
        &format!("url={url}"),
        &format!("passwd_file={}", password.display()),
        &format!("use_cache={}", home.join("cache").display()),
        // Objects that others uploaded have no mode: without this nobody may read them.
        "umask=0022",
        "use_path_request_style",
        "listobjectsv2",
        "ro",
        "kernel_cache",
        "max_stat_cache_size=100000",
        "parallel_count=8",
        "multireq_max=64",
    ] {
        command.args(["-o", option]);
    }
    command
}

fn rclone(url: &str, source: Source<'_>, home: &Path) -> Command {
    let Source { bucket, prefix } = source;
    let mut command = tools::command("rclone");
    command.arg("mount").arg(format!(":s3:{bucket}/{prefix}")).arg(home.join("mount"));
    command.args(["--s3-provider=Minio", "--s3-env-auth", "--s3-endpoint", url]);
    command.args(["--read-only", "--use-server-modtime", "--vfs-cache-mode=full", "--cache-dir"]);
    command.arg(home.join("cache"));
    command.args(["--dir-cache-time=1h", "--attr-timeout=1h", "--poll-interval=0"]);
    command
}

impl Mounted {
    /// Where it is mounted.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.home.path().join("mount")
    }

    fn wait(&mut self) -> Result<(), Missing> {
        let began = Instant::now();
        let device = |path: &Path| path.metadata().map(|it| it.dev());
        let below = device(self.home.path()).expect("our own directory");
        while device(&self.path()).map_or(true, |device| device == below) {
            let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            if let Some(status) = self.process.try_wait().expect("our own child") {
                return Err(format!("it ended with {status}: {}", log().trim()));
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it does not mount: {}", log().trim()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ignored = umount2(&self.path(), MntFlags::MNT_DETACH);
        let pid = i32::try_from(self.process.id()).map(Pid::from_raw);
        let _ignored = pid.map(|pid| kill(pid, Signal::SIGTERM));
        let _reaped = self.process.wait();
    }
}
