//! A dynamic or differencing image whose file changes under it.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Budget, Checked, Error, ErrorKind, HostRange, Limits, Result, SECTOR, Scribe, StorageMut,
    Zeroing, align_up,
};
use zerocopy::{FromZeros, IntoBytes};

use super::settled;
use crate::check::{Owner, Place, check_blocks, tables};
use crate::error::VhdError;
use crate::footer::{Found, SizeRule};
use crate::layer::{DynamicLayer, Opened};
use crate::ondisk::{FOOTER_LEN, RawFooter, RawHeader, UNUSED};
use crate::sink::alignment;

/// See the module.
pub(super) struct Image {
    pub(super) scribe: Scribe,
    pub(super) rule: SizeRule,
    /// What both footers say.
    pub(super) footer: RawFooter,
    pub(super) header: RawHeader,
    /// The image as it was opened last.
    pub(super) layer: Arc<DynamicLayer>,
    /// The block table as it stands in the file now, without entries past the disk.
    pub(super) bat: Vec<u32>,
    /// Where the footer at the end stands.
    pub(super) end: u64,
    /// Whether it does not stand there yet.
    is_recovered: bool,
    /// Whether `header` was worked out, and something else stands in its place.
    pub(super) is_header_broken: bool,
    /// What was wrong when it was opened.
    pub(super) damage: Checked,
}

/// A budget for what passed one before, or was asked for by the caller.
pub(super) fn unlimited() -> Budget {
    let mut limits = Limits::default();
    limits.metadata_bytes = u64::MAX;
    Budget::new(&limits)
}

impl Image {
    pub(super) fn new(
        storage: Arc<dyn StorageMut>,
        rule: SizeRule,
        found: Found,
        layer: Arc<DynamicLayer>,
        header: RawHeader,
        budget: &Budget,
        mut damage: Checked,
    ) -> Result<Self> {
        check_blocks(&layer, &header, budget, &mut damage)?;
        for error in layer.names(&header).into_iter().filter_map(Result::err) {
            // Something would stand there once the file is longer.
            if matches!(error, VhdError::LocatorOutside { .. }) {
                damage.corruption(error);
            }
        }
        if let Some(lost) = &layer.lost_batmap {
            // What it says of blocks, their bitmaps need not.
            damage.corruption(lost);
        }
        let mut bat: Vec<u32> = budget.zeroed(layer.bat.len() as u64, "block table")?;
        bat.copy_from_slice(&layer.bat);
        let scribe = Scribe::new(storage);
        Ok(Self {
            footer: settled(&found.raw, &*scribe.read())?,
            scribe,
            rule,
            header,
            layer,
            bat,
            end: found.data_end,
            is_recovered: found.recovered,
            is_header_broken: false,
            damage,
        })
    }

    /// Gets ready for a change of an image that is not damaged.
    ///
    /// # Errors
    /// `Corrupt` if it is; `Unsupported` if a structure could be half written.
    pub(super) fn prepare(&mut self) -> Result<()> {
        super::refuse_damage(&self.damage)?;
        self.check_shape()?;
        self.settle_footers()?;
        // The last block may end with the disk, and the file with it; others shall stand behind.
        self.grow_to(self.used_end())
    }

    /// Makes both footers the same before anything is changed.
    ///
    /// A cut may have left them with a head each. These say the same until the first change, which only
    /// one of them would hear of; and what the other one stands on would be taken for a gap.
    fn settle_footers(&mut self) -> Result<()> {
        let mut copy = RawFooter::new_zeroed();
        self.scribe.read().read_at(0, copy.as_mut_bytes())?;
        match copy.as_bytes() == self.footer.as_bytes() {
            true => Ok(()),
            false => self.set_footers(self.footer.clone()),
        }
    }

    /// Checks that nothing could be half written.
    pub(super) fn check_shape(&self) -> Result<(), VhdError> {
        let geometry = &self.layer.geometry;
        super::check_whole(self.layer.info.virtual_size)?;
        super::check_aligned("dynamic header", geometry.header.offset)?;
        super::check_aligned("block table", geometry.bat.offset)?;
        match self.is_recovered {
            // It will stand where sectors begin.
            true => Ok(()),
            false => super::check_aligned("footer", self.end),
        }
    }

    /// Opens the image again, as it stands now.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let budget = unlimited();
        let found = Found::read(&*self.scribe.read(), self.rule)?;
        match Opened::open(self.scribe.read(), &budget, self.rule)? {
            Opened::Dynamic(layer, header) => {
                self.bat.clone_from(&layer.bat);
                (self.layer, self.header) = (layer, *header);
                (self.end, self.is_recovered) = (found.data_end, found.recovered);
                Ok(())
            }
            Opened::Fixed(_) => {
                let text = "a dynamic image became a fixed one";
                Err(Error::new(ErrorKind::Bug, text))
            }
        }
    }

    /// Byte offset of block `index`, if it has a place in `table`.
    pub(super) fn place_in(table: &[u32], index: usize) -> Option<u64> {
        let entry = table.get(index).filter(|entry| **entry != UNUSED)?;
        Some(u64::from(*entry) * SECTOR)
    }

    /// What stands in the file, ascending; blocks in their full length.
    pub(super) fn places(&self) -> Vec<Place> {
        let len = self.layer.geometry.block_len();
        let mut places = tables(&self.layer, &self.header);
        let blocks = (0..self.bat.len()).filter_map(|index| {
            let start = Self::place_in(&self.bat, index)?;
            Some(Place {
                start,
                end: start + len,
                owner: Owner::Block(index as u64),
            })
        });
        places.extend(blocks);
        places.sort_unstable_by_key(|place| (place.start, place.end));
        places
    }

    /// Where everything that the image knows of has ended, in whole sectors.
    pub(super) fn used_end(&self) -> u64 {
        let ends = self.places().into_iter().map(|place| place.end);
        let end = ends.max().unwrap_or(FOOTER_LEN);
        align_up(end, SECTOR).unwrap_or(end)
    }

    /// Where a block may stand that is to stand behind `end`: start and end.
    pub(super) fn place_behind(&self, index: usize, end: u64) -> Result<(u64, u64), VhdError> {
        let geometry = &self.layer.geometry;
        let (bitmap_len, blocks) = (geometry.bitmap_len(), geometry.blocks);
        // More than any tables take that are not much too long.
        let tables = 4 * blocks + (1 << 20);
        let alignment = alignment(tables, blocks, geometry.block_size());
        // Offsets that a table can hold are far from the end of the number line.
        let data = align_up(end + bitmap_len, alignment).unwrap_or(u64::MAX);
        let start = data - bitmap_len;
        if start / SECTOR >= u64::from(UNUSED) {
            let (block, sector) = (index as u64, start / SECTOR);
            return Err(VhdError::OutOfReach { block, sector });
        }
        Ok((start, data + geometry.block_size()))
    }

    /// Makes room in the file up to `end`, a multiple of a sector: zeros, where there was none.
    pub(super) fn grow_to(&mut self, end: u64) -> Result<()> {
        if end <= self.end {
            return Ok(());
        }
        // The file is one with a footer at its end before anything stands in front of that.
        let before = self.scribe.storage().len();
        let written = self.scribe.write("footer", end, self.footer.as_bytes());
        if let Err(error) = written.and_then(|()| self.scribe.barrier()) {
            // Else the next block that anybody adds would stand behind room that nobody uses.
            let _ = self.scribe.set_len(before);
            return Err(error);
        }
        let old = HostRange::new(self.end, FOOTER_LEN);
        self.end = end;
        self.scribe.zero("old footer", old, Zeroing::Punch)
    }

    /// Lets the file end at `end` and a footer, if it is longer.
    pub(super) fn cut_to(&mut self, end: u64) -> Result<()> {
        if end >= self.end {
            return Ok(());
        }
        self.scribe.write("footer", end, self.footer.as_bytes())?;
        self.scribe.barrier()?;
        self.end = end;
        self.scribe.set_len(end + FOOTER_LEN)?;
        self.scribe.barrier()
    }

    /// Makes both footers `footer`: from here on the image is what that says.
    ///
    /// Whichever of them arrives, each is one of an image that is there.
    pub(super) fn set_footers(&mut self, footer: RawFooter) -> Result<()> {
        self.footer = footer;
        let bytes = self.footer.as_bytes();
        self.scribe.write("footer", self.end, bytes)?;
        self.scribe.write("copy of the footer", 0, bytes)?;
        self.scribe.barrier()
    }

    /// Writes the entries of these blocks, which ascend, into the block table of the file. No entry
    /// is ever half written.
    pub(super) fn write_entries(&self, blocks: &[usize]) -> Result<()> {
        let offset = self.layer.geometry.bat.offset;
        for run in blocks.chunk_by(|one, next| one + 1 == *next) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let mut entries = vec![0; run.len() * 4];
            BigEndian::write_u32_into(&self.bat[*first..=*last], &mut entries);
            let at = offset + *first as u64 * 4;
            self.scribe.write("block table", at, &entries)?;
        }
        Ok(())
    }
}
