//! The L1 table, held in memory, and the L2 tables, of which a few are.

use std::sync::{Arc, Mutex, PoisonError};

use byteorder::{BE, ByteOrder};
use goldsmith_block::{
    Budget, Error, ErrorKind, Gaps, HostRange, LastRun, Result, SECTOR, Storage, StorageMut,
    align_down, is_zero,
};

use crate::error::Qcow2Error;
use crate::geometry::Geometry;
use crate::mapping::host_offset;

/// Bytes of an L2 table that are read and kept together: a table, or this much of one, because with
/// 2 MiB clusters a whole one maps 512 GiB. [ours]
const SLICE_BYTES: u64 = 64 << 10;
/// Bytes of L2 tables that are kept. [ours] Maps 8 GiB with 64 KiB clusters, and is small enough
/// for a chain of 200 images.
const CACHE_BYTES: u64 = 1 << 20;

/// The way from a guest cluster to its L2 entry.
pub(crate) struct Tables {
    /// As many entries as the disk needs, or as there are where the file ends in the table.
    l1: Vec<u64>,
    /// Where it could not be read; no entry there is a sound one.
    pub(crate) gaps: Gaps,
    /// L1 entries without a table.
    empty: LastRun,
    /// A slice is at home in one place only, so a look-up takes one short lock that few share.
    cache: Vec<Mutex<Option<Arc<Slice>>>>,
    /// Base-2 logarithm of the entries in a slice.
    slice_bits: u32,
    /// Base-2 logarithm of the entries in an L2 table.
    table_bits: u32,
    /// Base-2 logarithm of the length of an entry in bytes.
    entry_bits: u32,
}

/// Part of an L2 table.
pub(crate) struct Slice {
    /// The cluster that its first entry is about.
    first: u64,
    /// Whole entries, one behind the other; each is one or two numbers.
    entries: Vec<u64>,
    /// Numbers of an entry.
    numbers: usize,
    /// Clusters without data, each where the one before it would have its neighbour.
    pub(crate) holes: LastRun,
}

impl Slice {
    /// The entry of `cluster`, if it is here.
    pub(crate) fn entry(&self, cluster: u64) -> Option<&[u64]> {
        let index = usize::try_from(cluster.checked_sub(self.first)?).ok()?;
        let start = index.checked_mul(self.numbers)?;
        self.entries.get(start..start.checked_add(self.numbers)?)
    }

    /// First cluster behind those whose entries are here.
    pub(crate) fn end(&self) -> u64 {
        self.first + (self.entries.len() / self.numbers) as u64
    }
}

/// What is known of guest clusters that stand together.
pub(crate) enum Part {
    /// There is no table for clusters up to this one.
    Empty {
        /// First cluster that has a table, or the limit asked for.
        end: u64,
    },
    /// The entries of some clusters, the one asked for among them.
    Entries(Arc<Slice>),
}

impl Tables {
    /// Reads the L1 table, as far as the file goes and but for `gaps`, and makes room for L2 tables.
    ///
    /// # Errors
    /// `Limit` if `budget` does not cover them; `Io` if the table cannot be read.
    pub(crate) fn open(
        storage: &dyn Storage,
        geometry: &Geometry,
        budget: &Budget,
        mut gaps: Gaps,
    ) -> Result<Self> {
        let there = geometry.file_len.saturating_sub(geometry.l1.offset);
        let mut l1 = budget.zeroed::<u64>(there.min(geometry.l1.len) / 8, "L1 table")?;
        let mut bytes = vec![0; SLICE_BYTES.min(geometry.l1.len) as usize];
        let mut offset = geometry.l1.offset;
        for part in l1.chunks_mut(SLICE_BYTES as usize / 8) {
            let bytes = &mut bytes[..part.len() * 8];
            gaps.read_at(storage, offset, bytes)?;
            BE::read_u64_into(bytes, part);
            offset += bytes.len() as u64;
        }

        let slice_bytes = SLICE_BYTES.min(geometry.cluster_size());
        let clusters = geometry.virtual_size.div_ceil(geometry.cluster_size());
        let entry_bits = geometry.entry_bits();
        let slices = clusters.div_ceil(slice_bytes >> entry_bits);
        let places = slices.min(CACHE_BYTES / slice_bytes);
        budget.reserve(places * slice_bytes, "L2 table cache")?;
        Ok(Self {
            l1,
            gaps,
            empty: LastRun::default(),
            cache: (0..places).map(|_| Mutex::new(None)).collect(),
            slice_bits: slice_bytes.trailing_zeros() - entry_bits,
            table_bits: geometry.cluster_bits - entry_bits,
            entry_bits,
        })
    }

    /// How many L2 tables there are, if no two entries name the same.
    pub(crate) fn count(&self) -> u64 {
        self.l1.iter().filter(|entry| **entry != 0).count() as u64
    }

    /// First cluster behind those that are lost with `cluster` because of `error`, at least; the disk may
    /// end before it.
    pub(crate) fn lost_end(&self, cluster: u64, error: &Error) -> u64 {
        match error.kind() {
            ErrorKind::Io => self.piece_end(cluster),
            _ => ((cluster >> self.slice_bits) + 1) << self.slice_bits,
        }
    }

    /// What is known of guest cluster `cluster` and those after it, as far as `limit`.
    ///
    /// # Errors
    /// `Corrupt` if the L1 entry breaks a rule or the file does not hold the L2 entry; `Io` if it
    /// cannot be read.
    ///
    /// # Cost
    /// One read if the table is not cached, two if it cannot be read as a whole, none for any number of
    /// clusters without one.
    pub(crate) fn part(
        &self,
        storage: &dyn Storage,
        geometry: &Geometry,
        cluster: u64,
        limit: u64,
    ) -> Result<Part> {
        let number = cluster >> self.slice_bits;
        // An image of some clusters has some places.
        let place = &self.cache[(number % self.cache.len() as u64) as usize];
        let cached = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(slice) = cached.filter(|slice| slice.entry(cluster).is_some()) {
            return Ok(Part::Entries(slice));
        }

        // A sound L1 table reaches as far as the disk, and so do clusters that are asked for.
        let index = cluster >> self.table_bits;
        let Some(entry) = self.l1.get(index as usize) else {
            return Err(truncated("L1 table", geometry.l1, geometry).into());
        };
        let table = host_offset("L1", *entry, 0, geometry).map_err(|error| {
            let place = HostRange::new(geometry.l1.offset + index * 8, 8);
            let lost = self.gaps.error_in(place);
            lost.unwrap_or_else(|| error.into())
        })?;
        let Some(table) = table else {
            let last = (limit - 1) >> self.table_bits;
            let is_empty = |index| self.l1.get(index as usize) == Some(&0);
            let end = self.empty.end(index, last + 1, is_empty);
            let end = (end << self.table_bits).min(limit);
            return Ok(Part::Empty { end });
        };
        let slice = Arc::new(self.load(storage, geometry, table, cluster)?);
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&slice));
        Ok(Part::Entries(slice))
    }

    /// Reads the slice that holds the entry of `cluster`, in the L2 table at `table`: all of its entries
    /// or, where the file ends in it, as many as there are.
    fn load(
        &self,
        storage: &dyn Storage,
        geometry: &Geometry,
        table: u64,
        cluster: u64,
    ) -> Result<Slice> {
        let first = cluster >> self.slice_bits << self.slice_bits;
        // The disk may end before the slice, and a file before the unused rest of its last table.
        let clusters = geometry.virtual_size.div_ceil(geometry.cluster_size());
        let count = (clusters - first).min(1 << self.slice_bits);
        let in_table = first & ((1 << self.table_bits) - 1);
        let host = HostRange::new(
            table + (in_table << self.entry_bits),
            count << self.entry_bits,
        );
        let there = geometry.file_len.saturating_sub(host.offset) >> self.entry_bits;
        if there <= cluster - first {
            return Err(truncated("L2 table", host, geometry).into());
        }
        let count = there.min(count);
        match self.read(storage, host.offset, first, count) {
            // Perhaps the sector can be read that the entry is in.
            Err(error) if error.kind() == ErrorKind::Io => {
                let skipped = self.piece_start(cluster) - first;
                let offset = host.offset + (skipped << self.entry_bits);
                let count = (count - skipped).min(self.piece_end(cluster) - first - skipped);
                self.read(storage, offset, first + skipped, count)
            }
            read => read,
        }
    }

    /// Reads `count` entries from `offset` on, at most a slice; `first` is the cluster of the first one.
    fn read(&self, storage: &dyn Storage, offset: u64, first: u64, count: u64) -> Result<Slice> {
        let mut bytes = vec![0; (count << self.entry_bits) as usize];
        storage.read_at(offset, &mut bytes)?;
        let mut entries = vec![0; bytes.len() / 8];
        BE::read_u64_into(&bytes, &mut entries);
        Ok(Slice {
            first,
            entries,
            numbers: (1 << self.entry_bits) / 8,
            holes: LastRun::default(),
        })
    }

    /// First cluster whose entry is in the same sector of the table as that of `cluster`.
    fn piece_start(&self, cluster: u64) -> u64 {
        align_down(cluster, SECTOR >> self.entry_bits)
    }

    fn piece_end(&self, cluster: u64) -> u64 {
        self.piece_start(cluster) + (SECTOR >> self.entry_bits)
    }
}

/// What is wrong with a table that should fill `host`.
fn truncated(table: &'static str, host: HostRange, geometry: &Geometry) -> Qcow2Error {
    Qcow2Error::TableTruncated {
        table,
        offset: host.offset,
        len: host.len,
        file_len: geometry.file_len,
    }
}

/// Fills `buf` from `offset` as far as the file goes, and with zeros behind.
///
/// # Errors
/// `Io` if it cannot be read.
pub(crate) fn read_up_to_end(storage: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<()> {
    let there = storage.len().saturating_sub(offset).min(buf.len() as u64);
    let (there, missing) = buf.split_at_mut(there as usize);
    missing.fill(0);
    if there.is_empty() {
        return Ok(());
    }
    storage.read_at(offset, there)
}

/// Bytes of a new table that are written or left out together. [ours] A file system's block: what
/// is left out takes no space.
const HOLE_BYTES: usize = 4096;

/// Writes a new table; only what is not zero in it, where unwritten bytes are zeros already.
///
/// # Errors
/// `Io` if it cannot be written.
pub(crate) fn write_table(storage: &dyn StorageMut, offset: u64, table: &[u8]) -> Result<()> {
    if !storage.is_blank() {
        return storage.write_at(offset, table);
    }
    let mut at = offset;
    for run in table
        .chunks(HOLE_BYTES)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| is_zero(a) == is_zero(b))
    {
        let len: usize = run.iter().map(|part| part.len()).sum();
        if !is_zero(run[0]) {
            let start = (at - offset) as usize;
            storage.write_at(at, &table[start..start + len])?;
        }
        at += len as u64;
    }
    Ok(())
}
