//! Tables that stand on each other, lead in circles, or are larger than any may be.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Budget, ErrorKind, Format, Limits, Storage, StorageMut};
use goldsmith_qcow2::QCOW2;
use goldsmith_testkit::hostile::survives;
use goldsmith_testkit::qemu;
use goldsmith_testkit::sparse::SparseStorage;

use crate::bench::{Bench, budget};
use crate::check::{Numbers, WRITES, check, judged, ours, patch, with_bitmaps, with_snapshots};
use crate::damage::{Damage, Places};
use crate::forge::{COPIED, Forge};

/// One structure in the place of another.
const OVERLAPS: [(&str, Damage); 15] = [
    ("refcount block on the refcount table", |p| {
        (p.refcount_table(), p.refcount_table())
    }),
    ("refcount block on the one before", |p| {
        (p.refcount_table() + 8, p.number(p.refcount_table()))
    }),
    ("refcount block on the L1 table", |p| {
        (p.refcount_table() + 8, p.l1())
    }),
    ("refcount block on an L2 table", |p| {
        (p.refcount_table() + 8, p.l2(0))
    }),
    ("refcount block on data", |p| {
        (p.refcount_table() + 8, p.number(p.l2(0)) & !COPIED)
    }),
    ("refcount table on the L1 table", |p| (48, p.l1())),
    ("refcount table on its block", |p| {
        (48, p.number(p.refcount_table()))
    }),
    ("L1 table on the refcount table", |p| {
        (40, p.refcount_table())
    }),
    ("L1 table on an L2 table", |p| (40, p.l2(0))),
    ("L2 table on the L1 table", |p| (p.l1(), COPIED | p.l1())),
    ("L2 table on the next one", |p| {
        (p.l1(), p.number(p.l1() + 8))
    }),
    ("L2 table on a refcount block", |p| {
        (p.l1(), COPIED | p.number(p.refcount_table()))
    }),
    ("data on the L1 table", |p| (p.l2(0), COPIED | p.l1())),
    ("data on its own L2 table", |p| (p.l2(0), COPIED | p.l2(0))),
    ("data on the refcount table", |p| {
        (p.l2(0), COPIED | p.refcount_table())
    }),
];

/// Makes an image.
type Make = fn(&Bench) -> std::path::PathBuf;
/// Spoils one.
type Change = fn(&mut Forge);

/// What QEMU reads from the image at `path`, if it reads all of it.
fn qemu_reads(path: &Path) -> Option<Vec<u8>> {
    let raw = path.with_extension("raw");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let output = qemu::img(&["convert", "-f", "qcow2", "-O", "raw", from, to]);
    let bytes = output
        .status
        .success()
        .then(|| std::fs::read(&raw).unwrap());
    let _ = std::fs::remove_file(raw);
    bytes
}

/// The damaged image at `path` gets an answer: what QEMU reads, or a refusal; and a check finds
/// harm where QEMU's finds some.
fn assert_answered(path: &Path, what: &str) {
    let bytes = std::fs::read(path).unwrap();
    let outcome = survives(&QCOW2, bytes.clone());
    let same = qemu_reads(path).is_some_and(|theirs| outcome.reads_as(&theirs));
    assert!(same || outcome.refused().is_some(), "{what}");
    match check(&bytes) {
        Ok(checked) => {
            let found = ours(&checked);
            let harm = |numbers: Numbers| numbers[0] + numbers[2];
            assert!(harm(found) + found[1] > 0, "{what}: {checked:#?}");
            if let Some(theirs) = judged(path) {
                let known = harm(theirs) == 0 || harm(found) > 0;
                assert!(known, "{what}: {theirs:?}, {checked:#?}");
            }
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}"),
    }
}

#[test]
fn tables_that_stand_on_each_other_are_found_and_read_or_refused() {
    let bench = Bench::new();
    for (options, size) in [
        ("cluster_size=4k", "9M"),
        ("cluster_size=512,refcount_bits=64", "2M"),
        ("cluster_size=16k,extended_l2=on", "9M"),
    ] {
        let writes = match size {
            "9M" => &WRITES[..],
            _ => &["write 0 100k", "write 1M 100k"],
        };
        let path = bench.image("image", options, size, writes);
        let sound = std::fs::read(&path).unwrap();
        for (what, damage) in OVERLAPS {
            let (at, value) = damage(&Places::of(&path));
            patch(&path, at, &value.to_be_bytes());
            assert_answered(&path, &format!("{what}, {options}"));
            std::fs::write(&path, &sound).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn lists_that_stand_on_tables_are_refused_or_found() {
    let bench = Bench::new();
    let lists: [(&str, Make, Damage); 4] = [
        (
            "snapshots on the L1 table",
            |b| with_snapshots(b, "cluster_size=4k"),
            |p| (64, p.l1()),
        ),
        (
            "snapshots on the refcount table",
            |b| with_snapshots(b, "cluster_size=4k"),
            |p| (64, p.refcount_table()),
        ),
        (
            "a snapshot's L1 table on its L2 table",
            |b| with_snapshots(b, "cluster_size=4k"),
            |p| (p.snapshots(), p.l2(0)),
        ),
        ("the table of a bitmap on the L1 table", with_bitmaps, |p| {
            (p.bitmaps(), p.l1())
        }),
    ];
    for (what, make, damage) in lists {
        let path = make(&bench);
        let (at, value) = damage(&Places::of(&path));
        patch(&path, at, &value.to_be_bytes());
        let bytes = std::fs::read(&path).unwrap();
        survives(&QCOW2, bytes.clone());
        match check(&bytes) {
            Ok(checked) => assert!(
                checked.corruptions + checked.errors > 0,
                "{what}: {checked:#?}"
            ),
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::Corrupt | ErrorKind::Limit),
                    "{what}: {error:?}"
                );
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}

/// All of its 262144 entries name the table as their block.
#[test]
fn refcount_table_that_counts_itself_is_an_answer_in_no_time() {
    let mut forge = Forge::new(3, 21, 1 << 21);
    let cluster = 1u64 << 21;
    for index in 0..(cluster / 8) as usize {
        forge.put_u64(cluster as usize + 8 * index, cluster);
    }
    let checked = check(&forge.bytes).unwrap();
    assert!(checked.corruptions > 0);
    survives(&QCOW2, forge.bytes);
}

/// A file as long as its header needs it, of which only the header takes space.
fn sparse(forge: &Forge, len: u64) -> Arc<SparseStorage> {
    let storage = SparseStorage::new();
    storage.write_at(0, &forge.bytes).unwrap();
    storage.set_len(len).unwrap();
    Arc::new(storage)
}

/// All of these are in their file, so nothing but their size is wrong.
#[test]
fn tables_larger_than_any_may_be_are_refused_though_the_file_holds_them() {
    let forge = || Forge::new(3, 16, 1 << 20);
    let with = |change: Change| {
        let mut forge = forge();
        change(&mut forge);
        sparse(&forge, 1 << 50)
    };
    let cases: [(Change, &str); 6] = [
        (
            |f| f.put_u32(36, u32::MAX),
            "the L1 table takes 34359738360 bytes; at most 33554432",
        ),
        (
            |f| f.put_u32(36, (4 << 20) + 1),
            "the L1 table takes 33554440 bytes; at most 33554432",
        ),
        (
            |f| f.put_u32(56, u32::MAX),
            "the refcount table takes 281474976645120 bytes; at most 8388608",
        ),
        (
            |f| f.put_u32(56, 129),
            "the refcount table takes 8454144 bytes; at most 8388608",
        ),
        (
            |f| {
                f.put_u32(60, 65537);
                f.put_u64(64, 1 << 40);
            },
            "the snapshot table takes 2621480 bytes; at most 2621440",
        ),
        (
            |f| {
                // As many as may be.
                f.put_u32(60, 65536);
                f.put_u64(64, 1 << 40);
            },
            "",
        ),
    ];
    for (change, rule) in cases {
        let storage = with(change);
        let opened = QCOW2.open(Arc::clone(&storage) as Arc<dyn Storage>, &budget());
        if rule.is_empty() {
            // Entries of zeros are entries.
            assert_eq!(opened.unwrap().info().snapshots.len(), 65536);
            continue;
        }
        let error = opened.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.report().contains(rule), "{}", error.report());
        assert_eq!(
            QCOW2.check(storage, &budget()).unwrap_err().kind(),
            ErrorKind::Limit
        );
    }
}

/// An L1 table of the greatest size is allowed, and paid for.
#[test]
fn largest_l1_table_is_paid_for() {
    let mut forge = Forge::new(3, 16, 1 << 20);
    forge.put_u32(36, 4 << 20);
    forge.put_u64(24, 1 << 51);
    let storage = sparse(&forge, 1 << 30);
    let mut limits = Limits::default();
    for (bytes, fits) in [(32 << 20, false), (36 << 20, true)] {
        limits.metadata_bytes = bytes;
        let opened = QCOW2.open(Arc::clone(&storage) as _, &Budget::new(&limits));
        match opened {
            Ok(layer) => assert!(fits && layer.info().virtual_size == 1 << 51),
            Err(error) => {
                assert!(!fits);
                assert_eq!(error.kind(), ErrorKind::Limit, "{error:?}");
            }
        }
    }
}
