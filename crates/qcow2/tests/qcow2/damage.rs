//! Damage of every kind, found and counted as QEMU finds and counts it.

use std::path::Path;

use goldsmith_testkit::{pattern, qemu};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use crate::bench::Bench;
use crate::check::{WRITES, assert_same, check, judged, ours, patch, with_bitmaps, with_snapshots};
use crate::forge::COPIED;

/// What can be found in an image by its header.
pub(crate) struct Places {
    pub(crate) image: Vec<u8>,
}

impl Places {
    pub(crate) fn of(path: &Path) -> Self {
        let image = std::fs::read(path).unwrap();
        Self { image }
    }

    pub(crate) fn number(&self, at: u64) -> u64 {
        let bytes = &self.image[at as usize..at as usize + 8];
        u64::from_be_bytes(bytes.try_into().unwrap())
    }

    /// Of the entry of the active L1 table.
    pub(crate) fn l1(&self) -> u64 {
        self.number(40)
    }

    /// Of the first L2 table's entry of that number.
    pub(crate) fn l2(&self, index: u64) -> u64 {
        (self.number(self.l1()) & ((1 << 56) - 1)) + 8 * index
    }

    /// Of the directory of bitmaps.
    pub(crate) fn bitmaps(&self) -> u64 {
        // The extension's data starts behind its head, and names the directory last.
        let kind = 0x2385_2875_u32.to_be_bytes();
        let at = self.image.windows(4).position(|bytes| bytes == kind);
        self.number(at.unwrap() as u64 + 8 + 16)
    }

    /// Of the first entry of the first bitmap's table that names a cluster.
    pub(crate) fn bitmap(&self) -> u64 {
        let table = self.number(self.bitmaps());
        (table..)
            .step_by(8)
            .find(|at| self.number(*at) > 1)
            .unwrap()
    }

    /// Of the snapshot table, which begins with the place of an L1 table.
    pub(crate) fn snapshots(&self) -> u64 {
        self.number(64)
    }

    /// Of the refcount table's first entry.
    pub(crate) fn refcount_table(&self) -> u64 {
        self.number(48)
    }

    /// Of the refcount of that cluster, 16 bits wide, in the first block.
    pub(crate) fn refcount(&self, cluster: u64) -> u64 {
        self.number(self.refcount_table()) + 2 * cluster
    }
}

const RESERVED: u64 = 1 << 57;

/// Damage done to an image: the new number of eight bytes at a place.
pub(crate) type Damage = fn(&Places) -> (u64, u64);

/// Each of these is found, and counted as QEMU counts it.
pub(crate) const DAMAGES: [(&str, Damage); 15] = [
    ("copied flag lost", |p| {
        (p.l2(0), p.number(p.l2(0)) & !COPIED)
    }),
    ("copied flag of a table lost", |p| {
        (p.l1(), p.number(p.l1()) & !COPIED)
    }),
    ("cluster twice", |p| (p.l2(0), p.number(p.l2(1)))),
    ("cluster lost", |p| (p.l2(0), 0)),
    ("far behind the end", |p| (p.l2(0), COPIED | 1 << 40)),
    ("right behind the end", |p| {
        let end = (p.image.len() as u64).next_multiple_of(4096);
        (p.l2(0), COPIED | end)
    }),
    ("inside a cluster", |p| (p.l2(0), p.number(p.l2(0)) + 512)),
    ("reserved bits of L2", |p| {
        (p.l2(0), p.number(p.l2(0)) | RESERVED)
    }),
    ("reserved bits of L1", |p| {
        (p.l1(), p.number(p.l1()) | RESERVED)
    }),
    ("table lost", |p| (p.l1(), 0)),
    ("table behind the end", |p| (p.l1(), COPIED | 1 << 40)),
    ("four refcounts lost", |p| (p.refcount(4), 0)),
    ("four refcounts too large", |p| {
        (p.refcount(4), 0x0005_0002_0003_0001)
    }),
    ("reserved bits of the refcount table", |p| {
        (p.refcount_table(), p.number(p.refcount_table()) | 8)
    }),
    ("refcount block behind the end", |p| {
        (p.refcount_table() + 8, 1 << 40)
    }),
];

#[test]
fn damage_is_counted_as_qemu_counts_it() {
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
            let result = std::panic::catch_unwind(|| assert_same(&path));
            let checked = result.unwrap_or_else(|_| panic!("{what}, with snapshots: {snapshots}"));
            let harmless = what == "copied flag lost" && snapshots;
            assert!(harmless || checked.corruptions + checked.leaks > 0);
            std::fs::write(&path, &sound).unwrap();
        }
    }
}

/// As [`DAMAGES`], for the images in which they can be done.
#[test]
fn damage_to_what_few_images_have_is_counted_as_qemu_counts_it() {
    let bench = Bench::new();
    let try_all = |path: &Path, damages: &[(&str, Damage)]| {
        let sound = std::fs::read(path).unwrap();
        for (what, damage) in damages {
            let (at, value) = damage(&Places::of(path));
            patch(path, at, &value.to_be_bytes());
            let result = std::panic::catch_unwind(|| assert_same(path));
            let checked = result.unwrap_or_else(|_| panic!("{what}"));
            assert!(checked.corruptions + checked.leaks > 0, "{what}");
            std::fs::write(path, &sound).unwrap();
        }
    };

    let path = bench.image("extended", "cluster_size=16k,extended_l2=on", "9M", &WRITES);
    let damages: [(&str, Damage); 4] = [
        ("both data and zeros", |p| (p.l2(1), u64::MAX)),
        ("data without a place", |p| (p.l2(0), 0)),
        ("packed, with subclusters", |p| {
            (p.l2(0), 1 << 62 | 0x2_0000)
        }),
        ("inside a cluster", |p| (p.l2(0), p.number(p.l2(0)) + 1024)),
    ];
    try_all(&path, &damages);

    let disk = pattern::disk("100k:C 130k:- 20k:D 64k:b");
    let path = bench.path("packed");
    let image = qemu::write("qcow2", &disk, &["-c", "-o", "cluster_size=4k"]);
    std::fs::write(&path, image).unwrap();
    let damages: [(&str, Damage); 4] = [
        ("packed and copied", |p| {
            (p.l2(0), p.number(p.l2(0)) | COPIED)
        }),
        ("longer", |p| (p.l2(0), p.number(p.l2(0)) + (15 << 58))),
        ("behind the end", |p| (p.l2(0), p.number(p.l2(0)) | 1 << 40)),
        ("over the header", |p| (p.l2(0), 1 << 62)),
    ];
    try_all(&path, &damages);

    let path = with_bitmaps(&bench);
    let damages: [(&str, Damage); 3] = [
        ("bitmap lost", |p| (p.bitmap(), 0)),
        ("bitmap behind the end", |p| (p.bitmap(), 1 << 40)),
        ("bitmap on the header's neighbour", |p| (p.bitmap(), 4096)),
    ];
    try_all(&path, &damages);

    let path = with_snapshots(&bench, "cluster_size=4k");
    let damages: [(&str, Damage); 3] = [
        ("snapshot's table inside a cluster", |p| {
            (p.snapshots(), p.number(p.snapshots()) + 512)
        }),
        ("snapshot's table behind the end", |p| {
            (p.snapshots(), 1 << 40)
        }),
        ("snapshot's table on the active one", |p| {
            (p.snapshots(), p.l1())
        }),
    ];
    try_all(&path, &damages);

    let options = format!("cluster_size=4k,data_file={}", bench.text("data"));
    let path = bench.image("with data", &options, "9M", &WRITES);
    let damages: [(&str, Damage); 2] = [
        ("copied flag lost", |p| {
            (p.l2(1), p.number(p.l2(1)) & !COPIED)
        }),
        ("packed elsewhere", |p| (p.l2(0), 1 << 62 | 4096)),
    ];
    try_all(&path, &damages);

    // A counter of one bit: every further use is one too many.
    let path = bench.image("narrow", "cluster_size=4k,refcount_bits=1", "9M", &WRITES);
    try_all(
        &path,
        &[("cluster twice", |p| (p.l2(0), p.number(p.l2(1))))],
    );
}

#[test]
fn refcounts_that_cannot_be_read_are_errors_of_the_check() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "9M", &WRITES);
    let places = Places::of(&path);
    let entry = places.number(places.refcount_table()) + 512;
    patch(&path, places.refcount_table(), &entry.to_be_bytes());
    let checked = assert_same(&path);
    assert_eq!(checked.errors, places.image.len() as u64 / 4096);
    assert_eq!(checked.corruptions, 1);
}

/// Numbers that may belong to a table, by their places: those that name something in the file.
fn numbers(image: &[u8]) -> Vec<(u64, u64)> {
    let words = image
        .chunks_exact(8)
        .map(|word| u64::from_be_bytes(word.try_into().unwrap()));
    let all = (0..).step_by(8).zip(words);
    // What else is damaged in the header keeps the image from being opened.
    all.filter(|(at, number)| {
        let named = number & !(3 << 62);
        *at >= 112 && *number != 0 && named < image.len() as u64
    })
    .collect()
}

/// Images that are damaged.
const CASES: u32 = 150;

/// Calls `look` with images that are damaged: any bit of any number, or any number in another's place.
pub(crate) fn each_damaged(cases: u32, look: impl Fn(&Path) -> TestCaseResult) {
    let disk = pattern::disk("4608:A 3584:- 64k:b 512:- 100k:C 1536:0 130k:- 20k:d");
    let made = |make: fn(&Bench) -> std::path::PathBuf| {
        let bench = Bench::new();
        std::fs::read(make(&bench)).unwrap()
    };
    let images = [
        qemu::write("qcow2", &disk, &["-c", "-o", "cluster_size=4k"]),
        made(|bench| with_snapshots(bench, "cluster_size=512,refcount_bits=4")),
        made(|bench| with_snapshots(bench, "cluster_size=16k,extended_l2=on")),
        made(with_bitmaps),
    ];
    let images = images.map(|image| (numbers(&image), image));
    let bench = Bench::new();
    let path = bench.path("image");
    let damage = (
        0..images.len(),
        any::<Index>(),
        any::<Index>(),
        0u32..64,
        any::<bool>(),
    );
    let mut runner = TestRunner::new(Config::with_cases(cases));
    let result = runner.run(&damage, |(nth, which, other, bit, flip)| {
        let (numbers, image) = &images[nth];
        let (at, number) = *which.get(numbers);
        let number = if flip {
            number ^ 1 << bit
        } else {
            other.get(numbers).1
        };
        std::fs::write(&path, image).unwrap();
        patch(&path, at, &number.to_be_bytes());
        look(&path)
    });
    result.unwrap();
}

/// Where QEMU finds something, we do, and where we find as much, all of it is the same.
#[test]
fn any_damage_that_qemu_finds_is_found_and_counted_alike() {
    each_damaged(CASES, |path| {
        let checked = check(&std::fs::read(path).unwrap());
        // What QEMU does not even open need not be a matter for a check.
        let Some(theirs) = judged(path) else {
            return Ok(());
        };
        let Ok(checked) = checked else {
            return Err(TestCaseError::fail(format!(
                "{checked:?}, but QEMU: {theirs:?}"
            )));
        };
        let ours = ours(&checked);
        prop_assert!(
            theirs[0] == 0 || ours[0] > 0,
            "{ours:?} {theirs:?} {checked:#?}"
        );
        if ours[0] == theirs[0] || ours[0] == 0 {
            prop_assert_eq!(ours, theirs, "{:#?}", checked);
        }
        Ok(())
    });
}
