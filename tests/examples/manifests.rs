//! What the YAML files of examples/ ask of the driver, wherever it stands in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

pub(crate) type Attributes = BTreeMap<String, String>;

const DRIVER: &str = "csi.s3view.dev";

/// Every manifest below examples/.
pub(crate) struct Manifests {
    /// The files with their documents.
    pub(crate) documents: Vec<(String, Value)>,
    /// Every volume of the driver, once for each pod that it stands in.
    pub(crate) volumes: Vec<Volume>,
    /// Every pod that is made of them.
    pub(crate) pods: Vec<PodView>,
    /// The Secrets, decoded.
    pub(crate) secrets: BTreeMap<String, Attributes>,
}

/// One volume as a publish would bring it.
pub(crate) struct Volume {
    pub(crate) file: String,
    pub(crate) place: String,
    pub(crate) attributes: Attributes,
    pub(crate) secret: Option<String>,
    pub(crate) fs_group: Option<String>,
}

/// A pod as far as volumes are concerned.
pub(crate) struct PodView {
    pub(crate) place: String,
    pub(crate) declared: BTreeSet<String>,
    pub(crate) mounted: BTreeSet<String>,
    pub(crate) paths: Vec<String>,
    pub(crate) init_containers: usize,
}

/// examples/ itself.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The examples for people who run a cluster, as paths below examples/.
pub(crate) fn files() -> Vec<String> {
    let mut files = Vec::new();
    for directory in ["seed", "airflow", "spark", "volumes", "values"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                files.push(format!("{directory}/{}", entry.file_name().to_str().unwrap()));
            }
        }
    }
    files.sort();
    files
}

impl Manifests {
    pub(crate) fn load() -> Self {
        let mut it = Self {
            documents: Vec::new(),
            volumes: Vec::new(),
            pods: Vec::new(),
            secrets: BTreeMap::new(),
        };
        for file in files() {
            let is_yaml = Path::new(&file).extension().is_some_and(|it| it == "yaml");
            let is_manifest = is_yaml && !file.starts_with("values/");
            if !is_manifest {
                continue;
            }
            let text = fs::read_to_string(root().join(&file)).unwrap();
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            it.documents.extend(documents.into_iter().map(|document| (file.clone(), document)));
        }
        for (file, document) in it.documents.clone() {
            it.read(&file, &document);
        }
        it
    }

    fn read(&mut self, file: &str, document: &Value) {
        let (kind, name) = (text(&document["kind"]), text(&document["metadata"]["name"]));
        let place = format!("{file}: {kind} {name}");
        let spec = &document["spec"];
        match kind.as_str() {
            "Pod" => self.pod(file, &place, spec),
            "Deployment" => self.pod(file, &place, &spec["template"]["spec"]),
            "SparkApplication" => {
                for role in ["driver", "executor"] {
                    self.pod(file, &format!("{place}, {role}"), &spark_pod(spec, role));
                }
            }
            "PersistentVolume" => self.volume(file, &place, &spec["csi"], None),
            "StorageClass" => self.class(file, &place, document),
            "Secret" => {
                self.secrets.insert(name, secret(document));
            }
            "Namespace"
            | "ServiceAccount"
            | "Role"
            | "RoleBinding"
            | "Service"
            | "PersistentVolumeClaim" => {}
            other => panic!("{place}: what would {other} ask of the driver?"),
        }
    }

    fn pod(&mut self, file: &str, place: &str, spec: &Value) {
        let fs_group = spec["securityContext"]["fsGroup"].as_u64().map(|group| group.to_string());
        let containers = items(&spec["containers"]).chain(items(&spec["initContainers"]));
        let mounts: Vec<&Value> =
            containers.flat_map(|container| items(&container["volumeMounts"])).collect();
        for volume in items(&spec["volumes"]) {
            let place = format!("{place}, volume {}", text(&volume["name"]));
            self.volume(file, &place, &volume["csi"], fs_group.clone());
        }
        self.pods.push(PodView {
            place: place.to_owned(),
            declared: items(&spec["volumes"]).map(|volume| text(&volume["name"])).collect(),
            mounted: mounts.iter().map(|mount| text(&mount["name"])).collect(),
            paths: mounts.iter().map(|mount| text(&mount["mountPath"])).collect(),
            init_containers: items(&spec["initContainers"]).count(),
        });
    }

    /// A `csi` volume source, inline or of a `PersistentVolume`; that of another driver is passed over.
    fn volume(&mut self, file: &str, place: &str, csi: &Value, fs_group: Option<String>) {
        if csi["driver"] != DRIVER {
            return;
        }
        let secret = csi["nodePublishSecretRef"]["name"].as_str().map(str::to_owned);
        self.volumes.push(Volume {
            file: file.to_owned(),
            place: place.to_owned(),
            attributes: attributes(&csi["volumeAttributes"]),
            secret,
            fs_group,
        });
    }

    /// A `StorageClass`, once for each claim in its file.
    fn class(&mut self, file: &str, place: &str, class: &Value) {
        if class["provisioner"] != DRIVER {
            return;
        }
        let mut parameters = attributes(&class["parameters"]);
        let secret = parameters.remove("csi.storage.k8s.io/node-publish-secret-name");
        parameters.retain(|name, _| !name.starts_with("csi.storage.k8s.io/"));
        let claims: Vec<Value> = self
            .documents
            .iter()
            .filter(|(of, it)| {
                of == file && it["spec"]["storageClassName"] == class["metadata"]["name"]
            })
            .map(|(_, claim)| claim["metadata"].clone())
            .collect();
        assert!(!claims.is_empty(), "{place}: no claim uses it");
        for claim in claims {
            let named = |value: &String| {
                value
                    .replace("${pvc.name}", &text(&claim["name"]))
                    .replace("${pvc.namespace}", &text(&claim["namespace"]))
            };
            let attributes = parameters.iter().map(|(k, v)| (k.clone(), named(v))).collect();
            self.volumes.push(Volume {
                file: file.to_owned(),
                place: format!("{place}, claim {}", text(&claim["name"])),
                attributes,
                secret: secret.clone(),
                fs_group: None,
            });
        }
    }
}

/// The pod that the operator makes of its own fields, or Spark of a template.
fn spark_pod(spec: &Value, role: &str) -> Value {
    let part = &spec[role];
    if part["template"].is_object() {
        return part["template"]["spec"].clone();
    }
    let mounted: BTreeSet<String> =
        items(&part["volumeMounts"]).map(|mount| text(&mount["name"])).collect();
    // The webhook adds what the role mounts.
    let volumes: Vec<&Value> =
        items(&spec["volumes"]).filter(|volume| mounted.contains(&text(&volume["name"]))).collect();
    json!({
        "securityContext": part["podSecurityContext"],
        "containers": [{ "volumeMounts": part["volumeMounts"] }],
        "initContainers": part["initContainers"],
        "volumes": volumes,
    })
}

/// The attributes of every volume of the driver, wherever in a document; of a `StorageClass` none, since
/// they depend on the claim.
pub(crate) fn mentioned(document: &Value) -> Vec<Attributes> {
    let mut found = Vec::new();
    if document["driver"] == DRIVER {
        found.push(attributes(&document["volumeAttributes"]));
    }
    let children: Vec<&Value> = match document {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    found.extend(children.into_iter().flat_map(mentioned));
    found
}

/// Every image in a document.
pub(crate) fn images(document: &Value) -> Vec<String> {
    match document {
        Value::Array(items) => items.iter().flat_map(images).collect(),
        Value::Object(fields) => {
            let own = fields.get("image").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(images)).collect()
        }
        _ => Vec::new(),
    }
}

fn secret(document: &Value) -> Attributes {
    let decode = |(name, value): (String, String)| {
        let value = STANDARD.decode(value).expect("base64");
        (name, String::from_utf8(value).expect("text"))
    };
    let mut values: Attributes = attributes(&document["data"]).into_iter().map(decode).collect();
    values.extend(attributes(&document["stringData"]));
    values
}

fn attributes(value: &Value) -> Attributes {
    let fields = value.as_object().into_iter().flatten();
    let quoted = |name: &str, value: &Value| {
        let value = value.as_str();
        value.unwrap_or_else(|| panic!("{name} must be text; put it in quotes")).to_owned()
    };
    fields.map(|(name, value)| (name.clone(), quoted(name, value))).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
