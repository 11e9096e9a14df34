//! Microsoft's VHD images, which qemu-img calls vpc: fixed, dynamic and differencing.
//!
//! ```text
//! fixed     data as the guest sees it ──────────────────────────────────────────────► footer
//!
//! dynamic   footer   dynamic   block      bitmap data    bitmap data                  footer
//!           (copy)   header    table      block 3        block 0          ...
//!                              [0] ───────────────────────►
//!                              [1] unused
//!                              [3] ────────►
//! ```
//!
//! The disk has exactly the size that was asked for, and the geometry that the specification gives
//! for it. In images of others the creator decides whether the size or the geometry counts.
//!
//! ```
//! use std::sync::Arc;
//!
//! use goldsmith_block::{Budget, CreateSpec, Demand, Format, GuestRange, Limits, Options, Storage};
//! use goldsmith_storage::MemoryStorage;
//! use goldsmith_vhd::VHD;
//!
//! # fn main() -> goldsmith_block::Result<()> {
//! let storage = Arc::new(MemoryStorage::new("disk.vhd"));
//! let sink = VHD.create(storage.clone(), &CreateSpec {
//!     virtual_size: 10 << 20,
//!     data: None,
//!     backing: None,
//!     options: Options::parse(VHD.options(), [("block_size", "1M")])?,
//!     compress: false,
//!     uuid: uuid::Uuid::from_u128(1),
//!     timestamp: 1_000_000_000,
//! })?;
//! let range = GuestRange::new(5 << 20, (5 << 20) + 4096);
//! let mut slots = Vec::new();
//! sink.reserve(&[Demand { range, packed: None }], &mut slots)?;
//! for slot in slots {
//!     sink.write(slot, &[0x6f; 4096])?;
//! }
//! sink.commit()?;
//!
//! // Head, one block behind its bitmap, footer.
//! assert_eq!(storage.len(), 4096 + (1 << 20) + 512);
//! let layer = VHD.open(storage, &Budget::new(&Limits::default()))?;
//! let mut buf = [0; 4];
//! layer.read_at((5 << 20) - 2, &mut buf)?;
//! assert_eq!(buf, [0, 0, 0x6f, 0x6f]);
//! # Ok(())
//! # }
//! ```
//!
//! # Not supported
//! - Images split into `.vhd`, `.v01`, `.v02` and so on, as Virtual PC did before 2005.
//! - Parents that a Macintosh alias names, which is a blob for its own file manager.
//! - The data of an image that XenServer's tools marked `v_poison` while they changed it.
//! - Writing to a block device: the footer stands at the end of the file, and a device has its end
//!   elsewhere.
//! - Changing images whose header or block table does not stand at a multiple of 512: no known
//!   writer makes them, and a cut could leave half an entry.
#![doc = ""]
#![doc = include_str!("../FORMAT.md")]
#![forbid(unsafe_code)]

mod batmap;
mod bitmap;
mod check;
mod derive;
mod editor;
mod error;
mod file_order;
mod footer;
mod geometry;
mod health;
mod layer;
mod locator;
mod ondisk;
mod sink;

use std::sync::Arc;

use footer::{Footer, SizeRule};
use goldsmith_block::{
    Budget, Checked, CreateSpec, Editor, Format, Layer, Match, OptionSpec, Options, Probe, Result,
    SECTOR, Sink, Storage, StorageMut,
};

pub use error::VhdError;
pub use file_order::{FileBlock, FileOrder};

/// The format's name, qemu-img's.
const NAME: &str = "vpc";

/// The VHD format.
pub static VHD: Vhd = Vhd;

/// The VHD format, as [`VHD`].
#[derive(Clone, Copy, Debug)]
pub struct Vhd;

impl Format for Vhd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["vhd"]
    }

    /// By the cookie at the start, or by a whole footer at the end: a fixed image begins with
    /// whatever the guest wrote there.
    fn probe(&self, probe: &Probe<'_>) -> Match {
        if footer::is_cookie(probe.head) {
            return Match::Marked;
        }
        // Eight bytes at the end of a disk may be anything; a footer that adds up is one.
        match footer::footer_at_end(probe.tail) {
            Some((raw, _)) if Footer::parse(&raw, SizeRule::Creator).is_ok() => Match::Marked,
            // A fixed image whose file became longer and nothing else, or a disk onto which somebody
            // copied one: not to be decided here.
            _ => match probe.before_zeros {
                Some((offset, sector))
                    if footer::is_behind_disk(sector, offset, SizeRule::Creator).is_some() =>
                {
                    Match::Anything
                }
                _ => Match::No,
            },
        }
    }

    fn open(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>> {
        layer::open(storage, budget, &Options::defaults(self.open_options()))
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        &layer::OPEN_OPTIONS
    }

    fn options_behind(&self) -> &'static [(&'static str, &'static str)] {
        &layer::OPTIONS_BEHIND
    }

    fn open_with(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        layer::open(storage, budget, options)
    }

    /// With a dynamic header that is worked out, if need be, and blocks that end too soon.
    fn salvage(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        layer::salvage(storage, budget, options)
    }

    fn check(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Option<Checked>> {
        check::check(storage, budget).map(Some)
    }

    fn options(&self) -> &'static [OptionSpec] {
        &sink::OPTIONS
    }

    fn misread(&self, options: &Options) -> Option<(&'static [u8], &'static str)> {
        (options.choice("subformat") == "fixed").then_some(layer::MISREAD)
    }

    fn size_unit(&self) -> u64 {
        SECTOR
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        sink::create(storage, spec)
    }

    fn edit(
        &self,
        storage: Arc<dyn StorageMut>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Box<dyn Editor>> {
        editor::edit(storage, budget, options)
    }
}
