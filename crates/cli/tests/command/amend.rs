//! `goldsmith amend`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::salvage::{l2, patch};
use crate::twins::Twins;

fn image() -> Twins {
    Twins::new(|folder| {
        folder.write("base.raw", &disk("1M:B"));
        folder.write("disk.raw", &disk("1M:A"));
        folder.qemu_img_ok("create -q -f vpc disk.vhd 1M");
        folder.qemu_img_ok("create -q -f qcow2 -o refcount_bits=8 disk.qcow2 3M");
        folder.qemu_io("disk.qcow2", &["write -P 1 1M 512k"]);
        folder.qemu_img_ok("snapshot -c one disk.qcow2");
    })
}

#[test]
fn options_change_as_with_qemu_img() {
    let twins = image();
    for line in [
        "amend -o lazy_refcounts=on disk.qcow2",
        "amend -f qcow2 -t none -o lazy_refcounts=off disk.qcow2",
        "amend -o refcount_bits=16 disk.qcow2",
        "amend -o compat=0.10 disk.qcow2",
        "amend -q -o compat=1.1,lazy_refcounts=on disk.qcow2",
        "amend -o size=5M disk.qcow2",
        "amend -o refcount_bits=64 disk.qcow2",
        "amend -p -o lazy_refcounts=off disk.qcow2",
    ] {
        twins.both(line);
        twins.same("disk.qcow2", "qcow2");
    }
}

#[test]
fn what_cannot_be_amended_stays_as_it_is() {
    let twins = image();
    for (line, hint) in [
        ("amend disk.qcow2", "-o"),
        ("amend -o foo=1 disk.qcow2", "'foo'"),
        ("amend -o size=1000 disk.qcow2", "512"),
        ("amend -o cluster_size=4k disk.qcow2", "'cluster_size'"),
        ("amend -o refcount_bits=3 disk.qcow2", "refcount_bits"),
        (
            "amend -o backing_file=base.raw,backing_fmt=raw disk.qcow2",
            "Cannot amend the backing file",
        ),
        (
            "amend -f raw -o preallocation=full disk.raw",
            "Format driver 'raw' does not support option amendment",
        ),
        (
            "amend -f raw -o help",
            "Format driver 'raw' does not support option amendment",
        ),
    ] {
        twins.neither(line, hint);
        twins.same("disk.qcow2", "qcow2");
    }
    twins.both("amend -o size=0 disk.qcow2");
    twins.same("disk.qcow2", "qcow2");
    let help = twins.ours.goldsmith_ok("amend -f qcow2 -o help");
    assert!(help.starts_with("Amend options for 'qcow2':\n"), "{help}");
}

#[test]
fn rehearsal_says_what_would_be_done_and_does_nothing() {
    let twins = image();
    let said = twins.rehearsed("amend -o lazy_refcounts=on disk.qcow2");
    assert!(said.contains("disk.qcow2: write the header"), "{said}");
}

/// A table that is counted too often is a leak, and no second user: what its zeros keep is the snapshot's.
#[test]
fn snapshot_of_an_image_that_leaks_survives_the_older_version() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
    folder.qemu_io("disk.qcow2", &["write -P 17 0 512k"]);
    folder.goldsmith_ok("snapshot -c one disk.qcow2");
    folder.qemu_io("disk.qcow2", &["write -z 0 256k"]);
    let image = std::fs::read(folder.path("disk.qcow2")).unwrap();
    let number = |at: u64| u64::from_be_bytes(image[at as usize..][..8].try_into().unwrap());
    let (block, table) = (number(number(48)), l2(&folder, "disk.qcow2"));
    patch(&folder, "disk.qcow2", block + 2 * (table >> 16), &[0, 2]);
    patch(&folder, "disk.qcow2", number(40), &[0]);
    assert_eq!(folder.qemu_img("check -q disk.qcow2").status, 3);
    let disks = |name: &str| {
        for (snapshot, at) in [("", "now"), ("-l one ", "then")] {
            folder.qemu_img_ok(&format!("convert {snapshot}-O raw disk.qcow2 {name}.{at}"));
        }
    };
    disks("before");
    folder.goldsmith_ok("amend -o compat=0.10 disk.qcow2");
    disks("after");
    for at in ["now", "then"] {
        folder.qemu_img_ok(&format!("compare -q -f raw -F raw before.{at} after.{at}"));
    }
    assert_eq!(folder.qemu_img("check -q disk.qcow2").status, 3);
}
