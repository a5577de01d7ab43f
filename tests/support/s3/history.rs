//! `ListObjectVersions`, written by hand.
//!
//! s3s answers with all versions and then all delete markers. S3 lets them stand as they happened,
//! and within one second nothing else tells which came last.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::calls::Call;
use super::pages::{Query, VersionPage};
use super::rights::Gate;
use super::store::Store;

/// The operation as a route of its own.
pub(crate) struct History {
    /// The objects.
    pub(crate) store: Arc<Store>,
    /// Who may ask.
    pub(crate) gate: Gate,
    /// The largest page, whatever the client asks for.
    pub(crate) page_size: usize,
}

#[async_trait::async_trait]
impl S3Route for History {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, extensions: &mut Extensions) -> bool {
        extensions.get::<Arc<Call>>().is_some_and(|call| call.operation == "ListObjectVersions")
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let access_key = request.credentials.as_ref().map(|credentials| &*credentials.access_key);
        self.gate.check_call(access_key, &request.headers, call(request))
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let parameters: BTreeMap<String, String> =
            url::form_urlencoded::parse(request.uri.query().unwrap_or("").as_bytes())
                .into_owned()
                .collect();
        let document = self.answer(&call(&request).bucket, &parameters)?;
        let mut response = S3Response::new(Body::from(document));
        response.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        Ok(response)
    }
}

fn call(request: &S3Request<Body>) -> &Call {
    request.extensions.get::<Arc<Call>>().expect("wire puts the call there")
}

impl History {
    fn answer(&self, bucket: &str, parameters: &BTreeMap<String, String>) -> S3Result<String> {
        let parameter = |name: &str| parameters.get(name).map(String::as_str);
        let given = |name: &str| parameter(name).filter(|text| !text.is_empty());
        let limit: usize = match parameter("max-keys").unwrap_or("1000").parse() {
            Ok(asked) => self.page_size.min(asked).min(1000),
            Err(_) => return Err(s3_error!(InvalidArgument, "max-keys is not a number")),
        };
        if parameter("version-id-marker") == Some("") {
            return Err(s3_error!(InvalidArgument, "A version-id marker cannot be empty."));
        }
        if given("version-id-marker").is_some() && given("key-marker").is_none() {
            let text = "A version-id marker cannot be specified without a key marker.";
            return Err(s3_error!(InvalidArgument, "{text}"));
        }
        let query = Query {
            prefix: parameter("prefix").unwrap_or(""),
            delimiter: given("delimiter"),
            after: given("key-marker"),
            after_version: given("version-id-marker"),
            limit,
            encode: parameter("encoding-type") == Some("url"),
        };
        let page = self.store.read(bucket, |bucket| VersionPage::of(&bucket.keys, query))?;
        Ok(document(bucket, query, &page))
    }
}

fn document(bucket: &str, query: Query<'_>, page: &VersionPage) -> String {
    let mut xml = Xml("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned());
    xml.0.push_str("<ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    xml.element("Name", bucket);
    xml.element("Prefix", &query.spell(query.prefix));
    xml.element("KeyMarker", &query.spell(query.after.unwrap_or("")));
    xml.element("VersionIdMarker", query.after_version.unwrap_or(""));
    if let Some((key, version_id)) = &page.next {
        xml.element("NextKeyMarker", &query.spell(key));
        if let Some(version_id) = version_id {
            xml.element("NextVersionIdMarker", version_id);
        }
    }
    xml.element("MaxKeys", &query.limit.to_string());
    if let Some(delimiter) = query.delimiter {
        xml.element("Delimiter", &query.spell(delimiter));
    }
    if query.encode {
        xml.element("EncodingType", "url");
    }
    xml.element("IsTruncated", if page.next.is_some() { "true" } else { "false" });
    for listed in &page.versions {
        let version = &listed.version;
        let name = if version.object.is_some() { "Version" } else { "DeleteMarker" };
        xml.open(name);
        xml.element("Key", &query.spell(&listed.key));
        xml.element("VersionId", &version.id);
        xml.element("IsLatest", if listed.is_latest { "true" } else { "false" });
        xml.element("LastModified", &date(&version.modified.into()));
        if let Some(object) = &version.object {
            let class = object.properties.storage_class.as_deref().unwrap_or("STANDARD");
            xml.element("ETag", &format!("\"{}\"", object.etag));
            xml.element("Size", &object.content.size().to_string());
            xml.element("StorageClass", class);
        }
        xml.close(name);
    }
    for prefix in &page.prefixes {
        xml.open("CommonPrefixes");
        xml.element("Prefix", &query.spell(prefix));
        xml.close("CommonPrefixes");
    }
    xml.close("ListVersionsResult");
    xml.0
}

fn date(time: &Timestamp) -> String {
    let mut text = Vec::new();
    time.format(TimestampFormat::DateTime, &mut text).expect("a time of our own has a date");
    String::from_utf8(text).expect("dates are ASCII")
}

/// A document under construction.
struct Xml(String);

impl Xml {
    fn open(&mut self, name: &str) {
        write!(self.0, "<{name}>").expect("a String takes everything");
    }

    fn close(&mut self, name: &str) {
        write!(self.0, "</{name}>").expect("a String takes everything");
    }

    fn element(&mut self, name: &str, text: &str) {
        self.open(name);
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                c if c.is_control() => {
                    write!(self.0, "&#x{:x};", u32::from(c)).expect("a String takes everything");
                }
                c => self.0.push(c),
            }
        }
        self.close(name);
    }
}
