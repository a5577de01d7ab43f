//! Which blocks of a sparse file are here: a bit for each in memory, a slot for each on disk.
//!
//! The map is an array, not a log: slot `n` is about block `n`, so it never grows beyond its array,
//! is written with one call for neighbours, and is itself sparse. A slot is written after its
//! block's data:
//!
//! ```text
//! 0..8    CRC-64/NVME of the block, little-endian
//! 8..12   a digest of the boot in which that was last true of the file; 0 for none
//! 12..16  CRC-32 over the slot's number and the 12 bytes before: a torn or empty slot has another
//! ```

use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The length of a slot in bytes.
pub(super) const SLOT: usize = 16;

/// Not 0, so that an empty slot is no slot.
const SALT: u8 = 0x53;

/// What a slot says of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) crc: u64,
    pub(super) boot: u32,
}

impl Slot {
    pub(super) fn encode(self, index: u64) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.boot.to_le_bytes());
        let check = check(index, &bytes[..12]);
        bytes[12..].copy_from_slice(&check);
        bytes
    }

    /// None for a slot that was never, or not wholly, written.
    pub(super) fn decode(index: u64, bytes: &[u8]) -> Option<Self> {
        let (body, found) = bytes.get(..SLOT)?.split_at(12);
        let (crc, boot) = body.split_at(8);
        let slot = Self {
            crc: u64::from_le_bytes(crc.try_into().ok()?),
            boot: u32::from_le_bytes(boot.try_into().ok()?),
        };
        (found == check(index, body)).then_some(slot)
    }
}

fn check(index: u64, body: &[u8]) -> [u8; 4] {
    let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(&[SALT]);
    crc.update(&index.to_le_bytes());
    crc.update(body);
    let mut check = [0; 4];
    check.copy_from_slice(&crc.finalize().to_le_bytes()[..4]);
    check
}

/// The digest of a boot's id that slots hold; 0 where there is no id, which no slot is trusted for.
pub(super) fn boot_tag(id: Option<&str>) -> u32 {
    let digest = |id: &str| checksum(CrcAlgorithm::Crc32Iscsi, id.as_bytes());
    id.map_or(0, |id| u32::try_from(digest(id)).unwrap_or(1).max(1))
}

/// The state of each block.
#[derive(Debug, Default)]
pub(super) struct Bits {
    /// Those that may be read.
    present: Set,
    /// Those of an earlier boot: read through before their first use.
    doubtful: Set,
    /// How many are not present.
    left: u64,
}

impl Bits {
    pub(super) fn new(blocks: u64) -> Self {
        Self { present: Set::new(blocks), doubtful: Set::new(blocks), left: blocks }
    }

    /// The block is here; whether that is news.
    pub(super) fn add(&mut self, index: u64) -> bool {
        self.doubtful.remove(index);
        let is_new = self.present.insert(index);
        self.left -= u64::from(is_new);
        is_new
    }

    /// The block is here, if its content is what its slot says.
    pub(super) fn doubt(&mut self, index: u64) {
        self.left += u64::from(self.present.remove(index));
        self.doubtful.insert(index);
    }

    /// The block is not here.
    pub(super) fn remove(&mut self, index: u64) {
        self.doubtful.remove(index);
        self.left += u64::from(self.present.remove(index));
    }

    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    pub(super) fn has_all(&self, mut range: Range<u64>) -> bool {
        self.left == 0 || range.all(|index| self.present.contains(index))
    }

    /// The doubtful blocks of a range.
    pub(super) fn doubtful(&self, range: Range<u64>) -> Vec<u64> {
        range.filter(|index| self.doubtful.contains(*index)).collect()
    }

    /// The runs of blocks in a range that are neither present nor doubtful.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let is_missing = |i: &u64| !self.present.contains(*i) && !self.doubtful.contains(*i);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for index in range.filter(is_missing) {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }
}

/// A set of small numbers.
#[derive(Debug, Default)]
struct Set(Vec<u64>);

impl Set {
    fn new(length: u64) -> Self {
        Self(vec![0; usize::try_from(length.div_ceil(64)).unwrap_or(usize::MAX)])
    }

    fn place(index: u64) -> (usize, u64) {
        (usize::try_from(index / 64).unwrap_or(usize::MAX), 1 << (index % 64))
    }

    fn contains(&self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    fn insert(&mut self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        let is_new = !self.contains(index);
        self.0.get_mut(word).into_iter().for_each(|word| *word |= bit);
        is_new
    }

    fn remove(&mut self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        let was_here = self.contains(index);
        self.0.get_mut(word).into_iter().for_each(|word| *word &= !bit);
        was_here
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_round_trip_and_torn_ones_are_none(
            (index, crc, boot) in any::<(u64, u64, u32)>(),
            (at, flip) in (0..SLOT, 1..=255u8),
        ) {
            let slot = Slot { crc, boot };
            let mut bytes = slot.encode(index);
            prop_assert_eq!(Slot::decode(index, &bytes), Some(slot));
            prop_assert_eq!(Slot::decode(index ^ 1, &bytes), None);
            prop_assert_eq!(Slot::decode(index, &bytes[..at]), None);
            bytes[at] ^= flip;
            prop_assert_eq!(Slot::decode(index, &bytes), None);
        }

        /// 0: add, 1: doubt, 2: remove, against a plain map.
        #[test]
        fn bits_are_what_was_last_said(
            blocks in 1..200u64,
            steps in proptest::collection::vec((0..3u8, 0..200u64), 0..100),
            (from, to) in (0..200u64, 0..200u64),
        ) {
            let (mut bits, mut model) = (Bits::new(blocks), BTreeMap::new());
            for (step, index) in steps {
                let index = index % blocks;
                match step {
                    0 => prop_assert_eq!(bits.add(index), model.insert(index, true) != Some(true)),
                    1 => {
                        bits.doubt(index);
                        model.insert(index, false);
                    }
                    _ => {
                        bits.remove(index);
                        model.remove(&index);
                    }
                }
            }
            let range = from.min(blocks)..to.min(blocks);
            let states = &model;
            let of = |wanted: Option<bool>| {
                range.clone().filter(move |index| states.get(index).copied() == wanted)
            };
            prop_assert_eq!(bits.doubtful(range.clone()), of(Some(false)).collect::<Vec<_>>());
            let missing: Vec<_> = bits.missing(range.clone()).into_iter().flatten().collect();
            prop_assert_eq!(missing, of(None).collect::<Vec<_>>());
            let all = range.clone().count();
            prop_assert_eq!(bits.has_all(range.clone()), of(Some(true)).count() == all);
            let is_empty = blocks > 0 && bits.missing(0..blocks).first() == Some(&(0..blocks));
            prop_assert_eq!(is_empty, blocks > 0 && model.is_empty());
            let whole = model.len() as u64 == blocks && model.values().all(|present| *present);
            prop_assert_eq!(bits.is_complete(), whole);
        }
    }

    #[test]
    fn an_empty_slot_is_none() {
        assert!((0..1000).all(|index| Slot::decode(index, &[0; SLOT]).is_none()));
        assert_eq!(boot_tag(None), 0);
        assert_ne!(boot_tag(Some("one")), boot_tag(Some("two")));
    }
}
