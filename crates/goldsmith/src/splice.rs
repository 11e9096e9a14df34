//! Disks, or parts of them, one behind the other as one disk.

use std::sync::Arc;

use goldsmith_block::{
    Chain, Error, Extent, ExtentKind, GuestRange, Layer, LayerInfo, Result, SECTOR, Storage,
    align_up,
};

/// One disk made of several, read only.
///
/// Where its bytes stand in which file it does not say: all of them are read. Holes stay holes.
pub(crate) struct Splice {
    info: LayerInfo,
    /// Those with bytes, in their order.
    pieces: Vec<Piece>,
    storage: Arc<dyn Storage>,
}

struct Piece {
    /// Where it stands on the disk.
    range: GuestRange,
    /// The byte of its own disk that stands first.
    first: u64,
    disk: Chain,
}

impl Splice {
    /// The whole of each of `disks`. [qemu] Each but the last ends with a whole sector.
    ///
    /// # Errors
    /// `Usage` if there is none, or if they are longer together than a disk can be.
    pub(crate) fn join(disks: &[Chain]) -> Result<Self> {
        let last = disks.len().saturating_sub(1);
        let lens = disks.iter().enumerate().map(|(index, disk)| match index {
            index if index == last => Some(disk.virtual_size()),
            _ => align_up(disk.virtual_size(), SECTOR),
        });
        let mut pieces = Vec::new();
        let mut end = 0_u64;
        for (disk, len) in disks.iter().zip(lens) {
            let start = end;
            let sum = len.and_then(|len| start.checked_add(len));
            end = sum
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| Error::usage("the disks are longer together than a disk can be"))?;
            pieces.push(Piece {
                range: GuestRange::new(start, end),
                first: 0,
                disk: disk.clone(),
            });
        }
        Self::new(pieces, end)
    }

    /// The bytes `part` of `disk`, inside which they lie.
    pub(crate) fn cut(disk: &Chain, part: GuestRange) -> Result<Self> {
        let piece = Piece {
            range: GuestRange::new(0, part.len()),
            first: part.start,
            disk: disk.clone(),
        };
        Self::new(vec![piece], part.len())
    }

    fn new(mut pieces: Vec<Piece>, virtual_size: u64) -> Result<Self> {
        let Some(first) = pieces.first() else {
            return Err(Error::usage("there is no disk to read"));
        };
        let top = first.disk.top();
        let layers = pieces.iter().flat_map(|piece| piece.disk.layers());
        let info = LayerInfo {
            format: top.info().format,
            virtual_size,
            unit: layers.filter_map(|layer| layer.info().unit).max(),
            encrypted: top.info().encrypted,
            ..LayerInfo::default()
        };
        let storage = Arc::clone(top.storage());
        pieces.retain(|piece| !piece.range.is_empty());
        Ok(Self {
            info,
            pieces,
            storage,
        })
    }

    /// The piece that byte `at` of the disk is in.
    fn piece_at(&self, at: u64) -> &Piece {
        let after = self.pieces.partition_point(|piece| piece.range.end <= at);
        // Callers stay on the disk, which the pieces cover.
        &self.pieces[after]
    }
}

impl Piece {
    /// What stands from byte `at` of the disk, up to `limit`, as far as this piece goes.
    fn extent_at(&self, at: u64, limit: u64) -> Result<Extent> {
        let limit = limit.min(self.range.end);
        // `start + distance` is the byte of the disk that stands at `distance` here.
        let distance = at - self.range.start;
        let own = self.first + distance;
        let size = self.disk.virtual_size();
        let hole = ExtentKind::Zero {
            allocated: false,
            host: None,
        };
        if own >= size {
            let range = GuestRange::new(at, limit);
            return Ok(Extent { range, kind: hole });
        }
        let found = self
            .disk
            .extent_at(own, size.min(own + (limit - at)))?
            .extent;
        let kind = match found.kind {
            kind if kind.is_data() => ExtentKind::Data { host: None },
            ExtentKind::Hole { .. } => ExtentKind::Zero {
                allocated: true,
                host: None,
            },
            ExtentKind::Zero { allocated, .. } => ExtentKind::Zero {
                allocated,
                host: None,
            },
            _ => hole,
        };
        let range = GuestRange::new(at, at + found.range.len());
        Ok(Extent { range, kind })
    }
}

impl Layer for Splice {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.piece_at(offset).extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.piece_at(at);
            let own = piece.first + (at - piece.range.start);
            let len = (piece.range.end - at).min(rest.len() as u64);
            // At most what is left of the buffer.
            let (part, behind) = rest.split_at_mut(len as usize);
            let held = piece.disk.virtual_size().saturating_sub(own).min(len);
            let (inside, beyond) = part.split_at_mut(held as usize);
            piece.disk.read_at(own, inside)?;
            beyond.fill(0);
            at += len;
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_testkit::model::ModelLayer;
    use goldsmith_testkit::pattern::disk;

    use super::*;

    fn chain(picture: &str) -> Chain {
        Chain::new(Arc::new(ModelLayer::new(disk(picture))), [])
    }

    /// All bytes, and what the extents say: length and whether it is data.
    fn seen(splice: Splice) -> (Vec<u8>, Vec<(u64, bool)>) {
        let chain = Chain::new(Arc::new(splice), []);
        let mut bytes = vec![0xEE; chain.virtual_size() as usize];
        chain.read_at(0, &mut bytes).unwrap();
        let extents = chain.extents().map(|found| {
            let extent = found.unwrap().extent;
            (extent.range.len(), extent.kind.is_data())
        });
        (bytes, extents.collect())
    }

    #[test]
    fn disks_stand_behind_each_other_with_their_holes() {
        let parts = ["1k:A 1k:-", "", "512:B 100:b", "3k:-", "700:C"];
        let (bytes, extents) = seen(Splice::join(&parts.map(chain)).unwrap());
        let mut whole = Vec::new();
        for part in parts {
            whole.resize(whole.len().next_multiple_of(512), 0);
            whole.extend(disk(part).bytes());
        }
        assert!(bytes == whole);
        let holes: u64 = extents.iter().filter(|it| !it.1).map(|it| it.0).sum();
        assert_eq!(holes, 1024 + 412 + 3072);
    }

    #[test]
    fn part_of_a_disk_begins_and_ends_anywhere() {
        let whole = disk("1k:A 1k:- 1k:B");
        let part = GuestRange::new(700, 2500);
        let (bytes, extents) = seen(Splice::cut(&chain("1k:A 1k:- 1k:B"), part).unwrap());
        assert!(bytes == whole.bytes()[700..2500]);
        assert_eq!(extents, [(324, true), (1024, false), (452, true)]);
        let (bytes, _) = seen(Splice::cut(&chain("1k:A"), GuestRange::new(1024, 1024)).unwrap());
        assert!(bytes.is_empty());
    }

    #[test]
    fn nothing_cannot_be_joined() {
        assert!(Splice::join(&[]).is_err());
    }
}
