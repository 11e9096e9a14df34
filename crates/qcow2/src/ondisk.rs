//! Structures and constants as they stand in the file. No I/O, no decisions.
#![doc = include_str!("../FORMAT.md")]

use zerocopy::byteorder::{BE, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first four bytes of the file. [spec "Header"]
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The header, as long as anything we know reaches. [spec "Header"]
///
/// Version 2 ends before `incompatible_features`; version 3 before `compression_type` or later,
/// as `header_length` says.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// [`MAGIC`].
    pub(crate) magic: [u8; 4],
    /// 2 or 3.
    pub(crate) version: U32<BE>,
    /// Byte offset of the backing file's name; 0 if there is none.
    pub(crate) backing_file_offset: U64<BE>,
    /// Length of that name in bytes.
    pub(crate) backing_file_size: U32<BE>,
    /// Base-2 logarithm of the cluster size.
    pub(crate) cluster_bits: U32<BE>,
    /// Virtual size in bytes.
    pub(crate) size: U64<BE>,
    /// 0: none; 1: AES; 2: LUKS.
    pub(crate) crypt_method: U32<BE>,
    /// Entries of the active L1 table.
    pub(crate) l1_size: U32<BE>,
    /// Byte offset of the active L1 table, a multiple of the cluster size.
    pub(crate) l1_table_offset: U64<BE>,
    /// Byte offset of the refcount table, a multiple of the cluster size.
    pub(crate) refcount_table_offset: U64<BE>,
    /// Clusters that the refcount table takes.
    pub(crate) refcount_table_clusters: U32<BE>,
    /// Internal snapshots.
    pub(crate) nb_snapshots: U32<BE>,
    /// Byte offset of the snapshot table, a multiple of the cluster size.
    pub(crate) snapshots_offset: U64<BE>,
    /// Features without which the image cannot be read.
    pub(crate) incompatible_features: U64<BE>,
    /// Features that may be ignored.
    pub(crate) compatible_features: U64<BE>,
    /// Features that a writer clears unless it knows them.
    pub(crate) autoclear_features: U64<BE>,
    /// Base-2 logarithm of the width of a refcount in bits.
    pub(crate) refcount_order: U32<BE>,
    /// Length of the header in bytes; header extensions follow.
    pub(crate) header_length: U32<BE>,
    /// How compressed clusters are packed.
    pub(crate) compression_type: u8,
    /// Zeros.
    pub(crate) padding: [u8; 7],
}
const _: () = {
    assert!(size_of::<RawHeader>() == 112);
    assert!(std::mem::offset_of!(RawHeader, size) == 24);
    assert!(std::mem::offset_of!(RawHeader, l1_table_offset) == 40);
    assert!(std::mem::offset_of!(RawHeader, snapshots_offset) == 64);
    assert!(std::mem::offset_of!(RawHeader, incompatible_features) == 72);
    assert!(std::mem::offset_of!(RawHeader, header_length) == 100);
    assert!(std::mem::offset_of!(RawHeader, compression_type) == 104);
};

/// Length of a version 2 header in bytes. [spec]
pub(crate) const HEADER_LEN_V2: u64 = 72;
/// Least length of a version 3 header in bytes. [spec]
pub(crate) const HEADER_LEN_V3: u64 = 104;
/// Byte of the header that holds the compression type, if the header reaches that far. [spec]
pub(crate) const COMPRESSION_TYPE_AT: u64 = 104;

/// Cluster sizes, as base-2 logarithms: from the specification's least to QEMU's largest. [qemu]
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Longest L1 table in bytes. [qemu]
pub(crate) const L1_BYTES: u64 = 32 << 20;
/// Longest refcount table in bytes. [qemu]
pub(crate) const REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots. [qemu]
pub(crate) const SNAPSHOTS: u64 = 65536;
/// Longest snapshot table in bytes. [qemu]
pub(crate) const SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Most bitmaps. [qemu]
pub(crate) const BITMAPS: u32 = 65535;
/// Longest bitmap directory in bytes. [qemu]
pub(crate) const BITMAP_DIRECTORY_BYTES: u64 = 1024 * BITMAPS as u64;
/// Most bytes in the name of a bitmap. [qemu]
pub(crate) const BITMAP_NAME_BYTES: u16 = 1023;
/// The kind of bitmap that tracks writes, the only one. [spec]
pub(crate) const BITMAP_DIRTY_TRACKING: u8 = 1;
/// Longest bitmap table in bytes. [qemu]
pub(crate) const BITMAP_TABLE_BYTES: u64 = 8 << 27;
/// Most bytes of clusters with the bits of one bitmap. [qemu] It does not open an image that has more.
pub(crate) const BITMAP_BYTES: u64 = 512 << 20;
/// Bitmap granularities, as base-2 logarithms. [qemu]
pub(crate) const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Longest name of a backing file, and here also of a format, in bytes. [spec]
pub(crate) const NAME_LEN: u64 = 1023;
/// Greatest refcount order: 64 bits. [spec]
pub(crate) const REFCOUNT_ORDER: u32 = 6;
/// The refcount order of every version 2 image: 16 bits. [spec]
pub(crate) const REFCOUNT_ORDER_V2: u32 = 4;
/// Most header extensions that are looked at. [ours] Six are specified, each of which may appear
/// once; without a bound, a 2 MiB cluster makes 262144 reads.
pub(crate) const EXTENSIONS: u32 = 1024;

/// Incompatible feature bit: refcounts may be wrong. [spec]
pub(crate) const DIRTY: u64 = 1 << 0;
/// Incompatible feature bit: any structure may be wrong. [spec]
pub(crate) const CORRUPT: u64 = 1 << 1;
/// Incompatible feature bit: guest data stands in another file. [spec]
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible feature bit: the compression type is not deflate. [spec]
pub(crate) const COMPRESSION_TYPE: u64 = 1 << 3;
/// Incompatible feature bit: L2 entries are 128 bits wide. [spec]
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature bit: refcounts may be updated late. [spec]
pub(crate) const LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear feature bit: the bitmaps are up to date. [spec]
pub(crate) const BITMAPS_VALID: u64 = 1 << 0;
/// Autoclear feature bit: the external data file is a raw image of its own. [spec]
pub(crate) const RAW_EXTERNAL_DATA: u64 = 1 << 1;

/// What precedes the data of a header extension. [spec "Header extensions"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtension {
    /// One of the `EXTENSION_` constants, or anything else.
    pub(crate) kind: U32<BE>,
    /// Length of the data in bytes; it is padded to a multiple of 8.
    pub(crate) len: U32<BE>,
}
const _: () = assert!(size_of::<RawExtension>() == 8);

/// Header extension: the last one. [spec]
pub(crate) const EXTENSION_END: u32 = 0;
/// Header extension: name of the backing file's format. [spec]
pub(crate) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: names of features. [spec]
pub(crate) const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Header extension: where the LUKS header stands. [spec]
pub(crate) const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// An entry of the feature name table. [spec "Feature name table"]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFeatureName {
    /// Which set of features: [`INCOMPATIBLE`], [`COMPATIBLE`] or [`AUTOCLEAR`].
    pub(crate) set: u8,
    /// Number of the bit in that set.
    pub(crate) bit: u8,
    /// The name, padded with zeros.
    pub(crate) name: [u8; 46],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

/// Feature name table: an incompatible feature. [spec]
pub(crate) const INCOMPATIBLE: u8 = 0;
/// Feature name table: a compatible feature. [spec]
pub(crate) const COMPATIBLE: u8 = 1;
/// Feature name table: an autoclear feature. [spec]
pub(crate) const AUTOCLEAR: u8 = 2;

/// Header extension: name of the file that holds guest data. [spec]
pub(crate) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
/// Header extension: where the bitmaps stand. [spec]
pub(crate) const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// The data of the encryption extension. [spec "Full disk encryption header pointer"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEncryption {
    /// Byte offset of the LUKS header, a multiple of the cluster size.
    pub(crate) offset: U64<BE>,
    /// Length of it and its key material in bytes.
    pub(crate) len: U64<BE>,
}
const _: () = assert!(size_of::<RawEncryption>() == 16);

/// Longest LUKS header in bytes. [ours] Eight slots of the longest key take two megabytes.
pub(crate) const LUKS_BYTES: u64 = 16 << 20;

/// The data of the bitmaps extension. [spec "Bitmaps extension"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmaps {
    /// Bitmaps in the directory.
    pub(crate) count: U32<BE>,
    /// Zeros.
    pub(crate) reserved: [u8; 4],
    /// Length of the directory in bytes.
    pub(crate) directory_len: U64<BE>,
    /// Byte offset of the directory, a multiple of the cluster size.
    pub(crate) directory_offset: U64<BE>,
}
const _: () = assert!(size_of::<RawBitmaps>() == 24);

/// The start of a bitmap's directory entry; extra data and the name follow, and padding to a
/// multiple of 8. [spec "Bitmap directory"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmap {
    /// Byte offset of the bitmap's table, a multiple of the cluster size.
    pub(crate) table_offset: U64<BE>,
    /// Entries of the table.
    pub(crate) table_len: U32<BE>,
    /// [`BITMAP_IN_USE`], [`BITMAP_AUTO`] and others.
    pub(crate) flags: U32<BE>,
    /// 1: dirty tracking.
    pub(crate) kind: u8,
    /// Base-2 logarithm of the bytes that one bit stands for.
    pub(crate) granularity_bits: u8,
    /// Length of the name in bytes.
    pub(crate) name_len: U16<BE>,
    /// Length of the extra data in bytes.
    pub(crate) extra_len: U32<BE>,
}
const _: () = assert!(size_of::<RawBitmap>() == 24);

/// Bits of a bitmap table's entry that mean nothing. [spec]
pub(crate) const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Bitmap table entry: without a place, all bits are ones. [spec]
pub(crate) const BITMAP_ONES: u64 = 1;

/// Bitmap flag: it was not saved properly and says nothing. [spec]
pub(crate) const BITMAP_IN_USE: u32 = 1 << 0;
/// Bitmap flag: it records every write. [spec]
pub(crate) const BITMAP_AUTO: u32 = 1 << 1;

/// Bitmap flag: whoever does not know its extra data may use it all the same. [spec]
pub(crate) const BITMAP_EXTRA_COMPATIBLE: u32 = 1 << 2;
/// The bitmap flags that mean something. [spec]
pub(crate) const BITMAP_FLAGS: u32 = 7;

/// The start of a snapshot table entry; extra data, id and name follow, and padding to a multiple
/// of 8. [spec "Snapshots"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSnapshot {
    /// Byte offset of the L1 table, a multiple of the cluster size.
    pub(crate) l1_offset: U64<BE>,
    /// Entries of the L1 table.
    pub(crate) l1_len: U32<BE>,
    /// Length of the id in bytes.
    pub(crate) id_len: U16<BE>,
    /// Length of the name in bytes.
    pub(crate) name_len: U16<BE>,
    /// When it was taken, in seconds since 1970-01-01 UTC.
    pub(crate) seconds: U32<BE>,
    /// The nanoseconds of that second.
    pub(crate) nanoseconds: U32<BE>,
    /// How long the virtual machine had run, in nanoseconds.
    pub(crate) vm_clock: U64<BE>,
    /// Bytes of the machine's state; the extra data may know better.
    pub(crate) vm_state_len: U32<BE>,
    /// Length of the extra data in bytes.
    pub(crate) extra_len: U32<BE>,
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

/// The extra data of a snapshot, as far as anything known reaches; an entry may have less. [spec]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSnapshotExtra {
    /// Bytes of the machine's state.
    pub(crate) vm_state_len: U64<BE>,
    /// Size of the disk in bytes.
    pub(crate) virtual_size: U64<BE>,
    /// Instructions that the machine had run; all ones: not counted.
    pub(crate) instructions: U64<BE>,
}
const _: () = assert!(size_of::<RawSnapshotExtra>() == 24);

/// Longest extra data of a snapshot in bytes. [qemu]
pub(crate) const SNAPSHOT_EXTRA_BYTES: u64 = 1024;

/// Least extra data of a snapshot in a version 3 image, in bytes. [spec]
pub(crate) const SNAPSHOT_EXTRA_V3: u64 = 16;

/// Subclusters of a cluster with extended L2 entries, as a base-2 logarithm. [spec]
pub(crate) const SUBCLUSTERS_BITS: u32 = 5;
/// Smallest cluster with extended L2 entries, as a base-2 logarithm. [qemu]
pub(crate) const EXTENDED_CLUSTER_BITS: u32 = 14;
/// L1, L2: the refcount of what the entry names is exactly one. [spec]
pub(crate) const COPIED: u64 = 1 << 63;
/// L2: the cluster is compressed. [spec]
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// L2, version 3: the cluster reads as zeros. [spec]
pub(crate) const ZERO: u64 = 1;
/// L1, L2: the bits of a host offset. [spec]
pub(crate) const OFFSET: u64 = (1 << 56) - (1 << 9);
/// Refcount table: the bits that mean nothing. [spec]
pub(crate) const REFCOUNT_RESERVED: u64 = (1 << 9) - 1;
/// First host offset that no table can name. [spec]
pub(crate) const OFFSET_END: u64 = 1 << 56;
/// Length in bytes of the unit in which the length of packed data is counted. [spec]
pub(crate) const PACKED_SECTOR: u64 = 512;
