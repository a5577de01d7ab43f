//! Which bytes to fetch before anybody asks: a pure decision over the reads of one object version.
//!
//! The reads of all who have it open are one sequence. The kernel asks for what one of several readers
//! of a file wants first, and serves the others from its page cache, so each of them alone shows some
//! pieces of a stream, which would look like random reads.
//!
//! A read that continues another makes a stream of both. The longer a stream has become, the farther
//! is fetched ahead of it: four times what was read in order, up to a bound. So a random read, which
//! continues nothing, fetches nothing ahead, and a sequential one of 128 KiB at a time has parts of
//! 8 MiB under way after five or six reads. (The kernel may send the reads of one stream out of
//! order: a stream is continued by what is near its end.)
//!
//! It may be read in several places at once, so there are several streams, and one that the next reads
//! leave alone is given up, with what is being fetched for it.

use std::ops::Range;

use super::cut::Cut;

/// How near to its end a stream is continued, at least.
const NEAR: u64 = 256 << 10;

/// How many times what was read in order is fetched ahead.
const FACTOR: u64 = 4;

/// A stream that so many reads of each reader left alone has ended.
const PATIENCE: u64 = 8;

/// The streams of one object version.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: Vec<Stream>,
    reads: u64,
}

#[derive(Debug)]
struct Stream {
    id: u64,
    /// Where the farthest read ended.
    end: u64,
    /// Bytes read in order.
    run: u64,
    /// Up to where it was fetched ahead.
    fetched: u64,
    /// The number of its last read.
    at: u64,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// The stream that the read belongs to.
    pub(super) stream: u64,
    /// The bytes to fetch ahead; may be empty.
    pub(super) ahead: Range<u64>,
    /// Streams that have ended.
    pub(super) ended: Vec<u64>,
}

impl Streams {
    /// Takes note of a read by one of so many readers. At most `most` bytes are fetched ahead, in whole
    /// blocks and, once they are enough, in whole parts.
    pub(super) fn note(
        &mut self,
        read: Range<u64>,
        readers: usize,
        most: u64,
        cut: Cut,
    ) -> Decision {
        self.reads += 1;
        let (now, length) = (self.reads, read.end.saturating_sub(read.start));
        let ended = self.end_idle(now, PATIENCE.saturating_mul(readers as u64));
        let near = NEAR.max(length.saturating_mul(2));
        let continued = |stream: &&mut Stream| stream.end.abs_diff(read.start) <= near;
        let Some(stream) = self.streams.iter_mut().find(continued) else {
            let fetched = read.end;
            self.streams.push(Stream { id: now, end: read.end, run: length, fetched, at: now });
            return Decision { stream: now, ahead: 0..0, ended };
        };
        // Who reads again what another has read is told nothing new, and tells nothing.
        let more = read.end.saturating_sub(stream.end);
        stream.at = now;
        if more == 0 {
            return Decision { stream: stream.id, ahead: 0..0, ended };
        }
        stream.end = read.end;
        stream.run = stream.run.saturating_add(more.min(length));
        let wanted = stream.run.saturating_mul(FACTOR).min(most);
        let from = stream.fetched.max(stream.end);
        let part = cut.part.saturating_mul(cut.block);
        let step = if wanted / 2 >= part { part } else { cut.block };
        let to = (stream.end.saturating_add(wanted) / step).saturating_mul(step);
        // Not before half of it is used up: a few large requests are better than many small ones.
        let ahead = if to <= from || from - stream.end > wanted / 2 { 0..0 } else { from..to };
        stream.fetched = stream.fetched.max(ahead.end);
        Decision { stream: stream.id, ahead, ended }
    }

    fn end_idle(&mut self, now: u64, patience: u64) -> Vec<u64> {
        let is_idle = |stream: &mut Stream| now - stream.at > patience;
        self.streams.extract_if(.., is_idle).map(|stream| stream.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: u64 = 128 << 10;
    const MOST: u64 = 32 << 20;

    fn cut() -> Cut {
        Cut::new(1 << 38, 8 << 20)
    }

    fn sequential(streams: &mut Streams, from: u64, reads: u64) -> Vec<Decision> {
        let read = |index| from + index * STEP..from + (index + 1) * STEP;
        (0..reads).map(|index| streams.note(read(index), 1, MOST, cut())).collect()
    }

    #[test]
    fn a_first_read_fetches_nothing_ahead_and_the_next_more_and_more() {
        let mut streams = Streams::default();
        let decisions = sequential(&mut streams, 0, 200);
        assert!(decisions[0].ahead.is_empty());
        assert_eq!(decisions[1].ahead, 2 * STEP..10 * STEP);
        let lengths: Vec<_> = decisions.iter().map(|d| d.ahead.end - d.ahead.start).collect();
        let asked: Vec<_> = lengths.iter().filter(|length| **length > 0).collect();
        assert!(asked.len() < 12, "few large requests: {asked:?}");
        assert!(asked.iter().skip(6).all(|length| **length >= 8 << 20), "whole parts: {asked:?}");
        for (index, decision) in decisions.iter().enumerate().filter(|(_, d)| !d.ahead.is_empty()) {
            assert!(decision.ahead.end <= (index as u64 + 1) * STEP + MOST);
        }
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut streams = Streams::default();
        for index in 0..1000u64 {
            let at = index * 7919 % 1000 * (100 << 20);
            assert!(streams.note(at..at + 4096, 1, MOST, cut()).ahead.is_empty());
        }
        assert!(streams.streams.len() <= 9, "no memory grows");
    }

    #[test]
    fn a_stream_that_is_left_ends_and_two_that_take_turns_do_not() {
        let mut streams = Streams::default();
        let first = sequential(&mut streams, 0, 10).pop().unwrap().stream;
        let decisions = sequential(&mut streams, 1 << 40, 20);
        assert!(decisions.iter().any(|decision| decision.ended == [first]));
        let mut streams = Streams::default();
        for index in 0..100 {
            for start in [0, 1 << 40] {
                let decision = &sequential(&mut streams, start + index * STEP, 1)[0];
                assert!(decision.ended.is_empty());
            }
        }
    }

    #[test]
    fn many_readers_in_many_places_keep_their_streams() {
        let (mut streams, readers) = (Streams::default(), 100);
        for index in 0..20 {
            for reader in 0..readers {
                let at = (reader << 30) + index * STEP;
                let readers = usize::try_from(readers).unwrap();
                let decision = streams.note(at..at + STEP, readers, MOST, cut());
                assert!(decision.ended.is_empty());
            }
        }
        assert_eq!(streams.streams.len(), 100);
    }

    proptest! {
        #[test]
        fn nothing_is_fetched_ahead_twice_or_too_far(
            reads in proptest::collection::vec((0..1u64 << 26, 1..1u64 << 20), 1..200),
        ) {
            let mut streams = Streams::default();
            let mut fetched = std::collections::BTreeMap::new();
            for (start, length) in reads {
                let Decision { stream, ahead, .. } = streams.note(start..start + length, 1, MOST, cut());
                if !ahead.is_empty() {
                    let before = fetched.insert(stream, ahead.end);
                    prop_assert!(before.is_none_or(|before| before <= ahead.start));
                    prop_assert!(ahead.end % STEP == 0 && ahead.end - ahead.start <= MOST + STEP);
                }
            }
        }
    }
}
