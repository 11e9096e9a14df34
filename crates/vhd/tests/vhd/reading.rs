//! Images of other people, with their habits.

use std::sync::Arc;

use goldsmith_block::{Budget, Extent, ExtentKind, Format, GuestRange, Limits, Match};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::{probe, walk};
use goldsmith_testkit::trace::TraceStorage;
use goldsmith_testkit::{image, pattern, qemu};
use goldsmith_vhd::VHD;

use crate::forge::{Forge, Parent, patch_footer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn read(bytes: &[u8]) -> Vec<u8> {
    image::read(&*image::open(&VHD, bytes).unwrap()).unwrap()
}

fn size(bytes: Vec<u8>) -> u64 {
    image::open(&VHD, bytes).unwrap().info().virtual_size
}

fn noise(len: u64) -> Vec<u8> {
    pattern::disk(&format!("{len}:q")).bytes().to_vec()
}

/// [qemu block/vpc.c] and formats.md, "Size rule".
#[test]
fn creator_decides_whether_geometry_or_size_counts() {
    // 10 MiB, and 20400 sectors.
    let (current, by_geometry) = (10 * MIB, 300 * 4 * 17 * 512);
    let creators: [(&[u8; 4], u64); 16] = [
        (b"vpc ", by_geometry),
        (b"qemu", by_geometry),
        (b"qem2", current),
        (b"win ", current),
        (b"d2v ", current),
        (b"d2v\0", current),
        (b"tap\0", current),
        (b"CTXS", current),
        (b"wa\0\0", current),
        (b"vs  ", current),
        (b"vbox", current),
        (b"caml", current),
        (b"vpc\0", current),
        (b"VPC ", current),
        (b"gold", current),
        (b"\0\0\0\0", current),
    ];
    for (creator, expected) in creators {
        let mut forge = Forge::new(current, 2 << 20);
        (forge.creator, forge.chs) = (*creator, (300, 4, 17));
        assert_eq!(size(forge.dynamic()), expected, "{creator:?}");
        let data = noise(11 * MIB);
        let fixed = forge.fixed(&data);
        assert_eq!(size(fixed.clone()), expected, "{creator:?}");
        assert!(read(&fixed) == data[..expected as usize]);
        let judged = qemu::read("vpc", &fixed);
        assert_eq!(judged.len() as u64, expected, "{creator:?}");
    }
}

#[test]
fn largest_geometry_stands_for_every_size_whoever_wrote_it() {
    for creator in [b"vpc ", b"qemu", b"win "] {
        for current in [10 * MIB, 136_899_993_600, 200 << 30] {
            let mut forge = Forge::new(current, 2 << 20);
            forge.creator = *creator;
            assert_eq!(size(forge.dynamic()), current);
        }
    }
}

#[test]
fn geometry_that_is_larger_than_the_size_counts_too() {
    let mut forge = Forge::new(10 * MIB, 2 << 20);
    (forge.creator, forge.chs) = (*b"qemu", (400, 4, 17));
    forge.table_entries = Some(7);
    assert_eq!(size(forge.dynamic()), 400 * 4 * 17 * 512);
}

#[test]
fn footer_of_511_bytes_is_a_footer() {
    let data = noise(2 * MIB);
    let mut forge = Forge::new(3 * MIB, 2 << 20).full_block(0, &data);
    forge.footer_len = 511;
    let dynamic = forge.dynamic();
    assert_eq!(dynamic.len() % 512, 511);
    assert_eq!(
        probe(&VHD, &dynamic[3..]),
        Match::Marked,
        "by its tail alone"
    );
    assert!(read(&dynamic)[..2 << 20] == data);
    forge.current_size = 2 * MIB;
    let fixed = forge.fixed(&data);
    assert_eq!(probe(&VHD, &fixed), Match::Marked);
    assert!(read(&fixed) == data);
}

#[test]
fn fixed_image_may_have_a_gap_before_its_footer() {
    let data = noise(100 * KIB);
    let fixed = Forge::new(64 * KIB, 0).fixed(&data);
    assert!(read(&fixed) == data[..64 << 10]);
}

#[test]
fn structures_may_stand_anywhere() {
    let (a, b) = (noise(64 * KIB), vec![0x5a; 64 << 10]);
    let mut forge = Forge::new(200 * KIB, 64 << 10)
        .full_block(3, &b)
        .full_block(1, &a);
    (forge.header_at, forge.padding) = (4096, 2560);
    for table_last in [false, true] {
        forge.table_last = table_last;
        let bytes = read(&forge.dynamic());
        assert!(bytes[..64 << 10].iter().all(|byte| *byte == 0));
        assert!(bytes[64 << 10..128 << 10] == a);
        assert!(bytes[128 << 10..192 << 10].iter().all(|byte| *byte == 0));
        assert!(bytes[192 << 10..] == b[..8 << 10]);
    }
}

/// disk2vhd writes every block, most of them full of zeros.
#[test]
fn blocks_full_of_zeros_are_data() {
    let zeros = vec![0; 512 << 10];
    let mut forge = Forge::new(MIB, 512 << 10)
        .full_block(0, &zeros)
        .full_block(1, &zeros);
    forge.creator = *b"d2v\0";
    let layer = image::open(&VHD, forge.dynamic()).unwrap();
    let extents = walk(&*layer, 0, MIB, 10).unwrap();
    assert_eq!(extents.len(), 2);
    assert!(extents.iter().all(|extent| extent.kind.is_data()));
    assert!(read(&forge.dynamic()) == vec![0; 1 << 20]);
}

/// [spec "Block Allocation Table and Data Blocks"] "The sector bitmap indicates which sectors
/// contain valid data (1's) and which sectors have never been modified (0's). [...] All sectors
/// within a block whose corresponding bits in the bitmap are zero must contain 512 bytes of zero on
/// disk. Software that accesses the disk image may take advantage of this assumption." QEMU does
/// not look at the bitmap and shows what stands in the file; 7-Zip refuses such a block.
#[test]
fn sector_whose_bit_is_clear_reads_zero_whatever_stands_there() {
    let data = noise(64 * KIB);
    // Sectors 0 to 3, 5 and the last one hold data.
    let mut bitmap = [0; 16];
    (bitmap[0], bitmap[15]) = (0b1111_0100, 0b0000_0001);
    let image = Forge::new(128 * KIB, 64 << 10)
        .block(1, &bitmap, &data)
        .dynamic();

    let mut expected = vec![0; 128 << 10];
    for sector in [0, 1, 2, 3, 5, 127] {
        let (from, to) = (sector * 512, (sector + 1) * 512);
        expected[(64 << 10) + from..(64 << 10) + to].copy_from_slice(&data[from..to]);
    }
    assert!(read(&image) == expected);

    let layer = image::open(&VHD, image).unwrap();
    let start = 64 * KIB;
    let data = |from, to| (from, to, true);
    let zero = |from, to| (from, to, false);
    let found: Vec<_> = walk(&*layer, 0, 128 * KIB, 100)
        .unwrap()
        .iter()
        .map(|Extent { range, kind }| match kind {
            ExtentKind::Zero { allocated, .. } => {
                assert!(allocated);
                (range.start, range.end, false)
            }
            // Header, one sector of table, one sector of bitmap.
            ExtentKind::Data { host } => {
                assert_eq!(*host, Some(2560 + range.start - start));
                (range.start, range.end, true)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        found,
        [
            zero(0, start),
            data(start, start + 2048),
            zero(start + 2048, start + 2560),
            data(start + 2560, start + 3072),
            zero(start + 3072, start + 127 * 512),
            data(start + 127 * 512, 2 * start),
        ]
    );
}

/// [libvhd] Only version 0.1 of blktap counts the bits the other way round.
#[test]
fn blktap_0_1_counts_bits_from_the_lowest() {
    let data = noise(64 * KIB);
    let mut forge = Forge::new(64 * KIB, 64 << 10).block(0, &[0b0000_0011], &data);
    for (creator, version, first) in [
        (*b"tap\0", 0x0000_0001, 0),
        (*b"tap\0", 0x0001_0003, 6),
        (*b"win ", 0x0000_0001, 6),
    ] {
        (forge.creator, forge.creator_version) = (creator, version);
        let mut expected = vec![0; 64 << 10];
        let range = first * 512..(first + 2) * 512;
        expected[range.clone()].copy_from_slice(&data[range]);
        assert!(
            read(&forge.dynamic()) == expected,
            "{creator:?} {version:#x}"
        );
    }
}

#[test]
fn bitmap_of_a_large_block_takes_several_sectors() {
    let data = noise(8 * MIB);
    let bitmap: Vec<_> = (0..2048)
        .map(|at| if at < 1024 { 0xaa } else { 0xff })
        .collect();
    let image = Forge::new(8 * MIB, 8 << 20)
        .block(0, &bitmap, &data)
        .dynamic();
    let bytes = read(&image);
    for sector in 0..8192 {
        let shown = &bytes[sector * 512..][..512];
        if sector % 2 == 0 {
            assert!(*shown == data[sector * 512..][..512], "{sector}");
        } else {
            assert!(shown.iter().all(|byte| *byte == 0), "{sector}");
        }
    }
}

#[test]
fn bitmap_of_the_smallest_block_is_one_byte_in_a_sector() {
    let data = noise(4 * KIB);
    let image = Forge::new(12 * KIB, 4096)
        .block(2, &[0b1000_0001], &data)
        .dynamic();
    let bytes = read(&image);
    assert!(bytes[8192..8704] == data[..512]);
    assert!(bytes[8704..11776].iter().all(|byte| *byte == 0));
    assert!(bytes[11776..] == data[3584..]);
}

/// Xen makes room in the table for the largest disk there is.
#[test]
fn table_may_be_longer_than_the_disk_needs() {
    let data = noise(2 * MIB);
    let mut forge = Forge::new(3 * MIB, 2 << 20).full_block(1, &data);
    forge.table_entries = Some(1_044_480);
    let image = forge.dynamic();
    assert!(read(&image)[2 << 20..] == data[..1 << 20]);
    // Memory is spent on the entries that matter.
    let limits = {
        let mut limits = Limits::default();
        limits.metadata_bytes = 100 << 10;
        limits
    };
    let storage = Arc::new(MemoryStorage::holding("image", image));
    assert!(VHD.open(storage, &Budget::new(&limits)).is_ok());
}

#[test]
fn table_is_paid_for_from_the_budget() {
    let forge = Forge::new(1 << 40, 4096);
    let storage = MemoryStorage::holding("image", forge.dynamic());
    let error = VHD
        .open(Arc::new(storage), &Budget::new(&Limits::default()))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), goldsmith_block::ErrorKind::Limit);
    assert!(
        error
            .report()
            .contains("the block table takes 1073741824 bytes")
    );
}

/// The specification wants each block in full length; some writers stop where the disk does.
#[test]
fn last_block_may_end_with_the_disk() {
    let data = noise(64 * KIB);
    let image = Forge::new(80 * KIB, 64 << 10)
        .full_block(0, &data)
        .full_block(1, &data)
        .dynamic();
    let footer = image[image.len() - 512..].to_vec();
    let mut short = image[..image.len() - 512 - (48 << 10)].to_vec();
    short.extend(&footer);
    assert!(read(&short) == read(&image));

    let mut too_short = image[..image.len() - 512 - (48 << 10) - 512].to_vec();
    too_short.extend(&footer);
    let layer = image::open(&VHD, too_short).unwrap();
    assert_eq!(
        image::read(&*layer).unwrap_err().kind(),
        goldsmith_block::ErrorKind::Corrupt
    );
}

#[test]
fn saved_state_and_reserved_bytes_do_not_matter() {
    let data = noise(2 * MIB);
    let image = Forge::new(2 * MIB, 2 << 20).full_block(0, &data).dynamic();
    for (at, bytes) in [
        (84, &[1][..]),
        (85, &[1]),
        (8, &[0, 0, 0, 3]),
        (200, &[7; 300]),
    ] {
        assert!(read(&patch_footer(image.clone(), at, bytes)) == data);
    }
}

#[test]
fn minor_version_does_not_matter() {
    let image = Forge::new(2 * MIB, 2 << 20).dynamic();
    assert_eq!(size(patch_footer(image, 12, &[0, 1, 0, 2])), 2 * MIB);
}

/// Guests that hold disk images are no rarity.
#[test]
fn fixed_image_of_a_disk_that_begins_like_a_vhd_is_that_disk() {
    let inner = Forge::new(4 * MIB, 2 << 20).dynamic();
    let outer = Forge::new(inner.len() as u64, 0).fixed(&inner);
    assert!(read(&outer) == inner);
}

#[test]
fn size_that_is_no_multiple_of_512_is_kept_to_the_byte() {
    let data = noise(1000);
    assert!(read(&Forge::new(1000, 0).fixed(&data)) == data);
    let block = noise(4096);
    let forge = Forge::new(1000, 4096).full_block(0, &block);
    assert!(read(&forge.dynamic()) == block[..1000]);
}

#[test]
fn bytes_that_only_end_like_a_vhd_are_none() {
    let fixed = Forge::new(4096, 0).fixed(&noise(4096));
    assert_eq!(probe(&VHD, &fixed), Match::Marked);
    let mut damaged = fixed.clone();
    damaged[4096 + 300] = 1;
    assert_eq!(probe(&VHD, &damaged), Match::No, "checksum");
    let other_type = patch_footer(fixed.clone(), 60, &[0, 0, 0, 5]);
    assert_eq!(probe(&VHD, &other_type), Match::No, "disk type");
    assert_eq!(
        probe(&VHD, &[&fixed[..], &[0]].concat()),
        Match::No,
        "not at the end"
    );
    assert_eq!(probe(&VHD, &noise(8192)), Match::No);
    let mut head = noise(8192);
    head[..8].copy_from_slice(b"conectix");
    assert_eq!(probe(&VHD, &head), Match::Marked, "for a clear message");
}

#[test]
fn bitmap_is_read_once_for_many_pieces_of_a_block() {
    let data = noise(2 * MIB);
    let image = Forge::new(2 * MIB, 2 << 20).full_block(0, &data).dynamic();
    let memory = Arc::new(MemoryStorage::holding("image", image));
    let storage = Arc::new(TraceStorage::new(memory));
    let layer = VHD
        .open(storage.clone(), &Budget::new(&Limits::default()))
        .unwrap();
    let opened = storage.reads();
    assert_eq!(opened, 4, "footer, its copy, header, table");
    let mut piece = vec![0; 64 << 10];
    for at in (0..2 * MIB).step_by(64 << 10) {
        layer.read_at(at, &mut piece).unwrap();
    }
    assert_eq!(storage.reads(), opened + 32 + 1);
}

#[test]
fn holes_of_a_fixed_image_are_zeros_with_a_place() {
    let disk = pattern::disk("64k:A 1M:- 64k:b");
    let bytes = image::write(&VHD, &disk, &[("subformat", "fixed")], false).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fixed.vhd");
    let file = std::fs::File::create(&path).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&bytes[..64 << 10], 0).unwrap();
    file.write_all_at(&bytes[1088 << 10..], 1088 << 10).unwrap();
    let storage = goldsmith_storage::FileStorage::open(&path).unwrap();
    let layer = VHD
        .open(Arc::new(storage), &Budget::new(&Limits::default()))
        .unwrap();
    let hole = layer.extent_at(64 << 10, disk.len()).unwrap();
    assert_eq!(hole.range, GuestRange::new(64 << 10, 1088 << 10));
    let kind = ExtentKind::Zero {
        allocated: true,
        host: Some(64 << 10),
    };
    assert_eq!(hole.kind, kind);
}

/// [spec "Parent Locator Entry"] The room is in sectors; Microsoft's tools and libvhd write bytes.
/// And where the specification says big-endian, nearly all write little-endian.
#[test]
fn names_of_the_parent_are_read_in_every_spelling() {
    let utf16 = |text: &str, get: fn(u16) -> [u8; 2]| -> Vec<u8> {
        text.encode_utf16().flat_map(get).collect()
    };
    let little = utf16(".\\b\u{e4}se.vhd", u16::to_le_bytes);
    let big = utf16(".\\b\u{e4}se.vhd", u16::to_be_bytes);
    let ended = [&little[..], &[0, 0]].concat();
    for space in [0, 1, 20, 512, 1024, 700, u32::MAX] {
        for name in [&little, &big, &ended] {
            let mut forge = Forge::new(64 * KIB, 64 << 10);
            let mut parent = Parent::nameless([7; 16]);
            parent.locators = vec![(*b"W2ru", space, name.clone())];
            forge.parent = Some(parent);
            let layer = image::open(&VHD, forge.dynamic()).unwrap();
            let backing = layer.info().backing.clone().unwrap();
            assert_eq!(backing.name, "b\u{e4}se.vhd", "{space}");
            assert_eq!(layer.info().warnings, [""; 0]);
        }
    }
    // Nothing says in which letters those for Windows before 2000 are; a zero may end them.
    for code in [*b"Wi2r", *b"Wi2k"] {
        for name in [&b".\\base.vhd"[..], b".\\base.vhd\0", b".\\bas.vhd\0\0"] {
            let mut forge = Forge::new(64 * KIB, 64 << 10);
            let mut parent = Parent::nameless([7; 16]);
            parent.locators = vec![(code, 512, name.to_vec())];
            forge.parent = Some(parent);
            let layer = image::open(&VHD, forge.dynamic()).unwrap();
            let backing = layer.info().backing.clone().unwrap();
            assert!(
                name.starts_with(format!(".\\{}", backing.name).as_bytes()),
                "{backing:?}"
            );
            assert!(backing.name.ends_with(".vhd"), "{backing:?}");
        }
    }
    // [libvhd] blktap 0.1 wrote the name in the order of its machine, behind a mark.
    let marked = [&[0xff, 0xfe][..], &utf16("base.vhd", u16::to_le_bytes)].concat();
    for name in [marked, utf16("base.vhd", u16::to_be_bytes)] {
        let mut forge = Forge::new(64 * KIB, 64 << 10);
        (forge.creator, forge.creator_version) = (*b"tap\0", 1);
        let mut parent = Parent::nameless([7; 16]);
        parent.name = name;
        forge.parent = Some(parent);
        let backing = image::open(&VHD, forge.dynamic())
            .unwrap()
            .info()
            .backing
            .clone();
        assert_eq!(backing.unwrap().name, "base.vhd");
    }
}

/// As a chain walks it where the parent changes with each block. If each answer looked at the rest of
/// the table, of half a million entries, nobody would wait for the end of this test.
#[test]
fn walk_over_unused_blocks_looks_at_each_entry_once() {
    const BLOCK: u64 = 4096;
    let (blocks, last) = (512 * KIB, noise(BLOCK));
    let forge = Forge::new(blocks * BLOCK, BLOCK as u32);
    let image = forge.full_block(blocks as usize - 1, &last).dynamic();
    let layer = image::open(&VHD, image).unwrap();
    let unused = (blocks - 1) * BLOCK;
    for start in (0..unused).step_by(BLOCK as usize) {
        let extent = layer.extent_at(start, blocks * BLOCK).unwrap();
        assert_eq!(extent.range, GuestRange::new(start, unused));
    }
}
