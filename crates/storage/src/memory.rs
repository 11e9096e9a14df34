//! Bytes in memory: for small images, and for tests.

use std::sync::{PoisonError, RwLock};

use goldsmith_block::{HostRange, Result, Storage, StorageId, StorageMut, Zeroing, end_of_storage};

/// A growable buffer that is a storage.
#[derive(Debug)]
pub struct MemoryStorage {
    name: String,
    id: StorageId,
    bytes: RwLock<Vec<u8>>,
    blank: bool,
}

impl MemoryStorage {
    /// An empty, blank storage.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            blank: true,
            ..Self::holding(name, Vec::new())
        }
    }

    /// A storage that holds `bytes`, and so is not blank.
    pub fn holding(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        let id = StorageId::unique();
        Self {
            name: name.into(),
            id,
            bytes: RwLock::new(bytes),
            blank: false,
        }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        // A panic elsewhere cannot leave a Vec<u8> half changed.
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a buffer of `len` bytes that `range` names, if it lies inside.
fn part(range: HostRange, len: usize) -> Result<std::ops::Range<usize>> {
    match (usize::try_from(range.offset), usize::try_from(range.end())) {
        (Ok(start), Ok(end)) if end <= len => Ok(start..end),
        _ => Err(end_of_storage(range, len as u64)),
    }
}

impl Storage for MemoryStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.read().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.read();
        let part = part(HostRange::new(offset, buf.len() as u64), bytes.len())?;
        buf.copy_from_slice(&bytes[part]);
        Ok(())
    }
}

impl StorageMut for MemoryStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let range = HostRange::new(offset, data.len() as u64);
        let mut bytes = self.write();
        if range.end() > bytes.len() as u64 {
            resize(&mut bytes, range.end())?;
        }
        let part = part(range, bytes.len())?;
        bytes[part].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        resize(&mut self.write(), len)
    }

    fn zero(&self, range: HostRange, _zeroing: Zeroing) -> Result<()> {
        let mut bytes = self.write();
        let part = part(range, bytes.len())?;
        bytes[part].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn fixed_len(&self) -> Option<u64> {
        None
    }

    fn is_blank(&self) -> bool {
        self.blank
    }
}

fn resize(bytes: &mut Vec<u8>, len: u64) -> Result<()> {
    let out_of_memory = || {
        let error = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        goldsmith_block::Error::new(goldsmith_block::ErrorKind::Io, error)
    };
    let len = usize::try_from(len).map_err(|_| out_of_memory())?;
    bytes
        .try_reserve(len.saturating_sub(bytes.len()))
        .map_err(|_| out_of_memory())?;
    bytes.resize(len, 0);
    Ok(())
}
