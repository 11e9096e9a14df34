//! A damaged disk, with zeros where it cannot be read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Chain, Error, ErrorKind, Extent, ExtentKind, GuestRange, Layer, LayerInfo, Result, SECTOR,
    Storage, align_down, align_up,
};

/// Losses that are kept one by one; of more, only the bytes are counted.
const LOSSES: usize = 1 << 14;

/// Bytes of a disk that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which bytes.
    pub range: GuestRange,
    /// Why, as far as the first of them goes.
    pub why: String,
}

/// What was lost so far.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By their first byte. They do not touch.
    losses: BTreeMap<u64, Loss>,
    bytes: u64,
}

impl Losses {
    /// All of them in their order, and how many bytes they are; some may be missing among more than
    /// can be kept.
    pub(crate) fn all(&self) -> (Vec<Loss>, u64) {
        let known = self.known();
        (known.losses.values().cloned().collect(), known.bytes)
    }

    /// Adds a loss; each byte is lost once.
    fn add(&self, range: GuestRange, error: &Error) {
        let mut known = self.known();
        known.bytes += range.len();
        let mut loss = Loss {
            range,
            why: error.report(),
        };
        let next = known.losses.remove(&range.end);
        if let Some(next) = next {
            loss.range.end = next.range.end;
        }
        if let Some((_, before)) = known.losses.range_mut(..range.start).next_back()
            && before.range.end == range.start
        {
            before.range.end = loss.range.end;
        } else if known.losses.len() < LOSSES {
            known.losses.insert(range.start, loss);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Counted or not: it is only told.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk that can be read all over: what another one cannot say is zeros here. Each byte is to be
/// read once, or it is counted as lost twice.
///
/// Where its bytes stand in which file it does not say, so that all of them are read.
pub(crate) struct Salvage {
    info: LayerInfo,
    disk: Chain,
    /// What the tables of the disk tell of as one, in bytes.
    unit: u64,
    losses: Arc<Losses>,
}

impl Salvage {
    pub(crate) fn new(disk: Chain, losses: Arc<Losses>) -> Self {
        let top = disk.top().info();
        let info = LayerInfo {
            format: top.format,
            virtual_size: disk.virtual_size(),
            unit: top.unit,
            encrypted: top.encrypted,
            ..LayerInfo::default()
        };
        let unit = info.unit.map_or(SECTOR, |unit| unit.max(SECTOR));
        Self {
            info,
            unit,
            disk,
            losses,
        }
    }

    /// Fills `buf` from `offset`, and with zeros where that cannot be.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Err(error) = self.disk.read_at(offset, buf) else {
            return Ok(());
        };
        if !is_damage(&error) {
            return Err(error);
        }
        let end = offset + buf.len() as u64;
        // Where the tables do not even say what there is, no part of it can be read.
        if end - offset <= self.unit && self.disk.extent_at(offset, end).is_err() {
            buf.fill(0);
            self.losses.add(GuestRange::new(offset, end), &error);
            return Ok(());
        }
        // Half of it, in whole sectors of the disk: what is around the damage is read in few steps.
        let middle = align_down(offset + (end - offset) / 2, SECTOR);
        let middle = if middle > offset {
            middle
        } else {
            align_down(offset, SECTOR) + SECTOR
        };
        if middle >= end {
            buf.fill(0);
            self.losses.add(GuestRange::new(offset, end), &error);
            return Ok(());
        }
        // Inside the buffer.
        let (first, rest) = buf.split_at_mut((middle - offset) as usize);
        self.read(offset, first)?;
        self.read(middle, rest)
    }
}

/// Whether `error` is one of bytes that cannot be had, rather than of somebody who has to decide.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt)
}

impl Layer for Salvage {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.disk.top().storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let mut limit = limit;
        let found = loop {
            match self.disk.extent_at(offset, limit) {
                Ok(found) => break found.extent,
                Err(error) if !is_damage(&error) => return Err(error),
                Err(_) => {}
            }
            let unit = align_up(offset + 1, self.unit).unwrap_or(limit);
            if limit <= unit {
                // Whoever reads it will find out what of it can be had.
                break Extent {
                    range: GuestRange::new(offset, limit),
                    kind: ExtentKind::Data { host: None },
                };
            }
            // [qemu] Perhaps less of it can be told of.
            limit = unit.max(offset + (limit - offset) / 4);
        };
        let kind = match found.kind {
            kind if kind.is_data() => ExtentKind::Data { host: None },
            ExtentKind::Zero { allocated, .. } => ExtentKind::Zero {
                allocated,
                host: None,
            },
            kind => kind,
        };
        Ok(Extent { kind, ..found })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::{Budget, Format, Limits};
    use goldsmith_storage::MemoryStorage;
    use goldsmith_testkit::fault::FaultStorage;
    use goldsmith_testkit::pattern::disk;

    use super::*;

    /// A RAW disk of which only the first `len` bytes can be read.
    fn cut(picture: &str, len: u64) -> (Vec<u8>, Salvage, Arc<Losses>) {
        let bytes = disk(picture).bytes().to_vec();
        let whole = Arc::new(MemoryStorage::holding("disk", bytes.clone()));
        let storage = Arc::new(FaultStorage::shrunk(whole, len));
        let budget = Budget::new(&Limits::default());
        let layer = goldsmith_raw::RAW.open(storage, &budget).unwrap();
        let losses = Arc::new(Losses::default());
        let salvage = Salvage::new(Chain::new(layer, []), Arc::clone(&losses));
        (bytes, salvage, losses)
    }

    #[test]
    fn only_sectors_that_cannot_be_read_are_lost() {
        for (len, lost) in [
            (10_000, 9728..40_000),
            (9728, 9728..40_000),
            (39_999, 39_936..40_000),
            (0, 0..40_000),
        ] {
            let (mut bytes, salvage, losses) = cut("40000:a", len);
            let mut buf = vec![0xEE; bytes.len()];
            // As the engine does: a claim at a time, in any order.
            let (first, rest) = buf.split_at_mut(16_384);
            salvage.read_at(16_384, rest).unwrap();
            salvage.read_at(0, first).unwrap();
            bytes[lost.start..lost.end].fill(0);
            assert!(buf == bytes);
            let (found, count) = losses.all();
            assert_eq!(count, (lost.end - lost.start) as u64);
            let [Loss { range, why }] = &found[..] else {
                panic!("{found:?}");
            };
            let expected = GuestRange::new(lost.start as u64, lost.end as u64);
            assert_eq!(*range, expected);
            assert!(why.contains("past the end"), "{why}");
        }
    }

    #[test]
    fn sound_disk_loses_nothing() {
        let (bytes, salvage, losses) = cut("64k:a 64k:- 700:B", 1 << 20);
        let mut buf = vec![0xEE; bytes.len()];
        salvage.read_at(0, &mut buf).unwrap();
        assert!(buf == bytes);
        assert_eq!(losses.all(), (vec![], 0));
    }

    #[test]
    fn neighbours_are_one_loss_whoever_finds_them_first() {
        let losses = Losses::default();
        let error = Error::corrupt("broken");
        for (start, end) in [
            (0, 512),
            (1024, 1536),
            (512, 1024),
            (4096, 4608),
            (3584, 4096),
        ] {
            losses.add(GuestRange::new(start, end), &error);
        }
        let (found, bytes) = losses.all();
        let ranges: Vec<_> = found
            .iter()
            .map(|loss| (loss.range.start, loss.range.end))
            .collect();
        assert_eq!((ranges, bytes), (vec![(0, 1536), (3584, 4608)], 2560));
    }
}
