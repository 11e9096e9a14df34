//! What a check finds, counted as QEMU's counts it.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Checked, ErrorKind, Format, Result};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{hostile, image, pattern, qemu};
use serde_json::Value;

use crate::bench::{Bench, budget};
use crate::forge::COPIED;

pub(crate) fn check(image: &[u8]) -> Result<Checked> {
    let storage = MemoryStorage::holding("image", image.to_vec());
    let checked = QCOW2.check(Arc::new(storage), &budget())?;
    Ok(checked.expect("qcow2 has something to check"))
}

/// The numbers of a report: corruptions, leaks, errors, then the statistics.
pub(crate) type Numbers = [u64; 8];

pub(crate) fn ours(checked: &Checked) -> Numbers {
    [
        checked.corruptions,
        checked.leaks,
        checked.errors,
        checked.units,
        checked.allocated,
        checked.fragmented,
        checked.compressed,
        checked.end,
    ]
}

pub(crate) fn theirs(path: &Path) -> Numbers {
    let path = path.to_str().unwrap();
    let output = qemu::img(&["check", "--output=json", "-f", "qcow2", path]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let number = |key: &str| report.get(key).map_or(0, |value| value.as_u64().unwrap());
    let numbers = [
        number("corruptions"),
        number("leaks"),
        number("check-errors"),
        number("total-clusters"),
        number("allocated-clusters"),
        number("fragmented-clusters"),
        number("compressed-clusters"),
        number("image-end-offset"),
    ];
    let status = match numbers {
        [_, _, (1..), ..] => 1,
        [(1..), ..] => 2,
        [_, (1..), ..] => 3,
        _ => 0,
    };
    assert_eq!(output.status.code(), Some(status));
    numbers
}

/// Both find the same in the image at `path`.
fn assert_same(path: &Path) -> Checked {
    let checked = check(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(ours(&checked), theirs(path), "{:#?}", checked.flaws);
    checked
}

pub(crate) fn assert_sound(path: &Path) {
    let checked = assert_same(path);
    assert_eq!(checked.flaws, [], "{path:?}");
    assert!(checked.allocated > 0);
}

/// Writes of every kind: data in no order, zeros with and without a place, holes.
pub(crate) const WRITES: [&str; 6] = [
    "write -P 1 0 300k",
    "write -P 2 1M 70000",
    "write -P 3 700k 33k",
    "write -z 100k 64k",
    "write -z -u 64k 64k",
    "discard 200k 64k",
];

#[test]
fn sound_images_of_every_shape_are_found_sound_and_counted_as_qemu_counts_them() {
    let bench = Bench::new();
    for options in [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=512,compat=0.10",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=1k,refcount_bits=2",
        "cluster_size=8k,refcount_bits=4",
        "cluster_size=4k,refcount_bits=8",
        "cluster_size=4k,refcount_bits=32",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=2M",
        "cluster_size=16k,extended_l2=on",
        "extended_l2=on",
        "cluster_size=2M,extended_l2=on,refcount_bits=1",
        "preallocation=metadata",
        "cluster_size=4k,lazy_refcounts=on",
        "cluster_size=16k,extended_l2=on,preallocation=metadata",
    ] {
        let path = bench.image("image", options, "9M", &WRITES);
        assert_sound(&path);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn packed_clusters_are_counted_where_they_share_clusters() {
    let disk = pattern::disk("4608:A 3584:- 64k:b 512:- 100k:C 1536:0 130k:- 20k:d 70k:E 300k:F");
    let bench = Bench::new();
    for options in [
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=2M",
        "cluster_size=64k,compression_type=zstd",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=1k,refcount_bits=2",
    ] {
        let path = bench.path("image");
        std::fs::write(&path, qemu::write("qcow2", &disk, &["-c", "-o", options])).unwrap();
        assert!(assert_same(&path).compressed > 0);
        assert_sound(&path);
        // Ours pack more tightly.
        let pairs: Vec<_> = options
            .split(',')
            .filter_map(|o| o.split_once('='))
            .collect();
        std::fs::write(&path, image::write(&QCOW2, &disk, &pairs, true).unwrap()).unwrap();
        assert_sound(&path);
        qemu::io_ok(&path, "qcow2", &["write -P 9 1k 9k", "write -P 8 200k 50k"]);
        assert_sound(&path);
    }
}

/// An image with snapshots, which share tables and clusters.
fn with_snapshots(bench: &Bench, options: &str) -> std::path::PathBuf {
    let path = bench.image("image", options, "9M", &WRITES);
    let text = path.to_str().unwrap();
    for (nth, name) in ["first", "second", "third"].into_iter().enumerate() {
        qemu::img_ok(&["snapshot", "-c", name, text]);
        let writes = [
            format!("write -P 5 {}k 64k", 40 * nth),
            format!("write -P 6 {}M 1k", 3 + nth),
        ];
        qemu::io_ok(&path, "qcow2", &[&writes[0], &writes[1]]);
    }
    path
}

#[test]
fn snapshots_share_clusters_and_are_sound() {
    for options in [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=4",
        "cluster_size=16k,extended_l2=on",
    ] {
        let bench = Bench::new();
        let path = with_snapshots(&bench, options);
        assert_sound(&path);
        let text = path.to_str().unwrap();
        qemu::img_ok(&["snapshot", "-d", "second", text]);
        assert_sound(&path);
        qemu::img_ok(&["snapshot", "-a", "first", text]);
        assert_sound(&path);
    }
}

/// An image with bitmaps that hold something.
pub(crate) fn with_bitmaps(bench: &Bench) -> std::path::PathBuf {
    let path = bench.image("image", "cluster_size=4k", "64M", &[]);
    let text = path.to_str().unwrap();
    qemu::img_ok(&["bitmap", "--add", "-g", "512", text, "fine"]);
    qemu::img_ok(&["bitmap", "--add", text, "coarse"]);
    qemu::io_ok(&path, "qcow2", &WRITES);
    path
}

#[test]
fn bitmaps_are_sound_until_they_are_out_of_date() {
    let bench = Bench::new();
    let path = with_bitmaps(&bench);
    assert_sound(&path);
    // The autoclear bit.
    patch(&path, 95, &[0]);
    let checked = assert_same(&path);
    assert!(checked.leaks > 3 && checked.corruptions == 0);
}

#[test]
fn data_in_another_file_is_not_counted() {
    let bench = Bench::new();
    let options = format!("cluster_size=4k,data_file={}", bench.text("data"));
    let path = bench.image("image", &options, "9M", &WRITES);
    assert_sound(&path);
}

#[test]
fn luks_header_is_counted() {
    let bench = Bench::new();
    let path = bench.text("image");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu::img_ok(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=word",
        "-o",
        options,
        &path,
        "9M",
    ]);
    let checked = check(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(checked.flaws, []);
    // QEMU needs the secret, and then says the same.
    let spec = format!("driver=qcow2,encrypt.key-secret=s,file.filename={path}");
    let said = qemu::img_ok(&[
        "check",
        "--object",
        "secret,id=s,data=word",
        "--image-opts",
        &spec,
    ]);
    let end = format!(
        "No errors were found on the image.\nImage end offset: {}\n",
        checked.end
    );
    assert_eq!(said, end);
}

/// A machine that stopped at once, with refcounts that were to be updated later.
#[test]
fn image_that_was_not_closed_is_counted_as_qemu_counts_it() {
    let bench = Bench::new();
    let path = bench.image(
        "image",
        "cluster_size=4k,lazy_refcounts=on",
        "9M",
        &WRITES[..2],
    );
    let stopped = std::process::Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            "write -P 7 3M 300k",
            "-c",
            "flush",
            "-c",
            "sigraise 9",
        ])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!stopped.status.success());
    assert!(assert_same(&path).corruptions > 0);
}

pub(crate) fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let mut image = std::fs::read(path).unwrap();
    image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    std::fs::write(path, image).unwrap();
}

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

    /// Of the first entry of the first bitmap's table that names a cluster.
    pub(crate) fn bitmap(&self) -> u64 {
        // The extension's data starts behind its head, and names the directory last.
        let kind = 0x2385_2875_u32.to_be_bytes();
        let at = self.image.windows(4).position(|bytes| bytes == kind);
        let directory = self.number(at.unwrap() as u64 + 8 + 16);
        let table = self.number(directory);
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
const DAMAGES: [(&str, Damage); 15] = [
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

#[test]
fn image_that_needs_more_memory_than_allowed_is_refused_with_the_figure() {
    let image = image::write(
        &QCOW2,
        &pattern::disk("8k:A"),
        &[("cluster_size", "512")],
        false,
    );
    let error = hostile::check(&QCOW2, image.unwrap(), 30).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    let said = "over a limit: the count of the uses of every cluster takes ";
    assert!(error.report().starts_with(said), "{error:?}");
}

/// Turns bits of small images round: what a check finds sound can be read.
#[test]
fn image_without_corruptions_can_be_read() {
    let disk = pattern::disk("1k:A 512:- 600:b 900:- 512:C 31k:- 1k:D 300:e");
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=512", "40k", &["write -P 1 1k 5k"]);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let options = [("cluster_size", "512"), ("compat", "0.10")];
    let images = [
        image::write(&QCOW2, &disk, &options, false).unwrap(),
        image::write(&QCOW2, &disk, &options[..1], false).unwrap(),
        std::fs::read(path).unwrap(),
    ];
    let mut sound = 0;
    for image in images {
        for bit in 0..image.len() * 8 {
            // Behind the header, one bit of each byte tells enough, sooner or later each of a number.
            if bit >= 4096 && bit % 9 != 0 {
                continue;
            }
            let mut damaged = image.clone();
            damaged[bit / 8] ^= 0x80 >> (bit % 8);
            let Ok(Some(checked)) = hostile::check(&QCOW2, damaged.clone(), 1 << 20) else {
                continue;
            };
            // What is packed is not looked at.
            if checked.corruptions + checked.errors + checked.compressed == 0 {
                sound += 1;
                let outcome = hostile::survives(&QCOW2, damaged);
                let refused = outcome.refused();
                assert!(
                    refused != Some(ErrorKind::Corrupt),
                    "bit {bit}: {outcome:?}"
                );
            }
        }
    }
    assert!(sound > 1000);
}
