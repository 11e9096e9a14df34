//! Wrappers that count, so that a test can claim what something costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use goldsmith_block::{
    Extent, HostRange, Layer, LayerInfo, Result, Span, Storage, StorageMut, Zeroing, pass_on,
};

/// One call of a [`TraceStorage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `read_at`.
    Read(HostRange),
    /// `span_at`, with what was asked for.
    Span(HostRange),
    /// `write_at`.
    Write(HostRange),
    /// `set_len`.
    SetLen(u64),
    /// `zero`.
    Zero(HostRange),
    /// `flush`.
    Flush,
}

/// Passes everything on to another storage, and writes it down.
#[derive(Debug)]
pub struct TraceStorage<S: ?Sized> {
    calls: Mutex<Vec<Call>>,
    inner: Arc<S>,
}

impl<S: Storage + ?Sized> TraceStorage<S> {
    /// Watches `inner`.
    pub fn new(inner: Arc<S>) -> Self {
        Self {
            calls: Mutex::default(),
            inner,
        }
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// How many calls so far were reads.
    pub fn reads(&self) -> usize {
        self.count(|call| matches!(call, Call::Read(_)))
    }

    /// How many calls so far were writes of bytes.
    pub fn writes(&self) -> usize {
        self.count(|call| matches!(call, Call::Write(_)))
    }

    /// How many calls so far were flushes.
    pub fn flushes(&self) -> usize {
        self.count(|call| *call == Call::Flush)
    }

    fn count(&self, which: impl Fn(&Call) -> bool) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| which(call)).count()
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl<S: Storage + ?Sized> Storage for TraceStorage<S> {
    pass_on!(inner: name, id, len);

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.note(Call::Read(HostRange::new(offset, buf.len() as u64)));
        self.inner.read_at(offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        self.note(Call::Span(HostRange::new(offset, limit - offset)));
        self.inner.span_at(offset, limit)
    }
}

impl<S: StorageMut + ?Sized> StorageMut for TraceStorage<S> {
    pass_on!(inner: fixed_len, is_blank);

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.note(Call::Write(HostRange::new(offset, data.len() as u64)));
        self.inner.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.note(Call::SetLen(len));
        self.inner.set_len(len)
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.note(Call::Zero(range));
        self.inner.zero(range, zeroing)
    }

    fn flush(&self) -> Result<()> {
        self.note(Call::Flush);
        self.inner.flush()
    }
}

/// Passes everything on to another layer, and counts.
pub struct TraceLayer {
    inner: Arc<dyn Layer>,
    extents: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

impl TraceLayer {
    /// Watches `inner`.
    pub fn new(inner: Arc<dyn Layer>) -> Self {
        Self {
            inner,
            extents: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    /// How often `extent_at` was called.
    pub fn extents(&self) -> u64 {
        self.extents.load(Ordering::SeqCst)
    }

    /// How often `read_at` was called.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// How many bytes `read_at` was asked for, in all.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::SeqCst)
    }
}

impl Layer for TraceLayer {
    fn info(&self) -> &LayerInfo {
        self.inner.info()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.inner.storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.extents.fetch_add(1, Ordering::SeqCst);
        self.inner.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.read_bytes
            .fetch_add(buf.len() as u64, Ordering::SeqCst);
        self.inner.read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_storage::MemoryStorage;

    use super::*;
    use crate::{ModelLayer, pattern};

    #[test]
    fn storage_calls_are_written_down_in_order() {
        let storage = TraceStorage::new(Arc::new(MemoryStorage::new("m")));
        storage.write_at(4, b"gold").unwrap();
        storage.flush().unwrap();
        storage.read_at(0, &mut [0; 8]).unwrap();
        let (write, read) = (HostRange::new(4, 4), HostRange::new(0, 8));
        assert_eq!(
            storage.calls(),
            [Call::Write(write), Call::Flush, Call::Read(read)]
        );
        assert_eq!(
            (storage.reads(), storage.writes(), storage.flushes()),
            (1, 1, 1)
        );
    }

    #[test]
    fn layer_calls_are_counted() {
        let layer = TraceLayer::new(Arc::new(ModelLayer::new(pattern::disk("4k:A 1T:-"))));
        layer.extent_at(4096, layer.info().virtual_size).unwrap();
        layer.read_at(0, &mut [0; 100]).unwrap();
        assert_eq!(
            (layer.extents(), layer.reads(), layer.read_bytes()),
            (1, 1, 100)
        );
    }
}
