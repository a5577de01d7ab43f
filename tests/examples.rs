//! The examples, held to the driver's own parsers: whoever copies one gets what it says.
//!
//! `examples/check` holds them to Kubernetes, Spark and Airflow; `tests/it/seed.rs` publishes those of
//! `examples/seed` on a real MinIO.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

#[path = "examples/manifests.rs"]
mod manifests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::SystemTime,
};

use s3view::{
    config::Config,
    volume::{Brings, Selection, SpecContext, SpecError, VolumeSecrets, VolumeSpec},
};
use serde_json::Value;

use self::manifests::{Attributes, Manifests, Volume, root};

/// What a user may get wrong in the value of each attribute that the examples have.
const TYPOS: [(&str, &str); 15] = [
    ("bucket", "Kafka_Certs_Bucket"),
    ("prefix", "/certs"),
    ("sources", "[{prefxi: certs}]"),
    ("include", "*.{parquet,orc}"),
    ("exclude", "[a"),
    ("view", "dsik"),
    ("refresh", "nevr"),
    ("settle", "5"),
    ("uid", "spark"),
    ("fileMode", "0480"),
    ("asOf", "31.01.2026 12:00"),
    ("authentication", "token"),
    ("roleArn", "kafka-certs-reader"),
    ("expectedBucketOwner", "1234"),
    ("layout", "plain"),
];

#[test]
fn the_driver_takes_every_volume() {
    let manifests = Manifests::load();
    assert!(manifests.volumes.len() > 20, "the examples are found no more");
    for volume in &manifests.volumes {
        parse(&manifests, volume, &volume.attributes).unwrap_or_else(|error| {
            panic!("{}: {error}", volume.place);
        });
    }
}

#[test]
fn no_volume_is_overlooked() {
    let manifests = Manifests::load();
    let known: BTreeSet<_> = manifests.volumes.iter().map(|volume| &volume.attributes).collect();
    for (file, document) in &manifests.documents {
        for attributes in manifests::mentioned(document) {
            assert!(known.contains(&attributes), "{file}: {attributes:?} is not checked");
        }
    }
}

#[test]
fn a_typo_in_any_example_is_found() {
    let manifests = Manifests::load();
    for volume in &manifests.volumes {
        for name in volume.attributes.keys() {
            let mut misspelt = volume.attributes.clone();
            let value = misspelt.remove(name).unwrap();
            misspelt.insert(format!("{name}s"), value);
            refused(&manifests, volume, &misspelt, name);
            let wrong = TYPOS.iter().find(|(known, _)| known == name);
            let (_, wrong) = wrong.unwrap_or_else(|| panic!("TYPOS lacks {name}"));
            let mut mistaken = volume.attributes.clone();
            mistaken.insert(name.clone(), (*wrong).to_owned());
            refused(&manifests, volume, &mistaken, name);
        }
    }
}

#[test]
fn every_secret_is_there_and_is_understood() {
    let manifests = Manifests::load();
    let mut used = 0;
    for volume in &manifests.volumes {
        let Some(name) = &volume.secret else { continue };
        let secret = manifests.secrets.get(name);
        let secret = secret.unwrap_or_else(|| panic!("{}: no Secret {name}", volume.place));
        let parsed = VolumeSecrets::parse(secret.clone().into_iter().collect()).unwrap();
        assert!(parsed.keys.is_some(), "{}: {name} has no access key", volume.place);
        used += 1;
    }
    assert!(used > 10, "{used}");
    // The Secret that the situation began with, as it is.
    let minio = manifests.secrets["minio-credentials"].clone();
    let keys = VolumeSecrets::parse(minio.into_iter().collect()).unwrap().keys.unwrap();
    assert_eq!(keys.access_key_id, "minio");
}

#[test]
fn every_pod_mounts_what_it_declares() {
    let manifests = Manifests::load();
    assert!(manifests.pods.len() > 10, "the examples are found no more");
    for pod in &manifests.pods {
        assert_eq!(pod.declared, pod.mounted, "{}", pod.place);
        assert!(pod.paths.iter().all(|path| path.starts_with('/')), "{}", pod.place);
    }
}

#[test]
fn only_what_was_before_has_init_containers() {
    let manifests = Manifests::load();
    let with = manifests.pods.iter().filter(|pod| pod.init_containers > 0);
    let with: BTreeSet<_> = with.map(|pod| pod.place.split(':').next().unwrap()).collect();
    assert_eq!(with, BTreeSet::from(["seed/before.yaml"]));
}

/// Inline volumes, pod templates, claims and the DAG are ways to the same two volumes.
#[test]
fn every_way_shows_the_same() {
    let manifests = Manifests::load();
    let ways = [
        "seed/sparkapplication.yaml",
        "seed/sparkapplication-template.yaml",
        "seed/storageclass.yaml",
        "spark/pod-template.yaml",
        "airflow/rendered.yaml",
    ];
    let of = |file: &str| -> BTreeSet<Attributes> {
        let found = manifests.volumes.iter().filter(|volume| volume.file == file);
        found.map(|volume| volume.attributes.clone()).map(unpinned).collect()
    };
    let first = of(ways[0]);
    assert_eq!(first.len(), 2);
    for way in ways {
        assert_eq!(of(way), first, "{way}");
    }
}

/// A pinned volume follows nothing, and so does one that never refreshes.
fn unpinned(mut attributes: Attributes) -> Attributes {
    if attributes.remove("asOf").is_some() {
        attributes.insert("refresh".into(), "never".into());
    }
    attributes
}

#[test]
fn the_readers_policy_is_as_wide_as_the_examples() {
    let manifests = Manifests::load();
    let policy = fs::read_to_string(root().join("seed/reader-policy.json")).unwrap();
    let policy: Value = serde_json::from_str(&policy).unwrap();
    let allowed = &policy["Statement"][0]["Condition"]["StringEquals"]["s3:prefix"];
    let allowed: BTreeSet<String> = serde_json::from_value(allowed.clone()).unwrap();
    let mut used = BTreeSet::new();
    for volume in &manifests.volumes {
        let spec = parse(&manifests, volume, &volume.attributes).unwrap();
        for source in spec.sources.iter().filter(|it| it.bucket.as_str() == "kafka-certs-bucket") {
            let Selection::Prefix(prefix) = &source.selection else { continue };
            used.insert(prefix.as_str().to_owned());
        }
    }
    assert_eq!(used, allowed);
}

#[test]
fn images_have_versions() {
    let manifests = Manifests::load();
    let images: Vec<String> =
        manifests.documents.iter().flat_map(|(_, document)| manifests::images(document)).collect();
    assert!(images.len() > 10, "the examples are found no more");
    for image in images {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag.contains(|c: char| c.is_ascii_digit())), "{image}");
    }
}

#[test]
fn the_index_names_every_example() {
    let index = fs::read_to_string(root().join("README.md")).unwrap();
    for file in manifests::files() {
        assert!(index.contains(&format!("]({file})")), "examples/README.md lacks {file}");
    }
}

fn refused(manifests: &Manifests, volume: &Volume, attributes: &Attributes, name: &str) {
    let error = parse(manifests, volume, attributes);
    let error = error.expect_err(&format!("{}: {name} may be anything", volume.place));
    assert!(error.to_string().contains(name), "{}: {error}", volume.place);
}

/// Parses as the plugin would, with the configuration and the pod that the example says.
fn parse(
    manifests: &Manifests,
    volume: &Volume,
    attributes: &BTreeMap<String, String>,
) -> Result<VolumeSpec, SpecError> {
    let config = config(if volume.file.contains("-aws.") { "aws" } else { "minio" });
    let access_key =
        volume.secret.as_ref().is_some_and(|name| manifests.secrets.contains_key(name));
    let context = SpecContext {
        config: &config,
        namespace: Some("spark"),
        mount_group: volume.fs_group.as_deref(),
        // A pod without keys has what the CSIDriver's tokenRequests bring.
        brings: Some(Brings { access_key, token: !access_key }),
        now: SystemTime::now(),
    };
    VolumeSpec::parse(attributes, &context)
}

/// The configuration file that the chart makes of values/NAME.yaml, as far as it matters here.
fn config(name: &str) -> Config {
    let values = fs::read_to_string(root().join(format!("values/{name}.yaml"))).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    Config::parse(&values["config"].to_string()).unwrap()
}

/// Tokens are for the audience that the endpoint expects.
#[test]
fn the_audiences_fit() {
    for name in ["aws", "minio"] {
        let values = fs::read_to_string(root().join(format!("values/{name}.yaml"))).unwrap();
        let values: Value = serde_saphyr::from_str(&values).unwrap();
        let asked = values["csiDriver"]["tokenRequests"][0]["audience"].as_str();
        assert!(asked.is_some(), "{name}");
        let sts = config(name).endpoints[name].sts.clone().unwrap();
        assert_eq!(sts.audience.as_deref(), asked, "{name}");
    }
}

#[tokio::test]
async fn the_controller_takes_every_class() {
    use s3view::controller::{Controller, CreateRequest};
    let text = fs::read_to_string(root().join("seed/storageclass.yaml")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    for class in documents.iter().filter(|it| it["kind"] == "StorageClass") {
        let parameters: BTreeMap<String, String> =
            serde_json::from_value(class["parameters"].clone()).unwrap();
        let parameters = parameters.into_iter().filter(|(name, _)| !name.contains("-secret-"));
        let claim = [("namespace", "spark"), ("name", "certs")];
        let claim = claim.map(|(key, name)| (format!("csi.storage.k8s.io/pvc/{key}"), name.into()));
        let controller = Controller::new(config("minio"), std::sync::Arc::default(), None).unwrap();
        let created = controller
            .create(CreateRequest::new(
                "pvc-1".to_owned(),
                parameters.chain(claim).collect(),
                std::collections::HashMap::new(),
                tokio::time::Instant::now(),
            ))
            .await
            .unwrap();
        assert_eq!(created.attributes["prefix"], "certs/");
    }
}
