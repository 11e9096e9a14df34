//! Images edited in place: whatever is done, the guest sees what it should.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith::{
    Cancel, Commit, Create, Edited, ErrorKind, NewSize, Opener, Rebase, References, Resize, Result,
    SnapshotName, Snapshots,
};
use goldsmith_storage::{FileStorage, Use, lock};
use goldsmith_testkit::hostile::SECRET;
use goldsmith_testkit::model::{ModelDisk, any_disk};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
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
/// What VHD takes behind it.
const PARENTS: std::ops::Range<usize> = 7..11;

/// For a base, an image over it, one over that, and one to be based on instead.
fn shapes() -> impl Strategy<Value = [usize; 4]> {
    let any = || 0..SHAPES.len();
    prop_oneof![
        [any(), QCOW2, QCOW2, any()],
        [PARENTS, VPC, QCOW2, any()],
        [PARENTS, VPC, VPC, PARENTS],
    ]
}

/// Something to do with the topmost image.
#[derive(Clone, Copy, Debug)]
enum Act {
    Commit { deep: bool, keep: bool },
    Rebase(Option<&'static str>),
    Resize(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let onto = prop::sample::select(vec![None, Some("base"), Some("middle"), Some("other")]);
    prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(deep, keep)| Act::Commit { deep, keep }),
        onto.prop_map(Act::Rebase),
        (1u64..3000).prop_map(|sectors| Act::Resize(sectors * 512)),
    ]
}

/// A chain of three images, and one more, with the formats of all.
struct Images {
    folder: Folder,
    formats: [(&'static str, &'static str); 4],
}

impl Images {
    fn new(disks: &[ModelDisk; 4], shapes: [usize; 4]) -> Self {
        let names = ["base", "middle", "top", "other"];
        let behind = [None, Some(0), Some(1), None];
        let folder = Folder::new();
        let shape = |at: usize| SHAPES[shapes[at]];
        for (at, name) in names.into_iter().enumerate() {
            let (format, options) = shape(at);
            let raw = folder.write("disk", &disks[at]);
            let mut job = convert((&raw, "raw"), (&folder.path(name), format));
            for (key, value) in options {
                // One for each image.
                let value = match *key {
                    "data_file" => format!("{name}.data"),
                    _ => (*value).to_owned(),
                };
                job = job.option(*key, value);
            }
            if let Some(behind) = behind[at] {
                job = job.backing(names[behind], shape(behind).0);
            }
            // Children know their parents by it.
            job.uuid(goldsmith::Uuid::from_u128(at as u128 + 1))
                .run()
                .unwrap();
        }
        let formats = [0, 1, 2, 3].map(|at| (names[at], shape(at).0));
        Self { folder, formats }
    }

    fn format(&self, name: &str) -> &'static str {
        let mut formats = self.formats.iter();
        formats.find(|(known, _)| *known == name).unwrap().1
    }

    fn run(&self, act: Act, dry_run: bool) -> Result<Edited> {
        let (top, format) = (self.folder.path("top"), self.format("top"));
        let opener = Opener::new().references(References::Allow);
        match act {
            Act::Commit { deep, keep } => {
                let commit = Commit::new(top).opener(opener).format(format);
                let commit = commit.keep(keep).dry_run(dry_run);
                match deep {
                    true => commit.base("base").run(),
                    false => commit.run(),
                }
            }
            Act::Rebase(onto) => {
                let rebase = Rebase::new(top).opener(opener).format(format);
                let rebase = rebase.dry_run(dry_run);
                match onto {
                    Some(name) => rebase.onto(name, Some(self.format(name))).run(),
                    None => rebase.run(),
                }
            }
            Act::Resize(size) => Resize::new(top, NewSize::Exactly(size))
                .opener(opener)
                .format(format)
                .shrink(true)
                .dry_run(dry_run)
                .run(),
        }
    }

    /// Which image `act` writes to first, once the topmost is over `behind`.
    fn written(act: Act, behind: &'static str) -> &'static str {
        match act {
            Act::Commit { deep: true, .. } => "base",
            Act::Commit { deep: false, .. } => behind,
            Act::Rebase(_) | Act::Resize(_) => "top",
        }
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.folder.names();
        let read = |name: &String| std::fs::read(self.folder.path(name)).unwrap();
        names
            .iter()
            .map(|name| (name.clone(), read(name)))
            .collect()
    }

    /// The guest of the topmost image sees `expected`, and nothing is wrong with any image.
    fn assert_sound(&self, expected: &[u8], what: &str) {
        assert!(
            guest(&self.folder.path("top"), self.format("top")) == expected,
            "{what}"
        );
        for (name, format) in self.formats {
            let found = goldsmith::check(&Opener::new(), self.folder.path(name), Some(format));
            if let Some((_, checked)) = found.unwrap() {
                assert_eq!(
                    (checked.corruptions, checked.errors),
                    (0, 0),
                    "{what}: {name}"
                );
            }
        }
        let readable = self.formats.iter().all(|(_, format)| *format != "vpc");
        let alone = self
            .folder
            .names()
            .iter()
            .all(|name| !name.ends_with(".data"));
        if readable && alone {
            std::fs::write(self.folder.path("expected"), expected).unwrap();
            let top = self.folder.path("top");
            qemu::compare(
                &top,
                self.format("top"),
                self.folder.path("expected"),
                "raw",
            );
            std::fs::remove_file(self.folder.path("expected")).unwrap();
        }
    }
}

/// Makes the image at `path` one that was not closed, and of which all copied flags are wrong: whoever changes
/// it moves all its tables first. Others than qcow2 of version 3 have no mark for that.
fn leave_open(path: &Path) {
    const COPIED: u64 = 1 << 63;
    let mut image = std::fs::read(path).unwrap();
    let number =
        |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    if !image.starts_with(b"QFI\xfb\0\0\0\x03") {
        return;
    }
    let incompatible = image[79];
    let cluster_size = 1 << image[23];
    let (table, len) = (
        number(&image, 40) as usize,
        number(&image, 32) as u32 as usize,
    );
    let mut clear = |at: usize| {
        let entry = number(&image, at) & !COPIED;
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        entry
    };
    for entry in (table..).step_by(8).take(len) {
        let l2 = clear(entry) as usize;
        // In a data file of its own, the flag alone says that a cluster is there.
        if l2 == 0 || incompatible & 4 != 0 {
            continue;
        }
        let step = if incompatible & 16 != 0 { 16 } else { 8 };
        for entry in (l2..l2 + cluster_size).step_by(step) {
            clear(entry);
        }
    }
    image[79] |= 1;
    std::fs::write(path, image).unwrap();
}

/// What happens to the chain when the topmost image is based elsewhere: it may have nothing to
/// commit to, or another image than the base at its end.
fn makes_sense(done: &[Act], act: Act) -> bool {
    let onto = done.iter().rev().find_map(|act| match act {
        Act::Rebase(onto) => Some(*onto),
        _ => None,
    });
    match act {
        Act::Commit { deep, .. } => match onto.unwrap_or(Some("middle")) {
            None => false,
            Some("other") => !deep,
            Some(_) => true,
        },
        _ => true,
    }
}

#[test]
fn guest_sees_what_it_should_after_any_edits() {
    let disk = || any_disk(1 << 20, 512);
    let strategy = (
        [disk(), disk(), disk(), disk()],
        shapes(),
        prop::collection::vec((act(), any::<bool>()), 1..4),
    );
    let mut runner = TestRunner::new(Config {
        cases: 250,
        ..Config::default()
    });
    let result = runner.run(&strategy, |(disks, shapes, acts)| {
        let images = Images::new(&disks, shapes);
        let what = format!("{shapes:?} {disks:?} {acts:?}");
        let mut expected = disks[2].bytes().to_vec();
        images.assert_sound(&expected, &what);
        let mut done = Vec::new();
        for (act, is_open) in acts {
            if !makes_sense(&done, act) {
                continue;
            }
            if is_open {
                let onto = done.iter().rev().find_map(|act| match act {
                    Act::Rebase(onto) => *onto,
                    _ => None,
                });
                let name = Images::written(act, onto.unwrap_or("middle"));
                leave_open(&images.folder.path(name));
            }
            let what = format!("{act:?} of {what}");
            let before = images.files();
            let rehearsed = images.run(act, true);
            assert!(
                before == images.files(),
                "{what}: rehearsed, and changed something"
            );
            let edited = images.run(act, false);
            let edited = edited.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            let rehearsed = rehearsed.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            assert_eq!(rehearsed.copied, edited.copied, "{what}");
            if let Act::Resize(size) = act {
                expected.resize(size as usize, 0);
            }
            images.assert_sound(&expected, &what);
            done.push(act);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

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
    let (top, base) = (disk("16M:T 1M:- 16M:t"), disk("8M:A 25M:B"));
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
        assert!(checked.is_none_or(|(_, checked)| checked.corruptions == 0));
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
