//! Who stands where in a new image.

use std::collections::BTreeMap;
use std::sync::Arc;

use goldsmith_block::{GuestRange, HostRange, Result, Slot, StorageMut, Zeroing};
use zerocopy::IntoBytes;
use zerocopy::byteorder::{BE, U64};

use crate::error::Qcow2Error;
use crate::mapping::packed_entry;
use crate::ondisk;
use crate::plan::{Plan, Preallocation};
use crate::refcount::{Allocator, Places, Tail};
use crate::table::write_table;

/// Longest single write of zeros, in bytes. [ours]
const ZEROS: u64 = 1 << 20;

/// All that is known of the image before it is finished.
pub(crate) struct Layout {
    storage: Arc<dyn StorageMut>,
    /// Where guest data goes, if not to `storage`: each byte to its own offset.
    data: Option<Arc<dyn StorageMut>>,
    plan: Plan,
    allocator: Allocator,
    l1: Vec<U64<BE>>,
    /// The L2 table that is being filled, and its place in the L1 table.
    l2: Vec<U64<BE>>,
    l2_index: Option<usize>,
    /// The tables that are being filled, too, by their places in the L1 table, if guest clusters may
    /// come in any order.
    others: Option<BTreeMap<usize, Vec<U64<BE>>>>,
    /// Byte offset behind the last packed unit; a multiple of the cluster size if no cluster is
    /// partly used.
    packed_at: u64,
    /// With preallocation, the first guest cluster that has no place yet.
    unplaced: u64,
}

impl Layout {
    pub(crate) fn new(
        storage: Arc<dyn StorageMut>,
        data: Option<Arc<dyn StorageMut>>,
        plan: &Plan,
    ) -> Self {
        let allocator =
            Allocator::new(Arc::clone(&storage), plan.cluster_bits, plan.refcount_order);
        Self {
            storage,
            data,
            allocator,
            // The caller's disk needs them; its size was checked.
            l1: vec![0.into(); plan.l1_entries as usize],
            l2: vec![0.into(); plan.cluster_size() as usize / 8],
            l2_index: None,
            others: None,
            packed_at: 0,
            unplaced: 0,
            plan: plan.clone(),
        }
    }

    /// Writes no L2 table before the end, so that clusters may be asked for in any order and again.
    pub(crate) fn keep_tables(&mut self) {
        self.others = Some(BTreeMap::new());
    }

    fn cluster_size(&self) -> u64 {
        self.plan.cluster_size()
    }

    /// Numbers in an L2 entry.
    fn numbers(&self) -> usize {
        1 + usize::from(self.plan.extended_l2)
    }

    /// Places for `range`, in as few slots as L2 tables and refcount blocks between them allow.
    pub(crate) fn place(&mut self, range: GuestRange, slots: &mut Vec<Slot>) -> Result<()> {
        let bits = self.plan.cluster_bits;
        self.preallocate(range.start >> bits)?;
        let last = range.end.div_ceil(self.cluster_size());
        let mut at = range.start;
        while at < range.end {
            let cluster = at >> bits;
            let entry = self.turn_to(cluster)?;
            let (first, count) = self.clusters(cluster, entry, last - cluster)?;
            let end = range.end.min((cluster + count) << bits);
            for nth in 0..count {
                let part = GuestRange::new(
                    at.max((cluster + nth) << bits),
                    end.min((cluster + nth + 1) << bits),
                );
                let entry = entry + nth as usize * self.numbers();
                self.l2[entry] = (ondisk::COPIED | (first + nth) << bits).into();
                self.mark(entry, part, 0);
            }
            slots.push(Slot {
                range: GuestRange::new(at, end),
                host: (first << bits) + (at - (cluster << bits)),
                packed: None,
            });
            at = end;
        }
        self.unplaced = self.unplaced.max(last);
        Ok(())
    }

    /// Host clusters in a row for guest cluster `cluster`, whose entry is at `entry`, and at most
    /// `most - 1` behind it: the number of the first and how many they are.
    fn clusters(&mut self, cluster: u64, entry: usize, most: u64) -> Result<(u64, u64)> {
        let most = most.min(((self.l2.len() - entry) / self.numbers()) as u64);
        if self.data.is_some() {
            return Ok((cluster, most));
        }
        // Some of it may have been asked for before.
        let known = self.l2[entry].get() & ondisk::OFFSET;
        if known != 0 {
            return Ok((known >> self.plan.cluster_bits, 1));
        }
        let entries = self.l2[entry..].iter().step_by(self.numbers());
        let most = entries
            .take(most as usize)
            .take_while(|entry| entry.get() & ondisk::OFFSET == 0)
            .count();
        self.allocator.take(most as u64)
    }

    /// Notes that the subclusters of `part`, in the cluster whose entry is at `entry`, are data
    /// (`half` 0) or zeros (`half` 1).
    fn mark(&mut self, entry: usize, part: GuestRange, half: u32) {
        if !self.plan.extended_l2 {
            return;
        }
        let bits = self.plan.status_bits();
        let first = (part.start >> bits) % 32;
        let count = part.end.div_ceil(1 << bits) - (part.start >> bits);
        // At most the 32 subclusters of one cluster.
        let subclusters = ((1 << count) - 1) << first << (32 * half);
        self.l2[entry + 1] |= U64::new(subclusters);
    }

    /// Clusters in a row for `len` bytes that are no guest data; nothing else has a place yet.
    pub(crate) fn place_header(&mut self, len: u64) -> Result<HostRange> {
        let need = len.div_ceil(self.cluster_size());
        let (first, count) = self.allocator.take(need)?;
        if count < need {
            return Err(Qcow2Error::Conflict {
                option: "encrypt.format",
                rule: "a LUKS header needs larger clusters or narrower refcounts; 4k is enough for any",
            }
            .into());
        }
        Ok(HostRange::new(first << self.plan.cluster_bits, len))
    }

    /// Makes `range` zeros that hide what stands behind the image.
    pub(crate) fn place_zeroes(&mut self, range: GuestRange) -> Result<()> {
        if self.plan.version < 3 {
            return self.place_stored_zeroes(range);
        }
        let bits = self.plan.cluster_bits;
        self.preallocate(range.start >> bits)?;
        let mut at = range.start;
        while at < range.end {
            let cluster = at >> bits;
            let entry = self.turn_to(cluster)?;
            let end = range.end.min((cluster + 1) << bits);
            if !self.plan.extended_l2 {
                self.l2[entry] = ondisk::ZERO.into();
            }
            self.mark(entry, GuestRange::new(at, end), 1);
            at = end;
        }
        Ok(())
    }

    /// Zeros as data, for a version that knows no others.
    fn place_stored_zeroes(&mut self, range: GuestRange) -> Result<()> {
        let mut slots = Vec::new();
        self.place(range, &mut slots)?;
        for slot in slots {
            let len = slot.range.len().next_multiple_of(self.cluster_size());
            self.clear(HostRange::new(slot.host, len), Preallocation::Metadata)?;
        }
        Ok(())
    }

    /// With preallocation, gives places to the clusters before `end` that have none.
    fn preallocate(&mut self, end: u64) -> Result<()> {
        if self.plan.preallocation == Preallocation::Off {
            return Ok(());
        }
        let bits = self.plan.cluster_bits;
        while self.unplaced < end {
            let cluster = self.unplaced;
            let entry = self.turn_to(cluster)?;
            let (first, count) = self.clusters(cluster, entry, end - cluster)?;
            for nth in 0..count {
                let entry = entry + nth as usize * self.numbers();
                self.l2[entry] = (ondisk::COPIED | (first + nth) << bits).into();
            }
            let mut host = HostRange::new(first << bits, count << bits);
            if self.data.is_some() {
                // A data file is as long as the disk, which may end inside a cluster.
                let disk_end = host.end().min(self.plan.virtual_size);
                host = HostRange::new(host.offset, disk_end - host.offset);
            }
            self.clear(host, self.plan.preallocation)?;
            self.unplaced += count;
        }
        Ok(())
    }

    /// Makes clusters that nobody is going to write read as zeros.
    fn clear(&self, host: HostRange, preallocation: Preallocation) -> Result<()> {
        let storage = self.data.as_ref().unwrap_or(&self.storage);
        match preallocation {
            Preallocation::Full => {
                let zeros = vec![0; ZEROS.min(host.len) as usize];
                let mut at = host.offset;
                while at < host.end() {
                    let len = ZEROS.min(host.end() - at);
                    storage.write_at(at, &zeros[..len as usize])?;
                    at += len;
                }
                Ok(())
            }
            Preallocation::Metadata if storage.is_blank() => Ok(()),
            _ => {
                // Places come one after the other, so nobody writes behind this one yet.
                if storage.len() < host.end() {
                    storage.set_len(host.end())?;
                }
                storage.zero(host, Zeroing::Keep)
            }
        }
    }

    /// Bytes for one packed unit: behind the last one if its cluster may have another user, and on
    /// into the next cluster if that is free.
    pub(crate) fn place_packed(&mut self, range: GuestRange, len: u64) -> Result<Slot> {
        if len == 0 || len >= self.cluster_size() {
            let what = "packed a cluster into no byte, or into no less than a cluster";
            return Err(Qcow2Error::Contract { what }.into());
        }
        let bits = self.plan.cluster_bits;
        let at = self.turn_to(range.start >> bits)?;
        let left = self.packed_at.next_multiple_of(self.cluster_size()) - self.packed_at;
        let cluster = self.packed_at >> bits;
        let further = u64::from(len > left);
        if left == 0 || !self.allocator.share(cluster, further) {
            clear_rest(&*self.storage, self.packed_at, bits)?;
            let (first, _) = self.allocator.take(1)?;
            self.packed_at = first << bits;
        }
        let host = HostRange::new(self.packed_at, len);
        self.l2[at] = packed_entry(host, bits)?.into();
        self.packed_at = host.end();
        Ok(Slot {
            range,
            host: host.offset,
            packed: Some(len),
        })
    }

    /// Makes the L2 table of `cluster` the one being filled; returns where the cluster's entry
    /// starts in it.
    fn turn_to(&mut self, cluster: u64) -> Result<usize> {
        // Clusters lie on the disk, for which the L1 table is in memory: both positions fit.
        let table = (self.l2.len() / self.numbers()) as u64;
        let (index, at) = ((cluster / table) as usize, (cluster % table) as usize);
        let is_late = self.l2_index.is_some_and(|current| current > index);
        if index >= self.l1.len() || is_late && self.others.is_none() {
            let what = "asked for places out of order or behind the disk";
            return Err(Qcow2Error::Contract { what }.into());
        }
        if self.l2_index != Some(index) {
            match &mut self.others {
                None => self.close_table()?,
                Some(others) => {
                    let empty = || vec![0.into(); self.l2.len()];
                    let next = others.remove(&index).unwrap_or_else(empty);
                    let left = std::mem::replace(&mut self.l2, next);
                    if let Some(current) = self.l2_index {
                        others.insert(current, left);
                    }
                }
            }
            self.l2_index = Some(index);
        }
        Ok(at * self.numbers())
    }

    /// Writes the tables that were kept, in the order of the disk.
    fn close_others(&mut self) -> Result<()> {
        let Some(mut others) = self.others.take() else {
            return Ok(());
        };
        if let Some(current) = self.l2_index.take() {
            others.insert(current, std::mem::take(&mut self.l2));
        }
        for (index, table) in others {
            self.l2 = table;
            self.l2_index = Some(index);
            self.close_table()?;
        }
        Ok(())
    }

    /// Writes the L2 table that is being filled to the next cluster.
    fn close_table(&mut self) -> Result<()> {
        let Some(index) = self.l2_index.take() else {
            return Ok(());
        };
        let (cluster, _) = self.allocator.take(1)?;
        let offset = cluster << self.plan.cluster_bits;
        write_table(&*self.storage, offset, self.l2.as_bytes())?;
        self.l1[index] = (ondisk::COPIED | offset).into();
        self.l2.fill(0.into());
        Ok(())
    }

    /// Writes what is left of the tables.
    pub(crate) fn finish(mut self) -> Result<Tail> {
        self.preallocate(self.plan.virtual_size.div_ceil(self.cluster_size()))?;
        self.close_others()?;
        self.close_table()?;
        clear_rest(&*self.storage, self.packed_at, self.plan.cluster_bits)?;
        let l1_bytes = self.l1.len() as u64 * 8;
        let l1_clusters = l1_bytes.div_ceil(self.cluster_size());
        let entries = (l1_clusters << self.plan.cluster_bits) as usize / 8;
        self.l1.resize(entries, 0.into());
        let mut tail = self.allocator.finish(l1_clusters)?;
        if l1_clusters == 0 {
            tail.l1_offset = 0;
        }
        write_table(&*self.storage, tail.l1_offset, self.l1.as_bytes())?;
        Ok(tail)
    }
}

/// Length of the file of an image in which every cluster has its place in advance, so that it does not hang
/// on what is written to it: a look at each L2 table and refcount block, of which nothing is made.
///
/// # Errors
/// `Limit` if the file would grow too long.
pub(crate) fn preallocated_len(plan: &Plan) -> Result<u64, Qcow2Error> {
    let cluster_size = plan.cluster_size();
    let in_table = cluster_size / if plan.extended_l2 { 16 } else { 8 };
    let mut places = Places::new(plan.cluster_bits, plan.refcount_order);
    let mut left = plan.virtual_size.div_ceil(cluster_size);
    while left > 0 {
        let mut here = left.min(in_table);
        left -= here;
        while here > 0 && plan.data_file.is_none() {
            here -= places.take(here)?.1;
        }
        places.take(1)?;
    }
    let l1_clusters = (plan.l1_entries * 8).div_ceil(cluster_size);
    Ok(places.end(l1_clusters)?.end << plan.cluster_bits)
}

/// Zeros from `offset` to the end of its cluster or subcluster, of 2^`bits` bytes, where something
/// old may stand.
pub(crate) fn clear_rest(storage: &dyn StorageMut, offset: u64, bits: u32) -> Result<()> {
    let rest = offset.next_multiple_of(1 << bits) - offset;
    if rest == 0 || storage.is_blank() {
        return Ok(());
    }
    storage.write_at(offset, &vec![0; rest as usize])
}
