//! What a RAW image cannot be.

use goldsmith_block::Error;

/// Why a RAW image cannot be made as asked. Reading one cannot break a rule, there is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawError {
    /// Compression was asked for.
    #[error("raw images cannot be compressed")]
    Compressed,
}

impl From<RawError> for Error {
    fn from(error: RawError) -> Self {
        Self::usage(error)
    }
}
