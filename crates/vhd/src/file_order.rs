//! The blocks of an image in the order of its file, for whoever gets that front to back and once.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Error, GuestRange, HostRange, Layer, Options, Result, SECTOR, Storage,
};

use crate::bitmap::Bitmap;
use crate::error::VhdError;
use crate::geometry::Dynamic;
use crate::layer::{DynamicLayer, Opened, size_rule};
use crate::ondisk::UNUSED;

/// What an image holds of its disk, in the order in which that stands in the file.
///
/// Two that are equal say the same of every byte of the file. It takes up to 16 bytes of memory for
/// each block, and no part of the file but its headers and tables is read for it: a sector bitmap stands
/// before its block, for [`runs`](Self::runs) to be told by.
#[derive(Debug, PartialEq, Eq)]
pub struct FileOrder {
    virtual_size: u64,
    poisoned: bool,
    /// `None` if the image is fixed.
    blocks: Option<Blocks>,
}

#[derive(Debug, PartialEq, Eq)]
struct Blocks {
    geometry: Dynamic,
    is_differencing: bool,
    low_bit_first: bool,
    /// Table entry and number of each block that is in the file, ascending; they do not touch.
    placed: Vec<(u32, u32)>,
    /// Those that break a rule, by number.
    broken: Vec<(u32, u32)>,
    /// One bit per block, highest bit first: whatever its bitmap says, all of it holds data.
    full: Vec<u8>,
}

/// A block, as it stands in the file. Its data are right behind its sector bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileBlock {
    /// The guest bytes that it is for.
    pub guest: GuestRange,
    /// Where its sector bitmap stands; without any length in a fixed image.
    pub bitmap: HostRange,
    /// Whether all of it holds data, whatever the bitmap says.
    is_full: bool,
}

impl FileOrder {
    /// That of the image in `storage`, opened with `options`; `None` if some of its blocks share bytes of the file, which
    /// no order has.
    ///
    /// # Errors
    /// Those of opening the image; `Limit` if what is kept is over `budget`, too.
    pub fn read(
        storage: Arc<dyn Storage>,
        options: &Options,
        budget: &Budget,
    ) -> Result<Option<Self>> {
        match Opened::open(storage, budget, size_rule(options))? {
            Opened::Fixed(layer) => Ok(Some(Self {
                poisoned: layer.poisoned,
                ..Self::fixed(layer.info().virtual_size)
            })),
            Opened::Dynamic(layer, _) => Self::of_blocks(&layer, budget),
        }
    }

    /// That of a fixed image of a disk of `virtual_size` bytes.
    pub fn fixed(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            poisoned: false,
            blocks: None,
        }
    }

    fn of_blocks(layer: &DynamicLayer, budget: &Budget) -> Result<Option<Self>> {
        let blocks = &layer.bat[..layer.geometry.blocks as usize];
        let entries = blocks.iter().copied().zip(0..);
        let entries = entries.filter(|(entry, _)| *entry != UNUSED);
        // A vector that grows may be twice as long as what is in it.
        let bytes = 2 * size_of::<(u32, u32)>() * entries.clone().count();
        budget.reserve(bytes as u64, "order of the blocks")?;
        let (mut placed, broken): (Vec<_>, Vec<_>) = entries
            .partition(|(entry, index)| layer.geometry.block((*index).into(), *entry).is_ok());
        placed.sort_unstable();
        let full = layer.batmap.as_ref().map(|batmap| batmap.map.clone());
        let blocks = Blocks {
            geometry: layer.geometry.clone(),
            is_differencing: layer.info.backing.is_some(),
            low_bit_first: layer.low_bit_first,
            placed,
            broken,
            full: full.unwrap_or_default(),
        };
        Ok(blocks.are_apart().then_some(Self {
            virtual_size: layer.info.virtual_size,
            poisoned: layer.poisoned,
            blocks: Some(blocks),
        }))
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Whether a parent shows through where the image holds nothing.
    pub fn is_differencing(&self) -> bool {
        self.blocks
            .as_ref()
            .is_some_and(|blocks| blocks.is_differencing)
    }

    /// Why none of the image's data can be had, if that is so.
    pub fn refusal(&self) -> Option<Error> {
        self.poisoned.then(|| VhdError::Poisoned.into())
    }

    /// The parts of the disk that cannot be had, and why, in the order of the disk.
    pub fn broken(&self) -> impl Iterator<Item = (GuestRange, Error)> + '_ {
        let blocks = self.blocks.iter();
        blocks.flat_map(|blocks| {
            blocks.broken.iter().filter_map(|(entry, index)| {
                let guest = blocks.guest(*index);
                let error = blocks.geometry.block((*index).into(), *entry).err()?;
                Some((guest, Error::from(error).at_guest(guest)))
            })
        })
    }

    /// The blocks, each of which ends in the file before the next one begins.
    pub fn blocks(&self) -> impl Iterator<Item = FileBlock> + '_ {
        let whole = FileBlock {
            guest: GuestRange::new(0, self.virtual_size),
            bitmap: HostRange::new(0, 0),
            is_full: true,
        };
        let whole = (self.blocks.is_none() && self.virtual_size > 0).then_some(whole);
        let blocks = self.blocks.iter();
        let blocks = blocks.flat_map(|blocks| blocks.placed.iter().map(|it| blocks.block(*it)));
        blocks.chain(whole)
    }

    /// The parts of `block` that hold data, ascending and apart; `bitmap` is what stands at its
    /// bitmap's place. All else is the parent's, or zeros.
    pub fn runs(
        &self,
        block: FileBlock,
        bitmap: &[u8],
    ) -> impl Iterator<Item = GuestRange> + use<> {
        let bits = match &self.blocks {
            Some(blocks) if !block.is_full => {
                let used = bitmap.len().min(blocks.geometry.bitmap_bytes() as usize);
                Bitmap::new(bitmap[..used].to_vec(), blocks.low_bit_first)
            }
            _ => Bitmap::Full,
        };
        let GuestRange { start, end } = block.guest;
        let sectors = (end - start).div_ceil(SECTOR);
        let mut sector = 0;
        std::iter::from_fn(move || {
            while sector < sectors {
                let (set, count) = bits.run(sector, sectors);
                let first = start + sector * SECTOR;
                sector += count;
                if set {
                    // The disk may end inside a sector.
                    return Some(GuestRange::new(first, end.min(start + sector * SECTOR)));
                }
            }
            None
        })
    }
}

impl FileBlock {
    /// Byte offset of its data.
    pub fn data(&self) -> u64 {
        self.bitmap.end()
    }
}

impl Blocks {
    fn guest(&self, index: u32) -> GuestRange {
        let start = u64::from(index) << self.geometry.block_bits;
        let end = start + self.geometry.block_size();
        GuestRange::new(start, end.min(self.geometry.virtual_size))
    }

    fn block(&self, (entry, index): (u32, u32)) -> FileBlock {
        let byte = self.full.get(index as usize / 8);
        FileBlock {
            guest: self.guest(index),
            bitmap: HostRange::new(u64::from(entry) * SECTOR, self.geometry.bitmap_len()),
            is_full: byte.is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0),
        }
    }

    /// Whether each block ends before the next one begins.
    fn are_apart(&self) -> bool {
        let ends = self.placed.iter().map(|it| {
            let block = self.block(*it);
            block.data() + block.guest.len()
        });
        let mut next = self.placed[self.placed.len().min(1)..].iter();
        ends.zip(&mut next)
            .all(|(end, (entry, _))| end <= u64::from(*entry) * SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::{Format, Limits};
    use goldsmith_storage::MemoryStorage;
    use goldsmith_testkit::build::vhd::Vhd;

    use super::*;
    use crate::VHD;

    /// Blocks of 4 KiB behind bitmaps of 512 bytes; the first one stands in sector 4.
    const BLOCKS: [u8; 4 << 12] = [7; 4 << 12];

    fn order(image: &Vhd) -> Result<Option<FileOrder>> {
        let storage = Arc::new(MemoryStorage::holding("disk.vhd", image.bytes()));
        let options = Options::defaults(VHD.open_options());
        FileOrder::read(storage, &options, &Budget::new(&Limits::default()))
    }

    fn image() -> Vhd {
        Vhd::dynamic(&BLOCKS, 4096)
    }

    #[test]
    fn blocks_come_in_the_order_of_the_file() {
        let turned = image().entry(0, 31).entry(3, 4).entry(1, 22).entry(2, 13);
        let order = order(&turned).unwrap().unwrap();
        assert_eq!(
            (order.virtual_size(), order.is_differencing()),
            (4 << 12, false)
        );
        let found: Vec<_> = order
            .blocks()
            .map(|block| (block.guest.start >> 12, block.bitmap.offset, block.data()))
            .collect();
        let place = |block: u64, sector: u64| (block, sector * 512, sector * 512 + 512);
        assert_eq!(
            found,
            [place(3, 4), place(2, 13), place(1, 22), place(0, 31)]
        );
    }

    #[test]
    fn blocks_that_share_bytes_have_no_order_and_those_outside_are_told_apart() {
        assert!(order(&image().entry(1, 12)).unwrap().is_none());
        assert!(order(&image().entry(1, 4)).unwrap().is_none());
        let order = order(&image().entry(1, 1000).entry(2, 1)).unwrap().unwrap();
        assert_eq!(order.blocks().count(), 2);
        let broken: Vec<_> = order.broken().map(|(guest, _)| guest.start >> 12).collect();
        assert_eq!(broken, [1, 2]);
    }

    #[test]
    fn runs_are_those_of_the_bitmap_and_end_with_the_disk() {
        let image = Vhd::dynamic(&BLOCKS[..4096 + 1024], 4096);
        let order = order(&image).unwrap().unwrap();
        let blocks: Vec<_> = order.blocks().collect();
        let sectors = |block, bitmap: u8| {
            let runs = order.runs(block, &[bitmap; 512]);
            runs.map(|run| (run.start / 512, run.end / 512))
                .collect::<Vec<_>>()
        };
        assert_eq!(sectors(blocks[0], 0b0110_0001), [(1, 3), (7, 8)]);
        assert_eq!(sectors(blocks[1], 0b0110_0001), [(9, 10)]);
        assert!(sectors(blocks[1], 0).is_empty());
        let fixed = FileOrder::fixed(1000);
        let whole = fixed.blocks().next().unwrap();
        assert!(fixed.runs(whole, &[]).eq([GuestRange::new(0, 1000)]));
    }
}
