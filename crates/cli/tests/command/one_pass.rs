//! A container becomes an image, and nothing is stored on the way but that.

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

/// A folder with a disk in `disk.raw`, and in `disk.tgz` as a chain of two VHDs.
fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("base.raw", &disk("2M:A 6M:- 2M:b 2M:-"));
    folder.write(
        "disk.raw",
        &disk("1M:A 1M:C 3M:- 512:D 3145216:- 512:E 2096640:b 2M:-"),
    );
    for line in [
        "convert -f raw -O vpc -o batmap=on base.raw 1.vhd",
        "convert -f raw -O vpc -o batmap=on -B 1.vhd -F vpc disk.raw 0.vhd",
        "convert --keep-chain --references same-directory --for xenserver-ovf 0.vhd disk.tgz",
    ] {
        folder.goldsmith_ok(line);
    }
    folder
}

/// What the command does where no temporary file can be made, locked in.
fn nowhere(folder: &Folder, line: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    command.env("TMPDIR", "/nonexistent");
    command.env("GOLDSMITH_SANDBOX", "require");
    folder.run(command.args(line.split(' ')))
}

#[test]
fn chain_becomes_an_image_where_no_other_file_can_be_made() {
    let folder = prepared();
    for (line, target, format) in [
        ("-O raw", "disk.img", "raw"),
        ("-O vpc", "disk.vhd", "vpc"),
        ("-O vpc -o subformat=fixed", "fixed.vhd", "vpc"),
        ("-O qcow2", "disk.qcow2", "qcow2"),
        ("--for kvm", "kvm.qcow2", "qcow2"),
    ] {
        let done = nowhere(&folder, &format!("convert {line} disk.tgz {target}"));
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
        folder.qemu_img_ok(&format!("compare -f raw -F {format} disk.raw {target}"));
    }
    folder.qemu_img_ok("check -q disk.qcow2");
}

#[test]
fn container_is_mapped_and_told_of_where_no_file_can_be_made() {
    let folder = prepared();
    let [chain, outside] = [
        "info --backing-chain --output=json disk.tgz",
        "map --output=json disk.tgz",
    ]
    .map(|line| {
        let outside = folder.goldsmith_ok(line);
        let done = nowhere(&folder, line);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
        assert_eq!(done.stdout, outside, "{line}");
        outside
    });
    assert!(chain.contains("1.vhd"), "{chain}");
    // A mebibyte of each of four.
    let data = |line: &&str| line.contains("\"data\": true");
    assert!(outside.lines().filter(data).count() >= 3, "{outside}");
}

#[test]
fn what_takes_the_disk_in_order_says_where_it_could_not_be_unpacked() {
    let folder = prepared();
    for line in ["-O qcow2 -c", "-O raw --digest sha256"] {
        let line = format!("convert {line} disk.tgz target");
        let done = nowhere(&folder, &line);
        assert_eq!(done.status, 1, "{line}");
        assert!(done.stderr.contains("/nonexistent"), "{done:?}");
        assert!(!folder.path("target").exists());
    }
}

/// The file for that is made before the command locks itself in.
#[test]
fn container_that_turns_out_to_take_more_than_one_pass_is_unpacked_locked_in() {
    let folder = prepared();
    // The parent first; and a child without its footer, of which only its end can tell.
    let tar = "tar -czf turned.tgz 1.vhd 0.vhd && truncate -s -512 0.vhd && \
               tar -czf lost.tgz 0.vhd 1.vhd";
    let made = folder.run(Command::new("sh").args(["-c", tar]));
    assert_eq!(made.status, 0, "{made:?}");
    for source in ["turned.tgz", "lost.tgz"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        command.env("GOLDSMITH_SANDBOX", "require");
        let line = format!("convert -f xenserver-ovf -O raw {source} back.raw");
        let done = folder.run(command.args(line.split(' ')));
        assert_eq!(done.status, 0, "{done:?}");
        folder.qemu_img_ok("compare -f raw -F raw disk.raw back.raw");
        let line = format!("convert -f xenserver-ovf -O raw {source} none.raw");
        let done = nowhere(&folder, &line);
        assert_eq!(done.status, 1, "{source}");
        assert!(done.stderr.contains("/nonexistent"), "{done:?}");
        assert!(!folder.path("none.raw").exists());
    }
}

/// What was looked at is what is read, whoever may put another file there meanwhile.
#[test]
fn source_of_a_format_that_nobody_states_is_opened_and_looked_at_once() {
    let folder = prepared();
    folder.goldsmith_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    for (line, source) in [
        ("-O qcow2", "disk.tgz"),
        ("-O qcow2 -c", "disk.tgz"),
        ("-O raw", "disk.qcow2"),
        ("-O raw", "0.vhd"),
    ] {
        let line = format!("convert --references same-directory {line} {source} target");
        let calls = folder.calls("openat,pread64", &line);
        // The sandbox looks up where the file stands, no more.
        let opened = |call: &&String| {
            call.contains("openat(") && call.contains(source) && !call.contains("O_PATH")
        };
        // No format of these sources reads as much from the beginning.
        let probed = |call: &&String| {
            call.contains(&format!("{source}>")) && call.contains(", 4096, 0) = 4096")
        };
        let count = |which: &dyn Fn(&&String) -> bool| calls.iter().filter(which).count();
        assert_eq!(
            (count(&opened), count(&probed)),
            (1, 1),
            "{line}: {calls:#?}"
        );
    }
}
