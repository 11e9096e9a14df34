//! What is measured is what a conversion makes, to the byte.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use goldsmith::{Measure, Opener, References, cloud_named};
use goldsmith_testkit::pattern::disk;
use support::{Folder, convert};

/// Formats and options that change how long an image is.
const TARGETS: &[(&str, &[(&str, &str)])] = &[
    ("raw", &[]),
    ("qcow2", &[]),
    ("qcow2", &[("compat", "0.10")]),
    ("qcow2", &[("cluster_size", "512")]),
    ("qcow2", &[("cluster_size", "2M")]),
    ("qcow2", &[("cluster_size", "512"), ("refcount_bits", "64")]),
    ("qcow2", &[("refcount_bits", "1")]),
    ("qcow2", &[("extended_l2", "on")]),
    ("qcow2", &[("preallocation", "metadata")]),
    (
        "qcow2",
        &[("preallocation", "full"), ("cluster_size", "4k")],
    ),
    ("qcow2", &[("data_file", "data")]),
    ("qcow2", &[("data_file", "data"), ("data_file_raw", "on")]),
    (
        "qcow2",
        &[("backing_file", "behind.raw"), ("backing_fmt", "raw")],
    ),
    (
        "qcow2",
        &[
            ("encrypt.format", "luks"),
            ("encrypt.key-secret", "s"),
            ("encrypt.iter-time", "1"),
        ],
    ),
    (
        "qcow2",
        &[
            ("encrypt.format", "luks"),
            ("encrypt.key-secret", "s"),
            ("encrypt.cipher-alg", "aes-128"),
            ("encrypt.iter-time", "1"),
            ("cluster_size", "4k"),
        ],
    ),
    (
        "qcow2",
        &[("encrypt.format", "aes"), ("encrypt.key-secret", "s")],
    ),
    ("vpc", &[]),
    ("vpc", &[("block_size", "512k"), ("batmap", "on")]),
    ("vpc", &[("force_size", "off")]),
    ("vpc", &[("subformat", "fixed")]),
    ("vpc", &[("subformat", "fixed"), ("force_size", "off")]),
    (
        "vpc",
        &[("backing_file", "behind.raw"), ("backing_fmt", "raw")],
    ),
];

/// Zeros among the data, as a file system leaves them, at every distance from units.
const PICTURES: &[&str] = &[
    "0:-",
    "512:A",
    "5M:-",
    "64k:A 128k:- 64k:0 1k:B 3M:0 512:C",
    "3M:A 3M:0 1M:- 100k:B",
    "20M:-  4k:A 8M:0 512:B 2M:C 3584:D",
];

/// A folder with the disk of `picture`, and with another one of that size that shares some of it.
fn folder(picture: &str) -> Folder {
    let folder = Folder::new();
    let disk = disk(picture);
    folder.write("disk.raw", &disk);
    let mut behind = disk.bytes().to_vec();
    for byte in behind.iter_mut().skip(70_000).take(1 << 20) {
        *byte ^= 0x55;
    }
    std::fs::write(folder.path("behind.raw"), behind).unwrap();
    folder
}

#[test]
fn exact_size_is_the_length_of_the_converted_file() {
    for picture in PICTURES {
        let folder = folder(picture);
        for (format, options) in TARGETS {
            let source = folder.path("disk.raw");
            let target = folder.path("target");
            let mut conversion = convert((&source, "raw"), (&target, format))
                .secret("s", "sesame")
                .share(false);
            let mut measure = Measure::new(&source)
                .opener(Opener::new().references(References::Allow))
                .source_format("raw")
                .target_format(*format)
                .secret("s", "sesame");
            for (key, value) in *options {
                conversion = conversion.option(*key, *value);
                // A name counts from the target's directory, and there is no target to be measured.
                let path = folder.text(value);
                let value = match *key {
                    "backing_file" => &path,
                    _ => *value,
                };
                measure = measure.option(*key, value);
            }
            let what = format!("{picture} as {format} {options:?}");
            let converted = conversion
                .run()
                .unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let len = std::fs::metadata(&target).unwrap().len();
            assert_eq!(converted.file_len, len, "{what}");
            let measured = measure
                .run()
                .unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(measured.exact, Some(len), "{what}");
            assert!(measured.required >= len, "{what}: {measured:?}");
            assert!(measured.fully_allocated >= measured.required, "{what}");

            let estimate = measure.exact(false).run().unwrap();
            let known = (measured.required, measured.fully_allocated, None);
            let said = (estimate.required, estimate.fully_allocated, estimate.exact);
            assert_eq!(said, known, "{what}");
        }
    }
}

#[test]
fn full_vhd_is_as_long_as_it_was_said_to_become() {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &disk("9M:A 512:B"));
    for options in [
        &[][..],
        &[("block_size", "512k"), ("batmap", "on")],
        &[("force_size", "off")],
        &[("subformat", "fixed")],
    ] {
        let target = folder.path("target");
        let mut conversion = convert((&source, "raw"), (&target, "vpc")).sparse(0);
        let mut measure = Measure::of_size((9 << 20) + 512).target_format("vpc");
        for (key, value) in options {
            conversion = conversion.option(*key, *value);
            measure = measure.option(*key, *value);
        }
        conversion.run().unwrap();
        let measured = measure.run().unwrap();
        let len = std::fs::metadata(&target).unwrap().len();
        assert_eq!(measured.fully_allocated, len, "{options:?}");
        assert_eq!(measured.exact, Some(measured.required), "{options:?}");
    }
}

#[test]
fn giant_is_measured_by_its_data_alone() {
    let measured = Measure::of_size(2040 << 30)
        .target_format("vpc")
        .run()
        .unwrap();
    let tables = 512 + 1024 + 1_044_480 * 4 + 512;
    assert_eq!(measured.exact, Some(tables));
    assert_eq!(measured.required, tables);
    let measured = Measure::of_size(1 << 40)
        .target_format("qcow2")
        .run()
        .unwrap();
    // Header, L1 table, refcount block, refcount table.
    assert_eq!(measured.exact, Some(4 << 16));
    for preallocation in ["metadata", "full"] {
        let measured = Measure::of_size(1 << 50)
            .target_format("qcow2")
            .option("preallocation", preallocation)
            .run()
            .unwrap();
        // The tables that QEMU reckons with, and what it rounds up.
        let exact = measured.exact.unwrap();
        assert!(
            exact > 1 << 50 && exact <= measured.fully_allocated,
            "{measured:?}"
        );
    }
}

#[test]
fn disk_is_measured_in_the_size_that_the_cloud_takes() {
    let folder = folder("21M:A 100:B");
    let source = folder.path("disk.raw");
    for cloud in ["azure", "xenserver", "hyperv", "kvm", "openstack-raw"] {
        let cloud = cloud_named(cloud).unwrap();
        let target = folder.path("target");
        let conversion = convert((&source, "raw"), (&target, "raw")).cloud(cloud);
        conversion.run().unwrap();
        let measure = Measure::new(&source).source_format("raw").cloud(cloud);
        let len = std::fs::metadata(&target).unwrap().len();
        assert_eq!(measure.run().unwrap().exact, Some(len), "{}", cloud.name);
    }
}
