//! Conversions between files that can share blocks.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{HostRange, Storage, StorageMut, Transfer, pass_on};
use goldsmith_engine::Job;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::mount::{self, Mount};
use goldsmith_testkit::{image, pattern, qemu};
use support::{Folder, convert};

const MIB: u64 = 1 << 20;

/// Format, creation options, and how many bytes of the guest stand in a row at least, with metadata
/// between them.
type Shape = (&'static str, &'static [(&'static str, &'static str)], u64);

const SHAPES: [Shape; 7] = [
    ("raw", &[], u64::MAX),
    ("qcow2", &[], 64 << 10),
    ("qcow2", &[("cluster_size", "4k")], 4 << 10),
    ("qcow2", &[("cluster_size", "2M")], 2 << 20),
    ("vpc", &[], 2 << 20),
    ("vpc", &[("block_size", "512k")], 512 << 10),
    ("vpc", &[("subformat", "fixed")], u64::MAX),
];

/// 32 MiB of data in a disk of 64 MiB, runs that no format's unit fits, and an end inside a unit.
fn disk() -> ModelDisk {
    pattern::disk("5k:A 60k:- 16m:B 4m:- 64k:0 15m:C 28m:- 1m:D 1536:E")
}

fn folders() -> impl Iterator<Item = (Mount, Folder)> {
    mount::sharing().into_iter().map(|mount| {
        let folder = Folder::within(mount.path());
        (mount, folder)
    })
}

/// The disk with its holes, in RAW.
fn golden(folder: &Folder) -> PathBuf {
    let dense = folder.write("dense.raw", &disk());
    let raw = folder.path("disk.raw");
    let job = convert((&dense, "raw"), (&raw, "raw"));
    job.share(false).run().unwrap();
    raw
}

#[test]
fn every_format_shares_with_every_other() {
    for (mount, folder) in folders() {
        let raw = golden(&folder);
        for (from, from_options, in_a_row) in SHAPES {
            let source = folder.path("source");
            let mut job = convert((&raw, "raw"), (&source, from));
            for (key, value) in from_options {
                job = job.option(*key, *value);
            }
            job.run().unwrap();
            for (to, to_options, unit) in SHAPES {
                let what = format!("{from} {from_options:?} to {to} {to_options:?}");
                let target = folder.path("target");
                let before = mount.free();
                let mut job = convert((&source, from), (&target, to));
                for (key, value) in to_options {
                    job = job.option(*key, *value);
                }
                job.run().unwrap();
                let taken = before.saturating_sub(mount.free());
                // A unit can be shared if it stands in a row in the source.
                let shares = to != "qcow2" || in_a_row >= unit;
                assert!(!shares || taken < 10 * MIB, "{what}: {taken} bytes copied");
                qemu::compare(&raw, "raw", &target, to);
                if to == "qcow2" {
                    qemu::check(&target);
                }
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}

#[test]
fn shared_target_outlives_its_source() {
    for (_mount, folder) in folders() {
        let raw = golden(&folder);
        let copy = folder.path("copy.raw");
        std::fs::copy(&raw, &copy).unwrap();
        let target = folder.path("target");
        convert((&copy, "raw"), (&target, "qcow2")).run().unwrap();
        std::fs::write(&copy, vec![7; 64 << 20]).unwrap();
        qemu::compare(&raw, "raw", &target, "qcow2");
    }
}

#[test]
fn nothing_is_shared_if_not_wanted() {
    for (mount, folder) in folders() {
        let raw = golden(&folder);
        let target = folder.path("target");
        let before = mount.free();
        convert((&raw, "raw"), (&target, "raw"))
            .share(false)
            .run()
            .unwrap();
        assert!(before - mount.free() > 30 * MIB);
        qemu::compare(&raw, "raw", &target, "raw");
    }
}

#[test]
fn overlay_and_its_backing_file_are_shared_into_one_image() {
    for (_mount, folder) in folders() {
        let raw = golden(&folder);
        let overlay = folder.path("overlay.qcow2");
        let (raw, top) = (raw.to_str().unwrap(), overlay.to_str().unwrap());
        let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw];
        qemu::img_ok(&[&args[..], &[top]].concat());
        let commands = ["write -P 9 1M 3M", "write -z 8M 1M", "write -P 8 50M 64k"];
        qemu::io_ok(&overlay, "qcow2", &commands);
        for format in ["raw", "qcow2", "vpc"] {
            let target = folder.path("target");
            convert((&overlay, "qcow2"), (&target, format))
                .run()
                .unwrap();
            qemu::compare(&overlay, "qcow2", &target, format);
        }
    }
}

/// A storage that promises a way for bytes to come.
#[derive(Debug)]
struct Promising {
    storage: MemoryStorage,
    way: Transfer,
    /// Otherwise only half of what is asked for comes.
    kept: bool,
    /// How many bytes were asked for.
    asked: AtomicU64,
}

impl Promising {
    fn new(way: Transfer, kept: bool) -> Self {
        Self {
            storage: MemoryStorage::new("target"),
            way,
            kept,
            asked: AtomicU64::new(0),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.storage.len() as usize];
        self.storage.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

impl Storage for Promising {
    pass_on!(storage: name, id, len, read_at);
}

impl StorageMut for Promising {
    pass_on!(storage: write_at, set_len, zero, flush, fixed_len, is_blank);

    fn best_transfer(&self, _source: &dyn Storage) -> Option<Transfer> {
        Some(self.way)
    }

    fn transfer(&self, source: &dyn Storage, from: HostRange, to: u64, _way: Transfer) -> bool {
        self.asked.fetch_add(from.len, Ordering::Relaxed);
        let len = if self.kept { from.len } else { from.len / 2 };
        let mut bytes = vec![0; len as usize];
        source.read_at(from.offset, &mut bytes).unwrap();
        self.storage.write_at(to, &bytes).unwrap();
        self.kept
    }
}

/// The disk at `raw` as an image of `shape` in `storage`.
fn filled(storage: Promising, shape: Shape, raw: &Path, job: &Job<'_>) -> Arc<Promising> {
    let (name, options, _) = shape;
    let format = goldsmith::format_named(name).unwrap();
    let source = support::open(raw, "raw");
    let spec = image::spec(format, source.virtual_size(), options, false).unwrap();
    let storage = Arc::new(storage);
    let sink = format.create(storage.clone(), &spec).unwrap();
    goldsmith_engine::convert(&source, sink, job).unwrap();
    storage
}

#[test]
fn refused_transfers_are_made_good_by_reading_and_writing() {
    let folder = Folder::new();
    let disk = disk();
    let raw = folder.write("disk.raw", &disk);
    for shape @ (name, options, _) in SHAPES {
        let storage = Promising::new(Transfer::Share, false);
        let storage = filled(storage, shape, &raw, &Job::default());
        let what = format!("{name} {options:?}");
        assert!(qemu::read(name, &storage.bytes()) == disk.bytes(), "{what}");
    }
}

/// The kernel copies for one worker at a time, a server for as many as there are.
#[test]
fn several_workers_leave_copying_to_servers_but_not_to_the_kernel() {
    let folder = Folder::new();
    let disk = disk();
    let raw = folder.write("disk.raw", &disk);
    for shape @ (name, options, _) in SHAPES {
        let convert = |way, threads| {
            let job = Job {
                threads: NonZeroUsize::new(threads),
                ..Job::default()
            };
            filled(Promising::new(way, true), shape, &raw, &job)
        };
        let what = format!("{name} {options:?}");
        let read = convert(Transfer::Copy, 2);
        assert_eq!(read.asked.load(Ordering::Relaxed), 0, "{what}");
        assert!(qemu::read(name, &read.bytes()) == disk.bytes(), "{what}");
        // In small units zeros are looked for in every byte.
        let small = name == "raw"
            || options
                .iter()
                .any(|(_, value)| matches!(*value, "4k" | "fixed"));
        for (way, threads) in [
            (Transfer::Copy, 1),
            (Transfer::Remote, 1),
            (Transfer::Remote, 2),
        ] {
            let copied = convert(way, threads);
            assert!(
                copied.bytes() == read.bytes(),
                "{what}: {way:?}, {threads} threads"
            );
            let asked = copied.asked.load(Ordering::Relaxed);
            assert_eq!(
                asked >= 31 * MIB,
                !small,
                "{what}: {way:?}, {threads} threads: {asked}"
            );
        }
    }
}
