//! No bytes at all: for learning how long a file would become.

use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{HostRange, Result, Span, Storage, StorageId, StorageMut, Zeroing};

use crate::error::past_end;

/// A storage of zeros, which forgets what is written and knows only where that ended.
#[derive(Debug)]
pub struct VoidStorage {
    name: String,
    id: StorageId,
    len: AtomicU64,
}

impl VoidStorage {
    /// One of `len` bytes, all of them a hole.
    pub fn new(name: impl Into<String>, len: u64) -> Self {
        Self {
            name: name.into(),
            id: StorageId::unique(),
            len: AtomicU64::new(len),
        }
    }
}

impl Storage for VoidStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (len, held) = (buf.len() as u64, self.len());
        if offset.checked_add(len).is_none_or(|end| end > held) {
            return Err(past_end(&self.name, offset, len, held));
        }
        buf.fill(0);
        Ok(())
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        Ok(Span {
            len: limit - offset,
            hole: true,
        })
    }
}

impl StorageMut for VoidStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if !data.is_empty() {
            let end = offset.saturating_add(data.len() as u64);
            self.len.fetch_max(end, Ordering::Relaxed);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, _range: HostRange, _zeroing: Zeroing) -> Result<()> {
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

    #[test]
    fn only_the_length_is_remembered() {
        let void = VoidStorage::new("nowhere", 100);
        let span = void.span_at(10, 100).unwrap();
        assert_eq!((span.len, span.hole), (90, true));
        void.write_at(5000, b"gold").unwrap();
        void.write_at(9000, b"").unwrap();
        void.write_at(0, b"a").unwrap();
        assert_eq!(void.len(), 5004);
        let mut bytes = [1; 4];
        void.read_at(5000, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
        assert!(void.read_at(5001, &mut bytes).is_err());
        void.set_len(7).unwrap();
        assert_eq!(void.len(), 7);
    }
}
