//! Dynamic and differencing disks of another size.

use std::sync::Arc;

use goldsmith_block::{Edit, ErrorKind, Preallocation};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::{image, pattern, qemu};
use goldsmith_vhd::VHD;

use super::{
    BLOCK, KIB, child, content, edit, edited, forge, nothing, parent, resize, resize_with,
    survives_cuts,
};
use crate::child::pleases_vhd_util;
use crate::forge::Forge;
use crate::judges::{assert_pleases_vhd_util, extract};

/// `disk` with `len` bytes, by cutting or with zeros.
fn with_len(mut disk: Vec<u8>, len: u64) -> Vec<u8> {
    disk.resize(len as usize, 0);
    disk
}

#[test]
fn disk_of_another_size_has_the_old_bytes_and_zeros_for_all_judges() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let disk = pattern::disk("2M:- 1536:- 64k:c 3M:- 512:0 512:D 1M:e 1536:F");
    let now = 1_000_000_000 - 946_684_800;
    for options in [
        &[("block_size", "512k")][..],
        &[("batmap", "on")],
        &[("subformat", "fixed")],
    ] {
        let image = image::write(&VHD, &disk, options, false).unwrap();
        for len in [
            disk.len() + 512,
            disk.len() + (5 << 20),
            disk.len() - 512,
            3 << 20,
            2 << 20,
            512,
            0,
        ] {
            let after = edited(&image, &resize(len));
            let expected = with_len(disk.bytes().to_vec(), len);
            assert!(content(&after, &nothing()) == expected, "{options:?} {len}");
            let subformat = match options[0].1 {
                "fixed" => "fixed",
                _ => "dynamic",
            };
            assert_pleases_vhd_util(&after, subformat, now);
            // Neither judge takes a disk without any byte.
            if len > 0 {
                assert!(qemu::read("vpc", &after) == expected, "{options:?} {len}");
                assert!(extract(&path, &after) == expected, "{options:?} {len}");
            }
        }
    }
}

/// A table that needs more sectors, and so the place of blocks.
#[test]
fn blocks_make_room_for_a_longer_table() {
    let now = 1_000_000_000 - 946_684_800;
    let disk = pattern::disk("6M:a");
    for options in [
        &[("block_size", "512k")][..],
        &[("block_size", "512k"), ("batmap", "on")],
    ] {
        let image = image::write(&VHD, &disk, options, false).unwrap();
        for len in [1 << 30, 64 << 30, 2040 << 30] {
            let after = edited(&image, &resize(len));
            let layer = image::open(&VHD, &*after).unwrap();
            assert_eq!(layer.info().virtual_size, len);
            let mut start = vec![0; 7 << 20];
            layer.read_at(0, &mut start).unwrap();
            assert!(start == with_len(disk.bytes().to_vec(), 7 << 20));
            let hole = layer.extent_at(6 << 20, len).unwrap();
            assert!(hole.range.end == len && !hole.kind.is_data());
            if options.len() == 1 {
                assert_pleases_vhd_util(&after, "dynamic", now);
            }
            // And back: nothing is left of the way there.
            let back = edited(&after, &resize(disk.len()));
            assert!(content(&back, &nothing()) == disk.bytes());
            assert!(
                back.len() <= image.len() + 4096,
                "{} {}",
                back.len(),
                image.len()
            );
        }
    }
}

#[test]
fn size_that_the_table_cannot_hold_or_that_is_no_sectors_is_refused() {
    let image = forge().dynamic();
    let refused = |len| {
        let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
        let error = edit(storage.clone()).unwrap().edit(&resize(len));
        assert!(storage.to_vec() == image);
        error.unwrap_err().report()
    };
    assert!(refused(1000).contains("size 1000 is no multiple of 512"));
    assert!(refused((2040 << 30) + 512).contains("over 2190433320960 (2040 GiB)"));
}

#[test]
fn table_of_tiny_blocks_does_not_grow_without_limit() {
    let image = Forge::new(4096, 4096).dynamic();
    let storage = Arc::new(MemoryStorage::holding("image", image.clone()));
    let error = edit(storage.clone()).unwrap().edit(&resize(2040 << 30));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(
        error.report().contains("534773760 blocks of 4096 bytes"),
        "{}",
        error.report()
    );
    assert!(storage.to_vec() == image);
    edited(&image, &resize(1 << 30));
}

/// [libvhd] It sums the bytes of a map that blocks of 2 MiB need, so bits behind them are not
/// written; a block that had one needs its bitmap from then on.
#[test]
fn full_block_that_leaves_the_batmap_gets_its_bitmap() {
    let last = 4096;
    let disk = pattern::disk("64k:Q");
    let mut forge =
        Forge::new((last as u64 + 1) * BLOCK as u64, BLOCK as u32).block(last, &[0], disk.bytes());
    (forge.creator, forge.creator_version) = (*b"tap\0", 0x0001_0003);
    let mut map = vec![0; 1024];
    map[last / 8] = 0x80;
    forge.batmap = Some((0x0001_0002, None, map));
    let image = forge.dynamic();
    let after = edited(&image, &resize((last as u64 + 2) * BLOCK as u64));
    for image in [image, after] {
        let layer = image::open(&VHD, image).unwrap();
        assert_eq!(layer.info().warnings, [""; 0]);
        let mut block = vec![0; BLOCK];
        layer.read_at((last * BLOCK) as u64, &mut block).unwrap();
        assert!(block == disk.bytes());
    }
}

/// [spec] The footer says where the header stands. For a moment that is behind all blocks.
#[test]
fn head_behind_the_blocks_is_read_by_all_judges() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let disk = pattern::disk("1M:A 1M:- 1M:b");
    let image = image::write(&VHD, &disk, &[("block_size", "512k")], false).unwrap();
    let crash = Arc::new(CrashStorage::new("image", image));
    edit(crash.clone()).unwrap().edit(&resize(4 << 20)).unwrap();
    let expected = with_len(disk.bytes().to_vec(), 4 << 20);
    let mut seen = 0;
    crash.each_state(|what, state| {
        let bytes = state.to_vec();
        let away = bytes[16..24] != 512_u64.to_be_bytes();
        if away && bytes[..512] == bytes[bytes.len() - 512..] && what.ends_with(": nothing") {
            assert!(content(&bytes, &nothing()) == expected);
            assert!(qemu::read("vpc", &bytes) == expected);
            assert!(extract(&path, &bytes) == expected);
            seen += 1;
        }
    });
    assert_eq!(seen, 2, "before and after the head is written at the start");
}

/// [spec] Cylinders, heads and sectors are of the new size, "original size" stays; creators whose
/// geometry counts give way to one whose size does, unless both are the same.
#[test]
fn footer_says_the_new_size_in_every_way() {
    let be64 = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    for (creator, size, expected) in [
        (b"win ", 1 << 20, b"win "),
        (b"vpc ", 1 << 20, b"qem2"),
        (b"qemu", 1 << 20, b"qem2"),
        (b"qemu", 68 * 512 * 31, b"qemu"),
    ] {
        let mut forge = forge();
        (forge.creator, forge.chs) = (*creator, (11, 4, 17));
        forge.current_size = 11 * 68 * 512;
        let after = edited(&forge.dynamic(), &resize(size));
        let footer = &after[after.len() - 512..];
        assert_eq!(&footer[28..32], expected);
        assert_eq!(be64(&footer[40..48]), 11 * 68 * 512);
        assert_eq!(be64(&footer[48..56]), size);
        let fresh = image::write(&VHD, &pattern::disk(&format!("{size}:-")), &[], false).unwrap();
        assert_eq!(footer[56..60], fresh[56..60], "geometry");
        assert_eq!(footer, &after[..512]);
    }
}

#[test]
fn cut_at_any_point_leaves_the_old_or_the_new_disk() {
    let full = |len| resize_with(len, Preallocation::Full);
    let old = 5 * BLOCK as u64 + 5 * KIB;
    let mut long = forge();
    // The first block stands right behind a table whose sector is full.
    (long.current_size, long.table_entries) = (128 * BLOCK as u64, Some(128));
    let mut moved = forge();
    (moved.header_at, moved.padding, moved.table_last) = (4096, 1024, true);
    let mut batmap = forge();
    (batmap.creator, batmap.creator_version) = (*b"tap\0", 0x0001_0003);
    batmap.batmap = Some((0x0001_0002, None, vec![0x14]));
    let mut short = forge();
    short.footer_len = 511;
    for forge in [forge(), long, moved, batmap, short] {
        let image = forge.dynamic();
        let size = forge.current_size;
        for change in [
            resize(size + 300 * KIB),
            resize(size + 200 * BLOCK as u64),
            resize(size - 512),
            resize(old - 3 * BLOCK as u64),
            full(size + BLOCK as u64),
        ] {
            survives_cuts(&image, &nothing(), &change);
        }
    }
}

#[test]
fn child_that_is_cut_at_any_point_is_the_old_or_the_new_one_over_its_parent() {
    let image = child().dynamic();
    let size = child().current_size;
    for change in [
        resize(size + 512),
        resize(size + 200 * KIB),
        resize(size - 6 * KIB),
        resize(BLOCK as u64),
    ] {
        survives_cuts(&image, &parent(), &change);
    }
}

/// What a parent holds behind the old end of its child is not to show.
#[test]
fn added_part_of_a_child_is_zeros_over_a_longer_parent() {
    let disk = child();
    for blocks in [&[1, 3, 5][..], &[1, 3]] {
        let mut forge = disk.clone();
        forge.blocks.retain(|(index, ..)| blocks.contains(index));
        let image = forge.dynamic();
        let old = content(&image, &parent());
        for len in [old.len() as u64 + 512, 450 * KIB, 700 * KIB] {
            let after = edited(&image, &resize(len));
            assert!(content(&after, &parent()) == with_len(old.clone(), len));
            pleases_vhd_util(&after);
        }
    }
}

/// Nothing can show there if nothing stands there.
#[test]
fn added_part_of_a_child_takes_no_space_behind_the_end_of_its_parent() {
    let mut forge = child();
    forge.blocks.retain(|(index, ..)| *index != 5);
    let image = forge.dynamic();
    let size = 700 * KIB;
    for (behind, blocks) in [
        (0, 0),
        (325 * KIB, 0),
        (326 * KIB, 1),
        (385 * KIB, 2),
        (1 << 40, 6),
    ] {
        let after = edited(
            &image,
            &Edit::Resize {
                virtual_size: size,
                preallocation: Preallocation::Off,
                behind,
            },
        );
        assert_eq!(super::check(&after).allocated, 2 + blocks, "{behind}");
    }
}

#[test]
fn preallocated_blocks_have_places_and_hold_zeros() {
    let disk = pattern::disk("1M:A");
    let image = image::write(&VHD, &disk, &[("batmap", "on")], false).unwrap();
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let change = resize_with(8 << 20, preallocation);
        let after = edited(&image, &change);
        assert!(content(&after, &nothing()) == with_len(disk.bytes().to_vec(), 8 << 20));
        assert_eq!(super::check(&after).allocated, 4);
        assert!(qemu::read("vpc", &after) == content(&after, &nothing()));
        assert_pleases_vhd_util(&after, "dynamic", 1_000_000_000 - 946_684_800);
    }
}

#[test]
fn steps_tell_what_was_done() {
    let image = forge().dynamic();
    let storage = Arc::new(MemoryStorage::holding("image", image));
    let mut editor = edit(storage).unwrap();
    editor.edit(&resize(BLOCK as u64 * 9)).unwrap();
    let steps: Vec<_> = editor.steps().iter().map(ToString::to_string).collect();
    let step = |text: &str| steps.iter().position(|step| step.starts_with(text));
    assert_eq!(
        step("clear the end of the last block: 60416 bytes at "),
        Some(0)
    );
    let head = step("write the new head: 1536 bytes at ").unwrap();
    let switch = step("write the copy of the footer: 512 bytes at 0x0").unwrap();
    assert!(steps[head..switch].contains(&"wait until all of it is stored".to_owned()));
    assert_eq!(steps.last().unwrap(), "wait until all of it is stored");
}
