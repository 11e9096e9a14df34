//! A storage that fails when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{
    Error, ErrorKind, HostRange, Result, Span, Storage, StorageMut, Zeroing, end_of_storage,
    pass_on,
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

/// What a call does that does not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// The first half, in bytes, of what was asked for.
    Half,
    /// All of it: only the answer is wrong.
    All,
    /// Nothing, and so do all of its kind that come later: the disk is full, or dead.
    ForGood,
    /// A write stores all but the byte in its middle, which it changes, and says that all went well.
    Spoil,
}

impl Fault {
    /// Each that is a failure.
    pub const EACH: [Self; 4] = [Self::Nothing, Self::Half, Self::All, Self::ForGood];
}

/// Passes everything on to another storage, but lets one call fail with `Io`, or spoil what it writes.
#[derive(Debug)]
pub struct FaultStorage<S: ?Sized> {
    op: Op,
    nth: u64,
    fault: Fault,
    /// Reads past this fail, though `len` says that there are bytes: somebody cut the file.
    cut: AtomicU64,
    /// Reads of any of these bytes fail.
    bad: HostRange,
    calls: AtomicU64,
    inner: Arc<S>,
}

impl<S: Storage + ?Sized> FaultStorage<S> {
    /// Fails the `nth` call (from 0) of `op`; calls before and after go well.
    pub fn new(inner: Arc<S>, op: Op, nth: u64) -> Self {
        Self {
            op,
            nth,
            fault: Fault::Nothing,
            cut: AtomicU64::new(u64::MAX),
            bad: HostRange::new(0, 0),
            calls: AtomicU64::new(0),
            inner,
        }
    }

    /// Sets what that call does. Default: nothing. Only writes can be told to spoil something.
    #[must_use]
    pub fn doing(self, fault: Fault) -> Self {
        assert!(fault != Fault::Spoil || self.op == Op::Write);
        Self { fault, ..self }
    }

    /// Fails every read that ends past `len`: the file became shorter after it was opened.
    pub fn shrunk(inner: Arc<S>, len: u64) -> Self {
        let storage = Self::new(inner, Op::Any, u64::MAX);
        storage.shrink(len);
        storage
    }

    /// Fails every read of a byte in `bad`: the medium is damaged there.
    pub fn without(inner: Arc<S>, bad: HostRange) -> Self {
        Self {
            bad,
            ..Self::new(inner, Op::Any, u64::MAX)
        }
    }

    /// The same from now on.
    pub fn shrink(&self, len: u64) {
        self.cut.store(len, Ordering::SeqCst);
    }

    /// Whether the fault has happened.
    pub fn fired(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > self.nth
    }

    /// What becomes of a call of `op`: done, or how it fails.
    fn enter(&self, op: Op) -> Option<(Fault, Error)> {
        if self.op != Op::Any && self.op != op {
            return None;
        }
        let nth = self.calls.fetch_add(1, Ordering::SeqCst);
        let fails = nth == self.nth || self.fault == Fault::ForGood && nth > self.nth;
        fails.then(|| {
            let error = std::io::Error::other(format!("{op:?}: call {nth} was told to fail"));
            let error = Error::new(ErrorKind::Io, error).in_file(self.inner.name());
            (self.fault, error)
        })
    }

    /// Does `all`, unless it is to fail; then perhaps `half` of it or all the same.
    fn call(
        &self,
        op: Op,
        half: impl FnOnce() -> Result<()>,
        all: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some((fault, error)) = self.enter(op) else {
            return all();
        };
        match fault {
            Fault::Nothing | Fault::ForGood => {}
            Fault::Half => half()?,
            Fault::All => all()?,
            Fault::Spoil => unreachable!("writes alone are spoiled"),
        }
        Err(error)
    }
}

/// The half of something that cannot be done by halves.
fn nothing() -> Result<()> {
    Ok(())
}

impl<S: Storage + ?Sized> Storage for FaultStorage<S> {
    pass_on!(inner: name, id, len);

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some((_, error)) = self.enter(Op::Read) {
            return Err(error);
        }
        let range = HostRange::new(offset, buf.len() as u64);
        let cut = self.cut.load(Ordering::SeqCst);
        if range.end() > cut {
            return Err(end_of_storage(range, cut).in_file(self.name()));
        }
        if range.offset < self.bad.end() && self.bad.offset < range.end() {
            let error = std::io::Error::other(format!("bad sectors at {}", self.bad));
            return Err(Error::new(ErrorKind::Io, error).in_file(self.name()));
        }
        self.inner.read_at(offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        match self.enter(Op::Read) {
            Some((_, error)) => Err(error),
            None => self.inner.span_at(offset, limit),
        }
    }
}

impl<S: StorageMut + ?Sized> StorageMut for FaultStorage<S> {
    pass_on!(inner: fixed_len, is_blank);

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.fault == Fault::Spoil {
            let mut data = data.to_vec();
            if self.enter(Op::Write).is_some() && !data.is_empty() {
                let middle = data.len() / 2;
                data[middle] ^= 0x20;
            }
            return self.inner.write_at(offset, &data);
        }
        let half = || self.inner.write_at(offset, &data[..data.len() / 2]);
        self.call(Op::Write, half, || self.inner.write_at(offset, data))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.call(Op::SetLen, nothing, || self.inner.set_len(len))
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        let half = HostRange::new(range.offset, range.len / 2);
        let half = || self.inner.zero(half, zeroing);
        self.call(Op::Zero, half, || self.inner.zero(range, zeroing))
    }

    fn flush(&self) -> Result<()> {
        self.call(Op::Flush, nothing, || self.inner.flush())
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
        let storage = FaultStorage::new(memory, Op::Write, 1).doing(Fault::Spoil);
        for nth in 0..3 {
            storage.write_at(3 * nth, b"ABC").unwrap();
            assert_eq!(storage.fired(), nth >= 1);
        }
        let mut buf = [0; 9];
        storage.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"ABCAbCABC");
    }

    #[test]
    fn failing_call_does_what_it_is_told_to() {
        for (fault, expected) in [
            (Fault::Nothing, "....c"),
            (Fault::Half, "bb..c"),
            (Fault::All, "bbbbc"),
            (Fault::ForGood, "....."),
        ] {
            let memory = Arc::new(MemoryStorage::holding("m", vec![b'.'; 5]));
            let storage = FaultStorage::new(Arc::clone(&memory), Op::Write, 0).doing(fault);
            let error = storage.write_at(0, b"bbbb").unwrap_err();
            assert_eq!(error.report(), "m: Write: call 0 was told to fail");
            let later = storage.write_at(4, b"c");
            assert_eq!(later.is_err(), fault == Fault::ForGood);
            assert_eq!(memory.to_vec(), expected.as_bytes());
        }
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
