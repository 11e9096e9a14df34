//! Memory that files are read into.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A huge page of most machines, in bytes.
const HUGE: usize = 2 << 20;

/// Bytes that start at the start of a page; of a huge one, if they fill such a page and the system
/// has them.
///
/// The kernel copies pages. To or from a large [`Vec`], which starts 16 bytes into one, that takes it
/// half as long again `[ours]`. What goes past the system's cache goes from page to page too, and a
/// disk takes only so many in one request: from huge ones, files are written half as fast again
/// `[ours]`.
#[derive(Debug)]
pub struct Buffer {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Cost
    /// Memory that nobody touches is none, but the first touch may take as much as a huge page.
    pub fn new(len: usize) -> Self {
        Self::try_new(len).unwrap_or_else(|| fail(len))
    }

    /// As [`new`](Self::new), if there is room for so many in the process's address space.
    pub fn try_new(len: usize) -> Option<Self> {
        let huge = len >= HUGE;
        let size = if huge { len.saturating_add(HUGE) } else { len };
        let map = MmapMut::map_anon(size).ok()?;
        let mut start = 0;
        if huge {
            // An allocation may be placed so that this is not known; then any start will do.
            start = map.as_ptr().align_offset(HUGE).min(HUGE - 1);
            // Without them it works as well.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Some(Self { map, start, len })
    }
}

/// As other allocations fail.
fn fail(len: usize) -> ! {
    handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>()))
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_page() {
        for len in [0, 1, 4096, 1 << 20, HUGE, HUGE + 1, 4 * HUGE] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            let page = if len >= HUGE { HUGE } else { 4096 };
            assert_eq!(buffer.as_ptr().addr() % page, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn more_than_any_address_space_has_room_for_is_none() {
        assert!(Buffer::try_new(isize::MAX as usize - HUGE).is_none());
    }
}
