//! RAW disk images: the golden format, no metadata at all.
//!
//! ```text
//! guest byte n  =  file byte n        virtual size  =  length of the file
//! ```
//!
//! Every file is a RAW image, so nothing here can be corrupt, and nothing tells a RAW image from
//! another one: callers should say that they mean it.
//!
//! ```
//! use std::sync::Arc;
//! use goldsmith_block::{Budget, Format, Limits};
//! use goldsmith_raw::RAW;
//! use goldsmith_storage::MemoryStorage;
//!
//! let storage = Arc::new(MemoryStorage::holding("disk.raw", b"golden".to_vec()));
//! let layer = RAW.open(storage, &Budget::new(&Limits::default()))?;
//! assert_eq!(layer.info().virtual_size, 6);
//! # Ok::<(), goldsmith_block::Error>(())
//! ```
//!
//! Not here: images split over several files.
#![forbid(unsafe_code)]

mod editor;
mod error;
mod layer;
mod sink;

use std::sync::Arc;

use goldsmith_block::{
    Budget, Content, CreateSpec, Editor, Format, Layer, Match, Measured, OptionKind, OptionSpec,
    Options, Probe, Result, SECTOR, Sink, Storage, StorageMut, align_up,
};

pub use error::RawError;

/// The format, for the registry.
pub static RAW: Raw = Raw;

/// RAW images: the bytes of the disk and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

/// Bytes of the longest disk. [qemu] Linux does not find the data in the last page that a file can have.
pub(crate) const DISK_BYTES: u64 = (1 << 63) - (1 << 30);

/// Fails if no disk has `len` bytes.
fn must_be_short(len: u64) -> Result<(), RawError> {
    match len > DISK_BYTES {
        true => Err(RawError::TooLong { len }),
        false => Ok(()),
    }
}

static OPTIONS: [OptionSpec; 1] = [OptionSpec {
    name: "preallocation",
    kind: OptionKind::Choice(&["off", "falloc", "full"]),
    default: "off",
    help: "off: zeros take no space; falloc: all space is reserved; full: all space is written",
}];

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn probe(&self, _probe: &Probe<'_>) -> Match {
        Match::Anything
    }

    fn open(&self, storage: Arc<dyn Storage>, _budget: &Budget) -> Result<Arc<dyn Layer>> {
        must_be_short(storage.len())?;
        Ok(Arc::new(layer::RawLayer::new(storage)))
    }

    fn options(&self) -> &'static [OptionSpec] {
        &OPTIONS
    }

    fn size_unit(&self) -> u64 {
        1
    }

    /// Holes count, too: the file is as long as the disk.
    fn measure(
        &self,
        spec: &CreateSpec,
        _content: Option<Content<'_>>,
    ) -> Result<Option<Measured>> {
        // [qemu] In whole sectors, though images made here end where the disk does.
        let len = align_up(spec.virtual_size, SECTOR).unwrap_or(u64::MAX);
        Ok(Some(Measured {
            required: len,
            fully_allocated: len,
            bitmaps: None,
        }))
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        Ok(Box::new(sink::RawSink::create(storage, spec)?))
    }

    fn edit(
        &self,
        storage: Arc<dyn StorageMut>,
        _budget: &Budget,
        _options: &Options,
    ) -> Result<Box<dyn Editor>> {
        Ok(Box::new(editor::RawEditor::new(storage)))
    }
}
