//! What can be wrong with a VHD, or with the wish for one.

use goldsmith_block::{Error, ErrorKind, HostRange};
use uuid::Uuid;

use crate::ondisk::MAX_DYNAMIC_SIZE;

/// One broken rule, with its numbers. Sizes and offsets are in bytes unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VhdError {
    /// No footer stands at either end.
    #[error("no VHD footer stands at the end of the file ({file_len} bytes)")]
    NoFooter {
        /// Length of the file.
        file_len: u64,
    },
    /// The footer's bytes do not add up.
    #[error("footer checksum is {stored:#010x}; its bytes add up to {computed:#010x}")]
    FooterChecksum {
        /// What the footer says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The footer of a fixed image is broken, and a guest can put a copy of any at the start.
    #[error(
        "{broken}; what is left of it is that of a fixed image, so the footer at the start of the file \
         is the guest's and not its copy"
    )]
    FixedFooterLost {
        /// What is wrong with the footer.
        broken: Box<VhdError>,
    },
    /// The end of the file is lost, and a guest can have written either of two footers.
    #[error(
        "the file ends with zeros; the footer of a fixed image stands before them at {offset:#x}, and \
         that of a dynamic one at the start: the guest may have written either"
    )]
    TwoFooters {
        /// Where the first one stands.
        offset: u64,
    },
    /// A header that was worked out, by which something in the file belongs to nothing.
    #[error(
        "the dynamic header was worked out, and by it nothing points to {rest} of the file, where something \
         stands: the true one may, so it is not written; convert takes what it shows"
    )]
    HeaderUnsure {
        /// Where.
        rest: HostRange,
    },
    /// A batmap whose mark of a key is none.
    #[error("the batmap says {found:#x} where it says whether there is a key")]
    BatmapKey {
        /// What stands there.
        found: u8,
    },
    /// Two footers that do not belong together.
    #[error(
        "the footer at the end, of {end}, and the one at the start, of {start}, are of two images: the \
         file was cut, or the guest of one wrote the other"
    )]
    OfTwoImages {
        /// What the one at the end is of.
        end: String,
        /// What the other is of.
        start: String,
    },
    /// The footer is of a version that we do not know.
    #[error("footer version is {found:#010x}; only 1.x (0x0001....) is known")]
    FooterVersion {
        /// What the footer says.
        found: u32,
    },
    /// The footer names none of the types that exist.
    #[error("disk type is {found}; it must be 2 (fixed), 3 (dynamic) or 4 (differencing)")]
    DiskType {
        /// What the footer says.
        found: u32,
    },
    /// XenServer encrypted the disk.
    #[error(
        "the disk is encrypted: the batmap has the hash of a key, which XenServer's tools ask for; \
         goldsmith does not decrypt it"
    )]
    Encrypted,
    /// XenServer's tools stopped in the middle of changing the image.
    #[error(
        "the image is marked v_poison: XenServer's tools were changing it and did not finish, so \
         its data may be in two places at once"
    )]
    Poisoned,
    /// A differencing image names no parent.
    #[error("differencing image that names no parent")]
    NoParentName,
    /// No locator of a parent without an identity can be read.
    #[error(
        "no locator of its RAW parent can be read, and any file may be called '{name}', as the \
         dynamic header calls it"
    )]
    RawParentLost {
        /// The Unicode name in the header.
        name: String,
    },
    /// A parent locator has no name, or one longer than any path.
    #[error("parent locator {code} is {len} bytes long; a name has 1 to 65536")]
    LocatorLength {
        /// Kind of the locator.
        code: String,
        /// What the locator says.
        len: u32,
    },
    /// A parent locator's name is not in the file.
    #[error(
        "parent locator {code} of {len} bytes at {offset:#x} runs past the end of the data at \
         {data_end:#x}"
    )]
    LocatorOutside {
        /// Kind of the locator.
        code: String,
        /// Where it says that its name is.
        offset: u64,
        /// Length of the name.
        len: u32,
        /// Where the footer begins.
        data_end: u64,
    },
    /// A parent locator's name is no text.
    #[error("parent locator {code} is no text")]
    LocatorText {
        /// Kind of the locator.
        code: String,
    },
    /// The creator writes batmaps, but there is none.
    #[error("no batmap stands at {offset:#x}, where the creator of the image keeps it")]
    NoBatmap {
        /// Where it should be.
        offset: u64,
    },
    /// The batmap is of a version that we do not know.
    #[error("batmap version is {found:#010x}; only 1.1 and 1.2 are known")]
    BatmapVersion {
        /// What its header says.
        found: u32,
    },
    /// The batmap is not in the file.
    #[error(
        "batmap of {sectors} sectors at {offset:#x} is empty or runs past the end of the data at \
         {data_end:#x}"
    )]
    BatmapOutside {
        /// Where its header says that it is.
        offset: u64,
        /// Length in sectors.
        sectors: u32,
        /// Where the footer begins.
        data_end: u64,
    },
    /// The batmap's bytes do not add up.
    #[error("batmap checksum is {stored:#010x}; its bytes add up to {computed:#010x}")]
    BatmapChecksum {
        /// What its header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The creator counts by a geometry that has no sectors.
    #[error(
        "geometry {cylinders}/{heads}/{sectors} gives the disk no sectors, but its size is \
         {current_size} bytes"
    )]
    EmptyGeometry {
        /// Cylinders.
        cylinders: u16,
        /// Heads.
        heads: u8,
        /// Sectors per track.
        sectors: u8,
        /// The other size that the footer gives.
        current_size: u64,
    },
    /// A fixed image is longer than its file.
    #[error("disk size is {virtual_size} bytes; the file holds {data_len} before its footer")]
    FixedTruncated {
        /// Size of the disk.
        virtual_size: u64,
        /// Bytes of data in the file.
        data_len: u64,
    },
    /// A dynamic image is larger than the format allows.
    #[error(
        "disk size is {virtual_size} bytes; a dynamic image holds at most {max} (2040 GiB)",
        max = MAX_DYNAMIC_SIZE
    )]
    DynamicTooLarge {
        /// Size of the disk.
        virtual_size: u64,
    },
    /// The dynamic header is not in the file.
    #[error("dynamic header at {offset:#x} runs past the end of the data at {data_end:#x}")]
    HeaderOutside {
        /// Where the footer says that it is.
        offset: u64,
        /// Where the footer begins.
        data_end: u64,
    },
    /// Something else stands where the dynamic header should be.
    #[error("no dynamic header stands at {offset:#x}, where the footer says it is")]
    HeaderCookie {
        /// Where the footer says that it is.
        offset: u64,
    },
    /// The dynamic header's bytes do not add up.
    #[error("dynamic header checksum is {stored:#010x}; its bytes add up to {computed:#010x}")]
    HeaderChecksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The dynamic header is of a version that we do not know.
    #[error("dynamic header version is {found:#010x}; only 1.x (0x0001....) is known")]
    HeaderVersion {
        /// What the header says.
        found: u32,
    },
    /// The block size is none.
    #[error("block size is {found} bytes; it must be a power of two from 4 KiB to 256 MiB")]
    BlockSize {
        /// What the header says.
        found: u32,
    },
    /// The dynamic header does not hold, and cannot be worked out from the rest of the file.
    #[error("{broken}; nor can the header be worked out: {why}")]
    HeaderLost {
        /// What is wrong with it.
        broken: Box<VhdError>,
        /// What is missing.
        why: String,
    },
    /// The block allocation table does not cover the disk.
    #[error("block table has {entries} entries; the disk size needs {need}")]
    BatTooSmall {
        /// What the header says.
        entries: u32,
        /// Blocks in the disk.
        need: u64,
    },
    /// The block allocation table is not in the file.
    #[error(
        "block table of {entries} entries at {offset:#x} runs past the end of the data at \
         {data_end:#x}"
    )]
    BatOutside {
        /// Where the header says that it is.
        offset: u64,
        /// Entries that the header says it has.
        entries: u32,
        /// Where the footer begins.
        data_end: u64,
    },
    /// A block is not in the file, or not all of it.
    #[error(
        "block {block} should fill {host} of the file, whose data ends at {data_end:#x}; the file \
         was truncated, or entry {entry:#x} of the block table is wrong"
    )]
    BlockOutside {
        /// Index of the block.
        block: u64,
        /// Its entry in the table, in sectors.
        entry: u32,
        /// Bitmap and data as far as the disk needs them.
        host: HostRange,
        /// Where the footer begins.
        data_end: u64,
    },
    /// A block lies on one of the tables.
    #[error("block {block} should fill {host} of the file, where the {what} stands")]
    BlockOnMetadata {
        /// Index of the block.
        block: u64,
        /// Bitmap and data as far as the disk needs them.
        host: HostRange,
        /// What it would overwrite.
        what: &'static str,
    },

    /// The wanted size is no whole number of sectors.
    #[error("size {virtual_size} is no multiple of 512; a VHD holds whole sectors of 512 bytes")]
    SizeNotSectors {
        /// The wanted size.
        virtual_size: u64,
    },
    /// The wanted size is more than a dynamic image holds.
    #[error(
        "size {virtual_size} is over {max} (2040 GiB), the most that a dynamic VHD holds; \
         subformat=fixed has no such limit",
        max = MAX_DYNAMIC_SIZE
    )]
    SizeOverDynamic {
        /// The wanted size.
        virtual_size: u64,
    },
    /// The wanted block size is one that some readers refuse.
    #[error("block_size {found} is none of 512k, 1M, 2M, the sizes that every reader takes")]
    BlockSizeOption {
        /// The wanted size.
        found: u64,
    },
    /// A fixed image has no blocks to map.
    #[error("batmap=on maps the blocks of a dynamic VHD; a fixed one has none")]
    BatmapOfFixed,
    /// The wanted parent is neither VHD nor RAW.
    #[error("the parent of a VHD is a VHD or a RAW disk, not {format}")]
    ParentFormat {
        /// The parent's format.
        format: String,
    },
    /// The wanted parent cannot be recognised.
    #[error(
        "the parent has a null uuid, by which no child could recognise it, or is not looked at (-u)"
    )]
    ParentWithoutUuid,
    /// The wanted parent has the identity of the image that is to be its child.
    #[error(
        "the parent has the identity of the image itself, {uuid}: it would be taken for its own parent"
    )]
    OwnParent {
        /// That of both.
        uuid: Uuid,
    },
    /// The wanted parent's name cannot be written.
    #[error(
        "the parent's name {name:?} cannot be written: it is empty, longer than 255 characters, or \
         has a backslash, which separates folders here"
    )]
    ParentName {
        /// The name.
        name: String,
    },
    /// A fixed image has no parent.
    #[error("a fixed VHD holds all of its disk, so it can have no backing file")]
    ParentOfFixed,
    /// The options name a parent, but the caller did not look at it: its format is not known.
    #[error("backing_file names the parent and backing_fmt its format; neither does alone")]
    ParentMissing,
    /// VHD has no compression.
    #[error("Compression not supported for this file format (vpc)")]
    Compressed,
    /// The image would have no identity.
    #[error("the uuid of a VHD must not be null")]
    NullUuid,
    /// The time of creation does not fit.
    #[error(
        "the image would be made {seconds} seconds after the start of 1970; a VHD holds {most} at most"
    )]
    TooLate {
        /// When it would be made.
        seconds: u64,
        /// The last second there is.
        most: u64,
    },
    /// The target's length cannot change.
    #[error(
        "a VHD ends with its footer, so it cannot be written to a device of {len} bytes; write it \
         to a file"
    )]
    FixedLength {
        /// Length of the device.
        len: u64,
    },
    /// A structure stands where a sector ends in the middle of it, so that it could be half written.
    #[error(
        "the {what} stands at {offset:#x}, which is no multiple of 512: such an image can be read, \
         but not changed safely"
    )]
    Unaligned {
        /// The structure.
        what: &'static str,
        /// Where it stands.
        offset: u64,
    },
    /// The disk would have more blocks than we count.
    #[error(
        "the disk would need {entries} blocks of {block_size} bytes; 4194304 are the most that a \
         larger disk gets"
    )]
    TableTooLong {
        /// Blocks in the disk.
        entries: u64,
        /// Bytes per block.
        block_size: u64,
    },
    /// The disk ends in the middle of a sector.
    #[error(
        "disk size is {virtual_size} bytes, no multiple of 512: such an image can be read, but not \
         changed"
    )]
    OddDisk {
        /// Size of the disk.
        virtual_size: u64,
    },
    /// Something is wrong already.
    #[error("the image is damaged, and a change could make that worse: {what}")]
    Damaged {
        /// What a check finds first.
        what: String,
    },
    /// The footer gives two sizes, and what stands between them is part of the disk for some.
    #[error(
        "the disk has {virtual_size} bytes by one of the two sizes in its footer and {other} by the \
         other, and there is data between the two; convert the image with force_size_calc=chs or \
         current_size, whichever is meant"
    )]
    TwoSizes {
        /// Size of the disk.
        virtual_size: u64,
        /// The other size.
        other: u64,
    },
    /// The disk's size is not the one that the image means.
    #[error("force_size_calc overrides the size of the disk, so that cannot be changed")]
    ResizeByRule,
    /// More is to be written than there is.
    #[error("{len} bytes are to be written over a disk of {virtual_size}")]
    SinkTooLong {
        /// Bytes to write.
        len: u64,
        /// Size of the disk.
        virtual_size: u64,
    },
    /// Blocks stand on others, and copies of them would be more than all there is.
    #[error(
        "{count} blocks stand on others; to part them would take {bytes} bytes, and the whole file has \
         {file_len}: no damage asks for that, so nothing was changed"
    )]
    TooManyParts {
        /// Blocks that need places of their own.
        count: u64,
        /// Bytes that these would take.
        bytes: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// The next block would start where no entry can point to.
    #[error("block {block} would start at sector {sector}; the block table counts to 4294967294")]
    OutOfReach {
        /// Index of the block.
        block: u64,
        /// Sector of its bitmap.
        sector: u64,
    },
}

impl VhdError {
    /// Whether a dynamic header is not what was written there.
    pub(crate) fn is_of_damaged_header(&self) -> bool {
        matches!(
            self,
            Self::HeaderCookie { .. } | Self::HeaderChecksum { .. }
        )
    }

    /// Whether it is about a block that begins in the file and does not end there.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(self, Self::BlockOutside { host, data_end, .. } if host.offset < *data_end)
    }
}

impl From<VhdError> for Error {
    fn from(error: VhdError) -> Self {
        use VhdError as E;
        let kind = match error {
            E::FooterVersion { .. }
            | E::Encrypted
            | E::HeaderVersion { .. }
            | E::Unaligned { .. }
            | E::TwoSizes { .. }
            | E::OddDisk { .. } => ErrorKind::Unsupported,
            E::SizeNotSectors { .. }
            | E::SizeOverDynamic { .. }
            | E::BlockSizeOption { .. }
            | E::BatmapOfFixed
            | E::ParentFormat { .. }
            | E::ParentWithoutUuid
            | E::OwnParent { .. }
            | E::ParentName { .. }
            | E::ParentOfFixed
            | E::ParentMissing
            | E::Compressed
            | E::NullUuid
            | E::TooLate { .. }
            | E::ResizeByRule
            | E::SinkTooLong { .. }
            | E::FixedLength { .. } => ErrorKind::Usage,
            E::OutOfReach { .. } | E::TableTooLong { .. } | E::TooManyParts { .. } => {
                ErrorKind::Limit
            }
            _ => ErrorKind::Corrupt,
        };
        Self::new(kind, error)
    }
}
