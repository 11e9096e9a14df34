//! `goldsmith snapshot`

use goldsmith_testkit::pattern::disk;

use crate::twins::Twins;

fn image() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("64k:A"));
        folder.qemu_img_ok("create -q -f vpc disk.vhd 1M");
        folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 3M");
        folder.qemu_io("disk.qcow2", &["write -P 1 1M 512k"]);
    })
}

/// Taken, shown, gone back to and forgotten, by id and by name, with writes between.
#[test]
fn states_come_and_go_as_with_qemu_img() {
    let twins = image();
    let write = |what: &str| {
        for folder in [&twins.ours, &twins.theirs] {
            folder.qemu_io("disk.qcow2", &[what]);
        }
    };
    for line in [
        "snapshot -c one disk.qcow2",
        "write -P 2 1M 64k",
        "snapshot -c two -f qcow2 disk.qcow2",
        "write -P 3 0 200k",
        "snapshot -q -c two disk.qcow2",
        "snapshot -a one disk.qcow2",
        "write -z 1M 128k",
        "snapshot -a 3 disk.qcow2",
        "snapshot -d two disk.qcow2",
        "snapshot -d one disk.qcow2",
        "snapshot -c last --image-opts driver=qcow2,file.filename=disk.qcow2",
        "snapshot -d two disk.qcow2",
    ] {
        match line.starts_with("write") {
            true => write(line),
            false => _ = twins.both(line),
        }
        twins.same("disk.qcow2", "qcow2");
    }
    let ours = twins.ours.goldsmith_ok("snapshot -l disk.qcow2");
    assert_eq!(ours, twins.ours.qemu_img_ok("snapshot -l disk.qcow2"));
    assert!(ours.starts_with("Snapshot list:\nID      TAG"), "{ours}");
    assert_eq!(ours, twins.ours.goldsmith_ok("snapshot -U disk.qcow2"));
}

#[test]
fn list_of_an_image_without_any_is_empty() {
    let twins = image();
    twins.both("snapshot -l disk.qcow2");
    twins.both("snapshot -f raw disk.raw");
    twins.both("snapshot -l -f vpc disk.vhd");
}

#[test]
fn what_is_not_there_cannot_be_gone_back_to() {
    let twins = image();
    twins.both("snapshot -c one disk.qcow2");
    for (line, hint) in [
        (
            "snapshot -a two disk.qcow2",
            "Could not apply snapshot 'two': disk.qcow2: Can't find snapshot",
        ),
        // Only the name counts.
        ("snapshot -d 1 disk.qcow2", "Could not delete snapshot '1'"),
        ("snapshot -c one -l disk.qcow2", "cannot be used with"),
        ("snapshot -U -c one disk.qcow2", "force-share"),
        ("snapshot", "IMAGE"),
        ("snapshot -c one nothing", "No such file or directory"),
        (
            "snapshot -c one -f raw disk.raw",
            "raw images have no snapshots",
        ),
        ("snapshot -a one -f raw disk.raw", "snapshot"),
        ("snapshot -d one -f raw disk.raw", "snapshot"),
        ("snapshot -c one -f vpc disk.vhd", "goldsmith create -b"),
    ] {
        twins.neither(line, hint);
        twins.same("disk.qcow2", "qcow2");
        twins.same("disk.vhd", "vpc");
    }
}

#[test]
fn rehearsal_says_what_would_be_done_and_does_nothing() {
    let twins = image();
    twins.both("snapshot -c one disk.qcow2");
    for line in ["snapshot -c two", "snapshot -a one", "snapshot -d one"] {
        let said = twins.rehearsed(&format!("{line} disk.qcow2"));
        assert!(said.contains("disk.qcow2: write the header"), "{said}");
        let last = said
            .lines()
            .any(|line| line.ends_with("wait until all of it is stored"));
        assert!(last, "{said}");
    }
    twins.same("disk.qcow2", "qcow2");
}
