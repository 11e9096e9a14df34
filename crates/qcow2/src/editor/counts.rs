//! Refcounts on the way from what they are to what they shall be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use byteorder::{BE, ByteOrder};
use goldsmith_block::{Budget, HostRange, Result, Storage, is_zero};

use crate::check;
use crate::error::Qcow2Error;
use crate::geometry::Geometry;
use crate::ondisk::{self, REFCOUNT_RESERVED};
use crate::refcount::Block;
use crate::table::read_up_to_end;

/// The refcounts of an image that is being changed.
///
/// A cluster is free if it is counted neither in the old state nor in the new one: what the old
/// state needs is never written over.
pub(super) struct Counts {
    storage: Arc<dyn Storage>,
    cluster_bits: u32,
    /// Base-2 logarithm of the width of a counter in bits.
    order: u32,
    /// Where the old table stands.
    table_at: HostRange,
    /// Byte offset of each block of the old state; 0 if there is none.
    table: Vec<u64>,
    /// Blocks that were looked at.
    rows: BTreeMap<u64, Row>,
    /// Those of them that still need a place.
    unplaced: BTreeSet<u64>,
    /// No free cluster is before this one.
    search: u64,
    /// By how many free clusters in a row were looked for: no so many start before this one.
    searched: BTreeMap<u64, u64>,
    /// Whether a cluster that several used has been left to one.
    pub(super) unshared: bool,
    /// How often clusters are used in truth, where the refcounts cannot be trusted.
    uses: Option<check::Counts>,
    /// Whether counts that are smaller than that stay so.
    keeps_small: bool,
}

/// The clusters that one refcount block counts.
struct Row {
    /// Their counts in the new state.
    now: Block,
    /// And in the old one, where those differ.
    old: Option<Block>,
    /// Where the new block is going to stand.
    place: Option<u64>,
    /// Whether the place of the old block was given up.
    released: bool,
}

/// What [`Counts::place`] laid out: bytes to write, and where.
pub(super) struct Placed {
    /// Refcount blocks and their offsets.
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
    /// The refcount table.
    pub(super) table: Vec<u64>,
    /// Byte offset of it.
    pub(super) table_offset: u64,
}

impl Counts {
    /// Reads the refcount table, which is known to be in the file.
    ///
    /// # Errors
    /// `Corrupt` if an entry breaks a rule; `Limit` if it is over `budget`; `Io` if it cannot be
    /// read.
    pub(super) fn read(
        storage: Arc<dyn Storage>,
        geometry: &Geometry,
        table_at: HostRange,
        budget: &Budget,
    ) -> Result<Self> {
        let mut table = budget.zeroed::<u64>(table_at.len / 8, "refcount table")?;
        let mut bytes = budget.zeroed::<u8>(table_at.len, "refcount table")?;
        storage.read_at(table_at.offset, &mut bytes)?;
        BE::read_u64_into(&bytes, &mut table);
        for (index, entry) in table.iter_mut().enumerate() {
            let place = *entry & !REFCOUNT_RESERVED;
            if *entry & REFCOUNT_RESERVED != 0 || !place.is_multiple_of(geometry.cluster_size()) {
                let (index, entry) = (index as u64, *entry);
                return Err(Qcow2Error::RefcountEntry { index, entry }.into());
            }
            *entry = place;
        }
        Ok(Self::new(storage, geometry, table_at, table))
    }

    /// Counts that nobody has looked at, whose blocks stand where `table` says.
    fn new(
        storage: Arc<dyn Storage>,
        geometry: &Geometry,
        table_at: HostRange,
        table: Vec<u64>,
    ) -> Self {
        Self {
            storage,
            cluster_bits: geometry.cluster_bits,
            order: geometry.refcount_bits.trailing_zeros(),
            table_at,
            table,
            rows: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            search: 1,
            searched: BTreeMap::new(),
            unshared: false,
            uses: None,
            keeps_small: false,
        }
    }

    /// Refcounts of an image that has none that can be trusted, counted anew: `uses` says how often
    /// each cluster is used, the old refcounts left out. All that is new comes behind the file.
    ///
    /// # Errors
    /// `Limit` if they are over `budget`.
    pub(super) fn anew(
        storage: Arc<dyn Storage>,
        geometry: &Geometry,
        uses: check::Counts,
        budget: &Budget,
    ) -> Result<Self> {
        let mut counts = Self::new(storage, geometry, HostRange::new(0, 0), Vec::new());
        counts.search = uses.clusters;
        for cluster in 0..uses.clusters {
            let count = uses.get(cluster);
            if count > 0 {
                counts.set(cluster, count, budget)?;
            }
        }
        counts.uses = Some(uses);
        Ok(counts)
    }

    /// Sets every count to how often its cluster is used, but counts that are too small only if
    /// `both`. Whatever is used stays untouched in any case.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn correct(
        &mut self,
        uses: check::Counts,
        both: bool,
        budget: &Budget,
    ) -> Result<()> {
        for cluster in 0..uses.clusters {
            let (stored, count) = (self.get(cluster, budget)?, uses.get(cluster));
            if stored > count || both {
                self.set(cluster, count, budget)?;
            }
        }
        self.uses = Some(uses);
        self.keeps_small = !both;
        Ok(())
    }

    /// Clusters that one block counts.
    pub(super) fn row_len(&self) -> u64 {
        8 << self.cluster_bits >> self.order
    }

    /// The greatest count.
    pub(super) fn max(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// How often `cluster` is used in the new state.
    ///
    /// # Errors
    /// `Io` if its block cannot be read; `Limit` if it is over `budget`.
    pub(super) fn get(&mut self, cluster: u64, budget: &Budget) -> Result<u64> {
        let len = self.row_len();
        Ok(self.row(cluster / len, budget)?.now.get(cluster % len))
    }

    /// How often `cluster` is used in the old state, in truth or as its refcount says.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn old(&mut self, cluster: u64, budget: &Budget) -> Result<u64> {
        let known = self.uses.as_ref();
        let known = known.filter(|uses| cluster < uses.clusters);
        let known = known.map_or(0, |uses| uses.get(cluster));
        Ok(self.stored(cluster, budget)?.max(known))
    }

    /// The refcount of `cluster` in the old state.
    fn stored(&mut self, cluster: u64, budget: &Budget) -> Result<u64> {
        let len = self.row_len();
        let row = self.row(cluster / len, budget)?;
        Ok(row.old.as_ref().unwrap_or(&row.now).get(cluster % len))
    }

    /// Whether `cluster` has users that its count does not know of: when those that it knows of have
    /// given it up, it is used still.
    fn is_undercounted(&mut self, cluster: u64, budget: &Budget) -> Result<bool> {
        let known = self.uses.as_ref();
        let Some(uses) = known.filter(|uses| cluster < uses.clusters) else {
            return Ok(false);
        };
        let (count, is_overfull) = (uses.get(cluster), uses.is_overfull(cluster));
        Ok(is_overfull || self.keeps_small && self.stored(cluster, budget)? < count)
    }

    /// Makes the count of `cluster` `count`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn set(&mut self, cluster: u64, count: u64, budget: &Budget) -> Result<()> {
        let (len, cluster_bits) = (self.row_len(), self.cluster_bits);
        let (index, at) = (cluster / len, cluster % len);
        let row = self.row(index, budget)?;
        if row.now.get(at) == count {
            return Ok(());
        }
        if row.old.is_none() {
            budget.reserve(1 << cluster_bits, "refcount blocks")?;
            row.old = Some(row.now.clone());
        }
        row.now.set(at, count);
        if row.place.is_none() {
            self.unplaced.insert(index);
        }
        Ok(())
    }

    /// So many uses more of each of `clusters`.
    ///
    /// # Errors
    /// `Limit` if a counter cannot hold them; and as [`get`](Self::get).
    pub(super) fn add(&mut self, clusters: Range<u64>, times: u64, budget: &Budget) -> Result<()> {
        for cluster in clusters {
            let (count, max) = (self.get(cluster, budget)?, self.max());
            if times > max - count {
                return Err(Qcow2Error::RefcountFull { cluster, max }.into());
            }
            self.set(cluster, count + times, budget)?;
        }
        Ok(())
    }

    /// One use less of each of `clusters`, but for those that have users nobody counted.
    ///
    /// # Errors
    /// `Corrupt` if one has no use; and as [`get`](Self::get).
    pub(super) fn sub(&mut self, clusters: Range<u64>, budget: &Budget) -> Result<()> {
        self.sub_times(clusters, 1, budget)
    }

    /// As [`sub`](Self::sub), so many uses.
    ///
    /// # Errors
    /// As [`sub`](Self::sub), if one has fewer.
    pub(super) fn sub_times(
        &mut self,
        clusters: Range<u64>,
        times: u64,
        budget: &Budget,
    ) -> Result<()> {
        for cluster in clusters {
            if self.is_undercounted(cluster, budget)? {
                continue;
            }
            let count = self.get(cluster, budget)?;
            let Some(less) = count.checked_sub(times) else {
                return Err(Qcow2Error::RefcountZero { cluster }.into());
            };
            self.set(cluster, less, budget)?;
            self.unshared |= count > 1 && less <= 1;
        }
        Ok(())
    }

    /// Takes `count` free clusters in a row, each used once; returns the first one's number.
    ///
    /// # Errors
    /// `Corrupt` if that made the file so long that what it lost read as zeros from then on;
    /// `Limit` if the file would grow too long; and as [`get`](Self::get).
    pub(super) fn take(&mut self, count: u64, budget: &Budget) -> Result<u64> {
        // Where there were no fewer in a row, there are not so many either.
        let fewer = self.searched.range(..=count).next_back();
        let start = fewer.map_or(self.search, |(_, from)| self.search.max(*from));
        let (mut first, mut cluster) = (start, start);
        while cluster - first < count {
            if cluster >= ondisk::OFFSET_END >> self.cluster_bits {
                return Err(Qcow2Error::HostLimit {
                    what: "a cluster",
                    offset: cluster << self.cluster_bits,
                    limit: ondisk::OFFSET_END,
                }
                .into());
            }
            let used = self.get(cluster, budget)? > 0 || self.old(cluster, budget)? > 0;
            cluster += 1;
            if used {
                first = cluster;
                if count == 1 {
                    self.search = first;
                }
            }
        }
        if let Some(lost) = self.uses.as_ref().and_then(|uses| uses.lost)
            && first + count > lost
        {
            let (place, lost) = (first << self.cluster_bits, lost << self.cluster_bits);
            return Err(Qcow2Error::WouldHideLoss { place, lost }.into());
        }
        for cluster in first..first + count {
            self.set(cluster, 1, budget)?;
        }
        if first == self.search {
            self.search = first + count;
        }
        self.searched.insert(count, first + count);
        Ok(first)
    }

    /// Whether any count differs from what it was.
    pub(super) fn is_changed(&self) -> bool {
        self.rows.values().any(|row| row.old.is_some())
    }

    /// Whether `cluster` is used in the new state only.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn is_new(&mut self, cluster: u64, budget: &Budget) -> Result<bool> {
        Ok(self.old(cluster, budget)? == 0 && self.get(cluster, budget)? > 0)
    }

    /// Counts with counters of 2^`order` bits from now on. All blocks become others, and the places of
    /// the old ones are given up.
    ///
    /// # Errors
    /// `Limit` if a count is too great for that; and as [`get`](Self::get).
    pub(super) fn convert(&mut self, order: u32, budget: &Budget) -> Result<()> {
        let old_len = self.row_len();
        let blocks = std::mem::take(&mut self.table);
        let known = self.rows.keys().copied();
        let placed = (0u64..).zip(&blocks).filter(|(_, place)| **place != 0);
        let mut indexes: Vec<u64> = placed.map(|(index, _)| index).chain(known).collect();
        indexes.sort_unstable();
        indexes.dedup();
        self.table.clone_from(&blocks);
        let mut counts = Vec::new();
        for index in indexes {
            let known = counts.len();
            let row = self.row(index, budget)?;
            for at in 0..old_len {
                let (now, old) = (
                    row.now.get(at),
                    row.old.as_ref().unwrap_or(&row.now).get(at),
                );
                if now > 0 || old > 0 {
                    counts.push((index * old_len + at, now, old));
                }
            }
            let cost = size_of::<(u64, u64, u64)>() * (counts.len() - known);
            budget.reserve(cost as u64, "refcounts of another width")?;
        }
        self.order = order;
        self.table.clear();
        self.rows.clear();
        self.unplaced.clear();
        let (len, max) = (self.row_len(), self.max());
        for (cluster, now, old) in counts {
            if now > max {
                return Err(Qcow2Error::RefcountWidth { cluster, now, max }.into());
            }
            let (index, bits, order) = (cluster / len, self.cluster_bits, self.order);
            let row = self.rows.entry(index).or_insert_with(|| Row {
                now: Block::new(bits, order),
                old: Some(Block::new(bits, order)),
                place: None,
                released: true,
            });
            row.now.set(cluster % len, now);
            if let Some(block) = &mut row.old {
                // Only whether it is used still matters.
                block.set(cluster % len, old.min(max));
            }
            self.unplaced.insert(index);
        }
        for place in blocks.into_iter().filter(|place| *place != 0) {
            let cluster = place >> self.cluster_bits;
            self.sub(cluster..cluster + 1, budget)?;
        }
        Ok(())
    }

    /// Gives all changed blocks and the table a place, and gives up those of the old state. Nothing
    /// may be counted after this.
    ///
    /// # Errors
    /// `Limit` if the table would grow too long; and as [`take`](Self::take).
    pub(super) fn place(&mut self, budget: &Budget) -> Result<Placed> {
        let bits = self.cluster_bits;
        let clusters = |range: HostRange| range.offset >> bits..range.end() >> bits;
        self.sub(clusters(self.table_at), budget)?;
        let mut table_at = HostRange::new(0, 0);
        loop {
            while let Some(index) = self.unplaced.pop_first() {
                self.place_block(index, budget)?;
            }
            let changed = self.rows.iter().rev().find(|(_, row)| row.old.is_some());
            let last = changed.map_or(0, |(index, _)| index + 1);
            let entries = last.max(self.table.len() as u64);
            let len = (entries * 8).next_multiple_of(1 << bits);
            if len > ondisk::REFCOUNT_TABLE_BYTES {
                return Err(Qcow2Error::TableTooLong {
                    table: "refcount table",
                    bytes: len,
                    limit: ondisk::REFCOUNT_TABLE_BYTES,
                }
                .into());
            }
            if table_at.len < len {
                // The smaller place was taken by this change, so it may be given back at once.
                self.sub(clusters(table_at), budget)?;
                table_at = HostRange::new(self.take(len >> bits, budget)? << bits, len);
            } else if self.unplaced.is_empty() {
                break;
            }
        }
        // As long as its place, which was checked.
        let mut table = self.table.clone();
        table.resize(table_at.len as usize / 8, 0);
        let mut blocks = Vec::new();
        for (index, row) in &self.rows {
            if let Some(place) = row.place {
                blocks.push((place, row.now.bytes.clone()));
            }
            if row.old.is_some() {
                table[*index as usize] = row.place.unwrap_or(0);
            }
        }
        Ok(Placed {
            blocks,
            table,
            table_offset: table_at.offset,
        })
    }

    fn place_block(&mut self, index: u64, budget: &Budget) -> Result<()> {
        let old = self.table.get(index as usize).copied().unwrap_or(0);
        let row = self.row(index, budget)?;
        let release = !row.released && old != 0;
        row.released = true;
        // A block that counts nothing is none.
        let empty = is_zero(&row.now.bytes);
        if release {
            let cluster = old >> self.cluster_bits;
            self.sub(cluster..cluster + 1, budget)?;
        }
        if empty {
            return Ok(());
        }
        let place = self.take(1, budget)? << self.cluster_bits;
        self.row(index, budget)?.place = Some(place);
        self.unplaced.remove(&index);
        Ok(())
    }

    /// Runs of clusters that the old state uses and the new one does not, ascending.
    pub(super) fn freed(&self) -> Vec<Range<u64>> {
        let mut freed: Vec<Range<u64>> = Vec::new();
        for (index, row) in &self.rows {
            let Some(old) = &row.old else { continue };
            for at in 0..self.row_len() {
                if old.get(at) == 0 || row.now.get(at) > 0 {
                    continue;
                }
                let cluster = index * self.row_len() + at;
                match freed.last_mut() {
                    Some(last) if last.end == cluster => last.end += 1,
                    _ => freed.push(cluster..cluster + 1),
                }
            }
        }
        freed
    }

    /// The first cluster behind all that are used in the new state, counted or not.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn end(&mut self, budget: &Budget) -> Result<u64> {
        let counted = self.counted_end(budget)?;
        let clusters = self.uses.as_ref().map_or(0, |uses| uses.clusters);
        for cluster in (counted..clusters).rev() {
            if self.is_undercounted(cluster, budget)? {
                return Ok(cluster + 1);
            }
        }
        Ok(counted)
    }

    fn counted_end(&mut self, budget: &Budget) -> Result<u64> {
        let last = self.rows.keys().next_back().map_or(0, |last| last + 1);
        for index in (0..last.max(self.table.len() as u64)).rev() {
            let len = self.row_len();
            let counted = self
                .table
                .get(index as usize)
                .is_some_and(|place| *place != 0);
            if !counted && !self.rows.contains_key(&index) {
                continue;
            }
            let row = self.row(index, budget)?;
            if let Some(at) = (0..len).rev().find(|at| row.now.get(*at) > 0) {
                return Ok(index * len + at + 1);
            }
        }
        Ok(0)
    }

    fn row(&mut self, index: u64, budget: &Budget) -> Result<&mut Row> {
        use std::collections::btree_map::Entry;
        let entry = match self.rows.entry(index) {
            Entry::Occupied(entry) => return Ok(entry.into_mut()),
            Entry::Vacant(entry) => entry,
        };
        budget.reserve(1 << self.cluster_bits, "refcount blocks")?;
        let mut now = Block::new(self.cluster_bits, self.order);
        let place = self.table.get(index as usize).copied().unwrap_or(0);
        if place != 0 {
            read_up_to_end(&*self.storage, place, &mut now.bytes)?;
        }
        Ok(entry.insert(Row {
            now,
            old: None,
            place: None,
            released: false,
        }))
    }
}
