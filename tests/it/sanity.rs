//! Kubernetes' own conformance suite (csi-sanity of kubernetes-csi/csi-test) against both plugins:
//! real processes, real mounts, nothing left out by hand.
//!
//! What skips itself is exactly what sanity-skips.txt lists: a spec that begins or ceases to be
//! skipped, or is new, fails this test until somebody has said why.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use s3view::csi::proto::{
    ControllerGetCapabilitiesRequest, NodeGetCapabilitiesRequest,
    controller_service_capability::Type as Controller, node_service_capability::Type as Node,
};
use serde::Deserialize;

use crate::{
    fixture::Fixture,
    support::{
        go::{self, Missing},
        namespace::Ids,
        provisioner::Provisioner,
        s3::{EmbeddedS3, Options},
        server::Server,
    },
};

/// What the trial is called.
pub(crate) const NAME: &str = "sanity::the_plugins_conform";

const VERSION: &str = "v5.6.0";

/// The specs that skip themselves, each behind its reason.
const SKIPS: &str = include_str!("sanity-skips.txt");

/// The reason that is no capability: of a volume without a size, sizes cannot differ.
const CAPACITY_UNKNOWN: &str = "capacity unknown";

/// csi-sanity, installed on first use.
pub(crate) fn program() -> Result<PathBuf, Missing> {
    let module = format!("github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@{VERSION}");
    go::program(&module, &format!("tools/{VERSION}"), "csi-sanity", "S3VIEW_CSI_SANITY")
}

/// Runs every spec.
pub(crate) fn the_plugins_conform(program: &Path, ids: Ids) {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime.block_on(async {
        let server = Server::Embedded(EmbeddedS3::start(Options::default()));
        let fixture = Fixture::start(server, ids).await;
        fixture.put("certs/keystore.jks", "keystore").await;
        let provisioner = fixture.provisioner("").await;
        let reports = run(program, &fixture, &provisioner);
        compare(&specs(&reports), &skips(), &advertised(&fixture, &provisioner).await);
        fixture.assert_nothing_left();
    });
}

/// The text of the report.
fn run(program: &Path, fixture: &Fixture, provisioner: &Provisioner) -> String {
    let home = fixture.home.path();
    let file = |name: &str, text: String| {
        std::fs::write(home.join(name), text).expect("a writable directory");
        home.join(name).display().to_string()
    };
    let keys = "\n  accesskey: minio\n  secretkey: minio123\n";
    let secrets =
        file("secrets.yaml", format!("CreateVolumeSecret:{keys}NodePublishVolumeSecret:{keys}"));
    let parameters =
        file("parameters.yaml", format!("bucket: {}\nprefix: certs\n", fixture.bucket));
    let report = home.join("report.json");
    let output = Command::new(program)
        .arg(format!("--csi.endpoint=unix://{}", fixture.home.socket().display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", provisioner.socket().display()))
        .arg(format!("--csi.mountdir={}", fixture.home.kubelet_dir().join("sanity").display()))
        .arg(format!("--csi.stagingdir={}", home.join("staging").display()))
        .args(["--csi.secrets", &secrets, "--csi.testvolumeparameters", &parameters])
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.timeout={}s", Duration::from_mins(5).as_secs()))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .output()
        .expect("csi-sanity can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", fixture.home.log());
    std::fs::read_to_string(report).unwrap_or_else(|error| panic!("no report ({error}):\n{said}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
}

/// The state of each spec by its full name.
fn specs(report: &str) -> BTreeMap<String, String> {
    let suites: Vec<Suite> = serde_json::from_str(report).expect("a report of ginkgo");
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports);
    let specs = specs.filter(|spec| spec.leaf_node_type == "It").map(|spec| {
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        (name.join(" / "), spec.state)
    });
    specs.collect()
}

/// The listed specs, and the reason of each.
fn skips() -> BTreeMap<&'static str, &'static str> {
    let lines = SKIPS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut skips = BTreeMap::new();
    for line in lines {
        let (reason, spec) = line.split_once(": ").expect("REASON: SPEC");
        assert_eq!(skips.insert(spec, reason), None, "{spec} is listed twice");
    }
    skips
}

/// What the plugins offer, by its names in the contract.
async fn advertised(fixture: &Fixture, provisioner: &Provisioner) -> BTreeSet<String> {
    let request = ControllerGetCapabilitiesRequest {};
    let of_controller = provisioner.controller().controller_get_capabilities(request).await;
    let of_controller = of_controller.unwrap().into_inner().capabilities.into_iter();
    let of_controller = of_controller.filter_map(|it| it.r#type).map(|it| match it {
        Controller::Rpc(rpc) => rpc.r#type().as_str_name(),
    });
    let request = NodeGetCapabilitiesRequest {};
    let of_node = fixture.kubelet.node().node_get_capabilities(request).await;
    let of_node = of_node.unwrap().into_inner().capabilities.into_iter();
    let of_node = of_node.filter_map(|it| it.r#type).map(|it| match it {
        Node::Rpc(rpc) => rpc.r#type().as_str_name(),
    });
    of_controller.chain(of_node).map(str::to_owned).collect()
}

fn compare(
    specs: &BTreeMap<String, String>,
    skips: &BTreeMap<&str, &str>,
    advertised: &BTreeSet<String>,
) {
    let mut wrong = Vec::new();
    for (name, state) in specs {
        match (state.as_str(), skips.get(name.as_str())) {
            ("passed", None) | ("skipped" | "pending", Some(_)) => {}
            (state, None) => wrong.push(format!("{state}, and not listed: {name}")),
            (state, Some(reason)) => wrong.push(format!("{state}, but listed ({reason}): {name}")),
        }
    }
    for (name, reason) in skips {
        if !specs.contains_key(*name) {
            wrong.push(format!("listed, and no spec: {name}"));
        }
        let is_name = reason.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if *reason != CAPACITY_UNKNOWN && !is_name {
            wrong.push(format!("no reason: {reason}"));
        }
        if advertised.contains(*reason) {
            wrong.push(format!("skipped for want of {reason}, which is advertised: {name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(specs.values().filter(|state| *state == "passed").count() >= 28, "too few have run");
}
