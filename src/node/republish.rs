//! Republish: the kubelet's repeated publish of a volume that is published, every 60-90 seconds,
//! with the Secret as it is now.
//!
//! It never fails because of what it brings, changes no mount, and asks S3 nothing by itself. What is
//! wrong with it stands in the volume condition. Credentials that differ from the last working ones
//! are tried at once by a refresh.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Node, VolumeSecretsInput,
    publish::Place,
    published::{self, Published},
    refresh::Member,
    registry::Shape,
    revision::Recipe,
};
use crate::{
    failure::full_message,
    source::s3::S3Source,
    units::Refresh,
    view::linkfarm::LinkFarm,
    volume::{PodInfo, VolumeSecrets, VolumeSpec},
};

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
        let secrets = usable(secrets)?;
        let pod = PodInfo::of(attributes);
        // A volume that works goes on as it is; after a restart its attributes are read again.
        let spec = match published.recipe() {
            Some(known) => Arc::clone(&known.spec),
            None => Arc::new(self.spec(place, attributes, &pod).map_err(|error| {
                let why = full_message(&error);
                format!("it is not refreshed, because its attributes are refused now: {why}")
            })?),
        };
        let source = self.source(&spec, &secrets, &pod).map_err(|error| {
            format!("the last republish's Secret cannot be used: {}", full_message(&error))
        })?;
        Ok(self.recipe(place, published, spec, source))
    }

    fn recipe(
        &self,
        place: &Place,
        published: &Published,
        spec: Arc<VolumeSpec>,
        source: S3Source,
    ) -> Recipe {
        let as_now = Shape { layout: spec.layout, ownership: spec.ownership };
        let shape = published.shape().unwrap_or(as_now);
        let store = self.0.stores.get(published.medium).clone();
        let directory = store.volumes().join(place.key.as_str());
        let farm = LinkFarm::new(directory, shape.layout, shape.ownership);
        Recipe { spec, source, store, farm, shape }
    }

    /// Refreshes with the recipe's credentials, if they are not the ones that the volume uses.
    fn take_up(&self, place: &Place, published: &Arc<Published>, recipe: Arc<Recipe>) {
        let known = published.recipe();
        let asked = recipe.listing_key();
        if known.as_ref().is_some_and(|known| known.access() == recipe.access()) {
            published.note_republish(None);
            // A trial of others, if there was one, is over.
            self.0.refresher.withdraw(&place.key, Some(&asked));
            return;
        }
        let interval = published::interval(&recipe);
        if self.0.refresher.has(&asked, &place.key)
            || published.has_rejected(recipe.access(), interval)
        {
            return;
        }
        published.note_republish(None);
        if recipe.spec.refresh == Refresh::Never && !published.is_failing() {
            // It asks S3 nothing any more, so there is nothing to try.
            published.hold(&recipe);
            return;
        }
        let same_principal = published.principal() == Some(self.0.seal(&recipe));
        self.0.refresher.withdraw(&place.key, known.map(|known| known.listing_key()).as_ref());
        self.follow(
            Member {
                key: place.key.clone(),
                published: Arc::clone(published),
                recipe,
                is_trial: !same_principal,
                is_new: true,
            },
            None,
        );
    }
}

/// The secrets, if they hold an access key; else what is wrong with them.
fn usable(secrets: VolumeSecretsInput) -> Result<VolumeSecrets, String> {
    match secrets.parse() {
        Ok(secrets) if secrets.keys.is_some() => Ok(secrets),
        Ok(_) => Err("the last republish brought no access key".to_owned()),
        Err(problems) => Err(format!("the last republish's Secret cannot be used: {problems}")),
    }
}
