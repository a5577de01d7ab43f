//! Who a request's pod certainly is, and what the policy grants it.
//!
//! Namespace and service account count where only the kubelet can have written them: in a token
//! among the secrets, or in the volume context of a driver that is configured to believe it. Where
//! neither is there, nobody knows whose pod it is, and a policy that names namespaces grants nothing.

use serde_json::json;

use crate::{
    config::{Config, DriverGrant, TrustConfig},
    object::Prefix,
    problems::Problems,
};

use super::{
    AuthenticationKind, EndpointChoice, PodInfo, Selection, ServiceTokens, SourceSpec, SpecError,
    VolumeSpec,
};

/// The namespace and service account of a pod, beyond doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its namespace.
    pub namespace: String,
    /// The name of its service account.
    pub service_account: Option<String>,
}

impl Tenant {
    /// The pod of a request; `certain` are tokens that came among its secrets. `None` if nobody
    /// vouches for what the request says.
    pub fn of(pod: &PodInfo, certain: Option<&ServiceTokens>, trust: &TrustConfig) -> Option<Self> {
        let of_token = certain.and_then(ServiceTokens::any).and_then(|token| {
            let (namespace, service_account) =
                (token.namespace.clone()?, token.service_account.clone());
            Some(Self { namespace, service_account })
        });
        of_token.or_else(|| {
            let namespace = pod.namespace.clone().filter(|_| trust.pod_info)?;
            Some(Self { namespace, service_account: pod.service_account.clone() })
        })
    }
}

/// Refuses what a volume wants to read with the driver's own credentials and the policy grants its
/// pod not. Other volumes are none of its business.
///
/// # Errors
/// [`SpecError::Denied`] with every source that is not granted and the line that would grant it.
pub fn check_driver_credentials(
    spec: &VolumeSpec,
    tenant: Option<&Tenant>,
    config: &Config,
) -> Result<(), SpecError> {
    if spec.authentication != AuthenticationKind::Driver {
        return Ok(());
    }
    let denied = |text: &str| Err(SpecError::Denied(text.to_owned()));
    let endpoint = match &spec.endpoint {
        EndpointChoice::Default => config.default_endpoint_name(),
        EndpointChoice::Named(name) => Some(name.as_str()),
        EndpointChoice::Url(_) => {
            return denied(
                "the driver's own credentials are used at configured endpoints only; name one in \
                 endpoint instead of a URL",
            );
        }
    };
    let Some(tenant) = tenant else {
        return denied(
            "the driver's own credentials are granted by namespace, and nothing vouches for this \
             pod's; set trust.podInfo in the driver's configuration, if its CSIDriver has \
             podInfoOnMount, or let its tokens come in secrets (serviceAccountTokenInSecrets)",
        );
    };
    let asked = Asked { endpoint, tenant };
    let mut problems = Problems::default();
    for (index, source) in spec.sources.iter().enumerate() {
        let grants = &config.policy.driver_credentials;
        if has_dot_segments(source) {
            // To S3 these are names like others; to whatever stands in between they may not be.
            let text = "must not have '.' or '..' between slashes beside authentication \"driver\"";
            problems.add(format!("source {index}"), text);
        } else if !grants.iter().any(|grant| asked.is_granted(source, grant, config)) {
            problems.add(format!("source {index}"), asked.refusal(source));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(SpecError::Denied(problems.to_string())) }
}

fn has_dot_segments(source: &SourceSpec) -> bool {
    let text = match &source.selection {
        Selection::Prefix(prefix) => prefix.as_str(),
        Selection::Key { key, .. } => key.as_str(),
    };
    text.split('/').any(|segment| matches!(segment, "." | ".."))
}

struct Asked<'a> {
    /// By name; `None` is AWS S3 where no endpoint is configured.
    endpoint: Option<&'a str>,
    tenant: &'a Tenant,
}

impl Asked<'_> {
    fn is_granted(&self, source: &SourceSpec, grant: &DriverGrant, config: &Config) -> bool {
        let Tenant { namespace, service_account } = self.tenant;
        let account = grant.service_account.as_ref();
        let granted_at = grant.endpoint.as_deref().or_else(|| config.default_endpoint_name());
        granted_at == self.endpoint
            && grant.namespace == *namespace
            && account.is_none_or(|account| Some(account) == service_account.as_ref())
            && grant.bucket == source.bucket.as_str()
            && grant.prefix.as_ref().is_none_or(|prefix| is_below(source, prefix))
    }

    fn refusal(&self, source: &SourceSpec) -> String {
        let Tenant { namespace, service_account } = self.tenant;
        // JSON strings are YAML, whatever is in them.
        let mut line: Vec<String> = Vec::new();
        let mut add = |key: &str, value: &str| line.push(format!("{key}: {}", json!(value)));
        if let Some(endpoint) = self.endpoint {
            add("endpoint", endpoint);
        }
        add("namespace", namespace);
        if let Some(account) = service_account {
            add("serviceAccount", account);
        }
        add("bucket", source.bucket.as_str());
        let below = match &source.selection {
            Selection::Prefix(prefix) => prefix.as_str(),
            Selection::Key { key, .. } => key.as_str().rsplit_once('/').map_or("", |it| it.0),
        };
        if !below.is_empty() {
            add("prefix", below);
        }
        format!(
            "pods of namespace {namespace:?} may not read {} with the driver's own credentials; \
             the driver's configuration must list in policy.driverCredentials: - {{ {} }}",
            described(source),
            line.join(", ")
        )
    }
}

fn described(source: &SourceSpec) -> String {
    let bucket = source.bucket.as_str();
    match &source.selection {
        Selection::Prefix(prefix) => format!("bucket {bucket:?}, prefix {:?}", prefix.as_str()),
        Selection::Key { key, .. } => format!("bucket {bucket:?}, key {:?}", key.as_str()),
    }
}

/// Whether all that a source can show lies below a directory-like prefix.
fn is_below(source: &SourceSpec, prefix: &str) -> bool {
    let Ok(prefix) = Prefix::parse(prefix) else { return false };
    let shown = match &source.selection {
        Selection::Prefix(prefix) => prefix.as_str(),
        Selection::Key { key, .. } => key.as_str(),
    };
    prefix.strip(shown).is_some()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use test_case::test_case;

    use super::*;
    use crate::{
        failure::FailureKind,
        volume::{Brings, SpecContext, tokens::tests::token},
    };

    const CONFIG: &str = "
        defaultEndpoint: minio
        endpoints: { minio: { url: http://minio }, ceph: { url: http://ceph } }
        policy:
          endpointUrls: ['http://ceph']
          authentication: [secret, pod, driver]
          driverCredentials:
            - { namespace: spark, bucket: jars, prefix: apps }
            - { namespace: spark, serviceAccount: etl, bucket: data }
            - { endpoint: ceph, namespace: ml, bucket: models }
        ";

    fn check(tenant: Option<(&str, &str)>, attributes: &[(&str, &str)]) -> Result<(), SpecError> {
        let config = Config::parse(CONFIG).unwrap();
        let attributes = [&[("authentication", "driver")], attributes].concat();
        let attributes: BTreeMap<String, String> =
            attributes.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let context = SpecContext {
            config: &config,
            namespace: None,
            mount_group: None,
            brings: Some(Brings::default()),
            now: SystemTime::now(),
        };
        let spec = VolumeSpec::parse(&attributes, &context).unwrap();
        let tenant = tenant.map(|(namespace, account)| Tenant {
            namespace: namespace.into(),
            service_account: Some(account.into()),
        });
        check_driver_credentials(&spec, tenant.as_ref(), &config)
    }

    #[test_case("spark/any", "jars", "apps", None => true; "the prefix itself")]
    #[test_case("spark/any", "jars", "apps/v1", None => true; "below the prefix")]
    #[test_case("spark/any", "jars", "apps-old", None => false; "a sibling")]
    #[test_case("spark/any", "jars", "", None => false; "the whole bucket")]
    #[test_case("spark/etl", "data", "x", None => true; "the service account")]
    #[test_case("spark/any", "data", "x", None => false; "another service account")]
    #[test_case("ml/any", "models", "", Some("ceph") => true; "at that endpoint")]
    #[test_case("ml/any", "models", "", None => false; "at another endpoint")]
    #[test_case("ml/any", "jars", "apps", None => false; "another namespace")]
    #[test_case("spark/any", "jars", "apps", Some("minio") => true; "the default by its name")]
    fn grants(tenant: &str, bucket: &str, prefix: &str, endpoint: Option<&str>) -> bool {
        let attributes = [("bucket", bucket), ("prefix", prefix)];
        let endpoint = endpoint.map(|name| ("endpoint", name));
        let attributes: Vec<_> = attributes.into_iter().chain(endpoint).collect();
        check(tenant.split_once('/'), &attributes).is_ok()
    }

    #[test]
    fn every_source_must_be_granted() {
        let spark = Some(("spark", "any"));
        let sources = |second: &str| format!("[{{prefix: apps}}, {{{second}}}]");
        let ask = |text: &str| check(spark, &[("bucket", "jars"), ("sources", &sources(text))]);
        assert!(ask("key: apps/a.jar").is_ok());
        for other in ["key: apps", "key: other/a.jar", "prefix: other", "bucket: data"] {
            let error = ask(other).unwrap_err();
            assert_eq!(error.kind(), FailureKind::Denied);
            assert!(error.to_string().starts_with("source 1: "), "{error}");
        }
    }

    #[test]
    fn a_denial_says_what_to_add() {
        let text = check(Some(("ml", "train")), &[("bucket", "jars"), ("prefix", "apps")]);
        let text = text.unwrap_err().to_string();
        let (_, line) = text.split_once("policy.driverCredentials: - ").unwrap();
        assert_eq!(
            line,
            "{ endpoint: \"minio\", namespace: \"ml\", serviceAccount: \"train\", \
             bucket: \"jars\", prefix: \"apps/\" }"
        );
        let config = format!(
            "endpoints: {{ minio: {{ url: http://a }} }}\npolicy: {{ driverCredentials: [{line}] }}"
        );
        assert_eq!(Config::parse(&config).unwrap().policy.driver_credentials.len(), 1);
    }

    #[test]
    fn a_pod_that_nobody_knows_is_granted_nothing() {
        let text = check(None, &[("bucket", "jars"), ("prefix", "apps")]).unwrap_err().to_string();
        assert!(text.contains("trust.podInfo"), "{text}");
    }

    #[test]
    fn a_url_gets_no_credentials_of_the_driver() {
        let attributes = [("bucket", "models"), ("endpoint", "http://ceph")];
        let text = check(Some(("ml", "a")), &attributes).unwrap_err().to_string();
        assert!(text.contains("configured endpoints only"), "{text}");
    }

    #[test]
    fn only_the_kubelet_says_who_a_pod_is() {
        let claims = json!({
            "sub": "system:serviceaccount:real:account", "exp": 4_000_000_000_u64,
            "kubernetes.io": { "namespace": "real", "serviceaccount": { "name": "account" } },
        });
        let tokens = json!({ "a": { "token": token(&claims) } }).to_string();
        let tokens = ServiceTokens::parse(&tokens).unwrap();
        let pod = PodInfo { namespace: Some("forged".into()), ..PodInfo::default() };
        let trust = |pod_info| TrustConfig { pod_info, context_tokens: false };
        let namespace = |tokens: Option<&ServiceTokens>, pod_info| {
            Tenant::of(&pod, tokens, &trust(pod_info)).map(|tenant| tenant.namespace)
        };
        assert_eq!(namespace(None, false), None);
        assert_eq!(namespace(None, true).as_deref(), Some("forged"));
        assert_eq!(namespace(tokens.as_ref(), false).as_deref(), Some("real"));
        assert_eq!(namespace(tokens.as_ref(), true).as_deref(), Some("real"));
    }
}
