//! A target stands under its name complete, or not at all.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;
use std::sync::Arc;

use goldsmith::{Cancel, ErrorKind, Opener, Progress};
use goldsmith_block::{Budget, Edit, Format, GuestRange, NewBitmap, Options};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::FileStorage;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert, guest};

/// Cuts the file at `path` to `len` bytes.
fn cut(path: &Path, len: u64) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

#[test]
fn truncated_source_leaves_no_target_and_says_where() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("4M:A 1M:- 4M:B"));
    for (name, format, compress) in [
        ("plain", "qcow2", false),
        ("packed", "qcow2", true),
        ("dynamic", "vpc", false),
    ] {
        let source = folder.path(name);
        convert((&raw, "raw"), (&source, format))
            .compress(compress)
            .run()
            .unwrap();
        let len = source.metadata().unwrap().len();
        if format == "vpc" {
            // Keep the footer: without it there is no VHD to read at all.
            let bytes = std::fs::read(&source).unwrap();
            let mut half = bytes[..bytes.len() / 2 / 512 * 512].to_vec();
            half.extend_from_slice(&bytes[bytes.len() - 512..]);
            std::fs::write(&source, half).unwrap();
        } else {
            tables_first(&raw, &source, compress);
            cut(&source, source.metadata().unwrap().len() / 2);
        }
        assert!(source.metadata().unwrap().len() < len);
        let target = folder.path("target");
        let error = convert((&source, format), (&target, "raw"))
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
        let report = error.report();
        assert!(report.contains(source.to_str().unwrap()), "{report}");
        // 4 MiB of data, of which the file lost the end of the second run or all of it.
        let guest = error.guest().expect("it names the guest's bytes");
        assert!(guest.start >= 2 << 20 && guest.end <= 9 << 20, "{report}");
        assert!(report.contains(&format!("guest range {guest}")), "{report}");
        let truncated = report.contains("truncated") || report.contains("past the end of the file");
        assert!(truncated, "{report}");
        assert!(!target.exists());
    }
    assert_eq!(folder.names(), ["disk.raw", "dynamic", "packed", "plain"]);
}

/// Lets qemu-img write the image: its tables stand before the data, so a cut leaves them whole.
fn tables_first(raw: &Path, image: &Path, compress: bool) {
    let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
    args.extend(compress.then_some("-c"));
    args.extend([raw, image]);
    qemu::img_ok(&args);
}

#[test]
fn failed_conversion_keeps_what_stood_there() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("4M:A"));
    let image = folder.path("image");
    tables_first(&raw, &image, false);
    cut(&image, 2 << 20);
    let target = folder.path("target");
    std::fs::write(&target, "my only copy").unwrap();

    assert!(convert((&image, "qcow2"), (&target, "raw")).run().is_err());
    assert!(
        convert((&raw, "raw"), (&target, "qcow2"))
            .option("nonsense", "1")
            .run()
            .is_err()
    );
    assert!(convert((&raw, "raw"), (&target, "nonsense")).run().is_err());
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(
        convert((&raw, "raw"), (&target, "raw"))
            .cancel(&cancel)
            .run()
            .is_err()
    );

    assert_eq!(std::fs::read(&target).unwrap(), b"my only copy");
    assert_eq!(folder.names(), ["disk.raw", "image", "target"]);
}

/// What is allocated behind the copied disk may be most of it.
#[test]
fn conversion_is_stopped_after_the_disk_was_copied() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("64k:A 8M:-"));
    // Of large disks a rehearsal takes hours, too.
    for dry_run in [false, true] {
        let cancel = Cancel::new();
        let at_the_end = |progress: Progress| {
            if progress.done == progress.total {
                cancel.cancel();
            }
        };
        let error = convert((&raw, "raw"), (&folder.path("target"), "qcow2"))
            .option("preallocation", "full")
            .dry_run(dry_run)
            .progress(&at_the_end)
            .cancel(&cancel)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
        assert_eq!(folder.names(), ["disk.raw"]);
    }
}

/// A stranger says how many there are.
#[test]
fn conversion_is_stopped_while_it_copies_bitmaps() {
    let folder = Folder::new();
    let (disk, target) = (folder.path("disk"), folder.path("target"));
    for path in [&disk, &target] {
        qemu::img_ok(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    }
    qemu::img_ok(&["bitmap", "--add", disk.to_str().unwrap(), "days"]);
    let before = std::fs::read(&target).unwrap();
    for opener in [None, Some(goldsmith::Opener::new())] {
        let cancel = Cancel::new();
        let at_the_end = |progress: Progress| {
            if progress.done == progress.total {
                cancel.cancel();
            }
        };
        let mut convert = convert((&disk, "qcow2"), (&target, "qcow2"))
            .bitmaps(goldsmith::Bitmaps::All)
            .progress(&at_the_end)
            .cancel(&cancel);
        if let Some(opener) = opener {
            convert = convert.into_existing(opener);
        }
        let error = convert.run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
        assert_eq!(folder.names(), ["disk", "target"]);
        assert!(std::fs::read(&target).unwrap() == before);
    }
}

/// Each fits into the memory that may be taken, all together do not.
#[test]
fn bitmaps_are_copied_in_as_much_memory_as_one_takes() {
    let folder = Folder::new();
    let path = folder.path("disk");
    qemu::img_ok(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "64M"]);
    let every_other = (0..64 << 10).map(|nth| GuestRange::new(nth << 10, (nth << 10) + 512));
    let every_other: Vec<_> = every_other.collect();
    let bitmap = |name: &str| NewBitmap {
        name: name.into(),
        granularity: Some(512),
        enabled: true,
        dirty: every_other.clone(),
    };
    let bitmaps = ["mon", "tue", "wed"].map(bitmap).to_vec();
    let storage = Arc::new(FileStorage::edit(&path).unwrap());
    let budget = Budget::new(&goldsmith::Limits::default());
    let options = Options::defaults(QCOW2.open_options());
    let mut editor = QCOW2.edit(storage, &budget, &options).unwrap();
    editor.edit(&Edit::AddBitmaps(bitmaps)).unwrap();
    drop(editor);
    let mut limits = goldsmith::Limits::default();
    limits.metadata_bytes = 2 << 20;
    let opener = || Opener::new().limits(limits.clone());
    let there = folder.path("there");
    qemu::img_ok(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        there.to_str().unwrap(),
        "64M",
    ]);
    for (name, existing) in [("new", None), ("there", Some(opener()))] {
        let target = folder.path(name);
        let mut convert = convert((&path, "qcow2"), (&target, "qcow2"))
            .opener(opener())
            .bitmaps(goldsmith::Bitmaps::All);
        if let Some(opener) = existing {
            convert = convert.into_existing(opener);
        }
        convert.run().unwrap();
        qemu::check(&target);
        let copied = Opener::new().open(&target, Some("qcow2")).unwrap();
        assert_eq!(copied.top().info().bitmaps.len(), 3);
        for index in 0..3 {
            let dirty = copied.top().dirty_ranges(index, &budget).unwrap();
            assert!(dirty == every_other, "{name}: {index}");
        }
    }
}

#[test]
fn finished_conversion_replaces_what_stood_there() {
    let folder = Folder::new();
    let picture = disk("4M:A 512:b");
    let raw = folder.write("disk.raw", &picture);
    let target = folder.path("target");
    std::fs::write(&target, vec![9; 64 << 20]).unwrap();
    convert((&raw, "raw"), (&target, "qcow2")).run().unwrap();
    assert!(guest(&target, "qcow2") == picture.bytes());
    assert_eq!(folder.names(), ["disk.raw", "target"]);
}

#[test]
fn target_that_is_a_file_of_the_source_is_refused() {
    let folder = Folder::new();
    let raw = folder.write("base.raw", &disk("1M:A"));
    let top = folder.path("top.qcow2");
    let image = top.to_str().unwrap();
    let base = raw.to_str().unwrap();
    qemu::img_ok(&[
        "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image, "1M",
    ]);
    let link = folder.path("link");
    std::os::unix::fs::symlink(&raw, &link).unwrap();
    let before = std::fs::read(&raw).unwrap();
    for target in [&top, &raw, &link] {
        let error = convert((&top, "qcow2"), (target, "raw")).run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(
            error.report().contains("also a file of the source"),
            "{}",
            error.report()
        );
    }
    assert!(std::fs::read(&raw).unwrap() == before);
}

#[test]
fn errors_of_the_target_name_the_target() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A"));
    let target = folder.path("missing/target");
    let report = convert((&raw, "raw"), (&target, "raw"))
        .run()
        .unwrap_err()
        .report();
    assert!(report.starts_with(target.to_str().unwrap()), "{report}");
    assert!(report.contains("No such file or directory"), "{report}");
}
