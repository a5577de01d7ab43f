//! What a user asked for, word by word, to tell a repeated publish from a different one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::attributes::is_reserved;

/// The arguments of a publish by which CSI calls two publishes the same.
///
/// Not among them: secrets and tokens (they rotate), what Kubernetes says about the pod, access
/// modes (every view is read-only), and configured defaults, since a changed configuration must
/// not make the next republish of a running pod fail. There is nothing secret in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishArguments {
    volume_id: String,
    attributes: BTreeMap<String, String>,
    mount_group: Option<String>,
}

impl PublishArguments {
    /// Takes the arguments out of a request; `attributes` is the whole volume context.
    pub fn new(
        volume_id: String,
        attributes: &BTreeMap<String, String>,
        mount_group: Option<String>,
    ) -> Self {
        let attributes = attributes.iter().filter(|(key, _)| !is_reserved(key));
        let attributes = attributes.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { volume_id, attributes, mount_group }
    }

    /// The volume's id.
    pub fn volume_id(&self) -> &str {
        &self.volume_id
    }

    /// The pod's fsGroup, as the request has it.
    pub fn mount_group(&self) -> Option<&str> {
        self.mount_group.as_deref()
    }

    /// How these arguments differ from those that a target `was` published with; `None` if not.
    pub fn difference(&self, was: &Self) -> Option<String> {
        let mut names: Vec<&str> =
            self.attributes.keys().chain(was.attributes.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let value = |arguments: &'_ Self, name: &str| arguments.attributes.get(name).cloned();
        let mut differences = Vec::new();
        let mut compare = |what: &str, now: Option<&str>, was: Option<&str>| {
            if now != was {
                let (now, was) = (quoted(now, "not given"), quoted(was, "without it"));
                let with = if was.starts_with('"') { "with " } else { "" };
                differences.push(format!("{what} is {now} and was published {with}{was}"));
            }
        };
        compare("volume id", Some(&self.volume_id), Some(&was.volume_id));
        compare("mount group (fsGroup)", self.mount_group(), was.mount_group());
        for name in names {
            let (now, was) = (value(self, name), value(was, name));
            compare(&format!("attribute {name}"), now.as_deref(), was.as_deref());
        }
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

/// A value as a message shows it; a URL with a user in it is not shown.
fn quoted(value: Option<&str>, absent: &str) -> String {
    match value {
        None => absent.to_owned(),
        Some(value) if value.contains('@') => "\"(not shown)\"".to_owned(),
        Some(value) => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(attributes: &[(&str, &str)], group: Option<&str>) -> PublishArguments {
        let attributes =
            attributes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        PublishArguments::new("v".into(), &attributes, group.map(Into::into))
    }

    #[test]
    fn reserved_keys_make_no_difference() {
        let one = [("prefix", "a"), ("csi.storage.k8s.io/pod.name", "x")];
        let two = [("prefix", "a"), ("storage.kubernetes.io/csiProvisionerIdentity", "y")];
        assert_eq!(arguments(&one, None), arguments(&two, None));
        assert_eq!(arguments(&one, None).difference(&arguments(&two, None)), None);
    }

    #[test]
    fn every_difference_is_named() {
        let now = arguments(&[("prefix", "a"), ("uid", "1")], Some("5"));
        let was = arguments(&[("prefix", "b"), ("gid", "2")], None);
        assert_eq!(
            now.difference(&was).unwrap(),
            "mount group (fsGroup) is \"5\" and was published without it; \
             attribute gid is not given and was published with \"2\"; \
             attribute prefix is \"a\" and was published with \"b\"; \
             attribute uid is \"1\" and was published without it"
        );
    }

    #[test]
    fn another_volume_differs() {
        let one = PublishArguments::new("a".into(), &BTreeMap::new(), None);
        let two = PublishArguments::new("b".into(), &BTreeMap::new(), None);
        let text = one.difference(&two).unwrap();
        assert_eq!(text, "volume id is \"a\" and was published with \"b\"");
    }

    #[test]
    fn arguments_survive_the_registry() {
        let before = arguments(&[("prefix", "a")], Some("5"));
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<PublishArguments>(&text).unwrap(), before);
    }
}
