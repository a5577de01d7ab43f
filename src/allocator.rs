//! The program's memory: mimalloc, but for large pieces, which are mapped one by one.
//!
//! mimalloc keeps a large piece that was freed and gives it out again, and then has to write zeros all
//! over it for who asks for zeros. The FUSE library asks for 16 MiB of them three times for each
//! mount, and uses a few hundred bytes of each: that took 14 ms of a CPU and 12 MiB of memory for every
//! `fuse` volume. Pages fresh from the kernel are zero without being touched, and take nothing until
//! they are.

use std::{
    alloc::{GlobalAlloc, Layout},
    num::NonZeroUsize,
    ptr::{self, NonNull},
};

use mimalloc::MiMalloc;
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

/// From so many bytes on a piece is mapped: few are as large, and none is short-lived.
const LARGE: usize = 4 << 20;

/// What a mapping is aligned to, at least.
const PAGE: usize = 4096;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Allocator;

fn is_large(size: usize, align: usize) -> bool {
    size >= LARGE && align <= PAGE
}

fn map(size: usize) -> *mut u8 {
    let Some(size) = NonZeroUsize::new(size) else { return ptr::null_mut() };
    let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: a mapping of its own, wherever the kernel puts it, changes no other.
    let mapped = unsafe { mmap_anonymous(None, size, protection, flags) };
    mapped.map_or(ptr::null_mut(), |mapped| mapped.as_ptr().cast())
}

// SAFETY: what is large is mapped, all else is mimalloc's, and a layout always tells which: each
// piece returns to where it came from. Mappings are of the size and alignment that was asked for,
// overlap nothing, and begin as zeros. Nothing here allocates or panics.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if !is_large(layout.size(), layout.align()) {
            // SAFETY: the caller's promises; a piece of this layout is mimalloc's.
            return unsafe { MiMalloc.dealloc(piece, layout) };
        }
        let Some(piece) = NonNull::new(piece) else { return };
        // SAFETY: a piece of this layout is a mapping of this size, which nobody uses any more.
        let unmapped = unsafe { munmap(piece.cast(), layout.size()) };
        debug_assert!(unmapped.is_ok(), "a mapping can be removed");
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (was, will_be) =
            (is_large(layout.size(), layout.align()), is_large(size, layout.align()));
        match (was, will_be, NonNull::new(piece)) {
            // SAFETY: the caller's promises; the piece is mimalloc's and stays so.
            (false, false, _) => unsafe { MiMalloc.realloc(piece, layout, size) },
            (true, true, Some(piece)) => {
                let (old, flags) = (layout.size(), MRemapFlags::MREMAP_MAYMOVE);
                // SAFETY: the piece is a mapping of the old size, and only its owner knows it.
                let moved = unsafe { mremap(piece.cast(), old, size, flags, None) };
                moved.map_or(ptr::null_mut(), |moved| moved.as_ptr().cast())
            }
            // SAFETY: the caller's promises.
            _ => unsafe { self.move_over(piece, layout, size) },
        }
    }
}

impl Allocator {
    /// Moves a piece between mimalloc and a mapping of its own.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    unsafe fn move_over(self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else {
            return ptr::null_mut();
        };
        // SAFETY: the caller promises that the new size is not 0.
        let moved = unsafe { self.alloc(new) };
        if moved.is_null() {
            return moved;
        }
        // SAFETY: both pieces have so many bytes, and the new one is nobody else's.
        unsafe { ptr::copy_nonoverlapping(piece, moved, layout.size().min(size)) };
        // SAFETY: the caller gave the piece up.
        unsafe { self.dealloc(piece, layout) };
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).unwrap()
    }

    /// Fills a piece of each size with numbers, changes its size, and looks whether they are there.
    #[test]
    fn a_piece_that_grows_or_shrinks_keeps_its_bytes() {
        let sizes = [1, 5000, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 77];
        for (from, to) in sizes.iter().flat_map(|from| sizes.map(|to| (*from, to))) {
            // SAFETY: no size is 0.
            let piece = unsafe { Allocator.alloc(layout(from)) };
            // SAFETY: the piece has so many bytes, and is ours.
            let bytes = unsafe { std::slice::from_raw_parts_mut(piece, from) };
            bytes.iter_mut().zip((0..=250).cycle()).for_each(|(byte, number)| *byte = number);
            // SAFETY: the piece is of this layout, and forgotten from now on.
            let piece = unsafe { Allocator.realloc(piece, layout(from), to) };
            // SAFETY: the piece has so many bytes that were written.
            let bytes = unsafe { std::slice::from_raw_parts(piece, from.min(to)) };
            assert!(bytes.iter().zip((0..=250).cycle()).all(|(byte, number)| *byte == number));
            // SAFETY: the piece is of this layout, and forgotten from now on.
            unsafe { Allocator.dealloc(piece, layout(to)) };
        }
    }

    #[test]
    fn zeros_are_zeros_whatever_was_there_before() {
        for size in [100, LARGE, 16 << 20] {
            for _ in 0..3 {
                // SAFETY: no size is 0.
                let piece = unsafe { Allocator.alloc_zeroed(layout(size)) };
                assert!(piece.addr().is_multiple_of(16));
                // SAFETY: the piece has so many bytes, and is ours.
                let bytes = unsafe { std::slice::from_raw_parts_mut(piece, size) };
                assert!(bytes.iter().all(|byte| *byte == 0));
                bytes.fill(1);
                // SAFETY: the piece is of this layout, and forgotten from now on.
                unsafe { Allocator.dealloc(piece, layout(size)) };
            }
        }
    }

    #[test]
    fn large_zeros_that_nobody_reads_take_no_memory() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
        };
        let before = resident();
        // SAFETY: the size is not 0.
        let pieces: Vec<_> =
            (0..64).map(|_| unsafe { Allocator.alloc_zeroed(layout(16 << 20)) }).collect();
        assert!(resident() < before + (256 << 20), "a gigabyte of zeros");
        for piece in pieces {
            // SAFETY: the piece is of this layout, and forgotten from now on.
            unsafe { Allocator.dealloc(piece, layout(16 << 20)) };
        }
    }
}
