//! The S3 servers that the same tests run against.

use std::sync::Arc;

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::ByteStream,
    types::{BucketVersioningStatus, VersioningConfiguration},
};

use super::{minio::Minio, radosgw::Radosgw, s3::EmbeddedS3};

/// The seed's own credentials.
pub(crate) const CREDENTIALS: (&str, &str) = ("minio", "minio123");

/// A running S3 server.
pub(crate) enum Server {
    /// In this process; counts requests and fails on demand.
    Embedded(EmbeddedS3),
    /// A real MinIO.
    Minio(Arc<Minio>),
    /// A real Ceph object gateway.
    Radosgw(Arc<Radosgw>),
}

impl Server {
    /// The endpoint URL.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Embedded(server) => server.url(),
            Self::Minio(server) => server.url(),
            Self::Radosgw(server) => server.url(),
        }
    }

    /// The embedded server, for tests that count or need faults.
    pub(crate) fn embedded(&self) -> &EmbeddedS3 {
        match self {
            Self::Embedded(server) => server,
            Self::Minio(_) | Self::Radosgw(_) => panic!("this test is for the embedded server"),
        }
    }

    /// Makes a versioned bucket; one that exists is fine.
    pub(crate) async fn create_bucket(&self, bucket: &str) {
        let client = self.client();
        let created = client.create_bucket().bucket(bucket).send().await;
        if let Err(error) = created {
            let error = error.into_service_error();
            assert!(error.is_bucket_already_owned_by_you(), "{error:?}");
        }
        let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
        let versioning =
            client.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled.build());
        versioning.send().await.expect("versioning can be switched on");
    }

    /// Uploads an object in one piece.
    pub(crate) async fn put(&self, bucket: &str, key: &str, content: impl Into<Vec<u8>>) {
        let body = ByteStream::from(content.into());
        let put = self.client().put_object().bucket(bucket).key(key).body(body).send();
        put.await.expect("an object can be put");
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, bucket: &str, key: &str) {
        let delete = self.client().delete_object().bucket(bucket).key(key).send();
        delete.await.expect("an object can be deleted");
    }

    /// A client with the seed's credentials.
    pub(crate) fn client(&self) -> Client {
        sdk_client(&self.url())
    }
}

/// A client with the seed's credentials.
pub(crate) fn sdk_client(url: &str) -> Client {
    let (key, secret) = CREDENTIALS;
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .force_path_style(true)
        .credentials_provider(Credentials::new(key, secret, None, None, "tests"))
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(config.build())
}
