//! How an object is cut, and which requests a range of it takes: pure arithmetic.

use std::ops::Range;

/// The smallest unit of fetching, unless parts are smaller still.
const BLOCK: u64 = 128 << 10;

/// Objects have at most so many blocks, so that a map takes at most 64 MiB on disk and 1 MiB in
/// memory; those of larger objects are larger.
const BLOCKS: u64 = 4 << 20;

/// How one object is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) size: u64,
    /// A power of two in bytes.
    pub(super) block: u64,
    /// Blocks in a part; at least one.
    pub(super) part: u64,
}

impl Cut {
    /// Cuts an object of `size` bytes into blocks of parts of at most `part` bytes.
    pub(super) fn new(size: u64, part: u64) -> Self {
        let part = part.max(1);
        let most = 1 << part.ilog2();
        let block = BLOCK.max(size.div_ceil(BLOCKS).next_power_of_two()).min(most);
        Self { size, block, part: part / block }
    }

    /// The blocks that hold a range of bytes, which is cut off at the end of the object.
    pub(super) fn blocks(&self, bytes: Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.size);
        if bytes.start >= end {
            return 0..0;
        }
        bytes.start / self.block..end.div_ceil(self.block)
    }

    /// The bytes of a range of blocks.
    pub(super) fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        let at = |block: u64| block.saturating_mul(self.block).min(self.size);
        at(blocks.start)..at(blocks.end)
    }

    /// Cuts runs of blocks into requests: none crosses from one part to the next, so that whoever
    /// reads the same region asks for the same.
    pub(super) fn requests(&self, runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let mut requests = Vec::new();
        for mut run in runs {
            while !run.is_empty() {
                let end = run.end.min((run.start / self.part + 1) * self.part);
                requests.push(run.start..end);
                run.start = end;
            }
        }
        requests
    }
}

/// What remains of `runs` without `covered`.
pub(super) fn subtract(runs: Vec<Range<u64>>, covered: &[Range<u64>]) -> Vec<Range<u64>> {
    covered.iter().fold(runs, |runs, hole| {
        let pieces = |run: Range<u64>| {
            let before = run.start..run.end.min(hole.start);
            let after = run.start.max(hole.end)..run.end;
            // An empty hole would give what is on both of its sides twice.
            let whole = hole.is_empty().then_some(run);
            let pieces = if hole.is_empty() { [0..0, 0..0] } else { [before, after] };
            pieces.into_iter().chain(whole).filter(|piece| !piece.is_empty())
        };
        runs.into_iter().flat_map(pieces).collect()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_cover_what_is_missing_once_and_fit_a_part(
            (size, part) in (1..1u64 << 44, 1..64u64 << 20),
            (from, length) in (0..1u64 << 44, 0..1u64 << 28),
        ) {
            let cut = Cut::new(size, part);
            prop_assert!(cut.block * cut.part <= part && cut.part >= 1);
            let bytes = from.min(size)..from.saturating_add(length).min(size);
            let blocks = cut.blocks(bytes.clone());
            let covered = cut.bytes(&blocks);
            let holds = covered.start <= bytes.start && covered.end >= bytes.end;
            prop_assert!(bytes.is_empty() || holds);
            prop_assert!(covered.end - covered.start < length + 2 * cut.block);
            let requests = cut.requests(vec![blocks.clone()]);
            let length = |range: &Range<u64>| range.end - range.start;
            prop_assert_eq!(requests.iter().map(length).sum::<u64>(), length(&blocks));
            prop_assert!(requests.windows(2).all(|pair| pair[0].end == pair[1].start));
            let most = requests.iter().map(|request| length(&cut.bytes(request))).max();
            prop_assert!(most.unwrap_or(0) <= part);
        }
    }

    proptest! {
        #[test]
        fn what_is_covered_goes_and_the_rest_stays(
            runs in proptest::collection::vec((0..100u64, 0..20u64), 0..4),
            holes in proptest::collection::vec((0..100u64, 0..20u64), 0..4),
        ) {
            let ranges = |list: &[(u64, u64)]| -> Vec<Range<u64>> {
                list.iter().map(|(start, length)| *start..start + length).collect()
            };
            let (runs, holes) = (ranges(&runs), ranges(&holes));
            let is_covered = |index: &u64| holes.iter().any(|hole| hole.contains(index));
            let all = runs.iter().cloned().flatten();
            let expected: Vec<_> = all.filter(|index| !is_covered(index)).collect();
            let rest: Vec<_> = subtract(runs, &holes).into_iter().flatten().collect();
            prop_assert_eq!(rest, expected);
        }
    }

    #[test]
    fn blocks_grow_with_the_object_up_to_a_part() {
        let (part, block) = (8 << 20, |size| Cut::new(size, 8 << 20).block);
        assert_eq!((block(1), block(512 << 30), block(1 << 40)), (BLOCK, BLOCK, 2 * BLOCK));
        assert_eq!(block(u64::MAX), part);
        assert_eq!(Cut::new(10 << 20, 64 << 10).block, 64 << 10);
    }
}
