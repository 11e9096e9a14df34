//! How often each cluster of the file is used.

use std::fmt::Display;

use goldsmith_block::{Budget, Checked, Result};

use crate::geometry::Geometry;
use crate::refcount::Block;

/// Use of a cluster by something that shares it with nothing.
pub(super) const SOLE: u8 = 1;
/// Use of a cluster as an L2 table.
pub(super) const TABLE: u8 = 1 << 1;
/// Use of a cluster for guest data.
pub(super) const DATA: u8 = 1 << 2;
/// No use: the refcount of the cluster, as stored, is one.
pub(super) const ONCE: u8 = 1 << 3;
/// No use: nobody can say what the refcount of the cluster is.
pub(super) const UNREADABLE: u8 = 1 << 4;
/// More uses than can be counted.
const OVERFULL: u8 = 1 << 5;

/// The uses of every cluster: what its refcount should be.
///
/// Takes, for each cluster of the file, as much memory as a refcount of the image, and a byte.
pub(crate) struct Counts {
    /// One counter more than there are clusters in the file: data may end just behind it.
    counts: Block,
    /// What is known of each cluster besides.
    flags: Vec<u8>,
    /// The first cluster that is lost, or some of it: something names it, and the file ends before.
    pub(crate) lost: Option<u64>,
    /// The first table that cannot be read, so that nobody knows all that is used.
    pub(crate) table_lost: Option<String>,
    cluster_bits: u32,
    file_len: u64,
    /// Clusters of the file, and the one behind it if something uses that.
    pub(crate) clusters: u64,
}

impl Counts {
    pub(super) fn new(geometry: &Geometry, budget: &Budget) -> Result<Self> {
        let clusters = geometry.file_len.div_ceil(geometry.cluster_size());
        let what = "count of the uses of every cluster";
        let order = geometry.refcount_bits.trailing_zeros();
        // A file has fewer than 2^64 bytes, and a cluster 2^9 or more: 2^55 counters of 2^6 bits.
        let bytes = ((clusters + 1) << order).div_ceil(8);
        Ok(Self {
            counts: Block::holding(budget.zeroed(bytes, what)?, order),
            flags: budget.zeroed(clusters + 1, what)?,
            cluster_bits: geometry.cluster_bits,
            file_len: geometry.file_len,
            clusters,
            lost: None,
            table_lost: None,
        })
    }

    /// Counts `times` more uses of the clusters that `len` bytes at `offset` touch.
    ///
    /// Nothing is counted if they end a cluster or more behind the file. The last cluster need not
    /// be whole. [qemu]
    pub(super) fn add(
        &mut self,
        (offset, len): (u64, u64),
        kind: u8,
        times: u64,
        checked: &mut Checked,
        what: impl Display,
    ) {
        if len == 0 {
            return;
        }
        let (cluster_size, file_len) = (1 << self.cluster_bits, self.file_len);
        let end = offset.checked_add(len);
        let Some(end) = end.filter(|end| end.saturating_sub(file_len) < cluster_size) else {
            checked.corruption_in(
                times,
                format_args!(
                    "{what} takes {len} bytes at {offset:#x}, but the file ends at {file_len:#x}"
                ),
            );
            self.note_lost(offset.max(file_len));
            return;
        };
        let max = self.counts.max();
        for cluster in offset >> self.cluster_bits..=(end - 1) >> self.cluster_bits {
            self.clusters = self.clusters.max(cluster + 1);
            // The end is less than a cluster behind the file.
            self.flags[cluster as usize] |= kind;
            let count = self.counts.get(cluster);
            let new = count.saturating_add(times).min(max);
            let lost = times - (new - count);
            if lost > 0 {
                self.flags[cluster as usize] |= OVERFULL;
                checked.corruption_in(
                    lost,
                    format_args!(
                        "{what} uses cluster {cluster} once more than the greatest refcount, {max}"
                    ),
                );
            }
            self.counts.set(cluster, new);
        }
    }

    /// Notes that something should stand at `offset`, where the file has nothing.
    pub(super) fn note_lost(&mut self, offset: u64) {
        let cluster = offset >> self.cluster_bits;
        self.lost = Some(self.lost.map_or(cluster, |lost| lost.min(cluster)));
    }

    /// Notes that `table` cannot be read, or not all of it.
    pub(super) fn note_table(&mut self, table: impl Display) {
        self.table_lost.get_or_insert_with(|| table.to_string());
    }

    /// How often `cluster`, one of [`clusters`](Self::clusters), is used.
    pub(crate) fn get(&self, cluster: u64) -> u64 {
        self.counts.get(cluster)
    }

    /// Whether `cluster` is used more often than can be counted.
    pub(crate) fn is_overfull(&self, cluster: u64) -> bool {
        self.flags(cluster).unwrap_or(0) & OVERFULL != 0
    }

    /// What is known of `cluster`, if it is in the file.
    pub(super) fn flags(&self, cluster: u64) -> Option<u8> {
        let index = usize::try_from(cluster).ok()?;
        self.flags.get(index).copied()
    }

    /// Notes something of `cluster`, if it is in the file.
    pub(super) fn mark(&mut self, cluster: u64, flag: u8) {
        if let Some(flags) = self.flags.get_mut(cluster as usize) {
            *flags |= flag;
        }
    }

    /// Whether what uses `cluster` cannot share it, though it does.
    pub(super) fn conflict(&self, cluster: u64) -> bool {
        let flags = self.flags(cluster).unwrap_or(0);
        (flags & SOLE != 0 && self.get(cluster) > 1) || flags & (TABLE | DATA) == TABLE | DATA
    }
}
