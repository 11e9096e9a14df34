//! `goldsmith dd`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:A 1M:- 300k:b 512:C"));
        folder.write("odd.raw", &disk("5k:A 100:b"));
        folder.qemu_img_ok("create -q -f qcow2 -b disk.raw -F raw disk.qcow2 3M");
        folder.qemu_io("disk.qcow2", &["write -P 1 100k 300k", "write -z 64k 64k"]);
    })
}

#[test]
fn part_of_a_disk_is_that_of_qemu_img() {
    let twins = images();
    for (line, format) in [
        ("if=disk.raw of=out", "raw"),
        ("bs=1M if=disk.qcow2 of=out", "raw"),
        ("bs=64k count=3 if=disk.qcow2 of=out", "raw"),
        ("bs=64k skip=3 if=disk.qcow2 of=out", "raw"),
        ("bs=64k count=30 skip=3 if=disk.qcow2 of=out", "raw"),
        ("-f raw bs=64k skip=1 if=disk.qcow2 of=out", "raw"),
        ("-O qcow2 bs=100k skip=1 if=disk.raw of=out", "qcow2"),
        ("of=out -O qcow2 if=disk.qcow2 -U skip=4", "qcow2"),
        ("count=0 -O qcow2 if=disk.raw of=out", "qcow2"),
        ("count=9223372036854775807 if=disk.raw of=out", "raw"),
        (
            "--image-opts bs=1M skip=1 of=out if=driver=qcow2,file.filename=disk.qcow2",
            "raw",
        ),
        (
            "skip=99999 if=missing if=disk.raw of=lost of=out skip=100",
            "raw",
        ),
    ] {
        twins.both(&format!("dd {line}"));
        twins.same("out", format);
    }
}

/// QEMU's tools pad RAW images to whole sectors; a disk here ends where it ends.
#[test]
fn part_that_is_no_whole_sector_has_its_own_length() {
    let twins = images();
    for (line, len) in [
        ("if=odd.raw", 5220),
        ("bs=100 count=3 skip=1 if=odd.raw", 200),
    ] {
        let line = format!("dd {line} of=out");
        twins.both(&line);
        let read = |folder: &Folder| std::fs::read(folder.path("out")).unwrap();
        let (ours, theirs) = (read(&twins.ours), read(&twins.theirs));
        assert_eq!(ours.len(), len);
        assert_eq!(theirs.len(), len.next_multiple_of(512));
        assert!(theirs.starts_with(&ours));
    }
    twins.both("dd -O qcow2 bs=100 count=3 skip=1 if=odd.raw of=out");
    twins.same("out", "qcow2");
}

/// As in dd(1) that is no failure, so it is not said on standard error here.
#[test]
fn skipping_more_than_there_is_leaves_nothing() {
    let twins = images();
    for line in [
        "dd bs=1M skip=4 if=disk.qcow2",
        "dd bs=1k count=2 skip=4 if=disk.raw",
    ] {
        let (ours, theirs) = twins.run(&format!("{line} of=out"));
        assert_eq!((ours.status, &*ours.stderr), (0, ""), "{ours:?}");
        assert_eq!(theirs.status, 0);
        let why = "cannot skip to specified offset";
        assert!(ours.stdout.contains(why) && theirs.stderr.contains(why));
        for folder in [&twins.ours, &twins.theirs] {
            assert_eq!(std::fs::metadata(folder.path("out")).unwrap().len(), 0);
        }
    }
}

#[test]
fn what_dd_cannot_do_is_refused() {
    let twins = images();
    for (line, why) in [
        ("dd if=disk.raw", "Must specify both input and output files"),
        ("dd of=out", "Must specify both input and output files"),
        ("dd junk if=disk.raw of=out", "unrecognized operand junk"),
        ("dd seek=1 if=disk.raw of=out", "unrecognized operand seek"),
        (
            "dd conv=sync if=disk.raw of=out",
            "unrecognized operand conv",
        ),
        ("dd bs=0 if=disk.raw of=out", "Invalid bs specified"),
        (
            "dd bs=3000000000 if=disk.raw of=out",
            "Invalid bs specified",
        ),
        (
            "dd bs=big if=disk.raw of=out",
            "Invalid bs specified: 'big'",
        ),
        ("dd count=-1 if=disk.raw of=out", "Invalid count specified"),
        ("dd -O vmfs if=disk.raw of=out", "vmfs"),
        ("dd -f vmfs if=disk.raw of=out", "vmfs"),
        ("dd if=missing of=out", "No such file or directory"),
        (
            "dd -f raw --image-opts if=driver=raw,file.filename=disk.raw of=out",
            "-f",
        ),
    ] {
        twins.neither(line, why);
        assert!(!twins.ours.path("out").exists(), "{line}");
    }
    // QEMU empties it before it reads it.
    let before = std::fs::read(twins.ours.path("disk.raw")).unwrap();
    let done = twins.ours.goldsmith("dd if=disk.raw of=disk.raw");
    assert_eq!(done.status, 1);
    assert!(std::fs::read(twins.ours.path("disk.raw")).unwrap() == before);
}

/// An image of nothing but a hole costs nothing, however large.
#[test]
fn holes_are_not_copied() {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path("disk.raw")).unwrap();
    file.set_len(1 << 42).unwrap();
    folder.goldsmith_ok("dd bs=1M skip=1 if=disk.raw of=out");
    let metadata = std::fs::metadata(folder.path("out")).unwrap();
    assert_eq!(metadata.len(), (1 << 42) - (1 << 20));
    let map = folder.goldsmith_ok("map --output=json out");
    assert_eq!(map.lines().count(), 1, "{map}");
}
