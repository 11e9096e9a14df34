//! What can go wrong with a file, in words that stand behind its name.

use std::io;

use goldsmith_block::{Error, ErrorKind, HostRange, end_of_storage};

/// A failure of the machine, or a request that its files cannot meet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error("cannot open")]
    Open { source: io::Error },
    #[error("cannot read {len} bytes at offset {offset:#x}")]
    Read {
        offset: u64,
        len: u64,
        source: io::Error,
    },
    #[error("cannot write {len} bytes at offset {offset:#x}")]
    Write {
        offset: u64,
        len: u64,
        source: io::Error,
    },
    #[error("cannot write {len} bytes at offset {offset:#x}: the device holds {device} bytes")]
    PastDevice { offset: u64, len: u64, device: u64 },
    #[error("cannot zero bytes {range}")]
    Zero { range: HostRange, source: io::Error },
    #[error("cannot set the length to {len} bytes")]
    SetLen { len: u64, source: io::Error },
    #[error("cannot write to disk what was written so far")]
    Flush { source: io::Error },
    #[error("cannot map {len} bytes into memory")]
    Map { len: u64, source: io::Error },
    #[error("cannot create a file in its directory")]
    Create { source: io::Error },
    #[error("cannot replace it by the finished file")]
    Publish { source: io::Error },
    #[error(
        "cannot replace it: it is another user's, and in its directory only owners replace files (it has the \
         sticky bit)"
    )]
    Sticky,
    #[error("another file has taken its name since this one was begun")]
    Taken,
    #[error("cannot write its directory to disk")]
    FlushDirectory { source: io::Error },
    #[error("is {what}; only files and block devices hold images")]
    NotBytes { what: &'static str },
    #[error(
        "is a file that a process has open, which only its own name can have replaced; name the file itself"
    )]
    OfProcess,
    /// Said of a file that a stranger names.
    #[error("{how}")]
    Refused { how: &'static str },
    #[error("the device is read-only")]
    ReadOnly,
    #[error("the device holds {device} bytes; {need} are needed")]
    DeviceTooSmall { device: u64, need: u64 },
    #[error("the part of the file holds {window} bytes; {need} are needed")]
    WindowTooSmall { window: u64, need: u64 },
    #[error(
        "the part of the file is full: it holds {window} bytes, and bytes {range} were to be written"
    )]
    WindowFull { window: u64, range: HostRange },
    #[error("bytes {range} are not inside the {len} bytes to look at")]
    Outside { range: HostRange, len: u64 },
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        use StorageError as E;
        let kind = match error {
            E::NotBytes { .. }
            | E::OfProcess
            | E::DeviceTooSmall { .. }
            | E::WindowTooSmall { .. }
            | E::Outside { .. } => ErrorKind::Usage,
            E::Refused { .. } => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error)
    }
}

/// The error for `len` bytes from `offset` of the storage `name`, which holds `held` bytes.
pub(crate) fn past_end(name: &str, offset: u64, len: u64, held: u64) -> Error {
    // No storage reaches 2^64, so a range that is cut there says as much.
    let range = HostRange::new(offset, len.min(u64::MAX - offset));
    end_of_storage(range, held).in_file(name)
}
