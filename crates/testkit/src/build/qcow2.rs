//! qcow2 images. [QEMU docs/interop/qcow2]

use goldsmith_block::Codec;
use goldsmith_codec::Packer;

/// What one guest cluster is.
#[derive(Clone, Debug)]
pub enum Cluster {
    /// Not allocated.
    Hole,
    /// The zero bit without a place. Version 3.
    Zero,
    /// The zero bit with a place, which is full of `0xdb`. Version 3.
    ZeroAllocated,
    /// Stored as it is; exactly one cluster.
    Data(Vec<u8>),
    /// A packed stream, stored right behind the one before, sharing its last sector.
    Packed(Vec<u8>),
    /// This L2 entry, whatever it says; nothing is stored.
    Entry(u64),
}

/// Byte offsets of the header's fields, for [`Qcow2::header`].
pub mod header {
    /// u32.
    pub const VERSION: usize = 4;
    /// u64.
    pub const BACKING_OFFSET: usize = 8;
    /// u32.
    pub const BACKING_LEN: usize = 16;
    /// u32.
    pub const CLUSTER_BITS: usize = 20;
    /// u64, bytes.
    pub const SIZE: usize = 24;
    /// u32.
    pub const CRYPT_METHOD: usize = 32;
    /// u32, entries.
    pub const L1_SIZE: usize = 36;
    /// u64.
    pub const L1_OFFSET: usize = 40;
    /// u64.
    pub const REFCOUNT_OFFSET: usize = 48;
    /// u32, clusters.
    pub const REFCOUNT_CLUSTERS: usize = 56;
    /// u64.
    pub const INCOMPATIBLE: usize = 72;
    /// u64.
    pub const COMPATIBLE: usize = 80;
    /// u64.
    pub const AUTOCLEAR: usize = 88;
    /// u32.
    pub const REFCOUNT_ORDER: usize = 96;
    /// u32.
    pub const HEADER_LENGTH: usize = 100;
    /// u8.
    pub const COMPRESSION_TYPE: usize = 104;
}

const SNAPSHOTS: usize = 60;
const SNAPSHOTS_OFFSET: usize = 64;
/// Where header extensions begin, and the first bytes of two kinds.
const EXTENSIONS: usize = 112;
const BITMAPS: u64 = 0x2385_2875;
const FEATURE_NAMES: u64 = 0x6803_f857;
const AES: u64 = 1;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_ZERO: u64 = 1;

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Qcow2 {
    version: u32,
    cluster_bits: u32,
    size: u64,
    clusters: Vec<Cluster>,
    header: Vec<(usize, Vec<u8>)>,
}

impl Qcow2 {
    /// An image of `version` 2 or 3 with these guest clusters, of which the last may stand out over
    /// the end of the disk, `size` bytes from its start.
    pub fn new(version: u32, cluster_bits: u32, size: u64, clusters: Vec<Cluster>) -> Self {
        assert_eq!(clusters.len() as u64, size.div_ceil(1 << cluster_bits));
        Self {
            version,
            cluster_bits,
            size,
            clusters,
            header: Vec::new(),
        }
    }

    /// An image that holds `content` as it is, with holes where whole clusters are zeros.
    pub fn holding(version: u32, cluster_bits: u32, content: &[u8]) -> Self {
        let clusters = content.chunks(1 << cluster_bits).map(|chunk| {
            match chunk.iter().all(|byte| *byte == 0) {
                true => Cluster::Hole,
                false => Cluster::Data(padded(chunk, 1 << cluster_bits)),
            }
        });
        Self::new(
            version,
            cluster_bits,
            content.len() as u64,
            clusters.collect(),
        )
    }

    /// As [`holding`](Self::holding), with every cluster packed that gets smaller by it.
    pub fn packed(version: u32, cluster_bits: u32, content: &[u8], codec: Codec) -> Self {
        let mut image = Self::holding(version, cluster_bits, content);
        for cluster in &mut image.clusters {
            if let Cluster::Data(bytes) = cluster
                && let Some(stream) = pack(codec, bytes)
            {
                *cluster = Cluster::Packed(stream);
            }
        }
        match codec {
            Codec::Deflate => image,
            // The compression type is no default, which readers must be told to look at.
            Codec::Zstd => image
                .header(header::INCOMPATIBLE, &8_u64.to_be_bytes())
                .header(header::COMPRESSION_TYPE, &[1]),
        }
    }

    /// Makes guest cluster `index` something else.
    #[must_use]
    pub fn cluster(mut self, index: usize, cluster: Cluster) -> Self {
        self.clusters[index] = cluster;
        self
    }

    /// Puts `value` at offset `at` of the finished header; see [`header`].
    #[must_use]
    pub fn header(mut self, at: usize, value: &[u8]) -> Self {
        self.header.push((at, value.to_vec()));
        self
    }

    /// The image file: header, refcount table, refcount blocks, L1, L2, data, packed data.
    pub fn bytes(&self) -> Vec<u8> {
        let cluster = 1 << self.cluster_bits;
        let l2_entries = cluster / 8;
        let l2_tables = self.clusters.len().div_ceil(l2_entries);
        let l1_clusters = l2_tables.div_ceil(l2_entries).max(1);

        let stored = self.clusters.iter();
        let stored = stored.filter(|one| matches!(one, Cluster::Data(_) | Cluster::ZeroAllocated));
        let stored = stored.count();
        let packed_len: usize = self.clusters.iter().map(packed_len).sum();
        // Refcounts of 16 bits count themselves too.
        let rest = 2 + l1_clusters + l2_tables + stored + packed_len.div_ceil(cluster);
        let blocks = rest.div_ceil(cluster / 2 - 1);
        assert!(
            blocks <= l2_entries,
            "an image for tests needs one cluster of refcount table"
        );

        let l1_at = (2 + blocks) * cluster;
        let l2_at = l1_at + l1_clusters * cluster;
        let mut data_at = l2_at + l2_tables * cluster;
        let packed_from = data_at + stored * cluster;
        let mut packed_at = packed_from;
        // A reader takes packed data in whole sectors.
        let end = (packed_from + packed_len).next_multiple_of(512);
        let mut file = vec![0; end];

        self.write_header(&mut file, cluster, l1_at, l2_tables);
        for nth in 0..blocks {
            put(&mut file, cluster + 8 * nth, ((2 + nth) * cluster) as u64);
        }
        for nth in 0..l2_tables {
            put(
                &mut file,
                l1_at + 8 * nth,
                (l2_at + nth * cluster) as u64 | COPIED,
            );
        }
        let mut refcounts = vec![0_u16; blocks * cluster / 2];
        refcounts[..packed_from / cluster].fill(1);
        let offset_bits = 62 - (self.cluster_bits - 8);
        for (nth, one) in self.clusters.iter().enumerate() {
            let entry = match one {
                Cluster::Hole => 0,
                Cluster::Zero => READS_ZERO,
                Cluster::Entry(entry) => *entry,
                Cluster::Data(_) | Cluster::ZeroAllocated => {
                    let place = data_at;
                    data_at += cluster;
                    let flags = match one {
                        Cluster::Data(bytes) => {
                            file[place..data_at].copy_from_slice(bytes);
                            COPIED
                        }
                        _ => {
                            file[place..data_at].fill(0xdb);
                            COPIED | READS_ZERO
                        }
                    };
                    place as u64 | flags
                }
                Cluster::Packed(stream) => {
                    let place = packed_at;
                    packed_at += stream.len();
                    file[place..packed_at].copy_from_slice(stream);
                    let last = packed_at - 1;
                    // A sector may reach into a cluster only where the stream does.
                    for count in &mut refcounts[place / cluster..=last / cluster] {
                        *count += 1;
                    }
                    let more_sectors = (last / 512 - place / 512) as u64;
                    COMPRESSED | more_sectors << offset_bits | place as u64
                }
            };
            put(&mut file, l2_at + 8 * nth, entry);
        }
        for (nth, count) in refcounts.iter().enumerate() {
            let at = 2 * cluster + 2 * nth;
            file[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        for (at, value) in &self.header {
            file[*at..at + value.len()].copy_from_slice(value);
        }
        file
    }

    fn write_header(&self, file: &mut [u8], cluster: usize, l1_at: usize, l1_size: usize) {
        let mut u32_at = |at: usize, value: u32| {
            file[at..at + 4].copy_from_slice(&value.to_be_bytes());
        };
        u32_at(0, 0x5146_49fb);
        u32_at(header::VERSION, self.version);
        u32_at(header::CLUSTER_BITS, self.cluster_bits);
        u32_at(header::L1_SIZE, l1_size as u32);
        u32_at(header::REFCOUNT_CLUSTERS, 1);
        if self.version == 3 {
            u32_at(header::REFCOUNT_ORDER, 4);
            u32_at(header::HEADER_LENGTH, 112);
        }
        put(file, header::SIZE, self.size);
        put(file, header::L1_OFFSET, l1_at as u64);
        put(file, header::REFCOUNT_OFFSET, cluster as u64);
    }
}

fn put(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn packed_len(cluster: &Cluster) -> usize {
    match cluster {
        Cluster::Packed(stream) => stream.len(),
        _ => 0,
    }
}

fn padded(chunk: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = chunk.to_vec();
    bytes.resize(len, 0);
    bytes
}

/// `bytes` packed, if that makes them fewer.
pub fn pack(codec: Codec, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = Vec::new();
    let len = Packer::new(codec).pack(bytes, &mut stream);
    len.expect("any bytes can be packed").map(|_| stream)
}

/// Makes the header plausible, so that a fuzzer reaches what lies behind it: a known version and
/// feature bits, small clusters, tables inside the file and large enough for the disk. Most table
/// entries become ones that point into the file.
///
/// Whatever else an image may have is kept where its header says so in so many words, and not because of
/// any damage: marks, old encryption, a few snapshots, refcounts of another width, header extensions.
pub fn fix_up(file: &mut [u8]) {
    if file.len() < 120 {
        return;
    }
    // What a field says already is kept where it will do, so that good images stay good.
    let number = |at: usize| u64::from(u32::from_be_bytes(file[at..at + 4].try_into().unwrap()));
    let long = |at: usize| number(at) << 32 | number(at + 4);
    let version = if number(header::VERSION) == 2 { 2 } else { 3 };
    let cluster_bits = 9 + number(header::CLUSTER_BITS).wrapping_sub(9) % 4;
    let clusters = (file.len() as u64).div_ceil(1 << cluster_bits);
    let table = Table {
        version,
        cluster_bits,
        clusters,
    };
    let l1_at = table.place(long(header::L1_OFFSET));
    let refcount_at = table.place(long(header::REFCOUNT_OFFSET));
    let l1_size = 1 + number(header::L1_SIZE).wrapping_sub(1) % 8;
    // One L2 table maps a cluster for each 8 bytes of itself.
    let reach = l1_size << (2 * cluster_bits - 3);
    let size = long(header::SIZE) % (reach + 1) / 512 * 512;
    let zstd = long(header::INCOMPATIBLE) >> 3 & 1;
    let marks = Some(long(header::INCOMPATIBLE) & !8).filter(|marks| *marks <= 3);
    let crypt_method = Some(number(header::CRYPT_METHOD)).filter(|method| *method == AES);
    let snapshots = Some(number(SNAPSHOTS)).filter(|count| (1..=4).contains(count));
    let snapshots_at = snapshots.map(|_| table.place(long(SNAPSHOTS_OFFSET)));
    let order = Some(number(header::REFCOUNT_ORDER)).filter(|order| *order <= 6);
    let extended = number(EXTENSIONS) == BITMAPS || number(EXTENSIONS) == FEATURE_NAMES;

    let mut u32_at = |at: usize, value: u64| {
        file[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    };
    u32_at(0, 0x5146_49fb);
    u32_at(header::VERSION, version);
    u32_at(header::BACKING_LEN, 0);
    u32_at(header::CLUSTER_BITS, cluster_bits);
    u32_at(header::CRYPT_METHOD, crypt_method.unwrap_or(0));
    u32_at(header::L1_SIZE, l1_size);
    u32_at(header::REFCOUNT_CLUSTERS, 1);
    u32_at(SNAPSHOTS, snapshots.unwrap_or(0));
    put(file, header::BACKING_OFFSET, 0);
    put(file, SNAPSHOTS_OFFSET, snapshots_at.unwrap_or(0));
    put(file, header::SIZE, size);
    put(file, header::L1_OFFSET, l1_at);
    put(file, header::REFCOUNT_OFFSET, refcount_at);
    if version == 3 {
        put(file, header::INCOMPATIBLE, (8 * zstd) | marks.unwrap_or(0));
        let order = order.unwrap_or(4);
        put(
            file,
            header::REFCOUNT_ORDER,
            (order << 32) | EXTENSIONS as u64,
        );
        put(file, header::COMPRESSION_TYPE, zstd << 56);
        if !extended {
            // They end where they begin.
            put(file, EXTENSIONS, 0);
        }
    } else {
        put(file, 72, 0);
    }

    for nth in 0..l1_size as usize {
        let at = l1_at as usize + 8 * nth;
        let Some(l2_at) = table.fix_up(file, at, |_, place| place | COPIED) else {
            continue;
        };
        for nth in 0..1 << (cluster_bits - 3) {
            table.fix_up(file, l2_at + 8 * nth, |entry, place| {
                table.l2_entry(entry, place)
            });
        }
    }
}

/// What [`fix_up`] knows about the tables.
struct Table {
    version: u64,
    cluster_bits: u64,
    /// In the file.
    clusters: u64,
}

impl Table {
    /// Makes the entry at `at` what `make` says, given what stands there and a cluster to name; says
    /// which cluster. Leaves alone what is unused, the header, and one in sixteen.
    fn fix_up(&self, file: &mut [u8], at: usize, make: impl Fn(u64, u64) -> u64) -> Option<usize> {
        let bytes = file.get(at..at + 8)?;
        let entry = u64::from_be_bytes(bytes.try_into().unwrap());
        if entry == 0 || at < 1 << self.cluster_bits || (entry >> 4) & 15 == 15 {
            return None;
        }
        let offset = entry & ((1 << self.offset_bits()) - 1);
        let place = self.place(offset);
        put(file, at, make(entry, place));
        Some(place as usize)
    }

    /// A cluster of the file behind the header; the one that `offset` names, if it can be that.
    fn place(&self, offset: u64) -> u64 {
        ((offset >> self.cluster_bits) % self.clusters).max(1) << self.cluster_bits
    }

    fn l2_entry(&self, entry: u64, place: u64) -> u64 {
        if entry & COMPRESSED == 0 {
            let flags = if self.version == 3 {
                COPIED | READS_ZERO
            } else {
                COPIED
            };
            return entry & flags | place;
        }
        let more_sectors = (entry >> self.offset_bits()) % 4;
        let in_cluster = entry % (1 << self.cluster_bits);
        COMPRESSED | more_sectors << self.offset_bits() | place | in_cluster
    }

    /// Bits of the offset in a compressed cluster's entry, and more than any other's.
    fn offset_bits(&self) -> u64 {
        62 - (self.cluster_bits - 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pattern, qemu};

    #[test]
    fn qemu_accepts_and_reads_what_was_built() {
        let disk = pattern::disk("30000:A 20176:- 64k:b 64k:C 1k:- 1000:D 24:E");
        for version in [2, 3] {
            for cluster_bits in [9, 12, 16] {
                let image = Qcow2::holding(version, cluster_bits, disk.bytes()).bytes();
                qemu::check_bytes(&image);
                assert!(qemu::read("qcow2", &image) == disk.bytes());
                let image = Qcow2::packed(version, cluster_bits, disk.bytes(), Codec::Deflate);
                qemu::check_bytes(&image.bytes());
                assert!(qemu::read("qcow2", &image.bytes()) == disk.bytes());
            }
        }
        let image = Qcow2::packed(3, 12, disk.bytes(), Codec::Zstd).bytes();
        qemu::check_bytes(&image);
        assert!(qemu::read("qcow2", &image) == disk.bytes());
    }

    #[test]
    fn zero_clusters_hide_what_they_stand_on() {
        let image = Qcow2::holding(3, 9, pattern::disk("2k:A").bytes())
            .cluster(1, Cluster::Zero)
            .cluster(2, Cluster::ZeroAllocated)
            .bytes();
        qemu::check_bytes(&image);
        let expected = pattern::disk("512:A 1k:0 512:A");
        assert!(qemu::read("qcow2", &image) == expected.bytes());
    }

    #[test]
    fn fix_up_leaves_a_good_image_as_readable_as_it_was() {
        let disk = pattern::disk("1k:A 512:- 1k:B 512:c");
        for mut file in [
            Qcow2::holding(3, 9, disk.bytes()).bytes(),
            Qcow2::packed(2, 9, disk.bytes(), Codec::Deflate).bytes(),
        ] {
            fix_up(&mut file);
            let read = qemu::read("qcow2", &file);
            let len = read.len();
            assert!(len > 0 && read == disk.bytes()[..len]);
        }
    }

    /// Else whoever mends inputs has fuzzers look at plain images alone.
    #[test]
    fn fix_up_keeps_what_an_image_has_besides_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let path = path.to_str().unwrap();
        let options = "cluster_size=512,refcount_bits=64";
        qemu::img_ok(&["create", "-q", "-f", "qcow2", "-o", options, path, "4k"]);
        for name in ["one", "two"] {
            qemu::img_ok(&["snapshot", "-c", name, path]);
            qemu::img_ok(&["bitmap", "--add", "-g", "512", path, name]);
        }
        let mut file = std::fs::read(path).unwrap();
        let end = file.len().next_multiple_of(512);
        file.resize(end, 0);
        file[header::INCOMPATIBLE + 7] = 1;
        let mut fixed = file.clone();
        fix_up(&mut fixed);
        assert!(fixed == file);
        file[header::CRYPT_METHOD + 3] = 1;
        let mut fixed = file.clone();
        fix_up(&mut fixed);
        assert!(fixed == file);
    }

    #[test]
    fn fixed_up_header_is_one_that_qemu_opens() {
        for seed in 0..20 {
            let mut file = vec![0; 9000];
            pattern::fill(b'a' + seed, 0, &mut file);
            fix_up(&mut file);
            let image = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(image.path(), &file).unwrap();
            let path = image.path().to_str().unwrap();
            qemu::img_ok(&["info", "-f", "qcow2", path]);
        }
        fix_up(&mut [0; 119]);
    }
}
