//! Pooled buffers: one is taken when bytes have arrived and given back when they have gone, so that an
//! idle connection holds none.

use std::cell::RefCell;
use std::ops::Deref;

/// What the program's side is read by: with its frame header, sixteen full TLS records.
pub(crate) const CHUNK: usize = 256 * 1024;
/// A buffer's size: a chunk, and room for the record that an earlier read had begun.
const SIZE: usize = CHUNK + 20 * 1024;
/// Free buffers that a thread keeps.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer on loan from this thread's pool; dropping it gives it back.
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

impl Buffer {
    /// An empty buffer.
    pub fn take() -> Buffer {
        let bytes = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into());
        Buffer { bytes, len: 0 }
    }

    /// Appends what fits; returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(SIZE - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&bytes[..n]);
        self.len += n;
        n
    }

    /// All of the room, to be read into; what of it counts is told by [`Buffer::set_len`].
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Says how much of the room is filled.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(SIZE);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // At a thread's end the pool may be gone already; then the buffer just goes too.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free.len() < KEPT
            {
                free.push(bytes);
            }
        });
    }
}
