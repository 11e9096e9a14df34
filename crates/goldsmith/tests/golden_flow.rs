//! The main job on real input: a disk with a partition table and a file system full of real files
//! goes from RAW through every format and back, and not one byte differs.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;
use std::process::Command;

use goldsmith::{Algorithm, Checksum};
use goldsmith_testkit::qemu;
use support::{Folder, convert, open, sha256};

const MIB: u64 = 1 << 20;
const PARTITION: u64 = MIB;

/// A RAW disk of no round size: a GPT, an ext4 file system with this project's own files and
/// program, and some dozens of MiB that were never written.
fn golden_disk(folder: &Folder) -> std::path::PathBuf {
    let files = folder.path("files");
    copy_tree(
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap(),
        &files.join("crates"),
    );
    std::fs::copy(std::env::current_exe().unwrap(), files.join("program")).unwrap();

    let disk = folder.path("golden.raw");
    let file = std::fs::File::create(&disk).unwrap();
    file.set_len(192 * MIB + 512).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-d"])
        .arg(&files)
        .args([
            "-E",
            &format!("offset={PARTITION},nodiscard"),
            disk.to_str().unwrap(),
            "160M",
        ]));
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args([
        "-q",
        "--no-reread",
        "--no-tell-kernel",
        "--wipe=never",
        disk.to_str().unwrap(),
    ]);
    sfdisk.stdin(std::process::Stdio::piped());
    let mut child = spawn(&mut sfdisk);
    let table = "label: gpt\nstart=1MiB, size=160MiB, type=linux\n";
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), table.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    check_file_system(&disk);
    disk
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_tree(&entry.path(), &target),
            _ => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn spawn(command: &mut Command) -> std::process::Child {
    // mkfs and its kin live in a folder that is in root's path alone.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    match command.env("PATH", path).spawn() {
        Ok(child) => child,
        Err(error) => panic!("{command:?}: {error}; run scripts/install-test-tools"),
    }
}

fn run(command: &mut Command) {
    let status = spawn(command).wait().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn check_file_system(disk: &Path) {
    run(Command::new("e2fsck")
        .arg("-fn")
        .arg(format!("{}?offset={PARTITION}", disk.display()))
        .stdout(std::process::Stdio::null()));
}

/// A target: its name, format, creation options, and whether it is compressed.
type Leg = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    bool,
);

#[test]
fn golden_disk_survives_every_format() {
    let folder = Folder::new();
    let golden = golden_disk(&folder);
    let expected = sha256(&golden);

    let legs: [Leg; 7] = [
        ("plain.qcow2", "qcow2", &[], false),
        ("dynamic.vhd", "vpc", &[], false),
        ("zlib.qcow2", "qcow2", &[], true),
        ("fixed.vhd", "vpc", &[("subformat", "fixed")], false),
        (
            "zstd.qcow2",
            "qcow2",
            &[("compression_type", "zstd"), ("cluster_size", "256k")],
            true,
        ),
        (
            "old.qcow2",
            "qcow2",
            &[("compat", "0.10"), ("cluster_size", "4k")],
            true,
        ),
        ("last.raw", "raw", &[], false),
    ];
    let (mut path, mut format) = (golden.clone(), "raw");
    for (name, target_format, options, compress) in legs {
        let target = folder.path(name);
        let mut step = convert((&path, format), (&target, target_format)).compress(compress);
        for (key, value) in options {
            step = step.option(*key, *value);
        }
        step.run().unwrap();
        qemu::compare(&golden, "raw", &target, target_format);
        if target_format == "qcow2" {
            qemu::check(&target);
        }
        (path, format) = (target, target_format);
    }
    assert_eq!(sha256(&path), expected);
    check_file_system(&path);

    // And each image on its own becomes the golden disk again.
    for (name, format, ..) in legs {
        let back = folder.path("back.raw");
        let source = folder.path(name);
        let done = convert((&source, format), (&back, "raw"))
            .digest(Algorithm::Sha256)
            .verify(true)
            .run()
            .unwrap();
        assert_eq!(sha256(&back), expected, "{name}");
        assert_eq!(done.digests[0].to_string(), expected, "{name}");
        let disk = open(&source, format);
        let digests = Checksum::new(&disk).digest(Algorithm::Sha256).run();
        assert_eq!(digests.unwrap(), done.digests, "{name}");
    }
}
