//! `goldsmith convert -n`: into an image that stands.

use std::os::unix::fs::FileExt;

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::salvage::{l2, patch};
use crate::twins::Twins;

/// A source with holes, and targets that are full of something else.
fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("256k:A 1M:- 64k:0 200k:b 512:C"));
        folder.write("odd.raw", &disk("64k:A 700:d"));
        folder.write("small.raw", &disk("512k:Z"));
        folder.write("full.raw", &disk("3M:Z"));
        folder.write("sparse.raw", &disk("64k:Z 2M:- 64k:Y"));
        for (name, options) in [
            ("full.qcow2", "-f qcow2"),
            ("old.qcow2", "-f qcow2 -o compat=0.10"),
            ("tiny.qcow2", "-f qcow2 -o cluster_size=4k"),
            ("sub.qcow2", "-f qcow2 -o extended_l2=on"),
            ("snapshot.qcow2", "-f qcow2"),
            ("overlay.qcow2", "-f qcow2 -b full.raw -F raw"),
            (
                "outside.qcow2",
                "-f qcow2 -o data_file=outside.data,data_file_raw=on",
            ),
        ] {
            folder.qemu_img_ok(&format!("create -q {options} {name} 3M"));
            if name != "overlay.qcow2" {
                folder.qemu_io(name, &["write -P 9 0 2M", "write -P 8 2500k 100k"]);
            }
        }
        folder.qemu_img_ok("snapshot -c one snapshot.qcow2");
        folder.qemu_img_ok("create -q -f qcow2 empty.qcow2 3M");
        let vhd = "create -q -f vpc -o force_size=on";
        folder.qemu_img_ok(&format!("{vhd} dynamic.vhd 5M"));
        folder.qemu_img_ok(&format!("{vhd},subformat=fixed fixed.vhd 3M"));
        for name in ["dynamic.vhd", "fixed.vhd"] {
            let mut io = std::process::Command::new("qemu-io");
            io.args(["-f", "vpc", "-c", "write -P 9 0 2M", "-c"]);
            let done = folder.run(io.args(["write -P 8 2500k 100k", name]));
            assert_eq!(done.status, 0, "{done:?}");
        }
    })
}

#[test]
fn every_target_becomes_what_qemu_img_makes_of_it() {
    for (target, format) in [
        ("full.raw", "raw"),
        ("sparse.raw", "raw"),
        ("full.qcow2", "qcow2"),
        ("old.qcow2", "qcow2"),
        ("tiny.qcow2", "qcow2"),
        ("sub.qcow2", "qcow2"),
        ("snapshot.qcow2", "qcow2"),
        ("overlay.qcow2", "qcow2"),
        ("outside.qcow2", "qcow2"),
        ("empty.qcow2", "qcow2"),
        ("dynamic.vhd", "vpc"),
        ("fixed.vhd", "vpc"),
    ] {
        let twins = images();
        for source in ["disk.raw", "odd.raw"] {
            twins.both(&format!("convert -n -f raw -O {format} {source} {target}"));
            twins.same(target, format);
        }
    }
}

/// The snapshot shows what it did, and so does the backing file.
#[test]
fn what_else_the_target_holds_stays() {
    let twins = images();
    for folder in [&twins.ours, &twins.theirs] {
        for line in [
            "convert -f qcow2 -O raw -l one snapshot.qcow2 before",
            "convert -f raw -O raw full.raw base",
        ] {
            folder.qemu_img_ok(line);
        }
    }
    twins.both("convert -n -O qcow2 disk.raw snapshot.qcow2");
    twins.both("convert -n -O qcow2 disk.raw overlay.qcow2");
    let folder = &twins.ours;
    folder.qemu_img_ok("convert -f qcow2 -O raw -l one snapshot.qcow2 after");
    let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(read("before") == read("after"));
    assert!(read("base") == read("full.raw"));
}

/// Zeros are not written then, whatever stands there: the user knows.
#[test]
fn target_that_is_zero_is_only_given_data() {
    for (target, format) in [
        ("full.raw", "raw"),
        ("full.qcow2", "qcow2"),
        ("empty.qcow2", "qcow2"),
        ("fixed.vhd", "vpc"),
    ] {
        let twins = images();
        twins.both(&format!(
            "convert -n --target-is-zero -S 4k -O {format} disk.raw {target}"
        ));
        twins.same(target, format);
    }
}

/// An overlay over the same backing file needs only what differs from that.
#[test]
fn with_a_backing_file_only_what_differs_is_written() {
    let twins = Twins::new(|folder| {
        folder.write("base.raw", &disk("4M:A"));
        for name in ["source.qcow2", "target.qcow2"] {
            folder.qemu_img_ok(&format!("create -q -f qcow2 -b base.raw -F raw {name}"));
        }
        folder.qemu_io("source.qcow2", &["write -P 1 1M 128k", "write -z 2M 64k"]);
    });
    twins.both("convert -n -B base.raw -F raw -O qcow2 source.qcow2 target.qcow2");
    twins.same("target.qcow2", "qcow2");
    for folder in [&twins.ours, &twins.theirs] {
        let map = folder.qemu_img_ok("map --output=json target.qcow2");
        let own = map.lines().filter(|line| line.contains("\"depth\": 0"));
        assert_eq!(own.count(), 2, "{map}");
    }
    // QEMU leaves what the target has where the source says nothing of its own. Here the target
    // shows the source's disk in any case.
    let folder = &twins.ours;
    folder.qemu_io("target.qcow2", &["write -P 7 3M 64k"]);
    folder.goldsmith_ok("convert -n -B base.raw -O qcow2 source.qcow2 target.qcow2");
    folder.qemu_img_ok("compare -q source.qcow2 target.qcow2");
}

#[test]
fn target_may_be_a_part_of_a_file() {
    let twins = images();
    for opts in [
        "driver=raw,offset=512k,file.filename=full.raw",
        "driver=raw,offset=256k,size=2M,file.driver=file,file.filename=full.raw",
        "driver=qcow2,file.driver=file,file.filename=full.qcow2",
        "driver=vpc,file.filename=fixed.vhd",
    ] {
        twins.both(&format!("convert -n --target-image-opts disk.raw {opts}"));
    }
    twins.same("full.raw", "raw");
    twins.same("full.qcow2", "qcow2");
    twins.same("fixed.vhd", "vpc");
    let json = r#"json:{"driver":"raw","offset":1048576,"file.filename":"full.raw"}"#;
    twins.both(&format!("convert -n disk.raw {json}"));
    twins.same("full.raw", "raw");
}

#[test]
fn bitmaps_come_along() {
    let twins = Twins::new(|folder| {
        folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
        folder.qemu_img_ok("bitmap --add disk.qcow2 monday");
        folder.qemu_io("disk.qcow2", &["write -P 1 256k 64k"]);
        folder.qemu_img_ok("create -q -f qcow2 target.qcow2 1M");
    });
    twins.both("convert -n --bitmaps -f qcow2 -O qcow2 disk.qcow2 target.qcow2");
    twins.same("target.qcow2", "qcow2");
}

/// What is known before the first byte is written: a disk must not be lost by a slip of the pen.
#[test]
fn image_that_cannot_have_the_bitmaps_is_left_alone() {
    let twins = Twins::new(|folder| {
        folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
        folder.qemu_img_ok("bitmap --add disk.qcow2 monday");
        folder.qemu_io("disk.qcow2", &["write -P 1 256k 64k"]);
        folder.write("full.raw", &disk("1M:A"));
        folder.qemu_img_ok("convert -f raw -O qcow2 -o compat=0.10 full.raw old.qcow2");
        folder.qemu_img_ok("convert -f raw -O qcow2 full.raw has.qcow2");
        folder.qemu_img_ok("bitmap --add has.qcow2 monday");
        folder.qemu_img_ok("create -q -f qcow2 fine.qcow2 1M");
        folder.qemu_img_ok("bitmap --add -g 512 fine.qcow2 monday");
        folder.qemu_img_ok("create -q -f qcow2 big.qcow2 8T");
    });
    let names = ["full.raw", "old.qcow2", "has.qcow2", "big.qcow2"];
    let read = |name: &str| std::fs::read(twins.ours.path(name)).unwrap();
    let before = names.map(read);
    for (line, hint) in [
        ("-O raw disk.qcow2 full.raw", "this raw image keeps none"),
        (
            "-O qcow2 disk.qcow2 old.qcow2",
            "this qcow2 image keeps none",
        ),
        ("-O qcow2 disk.qcow2 has.qcow2", "there is one of that name"),
        ("-O qcow2 fine.qcow2 big.qcow2", "would take 32768 clusters"),
    ] {
        twins.neither(&format!("convert -n --bitmaps -f qcow2 {line}"), hint);
        assert!(names.map(read) == before, "{line}");
    }
    twins.neither(
        "convert --bitmaps -O qcow2 disk.qcow2 has.qcow2 out",
        "single source",
    );
}

#[test]
fn what_cannot_be_written_into_is_refused_untouched() {
    let twins = images();
    for (line, why) in [
        ("-n disk.raw missing.raw", "missing.raw"),
        (
            "-n disk.raw small.raw",
            "output file is smaller than input file",
        ),
        ("-n -O qcow2 disk.raw full.raw", "qcow2"),
        (
            "-n -o cluster_size=4k -O qcow2 disk.raw full.qcow2",
            "-o has no effect when skipping image creation",
        ),
        (
            "--target-is-zero disk.raw out",
            "--target-is-zero requires use of -n flag",
        ),
        (
            "--target-image-opts disk.raw driver=raw,file.filename=full.raw",
            "--target-image-opts requires use of -n flag",
        ),
        (
            "-n --target-image-opts -O raw disk.raw driver=raw,file.filename=full.raw",
            "--target-image-opts",
        ),
        ("-n -O qcow2 -c disk.raw full.raw", ""),
        (
            "-n --target-image-opts disk.raw driver=raw,offset=2M,file.filename=full.raw",
            "output file is smaller than input file",
        ),
    ] {
        let before = ["full.raw", "small.raw", "full.qcow2", "overlay.qcow2"]
            .map(|name| std::fs::read(twins.ours.path(name)).unwrap());
        twins.neither(&format!("convert {line}"), why);
        let after = ["full.raw", "small.raw", "full.qcow2", "overlay.qcow2"]
            .map(|name| std::fs::read(twins.ours.path(name)).unwrap());
        assert!(before == after, "{line}");
    }
    // QEMU gives the exit status 0 with the same words; believes it, though the backing file shows
    // through; and writes over what it reads.
    for (line, why) in [
        (
            "-n --target-is-zero -B full.raw -F raw -O qcow2 disk.raw overlay.qcow2",
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            "-n --target-is-zero -O qcow2 disk.raw overlay.qcow2",
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            "-n full.raw full.raw",
            "the target is also a file of the source",
        ),
        // It writes all that comes before, too.
        (
            "-n -c -O qcow2 disk.raw empty.qcow2",
            "is compressed as a whole or not at all",
        ),
    ] {
        let done = twins.ours.goldsmith(&format!("convert {line}"));
        assert_eq!(done.status, 1, "{line}");
        assert!(done.stderr.contains(why), "{done:?}");
    }
}

/// Before that, the unit that the source ends in is kept, and its table moves. Until it is needed again, the
/// table of 72 MiB has taken its place in memory.
#[test]
fn what_is_left_of_a_larger_disk_does_not_hide_what_was_there() {
    let folder = Folder::new();
    let end = (200 << 20) + (64 << 10) + 512;
    std::fs::File::create(folder.path("base.raw"))
        .and_then(|file| file.set_len(300 << 20))
        .unwrap();
    let source = std::fs::File::create(folder.path("source.raw")).unwrap();
    source.set_len(end).unwrap();
    source.write_all_at(&[0x31; 4096], 5 << 20).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 -o cluster_size=1k -b base.raw -F raw t.qcow2 300M");
    folder.qemu_io(
        "t.qcow2",
        &["write -P 0x59 200M 64k", "write -P 0x60 72M 64k"],
    );
    folder.goldsmith_ok("convert -n -f raw -O qcow2 source.raw t.qcow2");
    source.set_len(300 << 20).unwrap();
    folder.qemu_img_ok("compare -q -f raw -F qcow2 source.raw t.qcow2");
    folder.qemu_img_ok("check -q t.qcow2");
}

/// QEMU writes over it.
#[test]
fn source_that_the_target_keeps_its_data_in_is_not_written_over() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 -o data_file=source,data_file_raw=on target.qcow2 2M");
    std::fs::remove_file(folder.path("source")).unwrap();
    folder.write("source", &disk("2M:A"));
    for more in ["", "-U "] {
        let line = format!("convert {more}-n -f raw -O qcow2 source target.qcow2");
        let refused = folder.goldsmith(&line);
        assert_eq!(refused.status, 1, "{refused:?}");
        let why = "the target is also a file of the source";
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    assert!(std::fs::read(folder.path("source")).unwrap() == disk("2M:A").bytes());
}

/// The target is what it is then, and the user is told so.
#[test]
fn source_that_fails_leaves_an_incomplete_target_and_says_so() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("8M:a"));
    folder.write("target.raw", &disk("8M:Z"));
    folder.goldsmith_ok("convert -O qcow2 disk.raw disk.qcow2");
    let past = (1_u64 << 63) | (1 << 40);
    let at = l2(&folder, "disk.qcow2") + 100 * 8;
    patch(&folder, "disk.qcow2", at, &past.to_be_bytes());
    let done = folder.goldsmith("convert -n -f qcow2 disk.qcow2 target.raw -m 1");
    assert_eq!(done.status, 1);
    let text = "'target.raw' was written in place and is incomplete";
    assert!(done.stderr.contains(text), "{done:?}");
    assert_eq!(
        std::fs::metadata(folder.path("target.raw")).unwrap().len(),
        8 << 20
    );
    // Nothing is, if nothing was begun.
    let done = folder.goldsmith("convert -n -f qcow2 missing.qcow2 target.raw");
    assert!(!done.stderr.contains("incomplete"), "{done:?}");
}

/// QEMU compresses nothing over what is there.
#[test]
fn clusters_are_compressed_over_whatever_the_target_holds() {
    let twins = images();
    let folder = &twins.ours;
    folder.write(
        "even.raw",
        &disk("256k:A 1M:- 64k:0 200k:b 16k:C 40k:- 448k:D"),
    );
    for (name, options) in [
        ("single.qcow2", "-o refcount_bits=1"),
        ("double.qcow2", "-o refcount_bits=2,cluster_size=512"),
        ("zstd.qcow2", "-o compression_type=zstd,cluster_size=2M"),
    ] {
        folder.qemu_img_ok(&format!("create -q -f qcow2 {options} {name} 3M"));
    }
    // Once over what it is given here, and once over what the first time has left.
    for target in [
        "full.qcow2",
        "old.qcow2",
        "tiny.qcow2",
        "sub.qcow2",
        "snapshot.qcow2",
        "overlay.qcow2",
        "empty.qcow2",
        "single.qcow2",
        "double.qcow2",
    ] {
        for source in ["even.raw", "full.raw", "even.raw"] {
            folder.goldsmith_ok(&format!("convert -n -c -f raw -O qcow2 {source} {target}"));
            let length = std::fs::metadata(folder.path(source)).unwrap().len();
            folder.qemu_img_ok(&format!("check -f qcow2 {target}"));
            let dd = format!(
                "dd -f qcow2 -O raw bs=512 count={} if={target}",
                length / 512
            );
            folder.qemu_img_ok(&format!("{dd} of=content.out"));
            let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
            assert!(read("content.out") == read(source), "{source} {target}");
            let map = folder.qemu_img_ok(&format!("map --output=json -f qcow2 {target}"));
            assert!(map.contains("\"compressed\": true"), "{target}: {map}");
        }
    }
    folder.qemu_img_ok("convert -f qcow2 -O raw -l one snapshot.qcow2 kept");
    twins
        .theirs
        .qemu_img_ok("convert -f qcow2 -O raw -l one snapshot.qcow2 kept");
    let [ours, theirs] = [&twins.ours, &twins.theirs].map(|it| std::fs::read(it.path("kept")));
    assert!(
        ours.unwrap() == theirs.unwrap(),
        "the snapshot is what it was"
    );
    folder.goldsmith_ok("convert -n -c -f raw -O qcow2 full.raw zstd.qcow2");
}

#[test]
fn image_without_compressed_clusters_gets_none() {
    let twins = images();
    twins.ours.write("even.raw", &disk("64k:A"));
    twins.theirs.write("even.raw", &disk("64k:A"));
    for (line, why) in [
        ("-O qcow2 even.raw outside.qcow2", "in a data file"),
        (
            "-O raw even.raw full.raw",
            "Compression not supported for this file format",
        ),
        (
            "-O vpc even.raw fixed.vhd",
            "Compression not supported for this file format",
        ),
        (
            "-O vpc even.raw dynamic.vhd",
            "Compression not supported for this file format",
        ),
    ] {
        twins.neither(&format!("convert -n -c -f raw {line}"), why);
    }
}

#[test]
fn what_was_written_is_read_back_if_wanted() {
    let twins = images();
    let folder = &twins.ours;
    for (target, format) in [
        ("full.raw", "raw"),
        ("full.qcow2", "qcow2"),
        ("overlay.qcow2", "qcow2"),
        ("outside.qcow2", "qcow2"),
        ("dynamic.vhd", "vpc"),
    ] {
        for source in ["disk.raw", "odd.raw"] {
            let line = format!("convert -n -f raw -O {format} --verify {source} {target}");
            let said = folder.goldsmith_ok(&format!("{line} --digest sha256 --file-digest sha256"));
            let lines: Vec<_> = said.lines().collect();
            let [disk, file, verified] = lines[..] else {
                panic!("{said}")
            };
            let sum = |name: &str| {
                let done = folder.run(std::process::Command::new("sha256sum").arg(name));
                done.stdout.split(' ').next().unwrap().to_owned()
            };
            assert_eq!(file, format!("file sha256: {}", sum(target)));
            // In whole sectors; the target has more, which stays.
            let mut front = std::fs::read(folder.path(source)).unwrap();
            front.resize(front.len().next_multiple_of(512), 0);
            let len = front.len();
            std::fs::write(folder.path("front"), front).unwrap();
            assert_eq!(
                disk,
                format!("disk sha256 of its first {len} bytes: {}", sum("front"))
            );
            assert_eq!(
                verified,
                "verified: the target was read back and holds this disk at its beginning"
            );
            let said = folder.goldsmith_ok(&format!("{line} --output=json --digest sha256"));
            let facts: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(facts["digested"], len);
            assert_eq!(facts["digests"]["sha256"], sum("front"));
        }
    }
    // Whoever said so was wrong.
    let folder = &images().ours;
    let line = "convert -n --target-is-zero -f raw -O raw --verify disk.raw full.raw";
    let done = folder.goldsmith(line);
    assert_eq!((done.status, &*done.stdout), (1, ""), "{done:?}");
    assert!(
        done.stderr
            .contains("what is read back from it is not what was written"),
        "{done:?}"
    );
}

/// A target of the same size has no front, and one in a part of a file is no file of its own.
#[test]
fn digests_are_of_the_disk_that_was_written_and_of_the_whole_file() {
    let folder = &images().ours;
    let sum = |name: &str| {
        let done = folder.run(std::process::Command::new("sha256sum").arg(name));
        done.stdout.split(' ').next().unwrap().to_owned()
    };
    let line = "convert -n -f raw --verify --digest sha256 --file-digest sha256 small.raw";
    let window = "driver=raw,offset=1M,size=512k,file.filename=full.raw";
    let json = r#"json:{"driver":"raw","offset":1048576,"size":524288,"file.filename":"full.raw"}"#;
    for target in [&format!("--target-image-opts {window}"), json] {
        let said = folder.goldsmith_ok(&format!("{line} {target}"));
        assert_eq!(
            said,
            format!(
                "disk sha256: {}\nfile sha256: {}\n\
                 verified: the target was read back and holds this disk\n",
                sum("small.raw"),
                sum("full.raw")
            )
        );
        let said = folder.goldsmith_ok(&format!("{line} --output=json {target}"));
        let facts: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(facts["file-length"], 3 << 20);
        assert_eq!(
            (&facts["virtual-size"], &facts["digested"]),
            (&(512 << 10).into(), &(512 << 10).into())
        );
    }
}

#[test]
fn rehearsal_tells_how_much_would_be_written_and_writes_nothing() {
    let twins = images();
    for (line, bytes) in [
        ("-O raw disk.raw full.raw", 467_456),
        ("-O qcow2 disk.raw full.qcow2", 467_456),
        ("-O qcow2 --target-is-zero disk.raw full.qcow2", 467_456),
        (
            "-O qcow2 -B full.raw -F raw disk.raw overlay.qcow2",
            467_456,
        ),
        ("-O qcow2 -B full.raw -F raw full.raw overlay.qcow2", 0),
        ("-O vpc disk.raw dynamic.vhd", 467_456),
    ] {
        let said = twins.rehearsed(&format!("convert -n -f raw {line}"));
        let told = format!("{bytes} bytes of guest data to be written\n");
        assert!(said.ends_with(&told), "{line}: {said}");
    }
}
