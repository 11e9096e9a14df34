//! Files mapped into memory: no system call per read, at the price of trust in the file.
//!
//! UNSAFETY: a mapping is memory that others can change, which only the caller can rule out.
#![allow(unsafe_code)]

use std::path::Path;

use goldsmith_block::{Error, Result, Span, Storage, StorageId};
use memmap2::{Mmap, MmapOptions};

use crate::FileStorage;
use crate::error::{StorageError, past_end};

/// A read-only file or block device that is mapped into memory.
#[derive(Debug)]
pub struct MmapStorage {
    /// Knows the name, the identity and the holes.
    file: FileStorage,
    map: Mmap,
}

impl MmapStorage {
    /// Maps the file or block device at `path`.
    ///
    /// # Safety
    /// Nothing may change the file while this object lives: a byte that changes while it is read
    /// is undefined behaviour, and a file that becomes shorter ends the whole process with
    /// `SIGBUS`. [`FileStorage`] reports both as an error at worst.
    ///
    /// # Errors
    /// As [`FileStorage::open`]; `Io` also if the file does not fit in the address space.
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = FileStorage::open(path)?;
        let len = file.len();
        let map = usize::try_from(len)
            .map_err(|_| std::io::ErrorKind::OutOfMemory.into())
            // SAFETY: the caller promises that nothing changes the file while it is mapped.
            .and_then(|len| unsafe { MmapOptions::new().len(len).map(file.handle()) })
            .map_err(|source| {
                Error::from(StorageError::Map { len, source }).in_file(file.name())
            })?;
        Ok(Self { file, map })
    }
}

impl Storage for MmapStorage {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn id(&self) -> StorageId {
        self.file.id()
    }

    fn len(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.map.get(start..start.checked_add(buf.len())?));
        let Some(bytes) = bytes else {
            return Err(past_end(self.name(), offset, buf.len() as u64, self.len()));
        };
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        self.file.span_at(offset, limit)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use goldsmith_block::ErrorKind;

    use super::*;

    fn mapped(bytes: &[u8]) -> MmapStorage {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        // SAFETY: nobody else knows the file, and it is not written again.
        unsafe { MmapStorage::open(file.path()) }.unwrap()
    }

    #[test]
    fn mapped_bytes_are_the_bytes_of_the_file() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        let storage = mapped(&bytes);
        assert_eq!(storage.len(), 10_000);
        let mut middle = [0; 5000];
        storage.read_at(4321, &mut middle).unwrap();
        assert_eq!(middle, bytes[4321..9321]);
        let span = storage.span_at(0, 100).unwrap();
        assert_eq!((span.len, span.hole), (100, false));
    }

    #[test]
    fn read_past_the_map_is_an_error_that_names_the_file() {
        let storage = mapped(&[1; 100]);
        for (offset, len) in [(0, 101), (100, 1), (101, 1), (u64::MAX, 1), (u64::MAX, 9)] {
            let error = storage.read_at(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert_eq!(error.path(), Some(storage.name()));
        }
        storage.read_at(100, &mut []).unwrap();
    }

    #[test]
    fn empty_file_can_be_mapped() {
        let storage = mapped(&[]);
        assert!(storage.is_empty());
        assert!(storage.read_at(0, &mut [0]).is_err());
    }

    #[test]
    fn directory_is_refused() {
        // SAFETY: it is refused before anything is mapped.
        let error = unsafe { MmapStorage::open(std::env::temp_dir()) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}
