//! What s3view is compared with: the same requests by the same SDK, and nothing else.
//!
//! The client is set up as s3view's own; bodies are read and dropped, nothing is verified or
//! written.

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig,
    },
    operation::get_object::builders::GetObjectFluentBuilder,
    types::EncodingType,
};
use futures::{StreamExt, TryStreamExt, stream};
use s3view::task::spawn_owned;

use crate::support::server::CREDENTIALS;

/// The size of a part, as s3view's default.
const PART: u64 = 8 << 20;

/// How many parts are under way: as many as s3view's default for bytes in flight allows.
const PARTS: usize = 8;

/// A bare client for one bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bare {
    client: Client,
    bucket: String,
}

impl Bare {
    /// A client for a bucket of the server at `url`.
    pub(crate) fn new(url: &str, bucket: &str) -> Self {
        let (key, secret) = CREDENTIALS;
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(url)
            .force_path_style(true)
            .credentials_provider(Credentials::new(key, secret, None, None, "bench"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        Self { client: Client::from_conf(config.build()), bucket: bucket.to_owned() }
    }

    /// The keys below a prefix.
    pub(crate) async fn list(&self, prefix: &str) -> Vec<String> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let pages = request.encoding_type(EncodingType::Url).into_paginator().send();
        let pages = pages.try_collect().await.expect("the prefix can be listed");
        let objects = pages.into_iter().flat_map(|page| page.contents.unwrap_or_default());
        objects.map(|object| object.key.expect("every object has a key")).collect()
    }

    /// Lists a prefix and reads all its objects, so many at once.
    pub(crate) async fn read_all(&self, prefix: &str, at_once: usize) {
        let keys = self.list(prefix).await;
        assert!(!keys.is_empty(), "nothing to read below {prefix:?}");
        let get = |key| self.client.get_object().bucket(&self.bucket).key(key);
        together(keys.into_iter().map(get), at_once).await;
    }

    /// Reads these objects, all at once.
    pub(crate) async fn read(&self, keys: &[&str]) {
        let get = |key: &&str| self.client.get_object().bucket(&self.bucket).key(*key);
        let requests: Vec<_> = keys.iter().map(get).collect();
        together(requests.into_iter(), keys.len()).await;
    }

    /// Reads one object by parallel ranges.
    pub(crate) async fn read_ranges(&self, key: &str, size: u64) {
        let part = usize::try_from(PART).expect("8 MiB");
        let get = |start: u64| {
            let range = format!("bytes={start}-{}", size.min(start + PART) - 1);
            self.client.get_object().bucket(&self.bucket).key(key).range(range)
        };
        together((0..size).step_by(part).map(get), PARTS).await;
    }
}

/// Sends requests, so many at once, each in a task of its own.
async fn together(requests: impl Iterator<Item = GetObjectFluentBuilder>, at_once: usize) {
    stream::iter(requests)
        .map(|request| spawn_owned(read(request)))
        .buffer_unordered(at_once)
        .try_for_each(async |()| Ok(()))
        .await
        .expect("no request panics");
}

async fn read(request: GetObjectFluentBuilder) {
    let mut body = request.send().await.expect("the object can be read").body;
    while let Some(chunk) = body.next().await {
        drop(chunk.expect("the body is whole"));
    }
}
