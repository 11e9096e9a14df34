//! What a check finds, and what it does not.

use std::sync::Arc;

use goldsmith_block::{Budget, Checked, Flaw, Format, Limits, Result};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{image, pattern, qemu};
use goldsmith_vhd::VHD;

use crate::forge::{Forge, Parent, patch_footer};

const KIB: u64 = 1 << 10;

fn try_check(bytes: &[u8]) -> Result<Checked> {
    let storage = Arc::new(MemoryStorage::holding("image", bytes.to_vec()));
    let checked = VHD.check(storage, &Budget::new(&Limits::default()))?;
    Ok(checked.unwrap())
}

fn check(bytes: &[u8]) -> Checked {
    try_check(bytes).unwrap()
}

/// Four blocks of 64 KiB, of which the second and the last are there.
fn forge() -> Forge {
    let disk = pattern::disk("64k:q 64k:Q");
    Forge::new(256 * KIB, 64 << 10)
        .full_block(1, &disk.bytes()[..64 << 10])
        .full_block(3, &disk.bytes()[64 << 10..])
}

/// `image` with entry `index` of the table at 1536 changed.
fn entry(mut image: Vec<u8>, index: usize, sector: u32) -> Vec<u8> {
    image[1536 + 4 * index..][..4].copy_from_slice(&sector.to_be_bytes());
    image
}

#[track_caller]
fn corruption(image: &[u8], text: &str) {
    let checked = check(image);
    assert_eq!(checked.corruptions, 1, "{:?}", checked.flaws);
    // Where the block should be there is nothing then, so there may be a leak, too.
    match &checked.flaws[0] {
        Flaw::Corruption(found) => assert!(found.contains(text), "{found}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sound_images_have_no_flaws() {
    let disk = pattern::disk("2M:- 1536:- 64k:c 3M:- 512:0 512:D 1M:e 2M:- 512:F");
    let mut images = Vec::new();
    for options in [
        &[][..],
        &[("subformat", "fixed")],
        &[("block_size", "512k")],
        &[("batmap", "on")],
        &[("force_size", "off")],
    ] {
        images.push(image::write(&VHD, &disk, options, false).unwrap());
    }
    for options in ["subformat=dynamic", "subformat=fixed", "force_size=on"] {
        images.push(qemu::write("vpc", &disk, &["-o", options]));
    }
    images.push(image::write(&VHD, &pattern::disk("0:-"), &[], false).unwrap());
    for table_last in [false, true] {
        let mut forge = forge();
        (forge.padding, forge.header_at, forge.table_last) = (2560, 4096, table_last);
        images.push(forge.dynamic());
        // Room in the table for a disk that may grow.
        forge.table_entries = Some(50_000);
        images.push(forge.dynamic());
    }
    for image in images {
        let checked = check(&image);
        assert_eq!(
            (checked.corruptions, checked.leaks),
            (0, 0),
            "{:?}",
            checked.flaws
        );
        assert!(checked.flaws.is_empty());
        if checked.units > 0 {
            assert!(checked.end <= image.len() as u64);
        }
    }
}

#[test]
fn blocks_are_counted() {
    let image = forge().dynamic();
    let checked = check(&image);
    assert_eq!(
        (checked.units, checked.allocated, checked.fragmented),
        (4, 2, 0)
    );
    assert_eq!(checked.end, image.len() as u64);
    // The other way round in the file.
    let (first, last) = (4_u32, 4 + 129);
    let swapped = entry(entry(image, 1, last), 3, first);
    assert_eq!(check(&swapped).fragmented, 1);
}

#[test]
fn each_broken_rule_is_found() {
    let image = forge().dynamic();
    let (first, last) = (4_u32, 4 + 129);
    corruption(
        &entry(image.clone(), 1, 0x00ff_ffff),
        "block 1 should fill 0x1fffffe00..",
    );
    corruption(
        &entry(image.clone(), 1, 1),
        "where the dynamic header stands",
    );
    for (sector, text) in [
        (last, "block 0 and block 3 overlap at 0x10a00"),
        (last - 1, "block 1 and block 0 overlap at 0x10800"),
        (first, "block 0 and block 1 overlap at 0x800"),
    ] {
        let checked = check(&entry(image.clone(), 0, sector));
        let texts: Vec<_> = checked
            .flaws
            .iter()
            .map(|flaw| format!("{flaw:?}"))
            .collect();
        assert!(
            texts.iter().any(|found| found.contains(text)),
            "{sector}: {texts:?}"
        );
        assert!(checked.corruptions > 0);
    }
    let mut broken = image.clone();
    broken[100] ^= 1;
    corruption(&broken, "the copy of the footer at the start is broken");
    corruption(
        &image[..image.len() - 512],
        "its copy at the start is intact and was used",
    );
    let poisoned = patch_footer(image, 0, b"v_poison");
    let footer = poisoned[poisoned.len() - 512..].to_vec();
    corruption(&[&footer, &poisoned[512..]].concat(), "marked v_poison");
    let fixed = Forge::new(4096, 0).fixed(&[1; 4096]);
    corruption(&patch_footer(fixed, 0, b"v_poison"), "marked v_poison");
}

/// What a guest reads does not depend on them.
#[test]
fn footers_that_differ_in_what_changes_no_disk_are_told_and_no_corruption() {
    for (at, bytes, text) in [
        (11, &[3][..], "features (0x3, copy 0x2)"),
        (24, &[0, 0, 0, 9], "timestamp (9, copy 18886720)"),
        (36, b"Mac ", "host (Mac , copy Wi2k)"),
        (40, &[0; 8], "original size (0, copy 262144)"),
        (84, &[1], "saved state (1, copy 0)"),
        (85, &[1], "hidden (1, copy 0)"),
        (300, &[7], "reserved bytes"),
    ] {
        let checked = check(&patch_footer(forge().dynamic(), at, bytes));
        assert_eq!(checked.corruptions + checked.leaks + checked.errors, 0);
        let told = format!(
            "the copy of the footer at the start differs from it in {text}; the footer at the end \
             was used"
        );
        assert_eq!(checked.flaws, [Flaw::Note(told)]);
    }
}

/// Some go by the copy, QEMU among them, and some by the footer.
#[test]
fn footers_of_two_disks_are_a_corruption() {
    for (at, bytes, text) in [
        (
            48,
            &[0, 0, 0, 0, 0, 3, 0xfe, 0][..],
            "current size (261632, copy 262144)",
        ),
        (56, &[0, 9], "geometry (9/16/255, copy 65535/16/255)"),
        (68, &[0], "uuid (00207665"),
    ] {
        corruption(&patch_footer(forge().dynamic(), at, bytes), text);
    }
    // Who wrote it decides which of the sizes counts.
    let mut forge = forge();
    forge.chs = (7, 4, 17);
    let image = patch_footer(forge.dynamic(), 28, b"vpc ");
    corruption(&image, "creator ('vpc ' 0xa0000, copy 'win ' 0xa0000)");
}

#[test]
fn batmap_and_names_are_no_place_for_blocks() {
    let mut forge = forge();
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    forge.batmap = Some((0x0001_0002, None, vec![0x50]));
    let image = forge.dynamic();
    assert_eq!(check(&image).corruptions, 0, "{:?}", check(&image).flaws);
    // Head, table, batmap and its map; then the blocks.
    let at = |sector: u32| {
        let checked = check(&entry(image.clone(), 1, sector));
        format!("{:?}", checked.flaws)
    };
    for sector in [4, 5] {
        let found = at(sector);
        assert!(found.contains("the batmap and block 1 overlap"), "{found}");
        told_to_readers(&entry(image.clone(), 1, sector), "block 1 and the batmap");
    }
    let gone = at(u32::MAX);
    assert!(
        gone.contains("block 1 is full by the batmap, but has no place"),
        "{gone}"
    );
    assert!(gone.contains("room for 1 blocks"), "{gone}");

    let mut forge = Forge::new(64 * KIB, 64 << 10).full_block(0, &[1; 64 << 10]);
    forge.parent = Some(Parent::nameless([7; 16]).locator(b"W2ru", r".\base.vhd"));
    forge.table_last = true;
    let mut image = forge.dynamic();
    assert_eq!(check(&image).corruptions, 0, "{:?}", check(&image).flaws);
    let table = image.len() - 1024;
    assert_eq!(image[table..table + 4], [0, 0, 0, 4]);
    image[table + 3] = 3;
    corruption(&image, "a name of the parent and block 0 overlap at 0x600");
    told_to_readers(&image, "block 0 and a name of the parent");

    // Behind the entries of the disk, in the second sector of the table.
    let mut forge = Forge::new(64 * KIB, 64 << 10).full_block(0, &[1; 64 << 10]);
    forge.table_entries = Some(256);
    let image = entry(forge.dynamic(), 0, 4);
    corruption(&image, "the block table and block 0 overlap at 0x800");
    told_to_readers(&image, "block 0 and the block table");
}

/// A block that can be read where something else stands is no error, and no secret.
#[track_caller]
fn told_to_readers(image: &[u8], what: &str) {
    let layer = image::open(&VHD, image).unwrap();
    let warnings = &layer.info().warnings;
    let text = format!("{what} share the bytes of the file from");
    assert!(warnings.iter().any(|it| it.contains(&text)), "{warnings:?}");
}

#[test]
fn lost_blocks_are_leaks() {
    let image = forge().dynamic();
    let shows = ": what stands there shows in the next block that QEMU allocates";
    for (index, range, shows) in [(1, "0x800..0x10a00", ""), (3, "0x10a00..0x20c00", shows)] {
        let checked = check(&entry(image.clone(), index, u32::MAX));
        assert_eq!((checked.corruptions, checked.leaks), (0, 1));
        let text = format!("nothing points to {range} of the file, room for 1 blocks{shows}");
        assert_eq!(checked.flaws, [Flaw::Leak(text)]);
    }
    let mut forge = forge();
    forge.table_entries = Some(100);
    let checked = check(&entry(forge.dynamic(), 40, 4));
    assert_eq!((checked.corruptions, checked.leaks), (0, 0));
    let text = "entry 40 of the block table, 0x4, is past the disk";
    assert_eq!(checked.flaws, [Flaw::Note(text.into())]);
}

#[test]
fn only_so_many_flaws_are_kept_and_all_are_counted() {
    let mut forge = Forge::new(2000 * 4 * KIB, 4096);
    forge.table_entries = Some(2000);
    let mut image = forge.dynamic();
    image[1536..1536 + 8000].fill(0x7f);
    let checked = check(&image);
    assert_eq!(checked.corruptions, 2000);
    assert_eq!(checked.flaws.len(), Checked::FLAWS);
}

#[test]
fn image_that_does_not_open_cannot_be_checked() {
    assert!(try_check(&[0; 5000]).is_err());
    let limits = {
        let mut limits = Limits::default();
        limits.metadata_bytes = 1200;
        limits
    };
    let storage = Arc::new(MemoryStorage::holding("image", forge().dynamic()));
    let budget = Budget::new(&limits);
    assert!(VHD.open(storage.clone(), &Budget::new(&limits)).is_ok());
    VHD.check(storage, &budget).unwrap();
}
