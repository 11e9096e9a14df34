//! Every format, option and kind of disk, held against qemu-img in both directions.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;

use goldsmith::Cache;
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert, guest};

/// A target: format, creation options, compressed.
type Shape = (&'static str, &'static [(&'static str, &'static str)], bool);

const SHAPES: &[Shape] = &[
    ("raw", &[], false),
    ("raw", &[("preallocation", "falloc")], false),
    ("raw", &[("preallocation", "full")], false),
    ("qcow2", &[], false),
    ("qcow2", &[], true),
    ("qcow2", &[("cluster_size", "512")], false),
    ("qcow2", &[("cluster_size", "512")], true),
    ("qcow2", &[("cluster_size", "4k"), ("compat", "0.10")], true),
    ("qcow2", &[("cluster_size", "2M")], false),
    (
        "qcow2",
        &[("cluster_size", "2M"), ("compression_type", "zstd")],
        true,
    ),
    ("qcow2", &[("compression_type", "zstd")], true),
    ("qcow2", &[("refcount_bits", "1")], false),
    (
        "qcow2",
        &[("refcount_bits", "1"), ("cluster_size", "4k")],
        true,
    ),
    (
        "qcow2",
        &[("refcount_bits", "64"), ("cluster_size", "1k")],
        true,
    ),
    ("qcow2", &[("extended_l2", "on")], false),
    (
        "qcow2",
        &[("extended_l2", "on"), ("cluster_size", "16k")],
        true,
    ),
    ("qcow2", &[("preallocation", "metadata")], false),
    (
        "qcow2",
        &[("preallocation", "falloc"), ("lazy_refcounts", "on")],
        false,
    ),
    ("vpc", &[], false),
    ("vpc", &[("subformat", "fixed")], false),
];

/// Disks whose sizes are multiples of a sector and of nothing else.
fn disks() -> Vec<(&'static str, ModelDisk)> {
    [
        ("one sector", "512:A"),
        ("zeros alone", "1M:0 4M:- 512:-"),
        ("data alone", "3M:a 512:B"),
        (
            "mixed",
            "5k:A 60k:- 1M:b 64k:0 3M:- 700k:C 64k:d 128k:- 4k:E 1M:0 1536:F",
        ),
        ("data at the ends", "512:A 9M:- 512:B"),
    ]
    .map(|(name, picture)| (name, disk(picture)))
    .into()
}

/// The size that QEMU reads of our file; an image of ours never grew.
fn qemu_size(path: &str, format: &str) -> u64 {
    let info = qemu::img_ok(&["info", "-f", format, "--output=json", path]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

#[test]
fn qemu_reads_what_we_write() {
    let folder = Folder::new();
    for (name, disk) in disks() {
        let raw = folder.write("disk.raw", &disk);
        for (format, options, compress) in SHAPES {
            let what = format!("{name} as {format} {options:?} compressed={compress}");
            let target = folder.path("target");
            let mut job = convert((&raw, "raw"), (&target, format)).compress(*compress);
            for (key, value) in *options {
                job = job.option(*key, *value);
            }
            job.run()
                .unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            let path = target.to_str().unwrap();
            assert_eq!(qemu_size(path, format), disk.len(), "{what}");
            qemu::compare(&raw, "raw", &target, format);
            if *format == "qcow2" {
                qemu::check(&target);
            }
            assert!(guest(&target, format) == disk.bytes(), "{what}: our reader");
        }
    }
}

#[test]
fn we_read_what_qemu_writes() {
    // Options as qemu-img spells them; it grows a VHD unless it is told not to.
    let shapes: &[(&str, &[&str])] = &[
        ("raw", &[]),
        ("qcow2", &[]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-c", "-o", "cluster_size=512,compat=0.10"]),
        (
            "qcow2",
            &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
        ),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-o", "refcount_bits=1,cluster_size=16k"]),
        ("qcow2", &["-o", "preallocation=metadata"]),
        ("qcow2", &["-o", "lazy_refcounts=on"]),
        ("qcow2", &["-o", "extended_l2=on"]),
        ("qcow2", &["-c", "-o", "extended_l2=on,cluster_size=16k"]),
        ("vpc", &["-o", "force_size=on"]),
        ("vpc", &["-o", "force_size=on,subformat=fixed"]),
    ];
    let folder = Folder::new();
    for (name, disk) in disks() {
        let raw = folder.write("disk.raw", &disk);
        for (format, options) in shapes {
            let image = folder.path("image");
            std::fs::write(&image, qemu::write(format, &disk, options)).unwrap();
            let what = format!("{name} as {format} {options:?}");
            assert!(guest(&image, format) == disk.bytes(), "{what}: our reader");
            let back = folder.path("back.raw");
            convert((&image, format), (&back, "raw")).run().unwrap();
            qemu::compare(&raw, "raw", &back, "raw");
        }
    }
}

/// What qemu-img grew to a CHS size is read at that size, with zeros at the end.
#[test]
fn grown_vhd_of_qemu_is_read_at_the_size_qemu_gave_it() {
    let folder = Folder::new();
    let disk = disk("1M:A 3M:- 512:B");
    for options in [&[][..], &["-o", "subformat=fixed"]] {
        let image = folder.path("image");
        std::fs::write(&image, qemu::write("vpc", &disk, options)).unwrap();
        let size = qemu_size(image.to_str().unwrap(), "vpc");
        assert!(size > disk.len());
        let mut expected = disk.bytes().to_vec();
        expected.resize(size as usize, 0);
        assert!(guest(&image, "vpc") == expected);
    }
}

#[test]
fn backing_chains_of_qemu_are_read_whole() {
    let folder = Folder::new();
    let (base, middle, top) = (
        folder.text("base.raw"),
        folder.text("middle.qcow2"),
        folder.text("top.qcow2"),
    );
    folder.write("base.raw", &disk("1M:A 64k:- 300k:B"));
    let create = |image: &str, backing: &str, format: &str, size: &str| {
        qemu::img_ok(&[
            "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, image, size,
        ]);
    };
    // The middle is longer than its base, the top shorter than the middle.
    create(&middle, &base, "raw", "3M");
    qemu::io_ok(
        &middle,
        "qcow2",
        &[
            "write -P 7 100k 200k",
            "write -z 512k 128k",
            "write -P 8 2M 64k",
        ],
    );
    create(&top, &middle, "qcow2", "2560k");
    qemu::io_ok(
        &top,
        "qcow2",
        &["write -P 9 150k 10k", "write -z 2M 4k", "discard 1M 64k"],
    );

    let (ours, theirs) = (folder.path("ours.raw"), folder.path("theirs.raw"));
    convert((top.as_ref(), "qcow2"), (&ours, "raw"))
        .run()
        .unwrap();
    qemu::img_ok(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        &top,
        theirs.to_str().unwrap(),
    ]);
    assert!(std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap());
}

#[test]
fn target_does_not_depend_on_the_number_of_threads_or_the_cache() {
    let folder = Folder::new();
    // As many claims as take all threads past the cache, where they are the largest.
    let disk =
        disk("5k:A 60k:- 1M:b 64k:0 3M:- 700k:C 64k:d 128k:- 4k:E 1M:0 5M:g 2k:0 6M:h 1536:F");
    let raw = folder.write("disk.raw", &disk);
    for (format, options, compress) in SHAPES {
        let mut seen = None;
        let ways = [1, 2, 3, 8].map(|threads| (threads, Cache::Writeback));
        for (threads, cache) in ways.into_iter().chain([(1, Cache::None), (4, Cache::None)]) {
            let target = folder.path("target");
            let mut job = convert((&raw, "raw"), (&target, format))
                .compress(*compress)
                .cache(cache)
                .threads(NonZeroUsize::new(threads).unwrap());
            for (key, value) in *options {
                job = job.option(*key, *value);
            }
            job.run().unwrap();
            let bytes = std::fs::read(&target).unwrap();
            let first = seen.get_or_insert_with(|| bytes.clone());
            assert!(
                *first == bytes,
                "{format} {options:?}: {threads} threads and {cache:?} change the target"
            );
        }
    }
}

#[test]
fn disk_that_is_no_multiple_of_a_sector_grows_only_if_asked() {
    let folder = Folder::new();
    let disk = disk("100000:A 1:B");
    let raw = folder.write("disk.raw", &disk);
    for format in ["qcow2", "vpc"] {
        let target = folder.path("target");
        let error = convert((&raw, "raw"), (&target, format)).run().unwrap_err();
        assert!(
            error.report().ends_with(&format!(
                "the disk has 100001 bytes, and {format} images hold multiples of 512 bytes; \
                 allow rounding up (--round-up) to add 351 zero bytes"
            )),
            "{}",
            error.report()
        );
        assert!(!target.exists());

        convert((&raw, "raw"), (&target, format))
            .round_up(true)
            .run()
            .unwrap();
        let mut expected = disk.bytes().to_vec();
        expected.resize(100_352, 0);
        assert!(guest(&target, format) == expected);
        assert_eq!(qemu_size(target.to_str().unwrap(), format), 100_352);
        std::fs::remove_file(target).unwrap();
    }
    let copy = folder.path("copy.raw");
    convert((&raw, "raw"), (&copy, "raw")).run().unwrap();
    assert!(std::fs::read(copy).unwrap() == disk.bytes());
}

/// A disk of 64 TiB, far larger than what this machine could visit byte by byte.
#[test]
fn sparse_giant_costs_what_its_data_costs() {
    let folder = Folder::new();
    let (giant, copy) = (folder.text("giant.qcow2"), folder.path("copy.qcow2"));
    qemu::img_ok(&["create", "-q", "-f", "qcow2", &giant, "64T"]);
    qemu::io_ok(&giant, "qcow2", &["write -P 1 0 1M", "write -P 2 32T 1M"]);
    let done = convert((giant.as_ref(), "qcow2"), (&copy, "qcow2"))
        .run()
        .unwrap();
    assert_eq!((done.virtual_size, done.data), (64 << 40, 2 << 20));
    qemu::io_ok(
        &copy,
        "qcow2",
        &["read -P 1 0 1M", "read -P 2 32T 1M", "read -P 0 48T 1M"],
    );
    qemu::check(&copy);
}
