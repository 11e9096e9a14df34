//! Host clusters of a new image: handed out from first to last, each counted once.

use std::sync::Arc;

use goldsmith_block::{Result, StorageMut};
use zerocopy::IntoBytes;
use zerocopy::byteorder::{BE, U64};

use crate::error::Qcow2Error;
use crate::ondisk;
use crate::table::write_table;

/// A refcount block: one counter for each cluster of a row. [spec "Host cluster management"]
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// Base-2 logarithm of the width of a counter in bits.
    order: u32,
}

impl Block {
    pub(crate) fn new(cluster_bits: u32, order: u32) -> Self {
        let bytes = vec![0; 1 << cluster_bits];
        Self { bytes, order }
    }

    /// The counters that `bytes` hold, each as wide as `order` says.
    pub(crate) fn holding(bytes: Vec<u8>, order: u32) -> Self {
        Self { bytes, order }
    }

    /// Counters in the block.
    pub(crate) fn len(&self) -> u64 {
        (self.bytes.len() as u64 * 8) >> self.order
    }

    /// The greatest count.
    pub(crate) fn max(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    pub(crate) fn get(&self, index: u64) -> u64 {
        let (byte, len, shift) = self.place(index);
        let value = self.bytes[byte..byte + len]
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        value >> shift & self.max()
    }

    pub(crate) fn set(&mut self, index: u64, count: u64) {
        let (byte, len, shift) = self.place(index);
        let mask = self.max() << shift;
        let mut value = count << shift;
        for (nth, byte) in self.bytes[byte..byte + len].iter_mut().rev().enumerate() {
            let mask = (mask >> (8 * nth)) as u8;
            *byte = *byte & !mask | value as u8 & mask;
            value >>= 8;
        }
    }

    /// Where a counter stands: first byte, bytes, and bits below it in the last of them. Several
    /// counters in one byte begin at its lowest bit. [spec]
    fn place(&self, index: u64) -> (usize, usize, u32) {
        let bit = index << self.order;
        let len = (1usize << self.order).div_ceil(8);
        // A block is in memory, so the position of its byte fits.
        ((bit / 8) as usize, len, (bit % 8) as u32)
    }
}

/// The end of a new image: what is laid out when all guest data has its place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Byte offset of the L1 table.
    pub(crate) l1_offset: u64,
    /// Byte offset of the refcount table.
    pub(crate) refcount_table_offset: u64,
    /// Clusters that the refcount table takes.
    pub(crate) refcount_table_clusters: u64,
    /// Length of the file in bytes.
    pub(crate) file_len: u64,
}

/// Which clusters are next, whatever they are to hold. A refcount block takes the first cluster that it
/// does not count itself.
pub(crate) struct Places {
    cluster_bits: u32,
    /// Counters in a block.
    in_block: u64,
    /// Number of the first cluster not handed out.
    next: u64,
    /// Blocks that have a place.
    blocks: u64,
}

impl Places {
    /// For an image of which only the first cluster, the header's, is taken.
    pub(crate) fn new(cluster_bits: u32, refcount_order: u32) -> Self {
        Self {
            cluster_bits,
            in_block: ((1 << cluster_bits) * 8) >> refcount_order,
            next: 1,
            blocks: 0,
        }
    }

    /// Takes at least one and at most `most` clusters in a row, after one for a refcount block if the last
    /// one is full; returns the first one's number and how many they are.
    ///
    /// # Errors
    /// `Limit` if the file would grow too long.
    pub(crate) fn take(&mut self, most: u64) -> Result<(u64, u64), Qcow2Error> {
        if self.room() == 0 {
            self.take_block()?;
        }
        let (first, count) = (self.next, most.min(self.room()));
        self.check_end(first + count)?;
        self.next += count;
        Ok((first, count))
    }

    /// Takes the next cluster for a refcount block; returns its number.
    fn take_block(&mut self) -> Result<u64, Qcow2Error> {
        let at = self.next;
        self.check_end(at + 1)?;
        self.next += 1;
        self.blocks += 1;
        self.check_table((self.blocks * 8).div_ceil(1 << self.cluster_bits))?;
        Ok(at)
    }

    /// Where the image ends, all of it but an L1 table of `l1_clusters` clusters having its place.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn end(&self, l1_clusters: u64) -> Result<End, Qcow2Error> {
        let blocks_at = self.next + l1_clusters;
        let (blocks, table_clusters) = self.tail(blocks_at);
        let table_at = blocks_at + blocks;
        let end = table_at + table_clusters;
        self.check_end(end)?;
        self.check_table(table_clusters)?;
        Ok(End {
            blocks_at,
            table_at,
            end,
        })
    }

    /// Refcount blocks and clusters of refcount table that must stand from cluster `at` to count
    /// all clusters, themselves among them.
    fn tail(&self, at: u64) -> (u64, u64) {
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            // Neither ever shrinks, and a block counts 64 clusters or more: it ends after few steps.
            let end = at + blocks + table_clusters;
            let all = end.div_ceil(self.in_block);
            let next = (
                (all - self.blocks).max(blocks),
                (all * 8).div_ceil(1 << self.cluster_bits),
            );
            if next == (blocks, table_clusters) {
                return next;
            }
            (blocks, table_clusters) = next;
        }
    }

    /// The first cluster that no block with a place counts.
    fn counted(&self) -> u64 {
        self.blocks * self.in_block
    }

    /// Clusters that the block without a place can still count.
    fn room(&self) -> u64 {
        self.counted() + self.in_block - self.next
    }

    fn check_end(&self, clusters: u64) -> Result<(), Qcow2Error> {
        let limit = ondisk::OFFSET_END;
        if clusters > limit >> self.cluster_bits {
            return Err(Qcow2Error::HostLimit {
                what: "a cluster",
                offset: (clusters - 1).saturating_mul(1 << self.cluster_bits),
                limit,
            });
        }
        Ok(())
    }

    fn check_table(&self, clusters: u64) -> Result<(), Qcow2Error> {
        let (bytes, limit) = (clusters << self.cluster_bits, ondisk::REFCOUNT_TABLE_BYTES);
        if bytes > limit {
            return Err(Qcow2Error::TableTooLong {
                table: "refcount table",
                bytes,
                limit,
            });
        }
        Ok(())
    }
}

/// The last clusters of a new image, by their numbers; the L1 table stands before them.
pub(crate) struct End {
    /// The first of the refcount blocks.
    blocks_at: u64,
    /// The first one of the refcount table.
    table_at: u64,
    /// The first one behind the image.
    pub(crate) end: u64,
}

/// Hands out clusters without gaps. A refcount block is written as soon as it has its place: only one is
/// ever in memory.
pub(crate) struct Allocator {
    storage: Arc<dyn StorageMut>,
    places: Places,
    /// Counts the clusters behind those of `table`.
    block: Block,
    /// Byte offsets of the blocks that are written.
    table: Vec<U64<BE>>,
}

impl Allocator {
    /// For an image of which only the first cluster, the header's, is taken.
    pub(crate) fn new(
        storage: Arc<dyn StorageMut>,
        cluster_bits: u32,
        refcount_order: u32,
    ) -> Self {
        let mut block = Block::new(cluster_bits, refcount_order);
        block.set(0, 1);
        Self {
            storage,
            places: Places::new(cluster_bits, refcount_order),
            block,
            table: Vec::new(),
        }
    }

    /// Takes at least one and at most `most` clusters in a row; returns the first one's number and
    /// how many they are.
    ///
    /// # Errors
    /// `Limit` if the file would grow too long; `Io` if a full refcount block cannot be written.
    pub(crate) fn take(&mut self, most: u64) -> Result<(u64, u64)> {
        if self.places.room() == 0 {
            let at = self.places.take_block()?;
            self.write_block(at)?;
            self.count_once(at, at + 1);
        }
        let (first, count) = self.places.take(most)?;
        self.count_once(first, first + count);
        Ok((first, count))
    }

    /// Lets something more use `cluster`, which is taken, and go on into as many as `more` clusters
    /// behind it. Refuses, changing nothing, if the counter is full or written already, or if those
    /// clusters are not the next ones.
    pub(crate) fn share(&mut self, cluster: u64, more: u64) -> bool {
        let (first, next) = (self.places.counted(), self.places.next);
        let in_block = cluster >= first && cluster < next;
        if !in_block || self.block.get(cluster - first) == self.block.max() {
            return false;
        }
        if more > 0 && (cluster + 1 != next || more > self.places.room()) {
            return false;
        }
        let count = self.block.get(cluster - first);
        self.block.set(cluster - first, count + 1);
        self.count_once(next, next + more);
        self.places.next += more;
        true
    }

    /// Lays out the L1 table of `l1_clusters` clusters, the refcount blocks not yet written and the
    /// refcount table, in this order; writes the latter two.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn finish(mut self, l1_clusters: u64) -> Result<Tail> {
        let l1 = self.places.next;
        let End {
            blocks_at,
            table_at,
            end,
        } = self.places.end(l1_clusters)?;
        let mut next = l1;
        for at in blocks_at..table_at {
            let last = end.min(self.places.counted() + self.block.len());
            self.count_once(next, last);
            next = last;
            self.write_block(at)?;
            self.places.blocks += 1;
        }
        let bits = self.places.cluster_bits;
        let (table_clusters, table_offset) = (end - table_at, table_at << bits);
        let mut table = self.table;
        table.resize((table_clusters << bits) as usize / 8, 0.into());
        write_table(&*self.storage, table_offset, table.as_bytes())?;
        Ok(Tail {
            l1_offset: l1 << bits,
            refcount_table_offset: table_offset,
            refcount_table_clusters: table_clusters,
            file_len: end << bits,
        })
    }

    /// Counts clusters that the block in memory has not counted yet.
    fn count_once(&mut self, first: u64, end: u64) {
        let counted = self.places.counted();
        for cluster in first..end {
            self.block.set(cluster - counted, 1);
        }
    }

    /// Writes the block in memory to cluster `at` and begins the next one.
    fn write_block(&mut self, at: u64) -> Result<()> {
        let offset = at << self.places.cluster_bits;
        write_table(&*self.storage, offset, &self.block.bytes)?;
        self.table.push(offset.into());
        self.block.bytes.fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_storage::MemoryStorage;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn narrow_counters_begin_at_the_lowest_bit() {
        let mut block = Block::new(9, 1);
        block.set(0, 1);
        block.set(1, 2);
        block.set(3, 3);
        assert_eq!(block.bytes[0], 0b11_00_10_01);
        assert_eq!((block.len(), block.max()), (2048, 3));
    }

    #[test]
    fn wide_counters_are_big_endian() {
        let mut block = Block::new(9, 5);
        block.set(1, 0x0102_0304);
        assert_eq!(block.bytes[..8], [0, 0, 0, 0, 1, 2, 3, 4]);
        let mut block = Block::new(9, 6);
        block.set(0, u64::MAX - 1);
        assert_eq!(
            block.bytes[..9],
            [255, 255, 255, 255, 255, 255, 255, 254, 0]
        );
        assert_eq!((block.len(), block.max()), (64, u64::MAX));
    }

    /// The refcounts of a finished image, by cluster.
    fn counts(bytes: &[u8], tail: &Tail, cluster_bits: u32, order: u32) -> Vec<u64> {
        let table = &bytes[tail.refcount_table_offset as usize..];
        let table = &table[..(tail.refcount_table_clusters << cluster_bits) as usize];
        let mut counts = Vec::new();
        for entry in table.chunks(8) {
            let at = u64::from_be_bytes(entry.try_into().unwrap()) as usize;
            let mut block = Block::new(cluster_bits, order);
            if at > 0 {
                let len = bytes.len().min(at + (1 << cluster_bits)) - at;
                block.bytes[..len].copy_from_slice(&bytes[at..at + len]);
            }
            counts.extend((0..block.len()).map(|index| block.get(index)));
        }
        counts
    }

    proptest! {
        #[test]
        fn counter_holds_what_was_set_and_disturbs_no_other(
            order in 0u32..7,
            sets in prop::collection::vec((0u64..64, any::<u64>()), 1..100),
        ) {
            let mut block = Block::new(9, order);
            let mut model = [0; 64];
            for (index, count) in sets {
                let count = count & block.max();
                block.set(index, count);
                model[index as usize] = count;
                for (index, count) in model.iter().enumerate() {
                    prop_assert_eq!(block.get(index as u64), *count);
                }
            }
        }

        /// Whatever is taken and shared: every cluster up to the end is counted, and none behind.
        #[test]
        fn finished_image_counts_every_cluster(
            order in 0u32..7,
            steps in prop::collection::vec((1u64..200, any::<bool>(), 0u64..2), 0..40),
            l1_clusters in 0u64..80,
        ) {
            let storage = Arc::new(MemoryStorage::new("new"));
            let mut allocator = Allocator::new(Arc::clone(&storage) as _, 9, order);
            let mut model = vec![1];
            let mut blocks = 0;
            for (clusters, share, more) in steps {
                let last = model.len() as u64 - 1;
                if share {
                    if allocator.share(last, more) {
                        *model.last_mut().unwrap() += 1;
                        model.resize(model.len() + more as usize, 1);
                    }
                } else {
                    let (first, count) = allocator.take(clusters).unwrap();
                    let block = first - model.len() as u64;
                    blocks += block;
                    prop_assert!(block <= 1 && (1..=clusters).contains(&count));
                    model.resize((first + count) as usize, 1);
                }
            }
            let used = model.len() as u64;
            let tail = allocator.finish(l1_clusters).unwrap();
            storage.set_len(tail.file_len).unwrap();
            let clusters = tail.file_len >> 9;
            model.resize(clusters as usize, 1);
            prop_assert_eq!(tail.l1_offset, used << 9);
            prop_assert!(tail.refcount_table_offset >= (used + l1_clusters) << 9);
            let counts = counts(&storage.to_vec(), &tail, 9, order);
            prop_assert_eq!(&counts[..model.len()], &model[..]);
            prop_assert!(counts[model.len()..].iter().all(|count| *count == 0));
            // No block more than needed.
            let all = blocks + (tail.refcount_table_offset >> 9) - used - l1_clusters;
            prop_assert!((all - 1) * (4096 >> order) < clusters);
        }
    }
}
