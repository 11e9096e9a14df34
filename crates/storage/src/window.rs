//! A part of a storage as a storage: a partition, an image inside another file.

use std::fs::File;
use std::sync::Arc;

use goldsmith_block::{Error, HostRange, Result, Span, Storage, StorageId, StorageMut, Zeroing};

use crate::error::{StorageError, past_end};

/// Some of the bytes of another storage, counted from the window's own start.
///
/// What it does not show is never changed.
#[derive(Debug)]
pub struct Window<S: ?Sized = dyn Storage> {
    storage: Arc<S>,
    /// Byte offset of its start.
    offset: u64,
    /// Bytes that it shows; all from its start on if none are said.
    len: Option<u64>,
    /// What messages call it, if not as the storage.
    name: Option<String>,
}

impl<S: Storage + ?Sized> Window<S> {
    /// Shows `range` of `storage`, and so never grows.
    ///
    /// # Errors
    /// `Usage` if the range does not lie inside the storage.
    pub fn new(storage: Arc<S>, range: HostRange) -> Result<Self> {
        Self::inside(storage, range, Some(range.len))
    }

    /// Shows all of `storage` from `offset` on, and grows with it.
    ///
    /// # Errors
    /// `Usage` if the storage ends before.
    pub fn from_offset(storage: Arc<S>, offset: u64) -> Result<Self> {
        Self::inside(storage, HostRange::new(offset, 0), None)
    }

    fn inside(storage: Arc<S>, range: HostRange, shown: Option<u64>) -> Result<Self> {
        let len = storage.len();
        if range.end() > len {
            let error = Error::from(StorageError::Outside { range, len });
            return Err(error.in_file(storage.name()));
        }
        Ok(Self {
            storage,
            offset: range.offset,
            len: shown,
            name: None,
        })
    }

    /// The same window, for messages that call it `name`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Fails if the window has no `len` bytes from `offset`.
    fn must_have(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(past_end(self.name(), offset, len, self.len())),
        }
    }
}

impl<S: StorageMut + ?Sized> Window<S> {
    /// Fails if what is written there does not fit in a window that has an end.
    fn must_hold(&self, offset: u64, len: u64) -> Result<()> {
        let Some(window) = self.len else {
            return Ok(());
        };
        self.must_have(offset, len).map_err(|_| {
            let range = HostRange::new(offset, len.min(u64::MAX - offset));
            Error::from(StorageError::WindowFull { window, range }).in_file(self.name())
        })
    }
}

impl<S: Storage + ?Sized> Storage for Window<S> {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.storage.name())
    }

    /// That of the whole storage, whose bytes these are.
    fn id(&self) -> StorageId {
        self.storage.id()
    }

    fn offset(&self) -> u64 {
        self.storage.offset() + self.offset
    }

    fn lockable(&self) -> Option<&File> {
        self.storage.lockable()
    }

    fn len(&self) -> u64 {
        let rest = || self.storage.len().saturating_sub(self.offset);
        self.len.unwrap_or_else(rest)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.must_have(offset, buf.len() as u64)?;
        self.storage.read_at(self.offset + offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        let start = self.offset;
        self.storage.span_at(start + offset, start + limit)
    }
}

impl<S: StorageMut + ?Sized> StorageMut for Window<S> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.must_hold(offset, data.len() as u64)?;
        // The system refuses an end that does not fit in 63 bits.
        let offset = self.offset.saturating_add(offset);
        self.storage.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        match self.len {
            Some(window) if len > window => {
                let error = StorageError::WindowTooSmall { window, need: len };
                Err(Error::from(error).in_file(self.name()))
            }
            Some(_) => Ok(()),
            None => self.storage.set_len(self.offset.saturating_add(len)),
        }
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.must_hold(range.offset, range.len)?;
        let range = HostRange::new(self.offset + range.offset, range.len);
        self.storage.zero(range, zeroing)
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush()
    }

    fn fixed_len(&self) -> Option<u64> {
        let rest = |len: u64| len.saturating_sub(self.offset);
        self.len.or_else(|| self.storage.fixed_len().map(rest))
    }

    fn is_blank(&self) -> bool {
        self.storage.is_blank()
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::ErrorKind;

    use super::*;
    use crate::MemoryStorage;

    fn window(offset: u64, len: u64) -> Result<Window<MemoryStorage>> {
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
    fn what_is_written_stays_inside_the_window() {
        let window = window(10, 20).unwrap();
        window.write_at(0, &[0xAA; 5]).unwrap();
        window.zero(HostRange::new(15, 5), Zeroing::Punch).unwrap();
        window.set_len(20).unwrap();
        for refused in [
            window.write_at(16, &[0xBB; 5]),
            window.zero(HostRange::new(19, 2), Zeroing::Keep),
            window.write_at(u64::MAX, &[0xBB]),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(
                error.report().contains("is full: it holds 20 bytes"),
                "{error:?}"
            );
        }
        let error = window.set_len(21).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let mut expected: Vec<u8> = (0..100).collect();
        expected[10..15].fill(0xAA);
        expected[25..30].fill(0);
        let mut bytes = vec![0; 100];
        window.storage.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, expected);
        assert_eq!(window.fixed_len(), Some(20));
    }

    #[test]
    fn window_without_an_end_grows_with_what_it_is_of() {
        let storage = Arc::new(MemoryStorage::holding("disk", (0..100).collect()));
        let window = Window::from_offset(Arc::clone(&storage), 90).unwrap();
        assert_eq!((window.len(), window.fixed_len()), (10, None));
        window.write_at(8, &[0xAA; 4]).unwrap();
        assert_eq!((window.len(), storage.len()), (12, 102));
        window.set_len(5).unwrap();
        assert_eq!((window.len(), storage.len()), (5, 95));
        assert!(Window::from_offset(storage, 96).is_err());
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
