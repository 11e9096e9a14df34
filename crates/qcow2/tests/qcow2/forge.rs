//! Images put together byte by byte, knowing nothing of our own code.

use std::ops::Range;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;

/// A qcow2 in the making: header, refcount table, L1 table and one L2 table in the first four
/// clusters, which nothing counts. Whatever else there is follows.
#[derive(Clone)]
pub(crate) struct Forge {
    pub(crate) cluster_bits: u32,
    pub(crate) bytes: Vec<u8>,
}

impl Forge {
    /// A disk of `size` bytes, of which one L2 table must be enough.
    pub(crate) fn new(version: u32, cluster_bits: u32, size: u64) -> Self {
        assert!(size <= 1 << (2 * cluster_bits - 3));
        let mut forge = Self {
            cluster_bits,
            bytes: vec![0; 4 << cluster_bits],
        };
        let cluster = 1u64 << cluster_bits;
        forge.put(0, b"QFI\xfb");
        forge.put_u32(4, version);
        forge.put_u32(20, cluster_bits);
        forge.put_u64(24, size);
        forge.put_u32(36, 1);
        forge.put_u64(40, 2 * cluster);
        forge.put_u64(48, cluster);
        forge.put_u32(56, 1);
        if version == 3 {
            forge.put_u32(96, 4);
            forge.put_u32(100, 104);
        }
        forge.put_u64(forge.l1(), COPIED | (3 * cluster));
        forge
    }

    /// Byte offset of the L1 table.
    pub(crate) fn l1(&self) -> usize {
        2 << self.cluster_bits
    }

    /// Byte offset of the entry of guest cluster `index`.
    pub(crate) fn l2(&self, index: usize) -> usize {
        (3 << self.cluster_bits) + 8 * index
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn entry(&mut self, index: usize, entry: u64) {
        self.put_u64(self.l2(index), entry);
    }

    /// Appends `bytes`; gives the offset of the first.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at
    }

    /// Appends guest cluster `index` as it is.
    pub(crate) fn data(&mut self, index: usize, bytes: &[u8]) {
        let end = self.bytes.len().next_multiple_of(1 << self.cluster_bits);
        self.bytes.resize(end, 0);
        let host = self.append(bytes);
        self.entry(index, COPIED | host);
    }

    /// Appends the packed bytes of guest cluster `index`.
    pub(crate) fn packed(&mut self, index: usize, bytes: &[u8]) {
        let host = self.append(bytes);
        self.packed_at(index, host..host + bytes.len() as u64);
    }

    /// The entry of guest cluster `index` names packed bytes.
    pub(crate) fn packed_at(&mut self, index: usize, host: Range<u64>) {
        let further = (host.end - 1) / 512 - host.start / 512;
        let shift = 62 - (self.cluster_bits - 8);
        self.entry(index, COMPRESSED | further << shift | host.start);
    }

    /// Adds a header extension behind those at `at`; gives the offset behind it.
    pub(crate) fn extension(&mut self, at: usize, kind: u32, data: &[u8]) -> usize {
        self.put_u32(at, kind);
        self.put_u32(at + 4, data.len() as u32);
        self.put(at + 8, data);
        at + 8 + data.len().next_multiple_of(8)
    }
}
