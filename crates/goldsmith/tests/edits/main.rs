//! Images edited in place: whatever is done, the guest sees what it should.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod histories;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith::{
    Cancel, Commit, Create, ErrorKind, NewSize, Opener, Rebase, References, Resize, SnapshotName,
    Snapshots,
};
use goldsmith_storage::{FileStorage, Use, lock};
use goldsmith_testkit::hostile::SECRET;
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert, guest};

/// A format and creation options.
type Shape = (&'static str, &'static [(&'static str, &'static str)]);

const SHAPES: &[Shape] = &[
    ("qcow2", &[]),
    ("qcow2", &[("cluster_size", "512"), ("refcount_bits", "1")]),
    ("qcow2", &[("cluster_size", "4k"), ("compat", "0.10")]),
    ("qcow2", &[("cluster_size", "2M")]),
    ("qcow2", &[("extended_l2", "on")]),
    ("qcow2", &[("extended_l2", "on"), ("cluster_size", "16k")]),
    ("qcow2", &[("data_file", "data")]),
    ("vpc", &[]),
    ("vpc", &[("block_size", "512k")]),
    ("raw", &[]),
    ("vpc", &[("subformat", "fixed")]),
];
/// Those of qcow2, which take anything behind them.
const QCOW2: std::ops::Range<usize> = 0..7;
/// Those of VHD that can have something behind them.
const VPC: std::ops::Range<usize> = 7..9;
/// What an image over nothing does not hold are zeros, and must stay so over something.
#[test]
fn image_over_nothing_stays_the_disk_it_is_over_something() {
    let disk = disk("512:T 700k:- 64k:0 512:x 2M:- 3k:y 400k:-");
    for (format, options) in SHAPES.iter().take(VPC.end) {
        let folder = Folder::new();
        let raw = folder.write("disk", &disk);
        folder.write("base", &goldsmith_testkit::pattern::disk("3M:M"));
        let top = folder.path("top");
        let mut job = convert((&raw, "raw"), (&top, format));
        for (key, value) in *options {
            job = job.option(*key, *value);
        }
        job.run().unwrap();
        let what = format!("{format} {options:?}");
        Rebase::new(&top)
            .opener(Opener::new().references(References::SameDirectory))
            .onto("base", Some("raw"))
            .run()
            .unwrap_or_else(|error| panic!("{what}: {}", error.report()));
        assert!(guest(&top, format) == disk.bytes(), "{what}");
        let chain = support::open(&top, format);
        assert_eq!(chain.layers().len(), 2, "{what}");
        drop(chain);
        // Zeros that it says itself by now stay said, too.
        for behind in [None, Some("base")] {
            let opener = Opener::new().references(References::SameDirectory);
            let mut rebase = Rebase::new(&top).opener(opener);
            if let Some(name) = behind {
                rebase = rebase.onto(name, Some("raw"));
            }
            rebase.run().unwrap();
            assert!(
                guest(&top, format) == disk.bytes(),
                "{what}, over {behind:?}"
            );
        }
    }
}

fn commit(folder: &Folder) -> Commit<'static> {
    Commit::new(folder.path("top"))
        .opener(Opener::new().references(References::SameDirectory))
        .format("qcow2")
}

fn overlay(top: &ModelDisk, base: &ModelDisk, format: &str) -> Folder {
    let folder = Folder::new();
    let raw = folder.write("base.raw", base);
    convert((&raw, "raw"), (&folder.path("base"), format))
        .run()
        .unwrap();
    let raw = folder.write("top.raw", top);
    let job = convert((&raw, "raw"), (&folder.path("top"), "qcow2"));
    job.backing("base", format).run().unwrap();
    folder
}

/// Half of it may stand in the base then; the image shows what it did, and can be committed again.
#[test]
fn commit_that_is_stopped_changes_nothing_that_the_guest_sees() {
    let (top, base) = (disk("16M:T 1M:- 16M:t"), disk("8M:A 17M:- 8M:B"));
    for format in ["raw", "qcow2", "vpc"] {
        let folder = overlay(&top, &base, format);
        let (cancel, seen) = (Cancel::new(), AtomicU64::new(0));
        let stop = |_| {
            if seen.fetch_add(1, Ordering::Relaxed) == 5 {
                cancel.cancel();
            }
        };
        let error = commit(&folder)
            .progress(&stop)
            .cancel(&cancel)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(
            guest(&folder.path("top"), "qcow2") == top.bytes(),
            "{format}"
        );
        let checked = goldsmith::check(&Opener::new(), folder.path("base"), Some(format)).unwrap();
        assert!(checked.is_none_or(|(_, checked)| {
            // What QEMU shows in its next block is no leak of the harmless kind.
            checked.corruptions == 0 && (format != "vpc" || checked.leaks == 0)
        }));
        commit(&folder).run().unwrap();
        assert!(
            guest(&folder.path("base"), format) == top.bytes(),
            "{format}"
        );
        assert!(
            guest(&folder.path("top"), "qcow2") == top.bytes(),
            "{format}"
        );
    }
}

/// All files that are to be written are had before the first is.
#[test]
fn commit_waits_for_no_file_when_it_has_begun() {
    let folder = Folder::new();
    let raw = folder.write("base", &disk("1M:A"));
    let top = (&*folder.path("top"), "qcow2");
    let job = convert((&raw, "raw"), top).option("data_file", folder.text("data"));
    job.backing("base", "raw").run().unwrap();
    let data = folder.path("data");
    qemu::io_ok(folder.path("top"), "qcow2", &["write -P 7 64k 64k"]);
    let other = FileStorage::edit(&data).unwrap();
    lock(&other, Use::Write).unwrap();
    let error = commit(&folder).run().unwrap_err();
    assert!(error.report().contains("data"), "{}", error.report());
    assert!(std::fs::read(&raw).unwrap() == disk("1M:A").bytes());
    drop(other);
    commit(&folder).run().unwrap();
    let mut expected = disk("1M:A").bytes().to_vec();
    expected[64 << 10..128 << 10].fill(7);
    assert!(std::fs::read(&raw).unwrap() == expected);
}

/// Nothing is copied for the snapshots of an image, by QEMU neither.
#[test]
fn who_changes_what_is_behind_snapshots_is_told() {
    let (top, base) = (disk("1M:T 1M:-"), disk("2M:A"));
    let folder = overlay(&top, &base, "raw");
    let quiet = commit(&folder).dry_run(true).run().unwrap();
    assert_eq!(quiet.warnings, [""; 0]);
    Snapshots::new(folder.path("top")).take("one").unwrap();
    let rebase = Rebase::new(folder.path("top"))
        .format("qcow2")
        .dry_run(true);
    let rebase = rebase.opener(Opener::new().references(References::SameDirectory));
    for edited in [commit(&folder).dry_run(true).run(), rebase.run()] {
        let warnings = edited.unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("snapshots show"), "{warnings:?}");
    }
}

#[test]
fn rebase_that_is_stopped_changes_nothing_that_the_guest_sees() {
    let (top, base) = (disk("1M:T 31M:B 1M:t"), disk("33M:B"));
    let folder = overlay(&top, &base, "raw");
    folder.write("other", &disk("20M:O"));
    let (cancel, seen) = (Cancel::new(), AtomicU64::new(0));
    let stop = |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == 5 {
            cancel.cancel();
        }
    };
    let rebase = Rebase::new(folder.path("top"))
        .opener(Opener::new().references(References::SameDirectory))
        .onto("other", Some("raw"));
    let error = rebase
        .clone()
        .progress(&stop)
        .cancel(&cancel)
        .run()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(guest(&folder.path("top"), "qcow2") == top.bytes());
    rebase.run().unwrap();
    assert!(guest(&folder.path("top"), "qcow2") == top.bytes());
    qemu::check(folder.path("top"));
}

/// What an image names is followed as far as the policy goes, and no further.
#[test]
fn edits_keep_to_the_policy() {
    let folder = overlay(&disk("1M:T"), &disk("1M:B"), "raw");
    let before = std::fs::read(folder.path("top")).unwrap();
    let deny = |error: goldsmith::Error| assert_eq!(error.kind(), ErrorKind::Denied);
    deny(Commit::new(folder.path("top")).run().unwrap_err());
    deny(Rebase::new(folder.path("top")).run().unwrap_err());
    let size = NewSize::Exactly(2 << 20);
    deny(Resize::new(folder.path("top"), size).run().unwrap_err());
    assert!(before == std::fs::read(folder.path("top")).unwrap());
    // What a user names himself is no reference of the image.
    Rebase::new(folder.path("top"))
        .onto("base", Some("raw"))
        .unseen(true)
        .run()
        .unwrap();
    Create::new(folder.path("new"))
        .format("qcow2")
        .backing("base", "raw")
        .run()
        .unwrap();
}

#[test]
fn encrypted_image_is_edited_with_its_passphrase() {
    let folder = Folder::new();
    let raw = folder.write("base", &disk("4M:B"));
    let top = folder.path("top");
    let create = Create::new(&top)
        .format("qcow2")
        .backing("base", "raw")
        .option("encrypt.format", "luks")
        .option("encrypt.key-secret", "s")
        .option("encrypt.iter-time", "10")
        .secret("s", SECRET);
    create.run().unwrap();
    let opener = || {
        Opener::new()
            .references(References::SameDirectory)
            .secret("s", SECRET)
            .option("encrypt.key-secret", "s")
    };
    // Everything comes to stand in the image itself, encrypted.
    Rebase::new(&top).opener(opener()).run().unwrap();
    let chain = opener().open(&top, Some("qcow2")).unwrap();
    let mut bytes = vec![0; 4 << 20];
    chain.read_at(0, &mut bytes).unwrap();
    assert!(bytes == std::fs::read(&raw).unwrap());
    drop(chain);
    let (file, line) = (std::fs::read(&top).unwrap(), b"B00000000000000\n");
    assert!(bytes == qemu::read("qcow2", &file));
    assert!(bytes.starts_with(line));
    assert!(
        !file.windows(line.len()).any(|bytes| bytes == line),
        "as plain text"
    );
    // And back into a base.
    Rebase::new(&top)
        .opener(opener())
        .onto("base", Some("raw"))
        .unseen(true)
        .run()
        .unwrap();
    std::fs::write(&raw, vec![0; 4 << 20]).unwrap();
    Commit::new(&top).opener(opener()).run().unwrap();
    assert!(bytes == std::fs::read(&raw).unwrap());
}

#[test]
fn snapshot_keeps_what_is_committed_over() {
    let (top, base) = (disk("512k:T 512k:-"), disk("1M:B"));
    let folder = overlay(&top, &base, "qcow2");
    let snapshots = Snapshots::new(folder.path("base")).taken(1_000_000_000, 5);
    snapshots.take("before").unwrap();
    commit(&folder).run().unwrap();
    assert!(guest(&folder.path("base"), "qcow2") == top.bytes());
    let list = snapshots.list().unwrap();
    assert_eq!(
        (list[0].taken_seconds, list[0].taken_nanoseconds),
        (1_000_000_000, 5)
    );
    let name = SnapshotName::IdOrName("before".into());
    snapshots.apply(&name).unwrap();
    assert!(guest(&folder.path("base"), "qcow2") == base.bytes());
    snapshots.delete(&name).unwrap();
    check_alone(&folder.path("base"));
}

fn check_alone(path: &Path) {
    qemu::check(path);
    let (_, checked) = goldsmith::check(&Opener::new(), path, Some("qcow2"))
        .unwrap()
        .unwrap();
    assert_eq!((checked.corruptions, checked.leaks), (0, 0));
}
