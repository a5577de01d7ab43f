//! Whose rights a volume is read with: from what a request brings to a way to S3.

use std::collections::BTreeMap;

use super::{Context, NodeError, VolumeSecretsInput, revision::Recipe};
use crate::{
    config::{AuthenticationKind, Config},
    failure::FailureKind,
    problems::Problems,
    source::{
        SourceError,
        s3::{Identity, S3Access, S3Source},
    },
    volume::{
        Brings, PodInfo, ServiceTokens, TOKENS_KEY, Tenant, VolumeSecrets, VolumeSpec,
        check_driver_credentials, check_policy,
    },
};

/// What a request brings besides its attributes.
pub(super) struct Brought {
    pub(super) pod: PodInfo,
    pub(super) secrets: VolumeSecrets,
    /// The pod's tokens, wherever they came from.
    tokens: Option<ServiceTokens>,
    /// There are tokens in the volume context, which are not believed.
    has_doubtful_tokens: bool,
    /// Who the pod is, beyond doubt.
    pub(super) tenant: Option<Tenant>,
}

impl Brought {
    /// Parses secrets and tokens.
    ///
    /// # Errors
    /// Every problem, by the names of the keys.
    pub(super) fn parse(
        attributes: &BTreeMap<String, String>,
        input: VolumeSecretsInput,
        config: &Config,
    ) -> Result<Self, Problems> {
        let (secrets, in_context) = input.parse();
        let trusted = in_context.as_ref().filter(|_| config.trust.context_tokens);
        let of_context = trusted.map_or(Ok(None), |tokens| ServiceTokens::parse(tokens));
        let of_context = of_context.map_err(|text| {
            let mut problems = Problems::default();
            problems.add(TOKENS_KEY, text);
            problems
        });
        let (mut secrets, of_context) = both(secrets, of_context)?;
        let certain = secrets.tokens.take();
        let pod = PodInfo::of(attributes);
        let tenant = Tenant::of(&pod, certain.as_ref(), &config.trust);
        let has_doubtful_tokens = in_context.is_some() && !config.trust.context_tokens;
        Ok(Self { pod, secrets, tokens: certain.or(of_context), has_doubtful_tokens, tenant })
    }

    /// What there is to ask S3 with.
    pub(super) fn brings(&self) -> Brings {
        Brings { access_key: self.secrets.keys.is_some(), token: self.tokens.is_some() }
    }

    /// Whose credentials the volume's requests are signed with.
    fn identity<'a>(
        &'a self,
        spec: &'a VolumeSpec,
        config: &Config,
    ) -> Result<Identity<'a>, SourceError> {
        match spec.authentication {
            AuthenticationKind::Secret => match &self.secrets.keys {
                Some(keys) => Ok(Identity::Keys(keys)),
                None => Err(self.missing(
                    "the request brings no access key; name a Secret in nodePublishSecretRef with \
                     accesskey and secretkey, access_key and secret_key, accessKeyID and \
                     secretAccessKey, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                )),
            },
            AuthenticationKind::Pod => {
                let tokens = self.tokens.as_ref().ok_or_else(|| {
                    self.missing(
                        "the request brings no service account token; set tokenRequests in the \
                         CSIDriver",
                    )
                })?;
                let of_endpoint =
                    || spec.endpoint.configured(config)?.sts.as_ref()?.audience.as_ref();
                let audience = spec.role.audience.as_ref().or_else(of_endpoint);
                let token = tokens.select(audience.map(String::as_str)).map_err(|text| {
                    SourceError::new(FailureKind::Invalid, format!("audience: {text}"))
                })?;
                Ok(Identity::Token(token, &spec.role))
            }
            AuthenticationKind::Driver => Ok(Identity::Driver),
            AuthenticationKind::Anonymous => Ok(Identity::Anonymous),
        }
    }

    fn missing(&self, text: &str) -> SourceError {
        let hint = if self.has_doubtful_tokens {
            " (a token in the volume context is not used, because trust.contextTokens is not set in \
             the driver's configuration)"
        } else {
            ""
        };
        SourceError::new(FailureKind::Unauthenticated, format!("{text}{hint}"))
    }
}

impl Context {
    /// Opens the way to S3 that a volume asks for and may have.
    ///
    /// # Errors
    /// What is missing, wrong or not granted.
    pub(super) fn source(
        &self,
        config: &Config,
        spec: &VolumeSpec,
        brought: &Brought,
    ) -> Result<S3Source, NodeError> {
        check_driver_credentials(spec, brought.tenant.as_ref(), config)?;
        let secrets = &brought.secrets;
        if spec.authentication == AuthenticationKind::Driver && secrets.ca_bundle.is_some() {
            let text = "must not be there beside authentication \"driver\": the configured caBundle \
                        vouches for whoever gets the driver's signature";
            let mut problems = Problems::default();
            problems.add("Secret key ca.crt", text);
            return Err(problems.into());
        }
        let source = self.clients.open(&S3Access {
            endpoint: &spec.endpoint,
            region: spec.region.as_deref(),
            identity: brought.identity(spec, config)?,
            ca_bundle: secrets.ca_bundle.as_ref(),
            client_certificate: secrets.client_certificate.as_ref(),
            sse_customer_key: secrets.sse_customer_key.as_ref(),
            pod: brought.pod.name_for_user_agent(),
            bucket_owner: spec.expected_bucket_owner.as_deref(),
            request_payer: spec.request_payer,
        })?;
        Ok(source)
    }
}

/// Whether the policy that is in force lets a volume be read as it is.
///
/// # Errors
/// Of kind `Denied`, naming what the policy must list.
pub(super) fn check_grants(config: &Config, recipe: &Recipe) -> Result<(), NodeError> {
    Ok(check_policy(&recipe.spec, recipe.tenant.as_ref(), config)?)
}

/// Both values, or the problems of both.
fn both<A, B>(a: Result<A, Problems>, b: Result<B, Problems>) -> Result<(A, B), Problems> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(mut problems), Err(more)) => {
            problems.extend(more);
            Err(problems)
        }
        (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
    }
}
