//! QEMU's word on our images, and ours on QEMU's.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use goldsmith_block::{Chain, ExtentKind, Format, Storage};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::walk;
use goldsmith_testkit::model::any_disk;
use goldsmith_testkit::{ModelDisk, image, pattern, qemu};
use proptest::test_runner::{Config, TestRunner};

use crate::bench::{Bench, assert_same, open, qemu_reads};

/// QEMU finds our image of `disk` sound, and in it the disk.
fn assert_accepted(disk: &ModelDisk, options: &[(&str, &str)], compress: bool) {
    let bench = Bench::new();
    let (path, raw) = (bench.path("image"), bench.path("disk"));
    let image = image::write(&QCOW2, disk, options, compress).unwrap();
    std::fs::write(&path, image).unwrap();
    std::fs::write(&raw, disk.bytes()).unwrap();
    let context = format!("{disk:?} with {options:?}, compressed: {compress}");
    let result = std::panic::catch_unwind(|| {
        qemu::check(&path);
        let (path, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
        let said = qemu::img_ok(&["compare", "-f", "qcow2", "-F", "raw", path, raw]);
        assert_eq!(said, "Images are identical.\n");
    });
    result.unwrap_or_else(|_| panic!("{context}"));
}

/// Data of each kind, holes, borders on and off the clusters, and an end inside one.
const MIXED: &str = "4608:A 3584:- 64k:b 512:- 100k:C 1536:0 130k:- 20k:d 70k:E 8k:- 300k:F 512:g";
const ALL_DATA: &str = "200k:A 200k:b 200k:C 1536:d";

#[test]
fn our_plain_images_are_sound_at_every_cluster_size() {
    for bits in 9..=21 {
        let size = (1u64 << bits).to_string();
        for compat in ["0.10", "1.1"] {
            let options = [("cluster_size", &*size), ("compat", compat)];
            assert_accepted(&pattern::disk(MIXED), &options, false);
        }
    }
}

#[test]
fn our_compressed_images_are_sound_at_every_cluster_size() {
    for bits in 9..=21 {
        let size = (1u64 << bits).to_string();
        let zstd = [("cluster_size", &*size), ("compression_type", "zstd")];
        assert_accepted(&pattern::disk(MIXED), &zstd, true);
        let v2 = [("cluster_size", &*size), ("compat", "0.10")];
        assert_accepted(&pattern::disk(MIXED), &v2, true);
    }
}

#[test]
fn our_images_are_sound_at_every_refcount_width() {
    for bits in ["1", "2", "4", "8", "16", "32", "64"] {
        for cluster_size in ["512", "4k"] {
            let options = [("cluster_size", cluster_size), ("refcount_bits", bits)];
            for picture in [MIXED, ALL_DATA] {
                assert_accepted(&pattern::disk(picture), &options, false);
                assert_accepted(&pattern::disk(picture), &options, true);
            }
        }
    }
}

#[test]
fn our_images_are_sound_with_subclusters() {
    for cluster_size in ["16k", "64k", "2M"] {
        for more in [&[][..], &[("refcount_bits", "1"), ("lazy_refcounts", "on")]] {
            let options = [("cluster_size", cluster_size), ("extended_l2", "on")];
            let options = [&options, more].concat();
            for picture in [MIXED, ALL_DATA, "40k:- 512:A 300k:- 512:b"] {
                assert_accepted(&pattern::disk(picture), &options, false);
                assert_accepted(&pattern::disk(picture), &options, true);
            }
        }
    }
}

#[test]
fn our_images_are_sound_when_laid_out_in_advance() {
    for preallocation in ["metadata", "falloc", "full"] {
        for more in [
            &[][..],
            &[("extended_l2", "on")],
            &[("cluster_size", "512"), ("refcount_bits", "64")],
            &[("cluster_size", "2M")],
            &[("compat", "0.10")],
        ] {
            let options = [&[("preallocation", preallocation)], more].concat();
            for picture in [MIXED, ALL_DATA, "3M:-", "0:-", "1M:- 512:A"] {
                let disk = pattern::disk(picture);
                assert_accepted(&disk, &options, false);
                let image = image::write(&QCOW2, &disk, &options, false).unwrap();
                let layer = image::open(&QCOW2, image).unwrap();
                let subclusters = more.contains(&("extended_l2", "on"));
                let extents = walk(&*layer, 0, disk.len(), usize::MAX).unwrap();
                let placed = |kind| matches!(kind, ExtentKind::Data { .. });
                assert!(subclusters || extents.iter().all(|extent| placed(extent.kind)));
            }
        }
    }
}

/// Our images of `disk` with a data file: QEMU finds them sound, and in them the disk.
fn assert_data_file_accepted(disk: &ModelDisk, options: &[(&str, &str)]) {
    let bench = Bench::new();
    let (path, data, raw) = (bench.path("image"), bench.text("data"), bench.path("disk"));
    let options = [&[("data_file", &*data)], options].concat();
    let mut spec = image::spec(&QCOW2, disk.len(), &options, false).unwrap();
    let (file, content) = (memory("image"), memory("data"));
    spec.data = Some(content.clone());
    image::drive(QCOW2.create(file.clone(), &spec).unwrap(), disk).unwrap();
    assert_eq!(content.len(), disk.len());
    std::fs::write(&path, file.to_vec()).unwrap();
    std::fs::write(&data, content.to_vec()).unwrap();
    std::fs::write(&raw, disk.bytes()).unwrap();
    qemu::check(&path);
    qemu::compare(&path, "qcow2", &raw, "raw");
    assert!(image::read(&*open(&path)).unwrap() == disk.bytes());
    if options.contains(&("data_file_raw", "on")) {
        assert!(content.to_vec() == disk.bytes());
    }
}

fn memory(name: &str) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(name))
}

#[test]
fn our_images_are_sound_with_data_in_another_file() {
    for more in [
        &[][..],
        &[("data_file_raw", "on")],
        &[("extended_l2", "on")],
        &[("extended_l2", "on"), ("data_file_raw", "on")],
        &[("cluster_size", "512"), ("preallocation", "falloc")],
        &[("cluster_size", "2M"), ("preallocation", "full")],
    ] {
        for picture in [MIXED, ALL_DATA, "3M:-", "1M:- 512:A"] {
            assert_data_file_accepted(&pattern::disk(picture), more);
        }
    }
}

#[test]
fn our_images_are_sound_for_disks_of_one_kind_and_of_hardly_any() {
    for picture in [
        "0:-", "512:A", "512:-", "64k:b", "1M:0", "3M:-", "1536k:C", "2M:d",
    ] {
        for compress in [false, true] {
            assert_accepted(&pattern::disk(picture), &[], compress);
        }
    }
}

#[test]
fn our_images_are_sound_where_data_is_far_apart() {
    let bench = Bench::new();
    for (cluster_size, hole) in [("512", "50G"), ("4k", "3T"), ("64k", "64T"), ("2M", "64T")] {
        let disk = pattern::disk(&format!("4k:A {hole}:- 1M:b {hole}:- 512:C"));
        let options = [("cluster_size", cluster_size)];
        let image = image::write(&QCOW2, &disk, &options, false).unwrap();
        let path = bench.path(cluster_size);
        std::fs::write(&path, image).unwrap();
        qemu::check(&path);
        let mut last = [0; 512];
        disk.read_at(disk.len() - 512, &mut last);
        // QEMU copies the end to a file of its own.
        let out = bench.text("end");
        let skip = format!("skip={}", disk.len() / 512 - 1);
        let (from, to) = (format!("if={}", path.display()), format!("of={out}"));
        qemu::img_ok(&[
            "dd", "-f", "qcow2", "-O", "raw", "bs=512", &skip, &from, &to,
        ]);
        assert_eq!(std::fs::read(out).unwrap(), last);
    }
}

#[test]
fn any_disk_of_ours_is_sound() {
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let bits = proptest::sample::select(vec!["1", "2", "4", "8", "16", "32", "64"]);
    let sizes = proptest::sample::select(vec!["512", "1k", "4k", "32k"]);
    let codecs = proptest::sample::select(vec!["zlib", "zstd"]);
    let strategy = (any_disk(400 << 10, 512), bits, sizes, codecs, 0..2);
    TestRunner::new(config)
        .run(&strategy, |(disk, bits, size, codec, compress)| {
            let options = [
                ("refcount_bits", bits),
                ("cluster_size", size),
                ("compression_type", codec),
            ];
            assert_accepted(&disk, &options, compress == 1);
            Ok(())
        })
        .unwrap();
}

#[test]
fn disk_that_ends_inside_a_sector_keeps_its_last_bytes() {
    let disk = pattern::disk("100000:A 100003:b");
    for compress in [false, true] {
        let image = image::write(&QCOW2, &disk, &[], compress).unwrap();
        qemu::check_bytes(&image);
        assert!(qemu::read("qcow2", &image)[..] == disk.bytes()[..200_003 / 512 * 512]);
        let layer = image::open(&QCOW2, image).unwrap();
        assert!(image::read(&*layer).unwrap() == disk.bytes());
    }
}

#[test]
fn qemus_plain_images_read_the_same_at_every_cluster_size() {
    let disk = pattern::disk(MIXED);
    for bits in 9..=21 {
        for compat in ["0.10", "1.1"] {
            let options = format!("cluster_size={},compat={compat}", 1 << bits);
            let image = qemu::write("qcow2", &disk, &["-o", &options]);
            let layer = image::open(&QCOW2, image).unwrap();
            assert!(image::read(&*layer).unwrap() == disk.bytes(), "{options}");
        }
    }
}

#[test]
fn qemus_compressed_images_read_the_same_at_every_cluster_size() {
    let disk = pattern::disk(MIXED);
    for bits in 9..=21 {
        for codec in [
            "compression_type=zstd",
            "compression_type=zlib",
            "compat=0.10",
        ] {
            let options = format!("cluster_size={},{codec}", 1 << bits);
            let image = qemu::write("qcow2", &disk, &["-c", "-o", &options]);
            let layer = image::open(&QCOW2, image).unwrap();
            assert!(image::read(&*layer).unwrap() == disk.bytes(), "{options}");
            let extents = walk(&*layer, 0, disk.len(), usize::MAX).unwrap();
            let packed = |kind: &ExtentKind| matches!(kind, ExtentKind::Compressed { .. });
            assert!(
                extents.iter().any(|extent| packed(&extent.kind)),
                "{options}"
            );
        }
    }
}

#[test]
fn zero_clusters_read_as_zeros_with_and_without_a_place() {
    let bench = Bench::new();
    let commands = [
        "write -P 0x51 0 512k",
        "write -z 64k 64k",
        "write -z -u 192k 64k",
        "write -z 640k 128k",
        "discard 320k 64k",
        "write -P 0x52 70k 4k",
    ];
    for cluster_size in ["512", "4k", "64k", "2M"] {
        let options = format!("cluster_size={cluster_size}");
        let layer = assert_same(&bench.image("image", &options, "3M", &commands));
        if cluster_size == "4k" {
            let kind = |offset| layer.extent_at(offset, offset + 1).unwrap().kind;
            let zero = |host: bool| {
                move |kind| match kind {
                    ExtentKind::Zero {
                        allocated: true,
                        host: found,
                    } => found.is_some() == host,
                    _ => false,
                }
            };
            assert!(zero(true)(kind(100 << 10)));
            assert!(zero(false)(kind(200 << 10)));
            assert!(zero(false)(kind(700 << 10)));
            assert_eq!(kind(1 << 20), ExtentKind::Unallocated);
        }
    }
}

#[test]
fn compressed_clusters_next_to_plain_ones_and_over_them_read_the_same() {
    let bench = Bench::new();
    for options in [
        "",
        "compression_type=zstd",
        "cluster_size=4k",
        "compat=0.10",
    ] {
        let commands = [
            "write -c -P 1 0 64k",
            "write -c -P 2 64k 64k",
            "write -P 3 128k 64k",
            "write -c -P 4 192k 64k",
            "write -P 5 70k 1k",
            "write -c -P 6 960k 40k",
        ];
        assert_same(&bench.image("image", options, "1000k", &commands));
    }
}

#[test]
fn images_that_qemu_laid_out_in_advance_read_the_same() {
    let bench = Bench::new();
    for preallocation in ["metadata", "falloc", "full"] {
        let options = format!("preallocation={preallocation}");
        for size in ["1M", "1000k"] {
            assert_same(&bench.image("image", &options, size, &["write -P 7 100k 30k"]));
        }
    }
}

#[test]
fn snapshots_bitmaps_and_resizing_do_not_show() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &["write -P 1 0 300k"]);
    let text = path.to_str().unwrap();
    qemu::img_ok(&["snapshot", "-c", "before", text]);
    qemu::io_ok(text, "qcow2", &["write -P 2 100k 300k"]);
    qemu::img_ok(&["bitmap", "--add", text, "changes"]);
    qemu::io_ok(text, "qcow2", &["write -P 3 500k 3k"]);
    qemu::img_ok(&["resize", "-q", "-f", "qcow2", text, "1100k"]);
    assert_same(&path);
}

#[test]
fn image_that_was_not_closed_is_dirty_and_reads_the_same() {
    let bench = Bench::new();
    let path = bench.image("image", "lazy_refcounts=on", "1M", &[]);
    assert!(!open(&path).info().dirty);
    let killed = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 5 100k 200k", "-c", "flush"])
        .args(["-c", "sigraise 9"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!killed.status.success());
    assert!(assert_same(&path).info().dirty);
}

#[test]
fn overlay_and_its_backing_file_are_the_disk_together() {
    let bench = Bench::new();
    let base = bench.image("base", "cluster_size=4k", "700k", &["write -P 1 0 650k"]);
    let (backing, top) = (base.to_str().unwrap(), bench.text("top"));
    qemu::img_ok(&[
        "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", &top, "1M",
    ]);
    let commands = [
        "write -P 2 10k 1k",
        "write -z 128k 70k",
        "write -P 3 800k 5k",
    ];
    qemu::io_ok(&top, "qcow2", &commands);
    let layer = open(Path::new(&top));
    let reference = layer.info().backing.clone().unwrap();
    assert_eq!(reference.name, backing);
    assert_eq!(reference.format.as_deref(), Some("qcow2"));

    let chain = Chain::new(layer, [open(&base)]);
    let mut ours = vec![0xaa; chain.virtual_size() as usize];
    chain.read_at(0, &mut ours).unwrap();
    assert!(ours == qemu_reads(Path::new(&top)));
}

#[test]
fn backing_name_and_format_are_reported_in_both_versions() {
    let bench = Bench::new();
    let top = bench.text("top");
    for compat in ["0.10", "1.1"] {
        let options = format!("compat={compat}");
        qemu::img_ok(&["create", "-q", "-f", "qcow2", "-o", &options, &top, "1M"]);
        qemu::img_ok(&[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "a/base.raw",
            "-F",
            "raw",
            &top,
        ]);
        let backing = |path: &str| open(Path::new(path)).info().backing.clone().unwrap();
        assert_eq!(backing(&top).format.as_deref(), Some("raw"));
        assert_eq!(backing(&top).name, "a/base.raw");
    }
}
