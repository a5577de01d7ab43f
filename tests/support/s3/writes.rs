//! Writing objects: bodies, checksums, and multipart uploads.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::HeaderMap;
use parking_lot::Mutex;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{
    Checksum, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ETag, PutObjectInput, PutObjectOutput,
    StreamingBlob, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, TrailingHeaders, s3_error};

use super::content::{Content, full_object, multipart_etag};
use super::reads::customer_key;
use super::store::{Object, Properties, Store};

impl Object {
    /// An object put in one piece.
    pub(crate) fn single(content: Content, checksum: Checksum, properties: Properties) -> Self {
        let digest = content.md5(0..content.size());
        let etag = match &properties.customer_key_md5 {
            None => hex::encode(digest),
            Some(key) => hex::encode(Md5::checksum(&[&digest[..], key.as_bytes()].concat())),
        };
        Self { content, etag, checksum, properties }
    }
}

/// `PutObject`.
pub(crate) async fn put(
    store: &Store,
    mut request: S3Request<PutObjectInput>,
) -> S3Result<PutObjectOutput> {
    let trailers = request.trailing_headers.take();
    let body = receive(request.input.body.take(), &request.headers, trailers).await?;
    let input = request.input;
    let customer_key_md5 = customer_key(input.sse_customer_key, input.sse_customer_key_md5)?;
    let properties = Properties {
        storage_class: input.storage_class.map(|class| class.as_str().to_owned()),
        customer_key_md5: customer_key_md5.clone(),
        content_type: input.content_type,
        metadata: input.metadata,
    };
    let checksum = body.checksum.clone();
    let object = Object::single(Content::Whole(body.bytes), body.checksum, properties);
    let info = store.put(&input.bucket, &input.key, object)?;
    Ok(PutObjectOutput {
        e_tag: Some(ETag::Strong(info.etag)),
        version_id: info.version_id,
        sse_customer_algorithm: customer_key_md5.as_ref().map(|_| "AES256".to_owned()),
        sse_customer_key_md5: customer_key_md5,
        checksum_crc32: checksum.checksum_crc32,
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        checksum_type: checksum.checksum_type,
        ..PutObjectOutput::default()
    })
}

struct Received {
    bytes: Bytes,
    checksum: Checksum,
}

/// Reads a body and checks it against the digests that the client sent before or after it.
async fn receive(
    body: Option<StreamingBlob>,
    headers: &HeaderMap,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Received> {
    let incomplete = |error| S3Error::with_source(S3ErrorCode::IncompleteBody, error);
    let chunks: Vec<Bytes> = match body {
        Some(body) => body.try_collect().await.map_err(incomplete)?,
        None => Vec::new(),
    };
    let bytes = join(chunks);
    let trailers = trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
    let declared = |name| {
        let value = trailers.get(name).or_else(|| headers.get(name))?;
        value.to_str().ok().map(str::to_owned)
    };
    if declared("content-md5").is_some_and(|md5| md5 != STANDARD.encode(Md5::checksum(&bytes))) {
        return Err(s3_error!(BadDigest, "the Content-MD5 does not match the body"));
    }
    let expected = Checksum {
        checksum_crc32: declared("x-amz-checksum-crc32"),
        checksum_crc32c: declared("x-amz-checksum-crc32c"),
        checksum_crc64nvme: declared("x-amz-checksum-crc64nvme"),
        checksum_sha1: declared("x-amz-checksum-sha1"),
        checksum_sha256: declared("x-amz-checksum-sha256"),
        checksum_type: None,
    };
    Ok(Received { checksum: verify(&bytes, expected)?, bytes })
}

fn join(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() <= 1 {
        return chunks.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in &chunks {
        all.extend_from_slice(chunk);
    }
    all.freeze()
}

/// The checksums to store: those of the client, or CRC64NVME if it sent none.
fn verify(bytes: &Bytes, expected: Checksum) -> S3Result<Checksum> {
    if expected == Checksum::default() {
        return Ok(Content::Whole(bytes.clone()).default_checksum());
    }
    let mut hasher = ChecksumHasher {
        crc32: expected.checksum_crc32.as_ref().map(|_| Crc32::default()),
        crc32c: expected.checksum_crc32c.as_ref().map(|_| Crc32c::default()),
        crc64nvme: expected.checksum_crc64nvme.as_ref().map(|_| Crc64Nvme::default()),
        sha1: expected.checksum_sha1.as_ref().map(|_| Sha1::default()),
        sha256: expected.checksum_sha256.as_ref().map(|_| Sha256::default()),
    };
    hasher.update(bytes);
    let computed = full_object(hasher);
    if computed == (Checksum { checksum_type: computed.checksum_type.clone(), ..expected }) {
        Ok(computed)
    } else {
        Err(s3_error!(BadDigest, "a checksum does not match the body"))
    }
}

struct Upload {
    bucket: String,
    key: String,
    properties: Properties,
    parts: BTreeMap<i32, Part>,
}

struct Part {
    bytes: Bytes,
    md5: [u8; 16],
}

/// Multipart uploads under way.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<HashMap<String, Upload>>);

impl Uploads {
    /// `CreateMultipartUpload`.
    pub(crate) fn create(
        &self,
        store: &Store,
        input: CreateMultipartUploadInput,
    ) -> S3Result<CreateMultipartUploadOutput> {
        store.read(&input.bucket, |_| ())?;
        let properties = Properties {
            storage_class: input.storage_class.map(|class| class.as_str().to_owned()),
            customer_key_md5: customer_key(input.sse_customer_key, input.sse_customer_key_md5)?,
            content_type: input.content_type,
            metadata: input.metadata,
        };
        let upload_id = store.fresh_id();
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        let upload = Upload { bucket, key, properties, parts: BTreeMap::new() };
        self.0.lock().insert(upload_id.clone(), upload);
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_id),
            ..CreateMultipartUploadOutput::default()
        })
    }

    /// `UploadPart`.
    pub(crate) async fn add(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<UploadPartOutput> {
        let trailers = request.trailing_headers.take();
        let body = receive(request.input.body.take(), &request.headers, trailers).await?;
        let md5 = Md5::checksum(&body.bytes);
        let mut uploads = self.0.lock();
        let upload = uploads.get_mut(&request.input.upload_id).ok_or_else(no_such_upload)?;
        upload.parts.insert(request.input.part_number, Part { bytes: body.bytes, md5 });
        Ok(UploadPartOutput {
            e_tag: Some(ETag::Strong(hex::encode(md5))),
            checksum_crc32: body.checksum.checksum_crc32,
            checksum_crc64nvme: body.checksum.checksum_crc64nvme,
            ..UploadPartOutput::default()
        })
    }

    /// `CompleteMultipartUpload`.
    pub(crate) fn complete(
        &self,
        store: &Store,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let mut uploads = self.0.lock();
        let upload = uploads.get(&input.upload_id).ok_or_else(no_such_upload)?;
        let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts: Option<Vec<&Part>> = wanted
            .iter()
            .map(|wanted| {
                let part = upload.parts.get(&wanted.part_number?)?;
                let etag = wanted.e_tag.as_ref()?;
                (etag.value() == hex::encode(part.md5)).then_some(part)
            })
            .collect();
        let parts = parts.ok_or_else(|| s3_error!(InvalidPart, "a part was not uploaded"))?;
        let digests: Vec<_> = parts.iter().map(|part| part.md5).collect();
        let content = Content::Whole(join(parts.iter().map(|part| part.bytes.clone()).collect()));
        let object = Object {
            etag: multipart_etag(&digests),
            checksum: content.default_checksum(),
            content,
            properties: upload.properties.clone(),
        };
        let checksum = object.checksum.clone();
        let info = store.put(&upload.bucket, &upload.key, object)?;
        uploads.remove(&input.upload_id);
        Ok(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(info.etag)),
            version_id: info.version_id,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_type: checksum.checksum_type,
            ..CompleteMultipartUploadOutput::default()
        })
    }

    /// `AbortMultipartUpload`.
    pub(crate) fn abort(&self, upload_id: &str) -> S3Result<()> {
        self.0.lock().remove(upload_id).map(drop).ok_or_else(no_such_upload)
    }
}

fn no_such_upload() -> S3Error {
    s3_error!(NoSuchUpload, "The specified upload does not exist.")
}
