//! Compressed images made into compressed images: what is packed as the target wants it goes over
//! as it is, and everything else is packed anew.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;
use std::path::Path;

use goldsmith::ErrorKind;
use goldsmith_block::{Chain, ExtentKind, HostRange};
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert, guest, open};

const CODECS: [&str; 2] = ["zlib", "zstd"];

/// Data of all kinds; it ends inside a cluster.
fn mixed() -> ModelDisk {
    disk("320k:A 100k:B 92k:0 64k:c 3M:- 5k:D 123k:- 640k:E 1M:0 192k:F 40k:G")
}

/// QEMU's compressed image of `disk`.
fn packed_by_qemu(folder: &Folder, disk: &ModelDisk, codec: &str) -> std::path::PathBuf {
    let path = folder.path("source.qcow2");
    let option = format!("compression_type={codec}");
    let image = qemu::write("qcow2", disk, &["-c", "-o", &option]);
    std::fs::write(&path, image).unwrap();
    path
}

/// The places of the compressed clusters, in the order of the disk.
fn packed(chain: &Chain) -> Vec<(u64, HostRange)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < chain.virtual_size() {
        let extent = chain.extent_at(at, chain.virtual_size()).unwrap().extent;
        if let ExtentKind::Compressed { unit, host, .. } = extent.kind {
            found.push((unit.start, host));
        }
        at = extent.range.end;
    }
    found
}

fn repack(source: &Path, target: &Path, codec: &str, threads: usize) -> Vec<u8> {
    convert((source, "qcow2"), (target, "qcow2"))
        .compress(true)
        .option("compression_type", codec)
        .threads(NonZeroUsize::new(threads).unwrap())
        .run()
        .unwrap();
    std::fs::read(target).unwrap()
}

#[test]
fn clusters_packed_alike_go_over_as_they_are() {
    let folder = Folder::new();
    let disk = mixed();
    for codec in CODECS {
        let source = packed_by_qemu(&folder, &disk, codec);
        let target = folder.path("target.qcow2");
        let image = repack(&source, &target, codec, 1);
        qemu::check(&target);
        qemu::compare(&source, "qcow2", &target, "qcow2");
        assert!(guest(&target, "qcow2") == disk.bytes(), "{codec}");

        // The last unit reaches past the end of the disk, so it is packed anew.
        let places = |path: &Path| {
            let mut places = packed(&open(path, "qcow2"));
            assert_eq!(places.pop().unwrap().0, disk.len() / 65536 * 65536);
            places
        };
        let original = std::fs::read(&source).unwrap();
        let (ours, theirs) = (places(&target), places(&source));
        assert_eq!(ours.len(), theirs.len());
        let mut judged = 0;
        for (pair, (start, there)) in ours.windows(2).zip(theirs) {
            let [(at, here), (_, next)] = pair else {
                unreachable!("windows of two")
            };
            assert_eq!(*at, start);
            // Where the next one stands behind it, that is where it ends.
            let Some(len @ 1..) = next.offset.checked_sub(here.offset) else {
                continue;
            };
            if len <= here.len {
                let bytes =
                    |image: &[u8], offset: u64| image[offset as usize..][..len as usize].to_vec();
                assert_eq!(bytes(&image, here.offset), bytes(&original, there.offset));
                judged += 1;
            }
        }
        assert!(judged >= 10, "{codec}: {judged} clusters were judged");
    }
}

#[test]
fn what_goes_over_does_not_depend_on_the_number_of_threads() {
    let folder = Folder::new();
    for codec in CODECS {
        let source = packed_by_qemu(&folder, &mixed(), codec);
        let target = folder.path("target.qcow2");
        let first = repack(&source, &target, codec, 1);
        for threads in [2, 5] {
            assert!(repack(&source, &target, codec, threads) == first, "{codec}");
        }
    }
}

#[test]
fn clusters_packed_otherwise_are_packed_anew() {
    let folder = Folder::new();
    let disk = mixed();
    let raw = folder.write("disk.raw", &disk);
    let target = folder.path("target.qcow2");
    for (codec, options) in [
        ("zlib", ["zstd", "64k"]),
        ("zstd", ["zlib", "64k"]),
        ("zlib", ["zlib", "32k"]),
        ("zstd", ["zstd", "128k"]),
    ] {
        let source = packed_by_qemu(&folder, &disk, codec);
        let made_from = |source: &Path, format| {
            convert((source, format), (&target, "qcow2"))
                .compress(true)
                .option("compression_type", options[0])
                .option("cluster_size", options[1])
                .run()
                .unwrap();
            std::fs::read(&target).unwrap()
        };
        let anew = made_from(&raw, "raw");
        assert!(made_from(&source, "qcow2") == anew, "{codec} {options:?}");
    }
}

#[test]
fn damaged_cluster_is_an_error_and_not_carried_over() {
    let folder = Folder::new();
    for codec in CODECS {
        let source = packed_by_qemu(&folder, &mixed(), codec);
        let (start, host) = packed(&open(&source, "qcow2"))[2];
        let mut image = std::fs::read(&source).unwrap();
        image[host.offset as usize..][..8].fill(0xFF);
        std::fs::write(&source, image).unwrap();
        let target = folder.path("bad.qcow2");
        let error = convert((&source, "qcow2"), (&target, "qcow2"))
            .compress(true)
            .option("compression_type", codec)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
        assert_eq!(error.guest().map(|range| range.start), Some(start));
        assert!(!target.exists());
    }
}
