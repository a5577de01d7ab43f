//! What the model knows of one volume.

use std::{collections::BTreeSet, sync::Arc};

use nix::libc::{EACCES, EIO, ESTALE};

use super::model::{Credential, Objects, Refresh, Service, Shape, World};
use crate::tree::{History, Node, Tree};

/// Whether a volume follows S3 now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// It must come to show what S3 has.
    Yes,
    /// It may or may not.
    Perhaps,
    No,
}

/// A published volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) shape: Shape,
    /// What it may show.
    pub(super) shows: History,
    /// The credentials that the plugin may hold as the last working ones.
    pub(super) working: BTreeSet<Credential>,
    /// What the last republish brought since the plugin started.
    pub(super) last: Option<Credential>,
    /// What earlier ones brought, and the plugin may be trying still.
    pub(super) tried: BTreeSet<Credential>,
    /// What its sources held while it could not follow them: volumes that could may have had it
    /// listed, and a listing is shared for an interval.
    missed: Vec<Arc<Tree>>,
    /// Paths and contents that were read of a `fuse` view, and with which credentials: they can be
    /// read again whatever becomes of S3.
    read: (Option<Credential>, BTreeSet<(String, Vec<u8>)>),
}

impl Volume {
    /// A volume holds on to the credentials that it was published with, also if it shows what was
    /// read before.
    pub(super) fn published(shape: Shape, credential: Credential, shows: Vec<Arc<Tree>>) -> Self {
        let (one, shows) = (BTreeSet::from([credential]), History::new(shape.layout, shows));
        let (last, missed, read) = (Some(credential), Vec::new(), Default::default());
        Self { shape, shows, working: one.clone(), last, tried: one, missed, read }
    }

    /// The kubelet brought these credentials.
    pub(super) fn republished(&mut self, credential: Credential) {
        self.last = Some(credential);
        self.tried.insert(credential);
    }

    /// What the plugin must come to use.
    pub(super) fn in_use(&self, world: &World) -> Option<Credential> {
        let lets = |credential: &Credential| world.lets(*credential, self.shape.sources);
        let working = || self.working.first().copied().filter(|_| self.working.len() == 1);
        self.last.filter(lets).or_else(|| working().filter(lets))
    }

    /// The credentials that a `fuse` view reads with, if that is certain.
    fn reads_as(&self) -> Option<Credential> {
        let is_certain = self.working.len() == 1 && self.tried == self.working;
        self.working.first().copied().filter(|_| is_certain && self.last.is_some())
    }

    /// Takes in what was read of a `fuse` view, and what was not, while the bucket held `during`.
    ///
    /// # Errors
    /// If something must have been readable, or failed for another reason than it may.
    pub(super) fn see_reads(
        &mut self,
        world: &World,
        seen: &Tree,
        during: &[&Objects],
    ) -> Result<(), String> {
        let reader = self.reads_as();
        if reader.is_some() && self.read.0 != reader {
            self.read = (reader, BTreeSet::new());
        }
        for (path, node) in seen {
            match node {
                Node::File(content) if reader.is_some() => {
                    self.read.1.insert((path.clone(), content.clone()));
                }
                Node::Unread { size, errno } => {
                    let failed = self.check_unread(world, path, (*size, *errno), during);
                    failed.map_err(|text| format!("{path:?}: {node:?}, but {text}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_unread(
        &self,
        world: &World,
        path: &str,
        (size, errno): (Option<u64>, i32),
        during: &[&Objects],
    ) -> Result<(), &'static str> {
        let contents = self.shows.trees().filter_map(|tree| match tree.get(path) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        });
        let is_it = |content: &&Vec<u8>| size.is_none_or(|size| size == content.len() as u64);
        let contents: Vec<_> = contents.filter(is_it).collect();
        let is_sure = self.reads_as().is_some() && self.reads_as() == self.read.0;
        let was_read =
            |content: &&&Vec<u8>| self.read.1.contains(&(path.to_owned(), (**content).clone()));
        if is_sure && contents.iter().all(|content| was_read(&content)) {
            return Err("it was read before");
        }
        let is_current = |content: &Vec<u8>| {
            during.iter().all(|objects| self.shape.is_current(path, content, objects))
        };
        match errno {
            ESTALE if contents.iter().all(|content| is_current(content)) => Err("it is current"),
            ESTALE => Ok(()),
            EIO | EACCES if world.flaky || self.reads_as().is_none() => Ok(()),
            EIO if matches!(world.service, Service::Down | Service::Overloaded) => Ok(()),
            EACCES if world.service == Service::Denying => Ok(()),
            EACCES if self.reads_as().is_some_and(|it| !world.lets(it, self.shape.sources)) => {
                Ok(())
            }
            _ => Err("nothing stands against reading it"),
        }
    }

    /// It follows S3, and nothing is under way.
    pub(super) fn is_certain(&mut self, world: &mut World, tree: &Arc<Tree>) {
        if let Some(credential) = self.in_use(world) {
            self.working = BTreeSet::from([credential]);
            self.tried.clone_from(&self.working);
            world.record(self.shape, credential, tree);
        }
    }

    pub(super) fn follows(&self, world: &World) -> Follows {
        if self.shape.refresh == Refresh::Never || world.service != Service::Up {
            return Follows::No;
        }
        let lets = |credential: &Credential| world.lets(*credential, self.shape.sources);
        let works = !self.working.is_empty() && self.working.iter().all(lets);
        if works || self.last.as_ref().is_some_and(lets) {
            Follows::Yes
        } else if self.working.iter().any(lets) || self.tried.iter().any(lets) {
            Follows::Perhaps
        } else {
            Follows::No
        }
    }

    /// What it must come to show; none if that is what it shows.
    pub(super) fn target(&self, world: &World) -> Option<Arc<Tree>> {
        let follows = self.follows(world) == Follows::Yes;
        follows.then(|| self.shape.tree(&world.objects).ok().map(Arc::new)).flatten()
    }

    /// Takes in that something changed.
    pub(super) fn note(&mut self, world: &mut World) {
        for credential in self.working.union(&self.tried) {
            if world.refuses(*credential, self.shape.sources) {
                world.perhaps_forget(self.shape, *credential);
            }
        }
        let follows = self.follows(world) != Follows::No;
        if !follows && (self.shape.refresh == Refresh::Never || world.service != Service::Up) {
            return;
        }
        // Several sources are listed one after the other.
        if self.shape.sources.parts().len() > 1 {
            let mixes = world.before.iter().map(|before| mix(before, &world.objects));
            self.missed
                .extend(mixes.filter_map(|mixed| self.shape.tree(&mixed).ok().map(Arc::new)));
        }
        let tree = self.shape.tree(&world.objects).ok().map(Arc::new);
        self.missed.extend(tree.clone());
        self.missed.dedup();
        if !follows {
            return;
        }
        for tree in self.missed.drain(..) {
            self.shows.push(tree);
        }
        let Some(tree) = tree else { return };
        let lets = |credential: &&Credential| world.lets(**credential, self.shape.sources);
        let used: BTreeSet<_> = self.working.union(&self.tried).filter(lets).copied().collect();
        for credential in used {
            world.perhaps_record(self.shape, credential, &tree);
        }
    }

    /// All listings are of what the sources held when this was told of last.
    pub(super) fn all_is_listed(&mut self) {
        self.missed.drain(..self.missed.len().saturating_sub(1));
    }

    /// The plugin was killed: credentials were in its memory only.
    pub(super) fn lose_credentials(&mut self) {
        (self.last, self.working, self.tried) = (None, BTreeSet::new(), BTreeSet::new());
        self.missed.clear();
    }
}

/// What the first prefix held before, and the second one now.
fn mix(before: &Objects, now: &Objects) -> Objects {
    let of = |objects: &Objects, prefix: &str| -> Objects {
        let objects = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        objects.map(|(key, content)| (key.clone(), content.clone())).collect()
    };
    of(before, "p/").into_iter().chain(of(now, "q/")).collect()
}
