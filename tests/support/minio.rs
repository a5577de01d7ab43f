//! A real MinIO, installed by Go's ordinary client at a pinned release, that believes the tokens of a
//! provider of its own.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    address::free_address,
    go::{self, Missing},
    issuer::{AUDIENCE, Issuer},
    server::CREDENTIALS,
};

/// `RELEASE.2025-09-07T16-13-09Z`, as Go's module versions name it.
const MODULE: &str = "github.com/minio/minio@v0.0.0-20250907161309-07c3a429bfed";

/// A running MinIO; ended when dropped.
pub(crate) struct Minio {
    child: Child,
    port: u16,
    issuer: Issuer,
    _data: tempfile::TempDir,
}

impl Minio {
    /// Starts a server on a free port, installing the program on first use (minutes).
    ///
    /// `S3VIEW_MINIO` names a program to use instead.
    pub(crate) fn start() -> Result<Self, Missing> {
        let program = program()?;
        let data = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (port, issuer) = (free_address().port(), Issuer::start());
        let discovery = format!("{}/.well-known/openid-configuration", issuer.url());
        let (user, password) = CREDENTIALS;
        let child = Command::new(&program)
            .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
            .arg("--console-address=127.0.0.1:0")
            .arg(data.path())
            .env("MINIO_ROOT_USER", user)
            .env("MINIO_ROOT_PASSWORD", password)
            .env("MINIO_BROWSER", "off")
            // Its own key service, for SSE-S3 and SSE-KMS.
            .env("MINIO_KMS_SECRET_KEY", format!("tests:{}", STANDARD.encode([7; 32])))
            .env("MINIO_UPDATE", "off")
            .env("MINIO_IDENTITY_OPENID_CONFIG_URL", discovery)
            .env("MINIO_IDENTITY_OPENID_CLIENT_ID", AUDIENCE)
            .env("MINIO_IDENTITY_OPENID_CLAIM_NAME", "policy")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let minio = Self { child, port, issuer, _data: data };
        minio.wait()?;
        Ok(minio)
    }

    /// The endpoint URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The provider whose tokens it believes, for [`AUDIENCE`].
    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Makes a policy that tokens can name in their claim `policy`.
    ///
    /// It is the admin API, whose requests are signed like S3's: the SDK signs this one.
    pub(crate) async fn add_policy(&self, client: &aws_sdk_s3::Client, name: &str, policy: &str) {
        let name = name.to_owned();
        let request = client.put_object().bucket("minio").key("admin/v3/add-canned-policy");
        let request = request.body(policy.as_bytes().to_vec().into()).customize();
        let request = request.mutate_request(move |request| {
            let uri = format!("{}&name={name}", request.uri());
            request.set_uri(uri).expect("a URI with one more parameter");
        });
        request.send().await.expect("a policy can be added");
    }

    /// Waits until the port is open and the server says that it can write.
    fn wait(&self) -> Result<(), Missing> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_mins(1) {
            if self.is_ready() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("MinIO did not become ready in 60 s".to_owned())
    }

    fn is_ready(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request =
            "GET /minio/health/cluster HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes());
        asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn program() -> Result<PathBuf, Missing> {
    go::program(MODULE, "tools", "minio", "S3VIEW_MINIO")
}
