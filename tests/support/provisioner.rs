//! A real `s3view-controller` process, and the provisioner's side of its socket: the requests that a
//! real csi-provisioner sends, field by field.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use s3view::csi::proto::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, ProbeRequest,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
    VolumeCapability,
    controller_client::ControllerClient,
    identity_client::IdentityClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use tonic::{Request, Status, transport::Channel};

use super::{kubelet::dial, plugin::Home, secrecy::Watch};

/// The provisioner's own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a controller may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// A running controller, and a connection to it; killed when dropped.
#[derive(Debug)]
pub(crate) struct Provisioner {
    child: Child,
    channel: Channel,
    socket: PathBuf,
    watch: Arc<Watch>,
}

/// A claim for a volume of a StorageClass.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The name of the volume: `pvc-` and the claim's uid.
    pub(crate) volume: String,
    pub(crate) request: CreateVolumeRequest,
}

impl Claim {
    /// A claim of the namespace `spark` for a read-only volume of a class with these parameters.
    pub(crate) fn new(name: &str, parameters: &[(&str, &str)]) -> Self {
        let volume = format!("pvc-6f0c1b7e-{name}");
        let metadata = [
            ("csi.storage.k8s.io/pvc/name", name),
            ("csi.storage.k8s.io/pvc/namespace", "spark"),
            ("csi.storage.k8s.io/pv/name", &volume),
        ];
        let parameters = metadata.iter().chain(parameters);
        let request = CreateVolumeRequest {
            name: volume.clone(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            volume_capabilities: vec![capability(Mode::MultiNodeReaderOnly)],
            parameters: parameters.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..CreateVolumeRequest::default()
        };
        Self { volume, request }
    }

    /// The same claim with one parameter more, or another value.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.request.parameters.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same claim, of a class that names a Secret for the provisioner.
    pub(crate) fn with_secrets(mut self, secrets: &[(&str, &str)]) -> Self {
        let secrets = secrets.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        self.request.secrets = secrets.collect();
        self
    }
}

/// A directory of files in that access mode.
pub(crate) fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// The command that runs `program` with the home's configuration, on a socket of its own.
pub(crate) fn command(program: &Path, home: &Home) -> Command {
    let log = File::options().create(true).append(true).open(home.path().join("log"));
    let mut command = Command::new(program);
    command
        .arg(format!("--endpoint=unix://{}", socket(home).display()))
        .args(["--log-level", "trace"])
        .arg("--config")
        .arg(home.path().join("controller.yaml"))
        .stdin(Stdio::null())
        .stderr(log.expect("a writable directory"));
    command
}

fn socket(home: &Home) -> PathBuf {
    home.path().join("controller/csi.sock")
}

impl Provisioner {
    /// Starts the controller with this configuration and waits until it is ready.
    pub(crate) async fn start(program: &Path, home: &Home, config: &str) -> Self {
        Self::start_in(program, home, config, &[]).await
    }

    /// Likewise, in an environment with these variables.
    pub(crate) async fn start_in(
        program: &Path,
        home: &Home,
        config: &str,
        env: &[(&str, String)],
    ) -> Self {
        std::fs::create_dir_all(home.path().join("controller")).expect("a writable directory");
        std::fs::write(home.path().join("controller.yaml"), config).expect("a writable directory");
        let child = command(program, home).envs(env.iter().map(|(k, v)| (k, v))).spawn();
        let mut child = child.expect("s3view-controller can be started");
        let began = Instant::now();
        loop {
            let channel = dial(socket(home)).await;
            if let Some(channel) = channel
                && is_ready(channel.clone()).await
            {
                let watch = Arc::clone(home.watch());
                return Self { child, channel, socket: socket(home), watch };
            }
            let ended = child.try_wait().expect("our own child");
            assert_eq!(ended, None, "s3view-controller has ended:\n{}", home.log());
            assert!(began.elapsed() < READY, "s3view-controller is not ready:\n{}", home.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The Controller service.
    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    /// The connection itself.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Creates a volume.
    pub(crate) async fn create(&self, claim: &Claim) -> Result<Volume, Status> {
        self.watch.request(&claim.request.secrets, &HashMap::new());
        let mut request = Request::new(claim.request.clone());
        request.set_timeout(TIMEOUT);
        let answer = self.controller().create_volume(request).await;
        self.watch.said("an answer", format!("{answer:?}"));
        Ok(answer?.into_inner().volume.expect("a volume"))
    }

    /// Deletes a volume.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        let request =
            DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        self.controller().delete_volume(request).await.map(drop)
    }

    /// Asks whether a volume can be had in some ways.
    pub(crate) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let answer = self.controller().validate_volume_capabilities(request).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Asks it to end, and waits.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("our own child");
        self.child.wait().expect("our own child")
    }
}

async fn is_ready(channel: Channel) -> bool {
    let probe = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    probe.is_ok_and(|answer| answer.into_inner().ready == Some(true))
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
