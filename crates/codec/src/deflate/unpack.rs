//! Units from streams.

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::{DecompressionError, Decompressor};

use crate::CodecError;

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
                self.unpack_prefix(packed, unit).map(drop)
            }
        }
    }

    /// Says where the stream ends, unless it goes on after the unit is full.
    pub(crate) fn unpack_prefix(
        &mut self,
        packed: &[u8],
        unit: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        // The full window: QEMU's limit of 12 bits binds no stream that it inflates in one call.
        let inflate = self.prefix.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        match inflate.decompress(packed, unit, FlushDecompress::Finish) {
            // At most the lengths of both, so they fit.
            Ok(status) => {
                full(inflate.total_out() as usize, unit)?;
                let len = inflate.total_in() as usize;
                Ok((status == Status::StreamEnd).then_some(len))
            }
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
