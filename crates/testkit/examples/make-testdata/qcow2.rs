//! qcow2 images of every kind that is small.

use goldsmith_block::Codec;
use goldsmith_testkit::build::qcow2::{Cluster, Qcow2, header, pack};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, qemu};

use crate::{Expect, File, agrees, built};

const KIB4: u32 = 12;

/// The text of 4 KiB that `picture` shows.
fn text(picture: &str) -> Vec<u8> {
    disk(picture).bytes().to_vec()
}

pub(crate) fn files() -> Vec<File> {
    let plain = disk("5k:A 11k:- 8k:b 8k:- 2560:C");
    let zeros = disk("4k:A 8k:0 4k:A");
    let mut files = vec![
        built!(
            "qcow2-v2-512.qcow2",
            "qcow2",
            "version 2, header of 72 bytes, smallest clusters, several L2 tables",
            agrees(&plain),
            Qcow2::holding(2, 9, plain.bytes())
        ),
        built!(
            "qcow2-v3-4k.qcow2",
            "qcow2",
            "version 3; the last cluster reaches past the disk",
            agrees(&plain),
            Qcow2::holding(3, KIB4, plain.bytes())
        ),
        built!(
            "qcow2-zero-clusters.qcow2",
            "qcow2",
            "the zero bit with and without a place; what stands there does not show",
            agrees(&zeros),
            Qcow2::holding(3, KIB4, disk("16k:A").bytes())
                .cluster(1, Cluster::Zero)
                .cluster(2, Cluster::ZeroAllocated)
        ),
        built!(
            "qcow2-packed-v2.qcow2",
            "qcow2",
            "deflate clusters side by side, sharing sectors; version 2",
            agrees(&plain),
            Qcow2::packed(2, KIB4, plain.bytes(), Codec::Deflate)
        ),
        built!(
            "qcow2-packed-zstd.qcow2",
            "qcow2",
            "zstd clusters: compression type 1, incompatible bit 3",
            agrees(&plain),
            Qcow2::packed(3, KIB4, plain.bytes(), Codec::Zstd)
        ),
        built!(
            "qcow2-zstd-two-frames.qcow2",
            "qcow2",
            "one cluster made of two zstd frames [qcow2, Compressed Clusters Descriptor; qemu]",
            agrees(&disk("8k:A")),
            Qcow2::packed(3, KIB4, disk("8k:A").bytes(), Codec::Zstd)
                .cluster(0, Cluster::Packed(two_frames(&text("4k:A"))))
        ),
        built!(
            "qcow2-deflate-of-more-than-a-cluster.qcow2",
            "qcow2",
            "a stream that goes on after the cluster is full [qemu block/qcow2-threads.c]",
            agrees(&disk("8k:A")),
            Qcow2::holding(3, KIB4, disk("8k:A").bytes()).cluster(
                0,
                Cluster::Packed(pack(Codec::Deflate, &text("8k:A")).unwrap())
            )
        ),
        built!(
            "qcow2-dirty.qcow2",
            "qcow2",
            "incompatible bit 0: refcounts may be wrong, data is not",
            agrees(&plain),
            Qcow2::holding(3, KIB4, plain.bytes())
                .header(header::INCOMPATIBLE, &1_u64.to_be_bytes())
        ),
        built!(
            "qcow2-unknown-compatible-bits.qcow2",
            "qcow2",
            "unknown compatible and autoclear bits do not concern a reader",
            agrees(&plain),
            Qcow2::holding(3, KIB4, plain.bytes())
                .header(header::COMPATIBLE, &[0x80, 0, 0, 0, 0, 0, 0, 0x40])
                .header(header::AUTOCLEAR, &[0x40, 0, 0, 0, 0, 0, 0, 0])
        ),
        built!(
            "qcow2-unknown-extension.qcow2",
            "qcow2",
            "an unknown header extension of 3 bytes, padded to 8, is skipped",
            agrees(&plain),
            Qcow2::holding(3, KIB4, plain.bytes()).header(112, b"\x12\x34\x56\x78\0\0\0\x03abc")
        ),
        built!(
            "qcow2-header-of-104-bytes.qcow2",
            "qcow2",
            "the shortest header of version 3, without a compression type",
            agrees(&plain),
            Qcow2::holding(3, KIB4, plain.bytes())
                .header(header::HEADER_LENGTH, &104_u32.to_be_bytes())
        ),
        from_qemu(
            "qcow2-qemu-deflate.qcow2",
            "what qemu-img makes: deflate",
            &plain,
            &["-c", "-o", "cluster_size=512"],
        ),
        from_qemu(
            "qcow2-qemu-refcount-bits-1.qcow2",
            "what qemu-img makes: refcounts of one bit",
            &plain,
            &["-o", "cluster_size=512,refcount_bits=1"],
        ),
        from_qemu(
            "qcow2-qemu-preallocated.qcow2",
            "what qemu-img makes: every cluster has a place",
            &plain,
            &["-o", "cluster_size=512,preallocation=metadata"],
        ),
        from_qemu(
            "qcow2-qemu-v2.qcow2",
            "what qemu-img makes: version 2",
            &plain,
            &["-o", "cluster_size=1k,compat=0.10"],
        ),
    ];
    let bad = || Expect::Bad("Corrupt");
    let unsupported = || Expect::Bad("Unsupported");
    let image = || Qcow2::holding(3, KIB4, plain.bytes());
    files.extend([
        built!(
            "qcow2-l1-outside.qcow2",
            "qcow2",
            "the L1 table is past the end of the file",
            bad(),
            image().header(header::L1_OFFSET, &(1_u64 << 40).to_be_bytes())
        ),
        built!(
            "qcow2-l1-inside-a-cluster.qcow2",
            "qcow2",
            "the L1 table does not start at a cluster",
            bad(),
            image().header(header::L1_OFFSET, &0x3200_u64.to_be_bytes())
        ),
        built!(
            "qcow2-l1-too-small.qcow2",
            "qcow2",
            "one L1 entry maps 2 MiB; the disk has 1 TiB",
            bad(),
            image().header(header::SIZE, &(1_u64 << 40).to_be_bytes())
        ),
        built!(
            "qcow2-l1-of-32-GiB.qcow2",
            "qcow2",
            "an L1 table of 2^32 entries, over QEMU's limit of 32 MiB, in a file of some KiB",
            Expect::Bad("Limit"),
            image().header(header::L1_SIZE, &[0xff; 4])
        ),
        built!(
            "qcow2-cluster-outside.qcow2",
            "qcow2",
            "a cluster past the end of the file: truncated, not zeros",
            bad(),
            image().cluster(0, Cluster::Entry(1 << 63 | 1 << 30))
        ),
        built!(
            "qcow2-cluster-misaligned.qcow2",
            "qcow2",
            "a cluster that starts inside another one",
            bad(),
            image().cluster(0, Cluster::Entry(1 << 63 | 0x4200))
        ),
        built!(
            "qcow2-reserved-bits.qcow2",
            "qcow2",
            "reserved bits of an L2 entry are set",
            bad(),
            image().cluster(0, Cluster::Entry(1 << 63 | 1 << 58 | 0x4000))
        ),
        built!(
            "qcow2-zero-bit-in-v2.qcow2",
            "qcow2",
            "version 2 knows no zero bit; there it is part of a misaligned offset",
            bad(),
            Qcow2::holding(2, KIB4, plain.bytes()).cluster(1, Cluster::Entry(1))
        ),
        built!(
            "qcow2-packed-outside.qcow2",
            "qcow2",
            "a packed cluster past the end of the file",
            bad(),
            image().cluster(0, Cluster::Entry(1 << 62 | 1 << 30))
        ),
        built!(
            "qcow2-packed-unpacks-short.qcow2",
            "qcow2",
            "a stream that ends before the cluster is full",
            bad(),
            image().cluster(
                0,
                Cluster::Packed(pack(Codec::Deflate, &text("2k:A")).unwrap())
            )
        ),
        built!(
            "qcow2-packed-garbage.qcow2",
            "qcow2",
            "a packed cluster that is no deflate stream: block type 3",
            bad(),
            image().cluster(0, Cluster::Packed(vec![0xff; 100]))
        ),
        built!(
            "qcow2-cluster-bits-8.qcow2",
            "qcow2",
            "clusters of 256 bytes; 512 is the least",
            bad(),
            image().header(header::CLUSTER_BITS, &[0, 0, 0, 8])
        ),
        built!(
            "qcow2-cluster-bits-22.qcow2",
            "qcow2",
            "clusters of 4 MiB; 2 MiB is the most",
            bad(),
            image().header(header::CLUSTER_BITS, &[0, 0, 0, 22])
        ),
        built!(
            "qcow2-refcount-order-7.qcow2",
            "qcow2",
            "refcounts of 128 bits; 64 is the most",
            bad(),
            image().header(header::REFCOUNT_ORDER, &[0, 0, 0, 7])
        ),
        built!(
            "qcow2-header-length-100.qcow2",
            "qcow2",
            "a version 3 header has at least 104 bytes",
            bad(),
            image().header(header::HEADER_LENGTH, &[0, 0, 0, 100])
        ),
        built!(
            "qcow2-extension-too-long.qcow2",
            "qcow2",
            "a header extension of almost 4 GiB in a cluster of 4 KiB",
            bad(),
            image().header(112, b"\x12\x34\x56\x78\xff\xff\xff\xf0")
        ),
        built!(
            "qcow2-backing-name-outside.qcow2",
            "qcow2",
            "the backing file's name is not in the first cluster",
            bad(),
            image()
                .header(header::BACKING_OFFSET, &(1_u64 << 40).to_be_bytes())
                .header(header::BACKING_LEN, &[0, 0, 0, 9])
        ),
        built!(
            "qcow2-compression-type-without-bit.qcow2",
            "qcow2",
            "compression type 1 needs incompatible bit 3",
            bad(),
            image().header(header::COMPRESSION_TYPE, &[1])
        ),
        built!(
            "qcow2-cut.qcow2",
            "qcow2",
            "the second half is missing",
            bad(),
            Cut(image().bytes(), 18_000)
        ),
        built!(
            "qcow2-unknown-incompatible-bit.qcow2",
            "qcow2",
            "an unknown incompatible feature must be refused",
            unsupported(),
            image().header(header::INCOMPATIBLE, &(1_u64 << 40).to_be_bytes())
        ),
        built!(
            "qcow2-external-data.qcow2",
            "qcow2",
            "incompatible bit 2: the data is in another file, which nothing names",
            bad(),
            image().header(header::INCOMPATIBLE, &4_u64.to_be_bytes())
        ),
        built!(
            "qcow2-encrypted.qcow2",
            "qcow2",
            "encryption method 2 without a LUKS header; ciphertext must not pass for data",
            bad(),
            image().header(header::CRYPT_METHOD, &[0, 0, 0, 2])
        ),
        built!(
            "qcow2-compression-type-2.qcow2",
            "qcow2",
            "a compression type that nobody knows",
            unsupported(),
            image()
                .header(header::INCOMPATIBLE, &8_u64.to_be_bytes())
                .header(header::COMPRESSION_TYPE, &[2])
        ),
        built!(
            "qcow2-version-4.qcow2",
            "qcow2",
            "a version that nobody knows",
            unsupported(),
            image().header(header::VERSION, &[0, 0, 0, 4])
        ),
    ]);
    files
}

fn two_frames(unit: &[u8]) -> Vec<u8> {
    let halves = unit.chunks(unit.len() / 2);
    halves
        .flat_map(|half| pack(Codec::Zstd, half).unwrap())
        .collect()
}

/// The first bytes of a file.
struct Cut(Vec<u8>, usize);

impl Cut {
    fn bytes(&self) -> Vec<u8> {
        self.0[..self.1].to_vec()
    }
}

fn from_qemu(name: &'static str, because: &'static str, disk: &ModelDisk, args: &[&str]) -> File {
    let version = qemu::img_ok(&["--version"]);
    let version = version.lines().next().unwrap();
    File {
        name,
        format: "qcow2",
        bytes: qemu::write("qcow2", disk, args),
        made_by: format!(
            "{version}: qemu-img convert -f raw -O qcow2 {} RAW IMAGE, where RAW is pattern::disk({disk:?})",
            args.join(" ")
        ),
        because,
        expect: agrees(disk),
    }
}
