//! The gRPC edge, the socket, the command line, and what must never be said.

use std::{
    collections::HashMap,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use s3view::csi::proto::{
    ControllerGetCapabilitiesRequest, GetPluginInfoRequest, NodeExpandVolumeRequest,
    NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    controller_client::ControllerClient,
    volume_capability::{AccessType, BlockVolume},
};
use tonic::Code;

use crate::{
    fixture::{Fixture, PROGRAM, files, is_mount_point, tree},
    support::{address::free_address, kubelet::Pod},
};

pub(crate) async fn all_problems_are_told_at_once(fixture: Fixture) {
    let attributes = [
        ("bucket", "Not_A_Bucket"),
        ("prefx", "certs"),
        ("fileMode", "rw"),
        ("view", "tmpf"),
        ("refresh", "often"),
    ];
    let pod = Pod::new("driver", &attributes).with_secrets(&[("accesskey", "only-half")]);
    let status = fixture.refused(&pod, Code::InvalidArgument).await;
    for part in [
        "Not_A_Bucket",
        "prefx",
        "did you mean \"prefix\"",
        "fileMode",
        "did you mean \"tmpfs\"",
        "refresh",
        "secretkey",
    ] {
        assert!(status.message().contains(part), "{} lacks {part}", status.message());
    }
    assert!(!status.message().contains("only-half"));
    assert_eq!(fixture.embedded().requests().total(), 0);
}

pub(crate) async fn fields_are_required_in_order(fixture: Fixture) {
    let pod = fixture.pod("certs");
    let target = fixture.kubelet.target(&pod);
    let whole = pod.publish_request(&target);
    let mut request = whole.clone();
    request.volume_capability = None;
    let mut refused = Vec::new();
    for _ in 0..3 {
        let answer = fixture.kubelet.publish_raw(request.clone(), pod.timeout).await;
        refused.push(answer.unwrap_err().message().to_owned());
        if request.target_path.is_empty() {
            request.volume_id.clear();
        }
        request.target_path.clear();
    }
    assert_eq!(
        refused,
        ["volume_capability: is required", "target_path: is required", "volume_id: is required"]
    );
    let mut block = whole.clone();
    block.volume_capability = Some(VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        ..VolumeCapability::default()
    });
    let answer = fixture.kubelet.publish_raw(block, pod.timeout).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument);
    let unpublish = fixture.kubelet.unpublish_raw("", "").await.unwrap_err();
    assert_eq!(unpublish.code(), Code::InvalidArgument);
    // Writer modes and `readonly: false` are ordinary use; a pod is not needed.
    fixture.put_certificates().await;
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    let mut bare = whole;
    bare.readonly = false;
    bare.volume_context.retain(|key, _| !key.starts_with("csi.storage.k8s.io/"));
    fixture.kubelet.publish_raw(bare, pod.timeout).await.unwrap();
}

pub(crate) async fn what_is_not_offered_is_unimplemented(fixture: Fixture) {
    let mut node = fixture.kubelet.node();
    let stage = node.node_stage_volume(NodeStageVolumeRequest::default()).await.unwrap_err();
    let unstage = node.node_unstage_volume(NodeUnstageVolumeRequest::default()).await.unwrap_err();
    let expand = node.node_expand_volume(NodeExpandVolumeRequest::default()).await.unwrap_err();
    let mut controller = ControllerClient::new(fixture.kubelet.channel());
    let request = ControllerGetCapabilitiesRequest::default();
    let service = controller.controller_get_capabilities(request).await.unwrap_err();
    for status in [stage, unstage, expand, service] {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(status.message().contains("not offered"), "{status:?}");
    }
}

pub(crate) async fn the_plugin_says_who_it_is(fixture: Fixture) {
    let mut identity = fixture.kubelet.identity();
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.s3view.dev");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    assert!(fixture.kubelet.is_ready().await);
    let node = fixture.kubelet.info().await.unwrap();
    assert_eq!((node.node_id.as_str(), node.max_volumes_per_node), ("node-1", 0));
    assert!(node.accessible_topology.is_none());
}

pub(crate) async fn the_socket_is_private_and_guarded(mut fixture: Fixture) {
    let socket = fixture.home.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(socket.parent().unwrap()).unwrap().count(), 1);
    let second = fixture.home.command().status().unwrap();
    assert_eq!(second.code(), Some(1), "a live socket is refused");
    assert!(fixture.home.log().contains("another process answers"));
    assert!(fixture.kubelet.is_ready().await, "the first goes on");
    fixture.restart().await;
    assert!(fixture.kubelet.is_ready().await, "a stale socket is replaced");
}

pub(crate) async fn a_state_directory_of_others_is_left_alone(fixture: Fixture) {
    let others = tempfile::tempdir().unwrap();
    std::fs::set_permissions(others.path(), Permissions::from_mode(0o1777)).unwrap();
    std::fs::create_dir(others.path().join("disk")).unwrap();
    std::fs::write(others.path().join("theirs"), "").unwrap();
    let state = format!("--state-dir={}", others.path().display());
    let socket = format!("--endpoint={}/a.sock", fixture.home.path().display());
    let kubelet = fixture.home.path().join("other.yaml");
    let text = format!(
        "kubeletDir: {}\nstore: {{ disk: {{ path: {}/disk }} }}\n",
        fixture.home.kubelet_dir().display(),
        others.path().display(),
    );
    std::fs::write(&kubelet, text).unwrap();
    let config = format!("--config={}", kubelet.display());
    let mut command = Command::new(PROGRAM);
    let output = command.args([&state, &socket, &config, "--node-id=n"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--state-dir") && said.contains("theirs"), "{said}");
    let mode = std::fs::metadata(others.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777, "nothing was changed");
    assert_eq!(std::fs::read_dir(others.path()).unwrap().count(), 2);
}

pub(crate) async fn bad_configuration_ends_with_64(fixture: Fixture) {
    let path = fixture.home.path().join("bad.yaml");
    let text = "endpoint: {}\nstore: { memory: { size: lots } }\ndriverName: '-'\n";
    std::fs::write(&path, text).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .env_remove("CSI_ENDPOINT")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let config = format!("--config={}", path.display());
    let (code, said) = run(&["--endpoint=relative.sock", "--node-id=n", &config]);
    assert_eq!(code, Some(64), "{said}");
    for part in ["--endpoint", "endpoint:", "did you mean", "store.memory.size", "driverName"] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    // What one line has wrong neither hides nor invents what is wrong elsewhere.
    let text = format!(
        "kubeletDir: {0}\nfetch: {{ requests: 0 }}\ndefaults: {{ viw: disk }}\nendpoints: {{ a: {{ url: \
         'https://a', caBundle: {0}/none.crt }} }}\n",
        fixture.home.kubelet_dir().display()
    );
    std::fs::write(&path, text).unwrap();
    let (code, said) = run(&["--endpoint=/run/a.sock", "--node-id=n", &config]);
    assert_eq!(code, Some(64), "{said}");
    for part in ["fetch.requests", "did you mean \"view\"", "endpoints.a.caBundle"] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    assert!(!said.contains("kubeletDir"), "{said}");
    std::fs::write(&path, "kubeletDir: relative\n").unwrap();
    let (_, said) = run(&["--endpoint=/run/a.sock", "--node-id=n", &config]);
    assert_eq!(said.matches("kubeletDir: ").count(), 1, "{said}");
    std::fs::write(&path, "kubeletDir: [\n").unwrap();
    let (_, said) = run(&["--endpoint=/run/a.sock", "--node-id=n", &config]);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(run(&["--no-such-flag"]).0, Some(64));
    assert_eq!(run(&["--version"]).0, Some(0));
}

/// The metrics of a plugin, as Prometheus reads them.
pub(crate) fn scrape(address: std::net::SocketAddr) -> String {
    http_get(address, "/metrics")
}

pub(crate) fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Has the plugin serve metrics at an address that is known.
pub(crate) async fn serve_metrics(fixture: &mut Fixture) -> std::net::SocketAddr {
    let address = free_address();
    fixture.reconfigure(&format!("metrics: {{ address: '{address}' }}\n")).await;
    address
}

pub(crate) async fn metrics_and_health_are_served(mut fixture: Fixture) {
    let address = serve_metrics(&mut fixture).await;
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    let get = |path: &str| http_get(address, path);
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    for line in [
        "s3view_s3_requests_total{operation=\"GetObject\"} 3",
        "s3view_s3_requests_total{operation=\"ListObjectsV2\"} 1",
        "s3view_s3_received_bytes_total 24",
        "s3view_store_bytes{medium=\"memory\"} 12288",
        "s3view_store_capacity_bytes{medium=\"disk\"} 268435456",
        "s3view_volumes{view=\"tmpfs\"} 1",
        "s3view_rpcs_total{code=\"Ok\",method=\"NodePublishVolume\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}\nlacks {line}");
    }
}

pub(crate) async fn targets_outside_the_kubelet_are_refused(fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs");
    let outside = fixture.home.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let inside = fixture.home.kubelet_dir().join("pods");
    std::fs::create_dir_all(&inside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    let escapes = [
        outside.join("mount"),
        inside.join("../../outside/mount"),
        inside.join("link/mount"),
        "relative".into(),
    ];
    for target in escapes {
        let request = pod.publish_request(&target);
        let status = fixture.kubelet.publish_raw(request, pod.timeout).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{}: {status:?}", target.display());
        assert!(status.message().contains("target_path"), "{status:?}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(fixture.home.mounts().is_empty());
}

pub(crate) async fn no_volume_is_mounted_over_another(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with("layout", "files");
    let other = fixture.pod("certs");
    // While the first is being made, and when it is there.
    fixture.embedded().latency(Some(std::time::Duration::from_millis(300)));
    let publish = fixture.publish_meanwhile(&pod);
    while fixture.embedded().requests().lists() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let target = fixture.kubelet.target(&pod);
    let nested = [target.join("sub"), target.join("new"), target.parent().unwrap().to_owned()];
    for is_published in [false, true] {
        for nested in &nested {
            let request = other.publish_request(nested);
            let status = fixture.kubelet.publish_raw(request, other.timeout).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{is_published}: {status:?}");
            let named = status.message().split_once("below").unwrap().1;
            assert!(named.contains(target.to_str().unwrap()), "{status:?}");
        }
        if !is_published {
            fixture.embedded().latency(None);
        }
        assert!(is_mount_point(&target) || !is_published);
        while !is_mount_point(&target) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    publish.await.unwrap().unwrap();
    // Nor is it when nobody remembers the first: its view is read-only.
    let registry = fixture.home.state_dir().join("memory/registry");
    for entry in std::fs::read_dir(registry).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fixture.restart().await;
    let request = other.publish_request(&target.join("sub"));
    let status = fixture.kubelet.publish_raw(request, other.timeout).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("read-only"), "{status:?}");
    assert_eq!(fixture.home.mounts(), std::slice::from_ref(&target));
    assert_eq!(tree(&target)["sub/password"], "secret");
}

pub(crate) async fn secrets_appear_nowhere(fixture: Fixture) {
    const MARK: &str = "MARKED-SECRET";
    fixture.put_certificates().await;
    let secret = format!("{MARK}-key");
    fixture.embedded().rights().add_credential("team", &secret);
    let token = format!("{MARK}-token");
    let keys = [
        ("AWS_ACCESS_KEY_ID", "team"),
        ("AWS_SECRET_ACCESS_KEY", secret.as_str()),
        ("AWS_SESSION_TOKEN", token.as_str()),
    ];
    let pod = fixture.pod("certs").with_secrets(&keys);
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], files(&[("k", "keystore")])["k"]);
    let wrong = format!("{MARK}-wrong");
    let bad = fixture.pod("certs").with_secrets(&[("accesskey", "team"), ("secretkey", &wrong)]);
    let status = fixture.refused(&bad, Code::Unauthenticated).await;
    assert!(!status.message().contains(MARK), "{status:?}");
    assert!(!fixture.home.log().contains(MARK), "a secret is in the log");
    let mut seen = HashMap::new();
    for entry in std::fs::read_dir(fixture.home.state_dir().join("memory/registry")).unwrap() {
        let path = entry.unwrap().path();
        seen.insert(path.clone(), std::fs::read_to_string(&path).unwrap());
    }
    assert!(!seen.is_empty());
    assert!(seen.values().all(|text| !text.contains(MARK) && !text.contains("team")));
}

pub(crate) async fn a_url_needs_the_policy(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let url = fixture.server.url();
    let pod = fixture.pod("certs").with("endpoint", &url);
    let status = fixture.refused(&pod, Code::PermissionDenied).await;
    assert!(status.message().contains("policy.endpointUrls"), "{status:?}");
    // A wildcard never leads to the node itself, by address or by name.
    let port = fixture.embedded().address().port();
    let policy = format!(
        "policy: {{ endpointUrls: ['http://127.0.0.*:{port}', 'http://local*:{port}'] }}\n"
    );
    fixture.reconfigure(&policy).await;
    fixture.refused(&pod, Code::PermissionDenied).await;
    let by_name = pod.clone().with("endpoint", &format!("http://localhost:{port}"));
    fixture.refused(&by_name, Code::Unavailable).await;
    assert_eq!(fixture.embedded().requests().total(), 0);
    // What the policy spells out is allowed.
    fixture.reconfigure(&format!("policy: {{ endpointUrls: ['{url}'] }}\n")).await;
    fixture.publish(&pod).await;
}

pub(crate) async fn a_proxy_is_used(mut fixture: Fixture) {
    fixture.put_certificates().await;
    // The embedded server plays the proxy: the endpoint's own name leads nowhere.
    let proxy = fixture.server.url();
    let config = Fixture::config(&fixture.server, "").replace(&proxy, "http://s3.invalid:9000");
    fixture.home.configure(&config);
    fixture.home.set_env(&[("HTTP_PROXY", &proxy), ("NO_PROXY", "elsewhere.invalid")]);
    fixture.restart().await;
    fixture.publish(&fixture.pod("certs")).await;
    // NO_PROXY wins.
    fixture.home.set_env(&[("HTTP_PROXY", &proxy), ("NO_PROXY", ".invalid")]);
    fixture.restart().await;
    fixture.refused(&fixture.pod("certs"), Code::Unavailable).await;
}
