//! What a check finds, counted as QEMU's counts it.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Checked, Edit, ErrorKind, Flaw, Format, Repair, Result};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::build::qcow2::{Cluster, Qcow2};
use goldsmith_testkit::{hostile, image, pattern, qemu};
use serde_json::Value;

use crate::bench::{Bench, budget};
use crate::damage::Places;
use crate::editing::edit;

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
    judged(path).expect("QEMU opens the image")
}

/// What QEMU finds, if it opens the image.
pub(crate) fn judged(path: &Path) -> Option<Numbers> {
    let path = path.to_str().unwrap();
    let output = qemu::img(&["check", "--output=json", "-f", "qcow2", path]);
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
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
    Some(numbers)
}

/// Both find the same in the image at `path`.
pub(crate) fn assert_same(path: &Path) -> Checked {
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
pub(crate) fn with_snapshots(bench: &Bench, options: &str) -> std::path::PathBuf {
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

/// What it maps no more has no other owner: it is no waste, which a repair could give away.
#[test]
fn snapshot_whose_table_ends_before_its_disk_is_damaged() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "5M", &["write -P 7 3M 64k"]);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let sound = std::fs::read(&path).unwrap();
    assert!(check(&sound).unwrap().is_flawless());
    let entry = u64::from_be_bytes(sound[64..72].try_into().unwrap()) as usize;
    for (at, value) in [
        (entry + 8, &1_u32.to_be_bytes()[..]),
        (entry + 48, &(1_u64 << 40).to_be_bytes()),
    ] {
        let mut image = sound.clone();
        image[at..at + value.len()].copy_from_slice(value);
        let found = check(&image).unwrap();
        let told = "the L1 table of snapshot '1' has ";
        let is_told =
            |flaw: &Flaw| matches!(flaw, Flaw::Corruption(text) if text.starts_with(told));
        assert!(found.flaws.iter().any(is_told), "{:?}", found.flaws);
        std::fs::write(&path, &image).unwrap();
        let mended = edit(&path, &Edit::Repair(Repair::Leaks));
        assert_eq!(mended.is_err(), found.leaks > 0, "{mended:?}");
        assert!(std::fs::read(&path).unwrap() == image);
    }
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

/// [qemu] Nor does QEMU open an image of which a bitmap has no table at all, be it in use.
#[test]
fn bitmap_in_use_needs_a_table_of_some_length() {
    let bench = Bench::new();
    let path = with_bitmaps(&bench);
    let (at, name) = (Places::of(&path).bitmaps(), path.to_str().unwrap());
    for (entries, sound) in [([0, 0, 0, 7], true), ([0; 4], false)] {
        patch(&path, at + 8, &entries);
        patch(&path, at + 12, &[0, 0, 0, 1]);
        assert_eq!(qemu::img(&["info", name]).status.success(), sound);
        let checked = check(&std::fs::read(&path).unwrap()).unwrap();
        let told =
            |flaw: &Flaw| matches!(flaw, Flaw::Corruption(text) if text.contains("has 0 entries"));
        assert_eq!(checked.flaws.iter().any(told), !sound, "{checked:?}");
    }
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

/// The file ends inside an entry, behind those that the disk needs: what is missing of it is zeros.
#[test]
fn entry_in_which_the_file_ends_is_counted() {
    let bench = Bench::new();
    let path = bench.path("image");
    let mut image = Qcow2::new(3, 9, 7 * 512, vec![Cluster::Hole; 7]).bytes();
    let table = image.len() - 512;
    image.truncate(table + 10 * 8 + 3);
    image[table + 10 * 8 + 2] = 0xff;
    std::fs::write(&path, &image).unwrap();
    let checked = check(&image).unwrap();
    assert_eq!(ours(&checked)[..3], theirs(&path)[..3]);
    assert_eq!(checked.corruptions, 1, "{:?}", checked.flaws);
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
