//! What is said of an image that is read all the same: lost footers, flags, batmaps.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Detail, ErrorKind, Format, HostRange, Layer, Limits, Options, SECTOR, Storage,
    StorageMut,
};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::FaultStorage;
use goldsmith_testkit::hostile::walk;
use goldsmith_testkit::sparse::SparseStorage;
use goldsmith_testkit::trace::TraceStorage;
use goldsmith_testkit::{image, pattern, qemu};
use goldsmith_vhd::VHD;

use crate::forge::{Forge, patch_footer, seal};

const KIB: u64 = 1 << 10;

/// 128 KiB in blocks of 64 KiB, all there, and the guest's bytes.
fn forge() -> (Forge, Vec<u8>) {
    let disk = pattern::disk("64k:q 64k:Q").bytes().to_vec();
    let forge = Forge::new(128 * KIB, 64 << 10)
        .full_block(0, &disk[..64 << 10])
        .full_block(1, &disk[64 << 10..]);
    (forge, disk)
}

fn open(bytes: &[u8]) -> Arc<dyn Layer> {
    image::open(&VHD, bytes).unwrap()
}

fn read(bytes: &[u8]) -> Vec<u8> {
    image::read(&*open(bytes)).unwrap()
}

#[track_caller]
fn warning(layer: &dyn Layer) -> &str {
    match &layer.info().warnings[..] {
        [only] => only,
        other => panic!("{other:?}"),
    }
}

/// [spec "Hard Disk Footer Format"] The copy is there "to provide redundancy".
#[test]
fn lost_or_broken_footer_is_made_up_for_by_its_copy() {
    let (forge, disk) = forge();
    let image = forge.dynamic();
    let end = image.len() - 512;
    let mut overwritten = image.clone();
    overwritten[end..].fill(0xc7);
    let mut flipped = image.clone();
    flipped[end + 50] ^= 1;
    let cases = [
        (
            image[..end].to_vec(),
            "no VHD footer stands at the end of the file (134144 bytes)",
        ),
        (image[..end + 100].to_vec(), "no VHD footer stands"),
        (overwritten, "no VHD footer stands"),
        (flipped, "footer checksum is 0x"),
    ];
    for (image, text) in cases {
        let layer = open(&image);
        assert_eq!(
            layer.info().details,
            [("footer-recovered", Detail::Flag(true))]
        );
        let warning = warning(&*layer);
        assert!(warning.starts_with(text), "{warning}");
        assert!(
            warning.ends_with("; its copy at the start is intact and was used"),
            "{warning}"
        );
        assert!(read(&image) == disk);
    }
}

#[test]
fn broken_or_other_copy_is_told_and_not_used() {
    let (forge, disk) = forge();
    let image = forge.dynamic();
    assert_eq!(open(&image).info().warnings, [""; 0]);
    let mut broken = image.clone();
    broken[50] ^= 1;
    assert!(warning(&*open(&broken)).contains("start is broken; the footer at the end was used"));
    let other = patch_footer(image, 48, &(64 * KIB).to_be_bytes());
    let layer = open(&other);
    assert_eq!(
        warning(&*layer),
        "the copy of the footer at the start differs from it in current size (65536, copy 131072); \
         the footer at the end was used"
    );
    assert!(read(&broken) == disk);
    assert!(read(&other) == disk[..64 << 10]);
}

/// A guest may keep images on its disk.
#[test]
fn copy_never_speaks_for_a_fixed_image() {
    let (forge, disk) = forge();
    let inner = forge.dynamic();
    let outer = Forge::new(inner.len() as u64, 0).fixed(&inner);
    assert_eq!(open(&outer).info().warnings, [""; 0]);
    assert!(read(&outer) == inner);
    // Footers of fixed images have no copy, so this is no copy of one.
    let fixed = Forge::new(128 * KIB, 0).fixed(&disk);
    let headed = [&fixed[fixed.len() - 512..], &disk].concat();
    assert!(image::open(&VHD, headed).is_err());
}

/// Why `image` cannot be opened, nor checked, nor edited.
#[track_caller]
fn refusal(image: &[u8]) -> String {
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let budget = || Budget::new(&Limits::default());
    let options = Options::defaults(VHD.open_options());
    let errors = [
        VHD.open(storage.clone(), &budget()).map(|_| ()),
        VHD.check(storage.clone(), &budget()).map(|_| ()),
        VHD.edit(storage.clone(), &budget(), &options).map(|_| ()),
    ];
    let [report, check, edit] = errors.map(|error| {
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.report()
    });
    assert_eq!((&report, &report), (&check, &edit));
    report
}

/// Whatever of the footer is broken, the rest says that the first sector is the guest's.
#[test]
fn copy_never_speaks_for_a_fixed_image_whose_footer_is_broken() {
    let (forge, _) = forge();
    let inner = forge.dynamic();
    let mut outer = Forge::new(inner.len() as u64, 0);
    for footer_len in [512, 511] {
        outer.footer_len = footer_len;
        let image = outer.fixed(&inner);
        let start = inner.len();
        for broken in [
            50..51,
            63..64,
            16..24,
            16..17,
            48..56,
            64..68,
            0..1,
            0..8,
            20..60,
        ] {
            for with in [0x55, 0, 0xff] {
                let mut image = image.clone();
                image[start..][broken.clone()].fill(with);
                if image == outer.fixed(&inner) {
                    continue;
                }
                let report = refusal(&image);
                assert!(report.contains("is that of a fixed image"), "{report}");
            }
        }
    }
    let start = inner.len();
    outer.footer_len = 512;
    for left in [24, 60, 100, 510] {
        let report = refusal(&outer.fixed(&inner)[..start + left]);
        assert!(report.contains("is that of a fixed image"), "{report}");
    }
    // By its place and its cookie alone, too.
    let mut image = outer.fixed(&inner);
    image[start + 60..][..4].fill(7);
    image[start + 16..][..8].fill(7);
    assert!(refusal(&image).contains("is that of a fixed image"));
}

/// What a guest writes into the last block is no footer, and one that leads to the header is the copy's.
#[test]
fn copy_speaks_for_a_dynamic_image_whatever_of_its_footer_is_broken() {
    let (forge, disk) = forge();
    // As large as its file, as the footer of a fixed one would say.
    let mut as_long = forge.clone();
    as_long.current_size = forge.dynamic().len() as u64 - 512;
    for (image, is_header_known) in [(forge.dynamic(), false), (as_long.dynamic(), true)] {
        let end = image.len() - 512;
        for broken in [50..51, 63..64, 64..68, 0..1, 0..8, 84..85, 16..17] {
            if is_header_known && broken.start == 16 {
                continue;
            }
            for with in [2, 0x55, 0xff] {
                let mut image = image.clone();
                image[end..][broken.clone()].fill(with);
                let layer = open(&image);
                let recovered = [("footer-recovered", Detail::Flag(true))];
                assert_eq!(layer.info().details, recovered, "{broken:?} {with}");
                assert!(read(&image)[..disk.len()] == disk);
            }
        }
        // Zeros, ones and a guest's bytes at the end of a file that lost its footer.
        for with in [0, 0xff, 0x55] {
            let mut image = image.clone();
            image[end..].fill(with);
            assert!(read(&image)[..disk.len()] == disk);
        }
    }
}

/// The file of a fixed image became longer, and its guest wrote a footer to the start; or that of a
/// dynamic image did, and its guest wrote one to where its disk would end.
#[test]
fn neither_of_two_footers_counts_that_a_guest_may_have_written() {
    let (forge, _) = forge();
    let inner = forge.dynamic();
    let fixed = Forge::new(inner.len() as u64, 0).fixed(&inner);
    let longer = [&fixed[..], &[0; 4096]].concat();
    let report = refusal(&longer);
    assert!(report.contains("stands before them at 0x20e00"), "{report}");
}

/// The file became longer, but nothing else was stored: [ours] file systems may do that.
#[test]
fn footer_of_a_fixed_image_is_found_before_zeros() {
    let disk = pattern::disk("3k:a 2k:- 5k:B");
    let image = Forge::new(disk.len(), 0).fixed(disk.bytes());
    for more in [512, 700, 4096, 300_000] {
        let mut longer = image.clone();
        longer.resize(image.len() + more, 0);
        let layer = open(&longer);
        assert_eq!(
            layer.info().details,
            [("footer-recovered", Detail::Flag(true))]
        );
        let warning = warning(&*layer);
        assert!(
            warning.ends_with("; behind the one at 0x2800, which was used, are only zeros"),
            "{warning}"
        );
        assert!(read(&longer) == disk.bytes());
    }
}

/// What a guest keeps on its disk is no footer of that, and a broken one is none at all.
#[test]
fn only_the_footer_right_behind_the_whole_disk_counts_before_zeros() {
    let image = Forge::new(1024, 0).fixed(&[1; 1024]);
    let mut broken = image.clone();
    broken[1024 + 50] ^= 1;
    let (forge, _) = forge();
    let mut dynamic = forge.dynamic();
    dynamic[50] ^= 1;
    for bytes in [[&[1; 512], &image[..]].concat(), broken, dynamic] {
        let longer = [&bytes[..], &[0; 8192]].concat();
        let refused = image::open(&VHD, longer).map(|_| ());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// However far away it is behind a hole, and however many zeros somebody wrote.
#[test]
fn footer_before_zeros_is_looked_for_within_limits() {
    let image = Forge::new(1024, 0).fixed(&[1; 1024]);
    let storage = Arc::new(SparseStorage::new());
    storage.write_at(0, &image).unwrap();
    storage.set_len(1 << 40).unwrap();
    let traced = Arc::new(TraceStorage::new(storage));
    let budget = Budget::new(&Limits::default());
    let layer = VHD.open(traced.clone(), &budget).unwrap();
    assert_eq!(layer.info().virtual_size, 1024);
    assert!(traced.calls().len() < 60, "{}", traced.calls().len());

    let zeros = |len: usize| [&image[..], &vec![0; len]].concat();
    assert!(image::open(&VHD, zeros(63 << 20)).is_ok());
    assert!(image::open(&VHD, zeros(65 << 20)).is_err());
}

#[test]
fn flags_of_the_footer_are_told_and_change_no_byte() {
    let (forge, disk) = forge();
    let flag = |name| vec![(name, Detail::Flag(true))];
    let both = |image: Vec<u8>| {
        let footer = image[image.len() - 512..].to_vec();
        [&footer, &image[512..]].concat()
    };
    for (at, byte, details) in [
        (84, 0, vec![]),
        (84, 1, flag("saved-state")),
        (85, 1, flag("hidden")),
        (11, 3, flag("temporary")),
    ] {
        let image = both(patch_footer(forge.dynamic(), at, &[byte]));
        let layer = open(&image);
        assert_eq!(layer.info().details, details);
        assert_eq!(layer.info().warnings, [""; 0]);
        assert!(read(&image) == disk);
    }
}

/// [libvhd] "early td-util did not re-calculate checksum when marking vhds 'hidden'", and marked
/// the copy alone.
#[test]
fn blktap_hid_images_without_a_new_checksum() {
    let (mut forge, disk) = forge();
    forge.creator = *b"tap\0";
    for (version, accepted) in [
        (0x0000_0001, true),
        (0x0001_0001, true),
        (0x0001_0003, false),
    ] {
        forge.creator_version = version;
        let mut image = forge.dynamic();
        image[85] = 1;
        let layer = open(&image);
        let hidden = layer.info().details == [("hidden", Detail::Flag(true))];
        assert_eq!(hidden, accepted, "{version:#x}");
        if accepted {
            assert_eq!(layer.info().warnings, [""; 0]);
            // The same in the footer that counts.
            let end = image.len() - 512;
            image[end + 85] = 1;
            assert!(read(&image) == disk);
        }
    }
}

/// [qemu block/vpc.c] `force_size_calc`, spelled and meant as there.
#[test]
fn size_is_taken_from_where_the_option_says() {
    let mut forge = Forge::new(10 << 20, 2 << 20);
    forge.chs = (300, 4, 17);
    let by_geometry = 300 * 4 * 17 * 512;
    for creator in [b"vpc ", b"qemu", b"qem2", b"win ", b"gold"] {
        forge.creator = *creator;
        let file = forge.dynamic();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, &file).unwrap();
        for (value, expected) in [("chs", by_geometry), ("current_size", 10 << 20)] {
            let options = Options::parse(VHD.open_options(), [("force_size_calc", value)]).unwrap();
            let storage = Arc::new(MemoryStorage::holding("image", file.clone()));
            let budget = Budget::new(&Limits::default());
            let layer = VHD.open_with(storage, &budget, &options).unwrap();
            assert_eq!(layer.info().virtual_size, expected, "{creator:?} {value}");
            let opts = format!(
                "driver=vpc,force_size_calc={value},file.driver=file,file.filename={}",
                path.to_str().unwrap()
            );
            let theirs = qemu::img_ok(&["info", "--output=json", "--image-opts", &opts]);
            assert!(
                theirs.contains(&format!("\"virtual-size\": {expected}")),
                "{theirs}"
            );
        }
    }
}

/// A batmap as XenServer's tools write it: versions 1.1 with signed sums, 1.2 with unsigned ones.
#[test]
fn full_block_of_the_batmap_needs_no_bitmap() {
    // The second block is full, and its bitmap was never written: tapdisk reads no bitmap of a
    // block that the batmap calls full.
    let disk = pattern::disk("64k:q 64k:Q").bytes().to_vec();
    let mut forge = Forge::new(128 * KIB, 64 << 10)
        .block(0, &[0xff, 0], &disk[..64 << 10])
        .block(1, &[0], &disk[64 << 10..]);
    forge.creator = *b"tap\0";
    let mut expected = disk.clone();
    expected[4096..64 << 10].fill(0);
    let mut without = expected.clone();
    without[64 << 10..].fill(0);
    let mut map = vec![0; 512];
    map[0] = 0x40;
    // A bit far behind the disk makes the sums differ.
    map[511] = 0x80;
    let unsigned = !(0x40_u32 + 0x80);
    let signed = !(0x40_u32.wrapping_sub(0x80));
    for (creator_version, version, checksum, used) in [
        (0x0001_0001, 0x0001_0001, signed, true),
        (0x0001_0002, 0x0001_0001, signed, true),
        (0x0001_0003, 0x0001_0002, unsigned, true),
        (0x0001_0003, 0x0001_0001, unsigned, false),
        (0x0001_0003, 0x0001_0002, signed, false),
        (0x0001_0003, 0x0001_0002, 0, false),
        (0x0001_0003, 0x0001_0003, unsigned, false),
    ] {
        forge.creator_version = creator_version;
        forge.batmap = Some((version, Some(checksum), map.clone()));
        let image = forge.dynamic();
        let layer = open(&image);
        assert_eq!(
            layer.info().warnings.is_empty(),
            used,
            "{version:#x} {checksum:#x}"
        );
        assert!(
            read(&image) == if used { &expected[..] } else { &without },
            "{version:#x}"
        );
    }
    // Other creators have none, whatever stands there.
    forge.creator = *b"win ";
    forge.batmap = Some((0x0001_0002, Some(unsigned), map));
    assert_eq!(open(&forge.dynamic()).info().warnings, [""; 0]);
    assert!(read(&forge.dynamic()) == without);
}

#[test]
fn batmap_that_is_missing_or_elsewhere_is_told_and_not_used() {
    let (mut forge, disk) = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    let image = forge.dynamic();
    assert!(warning(&*open(&image)).starts_with("no batmap stands at 0x800"));
    forge.creator_version = 0x0001_0001;
    assert_eq!(
        open(&forge.dynamic()).info().warnings,
        [""; 0],
        "they may have none"
    );

    forge.creator_version = 0x0001_0003;
    forge.batmap = Some((0x0001_0002, None, vec![0xc0; 1]));
    let image = forge.dynamic();
    assert_eq!(open(&image).info().warnings, [""; 0]);
    let batmap = 2048;
    for (at, bytes, text) in [
        (
            8,
            vec![0xff; 8],
            "batmap of 1 sectors at 0xffffffffffffffff is empty or runs past",
        ),
        (16, vec![0; 4], "batmap of 0 sectors"),
        (16, vec![0xff; 4], "batmap of 4294967295 sectors"),
        (20, vec![0, 2, 0, 0], "batmap version is 0x00020000"),
        (
            24,
            vec![0; 4],
            "batmap checksum is 0x00000000; its bytes add up to 0xffffff3f",
        ),
        (0, vec![0; 8], "no batmap stands at 0x800"),
    ] {
        let mut image = image.clone();
        image[batmap + at..][..bytes.len()].copy_from_slice(&bytes);
        let layer = open(&image);
        assert!(warning(&*layer).starts_with(text), "{}", warning(&*layer));
        assert!(warning(&*layer).ends_with("; it was not used"));
        assert!(read(&image) == disk);
    }
}

#[test]
fn batmap_of_a_long_table_is_not_read_beyond_its_entries() {
    let (mut forge, disk) = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    // 128 entries fill a sector; the map claims all the rest of the file.
    forge.table_entries = Some(128);
    forge.batmap = Some((0x0001_0002, None, vec![0xc0; 1]));
    let mut image = forge.dynamic();
    let sectors = ((image.len() - 512 - 2560) / 512) as u32;
    image[2048 + 16..][..4].copy_from_slice(&sectors.to_be_bytes());
    let limits = {
        let mut limits = Limits::default();
        limits.metadata_bytes = 8 + 64 * 16 + 512;
        limits
    };
    let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
    let layer = VHD.open(storage, &Budget::new(&limits)).unwrap();
    let [warning] = &layer.info().warnings[..] else {
        panic!("{:?}", layer.info().warnings);
    };
    assert!(
        warning.contains("and the batmap share the bytes of the file from 0xc00 on"),
        "{warning}"
    );
    assert!(image::read(&*layer).unwrap() == disk);
    assert_eq!(walk(&*layer, 0, 128 * KIB, 9).unwrap().len(), 2);
}

#[test]
fn footers_with_a_right_checksum_are_believed_even_if_they_are_too_new() {
    let (forge, _) = forge();
    let image = patch_footer(forge.dynamic(), 12, &[0, 2, 0, 0]);
    let error = image::open(&VHD, image.clone()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), goldsmith_block::ErrorKind::Unsupported);
    // And so is a copy.
    let mut lost = image;
    let end = lost.len() - 512;
    lost.copy_within(end.., 0);
    seal(&mut lost[..512], 64);
    lost.truncate(end);
    assert!(image::open(&VHD, lost).is_err());
}

/// `image`, of which the bytes `bad` cannot be read.
fn without(image: Vec<u8>, bad: HostRange) -> Arc<dyn Storage> {
    let image = Arc::new(MemoryStorage::holding("image", image));
    Arc::new(FaultStorage::without(image, bad))
}

#[test]
fn footer_that_cannot_be_read_is_lost_to_whoever_salvages() {
    let (forge, disk) = forge();
    let image = forge.dynamic();
    let end = HostRange::new(image.len() as u64 - 512, 512);
    let storage = without(image, end);
    let (budget, options) = (
        Budget::new(&Limits::default()),
        Options::defaults(VHD.open_options()),
    );
    let refused = VHD.open(Arc::clone(&storage), &budget);
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Io);
    let layer = VHD.salvage(storage, &budget, &options).unwrap();
    assert!(image::read(&*layer).unwrap() == disk);
    assert_eq!(
        layer.info().warnings.len(),
        1,
        "{:?}",
        layer.info().warnings
    );
}

/// The table of 200 blocks takes two sectors, and a batmap is behind it.
#[test]
fn sector_of_a_table_that_cannot_be_read_costs_whoever_salvages_its_own_blocks() {
    let first = pattern::disk("64k:q").bytes().to_vec();
    let second = pattern::disk("64k:Q").bytes().to_vec();
    let mut forge = Forge::new(200 * 64 * KIB, 64 << 10)
        .full_block(0, &first)
        .full_block(150, &second);
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    forge.batmap = Some((0x0001_0002, None, vec![0; 25]));
    let image = forge.dynamic();
    let (budget, options) = (
        Budget::new(&Limits::default()),
        Options::defaults(VHD.open_options()),
    );
    let table = 1536;
    let batmap = image.windows(8).position(|it| it == b"tdbatmap").unwrap() as u64;
    for (bad, len, lost) in [
        (table, 512, &[0][..]),
        (table + 512, 512, &[150]),
        (batmap, 512, &[]),
        (batmap + 512, 512, &[]),
        // The header as well, which the rest tells all the same.
        (512, 1536, &[0]),
    ] {
        let storage = without(image.clone(), HostRange::new(bad, len));
        let refused = VHD.open(Arc::clone(&storage), &budget);
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::Io, "{bad}");
        let layer = VHD.salvage(storage, &budget, &options).unwrap();
        let warnings = &layer.info().warnings;
        let told = format!("bad sectors at {bad:#x}..{:#x}", bad + len);
        let is_told = warnings.iter().any(|it| it.contains(&told));
        assert!(is_told, "{warnings:?}");
        for (block, expected) in [(0, &first), (150, &second)] {
            let mut buf = vec![0; 64 << 10];
            let read = layer.read_at(block << 16, &mut buf);
            match lost.contains(&block) {
                true => assert_eq!(read.err().unwrap().kind(), ErrorKind::Io, "{bad}"),
                false => assert!(buf == *expected, "{bad}"),
            }
        }
        // What was never written says so, or is lost with the table.
        let hole = layer.extent_at(100 << 16, 101 << 16);
        assert_eq!(hole.is_err(), lost == [0], "{hole:?}");
    }
}

/// The footer at the other end, the table and its neighbours tell what is lost.
#[test]
fn sector_of_a_head_that_cannot_be_read_costs_whoever_salvages_nothing() {
    let (forge, disk) = forge();
    let (dynamic, fixed) = (forge.dynamic(), Forge::new(128 * KIB, 0).fixed(&disk));
    let (budget, options) = (
        Budget::new(&Limits::default()),
        Options::defaults(VHD.open_options()),
    );
    for (image, bad) in [
        (&dynamic, 0),
        (&dynamic, 512),
        (&dynamic, 1024),
        (&fixed, 0),
    ] {
        let storage = without(image.clone(), HostRange::new(bad, 512));
        let layer = VHD.salvage(storage, &budget, &options).unwrap();
        // The disk of a fixed image begins there.
        let lost = if layer.is_flat() { SECTOR } else { 0 };
        let mut bytes = vec![0; disk.len()];
        layer.read_at(lost, &mut bytes[lost as usize..]).unwrap();
        assert!(bytes[lost as usize..] == disk[lost as usize..], "{bad}");
        assert!(
            layer.is_flat() || !layer.info().warnings.is_empty(),
            "{bad}"
        );
    }
}
