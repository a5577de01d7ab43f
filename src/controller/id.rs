//! Volume ids that verify themselves.
//!
//! `s3view-1-<name>-<attributes>-<checksum>`: a version, 32 hexadecimal digits for the volume's name,
//! 32 for its attributes, and 8 for all that stands before. So any replica tells an id of ours from
//! another without having seen it, and whether attributes are those that it was made for. 83 bytes,
//! of the 128 that CSI allows, however long the name is.

use std::{collections::BTreeMap, fmt};

use sha2::{Digest, Sha256};

const BEGIN: &str = "s3view-1-";

/// Hexadecimal digits of a digest in an id.
const DIGITS: usize = 32;

/// Hexadecimal digits of the checksum.
const CHECK: usize = 8;

/// The id of a volume that a controller created.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of a volume: the same for the same name and attributes, everywhere and at any time.
    pub fn new(name: &str, attributes: &BTreeMap<String, String>) -> Self {
        let text = format!("{BEGIN}{}-{}", digest("name", [name]), digest_of(attributes));
        let checksum = checksum(&text);
        Self(format!("{text}-{checksum}"))
    }

    /// Reads an id; `None` if it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (checked, found) = text.rsplit_once('-')?;
        let (name, attributes) = checked.strip_prefix(BEGIN)?.split_once('-')?;
        let good = name.len() == DIGITS && attributes.len() == DIGITS && found == checksum(checked);
        good.then(|| Self(text.to_owned()))
    }

    /// Whether the volume was created with these attributes.
    pub fn is_of(&self, attributes: &BTreeMap<String, String>) -> bool {
        let end = self.0.len() - CHECK - 1;
        self.0[end - DIGITS..end] == digest_of(attributes)
    }

    /// What all volumes of this name have in common.
    pub(super) fn name(&self) -> &str {
        &self.0[BEGIN.len()..BEGIN.len() + DIGITS]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn digest_of(attributes: &BTreeMap<String, String>) -> String {
    digest("attributes", attributes.iter().flat_map(|(key, value)| [key.as_str(), value]))
}

fn checksum(text: &str) -> String {
    let mut checksum = digest("id", [text]);
    checksum.truncate(CHECK);
    checksum
}

/// Each part goes in with its length, so that no two lists of parts are one text.
fn digest<'a>(kind: &'a str, parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for part in [kind].into_iter().chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    hex::encode(&digest.finalize()[..DIGITS / 2])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// The id is kept in `PersistentVolume` objects: it must not change from release to release.
    #[test]
    fn an_id_is_the_same_for_ever() {
        let id = VolumeId::new("pvc-1", &attributes(&[("bucket", "jars"), ("prefix", "apps")]));
        assert_eq!(
            id.as_str(),
            "s3view-1-9be4cd83d53c6b3e218957065ae641db-da1d7a0f62684946cc2c76a201e737cb-f5d4278a"
        );
    }

    #[test]
    fn name_and_attributes_make_the_id() {
        let (one, two) = (attributes(&[("a", "bc")]), attributes(&[("ab", "c")]));
        let id = VolumeId::new("n", &one);
        assert_eq!(id, VolumeId::new("n", &one));
        assert_ne!(id, VolumeId::new("m", &one));
        assert_ne!(id, VolumeId::new("n", &two));
        assert!(id.is_of(&one) && !id.is_of(&two));
        assert_eq!(id.name(), VolumeId::new("n", &two).name());
    }

    #[test]
    fn the_longest_name_fits() {
        let id = VolumeId::new(&"n".repeat(4096), &BTreeMap::new());
        assert!(id.as_str().len() <= 128);
        assert_eq!(VolumeId::parse(id.as_str()), Some(id));
    }

    #[test_case(""; "nothing")]
    #[test_case("s3view-1-"; "no digests")]
    #[test_case("fake-vol-id-0123456789"; "another driver's")]
    #[test_case("s3view-1-0-0-00000000"; "short digests")]
    fn what_is_none_of_ours_is_told(text: &str) {
        assert_eq!(VolumeId::parse(text), None);
    }

    proptest! {
        #[test]
        fn a_slip_anywhere_is_noticed(at in 0usize..83, other in "[0-9a-z-]") {
            let id = VolumeId::new("pvc-1", &BTreeMap::new());
            let mut text = id.as_str().to_owned();
            text.replace_range(at..=at, &other);
            prop_assert_eq!(VolumeId::parse(&text).is_some(), text == id.as_str());
        }

        #[test]
        fn no_text_makes_parse_panic(text in "\\PC{0,120}") {
            drop(VolumeId::parse(&text));
            drop(VolumeId::parse(&format!("s3view-1-{text}")));
        }
    }
}
