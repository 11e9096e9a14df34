//! `goldsmith compare`, held against `qemu-img compare`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

#[test]
fn answers_and_statuses_are_those_of_qemu_img() {
    let folder = Folder::new();
    let first = "64k:A 1M:- 64k:B";
    for (name, picture) in [
        ("a.raw", first),
        ("zeros.raw", "64k:A 1M:0 64k:B"),
        ("content.raw", "64k:A 1M:- 64k:C"),
        ("longer.raw", "64k:A 1M:- 64k:B 64k:-"),
        ("tail.raw", "64k:A 1M:- 64k:B 64k:D"),
    ] {
        folder.write(name, &disk(picture));
    }
    folder.qemu_img_ok("convert -f raw -O qcow2 a.raw a.qcow2");
    for line in [
        "compare -f raw -F raw a.raw zeros.raw",
        "compare -f raw -F qcow2 a.raw a.qcow2",
        "compare -f raw -F raw a.raw content.raw",
        "compare -f raw -F raw a.raw longer.raw",
        "compare -f raw -F raw longer.raw a.raw",
        "compare -f raw -F raw a.raw tail.raw",
        "compare -f raw -F raw tail.raw content.raw",
        "compare -s -f raw -F raw a.raw longer.raw",
        "compare -s -f raw -F raw a.raw a.raw",
        "compare -q -f raw -F raw a.raw content.raw",
    ] {
        let (ours, theirs) = (folder.goldsmith(line), folder.qemu_img(line));
        assert_eq!(
            (ours.status, ours.stdout),
            (theirs.status, theirs.stdout),
            "{line}"
        );
        assert_eq!(ours.stderr, "", "{line}");
    }
}

/// Allocation is what is stored and what has a place, as with QEMU.
#[test]
fn strict_comparison_finds_places_that_are_kept() {
    let folder = Folder::new();
    for line in [
        "create -q -f qcow2 -o extended_l2=on sub.qcow2 1M",
        "create -q -f qcow2 -o cluster_size=4k small.qcow2 1M",
        "create -q -f qcow2 -o extended_l2=on kept.qcow2 1M",
        "create -q -f qcow2 none.qcow2 1M",
        "create -q -f qcow2 -o preallocation=metadata holes.qcow2 1M",
    ] {
        folder.qemu_img_ok(line);
    }
    let data = "write -P 7 136k 4k";
    for name in ["sub.qcow2", "small.qcow2"] {
        folder.qemu_io(name, &[data]);
    }
    folder.qemu_io("kept.qcow2", &["write 128k 64k", "write -z 128k 64k"]);
    folder.qemu_io("none.qcow2", &["write -z 128k 64k"]);
    for (a, b, at) in [
        ("sub", "small", 128 << 10),
        ("kept", "none", 128 << 10),
        ("holes", "none", 0),
    ] {
        for line in [
            format!("{a}.qcow2 {b}.qcow2"),
            format!("{b}.qcow2 {a}.qcow2"),
        ] {
            let line = format!("compare -s -f qcow2 -F qcow2 {line}");
            let (ours, theirs) = (folder.goldsmith(&line), folder.qemu_img(&line));
            assert_eq!((ours.status, &ours.stdout), (1, &theirs.stdout), "{line}");
            assert!(
                ours.stdout.contains(&format!("Offset {at} ")),
                "{line}: {ours:?}"
            );
        }
    }
}

/// QEMU holds against each other, too, whether a run goes on to the end of the disk, and so names the start
/// of a run that is alike in both; what is named here is the first byte that is allocated otherwise.
#[test]
fn strict_comparison_names_the_first_byte_that_differs() {
    let folder = Folder::new();
    folder.write("full.raw", &disk("1M:A"));
    folder.write("half.raw", &disk("512k:A"));
    let half = std::fs::File::options()
        .write(true)
        .open(folder.path("half.raw"));
    half.unwrap().set_len(1 << 20).unwrap();
    let line = "compare -s -f raw -F raw full.raw half.raw";
    let (ours, theirs) = (folder.goldsmith(line), folder.qemu_img(line));
    assert_eq!((ours.status, theirs.status), (1, 1));
    assert!(ours.stdout.contains("Offset 524288 "), "{ours:?}");
    assert!(theirs.stdout.contains("Offset 0 "), "{theirs:?}");
}

#[test]
fn image_that_cannot_be_opened_is_status_2() {
    let folder = Folder::new();
    folder.write("a.raw", &disk("64k:A"));
    for line in ["compare a.raw missing", "compare -F qcow2 a.raw a.raw"] {
        assert_eq!(folder.goldsmith(line).status, 2);
        assert_eq!(folder.qemu_img(line).status, 2);
    }
}

/// 1 says that the images differ, and nothing else does.
#[test]
fn answer_that_cannot_be_given_is_no_difference() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("64k:A"));
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    command.current_dir(folder.path("")).stdout(full.unwrap());
    let done = command
        .args("compare -f raw -F raw disk.raw disk.raw".split(' '))
        .output();
    let done = done.unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("cannot write to standard output"));
}

/// One would mean that something was found.
#[test]
fn value_that_makes_no_sense_has_the_status_of_a_failure() {
    let twins = Twins::new(|folder| folder.write("a", &disk("1M:A")));
    for line in ["compare -T foo a a", "compare -f foo a a"] {
        let (ours, theirs) = twins.run(line);
        assert_eq!((ours.status, theirs.status), (2, 2), "{line}: {ours:?}");
    }
    for line in [
        "lint --for kvm",
        "lint --for kvm --bogus a",
        "lint --for nowhere a",
    ] {
        assert_eq!(twins.ours.goldsmith(line).status, 2, "{line}");
    }
}
