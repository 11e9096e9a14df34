//! One compressed unit in, one unit out.
//!
//! A qcow2 cluster, a VMDK grain: formats that pack their data pack it unit by unit, so that each
//! can be read alone. This crate packs and unpacks one of them.
//!
//! ```text
//! unit (say 64 KiB) ─► Packer ─► shorter bytes, or None: store the unit as it is
//! packed bytes ─► Unpacker ─► exactly one unit, or a CodecError
//! ```
//!
//! The contexts are large and slow to set up. A thread keeps one, or several threads share a
//! [`Pool`] of them.
//!
//! ```
//! use goldsmith_block::Codec;
//! use goldsmith_codec::{Packer, Unpacker};
//!
//! let unit = b"gold ".repeat(100);
//! let mut packed = Vec::new();
//! let len = Packer::new(Codec::Deflate).pack(&unit, &mut packed)?;
//! assert!(len.is_some_and(|len| len == packed.len() && len < 50));
//!
//! let mut again = vec![0; unit.len()];
//! Unpacker::new().unpack(Codec::Deflate, &packed, &mut again)?;
//! assert_eq!(again, unit);
//! # Ok::<(), goldsmith_codec::CodecError>(())
//! ```
//!
//! Not here: packed data that is no independent unit (streams, dictionaries, checksummed
//! containers such as gzip).
#![forbid(unsafe_code)]

mod deflate;
mod error;
mod scratch;
mod zstd;

use goldsmith_block::Codec;

pub use error::CodecError;
pub use scratch::{Pool, Pooled};

/// Turns packed bytes back into units, whatever their codec. Memory for a codec is taken when it
/// first occurs.
#[derive(Default)]
pub struct Unpacker {
    deflate: Option<deflate::Unpacker>,
    zstd: Option<zstd::Unpacker>,
}

impl Unpacker {
    /// An unpacker that has not seen anything yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills `unit` from the front of `packed`; what follows there is ignored, because formats
    /// keep only an upper bound of the packed length.
    ///
    /// Zstandard data may be several frames. A deflate stream that goes on after the unit is full
    /// is cut there. Both as QEMU does it.
    ///
    /// # Errors
    /// If `packed` breaks the codec's rules or ends before the unit is full; nothing can be said
    /// of `unit` then. The unpacker stays usable.
    ///
    /// # Cost
    /// No allocation after the first unit of a codec, save one window of at most 8 MiB.
    pub fn unpack(
        &mut self,
        codec: Codec,
        packed: &[u8],
        unit: &mut [u8],
    ) -> Result<(), CodecError> {
        match codec {
            Codec::Deflate => self
                .deflate
                .get_or_insert_with(deflate::Unpacker::new)
                .unpack(packed, unit),
            Codec::Zstd => self.unpack_zstd(packed, unit).map(drop),
        }
    }

    /// Does the same and says how long the packed form is, for who wants to keep it; `None` if it
    /// does not end with the unit.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    ///
    /// # Cost
    /// Deflate: twice the time of `unpack`.
    pub fn unpack_measured(
        &mut self,
        codec: Codec,
        packed: &[u8],
        unit: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        match codec {
            Codec::Deflate => self
                .deflate
                .get_or_insert_with(deflate::Unpacker::new)
                .unpack_prefix(packed, unit),
            Codec::Zstd => self.unpack_zstd(packed, unit).map(Some),
        }
    }

    fn unpack_zstd(&mut self, packed: &[u8], unit: &mut [u8]) -> Result<usize, CodecError> {
        let unpacker = match &mut self.zstd {
            Some(unpacker) => unpacker,
            empty => empty.insert(zstd::Unpacker::new()?),
        };
        unpacker.unpack(packed, unit)
    }
}

/// Packs units with one codec, as tightly as qemu-img does.
///
/// The same unit gives the same bytes, whatever was packed before.
pub struct Packer(Kind);

enum Kind {
    Deflate(Box<deflate::Packer>),
    Zstd(Option<zstd::Packer>),
}

impl Packer {
    /// A packer for `codec`.
    pub fn new(codec: Codec) -> Self {
        Self(match codec {
            Codec::Deflate => Kind::Deflate(Box::new(deflate::Packer::new())),
            Codec::Zstd => Kind::Zstd(None),
        })
    }

    /// Appends the packed form of `unit` to `out` and says its length, which is less than the
    /// unit's; appends nothing and answers `None` if there is no such form.
    ///
    /// Deflate matches reach back less than 4096 bytes, because QEMU and others unpack with a
    /// window of 12 bits.
    ///
    /// # Errors
    /// [`CodecError::Library`] if the codec fails, which no unit should make it do; `out` is as
    /// before then.
    ///
    /// # Cost
    /// No allocation but in `out`, after the first unit.
    pub fn pack(&mut self, unit: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, CodecError> {
        // Always the same room, never what `out` happens to have spare: zstd packs differently
        // when it has room for its worst case, and images must not depend on that.
        let Some(room) = unit.len().checked_sub(1).filter(|room| *room > 0) else {
            return Ok(None);
        };
        let start = out.len();
        out.resize(start + room, 0);
        let packed = match &mut self.0 {
            Kind::Deflate(packer) => Ok(packer.pack(unit, &mut out[start..])),
            Kind::Zstd(packer) => match packer {
                Some(packer) => packer.pack(unit, &mut out[start..]),
                empty => zstd::Packer::new()
                    .and_then(|packer| empty.insert(packer).pack(unit, &mut out[start..])),
            },
        };
        out.truncate(start + packed.as_ref().map_or(0, |len| len.unwrap_or(0)));
        packed
    }
}
