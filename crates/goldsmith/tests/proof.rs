//! What a conversion proves of its target: digests that are everybody's, and that it was read back.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use goldsmith::{Algorithm, Digest, ErrorKind, Phase, Progress};
use goldsmith_testkit::mount;
use goldsmith_testkit::pattern::disk;
use sha2::{Digest as _, Sha512};
use support::{Folder, convert, sha256};

/// Format, creation options, and whether it is packed.
type Shape = (&'static str, &'static [(&'static str, &'static str)], bool);

const SHAPES: [Shape; 9] = [
    ("raw", &[], false),
    ("qcow2", &[], false),
    ("qcow2", &[], true),
    ("qcow2", &[("data_file", "data.raw")], false),
    ("vpc", &[], false),
    // What follows is written only.
    ("qcow2", &[("cluster_size", "2M")], false),
    ("qcow2", &[("compression_type", "zstd")], true),
    ("vpc", &[("subformat", "fixed")], false),
    ("xenserver-ovf", &[], false),
];

const PICTURE: &str = "1M:A 3M:- 512k:b 64k:0 2M:C 9M:- 512:d";

/// From every shape into every other: through packed clusters that are passed on, holes, and what
/// the kernel would copy.
#[test]
fn digests_are_those_of_disk_and_file_whatever_way_the_bytes_go() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk(PICTURE));
    let content = sha256(&raw);
    for (from, from_options, from_packed) in &SHAPES[..5] {
        let source = folder.path("source");
        let mut job = convert((&raw, "raw"), (&source, from)).compress(*from_packed);
        for (key, value) in *from_options {
            job = job.option(*key, *value);
        }
        job.run().unwrap();
        for (to, to_options, to_packed) in SHAPES {
            let what =
                format!("{from} {from_options:?} {from_packed}, {to} {to_options:?} {to_packed}");
            let target = folder.path("target");
            let mut job = convert((&source, from), (&target, to))
                .compress(to_packed)
                .digest(Algorithm::Sha256)
                .digest(Algorithm::Blake3)
                .file_digest(Algorithm::Sha512)
                .verify(true);
            for (key, value) in to_options {
                // The source keeps its own.
                let value = value.replace("data.raw", "other.raw");
                job = job.option(*key, value);
            }
            let done = job
                .run()
                .unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            assert_eq!(done.digests[0].to_string(), content, "{what}");
            let blake3 = Digest::of(Algorithm::Blake3, disk(PICTURE).bytes());
            assert_eq!(done.digests[1], blake3, "{what}");
            let file = Sha512::digest(fs::read(&target).unwrap());
            assert_eq!(done.file_digests[0].as_bytes(), &file[..], "{what}");
            assert!(done.verified);
        }
    }
}

#[test]
fn encrypted_target_is_read_back_with_its_passphrase() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A 64k:- 300k:b"));
    let target = folder.path("target");
    let job = convert((&raw, "raw"), (&target, "qcow2"))
        .secret("word", "open sesame")
        .option("encrypt.format", "luks")
        .option("encrypt.iter-time", "10")
        .option("encrypt.key-secret", "word");
    let done = job.verify(true).digest(Algorithm::Sha256).run().unwrap();
    assert_eq!(done.digests[0].to_string(), sha256(&raw));
}

#[test]
fn digests_of_what_could_be_shared_are_right() {
    for mount in mount::sharing() {
        let folder = Folder::within(mount.path());
        let raw = folder.write("disk.raw", &disk(PICTURE));
        for format in ["raw", "qcow2", "vpc"] {
            let target = folder.path(format);
            let job = convert((&raw, "raw"), (&target, format)).digest(Algorithm::Sha256);
            let done = job.verify(true).run().unwrap();
            assert_eq!(done.digests[0].to_string(), sha256(&raw), "{format}");
        }
    }
}

/// A disk that grew is the target's disk, as whoever opens it finds it.
#[test]
fn digest_of_a_disk_that_grew_is_that_of_the_target() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1001:A"));
    let target = folder.path("target");
    let job = convert((&raw, "raw"), (&target, "vpc")).round_up(true);
    let done = job.digest(Algorithm::Sha256).verify(true).run().unwrap();
    let back = folder.path("back");
    goldsmith_testkit::qemu::img_ok(&[
        "convert",
        "-f",
        "vpc",
        "-O",
        "raw",
        &folder.text("target"),
        &folder.text("back"),
    ]);
    assert_eq!(done.virtual_size, 1024);
    assert_eq!(done.digests[0].to_string(), sha256(&back));
}

/// Changes a byte in the file without a name that is being made in `folder`, as a disk might.
fn damage(folder: &Path, at: impl Fn(u64) -> u64) {
    let mut damaged = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        // A descriptor of another test may be gone by now.
        let Ok(name) = fs::read_link(&path) else {
            continue;
        };
        let text = name.to_string_lossy();
        let is_draft = text.ends_with(" (deleted)") || text.contains(".goldsmith-");
        if name.starts_with(folder) && is_draft {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let at = at(file.metadata().unwrap().len());
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "the target has one file");
}

#[test]
fn target_that_is_damaged_before_it_is_read_back_does_not_appear() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("4M:a 8M:- 4M:b"));
    let target = folder.path("target");
    for kept in [false, true] {
        for (format, compress) in [
            ("raw", false),
            ("qcow2", false),
            ("qcow2", true),
            ("vpc", false),
        ] {
            if kept {
                fs::write(&target, "my only copy").unwrap();
            }
            let spoil = |progress: Progress| {
                if (progress.phase, progress.done) == (Phase::Verify, 0) {
                    // In all of these there is data.
                    damage(&folder.path(""), |len| len / 8);
                }
            };
            let job = convert((&raw, "raw"), (&target, format))
                .compress(compress)
                .progress(&spoil);
            let error = job.verify(true).run().unwrap_err();
            let report = error.report();
            assert!(report.starts_with(target.to_str().unwrap()), "{report}");
            if format == "raw" {
                assert_eq!(error.kind(), ErrorKind::Io, "{report}");
                let place = "; it differs from guest byte 2097152 on";
                assert!(report.ends_with(place), "{report}");
            }
            match kept {
                true => assert_eq!(fs::read(&target).unwrap(), b"my only copy"),
                false => assert!(!target.exists()),
            }
        }
    }
    let names = folder.names();
    assert_eq!(names, ["disk.raw", "target"]);
}

#[test]
fn phases_are_told_from_their_beginnings_to_their_ends() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk(PICTURE));
    let told = Mutex::new(Vec::<Progress>::new());
    let listener = |progress| told.lock().unwrap().push(progress);
    let target = folder.path("target");
    convert((&raw, "raw"), (&target, "qcow2"))
        .verify(true)
        .file_digest(Algorithm::Md5)
        .progress(&listener)
        .run()
        .unwrap();
    let told = told.into_inner().unwrap();
    let mut rest = &told[..];
    let sizes = [
        disk(PICTURE).len(),
        disk(PICTURE).len(),
        fs::metadata(&target).unwrap().len(),
    ];
    for (phase, size) in [Phase::Copy, Phase::Verify, Phase::Checksum]
        .into_iter()
        .zip(sizes)
    {
        let len = rest.iter().take_while(|it| it.phase == phase).count();
        let (here, later) = rest.split_at(len);
        assert_eq!(here[0].done, 0);
        assert!(here.iter().all(|it| it.total == size));
        assert_eq!(here.iter().map(|it| it.done).max(), Some(size), "{phase:?}");
        rest = later;
    }
    assert!(rest.is_empty());
}
