//! Which neighbours of small files are worth fetching before anybody opens them.
//!
//! A request costs as much as a small file, so reading a directory of them in order is a request
//! after the other. The first file that has to be fetched brings a few behind it; who goes on there
//! gets more and more, ahead of where it is. Who jumps about gets no more than the few.

use std::{collections::VecDeque, ops::Range};

/// The largest file that counts as small, in bytes.
pub(super) const SMALL: u64 = 1 << 20;

/// How many files a first one brings.
const FEW: u32 = 4;

/// The most that are fetched ahead.
const MOST: u32 = 64;

/// How many places are remembered at which somebody reads.
const STREAMS: usize = 16;

/// Where somebody reads a directory in order.
#[derive(Debug, Clone, Copy)]
struct Stream {
    directory: u64,
    /// What is asked for already ends here.
    end: u32,
    window: u32,
}

/// The places of one volume at which small files are read in order.
#[derive(Debug, Default)]
pub(super) struct Near {
    streams: VecDeque<Stream>,
}

impl Near {
    /// Takes note of an open; returns the places in the directory that should be fetched ahead.
    /// `is_here` files begin nothing, but lead a stream on.
    pub(super) fn note(&mut self, directory: u64, position: u32, is_here: bool) -> Range<u32> {
        let next = position + 1;
        let leads_on = |it: &Stream| {
            it.directory == directory && position <= it.end && it.end - position <= it.window
        };
        let Some(index) = self.streams.iter().position(leads_on) else {
            if is_here {
                return next..next;
            }
            let end = next + FEW;
            self.begin(Stream { directory, end, window: FEW });
            return next..end;
        };
        let stream = &mut self.streams[index];
        // Half of the window is still to come: those behind it are asked for in time.
        if stream.end > next && stream.end - next > stream.window / 2 {
            return next..next;
        }
        let start = stream.end.max(next);
        stream.window = (stream.window * 2).min(MOST);
        stream.end = next + stream.window;
        start..stream.end.max(start)
    }

    /// Forgets where files were to be fetched ahead that all were here.
    pub(super) fn is_over(&mut self, directory: u64, end: u32) {
        self.streams.retain(|it| it.directory != directory || it.end != end);
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() == STREAMS {
            self.streams.pop_front();
        }
        self.streams.push_back(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_in_order_gets_more_and_more() {
        let mut near = Near::default();
        let mut asked = 0;
        let mut times = 0;
        for position in 0..1000 {
            let is_here = position > 0 && position < asked;
            let range = near.note(7, position, is_here);
            if !range.is_empty() {
                assert_eq!(range.start, asked.max(position + 1), "nothing twice, nothing left out");
                assert!(range.end <= position + 1 + MOST);
                (asked, times) = (range.end, times + 1);
            }
            assert!(asked > position + 1, "there is always one ahead");
        }
        assert!(times < 40, "{times} times something was asked for");
    }

    #[test]
    fn who_jumps_about_gets_few() {
        let mut near = Near::default();
        for position in [500, 20, 900, 300, 7000] {
            assert_eq!(near.note(7, position, false), position + 1..position + 1 + FEW);
            assert!(near.note(8, position, true).is_empty(), "what is here begins nothing");
        }
    }

    #[test]
    fn directories_are_apart() {
        let mut near = Near::default();
        assert_eq!(near.note(1, 0, false), 1..5);
        assert_eq!(near.note(2, 1, false), 2..6);
    }

    #[test]
    fn what_was_all_here_is_over() {
        let mut near = Near::default();
        let range = near.note(1, 0, false);
        near.is_over(1, range.end);
        assert!(near.note(1, 1, true).is_empty());
    }
}
