//! Bitmaps: which parts of the disk were written since when.
//!
//! ```text
//! directory: [name, flags, ...] ─► table: [0] ─► a cluster of bits, lowest bit of each byte first
//!                                         [1] all zeros, or all ones, without a cluster
//! ```

use std::collections::BTreeSet;

use byteorder::{BE, ByteOrder};
use goldsmith_block::{BitmapInfo, Budget, Detail, GuestRange, HostRange, Result, Storage};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::Qcow2Error;
use crate::geometry::{Geometry, Table};
use crate::ondisk::{self, RawBitmap, RawBitmaps};
use crate::snapshot::{text, text_cost, text_len};

/// What a bitmap says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) name: String,
    /// Whether that is all that its name is.
    pub(crate) is_text: bool,
    /// Bytes of the disk that one bit stands for.
    granularity: u64,
    pub(crate) flags: u32,
    kind: u8,
    /// Length in bytes of what else its entry says.
    extra_len: u32,
    /// Size of the disk that it is about, in bytes.
    disk: u64,
    /// Byte offset and entries of its table, as the image says.
    pub(crate) table: (u64, u32),
}

impl Bitmap {
    /// Reads the directory that `raw` describes.
    ///
    /// # Errors
    /// `Corrupt` if the directory breaks a rule or the file ends in it; `Limit` if it is too long
    /// or over `budget`; `Io` if it cannot be read.
    pub(crate) fn read_all(
        raw: &RawBitmaps,
        storage: &dyn Storage,
        geometry: &Geometry,
        budget: &Budget,
    ) -> Result<Vec<Self>> {
        let (count, limit) = (raw.count.get(), ondisk::BITMAPS);
        if count == 0 {
            return Err(Qcow2Error::NoBitmaps.into());
        }
        if count > limit {
            let found = count;
            return Err(Qcow2Error::TooManyBitmaps { found, limit }.into());
        }
        let (start, len) = (raw.directory_offset.get(), raw.directory_len.get());
        Table {
            table: "bitmap directory",
            offset: start,
            len,
            limit: ondisk::BITMAP_DIRECTORY_BYTES,
            cluster_size: geometry.cluster_size(),
            file_len: geometry.file_len,
        }
        .check()?;
        let mut bitmaps = Vec::new();
        let mut names = BTreeSet::new();
        // Bytes of the directory; it is short, so no sum of what follows overflows.
        let mut at = 0;
        for index in 0..count {
            let mut entry = RawBitmap::new_zeroed();
            let fixed = size_of::<RawBitmap>() as u64;
            let filled = |used| Qcow2Error::BitmapDirectory { len, count, used };
            if at + fixed > len {
                return Err(filled(at + fixed).into());
            }
            storage.read_at(start + at, entry.as_mut_bytes())?;
            let (extra, name_len) = (u64::from(entry.extra_len.get()), entry.name_len.get());
            let name_at = at + fixed + extra;
            at = (name_at + u64::from(name_len)).next_multiple_of(8);
            if at > len {
                return Err(filled(at).into());
            }
            let (len, limit) = (name_len, ondisk::BITMAP_NAME_BYTES);
            if len > limit {
                return Err(Qcow2Error::BitmapName { index, len, limit }.into());
            }
            let found = entry.granularity_bits;
            if !ondisk::GRANULARITY_BITS.contains(&found) {
                return Err(Qcow2Error::Granularity { index, found }.into());
            }
            let cost = size_of::<Self>() as u64 + text_cost(name_len);
            budget.reserve(cost, "bitmap directory")?;
            let mut name = vec![0; name_len.into()];
            storage.read_at(start + name_at, &mut name)?;
            name.truncate(text_len(&name));
            // One that nobody can use is not in the way. [qemu]
            let in_use = entry.flags.get() & ondisk::BITMAP_IN_USE != 0;
            if !names.insert(name.clone()) && !in_use {
                let name = text(&name);
                return Err(Qcow2Error::BitmapTwice { name }.into());
            }
            bitmaps.push(Self {
                is_text: std::str::from_utf8(&name).is_ok(),
                name: text(&name),
                granularity: 1 << found,
                flags: entry.flags.get(),
                kind: entry.kind,
                extra_len: entry.extra_len.get(),
                disk: geometry.virtual_size,
                table: (entry.table_offset.get(), entry.table_len.get()),
            });
        }
        if at != len {
            return Err(Qcow2Error::BitmapDirectory {
                len,
                count,
                used: at,
            }
            .into());
        }
        Ok(bitmaps)
    }

    /// The parts of the disk whose bits are ones, ascending; they do not touch.
    ///
    /// # Errors
    /// `Corrupt` if it was not saved properly or an entry of its table breaks a rule; `Unsupported`
    /// if it is of a kind unknown here; `Limit` if it is over `budget`; `Io` if it cannot be read.
    pub(crate) fn dirty(
        &self,
        storage: &dyn Storage,
        geometry: &Geometry,
        budget: &Budget,
    ) -> Result<Vec<GuestRange>> {
        if self.flags & ondisk::BITMAP_IN_USE != 0 {
            let name = self.name.clone();
            return Err(Qcow2Error::BitmapInUse { name }.into());
        }
        let cluster_size = geometry.cluster_size();
        self.check_rules(cluster_size)?;
        let offset = self.table.0;
        let need = table_entries(self.disk, self.granularity, cluster_size);
        let table = HostRange::new(0, need * 8);
        Table {
            table: "bitmap table",
            offset,
            len: table.len,
            limit: ondisk::BITMAP_TABLE_BYTES,
            cluster_size,
            file_len: geometry.file_len,
        }
        .check()?;

        let mut marks = Marks::new(self, budget);
        // A piece of the table, and a cluster of bits as soon as one is needed.
        let mut piece = vec![0; table.len.min(TABLE_PIECE) as usize];
        let mut bits = Vec::new();
        let bits_per_cluster = cluster_size * 8;
        let mut index = 0;
        while index < need {
            let len = (table.len - index * 8).min(TABLE_PIECE) as usize;
            storage.read_at(offset + index * 8, &mut piece[..len])?;
            for entry in piece[..len].chunks_exact(8).map(BE::read_u64) {
                let first = index * bits_per_cluster;
                match place(entry, index, geometry)? {
                    Place::Zeros => {}
                    Place::Ones => marks.add(first, bits_per_cluster)?,
                    Place::At(at) => {
                        // At most a cluster, and only as much as the disk has bits.
                        let len = self.bytes_at(index, cluster_size);
                        let host = HostRange::new(at, len);
                        if host.end() > geometry.file_len {
                            let file_len = geometry.file_len;
                            return Err(Qcow2Error::DataTruncated { host, file_len }.into());
                        }
                        // Any number of entries may name one cluster: the time for it is limited.
                        budget.reserve(len, "bitmap")?;
                        bits.resize(len as usize, 0);
                        storage.read_at(at, &mut bits)?;
                        marks.add_bits(first, &bits)?;
                    }
                }
                index += 1;
            }
        }
        Ok(marks.ranges)
    }

    /// How many bytes of bits the disk has from entry `index` of the table on, in its cluster.
    pub(crate) fn bytes_at(&self, index: u64, cluster_size: u64) -> u64 {
        let bits = self.disk.div_ceil(self.granularity);
        let bytes = bits.div_ceil(8);
        bytes
            .saturating_sub(index.saturating_mul(cluster_size))
            .min(cluster_size)
    }

    /// Whether its bits can be understood.
    pub(crate) fn check_rules(&self, cluster_size: u64) -> Result<(), Qcow2Error> {
        let entries = self.table.1;
        let need = table_entries(self.disk, self.granularity, cluster_size);
        // One that is in use may be of another size, but not of none. [qemu]
        let other = u64::from(entries) != need && self.flags & ondisk::BITMAP_IN_USE == 0;
        if entries == 0 || other {
            return Err(Qcow2Error::BitmapTable { entries, need });
        }
        let unknown = self.flags & !ondisk::BITMAP_FLAGS;
        let strange = self.extra_len > 0 && self.flags & ondisk::BITMAP_EXTRA_COMPATIBLE == 0;
        if self.kind != ondisk::BITMAP_DIRTY_TRACKING || unknown != 0 || strange {
            return Err(Qcow2Error::BitmapUnknown {
                name: self.name.clone(),
                kind: self.kind,
                flags: self.flags,
                extra_len: self.extra_len,
            });
        }
        Ok(())
    }

    /// What everybody may know of it.
    pub(crate) fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            is_text: self.is_text,
            granularity: self.granularity,
            enabled: self.flags & ondisk::BITMAP_AUTO != 0,
            inconsistent: self.flags & ondisk::BITMAP_IN_USE != 0,
        }
    }

    /// What `qemu-img info` shows of it, in its order. [qemu]
    pub(crate) fn detail(&self) -> Detail {
        let flags = [
            (ondisk::BITMAP_IN_USE, "in-use"),
            (ondisk::BITMAP_AUTO, "auto"),
        ];
        let set = flags.iter().filter(|(bit, _)| self.flags & bit != 0);
        let set = set.map(|(_, name)| Detail::Text((*name).into()));
        Detail::Record(vec![
            ("flags", Detail::List(set.collect())),
            ("name", Detail::Text(self.name.clone())),
            ("granularity", Detail::Number(self.granularity)),
        ])
    }
}

/// Bytes of a bitmap's table that are read together. [ours]
const TABLE_PIECE: u64 = 64 << 10;

/// Entries of the table of a bitmap for a disk of `disk` bytes.
pub(crate) fn table_entries(disk: u64, granularity: u64, cluster_size: u64) -> u64 {
    disk.div_ceil(granularity)
        .div_ceil(8)
        .div_ceil(cluster_size)
}

/// Where a cluster of bits stands.
pub(crate) enum Place {
    /// Nowhere: all are zeros.
    Zeros,
    /// Nowhere: all are ones.
    Ones,
    /// At this byte offset.
    At(u64),
}

/// What the table's entry `index` says.
pub(crate) fn place(entry: u64, index: u64, geometry: &Geometry) -> Result<Place, Qcow2Error> {
    let (offset, cluster_size) = (entry & ondisk::OFFSET, geometry.cluster_size());
    let ones = entry & ondisk::BITMAP_ONES != 0;
    let broken = entry & ondisk::BITMAP_RESERVED != 0
        || !offset.is_multiple_of(cluster_size)
        || (offset != 0 && ones);
    match (offset, ones) {
        _ if broken => Err(Qcow2Error::BitmapEntry {
            index,
            entry,
            cluster_size,
        }),
        (0, true) => Ok(Place::Ones),
        (0, false) => Ok(Place::Zeros),
        (offset, _) => Ok(Place::At(offset)),
    }
}

/// Bits that become ranges.
struct Marks<'a> {
    ranges: Vec<GuestRange>,
    granularity: u64,
    disk: u64,
    /// How many bits the disk has.
    bits: u64,
    budget: &'a Budget,
}

impl<'a> Marks<'a> {
    fn new(bitmap: &Bitmap, budget: &'a Budget) -> Self {
        Self {
            ranges: Vec::new(),
            granularity: bitmap.granularity,
            disk: bitmap.disk,
            bits: bitmap.disk.div_ceil(bitmap.granularity),
            budget,
        }
    }

    /// The `count` bits from `first`, which is none before the last one, are ones; those behind the
    /// disk count for nothing.
    fn add(&mut self, first: u64, count: u64) -> Result<()> {
        let end = self.bits.min(first.saturating_add(count));
        if first >= end {
            return Ok(());
        }
        let start = first * self.granularity;
        // The last bit may stand for less than the others.
        let end = match end == self.bits {
            true => self.disk,
            false => end * self.granularity,
        };
        match self.ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => {
                let cost = size_of::<GuestRange>() as u64;
                self.budget.reserve(cost, "list of dirty ranges")?;
                self.ranges.push(GuestRange::new(start, end));
            }
        }
        Ok(())
    }

    /// Adds the ones among `bytes`, whose lowest bit is `first`.
    fn add_bits(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        for (nth, word) in bytes.chunks(8).enumerate() {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            let mut word = u64::from_le_bytes(padded);
            let mut at = first + 64 * nth as u64;
            while word != 0 {
                let zeros = word.trailing_zeros();
                word >>= zeros;
                let ones = word.trailing_ones();
                at += u64::from(zeros);
                self.add(at, ones.into())?;
                // A whole word of ones cannot be shifted out at once.
                word = word.checked_shr(ones).unwrap_or(0);
                at += u64::from(ones);
            }
        }
        Ok(())
    }
}
