//! The structures of a VHD as they stand in the file, drawn in `FORMAT.md`.

use std::mem::offset_of;

use goldsmith_block::SECTOR;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a footer. [spec "Hard Disk Footer Format"]
pub(crate) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// What XenServer's tools put in its place while they work on an image, so that nobody opens it.
/// [libvhd]
pub(crate) const POISON_COOKIE: [u8; 8] = *b"v_poison";
/// First bytes of a dynamic header. [spec "Dynamic Disk Header Format"]
pub(crate) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Version 1.0 of the footer and of the dynamic header. [spec]
pub(crate) const VERSION: u32 = 0x0001_0000;
/// First bytes of a batmap header. [libvhd]
pub(crate) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";
/// Versions of the batmap: the older one sums its bytes as signed numbers. [libvhd]
pub(crate) const BATMAP_1_1: u32 = 0x0001_0001;
pub(crate) const BATMAP_1_2: u32 = 0x0001_0002;
/// The feature bit of a disk that may be deleted when its machine stops. [spec]
pub(crate) const FEATURE_TEMPORARY: u32 = 1;
/// The feature bit that is always set. [spec]
pub(crate) const FEATURE_RESERVED: u32 = 2;
/// Where there is no next structure. [qemu] The specification prints 32 bits of it, but every
/// writer sets all 64.
pub(crate) const NO_OFFSET: u64 = u64::MAX;
/// 2000-01-01 00:00:00 UTC, where time stamps begin, in seconds since 1970. [spec]
pub(crate) const EPOCH: u64 = 946_684_800;

/// Disk types. [spec "Disk Type"]
pub(crate) const FIXED: u32 = 2;
pub(crate) const DYNAMIC: u32 = 3;
pub(crate) const DIFFERENCING: u32 = 4;

/// Creator applications. [spec "Creator Application"], [qemu]
pub(crate) const CREATOR_VIRTUAL_PC: [u8; 4] = *b"vpc ";
pub(crate) const CREATOR_QEMU_CHS: [u8; 4] = *b"qemu";
pub(crate) const CREATOR_QEMU_EXACT: [u8; 4] = *b"qem2";
pub(crate) const CREATOR_TAPDISK: [u8; 4] = *b"tap\0";
/// Versions of [`CREATOR_TAPDISK`]: with the bits of bitmaps in another order, with a batmap perhaps,
/// with one for certain, and of version 1.2. [libvhd]
pub(crate) const TAPDISK_0_1: u32 = 0x0000_0001;
pub(crate) const TAPDISK_1_1: u32 = 0x0001_0001;
pub(crate) const TAPDISK_1_2: u32 = 0x0001_0002;
pub(crate) const TAPDISK_1_3: u32 = 0x0001_0003;
/// Host operating system "Windows", the only one that is not Macintosh. [spec]
pub(crate) const HOST_WINDOWS: [u8; 4] = *b"Wi2k";

/// Platform codes of parent locators. [spec "Platform Code"]
pub(crate) const LOCATOR_NONE: [u8; 4] = [0; 4];
/// A path relative to the image, with backslashes, in UTF-16.
pub(crate) const LOCATOR_W2RU: [u8; 4] = *b"W2ru";
/// An absolute path, with backslashes, in UTF-16.
pub(crate) const LOCATOR_W2KU: [u8; 4] = *b"W2ku";
/// An alias of the Macintosh: a blob for its own file manager, no name.
pub(crate) const LOCATOR_MAC: [u8; 4] = *b"Mac ";
/// A file URL in UTF-8.
pub(crate) const LOCATOR_MACX: [u8; 4] = *b"MacX";
/// Out of use: a relative and an absolute path with backslashes.
pub(crate) const LOCATOR_WI2R: [u8; 4] = *b"Wi2r";
pub(crate) const LOCATOR_WI2K: [u8; 4] = *b"Wi2k";

/// The BAT entry of a block that has no place in the file. [spec]
pub(crate) const UNUSED: u32 = u32::MAX;
/// Largest disk of a dynamic image in bytes, 2040 GiB. [spec "Dynamic Hard Disk Image"]
pub(crate) const MAX_DYNAMIC_SIZE: u64 = 2040 << 30;

/// Length of a footer in bytes, and the place of the dynamic header in the images we write.
pub(crate) const FOOTER_LEN: u64 = size_of::<RawFooter>() as u64;
/// Length of the footer that versions before Virtual PC 2004 wrote, in bytes. [spec]
pub(crate) const SHORT_FOOTER_LEN: u64 = 511;
/// Length of a dynamic header in bytes.
pub(crate) const HEADER_LEN: u64 = size_of::<RawHeader>() as u64;

/// Hard disk footer: the last bytes of every image, and a copy of them at offset 0 of one that is
/// not fixed. [spec "Hard Disk Footer Format"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFooter {
    /// [`FOOTER_COOKIE`].
    pub(crate) cookie: [u8; 8],
    /// Bit field; [`FEATURE_RESERVED`] is always set.
    pub(crate) features: U32,
    /// [`VERSION`]; the upper half is the major version.
    pub(crate) version: U32,
    /// Byte offset of the dynamic header, or [`NO_OFFSET`].
    pub(crate) data_offset: U64,
    /// Creation time in seconds since [`EPOCH`].
    pub(crate) timestamp: U32,
    /// Who wrote the image; decides what its size means.
    pub(crate) creator: [u8; 4],
    /// Version of the creator; the upper half is the major version.
    pub(crate) creator_version: U32,
    /// Operating system of the creator.
    pub(crate) creator_host: [u8; 4],
    /// Size of the disk when it was created, in bytes. For information only.
    pub(crate) original_size: U64,
    /// Size of the disk in bytes.
    pub(crate) current_size: U64,
    /// Cylinders of the geometry.
    pub(crate) cylinders: U16,
    /// Heads of the geometry.
    pub(crate) heads: u8,
    /// Sectors per track of the geometry.
    pub(crate) sectors: u8,
    /// [`FIXED`], [`DYNAMIC`] or [`DIFFERENCING`].
    pub(crate) disk_type: U32,
    /// One's complement of the byte sum of the footer, this field taken as zero.
    pub(crate) checksum: U32,
    /// Identity of the disk, by which a differencing image knows its parent.
    pub(crate) uuid: [u8; 16],
    /// 1 while a virtual machine is suspended on the disk.
    pub(crate) saved_state: u8,
    /// 1 in an image that XenServer does not show: others depend on it, or it is to be deleted.
    /// [libvhd] The specification knows only reserved bytes here.
    pub(crate) hidden: u8,
    /// Zeros.
    pub(crate) reserved: [u8; 426],
}

/// Dynamic disk header, at the byte offset that the footer names. [spec "Dynamic Disk Header
/// Format"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// [`HEADER_COOKIE`].
    pub(crate) cookie: [u8; 8],
    /// [`NO_OFFSET`]: nothing follows in this version.
    pub(crate) data_offset: U64,
    /// Byte offset of the block allocation table (BAT).
    pub(crate) table_offset: U64,
    /// [`VERSION`]; the upper half is the major version.
    pub(crate) version: U32,
    /// Number of BAT entries.
    pub(crate) max_table_entries: U32,
    /// Bytes of guest data per block; a power of two.
    pub(crate) block_size: U32,
    /// One's complement of the byte sum of the header, this field taken as zero.
    pub(crate) checksum: U32,
    /// Identity of the parent of a differencing image, otherwise zeros.
    pub(crate) parent_uuid: [u8; 16],
    /// When the parent was last changed, in seconds since [`EPOCH`].
    pub(crate) parent_timestamp: U32,
    /// Zeros.
    pub(crate) reserved: U32,
    /// File name of the parent in UTF-16, ended by a zero.
    pub(crate) parent_name: [U16; 256],
    /// Eight places where the parent may be found, in a differencing image.
    pub(crate) parent_locators: [RawLocator; 8],
    /// Zeros.
    pub(crate) padding: [u8; 256],
}

/// One place where the parent may be found. [spec "Parent Locator Entry"]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocator {
    /// What kind of name it is, one of the platform codes; zeros if there is none.
    pub(crate) code: [u8; 4],
    /// Room for the name: in sectors, or in bytes as Microsoft's tools and libvhd write it.
    pub(crate) space: U32,
    /// Length of the name in bytes.
    pub(crate) len: U32,
    /// Zeros.
    pub(crate) reserved: U32,
    /// Byte offset of the name.
    pub(crate) offset: U64,
}

/// XenServer's map of the blocks whose sectors all hold data, directly behind the block table.
/// [libvhd "vhd.h"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawBatmap {
    /// [`BATMAP_COOKIE`].
    pub(crate) cookie: [u8; 8],
    /// Byte offset of the map, one bit per block, highest bit first.
    pub(crate) map_offset: U64,
    /// Length of the map in sectors.
    pub(crate) map_sectors: U32,
    /// [`BATMAP_1_1`] or [`BATMAP_1_2`].
    pub(crate) version: U32,
    /// One's complement of the byte sum of the map.
    pub(crate) checksum: U32,
    /// In use by XenServer's tools while they coalesce.
    pub(crate) marker: u8,
    /// Whether what follows is a key's: its nonce of 32 bytes and its hash of 32.
    pub(crate) has_key: u8,
    /// Zeros, if no key's.
    pub(crate) padding: [u8; 482],
}

const _: () = {
    assert!(size_of::<RawFooter>() == 512);
    assert!(offset_of!(RawFooter, data_offset) == 16);
    assert!(offset_of!(RawFooter, creator) == 28);
    assert!(offset_of!(RawFooter, current_size) == 48);
    assert!(offset_of!(RawFooter, cylinders) == 56);
    assert!(offset_of!(RawFooter, disk_type) == 60);
    assert!(offset_of!(RawFooter, checksum) == 64);
    assert!(offset_of!(RawFooter, saved_state) == 84);
    assert!(size_of::<RawHeader>() == 1024);
    assert!(offset_of!(RawHeader, table_offset) == 16);
    assert!(offset_of!(RawHeader, checksum) == 36);
    assert!(offset_of!(RawHeader, parent_name) == 64);
    assert!(offset_of!(RawHeader, parent_locators) == 576);
    assert!(size_of::<RawLocator>() == 24);
    assert!(size_of::<RawBatmap>() == 512);
    assert!(offset_of!(RawBatmap, checksum) == 24);
    assert!(FOOTER_LEN == SECTOR);
};

/// One's complement of the byte sum of `structure`, whose own `checksum` field counts as zero.
/// [spec "Checksum Calculation"]
fn byte_sum(structure: &[u8], checksum: U32) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    // At most 1024 bytes, so nothing wraps, and the field is a part of the sum.
    !(sum(structure) - sum(checksum.as_bytes()))
}

impl RawFooter {
    /// What [`checksum`](Self::checksum) should be.
    pub(crate) fn computed_checksum(&self) -> u32 {
        byte_sum(self.as_bytes(), self.checksum)
    }
}

impl RawHeader {
    /// What [`checksum`](Self::checksum) should be.
    pub(crate) fn computed_checksum(&self) -> u32 {
        byte_sum(self.as_bytes(), self.checksum)
    }
}
