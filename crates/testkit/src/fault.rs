//! A storage that fails when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{
    Error, ErrorKind, HostRange, Result, Span, Storage, StorageId, StorageMut, Zeroing,
    end_of_storage,
};

/// Which calls a [`FaultStorage`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Every call that can fail.
    Any,
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `zero`.
    Zero,
    /// `set_len`.
    SetLen,
    /// `flush`.
    Flush,
}

/// Passes everything on to another storage, but lets one call fail with `Io`, or spoils a write.
#[derive(Debug)]
pub struct FaultStorage<S: ?Sized> {
    op: Op,
    nth: u64,
    /// Reads past this fail, though `len` says that there are bytes: somebody cut the file.
    cut: u64,
    /// The fault is no failure, but a write that changes a byte.
    spoils: bool,
    calls: AtomicU64,
    inner: Arc<S>,
}

impl<S: Storage + ?Sized> FaultStorage<S> {
    /// Fails the `nth` call (from 0) of `op`; calls before and after go well.
    pub fn new(inner: Arc<S>, op: Op, nth: u64) -> Self {
        Self {
            op,
            nth,
            cut: u64::MAX,
            spoils: false,
            calls: AtomicU64::new(0),
            inner,
        }
    }

    /// Changes the byte in the middle of what the `nth` write (from 0) stores, and says that all went
    /// well.
    pub fn spoiling(inner: Arc<S>, nth: u64) -> Self {
        Self {
            spoils: true,
            ..Self::new(inner, Op::Write, nth)
        }
    }

    /// Fails every read that ends past `len`: the file became shorter after it was opened.
    pub fn shrunk(inner: Arc<S>, len: u64) -> Self {
        Self {
            cut: len,
            ..Self::new(inner, Op::Any, u64::MAX)
        }
    }

    /// Whether the fault has happened.
    pub fn fired(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > self.nth
    }

    fn enter(&self, op: Op) -> Result<()> {
        if !self.spoils && self.is_due(op) {
            let nth = self.nth;
            let error = std::io::Error::other(format!("{op:?}: call {nth} was told to fail"));
            return Err(Error::new(ErrorKind::Io, error));
        }
        Ok(())
    }

    /// Counts a call; says whether it is the one.
    fn is_due(&self, op: Op) -> bool {
        let counts = self.op == Op::Any || self.op == op;
        counts && self.calls.fetch_add(1, Ordering::SeqCst) == self.nth
    }
}

impl<S: Storage + ?Sized> Storage for FaultStorage<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn id(&self) -> StorageId {
        self.inner.id()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.enter(Op::Read)?;
        let range = HostRange::new(offset, buf.len() as u64);
        if range.end() > self.cut {
            return Err(end_of_storage(range, self.cut));
        }
        self.inner.read_at(offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        self.enter(Op::Read)?;
        self.inner.span_at(offset, limit)
    }
}

impl<S: StorageMut + ?Sized> StorageMut for FaultStorage<S> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.spoils {
            self.enter(Op::Write)?;
        } else if self.is_due(Op::Write) {
            let mut spoiled = data.to_vec();
            if let Some(byte) = spoiled.get_mut(data.len() / 2) {
                *byte ^= 0x20;
            }
            return self.inner.write_at(offset, &spoiled);
        }
        self.inner.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.enter(Op::SetLen)?;
        self.inner.set_len(len)
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.enter(Op::Zero)?;
        self.inner.zero(range, zeroing)
    }

    fn flush(&self) -> Result<()> {
        self.enter(Op::Flush)?;
        self.inner.flush()
    }

    fn fixed_len(&self) -> Option<u64> {
        self.inner.fixed_len()
    }

    fn is_blank(&self) -> bool {
        self.inner.is_blank()
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_storage::MemoryStorage;

    use super::*;

    #[test]
    fn only_the_told_call_fails() {
        let memory = Arc::new(MemoryStorage::holding("m", vec![1; 64]));
        let storage = FaultStorage::new(memory, Op::Write, 1);
        let mut buf = [0; 8];
        storage.read_at(0, &mut buf).unwrap();
        storage.write_at(0, b"a").unwrap();
        assert!(!storage.fired());
        assert_eq!(storage.write_at(0, b"b").unwrap_err().kind(), ErrorKind::Io);
        assert!(storage.fired());
        storage.write_at(0, b"c").unwrap();
        storage.read_at(0, &mut buf).unwrap();
        assert_eq!(buf[0], b'c');
    }

    #[test]
    fn only_the_told_write_is_spoiled_and_nobody_is_told() {
        let memory = Arc::new(MemoryStorage::new("m"));
        let storage = FaultStorage::spoiling(memory, 1);
        for nth in 0..3 {
            storage.write_at(3 * nth, b"ABC").unwrap();
            assert_eq!(storage.fired(), nth >= 1);
        }
        let mut buf = [0; 9];
        storage.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"ABCAbCABC");
    }

    #[test]
    fn shrunk_file_says_its_old_length_but_reads_to_the_new() {
        let memory = Arc::new(MemoryStorage::holding("m", vec![1; 64]));
        let storage = FaultStorage::shrunk(memory, 32);
        assert_eq!(storage.len(), 64);
        storage.read_at(24, &mut [0; 8]).unwrap();
        assert_eq!(
            storage.read_at(25, &mut [0; 8]).unwrap_err().kind(),
            ErrorKind::Io
        );
    }
}
