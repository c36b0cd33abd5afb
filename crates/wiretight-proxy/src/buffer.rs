//! Pooled buffers. A connection takes one when bytes arrive and returns it when they are sent, so that an idle
//! connection has none.
//!
//! They are pages from the kernel, not from the allocator: only the pages in use are ever touched, and a freed buffer
//! is returned to the kernel at once, while an allocator would keep it.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::ops::Deref;

use memmap2::MmapMut;

/// The read size on the program's side: sixteen full TLS records, with their frame header.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The size of a buffer: a chunk, and space for the start of a record left from the previous read.
const SIZE: usize = CHUNK + 20 * 1024;
/// The most free buffers that a thread keeps.
const MAX_FREE: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: Vec::new(), low: 0 }) };
}

struct Pool {
    free: Vec<MmapMut>,
    /// The lowest number of free buffers since the last [`trim`]; that many were not needed.
    low: usize,
}

/// Frees the buffers of this thread that were not needed since the last call.
pub(crate) fn trim() {
    POOL.with_borrow_mut(|pool| {
        pool.free.truncate(pool.free.len() - pool.low);
        pool.low = pool.free.len();
    });
}

/// A buffer from this thread's pool; returned to it on drop.
pub struct Buffer {
    /// `Some` until dropped.
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

    /// The free space after the filled part; call [`Buffer::grow`] after filling it.
    pub fn spare(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.room()[len..]
    }

    /// Marks `n` more bytes as filled.
    pub fn grow(&mut self, n: usize) {
        self.set_len(self.len + n);
    }

    /// The whole space, for reading into; then call [`Buffer::set_len`].
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.as_mut().expect(HELD)
    }

    /// Sets the number of filled bytes.
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
        // At the end of a thread the pool may be gone already; then the buffer is just freed.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.free.len() < MAX_FREE
            {
                pool.free.push(bytes);
            }
        });
    }
}

const HELD: &str = "a buffer has its bytes until it is dropped";

/// Zeroed memory. If there is none left, the process aborts, as for other allocations.
fn map() -> MmapMut {
    MmapMut::map_anon(SIZE).unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; SIZE]>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unneeded_buffers_are_freed() {
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
