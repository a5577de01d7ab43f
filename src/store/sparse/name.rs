//! The names of sparse files.

use std::{fmt, str::FromStr};

use crate::store::BlobId;

/// Names a sparse file: which object version, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) struct PartialName {
    pub(in crate::store) id: BlobId,
    /// Content length in bytes; not 0.
    pub(in crate::store) size: u64,
    /// The length of a block in bytes; the last one may be shorter.
    pub(in crate::store) block: u64,
}

/// A file name that is no sparse file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a sparse file")]
pub(in crate::store) struct NotPartial;

impl PartialName {
    /// How many blocks there are.
    pub(in crate::store) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// The length of a block in bytes.
    pub(in crate::store) fn length(&self, index: u64) -> u64 {
        let start = index.saturating_mul(self.block);
        self.block.min(self.size.saturating_sub(start))
    }

    /// The name of the map beside the file.
    pub(in crate::store) fn map(&self) -> String {
        format!("{self}.map")
    }
}

impl fmt::Display for PartialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", hex::encode(self.id.as_bytes()), self.size, self.block)
    }
}

impl FromStr for PartialName {
    type Err = NotPartial;

    fn from_str(text: &str) -> Result<Self, NotPartial> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(NotPartial);
        let id = BlobId::from_hex(next()?).ok_or(NotPartial)?;
        let size = next()?.parse().map_err(|_| NotPartial)?;
        let block = next()?.parse().map_err(|_| NotPartial)?;
        let name = Self { id, size, block };
        let ours = size > 0 && block > 0 && name.to_string() == text;
        if ours { Ok(name) } else { Err(NotPartial) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        let id = "ab".repeat(32);
        let name: PartialName = format!("{id}-10-4").parse().unwrap();
        assert_eq!(name.to_string(), format!("{id}-10-4"));
        assert_eq!((name.blocks(), name.length(0), name.length(2)), (3, 4, 2));
        for other in ["", "x-1-1", "-1-1"] {
            assert!(other.parse::<PartialName>().is_err(), "{other}");
        }
        for tail in ["", "-10", "-0-4", "-10-0", "-010-4", "-10-4-1", "-10-4.map"] {
            assert!(format!("{id}{tail}").parse::<PartialName>().is_err(), "{tail}");
        }
    }
}
