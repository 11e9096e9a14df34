//! What a RAW image cannot be.

use goldsmith_block::{Error, ErrorKind};

/// Why a RAW image cannot be made as asked. Reading one cannot break a rule, there is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawError {
    /// Compression was asked for.
    #[error("Compression not supported for this file format (raw)")]
    Compressed,
    /// A raw image has no tables in which units could have a place.
    #[error("Unsupported preallocation mode: metadata (raw images have off, falloc and full)")]
    Metadata,
    /// Longer than any disk of QEMU's.
    #[error("a raw disk has at most {most} bytes, not {len}", most = crate::DISK_BYTES)]
    TooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// A device is as large as it is.
    #[error("Cannot resize device files: the device holds {device} bytes, not {len}")]
    Device {
        /// What the device holds, in bytes.
        device: u64,
        /// What was asked for, in bytes.
        len: u64,
    },
    /// A raw image has nowhere to keep it.
    #[error("raw images have no {what}")]
    Nowhere {
        /// What was to be changed.
        what: &'static str,
    },
}

impl From<RawError> for Error {
    fn from(error: RawError) -> Self {
        match error {
            RawError::Nowhere { .. } => Self::unsupported(error),
            RawError::TooLong { .. } => Self::new(ErrorKind::Limit, error),
            _ => Self::usage(error),
        }
    }
}
