//! Disks that are full, may not be written, or lose what they were given.

use goldsmith_testkit::figure;
use goldsmith_testkit::mount;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::{Place, output, said};

const FULL: &str = "No space left on device (os error 28)";

/// Source and place for the target are on different file systems, and only the target's is full.
#[test]
fn full_disk_fails_the_conversion_by_name_and_keeps_what_stood_there() {
    let picture = disk("2M:a 1M:- 3M:b");
    let source = Place::new();
    source.write("source", &picture);
    let source = source.text("source");
    let mut refused = 0;
    for options in [
        "raw",
        "raw -o preallocation=falloc",
        "raw -o preallocation=full",
        "qcow2",
        "qcow2 -c",
        "qcow2 -o preallocation=full",
        "vpc",
        "vpc -o subformat=fixed",
    ] {
        let Some(small) = mount::small(4 << 20) else {
            return;
        };
        let place = Place::within(small.path());
        std::fs::write(place.path("old"), "my only copy").unwrap();
        let free = small.free();
        for target in ["new", "old"] {
            let path = place.text(target);
            let said = place.refused(&format!("convert -q -f raw -O {options} {source} {target}"));
            assert!(
                said.starts_with(&format!("goldsmith: {target}: ")),
                "{said}"
            );
            assert!(said.ends_with(FULL), "{options}: {said}");
            assert_eq!(place.names(), ["old"], "{options}: {path}");
            assert_eq!(small.free(), free, "{options}: space is lost");
            refused += 1;
        }
        assert_eq!(place.bytes("old"), b"my only copy");
    }
    figure(format_args!(
        "{refused} conversions onto a full disk refused"
    ));
}

/// The signal that comes with it ends nobody without a word.
#[test]
fn limit_to_the_length_of_files_is_an_error_that_names_the_file() {
    let place = Place::new();
    place.write("source", &disk("2M:a 1M:- 3M:b"));
    place.ok("convert -f raw -O qcow2 source old");
    let before = place.bytes("old");
    let limit = ["prlimit", "--fsize=1048576", "--"];
    for (line, name) in [
        ("convert -q -f raw -O raw source new", "new: "),
        ("convert -q -f raw -O qcow2 source old", "old: "),
        ("resize -q -f raw source 9M", "source: "),
        ("snapshot -q -c one old", "old: "),
    ] {
        let output = output(&mut place.command(&limit, line));
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        let said = said(&output);
        let why = "File too large (os error 27)";
        assert!(said.contains(name) && said.ends_with(why), "{said}");
    }
    assert_eq!(place.names(), ["old", "source"]);
    assert!(place.bytes("old") == before);
}

/// An edit that finds no space has not begun, or can be mended and done again when there is some.
#[test]
fn full_disk_leaves_an_edited_image_as_it_was() {
    let picture = disk("512k:a 512k:- 256k:B");
    let mut refused = 0;
    for (format, options, lines) in [
        (
            "qcow2",
            "-o cluster_size=4k",
            &[
                "resize -q -f qcow2 disk 900G",
                "resize -q -f qcow2 --preallocation full disk 4M",
                "snapshot -q -c new disk",
                "amend -q -f qcow2 -o refcount_bits=64 disk",
                "bitmap -f qcow2 --add disk new",
            ][..],
        ),
        (
            "vpc",
            "-o block_size=512k",
            &[
                "resize -q -f vpc disk 900G",
                "resize -q -f vpc --preallocation full disk 4M",
            ],
        ),
        (
            "vpc",
            "-o subformat=fixed",
            &["resize -q -f vpc --preallocation full disk 4M"],
        ),
        (
            "raw",
            "-o preallocation=off",
            &["resize -q -f raw --preallocation full disk 4M"],
        ),
    ] {
        for line in lines {
            let Some(small) = mount::small(6 << 20) else {
                return;
            };
            let place = Place::within(small.path());
            place.write("source", &picture);
            place.ok(&format!(
                "convert -q -f raw -O {format} {options} source disk"
            ));
            small.fill();
            let said = place.refused(line);
            assert!(said.contains("disk: ") && said.ends_with(FULL), "{said}");
            refused += 1;

            assert!(place.guest("disk", format) == picture.bytes(), "{line}");
            if format != "raw" {
                place.assert_sound("disk", format, line);
            }
            std::fs::remove_file(small.path().join("filler")).unwrap();
            std::fs::remove_file(place.path("source")).unwrap();
            if !line.contains("900G") {
                place.ok(line);
                assert!(
                    place.guest("disk", format).starts_with(picture.bytes()),
                    "{line}"
                );
            }
        }
    }
    figure(format_args!("{refused} edits on a full disk refused"));
}

/// The backing file cannot grow, so what the image holds cannot come there; it stays where it is.
#[test]
fn full_disk_fails_a_commit_that_changes_nothing_for_the_guest() {
    for (format, options) in [
        ("qcow2", "-o cluster_size=4k"),
        ("vpc", "-o block_size=512k"),
    ] {
        let Some(small) = mount::small(24 << 20) else {
            return;
        };
        let place = Place::within(small.path());
        let (base, top) = (disk("1M:- 512k:A 2M:-"), disk("1M:b 512k:A 1M:- 1M:c"));
        place.write("base.raw", &base);
        place.write("top.raw", &top);
        place.ok(&format!(
            "convert -f raw -O {format} {options} base.raw base"
        ));
        place.ok(&format!(
            "convert -f raw -O {format} {options} -B base -F {format} top.raw top"
        ));
        std::fs::remove_file(place.path("top.raw")).unwrap();
        small.fill();
        let said = place.refused(&format!("commit -q -f {format} top"));
        assert!(
            said.starts_with("goldsmith: base: ") && said.contains(FULL),
            "{said}"
        );
        place.assert_sound("base", format, format);
        place.assert_sound("top", format, format);
        assert!(place.guest("top", format) == top.bytes(), "{format}");

        std::fs::remove_file(small.path().join("filler")).unwrap();
        place.ok(&format!("commit -q -f {format} top"));
        assert!(place.guest("base", format) == top.bytes(), "{format}");
    }
}

#[test]
fn read_only_directory_is_refused_by_name() {
    let Some(small) = mount::small(4 << 20) else {
        return;
    };
    let place = Place::within(small.path());
    place.write("source", &disk("64k:A"));
    place.ok("convert -f raw -O qcow2 source disk");
    let before = place.bytes("disk");
    small.make_read_only();
    for line in [
        "convert -f raw -O qcow2 source new",
        "convert -f raw -O qcow2 source disk",
        "create -q -f qcow2 new 1M",
        "resize -q -f qcow2 disk 1M",
        "snapshot -q -c new disk",
        "check -q -r all -f qcow2 disk",
    ] {
        let said = place.refused(line);
        let by_name = said.contains(" new: ") || said.contains(" disk: ");
        assert!(by_name, "{line}: {said}");
        assert!(
            said.ends_with("Read-only file system (os error 30)"),
            "{line}: {said}"
        );
    }
    assert_eq!(place.names(), ["disk", "source"]);
    assert!(place.bytes("disk") == before);
}

/// All writes go well, and all are lost: only the flush at the end says so.
#[test]
fn disk_that_loses_what_it_was_given_fails_the_conversion() {
    let picture = disk("8M:a 16M:b");
    let source = Place::new();
    source.write("source", &picture);
    let source = source.text("source");
    for options in [
        "raw -S 4k",
        "qcow2",
        "qcow2 -c",
        "vpc",
        "vpc -o subformat=fixed",
    ] {
        let Some(lossy) = mount::lossy() else { return };
        let place = Place::within(lossy.path());
        let said = place.refused(&format!("convert -q -f raw -O {options} {source} target"));
        assert!(said.starts_with("goldsmith: target: "), "{options}: {said}");
        assert!(
            said.contains("(os error 5)") || said.contains("(os error 28)"),
            "{said}"
        );
        assert!(!place.path("target").exists(), "{options}");
        // The disk is as bad for QEMU; without its own flush it would not have noticed.
        let args = [
            "convert",
            "-t",
            "none",
            "-O",
            "raw",
            &source,
            &place.text("theirs"),
        ];
        let theirs = qemu::img(&args);
        assert!(
            !theirs.status.success() || theirs.stderr.is_empty(),
            "{theirs:?}"
        );
    }
}
