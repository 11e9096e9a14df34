//! A part of a storage as a storage: a partition, an image inside another file.

use std::sync::Arc;

use goldsmith_block::{Error, HostRange, Result, Span, Storage, StorageId};

use crate::error::{StorageError, past_end};

/// Some of the bytes of another storage, counted from the window's own start.
#[derive(Debug)]
pub struct Window {
    storage: Arc<dyn Storage>,
    range: HostRange,
}

impl Window {
    /// Shows `range` of `storage`.
    ///
    /// # Errors
    /// `Usage` if the range does not lie inside the storage.
    pub fn new(storage: Arc<dyn Storage>, range: HostRange) -> Result<Self> {
        let len = storage.len();
        if range.end() > len {
            let error = Error::from(StorageError::Outside { range, len });
            return Err(error.in_file(storage.name()));
        }
        Ok(Self { storage, range })
    }
}

impl Storage for Window {
    fn name(&self) -> &str {
        self.storage.name()
    }

    /// That of the whole storage, whose bytes these are.
    fn id(&self) -> StorageId {
        self.storage.id()
    }

    fn len(&self) -> u64 {
        self.range.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > self.range.len)
        {
            return Err(past_end(self.name(), offset, len, self.range.len));
        }
        self.storage.read_at(self.range.offset + offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        let start = self.range.offset;
        self.storage.span_at(start + offset, start + limit)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::ErrorKind;

    use super::*;
    use crate::MemoryStorage;

    fn window(offset: u64, len: u64) -> Result<Window> {
        let bytes = (0..100).collect();
        let storage = Arc::new(MemoryStorage::holding("disk", bytes));
        Window::new(storage, HostRange::new(offset, len))
    }

    #[test]
    fn offsets_count_from_the_start_of_the_window() {
        let window = window(10, 20).unwrap();
        let mut bytes = [0; 5];
        window.read_at(15, &mut bytes).unwrap();
        assert_eq!(bytes, [25, 26, 27, 28, 29]);
        assert_eq!((window.len(), window.name()), (20, "disk"));
        assert_eq!(window.id(), window.storage.id());
    }

    #[test]
    fn bytes_behind_the_window_are_not_its_own() {
        let window = window(10, 20).unwrap();
        for (offset, len) in [(0, 21), (20, 1), (u64::MAX, 1)] {
            let error = window.read_at(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{offset}");
        }
        let report = window.read_at(19, &mut [0; 2]).unwrap_err().report();
        assert_eq!(
            report,
            "disk: bytes 0x13..0x15 are past the end of the file (20 bytes)"
        );
    }

    #[test]
    fn window_that_does_not_fit_is_refused_with_the_numbers() {
        assert_eq!(window(100, 0).unwrap().len(), 0);
        let error = window(50, 51).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(
            error.report(),
            "disk: bytes 0x32..0x65 are not inside the 100 bytes to look at"
        );
    }
}
