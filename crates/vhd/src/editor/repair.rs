//! Mending what can be mended without guessing at what the guest wrote.

use goldsmith_block::{Checked, HostRange, Repair, Result, SECTOR, align_up, is_zero};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U32;

use super::blocks::is_zero_in;
use super::head::Head;
use super::image::{Image, unlimited};
use crate::check::{
    Owner, Place, check_blocks, check_spare_entries, find_overlaps_and_gaps, tables,
};
use crate::error::VhdError;
use crate::footer::Found;
use crate::ondisk::{RawLocator, UNUSED};

/// Bytes that are compared at a time.
const PIECE: u64 = 64 << 10;

impl Image {
    /// Mends the image as far as `repair` says and as it can be.
    ///
    /// A block that lies outside the file or on a table is lost, and a guess at where it was would
    /// be worse: the table is left as it is, and so is the file behind it, so that no such block
    /// comes to point at something else. So it is where one stands on another, and there is room that
    /// nothing points to.
    pub(super) fn repair(&mut self, repair: Repair) -> Result<()> {
        if repair == Repair::Leaks {
            self.prepare()?;
            if self.has_spare_entries()? {
                // Readers would miss the blocks to which these point.
                self.rebuild_head()?;
            }
            return self.give_back();
        }
        self.check_shape()?;
        self.check_room_for_parts()?;
        self.refuse_rest()?;
        self.restore_header()?;
        let had_lost_names = self.drop_lost_names()?;
        self.restore_footers()?;
        if self.has_lost_blocks() || self.may_have_lost_a_place()? {
            return self.refresh();
        }
        self.damage = Checked::default();
        self.prepare()?;
        self.part_blocks()?;
        self.refresh()?;
        if had_lost_names || self.is_head_broken()? {
            self.rebuild_head()?;
        }
        self.give_back()
    }

    /// Fails if the header was worked out, and by that nothing points to something in the file: what the true
    /// one points to, perhaps.
    fn refuse_rest(&self) -> Result<()> {
        if !self.is_header_broken {
            return Ok(());
        }
        let last = Place {
            start: self.end,
            end: self.end,
            owner: Owner::Copy,
        };
        match self.rest_between(self.places().into_iter().chain([last]), |_| true)? {
            Some(rest) => Err(VhdError::HeaderUnsure { rest }.into()),
            None => Ok(()),
        }
    }

    /// What is not zero, and belongs to none of `places`, which ascend, between two of which one is `meant`.
    fn rest_between(
        &self,
        places: impl Iterator<Item = Place>,
        meant: impl Fn(&Place) -> bool,
    ) -> Result<Option<HostRange>> {
        let mut last = Place::default();
        for place in places {
            let from = align_up(last.end, SECTOR).unwrap_or(last.end);
            let rest = HostRange::new(from, place.start.saturating_sub(from));
            let is_meant = rest.len > 0 && (meant(&last) || meant(&place));
            if is_meant && !is_zero_in(&*self.scribe.read(), rest)? {
                return Ok(Some(rest));
            }
            if place.end > last.end {
                last = place;
            }
        }
        Ok(None)
    }

    /// Whether a block stands on another one and something where nothing points to: in its own place,
    /// perhaps, the only copy of its bytes.
    fn may_have_lost_a_place(&self) -> Result<bool> {
        let on_others = self.blocks_on_others();
        if on_others.is_empty() {
            return Ok(false);
        }
        // Between tables there may be names that none leads to any more.
        let is_block = |place: &Place| matches!(place.owner, Owner::Block(_));
        let places = self.places();
        let end = places.iter().map(|place| place.end).max().unwrap_or(0);
        if self.rest_between(places.into_iter(), is_block)?.is_some() {
            return Ok(true);
        }
        let end = align_up(end, SECTOR).unwrap_or(end);
        Ok(!self.are_copies(&on_others, end)?)
    }

    /// Whether all that stands behind `end`, where places end, is what parting these blocks had written
    /// before it was cut off: in each sector zeros, what stands in the block, or an old footer.
    fn are_copies(&self, blocks: &[usize], end: u64) -> Result<bool> {
        let storage = self.scribe.read();
        let mut behind = end;
        for index in blocks {
            let (to, next) = self.place_behind(*index, behind)?;
            let from = Self::place_in(&self.bat, *index).unwrap_or(to);
            let mut at = behind;
            while at < next.min(self.end) {
                // Before the copy there is nothing.
                let stop = if at < to { to } else { next };
                let span = storage.span_at(at, stop.min(self.end))?;
                if span.hole {
                    at += span.len;
                    continue;
                }
                let mut copy = vec![0; span.len.min(PIECE) as usize];
                let mut source = vec![0; copy.len()];
                storage.read_at(at, &mut copy)?;
                if at >= to {
                    let from = from + (at - to);
                    let there = self.end.saturating_sub(from).min(source.len() as u64);
                    storage.read_at(from, &mut source[..there as usize])?;
                }
                let mut sectors = copy
                    .chunks(SECTOR as usize)
                    .zip(source.chunks(SECTOR as usize));
                let is_ours = |(copy, source): (&[u8], &[u8])| {
                    copy == source || is_zero(copy) || copy == self.footer.as_bytes()
                };
                if !sectors.all(is_ours) {
                    return Ok(false);
                }
                at += copy.len() as u64;
            }
            behind = next;
        }
        match behind < self.end {
            true => is_zero_in(&*storage, HostRange::new(behind, self.end - behind)),
            false => Ok(true),
        }
    }

    /// Gives back the space that nothing points to.
    fn give_back(&mut self) -> Result<()> {
        self.reclaim()?;
        let mut checked = Checked::default();
        check_blocks(&self.layer, &self.header, &unlimited(), &mut checked)?;
        if checked.leaks == 0 {
            return Ok(());
        }
        // Tables stand behind the gap; at their place at the start they keep nothing from moving.
        let head = Head::of(self)?;
        let footer = self.footer.clone();
        self.switch(head, footer)?;
        self.reclaim()
    }

    /// Puts the header that was worked out in its place. Until all of it stands there it is worked out
    /// again, and is the same.
    fn restore_header(&mut self) -> Result<()> {
        if !self.is_header_broken {
            return Ok(());
        }
        let place = self.layer.geometry.header;
        self.scribe
            .write("dynamic header", place.offset, self.header.as_bytes())?;
        self.scribe.barrier()?;
        self.is_header_broken = false;
        Ok(())
    }

    /// Takes locators that point to nothing out of the header, before the file is longer and has
    /// something at those places. Whether there were any.
    ///
    /// Bytes that nobody reads take over what they had in the checksum, so no more than one sector
    /// changes.
    fn drop_lost_names(&mut self) -> Result<bool> {
        let names = self.layer.names(&self.header);
        if names.iter().all(std::result::Result::is_ok) {
            return Ok(false);
        }
        let sum = |bytes: &[u8]| bytes.iter().copied().map(u32::from).sum::<u32>();
        let header = &mut self.header;
        let mut taken = 0;
        for (entry, name) in header.parent_locators.iter_mut().zip(names) {
            if name.is_err() {
                taken += sum(entry.as_bytes());
                *entry = RawLocator::NONE;
            }
        }
        for byte in &mut header.padding {
            // At most 255.
            let step = taken.min(u32::from(u8::MAX - *byte)) as u8;
            *byte += step;
            taken -= u32::from(step);
        }
        header.checksum = U32::new(header.computed_checksum());
        let place = self.layer.geometry.header;
        self.scribe
            .write("dynamic header", place.offset, self.header.as_bytes())?;
        self.scribe.barrier()?;
        Ok(true)
    }

    /// Makes the footer at the end and its copy at the start the one that holds.
    fn restore_footers(&mut self) -> Result<()> {
        let found = Found::read(&*self.scribe.read(), self.rule)?;
        if found.warnings.is_empty() {
            return Ok(());
        }
        let is_cut_in_sector = !found.data_end.is_multiple_of(SECTOR);
        if is_cut_in_sector && self.has_lost_blocks() {
            // What a block lacks would be there again, as zeros.
            return Ok(());
        }
        // Where the data ends, be it the end of a file that lost its footer.
        self.end = align_up(found.data_end, SECTOR).unwrap_or(found.data_end);
        // One of the two stays as it is.
        self.set_footers(self.footer.clone())
    }

    /// Whether the table names a place where no block can be.
    fn has_lost_blocks(&self) -> bool {
        let geometry = &self.layer.geometry;
        let mut used = (0..).zip(&self.bat).filter(|(_, entry)| **entry != UNUSED);
        used.any(|(index, entry)| geometry.block_in_reach(index, *entry).is_err())
    }

    /// Refuses to make places for so many blocks that the file would become more than twice as long.
    ///
    /// [ours] Nobody's damage is like that: entries that name one block took the places of others, which
    /// are in the file. But a few MiB of entries can name one block half a million times.
    fn check_room_for_parts(&self) -> Result<()> {
        let count = self.blocks_on_others().len() as u64;
        let bytes = count.saturating_mul(self.layer.geometry.block_len());
        let file_len = self.scribe.read().len();
        if bytes <= file_len || self.has_lost_blocks() {
            return Ok(());
        }
        Err(VhdError::TooManyParts {
            count,
            bytes,
            file_len,
        }
        .into())
    }

    /// The blocks that stand on others, or on tables, and need places of their own; ascending.
    fn blocks_on_others(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut last = Place::default();
        for place in self.places() {
            let owners = [place.owner, last.owner];
            let block = owners.into_iter().find_map(|owner| match owner {
                Owner::Block(index) => Some(index as usize),
                _ => None,
            });
            if place.start < last.end
                && let Some(index) = block
            {
                found.push(index);
                if place.owner == Owner::Block(index as u64) {
                    continue;
                }
            }
            if place.end > last.end {
                last = place;
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Gives blocks that stand on others, or on tables, places of their own. The guest sees the same
    /// as before, but from now on a write to one block does not change another.
    fn part_blocks(&mut self) -> Result<()> {
        let mut moves = Vec::new();
        let mut behind = self.end;
        for index in self.blocks_on_others() {
            let (to, next) = self.place_behind(index, behind)?;
            moves.push((index, to));
            behind = next;
        }
        self.grow_to(behind)?;
        self.move_blocks(&moves)
    }

    /// Whether the batmap, the table behind the disk or the places of the parts are not what they
    /// should be.
    fn is_head_broken(&self) -> Result<bool> {
        let layer = &self.layer;
        let batmap = layer.batmap.as_ref();
        let full_but_absent = batmap.is_some_and(|batmap| {
            let mut blocks = (0..).zip(&self.bat);
            blocks.any(|(index, entry)| *entry == UNUSED && batmap.is_full(index))
        });
        let block_len = layer.geometry.block_len();
        let mut overlaps = Checked::default();
        let parts = tables(layer, &self.header);
        find_overlaps_and_gaps(parts, block_len, &mut overlaps);
        Ok(layer.lost_batmap.is_some()
            || full_but_absent
            || self.has_spare_entries()?
            || overlaps.corruptions > 0)
    }

    /// Whether the table has entries behind the end of the disk.
    fn has_spare_entries(&self) -> Result<bool> {
        let mut spare = Checked::default();
        check_spare_entries(&self.layer, &mut spare)?;
        Ok(!spare.flaws.is_empty())
    }

    /// Writes the head anew, each part in a place of its own.
    fn rebuild_head(&mut self) -> Result<()> {
        let mut head = Head::of(self)?;
        for (index, entry) in self.bat.iter().enumerate() {
            if *entry == UNUSED {
                head.set_full(index, false);
            }
        }
        head.header.padding = [0; 256];
        let footer = self.footer.clone();
        self.switch(head, footer).map(drop)
    }
}
