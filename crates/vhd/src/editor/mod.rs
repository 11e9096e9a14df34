//! Editing: an image changed where it stands, and never lost on the way.
//!
//! Each sector of the file is written whole or not at all, and what is written between two barriers
//! in any order. So nothing that the image needs is overwritten, and one sector decides which image
//! a file is: the footer. Whatever is new is written where nothing stands, then the footers are made
//! to point to it.
//!
//! ```text
//! footer'  head  blocks ......  footer          the old image
//! footer'  head  blocks ......  head*  footer   the same, and a new head behind it
//! footer*  head  blocks ......  head*  footer*  the new image, whichever footer is read
//! footer*  head* blocks ......  head*  footer*  the new head at its place, ...
//! footer** head* blocks ......  footer**        ... and the footers point there
//! ```
//!
//! A file becomes longer by a footer at its new end, before anything is written in between. So there
//! is one at its end whenever file systems store bytes before the length that shows them. Those that
//! do not may leave the file longer and the footer missing, whatever the order of writes. Then the copy
//! at the start holds; a fixed image has none, so its footer is looked for before the zeros, and nobody
//! is told that such a file is RAW.

mod backing;
mod blocks;
mod dynamic;
mod fixed;
mod head;
mod image;
mod repair;
mod resize;
mod sink;

use std::sync::Arc;

use goldsmith_block::{
    Budget, Checked, Edit, Editor, Error, Flaw, Gaps, Options, Result, SECTOR, Storage, StorageMut,
};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::check::check_footers;
use crate::error::VhdError;
use crate::footer::{Found, SizeRule, keeps_hidden_in_copy};
use crate::geometry::Chs;
use crate::layer::{Opened, size_rule};
use crate::ondisk::{CREATOR_QEMU_CHS, CREATOR_QEMU_EXACT, CREATOR_VIRTUAL_PC, RawFooter, VERSION};

/// Opens the image in `storage` to change it; see [`Format::edit`](goldsmith_block::Format::edit).
pub(crate) fn edit(
    storage: Arc<dyn StorageMut>,
    budget: &Budget,
    options: &Options,
) -> Result<Box<dyn Editor>> {
    if let Some(len) = storage.fixed_len() {
        return Err(VhdError::FixedLength { len }.into());
    }
    let rule = size_rule(options);
    let read: Arc<dyn Storage> = Arc::clone(&storage) as _;
    let found = Found::read(&*read, rule)?;
    if found.footer.poisoned {
        return Err(VhdError::Poisoned.into());
    }
    let mut damage = Checked::default();
    let (opened, broken) = Opened::open_mended(Arc::clone(&read), budget, &found, Gaps::default())?;
    if let Some(broken) = &broken {
        damage.corruption(broken);
    }
    check_footers(read, &opened, &found, budget, &mut damage);
    Ok(match opened {
        Opened::Fixed(layer) => {
            Box::new(fixed::FixedEditor::new(storage, rule, found, layer, damage))
        }
        Opened::Dynamic(layer, header) => {
            let is_header_broken = broken.is_some();
            let mut image =
                image::Image::new(storage, rule, found, layer, *header, budget, damage)?;
            image.is_header_broken = is_header_broken;
            Box::new(dynamic::DynamicEditor::new(image))
        }
    })
}

/// The footer that both ends shall have, `raw` being the one that counts.
fn settled(raw: &RawFooter, storage: &dyn Storage) -> Result<RawFooter> {
    let mut raw = raw.clone();
    if keeps_hidden_in_copy(&raw) {
        let mut copy = RawFooter::new_zeroed();
        storage.read_at(0, copy.as_mut_bytes())?;
        raw.hidden |= copy.hidden;
        raw.checksum = U32::new(raw.computed_checksum());
    }
    Ok(raw)
}

/// `raw` for a disk of another size.
fn resized(raw: &RawFooter, virtual_size: u64) -> RawFooter {
    let mut raw = raw.clone();
    let chs = Chs::of_size(virtual_size);
    raw.current_size = U64::new(virtual_size);
    raw.cylinders = U16::new(chs.cylinders);
    (raw.heads, raw.sectors) = (chs.heads, chs.sectors);
    let by_geometry = [CREATOR_VIRTUAL_PC, CREATOR_QEMU_CHS].contains(&raw.creator);
    if by_geometry && chs != Chs::MAX && chs.total_sectors() * SECTOR != virtual_size {
        // Readers would take the geometry of these creators for the size.
        (raw.creator, raw.creator_version) = (CREATOR_QEMU_EXACT, U32::new(VERSION));
    }
    raw.checksum = U32::new(raw.computed_checksum());
    raw
}

/// Checks what a disk that is to have another size must have.
fn check_size(virtual_size: u64) -> Result<(), VhdError> {
    match virtual_size.is_multiple_of(SECTOR) {
        true => Ok(()),
        false => Err(VhdError::SizeNotSectors { virtual_size }),
    }
}

/// Checks that the disk of an image that is there ends with a sector.
fn check_whole(virtual_size: u64) -> Result<(), VhdError> {
    match virtual_size.is_multiple_of(SECTOR) {
        true => Ok(()),
        false => Err(VhdError::OddDisk { virtual_size }),
    }
}

/// Checks that `what`, which stands at `offset`, begins with a sector.
fn check_aligned(what: &'static str, offset: u64) -> Result<(), VhdError> {
    match offset.is_multiple_of(SECTOR) {
        true => Ok(()),
        false => Err(VhdError::Unaligned { what, offset }),
    }
}

/// Refuses what a size that the caller chose cannot decide: how large the disk is from now on.
fn refuse_rule(rule: SizeRule) -> Result<(), VhdError> {
    match rule {
        SizeRule::Creator => Ok(()),
        _ => Err(VhdError::ResizeByRule),
    }
}

/// Checks how much of a disk of `virtual_size` bytes a sink is to write.
fn check_reach(len: u64, virtual_size: u64) -> Result<(), VhdError> {
    if len > virtual_size {
        return Err(VhdError::SinkTooLong { len, virtual_size });
    }
    check_size(len)
}

/// Refuses to go on with an image that is damaged: what is written could land on what is not known.
fn refuse_damage(damage: &Checked) -> Result<(), VhdError> {
    let first = damage.flaws.iter().find_map(|flaw| match flaw {
        Flaw::Corruption(what) => Some(what.clone()),
        Flaw::Leak(_) | Flaw::Note(_) => None,
    });
    match first {
        Some(what) => Err(VhdError::Damaged { what }),
        None => Ok(()),
    }
}

/// The error for an edit that VHD has nothing for.
fn unsupported(edit: &Edit) -> Error {
    let what = match edit {
        Edit::TakeSnapshot { .. } | Edit::ApplySnapshot(_) | Edit::DeleteSnapshot(_) => {
            "snapshots inside the image; its children are its snapshots"
        }
        Edit::Bitmap { .. } | Edit::AddBitmaps(_) => "bitmaps of what was written",
        Edit::SetBacking(_) => "a parent if they are fixed: a fixed one holds all of its disk",
        Edit::Empty => "blocks that could be given up if they are fixed",
        _ => "options that could be changed",
    };
    Error::unsupported(format!("vpc images have no {what}"))
}
