//! `goldsmith bitmap`

use serde_json::Value;

use crate::twins::Twins;

/// An image whose bitmaps have seen writes, and another of the same disk.
fn image() -> Twins {
    Twins::new(|folder| {
        for name in ["disk.qcow2", "old.qcow2"] {
            folder.qemu_img_ok(&format!("create -q -f qcow2 {name} 10M"));
            folder.qemu_img_ok(&format!("bitmap --add {name} seen"));
            folder.qemu_img_ok(&format!("bitmap --add -g 32k {name} fine"));
        }
        folder.qemu_io("disk.qcow2", &["write -P 1 1M 100k", "write -P 2 9M 1M"]);
        folder.qemu_io("old.qcow2", &["write -P 1 5M 10k"]);
        folder.qemu_img_ok("create -q -f raw disk.raw 1M");
        folder.qemu_img_ok("create -q -f vpc disk.vhd 1M");
        folder.qemu_img_ok("create -q -f qcow2 large.qcow2 20M");
        folder.qemu_img_ok("bitmap --add large.qcow2 seen");
        folder.qemu_img_ok("create -q -f qcow2 none.qcow2 1M");
    })
}

/// What a bitmap holds, as QEMU tells it over NBD.
fn dirty(twins: &Twins, ours: bool, file: &str, name: &str) -> Value {
    let folder = if ours { &twins.ours } else { &twins.theirs };
    let socket = folder.path("socket");
    let line = format!(
        "qemu-nbd -r -f qcow2 -B {name} -k {socket} --pid-file pid --fork {file} && \
         qemu-img map --output=json --image-opts driver=nbd,server.type=unix,\
         server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name} && \
         while [ -e /proc/$(cat pid) ]; do sleep 0.01; done",
        socket = socket.display()
    );
    let done = folder.run(std::process::Command::new("sh").args(["-c", &line]));
    assert_eq!(done.status, 0, "{done:?}");
    let mut map: Value = serde_json::from_str(&done.stdout).unwrap();
    for extent in map.as_array_mut().unwrap() {
        extent.as_object_mut().unwrap().remove("offset");
    }
    map
}

#[test]
fn bitmaps_change_as_with_qemu_img() {
    let twins = image();
    for line in [
        "bitmap --add disk.qcow2 new",
        "bitmap --add -g 512 disk.qcow2 finest",
        "bitmap -g 2M --add -f qcow2 disk.qcow2 coarse",
        "bitmap --merge seen disk.qcow2 new",
        "bitmap --merge seen --merge fine disk.qcow2 coarse",
        "bitmap --disable --clear --enable disk.qcow2 fine",
        "bitmap --add --disable disk.qcow2 off",
        "bitmap --merge seen -b old.qcow2 -F qcow2 disk.qcow2 fine",
        "bitmap --merge seen disk.qcow2 seen",
        "bitmap --remove disk.qcow2 finest",
        "bitmap --remove --add disk.qcow2 off",
    ] {
        twins.both(line);
        twins.same("disk.qcow2", "qcow2");
        let name = line.rsplit(' ').next().unwrap();
        if name != "finest" {
            assert_eq!(
                dirty(&twins, true, "disk.qcow2", name),
                dirty(&twins, false, "disk.qcow2", name),
                "{line}"
            );
        }
    }
}

#[test]
fn bitmaps_go_along_with_a_conversion() {
    let twins = image();
    twins.both("bitmap --add --disable disk.qcow2 off");
    for line in [
        "convert --bitmaps -f qcow2 -O qcow2 disk.qcow2 copy.qcow2",
        "convert --bitmaps -c -O qcow2 -o cluster_size=4k disk.qcow2 copy.qcow2",
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 disk.qcow2 copy.qcow2",
    ] {
        twins.both(line);
        twins.same("copy.qcow2", "qcow2");
        for name in ["seen", "fine", "off"] {
            assert_eq!(
                dirty(&twins, true, "copy.qcow2", name),
                dirty(&twins, false, "copy.qcow2", name),
                "{line}"
            );
        }
    }
    twins.neither("convert --bitmaps -O raw disk.qcow2 copy.raw", "");
    assert!(!twins.ours.path("copy.raw").exists());
}

#[test]
fn bitmaps_go_along_into_an_encrypted_image() {
    let twins = image();
    let line = "convert --object secret,id=s,data=one --bitmaps -O qcow2 \
                -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 disk.qcow2 luks.qcow2";
    twins.both(line);
    let names = |folder: &crate::Folder| {
        let told: Value =
            serde_json::from_str(&folder.qemu_img_ok("info --output=json luks.qcow2")).unwrap();
        told["format-specific"]["data"]["bitmaps"].clone()
    };
    assert_eq!(names(&twins.ours), names(&twins.theirs));
    assert_eq!(names(&twins.ours).as_array().map(Vec::len), Some(2));
}

/// The mark for what is no text is text, too.
#[test]
fn bitmap_with_any_text_for_its_name_is_copied() {
    let folder = image().ours;
    folder.qemu_img_ok("bitmap --add disk.qcow2 a\u{fffd}b");
    folder.goldsmith_ok("convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2");
    let told: Value =
        serde_json::from_str(&folder.qemu_img_ok("info --output=json copy.qcow2")).unwrap();
    let bitmaps = told["format-specific"]["data"]["bitmaps"]
        .as_array()
        .unwrap();
    let is_there = bitmaps.iter().any(|bitmap| bitmap["name"] == "a\u{fffd}b");
    assert!(is_there, "{told}");
}

/// The copy would have another name, by which nobody finds it.
#[test]
fn bitmap_whose_name_is_no_text_is_not_copied() {
    let folder = image().ours;
    let mut image = std::fs::read(folder.path("disk.qcow2")).unwrap();
    for at in 0..image.len() - 4 {
        if image[at..].starts_with(b"fine") {
            image[at + 3] = 0xe9;
        }
    }
    std::fs::write(folder.path("disk.qcow2"), image).unwrap();
    folder.qemu_img_ok("check -q disk.qcow2");
    let done = folder.goldsmith("convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2");
    assert_eq!(done.status, 1);
    assert!(
        done.stderr.contains("disk.qcow2") && done.stderr.contains("its name is no text"),
        "{done:?}"
    );
    assert!(!folder.path("copy.qcow2").exists());
}

/// The bitmaps are about the disk as it is now, and that of the snapshot may be shorter: what they know of the
/// rest must not come back when it grows.
#[test]
fn bitmaps_of_a_longer_disk_end_with_that_of_the_snapshot() {
    let twins = image();
    for line in ["snapshot -c early disk.qcow2", "resize -q disk.qcow2 20M"] {
        twins.ours.qemu_img_ok(line);
    }
    twins
        .ours
        .qemu_io("disk.qcow2", &["write 9M 3M", "write 15M 64k"]);
    for line in [
        "convert -l early --bitmaps -O qcow2 disk.qcow2 early.qcow2",
        "resize -q early.qcow2 20M",
        "create -q -f qcow2 longer.qcow2 20M",
        "convert -n -l early --bitmaps -O qcow2 disk.qcow2 longer.qcow2",
    ] {
        twins.ours.goldsmith_ok(line);
    }
    for copy in ["early.qcow2", "longer.qcow2"] {
        let map = dirty(&twins, true, copy, "seen");
        let runs = map.as_array().unwrap().iter();
        let seen = runs.filter(|run| run["data"] == false);
        let ends = seen.map(|run| run["start"].as_u64().unwrap() + run["length"].as_u64().unwrap());
        assert_eq!(ends.max(), Some(10 << 20), "{copy}: {map}");
    }
}

/// What is refused is refused before there is a target, that is, before the source is read.
fn assert_makes_no_file(twins: &Twins, line: &str) {
    for call in twins.ours.calls_of_failing("openat", line) {
        assert!(
            !call.contains("O_CREAT") && !call.contains("O_TMPFILE"),
            "{line}: {call}"
        );
    }
}

/// Whether or not there are any, and before there is a target.
#[test]
fn target_that_keeps_no_bitmaps_is_refused_at_once() {
    let twins = image();
    for line in [
        "-O raw disk.qcow2 copy",
        "-O vpc disk.qcow2 copy",
        "-O qcow2 -o compat=0.10 disk.qcow2 copy",
        "-O qcow2 -o compat=0.10 none.qcow2 copy",
    ] {
        let line = format!("convert --bitmaps -f qcow2 {line}");
        twins.neither(&line, "does not support bitmaps");
        assert_makes_no_file(&twins, &line);
    }
}

/// An interrupted writer leaves bitmaps that say nothing.
#[test]
fn bitmap_that_was_not_saved_is_no_bitmap_to_copy() {
    let twins = image();
    for folder in [&twins.ours, &twins.theirs] {
        let path = folder.path("disk.qcow2");
        let mut image = std::fs::read(&path).unwrap();
        // The flags in its entry of the directory, and of earlier ones; the name is behind them.
        let names = image
            .windows(4)
            .enumerate()
            .filter(|(_, bytes)| *bytes == b"seen");
        for at in names.map(|(at, _)| at).collect::<Vec<_>>() {
            image[at - 24 + 15] |= 1;
        }
        std::fs::write(path, image).unwrap();
    }
    twins.neither(
        "convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2",
        "bitmap 'seen'",
    );
    assert!(!twins.ours.path("copy.qcow2").exists());
    let line = "convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2";
    assert_makes_no_file(&twins, line);
    let line = "convert --bitmaps --skip-broken-bitmaps -O qcow2 disk.qcow2 copy.qcow2";
    let (ours, theirs) = twins.run(line);
    assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?}");
    let skipped = "the bitmap 'seen' was not saved properly, and is not copied";
    assert!(ours.stdout.contains(skipped), "{ours:?}");
    twins.same("copy.qcow2", "qcow2");
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let twins = image();
    let fail = "Operation";
    for (line, hint) in [
        ("bitmap disk.qcow2 seen", "Need at least one of --add"),
        ("bitmap --add disk.qcow2", "BITMAP"),
        (
            "bitmap --add disk.qcow2 seen",
            "Operation add on bitmap seen failed",
        ),
        ("bitmap --add --add disk.qcow2 seen", fail),
        (
            "bitmap --remove disk.qcow2 none",
            "Operation remove on bitmap none failed",
        ),
        (
            "bitmap --merge none disk.qcow2 seen",
            "Operation merge on bitmap seen failed: Dirty bitmap 'none' not found",
        ),
        ("bitmap --enable -g 64k disk.qcow2 seen", "--add"),
        (
            "bitmap --add -b old.qcow2 -F qcow2 disk.qcow2 new",
            "--merge",
        ),
        (
            "bitmap --merge seen -F qcow2 disk.qcow2 seen",
            "--source-file",
        ),
        ("bitmap --add -g 5 disk.qcow2 new", fail),
        ("bitmap --add -g 4G disk.qcow2 new", fail),
        ("bitmap --add disk.qcow2 ", fail),
        (
            "bitmap --add -f raw disk.raw new",
            "raw images have no bitmaps",
        ),
        ("bitmap --add disk.vhd new", "vpc images"),
        (
            "bitmap --merge seen -b large.qcow2 -F qcow2 disk.qcow2 seen",
            "Bitmaps are of different sizes (destination size is 10485760, source size is 20971520)",
        ),
    ] {
        twins.neither(line, hint);
        twins.same("disk.qcow2", "qcow2");
    }
}

#[test]
fn rehearsal_says_what_would_be_done_and_does_nothing() {
    let twins = image();
    let said = twins.rehearsed("bitmap --add --merge seen disk.qcow2 new");
    assert!(said.contains("disk.qcow2: write the header"), "{said}");
}

/// A stranger says how many there are, and each change writes the whole directory.
#[test]
fn any_number_of_bitmaps_is_copied_in_one_change() {
    let twins = image();
    let folder = &twins.ours;
    let flushes = |line: &str| folder.calls("fdatasync", line).len();
    folder.qemu_img_ok("create -q -f qcow2 there.qcow2 10M");
    let line = |target: &str| format!("convert -q --bitmaps -f qcow2 -O qcow2 disk.qcow2 {target}");
    let few = flushes(&line("few.qcow2"));
    let few_there = flushes(&line("-n there.qcow2"));
    for nth in 0..20 {
        folder.qemu_img_ok(&format!("bitmap --add disk.qcow2 b{nth}"));
    }
    folder.qemu_img_ok("create -q -f qcow2 there.qcow2 10M");
    assert_eq!(flushes(&line("many.qcow2")), few);
    assert_eq!(flushes(&line("-n there.qcow2")), few_there);
    for name in ["many.qcow2", "there.qcow2"] {
        let said: Value =
            serde_json::from_str(&folder.qemu_img_ok(&format!("info --output=json {name}")))
                .unwrap();
        let bitmaps = &said["format-specific"]["data"]["bitmaps"];
        assert_eq!(bitmaps.as_array().unwrap().len(), 22, "{name}");
        folder.qemu_img_ok(&format!("check -q {name}"));
        for bitmap in ["seen", "fine", "b7"] {
            let [it, from] = [name, "disk.qcow2"].map(|file| dirty(&twins, true, file, bitmap));
            assert_eq!(it, from, "{bitmap} of {name}");
        }
    }
}
