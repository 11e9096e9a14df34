//! Checking: everything that can be known from the tables, without reading a guest's byte.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Budget, Checked, Gaps, HostRange, Result, SECTOR, Storage, align_up, is_zero,
};

use crate::error::VhdError;
use crate::footer::{Footer, Found, SizeRule, shows_same_disk};
use crate::geometry::GAP;
use crate::layer::{DynamicLayer, Opened, own_parent};
use crate::locator::room_end;
use crate::ondisk::{FOOTER_LEN, RawHeader, UNUSED};

/// Bytes of the block table that are read at a time.
const PIECE: u64 = 64 << 10;

/// Checks the image in `storage`; see [`Format::check`](goldsmith_block::Format::check).
pub(crate) fn check(storage: Arc<dyn Storage>, budget: &Budget) -> Result<Checked> {
    let mut checked = Checked::default();
    let found = Found::read(&*storage, SizeRule::Creator)?;
    let (opened, broken) =
        Opened::open_mended(Arc::clone(&storage), budget, &found, Gaps::default())?;
    if let Some(broken) = broken {
        checked.corruption(broken);
    }
    let (info, poisoned) = match &opened {
        Opened::Fixed(layer) => {
            checked.end = layer.reach + FOOTER_LEN;
            (layer.info.clone(), layer.poisoned)
        }
        Opened::Dynamic(layer, header) => {
            check_blocks(layer, header, budget, &mut checked)?;
            check_spare_entries(layer, &mut checked)?;
            let mut info = layer.info.clone();
            // They were told with all others of their kind.
            info.warnings
                .retain(|warning| !layer.doubts.contains(warning));
            (info, layer.poisoned)
        }
    };
    check_footers(storage, &opened, &found, budget, &mut checked);
    let own_parent = info.uuid.map(own_parent);
    for warning in info.warnings {
        if Some(&warning) == own_parent.as_ref() {
            // It reads as it should, as long as nobody confuses the two.
            checked.note(warning);
        } else if !found.warnings.contains(&warning) {
            // Those of the footers are told.
            checked.corruption(warning);
        }
    }
    if poisoned {
        checked.corruption(VhdError::Poisoned);
    }
    Ok(checked)
}

/// Tells what is wrong with the footers: no more than a note if all readers see one disk.
pub(crate) fn check_footers(
    storage: Arc<dyn Storage>,
    opened: &Opened,
    found: &Found,
    budget: &Budget,
    checked: &mut Checked,
) {
    let harmless = is_other_harmless(storage, opened, found, budget);
    for warning in &found.warnings {
        match harmless {
            true => checked.note(warning),
            false => checked.corruption(warning),
        }
    }
}

/// Whether there is a copy of the footer that differs, and leads to the same disk all the same: an edit
/// that was cut short may leave the head of the image in two places, and a footer for each.
fn is_other_harmless(
    storage: Arc<dyn Storage>,
    opened: &Opened,
    found: &Found,
    budget: &Budget,
) -> bool {
    let Some(other) = &found.other else {
        return false;
    };
    if !shows_same_disk(&found.raw, other) {
        return false;
    }
    if found.raw.data_offset == other.data_offset {
        return true;
    }
    let Ok(footer) = Footer::parse(other, SizeRule::Creator) else {
        return false;
    };
    let by_other = Found {
        footer,
        raw: other.clone(),
        warnings: Vec::new(),
        other: None,
        ..*found
    };
    let there = Opened::open_by(storage, &budget.afresh(), &by_other);
    match (opened, there) {
        (Opened::Dynamic(here, _), Ok(Opened::Dynamic(there, _))) => {
            here.bat == there.bat
                && here.geometry.block_bits == there.geometry.block_bits
                && here.info.backing == there.info.backing
        }
        _ => false,
    }
}

/// What stands in a part of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) owner: Owner,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Owner {
    #[default]
    Copy,
    Header,
    Table,
    Batmap,
    Name,
    Block(u64),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Copy => "the copy of the footer",
            Self::Header => "the dynamic header",
            Self::Table => "the block table",
            Self::Batmap => "the batmap",
            Self::Name => "a name of the parent",
            Self::Block(block) => return write!(f, "block {block}"),
        })
    }
}

/// Every block inside the file, none on another or on a table, and none that is full and not there.
pub(crate) fn check_blocks(
    layer: &DynamicLayer,
    header: &RawHeader,
    budget: &Budget,
    checked: &mut Checked,
) -> Result<()> {
    let geometry = &layer.geometry;
    let (disk, behind) = layer.bat.split_at(geometry.blocks as usize);
    let [allocated, known_to_others] =
        [disk, behind].map(|part| part.iter().filter(|entry| **entry != UNUSED).count());
    let count = allocated + known_to_others;
    budget.reserve((count * size_of::<Place>()) as u64, "places of the blocks")?;
    let mut places = tables(layer, header);
    places.reserve_exact(count);
    let block_len = geometry.block_len();
    (checked.units, checked.allocated) = (geometry.blocks, allocated as u64);
    if known_to_others > 0 {
        let (virtual_size, reach) = (geometry.virtual_size, geometry.reach);
        checked.note(format_args!(
            "{known_to_others} blocks are past the end of the disk at {virtual_size}, but not past its \
             other size, {reach} bytes: programs that go by that show them"
        ));
    }

    let mut expected = None;
    let mut cut_off = false;
    for (block, entry) in (0..).zip(&layer.bat) {
        let full = layer
            .batmap
            .as_ref()
            .is_some_and(|batmap| batmap.is_full(block));
        if *entry == UNUSED {
            if full {
                checked.corruption(format_args!(
                    "block {block} is full by the batmap, but has no place in the file"
                ));
            }
            continue;
        }
        let start = u64::from(*entry) * SECTOR;
        if expected.is_some_and(|end| !(end..=end + GAP).contains(&start)) {
            checked.fragmented += 1;
        }
        expected = Some(start + block_len);
        match geometry.block_in_reach(block, *entry) {
            Ok(_) => {
                if let Some(error) = geometry.cut_oddly(block, *entry) {
                    checked.corruption(error);
                }
                places.push(Place {
                    start,
                    // The last block may end with the disk.
                    end: (start + block_len).min(geometry.data_end),
                    owner: Owner::Block(block),
                });
            }
            Err(error) => {
                cut_off |= error.is_cut_off();
                checked.corruption(error);
            }
        }
    }
    let end = find_overlaps_and_gaps(places, block_len, checked);
    checked.end = end + FOOTER_LEN;
    match cut_off {
        // What is left of it stands there.
        true => Ok(()),
        false => check_tail(layer, header, end, checked),
    }
}

/// Nothing before the footer that belongs to nothing, `end` being where all places ended.
fn check_tail(
    layer: &DynamicLayer,
    header: &RawHeader,
    end: u64,
    checked: &mut Checked,
) -> Result<()> {
    let Some(tail) = tail(layer, header, end) else {
        return Ok(());
    };
    let blocks = tail.len / layer.geometry.block_len();
    let nothing = format!("nothing points to {tail} of the file");
    let shows = "shows in the next block that QEMU allocates";
    if blocks > 0 {
        let text = format_args!("{nothing}, room for {blocks} blocks: what stands there {shows}");
        checked.leak(blocks, text);
        return Ok(());
    }
    match is_alignment(layer, tail)? {
        true => checked.note(format_args!("{nothing}: the footer behind it {shows}")),
        false => checked.leak(1, format_args!("{nothing}: what stands there {shows}")),
    }
    Ok(())
}

/// What stands before the footer and belongs to nothing, `end` being where blocks and tables ended.
///
/// [qemu] A new block goes behind the table and all blocks, and but for its bitmap nothing of it is
/// written that the guest does not write: what is not behind the end of the file shows.
pub(crate) fn tail(layer: &DynamicLayer, header: &RawHeader, end: u64) -> Option<HostRange> {
    let data_end = layer.geometry.data_end;
    let end = match layer.info.backing {
        Some(_) => end.max(room_end(header, data_end)),
        None => end,
    };
    let end = align_up(end, SECTOR).unwrap_or(end);
    (end < data_end).then(|| HostRange::new(end, data_end - end))
}

/// Whether `tail` is no more than alignment. [Virtual PC] It leaves a sector of zeros before the footer of
/// a new image.
pub(crate) fn is_alignment(layer: &DynamicLayer, tail: HostRange) -> Result<bool> {
    if tail.len > GAP {
        return Ok(false);
    }
    // At most a page.
    let mut bytes = vec![0; tail.len as usize];
    layer.storage.read_at(tail.offset, &mut bytes)?;
    Ok(is_zero(&bytes))
}

/// What is in the file besides blocks.
pub(crate) fn tables(layer: &DynamicLayer, header: &RawHeader) -> Vec<Place> {
    let geometry = &layer.geometry;
    let table = HostRange::new(geometry.bat.offset, u64::from(geometry.bat_entries) * 4);
    let batmap = layer.batmap.iter().flat_map(|batmap| batmap.places);
    let batmap = batmap.map(|place| (place, Owner::Batmap));
    // Those that lead nowhere were told when the image was opened.
    let names = layer.names(header).into_iter().flatten().flatten();
    let names = names.map(|place| (place, Owner::Name));
    [
        (HostRange::new(0, FOOTER_LEN), Owner::Copy),
        (geometry.header, Owner::Header),
        (table, Owner::Table),
    ]
    .into_iter()
    .chain(batmap)
    .chain(names)
    .map(|(place, owner)| Place {
        start: place.offset,
        end: place.end(),
        owner,
    })
    .collect()
}

/// Gives where all `places` have ended, in whole sectors.
pub(crate) fn find_overlaps_and_gaps(
    mut places: Vec<Place>,
    block_len: u64,
    checked: &mut Checked,
) -> u64 {
    places.retain(|place| place.start < place.end);
    places.sort_unstable_by_key(|place| (place.start, place.end));
    let mut last = Place::default();
    for place in places {
        // An overlap with a table makes a block one that was told already; tables may overlap, too.
        if place.start < last.end {
            checked.corruption(format_args!(
                "{} and {} overlap at {:#x}",
                last.owner, place.owner, place.start
            ));
        }
        // Blocks that nobody points to leave gaps as long as blocks.
        let from = align_up(last.end, SECTOR).unwrap_or(last.end);
        let gap = HostRange::new(from, place.start.saturating_sub(from));
        lost_blocks(gap, gap.len / block_len, checked);
        if place.end > last.end {
            last = place;
        }
    }
    align_up(last.end, SECTOR).unwrap_or(last.end)
}

/// Tells of the `blocks` that `range` has room for and nobody points to, if there are any.
fn lost_blocks(range: HostRange, blocks: u64, checked: &mut Checked) {
    if blocks > 0 {
        checked.leak(
            blocks,
            format_args!("nothing points to {range} of the file, room for {blocks} blocks"),
        );
    }
}

/// Entries behind the end of the disk by any size say nothing, and should say so.
pub(crate) fn check_spare_entries(layer: &DynamicLayer, checked: &mut Checked) -> Result<()> {
    let geometry = &layer.geometry;
    let end = geometry.bat.offset + u64::from(geometry.bat_entries) * 4;
    let mut at = geometry.bat.offset + geometry.blocks_in_reach * 4;
    let mut piece = vec![0; PIECE as usize];
    // A table may claim four billion entries where the file has nothing but a hole.
    while at < end && checked.flaws.len() < Checked::FLAWS {
        let piece = &mut piece[..(end - at).min(PIECE) as usize];
        layer.storage.read_at(at, piece)?;
        for (nth, entry) in (0..).zip(piece.chunks_exact(4)) {
            let entry = BigEndian::read_u32(entry);
            if entry != UNUSED {
                let index = (at - geometry.bat.offset) / 4 + nth;
                // If a block stands there, it is counted as one that nothing points to.
                checked.note(format_args!(
                    "entry {index} of the block table, {entry:#x}, is past the disk"
                ));
            }
        }
        at += piece.len() as u64;
    }
    Ok(())
}
