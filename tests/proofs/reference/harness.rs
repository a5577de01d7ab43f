//! Lets a history happen to a real plugin, and compares it with the model at every step.

mod look;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tonic::Code;

use self::look::{Held, Laggard};
use super::{
    generators::{Flake, Op, SLOTS, Step},
    model::{Credential, Objects, Service, Shape, Verdict, View, World},
    volume::Volume,
};
use crate::{
    can_serve,
    fixture::{Fixture, is_mount_point},
    support::{
        kubelet::{Kubelet, Pod},
        namespace::Ids,
        plugin::{Plugin, Shown},
        s3::{Action, EmbeddedS3, Fault, Options},
        server::Server,
    },
    tree::Tree,
};

/// How many attempts a publish may take while requests fail.
const ATTEMPTS: usize = 20;

/// How long it may take until the keeper holds what it should.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What happened in all histories of this process.
static COUNTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// What happened so far.
pub(super) fn counts() -> BTreeMap<&'static str, u64> {
    COUNTS.lock().clone()
}

/// Runs a history from nothing to nothing.
pub(super) async fn run(ids: Ids, history: &[Step]) -> Result<(), String> {
    let mut harness = Harness::start(ids).await;
    let mut outcome = Ok(());
    for (number, step) in history.iter().enumerate() {
        outcome =
            harness.step(step).await.map_err(|error| format!("step {number}, {step:?}: {error}"));
        if outcome.is_err() {
            break;
        }
    }
    if outcome.is_ok() {
        outcome = harness.end().await;
    }
    COUNTS.lock().entry("cases").and_modify(|n| *n += 1).or_insert(1);
    for (what, times) in &harness.counts {
        *COUNTS.lock().entry(what).or_default() += times;
    }
    outcome.map_err(|error| format!("{error}\n{}", tail(&harness.fixture.home.log())))
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A pod with its volume.
struct Slot {
    pod: Pod,
    credential: Credential,
    volume: Volume,
    laggard: Option<Laggard>,
    held: Option<Held>,
    /// False for a `fuse` view whose plugin and keeper both ended, until a publish mounts it anew.
    is_served: bool,
    /// What it showed at the last rest.
    settled: Option<Arc<Tree>>,
}

struct Harness {
    fixture: Fixture,
    world: World,
    /// Whether there are faults that have not all had their turn.
    may_fail: bool,
    slots: [Option<Slot>; SLOTS],
    counts: BTreeMap<&'static str, u64>,
}

impl Harness {
    async fn start(ids: Ids) -> Self {
        let server = Server::Embedded(EmbeddedS3::start(Options::default()));
        let more = "limits: { minRefresh: 10ms }\n\
                    fuse: { waitForS3: 1s, waitForCredentials: 100ms }\n";
        let config = Fixture::config(&server, more).replace("retries: 3", "retries: 0");
        let shown = if can_serve() { Shown::Fuse } else { Shown::ByDefault };
        let fixture = Fixture::start_as(server, ids, &config, shown).await;
        let rights = fixture.embedded().rights();
        for credential in Credential::GOOD {
            grant(fixture.embedded(), credential);
        }
        rights.restrict(Credential::Limited.id());
        rights.grant(Credential::Limited.id(), &fixture.bucket, "q/");
        for (key, value) in [("p/a", 0), ("p/d/e", 1), ("q/a", 0), ("q/b", 1)] {
            fixture.embedded().put(&fixture.bucket, key, content(key, value));
        }
        let world = World {
            objects: fixture.embedded().objects(&fixture.bucket),
            before: Vec::new(),
            service: Service::Up,
            flaky: false,
            revoked: BTreeSet::new(),
            records: BTreeMap::new(),
        };
        Self {
            fixture,
            world,
            may_fail: false,
            slots: [const { None }; SLOTS],
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn s3(&self) -> &EmbeddedS3 {
        self.fixture.embedded()
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        self.apply(&step.op).await?;
        self.look()?;
        self.look_behind()?;
        if step.settle { self.settle().await } else { Ok(()) }
    }

    async fn apply(&mut self, op: &Op) -> Result<(), String> {
        let bucket = self.fixture.bucket.clone();
        match *op {
            Op::Put { key, value } => self.put(&[(key, value)]),
            Op::PutTogether { ref objects } => self.put(objects),
            Op::Delete { key } => {
                self.expect(|objects| drop(objects.remove(key)));
                self.s3().delete(&bucket, key);
            }
            Op::Publish { slot, shape, credential } => {
                self.publish(slot, shape, credential).await?;
            }
            Op::PublishLike { other } => self.publish_like(other).await?,
            Op::Unpublish { slot } => self.unpublish(slot).await?,
            Op::Republish { slot, credential } => {
                if let Some(slot) = &mut self.slots[slot] {
                    slot.credential = credential;
                }
                self.republish(slot).await?;
            }
            Op::RepublishAll => {
                for slot in 0..SLOTS {
                    self.republish(slot).await?;
                }
            }
            Op::Kill => self.restart(Plugin::kill).await?,
            Op::Stop => self.restart(Plugin::stop).await?,
            Op::KillBoth => self.restart_both().await?,
            Op::KillKeeper => self.restart_keeper().await?,
            Op::Service(service) => self.become_service(service),
            Op::Flaky { fault, times } => {
                // Two changes between two looks would have a state between them that nobody saw.
                let times = if matches!(fault, Flake::ChangedObject) { 1 } else { times };
                self.s3().faults().add(fault.fault().times(times));
                (self.world.flaky, self.may_fail) = (true, true);
            }
            Op::Heal => self.become_service(Service::Up),
            Op::Revoke(credential) => {
                self.s3().rights().remove_credential(credential.id());
                self.world.revoked.insert(credential);
            }
            Op::Restore(credential) => {
                grant(self.s3(), credential);
                self.world.revoked.remove(&credential);
            }
        }
        Ok(())
    }

    fn put(&mut self, objects: &[(&'static str, u8)]) {
        let put = |&(key, value): &(&'static str, u8)| (key, content(key, value));
        let objects: Vec<_> = objects.iter().map(put).collect();
        self.expect(|known| {
            known.extend(objects.iter().map(|(k, it)| ((*k).to_owned(), it.clone())));
        });
        self.s3().put_together(&self.fixture.bucket, &objects);
    }

    /// Tells the model of a change before it is made: it may be shown, and be changed again by a
    /// fault, before anybody looks.
    fn expect(&mut self, change: impl FnOnce(&mut Objects)) {
        self.refresh_objects();
        let before = self.world.objects.clone();
        change(&mut self.world.objects);
        self.world.before.push(before);
        for slot in self.slots.iter_mut().flatten() {
            slot.volume.note(&mut self.world);
        }
    }

    /// Faults that make some requests fail go with the others.
    fn become_service(&mut self, service: Service) {
        let s3 = self.fixture.embedded();
        s3.faults().clear();
        match service {
            Service::Up | Service::Down => {}
            Service::Overloaded => drop(s3.faults().add(Fault::new(Action::SLOW_DOWN))),
            Service::Denying => drop(s3.faults().add(Fault::new(Action::ACCESS_DENIED))),
        }
        s3.set_down(service == Service::Down);
        self.world.service = service;
        // Connections that were reset, and requests under way, may still fail.
        (self.world.flaky, self.may_fail) = (true, false);
    }

    async fn publish(
        &mut self,
        number: usize,
        shape: Shape,
        credential: Credential,
    ) -> Result<(), String> {
        let attributes = shape.attributes(&self.fixture.bucket);
        if let Some(slot) = &mut self.slots[number] {
            if slot.volume.shape == shape || slot.pod.attributes == attributes {
                slot.credential = credential;
                return self.republish(number).await;
            }
            if !slot.is_served {
                // A refused publish may have left nothing that another could differ from.
                return Ok(());
            }
            let other = Pod { attributes, ..slot.pod.clone() };
            let answer = self.fixture.kubelet.publish(&other).await;
            return match answer.map_err(|status| status.code()) {
                Err(Code::AlreadyExists) => Ok(()),
                answer => Err(format!("another volume at the same target: {answer:?}")),
            };
        }
        let mut pod = Pod::new("pod", &[]).with_secrets(credential.secrets());
        pod.attributes = attributes;
        match self.attempt(&pod, shape, credential).await? {
            Some(verdict) => self.is_published(number, pod, (shape, credential), verdict),
            None => Ok(()),
        }
    }

    /// Publishes what is not published, until the answer is more than a failure that passes; what
    /// it may show, or nothing if it was refused.
    async fn attempt(
        &mut self,
        pod: &Pod,
        shape: Shape,
        credential: Credential,
    ) -> Result<Option<Verdict>, String> {
        for _ in 0..ATTEMPTS {
            let mut verdict = self.world.verdict(shape, credential);
            let answer = self.fixture.kubelet.publish(pod).await.map_err(|status| status.code());
            // An object may have been changed meanwhile (it is a fault), and be shown or be missed.
            self.refresh_objects();
            let after = self.world.verdict(shape, credential);
            verdict.shows.extend(after.shows);
            let refused: Vec<_> = verdict.refused.into_iter().chain(after.refused).collect();
            match answer {
                Ok(_) => return Ok(Some(verdict)),
                Err(_) if is_mount_point(&self.fixture.kubelet.target(pod)) => {
                    return Err("a refused publish left a mount".into());
                }
                Err(code) if refused.contains(&code) => {
                    self.count("refused publishes");
                    if matches!(code, Code::PermissionDenied | Code::Unauthenticated) {
                        self.world.forget(shape, credential);
                    }
                    return Ok(None);
                }
                Err(Code::Unavailable | Code::DataLoss) if self.world.flaky => {}
                Err(code) => return Err(format!("publish answered {code:?}, not {verdict:#?}")),
            }
        }
        Err("the publish never comes to an end".into())
    }

    /// Takes in a volume that was published.
    fn is_published(
        &mut self,
        number: usize,
        pod: Pod,
        (shape, credential): (Shape, Credential),
        verdict: Verdict,
    ) -> Result<(), String> {
        let from_before = self.world.service != Service::Up;
        self.count(if from_before { "publishes without S3" } else { "publishes" });
        let world = &mut self.world;
        let mut shows = verdict.shows;
        if world.service == Service::Up {
            for tree in &shows {
                if world.flaky {
                    world.perhaps_record(shape, credential, tree);
                } else {
                    world.record(shape, credential, tree);
                }
            }
        }
        if world.flaky {
            // It may have fallen back to what was read before.
            let recorded = world.recorded(shape, credential).into_iter().flatten();
            shows = recorded.chain(shows).collect();
        }
        if shows.is_empty() {
            return Err(format!("publish answered OK, not {:?}", verdict.refused));
        }
        let volume = Volume::published(shape, credential, shows);
        self.slots[number] = Some(Slot {
            pod,
            credential,
            volume,
            laggard: None,
            held: None,
            is_served: true,
            settled: None,
        });
        Ok(())
    }

    /// Publishes once more what the slot, or the next one that has a volume, has; in a free slot, or
    /// instead of the last one.
    async fn publish_like(&mut self, other: usize) -> Result<(), String> {
        let slots = (0..SLOTS).map(|next| &self.slots[(other + next) % SLOTS]);
        let Some(Slot { credential, volume, .. }) = slots.flatten().next() else { return Ok(()) };
        let (shape, credential) = (volume.shape, *credential);
        let free = self.slots.iter().position(Option::is_none).unwrap_or(SLOTS - 1);
        self.unpublish(free).await?;
        self.publish(free, shape, credential).await
    }

    async fn unpublish(&mut self, number: usize) -> Result<(), String> {
        let Some(slot) = self.slots[number].take() else { return Ok(()) };
        for _ in 0..2 {
            let answer = self.fixture.kubelet.unpublish(&slot.pod).await;
            answer.map_err(|status| format!("unpublish failed: {status:?}"))?;
        }
        let target = self.fixture.kubelet.target(&slot.pod);
        if target.exists() { Err(format!("{} is left", target.display())) } else { Ok(()) }
    }

    async fn republish(&mut self, number: usize) -> Result<(), String> {
        let Some(slot) = &mut self.slots[number] else { return Ok(()) };
        let pod = slot.pod.clone().with_secrets(slot.credential.secrets());
        if !slot.is_served {
            return self.revive(number, pod).await;
        }
        slot.may_fail();
        let answer = self.fixture.kubelet.publish(&pod).await;
        answer.map_err(|status| format!("a republish failed: {status:?}"))?;
        slot.volume.republished(slot.credential);
        self.count("republishes");
        Ok(())
    }

    /// Publishes anew what nobody serves any more.
    async fn revive(&mut self, number: usize, pod: Pod) -> Result<(), String> {
        let Some(slot) = &self.slots[number] else { return Ok(()) };
        let (shape, credential) = (slot.volume.shape, slot.credential);
        if let Some(verdict) = self.attempt(&pod, shape, credential).await? {
            self.count("dead mounts that were replaced");
            return self.is_published(number, pod, (shape, credential), verdict);
        }
        Ok(())
    }

    async fn restart(&mut self, end: fn(Plugin)) -> Result<(), String> {
        let reads = self.begin_reads();
        if let Some(plugin) = self.fixture.plugin.take() {
            end(plugin);
        }
        self.look()?;
        self.start_plugin().await?;
        for slot in self.slots.iter_mut().flatten() {
            slot.volume.lose_credentials();
            slot.may_fail();
            *self.counts.entry("volumes that outlived a plugin").or_default() += 1;
        }
        self.end_reads(reads)
    }

    async fn start_plugin(&mut self) -> Result<(), String> {
        self.fixture.plugin = Some(self.fixture.home.try_start().await?);
        self.fixture.kubelet = Kubelet::connect(&self.fixture.home).await;
        Ok(())
    }

    /// Nobody holds the mounts of `fuse` views while both are gone.
    async fn restart_both(&mut self) -> Result<(), String> {
        if let Some(plugin) = self.fixture.plugin.take() {
            plugin.kill();
        }
        self.fixture.home.kill_keeper();
        for slot in self.slots.iter_mut().flatten() {
            slot.volume.lose_credentials();
            if slot.volume.shape.view == View::Fuse {
                (slot.is_served, slot.held) = (false, None);
            }
        }
        self.look()?;
        if can_serve() {
            self.fixture.home.start_keeper();
        }
        self.start_plugin().await
    }

    /// Until the plugin has handed over its mounts again, they would not outlive it.
    async fn restart_keeper(&mut self) -> Result<(), String> {
        if !can_serve() {
            return Ok(());
        }
        self.fixture.home.start_keeper();
        let began = Instant::now();
        for slot in self.slots.iter().flatten().filter(|slot| slot.is_served) {
            while self.fixture.kubelet.stats(&slot.pod).await.is_ok_and(|stats| {
                stats.volume_condition.is_some_and(|it| it.message.contains("keeper"))
            }) {
                if began.elapsed() > HAND_OVER {
                    return Err("the mounts are not handed over to the new keeper".into());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    fn refresh_objects(&mut self) {
        let objects = self.fixture.embedded().objects(&self.fixture.bucket);
        if self.world.objects != objects {
            let before = std::mem::replace(&mut self.world.objects, objects);
            self.world.before.push(before);
        }
    }

    /// Whatever the state of the world, everything can be taken away.
    async fn end(&mut self) -> Result<(), String> {
        self.look().map_err(|error| format!("at the end: {error}"))?;
        for number in 0..SLOTS {
            self.unpublish(number).await.map_err(|error| format!("at the end: {error}"))?;
        }
        let fixture = &self.fixture;
        let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fixture.assert_nothing_left();
        }));
        left.map_err(|_| "at the end: something is left".to_owned())
    }
}

impl Flake {
    fn fault(self) -> Fault {
        match self {
            Self::SlowListing => Fault::new(Action::SLOW_DOWN).on("ListObjectsV2"),
            Self::ErrorOnGet => Fault::get(Action::INTERNAL_ERROR),
            Self::ResetOnGet => Fault::get(Action::Reset),
            Self::Truncated => Fault::get(Action::Truncate(3)),
            Self::CutListing => Fault::new(Action::ResetAfter(200)).on("ListObjectsV2"),
            Self::Corrupt => Fault::get(Action::Corrupt),
            Self::ChangedObject => Fault::get(Action::ChangeETag),
        }
    }
}

fn grant(s3: &EmbeddedS3, credential: Credential) {
    if let [(_, id), (_, secret)] = credential.secrets() {
        s3.rights().add_credential(id, secret);
    }
}

/// What a key holds: telling, and of another length for each value. Markers are empty but one.
fn content(key: &str, value: u8) -> Bytes {
    if key.ends_with('/') && value < 2 {
        return Bytes::new();
    }
    format!("{key}={value};").repeat(1 + 400 * usize::from(value)).into()
}
