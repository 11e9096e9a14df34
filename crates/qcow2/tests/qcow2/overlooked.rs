//! What a check finds that QEMU's overlooks, and what takes QEMU forever.

use std::path::Path;

use goldsmith_block::Flaw;
use goldsmith_testkit::qemu;

use crate::bench::Bench;
use crate::check::{WRITES, assert_sound, check, ours, patch, theirs, with_bitmaps};
use crate::damage::{Damage, Places};
use crate::forge::{COPIED, Forge};

/// What our check says of the image at `path`, in which QEMU's finds fewer flaws.
fn assert_more(path: &Path, more: u64, what: &str) {
    let checked = check(&std::fs::read(path).unwrap()).unwrap();
    let mut theirs = theirs(path);
    theirs[0] += more;
    assert_eq!(ours(&checked), theirs, "{:#?}", checked.flaws);
    let told = checked.flaws.iter().any(|flaw| match flaw {
        Flaw::Corruption(text) => text.contains(what),
        Flaw::Leak(_) | Flaw::Note(_) => false,
    });
    assert!(told, "{:#?}", checked.flaws);
}

/// A write to that cluster would destroy a table; QEMU counts two uses and finds the refcount right.
#[test]
fn table_that_stands_in_a_data_cluster_is_found_though_qemu_does_not() {
    let bench = Bench::new();
    for table in [Places::l1, |p: &Places| p.number(p.l1()) & !COPIED] {
        let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
        let places = Places::of(&path);
        let place = table(&places);
        let lost = places.number(places.l2(0)) & !COPIED;
        patch(&path, places.l2(0), &place.to_be_bytes());
        patch(&path, places.refcount(lost / 4096), &[0, 0]);
        patch(&path, places.refcount(place / 4096), &[0, 2]);
        let entry = places.number(places.l1()) & !COPIED;
        if place != places.l1() {
            patch(&path, places.l1(), &entry.to_be_bytes());
        }
        assert_more(&path, 1, "cannot share it");
        std::fs::remove_file(&path).unwrap();
    }
}

/// QEMU reads what is missing as zeros, without a word.
#[test]
fn file_cut_inside_its_last_cluster_is_found_though_qemu_does_not() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &["write -P 1 0 300k"]);
    let image = std::fs::read(&path).unwrap();
    std::fs::write(&path, &image[..image.len() - 1]).unwrap();
    assert_more(&path, 1, "the file at");
    // The end of the disk may be missing.
    let path = bench.image("short", "cluster_size=4k", "9728", &["write -P 1 0 9728"]);
    let image = std::fs::read(&path).unwrap();
    std::fs::write(&path, &image[..image.len() / 4096 * 4096]).unwrap();
    assert_sound(&path);
    let end = image.len().next_multiple_of(4096) - 4096 + 1536;
    std::fs::write(&path, &image[..end]).unwrap();
    assert_sound(&path);
    std::fs::write(&path, &image[..end - 1]).unwrap();
    assert_more(&path, 1, "the file at");
}

/// QEMU does not open such an image at all.
#[test]
fn bitmap_entry_that_breaks_a_rule_is_one_corruption() {
    let bench = Bench::new();
    let path = with_bitmaps(&bench);
    let at = Places::of(&path).bitmap();
    let sound = std::fs::read(&path).unwrap();
    for bit in [1, 2, 512, 1 << 56] {
        let entry = Places::of(&path).number(at) | bit;
        patch(&path, at, &entry.to_be_bytes());
        let output = qemu::img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let checked = check(&std::fs::read(&path).unwrap()).unwrap();
        // The cluster that it named is lost.
        assert_eq!((checked.corruptions, checked.leaks), (1, 1));
        std::fs::write(&path, &sound).unwrap();
    }
    // A flag that means nothing.
    patch(&path, Places::of(&path).bitmaps() + 15, &[8]);
    let checked = check(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((checked.corruptions, checked.leaks), (1, 0));
}

/// Bits that mean nothing where they are: QEMU's check says nothing.
#[test]
fn flags_that_no_such_entry_may_have_are_found_though_qemu_does_not() {
    let bench = Bench::new();
    let zero_flag: Damage = |p| (p.l2(0), p.number(p.l2(0)) | 1);
    let unused_but_copied: Damage = |p| (p.l2(100), COPIED);
    for (options, damage, what) in [
        ("compat=0.10", zero_flag, "has the zero flag"),
        ("extended_l2=on", zero_flag, "has reserved bits set: 0x1"),
        ("", unused_but_copied, "but its offset is 0"),
    ] {
        let path = bench.image(what, options, "9M", &WRITES);
        let (at, value) = damage(&Places::of(&path));
        patch(&path, at, &value.to_be_bytes());
        assert_more(&path, 1, what);
    }
}

/// One table, named and naming so often that nobody could follow it: 2^36 entries in 14 megabytes.
#[test]
fn tables_that_are_named_very_often_are_read_once() {
    let cluster = 2 << 20;
    let mut forge = Forge::new(3, 21, 1 << 39);
    let entries = cluster / 8;
    forge.put_u32(36, entries as u32);
    for index in 0..entries {
        forge.put_u64(forge.l1() + 8 * index, COPIED | (3 * cluster as u64));
        forge.entry(index, 2 * cluster as u64);
    }
    let checked = check(&forge.bytes).unwrap();
    assert_eq!(checked.allocated, (entries * entries) as u64);
    assert!(checked.corruptions > 0);
}
