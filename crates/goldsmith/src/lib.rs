//! Convert disk images between RAW, qcow2 and VHD, fast, safely, and without losing a byte.
//!
//! ```text
//!  golden.raw ─┐                                       ┌─► disk.qcow2   (KVM)
//!  disk.qcow2 ─┼─► open ─► Chain ─► convert ─► publish ┼─► disk.vhd     (XenServer, Azure)
//!  disk.vhd   ─┘    │                                  └─► golden.raw   (everybody)
//!                   └─► info, map, measure, compare, check, lint
//!
//!  disk.qcow2 ─► edit in place ─► resize, snapshots, rebase, commit, amend, bitmaps, repair
//! ```
//!
//! ```
//! use goldsmith::{Convert, Opener};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.qcow2"));
//! std::fs::write(&golden, vec![7; 1 << 20])?;
//! Convert::new(&golden, &disk)
//!     .source_format("raw")
//!     .target_format("qcow2")
//!     .option("cluster_size", "4k")
//!     .run()?;
//!
//! let disk = Opener::new().open(&disk, Some("qcow2"))?;
//! assert_eq!(disk.virtual_size(), 1 << 20);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing that an image names is opened unless [`References`] allows it, memory for what an image
//! claims is bounded by [`Limits`], and a target appears under its name complete or not at all.
//!
//! Images are edited in place by builders, too: [`Create`], [`Resize`], [`Snapshots`], [`Rebase`],
//! [`Commit`], [`Amend`], [`EditBitmap`], and [`Check`] where it repairs. Cut off anywhere, an edit
//! leaves the old disk or the new one (but for the base of a [`Commit`], whose overlay shows it); and each
//! can be rehearsed, which tells what would be done.
//! An image that a running virtual machine has open is left alone.
//!
//! ```
//! use goldsmith::{Create, NewSize, Resize};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let disk = folder.path().join("disk.qcow2");
//! Create::new(&disk).format("qcow2").size(1 << 30).run()?;
//! let resize = Resize::new(&disk, NewSize::More(1 << 30)).format("qcow2");
//! for (file, step) in resize.clone().dry_run(true).run()?.steps {
//!     println!("{}: {step}", file.display());
//! }
//! resize.run()?;
//! # Ok(())
//! # }
//! ```
//!
//! What the command does, a program does with:
//!
//! | subcommand | here |
//! |---|---|
//! | `convert` | [`Convert`], with [`Cloud`]s by [`cloud_named`] |
//! | `info`, `map` | [`ImageInfo`], [`map`](map()) |
//! | `measure`, `compare` | [`Measure`], [`Compare`] |
//! | `lint`, `check` | [`lint`](lint()), [`Check`] |
//! | `create`, `resize`, `snapshot`, `amend`, `bitmap` | [`Create`], [`Resize`], [`Snapshots`], [`Amend`], [`EditBitmap`] |
//! | `rebase`, `commit` | [`Rebase`], [`Commit`] |
//!
//! All of them can be sent to another thread, print nothing, and share no state but that of the file
//! system. All stop when a [`Cancel`] is raised, and whatever may take long tells a listener how far it
//! has come ([`Progress`]): what reads or writes whole disks, a [`Check`], and [`Create`] and [`Resize`]
//! where they take space. Programs to begin with are in `examples/`.
//!
//! # What stays
//!
//! From the first release on, what a program that compiles uses stays there, and does what it did, up to
//! the next number in the middle of the version (0.1, 0.2): `scripts/semver` holds the crates against
//! the last release, and what it finds waits for that number, with a line in `CHANGELOG.md` that says
//! what to write instead. Free to change at any time are the words of messages (go by
//! [`Error::kind`]), the [steps](Edited::steps) of an edit, and what is added to types that are marked
//! as not exhaustive.
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod amend;
mod bench;
mod bitmap;
mod carry;
mod check;
mod checksum;
mod cloud;
mod commit;
mod compare;
mod convert;
mod create;
mod edit;
mod filename;
mod found;
mod info;
mod lint;
mod map;
mod marks;
mod measure;
mod new_image;
mod open;
mod ovf;
mod proof;
mod rebase;
mod reference;
mod registry;
mod resize;
mod resume;
mod salvage;
mod secret;
mod snapshot;
mod splice;
mod target;
mod told;
mod watch;
mod work;

pub use amend::Amend;
pub use bench::{Bench, Benched, Writing};
pub use bitmap::{Bitmaps, EditBitmap};
pub use check::{Check, Report, check};
pub use checksum::Checksum;
pub use cloud::{CLOUDS, Cloud, Must, Rule, cloud_named};
pub use commit::Commit;
pub use compare::Compare;
pub use convert::{Convert, Converted, now};
pub use create::{Create, Created};
pub use edit::Edited;
pub use filename::{ImageName, Part, protocol};
pub use goldsmith_block::{
    Ailment, BackingReference, BitmapInfo, Budget, Chain, ChainExtent, Change, Checked, Codec,
    Detail, Error, ErrorKind, Extent, ExtentKind, Flaw, Format, GuestRange, HostRange, Layer,
    LayerInfo, Limits, OptionKind, OptionSpec, Preallocation, Repair, Result, Snapshot, Step,
    Storage, Symptom, did_you_mean, parse_size,
};
pub use goldsmith_engine::{
    Algorithm, Cancel, CompareError, Comparison, Crc32, Digest, MOST_THREADS, Phase, Progress,
};
pub use goldsmith_storage::{Cache, scratch_directory};
pub use info::{ImageInfo, NamedFile, Role};
pub use lint::{Finding, lint, lint_info};
pub use map::{MapEntry, map, map_range};
pub use measure::{Measure, Measurement};
pub use open::{Opener, References};
pub use rebase::Rebase;
pub use registry::{FORMATS, format_named, probe};
pub use resize::{NewSize, Resize};
pub use salvage::Loss;
pub use snapshot::{SnapshotName, Snapshots};
pub use uuid::Uuid;

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
