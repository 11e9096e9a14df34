//! What a range of the virtual disk holds.

use crate::{GuestRange, HostRange};

/// A range of guest bytes that share one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes meant.
    pub range: GuestRange,
    /// What they are.
    pub kind: ExtentKind,
}

/// The status of an [`Extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored as they are; `host` is where the first byte stands in the image file, if it does.
    Data {
        /// Byte offset of the extent's first byte in the image file.
        host: Option<u64>,
    },
    /// Stored packed, together with the rest of their unit.
    Compressed {
        /// The whole unit that was packed, of which the extent may be a part.
        unit: GuestRange,
        /// Where the packed bytes stand; `len` is an upper bound where the format keeps no exact one.
        host: HostRange,
        /// How they were packed.
        codec: Codec,
    },
    /// Stored as they are, but the file has a hole there: known to read as zeros.
    Hole {
        /// Byte offset of the extent's first byte in the image file.
        host: u64,
    },
    /// Known to read as zeros.
    Zero {
        /// Whether this layer says so of its own (false: it is what an empty disk reads as).
        allocated: bool,
        /// The space that is kept for the bytes, if any.
        host: Option<u64>,
    },
    /// This layer has nothing to say; the one behind it decides. Never returned by a
    /// [`Chain`](crate::Chain).
    Unallocated,
}

impl ExtentKind {
    /// Whether the bytes must be read to be known.
    pub const fn is_data(&self) -> bool {
        matches!(self, Self::Data { .. } | Self::Compressed { .. })
    }
}

/// How one unit of guest data is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A bare deflate stream, without the zlib header. [RFC 1951]
    Deflate,
    /// One or more Zstandard frames. [RFC 8878]
    Zstd,
}
