//! A damaged disk, with zeros where it cannot be read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Chain, ChainExtent, Error, ErrorKind, Extent, ExtentKind, GuestRange, Layer, LayerInfo, Result,
    SECTOR, Storage, align_down, middle_sector,
};

/// Losses that are told one by one; of more, only the bytes are.
const LOSSES: usize = 1 << 14;
/// Ranges that are remembered, so that what is lost again is not counted again. [ours] Some dozen MiB.
const RANGES: usize = 1 << 20;

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
    /// The end of each lost range by its first byte. They do not touch.
    ranges: BTreeMap<u64, u64>,
    /// Why, by the first byte of the range.
    reasons: BTreeMap<u64, String>,
    bytes: u64,
}

impl Losses {
    /// All of them in their order, and how many bytes they are; some may be missing among more than
    /// can be kept.
    pub(crate) fn all(&self) -> (Vec<Loss>, u64) {
        let known = self.known();
        let told = known.ranges.iter().filter_map(|(start, end)| {
            let why = known.reasons.get(start)?.clone();
            let range = GuestRange::new(*start, *end);
            Some(Loss { range, why })
        });
        (told.collect(), known.bytes)
    }

    /// Adds a loss. Whoever reads a byte again loses it again, which is one loss, as long as not more
    /// than [`RANGES`] of them lie apart.
    fn add(&self, range: GuestRange, why: String) {
        let mut known = self.known();
        let Known {
            ranges,
            reasons,
            bytes,
        } = &mut *known;
        let (mut whole, mut why, mut counted) = (range, Some(why), 0);
        // The last of those that touch it comes first.
        while let Some((&start, &end)) = ranges.range(..=range.end).next_back()
            && end >= range.start
        {
            counted += end.min(range.end) - start.max(range.start);
            ranges.remove(&start);
            let reason = reasons.remove(&start);
            if start <= whole.start {
                (whole.start, why) = (start, reason);
            }
            whole.end = whole.end.max(end);
        }
        *bytes += range.len() - counted;
        if ranges.len() < RANGES {
            ranges.insert(whole.start, whole.end);
            if let Some(why) = why.filter(|_| reasons.len() < LOSSES) {
                reasons.insert(whole.start, why);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Counted or not: it is only told.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk that can be read all over: what another one cannot say is zeros here.
///
/// Where its bytes stand in which file it does not say, so that all of them are read.
pub(crate) struct Salvage {
    info: LayerInfo,
    disk: Chain,
    /// Where the disk begins among those that are read behind each other, in bytes.
    start: u64,
    losses: Arc<Losses>,
    unpacked: Failures,
}

impl Salvage {
    pub(crate) fn new(disk: Chain, start: u64, losses: Arc<Losses>) -> Self {
        let top = disk.top().info();
        let units = disk.layers().iter().filter_map(|layer| layer.info().unit);
        let info = LayerInfo {
            format: top.format,
            virtual_size: disk.virtual_size(),
            unit: units.max(),
            encrypted: top.encrypted,
            ..LayerInfo::default()
        };
        Self {
            info,
            disk,
            start,
            losses,
            unpacked: Failures::default(),
        }
    }

    /// What there is from `offset`, up to `limit`; or what cannot be told of from there on, and why.
    fn tell(&self, offset: u64, limit: u64) -> Result<Result<ChainExtent, (GuestRange, Error)>> {
        let mut limit = limit;
        loop {
            let error = match self.disk.extent_at(offset, limit) {
                Err(error) if is_damage(&error) => error,
                found => return found.map(Ok),
            };
            let lost = error.guest().filter(|lost| lost.end > offset);
            let lost = lost.unwrap_or(GuestRange::new(offset, limit));
            // What stands before it can be told of, in whole sectors.
            let before = align_down(lost.start, SECTOR);
            if offset < before && before < limit {
                limit = before;
                continue;
            }
            let lost = GuestRange::new(offset, lost.end.min(limit));
            return Ok(Err((lost, error)));
        }
    }

    /// Fills `buf`, which stands at `offset`, with the data that the layer at `depth` has there, and with
    /// zeros where that cannot be read.
    fn read(&self, depth: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Err(error) = self.disk.read_layer(depth, offset, buf) else {
            return Ok(());
        };
        if !is_damage(&error) {
            return Err(error);
        }
        let end = offset + buf.len() as u64;
        let Some(middle) = middle_sector(offset, end) else {
            self.lose(offset, buf, error.report());
            return Ok(());
        };
        // Inside the buffer.
        let (first, rest) = buf.split_at_mut((middle - offset) as usize);
        self.read(depth, offset, first)?;
        self.read(depth, middle, rest)
    }

    /// The same for part of what is packed as one from `unit` on: no part of it unpacks alone.
    fn unpack(&self, depth: usize, unit: u64, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(why) = self.unpacked.find(depth, unit) {
            self.lose(offset, buf, why);
            return Ok(());
        }
        match self.disk.read_layer(depth, offset, buf) {
            Err(error) if is_damage(&error) => {
                let why = error.report();
                self.unpacked.keep(depth, unit, &why);
                self.lose(offset, buf, why);
                Ok(())
            }
            done => done,
        }
    }

    /// Makes zeros of `buf`, which stands at `offset` and cannot be read.
    fn lose(&self, offset: u64, buf: &mut [u8], why: String) {
        buf.fill(0);
        let start = self.start + offset;
        let range = GuestRange::new(start, start + buf.len() as u64);
        self.losses.add(range, why);
    }
}

/// Whether `error` is one of bytes that cannot be had, rather than of somebody who has to decide.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt)
}

/// Packed units that did not unpack: each is tried once, though pieces of it are asked for many times.
#[derive(Default)]
struct Failures(Mutex<BTreeMap<(usize, u64), String>>);

impl Failures {
    /// How many are kept. [ours] At a time some workers are in a unit of each layer; all are forgotten
    /// if there are more.
    const KEPT: usize = 1 << 12;

    /// Why the unit that begins at `unit` in the layer at `depth` did not unpack, if it did not.
    fn find(&self, depth: usize, unit: u64) -> Option<String> {
        self.lock().get(&(depth, unit)).cloned()
    }

    fn keep(&self, depth: usize, unit: u64, why: &str) {
        let mut failed = self.lock();
        if failed.len() >= Self::KEPT {
            failed.clear();
        }
        failed.insert((depth, unit), why.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(usize, u64), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for Salvage {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.disk.top().storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let data = ExtentKind::Data { host: None };
        let found = match self.tell(offset, limit)? {
            Ok(found) => found.extent,
            // Whoever reads it is given zeros.
            Err((range, _)) => return Ok(Extent { range, kind: data }),
        };
        let kind = match found.kind {
            kind if kind.is_data() => data,
            ExtentKind::Hole { .. } => ExtentKind::Zero {
                allocated: true,
                host: None,
            },
            ExtentKind::Zero { allocated, .. } => ExtentKind::Zero {
                allocated,
                host: None,
            },
            kind => kind,
        };
        Ok(Extent { kind, ..found })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let told = self.tell(at, end)?;
            let part_end = match &told {
                Ok(found) => found.extent.range.end,
                Err((lost, _)) => lost.end,
            };
            // Both ends lie in `buf`, so their distances from its start fit.
            let part = &mut buf[(at - offset) as usize..(part_end - offset) as usize];
            match told {
                Err((_, error)) => self.lose(at, part, error.report()),
                Ok(ChainExtent { extent, depth }) => match extent.kind {
                    ExtentKind::Compressed { unit, .. } => {
                        self.unpack(depth, unit.start, at, part)?;
                    }
                    kind if kind.is_data() => self.read(depth, at, part)?,
                    _ => part.fill(0),
                },
            }
            at = part_end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use goldsmith_block::{Budget, Codec, Format, HostRange, Limits};
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
        let salvage = Salvage::new(Chain::new(layer, []), 0, Arc::clone(&losses));
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

    /// A disk that is one packed unit, which does not unpack.
    struct Packed {
        info: LayerInfo,
        storage: Arc<dyn Storage>,
        tries: AtomicUsize,
    }

    impl Layer for Packed {
        fn info(&self) -> &LayerInfo {
            &self.info
        }

        fn storage(&self) -> &Arc<dyn Storage> {
            &self.storage
        }

        fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
            Ok(Extent {
                range: GuestRange::new(offset, limit),
                kind: ExtentKind::Compressed {
                    host: HostRange::new(0, 512),
                    codec: Codec::Deflate,
                    unit: GuestRange::new(0, self.info.virtual_size),
                },
            })
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
            self.tries.fetch_add(1, Ordering::Relaxed);
            Err(Error::corrupt("it does not unpack"))
        }
    }

    /// Whether all of it is asked for or, as by an image above it, pieces.
    #[test]
    fn packed_unit_that_does_not_unpack_is_tried_once() {
        const UNIT: usize = 2 << 20;
        for piece in [UNIT, 4096] {
            let packed = Arc::new(Packed {
                info: LayerInfo {
                    virtual_size: UNIT as u64,
                    unit: Some(UNIT as u64),
                    ..LayerInfo::default()
                },
                storage: Arc::new(MemoryStorage::new("disk")),
                tries: AtomicUsize::new(0),
            });
            let losses = Arc::new(Losses::default());
            let chain = Chain::new(Arc::clone(&packed) as _, []);
            let salvage = Salvage::new(chain, 0, Arc::clone(&losses));
            let mut buf = vec![0xEE; UNIT];
            for (index, buf) in buf.chunks_mut(piece).enumerate() {
                salvage.read_at((index * piece) as u64, buf).unwrap();
            }
            assert_eq!(packed.tries.load(Ordering::Relaxed), 1);
            assert!(buf.iter().all(|byte| *byte == 0));
            let (found, lost) = losses.all();
            assert_eq!((found.len(), lost), (1, UNIT as u64));
            assert!(found[0].why.ends_with("it does not unpack"), "{found:?}");
        }
    }

    #[test]
    fn neighbours_are_one_loss_whoever_finds_them_first() {
        let losses = Losses::default();
        for (start, end) in [
            (0, 512),
            (1024, 1536),
            (512, 1024),
            (4096, 4608),
            (3584, 4096),
        ] {
            losses.add(GuestRange::new(start, end), "broken".into());
        }
        let (found, bytes) = losses.all();
        let ranges: Vec<_> = found
            .iter()
            .map(|loss| (loss.range.start, loss.range.end))
            .collect();
        assert_eq!((ranges, bytes), (vec![(0, 1536), (3584, 4608)], 2560));
    }

    #[test]
    fn byte_that_is_lost_again_is_lost_once() {
        let add = |parts: &[(u64, u64, &str)]| {
            let losses = Losses::default();
            for (start, end, why) in parts {
                losses.add(GuestRange::new(*start, *end), (*why).into());
            }
            let (found, bytes) = losses.all();
            let told = found.into_iter();
            let told = told.map(|loss| (loss.range.start, loss.range.end, loss.why));
            (told.collect::<Vec<_>>(), bytes)
        };
        let loss = |start, end, why: &str| (start, end, why.to_owned());
        for (parts, expected, bytes) in [
            // The same, a part of it, and it as a part.
            (
                vec![(512, 2048, "a"), (512, 2048, "b"), (1024, 1536, "c")],
                vec![loss(512, 2048, "a")],
                1536,
            ),
            (
                vec![(1024, 1536, "a"), (512, 2048, "b")],
                vec![loss(512, 2048, "b")],
                1536,
            ),
            // Over both ends, and over a gap.
            (
                vec![(0, 1024, "a"), (2048, 3072, "b"), (512, 2560, "c")],
                vec![loss(0, 3072, "a")],
                3072,
            ),
            (
                vec![(0, 512, "a"), (4096, 4608, "b"), (1024, 1536, "c")],
                vec![
                    loss(0, 512, "a"),
                    loss(1024, 1536, "c"),
                    loss(4096, 4608, "b"),
                ],
                1536,
            ),
        ] {
            assert_eq!(add(&parts), (expected, bytes), "{parts:?}");
        }
    }

    #[test]
    fn more_losses_than_are_told_are_counted_once_all_the_same() {
        let losses = Losses::default();
        let count = LOSSES as u64 + 1000;
        for _ in 0..2 {
            for nth in 0..count {
                let start = nth * 1024;
                losses.add(GuestRange::new(start, start + 512), "broken".into());
            }
        }
        let (found, bytes) = losses.all();
        assert_eq!((found.len(), bytes), (LOSSES, count * 512));
    }
}
