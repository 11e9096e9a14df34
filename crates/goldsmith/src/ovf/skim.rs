//! What the VHDs of a tar say of themselves, without keeping the rest of them anywhere.

use std::sync::{Arc, Mutex, PoisonError};

use goldsmith_block::{Budget, Error, Format, HostRange, Layer, Result, Storage, StorageId};
use goldsmith_vhd::VHD;

use super::walk::{Member, check_len, walk};

/// Bytes of a VHD that are kept at first, and by which it becomes more.
const STEP: u64 = 64 << 10;
/// Most bytes of a VHD that are kept, or its tables do not stand where everybody puts them. [ours]
/// Those of the largest disk in the smallest blocks take 17 MiB.
const MOST: u64 = 32 << 20;
/// Bytes that are passed over together.
const PIECE: u64 = 256 << 10;
/// Bytes that a footer takes at most.
const FOOTER: usize = 512;
/// Bytes of the end that are kept: a footer, and the end of a disk that stands before it.
const TAIL: usize = 4096;
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
    let members = walk(storage, |member| {
        // Nothing is stored, but unpacking takes its time.
        budget.unpack(member.len, "VHD in the tar")?;
        check_len(member, storage.len())?;
        skim_member(member, budget)
    })?;
    Ok(members.into_iter().collect())
}

fn skim_member(member: &mut Member<'_>, budget: &Budget) -> Result<Option<Arc<dyn Storage>>> {
    let mut skimmed = Skimmed {
        name: member.name.clone(),
        id: StorageId::unique(),
        len: member.len,
        pieces: vec![(0, Arc::default())],
        missed: Mutex::default(),
    };
    skimmed.read_on(member, STEP, budget)?;
    // A fixed one has no tables. The footer of others is yet to come, but its copy is here.
    if skimmed.head().starts_with(b"conectix") {
        let copy = skimmed.head()[..skimmed.head().len().min(FOOTER)].to_vec();
        let place = skimmed.len.saturating_sub(FOOTER as u64);
        skimmed.pieces.push((place, Arc::new(copy)));
        while let Some(wanted) = skimmed.misses(budget).filter(|wanted| *wanted <= MOST) {
            skimmed.read_on(member, wanted.next_multiple_of(STEP), budget)?;
        }
        let ends = skimmed.ends_of_disk(budget);
        skimmed.pieces.truncate(1);
        skimmed.pass_over(member, &ends, budget)?;
    } else {
        skimmed.pass_over(member, &[], budget)?;
    }
    Ok(match skimmed.misses(budget) {
        Some(_) => None,
        None => Some(Arc::new(skimmed)),
    })
}

/// Parts of a file.
#[derive(Debug)]
struct Skimmed {
    name: String,
    id: StorageId,
    len: u64,
    /// By byte offset; the first one is the beginning of the file.
    pieces: Vec<(u64, Arc<Vec<u8>>)>,
    /// What was asked for and is in none of them.
    missed: Mutex<Vec<HostRange>>,
}

impl Skimmed {
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

    /// Reads on to the end of `member`, and keeps `parts` of it and the last bytes.
    fn pass_over(
        &mut self,
        member: &mut Member<'_>,
        parts: &[HostRange],
        budget: &Budget,
    ) -> Result<()> {
        let mut at = self.head().len() as u64;
        let last = self.len.saturating_sub(TAIL as u64);
        let last = HostRange::new(last, self.len - last);
        let mut kept = Vec::new();
        for part in parts.iter().chain([&last]) {
            let start = part.offset.min(self.len);
            let len = part.end().min(self.len) - start;
            let mut bytes: Vec<u8> = budget.zeroed(len, "block of a VHD in the tar")?;
            fill(start, &mut bytes, 0, self.head());
            kept.push((start, bytes));
        }
        let mut piece = vec![0; PIECE.min(self.len - at) as usize];
        while at < self.len {
            // At most a piece.
            let piece = &mut piece[..(self.len - at).min(PIECE) as usize];
            member.read_exact(piece)?;
            for (start, bytes) in &mut kept {
                fill(*start, bytes, at, piece);
            }
            at += piece.len() as u64;
        }
        let kept = kept.into_iter();
        self.pieces
            .extend(kept.map(|(start, bytes)| (start, Arc::new(bytes))));
        Ok(())
    }

    /// The same, of which nothing has been missed, and what it is if that can be told.
    fn attempt(&self, budget: &Budget) -> (Arc<Self>, Result<Arc<dyn Layer>>) {
        let attempt = Arc::new(Self {
            name: self.name.clone(),
            pieces: self.pieces.clone(),
            missed: Mutex::default(),
            ..*self
        });
        let layer = VHD.open(Arc::clone(&attempt) as _, &budget.afresh());
        (attempt, layer)
    }

    /// How much of the beginning it takes to open the VHD, if what is here does not do. Whatever else
    /// is wrong with it will be told when it is opened for good.
    fn misses(&self, budget: &Budget) -> Option<u64> {
        let (attempt, _) = self.attempt(budget);
        attempt.missed().iter().map(|range| range.end()).max()
    }

    /// Where the blocks stand in which the disk begins and ends, as far as they are not here.
    fn ends_of_disk(&self, budget: &Budget) -> Vec<HostRange> {
        let (attempt, layer) = self.attempt(budget);
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

    fn missed(&self) -> Vec<HostRange> {
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.clone()
    }
}

/// Copies what `from`, which begins at `from_start`, has of `to`, which begins at `start`.
fn fill(start: u64, to: &mut [u8], from_start: u64, from: &[u8]) {
    let first = start.max(from_start);
    let end = (start + to.len() as u64).min(from_start + from.len() as u64);
    if first < end {
        // Inside both.
        to[(first - start) as usize..(end - start) as usize]
            .copy_from_slice(&from[(first - from_start) as usize..(end - from_start) as usize]);
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
        for (start, bytes) in &self.pieces {
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
