//! A real `s3view-node` process with directories of its own.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{kubelet::Kubelet, secrecy::Watch, server::CREDENTIALS};

/// How long a plugin may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// Directories and a configuration; the plugin may be started in them again and again.
#[derive(Debug)]
pub(crate) struct Home {
    directory: TempDir,
    program: PathBuf,
    env: Vec<(String, String)>,
    log_level: String,
    watch: Arc<Watch>,
    shown: Shown,
    keeper: Option<Child>,
}

/// How volumes are shown whose pods do not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// As the driver's defaults have it.
    ByDefault,
    /// As a `fuse` view.
    Fuse,
    /// As a `fuse` view, after another pod has read all of the same.
    FuseWarm,
}

impl Home {
    /// Makes the directories. `program` is the `s3view-node` to run.
    pub(crate) fn new(program: impl Into<PathBuf>, config: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("s3view-").tempdir().expect("a directory");
        let watch = Arc::<Watch>::default();
        watch.secret("the server's secret key", CREDENTIALS.1);
        let (program, env, log_level) = (program.into(), Vec::new(), "trace".to_owned());
        let (shown, keeper) = (Shown::ByDefault, None);
        let home = Self { directory, program, env, log_level, watch, shown, keeper };
        for name in ["kubelet", "state", "disk", "plugin"] {
            std::fs::create_dir(home.path().join(name)).expect("an empty directory");
        }
        home.configure(config);
        home
    }

    /// Replaces the configuration; `kubeletDir`, the keeper's socket and the disk store's path are
    /// added.
    pub(crate) fn configure(&self, config: &str) {
        let (kubelet, keeper) = (self.kubelet_dir(), self.keeper_socket());
        let keeper = format!("keeper: {{ socket: {} }}", keeper.display());
        let keeper = if config.contains("keeper:") { "" } else { &keeper };
        let text = format!("kubeletDir: {}\n{keeper}\n{config}", kubelet.display())
            .replace("DISK", self.path().join("disk").to_str().expect("a plain path"));
        std::fs::write(self.path().join("config.yaml"), text).expect("a writable directory");
    }

    /// Sets the log level of later starts.
    pub(crate) fn set_log_level(&mut self, level: &str) {
        level.clone_into(&mut self.log_level);
    }

    /// Sets the environment of later starts.
    pub(crate) fn set_env(&mut self, env: &[(&str, &str)]) {
        for (name, value) in env.iter().filter(|(name, _)| name.starts_with("AWS_")) {
            if ["SECRET", "TOKEN"].iter().any(|word| name.contains(word)) {
                self.watch.secret(name, value);
            }
        }
        self.env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    }

    /// Shows volumes in this way from now on; `fuse` views get a keeper.
    pub(crate) fn show_as(&mut self, shown: Shown) {
        self.shown = shown;
        if shown != Shown::ByDefault {
            self.start_keeper();
        }
    }

    /// How volumes are shown whose pods do not say it.
    pub(crate) fn shown(&self) -> Shown {
        self.shown
    }

    fn keeper_socket(&self) -> PathBuf {
        self.path().join("keeper/keeper.sock")
    }

    /// Starts a keeper, in the place of one that runs.
    pub(crate) fn start_keeper(&mut self) {
        self.kill_keeper();
        let log = File::options().create(true).append(true).open(self.path().join("keeper.log"));
        let mut command = Command::new(&self.program);
        command.args(["keeper", "--log-level=debug", "--socket"]).arg(self.keeper_socket());
        command.stdin(Stdio::null()).stderr(log.expect("a writable directory"));
        self.keeper = Some(command.spawn().expect("s3view-node keeper can be started"));
        let began = Instant::now();
        while !self.keeper_socket().exists() {
            assert!(began.elapsed() < READY, "the keeper does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The process id of the keeper, which runs.
    pub(crate) fn keeper_pid(&self) -> u32 {
        self.keeper.as_ref().expect("a keeper runs").id()
    }

    /// How many mounts the keeper holds, if one runs.
    pub(crate) fn kept_by_keeper(&self) -> usize {
        let Some(keeper) = &self.keeper else { return 0 };
        let entries = std::fs::read_dir(format!("/proc/{}/fd", keeper.id())).expect("it runs");
        let links = entries.filter_map(|it| std::fs::read_link(it.ok()?.path()).ok());
        links.filter(|link| link == Path::new("/dev/fuse")).count()
    }

    /// Sets the program of later starts.
    pub(crate) fn set_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Ends the keeper as a crash would.
    pub(crate) fn kill_keeper(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.kill().expect("our own child");
            keeper.wait().expect("our own child");
        }
    }

    /// Who looks for secrets here when the case is over.
    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Where a secret can be read that the plugin was handed.
    pub(crate) fn leaks(&self) -> Vec<String> {
        let log = std::fs::read(self.path().join("log")).unwrap_or_default();
        self.watch.leaks(&log, &[self.state_dir(), self.path().join("disk")])
    }

    /// The directory of all directories.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that the kubelet would own.
    pub(crate) fn kubelet_dir(&self) -> PathBuf {
        self.path().join("kubelet")
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The CSI socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("plugin/csi.sock")
    }

    /// What all runs of the plugin logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// The command that runs the plugin here.
    pub(crate) fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.path().join("log"));
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--endpoint=unix://{}", self.socket().display()))
            .args(["--node-id", "node-1", "--log-level", &self.log_level])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--config")
            .arg(self.path().join("config.yaml"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(log.expect("a writable directory"));
        command
    }

    /// Starts the plugin and waits until it is ready.
    pub(crate) async fn start(&self) -> Plugin {
        self.try_start().await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Likewise, or tells why it is not ready.
    pub(crate) async fn try_start(&self) -> Result<Plugin, String> {
        let child = self.command().spawn();
        let child = child.map_err(|error| format!("s3view-node cannot be started: {error}"))?;
        let watch = Arc::clone(&self.watch);
        let mut plugin = Plugin { child, metrics: None, watch };
        let began = Instant::now();
        loop {
            if let Some(kubelet) = Kubelet::try_connect(self).await
                && kubelet.is_ready().await
            {
                plugin.metrics = self.metrics();
                return Ok(plugin);
            }
            if let Some(status) = plugin.child.try_wait().expect("our own child") {
                return Err(format!("s3view-node ended with {status}:\n{}", self.log()));
            }
            if began.elapsed() > READY {
                return Err(format!("s3view-node is not ready:\n{}", self.log()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where the plugin that was started last serves its metrics, if its log tells.
    fn metrics(&self) -> Option<SocketAddr> {
        let log = self.log();
        let line = log.lines().rfind(|line| line.contains("metrics are served"))?;
        let (_, rest) = line.split_once("127.0.0.1:")?;
        let port = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?)))
    }

    /// The mount points below the kubelet directory.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.kubelet_dir())
    }
}

impl Drop for Home {
    /// Leaves nothing mounted, whatever a test did.
    ///
    /// # Panics
    /// If a secret of the case can be read somewhere; a case that has failed is told only.
    fn drop(&mut self) {
        let leaks = self.leaks();
        for mount in mounts_below(self.path()).into_iter().rev() {
            let _ignored = umount2(&mount, MntFlags::MNT_DETACH);
        }
        self.kill_keeper();
        if leaks.is_empty() {
            return;
        }
        let leaks = leaks.join("\n");
        assert!(std::thread::panicking(), "secrets have leaked:\n{leaks}");
        eprintln!("secrets have leaked:\n{leaks}");
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    points.filter(|point| point.starts_with(directory)).collect()
}

/// A running plugin; killed when dropped.
#[derive(Debug)]
pub(crate) struct Plugin {
    child: Child,
    metrics: Option<SocketAddr>,
    watch: Arc<Watch>,
}

impl Plugin {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.read_metrics();
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("our own child");
        self.child.wait().expect("our own child")
    }

    /// Asks it to end, and waits; it must end well.
    pub(crate) fn stop(self) {
        let status = self.terminate();
        assert!(status.success(), "s3view-node ended with {status}");
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) {
        self.read_metrics();
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Notes what the metrics say, for who looks for secrets.
    fn read_metrics(&mut self) {
        let Some(address) = self.metrics.take() else { return };
        let read = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        // A plugin that has ended serves nothing.
        if let Ok(text) = read() {
            self.watch.said("the metrics", text);
        }
    }

    /// A figure of /proc/<pid>/status in KiB, such as `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kib(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process runs");
        let line = status.lines().find(|line| line.starts_with(figure)).expect("a known figure");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.read_metrics();
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
