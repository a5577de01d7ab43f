//! What a publish request says about the pod.
//!
//! Good for logs and for a bucket's access log. It proves nothing: unless the configuration says
//! otherwise, a pod's author may have written it.

use std::{collections::BTreeMap, fmt};

/// The longest name shown; Kubernetes has none longer.
const MAX_NAME: usize = 253;

/// The pod that a volume is for, as far as the request names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its uid.
    pub uid: Option<String>,
    /// The name of its service account.
    pub service_account: Option<String>,
}

impl PodInfo {
    /// Reads the keys that the kubelet adds to a volume context.
    pub fn of(attributes: &BTreeMap<String, String>) -> Self {
        let value = |key: &str| {
            let value = attributes.get(&format!("csi.storage.k8s.io/{key}"));
            value.filter(|value| !value.is_empty()).cloned()
        };
        Self {
            namespace: value("pod.namespace"),
            name: value("pod.name"),
            uid: value("pod.uid"),
            service_account: value("serviceAccount.name"),
        }
    }

    /// `namespace/name` for the comment of a User-Agent; `None` if the request names no pod.
    pub fn name_for_user_agent(&self) -> Option<String> {
        (self.namespace.is_some() || self.name.is_some()).then(|| self.to_string())
    }
}

impl fmt::Display for PodInfo {
    /// `namespace/name`, `-` for what is not known. What no Kubernetes name can contain becomes
    /// `?`, so that a forged name can end neither a header nor the comment that it stands in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let safe = |name: &Option<String>| -> String {
            let name = name.as_deref().unwrap_or("-").chars().take(MAX_NAME);
            name.map(|c| if printable(c) { c } else { '?' }).collect()
        };
        write!(f, "{}/{}", safe(&self.namespace), safe(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> PodInfo {
        let entry = |key: &str, value: &str| (format!("csi.storage.k8s.io/{key}"), value.into());
        PodInfo::of(&BTreeMap::from([
            entry("pod.namespace", namespace),
            entry("pod.name", name),
            entry("pod.uid", "u"),
            entry("serviceAccount.name", "spark"),
        ]))
    }

    #[test]
    fn the_kubelets_keys_name_the_pod() {
        let pod = pod("spark", "driver-0");
        assert_eq!(pod.name_for_user_agent().as_deref(), Some("spark/driver-0"));
        assert_eq!(
            (pod.uid.as_deref(), pod.service_account.as_deref()),
            (Some("u"), Some("spark"))
        );
    }

    #[test]
    fn without_them_there_is_no_pod() {
        assert_eq!(PodInfo::of(&BTreeMap::new()), PodInfo::default());
        assert_eq!(PodInfo::default().name_for_user_agent(), None);
        assert_eq!(pod("", "p").to_string(), "-/p");
    }

    #[test]
    fn a_forged_name_stays_inside_the_comment() {
        assert_eq!(pod("a) evil\r\n", "\u{e9}/..").to_string(), "a??evil??/??..");
        assert_eq!(pod("n", &"x".repeat(9000)).to_string().len(), 255);
    }
}
