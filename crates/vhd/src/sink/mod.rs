//! Writing: an image made from nothing, its tables and footers last.

mod dynamic;
mod fixed;

use std::sync::Arc;

use goldsmith_block::{CreateSpec, OptionKind, OptionSpec, Result, SECTOR, Sink, StorageMut};
use zerocopy::byteorder::big_endian::{U16, U32, U64};

use crate::error::VhdError;
use crate::footer::unix_time;
use crate::geometry::Chs;
use crate::ondisk::{
    CREATOR_QEMU_CHS, CREATOR_QEMU_EXACT, CREATOR_TAPDISK, EPOCH, FEATURE_RESERVED, FOOTER_COOKIE,
    HOST_WINDOWS, RawFooter, TAPDISK_1_3, VERSION,
};
pub(crate) use dynamic::alignment;

/// The creation options of this format.
pub(crate) static OPTIONS: [OptionSpec; 6] = [
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
    OptionSpec {
        name: "batmap",
        kind: OptionKind::Flag,
        default: "off",
        help: "write XenServer's map of full blocks into a dynamic image",
    },
    OptionSpec {
        name: "force_size",
        kind: OptionKind::Flag,
        default: "on",
        help: "the exact size; off: round it up to cylinders, heads and sectors as qemu-img does",
    },
    OptionSpec {
        name: "backing_file",
        kind: OptionKind::Text,
        default: "",
        help: "parent of a differencing image, by its path from the new image; -b of create and -B of convert do the \
               same",
    },
    OptionSpec {
        name: "backing_fmt",
        kind: OptionKind::Text,
        default: "",
        help: "format of the parent, vpc or raw; -F does the same",
    },
];

/// Where the data of a block may begin, and what a demand for a fixed image consists of, in bytes.
/// Guests and hosts think in pages of this size; [blktap] aligns blocks like this, too.
const GRAIN: u64 = 4096;

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
    let (seconds, most) = (spec.timestamp, unix_time(u32::MAX));
    if seconds > most {
        return Err(VhdError::TooLate { seconds, most }.into());
    }
    if let Some(len) = storage.fixed_len() {
        return Err(VhdError::FixedLength { len }.into());
    }
    let named = ["backing_file", "backing_fmt"].map(|name| spec.options.text(name).is_some());
    if named.contains(&true) && (spec.backing.is_none() || named.contains(&false)) {
        return Err(VhdError::ParentMissing.into());
    }
    let wanted = Wanted::new(spec);
    let sink: Box<dyn Sink> = match spec.options.choice("subformat") {
        "fixed" if wanted.batmap => return Err(VhdError::BatmapOfFixed.into()),
        "fixed" if spec.backing.is_some() => return Err(VhdError::ParentOfFixed.into()),
        "fixed" => Box::new(fixed::FixedSink::new(storage.clone(), &wanted)),
        _ => Box::new(dynamic::DynamicSink::new(storage.clone(), &wanted)?),
    };
    // From here on no old footer is left, and what is not written reads as zeros.
    storage.set_len(0)?;
    Ok(sink)
}

/// What the image shall be.
struct Wanted<'a> {
    spec: &'a CreateSpec,
    /// Size of the disk in bytes; more than was asked for if the geometry decides it.
    virtual_size: u64,
    geometry: Chs,
    exact: bool,
    batmap: bool,
}

impl<'a> Wanted<'a> {
    fn new(spec: &'a CreateSpec) -> Self {
        let exact = spec.options.flag("force_size");
        let geometry = match exact {
            true => Chs::of_size(spec.virtual_size),
            false => Chs::holding(spec.virtual_size),
        };
        let by_geometry = !exact && geometry != Chs::MAX;
        Self {
            spec,
            virtual_size: match by_geometry {
                true => geometry.total_sectors() * SECTOR,
                false => spec.virtual_size,
            },
            geometry,
            exact,
            batmap: spec.options.flag("batmap"),
        }
    }

    /// The footer, `data_offset` being that of the dynamic header.
    fn footer(&self, disk_type: u32, data_offset: u64) -> RawFooter {
        let chs = self.geometry;
        // Builds that are to be the same again are often of 1970 or 1980.
        let timestamp = self.spec.timestamp.saturating_sub(EPOCH);
        // The creator decides what the size means, so it is no place for a name of our own: QEMU
        // before 10.0 takes every creator that it does not know for one that counts by geometry,
        // and would cut the end off the disk. QEMU's for exact images has meant "exactly
        // current_size" to all readers since it appeared. XenServer looks for a batmap in its own
        // images alone, which mean the same. [qemu], [libvhd]
        let (creator, creator_version) = match (self.batmap, self.exact) {
            (true, _) => (CREATOR_TAPDISK, TAPDISK_1_3),
            (false, true) => (CREATOR_QEMU_EXACT, VERSION),
            (false, false) => (CREATOR_QEMU_CHS, VERSION),
        };
        let mut raw = RawFooter {
            cookie: FOOTER_COOKIE,
            features: U32::new(FEATURE_RESERVED),
            version: U32::new(VERSION),
            data_offset: U64::new(data_offset),
            timestamp: U32::new(u32::try_from(timestamp).unwrap_or(u32::MAX)),
            creator,
            creator_version: U32::new(creator_version),
            creator_host: HOST_WINDOWS,
            original_size: U64::new(self.virtual_size),
            current_size: U64::new(self.virtual_size),
            cylinders: U16::new(chs.cylinders),
            heads: chs.heads,
            sectors: chs.sectors,
            disk_type: U32::new(disk_type),
            checksum: U32::ZERO,
            uuid: self.spec.uuid.into_bytes(),
            saved_state: 0,
            hidden: 0,
            reserved: [0; 426],
        };
        raw.checksum = U32::new(raw.computed_checksum());
        raw
    }
}
