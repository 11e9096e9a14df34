//! From what a file claims to what may be relied on.

use std::ops::RangeInclusive;

use goldsmith_block::{HostRange, SECTOR, align_up};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::VhdError;
use crate::ondisk::{
    CREATOR_QEMU_CHS, CREATOR_TAPDISK, CREATOR_VIRTUAL_PC, DIFFERENCING, DYNAMIC, FIXED,
    FOOTER_COOKIE, FOOTER_LEN, HEADER_COOKIE, HEADER_LEN, MAX_DYNAMIC_SIZE, RawFooter, RawHeader,
    SHORT_FOOTER_LEN, VERSION,
};

/// Smallest and largest accepted block, in bytes. [ours] The specification only gives a default,
/// 2 MiB, and asks for a power of two.
const BLOCK_SIZE: RangeInclusive<u32> = 4096..=256 << 20;

/// Cylinders, heads and sectors per track: the size of a disk as ATA once counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The footer in the last bytes of a file, and its length in bytes: 512, or 511 in images of
/// Virtual PC before 2004. [spec "Hard Disk Footer Format"]
///
/// Only the cookie is looked at.
pub(crate) fn footer_at_end(tail: &[u8]) -> Option<(RawFooter, u64)> {
    [FOOTER_LEN, SHORT_FOOTER_LEN].into_iter().find_map(|len| {
        let start = tail.len().checked_sub(len as usize)?;
        let found = &tail[start..];
        if !found.starts_with(&FOOTER_COOKIE) {
            return None;
        }
        // The byte that a short footer lacks is one of the reserved zeros.
        let mut raw = RawFooter::new_zeroed();
        raw.as_mut_bytes()[..found.len()].copy_from_slice(found);
        Some((raw, len))
    })
}

/// What a footer says about the whole image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Size of the disk in bytes.
    pub(crate) virtual_size: u64,
    pub(crate) disk: Disk,
    /// Whether the sector bitmaps count from the lowest bit of each byte.
    pub(crate) low_bit_first: bool,
}

/// The disk type, with what matters for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Fixed,
    Dynamic { header_offset: u64 },
    Differencing { header_offset: u64 },
}

impl Footer {
    /// Checks all that can be checked without the rest of the file.
    pub(crate) fn parse(raw: &RawFooter) -> Result<Self, VhdError> {
        let (stored, computed) = (raw.checksum.get(), raw.computed_checksum());
        // Zero is a checksum like any other: the specification knows none that means "unset".
        if stored != computed {
            return Err(VhdError::FooterChecksum { stored, computed });
        }
        let version = raw.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(VhdError::FooterVersion { found: version });
        }
        let header_offset = raw.data_offset.get();
        let disk = match raw.disk_type.get() {
            FIXED => Disk::Fixed,
            DYNAMIC => Disk::Dynamic { header_offset },
            DIFFERENCING => Disk::Differencing { header_offset },
            found => return Err(VhdError::DiskType { found }),
        };
        Ok(Self {
            virtual_size: virtual_size(raw)?,
            disk,
            // [libvhd] Version 0.1 of blktap set bits as a little-endian machine numbers them.
            low_bit_first: raw.creator == CREATOR_TAPDISK && raw.creator_version.get() == 1,
        })
    }
}

/// Which of its two sizes an image means, in bytes.
///
/// Virtual PC shows the guest what the geometry gives, and so do the images that QEMU writes
/// without `force_size`; everybody else means `current_size`, which is also the only one that can
/// be right where the geometry is at its maximum. [qemu block/vpc.c]
fn virtual_size(raw: &RawFooter) -> Result<u64, VhdError> {
    let chs = Chs {
        cylinders: raw.cylinders.get(),
        heads: raw.heads,
        sectors: raw.sectors,
    };
    let current_size = raw.current_size.get();
    let by_geometry = [CREATOR_VIRTUAL_PC, CREATOR_QEMU_CHS].contains(&raw.creator);
    if !by_geometry || chs.total_sectors() == Chs::MAX.total_sectors() {
        return Ok(current_size);
    }
    // [ours] QEMU shows an empty disk here, and so loses all of it without a word.
    if chs.total_sectors() == 0 && current_size != 0 {
        return Err(VhdError::EmptyGeometry {
            cylinders: chs.cylinders,
            heads: chs.heads,
            sectors: chs.sectors,
            current_size,
        });
    }
    Ok(chs.total_sectors() * SECTOR)
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
    pub(crate) header: HostRange,
    /// The entries that matter; the table may go on behind them.
    pub(crate) bat: HostRange,
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
            header,
            bat: HostRange::new(offset, need * 4),
            data_end,
        })
    }

    /// Bytes of guest data per block.
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// Bytes of the sector bitmap that say something: one bit per sector of a block.
    pub(crate) fn bitmap_bytes(&self) -> u64 {
        self.block_size() / SECTOR / 8
    }

    /// Where the sector bitmap and the data of `block` stand, `entry` being its BAT entry.
    ///
    /// Of the data only what the disk needs must be in the file. [spec] Each block has its full
    /// length, but a guest never sees what the last one holds past the end of the disk.
    pub(crate) fn block(&self, block: u64, entry: u32) -> Result<Block, VhdError> {
        // [spec] "The bitmap is padded to a 512-byte sector boundary." At most 64 KiB.
        let bitmap_len = align_up(self.bitmap_bytes(), SECTOR).unwrap_or(u64::MAX);
        let needed = self
            .block_size()
            .min(self.virtual_size - (block << self.block_bits));
        let bitmap = u64::from(entry) * SECTOR;
        let host = HostRange::new(bitmap, bitmap_len + needed);
        if host.end() > self.data_end {
            return Err(VhdError::BlockOutside {
                block,
                entry,
                host,
                data_end: self.data_end,
            });
        }
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
        Ok(Block {
            bitmap,
            data: bitmap + bitmap_len,
        })
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

/// Characters of a parent's name that a message shows.
const SHOWN: usize = 80;

/// The front of the parent's file name as `header` has it, for people to read; empty if there is
/// none.
///
/// [spec] UTF-16, big-endian as everything else. blktap 0.1 wrote the order of its machine, which
/// shows as gibberish.
pub(crate) fn parent_name(header: &RawHeader) -> String {
    if header.cookie != HEADER_COOKIE {
        return String::new();
    }
    let units = header.parent_name.iter().map(|unit| unit.get());
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
        .take(SHOWN)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::byteorder::big_endian::U32;

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

    #[test]
    fn footer_is_found_in_the_last_512_or_511_bytes_only() {
        let mut tail = [0; 512];
        assert!(footer_at_end(&tail).is_none());
        tail[2..10].copy_from_slice(b"conectix");
        assert!(footer_at_end(&tail).is_none());
        tail[1..9].copy_from_slice(b"conectix");
        let (raw, len) = footer_at_end(&tail).unwrap();
        assert_eq!((raw.cookie, len), (*b"conectix", 511));
        assert!(footer_at_end(&tail[2..]).is_none());
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

        /// Any 512 bytes: an answer, never a panic. With the checksum put right in half of them.
        #[test]
        fn footer_parse_is_total(
            bytes in prop::collection::vec(any::<u8>(), 512),
            sealed: bool,
            disk_type in 0u32..6,
            by_geometry: bool,
        ) {
            let mut raw = RawFooter::new_zeroed();
            raw.as_mut_bytes().copy_from_slice(&bytes);
            if sealed {
                raw.version = U32::new(VERSION);
                raw.disk_type = U32::new(disk_type);
                if by_geometry {
                    raw.creator = CREATOR_VIRTUAL_PC;
                }
                raw.checksum = U32::new(raw.computed_checksum());
            }
            let parsed = Footer::parse(&raw);
            prop_assert!(parsed.is_err() || sealed && (2..=4).contains(&disk_type));
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
