//! Where image bytes live: files, devices, memory.
//!
//! ```text
//!  FileStorage::open ──► Storage      a file or block device, read only
//!  FileStorage::edit ──► StorageMut   the same, in place
//!      ..._beneath ────►              a file that a stranger names
//!  Target::create ─────► StorageMut   a file without a name yet ──► publish: it has its name
//!  MemoryStorage ──────► StorageMut   a buffer
//!  MmapStorage ────────► Storage      a mapped file, opt-in and unsafe
//!  Rehearsal ──────────► StorageMut   any of them as it would be, which is only read
//!  Unfinished ─────────► StorageMut   a part of a new file that somebody goes on with
//!  Window ─────────────► the same     a part of any of them
//!  VoidStorage ────────► StorageMut   nothing but a length
//! ```
//!
//! All I/O is positioned: no storage has a cursor, and all can be used from many threads.
//!
//! ```
//! use goldsmith_block::Storage;
//! use goldsmith_storage::{FileStorage, Target};
//!
//! # let directory = tempfile::tempdir().expect("a directory for the example");
//! # let path = directory.path().join("disk.raw");
//! let target = Target::create(&path)?;
//! target.storage().write_at(0, b"golden")?;
//! assert!(!path.exists(), "nobody sees half an image");
//! target.publish()?;
//!
//! let mut bytes = [0; 6];
//! FileStorage::open(&path)?.read_at(0, &mut bytes)?;
//! assert_eq!(&bytes, b"golden");
//! # Ok::<(), goldsmith_block::Error>(())
//! ```
//!
//! Not here: storages that are no files (HTTP, NBD).
//! Holes, fast zeroing and direct I/O are known on Linux; elsewhere everything is data, zeros are
//! written, and all goes through the system's cache.
#![deny(unsafe_code)]

mod beneath;
mod cache;
mod clock;
mod device;
mod direct;
mod error;
mod file;
mod lock;
mod memory;
mod mmap;
mod rehearsal;
mod sys;
mod target;
mod unfinished;
mod void;
mod window;

pub use cache::Cache;
pub use clock::thread_time;
pub use device::share_bytes;
pub use direct::is_direct;
pub use file::{FileStorage, scratch_directory};
pub use lock::{Use, lock};
pub use memory::MemoryStorage;
pub use mmap::MmapStorage;
pub use rehearsal::Rehearsal;
pub use target::{Target, follow};
pub use unfinished::Unfinished;
pub use void::VoidStorage;
pub use window::Window;
