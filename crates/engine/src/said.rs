//! Which sectors of a disk have been said, while it comes in any order.

use goldsmith_block::{Budget, GuestRange, Result, SECTOR};

/// Bytes of the disk that are kept track of together. [ours] What VHDs allocate together, most of
/// them: where all of that is said at once it takes no bitmap.
const CHUNK: u64 = 2 << 20;
/// Bits in a word of a bitmap.
const WORD: u64 = u64::BITS as u64;
/// Words in the bitmap of a chunk, a bit for each sector, lowest bit first.
const WORDS: usize = (CHUNK / SECTOR / WORD) as usize;

/// The sectors that have been said.
///
/// It takes 8 bytes of memory for each chunk of 2 MiB and 512 more while only a part of that has been
/// said: 8 MiB and up to 512 MiB for a disk of 2 TiB.
#[derive(Debug)]
pub struct Said<'a> {
    chunks: Vec<Chunk>,
    bitmaps: Vec<[u64; WORDS]>,
    /// The places of those bitmaps that nobody uses any more.
    unused: Vec<u32>,
    budget: &'a Budget,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Chunk {
    #[default]
    Nothing,
    /// The bitmap at this place tells what.
    Part(u32),
    All,
}

impl<'a> Said<'a> {
    /// Nothing, of a disk of `len` bytes.
    ///
    /// # Errors
    /// `Limit` if it is over `budget`.
    pub fn new(len: u64, budget: &'a Budget) -> Result<Self> {
        Ok(Self {
            chunks: budget.zeroed(len.div_ceil(CHUNK), "list of what is known of the disk")?,
            bitmaps: Vec::new(),
            unused: Vec::new(),
            budget,
        })
    }

    /// Notes that `range` has been said, which lies on the disk and begins at a sector; it ends at
    /// one, too, or at the end of the disk.
    ///
    /// # Errors
    /// `Limit` if that is over the budget.
    pub fn say(&mut self, range: GuestRange) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            // Chunks of a disk for which the list is in memory.
            let index = (at / CHUNK) as usize;
            let start = index as u64 * CHUNK;
            let end = range.end.min(start + CHUNK);
            self.say_in(index, (at - start) / SECTOR, (end - start).div_ceil(SECTOR))?;
            at = end;
        }
        Ok(())
    }

    /// Notes the sectors from `first` up to `end` of one chunk.
    fn say_in(&mut self, index: usize, first: u64, end: u64) -> Result<()> {
        let all = (first, end) == (0, CHUNK / SECTOR);
        let place = match self.chunks[index] {
            Chunk::All => return Ok(()),
            Chunk::Part(place) if all => {
                self.unused.push(place);
                self.chunks[index] = Chunk::All;
                return Ok(());
            }
            Chunk::Nothing if all => {
                self.chunks[index] = Chunk::All;
                return Ok(());
            }
            Chunk::Part(place) => place,
            Chunk::Nothing => {
                let place = self.place()?;
                self.chunks[index] = Chunk::Part(place);
                place
            }
        };
        let bitmap = &mut self.bitmaps[place as usize];
        let mut at = first;
        while at < end {
            let word = at / WORD;
            let stop = end.min((word + 1) * WORD);
            // One to all bits of a word.
            let bits = (u64::MAX >> (WORD - (stop - at))) << (at % WORD);
            bitmap[word as usize] |= bits;
            at = stop;
        }
        if bitmap.iter().all(|word| *word == u64::MAX) {
            self.unused.push(place);
            self.chunks[index] = Chunk::All;
        }
        Ok(())
    }

    /// A bitmap in which nothing is said.
    fn place(&mut self) -> Result<u32> {
        if let Some(place) = self.unused.pop() {
            self.bitmaps[place as usize] = [0; WORDS];
            return Ok(place);
        }
        // A vector that grows may be twice as long as what is in it.
        let bytes = 2 * size_of::<[u64; WORDS]>() as u64;
        self.budget
            .reserve(bytes, "map of what is known of the disk")?;
        self.bitmaps.push([0; WORDS]);
        // As many as there are chunks at most, and those are counted in memory.
        Ok((self.bitmaps.len() - 1) as u32)
    }

    /// The parts of `range`, which lies on the disk and begins at a sector, that have not been said:
    /// ascending and apart.
    pub fn unsaid(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let mut found: Option<GuestRange> = None;
            while at < range.end {
                let (said, end) = self.run(at, range.end);
                match &mut found {
                    Some(_) if said => break,
                    Some(found) => found.end = end,
                    None if said => {}
                    None => found = Some(GuestRange::new(at, end)),
                }
                at = end;
            }
            found
        })
    }

    /// Whether the byte at `at` has been said, and up to where that holds, at least: not behind `limit`.
    fn run(&self, at: u64, limit: u64) -> (bool, u64) {
        let index = at / CHUNK;
        let start = index * CHUNK;
        let limit = limit.min(start + CHUNK);
        let bitmap = match self.chunks[index as usize] {
            Chunk::Nothing => return (false, limit),
            Chunk::All => return (true, limit),
            Chunk::Part(place) => &self.bitmaps[place as usize],
        };
        let sector = (at - start) / SECTOR;
        let bits = |word: u64| bitmap[word as usize];
        let said = bits(sector / WORD) >> (sector % WORD) & 1 == 1;
        let mut next = sector;
        while start + next * SECTOR < limit {
            let word = bits(next / WORD);
            let rest = if said { word } else { !word } >> (next % WORD);
            let run = u64::from(rest.trailing_ones()).min(WORD - next % WORD);
            next += run;
            if !next.is_multiple_of(WORD) || run == 0 {
                break;
            }
        }
        (said, limit.min(start + next * SECTOR))
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::{ErrorKind, Limits};
    use proptest::prelude::*;

    use super::*;

    fn budget(bytes: u64) -> Budget {
        let mut limits = Limits::default();
        limits.metadata_bytes = bytes;
        Budget::new(&limits)
    }

    #[test]
    fn what_is_said_at_once_takes_no_bitmaps() {
        let disk = 2 << 40;
        // 8 bytes a chunk, and nothing to spare.
        let budget = budget(8 << 20);
        let mut said = Said::new(disk, &budget).unwrap();
        said.say(GuestRange::new(0, disk)).unwrap();
        assert_eq!(said.unsaid(GuestRange::new(0, disk)).count(), 0);
        said.chunks.fill(Chunk::Nothing);
        let error = said.say(GuestRange::new(0, 512)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
    }

    #[test]
    fn bitmap_of_a_chunk_that_filled_up_serves_another() {
        let budget = budget((8 << 10) + 1024);
        let mut said = Said::new(2 << 30, &budget).unwrap();
        for chunk in 0..1024 {
            let start = chunk * CHUNK;
            let middle = start + 5 * SECTOR;
            said.say(GuestRange::new(middle, start + CHUNK)).unwrap();
            let rest = GuestRange::new(start, middle);
            let unsaid = said.unsaid(GuestRange::new(start, start + CHUNK));
            assert!(unsaid.eq([rest]));
            said.say(rest).unwrap();
        }
        assert_eq!(said.unsaid(GuestRange::new(0, 2 << 30)).count(), 0);
    }

    proptest! {
        #[test]
        fn unsaid_is_what_a_list_of_sectors_gives(
            ranges in prop::collection::vec((0u64..9000, 1u64..5000, any::<bool>()), 0..12),
            asked in (0u64..9000, 1u64..9000),
        ) {
            const SECTORS: u64 = 9001;
            let cut = |start: u64, len: u64| start..(start + len).min(SECTORS);
            let bytes = |range: std::ops::Range<u64>| {
                GuestRange::new(range.start * SECTOR, range.end * SECTOR)
            };
            let budget = budget(1 << 20);
            let mut said = Said::new(SECTORS * SECTOR, &budget).unwrap();
            let mut model = vec![false; SECTORS as usize];
            for (start, len, whole) in ranges {
                // Whole chunks among them.
                let range = match whole {
                    true => cut(start / 4096 * 4096, 4096),
                    false => cut(start, len),
                };
                model[range.start as usize..range.end as usize].fill(true);
                said.say(bytes(range)).unwrap();
            }
            let asked = cut(asked.0, asked.1);
            let mut expected: Vec<GuestRange> = Vec::new();
            for sector in asked.clone().filter(|sector| !model[*sector as usize]) {
                let range = bytes(sector..sector + 1);
                match expected.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => expected.push(range),
                }
            }
            prop_assert_eq!(said.unsaid(bytes(asked)).collect::<Vec<_>>(), expected);
        }
    }
}
