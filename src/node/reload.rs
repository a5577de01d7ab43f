//! A changed configuration file: what of it takes effect now.
//!
//! What is published keeps what it was published with: defaults made its specification, and limits
//! let it in. The policy for what is read goes on being asked at each refresh.

use std::sync::Arc;

use super::Node;
use crate::{
    config::{Config, Reloaded},
    problems::Problems,
    volume::check_defaults,
};

impl Node {
    /// Puts into force what of `file` can be, for every publish and refresh from now on: all of it or,
    /// if something is wrong, nothing.
    ///
    /// What only this machine can tell of the rest (CA bundles, memory) is for the start.
    ///
    /// # Errors
    /// Attributes in `defaults` that do not exist or do not parse.
    pub fn reload(&self, file: &Config) -> Result<Reloaded, Problems> {
        check_defaults(&file.defaults)?;
        let mut config = self.0.config.write();
        let (next, outcome) = config.take_over(file);
        if outcome.in_force.is_empty() {
            return Ok(outcome);
        }
        *config = Arc::new(next);
        for store in self.0.stores.iter() {
            store.set_proof_lifetime(config.authorization.lifetime);
        }
        self.0.records.set_cached_for(config.authorization.cached_for);
        if outcome.in_force.contains(&"policy") {
            self.0.clients.set_policy(&config.policy);
        }
        Ok(outcome)
    }
}
