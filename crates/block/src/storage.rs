//! Where bytes live, as formats see it.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, ErrorKind, HostRange, Result};

/// Bytes that can be read at any offset: a file, a device, a buffer.
///
/// Safe to use from many threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The name that people know this storage by, usually its path. For messages only.
    fn name(&self) -> &str;

    /// What this storage is, whatever it is called; two storages with one identity share bytes.
    fn id(&self) -> StorageId;

    /// Length in bytes when it was opened, or as last changed through this object.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes from `offset`.
    ///
    /// # Errors
    /// `Io` if a read fails or the bytes end before `buf` is full; nothing can be said of `buf` then.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The open file whose bytes these are, offset by offset; `None` if there is no such file.
    ///
    /// For moving bytes from file to file inside the kernel, never for reading or writing.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Where in what has the [`id`](Self::id) these bytes begin: at 0, unless they are a part of it.
    fn offset(&self) -> u64 {
        0
    }

    /// As [`file`](Self::file), or the open block device: what other processes are told by locks about.
    fn lockable(&self) -> Option<&File> {
        self.file()
    }

    /// Whether the bytes from `offset` are known to be zeros without reading them, and how far
    /// that answer holds, at most up to `limit`.
    ///
    /// `offset < limit <= len()`. The span holds at least one byte. A storage that cannot know
    /// answers "data" for the whole range, which is what the provided method does.
    ///
    /// # Errors
    /// `Io` if the file system refuses to answer.
    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        Ok(Span {
            len: limit - offset,
            hole: false,
        })
    }
}

/// Bytes that can also be changed.
pub trait StorageMut: Storage {
    /// Writes all of `data` at `offset`, growing the storage where it can grow.
    ///
    /// # Errors
    /// `Io` if the write fails, the file system is full or a device ends before `data` does; any
    /// part of `data` may then have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes the storage `len` bytes long; bytes that this adds read as zeros.
    ///
    /// On a storage of [fixed length](Self::fixed_len) it checks only that `len` fits.
    ///
    /// # Errors
    /// `Io` if the file system refuses; `Usage` if a device is too small.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Makes `range`, which must lie below `len()`, read as zeros, in the cheapest way that keeps
    /// the promise of `zeroing`.
    ///
    /// # Errors
    /// `Io` if it can be done in no way, not even by writing zeros.
    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()>;

    /// The best way in which bytes of `source` come here without passing through this process:
    /// tried, not guessed.
    fn best_transfer(&self, source: &dyn Storage) -> Option<Transfer> {
        let _ = source;
        None
    }

    /// Makes the bytes at `to` those that `from` has in `source`, growing this storage where needed.
    ///
    /// False if that cannot be, for whatever reason; part of it may have been done then. Whoever
    /// reads and writes the bytes instead will learn the reason if it matters.
    fn transfer(&self, source: &dyn Storage, from: HostRange, to: u64, transfer: Transfer) -> bool {
        let _ = (source, from, to, transfer);
        false
    }

    /// Returns when everything written so far would survive a power cut.
    ///
    /// # Errors
    /// `Io` if any earlier write was lost; the content is then unknown.
    fn flush(&self) -> Result<()>;

    /// Says whether what is done here from now on `may` be stopped by what somebody else asks for: at first it
    /// may, and from where a change must be done to its end it may not. Nothing by default.
    fn may_stop(&self, may: bool) {
        let _ = may;
    }

    /// The length that cannot be changed, for a device; `None` for what grows.
    fn fixed_len(&self) -> Option<u64>;

    /// Whether every byte that was not written through this object reads as zero.
    ///
    /// True for a file that this program has just created, false for a device or an old file.
    fn is_blank(&self) -> bool;
}

/// How bytes come from one file into another inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Both files own the same blocks, or lack them; a later write to one leaves the other as it
    /// is.
    Share,
    /// Both files lie on a server that can copy, so that the bytes need not come here and go back;
    /// otherwise as [`Copy`](Self::Copy).
    Remote,
    /// The kernel copies, or shares if it can; holes may become zeros that take space.
    Copy,
}

/// What [`Storage::span_at`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// How many bytes from the offset asked for share the answer; at least one.
    pub len: u64,
    /// Whether they are a hole, that is, zeros that take no space.
    pub hole: bool,
}

/// What becomes of the space behind zeroed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Give it back if possible.
    Punch,
    /// Keep it, so that a later write cannot run out of space.
    Keep,
}

/// Whether both are the same bytes, opened twice.
pub fn is_same_bytes(a: &dyn Storage, b: &dyn Storage) -> bool {
    (a.id(), a.offset(), a.len()) == (b.id(), b.offset(), b.len())
}

/// The identity of a storage, for finding cycles and targets that are also sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageId {
    /// A file: the number of its file system and its inode.
    File {
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        ino: u64,
    },
    /// A block device, whichever node names it: `st_rdev`.
    Device(u64),
    /// Something that nothing else can be.
    Unique(u64),
}

impl StorageId {
    /// An identity that no other storage of this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self::Unique(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The error for a read of `range` in a storage that holds `len` bytes.
///
/// Formats check offsets before they read, so this means a bug of theirs or a file that became
/// shorter since it was opened.
pub fn end_of_storage(range: HostRange, len: u64) -> Error {
    let text = format!("bytes {range} are past the end of the file ({len} bytes)");
    Error::new(
        ErrorKind::Io,
        std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text),
    )
}
