//! The embedded server keeps the promises of S3 that s3view builds on, seen by the real SDK.
//!
//! Whole, though long: one list of promises, each a few lines over the same client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumMode, CompletedMultipartUpload, CompletedPart, EncodingType,
    StorageClass, VersioningConfiguration,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use s3::{ANONYMOUS, Action, EmbeddedS3, Fault, Options, PutOptions};

#[path = "support/s3.rs"]
mod s3;

const BUCKET: &str = "certs";

/// A server with the bucket `certs`.
fn server() -> EmbeddedS3 {
    let server = EmbeddedS3::start(Options::default());
    server.create_bucket(BUCKET);
    server
}

fn client(server: &EmbeddedS3) -> Client {
    client_with(server, "minio", "minio123")
}

/// A client that neither retries nor checks what it receives: tests look at the bare answers.
fn client_with(server: &EmbeddedS3, access_key: &str, secret_key: &str) -> Client {
    let credentials = Credentials::from_keys(access_key, secret_key, None);
    configured(server, |config| config.credentials_provider(credentials))
}

fn configured(
    server: &EmbeddedS3,
    change: impl FnOnce(aws_sdk_s3::config::Builder) -> aws_sdk_s3::config::Builder,
) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.url())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(change(config).build())
}

async fn try_get(client: &Client, key: &str) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
    client.get_object().bucket(BUCKET).key(key).send().await
}

async fn body(output: GetObjectOutput) -> Bytes {
    output.body.collect().await.expect("the body is whole").into_bytes()
}

fn code<E: ProvideErrorMetadata, R>(result: Result<R, SdkError<E>>) -> Option<String> {
    result.err().and_then(|error| error.code().map(str::to_owned))
}

fn status<E, R>(result: &Result<R, SdkError<E>>) -> Option<u16> {
    let response = result.as_ref().err().and_then(SdkError::raw_response);
    response.map(|response| response.status().as_u16())
}

#[tokio::test]
async fn an_object_comes_back_as_it_was_put() {
    let server = server();
    let client = client(&server);
    let put = server.put(BUCKET, "certs/keystore.jks", "secret");
    let output = try_get(&client, "certs/keystore.jks").await.unwrap();
    assert_eq!(output.e_tag(), Some(format!("\"{}\"", put.etag).as_str()));
    assert_eq!(put.etag, "5ebe2294ecd0e0f08eab7690d2a6ee69");
    assert_eq!((output.version_id(), put.version_id), (None, None));
    assert!(output.last_modified().is_some() && output.checksum_crc64_nvme().is_none());
    assert_eq!(body(output).await, "secret");
}

#[tokio::test]
async fn what_the_sdk_puts_is_read_back_with_its_checksum() {
    let server = server();
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("a").body(ByteStream::from_static(b"abc"));
    put.send().await.unwrap();
    let get = client.get_object().bucket(BUCKET).key("a").checksum_mode(ChecksumMode::Enabled);
    let output = get.send().await.unwrap();
    assert_eq!(output.checksum_crc32(), Some("NSRBwg=="));
    assert_eq!(server.content(BUCKET, "a").unwrap(), "abc");
    server.put(BUCKET, "b", "123456789");
    let head = client.head_object().bucket(BUCKET).key("b").checksum_mode(ChecksumMode::Enabled);
    let output = head.send().await.unwrap();
    assert_eq!(output.checksum_crc64_nvme(), Some("rosUhgp5mIg="));
    assert_eq!(output.checksum_type().unwrap().as_str(), "FULL_OBJECT");
}

#[tokio::test]
async fn ranges_are_inclusive_and_end_with_the_object() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "digits", "0123456789");
    server.put(BUCKET, "empty", "");
    let get = |key, range: &str| client.get_object().bucket(BUCKET).key(key).range(range).send();
    for (range, expected, content_range) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-30", "0123456789", "bytes 0-9/10"),
    ] {
        let output = get("digits", range).await.unwrap();
        assert_eq!(output.content_range(), Some(content_range), "{range}");
        assert_eq!(body(output).await, expected, "{range}");
    }
    assert_eq!(code(get("digits", "bytes=10-").await).unwrap(), "InvalidRange");
    assert_eq!(code(get("empty", "bytes=0-0").await).unwrap(), "InvalidRange");
    assert_eq!(body(try_get(&client, "empty").await.unwrap()).await, "");
}

#[tokio::test]
async fn conditions_compare_etag_and_time() {
    let server = server();
    let client = client(&server);
    let put = server.put(BUCKET, "a", "1");
    let get = || client.get_object().bucket(BUCKET).key("a");
    let quoted = format!("\"{}\"", put.etag);
    assert!(get().if_match(&quoted).send().await.is_ok());
    assert_eq!(code(get().if_match("\"other\"").send().await).unwrap(), "PreconditionFailed");
    assert_eq!(status(&get().if_match("\"other\"").send().await), Some(412));
    assert_eq!(status(&get().if_none_match(&quoted).send().await), Some(304));
    assert!(get().if_none_match("\"other\"").send().await.is_ok());
    let modified = *get().send().await.unwrap().last_modified().unwrap();
    assert_eq!(status(&get().if_modified_since(modified).send().await), Some(304));
    assert_eq!(body(get().if_unmodified_since(modified).send().await.unwrap()).await, "1");
}

#[tokio::test]
async fn versions_stay_readable_behind_a_delete_marker() {
    let server = server();
    let client = client(&server);
    client
        .put_bucket_versioning()
        .bucket(BUCKET)
        .versioning_configuration(
            VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build(),
        )
        .send()
        .await
        .unwrap();
    let first = server.put(BUCKET, "a", "1").version_id.unwrap();
    let second = server.put(BUCKET, "a", "2").version_id.unwrap();
    assert_eq!(try_get(&client, "a").await.unwrap().version_id(), Some(second.as_str()));
    let marker = client.delete_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!(marker.delete_marker(), Some(true));
    assert_eq!(code(try_get(&client, "a").await).unwrap(), "NoSuchKey");
    let version = |id: &str| client.get_object().bucket(BUCKET).key("a").version_id(id).send();
    assert_eq!(body(version(&first).await.unwrap()).await, "1");
    assert_eq!(code(version("unknown").await).unwrap(), "NoSuchVersion");
    assert_eq!(status(&version(marker.version_id().unwrap()).await), Some(405));
    let listing = client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(listing.key_count(), Some(0));
}

#[tokio::test]
async fn without_versioning_the_null_version_is_replaced() {
    let server = server();
    let client = client(&server);
    server.set_versioning(BUCKET, true);
    let kept = server.put(BUCKET, "a", "1").version_id.unwrap();
    server.set_versioning(BUCKET, false);
    for content in ["2", "3"] {
        assert_eq!(server.put(BUCKET, "a", content).version_id.unwrap(), "null");
    }
    let versions = client.list_object_versions().bucket(BUCKET).send().await.unwrap();
    let ids: Vec<_> = versions.versions().iter().filter_map(|it| it.version_id()).collect();
    assert_eq!(ids, ["null", &kept]);
}

#[tokio::test]
async fn pages_of_versions_lose_and_repeat_nothing() {
    let server = EmbeddedS3::start(Options { page_size: 2, ..Options::default() });
    let client = client(&server);
    server.create_bucket(BUCKET);
    server.set_versioning(BUCKET, true);
    for key in ["a", "b c"] {
        for content in ["1", "2", "3"] {
            server.put(BUCKET, key, content);
        }
        server.delete(BUCKET, key);
    }
    let (mut seen, mut latest) = (Vec::new(), 0);
    let mut request = client.list_object_versions().bucket(BUCKET);
    loop {
        let page = request.send().await.unwrap();
        let ids = page.versions().iter().map(|it| (it.version_id(), it.is_latest()));
        let markers = page.delete_markers().iter().map(|it| (it.version_id(), it.is_latest()));
        for (id, is_latest) in ids.chain(markers) {
            seen.push(id.unwrap().to_owned());
            latest += usize::from(is_latest == Some(true));
        }
        if page.is_truncated() != Some(true) {
            break;
        }
        request = client
            .list_object_versions()
            .bucket(BUCKET)
            .set_key_marker(page.next_key_marker().map(str::to_owned))
            .set_version_id_marker(page.next_version_id_marker().map(str::to_owned));
    }
    assert_eq!((seen.len(), latest), (8, 2));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 8);
    assert_eq!(server.requests().of("ListObjectVersions"), 4);
}

/// Keeps an answer's text, which the SDK sorts apart.
#[derive(Debug)]
struct Tap(Arc<Mutex<String>>);

#[dyn_dispatch_hint]
impl Intercept for Tap {
    fn name(&self) -> &'static str {
        "Tap"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        *self.0.lock() = String::from_utf8_lossy(body).into_owned();
        Ok(())
    }
}

#[tokio::test]
async fn versions_and_delete_markers_stand_as_they_happened() {
    let server = server();
    server.set_versioning(BUCKET, true);
    for key in ["a b", "c"] {
        server.put(BUCKET, key, "1");
        server.delete(BUCKET, key);
        server.put(BUCKET, key, "2");
    }
    let list = client(&server).list_object_versions().bucket(BUCKET).max_keys(4);
    let list = list.encoding_type(EncodingType::Url).customize();
    let text = Arc::new(Mutex::new(String::new()));
    list.interceptor(Tap(Arc::clone(&text))).send().await.unwrap();
    let text = text.lock();
    let kinds = text.split('<').filter_map(|tag| {
        tag.strip_prefix("Version>").map(|_| 'v').or(tag.strip_prefix("DeleteMarker>").map(|_| 'd'))
    });
    assert_eq!(kinds.collect::<String>(), "vdvv", "{text}");
    assert!(text.contains("<Key>a+b</Key>") && text.contains("<NextKeyMarker>c</"), "{text}");
    assert!(text.contains(".000Z</LastModified>"), "{text}");
}

const AWKWARD: [&str; 9] =
    ["//", "a b", "a%20b", "a+b", "a/../b", "a//b", "q?x=1&y#z", "tab\tkey", "\u{fc}\u{1f512}"];

#[tokio::test]
async fn awkward_keys_survive_listing_paging_and_reading() {
    let server = EmbeddedS3::start(Options { page_size: 2, ..Options::default() });
    let client = client(&server);
    server.create_bucket(BUCKET);
    for key in AWKWARD {
        server.put(BUCKET, key, key);
    }
    let mut keys = Vec::new();
    let mut pages = client
        .list_objects_v2()
        .bucket(BUCKET)
        .encoding_type(EncodingType::Url)
        .into_paginator()
        .send();
    while let Some(page) = pages.next().await {
        for object in page.unwrap().contents() {
            let encoded = object.key().unwrap().replace('+', " ");
            keys.push(percent_decode_str(&encoded).decode_utf8().unwrap().into_owned());
        }
    }
    assert_eq!(keys, AWKWARD);
    assert_eq!(server.requests().lists(), 5);
    for key in AWKWARD {
        assert_eq!(body(try_get(&client, key).await.unwrap()).await, key);
        let logged = server.log().pop().unwrap();
        assert_eq!((logged.call.key.as_str(), logged.status), (key, Some(200)));
    }
}

#[tokio::test]
async fn delimiters_roll_up_and_pages_pass_what_was_rolled_up() {
    let server = EmbeddedS3::start(Options { page_size: 1, ..Options::default() });
    let client = client(&server);
    server.create_bucket(BUCKET);
    for key in ["p/a", "p/d1/x", "p/d1/y", "p/d1/\u{10ffff}z", "p/d2/x", "p/e", "q"] {
        server.put(BUCKET, key, "");
    }
    let list = client.list_objects_v2().bucket(BUCKET).prefix("p/").delimiter("/");
    let mut pages = list.into_paginator().send();
    let mut seen = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        seen.extend(page.contents().iter().filter_map(|it| it.key().map(str::to_owned)));
        seen.extend(page.common_prefixes().iter().filter_map(|it| it.prefix().map(str::to_owned)));
    }
    assert_eq!(seen, ["p/a", "p/d1/", "p/d2/", "p/e"]);
    let old = client.list_objects().bucket(BUCKET).marker("p/d1/").prefix("p/").delimiter("/");
    let page = old.send().await.unwrap();
    assert_eq!(page.common_prefixes()[0].prefix(), Some("p/d2/"));
    let after = client.list_objects_v2().bucket(BUCKET).start_after("p/d2/x").send().await.unwrap();
    assert_eq!(after.contents()[0].key(), Some("p/e"));
}

#[tokio::test]
async fn a_page_of_a_large_bucket_costs_no_more_than_the_page() {
    let server = server();
    let client = client(&server);
    for n in 0..20_000 {
        server.put(BUCKET, &format!("{n:05}"), "");
    }
    let started = Instant::now();
    for _ in 0..5 {
        let list = client.list_objects_v2().bucket(BUCKET).start_after("19000").max_keys(10);
        assert_eq!(list.send().await.unwrap().contents()[0].key(), Some("19001"));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_upload_in_parts_has_the_etag_of_parts() {
    let server = server();
    let client = client(&server);
    let created = client.create_multipart_upload().bucket(BUCKET).key("big").send().await.unwrap();
    let upload_id = created.upload_id().unwrap();
    let mut parts = CompletedMultipartUpload::builder();
    for (number, content) in [(1, "aaaa"), (2, "bb")] {
        let part = client.upload_part().bucket(BUCKET).key("big").upload_id(upload_id);
        let body = ByteStream::from(content.as_bytes().to_vec());
        let etag = part.part_number(number).body(body).send().await.unwrap().e_tag;
        parts = parts.parts(CompletedPart::builder().part_number(number).set_e_tag(etag).build());
    }
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("big");
    let complete = complete.upload_id(upload_id).multipart_upload(parts.build());
    let etag = complete.send().await.unwrap().e_tag.unwrap();
    let direct = server.put_multipart(BUCKET, "same", 4, "aaaabb");
    assert_eq!(etag, format!("\"{}\"", direct.etag));
    assert!(direct.etag.ends_with("-2"));
    assert_eq!(server.content(BUCKET, "big").unwrap(), "aaaabb");
}

#[tokio::test]
async fn generated_objects_have_the_etag_of_their_bytes() {
    let server = server();
    let client = client(&server);
    let size = 9 * 1024 * 1024 + 5;
    let put = server.put_generated(BUCKET, "big", size, &PutOptions::default());
    let content = body(try_get(&client, "big").await.unwrap()).await;
    assert_eq!(content.len() as u64, size);
    assert_eq!(server.put(BUCKET, "copy", content.clone()).etag, put.etag);
    let from = 8_388_590;
    let range = format!("bytes={from}-{}", from + 9);
    let part = client.get_object().bucket(BUCKET).key("big").range(range).send().await.unwrap();
    assert_eq!(body(part).await, content[from..from + 10]);
    let other = server.put_generated(BUCKET, "other", size, &PutOptions::default());
    assert_ne!(other.etag, put.etag);
}

#[tokio::test]
async fn credentials_are_verified() {
    let server = server();
    server.put(BUCKET, "a", "1");
    let wrong = client_with(&server, "minio", "wrong");
    assert_eq!(code(try_get(&wrong, "a").await).unwrap(), "SignatureDoesNotMatch");
    let unknown = client_with(&server, "nobody", "minio123");
    assert_eq!(code(try_get(&unknown, "a").await).unwrap(), "InvalidAccessKeyId");
    server.rights().add_credential("second", "secret");
    let second = client_with(&server, "second", "secret");
    assert!(try_get(&second, "a").await.is_ok());
    let anonymous = configured(&server, aws_sdk_s3::config::Builder::allow_no_auth);
    assert_eq!(code(try_get(&anonymous, "a").await).unwrap(), "AccessDenied");
    server.rights().grant(ANONYMOUS, BUCKET, "");
    assert!(try_get(&anonymous, "a").await.is_ok());
}

#[tokio::test]
async fn a_restricted_credential_reads_what_it_was_granted() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "team/a", "1");
    server.put(BUCKET, "other/a", "1");
    let list = |prefix: &str| client.list_objects_v2().bucket(BUCKET).prefix(prefix).send();
    server.rights().restrict("minio");
    assert_eq!(code(try_get(&client, "team/a").await).unwrap(), "AccessDenied");
    server.rights().grant("minio", BUCKET, "team/");
    assert!(try_get(&client, "team/a").await.is_ok());
    assert_eq!(list("team/").await.unwrap().key_count(), Some(1));
    assert_eq!(code(list("").await).unwrap(), "AccessDenied");
    assert_eq!(code(try_get(&client, "other/a").await).unwrap(), "AccessDenied");
    server.rights().revoke("minio", BUCKET, "team/");
    assert_eq!(code(try_get(&client, "team/a").await).unwrap(), "AccessDenied");
}

#[tokio::test]
async fn a_customer_key_is_needed_to_read() {
    let server = server();
    let client = client(&server);
    let (key, other) = ([7; 32], [8; 32]);
    let options = PutOptions { customer_key: Some(key), ..PutOptions::default() };
    let put = server.put_with(BUCKET, "a", "1", &options);
    assert_ne!(put.etag, server.put(BUCKET, "plain", "1").etag);
    let get = |key: [u8; 32]| {
        use base64::Engine as _;
        let base64 = base64::engine::general_purpose::STANDARD;
        let md5 = base64.encode(<md5::Md5 as md5::Digest>::digest(key));
        let get = client.get_object().bucket(BUCKET).key("a").sse_customer_algorithm("AES256");
        get.sse_customer_key(base64.encode(key)).sse_customer_key_md5(md5).send()
    };
    assert_eq!(body(get(key).await.unwrap()).await, "1");
    assert_eq!(status(&get(other).await), Some(403));
    assert_eq!(status(&try_get(&client, "a").await), Some(400));
}

#[tokio::test]
async fn errors_carry_the_codes_of_s3() {
    let server = server();
    let client = client(&server);
    let missing = client.get_object().bucket("missing").key("a").send().await;
    assert_eq!(code(missing).unwrap(), "NoSuchBucket");
    assert_eq!(code(try_get(&client, "missing").await).unwrap(), "NoSuchKey");
    let put = client.put_object().bucket(BUCKET).key("cold").storage_class(StorageClass::Glacier);
    put.body(ByteStream::from_static(b"1")).send().await.unwrap();
    assert_eq!(code(try_get(&client, "cold").await).unwrap(), "InvalidObjectState");
    let owner = client.get_object().bucket(BUCKET).key("a").expected_bucket_owner("1").send().await;
    assert_eq!(code(owner).unwrap(), "AccessDenied");
    assert_eq!(status(&client.head_object().bucket(BUCKET).key("b").send().await), Some(404));
    assert_eq!(code(client.delete_bucket().bucket(BUCKET).send().await).unwrap(), "BucketNotEmpty");
}

#[tokio::test]
async fn bad_digests_are_refused() {
    let server = server();
    let client = configured(&server, |config| {
        config
            .credentials_provider(Credentials::from_keys("minio", "minio123", None))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
    });
    let put = client.put_object().bucket(BUCKET).key("a").body(ByteStream::from_static(b"1"));
    assert_eq!(code(put.checksum_crc32("AAAAAA==").send().await).unwrap(), "BadDigest");
}

#[tokio::test]
async fn faults_answer_with_a_status_so_many_times() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "a", "1");
    server.faults().add(Fault::get(Action::SLOW_DOWN).key("a").times(2));
    for _ in 0..2 {
        assert_eq!(code(try_get(&client, "a").await).unwrap(), "SlowDown");
    }
    assert!(try_get(&client, "a").await.is_ok());
    let denied = Fault::get(Action::ACCESS_DENIED).access_key("someone");
    let id = server.faults().add(denied);
    assert!(try_get(&client, "a").await.is_ok());
    server.faults().remove(id);
    server.faults().add(Fault::new(Action::INTERNAL_ERROR).probability(0.5));
    server.reset_requests();
    for _ in 0..40 {
        drop(try_get(&client, "a").await);
    }
    let failed = server.log().iter().filter(|it| it.status == Some(500)).count();
    assert!((10..30).contains(&failed), "{failed} of 40");
    assert_eq!((server.requests().gets(), server.requests().total()), (40, 40));
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "a", "1");
    server.faults().add(Fault::get(Action::Reset).times(1));
    let error = try_get(&client, "a").await.unwrap_err();
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    assert_eq!(server.log()[0].status, None);
    assert!(try_get(&client, "a").await.is_ok());
}

#[tokio::test]
async fn bodies_are_cut_where_the_fault_says() {
    let server = server();
    let client = client(&server);
    let size = 700_000;
    server.put_generated(BUCKET, "a", size, &PutOptions::default());
    for (action, limit) in [
        (Action::Truncate(0), 0),
        (Action::Truncate(300_000), 300_000),
        (Action::ResetAfter(262_144), 262_144),
    ] {
        server.faults().add(Fault::get(action).times(1));
        let mut output = try_get(&client, "a").await.unwrap();
        assert_eq!(output.content_length(), i64::try_from(size).ok());
        let mut received = 0;
        let error = loop {
            match output.body.next().await {
                Some(Ok(chunk)) => received += chunk.len(),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        assert!(error.is_some());
        assert_eq!(received, limit);
    }
    assert_eq!(body(try_get(&client, "a").await.unwrap()).await.len() as u64, size);
}

#[tokio::test]
async fn a_stalled_body_says_nothing_more() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "a", "0123456789");
    server.faults().add(Fault::get(Action::Stall(4)).times(1));
    let mut output = try_get(&client, "a").await.unwrap();
    assert_eq!(output.body.next().await.unwrap().unwrap(), "0123");
    let more = tokio::time::timeout(Duration::from_millis(200), output.body.next());
    assert!(more.await.is_err());
}

#[tokio::test]
async fn content_changes_under_the_reader() {
    let server = server();
    let client = client(&server);
    let put = server.put(BUCKET, "a", "1");
    server.faults().add(Fault::get(Action::ChangeETag).times(1));
    let get = client.get_object().bucket(BUCKET).key("a").if_match(put.etag.as_str());
    assert_eq!(code(get.send().await).unwrap(), "PreconditionFailed");
    assert_ne!(server.content(BUCKET, "a").unwrap(), "1");
    server.put(BUCKET, "b", "bytes");
    server.faults().add(Fault::get(Action::Corrupt).key("b"));
    let output = try_get(&client, "b").await.unwrap();
    assert_eq!(body(output).await, "cytes");
}

#[tokio::test]
async fn delays_and_latency_add_up() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "a", "1");
    server.faults().add(Fault::get(Action::Delay(Duration::from_millis(60))));
    server.latency(Some(Duration::from_millis(60)));
    let started = Instant::now();
    try_get(&client, "a").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(120));
}

#[tokio::test]
async fn a_server_that_is_down_refuses_and_comes_back_at_the_same_address() {
    let server = server();
    let client = client(&server);
    server.put(BUCKET, "a", "1");
    for _ in 0..3 {
        try_get(&client, "a").await.unwrap();
        server.set_down(true);
        assert!(try_get(&client, "a").await.is_err(), "kept connections are reset");
        let refused = std::net::TcpStream::connect(server.address()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        server.set_down(false);
    }
}

#[tokio::test]
async fn bandwidth_is_shared_by_all_answers() {
    let options = Options { bandwidth: Some(20 * 1024 * 1024), ..Options::default() };
    let server = EmbeddedS3::start(options);
    server.create_bucket(BUCKET);
    let client = client(&server);
    server.put_generated(BUCKET, "a", 4 * 1024 * 1024, &PutOptions::default());
    let started = Instant::now();
    let get = || async { body(try_get(&client, "a").await.unwrap()).await.len() };
    let (first, second) = tokio::join!(get(), get());
    assert_eq!(first + second, 8 * 1024 * 1024);
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(380), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

#[test]
fn no_runtime_is_needed_and_the_port_is_free_after_drop() {
    let server = server();
    let address = server.address();
    assert!(std::net::TcpStream::connect(address).is_ok());
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::net::TcpStream::connect(address).is_ok() && Instant::now() < deadline {}
    assert!(std::net::TcpStream::connect(address).is_err());
}
