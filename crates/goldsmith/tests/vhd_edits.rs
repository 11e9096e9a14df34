//! VHDs in place: children that go into their parents, find others, and grow.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;
use std::time::{Duration, SystemTime};

use goldsmith::{
    Check, Commit, Create, Edited, ErrorKind, NewSize, Opener, Preallocation, Rebase, References,
    Repair, Resize, Result,
};
use goldsmith_testkit::model::any_disk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, qemu};
use proptest::prelude::*;
use support::{Folder, convert, guest};

fn opener() -> Opener {
    Opener::new().references(References::Allow)
}

/// The VHD of `disk`, over the image `backing` of this format if there is one.
fn vhd(folder: &Folder, name: &str, disk: &ModelDisk, backing: Option<(&str, &str)>) {
    let raw = folder.write("raw", disk);
    let path = folder.path(name);
    let mut job = convert((&raw, "raw"), (&path, "vpc")).option("block_size", "512k");
    if let Some((backing, format)) = backing {
        job = job.backing(backing, format);
    }
    // Each disk is another one.
    let uuid = goldsmith::Uuid::new_v5(&goldsmith::Uuid::NAMESPACE_OID, name.as_bytes());
    job.uuid(uuid).run().unwrap();
}

#[track_caller]
fn assert_sound(path: &Path) {
    let (_, checked) = goldsmith::check(&opener(), path, Some("vpc"))
        .unwrap()
        .unwrap();
    assert_eq!(checked.flaws, []);
}

/// A snapshot is a child that holds nothing yet.
#[test]
fn snapshot_is_written_and_goes_back_into_its_parent() {
    let folder = Folder::new();
    let (before, after) = (disk("1M:A 2M:- 512:b"), disk("512:A 1M:c 1M:- 1M:d 512:b"));
    vhd(&folder, "base.vhd", &before, None);
    let (base, top) = (folder.path("base.vhd"), folder.path("top.vhd"));
    let created = Create::new(&top)
        .format("vpc")
        .option("backing_file", "base.vhd")
        .option("backing_fmt", "vpc")
        .opener(opener())
        .run()
        .unwrap();
    assert!(created.file_len < 5000, "{}", created.file_len);
    assert!(guest(&top, "vpc") == before.bytes());

    let mut grown = after.bytes().to_vec();
    grown.resize(before.bytes().len(), 0);
    vhd(&folder, "top.vhd", &after, Some(("base.vhd", "vpc")));
    Resize::new(&top, NewSize::Exactly(grown.len() as u64))
        .format("vpc")
        .shrink(true)
        .opener(opener())
        .run()
        .unwrap();
    assert!(guest(&top, "vpc") == grown);
    Commit::new(&top)
        .format("vpc")
        .opener(opener())
        .run()
        .unwrap();
    assert!(guest(&base, "vpc") == grown && guest(&top, "vpc") == grown);
    assert!(qemu::read("vpc", &std::fs::read(&base).unwrap()) == grown);
    assert_sound(&base);
    assert_sound(&top);
    // It knows its parent, though that has changed.
    let chain = opener().open(&top, Some("vpc")).unwrap();
    assert_eq!(chain.warnings(), [""; 0]);
}

#[test]
fn child_of_a_shorter_parent_makes_it_longer() {
    let folder = Folder::new();
    for kind in ["dynamic", "fixed"] {
        let raw = folder.write("raw", &disk("1M:A"));
        let base = folder.path("base.vhd");
        let job = convert((&raw, "raw"), (&base, "vpc")).option("subformat", kind);
        job.run().unwrap();
        let above = disk("1M:A 700k:b 300k:- 512:c");
        vhd(&folder, "top.vhd", &above, Some(("base.vhd", "vpc")));
        let top = folder.path("top.vhd");
        Commit::new(&top)
            .format("vpc")
            .opener(opener())
            .run()
            .unwrap();
        assert!(guest(&base, "vpc") == above.bytes(), "{kind}");
        assert!(qemu::read("vpc", &std::fs::read(&base).unwrap()) == above.bytes());
        assert_sound(&base);
    }
}

/// The system goes back from where a link leads to, and a path as it reads from where it stands: the names
/// that a child keeps lead to the disk that it was based on, not to another one of that name.
#[test]
fn names_of_a_parent_behind_links_lead_to_it() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("data/vms")).unwrap();
    std::fs::create_dir_all(folder.path("data/data")).unwrap();
    std::os::unix::fs::symlink("data/vms", folder.path("vms")).unwrap();
    let (below, other) = (disk("1M:A"), disk("1M:O"));
    let above = disk("512k:A 512k:b");
    let base = folder.write("data/base.raw", &below);
    // Where the names would lead if nobody followed the link.
    for name in ["base.raw", "data/data/base.raw"] {
        folder.write(name, &other);
    }
    let absolute = base.to_str().unwrap();
    for parent in [absolute, "../base.raw"] {
        std::fs::write(&base, below.bytes()).unwrap();
        vhd(&folder, "vms/top.vhd", &above, Some((parent, "raw")));
        let top = folder.path("vms/top.vhd");
        assert!(guest(&top, "vpc") == above.bytes(), "{parent}");
        Commit::new(&top)
            .format("vpc")
            .opener(opener())
            .run()
            .unwrap();
        assert!(std::fs::read(&base).unwrap() == above.bytes(), "{parent}");
        for name in ["base.raw", "data/data/base.raw"] {
            assert!(std::fs::read(folder.path(name)).unwrap() == other.bytes());
        }
        // What it is told once more leads there, too.
        let rebase = Rebase::new(&top)
            .format("vpc")
            .opener(opener())
            .unseen(true);
        rebase.onto(parent, Some("raw")).run().unwrap();
        assert!(guest(&top, "vpc") == above.bytes(), "{parent}");
    }
}

/// A RAW disk has no identity. By its name and time alone a child finds it, and the name may come to
/// mean another file.
#[test]
fn raw_parent_gets_nothing_unless_it_is_as_old_as_the_child_knows() {
    let folder = Folder::new();
    let (below, above) = (disk("1M:A"), disk("512k:A 512k:b"));
    let base = folder.write("base.raw", &below);
    let file = std::fs::File::options().write(true).open(&base).unwrap();
    let known = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    file.set_modified(known).unwrap();
    vhd(&folder, "top.vhd", &above, Some(("base.raw", "raw")));
    let top = folder.path("top.vhd");
    let commit = Commit::new(&top).format("vpc").opener(opener());
    let hour = Duration::from_secs(3600);
    for (time, order) in [(known + hour, "later"), (known - hour, "earlier")] {
        file.set_modified(time).unwrap();
        let before = std::fs::read(&top).unwrap();
        for commit in [
            commit.clone(),
            commit.clone().keep(true),
            commit.clone().dry_run(true),
        ] {
            let error = commit.run().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied);
            let report = error.report();
            assert!(
                report.contains(&format!("3600 seconds {order}"))
                    && report.contains(
                        "as after a commit that was cut off, base the image on it once more"
                    )
                    && report.contains("(commit -b)")
                    && report.contains("base.raw' has no identity"),
                "{report}"
            );
        }
        assert!(std::fs::read(&base).unwrap() == below.bytes());
        assert!(std::fs::read(&top).unwrap() == before);
    }

    // Both ways out: it is named, or the child is told once more.
    commit.clone().base("base.raw").run().unwrap();
    assert!(std::fs::read(&base).unwrap() == above.bytes());
    std::fs::write(&base, below.bytes()).unwrap();
    file.set_modified(known - Duration::from_secs(60)).unwrap();
    commit.run().unwrap_err();
    let rebase = Rebase::new(&top)
        .format("vpc")
        .opener(opener())
        .unseen(true);
    rebase.onto("base.raw", Some("raw")).run().unwrap();
    commit.run().unwrap();
    assert!(std::fs::read(&base).unwrap() == above.bytes());
    // And once more, for the child knows what it has done itself.
    commit.run().unwrap();
}

/// What a cut edit leaves before the footer shows in the block that QEMU allocates next.
#[test]
fn less_than_a_block_is_given_back_too() {
    let folder = Folder::new();
    vhd(&folder, "disk.vhd", &disk("1M:A 1M:-"), None);
    let path = folder.path("disk.vhd");
    let image = std::fs::read(&path).unwrap();
    let (body, footer) = image.split_at(image.len() - 512);
    for rest in [[0; 512], [7; 512]] {
        std::fs::write(&path, [body, &rest, footer].concat()).unwrap();
        let check = Check::new(&path).format("vpc").repair(Some(Repair::Leaks));
        check.run().unwrap().unwrap();
        assert!(std::fs::read(&path).unwrap() == image, "{}", rest[0]);
    }
}

/// What another disk shows would stay in the image, or what the image shows be lost because that has it,
/// too.
#[test]
fn image_is_not_changed_by_what_a_raw_parent_shows_that_may_be_another_disk() {
    let folder = Folder::new();
    let (below, above, topmost) = (disk("1M:A"), disk("512k:A 512k:b"), disk("1M:A"));
    let base = folder.write("base.raw", &below);
    let file = std::fs::File::options().write(true).open(&base).unwrap();
    let known = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    file.set_modified(known).unwrap();
    vhd(&folder, "mid.vhd", &above, Some(("base.raw", "raw")));
    vhd(&folder, "top.vhd", &topmost, Some(("mid.vhd", "vpc")));
    vhd(&folder, "alone.vhd", &above, None);
    let (mid, top) = (folder.path("mid.vhd"), folder.path("top.vhd"));
    let overlay = folder.path("overlay.qcow2");
    Create::new(&overlay)
        .format("qcow2")
        .option("backing_file", "mid.vhd")
        .option("backing_fmt", "vpc")
        .opener(opener())
        .run()
        .unwrap();
    let alone = folder.path("alone.vhd");
    let source = folder.write("source", &disk("512k:- 512k:b"));
    let rebase = |path: &Path, format| Rebase::new(path).format(format).opener(opener());
    let resize = |path: &Path, size| {
        let resize = Resize::new(path, NewSize::Exactly(size)).opener(opener());
        resize.format("vpc").shrink(true).run()
    };
    let commit = || Commit::new(&top).format("vpc").opener(opener());
    let into = || {
        let job = convert((&source, "raw"), (&mid, "vpc")).into_existing(opener());
        job.run().map(|_| Edited::default())
    };

    let before = [&mid, &top, &overlay, &alone].map(|path| std::fs::read(path).unwrap());
    file.set_modified(known + Duration::from_secs(3600))
        .unwrap();
    std::fs::write(&base, disk("1M:O").bytes()).unwrap();
    file.set_modified(known + Duration::from_secs(3600))
        .unwrap();
    let changes: [(&str, &dyn Fn() -> Result<Edited>); 9] = [
        ("alone", &|| rebase(&mid, "vpc").run()),
        ("alone, rehearsed", &|| {
            rebase(&mid, "vpc").dry_run(true).run()
        }),
        ("onto another one", &|| {
            rebase(&mid, "vpc").onto("alone.vhd", Some("vpc")).run()
        }),
        ("from another one", &|| {
            rebase(&alone, "vpc").onto("mid.vhd", Some("vpc")).run()
        }),
        ("at the end of a chain", &|| rebase(&overlay, "qcow2").run()),
        ("longer", &|| resize(&mid, 2 << 20)),
        ("commit above it", &|| commit().run()),
        ("named commit above it", &|| commit().base("mid.vhd").run()),
        ("written over", &into),
    ];
    for (what, change) in changes {
        let error = change().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Denied, "{what}");
        let report = error.report();
        assert!(
            report.contains("mid.vhd: ")
                && report.contains("base.raw' has no identity and was last changed 3600 seconds")
                && report.ends_with("base the image on it once more (rebase -u)"),
            "{what}: {report}"
        );
    }
    let after = [&mid, &top, &overlay, &alone].map(|path| std::fs::read(path).unwrap());
    assert!(after == before);

    // Nothing of it matters for a shorter disk.
    resize(&top, 512 << 10).unwrap();
    std::fs::write(&base, below.bytes()).unwrap();
    rebase(&mid, "vpc")
        .unseen(true)
        .onto("base.raw", Some("raw"))
        .run()
        .unwrap();
    rebase(&overlay, "qcow2").run().unwrap();
    assert!(guest(&overlay, "qcow2") == above.bytes());
    resize(&mid, 2 << 20).unwrap();
    rebase(&mid, "vpc").run().unwrap();
    assert!(guest(&mid, "vpc")[..1 << 20] == *above.bytes());
}

/// The disk would go on behind its old end with what the right one has there.
#[test]
fn disk_does_not_become_longer_over_a_raw_parent_that_was_cut() {
    let folder = Folder::new();
    let base = folder.write("base.raw", &disk("4M:A"));
    vhd(&folder, "top.vhd", &disk("1M:A"), Some(("base.raw", "raw")));
    let top = folder.path("top.vhd");
    let file = std::fs::File::options().write(true).open(&base).unwrap();
    file.set_len(1 << 20).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000))
        .unwrap();
    let before = std::fs::read(&top).unwrap();
    let resize = Resize::new(&top, NewSize::Exactly(2 << 20)).format("vpc");
    let error = resize.opener(opener()).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(std::fs::read(&top).unwrap() == before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_child_is_committed_and_rebased_to_the_byte(
        base in any_disk(3 << 20, 512),
        other in any_disk(3 << 20, 512),
        top in any_disk(3 << 20, 512),
        kind in 0u8..3,
    ) {
        let folder = Folder::new();
        vhd(&folder, "base.vhd", &base, None);
        vhd(&folder, "other.vhd", &other, None);
        folder.write("other.raw", &other);
        vhd(&folder, "top.vhd", &top, Some(("base.vhd", "vpc")));
        let path = folder.path("top.vhd");
        let rebase = Rebase::new(&path).format("vpc").opener(opener());
        let rebase = match kind {
            0 => rebase.onto("other.vhd", Some("vpc")),
            1 => rebase.onto("other.raw", Some("raw")),
            _ => rebase,
        };
        rebase.run().unwrap();
        prop_assert!(guest(&path, "vpc") == top.bytes());
        assert_sound(&path);
        if kind == 2 {
            // Whole now, so there is a judge.
            prop_assert!(qemu::read("vpc", &std::fs::read(&path).unwrap()) == top.bytes());
            Rebase::new(&path).format("vpc").opener(opener())
                .onto("other.vhd", Some("vpc")).run().unwrap();
            prop_assert!(guest(&path, "vpc") == top.bytes());
        }
        Commit::new(&path).format("vpc").opener(opener()).run().unwrap();
        prop_assert!(guest(&path, "vpc") == top.bytes());
        assert_sound(&path);
        let (name, format) = if kind == 1 { ("other.raw", "raw") } else { ("other.vhd", "vpc") };
        let below = guest(&folder.path(name), format);
        prop_assert!(below[..top.bytes().len()] == *top.bytes());
        if format == "vpc" {
            prop_assert!(qemu::read("vpc", &std::fs::read(folder.path(name)).unwrap()) == below);
        }
    }
}

/// The blocks that hide the parent where the disk grows, or that are allocated, must not stand where the longer
/// table is going to.
#[test]
fn small_disk_becomes_a_large_one_and_its_new_bytes_are_zeros() {
    let folder = Folder::new();
    vhd(&folder, "base.vhd", &disk("4M:A 796M:-"), None);
    let front = |path: &Path| {
        let chain = opener().open(path, Some("vpc")).unwrap();
        let mut bytes = vec![7; 8 << 20];
        chain.read_at(0, &mut bytes).unwrap();
        bytes
    };
    for small in [512 << 10, 256 << 10] {
        let top = folder.path("top.vhd");
        Create::new(&top)
            .format("vpc")
            .option("block_size", "512k")
            .option("backing_file", "base.vhd")
            .option("backing_fmt", "vpc")
            .size(small)
            .opener(opener())
            .run()
            .unwrap();
        Resize::new(&top, NewSize::Exactly(800 << 20))
            .format("vpc")
            .opener(opener())
            .run()
            .unwrap();
        let mut expected = disk("4M:A").bytes()[..small as usize].to_vec();
        expected.resize(8 << 20, 0);
        assert!(front(&top) == expected, "{small}");
        assert_sound(&top);
        std::fs::remove_file(top).unwrap();
    }
    // One that holds something is moved out of the way, and what stands behind it into its place.
    vhd(&folder, "full.vhd", &disk("256k:x"), None);
    let full = folder.path("full.vhd");
    Resize::new(&full, NewSize::Exactly(400 << 20))
        .format("vpc")
        .run()
        .unwrap();
    let mut expected = disk("256k:x").bytes().to_vec();
    expected.resize(8 << 20, 0);
    assert!(front(&full) == expected);
    assert_sound(&full);
    let small = folder.path("small.vhd");
    Create::new(&small)
        .format("vpc")
        .option("block_size", "512k")
        .size(20 << 20)
        .run()
        .unwrap();
    Resize::new(&small, NewSize::Exactly(2 << 30))
        .format("vpc")
        .preallocation(Preallocation::Metadata)
        .run()
        .unwrap();
    assert!(front(&small).iter().all(|byte| *byte == 0));
    assert_sound(&small);
}
