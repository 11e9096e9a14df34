//! Zeros that are not stored as zeros: those of encrypted disks; and what stands where zeros are to be.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Edit, Editor, ErrorKind, Format, Preallocation};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{FileStorage, MemoryStorage};
use goldsmith_testkit::{image, pattern, qemu};

use super::encrypted::{check, editor, qemu_reads};
use super::{amend, resize, write_over};
use crate::bench::Bench;
use crate::encryption::{SECRET, by_qemu, spec};

const KIB: u64 = 1 << 10;
const FORMATS: [&str; 2] = ["luks,encrypt.iter-time=10", "aes"];

/// The image at `path`, to be changed; its data file, if it has one, is `data` beside it.
fn open(path: &Path) -> Box<dyn Editor> {
    let mut editor = editor(path, SECRET).unwrap();
    if editor.layer().info().data_file.is_some() {
        let data = FileStorage::edit(data(path)).unwrap();
        editor.set_data(Arc::new(data)).unwrap();
    }
    editor
}

fn data(path: &Path) -> PathBuf {
    path.with_file_name("data")
}

/// An encrypted image of `picture` whose data is in a file of its own.
fn apart(bench: &Bench, picture: &str, options: &str) -> PathBuf {
    let file = bench.text("data");
    let options = format!("encrypt.format={options},data_file={file}");
    by_qemu(bench, &pattern::disk(picture), &options)
}

/// Also where the sink ends inside a cluster: the rest of it stays, and never stands there as the guest
/// sees it.
#[test]
fn zeros_are_written_over_an_encrypted_disk_in_a_data_file() {
    for format in FORMATS {
        let bench = Bench::new();
        let path = apart(&bench, "1M:A", format);
        let mut expected = pattern::disk("1M:A").bytes().to_vec();
        let parts = [
            (64 * KIB, 256 * KIB, 0),
            (256 * KIB, 300 * KIB, 7),
            (320 * KIB, 352 * KIB, 0),
        ];
        write_over(open(&path), 352 * KIB, &parts);
        for (start, end, byte) in parts {
            expected[start as usize..end as usize].fill(byte);
        }
        expected[(300 * KIB) as usize..(320 * KIB) as usize]
            .copy_from_slice(&pattern::disk("1M:A").bytes()[(300 * KIB) as usize..][..20 << 10]);
        assert!(qemu_reads(&path, SECRET).unwrap() == expected, "{format}");
        check(&path, SECRET);
        let stored = std::fs::read(data(&path)).unwrap();
        let line = b"A00000000000000\n";
        assert!(!stored.chunks(16).any(|bytes| bytes == line), "{format}");
    }
}

#[test]
fn encrypted_disk_in_a_data_file_grows_by_zeros() {
    for format in FORMATS {
        for more in ["", ",cluster_size=4k", ",extended_l2=on"] {
            let bench = Bench::new();
            let path = apart(&bench, "100k:A", &format!("{format}{more}"));
            let mut expected = pattern::disk("100k:A").bytes().to_vec();
            // Within the last cluster, and on; what stood behind the disk is not a part of it.
            for size in [101 * KIB, 1 << 20] {
                let file = std::fs::read(data(&path)).unwrap();
                std::fs::write(data(&path), [&file[..], &[0x77; 70_000]].concat()).unwrap();
                open(&path).edit(&resize(size)).unwrap();
                expected.resize(size as usize, 0);
                let found = qemu_reads(&path, SECRET).unwrap();
                assert!(found == expected, "{format}{more}: {size}");
                check(&path, SECRET);
            }
        }
    }
}

/// QEMU relies on it that a cluster was encrypted up to its end, also behind that of the disk.
#[test]
fn encrypted_disk_that_qemu_makes_larger_grows_by_zeros() {
    let picture = pattern::disk("1000448:A");
    for format in FORMATS {
        for more in ["", "data_file", "extended_l2", "over"] {
            let bench = Bench::new();
            let (path, file) = (bench.path("image"), bench.text("data"));
            if more == "over" {
                let options = format!("encrypt.format={format}");
                by_qemu(&bench, &pattern::disk("1000448:B"), &options);
                write_over(open(&path), picture.len(), &[(0, picture.len(), 7)]);
            } else {
                let mut options = vec![("encrypt.key-secret", SECRET)];
                let pairs = format!("encrypt.format={format}");
                options.extend(pairs.split(',').filter_map(|pair| pair.split_once('=')));
                match more {
                    "data_file" => options.push(("data_file", &file)),
                    "extended_l2" => options.push(("extended_l2", "on")),
                    _ => {}
                }
                let mut spec = image::spec(&QCOW2, picture.len(), &options, false).unwrap();
                let [made, apart] =
                    ["image", "data"].map(|name| Arc::new(MemoryStorage::new(name)));
                spec.data = (more == "data_file").then(|| apart.clone() as _);
                image::drive(QCOW2.create(made.clone(), &spec).unwrap(), &picture).unwrap();
                std::fs::write(&path, made.to_vec()).unwrap();
                std::fs::write(&file, apart.to_vec()).unwrap();
            }
            let object = format!("secret,id=s,data={SECRET}");
            let spec = spec(&path);
            qemu::img_ok(&[
                "resize",
                "-q",
                "--object",
                &object,
                "--image-opts",
                &spec,
                "1M",
            ]);
            let found = qemu_reads(&path, SECRET).unwrap();
            let (disk, added) = found.split_at(picture.len() as usize);
            assert!(added.iter().all(|byte| *byte == 0), "{format} {more}");
            assert!(more == "over" || disk == picture.bytes(), "{format} {more}");
            check(&path, SECRET);
        }
    }
}

/// All of its data file is the disk, which then would be zeros that nobody encrypted.
#[test]
fn encrypted_disk_that_is_all_of_a_data_file_does_not_grow() {
    let bench = Bench::new();
    let path = apart(
        &bench,
        "128k:A",
        "luks,encrypt.iter-time=10,data_file_raw=on",
    );
    let before = std::fs::read(&path).unwrap();
    let error = open(&path).edit(&resize(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.report().contains("zeros decrypted"),
        "{}",
        error.report()
    );
    assert!(std::fs::read(&path).unwrap() == before);
}

/// An encrypted image of version 2 without data, over a disk of 1 MiB.
fn over(bench: &Bench, format: &str, compat: &str, size: &str) -> PathBuf {
    let (path, behind) = (bench.path("image"), bench.text("behind"));
    std::fs::write(&behind, pattern::disk("1M:B").bytes()).unwrap();
    let object = format!("secret,id=s,data={SECRET}");
    let options = format!("compat={compat},encrypt.format={format},encrypt.key-secret=s");
    let text = path.to_str().unwrap();
    let over = ["-b", &behind, "-F", "raw", "-o", &options];
    let create = ["create", "-q", "-f", "qcow2", "--object", &object];
    qemu::img_ok(&[&create[..], &over, &[text, size]].concat());
    path
}

#[test]
fn old_encrypted_image_over_a_larger_disk_grows_by_zeros() {
    for format in FORMATS {
        let bench = Bench::new();
        let path = over(&bench, format, "0.10", "256k");
        let grow = Edit::Resize {
            virtual_size: 2 << 20,
            preallocation: Preallocation::Off,
            behind: 1 << 20,
        };
        open(&path).edit(&grow).unwrap();
        let mut expected = pattern::disk("1M:B").bytes()[..256 << 10].to_vec();
        expected.resize(2 << 20, 0);
        assert!(qemu_reads(&path, SECRET).unwrap() == expected, "{format}");
        check(&path, SECRET);
    }
}

/// The old version would have to store them. QEMU stores zeros, which then read as noise.
#[test]
fn zeros_that_hide_what_is_behind_keep_an_encrypted_image_from_the_old_version() {
    for format in FORMATS {
        let bench = Bench::new();
        let path = over(&bench, format, "1.1", "1M");
        write_over(open(&path), 1 << 20, &[(256 * KIB, 512 * KIB, 0)]);
        let before = std::fs::read(&path).unwrap();
        let error = open(&path).edit(&amend(&[("compat", "0.10")])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(
            error.report().contains("zeros that hide"),
            "{}",
            error.report()
        );
        assert!(std::fs::read(&path).unwrap() == before);
    }
    // Without any, nothing is lost.
    let bench = Bench::new();
    let path = over(&bench, "aes", "1.1", "1M");
    open(&path).edit(&amend(&[("compat", "0.10")])).unwrap();
    assert!(qemu_reads(&path, SECRET).unwrap() == pattern::disk("1M:B").bytes());
}

/// A cluster that gets its place when the disk grows begins inside the old one, where nobody wrote.
#[test]
fn preallocated_cluster_shows_nothing_old_of_a_data_file() {
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let bench = Bench::new();
        let (path, file) = (bench.path("image"), bench.text("data"));
        let options = format!("data_file={file}");
        let text = path.to_str().unwrap();
        qemu::img_ok(&["create", "-q", "-f", "qcow2", "-o", &options, text, "100k"]);
        std::fs::write(&file, [0x77; 150_000]).unwrap();
        let grow = Edit::Resize {
            virtual_size: 1 << 20,
            preallocation,
            behind: 0,
        };
        super::edit(&path, &grow).unwrap();
        let raw = bench.text("raw");
        qemu::img_ok(&["convert", "-f", "qcow2", "-O", "raw", text, &raw]);
        assert!(
            std::fs::read(raw).unwrap() == vec![0; 1 << 20],
            "{preallocation:?}"
        );
        qemu::check(&path);
    }
}

/// Zeros that were stored to hide what is behind, and then get another place.
#[test]
fn preallocation_over_a_larger_disk_leaves_nothing_behind() {
    for compat in ["0.10", "1.1"] {
        let bench = Bench::new();
        let (path, behind) = (bench.path("image"), bench.text("behind"));
        std::fs::write(&behind, pattern::disk("1M:B").bytes()).unwrap();
        let (text, options) = (path.to_str().unwrap(), format!("compat={compat}"));
        let over = ["-b", &behind, "-F", "raw", "-o", &options];
        let create = ["create", "-q", "-f", "qcow2"];
        qemu::img_ok(&[&create[..], &over, &[text, "256k"]].concat());
        let grow = Edit::Resize {
            virtual_size: 2 << 20,
            preallocation: Preallocation::Metadata,
            behind: 1 << 20,
        };
        super::edit(&path, &grow).unwrap();
        qemu::check(&path);
        let raw = bench.text("raw");
        qemu::img_ok(&["convert", "-f", "qcow2", "-O", "raw", text, &raw]);
        let mut expected = pattern::disk("1M:B").bytes()[..256 << 10].to_vec();
        expected.resize(2 << 20, 0);
        assert!(std::fs::read(raw).unwrap() == expected, "{compat}");
    }
}
