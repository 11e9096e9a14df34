//! Bitmaps: which parts of the disk were written since when.

use std::collections::HashSet;

use goldsmith_block::{BitmapChange, Error, GuestRange, HostRange, NewBitmap, Result, is_zero};
use zerocopy::{FromBytes, IntoBytes};

use super::draft::{Draft, offset_of};
use crate::bitmap::Bitmap;
use crate::error::Qcow2Error;
use crate::geometry::Geometry;
use crate::ondisk::{self, BITMAP_AUTO, BITMAP_IN_USE, BITMAP_ONES, RawBitmap, RawBitmaps};

/// The default granularity is the cluster size, within these bounds, as base-2 logarithms. [qemu]
const DEFAULT_BITS: (u32, u32) = (12, 16);

/// An entry of the bitmap directory.
#[derive(Clone)]
struct Entry {
    raw: RawBitmap,
    extra: Vec<u8>,
    name: Vec<u8>,
}

impl Entry {
    fn is_inconsistent(&self) -> bool {
        self.raw.flags.get() & BITMAP_IN_USE != 0
    }

    /// Bytes of the disk for which one cluster of bits stands.
    fn mapped(&self, geometry: &Geometry) -> u64 {
        // Both are bounded: 2^21 bytes and 2^31.
        (geometry.cluster_size() * 8) << self.raw.granularity_bits
    }

    /// Entries of its table for a disk of `size` bytes.
    fn table_need(&self, geometry: &Geometry, size: u64) -> Result<u64> {
        let need = size.div_ceil(self.mapped(geometry));
        let (most, cluster_size) = (ondisk::BITMAP_BYTES, geometry.cluster_size());
        // Nobody opens an image any more that has a bitmap of nothing, or one over the limit. [qemu]
        if need == 0 || need > most / cluster_size {
            let name = String::from_utf8_lossy(&self.name);
            return Err(Error::usage(format!(
                "bitmap '{name}' of a disk of {size} bytes would take {need} clusters of \
                 {cluster_size} bytes; it may take from 1 to {}. A coarser granularity takes fewer",
                most / cluster_size
            )));
        }
        Ok(need)
    }
}

impl Draft {
    /// Changes the bitmap `name`.
    ///
    /// # Errors
    /// `Usage` if there is no such bitmap, or already one; `Corrupt` if one cannot be trusted.
    pub(super) fn change_bitmap(&mut self, name: &str, change: &BitmapChange) -> Result<()> {
        if let BitmapChange::Add {
            granularity,
            enabled,
        } = change
        {
            return self.add_bitmaps(&[NewBitmap {
                name: name.into(),
                granularity: *granularity,
                enabled: *enabled,
                dirty: Vec::new(),
            }]);
        }
        let mut entries = self.bitmap_entries()?;
        let known = entries
            .iter()
            .position(|entry| entry.name == name.as_bytes());
        let Some(at) = known else {
            return Err(Error::usage(format!("the image has no bitmap '{name}'")));
        };
        if *change == BitmapChange::Remove {
            let entry = entries.remove(at);
            self.drop_bits(&entry)?;
            return self.put_bitmaps(&entries);
        }
        let entry = &mut entries[at];
        if entry.is_inconsistent() {
            let text = format!(
                "bitmap '{name}' was not saved properly, its bits say nothing; it can only be \
                 removed"
            );
            return Err(Error::corrupt(text));
        }
        match change {
            BitmapChange::Clear => {
                self.drop_bits(entry)?;
                let len = entry.raw.table_len.get() as usize;
                let table = self.write_table("bitmap tables", &vec![0; len])?;
                entry.raw.table_offset = table.into();
            }
            BitmapChange::Enable(on) => {
                let others = entry.raw.flags.get() & !BITMAP_AUTO;
                entry.raw.flags = if *on { others | BITMAP_AUTO } else { others }.into();
            }
            BitmapChange::Mark(ranges) => self.mark(entry, ranges)?,
            BitmapChange::Add { .. } | BitmapChange::Remove => {}
        }
        self.put_bitmaps(&entries)
    }

    /// Adds `bitmaps`.
    ///
    /// # Errors
    /// `Usage` if there is one of such a name, or if the image cannot have one.
    pub(super) fn add_bitmaps(&mut self, bitmaps: &[NewBitmap]) -> Result<()> {
        let mut entries = self.bitmap_entries()?;
        let names = entries.iter().map(|entry| entry.name.clone());
        let mut names: HashSet<_> = names.collect();
        for bitmap in bitmaps {
            let name = &bitmap.name;
            if !names.insert(name.clone().into_bytes()) {
                return Err(Error::usage(format!(
                    "the image has a bitmap '{name}' already"
                )));
            }
            if entries.len() as u64 >= u64::from(ondisk::BITMAPS) {
                let limit = ondisk::BITMAPS;
                let text = format!("the image has {limit} bitmaps, it cannot have more");
                return Err(Error::usage(text));
            }
            entries.push(self.new_bitmap(bitmap)?);
        }
        self.put_bitmaps(&entries)
    }

    /// Says of every bitmap that records writes that it does not know of all of them, as
    /// [`mark_bitmaps`](Self::mark_bitmaps) has to tell it yet; gives the places of these bitmaps in
    /// the directory.
    ///
    /// # Errors
    /// `Corrupt` if a bitmap breaks a rule; those of writing them.
    pub(super) fn suspend_bitmaps(&mut self) -> Result<Vec<usize>> {
        let mut entries = self.bitmap_entries()?;
        let mut suspended = Vec::new();
        for (index, entry) in entries.iter_mut().enumerate() {
            let flags = entry.raw.flags.get();
            if flags & BITMAP_AUTO != 0 && !entry.is_inconsistent() {
                entry.raw.flags = (flags | BITMAP_IN_USE).into();
                suspended.push(index);
            }
        }
        if !suspended.is_empty() {
            self.put_bitmaps(&entries)?;
        }
        Ok(suspended)
    }

    /// Notes in the `suspended` bitmaps that `ranges`, which ascend, were written: they know all
    /// again.
    ///
    /// # Errors
    /// As [`suspend_bitmaps`](Self::suspend_bitmaps).
    pub(super) fn mark_bitmaps(
        &mut self,
        suspended: &[usize],
        ranges: &[GuestRange],
    ) -> Result<()> {
        if suspended.is_empty() {
            return Ok(());
        }
        let mut entries = self.bitmap_entries()?;
        for index in suspended {
            if let Some(entry) = entries.get_mut(*index) {
                entry.raw.flags = (entry.raw.flags.get() & !BITMAP_IN_USE).into();
                self.mark(entry, ranges)?;
            }
        }
        self.put_bitmaps(&entries)
    }

    /// Gives all bitmaps the length that a disk of `size` bytes needs; bits that this adds are clean.
    ///
    /// # Errors
    /// As [`suspend_bitmaps`](Self::suspend_bitmaps).
    pub(super) fn resize_bitmaps(&mut self, size: u64) -> Result<()> {
        let mut entries = self.bitmap_entries()?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries.iter_mut().filter(|entry| !entry.is_inconsistent()) {
            let mut table = self.bitmap_table(entry)?;
            // At most the limit.
            let need = entry.table_need(&self.geometry, size)? as usize;
            for entry in table.iter().skip(need) {
                self.drop_bit_cluster(*entry)?;
            }
            table.resize(need, 0);
            // Bits past the end, which would appear when the disk grows again.
            let end = size.div_ceil(1 << entry.raw.granularity_bits);
            let in_last = end % (self.geometry.cluster_size() * 8);
            if in_last != 0
                && let Some(last) = table.last().copied()
                && last != 0
            {
                let mut bits = self.read_bits(last)?;
                let (byte, bit) = ((in_last / 8) as usize, in_last % 8);
                bits[byte] &= (1u8 << bit) - 1;
                bits[byte + 1..].fill(0);
                let at = table.len() - 1;
                table[at] = self.put_bits(last, &bits)?;
            }
            self.put_bitmap_table(entry, &table)?;
        }
        self.put_bitmaps(&entries)
    }

    /// The bitmaps that are up to date.
    fn bitmap_entries(&self) -> Result<Vec<Entry>> {
        let Some(raw) = self.header.bitmaps() else {
            return Ok(Vec::new());
        };
        let storage = self.scribe().read();
        // That the directory keeps all rules.
        let count = Bitmap::read_all(&raw, &*storage, &self.geometry, &self.budget)?.len();
        let mut bytes = self
            .budget
            .zeroed::<u8>(raw.directory_len.get(), "bitmap directory")?;
        storage.read_at(raw.directory_offset.get(), &mut bytes)?;
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        for _ in 0..count {
            let Ok((raw, behind)) = RawBitmap::read_from_prefix(rest) else {
                break;
            };
            let (extra, name) = (raw.extra_len.get() as usize, raw.name_len.get() as usize);
            let len = size_of::<RawBitmap>() + extra + name;
            entries.push(Entry {
                extra: behind[..extra].to_vec(),
                name: behind[extra..extra + name].to_vec(),
                raw,
            });
            rest = &rest[len.next_multiple_of(8).min(rest.len())..];
        }
        Ok(entries)
    }

    /// Puts a directory of `entries` in the place of the old one.
    fn put_bitmaps(&mut self, entries: &[Entry]) -> Result<()> {
        if let Some(old) = self.header.bitmaps() {
            let (offset, len) = (old.directory_offset.get(), old.directory_len.get());
            self.sub(HostRange::new(offset, len))?;
        }
        if entries.is_empty() {
            self.header.set_bitmaps(None);
            return Ok(());
        }
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(entry.raw.as_bytes());
            bytes.extend(&entry.extra);
            bytes.extend(&entry.name);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let (len, limit) = (bytes.len() as u64, ondisk::BITMAP_DIRECTORY_BYTES);
        if len > limit {
            return Err(Qcow2Error::TableTooLong {
                table: "bitmap directory",
                bytes: len,
                limit,
            }
            .into());
        }
        let offset = self.write_bytes("bitmap directory", &bytes)?;
        self.header.set_bitmaps(Some(&RawBitmaps {
            // At most the limit.
            count: (entries.len() as u32).into(),
            reserved: [0; 4],
            directory_len: len.into(),
            directory_offset: offset.into(),
        }));
        Ok(())
    }

    fn new_bitmap(&mut self, bitmap: &NewBitmap) -> Result<Entry> {
        if self.geometry.version < 3 {
            return Err(Error::usage("an image of version 2 cannot have bitmaps"));
        }
        let name = &bitmap.name;
        let len = name.len() as u64;
        if len == 0 || len > ondisk::NAME_LEN {
            let limit = ondisk::NAME_LEN;
            let text = format!("a bitmap's name has 1 to {limit} bytes; this one has {len}");
            return Err(Error::usage(text));
        }
        let (least, most) = DEFAULT_BITS;
        let default = 1 << self.geometry.cluster_bits.clamp(least, most);
        let granularity = bitmap.granularity.unwrap_or(default);
        let bits = granularity.trailing_zeros() as u8;
        let known = ondisk::GRANULARITY_BITS;
        if !granularity.is_power_of_two() || !known.contains(&bits) {
            return Err(Error::usage(format!(
                "a bitmap's granularity is a power of two from {} to {}; {granularity} is not",
                1u64 << known.start(),
                1u64 << known.end()
            )));
        }
        let mut entry = Entry {
            raw: RawBitmap {
                table_offset: 0.into(),
                table_len: 0.into(),
                flags: if bitmap.enabled { BITMAP_AUTO } else { 0 }.into(),
                kind: ondisk::BITMAP_DIRTY_TRACKING,
                granularity_bits: bits,
                // At most 1023.
                name_len: (len as u16).into(),
                extra_len: 0.into(),
            },
            extra: Vec::new(),
            name: name.clone().into_bytes(),
        };
        let need = entry.table_need(&self.geometry, self.geometry.virtual_size)?;
        // One after the other is in memory.
        let mut table = self.budget.afresh().zeroed(need, "bitmap table")?;
        self.mark_in(&mut table, &entry, &bitmap.dirty)?;
        self.put_new_table(&mut entry, &table)?;
        Ok(entry)
    }

    /// Makes the bits of `ranges`, which ascend, dirty.
    fn mark(&mut self, entry: &mut Entry, ranges: &[GuestRange]) -> Result<()> {
        let mut table = self.bitmap_table(entry)?;
        self.mark_in(&mut table, entry, ranges)?;
        self.put_bitmap_table(entry, &table)
    }

    /// The same in the `table` of a bitmap, which is put into the image by the caller.
    fn mark_in(&mut self, table: &mut [u64], entry: &Entry, ranges: &[GuestRange]) -> Result<()> {
        let bits = entry.raw.granularity_bits;
        let mapped = entry.mapped(&self.geometry);
        let mut ranges = ranges.iter().copied().peekable();
        for (index, place) in (0u64..).zip(table) {
            let (start, end) = (index * mapped, (index + 1).saturating_mul(mapped));
            while ranges.next_if(|range| range.end <= start).is_some() {}
            let mut buf = None;
            // A range may go on behind this cluster of bits.
            for range in ranges.clone().take_while(|range| range.start < end) {
                if buf.is_none() {
                    buf = Some(self.read_bits(*place)?);
                }
                let first = (range.start.max(start) - start) >> bits;
                let last = (range.end.min(end) - 1 - start) >> bits;
                for bit in first..=last {
                    if let Some(buf) = &mut buf {
                        buf[(bit / 8) as usize] |= 1 << (bit % 8);
                    }
                }
            }
            if let Some(buf) = buf {
                *place = self.put_bits(*place, &buf)?;
            }
        }
        Ok(())
    }

    /// The table of a bitmap, which is as long as the disk needs.
    fn bitmap_table(&self, entry: &Entry) -> Result<Vec<u64>> {
        let entries = entry.raw.table_len.get();
        let need = self
            .geometry
            .virtual_size
            .div_ceil(entry.mapped(&self.geometry));
        if u64::from(entries) != need {
            return Err(Qcow2Error::BitmapTable { entries, need }.into());
        }
        self.read_l1(entry.raw.table_offset.get(), need)
    }

    fn put_bitmap_table(&mut self, entry: &mut Entry, table: &[u64]) -> Result<()> {
        let len = u64::from(entry.raw.table_len.get()) * 8;
        self.sub(HostRange::new(entry.raw.table_offset.get(), len))?;
        self.put_new_table(entry, table)
    }

    fn put_new_table(&mut self, entry: &mut Entry, table: &[u64]) -> Result<()> {
        let offset = self.write_table("bitmap tables", table)?;
        entry.raw.table_offset = offset.into();
        // At most 2^63 / 2^12 bytes of the disk for an entry, but the budget is smaller.
        entry.raw.table_len = (table.len() as u32).into();
        Ok(())
    }

    /// Gives up the table of a bitmap and its bits.
    fn drop_bits(&mut self, entry: &Entry) -> Result<()> {
        let (offset, len) = (entry.raw.table_offset.get(), entry.raw.table_len.get());
        for entry in self.read_l1(offset, len.into())? {
            self.drop_bit_cluster(entry)?;
        }
        self.sub(HostRange::new(offset, u64::from(len) * 8))
    }

    fn drop_bit_cluster(&mut self, entry: u64) -> Result<()> {
        match offset_of(entry) {
            0 => Ok(()),
            offset => self.sub(HostRange::new(offset, self.geometry.cluster_size())),
        }
    }

    /// A cluster of bits; the first one is the lowest of the first byte. [spec]
    fn read_bits(&self, entry: u64) -> Result<Vec<u8>> {
        let mut bits = vec![0; self.geometry.cluster_size() as usize];
        match (offset_of(entry), entry & BITMAP_ONES) {
            (0, 0) => {}
            (0, _) => bits.fill(0xff),
            (offset, _) => {
                let storage = self.scribe().storage();
                crate::table::read_up_to_end(&**storage, offset, &mut bits)?;
            }
        }
        Ok(bits)
    }

    /// Puts `bits` in the place of those that `entry` names; returns the new entry.
    fn put_bits(&mut self, entry: u64, bits: &[u8]) -> Result<u64> {
        self.drop_bit_cluster(entry)?;
        match is_zero(bits) {
            true => Ok(0),
            false => self.write_bytes("bitmaps", bits),
        }
    }
}
