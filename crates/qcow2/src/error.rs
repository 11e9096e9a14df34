//! Every rule that an image can break.

use goldsmith_block::{Error, ErrorKind, HostRange};
use goldsmith_codec::CodecError;
use goldsmith_crypt::CryptError;

/// Why a qcow2 image cannot be read or made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// Wrong first bytes. OpenStack knows these words, which are QEMU's.
    #[error(
        "Image is not in qcow2 format: it begins with {found:02x?}, not with the magic 51 46 49 fb"
    )]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The file ends inside the header.
    #[error("the header takes {need} bytes; the file has {file_len}")]
    HeaderTruncated {
        /// Least length of the header.
        need: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// A version that is neither 2 nor 3.
    #[error("qcow2 version {found}; versions 2 and 3 are known")]
    Version {
        /// The version.
        found: u32,
    },
    /// The header's length breaks a rule.
    #[error(
        "header length is {found} bytes; it must be a multiple of 8 from 104 to the cluster size, \
         {cluster_size}"
    )]
    HeaderLength {
        /// The length.
        found: u32,
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// A cluster size outside what QEMU knows.
    #[error("cluster size is 2^{found} bytes; it must be from 2^9 to 2^21")]
    ClusterBits {
        /// Its base-2 logarithm.
        found: u32,
    },
    /// Feature bits that must not be ignored.
    #[error("the image uses features that goldsmith does not know: {names}")]
    UnknownFeatures {
        /// Their names or bit numbers.
        names: String,
    },
    /// Something known that is not done.
    #[error("the image uses {what}")]
    Unsupported {
        /// What it is.
        what: &'static str,
    },
    /// The compression type and its feature bit contradict each other.
    #[error("compression type is {found}, but its incompatible feature bit 3 says {bit}")]
    CompressionBit {
        /// The type.
        found: u8,
        /// The feature bit.
        bit: bool,
    },
    /// A compression type nobody has heard of.
    #[error("compression type {found}; 0 (deflate) and 1 (zstd) are known")]
    CompressionType {
        /// The type.
        found: u8,
    },
    /// A refcount of more than 64 bits.
    #[error("refcount order is {found}; it must be at most 6, which is 64 bits")]
    RefcountOrder {
        /// The order.
        found: u32,
    },
    /// Extended L2 entries in an image of small clusters.
    #[error(
        "there are subclusters in clusters of {cluster_size} bytes; they need 16384 bytes or more"
    )]
    Subclusters {
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// A file for guest data that nobody named, or nobody opened.
    #[error("guest data stands in the file '{name}', which was not opened")]
    DataFileClosed {
        /// The name in the image.
        name: String,
    },
    /// A file for guest data without a name.
    #[error("guest data stands in another file, of which the image does not say the name")]
    DataFileNameless,
    /// A compressed cluster where there can be none.
    #[error("L2 entry {entry:#018x} names a compressed cluster, but data is in another file")]
    PackedElsewhere {
        /// The entry.
        entry: u64,
    },
    /// The status of subclusters contradicts itself or the rest of the entry.
    #[error("L2 entry {entry:#018x} has the subcluster bitmap {bitmap:#018x}: {rule}")]
    SubclusterBitmap {
        /// The first half of the entry.
        entry: u64,
        /// The second half.
        bitmap: u64,
        /// The rule.
        rule: &'static str,
    },
    /// A snapshot with more extra data than anyone writes.
    #[error("snapshot {index} has {len} bytes of extra data; at most {limit} are allowed")]
    SnapshotExtra {
        /// Its place in the table.
        index: usize,
        /// Length of its extra data.
        len: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// A snapshot that is not there.
    #[error("there are {count} snapshots; number {index}, counted from 0, is none of them")]
    NoSnapshot {
        /// The one asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A header extension of another length than the format says.
    #[error("header extension {kind:#x} has {found} bytes; it must have {need}")]
    ExtensionLength {
        /// Its type.
        kind: u32,
        /// Its length.
        found: u64,
        /// What it should be.
        need: u64,
    },
    /// LUKS without a header.
    #[error("the image says that it is encrypted with LUKS, but not where the header is")]
    NoLuksHeader,
    /// Encrypted data, and nobody gave the passphrase.
    #[error("guest data is encrypted ({method}), and no passphrase was given")]
    Locked {
        /// How.
        method: &'static str,
    },
    /// Encryption that there is not.
    #[error("options encrypt.* do not go together")]
    EncryptOptions {
        /// The rule.
        #[source]
        source: CryptError,
    },
    /// A rule of encryption.
    #[error("encryption")]
    Crypt {
        /// Which.
        #[from]
        source: CryptError,
    },
    /// More bitmaps than are allowed.
    #[error("there are {found} bitmaps; at most {limit} are allowed")]
    TooManyBitmaps {
        /// How many.
        found: u32,
        /// The most allowed.
        limit: u32,
    },
    /// An extension of no bitmaps, which QEMU refuses. `[spec]`
    #[error("a header extension says that there are bitmaps, and that their number is 0")]
    NoBitmaps,
    /// A bitmap whose name is longer than QEMU takes. `[qemu]`
    #[error("the name of bitmap {index} has {len} bytes, over the {limit} allowed")]
    BitmapName {
        /// Which entry of the directory.
        index: u32,
        /// Length of the name in bytes.
        len: u16,
        /// The most allowed.
        limit: u16,
    },
    /// Two bitmaps of one name, which QEMU refuses. `[spec]`
    #[error("two bitmaps have the name '{name}'")]
    BitmapTwice {
        /// The name, as far as it is text.
        name: String,
    },
    /// A directory that its entries do not fill.
    #[error("the bitmap directory has {len} bytes; its {count} entries take {used}")]
    BitmapDirectory {
        /// Length of the directory.
        len: u64,
        /// Entries it should have.
        count: u32,
        /// Length of the entries up to the one that does not fit, or of all.
        used: u64,
    },
    /// A granularity outside what QEMU knows.
    #[error("bitmap {index} has a granularity of 2^{found} bytes; it must be from 2^9 to 2^31")]
    Granularity {
        /// Its place in the directory.
        index: u32,
        /// Base-2 logarithm of the granularity.
        found: u8,
    },
    /// A bitmap that its last writer did not store.
    #[error("bitmap '{name}' was in use when the image was last closed: it was not saved properly")]
    BitmapInUse {
        /// Its name.
        name: String,
    },
    /// A bitmap with something that must not be ignored.
    #[error(
        "bitmap '{name}' is of kind {kind}, with flags {flags:#x} and {extra_len} bytes of extra \
         data; known are kind 1, flags 0x7 and extra data with flag 0x4"
    )]
    BitmapUnknown {
        /// Its name.
        name: String,
        /// Its kind.
        kind: u8,
        /// Its flags.
        flags: u32,
        /// Length of its extra data in bytes.
        extra_len: u32,
    },
    /// A bitmap table for another disk.
    #[error("the bitmap table has {entries} entries; the disk size needs {need}")]
    BitmapTable {
        /// How many it has.
        entries: u32,
        /// How many there must be.
        need: u64,
    },
    /// An entry of a bitmap table that breaks a rule.
    #[error(
        "entry {index} of the bitmap table, {entry:#018x}, has reserved bits set or a place that is \
         no multiple of {cluster_size}"
    )]
    BitmapEntry {
        /// Its place in the table.
        index: u64,
        /// The entry.
        entry: u64,
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// A number of no bitmap.
    #[error("there is no bitmap {index}; the image has {count}")]
    NoBitmap {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The autoclear bit for raw external data without external data.
    #[error("autoclear feature bit 1 says that external data is raw, but there is none")]
    RawExternalData,
    /// The extension of an encrypted image in one that says it is not.
    #[error("there is an encryption header, but the encryption method is 0")]
    EncryptionHeader,
    /// A virtual size that no signed 64-bit offset reaches.
    #[error("virtual size is {found} bytes; it must be at most 2^63 - 1")]
    VirtualSize {
        /// The size.
        found: u64,
    },
    /// An L1 table that cannot hold the disk.
    #[error("L1 table has {entries} entries; the disk size needs {need}")]
    L1TooSmall {
        /// Entries there are.
        entries: u32,
        /// Entries there should be.
        need: u64,
    },
    /// A table that QEMU would refuse for its length.
    #[error("the {table} takes {bytes} bytes; at most {limit} are allowed")]
    TableTooLong {
        /// Which.
        table: &'static str,
        /// Its length.
        bytes: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// A refcount table of no clusters.
    #[error("there is no refcount table")]
    NoRefcountTable,
    /// A table that does not start at a cluster, or starts at the header's.
    #[error("the {table} is at offset {offset:#x}, which is no multiple of {cluster_size} above 0")]
    TableOffset {
        /// Which.
        table: &'static str,
        /// Its byte offset.
        offset: u64,
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// A table that the file does not hold.
    #[error(
        "the {table} takes {len} bytes at offset {offset:#x}; the file ends at {file_len:#x}, it \
         is truncated"
    )]
    TableTruncated {
        /// Which.
        table: &'static str,
        /// Its byte offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// A refcount table entry that names no place for a block.
    #[error(
        "entry {index} of the refcount table, {entry:#018x}, has reserved bits set or a place inside \
         a cluster"
    )]
    RefcountEntry {
        /// Its place in the table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// A cluster that would be used more often than can be counted.
    #[error("cluster {cluster} is used {max} times, which is as often as its refcount can count")]
    RefcountFull {
        /// Its number.
        cluster: u64,
        /// The greatest count.
        max: u64,
    },
    /// A count that narrower counters cannot hold.
    #[error("cluster {cluster} is used {now} times; such refcounts count to {max}")]
    RefcountWidth {
        /// Its number.
        cluster: u64,
        /// How often it is used.
        now: u64,
        /// The greatest count.
        max: u64,
    },
    /// A cluster that is used, though its refcount says that it is not.
    #[error("cluster {cluster} is used more often than its refcount says")]
    RefcountZero {
        /// Its number.
        cluster: u64,
    },
    /// An image whose tables cannot be trusted to be changed.
    #[error(
        "the image has {corruptions} errors in its tables, the first of them: {first}; repair it \
         before it is changed (check -r all), or take what is left of it (convert --salvage)"
    )]
    Damaged {
        /// How many.
        corruptions: u64,
        /// The first one.
        first: String,
    },
    /// An image that is marked as corrupt, in which nothing was found to be.
    #[error(
        "the image is marked as corrupt, though its tables are sound; check -r all takes the mark away"
    )]
    MarkedCorrupt,
    /// A backing file name outside its place.
    #[error(
        "the backing file name takes {len} bytes at offset {offset:#x}; it must be at most 1023 \
         bytes, from {start:#x} to {end:#x}"
    )]
    BackingName {
        /// Its byte offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// End of the header.
        start: u64,
        /// End of the first cluster or of the file.
        end: u64,
    },
    /// A name that cannot be passed on.
    #[error("the {what} is no text: {reason}")]
    Name {
        /// Whose name.
        what: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A header extension that leaves its area.
    #[error(
        "header extension {kind:#x} takes {len} bytes at offset {offset:#x}; the area ends at \
         {end:#x}"
    )]
    ExtensionTruncated {
        /// Its type.
        kind: u32,
        /// Byte offset of its data.
        offset: u64,
        /// Length of its data.
        len: u64,
        /// End of the area.
        end: u64,
    },
    /// Too little room for a header extension, even for an end mark.
    #[error(
        "the area of the header extensions goes on for {room} bytes at offset {offset:#x}; each has at \
         least 8"
    )]
    ExtensionCut {
        /// Byte offset of what is left.
        offset: u64,
        /// Its length.
        room: u64,
    },
    /// The same thing said twice.
    #[error("header extension {kind:#x} appears twice")]
    ExtensionTwice {
        /// Its type.
        kind: u32,
    },
    /// More extensions than anyone needs.
    #[error("there are more than {limit} header extensions")]
    TooManyExtensions {
        /// The most that are read.
        limit: u32,
    },
    /// Bits set that mean nothing.
    #[error("{table} entry {entry:#018x} has reserved bits set: {reserved:#x}")]
    ReservedBits {
        /// L1 or L2.
        table: &'static str,
        /// The entry.
        entry: u64,
        /// The bits.
        reserved: u64,
    },
    /// The zero flag where there is none.
    #[error("L2 entry {entry:#018x} has the zero flag, which version 2 does not know")]
    ZeroFlag {
        /// The entry.
        entry: u64,
    },
    /// A used cluster without a place.
    #[error("{table} entry {entry:#018x} names a used cluster, but its offset is 0")]
    NoOffset {
        /// L1 or L2.
        table: &'static str,
        /// The entry.
        entry: u64,
    },
    /// An offset inside a cluster.
    #[error("{table} entry {entry:#018x} names offset {offset:#x}, no multiple of {cluster_size}")]
    Misaligned {
        /// L1 or L2.
        table: &'static str,
        /// The entry.
        entry: u64,
        /// The offset.
        offset: u64,
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// Guest data that the file does not hold.
    #[error("data at host range {host} is missing: the file is truncated at {file_len:#x}")]
    DataTruncated {
        /// The bytes needed.
        host: HostRange,
        /// Length of the file.
        file_len: u64,
    },
    /// A compressed cluster that does not unpack.
    #[error("compressed cluster at host range {host} does not unpack")]
    Unpack {
        /// Its packed bytes.
        host: HostRange,
        /// Why.
        source: CodecError,
    },
    /// A compressed cluster that does not unpack where the file ends inside it.
    #[error(
        "compressed cluster at host range {host} does not unpack: the file ends in it, at \
         {file_len:#x}, so it is probably truncated"
    )]
    UnpackTruncated {
        /// Its packed bytes, at most.
        host: HostRange,
        /// Length of the file.
        file_len: u64,
        /// Why.
        source: CodecError,
    },
    /// A creation option that is not possible.
    #[error("Cluster size must be a power of two between 512 and 2048k, which {found} is not")]
    ClusterSizeOption {
        /// The size.
        found: u64,
    },
    /// A creation option that version 2 does not have.
    #[error("the option {option} needs compat=1.1")]
    NeedsVersion3 {
        /// The option.
        option: &'static str,
    },
    /// Creation options that exclude each other.
    #[error("the option {option} is not possible: {rule}")]
    Conflict {
        /// The option, perhaps with its value.
        option: &'static str,
        /// Why.
        rule: &'static str,
    },
    /// A name that no reader would take.
    #[error("the option {option} has {len} bytes; at most {limit} are allowed")]
    NameOption {
        /// The option.
        option: &'static str,
        /// Its length.
        len: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// Names that do not fit into the first cluster.
    #[error(
        "the header and its names take {len} bytes, but with cluster_size={cluster_size} there is \
         no room for more than that"
    )]
    HeaderTooLong {
        /// Length of the header.
        len: u64,
        /// Bytes per cluster.
        cluster_size: u64,
    },
    /// A disk for which the L1 table would be too long.
    #[error(
        "virtual size {size} needs an L1 table of {need} bytes, over the {limit} allowed; with \
         cluster_size={cluster_size} a disk has at most {most} bytes"
    )]
    DiskTooLarge {
        /// Virtual size.
        size: u64,
        /// Bytes of its L1 table.
        need: u128,
        /// The longest allowed.
        limit: u64,
        /// Bytes per cluster.
        cluster_size: u64,
        /// The largest virtual size that goes.
        most: u64,
    },
    /// An image file that grows past what can be addressed.
    #[error("{what} at host offset {offset:#x} is past the last one possible, {limit:#x}")]
    HostLimit {
        /// What does not fit.
        what: &'static str,
        /// Where it would stand.
        offset: u64,
        /// First offset that is too far.
        limit: u64,
    },
    /// A cluster in a data file that is not the guest's.
    #[error("guest byte {guest:#x} should stand at that offset of the data file, not at {host:#x}")]
    Misplaced {
        /// Where it stands by its entry.
        host: u64,
        /// The guest byte.
        guest: u64,
    },
    /// A repair that would give up what it cannot know to be in use.
    #[error(
        "{table} cannot be read, so what is used nobody knows; convert --salvage takes what is left"
    )]
    TableLost {
        /// What a message calls it.
        table: String,
    },
    /// A repair that would make the file longer than where something was lost.
    #[error(
        "new tables would stand at {place:#x}, and make zeros of what should stand at {lost:#x}, where the \
         file has nothing: it was truncated; convert --salvage takes what is left"
    )]
    WouldHideLoss {
        /// Where they would stand.
        place: u64,
        /// The first cluster that is lost.
        lost: u64,
    },
    /// A request that breaks the contract of `Sink`.
    #[error("the engine {what}")]
    Contract {
        /// What it did.
        what: &'static str,
    },
}

impl From<Qcow2Error> for Error {
    fn from(error: Qcow2Error) -> Self {
        use Qcow2Error::*;
        let kind = match &error {
            UnknownFeatures { .. } | Unsupported { .. } | Version { .. } => ErrorKind::Unsupported,
            CompressionType { .. } => ErrorKind::Unsupported,
            TooManyExtensions { .. }
            | TableTooLong { .. }
            | HostLimit { .. }
            | SnapshotExtra { .. }
            | RefcountFull { .. }
            | TooManyBitmaps { .. } => ErrorKind::Limit,
            DataFileClosed { .. } | Locked { .. } => ErrorKind::Denied,
            Crypt { source } => match source {
                CryptError::Unsupported { .. }
                | CryptError::NoMode { .. }
                | CryptError::Essiv { .. }
                | CryptError::Stripes { .. } => ErrorKind::Unsupported,
                CryptError::Passphrase => ErrorKind::Denied,
                CryptError::NoSlot { .. }
                | CryptError::SlotTaken { .. }
                | CryptError::SlotFree { .. }
                | CryptError::SlotsTaken
                | CryptError::LastSlot => ErrorKind::Usage,
                CryptError::Random => ErrorKind::Io,
                _ => ErrorKind::Corrupt,
            },
            BitmapUnknown { .. } => ErrorKind::Unsupported,
            NoSnapshot { .. } | NoBitmap { .. } | RefcountWidth { .. } => ErrorKind::Usage,
            ClusterSizeOption { .. }
            | NeedsVersion3 { .. }
            | EncryptOptions { .. }
            | Conflict { .. }
            | NameOption { .. }
            | HeaderTooLong { .. }
            | DiskTooLarge { .. } => ErrorKind::Usage,
            Unpack {
                source: CodecError::Library { .. },
                ..
            }
            | UnpackTruncated {
                source: CodecError::Library { .. },
                ..
            }
            | Contract { .. } => ErrorKind::Bug,
            _ => ErrorKind::Corrupt,
        };
        Self::new(kind, error)
    }
}
