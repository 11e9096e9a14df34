//! A storage of any length that keeps only what is not zero, for images of huge disks.

use std::collections::BTreeMap;
use std::sync::RwLock;

use goldsmith_block::{
    HostRange, Result, Span, Storage, StorageId, StorageMut, Zeroing, end_of_storage, is_zero,
};

const PAGE: u64 = 4096;

/// A blank file in memory whose holes cost nothing.
#[derive(Debug)]
pub struct SparseStorage {
    id: StorageId,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    len: u64,
    /// By page number; a page that is not here holds zeros.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Default for SparseStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl SparseStorage {
    /// An empty file.
    pub fn new() -> Self {
        Self {
            id: StorageId::unique(),
            state: RwLock::default(),
        }
    }

    /// Bytes of memory that the content takes.
    pub fn stored(&self) -> u64 {
        self.state.read().unwrap().pages.len() as u64 * PAGE
    }
}

/// The part of `offset..end` on the page of `offset`: page number, start in the page, length.
fn page_part(offset: u64, end: u64) -> (u64, usize, usize) {
    let (page, start) = (offset / PAGE, offset % PAGE);
    (
        page,
        start as usize,
        (PAGE - start).min(end - offset) as usize,
    )
}

impl Storage for SparseStorage {
    fn name(&self) -> &str {
        "sparse"
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.state.read().unwrap().len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.state.read().unwrap();
        let range = HostRange::new(offset, buf.len() as u64);
        if range.end() > state.len {
            return Err(end_of_storage(range, state.len));
        }
        let mut at = offset;
        while at < range.end() {
            let (page, start, len) = page_part(at, range.end());
            let part = &mut buf[(at - offset) as usize..][..len];
            match state.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[start..start + len]),
                None => part.fill(0),
            }
            at += len as u64;
        }
        Ok(())
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        let state = self.state.read().unwrap();
        assert!(offset < limit && limit <= state.len);
        let page = offset / PAGE;
        let hole = !state.pages.contains_key(&page);
        let end = if hole {
            let next = state.pages.range(page..).next();
            next.map_or(limit, |(page, _)| page * PAGE)
        } else {
            (page + 1) * PAGE
        };
        Ok(Span {
            len: end.min(limit) - offset,
            hole,
        })
    }
}

impl StorageMut for SparseStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = HostRange::new(offset, data.len() as u64).end();
        let mut state = self.state.write().unwrap();
        state.len = state.len.max(end);
        let mut at = offset;
        while at < end {
            let (page, start, len) = page_part(at, end);
            let part = &data[(at - offset) as usize..][..len];
            if !is_zero(part) || state.pages.contains_key(&page) {
                let bytes = state
                    .pages
                    .entry(page)
                    .or_insert_with(|| vec![0; PAGE as usize]);
                bytes[start..start + len].copy_from_slice(part);
            }
            at += len as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.state.write().unwrap();
        if len < state.len {
            drop(state.pages.split_off(&len.div_ceil(PAGE)));
            if let Some(last) = state.pages.get_mut(&(len / PAGE)) {
                last[(len % PAGE) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn zero(&self, range: HostRange, _zeroing: Zeroing) -> Result<()> {
        let mut state = self.state.write().unwrap();
        if range.end() > state.len {
            return Err(end_of_storage(range, state.len));
        }
        let (first, last) = (range.offset / PAGE, range.end().div_ceil(PAGE));
        for (page, bytes) in state.pages.range_mut(first..last) {
            let start = range.offset.saturating_sub(page * PAGE);
            let end = (range.end() - page * PAGE).min(PAGE);
            bytes[start as usize..end as usize].fill(0);
        }
        state.pages.retain(|_, bytes| !is_zero(bytes));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn fixed_len(&self) -> Option<u64> {
        None
    }

    fn is_blank(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::storage_conformance!(|| std::sync::Arc::new(SparseStorage::new()), storage);

    #[test]
    fn a_tebibyte_of_zeros_takes_no_memory() {
        let storage = SparseStorage::new();
        storage.write_at(1 << 40, b"end").unwrap();
        storage
            .zero(HostRange::new(0, 1 << 40), Zeroing::Keep)
            .unwrap();
        assert_eq!(storage.stored(), PAGE);
        let hole = storage.span_at(0, storage.len()).unwrap();
        assert_eq!((hole.len, hole.hole), (1 << 40, true));
    }
}
