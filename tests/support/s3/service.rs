//! The operations, as s3s asks for them: unpack, call, pack. (`history` has `ListObjectVersions`.)

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, BucketVersioningStatus,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput,
    DeleteBucketOutput, DeleteObjectInput, DeleteObjectOutput, EncodingType,
    GetBucketLocationInput, GetBucketLocationOutput, GetBucketVersioningInput,
    GetBucketVersioningOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, PutBucketVersioningInput,
    PutBucketVersioningOutput, PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::pages::{ObjectPage, Query};
use super::store::{Store, Versioning};
use super::writes::Uploads;
use super::{reads, writes};

/// The S3 API over a [`Store`].
pub(crate) struct Service {
    store: Arc<Store>,
    uploads: Uploads,
    page_size: usize,
}

impl Service {
    /// A service whose pages have at most `page_size` entries, whatever the client asks for.
    pub(crate) fn new(store: Arc<Store>, page_size: usize) -> Self {
        Self { store, uploads: Uploads::default(), page_size }
    }

    fn limit(&self, max_keys: Option<i32>) -> S3Result<usize> {
        let asked = usize::try_from(max_keys.unwrap_or(1000));
        asked
            .map(|asked| asked.min(self.page_size))
            .map_err(|_| s3_error!(InvalidArgument, "max-keys is negative"))
    }
}

fn is_url(encoding: Option<&EncodingType>) -> bool {
    encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL)
}

/// An empty parameter is one that was not given.
fn given(parameter: Option<&String>) -> Option<&str> {
    parameter.map(String::as_str).filter(|text| !text.is_empty())
}

fn decode_token(token: &str) -> S3Result<String> {
    let decoded = URL_SAFE_NO_PAD.decode(token).ok();
    decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait]
impl S3 for Service {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let buckets = self.store.buckets();
        let buckets = buckets.iter().map(|(name, bucket)| Bucket {
            name: Some(name.clone()),
            creation_date: Some(bucket.created.into()),
            bucket_region: None,
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            ..Default::default()
        }))
    }

    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> Answer<CreateBucketOutput> {
        self.store.create_bucket(&request.input.bucket)?;
        Ok(S3Response::new(CreateBucketOutput {
            location: Some(format!("/{}", request.input.bucket)),
        }))
    }

    async fn delete_bucket(
        &self,
        request: S3Request<DeleteBucketInput>,
    ) -> Answer<DeleteBucketOutput> {
        self.store.delete_bucket(&request.input.bucket)?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.store.read(&request.input.bucket, |_| ())?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        self.store.read(&request.input.bucket, |_| ())?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        let versioning = self.store.read(&request.input.bucket, |bucket| bucket.versioning)?;
        let status = match versioning {
            Versioning::Off => None,
            Versioning::Enabled => Some(BucketVersioningStatus::ENABLED),
            Versioning::Suspended => Some(BucketVersioningStatus::SUSPENDED),
        };
        let status = status.map(BucketVersioningStatus::from_static);
        Ok(S3Response::new(GetBucketVersioningOutput { status, mfa_delete: None }))
    }

    async fn put_bucket_versioning(
        &self,
        request: S3Request<PutBucketVersioningInput>,
    ) -> Answer<PutBucketVersioningOutput> {
        let input = request.input;
        let status = input.versioning_configuration.status;
        let versioning = match status.as_ref().map(BucketVersioningStatus::as_str) {
            Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
            Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
            _ => return Err(s3_error!(MalformedXML, "the status is not Enabled or Suspended")),
        };
        self.store.set_versioning(&input.bucket, versioning)?;
        Ok(S3Response::new(PutBucketVersioningOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> Answer<ListObjectsV2Output> {
        let input = request.input;
        let limit = self.limit(input.max_keys)?;
        let resumed = input.continuation_token.as_deref().map(decode_token).transpose()?;
        let query = Query {
            prefix: input.prefix.as_deref().unwrap_or(""),
            delimiter: given(input.delimiter.as_ref()),
            after: given(resumed.as_ref().or(input.start_after.as_ref())),
            after_version: None,
            limit,
            encode: is_url(input.encoding_type.as_ref()),
        };
        let page = self.store.read(&input.bucket, |bucket| ObjectPage::of(&bucket.keys, query))?;
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: i32::try_from(page.objects.len() + page.prefixes.len()).ok(),
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| URL_SAFE_NO_PAD.encode(next)),
            contents: Some(page.objects),
            common_prefixes: Some(page.prefixes),
            prefix: Some(query.spell(query.prefix)),
            delimiter: query.delimiter.map(|delimiter| query.spell(delimiter)),
            start_after: input.start_after.as_deref().map(|after| query.spell(after)),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> Answer<ListObjectsOutput> {
        let input = request.input;
        let limit = self.limit(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.as_deref().unwrap_or(""),
            delimiter: given(input.delimiter.as_ref()),
            after: given(input.marker.as_ref()),
            after_version: None,
            limit,
            encode: is_url(input.encoding_type.as_ref()),
        };
        let page = self.store.read(&input.bucket, |bucket| ObjectPage::of(&bucket.keys, query))?;
        Ok(S3Response::new(ListObjectsOutput {
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|next| query.spell(&next)),
            contents: Some(page.objects),
            common_prefixes: Some(page.prefixes),
            prefix: Some(query.spell(query.prefix)),
            delimiter: query.delimiter.map(|delimiter| query.spell(delimiter)),
            marker: Some(query.spell(query.after.unwrap_or(""))),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..Default::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        Ok(S3Response::new(reads::get(&self.store, request.input)?))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        Ok(S3Response::new(reads::head(&self.store, request.input)?))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        Ok(S3Response::new(writes::put(&self.store, request).await?))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> Answer<DeleteObjectOutput> {
        let DeleteObjectInput { bucket, key, version_id, .. } = request.input;
        let deleted = match version_id {
            None => self.store.delete(&bucket, &key)?,
            Some(id) => self.store.delete_version(&bucket, &key, &id)?,
        };
        Ok(S3Response::new(DeleteObjectOutput {
            delete_marker: deleted.delete_marker.then_some(true),
            version_id: deleted.version_id,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        Ok(S3Response::new(self.uploads.create(&self.store, request.input)?))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        Ok(S3Response::new(self.uploads.add(request).await?))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        Ok(S3Response::new(self.uploads.complete(&self.store, request.input)?))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.uploads.abort(&request.input.upload_id)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
