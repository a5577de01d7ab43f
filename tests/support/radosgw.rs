//! A real Ceph object gateway on a cluster of one monitor and one OSD in memory, from Debian's
//! packages `ceph-mon`, `ceph-osd` and `radosgw`. Up in about 15 s; no manager is needed.
//!
//! It believes the tokens of a provider of its own, for one role after the other.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aws_sdk_s3::primitives::SdkBody;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    address::free_address,
    go::Missing,
    issuer::{AUDIENCE, Issuer},
    server::{CREDENTIALS, sdk_client},
};

/// How long the cluster may take to come up.
const READY: Duration = Duration::from_mins(2);

/// A running gateway with its cluster; ended when dropped.
pub(crate) struct Radosgw {
    /// The last started first.
    children: Vec<Child>,
    issuer: Issuer,
    port: u16,
    directory: TempDir,
}

impl Drop for Radosgw {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Radosgw {
    /// Starts a cluster on free ports.
    ///
    /// # Errors
    /// What is missing here.
    pub(crate) fn start() -> Result<Self, Missing> {
        for program in ["ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"] {
            let found = Command::new(program).arg("--version").output();
            if !found.is_ok_and(|output| output.status.success()) {
                return Err(format!(
                    "{program} is not here (apt-get install ceph-mon ceph-osd radosgw)"
                ));
            }
        }
        let directory = tempfile::Builder::new().prefix("s3view-ceph-").tempdir();
        let directory = directory.map_err(|error| error.to_string())?;
        let (port, issuer) = (free_address().port(), Issuer::start());
        let mut cluster = Self { children: Vec::new(), issuer, port, directory };
        cluster.start_monitor()?;
        cluster.start_osd()?;
        cluster.daemon("radosgw", &["-n", "client.admin"])?;
        cluster.wait("the gateway", |it| {
            std::net::TcpStream::connect(("127.0.0.1", it.port)).is_ok()
        })?;
        let (user, secret) = CREDENTIALS;
        let keys = [format!("--access-key={user}"), format!("--secret-key={secret}")];
        let caps = "--caps=roles=*;oidc-provider=*";
        let user = ["user", "create", "--uid=owner", "--display-name=owner", caps];
        cluster.run("radosgw-admin", &[&user[..], &[&keys[0], &keys[1]]].concat())?;
        Ok(cluster)
    }

    /// The endpoint URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The provider whose tokens roles can trust.
    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Makes a role with this policy, for the tokens of the provider, and returns its ARN.
    pub(crate) async fn add_role(&self, name: &str, policy: &Value) -> String {
        self.add_provider().await;
        let host = self.issuer.url().trim_start_matches("http://");
        let trust = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": { "Federated": [format!("arn:aws:iam:::oidc-provider/{host}")] },
            "Action": ["sts:AssumeRoleWithWebIdentity"],
            "Condition": { "StringEquals": { format!("{host}:app_id"): AUDIENCE } },
        }] });
        let role = format!("--role-name={name}");
        let trust = format!("--assume-role-policy-doc={trust}");
        let made = self.run("radosgw-admin", &["role", "create", &role, &trust]);
        let made: Value = serde_json::from_str(&made.expect("a role can be made")).expect("JSON");
        let policy = format!("--policy-doc={policy}");
        let put = ["role-policy", "put", &role, "--policy-name=p", &policy];
        self.run("radosgw-admin", &put).expect("a role can have a policy");
        made["Arn"].as_str().expect("a role has an ARN").to_owned()
    }

    /// Makes the provider known; once is enough, twice is no harm.
    ///
    /// It is an IAM request, signed like S3's: the SDK signs this one, and cannot read the answer.
    async fn add_provider(&self) {
        let parameters = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "CreateOpenIDConnectProvider")
            .append_pair("Version", "2010-05-08")
            .append_pair("Url", self.issuer.url())
            .append_pair("ClientIDList.member.1", AUDIENCE)
            .append_pair("ThumbprintList.member.1", &self.issuer.thumbprint())
            .finish();
        let uri = format!("{}/", self.url());
        let request = sdk_client(&self.url()).list_buckets().customize();
        let request = request.mutate_request(move |request| {
            request.set_method("POST").expect("a method");
            request.set_uri(uri.clone()).expect("a URI");
            request.headers_mut().insert("content-type", "application/x-www-form-urlencoded");
            request.headers_mut().insert("content-length", parameters.len().to_string());
            *request.body_mut() = SdkBody::from(parameters.as_str());
        });
        if let Err(error) = request.send().await {
            let status = error.raw_response().map(|answer| answer.status().as_u16());
            assert!(matches!(status, Some(200 | 409)), "{error:?}");
        }
    }

    fn start_monitor(&mut self) -> Result<(), Missing> {
        for name in ["mon", "osd", "rgw", "run"] {
            std::fs::create_dir(self.path(name)).map_err(|error| error.to_string())?;
        }
        let port = free_address().port();
        let fsid = uuid();
        let config = CONFIG
            .replace("DIRECTORY", &self.directory.path().display().to_string())
            .replace("MONITOR", &port.to_string())
            .replace("GATEWAY", &self.port.to_string())
            .replace("FSID", &fsid);
        std::fs::write(self.path("ceph.conf"), config).map_err(|error| error.to_string())?;
        let (keyring, map) = (self.text("keyring"), self.text("monmap"));
        let all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        let osd = ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"];
        for (name, caps) in [("mon.", &all[..3]), ("client.admin", &all[..]), ("osd.0", &osd[..])] {
            let create: &[&str] = if name == "mon." { &["--create-keyring"] } else { &[] };
            let make = [create, &[&keyring, "--gen-key", "-n", name], caps].concat();
            self.run("ceph-authtool", &make)?;
        }
        let address = format!("[v2:127.0.0.1:{port}/0]");
        self.run("monmaptool", &["--create", "--fsid", &fsid, "--addv", "a", &address, &map])?;
        let make = ["--mkfs", "-i", "a", "--monmap", &map, "--keyring", &keyring];
        self.run("ceph-mon", &make)?;
        self.daemon("ceph-mon", &["-i", "a"])?;
        self.wait("the monitor", |it| {
            it.run("ceph", &["--connect-timeout=5", "mon", "stat"]).is_ok()
        })
    }

    fn start_osd(&mut self) -> Result<(), Missing> {
        let id = uuid();
        self.run("ceph", &["osd", "new", &id])?;
        self.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", &id])?;
        self.run("ceph", &["osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h"])?;
        self.daemon("ceph-osd", &["-i", "0"])?;
        self.wait("the OSD", |it| {
            it.run("ceph", &["osd", "stat"]).is_ok_and(|text| text.contains("1 up"))
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("CEPH_CONF", self.path("ceph.conf")).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Missing> {
        let output = self.command(program, arguments).output();
        let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {arguments:?} ended with {}: {said}", output.status))
    }

    fn daemon(&mut self, program: &str, arguments: &[&str]) -> Result<(), Missing> {
        let log = std::fs::File::create(self.path(&format!("{program}.log")));
        let log = log.map_err(|error| error.to_string())?;
        let mut command = self.command(program, arguments);
        let child = command.arg("-f").stdout(Stdio::null()).stderr(log).spawn();
        let child = child.map_err(|error| format!("{program} cannot be started: {error}"))?;
        self.children.insert(0, child);
        Ok(())
    }

    fn wait(&self, what: &str, is_ready: impl Fn(&Self) -> bool) -> Result<(), Missing> {
        let began = Instant::now();
        while !is_ready(self) {
            if began.elapsed() > READY {
                return Err(format!("{what} of Ceph did not become ready in {READY:?}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

const CONFIG: &str = "[global]
fsid = FSID
mon_host = v2:127.0.0.1:MONITOR/0
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 1073741824
mon_allow_pool_size_one = true
mon_data_avail_crit = 0
mon_data = DIRECTORY/mon
osd_data = DIRECTORY/osd
keyring = DIRECTORY/keyring
admin_socket = DIRECTORY/run/$name.asok
run_dir = DIRECTORY/run
crash_dir = DIRECTORY/run
pid_file =
log_to_file = false
log_to_stderr = true
mon_cluster_log_to_file = false
[client.admin]
rgw_data = DIRECTORY/rgw
rgw_frontends = beast endpoint=127.0.0.1:GATEWAY tcp_nodelay=1
rgw_enable_apis = s3, sts, iam, admin
rgw_s3_auth_use_sts = true
rgw_sts_key = s3view-tests-key
rgw_crypt_require_ssl = false
";

fn uuid() -> String {
    let uuid = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/uuid"));
    uuid.expect("/proc is mounted").trim().to_owned()
}
