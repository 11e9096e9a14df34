//! Bare deflate streams.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use libdeflater::{DecompressionError, Decompressor};

use crate::CodecError;

/// Base-2 logarithm of the farthest match: QEMU inflates with `inflateInit2(-12)`. [qemu]
const WINDOW_BITS: u8 = 12;

/// The only level at which zlib-rs looks for matches of three bytes, as zlib does at all levels.
/// [ours]
///
/// In units of 64 KiB with this window, zlib at its level 6 (which is QEMU's) packs an executable
/// of 6.8 MB to 2.79 MB at 26 MB/s; zlib-rs packs it to 2.78 MB at 26 to 30 MB/s at level 9, and
/// to 2.96 MB at 52 to 62 MB/s at level 6.
const LEVEL: u32 = 9;

/// Two inflaters: libdeflate is two to three times as fast, but it answers only for a stream that
/// ends exactly with the unit.
pub(crate) struct Unpacker {
    whole: Decompressor,
    prefix: Option<Decompress>,
}

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self {
            whole: Decompressor::new(),
            prefix: None,
        }
    }

    pub(crate) fn unpack(&mut self, packed: &[u8], unit: &mut [u8]) -> Result<(), CodecError> {
        match self.whole.deflate_decompress(packed, unit) {
            Ok(found) => full(found, unit),
            // Perhaps more than a unit, perhaps a good prefix with rubbish or nothing behind it:
            // QEMU stops looking when the unit is full. [qemu]
            Err(DecompressionError::InsufficientSpace | DecompressionError::BadData) => {
                self.unpack_prefix(packed, unit)
            }
        }
    }

    fn unpack_prefix(&mut self, packed: &[u8], unit: &mut [u8]) -> Result<(), CodecError> {
        // The full window: QEMU's limit of 12 bits binds no stream that it inflates in one call.
        let inflate = self.prefix.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        match inflate.decompress(packed, unit, FlushDecompress::Finish) {
            // At most `unit.len()`, so it fits.
            Ok(_) => full(inflate.total_out() as usize, unit),
            Err(_) => Err(CodecError::Deflate),
        }
    }
}

fn full(found: usize, unit: &[u8]) -> Result<(), CodecError> {
    let unit = unit.len();
    if found < unit {
        return Err(CodecError::Short { found, unit });
    }
    Ok(())
}

const REFUSED: CodecError = CodecError::Library {
    codec: "deflate",
    reason: "it refuses to pack",
};

pub(crate) struct Packer(Compress);

impl Packer {
    pub(crate) fn new() -> Self {
        let level = Compression::new(LEVEL);
        Self(Compress::new_with_window_bits(level, false, WINDOW_BITS))
    }

    /// Packs `unit` into the front of `room`; `None` if it does not fit.
    pub(crate) fn pack(
        &mut self,
        unit: &[u8],
        room: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        self.0.reset();
        match self.0.compress(unit, room, FlushCompress::Finish) {
            // At most `room.len()`, so it fits.
            Ok(Status::StreamEnd) => Ok(Some(self.0.total_out() as usize)),
            Ok(Status::Ok | Status::BufError) => self.drain(unit).map(|()| None),
            Err(_) => Err(REFUSED),
        }
    }

    /// Lets a stream that did not fit come to its end.
    ///
    /// zlib-rs forgets to rewind its output buffer when a stream is reset that still has bytes in
    /// it, and panics when the buffer has crept to its end. Little of the unit is left by now.
    fn drain(&mut self, unit: &[u8]) -> Result<(), CodecError> {
        let mut rest = [0; 4096];
        loop {
            // At most `unit.len()`, so it fits.
            let left = &unit[self.0.total_in() as usize..];
            match self.0.compress(left, &mut rest, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => return Ok(()),
                Ok(Status::Ok | Status::BufError) => {}
                Err(_) => return Err(REFUSED),
            }
        }
    }
}
