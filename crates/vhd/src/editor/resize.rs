//! Another size of a dynamic or differencing disk.

use goldsmith_block::{GuestRange, HostRange, Preallocation, Result, SECTOR, Zeroing};

use super::head::{Head, MOST};
use super::image::Image;
use super::{check_size, refuse_rule, resized};
use crate::error::VhdError;
use crate::footer::{Disk, Footer};
use crate::ondisk::{FOOTER_LEN, MAX_DYNAMIC_SIZE};

impl Image {
    /// Gives the disk `virtual_size` bytes; `behind` are those of the disk that stands behind it.
    pub(super) fn resize(
        &mut self,
        virtual_size: u64,
        preallocation: Preallocation,
        behind: u64,
    ) -> Result<()> {
        check_size(virtual_size)?;
        refuse_rule(self.rule)?;
        if virtual_size > MAX_DYNAMIC_SIZE {
            return Err(VhdError::SizeOverDynamic { virtual_size }.into());
        }
        let old = self.layer.info.virtual_size;
        if virtual_size == old {
            return Ok(());
        }
        let block_size = self.layer.geometry.block_size();
        let entries = virtual_size.div_ceil(block_size);
        if virtual_size > old && entries > u64::from(MOST) {
            return Err(VhdError::TableTooLong {
                entries,
                block_size,
            }
            .into());
        }
        let blocks = entries as usize;
        let mut head = Head::of(self)?;
        head.set_blocks(self.bat.len(), blocks);
        let footer = resized(&self.footer, virtual_size);
        if virtual_size > old {
            let added = GuestRange::new(old, virtual_size);
            self.add_zeros(&mut head, added, preallocation, behind)?;
        }
        let moved = self.switch(head, footer)?;
        match moved || virtual_size < old {
            true => self.reclaim_rest(),
            false => Ok(()),
        }
    }

    pub(super) fn is_differencing(&self) -> Result<bool> {
        let footer = Footer::parse(&self.footer, self.rule)?;
        Ok(matches!(footer.disk, Disk::Differencing { .. }))
    }

    /// Sees to it that the disk of `head` holds zeros where it has bytes `added`.
    fn add_zeros(
        &mut self,
        head: &mut Head,
        added: GuestRange,
        preallocation: Preallocation,
        behind: u64,
    ) -> Result<()> {
        let is_differencing = self.is_differencing()?;
        let block_size = self.layer.geometry.block_size();
        let (first, within) = (
            (added.start / block_size) as usize,
            added.start % block_size,
        );
        let mut places = first..first;
        if preallocation != Preallocation::Off {
            places.end = added.end.div_ceil(block_size) as usize;
        } else if is_differencing && behind > added.start {
            // Blocks without a place would show what stands behind the image.
            places.end = added.end.min(behind).div_ceil(block_size) as usize;
        }
        if let Some(start) = Self::place_in(&self.bat, first) {
            self.clear_behind(start, within, is_differencing)?;
            places.start += 1;
        }
        let starts = self.add_blocks(head, places, preallocation)?;
        // Whatever of the parent shows in the block in which the disk ends goes on to show.
        if let Some((index, start)) = starts.first()
            && *index == first
            && within > 0
            && is_differencing
        {
            let mut bits = vec![0; self.layer.geometry.bitmap_len() as usize];
            self.mark(&mut bits, within / SECTOR, block_size / SECTOR);
            self.scribe.write("sector bitmap", *start, &bits)?;
            head.set_full(first, false);
        }
        Ok(())
    }

    /// Makes zeros of what the block at `start` holds behind the end of the disk, `within` bytes into it.
    /// Nobody sees it yet, and what stands there is anything.
    fn clear_behind(&mut self, start: u64, within: u64, is_differencing: bool) -> Result<()> {
        let geometry = &self.layer.geometry;
        let data = start + geometry.bitmap_len() + within;
        let range = HostRange::new(data, geometry.block_size() - within);
        self.scribe
            .zero("end of the last block", range, Zeroing::Punch)?;
        if !is_differencing {
            return Ok(());
        }
        let sectors = geometry.block_size() / SECTOR;
        let mut bits = vec![0; geometry.bitmap_len() as usize];
        self.scribe.read().read_at(start, &mut bits)?;
        self.mark(&mut bits, within / SECTOR, sectors);
        self.scribe.write("sector bitmap", start, &bits)
    }

    /// Gives these blocks of `head` places at the end of the file, full of zeros; gives those.
    fn add_blocks(
        &mut self,
        head: &mut Head,
        blocks: std::ops::Range<usize>,
        preallocation: Preallocation,
    ) -> Result<Vec<(usize, u64)>> {
        let mut starts = Vec::new();
        // What the new head needs would be taken from them again.
        let mut behind = self.end.max(FOOTER_LEN + head.len());
        for index in blocks {
            let (start, end) = self.place_behind(index, behind)?;
            starts.push((index, start));
            behind = end;
        }
        self.grow_to(behind)?;
        for (index, start) in &starts {
            self.write_empty_block(*start, preallocation)?;
            // `place_behind` gave a sector that an entry can hold.
            head.table[*index] = (start / SECTOR) as u32;
            head.set_full(*index, true);
        }
        Ok(starts)
    }

    /// Sets the bits of these sectors, as they stand in the file.
    pub(super) fn mark(&self, bits: &mut [u8], first: u64, end: u64) {
        for sector in first..end {
            bits[(sector / 8) as usize] |= match self.layer.low_bit_first {
                true => 1 << (sector % 8),
                false => 0x80 >> (sector % 8),
            };
        }
    }
}
