//! A dynamic or differencing image: blocks in the order in which the guest's data first touches them.

use std::sync::{Arc, Mutex, PoisonError};

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Budget, Committed, Demand, Error, ErrorKind, GuestRange, Placement, Result, SECTOR, Sink,
    SinkProfile, Slot, StorageMut, ZeroPolicy, align_up,
};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{GRAIN, Wanted};
use crate::batmap;
use crate::error::VhdError;
use crate::locator::NewParent;
use crate::ondisk::{
    BATMAP_1_2, DIFFERENCING, DYNAMIC, FOOTER_LEN, HEADER_COOKIE, HEADER_LEN, MAX_DYNAMIC_SIZE,
    NO_OFFSET, RawFooter, RawHeader, UNUSED, VERSION,
};

/// Smallest and largest block we write, in bytes. [spec] "Only been tested with 512K and 2 MB
/// block sizes"; [libvhd] takes nothing larger than 2 MiB.
const BLOCK_SIZE: std::ops::RangeInclusive<u64> = 512 << 10..=2 << 20;
/// Bytes of the sector bitmap before each block: one bit per sector, one sector for all of them.
const BITMAP_LEN: u64 = SECTOR;
/// What a demand consists of, in bytes. [ours] Zeros that are stored cost nothing but space inside a
/// block that is there anyway; looking for shorter runs of them than in qcow2 costs time.
const UNIT: u64 = 64 << 10;
/// Byte offset of the block table.
const BAT_OFFSET: u64 = FOOTER_LEN + HEADER_LEN;

const _: () = assert!(*BLOCK_SIZE.end() / SECTOR / 8 <= BITMAP_LEN);

/// See the module.
pub(super) struct DynamicSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    footer: RawFooter,
    header: RawHeader,
    /// Bytes of guest data per block, a power of two.
    block_size: u64,
    /// Whether a batmap stands behind the block table.
    batmap: bool,
    /// Byte offset and bytes of the parent's names.
    names: (u64, Vec<u8>),
    map: Mutex<Map>,
}

/// Which blocks have a place, and where the next one goes.
struct Map {
    /// The block table as it will stand in the file, padded to whole sectors with unused entries.
    bat: Vec<u32>,
    /// Byte offset of the end of the last block, or of the tables: a multiple of 512.
    end: u64,
    /// Of what the data of each block starts at a multiple, in bytes.
    alignment: u64,
    /// One bit per block, highest bit first: all its sectors hold data.
    full: Vec<u8>,
    /// The block of a differencing image that is being filled, and its sector bitmap as it will
    /// stand in the file. The disk comes in order, so no other block is half known.
    current: Option<(u64, [u8; BITMAP_LEN as usize])>,
}

/// Of what the data of each of `blocks` starts at a multiple, in bytes, if they stand behind `end`.
///
/// [ours] Four million blocks of the smallest size do not fit before the last sector that an entry can name
/// if each is to start with a page.
pub(crate) fn alignment(end: u64, blocks: u64, block_size: u64) -> u64 {
    let most = GRAIN + block_size;
    match end + GRAIN + blocks * most < u64::from(UNUSED) * SECTOR {
        true => GRAIN,
        false => SECTOR,
    }
}

impl DynamicSink {
    pub(super) fn new(storage: Arc<dyn StorageMut>, wanted: &Wanted) -> Result<Self, VhdError> {
        let virtual_size = wanted.virtual_size;
        if virtual_size > MAX_DYNAMIC_SIZE {
            return Err(VhdError::SizeOverDynamic { virtual_size });
        }
        let block_size = wanted.spec.options.size("block_size");
        if !block_size.is_power_of_two() || !BLOCK_SIZE.contains(&block_size) {
            return Err(VhdError::BlockSizeOption { found: block_size });
        }
        // At most 2040 GiB / 512 KiB, which is some four million entries.
        let blocks = virtual_size.div_ceil(block_size) as u32;
        let bat = vec![UNUSED; blocks.next_multiple_of(SECTOR as u32 / 4) as usize];
        let mut header = RawHeader::new_zeroed();
        header.cookie = HEADER_COOKIE;
        header.data_offset = U64::new(NO_OFFSET);
        header.table_offset = U64::new(BAT_OFFSET);
        header.version = U32::new(VERSION);
        header.max_table_entries = U32::new(blocks);
        header.block_size = U32::new(block_size as u32);
        let mut end = BAT_OFFSET + size_of_val(bat.as_slice()) as u64;
        if wanted.batmap {
            end = batmap::header_offset(BAT_OFFSET, blocks) + SECTOR + batmap::map_len(blocks);
        }
        let parent = wanted.spec.backing.as_ref();
        let parent = parent.map(|parent| NewParent::new(wanted.spec.uuid, parent));
        let parent = parent.transpose()?;
        let names = parent.as_ref().map(|parent| parent.place(&mut header, end));
        let names = (end, names.unwrap_or_default());
        end += names.1.len() as u64;
        header.checksum = U32::new(header.computed_checksum());
        let (disk_type, grain, zeroes) = match parent {
            // Smaller than in a dynamic image: what is the parent's is not to be stored.
            Some(_) => (DIFFERENCING, SECTOR, ZeroPolicy::Covering),
            // The storage was emptied.
            None => (DYNAMIC, UNIT, ZeroPolicy::Implied),
        };
        Ok(Self {
            storage,
            profile: SinkProfile {
                virtual_size,
                grain,
                placement: Placement::Allocated,
                zeroes,
                packing: None,
            },
            footer: wanted.footer(disk_type, FOOTER_LEN),
            header,
            block_size,
            batmap: wanted.batmap,
            names,
            map: Mutex::new(Map {
                full: vec![0; bat.len().div_ceil(8)],
                bat,
                end,
                alignment: alignment(end, blocks.into(), block_size),
                current: None,
            }),
        })
    }

    fn is_differencing(&self) -> bool {
        self.profile.zeroes == ZeroPolicy::Covering
    }

    /// Gives `range` a place, calling `found` with each part that lies in one block and with the
    /// byte offset of its data; its sectors then hold data.
    fn place(&self, range: GuestRange, mut found: impl FnMut(GuestRange, u64)) -> Result<()> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let GuestRange { mut start, end } = range;
        while start < end {
            let index = start / self.block_size;
            let block = index * self.block_size;
            let part = GuestRange::new(start, end.min(block + self.block_size));
            let data = map.place(index, self.block_size)?;
            if self.is_differencing() {
                self.mark(&mut map, index, part)?;
            } else {
                // All sectors of an allocated block hold data, be it zeros: so a reader sees the
                // same bytes whether it looks at the bitmap or, like QEMU, does not.
                map.full[(index / 8) as usize] |= 0x80 >> (index % 8);
            }
            found(part, data + (start - block));
            start = part.end;
        }
        Ok(())
    }

    /// Sets the bits of `part`, which lies in block `index`.
    fn mark(&self, map: &mut Map, index: u64, part: GuestRange) -> Result<()> {
        if map.current.is_some_and(|(block, _)| index < block) {
            let text = format!("block {index} was asked for after a later one");
            return Err(Error::new(ErrorKind::Bug, text));
        }
        if map.current.is_none_or(|(block, _)| block != index) {
            self.finish_block(map)?;
        }
        let (_, bits) = map.current.get_or_insert((index, [0; BITMAP_LEN as usize]));
        let block = index * self.block_size;
        // What a block holds past the end of the disk is nobody's, so it does not make it less full.
        let end = match part.end == self.profile.virtual_size {
            true => block + self.block_size,
            false => part.end,
        };
        for sector in (part.start - block) / SECTOR..(end - block).div_ceil(SECTOR) {
            bits[(sector / 8) as usize] |= 0x80 >> (sector % 8);
        }
        Ok(())
    }

    /// Stores the bitmap of the block that was being filled, if there is one.
    fn finish_block(&self, map: &mut Map) -> Result<()> {
        let Some((index, bits)) = map.current.take() else {
            return Ok(());
        };
        let used = (self.block_size / SECTOR / 8) as usize;
        if bits[..used].iter().all(|byte| *byte == u8::MAX) {
            map.full[(index / 8) as usize] |= 0x80 >> (index % 8);
            return Ok(());
        }
        let offset = u64::from(map.bat[index as usize]) * SECTOR;
        self.storage.write_at(offset, &bits)
    }

    /// Writes the batmap, if the image shall have one.
    fn write_batmap(&self, full: &[u8]) -> Result<()> {
        if !self.batmap {
            return Ok(());
        }
        let blocks = self.header.max_table_entries.get();
        let offset = batmap::header_offset(BAT_OFFSET, blocks);
        let size = self.profile.virtual_size;
        let batmap = batmap::build(full, blocks, size, offset, BATMAP_1_2);
        self.storage.write_at(offset, &batmap)
    }
}

impl Map {
    /// Byte offset of the data of block `index`, which gets a place if it has none.
    fn place(&mut self, index: u64, block_size: u64) -> Result<u64, VhdError> {
        let entry = &mut self.bat[index as usize];
        if *entry == UNUSED {
            // A file of 2040 GiB and one grain per block is far from the end of the number line.
            let data = align_up(self.end + BITMAP_LEN, self.alignment).unwrap_or(u64::MAX);
            let sector = (data - BITMAP_LEN) / SECTOR;
            match u32::try_from(sector) {
                Ok(sector) if sector != UNUSED => *entry = sector,
                _ => {
                    let block = index;
                    return Err(VhdError::OutOfReach { block, sector });
                }
            }
            self.end = data + block_size;
        }
        Ok(u64::from(*entry) * SECTOR + BITMAP_LEN)
    }
}

impl Sink for DynamicSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        for demand in demands {
            self.place(demand.range, |range, host| {
                slots.push(Slot {
                    range,
                    host,
                    packed: None,
                });
            })?;
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        // Nobody writes there, so it reads as zeros.
        self.place(range, |_, _| ())
    }

    /// The whole table is in memory anyway; sector bitmaps, of which one is, are for a differencing
    /// image alone.
    fn take_any_order(&mut self, _budget: &Budget) -> Result<bool> {
        Ok(!self.is_differencing())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        Some(&*self.storage)
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        // Nobody wrote there, so it reads as zeros.
        Ok(())
    }

    /// Makes the image one in an order in which no reader is misled if the machine stops midway.
    ///
    /// Data and tables first. Then the head: QEMU opens an image by its head alone, and would take
    /// one that has only its tail for an empty disk. The tail last: it is what the specification
    /// goes by, and so do we.
    fn commit(self: Box<Self>) -> Result<Committed> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish_block(&mut map)?;
        let Map { bat, end, full, .. } = &mut *map;
        let end = *end;
        for (block, entry) in bat.iter().enumerate() {
            if full[block / 8] & (0x80 >> (block % 8)) != 0 {
                let bits = [u8::MAX; BITMAP_LEN as usize];
                self.storage.write_at(u64::from(*entry) * SECTOR, &bits)?;
            }
        }
        self.write_batmap(full)?;
        let (offset, names) = &self.names;
        if !names.is_empty() {
            self.storage.write_at(*offset, names)?;
        }
        BigEndian::from_slice_u32(bat);
        self.storage.write_at(BAT_OFFSET, bat.as_bytes())?;
        // The last block has its full length, whether or not data was written to its end.
        self.storage.set_len(end)?;
        self.storage.flush()?;
        let head = [self.footer.as_bytes(), self.header.as_bytes()].concat();
        self.storage.write_at(0, &head)?;
        self.storage.flush()?;
        self.storage.write_at(end, self.footer.as_bytes())?;
        self.storage.flush()?;
        Ok(Committed {
            file_len: end + FOOTER_LEN,
        })
    }
}
