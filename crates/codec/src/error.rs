//! What can go wrong with one unit.

use goldsmith_block::{Error, ErrorKind};

/// Why a unit could not be unpacked or packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes are no deflate stream. [RFC 1951]
    #[error("the packed data is not valid deflate data")]
    Deflate,
    /// The bytes are no Zstandard frames. [RFC 8878]
    #[error("the packed data is not valid zstd data: {reason}")]
    Zstd {
        /// The library's words.
        reason: &'static str,
    },
    /// A Zstandard frame asks for a larger window than a unit can need.
    #[error("the packed zstd data needs a window of more than {limit} bytes")]
    Window {
        /// The largest window allowed, in bytes.
        limit: u64,
    },
    /// The packed data ends before the unit is full.
    #[error("the packed data gives only {found} of the unit's {unit} bytes")]
    Short {
        /// Bytes unpacked.
        found: usize,
        /// Bytes in the unit.
        unit: usize,
    },
    /// A Zstandard frame goes on after the unit is full.
    #[error("the packed data goes on after the unit's {unit} bytes")]
    Long {
        /// Bytes in the unit.
        unit: usize,
    },
    /// The codec itself failed.
    #[error("the {codec} library failed: {reason}")]
    Library {
        /// Which one.
        codec: &'static str,
        /// Its words.
        reason: &'static str,
    },
}

impl From<CodecError> for Error {
    fn from(error: CodecError) -> Self {
        let kind = match error {
            CodecError::Library { .. } => ErrorKind::Bug,
            CodecError::Window { .. } => ErrorKind::Limit,
            _ => ErrorKind::Corrupt,
        };
        Self::new(kind, error)
    }
}
