//! QEMU's qcow2 images, versions 2 and 3: opened as layers, made through a sink, changed in place.
//!
//! ```text
//! guest cluster 70000               header ─► L1 table      (in memory)
//!   = table 8, entry 4464                      └─[8] ─► L2 table     (a few are cached)
//!                                                        └─[4464] ─► host cluster,
//!                                                                    packed bytes, zeros, nothing
//! ```
//!
//! The modules follow the bytes: `ondisk` (as they stand in the file), `features` and `geometry`
//! (the header, checked), `table` (L1 and L2), `mapping` (one entry), `snapshot` and `bitmap` (the
//! lists of them), `spare` (what the disk can be read without), `layer` (reading), `plan` (the options), `refcount`, `layout` and `sink` (writing); `crypt`
//! is for both, `check` looks at all tables, `measure` reckons how long they get, and `editor` changes
//! an image that stands: a new state is written beside the old one, then the header turns to it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use goldsmith_block::{
//!     Budget, CreateSpec, Demand, ExtentKind, Format, GuestRange, Limits, Options,
//! };
//! use goldsmith_qcow2::QCOW2;
//! use goldsmith_storage::MemoryStorage;
//!
//! let file = Arc::new(MemoryStorage::new("disk.qcow2"));
//! let spec = CreateSpec {
//!     virtual_size: 1 << 20,
//!     data: None,
//!     backing: None,
//!     options: Options::parse(QCOW2.options(), [("cluster_size", "4k")])?,
//!     compress: false,
//!     uuid: Default::default(),
//!     timestamp: 0,
//! };
//! let sink = QCOW2.create(Arc::clone(&file) as _, &spec)?;
//! let range = GuestRange::new(8192, 12288);
//! let mut slots = Vec::new();
//! sink.reserve(&[Demand { range, packed: None }], &mut slots)?;
//! for slot in slots {
//!     sink.write(slot, &[0x51; 4096])?;
//! }
//! sink.commit()?;
//!
//! let layer = QCOW2.open(file, &Budget::new(&Limits::default()))?;
//! let extent = layer.extent_at(0, 1 << 20)?;
//! assert_eq!((extent.range.end, extent.kind), (8192, ExtentKind::Unallocated));
//! let mut byte = [0];
//! layer.read_at(8192, &mut byte)?;
//! assert_eq!(byte, [0x51]);
//! # Ok::<(), goldsmith_block::Error>(())
//! ```
//!
//! Guest data may stand in a file of its own; a layer is given it by whoever may open it. A snapshot
//! is one more layer of the same file.
//!
//! Encrypted data is read with the passphrase that [`Format::open_with`] is given, or not at all.
//!
//! Not supported, and refused: ciphers other than AES.
#![forbid(unsafe_code)]

mod area;
mod bitmap;
mod check;
mod crypt;
mod editor;
mod error;
mod features;
mod geometry;
mod health;
mod holes;
mod layer;
mod layout;
mod mapping;
mod measure;
pub mod ondisk;
mod plan;
mod refcount;
mod sink;
mod snapshot;
mod spare;
mod table;

use std::sync::Arc;

use goldsmith_block::{
    Budget, Checked, Content, CreateSpec, Editor, Format, Layer, Match, Measured, OptionKind,
    OptionSpec, Options, Probe, Result, SECTOR, Sink, Storage, StorageMut,
};

pub use error::Qcow2Error;
use spare::Spare;

/// The format's name.
const NAME: &str = "qcow2";

/// The format, for a registry.
pub static QCOW2: Qcow2 = Qcow2;

/// What can be said when an image is opened; names are QEMU's. [qemu]
static OPEN_OPTIONS: [OptionSpec; 1] = [OptionSpec {
    name: plan::KEY_SECRET,
    kind: OptionKind::Secret,
    default: "",
    help: "the secret that opens an encrypted image",
}];

/// QEMU's qcow2.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2;

impl Format for Qcow2 {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Any version: one that cannot be read must not be taken for a raw disk.
    fn probe(&self, probe: &Probe<'_>) -> Match {
        if probe.head.starts_with(&ondisk::MAGIC) {
            Match::Marked
        } else {
            Match::No
        }
    }

    fn open(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(
            layer::Qcow2Layer::open(storage, budget, None)?.unchanging(),
        ))
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        &OPEN_OPTIONS
    }

    fn open_with(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        let passphrase = options.secret(plan::KEY_SECRET);
        let layer = layer::Qcow2Layer::open(storage, budget, passphrase)?;
        Ok(Arc::new(layer.unchanging()))
    }

    /// Without refcounts, snapshots and bitmaps if need be.
    fn salvage(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        let passphrase = options.secret(plan::KEY_SECRET);
        let spare = Spare::Missing(Vec::new());
        let layer = layer::Qcow2Layer::open_with(storage, budget, passphrase, spare)?;
        Ok(Arc::new(layer.unchanging()))
    }

    fn check(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Option<Checked>> {
        check::check(&*storage, budget).map(Some)
    }

    fn options(&self) -> &'static [OptionSpec] {
        &plan::OPTIONS
    }

    /// QEMU drops what is left of a disk behind its last sector; images made here keep it.
    fn size_unit(&self) -> u64 {
        SECTOR
    }

    fn keeps_bitmaps(&self, options: &Options) -> bool {
        plan::Shape::new(options).is_ok_and(|shape| shape.version >= 3)
    }

    fn measure(&self, spec: &CreateSpec, content: Option<Content<'_>>) -> Result<Option<Measured>> {
        measure::measure(spec, content).map(Some)
    }

    fn len_of_any(&self, spec: &CreateSpec) -> Result<Option<u64>> {
        measure::len_of_any(spec)
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        Ok(Box::new(sink::Qcow2Sink::create(storage, spec)?))
    }

    fn edit(
        &self,
        storage: Arc<dyn StorageMut>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Box<dyn Editor>> {
        let passphrase = options.secret(plan::KEY_SECRET);
        let editor = editor::Qcow2Editor::open(storage, budget, passphrase)?;
        Ok(Box::new(editor))
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        &editor::AMEND_OPTIONS
    }
}
