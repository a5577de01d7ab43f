//! Volumes of claims on the node: the requests that a kubelet sends for a claim's volume, with pod
//! information or without.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use s3view::csi::proto::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
};
use tonic::{Code, Status};

use crate::{
    fixture::{Fixture, files, is_mount_point, tree},
    support::{kubelet::Pod, plugin::Home, provisioner::capability, server::CREDENTIALS},
};

/// A `PersistentVolume`, as pods of a node mount it.
struct PersistentVolume {
    handle: String,
    context: HashMap<String, String>,
    mode: Mode,
    mount_options: Vec<String>,
}

impl PersistentVolume {
    fn new(handle: &str, context: HashMap<String, String>) -> Self {
        let (handle, mode) = (handle.to_owned(), Mode::MultiNodeReaderOnly);
        Self { handle, context, mode, mount_options: Vec::new() }
    }

    /// The request for a pod: the last name of the target is the `PersistentVolume`'s own.
    fn request(&self, target: &Path) -> NodePublishVolumeRequest {
        let mut capability = capability(self.mode);
        let mount_flags = self.mount_options.clone();
        let mount = MountVolume { mount_flags, ..MountVolume::default() };
        capability.access_type = Some(AccessType::Mount(mount));
        let (key, secret) = CREDENTIALS;
        let mut context = self.context.clone();
        let identity = "1700000000000-8081-csi.s3view.dev";
        context.insert("storage.kubernetes.io/csiProvisionerIdentity".into(), identity.into());
        NodePublishVolumeRequest {
            volume_id: self.handle.clone(),
            target_path: target.to_str().unwrap().to_owned(),
            volume_capability: Some(capability),
            volume_context: context,
            secrets: [("accesskey", key), ("secretkey", secret)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..NodePublishVolumeRequest::default()
        }
    }
}

/// Where a pod of that number mounts it.
fn target(home: &Home, pod: u32) -> PathBuf {
    let parent = home.kubelet_dir().join(format!("pods/uid-{pod}/volumes/kubernetes.io~csi/pv-1"));
    std::fs::create_dir_all(&parent).unwrap();
    parent.join("mount")
}

impl Fixture {
    async fn publish_persistent(
        &self,
        volume: &PersistentVolume,
        pod: u32,
    ) -> Result<PathBuf, Status> {
        let target = target(&self.home, pod);
        let request = volume.request(&target);
        let timeout = std::time::Duration::from_mins(2);
        self.kubelet.publish_raw(request, timeout).await.map(|()| target)
    }

    async fn unpublish_persistent(&self, volume: &PersistentVolume, target: &Path) {
        let target = target.to_str().unwrap();
        self.kubelet.unpublish_raw(&volume.handle, target).await.unwrap();
    }
}

pub(crate) async fn a_claim_becomes_a_volume_of_many_pods(fixture: Fixture) {
    fixture.put("spark/certs/keystore.jks", "keystore").await;
    let provisioner = fixture.provisioner("").await;
    let claim = fixture
        .claim("certs", "${pvc.namespace}/${pvc.name}")
        .with_secrets(&[("accesskey", CREDENTIALS.0), ("secretkey", CREDENTIALS.1)]);
    let created = provisioner.create(&claim).await.unwrap();
    drop(provisioner);
    let volume = PersistentVolume::new(&created.volume_id, created.volume_context);
    let mut targets = Vec::new();
    for pod in 0..3 {
        targets.push(fixture.publish_persistent(&volume, pod).await.unwrap());
    }
    for target in &targets {
        assert_eq!(tree(target), files(&[("keystore.jks", "keystore")]));
    }
    assert_eq!(fixture.publish_persistent(&volume, 0).await.unwrap(), targets[0], "republished");
    let stats = NodeGetVolumeStatsRequest {
        volume_id: volume.handle.clone(),
        volume_path: targets[2].to_str().unwrap().to_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    let stats = fixture.kubelet.node().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.usage[0].used, 8);
    fixture.unpublish_persistent(&volume, &targets[0]).await;
    assert!(!targets[0].exists() && is_mount_point(&targets[1]), "each pod's target is its own");
    for target in &targets[1..] {
        fixture.unpublish_persistent(&volume, target).await;
    }
    fixture.assert_nothing_left();
}

pub(crate) async fn a_static_volume_needs_no_controller(fixture: Fixture) {
    fixture.put("certs/keystore.jks", "keystore").await;
    let context: HashMap<_, _> = [("bucket", &*fixture.bucket), ("prefix", "certs")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let long = "h".repeat(300);
    for (pod, handle) in (0..).zip(["my-bucket/certs", "a b", "../..", "/", &long]) {
        let volume = PersistentVolume::new(handle, context.clone());
        let target = fixture.publish_persistent(&volume, pod).await.unwrap();
        assert_eq!(tree(&target), files(&[("keystore.jks", "keystore")]), "{handle}");
        fixture.unpublish_persistent(&volume, &target).await;
    }
    fixture.assert_nothing_left();
}

pub(crate) async fn access_modes_make_nothing_writable(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let context: HashMap<_, _> = pod.attributes.into_iter().collect();
    let mut volume = PersistentVolume::new("pv-handle", context);
    let modes = [
        Mode::SingleNodeWriter,
        Mode::SingleNodeReaderOnly,
        Mode::MultiNodeMultiWriter,
        Mode::SingleNodeSingleWriter,
    ];
    for (pod, mode) in (0..).zip(modes) {
        volume.mode = mode;
        let target = fixture.publish_persistent(&volume, pod).await.unwrap();
        let written = std::fs::write(target.join("new"), "x").unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{mode:?}");
        // Another mode is no other volume: the kubelet takes it from a list that may be changed.
        volume.mode = Mode::MultiNodeReaderOnly;
        fixture.publish_persistent(&volume, pod).await.unwrap();
    }
}

pub(crate) async fn mount_options_may_say_only_what_holds(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let context: HashMap<_, _> = fixture.pod("certs").attributes.into_iter().collect();
    let mut volume = PersistentVolume::new("pv-handle", context);
    for (option, part) in [
        ("rw", "\"rw\""),
        ("uid=1000", "volume attribute"),
        ("context=\"system_u:object_r:container_file_t:s0:c1\"", "seLinuxMount: false"),
        ("password=MARKED-OPTION", "option 3 (not shown)"),
    ] {
        volume.mount_options = vec!["ro,nodev".into(), option.into()];
        let status = fixture.publish_persistent(&volume, 0).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    }
    fixture.assert_nothing_left();
    volume.mount_options = vec!["ro".into(), "nosuid,nodev".into(), "noatime".into()];
    let target = fixture.publish_persistent(&volume, 0).await.unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|it| it == option), "{line}");
    }
    // The PersistentVolume may be edited under a running pod, which hurts only later ones.
    volume.mount_options = vec!["rw".into()];
    fixture.publish_persistent(&volume, 0).await.unwrap();
    fixture.restart().await;
    fixture.publish_persistent(&volume, 0).await.unwrap();
    let status = fixture.publish_persistent(&volume, 1).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    // An inline volume has none; the kubelet sends an empty list.
    fixture.publish(&Pod::new("p", &[("bucket", &fixture.bucket), ("prefix", "certs")])).await;
}
