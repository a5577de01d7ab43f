//! Whether S3 lets somebody list what a volume would show.

use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, timeout_at};

use super::ControllerError;
use crate::{
    config::AuthenticationKind,
    object::{Bucket, Prefix},
    source::{
        SourceError,
        s3::{Identity, S3Access, S3Clients, S3Source},
    },
    volume::{Selection, SourceSpec, VolumeSecrets, VolumeSpec},
};

/// Asks S3 for one page of each prefix and for the head of each single key. An empty prefix is fine:
/// its objects may come before the pod does.
///
/// Asked is with the keys of the provisioner's Secret, or with none for a public bucket. Without
/// either, nobody can be asked for: tokens and the driver's own rights belong to a pod.
///
/// # Errors
/// What S3 answers, or that it does not answer before `deadline`.
///
/// # Cancellation
/// Safe.
pub(super) async fn can_be_listed(
    clients: &S3Clients,
    spec: &VolumeSpec,
    secrets: &VolumeSecrets,
    deadline: Instant,
) -> Result<(), ControllerError> {
    let identity = match &secrets.keys {
        _ if spec.authentication == AuthenticationKind::Anonymous => Identity::Anonymous,
        Some(keys) => Identity::Keys(keys),
        None => return Ok(()),
    };
    let source = clients.open(&S3Access {
        endpoint: &spec.endpoint,
        region: spec.region.as_deref(),
        identity,
        ca_bundle: secrets.ca_bundle.as_ref(),
        client_certificate: secrets.client_certificate.as_ref(),
        sse_customer_key: secrets.sse_customer_key.as_ref(),
        pod: None,
        bucket_owner: spec.expected_bucket_owner.as_deref(),
        request_payer: spec.request_payer,
    })?;
    for part in &spec.sources {
        // Boxed: the SDK's futures are deep.
        in_time(ask(&source, part).boxed(), &source, &part.bucket, deadline).await?;
    }
    Ok(())
}

async fn ask(source: &S3Source, part: &SourceSpec) -> Result<(), SourceError> {
    match &part.selection {
        Selection::Prefix(prefix) => first_page(source, &part.bucket, prefix).await,
        Selection::Key { key, version_id } => {
            source.head(&part.bucket, key, version_id.as_ref()).await.map(drop)
        }
    }
}

/// Why a listing ended.
enum End {
    /// There is an object.
    Found,
    Failed(SourceError),
}

impl From<SourceError> for End {
    fn from(error: SourceError) -> Self {
        Self::Failed(error)
    }
}

async fn first_page(
    source: &S3Source,
    bucket: &Bucket,
    prefix: &Prefix,
) -> Result<(), SourceError> {
    match source.list(bucket, prefix, |_| Err(End::Found)).await {
        Ok(()) | Err(End::Found) => Ok(()),
        Err(End::Failed(error)) => Err(error),
    }
}

async fn in_time(
    asking: BoxFuture<'_, Result<(), SourceError>>,
    source: &S3Source,
    bucket: &Bucket,
    deadline: Instant,
) -> Result<(), ControllerError> {
    let silent = |_| ControllerError::Silent {
        what: format!("endpoint {}, bucket {:?}", source.endpoint().url(), bucket.as_str()),
    };
    Ok(timeout_at(deadline, asking).await.map_err(silent)??)
}
