//! What the VHDs of a tar say of themselves, without keeping the rest of them anywhere.

use std::sync::{Arc, Mutex, PoisonError};

use goldsmith_block::{Budget, Error, Format, HostRange, Layer, Result, Storage, StorageId};
use goldsmith_vhd::{FileOrder, VHD};

use super::options_of;
use super::passing::Passing;
use super::walk::{Member, walk};

/// Bytes of a VHD that are kept at first, and by which it becomes more.
const STEP: u64 = 64 << 10;
/// Most bytes of a VHD that are kept, or its tables do not stand where everybody puts them. [ours]
/// Those of the largest disk in the smallest blocks take 17 MiB.
const MOST: u64 = 32 << 20;
/// Bytes that a footer takes at most.
const FOOTER: usize = 512;
/// Bytes of the end that are kept: a footer, and the end of a disk that stands before it.
const TAIL: u64 = 4096;
/// Bytes from the beginning and from the end of a disk that show what is on it.
const ENDS: [u64; 2] = [36 << 10, 512];
/// Bytes that are kept for each of them: a block of any size that XenServer's tools take, and its
/// bitmap.
const BLOCK: u64 = (2 << 20) + 512;

/// The VHDs in a tar, of each only the beginning, as far as its tables go, the footer, and what shows the
/// beginning and the end of its disk; `None` if the tables of one stand elsewhere.
///
/// # Errors
/// Those of [`walk`]; `Limit` if tables, or the VHDs with all that is passed over, are over `budget`.
///
/// # Cost
/// All of the file is read and unpacked, and nothing is written.
pub(super) fn skim(
    storage: &dyn Storage,
    budget: &Budget,
) -> Result<Option<Vec<Arc<dyn Storage>>>> {
    let members = walk(storage, budget.unpacking_time(), |member| {
        // Nothing is stored, but unpacking takes its time.
        member.admit(budget)?;
        let begun = Skimmed::begin(member, budget)?;
        let ends = begun.ends_of_disk(budget);
        let passing = begun.pass(member, &ends, budget)?;
        let skimmed = begun.with(passing.finish()?);
        Ok(match skimmed.misses(budget) {
            Some(_) => None,
            None => Some(Arc::new(skimmed) as _),
        })
    })?;
    Ok(members.into_iter().collect())
}

/// The VHDs in a tar, of each only the beginning, as far as its tables go, the footer, and the sector
/// bitmaps, which tell with those where on the disk there is data; `None` if a table stands elsewhere,
/// or one of them is fixed and so has none.
///
/// # Errors
/// As [`skim`].
///
/// # Cost
/// As [`skim`]. Bitmaps that are the same as the one before take 24 bytes of memory.
pub(super) fn survey(
    storage: &dyn Storage,
    budget: &Budget,
) -> Result<Option<Vec<Arc<dyn Storage>>>> {
    let members = walk(storage, budget.unpacking_time(), |member| {
        member.admit(budget)?;
        let mut begun = Skimmed::begin(member, budget)?;
        let (_, order) = begun.order(budget);
        let mut passing = begun.pass(member, &[], budget)?;
        let mut bitmaps = Vec::new();
        let order = order.ok().flatten().filter(|_| begun.has_tables());
        let mut last: Arc<Vec<u8>> = Arc::default();
        for block in order.iter().flat_map(FileOrder::blocks) {
            let place = block.bitmap;
            while !passing.pass_on(place.offset)? {}
            // At most 64 KiB.
            let mut bitmap = vec![0; place.len as usize];
            passing.read(&mut bitmap)?;
            if bitmap != *last {
                budget.reserve(place.len, "sector bitmaps")?;
                last = Arc::new(bitmap);
            }
            // A vector that grows may be twice as long as what is in it.
            let bytes = 2 * size_of::<(u64, Arc<Vec<u8>>)>() as u64;
            budget.reserve(bytes, "list of the sector bitmaps")?;
            bitmaps.push((place.offset, Arc::clone(&last)));
        }
        begun.bitmaps = bitmaps;
        let skimmed = begun.with(passing.finish()?);
        let (attempt, found) = skimmed.order(budget);
        let is_told = match found {
            _ if !attempt.missed().is_empty() => false,
            Ok(found) => order.is_some() && found == order,
            // What it is, will be told when it is opened for good.
            Err(_) => true,
        };
        Ok(is_told.then(|| Arc::new(skimmed) as _))
    })?;
    Ok(members.into_iter().collect())
}

/// Parts of a file.
#[derive(Debug)]
pub(super) struct Skimmed {
    number: u32,
    name: String,
    id: StorageId,
    len: u64,
    /// By byte offset; the first one is the beginning of the file.
    pieces: Vec<(u64, Arc<Vec<u8>>)>,
    /// Sector bitmaps, ascending by byte offset.
    bitmaps: Vec<(u64, Arc<Vec<u8>>)>,
    /// What was asked for and is in none of them.
    missed: Mutex<Vec<HostRange>>,
}

impl Skimmed {
    /// The beginning of `member`, as far as its tables go if they stand where everybody puts them.
    ///
    /// The footer is yet to come. Its copy stands for it, unless the VHD is a fixed one, which has
    /// none, and no tables.
    pub(super) fn begin(member: &mut Member<'_>, budget: &Budget) -> Result<Self> {
        let mut begun = Self {
            number: member.number,
            name: member.name.clone(),
            id: StorageId::unique(),
            len: member.len,
            pieces: vec![(0, Arc::default())],
            bitmaps: Vec::new(),
            missed: Mutex::default(),
        };
        begun.read_on(member, STEP, budget)?;
        if begun.has_tables() {
            let copy = begun.head()[..begun.head().len().min(FOOTER)].to_vec();
            let place = begun.len.saturating_sub(FOOTER as u64);
            begun.pieces.push((place, Arc::new(copy)));
            while let Some(wanted) = begun.misses(budget).filter(|wanted| *wanted <= MOST) {
                begun.read_on(member, wanted.next_multiple_of(STEP), budget)?;
            }
        }
        Ok(begun)
    }

    /// Whether it begins like a VHD that is not a fixed one.
    pub(super) fn has_tables(&self) -> bool {
        [b"conectix", b"v_poison"]
            .iter()
            .any(|cookie| self.head().starts_with(*cookie))
    }

    fn head(&self) -> &[u8] {
        &self.pieces[0].1
    }

    /// Keeps the next bytes of `member`, too, until there are `len`.
    fn read_on(&mut self, member: &mut Member<'_>, len: u64, budget: &Budget) -> Result<()> {
        let known = self.head().len() as u64;
        let more = len.min(self.len).saturating_sub(known);
        let mut bytes = budget.zeroed(more, "start of a VHD in the tar")?;
        member.read_exact(&mut bytes)?;
        Arc::make_mut(&mut self.pieces[0].1).append(&mut bytes);
        Ok(())
    }

    /// All of `member`, to go by, of which this is the beginning; `parts` of it and its last bytes
    /// are kept on the way.
    pub(super) fn pass<'p, 'w>(
        &self,
        member: &'p mut Member<'w>,
        parts: &[HostRange],
        budget: &Budget,
    ) -> Result<Passing<'p, 'w>> {
        let last = HostRange::new(self.len.saturating_sub(TAIL), TAIL);
        let parts = parts.iter().chain([&last]).map(|part| {
            let start = part.offset.min(self.len);
            HostRange::new(start, part.end().min(self.len) - start)
        });
        let parts: Vec<_> = parts.collect();
        Passing::new(member, Arc::clone(&self.pieces[0].1), &parts, budget)
    }

    /// The same with `kept` instead of what stood for it.
    pub(super) fn with(mut self, kept: Vec<(u64, Vec<u8>)>) -> Self {
        self.pieces.truncate(1);
        let kept = kept.into_iter();
        self.pieces
            .extend(kept.map(|(start, bytes)| (start, Arc::new(bytes))));
        self
    }

    /// The order of its blocks, by the same of which nothing has been missed.
    pub(super) fn order(&self, budget: &Budget) -> (Arc<Self>, Result<Option<FileOrder>>) {
        self.attempt(|storage| {
            FileOrder::read(storage, &options_of(self.number)?, &budget.afresh())
        })
    }

    fn open(&self, budget: &Budget) -> (Arc<Self>, Result<Arc<dyn Layer>>) {
        self.attempt(|storage| VHD.open_with(storage, &budget.afresh(), &options_of(self.number)?))
    }

    /// What `open` makes of the same, of which nothing has been missed.
    fn attempt<T>(&self, open: impl FnOnce(Arc<dyn Storage>) -> T) -> (Arc<Self>, T) {
        let attempt = Arc::new(Self {
            name: self.name.clone(),
            pieces: self.pieces.clone(),
            bitmaps: self.bitmaps.clone(),
            missed: Mutex::default(),
            ..*self
        });
        let opened = open(Arc::clone(&attempt) as _);
        (attempt, opened)
    }

    /// How much of the beginning it takes to open the VHD, if what is here does not do. Whatever else
    /// is wrong with it will be told when it is opened for good.
    fn misses(&self, budget: &Budget) -> Option<u64> {
        let (attempt, _) = self.open(budget);
        attempt.missed().iter().map(|range| range.end()).max()
    }

    /// Where the blocks stand in which the disk begins and ends, as far as they are not here.
    fn ends_of_disk(&self, budget: &Budget) -> Vec<HostRange> {
        let (attempt, layer) = self.open(budget);
        let Ok(layer) = layer else {
            return Vec::new();
        };
        let size = layer.info().virtual_size;
        let [first, last] = ENDS.map(|len| len.min(size));
        for (at, len) in [(0, first), (size - last, last)] {
            // It fails at the first part that is not here, which is what is wanted.
            let _ = layer.read_at(at, &mut vec![0; len as usize]);
        }
        let missed = attempt.missed();
        let blocks = missed.iter();
        blocks
            .map(|range| HostRange::new(range.offset, BLOCK))
            .collect()
    }

    /// What was asked for, and not kept.
    pub(super) fn missed(&self) -> Vec<HostRange> {
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.clone()
    }
}

impl Storage for Skimmed {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let before = self.bitmaps.partition_point(|(start, _)| *start <= offset);
        let bitmap = self.bitmaps[..before].last();
        for (start, bytes) in self.pieces.iter().chain(bitmap) {
            let from = offset.checked_sub(*start);
            let from = from.and_then(|from| usize::try_from(from).ok());
            if let Some(bytes) = from.and_then(|from| bytes.get(from..from.checked_add(buf.len())?))
            {
                buf.copy_from_slice(bytes);
                return Ok(());
            }
        }
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.push(HostRange::new(offset, buf.len() as u64));
        let text = "only what the VHD says of itself was kept, not its data";
        Err(Error::usage(text).in_file(&*self.name))
    }
}
