//! Listing a prefix: page by page, and several pages at once where there are many.

mod stretches;

use std::panic::resume_unwind;

use aws_sdk_s3::{
    operation::list_objects_v2::{ListObjectsV2Output, builders::ListObjectsV2FluentBuilder},
    types::EncodingType,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use self::stretches::{Ask, Stretches};
use super::{
    S3Source,
    error::{Asked, explain},
    page::{self, Names, Page},
};
use crate::{
    object::{Bucket, Object, Prefix},
    source::SourceError,
    task::spawn_owned,
};

/// What came of an [`Ask`].
enum Answer {
    Next { stretch: usize, token: Option<String>, page: Result<Page, SourceError> },
    Behind { point: String, page: Result<Page, SourceError> },
    Names { directory: String, names: Result<Names, SourceError> },
}

impl S3Source {
    /// Hands every object below `prefix` to `take`, each once, in no order.
    ///
    /// Needs `s3:ListBucket` only, for this very prefix. A prefix of at most four pages is one request
    /// for each; of more, up to eight pages are asked for at once, and a few requests more are made to
    /// find out how. A page is retried on its own, so a long listing does not start over; an object
    /// written meanwhile may or may not be seen, as S3 defines it.
    ///
    /// # Errors
    /// What S3 answers, naming endpoint, bucket and prefix; or the first error of `take`.
    ///
    /// # Cancellation
    /// Safe at every await; nothing is left.
    #[expect(clippy::missing_panics_doc, reason = "what is not done is under way")]
    pub async fn list<E: From<SourceError>>(
        &self,
        bucket: &Bucket,
        prefix: &Prefix,
        mut take: impl FnMut(Object) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stretches = Stretches::new(prefix.as_str());
        let mut under_way = FuturesUnordered::new();
        let mut objects = Vec::new();
        loop {
            while let Some(ask) = stretches.next() {
                under_way.push(self.begin(bucket, prefix, ask));
            }
            // What has come is taken in while the next pages are on their way.
            objects.into_iter().try_for_each(&mut take)?;
            if stretches.is_done() {
                return Ok(());
            }
            let answer = under_way.next().await.expect("what is not done is under way");
            objects = match answer {
                Answer::Next { stretch, token, page } => {
                    let taken = stretches.take_next(stretch, token.as_deref(), page?);
                    let what = || self.what_prefix(bucket, prefix.as_str());
                    taken.map_err(|problem| page::unusable(&what(), &problem))?
                }
                Answer::Behind { point, page: Ok(page) } => stretches.take_behind(&point, page),
                Answer::Behind { point, page: Err(error) } => {
                    tracing::debug!(%error, point, "the stretch before goes on");
                    stretches.failed_behind(&point);
                    Vec::new()
                }
                Answer::Names { directory, names } => {
                    if let Err(error) = &names {
                        tracing::debug!(%error, directory, "directories are not told");
                    }
                    stretches.take_names(directory, names.ok());
                    Vec::new()
                }
            };
        }
    }

    /// Sends a request. All but the very first one are tasks, which go on while others are taken in.
    fn begin(&self, bucket: &Bucket, prefix: &Prefix, ask: Ask) -> BoxFuture<'static, Answer> {
        let is_first = matches!(&ask, Ask::Next { token: None, .. });
        let (source, bucket, prefix) = (self.clone(), bucket.clone(), prefix.clone());
        let answer = async move { source.answer(&bucket, &prefix, ask).await };
        if is_first {
            return Box::pin(answer);
        }
        let task = spawn_owned(answer);
        Box::pin(async { task.await.unwrap_or_else(|error| resume_unwind(error.into_panic())) })
    }

    async fn answer(&self, bucket: &Bucket, prefix: &Prefix, ask: Ask) -> Answer {
        match ask {
            Ask::Next { stretch, token } => {
                let asked = || self.list_page(bucket, prefix, token.as_deref(), None);
                let page = self.retried(asked).await;
                Answer::Next { stretch, token, page }
            }
            Ask::Behind(point) => {
                let asked = || self.list_page(bucket, prefix, None, Some(&point));
                let page = self.retried(asked).await;
                Answer::Behind { point, page }
            }
            Ask::Names { directory, after } => {
                let asked = || self.list_names(bucket, &directory, &after);
                let names = self.retried(asked).await;
                Answer::Names { directory, names }
            }
        }
    }

    async fn list_page(
        &self,
        bucket: &Bucket,
        prefix: &Prefix,
        token: Option<&str>,
        after: Option<&str>,
    ) -> Result<Page, SourceError> {
        let request = self.list_request(bucket, prefix.as_str());
        let request = request
            .set_continuation_token(token.map(str::to_owned))
            .set_start_after(after.map(str::to_owned));
        let what = || self.what_prefix(bucket, prefix.as_str());
        let output = self.listed(request, what).await?;
        page::parse(output, &self.place(bucket), prefix)
            .map_err(|problem| page::unusable(&what(), &problem))
    }

    async fn list_names(
        &self,
        bucket: &Bucket,
        directory: &str,
        after: &str,
    ) -> Result<Names, SourceError> {
        let request = self.list_request(bucket, directory).delimiter("/").start_after(after);
        let what = || self.what_prefix(bucket, directory);
        let output = self.listed(request, what).await?;
        page::parse_names(output).map_err(|problem| page::unusable(&what(), &problem))
    }

    fn list_request(&self, bucket: &Bucket, prefix: &str) -> ListObjectsV2FluentBuilder {
        let request = self.client.sdk().list_objects_v2();
        request
            .bucket(bucket.as_str())
            .prefix(prefix)
            .encoding_type(EncodingType::Url)
            .set_expected_bucket_owner(self.bucket_owner.clone())
            .set_request_payer(self.payer.clone())
    }

    async fn listed(
        &self,
        request: ListObjectsV2FluentBuilder,
        what: impl Fn() -> String,
    ) -> Result<ListObjectsV2Output, SourceError> {
        let _permit = self.permit("ListObjectsV2").await?;
        let answer = self.named(request.send()).await;
        let answer = answer.map_err(|error| explain(&error, &what(), Asked::Objects));
        self.counted("ListObjectsV2", answer)
    }
}
