//! L1 and L2 tables of the new state.

use std::collections::BTreeMap;
use std::ops::Range;

use byteorder::{BE, ByteOrder};
use goldsmith_block::{HostRange, Result};

use super::draft::{Draft, offset_of};
use crate::geometry::Geometry;
use crate::mapping::packed_place;
use crate::ondisk::{COMPRESSED, COPIED};

/// The active L1 table on the way from what it is to what it shall be.
pub(super) struct L1 {
    /// Entries; also those behind the disk's, which are for the state of a virtual machine.
    pub(super) entries: Vec<u64>,
    /// Where the old table stands.
    old: HostRange,
    /// The old entries.
    before: Vec<u64>,
}

/// The bytes of the image file that an L2 entry uses, as far as they are counted.
pub(super) fn used(entry: u64, geometry: &Geometry) -> HostRange {
    if entry & COMPRESSED != 0 {
        return packed_place(entry, geometry.cluster_bits);
    }
    match offset_of(entry) {
        0 => HostRange::new(0, 0),
        _ if geometry.has_data_file() => HostRange::new(0, 0),
        offset => HostRange::new(offset, geometry.cluster_size()),
    }
}

/// Counts so many uses of some bytes.
type Count = fn(&mut Draft, HostRange, u64) -> Result<()>;

/// What a table that was dealt with costs to remember, in bytes.
pub(super) const REMEMBERED: u64 = 48;

impl Draft {
    /// Numbers in an L2 entry.
    pub(super) fn numbers(&self) -> usize {
        (1 << self.geometry.entry_bits()) / 8
    }

    /// L2 entries in a table.
    pub(super) fn table_len(&self) -> u64 {
        self.geometry.cluster_size() >> self.geometry.entry_bits()
    }

    /// The active L1 table.
    ///
    /// # Errors
    /// `Limit` if it is over budget; `Io` if it cannot be read.
    pub(super) fn l1(&self) -> Result<L1> {
        let raw = &self.header.raw;
        let (offset, entries) = (raw.l1_table_offset.get(), raw.l1_size.get());
        let entries = self.read_l1(offset, entries.into())?;
        Ok(L1 {
            old: HostRange::new(offset, entries.len() as u64 * 8),
            before: entries.clone(),
            entries,
        })
    }

    /// An L1 table.
    ///
    /// # Errors
    /// `Limit` if it is over budget; `Io` if it cannot be read.
    pub(super) fn read_l1(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let mut table = self.budget.zeroed(entries, "L1 table")?;
        self.read_into(offset, &mut table)?;
        Ok(table)
    }

    /// The L2 table at `offset`; a file may end in the unused rest of its last one.
    ///
    /// # Errors
    /// `Io` if it cannot be read.
    pub(super) fn read_l2(&self, offset: u64) -> Result<Vec<u64>> {
        let mut table = vec![0; self.geometry.cluster_size() as usize / 8];
        self.read_into(offset, &mut table)?;
        Ok(table)
    }

    fn read_into(&self, offset: u64, table: &mut [u64]) -> Result<()> {
        let mut bytes = vec![0; table.len() * 8];
        crate::table::read_up_to_end(&**self.scribe().storage(), offset, &mut bytes)?;
        BE::read_u64_into(&bytes, table);
        Ok(())
    }

    /// So many uses more of all that the L2 table at `offset` names, and of itself.
    pub(super) fn add_tree(&mut self, offset: u64, times: u64) -> Result<()> {
        self.each_use(offset, times, Self::add_times)
    }

    /// One use more for each of the entries of an L1 table. [`add_tree`](Self::add_tree)
    pub(super) fn add_trees(&mut self, l1: &[u64]) -> Result<()> {
        self.each_tree(l1, Self::add_times)
    }

    /// One use less for each of the entries of an L1 table.
    pub(super) fn sub_trees(&mut self, l1: &[u64]) -> Result<()> {
        self.each_tree(l1, Self::sub_times)
    }

    /// Each table is read once, though millions of entries may name it: that is as much time as it
    /// takes to read the file.
    fn each_tree(&mut self, l1: &[u64], count: Count) -> Result<()> {
        self.budget.reserve(size_of_val(l1) as u64, "L1 table")?;
        let tables = l1.iter().map(|entry| offset_of(*entry));
        let mut tables: Vec<u64> = tables.filter(|table| *table != 0).collect();
        tables.sort_unstable();
        for same in tables.chunk_by(|a, b| a == b) {
            self.each_use(same[0], same.len() as u64, count)?;
        }
        Ok(())
    }

    fn each_use(&mut self, table: u64, times: u64, count: Count) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        count(self, HostRange::new(table, cluster_size), times)?;
        for entry in self.read_l2(table)?.chunks_exact(self.numbers()) {
            count(self, used(entry[0], &self.geometry), times)?;
        }
        Ok(())
    }

    /// Lets L1 entry `index` name the table `to` instead, one use of which comes with that.
    pub(super) fn redirect(&mut self, l1: &mut L1, index: usize, to: u64) -> Result<()> {
        let (from, len) = (offset_of(l1.entries[index]), self.geometry.cluster_size());
        if from == to {
            return Ok(());
        }
        self.sub(HostRange::new(from, len))?;
        if to != 0 {
            self.add(HostRange::new(to, len))?;
        }
        l1.entries[index] = to;
        Ok(())
    }

    /// Puts `entries` in the place of L2 table `index`. What the entries name is counted by whoever
    /// changed them.
    ///
    /// # Errors
    /// Those of [`Draft::write`].
    pub(super) fn put_l2(&mut self, l1: &mut L1, index: usize, entries: &[u64]) -> Result<()> {
        let old = offset_of(l1.entries[index]);
        let bits = self.geometry.cluster_bits;
        let own =
            old != 0 && self.counts.is_new(old >> bits, &self.budget)? && self.uses(old)? == 1;
        let empty = entries.iter().all(|entry| *entry == 0);
        if own && !empty {
            return self.write("L2 tables", old, &bytes_of(entries));
        }
        if old != 0 {
            self.sub(HostRange::new(old, self.geometry.cluster_size()))?;
        }
        l1.entries[index] = match empty {
            true => 0,
            false => COPIED | self.write_table("L2 tables", entries)?,
        };
        Ok(())
    }

    /// Calls `change` with each guest cluster of `clusters`, which ascend, and its L2 entry; puts the
    /// tables that it changes in the place of the old ones.
    ///
    /// # Errors
    /// Those of `change` and of [`put_l2`](Self::put_l2).
    pub(super) fn each_entry(
        &mut self,
        l1: &mut L1,
        clusters: Range<u64>,
        mut change: impl FnMut(&mut Self, u64, &mut [u64]) -> Result<()>,
    ) -> Result<()> {
        let (numbers, table_len) = (self.numbers(), self.table_len());
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let (index, at) = ((cluster / table_len) as usize, cluster % table_len);
            let count = (table_len - at).min(clusters.end - cluster);
            let before = match offset_of(l1.entries[index]) {
                0 => vec![0; self.geometry.cluster_size() as usize / 8],
                table => self.read_l2(table)?,
            };
            let mut entries = before.clone();
            let row = entries[at as usize * numbers..].chunks_exact_mut(numbers);
            for (entry, cluster) in row.zip(cluster..cluster + count) {
                change(self, cluster, entry)?;
            }
            if entries != before {
                self.put_l2(l1, index, &entries)?;
            }
            cluster += count;
        }
        Ok(())
    }

    /// Makes the copied flags of the active tables right: each says whether what its entry names is
    /// used once. To be called when nothing else is going to change. Says whether a table changed:
    /// where guest data and tables share clusters, as in damaged images, that may make other flags
    /// wrong.
    ///
    /// # Errors
    /// Those of [`Draft::write`].
    pub(super) fn settle_copied(&mut self, l1: &mut L1) -> Result<bool> {
        let numbers = self.numbers();
        let mut settled = true;
        // What became of each table, whatever the number of entries that name it.
        let mut done = BTreeMap::new();
        for index in 0..l1.entries.len() {
            let table = offset_of(l1.entries[index]);
            // In a damaged image a table need not be where its entry says.
            let is_place = table.is_multiple_of(self.geometry.cluster_size());
            if table == 0 || !is_place || table >= self.scribe().storage().len() {
                continue;
            }
            if let Some(new) = done.get(&table) {
                self.redirect(l1, index, *new)?;
                continue;
            }
            self.budget.reserve(REMEMBERED, "L2 tables")?;
            let mut entries = self.read_l2(table)?;
            let mut changed = false;
            for entry in entries.iter_mut().step_by(numbers) {
                let wanted = match *entry {
                    packed if packed & COMPRESSED != 0 => packed & !COPIED,
                    nothing if offset_of(nothing) == 0 => nothing,
                    // In a file of its own, a cluster belongs to one entry only. [spec]
                    data if self.geometry.has_data_file() => data | COPIED,
                    data if self.is_used_once(offset_of(data))? => data | COPIED,
                    data => data & !COPIED,
                };
                changed |= wanted != *entry;
                *entry = wanted;
            }
            if changed {
                self.put_l2(l1, index, &entries)?;
                settled = false;
            }
            done.insert(table, offset_of(l1.entries[index]));
        }
        for index in 0..l1.entries.len() {
            let table = offset_of(l1.entries[index]);
            if table != 0 {
                let once = self.is_used_once(table)?;
                let others = l1.entries[index] & !COPIED;
                l1.entries[index] = others | if once { COPIED } else { 0 };
            }
        }
        Ok(!settled)
    }

    /// As [`settle_copied`](Self::settle_copied), where a cluster that was shared is no longer: whoever
    /// else uses it may be another entry of the active tables.
    ///
    /// # Errors
    /// Those of [`Draft::write`].
    pub(super) fn settle_unshared(&mut self, l1: &mut L1) -> Result<()> {
        if self.counts.unshared {
            self.settle_copied(l1)?;
        }
        Ok(())
    }

    /// Whether the cluster at `offset` is used once; what is behind the file is not used.
    fn is_used_once(&mut self, offset: u64) -> Result<bool> {
        Ok(offset < self.scribe().storage().len() && self.uses(offset)? == 1)
    }

    /// Puts the new L1 table in the place of the old one, if they differ.
    ///
    /// # Errors
    /// Those of [`Draft::write`].
    pub(super) fn put_l1(&mut self, l1: L1) -> Result<()> {
        if l1.entries == l1.before {
            return Ok(());
        }
        self.sub(l1.old)?;
        let offset = self.write_table("L1 table", &l1.entries)?;
        self.header.set_l1(offset, l1.entries.len());
        Ok(())
    }
}

/// A table as it stands in the file.
pub(super) fn bytes_of(entries: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; entries.len() * 8];
    BE::write_u64_into(entries, &mut bytes);
    bytes
}
