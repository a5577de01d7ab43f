//! Republish: the kubelet's repeated publish of a volume that is published, every 60-90 seconds,
//! with the Secret as it is now.
//!
//! It never fails because of what it brings, changes no mount, and asks S3 nothing by itself. What is
//! wrong with it stands in the volume condition. Credentials that differ from the last working ones
//! are tried at once by a refresh.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Node, VolumeSecretsInput,
    identity::Brought,
    publish::{self, Place},
    published::{self, Published},
    registry::Shape,
    revision::{Recipe, View},
};
use crate::{
    config::Config,
    failure::full_message,
    source::s3::S3Source,
    units::Refresh,
    view::linkfarm::LinkFarm,
    volume::{Tenant, ViewKind, VolumeSpec},
};

/// What a republish asks for.
struct Asked {
    spec: Arc<VolumeSpec>,
    tenant: Option<Tenant>,
    source: S3Source,
}

impl Node {
    /// Takes in what a republish brings.
    pub(super) fn renew(
        &self,
        place: &Place,
        published: &Arc<Published>,
        attributes: &BTreeMap<String, String>,
        secrets: VolumeSecretsInput,
    ) {
        match self.recipe_of(place, published, attributes, secrets) {
            Err(trouble) => published.note_republish(Some(trouble)),
            Ok(recipe) => self.take_up(place, published, Arc::new(recipe)),
        }
    }

    /// The volume's recipe with the credentials of this republish.
    fn recipe_of(
        &self,
        place: &Place,
        published: &Published,
        attributes: &BTreeMap<String, String>,
        secrets: VolumeSecretsInput,
    ) -> Result<Recipe, String> {
        let unusable =
            |why: String| format!("what the last republish brought cannot be used: {why}");
        let config = self.0.config();
        let brought = Brought::parse(attributes, secrets, &config);
        let brought = brought.map_err(|problems| unusable(problems.to_string()))?;
        // A volume that works goes on as it is; after a restart its attributes are read again.
        let spec = if let Some(known) = published.recipe() {
            Arc::clone(&known.spec)
        } else {
            let spec = publish::spec(&config, place, attributes, Some(&brought));
            Arc::new(spec.map_err(|error| {
                let why = full_message(&error);
                format!("it is not refreshed, because its attributes are refused now: {why}")
            })?)
        };
        let source = self.0.source(&config, &spec, &brought);
        let source = source.map_err(|error| unusable(full_message(&error)))?;
        let asked = Asked { spec, tenant: brought.tenant, source };
        Ok(self.recipe(&config, place, published, asked))
    }

    fn recipe(
        &self,
        config: &Config,
        place: &Place,
        published: &Published,
        asked: Asked,
    ) -> Recipe {
        let Asked { spec, tenant, source } = asked;
        let store = self.0.stores.get(published.medium).clone();
        let directory = store.volumes().join(place.key.as_str());
        // A volume whose record was lost stands as it stands.
        let shape = published.shape().unwrap_or_else(|| Shape {
            layout: LinkFarm::layout_of(&directory).unwrap_or(spec.layout),
            ownership: spec.ownership,
            xattrs: spec.xattrs,
        });
        let view = match published.view {
            ViewKind::Fuse => View::Fuse,
            ViewKind::Tmpfs | ViewKind::Disk => {
                View::LinkFarm(LinkFarm::new(directory, shape.layout, shape.ownership))
            }
        };
        // It shares with the same volumes for all its life, whatever later requests say.
        let known = published.entry();
        let namespace = match known.shape {
            Some(_) => known.namespace,
            None => tenant.as_ref().map(|tenant| tenant.namespace.clone()),
        };
        let sharers = publish::sharers(config, namespace.as_deref(), &place.key);
        Recipe { spec, tenant, source, store, view, shape, sharers }
    }

    /// Refreshes with the recipe's credentials, if they are not the ones that the volume uses.
    fn take_up(&self, place: &Place, published: &Arc<Published>, recipe: Arc<Recipe>) {
        let (known, asked) = (published.recipe(), recipe.listing_key());
        if known.is_none() {
            // Reads prove by themselves what they may read, and some wait for credentials.
            published.read_as(&recipe, &self.0.seal(&recipe));
        }
        let is_known = known.as_ref().is_some_and(|known| known.access() == recipe.access());
        // A `fuse` view that follows nothing still reads, and so must know that others work.
        let tries = known.is_some() && !is_known && published.fused.is_some();
        let follows = recipe.spec.refresh != Refresh::Never || published.is_fallback() || tries;
        let is_member = self.0.refresher.has(&asked, published);
        let interval = published::interval(&recipe);
        if is_known {
            published.note_republish(None);
            // A trial of others, if there was one, is over.
            self.0.refresher.withdraw(published, Some(&asked));
        } else if is_member || published.has_refused(recipe.access(), interval) {
            return;
        } else {
            published.note_republish(None);
            let kept = known.map(|known| known.listing_key());
            self.0.refresher.withdraw(published, kept.as_ref());
        }
        if follows && !is_member {
            self.follow(place.key.clone(), Arc::clone(published), recipe, None);
        } else if !is_known && !follows {
            // It asks S3 nothing any more, so there is nothing to try.
            published.hold(&recipe, &self.0.seal(&recipe));
        }
    }
}
