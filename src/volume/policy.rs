//! What the policy says to a volume: asked when its attributes are parsed, and again for one that is
//! published, since the policy may have changed.

use url::Url;

use super::{EndpointChoice, SpecError, Tenant, VolumeSpec, check_driver_credentials};
use crate::config::{AuthenticationKind, Config, Policy};

/// Refuses a volume that was let in by another policy than `config`'s, if that does not let it in.
///
/// # Errors
/// [`SpecError::Denied`], naming the key that would allow it.
pub fn check_policy(
    spec: &VolumeSpec,
    tenant: Option<&Tenant>,
    config: &Config,
) -> Result<(), SpecError> {
    let policy = &config.policy;
    let endpoint = match &spec.endpoint {
        EndpointChoice::Url(url) => Some(("endpoint", url)),
        EndpointChoice::Default | EndpointChoice::Named(_) => None,
    };
    let sts_endpoint = spec.role.sts_endpoint.as_ref().map(|url| ("stsEndpoint", url));
    for (attribute, url) in endpoint.into_iter().chain(sts_endpoint) {
        if let Some(text) = denied_url(url, policy) {
            return Err(SpecError::Denied(format!("{attribute}: {text}")));
        }
    }
    if let Some(text) = denied_authentication(spec.authentication, policy) {
        return Err(SpecError::Denied(format!("authentication: {text}")));
    }
    check_driver_credentials(spec, tenant, config)
}

/// Why a volume may not use that kind of authentication, if it may not.
pub(super) fn denied_authentication(kind: AuthenticationKind, policy: &Policy) -> Option<String> {
    if policy.authentication.contains(&kind) {
        return None;
    }
    let allowed: Vec<_> = policy.authentication.iter().map(|kind| kind.as_str()).collect();
    Some(format!(
        "\"{kind}\" is not allowed by policy.authentication [{}] in the driver's configuration",
        allowed.join(", ")
    ))
}

/// Why a volume may not name that URL, if it may not.
pub(super) fn denied_url(url: &Url, policy: &Policy) -> Option<String> {
    if policy.endpoint_urls.iter().any(|pattern| pattern.matches(url)) {
        return None;
    }
    let url = url.as_str().trim_end_matches('/');
    let key = "policy.endpointUrls in the driver's configuration";
    Some(format!("{url:?} is not allowed; {key} must list it"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use test_case::test_case;

    use super::*;
    use crate::volume::{Brings, SpecContext};

    const LETS_IN: &str = "
        endpoints: { minio: { url: http://minio } }
        policy:
          endpointUrls: ['https://s3.example.com', 'https://sts.example.com']
          authentication: [pod, driver]
          driverCredentials: [{ namespace: spark, bucket: jars }]
        ";

    const URLS: [(&str, &str); 3] = [
        ("endpoint", "https://s3.example.com"),
        ("stsEndpoint", "https://sts.example.com"),
        ("authentication", "pod"),
    ];

    fn check(attributes: &[(&str, &str)], now: &str) -> Result<(), SpecError> {
        let (config, now) = (Config::parse(LETS_IN).unwrap(), Config::parse(now).unwrap());
        let attributes = [&[("bucket", "jars")], attributes].concat();
        let attributes: BTreeMap<String, String> =
            attributes.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let context = SpecContext {
            config: &config,
            namespace: None,
            mount_group: None,
            brings: Some(Brings { access_key: false, token: true }),
            now: SystemTime::now(),
        };
        let spec = VolumeSpec::parse(&attributes, &context).unwrap();
        let tenant = Tenant { namespace: "spark".into(), service_account: None };
        check_policy(&spec, Some(&tenant), &config).unwrap();
        check_policy(&spec, Some(&tenant), &now)
    }

    #[test_case(&URLS, "policy: { endpointUrls: ['https://*.example.com'] }", None; "another way to allow it")]
    #[test_case(&URLS, "policy: { endpointUrls: ['https://sts.example.com'] }", Some("endpoint: "); "endpoint withdrawn")]
    #[test_case(&URLS, "policy: { endpointUrls: ['https://s3.example.com'] }", Some("stsEndpoint: "); "token service withdrawn")]
    #[test_case(&[], "policy: { authentication: [secret] }", Some("authentication: "); "kind withdrawn")]
    #[test_case(&[("authentication", "driver")], "policy: { authentication: [driver] }", Some("source 0: "); "grant withdrawn")]
    #[test_case(&[], "policy: { authentication: [pod] }", None; "nothing withdrawn")]
    fn what_was_let_in_is_judged_anew(
        attributes: &[(&str, &str)],
        now: &str,
        refused: Option<&str>,
    ) {
        match (check(attributes, now), refused) {
            (Ok(()), None) => {}
            (Err(SpecError::Denied(text)), Some(begin)) => {
                assert!(text.starts_with(begin) && text.contains("policy."), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}
