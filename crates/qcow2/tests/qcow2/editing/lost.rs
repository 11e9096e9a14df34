//! What a file has lost, or a table that cannot be read named: nothing of it is given up or becomes zeros.

use std::path::Path;

use goldsmith_block::{Edit, ErrorKind, Repair};
use goldsmith_testkit::{pattern, qemu};

use super::repaired::{assert_kept, readable};
use super::{edit, snapshot};
use crate::bench::Bench;
use crate::check::{check, ours, patch, with_bitmaps, with_snapshots};
use crate::damage::{Damage, Places};
use crate::forge::COPIED;

/// Neither mended nor edited: the image at `path` stays as it is.
fn assert_left_alone(path: &Path, what: &str) {
    let before = std::fs::read(path).unwrap();
    for change in [
        Edit::Repair(Repair::Leaks),
        Edit::Repair(Repair::All),
        snapshot("new"),
    ] {
        match edit(path, &change) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}"),
            // There was nothing to give back.
            Ok(()) => assert_eq!(change, Edit::Repair(Repair::Leaks), "{what}"),
        }
        assert!(std::fs::read(path).unwrap() == before, "{what}: {change:?}");
    }
}

/// [qemu] It leaves such entries as they are, too. In a file that becomes longer they would name zeros.
#[test]
fn what_was_truncated_is_not_mended_into_zeros() {
    for refcounts_are_right in [true, false] {
        let bench = Bench::new();
        let path = bench.image("image", "cluster_size=512", "64k", &["write -P 1 0 32k"]);
        let mut image = std::fs::read(&path).unwrap();
        image.truncate(image.len() / 512 * 512 - 5 * 512);
        if !refcounts_are_right {
            let block = Places::of(&path).refcount_table();
            let block = Places::of(&path).number(block) as usize;
            image[block..block + 512].fill(0);
        }
        std::fs::write(&path, &image).unwrap();
        let before = readable(&path);
        assert!(before.iter().filter(|sector| sector.is_none()).count() >= 5);
        for repair in [Repair::Leaks, Repair::All] {
            // Whether there was room for what else is wrong or not.
            let _ = edit(&path, &Edit::Repair(repair));
            assert_kept(&path, &before, "truncated");
            let left = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
            assert!(left[0] >= 5, "{left:?}");
        }
    }
}

/// What the lost part of a table named would be given up, and its clusters be zeros.
#[test]
fn image_that_lost_a_table_or_part_of_it_is_left_alone() {
    let bench = Bench::new();
    let commands = ["write -P 1 0 32k", "write -P 2 40k 8k"];
    let path = bench.image("image", "cluster_size=512", "64k", &commands);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    qemu::io_ok(&path, "qcow2", &["write -P 3 4k 512", "write -P 3 60k 512"]);
    let mut whole = std::fs::read(&path).unwrap();
    let end = whole.len().next_multiple_of(512);
    whole.resize(end, 0);
    let number = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().unwrap());
    let offset = |at: usize| (number(at) & 0x00ff_ffff_ffff_fe00) as usize;
    let (l1, snapshots) = (offset(40), offset(64));
    for (what, table, names_it, left) in [
        ("L2 table", offset(l1), l1, 256),
        ("L2 table", offset(l1), l1, 1),
        ("L2 table", offset(l1), l1, 0),
        ("L1 table", offset(snapshots), snapshots, 8),
        ("L1 table", offset(snapshots), snapshots, 0),
    ] {
        let mut image = whole.clone();
        image.extend_from_within(table..table + left);
        let flags = number(names_it) & COPIED;
        let moved = flags | (end + if left == 0 { 512 } else { 0 }) as u64;
        image[names_it..names_it + 8].copy_from_slice(&moved.to_be_bytes());
        std::fs::write(&path, &image).unwrap();
        let found = check(&image).unwrap();
        let mut told = found.flaws.iter().map(|flaw| format!("{flaw:?}"));
        assert!(
            told.any(|told| told.contains(what) && told.contains("the file ends at")),
            "{found:?}"
        );
        for repair in [Repair::Leaks, Repair::All] {
            let error = edit(&path, &Edit::Repair(repair)).unwrap_err();
            assert!(
                error.report().contains("what is used nobody knows"),
                "{error:?}"
            );
            assert!(std::fs::read(&path).unwrap() == image, "{what}");
        }
    }
}

/// A packed cluster of which sectors are missing unpacks to something else in a file that is longer.
#[test]
fn packed_cluster_that_was_cut_off_is_not_mended_over() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "64k", &["write -c -P 1 0 4k"]);
    let mut image = std::fs::read(&path).unwrap();
    let sound = image.clone();
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    // Behind the file, by less than a cluster; and a refcount is wrong.
    let end = image.len().next_multiple_of(4096);
    image.resize(end, 0);
    let entry = number(l2) & !((1 << 58) - 1) | (end as u64 + 512);
    image[l2..l2 + 8].copy_from_slice(&entry.to_be_bytes());
    std::fs::write(&path, &image).unwrap();
    let before = readable(&path);
    assert!(before[0].is_none());
    for repair in [Repair::Leaks, Repair::All] {
        let error = edit(&path, &Edit::Repair(repair)).unwrap_err();
        assert!(
            error
                .report()
                .ends_with("convert --salvage takes what is left"),
            "{error:?}"
        );
        assert_kept(&path, &before, "packed");
    }
}

/// Zeros behind the end of the file would be taken for the rest of the cluster.
#[test]
fn image_whose_last_packed_cluster_was_cut_is_not_edited() {
    let bench = Bench::new();
    // What does not pack is stored, at the end of the cluster.
    let disk = pattern::disk("24000:A 41536:b");
    let path = bench.path("packed");
    let whole = qemu::write("qcow2", &disk, &["-c"]);
    for lost in [0, 8, 40, 600, 2000, 10_000] {
        // QEMU fills up the last sector.
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        std::fs::write(&path, &whole[..end - lost]).unwrap();
        if lost == 0 {
            edit(&path, &snapshot("new")).unwrap();
            continue;
        }
        let found = check(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(found.corruptions, 1, "{lost}: {found:?}");
        let error = edit(&path, &snapshot("new")).unwrap_err();
        assert!(error.report().contains("truncated"), "{lost}: {error:?}");
        assert!(readable(&path)[0].is_none());
        assert!(std::fs::read(&path).unwrap() == whole[..end - lost]);
    }
}

/// Its bits would be zeros.
#[test]
fn image_whose_last_bits_of_a_bitmap_were_cut_is_left_alone() {
    let bench = Bench::new();
    let path = with_bitmaps(&bench);
    let places = Places::of(&path);
    let mut image = places.image.clone();
    image.resize(image.len().next_multiple_of(4096), 0);
    let end = image.len() as u64;
    let named = places.bitmap() as usize;
    let bits = places.number(named as u64) as usize;
    // The cluster of bits stands last, and most of it is gone.
    image[named..named + 8].copy_from_slice(&end.to_be_bytes());
    image.extend_from_within(bits..bits + 100);
    std::fs::write(&path, &image).unwrap();
    let found = check(&image).unwrap();
    let mut told = found.flaws.iter().map(|flaw| format!("{flaw:?}"));
    assert!(told.any(|told| told.contains("of bitmap") && told.contains("but the file at")));
    let error = edit(&path, &snapshot("new")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    for repair in [Repair::Leaks, Repair::All] {
        let _ = edit(&path, &Edit::Repair(repair));
        let left = std::fs::read(&path).unwrap();
        assert_eq!(left.len(), image.len(), "{repair:?}");
        assert!(left[end as usize..] == image[end as usize..], "{repair:?}");
    }
}

/// What they name is among the leaks then.
#[test]
fn what_a_table_that_cannot_be_read_names_is_not_given_up() {
    let bench = Bench::new();
    let path = with_snapshots(&bench, "cluster_size=4k,lazy_refcounts=on");
    let sound = std::fs::read(&path).unwrap();
    let damages: [(&str, Damage); 6] = [
        ("snapshot's table inside a cluster", |p| {
            (p.snapshots(), p.number(p.snapshots()) + 512)
        }),
        ("snapshot's table behind the end", |p| {
            (p.snapshots(), 1 << 40)
        }),
        ("snapshot's table behind all that can be", |p| {
            (p.snapshots(), 4096_u64.wrapping_neg())
        }),
        ("table inside a cluster", |p| {
            (p.l1(), p.number(p.l1()) + 512)
        }),
        ("table nowhere", |p| (p.l1(), COPIED)),
        ("table behind the end", |p| {
            (p.l1(), p.number(p.l1()) | 1 << 40)
        }),
    ];
    for dirty in [0, 1] {
        for (what, damage) in damages {
            let (at, value) = damage(&Places::of(&path));
            patch(&path, at, &value.to_be_bytes());
            // As a crash leaves it: mended before it is edited.
            patch(&path, 79, &[dirty]);
            let found = check(&std::fs::read(&path).unwrap()).unwrap();
            assert!(found.leaks > 0 && found.corruptions > 0, "{what}");
            assert_left_alone(&path, what);
            std::fs::write(&path, &sound).unwrap();
        }
    }

    let path = with_bitmaps(&bench);
    let sound = std::fs::read(&path).unwrap();
    let damages: [(&str, Damage); 2] = [
        ("bitmap's table inside a cluster", |p| {
            (p.bitmaps(), p.number(p.bitmaps()) + 512)
        }),
        ("bitmap's table behind the end", |p| (p.bitmaps(), 1 << 40)),
    ];
    for (what, damage) in damages {
        let (at, value) = damage(&Places::of(&path));
        patch(&path, at, &value.to_be_bytes());
        assert_left_alone(&path, what);
        std::fs::write(&path, &sound).unwrap();
    }
}

/// The sum of its place and its length is more than there are numbers for.
#[test]
fn snapshots_table_of_any_place_and_length_gets_an_answer() {
    let bench = Bench::new();
    let path = with_snapshots(&bench, "cluster_size=64k");
    let at = Places::of(&path).snapshots();
    for len in [1_u32, 8191, 8192, 4 << 20, u32::MAX] {
        for place in [65_536_u64, 1 << 20].map(u64::wrapping_neg) {
            patch(&path, at, &place.to_be_bytes());
            patch(&path, at + 8, &len.to_be_bytes());
            let found = check(&std::fs::read(&path).unwrap()).unwrap();
            assert!(found.corruptions > 0, "{place:#x} {len}");
            assert_left_alone(&path, "the table");
        }
    }
}

/// [spec] A table without entries may be anywhere.
#[test]
fn empty_table_of_a_snapshot_is_none_that_is_lost() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "0", &[]);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let at = Places::of(&path).snapshots();
    patch(&path, at, &(1_u64 << 40).to_be_bytes());
    patch(&path, at + 8, &0_u32.to_be_bytes());
    // The table that it had is given up.
    edit(&path, &Edit::Repair(Repair::All)).unwrap();
    let left = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
    assert_eq!(left[..3], [0, 0, 0]);
}

/// The state of a machine stands behind the disk, from a table of its own on.
#[test]
fn table_of_the_state_of_a_machine_in_which_the_file_ends_is_lost() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "1M", &["write -P 1 0 64k"]);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let places = Places::of(&path);
    let at = places.snapshots() as usize;
    let l1 = places.number(at as u64) as usize;
    let mut image = places.image;
    image.resize(image.len().next_multiple_of(4096), 0);
    let end = image.len() as u64;
    let state_len = 3 * 4096 + 1;
    image[at + 8..at + 12].copy_from_slice(&2_u32.to_be_bytes());
    // Behind the 40 bytes that every entry has.
    image[at + 40..at + 48].copy_from_slice(&u64::to_be_bytes(state_len));
    image[l1 + 8..l1 + 16].copy_from_slice(&(end + 4 * 4096).to_be_bytes());
    image.extend([7; 4 * 4096]);
    for cluster in 0..4 {
        image.extend((end + cluster * 4096).to_be_bytes());
    }
    for cut in [0, 8] {
        image.truncate(image.len() - cut);
        std::fs::write(&path, &image).unwrap();
        let found = check(&image).unwrap();
        let told = found.flaws.iter().map(|flaw| format!("{flaw:?}"));
        let told = told.filter(|told| told.contains("the L2 table takes"));
        assert_eq!(told.count(), usize::from(cut > 0), "{found:?}");
    }
    assert_left_alone(&path, "state of a machine");
}
