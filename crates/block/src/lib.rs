//! The words that formats, storage and engine share, and nothing else.
//!
//! ```text
//! Storage ─► Layer (one image) ─► Chain (with those behind it) ─► Extent ─► engine
//!                                                                            │
//! StorageMut ◄─ Sink: reserve in guest order, write in any order, commit ◄───┘
//! ```
//!
//! A format implements [`Format`], whose `open` gives a [`Layer`], whose `create` gives a
//! [`Sink`] and whose `edit` an [`Editor`]. It sees bytes only through [`Storage`] and [`StorageMut`], spends memory only through
//! a [`Budget`], and fails only with an [`Error`].
//!
//! A range of the disk is always in guest bytes ([`GuestRange`]), a range of an image file always
//! in host bytes ([`HostRange`]); a bare `u64` is bytes from the start of the disk.
#![forbid(unsafe_code)]

mod buffer;
mod chain;
mod check;
mod editor;
mod error;
mod extent;
mod flat;
mod format;
mod gaps;
mod health;
mod last_run;
mod layer;
mod limits;
mod measure;
mod options;
mod pass_on;
mod sink;
mod storage;
mod suggest;
mod units;
mod zero;

pub use buffer::Buffer;
pub use chain::{Chain, ChainExtent};
pub use check::{Checked, Flaw};
pub use editor::{
    BitmapChange, Change, Edit, Editor, NewBitmap, Preallocation, Repair, Scribe, Step,
};
pub use error::{Error, ErrorKind, Result};
pub use extent::{Codec, Extent, ExtentKind};
pub use flat::Flat;
pub use format::{CreateSpec, Format, Match, Probe};
pub use gaps::Gaps;
pub use health::{Ailment, Symptom};
pub use last_run::LastRun;
pub use layer::{BackingReference, BitmapInfo, Detail, Layer, LayerInfo, Snapshot};
pub use limits::{Budget, Limits};
pub use measure::{Content, Measured};
pub use options::{OptionKind, OptionSpec, Options, parse_size};
pub use sink::{Committed, Demand, Packing, Placement, Sink, SinkProfile, Slot, ZeroPolicy};
pub use storage::{
    Span, Storage, StorageId, StorageMut, Transfer, Zeroing, end_of_storage, is_same_bytes,
};
pub use suggest::did_you_mean;
pub use units::{GuestRange, HostRange, SECTOR, align_down, align_up, middle_sector};
pub use zero::{is_zero, last_byte};
