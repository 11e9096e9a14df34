//! The command locked in: it does all that it does outside.
#![cfg(target_os = "linux")]

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::{Done, Folder};

fn run(folder: &Folder, mode: &str, line: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
    command.env("GOLDSMITH_SANDBOX", mode);
    folder.run(command.args(line.split(' ')))
}

/// One line for each subcommand and for each way it opens files, in an order in which all work.
const LINES: &[&str] = &[
    "create -f qcow2 new.qcow2 3M",
    "create -f qcow2 -b golden.raw -F raw overlay.qcow2",
    "create -f qcow2 -o data_file=apart.data apart.qcow2 1M",
    "convert -f raw -O qcow2 -c golden.raw packed.qcow2",
    "convert -f raw -O vpc -p golden.raw disk.vhd",
    "convert -f raw -O xenserver-ovf golden.raw disk.tgz",
    "convert -f xenserver-ovf -O raw disk.tgz back.raw",
    "convert -f qcow2 -O qcow2 -B golden.raw -F raw overlay.qcow2 child.qcow2",
    "convert -f qcow2 -O raw packed.qcow2 deeper/packed.raw",
    "info packed.qcow2",
    "info --output=json disk.vhd",
    "info disk.tgz",
    "map overlay.qcow2",
    "map --output=json packed.qcow2",
    "info --backing-chain overlay.qcow2",
    "bench -c 20 -f qcow2 overlay.qcow2",
    "bench -c 20 -w -f qcow2 new.qcow2",
    "measure -O qcow2 golden.raw",
    "measure -O vpc -f qcow2 overlay.qcow2",
    "compare -f raw -F qcow2 golden.raw packed.qcow2",
    "lint --for kvm packed.qcow2",
    "check packed.qcow2",
    "check disk.vhd",
    "resize -f qcow2 new.qcow2 5M",
    "resize -f qcow2 --dry-run new.qcow2 7M",
    "resize -f qcow2 apart.qcow2 2M",
    "snapshot -c one new.qcow2",
    "snapshot -l new.qcow2",
    "info new.qcow2",
    "convert -l one -O raw new.qcow2 old.raw",
    "snapshot -a one new.qcow2",
    "snapshot -d one new.qcow2",
    "bitmap --add new.qcow2 since",
    "bitmap --add --merge since -b new.qcow2 -F qcow2 other.qcow2 since",
    "convert --bitmaps -f qcow2 -O qcow2 new.qcow2 with.qcow2",
    "amend -f qcow2 -o lazy_refcounts=on packed.qcow2",
    "rebase -f qcow2 -b packed.qcow2 -F qcow2 child.qcow2",
    "rebase -f qcow2 -u -b golden.raw -F raw overlay.qcow2",
    "commit -f qcow2 child.qcow2",
    "rebase -f qcow2 -b  child.qcow2",
    "check -r all new.qcow2",
    "--version",
];

fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A 1M:- 700k:b 324k:C"));
    std::fs::create_dir(folder.path("deeper")).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 other.qcow2 5M");
    folder
}

#[test]
fn every_subcommand_does_the_same_inside_and_outside() {
    let (inside, outside) = (prepared(), prepared());
    for line in LINES {
        let [one, other] =
            [(&inside, "require"), (&outside, "off")].map(|(folder, mode)| run(folder, mode, line));
        assert_eq!(one.stderr, "", "{line}");
        assert_eq!(
            (one.status, other.status),
            (0, 0),
            "{line}: {one:?} {other:?}"
        );
        // What is told of the time differs.
        let timeless = ["snapshot -l", "info", "bench"];
        if !timeless.iter().any(|it| line.starts_with(it)) {
            assert_eq!(one.stdout, other.stdout, "{line}");
        }
    }
    for image in [
        "packed.qcow2",
        "child.qcow2",
        "back.raw",
        "deeper/packed.raw",
    ] {
        let [one, other] = [&inside, &outside].map(|it| std::fs::read(it.path(image)).unwrap());
        assert!(one == other, "{image}");
    }
    for image in ["packed.qcow2", "child.qcow2", "new.qcow2", "with.qcow2"] {
        inside.qemu_img_ok(&format!("check -q {image}"));
    }
}

/// The files that say it are out of reach by then.
#[test]
fn dates_are_told_in_the_local_time() {
    let folder = prepared();
    folder.goldsmith_ok("snapshot -c one other.qcow2");
    for line in ["snapshot -l other.qcow2", "info other.qcow2"] {
        let [inside, outside, far] = [
            ("require", "Asia/Tokyo"),
            ("off", "Asia/Tokyo"),
            ("off", "UTC"),
        ]
        .map(|(mode, zone)| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
            command.env("GOLDSMITH_SANDBOX", mode).env("TZ", zone);
            folder.run(command.args(line.split(' '))).stdout
        });
        assert_eq!(inside, outside);
        let known = std::path::Path::new("/usr/share/zoneinfo/Asia/Tokyo").exists();
        assert_eq!(outside == far, !known, "{outside} {far}");
    }
}

#[test]
fn mode_is_an_option_of_every_subcommand_and_a_wrong_one_is_refused() {
    let folder = prepared();
    for line in [
        "info --sandbox=require golden.raw",
        "--sandbox=off info golden.raw",
        "convert --sandbox=try -O qcow2 golden.raw out.qcow2",
    ] {
        folder.goldsmith_ok(line);
    }
    let done = folder.goldsmith("info --sandbox=perhaps golden.raw");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("require, try, off"), "{done:?}");
}

/// Nobody is told to look for the fault in the sandbox where it is none.
#[test]
fn what_is_refused_outside_as_well_is_told_without_the_sandbox() {
    let folder = prepared();
    let done = run(&folder, "require", "info nothing.raw");
    assert_eq!(done.status, 1);
    assert!(!done.stderr.contains("sandbox"), "{done:?}");
}
