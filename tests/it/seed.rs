//! The situation that s3view was made for, as examples/ has it, on a real MinIO: `bucket.sh` fills the
//! bucket, pods publish the volumes of the `SparkApplication`, and Java reads what they show.
//!
//! Wants MinIO's client (`mc`) in target/tmp/tools, where `.ci/run` puts it, or named by `S3VIEW_MC`, and
//! `keytool`. Without them the cases are skipped loudly; with `CI` set they fail.

use std::{
    collections::BTreeMap,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use aws_sdk_s3::config::Credentials;
use s3view::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::{
    fixture::{Fixture, owner, tree},
    manifests::{Manifests, root},
    refresh::eventually,
    support::{
        issuer::{TOKENS, Token},
        kubelet::Pod,
        namespace::Ids,
        server::Server,
    },
    versions::Clock,
};

/// Of both stores.
const PASSWORD: &str = "changeit";

/// One case: a bucket that `bucket.sh` made, and what the examples say.
struct Seed {
    fixture: Fixture,
    manifests: Manifests,
    bucket: String,
    mc: PathBuf,
}

impl Seed {
    /// Fills a bucket; `None` where a tool is missing.
    async fn start(mut fixture: Fixture) -> Option<Self> {
        let mc = tools()?;
        // Spark's user has to reach the volumes.
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(fixture.home.path(), open).expect("our own directory");
        fixture.reconfigure("limits: { minRefresh: 50ms }\ndefaults: { refresh: 100ms }\n").await;
        let bucket = format!("seed-{}", fixture.bucket);
        let seed = Self { fixture, manifests: Manifests::load(), bucket, mc };
        seed.bucket_sh(&[], &[]);
        Some(seed)
    }

    /// Runs `examples/seed/bucket.sh` for this case's bucket.
    fn bucket_sh(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        let (reader, secret_key) = self.reader();
        let done = Command::new(root().join("seed/bucket.sh"))
            .args(arguments)
            .current_dir(root())
            .env("MC", &self.mc)
            .env("MINIO_ENDPOINT", self.fixture.server.url())
            .env("BUCKET_NAME", &self.bucket)
            .env("READER_ACCESS_KEY", reader)
            .env("READER_SECRET_KEY", secret_key)
            .env("KEYSTORE_PATH", "data/keystore.jks")
            .env("TRUSTSTORE_PATH", "data/truststore.jks")
            .env("SPARKAPP_PATH", "spark/sparkapp.py")
            .env("TEMPLATE_PATH", "spark/pod-template.yaml")
            .env("ENCRYPT", "yes")
            .envs(environment.iter().copied())
            .output();
        succeeded(&done.expect("bash is here"));
    }

    /// The keys of s3-credentials, for a reader of this case's own.
    fn reader(&self) -> (String, String) {
        let secret = &self.manifests.secrets["s3-credentials"];
        (format!("{}-{}", secret["accesskey"], self.bucket), secret["secretkey"].clone())
    }

    /// The pod that mounts one volume of an example, on this case's bucket.
    fn pod(&self, place: &str) -> Pod {
        let found = self.manifests.volumes.iter().find(|volume| volume.place == place);
        let volume = found.unwrap_or_else(|| panic!("no example has {place:?}"));
        let mut pod = Pod::new("spark", &[]);
        pod.attributes.clone_from(&volume.attributes);
        pod.attributes.insert("bucket".to_owned(), self.bucket.clone());
        pod.fs_group.clone_from(&volume.fs_group);
        if self.fixture.ids == Ids::RootOnly {
            pod.attributes.entry("uid".to_owned()).and_modify(|uid| "0".clone_into(uid));
            pod.fs_group = pod.fs_group.map(|_| "0".to_owned());
        }
        let Some(secret) = &volume.secret else { return pod.with_secrets(&[]) };
        assert_eq!(secret, "s3-credentials");
        let (access_key, secret_key) = self.reader();
        pod.with_secrets(&[("accesskey", &access_key), ("secretkey", &secret_key)])
    }

    fn application(&self, role: &str, volume: &str) -> Pod {
        let manifest = "seed/sparkapplication.yaml: SparkApplication kafka-spark-adb";
        self.pod(&format!("{manifest}, {role}, volume {volume}"))
    }

    /// A program as Spark's user.
    fn as_spark(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        if self.fixture.ids == Ids::All {
            command.uid(185).gid(185);
        }
        command
    }

    /// The fingerprint of the certificate that Java finds in a keystore.
    fn fingerprint(&self, keystore: &Path) -> String {
        let mut keytool = self.as_spark("keytool");
        keytool.args(["-J-Duser.language=en", "-list", "-v", "-storepass", PASSWORD, "-keystore"]);
        let told = succeeded(&keytool.arg(keystore).output().expect("keytool is here"));
        assert!(told.contains("PrivateKeyEntry"), "{told}");
        let line = told.lines().find(|line| line.contains("SHA256: "));
        line.unwrap_or_else(|| panic!("{told}")).trim().to_owned()
    }
}

/// MinIO's client, if all tools are here.
fn tools() -> Option<PathBuf> {
    let tools = Path::new(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("target/tmp")).join("tools");
    let mc = std::env::var_os("S3VIEW_MC").map_or_else(|| tools.join("mc"), PathBuf::from);
    let keytool = Command::new("keytool").arg("-help").output().is_ok();
    if mc.exists() && keytool {
        return Some(mc);
    }
    let missing = format!("{} or keytool is missing", mc.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("\nSKIPPED: a case of the seed: {missing}\n");
    None
}

/// What a program that has to work has said.
fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complaint}", output.status);
    said
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(root().join(name)).expect("the examples are here")
}

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(path).expect("a readable file")
}

pub(crate) async fn a_rotation_reaches_running_pods(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let mut pods = Vec::new();
    for role in ["driver", "executor", "executor"] {
        let pod = seed.application(role, "kafka-certs");
        pods.push((seed.fixture.publish(&pod).await, pod));
    }
    let stores: Vec<PathBuf> = pods.iter().map(|(target, _)| target.join("keystore.jks")).collect();
    let id = seed.fixture.spark();
    for (target, _) in &pods {
        assert_eq!(bytes(target.join("keystore.jks")), data("data/keystore.jks"));
        assert_eq!(bytes(target.join("truststore.jks")), data("data/truststore.jks"));
        assert_eq!(owner(&target.join("keystore.jks")), format!("{id}:{id} 0400"));
    }
    let before = seed.fingerprint(&stores[0]);
    seed.bucket_sh(&["upload"], &[("KEYSTORE_PATH", "data/keystore.rotated.jks")]);
    let rotated = data("data/keystore.rotated.jks");
    for store in &stores {
        eventually("the rotated keystore", || {
            std::fs::read(store).is_ok_and(|content| content == rotated).then_some(())
        })
        .await;
    }
    let after = seed.fingerprint(&stores[0]);
    assert_ne!(before, after);
    assert!(stores.iter().all(|store| seed.fingerprint(store) == after));
    for (_, pod) in &pods {
        seed.fixture.unpublish(pod).await;
    }
    seed.fixture.assert_nothing_left();
}

/// The code in the bucket, which looks at the certificates in the bucket: both as a pod sees them.
pub(crate) async fn the_application_finds_its_certificates(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    for role in ["driver", "executor"] {
        let certificates = seed.fixture.publish(&seed.application(role, "kafka-certs")).await;
        let code = seed.fixture.publish(&seed.application(role, "spark-app")).await;
        let template = data("spark/pod-template.yaml");
        assert_eq!(bytes(code.join("pod-template.yaml")), template);
        let mut check = seed.as_spark("python3");
        check.arg(code.join("sparkapp.py")).arg("--check").env("CERTIFICATES", &certificates);
        check.env("KEYSTORE_PASSWORD", PASSWORD).env("TRUSTSTORE_PASSWORD", PASSWORD);
        let said = succeeded(&check.output().expect("python3 is here"));
        assert_eq!(said.matches("valid until").count(), 2, "{said}");
        assert!(!said.contains("may be read by others"), "{said}");
    }
}

pub(crate) async fn a_bad_release_is_rolled_back(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let running = seed.application("driver", "spark-app");
    let shown = seed.fixture.publish(&running).await;
    let moment = Clock::of(&seed.fixture).moment().await;
    seed.bucket_sh(&["upload"], &[("SPARKAPP_PATH", "data/truststore.jks")]);
    let good = data("spark/sparkapp.py");
    let broken = seed.fixture.publish(&seed.application("executor", "spark-app")).await;
    assert_eq!(
        bytes(broken.join("sparkapp.py")),
        data("data/truststore.jks"),
        "what a new pod gets"
    );
    let pod = seed.pod("volumes/as-of.yaml: Pod as-of, volume spark-app").with("asOf", &moment);
    let rolled_back = seed.fixture.publish(&pod).await;
    assert_eq!(bytes(rolled_back.join("sparkapp.py")), good);
    let mut help = seed.as_spark("python3");
    let said = help.arg(rolled_back.join("sparkapp.py")).arg("--help").output();
    assert!(succeeded(&said.expect("python3 is here")).contains("--check"));
    // What runs was never changed under it.
    assert_eq!(bytes(shown.join("sparkapp.py")), good);
}

pub(crate) async fn the_reader_may_read_and_nothing_else(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let mut whole = seed.application("driver", "kafka-certs");
    whole.attributes.remove("prefix");
    seed.fixture.refused(&whole, Code::PermissionDenied).await;
    let (access_key, secret_key) = seed.reader();
    let reader = Credentials::new(access_key, secret_key, None, None, "tests");
    let config = seed.fixture.server.client().config().to_builder().credentials_provider(reader);
    let client = aws_sdk_s3::Client::from_conf(config.build());
    let key = "certs/keystore.jks";
    let put = client.put_object().bucket(&seed.bucket).key(key).body(Vec::new().into());
    let error = put.send().await.expect_err("readers do not write").into_service_error();
    assert_eq!(error.meta().code(), Some("AccessDenied"));
    let delete = client.delete_object().bucket(&seed.bucket).key(key).send().await;
    assert!(delete.is_err(), "readers do not delete");
    let mut public = seed.application("driver", "kafka-certs").with("authentication", "anonymous");
    public.secrets = BTreeMap::new();
    let mut fixture = seed.fixture;
    fixture.reconfigure("policy: { authentication: [secret, anonymous] }\n").await;
    fixture.refused(&public, Code::PermissionDenied).await;
}

/// Regular rotation of the keys of S3: the Secret is edited, and no pod is touched.
pub(crate) async fn new_keys_need_no_restart(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let pod = seed.application("driver", "kafka-certs");
    let target = seed.fixture.publish(&pod).await;
    let (reader, _) = seed.reader();
    let new = "another-secret-key";
    seed.bucket_sh(&[], &[("READER_SECRET_KEY", new)]);
    seed.fixture.says(&pod, "failed").await;
    // The kubelet brings the Secret as it is now.
    let edited = pod.clone().with_secrets(&[("accesskey", &reader), ("secretkey", new)]);
    assert_eq!(seed.fixture.publish(&edited).await, target);
    seed.fixture.says_no_more(&edited, "failed").await;
    seed.bucket_sh(&["upload"], &[("KEYSTORE_PATH", "data/keystore.rotated.jks")]);
    let (store, rotated) = (target.join("keystore.jks"), data("data/keystore.rotated.jks"));
    eventually("a rotation with the new keys", || {
        std::fs::read(&store).is_ok_and(|content| content == rotated).then_some(())
    })
    .await;
}

/// Pod identity: MinIO believes the cluster, and the policy that `bucket.sh` made counts for the token.
pub(crate) async fn a_service_account_needs_no_keys(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let Server::Minio(minio) = &seed.fixture.server else { panic!("these cases are MinIO's") };
    let policy = Some(format!("read-{}", seed.bucket));
    let token = Token { policy, ..Token::of("spark", &format!("etl-{}", seed.bucket)) };
    let stranger = Token::of("spark", &format!("other-{}", seed.bucket));
    let example = "volumes/pod-identity-minio.yaml: Pod pod-identity, volume kafka-certs";
    let pod = |token: Token| {
        let tokens = minio.issuer().issue(&[token]);
        seed.pod(example).with_secrets(&[(TOKENS, &tokens)])
    };
    let target = seed.fixture.publish(&pod(token)).await;
    assert_eq!(bytes(target.join("keystore.jks")), data("data/keystore.jks"));
    let group = seed.fixture.spark();
    assert_eq!(owner(&target.join("keystore.jks")), format!("0:{group} 0440"));
    let refused = seed.fixture.kubelet.publish(&pod(stranger)).await.expect_err("it has no policy");
    let codes = [Code::PermissionDenied, Code::Unauthenticated];
    assert!(codes.contains(&refused.code()), "{refused:?}");
}

/// The same bucket by a `PersistentVolume` and by a claim: what the kubelet sends for them.
pub(crate) async fn claims_show_the_same(fixture: Fixture) {
    let Some(seed) = Seed::start(fixture).await else { return };
    let inline = seed.fixture.publish(&seed.application("driver", "kafka-certs")).await;
    let expected = tree(&inline);
    for (place, handle) in [
        ("volumes/static-pv.yaml: PersistentVolume spark-kafka-certs", "spark-kafka-certs"),
        ("seed/storageclass.yaml: StorageClass s3view-certs, claim certs", "pvc-1"),
    ] {
        for _pod in 0..2 {
            let pod = seed.pod(place);
            let target = seed.fixture.kubelet.target(&pod);
            std::fs::create_dir_all(target.parent().expect("targets are deep"))
                .expect("a directory");
            let mut request = pod.publish_request(&target);
            handle.clone_into(&mut request.volume_id);
            // Without pod information, by a claim that does not say readOnly.
            request.volume_context.retain(|key, _| !key.starts_with("csi.storage.k8s.io/"));
            request.readonly = false;
            let capability = request.volume_capability.as_mut().expect("one was asked for");
            let mode = capability.access_mode.as_mut().expect("one was asked for");
            mode.mode = Mode::MultiNodeReaderOnly.into();
            seed.fixture.kubelet.publish_raw(request, pod.timeout).await.expect("it is published");
            assert_eq!(tree(&target), expected, "{place}");
        }
    }
}
