//! A dynamic header that does not hold, worked out from the rest of the file.
//!
//! There is no copy of it. What it says of the disk shows elsewhere, though: the block table stands
//! behind it, unused entries are all ones, used ones are as far apart as blocks are long, and the
//! footer has the size of the disk. And its checksum, as weak as it is, tells that a header is the
//! right one if it adds up with the values that the file shows.
//!
//! What nothing else in the file says is who the parent is. So that of a differencing image is believed
//! only if the checksum vouches for it.

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{Budget, HostRange, Result, SECTOR, Storage};
use zerocopy::FromZeros;
use zerocopy::byteorder::big_endian::{U32, U64};

use crate::error::VhdError;
use crate::footer::{Disk, Found};
use crate::geometry::{BLOCK_SIZE, Dynamic, GAP};
use crate::ondisk::{HEADER_COOKIE, NO_OFFSET, RawHeader, RawLocator, UNUSED, VERSION};

/// Bytes of the block table that are read at a time.
const PIECE: usize = 64 << 10;
/// Most bytes of the table past the disk that are looked at.
const SPARE: u64 = 1 << 20;

/// Bytes behind a table of unused entries that are too many for a batmap and the names of a parent.
const LOST: u64 = 1 << 20;

/// A header, and what was wrong with the one in its place.
pub(crate) struct Derived {
    pub(crate) raw: RawHeader,
    pub(crate) geometry: Dynamic,
    /// A sentence.
    pub(crate) what: String,
}

/// A header that might be the right one.
struct Candidate {
    raw: RawHeader,
    geometry: Dynamic,
    /// Whether the checksum in the file is the one of this header.
    is_proved: bool,
    /// How many fields of the one in the file are broken if this is the right one; the checksum counts.
    faults: usize,
    layout: Layout,
}

impl Candidate {
    /// What a reader needs of it.
    fn key(&self) -> (u64, u32) {
        (self.geometry.bat.offset, self.geometry.block_bits)
    }
}

/// How blocks stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// There are none.
    Empty,
    /// There is more room between all of them than they need.
    Loose,
    /// Some stand directly behind each other, or before the footer.
    Tight,
}

impl Derived {
    /// The header that belongs where `raw` stands, at `place`; `broken` is what is wrong with that.
    ///
    /// # Errors
    /// [`VhdError::HeaderLost`] if none or several would do; `Io` if the file cannot be read.
    pub(crate) fn find(
        storage: &dyn Storage,
        raw: &RawHeader,
        place: HostRange,
        found: &Found,
        broken: VhdError,
        budget: &Budget,
    ) -> Result<Self> {
        let candidates = candidates(storage, raw, place, found, budget)?;
        let is_differencing = matches!(found.footer.disk, Disk::Differencing { .. });
        let chosen = match choose(candidates, is_differencing) {
            Ok(chosen) => chosen,
            Err(why) => {
                let broken = Box::new(broken);
                return Err(VhdError::HeaderLost { broken, why }.into());
            }
        };
        let mut header = chosen.raw;
        if !chosen.is_proved {
            header.data_offset = U64::new(NO_OFFSET);
            // Nothing in a dynamic image needs the rest, and nobody can say that it is right.
            header.parent_uuid = [0; 16];
            header.parent_timestamp = U32::ZERO;
            header.reserved = U32::ZERO;
            header.parent_name = FromZeros::new_zeroed();
            header.parent_locators = [RawLocator::NONE; 8];
            header.padding = [0; 256];
        }
        header.checksum = U32::new(header.computed_checksum());
        let what = format!(
            "{broken}; by the rest of the file its block table of {} entries stands at {:#x} and its \
             blocks have {} bytes",
            chosen.geometry.bat_entries,
            chosen.geometry.bat.offset,
            chosen.geometry.block_size()
        );
        Ok(Self {
            raw: header,
            geometry: chosen.geometry,
            what,
        })
    }
}

/// The one that is right, or why nobody can tell.
///
/// Sums are the same by chance, too, so the one counts that leaves the fewest fields broken.
fn choose(candidates: Vec<Candidate>, is_differencing: bool) -> Result<Candidate, String> {
    let fewest = candidates.iter().map(|it| it.faults).min();
    let (mut best, others): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|it| Some(it.faults) == fewest);
    if is_differencing && !best.iter().all(|it| it.is_proved) {
        let text = "its checksum fits no header that the rest of the file allows, so who the parent \
                    is may be what is wrong, and nothing else in the file says it";
        return Err(text.into());
    }
    let mut keys = keys(&best);
    if keys.len() > 1 {
        best.retain(|it| it.layout == Layout::Tight);
        keys = self::keys(&best);
    }
    if let [(_, bits)] = keys[..]
        && !best[0].is_proved
    {
        // Any table of unused entries would do, were it not for others.
        let others = others.iter().filter(|it| it.geometry.block_bits == bits);
        keys.extend(others.map(Candidate::key));
        keys.sort_unstable();
        keys.dedup();
    }
    match keys[..] {
        [_] => Ok(best.remove(0)),
        [] => Err("no block table that it could have stands behind it".into()),
        _ => {
            let shown = keys.iter().map(|(offset, bits)| {
                let block_size = 1_u64 << bits;
                format!("a table at {offset:#x} for blocks of {block_size} bytes")
            });
            let shown: Vec<_> = shown.collect();
            Err(format!("the file could have {}", shown.join(", or ")))
        }
    }
}

/// What readers need of `candidates`, without those that are the same.
fn keys(candidates: &[Candidate]) -> Vec<(u64, u32)> {
    let mut keys: Vec<_> = candidates.iter().map(Candidate::key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// All headers that the rest of the file allows; of those that differ in nothing else, the ones first
/// that keep more of `raw`.
fn candidates(
    storage: &dyn Storage,
    raw: &RawHeader,
    place: HostRange,
    found: &Found,
    budget: &Budget,
) -> Result<Vec<Candidate>> {
    let (virtual_size, data_end) = (found.footer.virtual_size, found.data_end);
    let mut candidates = Vec::new();
    let reach = found.footer.reach;
    for header in possible(raw, place, reach) {
        let Ok(geometry) = Dynamic::parse(&header, place, virtual_size, data_end) else {
            continue;
        };
        let geometry = geometry.reaching(reach);
        if let Some(layout) = layout(storage, &geometry, budget)? {
            let is_proved = header.checksum == raw.checksum;
            let changes = [
                header.cookie != raw.cookie,
                header.data_offset != raw.data_offset,
                header.version != raw.version,
                header.table_offset != raw.table_offset,
                header.block_size != raw.block_size,
                header.max_table_entries != raw.max_table_entries,
                !is_proved,
            ];
            candidates.push(Candidate {
                raw: header,
                geometry,
                is_proved,
                faults: changes.into_iter().filter(|changed| *changed).count(),
                layout,
            });
        }
    }
    Ok(candidates)
}

/// `raw` with each choice of what its fields may be, and their checksums.
fn possible(raw: &RawHeader, place: HostRange, virtual_size: u64) -> Vec<RawHeader> {
    let mut offsets = vec![raw.table_offset.get(), place.end()];
    offsets.retain(|offset| offset.is_multiple_of(SECTOR) && *offset >= SECTOR);
    offsets.dedup();
    let mut unused = vec![raw.data_offset.get(), NO_OFFSET];
    unused.dedup();
    let mut headers = Vec::new();
    // A table may stand anywhere. If one bit of its place is wrong, the sum says so.
    for bit in 0..u64::BITS {
        let mut header = raw.clone();
        header.table_offset = U64::new(raw.table_offset.get() ^ 1 << bit);
        if header.computed_checksum() == raw.checksum.get() {
            headers.push(header);
        }
    }
    for offset in offsets {
        for bits in BLOCK_SIZE.start().ilog2()..=BLOCK_SIZE.end().ilog2() {
            let block_size = 1 << bits;
            let need = virtual_size.div_ceil(block_size.into());
            // More than that no dynamic disk has.
            let need = need.min(u32::MAX.into()) as u32;
            let mut counts = vec![raw.max_table_entries.get(), need];
            counts.dedup();
            for entries in counts {
                for unused in &unused {
                    let mut header = raw.clone();
                    header.cookie = HEADER_COOKIE;
                    header.data_offset = U64::new(*unused);
                    header.version = U32::new(VERSION);
                    header.table_offset = U64::new(offset);
                    header.block_size = U32::new(block_size);
                    header.max_table_entries = U32::new(entries);
                    header.checksum = U32::new(header.computed_checksum());
                    headers.push(header);
                }
            }
        }
    }
    headers
}

/// How the blocks stand to which the table of `geometry` points; `None` if they cannot stand there, or
/// if there are any past the disk.
fn layout(storage: &dyn Storage, geometry: &Dynamic, budget: &Budget) -> Result<Option<Layout>> {
    let budget = budget.afresh();
    let mut starts = Vec::new();
    let mut piece = vec![0; PIECE];
    let (mut block, mut at) = (0, geometry.bat.offset);
    // All writers fill the last sector of the table with unused entries.
    let whole = at + (u64::from(geometry.bat_entries) * 4).next_multiple_of(SECTOR);
    let end = whole.min(geometry.bat.end() + SPARE).min(geometry.data_end);
    while at < end {
        // At most a piece.
        let piece = &mut piece[..(end - at).min(PIECE as u64) as usize];
        storage.read_at(at, piece)?;
        let places = piece.len() as u64 * 2;
        // With less memory it must not be another header that is left.
        budget.reserve(places, "places of the blocks")?;
        for entry in piece.chunks_exact(4) {
            let entry = BigEndian::read_u32(entry);
            if entry != UNUSED {
                let is_known = block < geometry.blocks_in_reach;
                let place = is_known.then(|| geometry.block_in_reach(block, entry));
                let Some(Ok(place)) = place else {
                    return Ok(None);
                };
                starts.push(place.bitmap);
            }
            block += 1;
        }
        at += piece.len() as u64;
    }
    starts.sort_unstable();
    let ends = starts.iter().skip(1).chain([&geometry.data_end]);
    let rooms = starts.iter().zip(ends).map(|(start, end)| end - start);
    let len = geometry.block_len();
    let between = starts.windows(2).all(|pair| pair[1] - pair[0] >= len);
    Ok(match rooms.min() {
        _ if !between => None,
        // Any run of unused entries would do, also where the blocks stand to which others point.
        None if geometry.data_end.saturating_sub(whole) >= len.max(LOST) => None,
        None => Some(Layout::Empty),
        Some(room) if room <= len + GAP => Some(Layout::Tight),
        Some(_) => Some(Layout::Loose),
    })
}
