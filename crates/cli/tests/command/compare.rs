//! `goldsmith compare`, held against `qemu-img compare`

use goldsmith_testkit::pattern::disk;

use crate::Folder;

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
