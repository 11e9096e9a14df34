//! A change in the making.

use std::ops::Range;
use std::sync::Arc;

use goldsmith_block::{Budget, HostRange, Result, Scribe, StorageMut, Zeroing, align_up};
use zerocopy::IntoBytes;

use super::counts::Counts;
use super::header::Header;
use super::tables::bytes_of;
use crate::error::Qcow2Error;
use crate::geometry::Geometry;
use crate::ondisk::OFFSET;

/// Bytes that are wiped with one write. [ours]
const PIECE: u64 = 64 << 10;

/// A new state of an image, written beside the old one.
///
/// ```text
/// header ──► L1 ──► L2 ──► data        the old state, untouched
///    ┊
///    └┄┄┄┄► L1' ─► L2'─► data'         clusters that the old state does not use
///           refcount table' ─► blocks'
/// ```
///
/// Every table that changes gets a new place, and so do refcounts that do. When all of it is stored,
/// one write of the header's first sector turns from the old state to the new one. Whenever the work
/// stops, one of the two is whole, with refcounts that are right; what belongs to the other is free
/// space.
pub(super) struct Draft {
    scribe: Arc<Scribe>,
    /// Where guest data stands, if it has a file of its own.
    pub(super) data: Option<Arc<dyn StorageMut>>,
    pub(super) budget: Arc<Budget>,
    pub(super) geometry: Geometry,
    pub(super) counts: Counts,
    /// The header of the new state.
    pub(super) header: Header,
    /// The header as it stands.
    old_header: Header,
    /// What only the old state uses and nobody shall find once it is given back.
    wiped: Vec<(&'static str, HostRange)>,
}

impl Draft {
    /// Begins with the image as it is.
    ///
    /// # Errors
    /// `Corrupt` if the refcount table breaks a rule; `Limit` if it is over `budget`; `Io` if it or
    /// the header cannot be read.
    pub(super) fn begin(
        scribe: Arc<Scribe>,
        data: Option<Arc<dyn StorageMut>>,
        geometry: &Geometry,
        budget: Arc<Budget>,
    ) -> Result<Self> {
        let table_at = Header::read(&**scribe.storage())?.refcount_table();
        let counts = Counts::read(scribe.read(), geometry, table_at, &budget)?;
        Self::with_counts(scribe, data, geometry, budget, counts)
    }

    /// Begins with the image as it is, but for its refcounts.
    ///
    /// # Errors
    /// `Io` if the header cannot be read.
    pub(super) fn with_counts(
        scribe: Arc<Scribe>,
        data: Option<Arc<dyn StorageMut>>,
        geometry: &Geometry,
        budget: Arc<Budget>,
        counts: Counts,
    ) -> Result<Self> {
        let mut header = Header::read(&**scribe.storage())?;
        let old_header = header.clone();
        header.clear_unknown();
        Ok(Self {
            scribe,
            data,
            budget,
            geometry: geometry.clone(),
            counts,
            old_header,
            header,
            wiped: Vec::new(),
        })
    }

    pub(super) fn scribe(&self) -> &Scribe {
        &self.scribe
    }

    /// Takes clusters in a row for `len` bytes; returns the byte offset of the first one.
    ///
    /// # Errors
    /// Those of [`Counts::take`].
    pub(super) fn take(&mut self, len: u64) -> Result<u64> {
        let count = len.div_ceil(self.geometry.cluster_size());
        Ok(self.counts.take(count, &self.budget)? << self.geometry.cluster_bits)
    }

    /// One use more of the clusters that `range` touches.
    pub(super) fn add(&mut self, range: HostRange) -> Result<()> {
        self.add_times(range, 1)
    }

    /// One use less of the clusters that `range` touches.
    pub(super) fn sub(&mut self, range: HostRange) -> Result<()> {
        self.sub_times(range, 1)
    }

    /// So many uses more of the clusters that `range` touches.
    pub(super) fn add_times(&mut self, range: HostRange, times: u64) -> Result<()> {
        self.counts.add(self.clusters(range), times, &self.budget)
    }

    /// So many uses less of the clusters that `range` touches.
    pub(super) fn sub_times(&mut self, range: HostRange, times: u64) -> Result<()> {
        self.counts
            .sub_times(self.clusters(range), times, &self.budget)
    }

    /// How often the cluster at `offset` is used in the new state.
    pub(super) fn uses(&mut self, offset: u64) -> Result<u64> {
        self.counts
            .get(offset >> self.geometry.cluster_bits, &self.budget)
    }

    /// The clusters that `range` touches.
    fn clusters(&self, range: HostRange) -> Range<u64> {
        let bits = self.geometry.cluster_bits;
        if range.len == 0 {
            return 0..0;
        }
        range.offset >> bits..((range.end() - 1) >> bits) + 1
    }

    /// Writes `data`, (part of) the new `what`, which must lie in clusters that the old state does
    /// not use.
    ///
    /// # Errors
    /// `Bug` if it does not; `Io` if it cannot be written.
    pub(super) fn write(&mut self, what: &'static str, offset: u64, data: &[u8]) -> Result<()> {
        let range = HostRange::new(offset, data.len() as u64);
        for cluster in self.clusters(range) {
            if !self.counts.is_new(cluster, &self.budget)? {
                let what = "was going to write over something that is in use";
                return Err(Qcow2Error::Contract { what }.into());
            }
        }
        self.scribe.write(what, offset, data)
    }

    /// Writes a new table to a new place, filled up with zeros to whole clusters; returns its byte
    /// offset, 0 for an empty one.
    ///
    /// # Errors
    /// Those of [`take`](Self::take) and [`write`](Self::write).
    pub(super) fn write_table(&mut self, what: &'static str, entries: &[u64]) -> Result<u64> {
        self.write_bytes(what, &bytes_of(entries))
    }

    /// As [`write_table`](Self::write_table), of bytes.
    ///
    /// # Errors
    /// Those of [`take`](Self::take) and [`write`](Self::write).
    pub(super) fn write_bytes(&mut self, what: &'static str, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let len = bytes.len() as u64;
        let offset = self.take(len)?;
        self.write(what, offset, bytes)?;
        // Cannot overflow: it was taken.
        let end = align_up(offset + len, self.geometry.cluster_size()).unwrap_or(offset + len);
        let rest = HostRange::new(offset + len, end - offset - len);
        if rest.len > 0 {
            let zeros = vec![0; rest.len as usize];
            self.write(what, rest.offset, &zeros)?;
        }
        Ok(offset)
    }

    /// Makes clusters that were taken read as zeros.
    ///
    /// # Errors
    /// `Io` if that cannot be done.
    pub(super) fn clear(&mut self, what: &'static str, range: HostRange) -> Result<()> {
        self.scribe.zero(what, range, Zeroing::Keep)
    }

    /// Has `range`, the old `what`, overwritten as soon as the new state stands, which must not use
    /// it.
    pub(super) fn wipe(&mut self, what: &'static str, range: HostRange) {
        self.wiped.push((what, range));
    }

    /// Whether the new state is another one than the old one.
    pub(super) fn is_changed(&self) -> bool {
        self.counts.is_changed() || self.header.raw.as_bytes() != self.old_header.raw.as_bytes()
    }

    /// Stores the new state and turns to it.
    ///
    /// # Errors
    /// Those of [`store`](Self::store) and [`turn`](Self::turn).
    pub(super) fn publish(mut self) -> Result<()> {
        self.store()?;
        self.turn()
    }

    /// Makes the new state durable, but for the header that leads to it. The old one stands.
    ///
    /// # Errors
    /// `Io` if it cannot be stored; `Limit` if its refcounts are over the budget.
    pub(super) fn store(&mut self) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        if self.counts.is_changed() {
            let placed = self.counts.place(&self.budget)?;
            for (offset, block) in &placed.blocks {
                self.write("refcount blocks", *offset, block)?;
            }
            let table = bytes_of(&placed.table);
            self.write("refcount table", placed.table_offset, &table)?;
            let len = table.len() as u64;
            self.header
                .set_refcount_table(HostRange::new(placed.table_offset, len), bits);
        }
        self.scribe.barrier()
    }

    /// Turns from the old state to the new one, which is [stored](Self::store). On return that is durable, and
    /// what only the old one used is wiped where that was asked for, and given back.
    ///
    /// # Errors
    /// `Io` if the header cannot be stored; the old state stands then, unless it was the very last
    /// flush that failed, or what comes after it.
    pub(super) fn turn(mut self) -> Result<()> {
        self.scribe.storage().may_stop(false);
        self.header.clone().write(&self.old_header, &self.scribe)?;
        self.overwrite_wiped()?;
        self.give_back()
    }

    /// Writes zeros where something shall be found no more. Blocks that are given back keep what they
    /// hold until somebody else writes to them, so a hole is not enough.
    fn overwrite_wiped(&self) -> Result<()> {
        if self.wiped.is_empty() {
            return Ok(());
        }
        let zeros = [0; PIECE as usize];
        for (what, range) in &self.wiped {
            let mut offset = range.offset;
            while offset < range.end() {
                let len = PIECE.min(range.end() - offset);
                self.scribe.write(what, offset, &zeros[..len as usize])?;
                offset += len;
            }
        }
        // Else giving it back might come first, and what was to be wiped would never be written.
        self.scribe.barrier()
    }

    /// Gives back to the file system what nobody uses any more.
    fn give_back(&mut self) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let freed = self.counts.freed();
        if freed.is_empty() {
            return Ok(());
        }
        let storage = Arc::clone(self.scribe.storage());
        let end = self.counts.end(&self.budget)? << bits;
        if storage.fixed_len().is_none() && end < storage.len() {
            self.scribe.set_len(end)?;
        }
        let len = storage.len();
        for run in freed {
            let (start, end) = (run.start << bits, (run.end << bits).min(len));
            if start < end {
                let range = HostRange::new(start, end - start);
                self.scribe.zero("freed clusters", range, Zeroing::Punch)?;
            }
        }
        Ok(())
    }
}

/// Byte offset of what a standard entry names; 0 if that is nothing.
pub(super) fn offset_of(entry: u64) -> u64 {
    entry & OFFSET
}
