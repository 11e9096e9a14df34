//! Writing: an image made from nothing, its tables and footers last.

use std::sync::{Arc, Mutex, PoisonError};

use byteorder::{BigEndian, ByteOrder};
use goldsmith_block::{
    Committed, CreateSpec, Demand, GuestRange, HostRange, OptionKind, OptionSpec, Placement,
    Result, SECTOR, Sink, SinkProfile, Slot, Storage, StorageMut, Transfer, ZeroPolicy, align_down,
    align_up,
};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::VhdError;
use crate::geometry::Chs;
use crate::ondisk::{
    CREATOR_QEMU_EXACT, DYNAMIC, EPOCH, FEATURE_RESERVED, FIXED, FOOTER_COOKIE, FOOTER_LEN,
    HEADER_COOKIE, HEADER_LEN, HOST_WINDOWS, MAX_DYNAMIC_SIZE, NO_OFFSET, RawFooter, RawHeader,
    UNUSED, VERSION,
};

/// The creation options of this format.
pub(crate) static OPTIONS: [OptionSpec; 2] = [
    OptionSpec {
        name: "subformat",
        kind: OptionKind::Choice(&["dynamic", "fixed"]),
        default: "dynamic",
        help: "dynamic: blocks as they are needed; fixed: the disk as it is, and a footer",
    },
    OptionSpec {
        name: "block_size",
        kind: OptionKind::Size,
        default: "2M",
        help: "bytes allocated together in a dynamic image: 512k, 1M or 2M",
    },
];

/// Smallest and largest block we write, in bytes. [spec] "Only been tested with 512K and 2 MB
/// block sizes"; [libvhd] takes nothing larger than 2 MiB.
const BLOCK_SIZE: std::ops::RangeInclusive<u64> = 512 << 10..=2 << 20;
/// Bytes of the sector bitmap before each block: one bit per sector, one sector for all of them.
const BITMAP_LEN: u64 = SECTOR;
/// Where the data of a block may begin, and what a demand for a fixed image consists of, in bytes.
/// Guests and hosts think in pages of this size; [blktap] aligns blocks like this, too.
const GRAIN: u64 = 4096;
/// What a demand for a dynamic image consists of, in bytes. [ours] Zeros that are stored cost
/// nothing but space inside a block that is there anyway; looking for shorter runs of them than in
/// qcow2 costs time.
const UNIT: u64 = 64 << 10;
/// Byte offset of the block table.
const BAT_OFFSET: u64 = FOOTER_LEN + HEADER_LEN;

const _: () = assert!(*BLOCK_SIZE.end() / SECTOR / 8 <= BITMAP_LEN);

/// Begins an image; see [`Format::create`](goldsmith_block::Format::create).
pub(crate) fn create(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
    let virtual_size = spec.virtual_size;
    if !virtual_size.is_multiple_of(SECTOR) {
        return Err(VhdError::SizeNotSectors { virtual_size }.into());
    }
    if spec.compress {
        return Err(VhdError::Compressed.into());
    }
    if spec.uuid.is_nil() {
        return Err(VhdError::NullUuid.into());
    }
    if let Some(len) = storage.fixed_len() {
        return Err(VhdError::FixedLength { len }.into());
    }
    let sink: Box<dyn Sink> = match spec.options.choice("subformat") {
        "fixed" => Box::new(FixedSink::new(storage.clone(), spec)),
        _ => Box::new(DynamicSink::new(storage.clone(), spec)?),
    };
    // From here on no old footer is left, and what is not written reads as zeros.
    storage.set_len(0)?;
    Ok(sink)
}

/// The footer of the image that `spec` describes, `data_offset` being that of the dynamic header.
fn footer(spec: &CreateSpec, disk_type: u32, data_offset: u64) -> RawFooter {
    let chs = Chs::of_size(spec.virtual_size);
    let timestamp = spec.timestamp.saturating_sub(EPOCH);
    let mut raw = RawFooter {
        cookie: FOOTER_COOKIE,
        features: U32::new(FEATURE_RESERVED),
        version: U32::new(VERSION),
        data_offset: U64::new(data_offset),
        timestamp: U32::new(u32::try_from(timestamp).unwrap_or(u32::MAX)),
        // The creator decides what the size means, so it is no place for a name of our own: QEMU
        // before 10.0 takes every creator that it does not know for one that counts by geometry,
        // and would cut the end off the disk. This one has meant "exactly current_size" to all
        // readers since it appeared. [qemu]
        creator: CREATOR_QEMU_EXACT,
        creator_version: U32::new(VERSION),
        creator_host: HOST_WINDOWS,
        original_size: U64::new(spec.virtual_size),
        current_size: U64::new(spec.virtual_size),
        cylinders: U16::new(chs.cylinders),
        heads: chs.heads,
        sectors: chs.sectors,
        disk_type: U32::new(disk_type),
        checksum: U32::ZERO,
        uuid: spec.uuid.into_bytes(),
        saved_state: 0,
        hidden: 0,
        reserved: [0; 426],
    };
    raw.checksum = U32::new(raw.computed_checksum());
    raw
}

fn profile(virtual_size: u64, placement: Placement) -> SinkProfile {
    SinkProfile {
        virtual_size,
        grain: match placement {
            Placement::Identity => GRAIN,
            Placement::Allocated => UNIT,
        },
        placement,
        // The storage was emptied.
        zeroes: ZeroPolicy::Implied,
        packing: None,
    }
}

/// A fixed image: each byte at its own offset, then the footer.
struct FixedSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    footer: RawFooter,
}

impl FixedSink {
    fn new(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Self {
        Self {
            storage,
            profile: profile(spec.virtual_size, Placement::Identity),
            footer: footer(spec, FIXED, NO_OFFSET),
        }
    }
}

impl Sink for FixedSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        slots.extend(demands.iter().map(Demand::in_place));
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        self.storage.can_share(source)
    }

    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let from = HostRange::new(from, slot.range.len());
        Ok(transfer.run(source, from, &*self.storage, slot.host))
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        // Nobody wrote there, so it reads as zeros.
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        self.storage.flush()?;
        self.storage
            .write_at(self.profile.virtual_size, self.footer.as_bytes())?;
        self.storage.flush()?;
        Ok(Committed {
            file_len: self.profile.virtual_size + FOOTER_LEN,
        })
    }
}

/// A dynamic image: blocks in the order in which the guest's data first touches them.
struct DynamicSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    footer: RawFooter,
    header: RawHeader,
    /// Bytes of guest data per block, a power of two.
    block_size: u64,
    map: Mutex<Map>,
}

/// Which blocks have a place, and where the next one goes.
struct Map {
    /// The block table as it will stand in the file, padded to whole sectors with unused entries.
    bat: Vec<u32>,
    /// Byte offset of the end of the last block, or of the block table: a multiple of 512.
    end: u64,
}

impl DynamicSink {
    fn new(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Self, VhdError> {
        let virtual_size = spec.virtual_size;
        if virtual_size > MAX_DYNAMIC_SIZE {
            return Err(VhdError::SizeOverDynamic { virtual_size });
        }
        let block_size = spec.options.size("block_size");
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
        header.checksum = U32::new(header.computed_checksum());
        Ok(Self {
            storage,
            profile: profile(virtual_size, Placement::Allocated),
            footer: footer(spec, DYNAMIC, FOOTER_LEN),
            header,
            block_size,
            map: Mutex::new(Map {
                end: BAT_OFFSET + size_of_val(bat.as_slice()) as u64,
                bat,
            }),
        })
    }
}

impl Map {
    /// Byte offset of the data of block `index`, which gets a place if it has none.
    fn place(&mut self, index: u64, block_size: u64) -> Result<u64, VhdError> {
        let entry = &mut self.bat[index as usize];
        if *entry == UNUSED {
            // A file of 2040 GiB and one grain per block is far from the end of the number line.
            let data = align_up(self.end + BITMAP_LEN, GRAIN).unwrap_or(u64::MAX);
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
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for demand in demands {
            let GuestRange { mut start, end } = demand.range;
            while start < end {
                let block = align_down(start, self.block_size);
                let part = GuestRange::new(start, end.min(block + self.block_size));
                let data = map.place(block / self.block_size, self.block_size)?;
                slots.push(Slot {
                    range: part,
                    host: data + (start - block),
                    packed: None,
                });
                start = part.end;
            }
        }
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn can_share(&self, source: &dyn Storage) -> bool {
        self.storage.can_share(source)
    }

    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let from = HostRange::new(from, slot.range.len());
        Ok(transfer.run(source, from, &*self.storage, slot.host))
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        // Nobody wrote there, so it reads as zeros.
        Ok(())
    }

    /// Makes the image one in an order in which no reader is misled if the machine stops midway.
    ///
    /// Data and block table first. Then the head: QEMU opens an image by its head alone, and would
    /// take one that has only its tail for an empty disk. The tail last: it is what the
    /// specification goes by, and so do we.
    fn commit(self: Box<Self>) -> Result<Committed> {
        let Map { mut bat, end } = self
            .map
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for entry in bat.iter().filter(|entry| **entry != UNUSED) {
            // All sectors of an allocated block hold data, be it zeros: so a reader sees the same
            // bytes whether it looks at the bitmap or, like QEMU, does not.
            self.storage
                .write_at(u64::from(*entry) * SECTOR, &[u8::MAX; BITMAP_LEN as usize])?;
        }
        BigEndian::from_slice_u32(&mut bat);
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
