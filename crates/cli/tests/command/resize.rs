//! `goldsmith resize`

use std::fs;
use std::os::unix::fs::MetadataExt;

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

fn raw() -> Twins {
    Twins::new(|folder| folder.write("disk.raw", &disk("64k:A 900k:- 1536:b")))
}

#[test]
fn raw_disk_becomes_as_long_as_with_qemu_img() {
    let twins = raw();
    for size in ["2M", "+1M", "-1M --shrink", "+0", "--shrink -- -512k", "7M"] {
        let (option, size) = size.split_once(' ').unwrap_or(("-q", size));
        let line = match option {
            "-q" => format!("resize -q -f raw disk.raw {size}"),
            _ if size == "--shrink" => format!("resize -f raw disk.raw {option} {size}"),
            _ => format!("resize -f raw {option} disk.raw {size}"),
        };
        twins.both(&line);
        twins.same("disk.raw", "raw");
    }
    let said = twins.both("resize -f raw disk.raw 8M");
    assert_eq!(said, "Image resized.\n");
    for line in [
        "resize --shrink -f raw disk.raw 1000001",
        "resize --image-opts driver=raw,file.filename=disk.raw 2M",
        "resize -f raw --preallocation=off disk.raw 3M",
    ] {
        twins.both(line);
        let len = |folder: &Folder| fs::metadata(folder.path("disk.raw")).unwrap().len();
        assert_eq!(len(&twins.ours), len(&twins.theirs), "{line}");
    }
    // Not as qemu-img, to which the disk had 1000448 bytes before.
    twins
        .ours
        .goldsmith_ok("resize --shrink -f raw disk.raw 1000001");
    twins.ours.goldsmith_ok("resize -f raw disk.raw +100");
    assert_eq!(
        fs::metadata(twins.ours.path("disk.raw")).unwrap().len(),
        1_000_101
    );
}

#[test]
fn space_is_reserved_as_asked() {
    for mode in ["falloc", "full"] {
        let twins = raw();
        let taken = |folder: &Folder| fs::metadata(folder.path("disk.raw")).unwrap().blocks();
        let before = [taken(&twins.ours), taken(&twins.theirs)];
        twins.both(&format!("resize -f raw --preallocation={mode} disk.raw 4M"));
        twins.same("disk.raw", "raw");
        let more = [
            taken(&twins.ours) - before[0],
            taken(&twins.theirs) - before[1],
        ];
        assert!(more[0] >= more[1] && more[1] > 0, "{mode}: {more:?}");
    }
}

#[test]
fn disk_that_would_lose_data_or_have_none_stays_as_it_is() {
    let twins = raw();
    for (size, hint) in [
        ("512k", "Use the --shrink option"),
        ("-- -1k", "Use the --shrink option"),
        ("--shrink 0", "New image size must be positive"),
        ("--shrink -- -1G", "New image size must be positive"),
        ("+8E", "size"),
        ("lots", "size"),
        ("", "size"),
        (
            "--preallocation=some 8M",
            "Invalid preallocation mode 'some'",
        ),
        (
            "--preallocation=metadata 8M",
            "Unsupported preallocation mode",
        ),
        (
            "--preallocation=falloc --shrink 1k",
            "Preallocation can only be used for growing images",
        ),
    ] {
        twins.neither(&format!("resize -f raw disk.raw {size}"), hint);
        twins.same("disk.raw", "raw");
    }
    twins.neither("resize -f raw nothing.raw 8M", "No such file or directory");
    twins.neither("resize -f raw disk.raw", "SIZE");
    twins.neither("resize -f qcow3 disk.raw 8M", "qcow3");
}

#[test]
fn format_that_was_guessed_to_be_raw_is_told() {
    let twins = raw();
    assert_eq!(
        twins.ours.goldsmith_ok("resize disk.raw 2M"),
        "Image resized.\ngoldsmith: warning: disk.raw: nobody stated its format, and it was taken \
         for raw; state it with the format option (-f raw)\n"
    );
}

#[test]
fn rehearsal_says_what_would_be_done_and_does_nothing() {
    let twins = raw();
    assert_eq!(
        twins.rehearsed("resize -f raw disk.raw 2M"),
        "disk.raw: make the file 2097152 bytes long\n\
         disk.raw: wait until all of it is stored\n"
    );
    twins.same("disk.raw", "raw");
    let refused = twins.ours.goldsmith("resize -f raw --dry-run disk.raw 1k");
    assert_eq!(refused.status, 1);
}

/// Sizes around cluster borders and tables, over a backing file that is longer and would show.
#[test]
fn qcow2_disk_becomes_as_long_as_with_qemu_img() {
    let twins = Twins::new(|folder| {
        folder.write("base.raw", &disk("9M:B"));
        folder.qemu_img_ok("create -q -f qcow2 alone.qcow2 3M");
        folder.qemu_io(
            "alone.qcow2",
            &["write -P 1 1M 512k", "write -P 2 2900k 172k"],
        );
        folder.qemu_img_ok("create -q -f qcow2 -b base.raw -F raw over.qcow2 2099712");
        folder.qemu_io("over.qcow2", &["write -P 3 0 100k"]);
    });
    for (name, sizes) in [
        ("alone.qcow2", ["5M", "+512", "1G", "2M", "64k", "65M"]),
        (
            "over.qcow2",
            ["2100224", "4M", "20M", "1M", "1049088", "6M"],
        ),
    ] {
        for size in sizes {
            twins.both(&format!("resize -f qcow2 --shrink {name} {size}"));
            twins.same(name, "qcow2");
        }
    }
    twins.neither("resize -f qcow2 alone.qcow2 64k", "--shrink");
    twins.neither("resize -f qcow2 alone.qcow2 +100", "512");
    let said = twins.rehearsed("resize -f qcow2 alone.qcow2 1T");
    assert!(said.contains("alone.qcow2: write the header: "), "{said}");
}
