//! From what a file claims to what may be relied on.

use std::ops::RangeInclusive;

use goldsmith_block::{Detail, HostRange, SECTOR, align_down, align_up, is_zero};
use zerocopy::IntoBytes;

use crate::error::VhdError;
use crate::ondisk::{
    FOOTER_LEN, HEADER_COOKIE, HEADER_LEN, MAX_DYNAMIC_SIZE, NO_OFFSET, RawHeader, VERSION,
};

/// Most bytes between what stands behind each other in a file, and before the footer: what alignment may
/// cost. [ours]
pub(crate) const GAP: u64 = 4096;

/// Smallest and largest accepted block, in bytes. [ours] The specification only gives a default,
/// 2 MiB, and asks for a power of two.
pub(crate) const BLOCK_SIZE: RangeInclusive<u32> = 4096..=256 << 20;

/// Cylinders, heads and sectors per track: the size of a disk as ATA once counted it. The order is
/// that in which libvhd compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chs {
    pub(crate) cylinders: u16,
    pub(crate) heads: u8,
    pub(crate) sectors: u8,
}

impl Chs {
    /// The largest there is, 127.5 GiB. It stands for every larger disk, too.
    pub(crate) const MAX: Self = Self {
        cylinders: 65535,
        heads: 16,
        sectors: 255,
    };

    /// How many sectors of 512 bytes there are.
    pub(crate) fn total_sectors(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The smallest geometry that holds a disk of `virtual_size` bytes, as QEMU looks for it; the
    /// largest there is for larger disks. [qemu block/vpc.c]
    pub(crate) fn holding(virtual_size: u64) -> Self {
        let wanted = (virtual_size / SECTOR).min(Self::MAX.total_sectors());
        let mut size = wanted;
        loop {
            let chs = Self::of_size(size * SECTOR);
            let missing = wanted.saturating_sub(chs.total_sectors());
            if missing == 0 {
                return chs;
            }
            // Sizes in between give the same geometry or one of fewer sectors, and a cylinder is at
            // most 16 * 255 sectors: this ends after some thousand steps.
            size += 1;
        }
    }

    /// The geometry of a disk of `virtual_size` bytes, rounded down. [spec "CHS Calculation"]
    ///
    /// From 65535 * 16 * 63 sectors on there are 255 sectors per track: the specification writes
    /// `>=`, as QEMU and libvhd do; xapi's vhd-format has `>` and differs for that one size.
    pub(crate) fn of_size(virtual_size: u64) -> Self {
        let total = (virtual_size / SECTOR).min(Self::MAX.total_sectors());
        let (mut heads, mut sectors) = (16, 255);
        if total < 65535 * 16 * 63 {
            sectors = 17;
            heads = (total / sectors).div_ceil(1024).max(4);
            if total / sectors >= heads * 1024 || heads > 16 {
                (heads, sectors) = (16, 31);
            }
            if total / sectors >= heads * 1024 {
                (heads, sectors) = (16, 63);
            }
        }
        Self {
            // At most 267382800 / 255 / 16 and 66059279 / 63 / 16, which 16 bits hold.
            cylinders: (total / sectors / heads) as u16,
            heads: heads as u8,
            sectors: sectors as u8,
        }
    }
}

impl RawHeader {
    /// What a check may want to know.
    pub(crate) fn facts(&self) -> [(&'static str, Detail); 3] {
        let reserved = self.reserved != 0 || !is_zero(&self.padding);
        [
            (
                "header-newer-version",
                Detail::Flag(self.version.get() != VERSION),
            ),
            (
                "header-data-offset",
                Detail::Flag(self.data_offset != NO_OFFSET),
            ),
            ("header-reserved-bytes", Detail::Flag(reserved)),
        ]
    }

    /// Whether anything stands where a differencing image describes its parent.
    pub(crate) fn names_parent(&self) -> bool {
        let name = self.parent_name.as_bytes();
        let parts = [&self.parent_uuid[..], name, self.parent_locators.as_bytes()];
        self.parent_timestamp != 0 || parts.into_iter().any(|part| !is_zero(part))
    }
}

/// Where a dynamic image keeps what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dynamic {
    /// Size of the disk in bytes.
    pub(crate) virtual_size: u64,
    /// Base 2 logarithm of the bytes of guest data per block.
    pub(crate) block_bits: u32,
    /// Number of blocks in the disk, and of BAT entries that matter.
    pub(crate) blocks: u64,
    /// Where the disk ends for those who go by another size, at `virtual_size` or behind it, and how many
    /// blocks it has for them.
    pub(crate) reach: u64,
    pub(crate) blocks_in_reach: u64,
    pub(crate) header: HostRange,
    /// The entries that matter; the table may go on behind them.
    pub(crate) bat: HostRange,
    /// Number of entries in the whole table.
    pub(crate) bat_entries: u32,
    /// Where the footer begins, and so where blocks must have ended.
    pub(crate) data_end: u64,
}

impl Dynamic {
    /// Where the dynamic header stands, if it lies before `data_end`.
    pub(crate) fn header_range(offset: u64, data_end: u64) -> Result<HostRange, VhdError> {
        match offset.checked_add(HEADER_LEN) {
            Some(end) if end <= data_end => Ok(HostRange::new(offset, HEADER_LEN)),
            _ => Err(VhdError::HeaderOutside { offset, data_end }),
        }
    }

    /// Checks `raw`, which stands at `header`, against the size of the disk and the place of the
    /// footer, both in bytes.
    pub(crate) fn parse(
        raw: &RawHeader,
        header: HostRange,
        virtual_size: u64,
        data_end: u64,
    ) -> Result<Self, VhdError> {
        if raw.cookie != HEADER_COOKIE {
            let offset = header.offset;
            return Err(VhdError::HeaderCookie { offset });
        }
        let (stored, computed) = (raw.checksum.get(), raw.computed_checksum());
        if stored != computed {
            return Err(VhdError::HeaderChecksum { stored, computed });
        }
        let version = raw.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(VhdError::HeaderVersion { found: version });
        }
        if virtual_size > MAX_DYNAMIC_SIZE {
            return Err(VhdError::DynamicTooLarge { virtual_size });
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || !BLOCK_SIZE.contains(&block_size) {
            return Err(VhdError::BlockSize { found: block_size });
        }
        // The table may be longer: Xen makes room for the largest disk there is.
        let entries = raw.max_table_entries.get();
        let need = virtual_size.div_ceil(block_size.into());
        if u64::from(entries) < need {
            return Err(VhdError::BatTooSmall { entries, need });
        }
        let offset = raw.table_offset.get();
        let end = offset.checked_add(u64::from(entries) * 4);
        if end.is_none_or(|end| end > data_end) {
            return Err(VhdError::BatOutside {
                offset,
                entries,
                data_end,
            });
        }
        Ok(Self {
            virtual_size,
            block_bits: block_size.trailing_zeros(),
            blocks: need,
            reach: virtual_size,
            blocks_in_reach: need,
            header,
            bat: HostRange::new(offset, need * 4),
            bat_entries: entries,
            data_end,
        })
    }

    /// The same, where others take the disk for one of `reach` bytes, as far as the table goes.
    pub(crate) fn reaching(self, reach: u64) -> Self {
        let most = u64::from(self.bat_entries) << self.block_bits;
        let reach = reach.min(most).max(self.virtual_size);
        Self {
            reach,
            blocks_in_reach: reach.div_ceil(self.block_size()),
            ..self
        }
    }

    /// Bytes of guest data per block.
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// Bytes of the sector bitmap that say something: one bit per sector of a block.
    pub(crate) fn bitmap_bytes(&self) -> u64 {
        self.block_size() / SECTOR / 8
    }

    /// Bytes that the sector bitmap of a block takes.
    pub(crate) fn bitmap_len(&self) -> u64 {
        // [spec] "The bitmap is padded to a 512-byte sector boundary." At most 64 KiB.
        align_up(self.bitmap_bytes(), SECTOR).unwrap_or(u64::MAX)
    }

    /// Bytes that a block takes with its bitmap, at most 64 KiB and 256 MiB.
    pub(crate) fn block_len(&self) -> u64 {
        self.bitmap_len() + self.block_size()
    }

    /// Where the sector bitmap and the data of `block` stand, `entry` being its BAT entry.
    ///
    /// Of the data only what the disk needs must be in the file. [spec] Each block has its full
    /// length, but a guest never sees what the last one holds past the end of the disk.
    pub(crate) fn block(&self, block: u64, entry: u32) -> Result<Block, VhdError> {
        self.block_of(self.virtual_size, block, entry)
    }

    /// The same for those who go by the larger size; `block` may be past the disk, but not past `reach`.
    pub(crate) fn block_in_reach(&self, block: u64, entry: u32) -> Result<Block, VhdError> {
        self.block_of(self.reach, block, entry)
    }

    /// The same for a block that the file does not hold to its end, but whose sector bitmap it does; and
    /// how many bytes of the data are there, in whole sectors.
    pub(crate) fn cut_block(&self, block: u64, entry: u32) -> Option<(Block, u64)> {
        let place = self.place(entry);
        let there = self.data_end.checked_sub(place.data)?;
        let host = HostRange::new(place.bitmap, self.bitmap_len() + there);
        self.off_metadata(block, host).ok()?;
        Some((place, align_down(there, SECTOR)))
    }

    /// What of a block the disk needs, by the larger size.
    pub(crate) fn needed(&self, block: u64, entry: u32) -> HostRange {
        let rest = self.reach.saturating_sub(block << self.block_bits);
        let len = self.bitmap_len() + self.block_size().min(rest);
        HostRange::new(self.place(entry).bitmap, len)
    }

    /// What is wrong with a block of which the file has all that the disk needs, but neither all of it nor
    /// no more than that.
    ///
    /// [ours] The specification knows whole blocks only, and QEMU refuses others. Who lets the last one end
    /// with the disk lets the file end there as well.
    pub(crate) fn cut_oddly(&self, block: u64, entry: u32) -> Option<VhdError> {
        let host = HostRange::new(self.place(entry).bitmap, self.block_len());
        let ends_with_disk = self.needed(block, entry).end() + GAP >= self.data_end;
        (host.end() > self.data_end && !ends_with_disk).then_some(VhdError::BlockOutside {
            block,
            entry,
            host,
            data_end: self.data_end,
        })
    }

    fn block_of(&self, disk_end: u64, block: u64, entry: u32) -> Result<Block, VhdError> {
        let needed = self.block_size().min(disk_end - (block << self.block_bits));
        let place = self.place(entry);
        let host = HostRange::new(place.bitmap, self.bitmap_len() + needed);
        if host.end() > self.data_end {
            return Err(VhdError::BlockOutside {
                block,
                entry,
                host,
                data_end: self.data_end,
            });
        }
        self.off_metadata(block, host)?;
        Ok(place)
    }

    fn place(&self, entry: u32) -> Block {
        let bitmap = u64::from(entry) * SECTOR;
        Block {
            bitmap,
            data: bitmap + self.bitmap_len(),
        }
    }

    /// Fails if `block`, which takes `host`, stands on something else.
    fn off_metadata(&self, block: u64, host: HostRange) -> Result<(), VhdError> {
        let copy = HostRange::new(0, FOOTER_LEN);
        for (taken, what) in [
            (copy, "copy of the footer"),
            (self.header, "dynamic header"),
            (self.bat, "block table"),
        ] {
            if host.offset < taken.end() && taken.offset < host.end() {
                return Err(VhdError::BlockOnMetadata { block, host, what });
            }
        }
        Ok(())
    }
}

/// Where an allocated block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Byte offset of the sector bitmap.
    pub(crate) bitmap: u64,
    /// Byte offset of the data.
    pub(crate) data: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::byteorder::big_endian::U32;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn chs(cylinders: u16, heads: u8, sectors: u8) -> Chs {
        Chs {
            cylinders,
            heads,
            sectors,
        }
    }

    #[test]
    fn geometry_follows_the_appendix_of_the_specification() {
        for (sectors, expected) in [
            (0, chs(0, 4, 17)),
            (67, chs(0, 4, 17)),
            (68, chs(1, 4, 17)),
            // 100 MiB: 12047 tracks of 17.
            (204_800, chs(1003, 12, 17)),
            // 16 heads of 1024 tracks of 17 are one sector too many for the first step, ...
            (17 * 16 * 1024 - 1, chs(1023, 16, 17)),
            (17 * 16 * 1024, chs(561, 16, 31)),
            // ... and so for the second.
            (31 * 16 * 1024 - 1, chs(1023, 16, 31)),
            (31 * 16 * 1024, chs(503, 16, 63)),
            // 1 GiB.
            (2_097_152, chs(2080, 16, 63)),
            (65535 * 16 * 63 - 1, chs(65534, 16, 63)),
            // The one size where xapi's vhd-format differs.
            (65535 * 16 * 63, chs(16191, 16, 255)),
            (65535 * 16 * 255 - 1, chs(65534, 16, 255)),
            (65535 * 16 * 255, Chs::MAX),
            (u64::MAX / SECTOR, Chs::MAX),
        ] {
            assert_eq!(Chs::of_size(sectors * SECTOR), expected, "{sectors}");
        }
    }

    proptest! {
        /// A geometry never has more sectors than its disk, and lacks less than two cylinders.
        #[test]
        fn geometry_rounds_down(sectors in 68..Chs::MAX.total_sectors()) {
            let chs = Chs::of_size(sectors * SECTOR);
            let cylinder = u64::from(chs.heads) * u64::from(chs.sectors);
            prop_assert!(chs.total_sectors() <= sectors);
            prop_assert!(chs.total_sectors() + 2 * cylinder > sectors);
        }

        /// Any header under any footer: an answer, and blocks that lie where they may.
        #[test]
        fn header_parse_is_total(
            bytes in prop::collection::vec(any::<u8>(), 1024),
            sealed: bool,
            block_bits in 0u32..32,
            table_offset: u64,
            place in 0u64..10_000,
            virtual_size: u64,
            small: bool,
            data_end: u64,
            entry: u32,
        ) {
            let mut raw = RawHeader::new_zeroed();
            raw.as_mut_bytes().copy_from_slice(&bytes);
            if sealed {
                raw.cookie = HEADER_COOKIE;
                raw.version = U32::new(VERSION);
                raw.block_size = U32::new(1 << block_bits);
                raw.table_offset = (table_offset % data_end.max(1)).into();
                raw.checksum = U32::new(raw.computed_checksum());
            }
            let virtual_size = if small { virtual_size >> 24 } else { virtual_size };
            let Ok(header) = Dynamic::header_range(place, data_end) else {
                return Ok(());
            };
            let Ok(dynamic) = Dynamic::parse(&raw, header, virtual_size, data_end) else {
                return Ok(());
            };
            prop_assert!(dynamic.bat.end() <= data_end);
            for block in [0, dynamic.blocks / 2, dynamic.blocks.saturating_sub(1)] {
                if block < dynamic.blocks && let Ok(found) = dynamic.block(block, entry) {
                    prop_assert!(found.data < data_end);
                    prop_assert!(found.data - found.bitmap >= dynamic.bitmap_bytes());
                }
            }
        }
    }
}
