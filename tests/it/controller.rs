//! Volumes of a StorageClass: a real `s3view-controller` beside the node plugin, on a socket of its
//! own, asked as the provisioner asks.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use s3view::csi::proto::{
    CapacityRange, ControllerGetCapabilitiesRequest, CreateSnapshotRequest,
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, ListVolumesRequest, NodeGetInfoRequest,
    ValidateVolumeCapabilitiesRequest, VolumeCapability, VolumeContentSource,
    controller_service_capability::{self, rpc},
    identity_client::IdentityClient,
    node_client::NodeClient,
    plugin_capability,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use serde_json::json;
use tonic::Code;

use crate::{
    fixture::Fixture,
    support::{
        apiserver::ApiServer,
        provisioner::{Claim, Provisioner, capability, command},
        s3::{Action, Fault},
    },
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_s3view-controller");

/// The Secret that the seed has.
const KEYS: [(&str, &str); 2] = [("accesskey", "minio"), ("secretkey", "minio123")];

impl Fixture {
    /// Starts a controller beside the node plugin, configured alike.
    pub(crate) async fn provisioner(&self, more: &str) -> Provisioner {
        let config = self.controller_config(more);
        Provisioner::start(Path::new(PROGRAM), &self.home, &config).await
    }

    /// The nodes' configuration, where no node's directory exists.
    fn controller_config(&self, more: &str) -> String {
        let config = Self::config(&self.server, more).replace("DISK", "/unused");
        format!("kubeletDir: /nonexistent\n{config}")
    }

    /// A claim for a volume that shows `prefix` of this case's bucket.
    pub(crate) fn claim(&self, name: &str, prefix: &str) -> Claim {
        Claim::new(name, &[("bucket", &self.bucket), ("prefix", prefix)])
    }
}

pub(crate) async fn the_same_claim_is_the_same_volume(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture.claim("certs", "${pvc.namespace}/${pvc.name}");
    let volume = provisioner.create(&claim).await.unwrap();
    assert_eq!(provisioner.create(&claim).await.unwrap(), volume);
    assert_eq!(volume.capacity_bytes, 0, "the claim's size counts");
    assert!(volume.volume_id.len() <= 128);
    let mut context: Vec<_> = volume.volume_context.clone().into_iter().collect();
    context.sort();
    let text = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
    assert_eq!(context, [("bucket", &*fixture.bucket), ("prefix", "spark/certs")].map(text));
    // Another replica, or this one after a restart, says the same.
    assert!(provisioner.terminate().success());
    let other = fixture.provisioner("").await;
    assert_eq!(other.create(&claim).await.unwrap(), volume);
    let longest = Claim { request: claim.request.clone(), ..claim.clone() };
    let mut longest = longest.request;
    longest.name = "n".repeat(128);
    let longest = other.controller().create_volume(longest).await.unwrap().into_inner();
    assert!(longest.volume.unwrap().volume_id.len() <= 128);
    assert_eq!(fixture.embedded().requests().total(), 0, "without a Secret, S3 is not asked");
}

pub(crate) async fn a_name_belongs_to_one_volume(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture.claim("certs", "a");
    let volume = provisioner.create(&claim).await.unwrap();
    let status = provisioner.create(&claim.clone().with("prefix", "b")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("prefix is \"b\" and was \"a\""), "{status:?}");
    // Sizes and modes make no other volume.
    let mut other = claim.clone();
    other.request.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 1 });
    other.request.volume_capabilities = vec![capability(Mode::SingleNodeWriter)];
    assert_eq!(provisioner.create(&other).await.unwrap(), volume);
    provisioner.delete(&volume.volume_id).await.unwrap();
    provisioner.create(&claim.with("prefix", "b")).await.unwrap();
}

pub(crate) async fn the_cluster_knows_which_names_are_taken(fixture: Fixture) {
    let server = ApiServer::start("node-1", &json!([]));
    let account = fixture.home.path().join("account");
    server.account(&account);
    let more = format!("kubernetes: {{ serviceAccount: {} }}\n", account.display());
    let config = fixture.controller_config(&more);
    let env = server.env();
    let start = || Provisioner::start_in(Path::new(PROGRAM), &fixture.home, &config, &env);
    let provisioner = start().await;
    let claim = fixture.claim("certs", "a");
    let volume = provisioner.create(&claim).await.unwrap();
    let csi = json!({
        "driver": "csi.s3view.dev",
        "volumeHandle": volume.volume_id,
        "volumeAttributes": { "bucket": fixture.bucket, "prefix": "a", "storage.kubernetes.io/x": "y" },
    });
    server.add_volume(&claim.volume, &csi);
    // After a restart nothing is remembered but in the cluster.
    drop(provisioner);
    let provisioner = start().await;
    let status = provisioner.create(&claim.clone().with("prefix", "b")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("prefix is \"b\" and was \"a\""), "{status:?}");
    assert_eq!(provisioner.create(&claim).await.unwrap(), volume);
    // What is remembered is not asked for again, and without an answer the name is free.
    let before = server.calls().len();
    provisioner.create(&claim).await.unwrap();
    assert_eq!(server.calls().len(), before);
    server.refuse(1, StatusCode::FORBIDDEN);
    server.add_volume("pvc-6f0c1b7e-other", &csi);
    provisioner.create(&fixture.claim("other", "b")).await.unwrap();
    assert!(fixture.home.log().contains("could not be looked up"));
}

pub(crate) async fn all_mistakes_of_a_class_are_told_at_once(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture
        .claim("certs", "a/${pvc.nam}")
        .with("fileMode", "rw")
        .with("buckt", "b")
        .with("uid", "${pvc.name}")
        .with_secrets(&[("accesskey", "only-half")]);
    let status = provisioner.create(&claim).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for part in [
        "did you mean \"${pvc.name}\"",
        "fileMode: \"rw\"",
        "did you mean \"bucket\"",
        "uid: must not contain",
        "secretkey",
    ] {
        assert!(status.message().contains(part), "{} lacks {part}", status.message());
    }
    let long = (0..60).map(|n| format!("- {{prefix: {}{n}}}", "p".repeat(40))).collect::<Vec<_>>();
    let claim = Claim::new("certs", &[("bucket", &fixture.bucket), ("sources", &long.join("\n"))])
        .with("include", &"x".repeat(1500));
    let status = provisioner.create(&claim).await.unwrap_err();
    assert!(status.message().contains("include"), "{status:?}");
    let claim = Claim::new("certs", &[("bucket", &fixture.bucket), ("sources", &long.join("\n"))])
        .with("roleArn", &format!("arn:aws:iam::1:role/{}", "r".repeat(1500)));
    let status = provisioner.create(&claim).await.unwrap_err();
    assert!(status.message().contains("CSI allows 4096"), "{status:?}");
    assert_eq!(fixture.embedded().requests().total(), 0);
}

pub(crate) async fn what_no_volume_has_is_refused(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture.claim("certs", "a");
    let refused = async |change: &(dyn Fn(&mut Claim) + Sync), code: Code, part: &str| {
        let mut claim = claim.clone();
        change(&mut claim);
        let status = provisioner.create(&claim).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    };
    let invalid = Code::InvalidArgument;
    refused(&|it| it.request.name.clear(), invalid, "name: is required").await;
    let none = "volume_capabilities: is required";
    refused(&|it| it.request.volume_capabilities.clear(), invalid, none).await;
    let block = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    let and_block = |it: &mut Claim| it.request.volume_capabilities.push(block.clone());
    refused(&and_block, invalid, "volumeMode: Filesystem").await;
    let content =
        |it: &mut Claim| it.request.volume_content_source = Some(VolumeContentSource::default());
    refused(&content, invalid, "dataSource").await;
    let mutable = |it: &mut Claim| {
        it.request.mutable_parameters.insert("a".into(), "b".into());
    };
    refused(&mutable, invalid, "volumeAttributesClassName").await;
    let range = |required_bytes, limit_bytes| {
        move |it: &mut Claim| {
            it.request.capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
        }
    };
    refused(&range(-1, 0), invalid, "negative").await;
    refused(&range(2, 1), Code::OutOfRange, "at least required_bytes 2").await;
    let mount_flags = vec!["ro".to_owned(), "password=hunter2".to_owned()];
    let mount = MountVolume { mount_flags, ..MountVolume::default() };
    let option = VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..block.clone() };
    let with_option = |it: &mut Claim| it.request.volume_capabilities = vec![option.clone()];
    refused(&with_option, invalid, "option 2 (not shown)").await;
    assert!(!fixture.home.log().contains("hunter2"));
}

pub(crate) async fn rights_are_tried_with_the_provisioners_secret(fixture: Fixture) {
    fixture.put_certificates().await;
    let provisioner = fixture.provisioner("").await;
    let rights = fixture.embedded().rights();
    rights.add_credential("limited", "limited-secret");
    rights.grant("limited", &fixture.bucket, "certs/");
    let limited = [("access_key", "limited"), ("secret_key", "limited-secret")];
    let claim = fixture.claim("certs", "certs").with_secrets(&limited);
    provisioner.create(&claim).await.unwrap();
    assert_eq!(fixture.embedded().requests().total(), 1, "one page of one listing");
    let refused = async |claim: Claim, code: Code, part: &str| {
        let status = provisioner.create(&claim).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{status:?} lacks {part}");
    };
    let other = |name: &str, prefix: &str| fixture.claim(name, prefix).with_secrets(&limited);
    refused(other("others", "other"), Code::PermissionDenied, "prefix \"other/\"").await;
    let wrong = [("accesskey", "minio"), ("secretkey", "wrong-secret")];
    let claim = fixture.claim("wrong", "certs").with_secrets(&wrong);
    refused(claim, Code::Unauthenticated, "does not belong to the access key id").await;
    let claim = other("nowhere", "certs").with("bucket", "no-such-bucket").with_secrets(&KEYS);
    refused(claim, Code::NotFound, "no-such-bucket").await;
    let sources = "[{key: certs/keystore.jks}, {key: certs/missing}]";
    let claim = Claim::new("keys", &[("bucket", &fixture.bucket), ("sources", sources)]);
    refused(claim.with_secrets(&KEYS), Code::NotFound, "certs/missing").await;
    // What is empty now may be filled before a pod comes.
    let claim = fixture.claim("empty", "later").with_secrets(&KEYS);
    provisioner.create(&claim).await.unwrap();
}

pub(crate) async fn an_endpoint_that_is_down_is_no_creation_under_way(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let faults = fixture.embedded().faults();
    faults.add(Fault::new(Action::INTERNAL_ERROR));
    let claim = fixture.claim("certs", "certs").with_secrets(&KEYS);
    let status = provisioner.create(&claim).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("provisioner's Secret"), "{status:?}");
    faults.clear();
    // Silent for longer than the provisioner waits: told before it gives up.
    faults.add(Fault::new(Action::Delay(Duration::from_mins(1))));
    let began = Instant::now();
    let status = provisioner.create(&claim).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("did not answer in time"), "{status:?}");
    assert!(began.elapsed().as_secs() < 10);
    faults.clear();
    provisioner.create(&claim).await.unwrap();
}

pub(crate) async fn a_public_bucket_is_asked_for_by_nobody(fixture: Fixture) {
    let more = "policy: { authentication: [secret, anonymous] }\n";
    let provisioner = fixture.provisioner(more).await;
    let claim = fixture.claim("public", "p").with("authentication", "anonymous");
    let status = provisioner.create(&claim).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    fixture.embedded().rights().grant("", &fixture.bucket, "");
    provisioner.create(&claim).await.unwrap();
}

pub(crate) async fn a_changed_policy_counts_for_the_next_claim(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture.claim("own", "p").with("authentication", "driver");
    let status = provisioner.create(&claim).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("policy.authentication"), "{status:?}");
    let file = fixture.home.path().join("controller.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, format!("{text}policy: {{ authentication: [driver] }}\n")).unwrap();
    let began = Instant::now();
    while provisioner.create(&claim).await.is_err() {
        assert!(began.elapsed().as_secs() < 20, "the changed policy is not in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn delete_of_anything_is_ok_and_touches_nothing(fixture: Fixture) {
    fixture.put_certificates().await;
    let provisioner = fixture.provisioner("").await;
    let volume = provisioner.create(&fixture.claim("certs", "certs")).await.unwrap();
    for id in [&*volume.volume_id, &*volume.volume_id, "fake-vol-id", "my-bucket/certs", "a b"] {
        provisioner.delete(id).await.unwrap();
    }
    let status = provisioner.delete("").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(fixture.embedded().requests().total(), 0);
    fixture.publish(&fixture.pod("certs")).await;
}

pub(crate) async fn ids_are_verified(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let claim = fixture.claim("certs", "certs/${pvc.name}");
    let volume = provisioner.create(&claim).await.unwrap();
    // A replica that has never seen the volume.
    drop(provisioner);
    let provisioner = fixture.provisioner("").await;
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![
            capability(Mode::MultiNodeReaderOnly),
            capability(Mode::MultiNodeMultiWriter),
        ],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let answer = provisioner.validate(request.clone()).await.unwrap();
    let confirmed = answer.confirmed.unwrap();
    assert_eq!(confirmed.volume_context, request.volume_context);
    assert_eq!(confirmed.volume_capabilities, request.volume_capabilities);
    let refused = async |request: ValidateVolumeCapabilitiesRequest, part: &str| {
        let answer = provisioner.validate(request).await.unwrap();
        assert_eq!(answer.confirmed, None);
        assert!(answer.message.contains(part), "{answer:?}");
    };
    let mut other = request.clone();
    other.volume_context.insert("prefix".into(), "other".into());
    refused(other, "volume_context").await;
    let mut block = request.clone();
    block.volume_capabilities[1].access_type = Some(AccessType::Block(BlockVolume {}));
    refused(block, "block access").await;
    let mut parameters = request.clone();
    parameters.parameters = claim.request.parameters.clone();
    refused(parameters, "variables filled in").await;
    for id in ["fake-vol-id", "my-bucket/certs", &volume.volume_id[1..]] {
        let unknown =
            ValidateVolumeCapabilitiesRequest { volume_id: id.to_owned(), ..request.clone() };
        let status = provisioner.validate(unknown).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
    for request in [
        ValidateVolumeCapabilitiesRequest { volume_id: String::new(), ..request.clone() },
        ValidateVolumeCapabilitiesRequest { volume_capabilities: Vec::new(), ..request },
    ] {
        let status = provisioner.validate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

pub(crate) async fn the_controller_says_who_it_is(fixture: Fixture) {
    let provisioner = fixture.provisioner("").await;
    let mut identity = IdentityClient::new(provisioner.channel());
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.s3view.dev");
    let services = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
    let services = services.unwrap().into_inner();
    let mut of_node = fixture.kubelet.identity();
    let of_node = of_node.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(of_node.into_inner().capabilities, [], "no Controller service answers there");
    let offered: Vec<_> = services.capabilities.iter().map(|it| it.r#type).collect();
    let service = plugin_capability::Service {
        r#type: plugin_capability::service::Type::ControllerService.into(),
    };
    assert_eq!(offered, [Some(plugin_capability::Type::Service(service))]);
    let mut controller = provisioner.controller();
    let request = ControllerGetCapabilitiesRequest {};
    let offered = controller.controller_get_capabilities(request).await.unwrap().into_inner();
    let offered: Vec<_> = offered.capabilities.into_iter().map(|it| it.r#type).collect();
    let create =
        controller_service_capability::Rpc { r#type: rpc::Type::CreateDeleteVolume.into() };
    assert_eq!(offered, [Some(controller_service_capability::Type::Rpc(create))]);
    let list = controller.list_volumes(ListVolumesRequest::default()).await.unwrap_err();
    let snapshot = controller.create_snapshot(CreateSnapshotRequest::default()).await.unwrap_err();
    let mut node = NodeClient::new(provisioner.channel());
    let node = node.node_get_info(NodeGetInfoRequest {}).await.unwrap_err();
    for status in [list, snapshot, node] {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(status.message().contains("not offered"), "{status:?}");
    }
    let beside = std::fs::read_dir(provisioner.socket().parent().unwrap()).unwrap();
    assert_eq!(beside.count(), 1, "no file but the socket");
    assert!(provisioner.terminate().success());
    assert!(fixture.home.log().contains("stopped"));
}

pub(crate) async fn a_bad_configuration_ends_the_controller_with_64(fixture: Fixture) {
    let home = &fixture.home;
    std::fs::create_dir(home.path().join("controller")).unwrap();
    let text = "driverName: '-'\ndefaults: { viw: disk }\nendpoints: { a: { url: 'https://a', \
                caBundle: /none.crt } }\n";
    std::fs::write(home.path().join("controller.yaml"), text).unwrap();
    let ended = command(Path::new(PROGRAM), home).status().unwrap();
    assert_eq!(ended.code(), Some(64));
    let log = home.log();
    for part in ["driverName", "did you mean \"view\"", "endpoints.a.caBundle"] {
        assert!(log.contains(part), "{log} lacks {part}");
    }
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(PROGRAM).args(arguments).output().unwrap();
        output.status.code()
    };
    assert_eq!(run(&["--no-such-flag"]), Some(64));
    assert_eq!(run(&["--version"]), Some(0));
}
