//! Damage that is mended, beside QEMU's mending of the same.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Edit, Format, Layer, Repair};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{FileStorage, MemoryStorage};
use goldsmith_testkit::qemu;
use proptest::prelude::*;

use super::{edit, editor, resize, snapshot, write_over};
use crate::bench::{Bench, budget};
use crate::check::{WRITES, check, judged, ours, patch, with_snapshots};
use crate::damage::{DAMAGES, Places, each_damaged};
use crate::forge::COPIED;

/// Damaged images that are mended.
const CASES: u32 = 60;

/// What can be read of a disk, sector by sector.
pub(super) fn readable(path: &Path) -> Vec<Option<Vec<u8>>> {
    let bytes = std::fs::read(path).unwrap();
    let storage = Arc::new(MemoryStorage::holding("image", bytes));
    let layer = QCOW2.open(storage, &budget()).unwrap();
    let read = |layer: &dyn Layer| {
        let sectors = 0..layer.info().virtual_size / 512;
        let sectors = sectors.map(|sector| {
            let mut bytes = vec![0; 512];
            layer.read_at(512 * sector, &mut bytes).ok().map(|()| bytes)
        });
        sectors.collect::<Vec<_>>()
    };
    let snapshots = 0..layer.info().snapshots.len();
    let snapshots = snapshots.filter_map(|index| layer.snapshot(index, &budget()).ok());
    let all = snapshots.map(|snapshot| read(&*snapshot));
    all.chain([read(&*layer)]).flatten().collect()
}

/// What could be read is the same, and what could not still cannot.
pub(super) fn assert_kept(path: &Path, before: &[Option<Vec<u8>>], what: &str) {
    let after = readable(path);
    assert_eq!(after.len(), before.len(), "{what}");
    for (nth, (after, before)) in after.iter().zip(before).enumerate() {
        assert!(after == before, "{what}: sector {nth} is another");
    }
}

/// Our mending of the image at `path` loses nothing that could be read, and leaves neither more errors
/// than there were nor leaks, nor anything to a second one; or it is refused, because the file was truncated
/// and would become longer. Gives how many errors QEMU finds then.
fn assert_mended(path: &Path, what: &str) -> u64 {
    let before = readable(path);
    let found = ours(&check(&std::fs::read(path).unwrap()).unwrap());
    let mended = edit(path, &Edit::Repair(Repair::All));
    assert_kept(path, &before, what);
    let left = ours(&check(&std::fs::read(path).unwrap()).unwrap());
    assert!(left[0] <= found[0], "{what}: {found:?} became {left:?}");
    if let Err(error) = mended {
        assert!(
            error
                .report()
                .ends_with("convert --salvage takes what is left"),
            "{what}: {error:?}"
        );
        return judged(path).unwrap()[0];
    }
    assert_eq!(left[1..3], [0, 0], "{what}: leaks, errors of the check");
    let mended = std::fs::read(path).unwrap();
    edit(path, &Edit::Repair(Repair::All)).unwrap();
    assert!(
        std::fs::read(path).unwrap() == mended,
        "{what}: a second time"
    );
    let judged = judged(path).unwrap();
    assert_eq!(judged[1], 0, "{what}: leaks that QEMU finds");
    judged[0]
}

#[test]
fn damage_is_mended_as_far_as_qemu_mends_it() {
    for snapshots in [false, true] {
        let bench = Bench::new();
        let path = match snapshots {
            true => with_snapshots(&bench, "cluster_size=4k"),
            false => bench.image("image", "cluster_size=4k", "9M", &WRITES),
        };
        let sound = std::fs::read(&path).unwrap();
        for (what, damage) in DAMAGES {
            let (at, value) = damage(&Places::of(&path));
            patch(&path, at, &value.to_be_bytes());
            let theirs = bench.text("theirs");
            std::fs::copy(&path, &theirs).unwrap();
            // What it cannot mend it says with its status.
            let _ = qemu::img(&["check", "-q", "-r", "all", "-f", "qcow2", &theirs]);
            let left = judged(Path::new(&theirs)).unwrap();
            let ours = assert_mended(&path, what);
            // [ours] QEMU gives up what such a table named.
            let is_left_alone = what == "table behind the end";
            assert!(
                ours <= left[0] || is_left_alone,
                "{what}: QEMU leaves {left:?}"
            );
            std::fs::write(&path, &sound).unwrap();
        }
    }
}

#[test]
fn any_damage_is_mended_without_losing_what_could_be_read() {
    each_damaged(CASES, |path| {
        if judged(path).is_some() && check(&std::fs::read(path).unwrap()).is_ok() {
            assert_mended(path, "random damage");
        }
        Ok(())
    });
}

/// Refcounts that stand where guest data is said to be, too, leave it to that. What the data is marked as
/// then was found by a second mending only.
#[test]
fn guest_data_on_a_table_is_mended_at_once() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
    let places = Places::of(&path);
    let sound = std::fs::read(&path).unwrap();
    let table = places.number(places.refcount_table());
    let l1 = places.l1();
    let l2 = places.number(l1) & !COPIED;
    for (what, cluster) in [
        ("refcount table", places.refcount_table()),
        ("refcount block", table),
        ("L1 table", l1),
        ("L2 table", l2),
    ] {
        for marked in [0, COPIED] {
            patch(&path, places.l2(1), &(marked | cluster).to_be_bytes());
            assert_mended(&path, what);
            std::fs::write(&path, &sound).unwrap();
        }
    }
}

#[test]
fn leaks_alone_are_mended_alone() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
    let places = Places::of(&path);
    // A lost cluster is a leak; a flag that is wrong is an error.
    patch(&path, places.l2(0), &0u64.to_be_bytes());
    let flag = places.number(places.l2(1)) & !(1 << 63);
    patch(&path, places.l2(1), &flag.to_be_bytes());
    let before = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
    assert!(before[0] == 1 && before[1] == 1);
    edit(&path, &Edit::Repair(Repair::Leaks)).unwrap();
    let after = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
    assert_eq!(after[..2], [1, 0]);
    edit(&path, &Edit::Repair(Repair::All)).unwrap();
    qemu::check(&path);
}

/// Counted four times, a cluster is rightly not marked as copied; counted once, it would not be.
#[test]
fn what_has_one_user_after_its_leak_is_mended_says_so() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
    let places = Places::of(&path);
    let named = places.number(places.l2(0)) & !COPIED;
    patch(&path, places.l2(0), &named.to_be_bytes());
    patch(&path, places.refcount(named / 4096), &4u16.to_be_bytes());
    let before = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
    assert!(before[0] == 0 && before[1] > 0);
    edit(&path, &Edit::Repair(Repair::Leaks)).unwrap();
    let after = ours(&check(&std::fs::read(&path).unwrap()).unwrap());
    assert_eq!(after[..2], [0, 0]);
    qemu::check(&path);
}

/// Nothing comes to stand where guest data is said to be, or behind it.
#[test]
fn mending_keeps_off_what_is_named_behind_the_file() {
    for repair in [Repair::All, Repair::Leaks] {
        let bench = Bench::new();
        let path = bench.image("image", "cluster_size=4k", "1M", &["write -P 7 0 1M"]);
        let places = Places::of(&path);
        let end = places.image.len() as u64;
        for (entry, behind) in [(3, 1), (4, 2), (5, 4)] {
            let named = COPIED | (end + behind * 4096);
            patch(&path, places.l2(entry), &named.to_be_bytes());
        }
        let before = readable(&path);
        let error = edit(&path, &Edit::Repair(repair)).unwrap_err();
        let report = error.report();
        assert!(
            report.contains("make zeros of what should stand at"),
            "{report}"
        );
        assert_kept(&path, &before, &format!("{repair:?}"));
    }
}

/// What is in use stays, counted or not: also where the file is cut off behind what is counted.
#[test]
fn mending_leaks_alone_keeps_what_is_not_counted() {
    let bench = Bench::new();
    let commands = ["write -P 7 0 1M", "discard 0 512k"];
    let path = bench.image("image", "cluster_size=4k", "1M", &commands);
    let places = Places::of(&path);
    patch(&path, places.l2(130), &0u64.to_be_bytes());
    let last = places.number(places.l2(255)) & ((1 << 56) - 1);
    assert_eq!(last + 4096, places.image.len() as u64);
    patch(&path, places.refcount(last / 4096), &0u16.to_be_bytes());
    let before = readable(&path);
    edit(&path, &Edit::Repair(Repair::Leaks)).unwrap();
    assert_kept(&path, &before, "leaks");
    assert_mended(&path, "a cluster that is not counted");
}

/// A header that says that refcounts are narrower than they are: some clusters are used more often
/// than can be counted.
#[test]
fn mending_keeps_what_is_used_more_often_than_can_be_counted() {
    for order in 0..2u32 {
        let bench = Bench::new();
        let path = with_snapshots(&bench, "cluster_size=4k");
        patch(&path, 96, &order.to_be_bytes());
        patch(&path, Places::of(&path).refcount(0), &[0xff; 64]);
        let before = readable(&path);
        for repair in [Repair::All, Repair::All, Repair::Leaks] {
            edit(&path, &Edit::Repair(repair)).unwrap();
            assert_kept(&path, &before, &format!("{order} {repair:?}"));
        }
        // Nobody writes over what a snapshot has, too.
        let error = edit(&path, &snapshot("more")).unwrap_err();
        assert!(
            error.report().contains("check -r all"),
            "{}",
            error.report()
        );
    }
}

/// What was one cluster twice is mended by counting it twice. When one of the two goes, the other has
/// the cluster for itself.
#[test]
fn cluster_that_is_no_longer_shared_is_marked_so() {
    for snapshots in [false, true] {
        let bench = Bench::new();
        let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
        let places = Places::of(&path);
        patch(
            &path,
            places.l2(1),
            &places.number(places.l2(0)).to_be_bytes(),
        );
        patch(
            &path,
            places.l1() + 16,
            &places.number(places.l1()).to_be_bytes(),
        );
        edit(&path, &Edit::Repair(Repair::All)).unwrap();
        qemu::check(&path);
        if snapshots {
            edit(&path, &snapshot("one")).unwrap();
        }
        let mended = std::fs::read(&path).unwrap();
        for size in [5 << 20, 1024] {
            edit(&path, &resize(size)).unwrap();
            qemu::check(&path);
            std::fs::write(&path, &mended).unwrap();
        }
        let storage = Arc::new(FileStorage::edit(&path).unwrap());
        let parts = [(0, 4096, 5), (4 << 20, (4 << 20) + 8192, 0)];
        write_over(editor(storage), 9 << 20, &parts);
        qemu::check(&path);
    }
}

/// An image whose refcounts cannot be trusted says where free space is where none is.
#[test]
fn damaged_image_is_not_edited_until_it_is_mended() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
    let places = Places::of(&path);
    patch(&path, places.refcount(4), &0u64.to_be_bytes());
    let damaged = std::fs::read(&path).unwrap();
    for change in [resize(20 << 20), snapshot("one"), Edit::Empty] {
        let error = edit(&path, &change).unwrap_err();
        assert!(
            error.report().contains("check -r all"),
            "{}",
            error.report()
        );
        assert!(std::fs::read(&path).unwrap() == damaged);
    }
    edit(&path, &Edit::Repair(Repair::All)).unwrap();
    edit(&path, &snapshot("one")).unwrap();
    qemu::check(&path);
}

/// A writer that was to update refcounts later and never did.
#[test]
fn dirty_image_is_mended_before_it_is_edited() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k,lazy_refcounts=on", "9M", &WRITES);
    let places = Places::of(&path);
    patch(&path, places.refcount(4), &0u64.to_be_bytes());
    patch(&path, 72, &1u64.to_be_bytes());
    edit(&path, &snapshot("one")).unwrap();
    qemu::check(&path);
    assert_eq!(super::Head::read(&path).incompatible, 0);
    assert_eq!(super::Head::read(&path).compatible, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever the refcounts are, all of them can be counted anew.
    #[test]
    fn lost_refcounts_are_counted_anew(entry: u64, index in 0u64..4) {
        let bench = Bench::new();
        let path = with_snapshots(&bench, "cluster_size=512,refcount_bits=8");
        patch(&path, Places::of(&path).refcount_table() + 8 * index, &entry.to_be_bytes());
        let before = readable(&path);
        edit(&path, &Edit::Repair(Repair::All)).unwrap();
        qemu::check(&path);
        prop_assert!(readable(&path) == before);
    }
}
