//! Pooled buffers: one is taken when bytes have arrived and given back when they have gone, so that an
//! idle connection holds none.
//!
//! They are pages from the kernel and not the allocator's memory: of a new one, only what is used is ever
//! touched, and one that is given up is gone at once, where an allocator keeps it among what connections hold.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::ops::Deref;

use memmap2::MmapMut;

/// What the program's side is read by: with its frame header, sixteen full TLS records.
pub(crate) const CHUNK: usize = 256 * 1024;
/// A buffer's size: a chunk, and room for the record that an earlier read had begun.
const SIZE: usize = CHUNK + 20 * 1024;
/// Free buffers that a thread keeps while it needs many.
const MAX_FREE: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: Vec::new(), low: 0 }) };
}

struct Pool {
    free: Vec<MmapMut>,
    /// The fewest that were free since the last [`trim`]: so many nobody needed.
    low: usize,
}

/// Gives up the buffers of this thread that nobody has needed since the last time.
pub(crate) fn trim() {
    POOL.with_borrow_mut(|pool| {
        pool.free.truncate(pool.free.len() - pool.low);
        pool.low = pool.free.len();
    });
}

/// A buffer on loan from this thread's pool; dropping it gives it back.
pub struct Buffer {
    /// Held until it is dropped.
    bytes: Option<MmapMut>,
    len: usize,
}

impl Buffer {
    /// An empty buffer.
    pub fn take() -> Buffer {
        let free = POOL.with_borrow_mut(|pool| {
            let free = pool.free.pop();
            pool.low = pool.low.min(pool.free.len());
            free
        });
        Buffer { bytes: Some(free.unwrap_or_else(map)), len: 0 }
    }

    /// The room behind what is filled; how much of it is filled next is told by [`Buffer::grow`].
    pub fn spare(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.room()[len..]
    }

    /// Says how much more of the room is filled.
    pub fn grow(&mut self, n: usize) {
        self.set_len(self.len + n);
    }

    /// All of the room, to be read into; what of it counts is told by [`Buffer::set_len`].
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.as_mut().expect(HELD)
    }

    /// Says how much of the room is filled.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(SIZE);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes.as_ref().expect(HELD)[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(bytes) = self.bytes.take() else { return };
        // At a thread's end the pool may be gone already; then the buffer just goes too.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.free.len() < MAX_FREE
            {
                pool.free.push(bytes);
            }
        });
    }
}

const HELD: &str = "a buffer holds its bytes until it is dropped";

/// Zeroes. That there is no memory ends the process, as everywhere else.
fn map() -> MmapMut {
    MmapMut::map_anon(SIZE).unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; SIZE]>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_nobody_needs_any_more_are_given_up() {
        let free = || POOL.with_borrow(|pool| pool.free.len());
        drop((0..MAX_FREE + 3).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(free(), MAX_FREE);
        trim();
        assert_eq!(free(), MAX_FREE, "they were needed a moment ago");
        drop([Buffer::take(), Buffer::take(), Buffer::take()]);
        trim();
        assert_eq!(free(), 3, "three were needed");
        trim();
        assert_eq!(free(), 0);
    }
}
