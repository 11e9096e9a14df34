//! A disk of another size.

use goldsmith_block::{
    Error, HostRange, Layer, Preallocation, Result, SECTOR, Zeroing, align_down, is_zero,
};

use super::draft::{Draft, offset_of};
use super::tables::{L1, used};
use crate::error::Qcow2Error;
use crate::geometry::{l1_entries_for, mapped_bits};
use crate::layer::Qcow2Layer;
use crate::mapping::Mapping;
use crate::ondisk::{self, COPIED, ZERO};

/// Longest single write of zeros, in bytes. [ours]
const ZEROS: u64 = 1 << 20;

impl Draft {
    /// Makes the disk `size` bytes long; `layer` is the image as it is.
    ///
    /// # Errors
    /// Those of [`Edit::Resize`](goldsmith_block::Edit::Resize).
    pub(super) fn resize(
        &mut self,
        layer: &Qcow2Layer,
        size: u64,
        preallocation: Preallocation,
        behind: u64,
    ) -> Result<()> {
        self.check_size(size, preallocation)?;
        let old_size = self.geometry.virtual_size;
        let bits = self.geometry.cluster_bits;
        let mut l1 = self.l1()?;
        let first_beyond = size.min(old_size).div_ceil(self.geometry.cluster_size());
        // Whatever is left from a larger disk must not appear when the disk grows.
        self.drop_from(&mut l1, first_beyond)?;
        let need = l1_entries_for(size, bits, self.geometry.extended_l2) as usize;
        l1.entries.resize(need, 0);
        if size > old_size {
            self.clear_tail(&mut l1, layer, behind.min(size))?;
            self.cover(&mut l1, layer, old_size, behind.min(size))?;
            self.preallocate(&mut l1, old_size, size, preallocation)?;
            self.complete_last_table(&mut l1)?;
        }
        if let Some(data) = self.data.clone()
            && size > old_size
        {
            let there = data.len().clamp(old_size, size);
            data.set_len(size)?;
            let added = HostRange::new(old_size, size - old_size);
            // Whatever stood behind the disk is not a part of it. Where zeros are no zeros as they are
            // stored, no table leads there.
            if !self.geometry.is_encrypted() {
                data.zero(HostRange::new(old_size, there - old_size), Zeroing::Punch)?;
            }
            match preallocation {
                Preallocation::Falloc => data.zero(added, Zeroing::Keep)?,
                Preallocation::Full => write_zeros(added, |at, zeros| data.write_at(at, zeros))?,
                _ => {}
            }
            data.flush()?;
        }
        self.settle_unshared(&mut l1)?;
        self.resize_bitmaps(size)?;
        self.header.raw.size = size.into();
        self.put_l1(l1)
    }

    fn check_size(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let geometry = &self.geometry;
        let cluster_size = geometry.cluster_size();
        let mapped = mapped_bits(geometry.cluster_bits, geometry.extended_l2);
        let most = (ondisk::L1_BYTES / 8) << mapped;
        if size > most {
            let entries = l1_entries_for(size, geometry.cluster_bits, geometry.extended_l2);
            return Err(Qcow2Error::DiskTooLarge {
                size,
                need: u128::from(entries) * 8,
                limit: ondisk::L1_BYTES,
                cluster_size,
                most,
            }
            .into());
        }
        if geometry.version < 3 && geometry.snapshots > 0 {
            // Old entries of the snapshot table do not say how large the disk was. [qemu]
            let text = "a version 2 image that has snapshots cannot be resized";
            return Err(Error::usage(text));
        }
        let is_stored = geometry.is_raw_data() && size > geometry.virtual_size;
        if (is_stored || preallocation != Preallocation::Off) && geometry.is_encrypted() {
            let text = "the added part of an encrypted disk cannot be preallocated: what nobody \
                        writes would not be zeros, but zeros decrypted";
            return Err(Error::usage(text));
        }
        Ok(())
    }

    /// Gives up all guest clusters from `first` on.
    pub(super) fn drop_from(&mut self, l1: &mut L1, first: u64) -> Result<()> {
        let table_len = self.table_len();
        // The first of those that are given up as a whole.
        let whole = first.div_ceil(table_len).min(l1.entries.len() as u64) as usize;
        if let Some(part) = whole.checked_sub(1)
            && part as u64 == first / table_len
        {
            self.drop_part(l1, part, first % table_len)?;
        }
        self.sub_trees(&l1.entries[whole..])?;
        l1.entries[whole..].fill(0);
        Ok(())
    }

    /// Gives up the guest clusters of L2 table `index` from its entry `first` on.
    fn drop_part(&mut self, l1: &mut L1, index: usize, first: u64) -> Result<()> {
        let table = offset_of(l1.entries[index]);
        if table == 0 {
            return Ok(());
        }
        let mut entries = self.read_l2(table)?;
        // Inside the table.
        let from = first as usize * self.numbers();
        if entries[from..].iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        for entry in entries[from..].iter().step_by(self.numbers()) {
            self.sub(used(*entry, &self.geometry))?;
        }
        entries[from..].fill(0);
        self.put_l2(l1, index, &entries)
    }

    /// Makes zeros what the last cluster has behind the end of the disk.
    fn clear_tail(&mut self, l1: &mut L1, layer: &Qcow2Layer, behind: u64) -> Result<()> {
        let size = self.geometry.virtual_size;
        if size.is_multiple_of(self.geometry.cluster_size()) {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits;
        let cluster = size >> bits;
        self.each_entry(l1, cluster..cluster + 1, |draft, _, entry| {
            draft.clear_entry_tail(entry, layer, behind)
        })
    }

    /// The same in the last cluster's entry.
    fn clear_entry_tail(
        &mut self,
        entry: &mut [u64],
        layer: &Qcow2Layer,
        behind: u64,
    ) -> Result<()> {
        let (size, status_bits) = (self.geometry.virtual_size, self.geometry.status_bits());
        let tail_at = size % self.geometry.cluster_size();
        let part = (tail_at >> status_bits) as u32;
        let (mapping, _) = Mapping::of(entry, part, &self.geometry)?;
        let shows = behind > size;
        let in_part = !size.is_multiple_of(1 << status_bits);
        match mapping {
            Mapping::Unallocated { .. } if shows && in_part => {
                return Err(Error::usage(format!(
                    "the unit of the disk's end, {size}, shows what stands behind the image; it \
                     must be written before the disk grows"
                )));
            }
            // A packed cluster has no subclusters that could be given up.
            Mapping::Compressed { .. } => self.clear_data(entry, layer, size - tail_at)?,
            Mapping::Data { .. } if in_part => self.clear_data(entry, layer, size - tail_at)?,
            _ => {}
        }
        if let [first, bitmap] = entry
            && *first & ondisk::COMPRESSED == 0
        {
            // The subclusters behind the end.
            let later = u32::MAX.checked_shl(part + u32::from(in_part));
            let later = later.unwrap_or(0);
            let zeros = if shows { u64::from(later) << 32 } else { 0 };
            *bitmap = *bitmap & !(u64::from(later) | u64::from(later) << 32) | zeros;
        }
        Ok(())
    }

    /// Makes the tail of the cluster at guest offset `start` zeros, in a new place unless it is.
    fn clear_data(&mut self, entry: &mut [u64], layer: &Qcow2Layer, start: u64) -> Result<()> {
        let (size, cluster_size) = (self.geometry.virtual_size, self.geometry.cluster_size());
        if let Some(data) = &self.data {
            // A place of its own, which nobody reads so far.
            let end = start + cluster_size;
            if self.geometry.is_encrypted() {
                let first = align_down(size, SECTOR);
                // At most two megabytes.
                let mut bytes = vec![0; (end - first) as usize];
                layer.read_at(first, &mut bytes[..(size - first) as usize])?;
                let sectors = layer.crypt().encrypt(first, first, &bytes)?;
                return data.write_at(first, &sectors);
            }
            let end = end.min(data.len());
            if size < end {
                data.zero(HostRange::new(size, end - size), Zeroing::Punch)?;
            }
            return Ok(());
        }
        // At most two megabytes.
        let mut bytes = vec![0; cluster_size as usize];
        let tail_at = (size - start) as usize;
        let whole = layer.stretched(start + cluster_size);
        let tail = whole.read_at(size, &mut bytes[tail_at..]);
        // A file may end with the disk.
        if tail.is_ok() && is_zero(&bytes[tail_at..]) {
            return Ok(());
        }
        bytes[tail_at..].fill(0);
        layer.read_at(start, &mut bytes[..tail_at])?;
        let offset = self.take(cluster_size)?;
        let sectors = layer.crypt().encrypt(offset, start, &bytes)?;
        self.write("guest data", offset, &sectors)?;
        self.sub(used(entry[0], &self.geometry))?;
        let was_packed = entry[0] & ondisk::COMPRESSED != 0;
        entry[0] = COPIED | offset;
        if let [_, bitmap] = entry
            && was_packed
        {
            *bitmap = u32::MAX.into();
        }
        Ok(())
    }

    /// Makes whole clusters from `from` on zeros, as far as the disk behind has bytes there.
    fn cover(&mut self, l1: &mut L1, layer: &Qcow2Layer, from: u64, behind: u64) -> Result<()> {
        let (bits, cluster_size) = (self.geometry.cluster_bits, self.geometry.cluster_size());
        let first = from.div_ceil(cluster_size);
        let end = behind.div_ceil(cluster_size).max(first);
        let version = self.geometry.version;
        self.each_entry(l1, first..end, |draft, cluster, entry| {
            match entry {
                [_, bitmap] => *bitmap = u64::from(u32::MAX) << 32,
                entry if version >= 3 => entry[0] = ZERO,
                entry => {
                    // A version that knows no zeros but those that are stored.
                    let offset = draft.take(cluster_size)?;
                    // At most two megabytes.
                    let zeros = vec![0; cluster_size as usize];
                    let sectors = layer.crypt().encrypt(offset, cluster << bits, &zeros)?;
                    draft.write("zeros", offset, &sectors)?;
                    entry[0] = COPIED | offset;
                }
            }
            Ok(())
        })
    }

    /// Puts the last L2 table into a place where all of it is in the file: a larger disk needs more of
    /// it than the old one did.
    fn complete_last_table(&mut self, l1: &mut L1) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let clusters = self.geometry.virtual_size.div_ceil(cluster_size);
        let Some(last) = clusters.checked_sub(1) else {
            return Ok(());
        };
        let index = (last / self.table_len()) as usize;
        let table = offset_of(l1.entries[index]);
        if table > 0 && table + cluster_size > self.scribe().storage().len() {
            let entries = self.read_l2(table)?;
            self.put_l2(l1, index, &entries)?;
        }
        Ok(())
    }

    /// Gives places to the clusters from `from` up to `to` that have none.
    fn preallocate(
        &mut self,
        l1: &mut L1,
        from: u64,
        to: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let raw = self.geometry.is_raw_data();
        // Whoever reads the tables must find all that is in the data file. [qemu]
        if preallocation == Preallocation::Off && !raw {
            return Ok(());
        }
        let (bits, cluster_size) = (self.geometry.cluster_bits, self.geometry.cluster_size());
        let numbers = self.numbers();
        let (mut cluster, end) = (from.div_ceil(cluster_size), to.div_ceil(cluster_size));
        if !from.is_multiple_of(cluster_size) && !self.header.has_backing() {
            // A part of this one is added, too. [qemu]
            self.each_entry(l1, cluster - 1..cluster, |_, part, entry| {
                if entry.iter().all(|number| *number == 0) {
                    cluster = part;
                }
                Ok(())
            })?;
            // What stands in its place was nobody's.
            if let Some(data) = &self.data {
                let (start, end) = (cluster << bits, from.min(data.len()));
                if start < end {
                    data.zero(HostRange::new(start, end - start), Zeroing::Punch)?;
                }
            }
        }
        while cluster < end {
            let (index, at) = (cluster / self.table_len(), cluster % self.table_len());
            let count = (self.table_len() - at).min(end - cluster);
            let mut entries = match offset_of(l1.entries[index as usize]) {
                0 => vec![0; cluster_size as usize / 8],
                table => self.read_l2(table)?,
            };
            let place = match self.geometry.has_data_file() {
                true => cluster << bits,
                false => {
                    let range = HostRange::new(self.take(count << bits)?, count << bits);
                    self.fill(range, preallocation)?;
                    range.offset
                }
            };
            let places = (0..count).map(|nth| place + (nth << bits));
            let row = entries[at as usize * numbers..].chunks_exact_mut(numbers);
            for (entry, place) in row.zip(places) {
                self.sub(used(entry[0], &self.geometry))?;
                // What is zeros already, to hide something, now has a place as well.
                entry[0] = (entry[0] & ZERO) | COPIED | place;
            }
            self.put_l2(l1, index as usize, &entries)?;
            cluster += count;
        }
        Ok(())
    }

    fn fill(&mut self, range: HostRange, preallocation: Preallocation) -> Result<()> {
        match preallocation {
            Preallocation::Full => self.write_zeros(range.offset, range.len),
            Preallocation::Falloc => self.clear("preallocated clusters", range),
            _ => self
                .scribe()
                .zero("preallocated clusters", range, Zeroing::Punch),
        }
    }

    pub(super) fn write_zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        write_zeros(HostRange::new(offset, len), |at, zeros| {
            self.write("zeros", at, zeros)
        })
    }
}

fn write_zeros(range: HostRange, mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let zeros = vec![0; ZEROS.min(range.len) as usize];
    let mut at = range.offset;
    while at < range.end() {
        let piece = ZEROS.min(range.end() - at);
        write(at, &zeros[..piece as usize])?;
        at += piece;
    }
    Ok(())
}
