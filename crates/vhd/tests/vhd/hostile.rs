//! Damage: an error that says what is wrong, or the same bytes; never a panic, never other bytes
//! where a checksum guards them.

use std::sync::Arc;

use goldsmith_block::{Budget, Detail, ErrorKind, Format, Limits};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::{Outcome, assert_blames_image, cuts, flips, survives};
use goldsmith_testkit::{image, pattern};
use goldsmith_vhd::VHD;
use proptest::prelude::*;

use crate::forge::{Forge, Parent, patch_footer, patch_header, seal};

const KIB: u64 = 1 << 10;

/// 200 KiB in blocks of 64 KiB, of which the second and the last are there.
fn forge() -> Forge {
    let disk = pattern::disk("64k:q 64k:Q");
    Forge::new(200 * KIB, 64 << 10)
        .full_block(1, &disk.bytes()[..64 << 10])
        .full_block(3, &disk.bytes()[64 << 10..])
}

/// Kind and text of the error with which `bytes` are refused, when opened or when read.
#[track_caller]
fn refused(bytes: Vec<u8>) -> (ErrorKind, String) {
    match survives(&VHD, bytes) {
        Outcome::Refused(error) => (error.kind(), error.report()),
        Outcome::Content { virtual_size, .. } => panic!("reads as {virtual_size} bytes"),
    }
}

#[track_caller]
fn corrupt(bytes: Vec<u8>, text: &str) {
    let (kind, report) = refused(bytes);
    assert_eq!(kind, ErrorKind::Corrupt, "{report}");
    assert!(report.contains(text), "{report}");
}

#[test]
fn nothing_is_no_vhd() {
    corrupt(
        vec![],
        "no VHD footer stands at the end of the file (0 bytes)",
    );
    corrupt(vec![0; 5000], "no VHD footer");
}

#[test]
fn footer_checksum_is_verified_and_zero_is_no_exception() {
    let mut image = forge().dynamic();
    let footer = image.len() - 512;
    image[footer + 64..footer + 68].fill(0);
    image[64..68].fill(0);
    corrupt(
        image,
        "footer checksum is 0x00000000; its bytes add up to 0xffff",
    );
}

#[test]
fn dynamic_header_checksum_is_verified() {
    // QEMU ignores it. [spec] "If the checksum verification fails the file should be assumed to be
    // corrupt."
    let mut image = forge().dynamic();
    image[512 + 900] ^= 4;
    corrupt(image, "dynamic header checksum is 0xffff");
}

#[test]
fn unknown_major_versions_are_not_supported() {
    let (kind, report) = refused(patch_footer(forge().dynamic(), 12, &[0, 2, 0, 0]));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(report.contains("footer version is 0x00020000"), "{report}");
    let (kind, report) = refused(patch_header(forge().dynamic(), 24, &[0, 0, 0, 1]));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(report.contains("header version is 0x00000001"), "{report}");
}

#[test]
fn unknown_disk_types_are_corrupt() {
    for disk_type in [0, 1, 5, 6, 0xff] {
        let image = patch_footer(forge().dynamic(), 60, &[0, 0, 0, disk_type]);
        corrupt(
            image,
            &format!("disk type is {disk_type}; it must be 2 (fixed)"),
        );
    }
}

#[test]
fn differencing_image_without_any_name_is_refused() {
    let nameless = |parent| {
        let mut forge = forge();
        forge.parent = Some(parent);
        forge.dynamic()
    };
    let text = "differencing image that names no parent";
    corrupt(nameless(Parent::nameless([7; 16])), text);
    corrupt(nameless(Parent::nameless([7; 16]).name("")), text);
    // Half a pair of surrogates, and an alias of the Macintosh.
    let mut parent = Parent::nameless([7; 16]).locator(b"Mac ", "blob");
    parent.name = vec![0xd8, 0];
    corrupt(nameless(parent), text);
}

/// [spec "Platform Code"] An alias is one of the kinds that there are, though no name.
#[test]
fn alias_of_the_macintosh_is_no_flaw() {
    let image_with = |code| {
        let mut forge = forge();
        let parent = Parent::nameless([7; 16]).name("named.vhd");
        forge.parent = Some(parent.locator(code, "blob"));
        forge.dynamic()
    };
    let told = |image: Vec<u8>| {
        let layer = image::open(&VHD, image.clone()).unwrap();
        assert_eq!(layer.info().backing.as_ref().unwrap().name, "named.vhd");
        let storage = Arc::new(MemoryStorage::holding("image", image));
        let budget = Budget::new(&Limits::default());
        let checked = VHD.check(storage, &budget).unwrap().unwrap();
        assert_eq!(checked.corruptions, layer.info().warnings.len() as u64);
        layer.info().warnings.clone()
    };
    assert!(told(image_with(b"Mac ")).is_empty());
    let unknown = ["parent locator of the unknown kind 'Amig'"];
    assert_eq!(told(image_with(b"Amig")), unknown);
    let lost = patch_header(image_with(b"Mac "), 576 + 16, &[0xff; 8]);
    assert!(matches!(&told(lost)[..], [only] if only.contains("locator Mac  of 8 bytes")));
}

/// Names past the end of the file, of no length, of 4 GiB, of odd length: none is an order to read.
#[test]
fn broken_locators_are_told_and_passed_over() {
    let mut forge = forge();
    let parent = Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd");
    forge.parent = Some(parent.locator(b"W2ku", r"C:\base.vhd").name("named.vhd"));
    let image = forge.dynamic();
    let (len, offset) = (576 + 8, 576 + 16);
    for (at, bytes, text) in [
        (
            offset,
            u64::MAX.to_be_bytes().to_vec(),
            "of 20 bytes at 0xffffffffffffffff runs past",
        ),
        (
            offset,
            (image.len() as u64 - 512 - 19).to_be_bytes().to_vec(),
            "runs past the end",
        ),
        (len, vec![0; 4], "is 0 bytes long; a name has 1 to 65536"),
        (len, vec![0xff; 4], "is 4294967295 bytes long"),
        (len, vec![0, 1, 0, 1], "is 65537 bytes long"),
        (len, vec![0, 0, 0, 19], "is no text"),
    ] {
        let layer = image::open(&VHD, patch_header(image.clone(), at, &bytes)).unwrap();
        let info = layer.info();
        assert!(
            matches!(&info.warnings[..], [only] if only.contains("locator W2ru") && only.contains(text)),
            "{:?}",
            info.warnings
        );
        let backing = info.backing.as_ref().unwrap();
        assert_eq!(backing.name, "/base.vhd");
        assert_eq!(backing.other_names, ["named.vhd"]);
    }
}

#[test]
fn poisoned_image_opens_for_info_and_gives_no_byte() {
    let poison = |image: Vec<u8>| {
        let image = patch_footer(image, 0, b"v_poison");
        let footer = image[image.len() - 512..].to_vec();
        [&footer, &image[512..]].concat()
    };
    for image in [
        poison(forge().dynamic()),
        patch_footer(Forge::new(512, 0).fixed(&[1; 512]), 0, b"v_poison"),
    ] {
        let layer = image::open(&VHD, image.clone()).unwrap();
        assert_eq!(layer.info().details, [("poisoned", Detail::Flag(true))]);
        corrupt(image, "marked v_poison");
    }
}

#[test]
fn geometry_without_sectors_does_not_make_the_disk_empty() {
    let mut forge = forge();
    (forge.creator, forge.chs) = (*b"vpc ", (0, 4, 17));
    corrupt(
        forge.dynamic(),
        "geometry 0/4/17 gives the disk no sectors, but its size is 204800 bytes",
    );
}

#[test]
fn fixed_image_that_is_longer_than_its_file_is_refused() {
    let image = Forge::new(10_240, 0).fixed(&[1; 9728]);
    corrupt(
        image,
        "disk size is 10240 bytes; the file holds 9728 before its footer",
    );
}

#[test]
fn dynamic_header_outside_the_file_is_refused() {
    let image = forge().dynamic();
    let footer = image.len() as u64 - 512;
    for offset in [footer - 1023, footer, u64::MAX - 1, u64::MAX] {
        let image = patch_footer(image.clone(), 16, &offset.to_be_bytes());
        corrupt(image, &format!("dynamic header at {offset:#x} runs past"));
    }
    let mut image = patch_footer(image, 16, &1024_u64.to_be_bytes());
    // Both, for one that leads to a header would count.
    image.copy_within(footer as usize.., 0);
    corrupt(image, "no dynamic header stands at 0x400");
}

#[test]
fn dynamic_disk_over_2040_gib_is_refused() {
    let size = (2040_u64 << 30) + 512;
    let image = patch_footer(forge().dynamic(), 48, &size.to_be_bytes());
    corrupt(
        image,
        "a dynamic image holds at most 2190433320960 (2040 GiB)",
    );
}

#[test]
fn block_sizes_out_of_bounds_are_refused() {
    for size in [0, 1, 512, 2048, 4095, 65535, 3 << 20, 512 << 20, u32::MAX] {
        let image = patch_header(forge().dynamic(), 32, &size.to_be_bytes());
        corrupt(
            image,
            &format!("block size is {size} bytes; it must be a power of two from 4 KiB"),
        );
    }
}

#[test]
fn bat_smaller_than_disk_is_refused() {
    let image = patch_header(forge().dynamic(), 28, &3_u32.to_be_bytes());
    corrupt(image, "block table has 3 entries; the disk size needs 4");
}

#[test]
fn bat_outside_the_file_is_refused() {
    let image = forge().dynamic();
    let footer = image.len() as u64 - 512;
    for offset in [footer - 15, footer, u64::MAX - 8, u64::MAX] {
        let image = patch_header(image.clone(), 16, &offset.to_be_bytes());
        corrupt(
            image,
            &format!("block table of 4 entries at {offset:#x} runs past"),
        );
    }
    let image = patch_header(image, 28, &u32::MAX.to_be_bytes());
    corrupt(
        image,
        "block table of 4294967295 entries at 0x600 runs past",
    );
}

#[test]
fn block_outside_the_file_is_refused_with_its_numbers() {
    let image = forge().dynamic();
    let sector = (image.len() / 512) as u32;
    for entry in [sector - 2, sector, 0xffff_fffe] {
        let mut image = image.clone();
        image[1540..1544].copy_from_slice(&entry.to_be_bytes());
        corrupt(
            image,
            &format!("entry {entry:#x} of the block table is wrong"),
        );
    }
    let mut image = image;
    image[1540..1544].copy_from_slice(&[0xff, 0xff, 0xff, 0xfe]);
    corrupt(
        image,
        "block 1 should fill 0x1fffffffc00..0x2000000fe00 of the file, whose data",
    );
}

#[test]
fn block_on_metadata_is_refused() {
    for (entry, what) in [
        (0_u32, "copy of the footer"),
        (1, "dynamic header"),
        (2, "dynamic header"),
        (3, "block table"),
    ] {
        let mut image = forge().dynamic();
        image[1540..1544].copy_from_slice(&entry.to_be_bytes());
        corrupt(image, &format!("of the file, where the {what} stands"));
    }
}

#[test]
fn broken_block_does_not_hide_the_others() {
    let mut bytes = forge().dynamic();
    bytes[1536 + 12..1536 + 16].copy_from_slice(&[0x7f; 4]);
    let layer = image::open(&VHD, bytes).unwrap();
    let mut buf = vec![0; 64 << 10];
    layer.read_at(64 << 10, &mut buf).unwrap();
    assert!(buf == pattern::disk("64k:q").bytes());
    let error = layer.read_at(192 << 10, &mut buf[..512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn image_cut_anywhere_is_refused_or_whole() {
    // Ends of the copy, the header, the table, each bitmap, each block.
    let boundaries = [512, 1536, 2048, 2560, 68_096, 68_608, 134_144];
    let image = forge().dynamic();
    let bytes = image::read(&*image::open(&VHD, image.clone()).unwrap()).unwrap();
    assert_eq!(image.len(), 134_144 + 512);
    for cut in cuts(image.len(), &boundaries, 300) {
        // The disk ends 8 KiB into its last block: from there on only the footer is lost.
        if cut >= 134_144 - (56 << 10) {
            assert!(
                survives(&VHD, image[..cut].to_vec()).reads_as(&bytes),
                "{cut}"
            );
        } else {
            let (kind, _) = refused(image[..cut].to_vec());
            assert_eq!(kind, ErrorKind::Corrupt, "{cut}");
        }
        // The same with the footer behind it, as a copy that left out the middle.
        let with_footer = [&image[..cut], &image[134_144..]].concat();
        if cut < 134_144 - (56 << 10) {
            let (kind, _) = refused(with_footer);
            assert_eq!(kind, ErrorKind::Corrupt, "{cut}");
        }
    }
}

#[test]
fn every_byte_of_footer_and_header_is_guarded() {
    let image = forge().dynamic();
    let bytes = image::read(&*image::open(&VHD, image.clone()).unwrap()).unwrap();
    let footer = image.len() - 512;
    for range in [0..1536, footer..image.len()] {
        for damaged in flips(&image, range, 1) {
            // Either footer makes up for the other; the header has no other.
            let in_header = damaged[512..1536] != image[512..1536];
            assert_eq!(survives(&VHD, damaged).reads_as(&bytes), !in_header);
        }
    }
}

/// Neither the table nor the bitmaps have a checksum: a turned bit there shows another place of
/// the same file, or zeros for one sector. It is never more than that.
#[test]
fn turned_bits_in_table_and_bitmaps_stay_in_their_block() {
    let image = forge().dynamic();
    let bytes = image::read(&*image::open(&VHD, image.clone()).unwrap()).unwrap();
    let block = 64 << 10;
    for (range, first, last) in [
        (1540..1544, 1, 1),
        (1548..1552, 3, 3),
        (2048..2064, 1, 1),
        (68_096..68_112, 3, 3),
    ] {
        for damaged in flips(&image, range.clone(), 1) {
            if let Outcome::Content { bytes: found, .. } = survives(&VHD, damaged) {
                let found = found.unwrap();
                assert!(found[..first * block] == bytes[..first * block]);
                let rest = ((last + 1) * block).min(bytes.len());
                assert!(found[rest..] == bytes[rest..]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Fields that a checksum vouches for, but that nobody sane wrote.
    #[test]
    fn sealed_nonsense_gets_an_answer(
        footer_at in 8usize..64,
        footer_bytes in prop::collection::vec(any::<u8>(), 0..9),
        header_at in 8usize..64,
        header_bytes in prop::collection::vec(any::<u8>(), 0..9),
        table in prop::collection::vec(prop_oneof![0u32..300, any::<u32>()], 4),
        table_from in 0usize..5,
    ) {
        let mut image = forge().dynamic();
        for (at, entry) in table.iter().enumerate().skip(table_from) {
            image[1536 + at * 4..][..4].copy_from_slice(&entry.to_be_bytes());
        }
        let image = patch_header(image, header_at, &header_bytes);
        let image = patch_footer(image, footer_at, &footer_bytes);
        let storage = Arc::new(MemoryStorage::holding("hostile", image.clone()));
        if let Err(error) = VHD.check(storage, &Budget::new(&Limits::default())) {
            assert_blames_image(&error);
        }
        survives(&VHD, image);
    }

    /// Parents and batmaps that a checksum vouches for, but that nobody sane wrote: eight locators
    /// of any kind that point anywhere, names of any bytes, maps of any length.
    #[test]
    fn sealed_nonsense_about_parents_and_batmaps_gets_an_answer(
        codes in prop::collection::vec(0usize..8, 8),
        places in prop::collection::vec((any::<u32>(), 0u32..2000, prop_oneof![0u64..5000, any::<u64>()]), 8),
        name in prop::collection::vec(any::<u8>(), 512),
        named: bool,
        batmap_at in 8usize..32,
        batmap_bytes in prop::collection::vec(any::<u8>(), 0..9),
        version in 0u32..4,
    ) {
        let mut forge = forge();
        let mut parent = Parent::nameless([7; 16]).name("base.vhd");
        if named {
            parent.name = name;
        }
        forge.parent = Some(parent);
        (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0000 + version);
        forge.batmap = Some((0x0001_0002, None, vec![0x50]));
        let mut image = forge.dynamic();
        let header = &mut image[512..1536];
        let known = [b"W2ru", b"W2ku", b"MacX", b"Wi2r", b"Wi2k", b"Mac ", b"\0\0\0\0", b"\x1b[2J"];
        for (nth, (code, (space, len, offset))) in codes.iter().zip(&places).enumerate() {
            let entry = &mut header[576 + nth * 24..][..24];
            entry[..4].copy_from_slice(known[*code]);
            entry[4..8].copy_from_slice(&space.to_be_bytes());
            entry[8..12].copy_from_slice(&len.to_be_bytes());
            entry[16..].copy_from_slice(&offset.to_be_bytes());
        }
        seal(header, 36);
        // Head, one sector of table, batmap.
        image[2048 + batmap_at..][..batmap_bytes.len()].copy_from_slice(&batmap_bytes);
        survives(&VHD, image.clone());
        if let Ok(layer) = image::open(&VHD, image) {
            let info = layer.info();
            let backing = info.backing.as_ref().unwrap();
            let names = std::iter::once(&backing.name).chain(&backing.other_names);
            prop_assert!(names.clone().count() <= 10);
            prop_assert!(names.clone().all(|name| !name.is_empty() && !name.contains('\0')));
            prop_assert!(info.warnings.iter().all(|text| !text.contains('\x1b')));
        }
    }

    /// A random file between a footer and a footer.
    #[test]
    fn sealed_footers_around_anything_get_an_answer(
        inside in prop::collection::vec(any::<u8>(), 0..5000),
        header_offset in 0u64..6000,
        disk_type in 2u8..5,
        block_bits in 12u32..22,
        current_size in 0u64..(64 << 20),
    ) {
        let mut footer = forge().dynamic()[..512].to_vec();
        footer[16..24].copy_from_slice(&header_offset.to_be_bytes());
        footer[48..56].copy_from_slice(&current_size.to_be_bytes());
        footer[63] = disk_type;
        seal(&mut footer, 64);
        let mut image = [&footer[..], &inside, &footer].concat();
        let at = header_offset as usize;
        if let Some(header) = image.get_mut(at..at + 1024) {
            header[..8].copy_from_slice(b"cxsparse");
            header[24..28].copy_from_slice(&[0, 1, 0, 0]);
            header[32..36].copy_from_slice(&(1_u32 << block_bits).to_be_bytes());
            seal(header, 36);
        }
        survives(&VHD, image);
    }
}
