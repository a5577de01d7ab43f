//! Looking at volumes: at any moment, and until they have come to rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::ErrorKind,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Harness, Slot};
use crate::{
    fixture::is_mount_point,
    reference::{generators::SLOTS, model::View},
    tree::{self, Layout, Node, Tree},
};

/// How long a volume may take to show what it must. The pauses after failures double.
const LIMIT: Duration = Duration::from_secs(20);

/// How often the kubelet sends its republishes while something is awaited.
const REPUBLISH: Duration = Duration::from_millis(300);

/// For how long a reader goes on in one revision: shorter than a replaced one stays.
const LAG: Duration = Duration::from_secs(5);

/// A volume that is being read.
pub(super) type Reading = JoinHandle<std::io::Result<Tree>>;

/// A reader that resolved `..data` a while ago, and reads on in what it found.
pub(super) struct Laggard {
    since: Instant,
    data: File,
    tree: Tree,
}

/// A file that has been open for a while: it stays what it was.
pub(super) struct Held {
    since: Instant,
    path: String,
    file: File,
    content: Vec<u8>,
    /// Whether what reads it may have become another.
    may_fail: bool,
}

impl Slot {
    /// Whoever reads for it from now on may not be allowed to, or not be there.
    pub(super) fn may_fail(&mut self) {
        self.held.iter_mut().for_each(|held| held.may_fail = true);
    }

    /// Reads the open file again, or opens one.
    fn hold(&mut self, target: &Path) -> Result<(), String> {
        let Some(held) = &self.held else {
            self.held = Held::open(target).ok().flatten();
            return Ok(());
        };
        let Held { path, content, .. } = held;
        match held.read() {
            Ok(read) if read == *content => {}
            Ok(read) => return Err(format!("{path}: {} other bytes", read.len())),
            Err(_) if held.may_fail => {}
            Err(error) => return Err(format!("{path}: {error}")),
        }
        if held.since.elapsed() > LAG {
            self.held = None;
        }
        Ok(())
    }
}

impl Held {
    /// Opens some file that can be read.
    fn open(target: &Path) -> std::io::Result<Option<Self>> {
        let files =
            Layout::Served.read(target)?.into_iter().filter_map(|(path, node)| match node {
                Node::File(content) if !content.is_empty() => Some((path, content)),
                _ => None,
            });
        let files: Vec<_> = files.collect();
        let Some((path, content)) = files.get(fastrand::usize(..files.len().max(1))) else {
            return Ok(None);
        };
        let (file, since) = (File::open(target.join(path))?, Instant::now());
        let (path, content) = (path.clone(), content.clone());
        let held = Self { since, path, file, content, may_fail: false };
        // Another may have taken its place.
        let is_it = held.read().is_ok_and(|read| read == held.content);
        Ok(is_it.then_some(held))
    }

    /// Reads it from its beginning, and not what the kernel remembers.
    fn read(&self) -> std::io::Result<Vec<u8>> {
        tree::forget_pages(&self.file);
        let mut content = vec![0; self.content.len() + 1];
        let length = self.file.read_at(&mut content, 0)?;
        content.truncate(length);
        Ok(content)
    }
}

impl Harness {
    /// Looks at every volume once; each must show what it may show.
    pub(super) fn look(&mut self) -> Result<(), String> {
        let targets = self.targets();
        let mut seen = Vec::new();
        for (number, target) in &targets {
            let slot = self.slots[*number].as_ref().expect("it has a target");
            // The paths first: what comes meanwhile is known afterwards.
            let lasting: Vec<_> = slot.volume.shows.lasting().cloned().collect();
            let read = slot.volume.shape.layout.read(target);
            let missing = lasting.into_iter().find(|path| !target.join(path).is_file());
            seen.push((*number, read, missing));
        }
        // What the volumes may show is told by what the bucket held until after they were read.
        let before = self.world.objects.clone();
        self.refresh_objects();
        for slot in self.slots.iter_mut().flatten() {
            slot.volume.note(&mut self.world);
        }
        for (number, read, missing) in seen {
            let volume = &mut self.slots[number].as_mut().expect("it has a target").volume;
            let failed = |text| format!("slot {number}, {:?}: {text}", volume.shape);
            let read = read.map_err(|error| failed(format!("cannot be read: {error}")))?;
            let shape = volume.shape;
            if let Some(path) =
                missing.filter(|path| volume.shows.lasting().any(|known| known == path))
            {
                return Err(format!("slot {number}, {shape:?}: {path:?} is missing"));
            }
            let failed = |text| format!("slot {number}, {shape:?}: {text}");
            volume.shows.see(&read).map_err(failed)?;
            let during = [&before, &self.world.objects];
            volume.see_reads(&self.world, &read, &during).map_err(failed)?;
        }
        self.look_at_dead_mounts()
    }

    /// Who reads what nobody serves is told so at once.
    fn look_at_dead_mounts(&self) -> Result<(), String> {
        for (number, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot.as_ref().filter(|slot| !slot.is_served) else { continue };
            let target = self.fixture.kubelet.target(&slot.pod);
            match std::fs::read_dir(&target).map(Iterator::count) {
                Err(error) if error.kind() == ErrorKind::NotConnected => {}
                // A publish in its place was refused.
                _ if !is_mount_point(&target) => {}
                read => {
                    return Err(format!("slot {number} is served by nobody, and answers {read:?}"));
                }
            }
        }
        Ok(())
    }

    /// Begins to read `fuse` views that the plugin is about to leave; see [`Harness::end_reads`].
    pub(super) fn begin_reads(&self) -> Vec<(usize, Reading)> {
        let targets = self.targets().into_iter();
        let served = targets.filter(|(number, _)| {
            self.slots[*number].as_ref().is_some_and(|it| it.volume.shape.view == View::Fuse)
        });
        let read = |target: PathBuf| std::thread::spawn(move || Layout::Served.read(&target));
        served.map(|(number, target)| (number, read(target))).collect()
    }

    /// What came of reading while one plugin went and another one came: nothing wrong.
    pub(super) fn end_reads(&mut self, reads: Vec<(usize, Reading)>) -> Result<(), String> {
        let reads: Vec<_> = reads.into_iter().map(|(number, it)| (number, it.join())).collect();
        self.refresh_objects();
        for (number, read) in reads {
            let read = read.expect("reading does not panic");
            let volume = &mut self.slots[number].as_mut().expect("it is read").volume;
            volume.note(&mut self.world);
            let failed = |text| format!("slot {number}, {:?} over a restart: {text}", volume.shape);
            let read = read.map_err(|error| failed(error.to_string()))?;
            volume
                .shows
                .see(&read)
                .map_err(|text| format!("slot {number}, over a restart: {text}"))?;
        }
        Ok(())
    }

    /// Who resolved `..data` before a replacement reads the same as ever.
    pub(super) fn look_behind(&mut self) -> Result<(), String> {
        for (number, target) in self.targets() {
            let slot = self.slots[number].as_mut().expect("it has a target");
            match slot.volume.shape.layout {
                Layout::Symlinks => {}
                Layout::Files => continue,
                Layout::Served => {
                    let text = |text| format!("slot {number}, an open file: {text}");
                    slot.hold(&target).map_err(text)?;
                    continue;
                }
            }
            let failed = |error| format!("slot {number}, a reader of an old revision: {error}");
            if let Some(Laggard { data, tree, since }) = &slot.laggard
                && since.elapsed() < LAG
            {
                let read = tree::read_below(data).map_err(|error| failed(error.to_string()))?;
                if read != *tree {
                    return Err(failed(format!("shows {read:#?}, not {tree:#?}")));
                }
                continue;
            }
            let data = File::open(target.join("..data")).map_err(|it| failed(it.to_string()))?;
            let tree = tree::read_below(&data).map_err(|error| failed(error.to_string()))?;
            slot.laggard = Some(Laggard { since: Instant::now(), data, tree });
        }
        Ok(())
    }

    /// The volumes that somebody serves.
    fn targets(&self) -> Vec<(usize, PathBuf)> {
        let slots = self.slots.iter().enumerate();
        let served = slots.filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        let served = served.filter(|(_, slot)| slot.is_served && self.can_be_read(slot));
        served.map(|(number, slot)| (number, self.fixture.kubelet.target(&slot.pod))).collect()
    }

    /// Whoever reads a `fuse` view without a plugin waits for one.
    fn can_be_read(&self, slot: &Slot) -> bool {
        slot.volume.shape.view != View::Fuse || self.fixture.plugin.is_some()
    }

    /// Waits until every volume shows exactly what it must, and nothing is under way any more.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let mut republished = Instant::now();
        loop {
            self.look()?;
            let behind = self.behind();
            if behind.is_none() {
                break;
            }
            if began.elapsed() > LIMIT {
                let told = self.tell().await;
                return Err(format!("this never came: {}\n{told}", behind.unwrap_or_default()));
            }
            if republished.elapsed() > REPUBLISH {
                republished = Instant::now();
                self.kubelet_comes_by().await?;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.look_behind()?;
        self.rest().await?;
        for slot in self.slots.iter_mut().flatten() {
            if !self.world.flaky {
                slot.volume.all_is_listed();
            }
            if let Some(tree) = slot.volume.target(&self.world) {
                if slot.settled.as_ref().is_some_and(|settled| *settled != tree) {
                    *self.counts.entry("changes that came to be shown").or_default() += 1;
                }
                slot.settled = Some(Arc::clone(&tree));
                if !self.world.flaky {
                    slot.volume.is_certain(&mut self.world, &tree);
                }
                slot.volume.shows.settle(tree);
            }
        }
        self.world.flaky = self.may_fail;
        self.world.before.clear();
        Ok(())
    }

    /// What the plugin says of its volumes, and what it asked last.
    async fn tell(&self) -> String {
        let mut told = Vec::new();
        for slot in self.slots.iter().flatten() {
            let stats = self.fixture.kubelet.stats(&slot.pod).await;
            let message = stats.map(|stats| stats.volume_condition.unwrap_or_default().message);
            told.push(format!("{}: {message:?}", slot.pod.volume_id()));
        }
        let requests = self.s3().log();
        let last = &requests[requests.len().saturating_sub(8)..];
        told.push(format!("arrived: {:?}; answered: {last:#?}", self.s3().requests()));
        told.join("\n")
    }

    /// The first volume that does not show what it must.
    fn behind(&self) -> Option<String> {
        self.targets().into_iter().find_map(|(number, target)| {
            let volume = &self.slots[number].as_ref()?.volume;
            let expected = volume.target(&self.world)?;
            let shown = volume.shape.layout.read(&target);
            let names = tree::top_names(&target);
            let top: Vec<_> = expected.keys().filter(|path| !path.contains('/')).cloned().collect();
            let is_there = shown.as_ref().is_ok_and(|shown| *shown == *expected)
                && names.as_ref().is_ok_and(|names| *names == top);
            (!is_there).then(|| {
                format!(
                    "slot {number}, {:?}: shows {shown:#?} with {names:?}, expected {expected:#?}",
                    volume.shape
                )
            })
        })
    }

    /// The kubelet repeats the publishes of all pods that it has repeated since the plugin started.
    async fn kubelet_comes_by(&mut self) -> Result<(), String> {
        for number in 0..SLOTS {
            if self.slots[number].as_ref().is_some_and(|slot| slot.volume.last.is_some()) {
                self.republish(number).await?;
            }
        }
        Ok(())
    }

    /// Waits until each volume that follows S3 has surely done so with the credentials that its
    /// last republish brought: until these were used for several listings. They may have been
    /// refused for a while, so the kubelet comes by once more.
    async fn rest(&mut self) -> Result<(), String> {
        self.look_for(Duration::from_millis(70)).await?;
        if self.world.flaky {
            return Ok(());
        }
        self.kubelet_comes_by().await?;
        self.s3().reset_requests();
        let waits = self.listings_to_come();
        let began = Instant::now();
        while !self.have_come(&waits) {
            self.look_behind()?;
            if began.elapsed() > LIMIT {
                return Err(format!("these listings never came: {waits:?}"));
            }
            self.look_for(Duration::from_millis(5)).await?;
        }
        self.look()
    }

    async fn look_for(&mut self, time: Duration) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.look()?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// How many listings of each credential and prefix tell that all is done.
    fn listings_to_come(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut groups = BTreeSet::new();
        for slot in self.slots.iter().flatten() {
            let volume = &slot.volume;
            if volume.target(&self.world).is_some()
                && let Some(credential) = volume.in_use(&self.world)
            {
                groups.insert((credential, volume.shape.sources, volume.shape.allow_empty));
            }
        }
        let mut waits = BTreeMap::new();
        for (credential, sources, _) in groups {
            for (prefix, _) in sources.parts() {
                *waits.entry((credential.id(), *prefix)).or_default() += 3;
            }
        }
        waits
    }

    fn have_come(&self, waits: &BTreeMap<(&'static str, &'static str), usize>) -> bool {
        let mut came: BTreeMap<(String, String), usize> = BTreeMap::new();
        for logged in self.s3().log() {
            let call = logged.call;
            if matches!(call.operation, "ListObjectsV2" | "HeadObject")
                && logged.status == Some(200)
            {
                let id = call.access_key.clone().unwrap_or_default();
                *came.entry((id, call.key.clone())).or_default() += 1;
            }
        }
        waits.iter().all(|((id, prefix), number)| {
            came.get(&((*id).to_owned(), (*prefix).to_owned())).is_some_and(|came| came >= number)
        })
    }
}
