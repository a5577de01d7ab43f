//! An S3 server inside the process, for tests, the demo and benches.
//!
//! [`EmbeddedS3`] keeps versioned buckets in memory and speaks HTTP with verified signatures on a
//! loopback port, so that real clients (the SDK, the aws command line) work against it. Tests fill it
//! by direct calls, decide who may read, make it fail ([`Fault`]), and look at what was asked of it.
//! It runs on its own threads: the tests' runtime may be single-threaded, blocked or paused.
//!
//! A recorded mock would be shorter, but it answers what its author expects of S3 to a client that
//! the same author wrote. This one knows nothing of s3view.
//!
//! Direct calls panic on a bucket that does not exist: that is a mistake in the test.

#![allow(dead_code, unused_imports, reason = "every includer uses another part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use s3s::service::S3ServiceBuilder;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

#[path = "s3/body.rs"]
mod body;
#[path = "s3/calls.rs"]
mod calls;
#[path = "s3/content.rs"]
mod content;
#[path = "s3/faults.rs"]
mod faults;
#[path = "s3/history.rs"]
mod history;
#[path = "s3/pages.rs"]
mod pages;
#[path = "s3/reads.rs"]
mod reads;
#[path = "s3/rights.rs"]
mod rights;
#[path = "s3/service.rs"]
mod service;
#[path = "s3/store.rs"]
mod store;
#[path = "s3/wire.rs"]
mod wire;
#[path = "s3/writes.rs"]
mod writes;

pub(crate) use self::calls::{Call, Logged, RequestCounts};
pub(crate) use self::faults::{Action, Fault, FaultId, Faults};
pub(crate) use self::rights::{ANONYMOUS, OWNER, Rights};
pub(crate) use self::store::{DeleteInfo, PutInfo, Versioning};

use self::body::Throttle;
use self::calls::Recorder;
use self::content::Content;
use self::history::History;
use self::rights::Gate;
use self::service::Service;
use self::store::{Object, Properties, Store};
use self::wire::{Opening, Port, Site, Switch};

const BUCKET_EXISTS: &str = "create_bucket comes first";

/// How a server is started.
#[derive(Clone)]
pub(crate) struct Options {
    /// Access keys and their secrets.
    pub(crate) credentials: Vec<(String, String)>,
    /// Bytes per second that all answers share; none means unlimited.
    pub(crate) bandwidth: Option<u64>,
    /// The largest page of a listing, whatever the client asks for.
    pub(crate) page_size: usize,
    /// Makes faults with a probability repeatable.
    pub(crate) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let credentials = vec![("minio".to_owned(), "minio123".to_owned())];
        Self { credentials, bandwidth: None, page_size: 1000, seed: 1 }
    }
}

/// How an object is put, if not plainly.
#[derive(Clone, Default)]
pub(crate) struct PutOptions {
    /// The storage class; objects in `GLACIER` cannot be read.
    pub(crate) storage_class: Option<&'static str>,
    /// The SSE-C key that the object needs.
    pub(crate) customer_key: Option<[u8; 32]>,
    /// Uploads in parts of so many bytes: the ETag is then no MD5.
    pub(crate) part_size: Option<u64>,
}

impl PutOptions {
    fn properties(&self) -> Properties {
        Properties {
            storage_class: self.storage_class.map(str::to_owned),
            customer_key_md5: self.customer_key.map(|key| reads::customer_key_md5(&key)),
            ..Properties::default()
        }
    }
}

/// A running server; it stops when dropped.
pub(crate) struct EmbeddedS3 {
    site: Arc<Site>,
    rights: Arc<Rights>,
    port: Port,
    switches: mpsc::UnboundedSender<Switch>,
    runtime: Option<Runtime>,
}

impl EmbeddedS3 {
    /// Starts a server on a free port of the loopback interface.
    pub(crate) fn start(options: Options) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("embedded-s3")
            .enable_all()
            .build()
            .expect("threads can be started");
        let rights = Arc::new(Rights::new(options.credentials));
        let store = Arc::new(Store::default());
        let mut service =
            S3ServiceBuilder::new(Service::new(Arc::clone(&store), options.page_size));
        service.set_auth(Gate(Arc::clone(&rights)));
        service.set_access(Gate(Arc::clone(&rights)));
        service.set_route(History {
            store: Arc::clone(&store),
            gate: Gate(Arc::clone(&rights)),
            page_size: options.page_size,
        });
        let site = Arc::new(Site {
            service: service.build(),
            store,
            faults: Faults::new(options.seed),
            recorder: Recorder::default(),
            throttle: options.bandwidth.map(|rate| Arc::new(Throttle::new(rate))),
            latency: Mutex::new(Duration::ZERO),
            is_down: AtomicBool::new(false),
        });
        let port = Port::reserve().expect("the loopback interface has a free port");
        let (switches, receiver) = mpsc::unbounded_channel();
        let entered = runtime.enter();
        let opening = Opening::at(port.address).expect("the port is reserved for us");
        drop(entered);
        drop(runtime.spawn(wire::serve(Arc::clone(&site), opening, receiver)));
        Self { site, rights, port, switches, runtime: Some(runtime) }
    }

    /// Where the server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// The endpoint URL, without a slash at the end; buckets are addressed by path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address)
    }

    /// Who may do what.
    pub(crate) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The same, for a token service beside the server.
    pub(crate) fn shared_rights(&self) -> Arc<Rights> {
        Arc::clone(&self.rights)
    }

    /// What goes wrong.
    pub(crate) fn faults(&self) -> &Faults {
        &self.site.faults
    }

    /// Every request waits so long.
    pub(crate) fn latency(&self, latency: Option<Duration>) {
        *self.site.latency.lock() = latency.unwrap_or_default();
    }

    /// Resets all connections and refuses new ones, or serves again. Done when it returns.
    pub(crate) fn set_down(&self, down: bool) {
        self.site.is_down.store(down, Ordering::Release);
        let (done, heard) = std::sync::mpsc::channel();
        self.switches.send(Switch { down, done }).expect("the server runs until it is dropped");
        // The port answers by dropping its end: an error is the good news.
        heard.recv().unwrap_or(());
    }

    /// The requests since the last [`EmbeddedS3::reset_requests`], counted on arrival.
    pub(crate) fn requests(&self) -> RequestCounts {
        self.site.recorder.counts()
    }

    /// The answered requests since the last [`EmbeddedS3::reset_requests`], oldest first.
    pub(crate) fn log(&self) -> Vec<Logged> {
        self.site.recorder.log()
    }

    /// Forgets the requests so far.
    pub(crate) fn reset_requests(&self) {
        self.site.recorder.reset();
    }

    /// The time that writes from now on happen at; none means the clock.
    pub(crate) fn set_time(&self, time: Option<SystemTime>) {
        self.site.store.set_time(time);
    }

    /// Creates a bucket; one that exists stays as it is.
    pub(crate) fn create_bucket(&self, name: &str) {
        // The only error is "exists".
        self.site.store.create_bucket(name).unwrap_or(());
    }

    /// Enables or suspends versioning.
    pub(crate) fn set_versioning(&self, bucket: &str, on: bool) {
        let versioning = if on { Versioning::Enabled } else { Versioning::Suspended };
        self.site.store.set_versioning(bucket, versioning).expect(BUCKET_EXISTS);
    }

    /// Puts an object in one piece; its ETag is the MD5.
    pub(crate) fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) -> PutInfo {
        self.put_with(bucket, key, bytes, &PutOptions::default())
    }

    /// Puts an object in parts; its ETag is `MD5OFMD5S-N`, its checksum is of the whole object.
    pub(crate) fn put_multipart(
        &self,
        bucket: &str,
        key: &str,
        part_size: u64,
        bytes: impl Into<Bytes>,
    ) -> PutInfo {
        let part_size = Some(part_size);
        self.put_with(bucket, key, bytes, &PutOptions { part_size, ..PutOptions::default() })
    }

    /// Puts an object as `options` say.
    pub(crate) fn put_with(
        &self,
        bucket: &str,
        key: &str,
        bytes: impl Into<Bytes>,
        options: &PutOptions,
    ) -> PutInfo {
        self.store(bucket, key, Content::Whole(bytes.into()), options)
    }

    /// Puts an object of `size` repeatable pseudo-random bytes, which take no memory. The content
    /// depends on the key alone.
    pub(crate) fn put_generated(
        &self,
        bucket: &str,
        key: &str,
        size: u64,
        options: &PutOptions,
    ) -> PutInfo {
        self.store(bucket, key, Content::pattern(key, size), options)
    }

    /// Puts several objects at one moment: no listing sees some of them without the others.
    pub(crate) fn put_together(&self, bucket: &str, objects: &[(&str, Bytes)]) {
        let object = |(key, bytes): &(&str, Bytes)| {
            let content = Content::Whole(bytes.clone());
            let checksum = content.default_checksum();
            ((*key).to_owned(), Object::single(content, checksum, Properties::default()))
        };
        let objects = objects.iter().map(object).collect();
        self.site.store.put_together(bucket, objects).expect(BUCKET_EXISTS);
    }

    /// All objects of a bucket as a listing at this moment would find them. Copies generated
    /// content.
    pub(crate) fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let newest = |(key, versions): (&String, &Vec<store::Version>)| {
            let object = versions.last()?.object.as_ref()?;
            Some((key.clone(), object.content.to_bytes()))
        };
        let read = |bucket: &store::Bucket| bucket.keys.iter().filter_map(newest).collect();
        self.site.store.read(bucket, read).expect(BUCKET_EXISTS)
    }

    fn store(&self, bucket: &str, key: &str, content: Content, options: &PutOptions) -> PutInfo {
        let (checksum, properties) = (content.default_checksum(), options.properties());
        let object = match options.part_size {
            None => Object::single(content, checksum, properties),
            Some(part_size) => {
                let etag = content.multipart_etag(part_size);
                Object { content, etag, checksum, properties }
            }
        };
        self.site.store.put(bucket, key, object).expect(BUCKET_EXISTS)
    }

    /// Deletes an object; with versioning, by a delete marker.
    pub(crate) fn delete(&self, bucket: &str, key: &str) -> DeleteInfo {
        self.site.store.delete(bucket, key).expect(BUCKET_EXISTS)
    }

    /// The content of the newest version; none if there is none. Copies generated content.
    pub(crate) fn content(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let found = self.site.store.find(bucket, key, None).ok()?;
        Some(found.object.content.to_bytes())
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The ordinary drop waits, which a test's own runtime does not allow.
            runtime.shutdown_background();
        }
    }
}
