//! Packed units, as they go into the target.

use std::ops::Range;

use goldsmith_block::{Chain, ExtentKind, GuestRange, Packing, Result, align_up};
use goldsmith_codec::{CodecError, Packer, Unpacker};

use crate::layout::Piece;

/// The packed units of one claim; memory that is used again for the next.
///
/// What the source has packed in the same way, unit by unit, is not packed again: to see its bytes
/// takes less than half the time that packing them takes.
pub(crate) struct Packed {
    packing: Packing,
    packer: Packer,
    unpacker: Unpacker,
    /// Packed units, one after the other.
    bytes: Vec<u8>,
    /// Those that the source has packed: where they start on the disk, and where they stand in
    /// `source`; ascending.
    found: Vec<(u64, Range<usize>)>,
    /// Packed units of the source, one after the other.
    source: Vec<u8>,
}

impl Packed {
    pub(crate) fn new(packing: Packing) -> Self {
        Self {
            packing,
            packer: Packer::new(packing.codec),
            unpacker: Unpacker::new(),
            bytes: Vec::new(),
            found: Vec::new(),
            source: Vec::new(),
        }
    }

    /// Forgets the last claim.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.found.clear();
        self.source.clear();
    }

    /// Fills `buf` with the bytes of `piece`.
    pub(crate) fn read(&mut self, chain: &Chain, piece: &Piece, buf: &mut [u8]) -> Result<()> {
        let Piece { depth, range, .. } = *piece;
        let unit = self.packing.unit;
        // A claim fits in memory, and so do all distances in it.
        let place = |from: u64, to: u64| (from - range.start) as usize..(to - range.start) as usize;
        let mut rest = range.start;
        // The first start of a unit may lie behind the last byte there is.
        let mut start = align_up(range.start, unit).unwrap_or(range.end);
        while range.end.saturating_sub(start) >= unit {
            let end = start + unit;
            if self.find(chain, depth, start, &mut buf[place(start, end)]) {
                if rest < start {
                    chain.read_layer(depth, rest, &mut buf[place(rest, start)])?;
                }
                rest = end;
            }
            start = end;
        }
        match rest < range.end {
            true => chain.read_layer(depth, rest, &mut buf[place(rest, range.end)]),
            false => Ok(()),
        }
    }

    /// Fills `buf` with the unit of the layer at `depth` that starts at `start`, and keeps its packed
    /// form, if the source has it as the target wants it.
    ///
    /// False if it must be read like any other, also where there is something wrong: the layer
    /// knows better what.
    fn find(&mut self, chain: &Chain, depth: usize, start: u64, buf: &mut [u8]) -> bool {
        let unit = GuestRange::new(start, start + buf.len() as u64);
        let layer = &chain.layers()[depth];
        if unit.len() != self.packing.unit || unit.end > layer.info().virtual_size {
            return false;
        }
        let Ok(extent) = layer.extent_at(unit.start, unit.end) else {
            return false;
        };
        let host = match extent.kind {
            ExtentKind::Compressed {
                unit: found,
                host,
                codec,
            } if found == unit && codec == self.packing.codec => host,
            _ => return false,
        };
        let at = self.source.len();
        // More than a unit would not be used, and a byte more is enough to see that it is more.
        let len = host.len.min(self.packing.unit);
        self.source.resize(at + len as usize, 0);
        let packed = &mut self.source[at..];
        let read = layer.data_storage().read_at(host.offset, packed);
        let unpacker = &mut self.unpacker;
        let end = match read.map(|()| unpacker.unpack_measured(self.packing.codec, packed, buf)) {
            Ok(Ok(Some(len))) if (len as u64) < self.packing.unit => at + len,
            _ => at,
        };
        self.source.truncate(end);
        if at < end {
            self.found.push((start, at..end));
        }
        at < end
    }

    /// Adds the packed form of `unit`, the bytes from `start`, and says its length; `None` if it has
    /// none that is shorter.
    pub(crate) fn add(&mut self, start: u64, unit: &[u8]) -> Result<Option<u64>, CodecError> {
        let found = self.found.binary_search_by_key(&start, |(start, _)| *start);
        if let Ok(index) = found {
            let (_, range) = self.found[index].clone();
            self.bytes.extend_from_slice(&self.source[range.clone()]);
            return Ok(Some(range.len() as u64));
        }
        let len = self.packer.pack(unit, &mut self.bytes)?;
        Ok(len.map(|len| len as u64))
    }

    /// All that was added, in that order.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
