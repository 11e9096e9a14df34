//! Writing in any order, for those who do not [stream](super::stream), as new images without a source
//! are written: a VHD in a file without a name, packed when it is complete.

use std::sync::Arc;

use goldsmith_block::{
    Committed, CreateSpec, Demand, Format, GuestRange, Result, Sink, SinkProfile, Slot, Storage,
    StorageMut,
};
use goldsmith_engine::Job;
use goldsmith_storage::FileStorage;
use goldsmith_vhd::VHD;

use super::gzip::{self, Bytes};
use super::stream::into;
use super::tarball::Tarball;

/// A VHD that is being made, to be packed.
pub(super) struct OvfSink {
    sink: Box<dyn Sink>,
    /// Where it stands until then.
    vhd: Arc<FileStorage>,
    storage: Arc<dyn StorageMut>,
    timestamp: u64,
}

impl OvfSink {
    pub(super) fn new(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Self> {
        let vhd = Arc::new(FileStorage::scratch(storage.name())?);
        let sink = VHD.create(Arc::clone(&vhd) as _, spec)?;
        storage.set_len(0)?;
        Ok(Self {
            sink,
            vhd,
            storage,
            timestamp: spec.timestamp,
        })
    }
}

/// The bytes of a file.
pub(super) struct Whole<'a>(pub(super) &'a dyn Storage);

impl Bytes for Whole<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// All but the end is the VHD's. It shares nothing with the source: all of it is read again anyway.
impl Sink for OvfSink {
    fn profile(&self) -> &SinkProfile {
        self.sink.profile()
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        self.sink.reserve(demands, slots)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.sink.write(slot, data)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        self.sink.write_zeroes(range)
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let disk = self.sink.profile().virtual_size;
        self.sink.commit()?;
        let whole = Whole(&*self.vhd);
        let tarball = Tarball::new(&[&whole], self.timestamp)?;
        let job = Job::default();
        let file_len = gzip::pack(&tarball, disk, &job, &mut into(&*self.storage))?;
        self.storage.set_len(file_len)?;
        self.storage.flush()?;
        Ok(Committed { file_len })
    }
}
