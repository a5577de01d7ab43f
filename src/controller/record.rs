//! Which names are taken, as far as this process remembers.
//!
//! The same name with other parameters is another volume, and CSI wants that refused. Without a record
//! it could not be told, and with a lasting one the controller would have state to lose. So the newest
//! volumes are remembered, in memory: that covers whoever retries with changed parameters. Who comes
//! after a restart is told by the `PersistentVolume` of that name, where the cluster can be asked, and
//! gets an id of its own where it cannot, which hurts nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};

use parking_lot::Mutex;

use super::{ControllerError, VolumeId};

/// How many volumes are remembered. Each takes 4 KiB at most.
const MOST: usize = 1024;

/// The newest volumes, by name.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Volumes>);

#[derive(Debug, Default)]
struct Volumes {
    by_name: HashMap<String, Known>,
    /// The same names, oldest first.
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Known {
    id: VolumeId,
    attributes: BTreeMap<String, String>,
}

impl Record {
    /// Whether the volume is known.
    ///
    /// # Errors
    /// [`ControllerError::Incompatible`], if its name belongs to another one.
    pub(super) fn check(
        &self,
        id: &VolumeId,
        attributes: &BTreeMap<String, String>,
    ) -> Result<bool, ControllerError> {
        self.0.lock().check(id, attributes)
    }

    /// Remembers a volume.
    ///
    /// # Errors
    /// As [`Record::check`]: another call may have been faster.
    pub(super) fn add(
        &self,
        id: &VolumeId,
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), ControllerError> {
        let mut volumes = self.0.lock();
        if volumes.check(id, attributes)? {
            return Ok(());
        }
        while volumes.order.len() >= MOST {
            let Some(oldest) = volumes.order.pop_front() else { break };
            volumes.by_name.remove(&oldest);
        }
        let known = Known { id: id.clone(), attributes: attributes.clone() };
        volumes.by_name.insert(id.name().to_owned(), known);
        volumes.order.push_back(id.name().to_owned());
        Ok(())
    }

    /// Forgets a volume: its name may be used again.
    pub(super) fn forget(&self, id: &VolumeId) {
        let mut volumes = self.0.lock();
        if volumes.by_name.get(id.name()).is_some_and(|known| known.id == *id) {
            volumes.by_name.remove(id.name());
            volumes.order.retain(|name| name != id.name());
        }
    }
}

impl Volumes {
    fn check(
        &self,
        id: &VolumeId,
        attributes: &BTreeMap<String, String>,
    ) -> Result<bool, ControllerError> {
        match self.by_name.get(id.name()) {
            None => Ok(false),
            Some(known) if known.id == *id => Ok(true),
            Some(known) => {
                let difference = difference(attributes, &known.attributes);
                Err(ControllerError::Incompatible { difference })
            }
        }
    }
}

/// What differs, parameter by parameter, with the names in it filled in.
pub(super) fn difference(now: &BTreeMap<String, String>, was: &BTreeMap<String, String>) -> String {
    let names = now.keys().chain(was.keys().filter(|name| !now.contains_key(*name)));
    let shown =
        |value: Option<&String>| value.map_or("not given".to_owned(), |it| format!("{it:?}"));
    let differences: Vec<String> = names
        .filter(|name| now.get(*name) != was.get(*name))
        .map(|name| format!("{name} is {} and was {}", shown(now.get(name)), shown(was.get(name))))
        .collect();
    differences.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, prefix: &str) -> (VolumeId, BTreeMap<String, String>) {
        let attributes = BTreeMap::from([("prefix".to_owned(), prefix.to_owned())]);
        (VolumeId::new(name, &attributes), attributes)
    }

    #[test]
    fn another_volume_of_the_name_is_refused_and_what_differs_is_told() {
        let record = Record::default();
        let ((one, attributes), (two, others)) = (volume("n", "a"), volume("n", "b"));
        record.add(&one, &attributes).unwrap();
        record.add(&one, &attributes).unwrap();
        let error = record.add(&two, &others).unwrap_err();
        assert!(error.to_string().contains("prefix is \"b\" and was \"a\""), "{error}");
        assert!(record.check(&two, &others).is_err());
        // An id of the name that was never created frees nothing.
        record.forget(&two);
        assert!(record.check(&two, &others).is_err());
        record.forget(&one);
        record.add(&two, &others).unwrap();
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let record = Record::default();
        for number in 0..=MOST {
            let (id, attributes) = volume(&number.to_string(), "a");
            record.add(&id, &attributes).unwrap();
        }
        assert_eq!(record.0.lock().by_name.len(), MOST);
        assert_eq!(record.0.lock().order.len(), MOST);
        let first = volume("0", "b");
        record.check(&first.0, &first.1).unwrap();
        let second = volume("1", "b");
        assert!(record.check(&second.0, &second.1).is_err());
    }
}
