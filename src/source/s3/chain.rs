//! The driver's own credentials: what the SDK finds in the plugin's surroundings.
//!
//! In this order: environment, shared files, a web identity, the container's (EKS Pod Identity), the
//! instance's metadata. The policy says for whom they may be used, above this module.

use std::fmt;

use aws_config::{
    default_provider::credentials::DefaultCredentialsChain,
    environment::EnvironmentVariableRegionProvider, meta::region::RegionProviderChain,
    provider_config::ProviderConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError},
};
use aws_sdk_s3::config::Region;
use tokio::sync::OnceCell;

use super::{endpoint::http_to_anywhere, error::printable};
use crate::{
    failure::{FailureKind, full_message},
    source::SourceError,
};

/// The SDK's default chain, made when it is first needed.
pub(super) struct Chain {
    /// The region of a token service, where the environment names none.
    region: String,
    chain: OnceCell<DefaultCredentialsChain>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Chain {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.to_owned(), chain: OnceCell::new() }
    }

    /// Looks for credentials.
    ///
    /// # Errors
    /// `Precondition` if there are none, `Unavailable` if whoever has them does not answer.
    pub(super) async fn credentials(&self) -> Result<Credentials, SourceError> {
        let chain = self.chain.get_or_init(|| self.build()).await;
        chain.provide_credentials().await.map_err(|error| explain(&error))
    }

    async fn build(&self) -> DefaultCredentialsChain {
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(Region::new(self.region.clone()));
        let surroundings = ProviderConfig::default().with_http_client(http_to_anywhere());
        let chain = DefaultCredentialsChain::builder().configure(surroundings).region(region);
        chain.build().await
    }
}

fn explain(error: &CredentialsError) -> SourceError {
    let (kind, remedy) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (
            FailureKind::Precondition,
            "the driver has no credentials of its own; give the node plugin's pod an identity, or \
             choose another authentication",
        ),
        CredentialsError::InvalidConfiguration(_) => {
            (FailureKind::Precondition, "the driver's own credentials are configured wrongly")
        }
        _ => (FailureKind::Unavailable, "the driver's own credentials cannot be fetched"),
    };
    SourceError::new(kind, format!("{remedy} ({})", printable(&full_message(error))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_credentials_are_told_from_a_service_that_is_down() {
        let kind = |error| explain(&error).kind();
        assert_eq!(kind(CredentialsError::not_loaded("none")), FailureKind::Precondition);
        assert_eq!(kind(CredentialsError::provider_error("down")), FailureKind::Unavailable);
        let slow = CredentialsError::provider_timed_out(std::time::Duration::from_secs(1));
        assert_eq!(kind(slow), FailureKind::Unavailable);
    }
}
