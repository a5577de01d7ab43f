//! Reading on demand, against an S3 server in this process: which requests it makes, that its bytes
//! are right whatever goes wrong, and what a restart keeps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this file is a test")]

use std::{
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use s3::{Action, EmbeddedS3, Fault, Options, PutOptions};
use s3view::{
    config::Config,
    failure::FailureKind,
    fetch::{FetchError, Fetcher, Opening, Reading},
    object::{Bucket, Key, Object},
    source::s3::{Identity, S3Access, S3Clients, S3Source},
    store::{Medium, Sharers, Store},
    telemetry::metrics::Metrics,
    units::ByteSize,
    volume::{AccessKeys, EndpointChoice},
};
use test_case::test_case;

#[path = "support/s3.rs"]
mod s3;

const BUCKET: &str = "data";
const PART: usize = 1 << 20;
const BLOCK: usize = 128 << 10;

/// A server, and a node that reads from it.
struct Fixture {
    server: EmbeddedS3,
    clients: S3Clients,
    metrics: Arc<Metrics>,
    directory: tempfile::TempDir,
}

/// What ends with a process.
struct Process {
    fetcher: Fetcher,
    store: Store,
    config: Config,
}

fn content(length: usize) -> Bytes {
    let mut state = 1u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

impl Fixture {
    fn new() -> Self {
        let server = EmbeddedS3::start(Options::default());
        server.create_bucket(BUCKET);
        server.rights().add_credential("other", "other123");
        let metrics = Arc::new(Metrics::new());
        let clients = S3Clients::new(&config(&server), Arc::clone(&metrics)).unwrap();
        Self { server, clients, metrics, directory: tempfile::tempdir().unwrap() }
    }

    fn start(&self) -> Process {
        self.start_with(self.directory.path(), 1 << 30)
    }

    fn start_with(&self, directory: &Path, capacity: u64) -> Process {
        let config = config(&self.server);
        let capacity = ByteSize::from_bytes(capacity);
        let open = || Store::open(Medium::Disk, directory, capacity, &self.metrics);
        // An earlier process' tasks may be ending still.
        let mut attempts = std::iter::repeat_with(|| {
            let opened = open();
            opened.inspect_err(|_| std::thread::sleep(Duration::from_millis(10)))
        });
        let store = attempts.by_ref().take(500).find_map(Result::ok).unwrap();
        Process { fetcher: Fetcher::new(&config.fetch), store, config }
    }

    fn source(&self, id: &str) -> S3Source {
        let keys = AccessKeys {
            access_key_id: id.to_owned(),
            secret_access_key: format!("{id}123").into(),
            session_token: None,
        };
        let access = S3Access {
            endpoint: &EndpointChoice::Default,
            region: None,
            identity: Identity::Keys(&keys),
            ca_bundle: None,
            client_certificate: None,
            sse_customer_key: None,
            pod: None,
            bucket_owner: None,
            request_payer: false,
        };
        self.clients.open(&access).unwrap()
    }

    /// Puts an object, in parts so that its ETag is no MD5, and forgets the requests.
    async fn put(&self, key: &str, content: &Bytes) -> Object {
        let options = PutOptions { part_size: Some(5 << 20), ..PutOptions::default() };
        self.server.put_with(BUCKET, key, content.clone(), &options);
        self.listed(key).await
    }

    async fn listed(&self, key: &str) -> Object {
        let (bucket, key) = (Bucket::parse(BUCKET).unwrap(), Key::parse(key).unwrap());
        let head = self.source("minio").head(&bucket, &key, None).await.unwrap();
        self.server.reset_requests();
        head.object
    }

    fn gets(&self) -> u64 {
        self.server.requests().gets()
    }

    fn received(&self) -> u64 {
        self.metrics.s3_received_bytes.get()
    }

    async fn open(&self, process: &Process, object: &Object) -> Reading {
        self.open_as(process, object, "minio", Duration::from_secs(30)).await.unwrap()
    }

    async fn open_as(
        &self,
        process: &Process,
        object: &Object,
        who: &str,
        wait: Duration,
    ) -> Result<Reading, FetchError> {
        let (source, store) = (self.source(who), process.store.clone());
        let opening = Opening { source, store, sharers: None, allowed: false, wait };
        process.fetcher.open(opening, object.clone()).await
    }
}

fn config(server: &EmbeddedS3) -> Config {
    let yaml = format!(
        "endpoints: {{ s3: {{ url: {}, region: us-east-1, pathStyle: true, retries: 5, \
         timeouts: {{ connect: 1s, stall: 500ms, total: 1m }} }} }}\n\
         fetch: {{ partSize: 1Mi, bytesInFlight: 16Mi, requests: 32 }}\n",
        server.url()
    );
    Config::parse(&yaml).unwrap()
}

/// Reads from the beginning to the end, 128 KiB at a time, as the kernel does.
async fn read_all(reading: &Reading) -> Result<Bytes, FetchError> {
    let mut all = Vec::new();
    while (all.len() as u64) < reading.size() {
        let bytes = reading.read(all.len() as u64, BLOCK).await?;
        let left = usize::try_from(reading.size()).unwrap() - all.len();
        assert_eq!(bytes.len(), BLOCK.min(left), "never a short read");
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

async fn whole_of(reading: &Reading) -> Arc<std::fs::File> {
    let began = Instant::now();
    loop {
        // A whole file is found by who reads on.
        reading.read(0, 1).await.unwrap();
        if let Some(file) = reading.whole() {
            return file;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it never becomes whole");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn same(file: &std::fs::File, content: &Bytes) -> bool {
    let mut bytes = vec![0; content.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes == *content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_object_is_one_get_and_then_a_blob() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(4096));
    let object = fixture.put("small", &content).await;
    let reading = fixture.open(&process, &object).await;
    assert_eq!(fixture.server.requests().total(), 0, "nothing until it is read");
    assert_eq!(reading.read(10, 20).await.unwrap(), content.slice(10..30));
    assert_eq!(reading.read(4090, 20).await.unwrap(), content.slice(4090..));
    assert!(reading.read(4096, 1).await.unwrap().is_empty());
    assert!(same(&reading.whole().unwrap(), &content));
    assert_eq!(fixture.server.requests().total(), 1);
    let again = fixture.open(&process, &object).await;
    assert!(again.whole().is_some() && fixture.server.requests().total() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_object_reads_as_nothing() {
    let fixture = Fixture::new();
    let process = fixture.start();
    fixture.server.put(BUCKET, "empty", "");
    let reading = fixture.open(&process, &fixture.listed("empty").await).await;
    assert!(reading.read(0, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_a_file_make_one_set_of_gets() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(12 * PART + 333));
    let object = fixture.put("large", &content).await;
    let open = (0..8).map(|_| fixture.open(&process, &object));
    let readings = join_all(open).await;
    for bytes in join_all(readings.iter().map(read_all)).await {
        assert!(bytes.unwrap() == content);
    }
    assert_eq!(fixture.received(), content.len() as u64, "each byte once");
    let gets = fixture.gets();
    assert!(gets <= 24, "{gets} GETs for 13 parts");
    assert!(same(&*whole_of(&readings[0]).await, &content));
    assert_eq!(fixture.received(), content.len() as u64);
    assert_eq!(fixture.server.requests().of("HeadObject"), 1, "for the checksum");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_reads_fetch_what_they_read_and_little_more() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(64 * PART));
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    for index in 0..40 {
        let at = index * 7919 % 64 * PART + 5000;
        assert!(reading.read(at as u64, 4096).await.unwrap() == content.slice(at..at + 4096));
    }
    let gets = fixture.gets();
    assert!(gets <= 40, "{gets}");
    assert_eq!(fixture.received(), gets * BLOCK as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_ahead_is_given_up_when_a_file_is_closed() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(16 * PART));
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    reading.read(0, BLOCK).await.unwrap();
    fixture.server.latency(Some(Duration::from_millis(300)));
    for index in 1..3 {
        reading.read((index * BLOCK) as u64, BLOCK).await.unwrap();
    }
    drop(reading);
    let before = fixture.received();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(fixture.received() <= before + BLOCK as u64, "nothing comes for nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_fetches_only_what_is_missing() {
    let fixture = Fixture::new();
    let content = content(12 * PART + 5);
    let object = fixture.put("large", &content).await;
    {
        let process = fixture.start();
        let reading = fixture.open(&process, &object).await;
        for part in [1, 5, 10] {
            let bytes = reading.read((part * PART) as u64, PART).await.unwrap();
            assert!(bytes == content.slice(part * PART..(part + 1) * PART));
        }
    }
    let before = fixture.received();
    let process = fixture.start();
    let reading = fixture.open(&process, &object).await;
    assert_eq!(fixture.received(), before + 1, "the proof");
    assert!(reading.read(0, content.len()).await.unwrap() == content);
    assert_eq!(fixture.received() - before - 1, (content.len() - 3 * PART) as u64);
    assert!(same(&*whole_of(&reading).await, &content));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_for_those_whom_s3_lets_read_it() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(4 * PART));
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    reading.read(0, PART).await.unwrap();
    let (before, gets) = (fixture.received(), fixture.gets());
    let wait = Duration::from_secs(5);
    let other = fixture.open_as(&process, &object, "other", wait).await.unwrap();
    assert!(other.read(0, PART).await.unwrap() == content.slice(..PART));
    assert_eq!((fixture.received(), fixture.gets()), (before + 1, gets + 1), "one byte");
    fixture.open_as(&process, &object, "other", wait).await.unwrap();
    assert_eq!(fixture.gets(), gets + 1, "the proof counts for a while");
    fixture.server.rights().add_credential("denied", "denied123");
    fixture.server.rights().restrict("denied");
    let denied = fixture.open_as(&process, &object, "denied", wait).await;
    assert_eq!(denied.unwrap_err().kind(), FailureKind::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_some_is_not_given_to_those_who_do_not_share() {
    let (fixture, content) = (Fixture::new(), content(3 * PART + 1));
    let object = fixture.put("large", &content).await;
    let process = fixture.start();
    let open = |namespace| {
        let (source, store) = (fixture.source("minio"), process.store.clone());
        let sharers = Some(Sharers::of_namespace(namespace));
        let wait = Duration::from_secs(30);
        let opening = Opening { source, store, sharers, allowed: false, wait };
        process.fetcher.open(opening, object.clone())
    };
    let (a, b) = (open("a").await.unwrap(), open("b").await.unwrap());
    assert_eq!(read_all(&a).await.unwrap(), content);
    assert!(same(&*whole_of(&a).await, &content));
    assert_eq!(read_all(&b).await.unwrap(), content);
    assert!(b.whole().is_none(), "who has links to that file may have changed it");
    // Who opens it anew has a copy that was checked.
    assert!(same(&*whole_of(&open("b").await.unwrap()).await, &content));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_gets_nothing_that_another_fetches() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(4 * PART));
    let object = fixture.put("large", &content).await;
    fixture.server.rights().add_credential("denied", "denied123");
    fixture.server.rights().restrict("denied");
    let wait = Duration::from_secs(10);
    let denied = fixture.open_as(&process, &object, "denied", wait).await.unwrap();
    let reading = fixture.open(&process, &object).await;
    fixture.server.latency(Some(Duration::from_millis(100)));
    for (at, denied_first) in [(0, true), (2 * PART as u64, false)] {
        let (mut one, mut other) =
            (Box::pin(reading.read(at, BLOCK)), Box::pin(denied.read(at, BLOCK)));
        if denied_first {
            assert!(futures::poll!(&mut other).is_pending());
        }
        let (one, other) = tokio::join!(&mut one, &mut other);
        let at = usize::try_from(at).unwrap();
        assert!(one.unwrap() == content.slice(at..at + BLOCK));
        assert_eq!(other.unwrap_err().kind(), FailureKind::Denied);
    }
}

#[test_case(Action::SLOW_DOWN; "slow down")]
#[test_case(Action::INTERNAL_ERROR; "internal error")]
#[test_case(Action::Reset; "reset")]
#[test_case(Action::ResetAfter(70_000); "reset in a body")]
#[test_case(Action::Truncate(70_000); "truncated body")]
#[test_case(Action::Stall(70_000); "stalled body")]
#[test_case(Action::Delay(Duration::from_millis(100)); "slow answer")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_that_pass_change_no_byte(action: Action) {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(5 * PART + 17));
    let object = fixture.put("large", &content).await;
    fixture.server.faults().add(Fault::get(action).probability(0.3));
    let reading = fixture.open(&process, &object).await;
    assert!(read_all(&reading).await.unwrap() == content);
    assert!(same(&*whole_of(&reading).await, &content));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_was_replaced_is_stale_where_it_was_not_read() {
    let fixture = Fixture::new();
    let (process, old) = (fixture.start(), content(4 * PART));
    let object = fixture.put("large", &old).await;
    let reading = fixture.open(&process, &object).await;
    assert!(reading.read(0, PART).await.unwrap() == old.slice(..PART));
    fixture.put("large", &content(4 * PART - 1)).await;
    assert!(reading.read(0, PART).await.unwrap() == old.slice(..PART));
    let error = reading.read(2 * PART as u64, 10).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Stale);
    fixture.server.delete(BUCKET, "large");
    let error = reading.read(3 * PART as u64, 10).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Stale);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_s3_gone_cached_bytes_are_read_and_others_wait_so_long() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(4 * PART));
    let object = fixture.put("large", &content).await;
    let wait = Duration::from_secs(3);
    let reading = fixture.open_as(&process, &object, "minio", wait).await.unwrap();
    reading.read(0, PART).await.unwrap();
    fixture.server.set_down(true);
    assert!(reading.read(5, PART - 5).await.unwrap() == content.slice(5..PART));
    let began = Instant::now();
    let error = reading.read(2 * PART as u64, 10).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unavailable);
    assert!(began.elapsed() < wait + Duration::from_secs(1), "{:?}", began.elapsed());
    let reading = fixture.open(&process, &object).await;
    let late = reading.read(3 * PART as u64, 10);
    let back = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        fixture.server.set_down(false);
    };
    let (bytes, ()) = tokio::join!(late, back);
    assert!(bytes.unwrap() == content.slice(3 * PART..3 * PART + 10), "it outlasts the retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_only_the_whole_tells_ends_all_reading_and_is_not_kept() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(3 * PART));
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    let fault = fixture.server.faults().add(Fault::get(Action::Corrupt).times(1));
    reading.read(0, BLOCK).await.unwrap();
    fixture.server.faults().remove(fault);
    let began = Instant::now();
    let error = loop {
        match read_all(&reading).await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(20), "nobody noticed"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(error.kind(), FailureKind::Corrupt);
    assert!(reading.whole().is_none());
    let again = fixture.open(&process, &object).await;
    assert!(read_all(&again).await.unwrap() == content);
    assert!(same(&*whole_of(&again).await, &content));
}

#[test_case(4096, 3 * PART + 1; "an object of parts")]
#[test_case(4096, 100_000; "an object of one request")]
#[test_case(PART as u64, 3 * PART + 1; "room for a part of it")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_bytes_go_through_memory(capacity: u64, length: usize) {
    let fixture = Fixture::new();
    let content = content(length);
    let process = fixture.start_with(fixture.directory.path(), capacity);
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    assert!(read_all(&reading).await.unwrap() == content);
    for at in [1, 70_000, length - 5000] {
        let end = content.len().min(at + 4096);
        assert!(reading.read(at as u64, 4096).await.unwrap() == content.slice(at..end));
    }
    let stored = fixture.metrics.store_bytes.with_label_values(&["disk"]).get();
    assert!(stored <= i64::try_from(capacity).unwrap(), "{stored}");
}

/// What one reader has just fetched may be evicted for the next before it is opened; and so may what
/// an earlier process left, while it is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_take_each_others_room_read_all_the_same() {
    let fixture = Fixture::new();
    let content = content(3000);
    let mut objects = Vec::new();
    for number in 0..24 {
        objects.push(fixture.put(&number.to_string(), &content).await);
    }
    for process in 0..8 {
        let running = fixture.start_with(fixture.directory.path(), 5 * 4096);
        let readers = (0..12).map(|reader| {
            let (fixture, running, objects, content) = (&fixture, &running, &objects, &content);
            async move {
                for turn in 0..12 {
                    let object = &objects[(process + reader * 7 + turn * 5) % objects.len()];
                    let reading = fixture.open(running, object).await;
                    assert_eq!(reading.read(0, 3000).await.unwrap(), *content);
                }
            }
        });
        join_all(readers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_stays_is_told_at_once() {
    let fixture = Fixture::new();
    let (process, content) = (fixture.start(), content(3 * PART));
    let object = fixture.put("large", &content).await;
    let reading = fixture.open(&process, &object).await;
    let forbidden = Action::Status(StatusCode::FORBIDDEN, "AccessDenied");
    fixture.server.faults().add(Fault::get(forbidden));
    let error = reading.read(0, 10).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert_eq!(process.config.fetch.part_size.bytes(), PART as u64);
}
