//! A process of its own that serves a volume, and does what it is told.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::{runtime::Runtime, sync::Semaphore};

use super::{
    super::{
        super::{Content, FuseMount, FuseOptions, InFlight, LedgerPlace, OpenFile, Refusal},
        mounted::{OPTIONS, UNASKED},
    },
    world,
};
use crate::{
    failure::full_message,
    mount::{KubeletDir, TargetPath},
    object::Object,
};

/// Where the process that is told to die dies.
static DIES_AT: Mutex<Option<String>> = Mutex::new(None);

/// Called by the code under test where a death would be of interest.
pub(in crate::view::fuse) fn dies_at(point: &str) {
    if DIES_AT.lock().as_deref() == Some(point) {
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    }
}

/// How files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Opens {
    Cached,
    Passthrough,
    /// By the kernel itself.
    Unasked,
}

impl Opens {
    const ALL: [Self; 3] = [Self::Cached, Self::Passthrough, Self::Unasked];

    fn word(self) -> String {
        format!("{self:?}")
    }

    /// That of the environment.
    fn of_word() -> Self {
        let word = env::var("OPENS").unwrap();
        Self::ALL.into_iter().find(|opens| opens.word() == word).unwrap()
    }

    fn options(self) -> FuseOptions {
        match self {
            Self::Cached => OPTIONS,
            Self::Passthrough => FuseOptions { passthrough: true, ..OPTIONS },
            Self::Unasked => UNASKED,
        }
    }
}

/// A volume's directory, and the process that serves it now.
pub(super) struct Server {
    child: Child,
    control: BufReader<UnixStream>,
    /// What the first process gave to the keeper.
    pub(super) device: OwnedFd,
    pub(super) handover: String,
    pub(super) connection: u32,
    /// The version that is shown.
    pub(super) shown: usize,
    directory: PathBuf,
    opens: Opens,
    in_flight: InFlight,
}

impl Server {
    /// Mounts the first version.
    pub(super) fn start(directory: &Path, opens: Opens, in_flight: InFlight) -> Self {
        let (child, control) = spawn(directory, opens, in_flight, None);
        let null = File::open("/dev/null").unwrap().into();
        let mut server = Self {
            child,
            control,
            device: null,
            handover: String::new(),
            connection: 0,
            shown: 0,
            directory: directory.to_owned(),
            opens,
            in_flight,
        };
        let answer = server.answer();
        let [_, fd, handover, connection] = words(&answer);
        let pid = Pid::from_raw(server.child.id().cast_signed());
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let fd = fd.parse().unwrap();
        server.device = pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).unwrap();
        handover.clone_into(&mut server.handover);
        server.connection = connection.parse().unwrap();
        server
    }

    /// Kills the process, unless it has died by itself.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for a process that is about to die.
    pub(super) fn wait(&mut self) {
        self.child.wait().unwrap();
    }

    /// Lets another process try to go on; its answer.
    pub(super) fn try_resume(&mut self) -> String {
        let device = Some((&self.device, &*self.handover));
        (self.child, self.control) = spawn(&self.directory, self.opens, self.in_flight, device);
        let answer = self.answer();
        if answer.starts_with("failed") {
            self.child.wait().unwrap();
        }
        answer
    }

    /// Lets another process go on.
    pub(super) fn resume(&mut self) {
        let answer = self.try_resume();
        let [word, shown] = words(&answer);
        assert_eq!(word, "resumed", "{answer}");
        self.shown = shown.parse().unwrap();
    }

    /// Tells the process to do something.
    pub(super) fn tell(&mut self, command: &str) {
        writeln!(self.control.get_mut(), "{command}").unwrap();
    }

    /// Tells it, and waits for its answer.
    pub(super) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.directory.join("target").join(path)
    }

    pub(super) fn ledger(&self) -> PathBuf {
        let mounts = fs::read_dir(self.directory.join("ledger")).unwrap();
        let mut mounts = mounts.map(|mount| mount.unwrap().path());
        mounts.find(|mount| !mount.ends_with("disk")).unwrap()
    }

    pub(super) fn unmount(&self) {
        target(&self.directory).unmount_all().unwrap();
    }

    /// Unmounts, and lets the process end.
    pub(super) fn close(mut self) {
        self.unmount();
        assert_eq!(self.ask("close"), "true");
        assert!(self.child.wait().unwrap().success());
    }
}

fn words<const N: usize>(line: &str) -> [&str; N] {
    let words: Vec<_> = line.split(' ').collect();
    words.try_into().unwrap_or_else(|_| panic!("{line}"))
}

type Former<'a> = (&'a OwnedFd, &'a str);

fn spawn(
    directory: &Path,
    opens: Opens,
    in_flight: InFlight,
    former: Option<Former<'_>>,
) -> (Child, BufReader<UnixStream>) {
    let listener = listen(directory);
    let mut command = command(directory, opens, in_flight);
    if let Some((device, handover)) = former {
        command.env("HANDOVER", handover).stdin(device.try_clone().unwrap());
    }
    let child = command.spawn().unwrap();
    let (control, _) = listener.accept().unwrap();
    (child, BufReader::new(control))
}

fn listen(directory: &Path) -> UnixListener {
    let path = directory.join("control");
    drop(fs::remove_file(&path));
    UnixListener::bind(&path).unwrap()
}

fn command(directory: &Path, opens: Opens, in_flight: InFlight) -> Command {
    let test = "view::fuse::tests::takeover::server::a_process_that_others_start";
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("DIRECTORY", directory);
    command.env("OPENS", opens.word());
    command.env("RESEND", if in_flight == InFlight::Resend { "1" } else { "" });
    command.stdout(Stdio::null()).stdin(Stdio::null());
    command
}

/// A process that dies while it makes a mount, where it is told to; how it ended. `None` after ten
/// seconds: it waits for itself.
pub(super) fn die_mounting(
    directory: &Path,
    in_flight: InFlight,
    point: &str,
) -> Option<ExitStatus> {
    let _listener = listen(directory);
    let mut command = command(directory, Opens::Unasked, in_flight);
    let mut child = command.env("DIES_AT", point).spawn().unwrap();
    let (tell, ended) = mpsc::channel();
    thread::spawn(move || tell.send(child.wait().unwrap()));
    ended.recv_timeout(Duration::from_secs(10)).ok()
}

fn target(directory: &Path) -> crate::mount::Target {
    let kubelet = KubeletDir::open(directory).unwrap();
    let path = directory.join("target");
    let target = TargetPath::parse(path.to_str().unwrap(), &kubelet).unwrap();
    kubelet.create_target(&target).unwrap()
}

#[test]
#[ignore = "other tests start it"]
fn a_process_that_others_start() {
    let directory = PathBuf::from(env::var("DIRECTORY").unwrap());
    let control = UnixStream::connect(directory.join("control")).unwrap();
    let is_set = |name| !env::var(name).unwrap().is_empty();
    let options = FuseOptions { resend: is_set("RESEND"), ..Opens::of_word().options() };
    *DIES_AT.lock() = env::var("DIES_AT").ok();
    let content = Arc::new(Generated::new(&directory));
    let runtime = Runtime::new().unwrap();
    let entered = runtime.enter();
    let ledger = LedgerPlace::within(&directory.join("ledger"));
    let given: Arc<Generated> = Arc::clone(&content);
    let (mount, ready) = if let Ok(handover) = env::var("HANDOVER") {
        let handover = hex::decode(handover).unwrap();
        content.gate.add_permits(1);
        match FuseMount::resume(std::io::stdin(), &handover, &ledger, options, given) {
            Ok((mount, listing)) => (mount, format!("resumed {}", world::version(&listing))),
            Err(error) => {
                let (kind, error) = (error.kind().as_str(), full_message(&error));
                writeln!(&control, "failed {kind} {error}").unwrap();
                return;
            }
        }
    } else {
        let listing = world::listing(0);
        let target = target(&directory);
        let mount = FuseMount::new(&target, &listing, options, given, &ledger).unwrap();
        let device = mount.device().unwrap();
        let handover = hex::encode(mount.handover());
        let connection = mount.connection().number();
        let ready = format!("mounted {} {handover} {connection}", device.as_raw_fd());
        // The keeper's, as it were: it lives as long as this process.
        content.kept.lock().push(device);
        (mount, ready)
    };
    drop(entered);
    writeln!(&control, "{ready}").unwrap();
    obey(&control, mount, &content, &runtime);
}

fn obey(control: &UnixStream, mount: FuseMount, content: &Generated, runtime: &Runtime) {
    let served = mount.served();
    let mut frozen = None;
    for line in BufReader::new(control).lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("show", version) => {
                mount.show(&world::listing(version.parse().unwrap())).unwrap();
                "ok".to_owned()
            }
            ("die", point) => {
                *DIES_AT.lock() = Some(point.to_owned());
                "ok".to_owned()
            }
            ("open", _) => {
                content.gate.add_permits(1);
                "ok".to_owned()
            }
            ("waiting", _) => content.waiting.load(Ordering::SeqCst).to_string(),
            ("freeze", _) => {
                frozen = Some(served.freeze());
                "ok".to_owned()
            }
            ("descriptors", _) => fs::read_dir("/proc/self/fd").unwrap().count().to_string(),
            ("replaced", _) => served.replaced().to_string(),
            ("handles", _) => served.handles.lock().opens.len().to_string(),
            ("close", _) => {
                drop(frozen.take());
                let grace = std::time::Duration::from_secs(10);
                let closed = runtime.block_on(mount.close(grace));
                return writeln!(&*control, "{closed}").unwrap();
            }
            _ => panic!("{line}"),
        };
        writeln!(&*control, "{answer}").unwrap();
    }
}

/// Content that follows from the `ETag`.
#[derive(Debug)]
struct Generated {
    directory: PathBuf,
    /// Reads of slow files wait for it.
    gate: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    kept: Mutex<Vec<OwnedFd>>,
}

impl Generated {
    fn new(directory: &Path) -> Self {
        let directory = directory.to_owned();
        let (gate, kept) = (Arc::new(Semaphore::new(0)), Mutex::default());
        Self { directory, gate, waiting: Arc::default(), kept }
    }
}

impl Content for Generated {
    fn open(&self, object: &Object) -> Result<Arc<dyn OpenFile>, Refusal> {
        let key = object.version.key.as_str();
        let bytes = Bytes::from(world::content(object.version.etag.as_str(), object.version.size));
        let whole = key.contains("whole").then(|| {
            let mut file = tempfile::tempfile_in(&self.directory).unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            Arc::new(file)
        });
        let gate = key.contains("slow").then(|| Arc::clone(&self.gate));
        Ok(Arc::new(GeneratedFile { bytes, whole, gate, waiting: Arc::clone(&self.waiting) }))
    }
}

#[derive(Debug)]
struct GeneratedFile {
    bytes: Bytes,
    whole: Option<Arc<File>>,
    gate: Option<Arc<Semaphore>>,
    waiting: Arc<AtomicUsize>,
}

impl OpenFile for GeneratedFile {
    fn read(&self, offset: u64, size: u32) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let start = usize::try_from(offset).unwrap();
        let bytes = self.bytes.slice(start..start + usize::try_from(size).unwrap());
        let (gate, waiting) = (self.gate.clone(), Arc::clone(&self.waiting));
        Box::pin(async move {
            if let Some(gate) = gate {
                waiting.fetch_add(1, Ordering::SeqCst);
                drop(gate.acquire().await.unwrap());
            }
            tokio::task::yield_now().await;
            Ok(bytes)
        })
    }

    fn whole(&self) -> Option<Arc<File>> {
        self.whole.clone()
    }
}
