//! Blocks: moved out of the way and into gaps, and their sector bitmaps.

use goldsmith_block::{
    ErrorKind, HostRange, Preallocation, Result, SECTOR, Scribe, Storage, Zeroing, align_up,
    is_zero,
};

use super::image::Image;
use crate::check::Owner;
use crate::error::VhdError;
use crate::ondisk::UNUSED;

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Makes `range` zeros that are written one by one.
pub(super) fn write_zeros(scribe: &Scribe, range: HostRange) -> Result<()> {
    let zeros = vec![0; range.len.min(PIECE) as usize];
    let mut at = range.offset;
    while at < range.end() {
        let len = (range.end() - at).min(PIECE);
        scribe.write("disk", at, &zeros[..len as usize])?;
        at += len;
    }
    Ok(())
}

/// Whether `range`, of which all is in the file, is zeros.
pub(super) fn is_zero_in(storage: &dyn Storage, range: HostRange) -> Result<bool> {
    let mut piece = vec![0; range.len.min(PIECE) as usize];
    let mut at = range.offset;
    while at < range.end() {
        let span = storage.span_at(at, range.end())?;
        if span.hole {
            at += span.len;
            continue;
        }
        // At most a piece.
        let piece = &mut piece[..span.len.min(PIECE) as usize];
        storage.read_at(at, piece)?;
        if !is_zero(piece) {
            return Ok(false);
        }
        at += piece.len() as u64;
    }
    Ok(true)
}

impl Image {
    /// Moves the blocks of `table` that begin before `end` to the end of the file, in the file's
    /// table and in `table`. Says whether there were any.
    pub(super) fn make_room(&mut self, end: u64, table: &mut [u32]) -> Result<bool> {
        let mut moves = Vec::new();
        // Where they go there must not be what is in the way of the others.
        let mut behind = self.end.max(end);
        // Others stand nowhere yet, or behind it.
        for index in 0..table.len().min(self.bat.len()) {
            if Self::place_in(table, index).is_some_and(|start| start < end) {
                let (to, next) = self.place_behind(index, behind)?;
                moves.push((index, to));
                behind = next;
            }
        }
        if moves.is_empty() {
            // Nothing may stand in the place of a head, not even the footer.
            self.grow_to(end)?;
            return Ok(false);
        }
        self.grow_to(behind.max(end))?;
        self.move_blocks(&moves)?;
        for (index, _) in moves {
            table[index] = self.bat[index];
        }
        Ok(true)
    }

    /// Copies blocks to where nothing stands, then makes the table point there.
    ///
    /// `moves` are indices, ascending, and byte offsets.
    pub(super) fn move_blocks(&mut self, moves: &[(usize, u64)]) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        for (index, to) in moves {
            if let Some(from) = Self::place_in(&self.bat, *index) {
                self.copy_block(from, *to)?;
            }
        }
        self.scribe.barrier()?;
        self.scribe.storage().may_stop(false);
        for (index, to) in moves {
            // Places are handed out by `place_behind` or were those of other blocks.
            self.bat[*index] = (to / SECTOR) as u32;
        }
        let indices: Vec<_> = moves.iter().map(|(index, _)| *index).collect();
        self.write_entries(&indices)?;
        self.scribe.barrier()
    }

    fn copy_block(&self, from: u64, to: u64) -> Result<()> {
        let storage = self.scribe.read();
        let len = self.layer.geometry.block_len();
        // The last block of an image may end with the file.
        let there = len.min(storage.len().saturating_sub(from));
        let mut piece = vec![0; PIECE.min(len) as usize];
        let mut done = 0;
        while done < len {
            let step = PIECE.min(len - done);
            let piece = &mut piece[..step as usize];
            let known = there.saturating_sub(done).min(step) as usize;
            storage.read_at(from + done, &mut piece[..known])?;
            piece[known..].fill(0);
            if is_zero(piece) {
                let range = HostRange::new(to + done, step);
                self.scribe.zero("block", range, Zeroing::Punch)?;
            } else {
                self.scribe.write("block", to + done, piece)?;
            }
            done += step;
        }
        Ok(())
    }

    /// [Reclaims](Self::reclaim) what a change has left, which is done: whoever stops this leaves wasted space.
    pub(super) fn reclaim_rest(&mut self) -> Result<()> {
        match self.reclaim() {
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                self.scribe.storage().may_stop(false);
                self.refresh()
            }
            done => done,
        }
    }

    /// Moves blocks from the end of the file into its gaps, and cuts off the rest.
    ///
    /// # Errors
    /// `Cancelled` as long as blocks are copied, of which nobody knows then.
    pub(super) fn reclaim(&mut self) -> Result<()> {
        let len = self.layer.geometry.block_len();
        let places = self.places();
        let mut gaps = Vec::new();
        let mut end = 0;
        for place in &places {
            let mut from = align_up(end, SECTOR).unwrap_or(end);
            // No more than there are blocks to fill them: a file may have nothing but a gap.
            while from + len <= place.start && gaps.len() < places.len() {
                // As new ones are placed, if that fits; else as the one that stood there.
                let to = match self.place_behind(0, from)? {
                    (start, end) if end <= place.start => start,
                    _ => from,
                };
                gaps.push(to);
                from = to + len;
            }
            end = end.max(place.end);
        }
        let last_first = places.iter().rev().filter_map(|place| match place.owner {
            Owner::Block(index) => Some((index as usize, place.start)),
            _ => None,
        });
        let pairs = gaps.into_iter().zip(last_first);
        let pairs = pairs.take_while(|(to, (_, start))| to < start);
        let mut moves: Vec<_> = pairs.map(|(to, (index, _))| (index, to)).collect();
        moves.sort_unstable();
        self.scribe.storage().may_stop(true);
        self.move_blocks(&moves)?;
        self.scribe.storage().may_stop(false);
        self.cut_to(self.used_end())?;
        self.refresh()
    }

    /// Makes a block of zeros at `start`, where the file became longer and so holds zeros; all its
    /// sectors hold data.
    pub(super) fn write_empty_block(&self, start: u64, preallocation: Preallocation) -> Result<()> {
        let geometry = &self.layer.geometry;
        let bitmap_len = geometry.bitmap_len();
        let data = HostRange::new(start + bitmap_len, geometry.block_size());
        match preallocation {
            Preallocation::Full => write_zeros(&self.scribe, data)?,
            Preallocation::Falloc => self.scribe.zero("block", data, Zeroing::Keep)?,
            Preallocation::Off | Preallocation::Metadata => {}
        }
        let bits = vec![u8::MAX; bitmap_len as usize];
        self.scribe.write("sector bitmap", start, &bits)
    }

    /// Makes sectors that hold no data zeros in the file, too: a reader that does not look at
    /// bitmaps then finds what one finds that does, and nothing behind the image.
    pub(super) fn clear_absent_sectors(&self) -> Result<()> {
        let geometry = &self.layer.geometry;
        let sectors = geometry.block_size() / SECTOR;
        for index in 0..self.bat.len() {
            let Some(start) = Self::place_in(&self.bat, index) else {
                continue;
            };
            let block = geometry.block_in_reach(index as u64, self.bat[index])?;
            let bitmap = self.layer.bitmap(index as u64, block)?;
            if bitmap.is_full() {
                continue;
            }
            let data = start + geometry.bitmap_len();
            let mut sector = 0;
            while sector < sectors {
                let (holds_data, run) = bitmap.run(sector, sectors);
                if !holds_data {
                    let range = HostRange::new(data + sector * SECTOR, run * SECTOR);
                    self.scribe
                        .zero("sectors without data", range, Zeroing::Punch)?;
                }
                sector += run;
            }
        }
        Ok(())
    }

    /// Refuses a change of what lies behind the end of the disk if there is anything by the other size.
    ///
    /// # Errors
    /// `Unsupported` if so; `Corrupt` if the image is damaged.
    pub(super) fn check_one_size(&self) -> Result<()> {
        super::refuse_damage(&self.damage)?;
        let geometry = &self.layer.geometry;
        let known_to_others = &self.bat[geometry.blocks as usize..];
        match known_to_others.iter().all(|entry| *entry == UNUSED) && self.ends_with_disk()? {
            true => Ok(()),
            false => Err(VhdError::TwoSizes {
                virtual_size: geometry.virtual_size,
                other: geometry.reach,
            }
            .into()),
        }
    }

    /// Whether the block in which the disk ends holds nothing behind that for those who go by the other
    /// size.
    fn ends_with_disk(&self) -> Result<bool> {
        let geometry = &self.layer.geometry;
        let block_size = geometry.block_size();
        let (index, within) = (
            geometry.virtual_size / block_size,
            geometry.virtual_size % block_size,
        );
        let end = (geometry.reach - index * block_size).min(block_size);
        let place = Self::place_in(&self.bat, index as usize);
        let (Some(start), true) = (place, 0 < within && within < end) else {
            return Ok(true);
        };
        let block = geometry.block_in_reach(index, self.bat[index as usize])?;
        let bitmap = self.layer.bitmap(index, block)?;
        let is_differencing = self.is_differencing()?;
        let (mut sector, sectors) = (within / SECTOR, end.div_ceil(SECTOR));
        while sector < sectors {
            let (holds_data, run) = bitmap.run(sector, sectors);
            let data = start + geometry.bitmap_len() + sector * SECTOR;
            // The last block of an image may end with the file.
            let len = (run * SECTOR).min(self.end.saturating_sub(data));
            let range = HostRange::new(data, len);
            // Zeros of a child hide what its parent has there.
            if holds_data && (is_differencing || !is_zero_in(&*self.scribe.read(), range)?) {
                return Ok(false);
            }
            sector += run;
        }
        Ok(true)
    }

    /// Says of all sectors of all blocks that they hold data.
    pub(super) fn set_all_bits(&self) -> Result<()> {
        let geometry = &self.layer.geometry;
        let bits = vec![u8::MAX; geometry.bitmap_len() as usize];
        for index in 0..self.bat.len() {
            let Some(start) = Self::place_in(&self.bat, index) else {
                continue;
            };
            let block = geometry.block_in_reach(index as u64, self.bat[index])?;
            if !self.layer.bitmap(index as u64, block)?.is_full() {
                self.scribe.write("sector bitmap", start, &bits)?;
            }
        }
        Ok(())
    }
}
