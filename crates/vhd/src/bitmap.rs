//! Which sectors of a block hold data, and a small memory for it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use goldsmith_block::LastRun;

/// The sector bitmap of one block, one bit per sector, highest bit first.
#[derive(Debug)]
pub(crate) enum Bitmap {
    /// Every sector holds data: what nearly every writer says of every block.
    Full,
    /// At least one sector reads as zeros, whatever stands in the file.
    Mixed {
        bytes: Box<[u8]>,
        /// Of bytes that say the same of all their sectors.
        last_run: LastRun,
    },
}

impl Bitmap {
    /// The bitmap that stands in the file as `bytes`.
    pub(crate) fn new(mut bytes: Vec<u8>, low_bit_first: bool) -> Self {
        if low_bit_first {
            for byte in &mut bytes {
                *byte = byte.reverse_bits();
            }
        }
        if bytes.iter().all(|byte| *byte == u8::MAX) {
            Self::Full
        } else {
            Self::Mixed {
                bytes: bytes.into(),
                last_run: LastRun::default(),
            }
        }
    }

    /// Whether every sector holds data.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }

    /// Whether `sector` holds data, and how many sectors from it on, up to `end`, share the
    /// answer. Both count from the start of the block; `sector < end`.
    pub(crate) fn run(&self, sector: u64, end: u64) -> (bool, u64) {
        let Self::Mixed { bytes, last_run } = self else {
            return (true, end - sector);
        };
        run(|at| bytes[at as usize], last_run, sector, end)
    }
}

/// The run of alike bits that `sector` is in, of a bitmap of which `byte` gives each byte; see
/// [`Bitmap::run`].
fn run(byte: impl Fn(u64) -> u8, last_run: &LastRun, sector: u64, end: u64) -> (bool, u64) {
    let bit = |at: u64| byte(at / 8) & (0x80 >> (at % 8)) != 0;
    let set = bit(sector);
    let until = |range: Range<u64>| {
        let stop = range.end;
        range.clone().find(|at| bit(*at) != set).unwrap_or(stop)
    };
    let is_whole = |at: u64| byte(at) == if set { u8::MAX } else { 0 };
    let mut at = until(sector..sector.next_multiple_of(8).min(end));
    let (next, last) = (at / 8, end / 8);
    if at.is_multiple_of(8) && next < last && is_whole(next) {
        at = 8 * last_run.end(next, last, is_whole);
    }
    (set, until(at..end) - sector)
}

/// The bitmaps of the blocks that were asked for last.
#[derive(Debug)]
pub(crate) struct BitmapCache {
    slots: [Mutex<Slot>; Self::SLOTS],
}

/// A block and its bitmap.
type Slot = Option<(u64, Arc<Bitmap>)>;

impl BitmapCache {
    /// How many there are at most: enough for as many readers, each in a block of its own.
    pub(crate) const SLOTS: usize = 64;

    pub(crate) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Mutex::new(None)),
        }
    }

    /// The bitmap of `block`, which `load` gives if it is not at hand. What fails is not kept.
    pub(crate) fn get<E>(
        &self,
        block: u64,
        load: impl FnOnce() -> Result<Bitmap, E>,
    ) -> Result<Arc<Bitmap>, E> {
        let slot = &self.slots[(block % Self::SLOTS as u64) as usize];
        // A slot is replaced as a whole, so a panic elsewhere cannot leave it half changed. It is
        // not held while loading, which may read the same bitmap twice but never makes one wait.
        let lock = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, bitmap)) = &*lock()
            && *known == block
        {
            return Ok(bitmap.clone());
        }
        let bitmap = Arc::new(load()?);
        *lock() = Some((block, bitmap.clone()));
        Ok(bitmap)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn highest_bit_is_the_first_sector_unless_blktap_0_1_wrote_it() {
        let spec = Bitmap::new(vec![0b1000_0000, 0], false);
        assert_eq!(spec.run(0, 16), (true, 1));
        assert_eq!(spec.run(1, 16), (false, 15));
        let tap = Bitmap::new(vec![0b0000_0001, 0], true);
        assert_eq!(tap.run(0, 16), (true, 1));
        assert_eq!(tap.run(1, 16), (false, 15));
    }

    #[test]
    fn bitmap_without_zeros_is_not_kept() {
        assert!(Bitmap::new(vec![0xff; 512], false).is_full());
        assert_eq!(Bitmap::Full.run(7, 4096), (true, 4089));
    }

    /// A walk over a chain may ask again at every sector of a block of 256 MiB. If each answer looked for
    /// the same end, that would be 2^34 bytes.
    #[test]
    fn run_of_the_largest_block_is_looked_for_once() {
        const SECTORS: u64 = 1 << 19;
        let looks = Cell::new(0_u64);
        let byte = |at| {
            looks.set(looks.get() + 1);
            u8::from(at == SECTORS / 8 - 1)
        };
        let last_run = LastRun::default();
        for sector in 0..SECTORS - 1 {
            let rest = SECTORS - 1 - sector;
            assert_eq!(run(byte, &last_run, sector, SECTORS), (false, rest));
        }
        // Some of those around each end of it.
        assert!(looks.get() < 64 * SECTORS, "{looks:?}");
    }

    #[test]
    fn failed_load_is_asked_for_again() {
        let cache = BitmapCache::new();
        assert_eq!(cache.get(3, || Err("no")).unwrap_err(), "no");
        let load = || Ok::<_, &str>(Bitmap::Full);
        assert!(cache.get(3, load).unwrap().is_full());
        assert!(cache.get(3, || Err("already at hand")).is_ok());
        let other = 3 + BitmapCache::SLOTS as u64;
        assert!(cache.get(other, || Err("another block")).is_err());
    }

    proptest! {
        #[test]
        fn runs_are_what_looking_at_each_bit_gives(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 8),
            start in 0u64..64,
            len in 1u64..64,
        ) {
            let end = (start + len).min(64);
            let bit = |at: u64| bytes[at as usize / 8] >> (7 - at % 8) & 1 == 1;
            let run = (start..end).take_while(|at| bit(*at) == bit(start)).count() as u64;
            let bitmap = Bitmap::new(bytes.clone(), false);
            prop_assert_eq!(bitmap.run(start, end), (bit(start), run));
        }

        /// Asked again and again, of runs that are long enough to be remembered.
        #[test]
        fn memory_changes_no_answer(
            runs in prop::collection::vec((1..1000_usize, prop_oneof![Just(0u8), Just(255), any::<u8>()]), 2..12),
            asked in prop::collection::vec((any::<prop::sample::Index>(), 1..16_000_u64), 1..60),
        ) {
            let bytes: Vec<_> = runs.into_iter().flat_map(|(len, byte)| vec![byte; len]).collect();
            let sectors = 8 * bytes.len() as u64;
            let bit = |at: u64| bytes[at as usize / 8] >> (7 - at % 8) & 1 == 1;
            let bitmap = Bitmap::new(bytes.clone(), false);
            for (start, len) in asked {
                let start = start.index(sectors as usize) as u64;
                let end = (start + len).min(sectors);
                let run = (start..end).take_while(|at| bit(*at) == bit(start)).count() as u64;
                prop_assert_eq!(bitmap.run(start, end), (bit(start), run));
            }
        }
    }
}
