//! SIGKILL at random moments of publishes, refreshes, unpublishes and starts.
//!
//! After each, the volumes that a pod may still have show what they may show, before the plugin is
//! back and after; and once it is back, nothing is on the node that belongs to no volume. A call that
//! was answered has had its effect; one that was not has had all of it or none. The mounts of `fuse`
//! views are with the keeper, which is never killed here: who reads them meanwhile waits.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fastrand::Rng;
use libtest_mimic::Trial;
use s3view::task::spawn_owned;
use tonic::Status;

use crate::{
    can_serve,
    fixture::Fixture,
    number, run,
    support::{
        kubelet::{Kubelet, Pod},
        namespace::Ids,
        plugin::Shown,
        s3::{EmbeddedS3, Options},
        server::Server,
    },
    tree::{self, History, Layout, Node, Tree},
    trial,
};

/// The prefixes; two volumes of each view and layout share one.
const PREFIXES: [&str; 2] = ["a", "b"];

const NAMES: [&str; 6] = ["one", "two", "d/three", "d/four", "e/f/five", "large"];

/// How long something may take that must come.
const LIMIT: Duration = Duration::from_secs(20);

/// The longest wait before a SIGKILL.
const LONGEST: Duration = Duration::from_millis(30);

/// How often everything is taken away.
const CLEAN: u64 = 12;

pub(crate) fn trials(ids: Ids) -> Vec<Trial> {
    let case = move || no_kill_leaves_or_loses_anything(ids);
    vec![trial("kills::no_kill_leaves_or_loses_anything", case)]
}

fn no_kill_leaves_or_loses_anything(ids: Ids) -> Result<(), String> {
    let seed = number("S3VIEW_KILL_SEED", fastrand::u64(..));
    let kills = number("S3VIEW_KILLS", 150);
    run(cycles(ids, seed, kills)).map_err(|error| format!("S3VIEW_KILL_SEED={seed}: {error}"))
}

/// The delays are random too, and so a seed brings back a course of events, not the moments.
async fn cycles(ids: Ids, seed: u64, kills: u64) -> Result<(), String> {
    let mut node = Victim::start(ids, seed).await;
    for cycle in 0..kills {
        let done = node.cycle(cycle % CLEAN == CLEAN - 1).await;
        done.map_err(|error| format!("cycle {cycle}: {error}\n{}", node.log()))?;
    }
    node.end().await.map_err(|error| format!("at the end: {error}\n{}", node.log()))
}

/// What is known of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Published,
    /// A call was not answered.
    Unknown,
}

struct Volume {
    pod: Pod,
    prefix: usize,
    view: &'static str,
    layout: Layout,
    state: State,
    shows: History,
    /// Whether a `fuse` view may have been mounted by a publish that was cut off before the keeper had
    /// the mount.
    may_be_dead: bool,
}

impl Volume {
    /// A publish was answered, so the keeper has the mount.
    fn is_published(&mut self) {
        (self.state, self.may_be_dead) = (State::Published, false);
    }
}

/// What a kubelet asked for, and whether it was answered.
type Call = (usize, bool, bool);

struct Victim {
    fixture: Fixture,
    random: Rng,
    volumes: Vec<Volume>,
    /// What the prefixes hold.
    trees: [Arc<Tree>; 2],
    versions: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl Victim {
    async fn start(ids: Ids, seed: u64) -> Self {
        let server = Server::Embedded(EmbeddedS3::start(Options::default()));
        let more = "limits: { minRefresh: 10ms }\nfetch: { partSize: 64Ki, bytesInFlight: 1Mi }\n\
                    fuse: { waitForCredentials: 50ms }\n";
        let config = Fixture::config(&server, more).replace("retries: 3", "retries: 1");
        let shown = if can_serve() { Shown::Fuse } else { Shown::ByDefault };
        let fixture = Fixture::start_as(server, ids, &config, shown).await;
        let mut node = Self {
            fixture,
            random: Rng::with_seed(seed),
            volumes: Vec::new(),
            trees: Default::default(),
            versions: 0,
            counts: BTreeMap::new(),
        };
        for prefix in 0..PREFIXES.len() {
            let objects = NAMES.map(|name| (name, node.content(name)));
            node.put(prefix, &objects);
            let linked = [Layout::Symlinks, Layout::Files];
            let linked = linked.map(|layout| [("tmpfs", layout), ("disk", layout)]);
            let on_demand = can_serve().then_some(("fuse", Layout::Served));
            for (view, layout) in linked.into_iter().flatten().chain(on_demand) {
                node.volumes.push(Volume {
                    pod: node.pod(prefix, view, layout),
                    prefix,
                    view,
                    layout,
                    state: State::Absent,
                    shows: History::new(layout, Vec::new()),
                    may_be_dead: false,
                });
            }
        }
        node
    }

    fn log(&self) -> String {
        let log = self.fixture.home.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    fn pod(&self, prefix: usize, view: &str, layout: Layout) -> Pod {
        let pod = self.fixture.pod(PREFIXES[prefix]).with("view", view).with("refresh", "15ms");
        let Some(layout) = layout.attribute() else { return pod };
        let cached = if prefix == 0 { "cached" } else { "fail" };
        pod.with("layout", layout).with("whenUnavailable", cached)
    }

    /// New content of a name; `large` is fetched in parts.
    fn content(&mut self, name: &str) -> Bytes {
        self.versions += 1;
        let text = format!("{name} {} ", self.versions);
        let size = if name == "large" { 150_000 } else { self.random.usize(1..9000) };
        text.bytes().cycle().take(size.max(text.len())).collect()
    }

    /// Writes to a prefix at one moment; its volumes may show it from now on.
    fn put(&mut self, prefix: usize, objects: &[(&str, Bytes)]) {
        let mut tree = Tree::clone(&self.trees[prefix]);
        for (name, content) in objects {
            let directories = name.match_indices('/').map(|(at, _)| name[..at].to_owned());
            tree.extend(directories.map(|path| (path, Node::Directory)));
            tree.insert((*name).to_owned(), Node::File(content.to_vec()));
        }
        self.trees[prefix] = Arc::new(tree);
        for volume in self.volumes.iter_mut().filter(|volume| volume.prefix == prefix) {
            volume.shows.push(Arc::clone(&self.trees[prefix]));
        }
        let keys = objects.iter().map(|(name, _)| format!("{}/{name}", PREFIXES[prefix]));
        let keys: Vec<_> = keys.collect();
        let objects = keys.iter().zip(objects).map(|(key, (_, it))| (key.as_str(), it.clone()));
        let objects: Vec<_> = objects.collect();
        self.fixture.embedded().put_together(&self.fixture.bucket, &objects);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// One SIGKILL in the middle of things.
    async fn cycle(&mut self, clean: bool) -> Result<(), String> {
        self.publish_some().await?;
        let calls = self.call();
        // Most of what there is to interrupt happens at once.
        let moment = Instant::now() + LONGEST.mul_f64(self.random.f64().powi(2));
        while Instant::now() < moment {
            if self.random.f64() < 0.4 {
                self.overwrite();
            }
            let pause = moment.saturating_duration_since(Instant::now());
            tokio::time::sleep(pause.min(Duration::from_millis(self.random.u64(1..8)))).await;
        }
        if let Some(plugin) = self.fixture.plugin.take() {
            plugin.kill();
        }
        self.hear(futures::future::join_all(calls).await);
        self.look("while the plugin is dead")?;
        if self.random.f64() < 0.2 {
            self.kill_a_start().await;
            self.look("after a start was killed")?;
        }
        self.fixture.plugin = Some(self.fixture.home.try_start().await?);
        self.fixture.kubelet = Kubelet::connect(&self.fixture.home).await;
        self.check()?;
        self.look("after the restart")?;
        if self.random.f64() < 0.6 {
            self.bring_credentials().await?;
        }
        if clean {
            self.clean().await?;
        }
        Ok(())
    }

    /// Something has to be there to be killed.
    async fn publish_some(&mut self) -> Result<(), String> {
        let mut calls = Vec::new();
        for number in 0..self.volumes.len() {
            if self.volumes[number].state == State::Absent && self.random.f64() < 0.5 {
                calls.push((number, self.send(number, true)));
            }
        }
        for (number, call) in calls {
            call.await.map_err(|status| format!("publish failed: {status:?}"))?;
            self.volumes[number].is_published();
        }
        Ok(())
    }

    /// Sends one publish or unpublish.
    fn send(
        &mut self,
        number: usize,
        publishes: bool,
    ) -> impl Future<Output = Result<(), Status>> + use<> {
        let volume = &mut self.volumes[number];
        if publishes && volume.state == State::Absent {
            volume.shows.settle(Arc::clone(&self.trees[volume.prefix]));
        }
        let (kubelet, pod) = (self.fixture.kubelet.clone(), volume.pod.clone());
        let call = spawn_owned(async move {
            if publishes {
                kubelet.publish(&pod).await.map(drop)
            } else {
                kubelet.unpublish(&pod).await
            }
        });
        async move { call.await.expect("the call does not panic") }
    }

    /// Sends some calls; each tells whether it was answered well.
    fn call(&mut self) -> Vec<impl Future<Output = Call> + use<>> {
        let mut calls = Vec::new();
        for number in 0..self.volumes.len() {
            let chance = self.random.f64();
            let publishes = match self.volumes[number].state {
                State::Absent if chance < 0.6 => true,
                State::Published if chance < 0.3 => true,
                State::Published if chance > 0.7 => false,
                _ => continue,
            };
            let call = self.send(number, publishes);
            calls.push(async move { (number, publishes, call.await.is_ok()) });
        }
        calls
    }

    fn hear(&mut self, calls: Vec<Call>) {
        for (number, publishes, answered) in calls {
            let Volume { state: before, may_be_dead, .. } = self.volumes[number];
            let state = match (publishes, answered) {
                (true, true) => State::Published,
                // A republish that is not answered changes nothing, unless it replaces a dead mount.
                (true, false) if before == State::Published && !may_be_dead => State::Published,
                (false, true) => State::Absent,
                (_, false) => State::Unknown,
            };
            if (publishes, answered) == (true, true) {
                self.volumes[number].is_published();
            } else if state == State::Unknown {
                self.volumes[number].may_be_dead = publishes;
            }
            self.volumes[number].state = state;
            self.count(match (publishes, answered) {
                (true, true) => "publishes answered",
                (true, false) => "publishes cut off",
                (false, true) => "unpublishes answered",
                (false, false) => "unpublishes cut off",
            });
        }
    }

    fn overwrite(&mut self) {
        let prefix = self.random.usize(..PREFIXES.len());
        let mut names = NAMES.to_vec();
        self.random.shuffle(&mut names);
        names.truncate(self.random.usize(1..4));
        let objects: Vec<_> = names.iter().map(|name| (*name, self.content(name))).collect();
        self.put(prefix, &objects);
    }

    /// A plugin that does not come far.
    async fn kill_a_start(&mut self) {
        let mut child: Child = self.fixture.home.command().spawn().expect("it can be started");
        tokio::time::sleep(LONGEST.mul_f64(self.random.f64())).await;
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    fn target(&self, volume: &Volume) -> PathBuf {
        self.fixture.kubelet.target(&volume.pod)
    }

    /// Every volume that is mounted shows what it may show.
    fn look(&mut self, when: &str) -> Result<(), String> {
        let mounts = self.fixture.home.mounts();
        for number in 0..self.volumes.len() {
            let volume = &self.volumes[number];
            let target = self.target(volume);
            let waits = volume.layout == Layout::Served && self.fixture.plugin.is_none();
            if !mounts.contains(&target) || waits {
                continue;
            }
            let failed = |text| format!("{when}, {:?} {}: {text}", volume.layout, target.display());
            let read = match volume.layout.read(&target) {
                Err(error) if error.kind() == ErrorKind::NotConnected && volume.may_be_dead => {
                    self.count("mounts that nobody served");
                    continue;
                }
                read => read.map_err(|error| failed(error.to_string()))?,
            };
            let seen = self.volumes[number].shows.see(&read);
            seen.map_err(|text| format!("{when}, {}: {text}", target.display()))?;
        }
        Ok(())
    }

    /// What is on the node belongs to volumes that are mounted, each once.
    fn check(&mut self) -> Result<(), String> {
        let mut mounts = self.fixture.home.mounts();
        mounts.sort();
        let mut of_view: BTreeMap<&str, usize> =
            BTreeMap::from([("tmpfs", 0), ("disk", 0), ("fuse", 0)]);
        for number in 0..self.volumes.len() {
            let volume = &self.volumes[number];
            let target = self.target(volume);
            let times = mounts.iter().filter(|mount| **mount == target).count();
            let is_right = match volume.state {
                State::Published => times == 1,
                State::Absent => times == 0,
                State::Unknown => times <= 1,
            };
            if !is_right {
                let target = target.display();
                return Err(format!("{:?} and mounted {times} times: {target}", volume.state));
            }
            if times == 0 && target.exists() {
                return Err(format!("{} is left", target.display()));
            }
            if times > 0 {
                *of_view.entry(volume.view).or_default() += 1;
                self.check_revisions(volume)?;
            }
            self.volumes[number].state = if times == 1 { State::Published } else { State::Absent };
        }
        if mounts.len() != of_view.values().sum::<usize>() {
            return Err(format!("mounts are left: {mounts:?}"));
        }
        self.check_stores(&of_view)
    }

    fn check_revisions(&self, volume: &Volume) -> Result<(), String> {
        if volume.layout != Layout::Symlinks {
            return Ok(());
        }
        let target = self.target(volume);
        let (revisions, shown) = tree::revisions(&target).map_err(|error| error.to_string())?;
        if revisions.last() == Some(&shown) {
            Ok(())
        } else {
            Err(format!("{} shows {shown} and has {revisions:?}", target.display()))
        }
    }

    fn check_stores(&self, of_view: &BTreeMap<&str, usize>) -> Result<(), String> {
        let home = &self.fixture.home;
        let stores =
            [("tmpfs", home.state_dir().join("memory/v1")), ("disk", home.path().join("disk/v1"))];
        for (view, store) in stores {
            let volumes = names(&store.join("volumes"));
            let served = if view == "tmpfs" { of_view["fuse"] } else { 0 };
            if volumes.len() != of_view[view] + served {
                return Err(format!("{of_view:?}, and the {view} store has {volumes:?}"));
            }
            let mut of_linked = 0;
            for volume in volumes {
                let mut inside = names(&store.join("volumes").join(&volume));
                inside.sort();
                match inside.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    ["root"] => of_linked += 1,
                    ["ledger"] | ["ledger", "proofs"] if served > 0 => {}
                    _ => return Err(format!("{inside:?} in {view} volume {volume}")),
                }
            }
            if of_linked != of_view[view] {
                return Err(format!("{of_view:?}, and {of_linked} are linked in the {view} store"));
            }
            let temporary = names(&store.join("tmp"));
            let records = names(&store.join("records"));
            if !temporary.is_empty() || !are(&records, "json") {
                return Err(format!("{view}: {temporary:?} or {records:?} are left"));
            }
        }
        let registry = names(&home.state_dir().join("memory/registry"));
        let volumes: usize = of_view.values().sum();
        if registry.len() != volumes || !are(&registry, "jsonl") {
            return Err(format!("{volumes} volumes and the registry {registry:?}"));
        }
        Ok(())
    }

    /// The kubelet's republishes; each volume then comes to show what S3 has.
    async fn bring_credentials(&mut self) -> Result<(), String> {
        let began = Instant::now();
        for volume in self.volumes.iter_mut().filter(|volume| volume.state == State::Published) {
            let answer = self.fixture.kubelet.publish(&volume.pod).await;
            answer.map_err(|status| format!("a republish failed: {status:?}"))?;
            volume.is_published();
        }
        loop {
            self.look("after a republish")?;
            let late = self.volumes.iter().position(|volume| {
                let tree = &*self.trees[volume.prefix];
                let read = || volume.layout.read(&self.target(volume));
                volume.state == State::Published && !read().is_ok_and(|read| read == *tree)
            });
            let Some(late) = late else { break };
            if began.elapsed() > LIMIT {
                let target = self.target(&self.volumes[late]);
                return Err(format!("{} does not follow S3 any more", target.display()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for volume in &mut self.volumes {
            volume.shows.settle(Arc::clone(&self.trees[volume.prefix]));
        }
        Ok(())
    }

    /// Every unpublish works, and nothing is left.
    async fn clean(&mut self) -> Result<(), String> {
        for volume in &mut self.volumes {
            let answer = self.fixture.kubelet.unpublish(&volume.pod).await;
            answer.map_err(|status| format!("unpublish failed: {status:?}"))?;
            volume.state = State::Absent;
        }
        self.check()?;
        let began = Instant::now();
        while self.fixture.home.kept_by_keeper() > 0 {
            if began.elapsed() > LIMIT {
                return Err("the keeper holds mounts of no volume".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Replaced revisions go when their time has come; then everything goes.
    async fn end(&mut self) -> Result<(), String> {
        for volume in &mut self.volumes {
            volume.shows.settle(Arc::clone(&self.trees[volume.prefix]));
            let answer = self.fixture.kubelet.publish(&volume.pod).await;
            answer.map_err(|status| format!("publish failed: {status:?}"))?;
            volume.is_published();
        }
        for _ in 0..5 {
            self.overwrite();
            self.bring_credentials().await?;
        }
        let began = Instant::now();
        let many = |volume: &&Volume| {
            volume.layout == Layout::Symlinks
                && tree::revisions(&self.target(volume)).is_ok_and(|(all, _)| all.len() > 2)
        };
        while let Some(volume) = self.volumes.iter().find(many) {
            if began.elapsed() > LIMIT {
                return Err(format!("old revisions stay in {}", self.target(volume).display()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.clean().await?;
        eprintln!("{:?}", self.counts);
        Ok(())
    }
}

/// Whether all are finished files of that kind.
fn are(names: &[String], extension: &str) -> bool {
    names.iter().all(|name| Path::new(name).extension().is_some_and(|it| it == extension))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries.map(|entry| name(entry).into_string().unwrap()).collect()
}
