//! Disks of other sizes: what is added is zeros whatever stood there, and has the places it shall have.

use std::path::{Path, PathBuf};

use goldsmith_block::{BackingReference, Edit, ErrorKind, Preallocation};
use goldsmith_storage::FileStorage;
use goldsmith_testkit::build::qcow2::{Cluster, Qcow2};
use goldsmith_testkit::qemu;
use serde_json::Value;

use super::{edit, resize};
use crate::bench::{Bench, qemu_reads};

fn grown(virtual_size: u64, preallocation: Preallocation, behind: u64) -> Edit {
    Edit::Resize {
        virtual_size,
        preallocation,
        behind,
    }
}

/// QEMU's map, wherever it stands: the end of each run, and whether it is data.
fn map(path: &Path) -> Vec<(u64, bool)> {
    let said = qemu::img_ok(&["map", "--output=json", path.to_str().unwrap()]);
    let said: Vec<Value> = serde_json::from_str(&said).unwrap();
    let number = |extent: &Value, key: &str| extent[key].as_u64().unwrap();
    let mut runs: Vec<(u64, bool)> = Vec::new();
    for extent in &said {
        let end = number(extent, "start") + number(extent, "length");
        let data = extent["data"].as_bool().unwrap();
        runs.pop_if(|last| last.1 == data);
        runs.push((end, data));
    }
    runs
}

/// An image with a data file beside it.
fn with_data_file(bench: &Bench, raw: &str) -> (PathBuf, PathBuf) {
    let data = bench.path("data");
    let options = format!("data_file={},data_file_raw={raw}", data.display());
    let commands = ["write -P 1 0 100k", "write -P 2 900k 124k"];
    (bench.image("image", &options, "1M", &commands), data)
}

#[test]
fn added_part_has_the_places_that_were_asked_for() {
    for (preallocation, name) in [
        (Preallocation::Off, "off"),
        (Preallocation::Metadata, "metadata"),
        (Preallocation::Falloc, "falloc"),
        (Preallocation::Full, "full"),
    ] {
        for options in ["", "cluster_size=4k", "compat=0.10"] {
            let bench = Bench::new();
            let write = ["write -P 1 500k 200k"];
            let ours = bench.image("ours", options, "1000k", &write);
            let theirs = bench.image("theirs", options, "1000k", &write);
            edit(&ours, &grown(5 << 20, preallocation, 0)).unwrap();
            let their = theirs.to_str().unwrap();
            qemu::img_ok(&["resize", "-q", "--preallocation", name, their, "5M"]);
            qemu::check(&ours);
            let (read, other) = (qemu_reads(&ours), qemu_reads(&theirs));
            assert!(read == other, "{name} {options}");
            assert_eq!(map(&ours), map(&theirs), "{name} {options}");
            let space = |path: &Path| {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(path).unwrap().blocks() * 512
            };
            let taken = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
            assert_eq!(space(&ours) >= 4 << 20, taken, "{name} {options}");
        }
    }
}

/// What the image behind has past the old end never shows, and a partial cluster must be told.
#[test]
fn image_behind_does_not_show_in_what_is_added() {
    for options in [
        "",
        "cluster_size=4k",
        "compat=0.10",
        "cluster_size=64k,extended_l2=on",
    ] {
        let bench = Bench::new();
        let base = bench.image("base", "", "8M", &["write -P 9 0 8M"]);
        let backing = format!("backing_file={},backing_fmt=qcow2", base.display());
        let options = format!("{options},{backing}");
        let options = options.trim_start_matches(',');
        let path = bench.image("image", options, "1M", &["write -P 1 100k 64k"]);
        edit(&path, &grown(3 << 20, Preallocation::Off, 8 << 20)).unwrap();
        qemu::check(&path);
        let mut expected = vec![9; 1 << 20];
        expected[100 << 10..164 << 10].fill(1);
        expected.resize(3 << 20, 0);
        assert!(qemu_reads(&path) == expected, "{options}");

        let path = bench.image("odd", options, "1000000", &["write -P 1 100k 64k"]);
        let before = std::fs::read(&path).unwrap();
        let error = edit(&path, &grown(3 << 20, Preallocation::Off, 8 << 20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.report().contains("shows what stands behind"));
        assert!(std::fs::read(&path).unwrap().starts_with(&before[..512]));
    }
}

/// A packed cluster is one whole, whatever subclusters the others have.
#[test]
fn packed_cluster_shows_nothing_of_a_larger_disk() {
    for behind in [0, 1 << 20] {
        for odd in [0, 2 << 10, (2 << 10) + 512, 62 << 10] {
            let bench = Bench::new();
            let raw = bench.path("raw");
            std::fs::write(&raw, vec![7; 256 << 10]).unwrap();
            let path = bench.path("image");
            let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
            let packed = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
            qemu::img_ok(&[&packed[..], &["-o", "extended_l2=on", from, to]].concat());
            let size = (128 << 10) + odd;
            edit(&path, &resize(size)).unwrap();
            edit(&path, &grown(256 << 10, Preallocation::Off, behind)).unwrap();
            qemu::check(&path);
            let mut expected = vec![7; size as usize];
            expected.resize(256 << 10, 0);
            assert!(qemu_reads(&path) == expected, "{behind} {odd}");
            crate::bench::assert_same(&path);
        }
    }
}

/// Of its last table no more has to be in the file than the disk needs.
#[test]
fn table_in_which_the_file_ends_is_whole_for_a_larger_disk() {
    let bench = Bench::new();
    let path = bench.path("image");
    let image = Qcow2::new(3, 12, 1 << 20, vec![Cluster::Hole; 256]).bytes();
    std::fs::write(&path, &image[..image.len() - 2048]).unwrap();
    edit(&path, &resize((1 << 20) + 4096)).unwrap();
    qemu::check(&path);
    assert!(qemu_reads(&path) == [0; (1 << 20) + 4096]);
    crate::bench::assert_same(&path);
}

#[test]
fn data_file_follows_the_size_of_the_disk() {
    for raw in ["off", "on"] {
        let bench = Bench::new();
        let (path, data) = with_data_file(&bench, raw);
        let mut expected = qemu_reads(&path);
        for size in [(3 << 20) + 512, 950 << 10, 2 << 20] {
            edit(&path, &resize(size)).unwrap();
            expected.resize(size as usize, 0);
            qemu::check(&path);
            assert!(qemu_reads(&path) == expected, "{raw} {size}");
            assert_eq!(std::fs::metadata(&data).unwrap().len(), size);
            if raw == "on" {
                assert!(std::fs::read(&data).unwrap() == expected);
            }
        }
    }
}

#[test]
fn disk_in_a_data_file_is_written_over_where_it_stands() {
    for raw in ["off", "on"] {
        let bench = Bench::new();
        let (path, data) = with_data_file(&bench, raw);
        let mut expected = qemu_reads(&path);
        let storage = |path: &Path| std::sync::Arc::new(FileStorage::edit(path).unwrap());
        let mut editor = super::editor(storage(&path));
        editor.set_data(storage(&data)).unwrap();
        let parts = [
            (0, 64 << 10, 5),
            (128 << 10, 256 << 10, 6),
            (960 << 10, 1 << 20, 0),
        ];
        super::write_over(editor, 1 << 20, &parts);
        for (start, end, byte) in parts {
            expected[start as usize..end as usize].fill(byte);
        }
        qemu::check(&path);
        assert!(qemu_reads(&path) == expected, "{raw}");
        if raw == "on" {
            assert!(std::fs::read(&data).unwrap() == expected);
        }
    }
}

/// A data file keeps what a cluster held before it read as zeros, and that must not come back where a
/// sink ends inside the cluster.
#[test]
fn data_file_shows_nothing_old_behind_the_end_of_a_sink() {
    for options in ["", ",extended_l2=on"] {
        for byte in [5, 0] {
            let bench = Bench::new();
            let data = bench.path("data");
            let options = format!("data_file={}{options}", data.display());
            let commands = ["write -P 1 0 1M", "write -z 0 64k"];
            let path = bench.image("image", &options, "1M", &commands);
            let mut expected = qemu_reads(&path);
            let storage = |path: &Path| std::sync::Arc::new(FileStorage::edit(path).unwrap());
            let mut editor = super::editor(storage(&path));
            editor.set_data(storage(&data)).unwrap();
            super::write_over(editor, 20 << 10, &[(0, 20 << 10, byte)]);
            expected[..20 << 10].fill(byte);
            qemu::check(&path);
            assert!(qemu_reads(&path) == expected, "{options} {byte}");
        }
    }
}

/// A data file is longer than the disk if it is a device, or if a shrink was stopped.
#[test]
fn data_file_shows_nothing_that_stands_behind_the_disk() {
    for raw in ["off", "on"] {
        for preallocation in [Preallocation::Off, Preallocation::Metadata] {
            let bench = Bench::new();
            let (path, data) = with_data_file(&bench, raw);
            let mut expected = qemu_reads(&path);
            let mut longer = std::fs::read(&data).unwrap();
            longer.resize(3 << 20, 9);
            std::fs::write(&data, longer).unwrap();
            edit(&path, &grown(2 << 20, preallocation, 0)).unwrap();
            expected.resize(2 << 20, 0);
            qemu::check(&path);
            assert!(qemu_reads(&path) == expected, "{raw} {preallocation:?}");
        }
    }
}

#[test]
fn what_goes_with_no_data_file_is_refused() {
    let bench = Bench::new();
    let (path, _) = with_data_file(&bench, "on");
    let backing = BackingReference {
        name: "base".into(),
        format: Some("raw".into()),
        ..BackingReference::default()
    };
    for change in [super::snapshot("one"), Edit::SetBacking(Some(backing))] {
        let error = edit(&path, &change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let bench = Bench::new();
    let small = bench.image("small", "cluster_size=512", "1M", &[]);
    let error = edit(&small, &resize(1 << 40)).unwrap_err();
    assert!(error.report().contains("33554432"), "{}", error.report());
    let old = bench.image("old", "compat=0.10", "1M", &[]);
    qemu::img_ok(&["snapshot", "-c", "one", old.to_str().unwrap()]);
    let error = edit(&old, &resize(2 << 20)).unwrap_err();
    assert!(error.report().contains("version 2"), "{}", error.report());
}
