//! Memory that files are read into.

use std::ops::{Deref, DerefMut};

/// What a buffer starts at a multiple of, in bytes: a page.
const ALIGN: usize = 4096;

/// Bytes that start at the start of a page.
///
/// The kernel copies pages. To or from a large [`Vec`], which starts 16 bytes into one, that takes it
/// half as long again.
pub(crate) struct Buffer {
    /// Never grows, so it stays where it is.
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN - 1];
        // An allocation may be placed so that this is not known; then any start will do.
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN - 1);
        let mut buffer = Self { bytes, start };
        buffer.bytes.truncate(start + len);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_page() {
        for len in [0, 1, 4096, 1 << 20] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}
