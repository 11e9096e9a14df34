//! `goldsmith check`

use goldsmith_testkit::build::vhd::Vhd;
use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::salvage::{l2, patch};
use crate::twins::Twins;
use crate::{Done, Folder};

/// The outcomes that scripts tell apart, by qemu-img's exit statuses and words.
#[test]
fn outcome_is_told_as_qemu_img_tells_it() {
    let folder = Folder::new();
    let image = Vhd::dynamic(disk("64k:A 64k:B 128k:-").bytes(), 64 << 10);
    let write = |name: &str, image: &Vhd| std::fs::write(folder.path(name), image.bytes()).unwrap();
    write("sound.vhd", &image);
    write("leak.vhd", &image.clone().entry(0, u32::MAX));
    write("bad.vhd", &image.clone().entry(0, 1 << 20));
    folder.write("disk.raw", &disk("1M:A"));

    let sound = "No errors were found on the image.\n\
                 2/4 = 50.00% allocated, 0.00% fragmented, 0.00% compressed clusters\n\
                 Image end offset: 134656\n";
    assert_eq!(folder.goldsmith_ok("check sound.vhd"), sound);
    assert_eq!(folder.goldsmith_ok("check -q -f vpc sound.vhd"), "");
    let json: Value =
        serde_json::from_str(&folder.goldsmith_ok("check --output=json sound.vhd")).unwrap();
    let expected = serde_json::json!({
        "image-end-offset": 134_656,
        "total-clusters": 4,
        "check-errors": 0,
        "allocated-clusters": 2,
        "filename": "sound.vhd",
        "format": "vpc",
    });
    assert_eq!(json, expected);

    let leak = folder.goldsmith("check leak.vhd");
    assert_eq!(leak.status, 3);
    assert!(
        leak.stderr
            .contains("nothing points to 0x800..0x10a00 of the file")
    );
    let text = "\n1 leaked clusters were found on the image.\n\
                This means waste of disk space, but no harm to data.\n1/4 = 25.00% allocated";
    assert!(leak.stdout.starts_with(text), "{leak:?}");

    let bad = folder.goldsmith("check bad.vhd");
    assert_eq!(bad.status, 2);
    assert!(
        bad.stderr
            .starts_with("ERROR block 0 should fill 0x20000000.."),
        "{bad:?}"
    );
    let text = "\n1 errors were found on the image.\n\
                Data may be corrupted, or further writes to the image may corrupt it.\n";
    assert!(bad.stdout.starts_with(text), "{bad:?}");
    let json = folder.goldsmith("check --output=json bad.vhd").stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["corruptions"], 1);
    assert!(json["flaws"][0]["corruption"].is_string());

    let none = folder.goldsmith("check -f raw disk.raw");
    assert_eq!(none.status, 63);
    assert_eq!(
        none.stderr,
        "goldsmith: This image format does not support checks\n"
    );
    assert_eq!(folder.qemu_img("check -f raw disk.raw").status, 63);
    assert_eq!(folder.goldsmith("check -f vpc disk.raw").status, 1);
}

/// Word for word, but for the flaws: those have words of our own, and a list in the JSON.
#[test]
fn qcow2_is_reported_as_qemu_img_reports_it() {
    let folder = Folder::new();
    assert_eq!(
        folder.qemu_img("create -q -f qcow2 new.qcow2 10M").status,
        0
    );
    folder.write("disk.raw", &disk("1M:A 3M:- 1M:b"));
    folder.goldsmith_ok("convert -f raw -O qcow2 -o cluster_size=4k disk.raw disk.qcow2");
    let mut image = std::fs::read(folder.path("disk.qcow2")).unwrap();
    // The refcount table's place, then the first block's, then the refcounts of clusters 2 and 3.
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    image[block + 5] = 0;
    image[block + 7] = 2;
    std::fs::write(folder.path("bad.qcow2"), image).unwrap();
    for (name, status) in [("new", 0), ("disk", 0), ("bad", 2)] {
        for output in ["human", "json"] {
            let line = format!("check --output={output} {name}.qcow2");
            let (ours, theirs) = (folder.goldsmith(&line), folder.qemu_img(&line));
            assert_eq!((ours.status, theirs.status), (status, status));
            if output == "human" {
                assert_eq!(ours.stdout, theirs.stdout);
                continue;
            }
            let mut ours: Value = serde_json::from_str(&ours.stdout).unwrap();
            ours.as_object_mut().unwrap().remove("flaws");
            assert_eq!(ours, serde_json::from_str::<Value>(&theirs.stdout).unwrap());
        }
    }
}

/// A qcow2 with a cluster that is counted but not used, and another in which one is used but not
/// counted, too.
fn broken(folder: &Folder) {
    folder.qemu_img_ok("create -q -f qcow2 new.qcow2 10M");
    folder.qemu_io("new.qcow2", &["write -P 1 1M 1M"]);
    let mut image = std::fs::read(folder.path("new.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    let clusters = image.len() / 65536;
    image.resize((clusters + 1) * 65536, 0);
    image[block + 2 * clusters + 1] = 1;
    std::fs::write(folder.path("leak.qcow2"), &image).unwrap();
    image[block + 2 * (clusters - 1) + 1] = 0;
    std::fs::write(folder.path("bad.qcow2"), &image).unwrap();
}

#[test]
fn repair_is_reported_as_qemu_img_reports_it() {
    for what in ["leaks", "all"] {
        let twins = Twins::new(broken);
        let line = format!("check -r {what} leak.qcow2");
        let (ours, theirs) = twins.run(&line);
        assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?}");
        let but_the_end = |done: &Done| {
            let (text, _) = done.stdout.split_once("Image end offset: ").unwrap();
            text.to_owned()
        };
        assert_eq!(but_the_end(&ours), but_the_end(&theirs));
        assert!(ours.stderr.starts_with("Leaked: cluster "), "{ours:?}");
        twins.same("leak.qcow2", "qcow2");
        twins.both(&format!("check -q -r {what} leak.qcow2"));
        twins.both(&format!("check -q -r {what} new.qcow2"));

        let twins = Twins::new(broken);
        let (ours, theirs) = twins.run(&format!("{line} --output=json"));
        let facts = |done: &Done| {
            let mut facts: Value = serde_json::from_str(&done.stdout).unwrap();
            // What is mended stands elsewhere in ours: the old tables count until the new ones do.
            facts.as_object_mut().unwrap().remove("image-end-offset");
            facts
        };
        assert_eq!(facts(&ours), facts(&theirs));
        assert_eq!(facts(&ours)["leaks-fixed"], 1);
    }
}

#[test]
fn what_is_broken_is_mended_if_all_may_be() {
    let twins = Twins::new(broken);
    // Not as qemu-img, which gives up: the refcounts need more than that.
    let leaks = twins.ours.goldsmith("check -r leaks bad.qcow2");
    assert_eq!(leaks.status, 2, "{leaks:?}");
    let text = "repaired:\n\n    1 leaked clusters\n    0 corruptions\n";
    assert!(leaks.stdout.contains(text), "{leaks:?}");

    let twins = Twins::new(broken);
    let said = twins.ours.goldsmith("check -r all --dry-run bad.qcow2");
    assert_eq!(said.status, 2, "{said:?}");
    assert!(
        said.stdout.contains("bad.qcow2: write the header: "),
        "{said:?}"
    );
    let last = "0 errors and 0 leaked clusters would be left\n";
    assert!(said.stdout.ends_with(last), "{said:?}");
    let (ours, theirs) = twins.run("check -r all bad.qcow2");
    assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?} {theirs:?}");
    twins.same("bad.qcow2", "qcow2");
}

/// Nothing else is wrong: nobody could change the image ever again.
#[test]
fn marks_of_a_sound_image_are_taken_back() {
    for what in ["leaks", "all"] {
        for mark in 1..=3 {
            let twins = Twins::new(broken);
            for folder in [&twins.ours, &twins.theirs] {
                patch(folder, "new.qcow2", 79, &[mark]);
            }
            let (ours, theirs) = twins.run(&format!("check -q -r {what} new.qcow2"));
            assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?} {theirs:?}");
            for folder in [&twins.ours, &twins.theirs] {
                assert_eq!(
                    std::fs::read(folder.path("new.qcow2")).unwrap()[79],
                    0,
                    "{mark}"
                );
            }
            twins.both("resize -q new.qcow2 11M");
        }
    }
}

/// Who cannot be mended is not said to be.
#[test]
fn mark_that_cannot_be_taken_back_is_a_failure() {
    let twins = Twins::new(|folder| {
        folder.qemu_img_ok("create -q -f qcow2 -o data_file=data disk.qcow2 1M");
        patch(folder, "disk.qcow2", 79, &[6]);
        std::fs::remove_file(folder.path("data")).unwrap();
    });
    let (ours, theirs) = twins.run("check -r all disk.qcow2");
    assert_eq!((ours.status, theirs.status), (1, 1), "{ours:?} {theirs:?}");
    assert!(ours.stdout.is_empty(), "{ours:?}");
}

#[test]
fn copied_flag_of_a_cluster_in_a_data_file_is_mended() {
    let twins = Twins::new(|folder| {
        folder.qemu_img_ok("create -q -f qcow2 -o data_file=data disk.qcow2 1M");
        folder.qemu_io("disk.qcow2", &["write -P 1 0 256k", "write -z 128k 64k"]);
        // Not the first one: without the flag it is none.
        for cluster in 1..4 {
            patch(
                folder,
                "disk.qcow2",
                l2(folder, "disk.qcow2") + 8 * cluster,
                &[0],
            );
        }
    });
    let (ours, theirs) = twins.run("check -q -r all disk.qcow2");
    assert_eq!((ours.status, theirs.status), (0, 0), "{ours:?} {theirs:?}");
    twins.same("disk.qcow2", "qcow2");
    twins.ours.qemu_img_ok("check -q disk.qcow2");
}

#[test]
fn vhd_is_mended_though_qemu_img_cannot_look() {
    let folder = Folder::new();
    let image = Vhd::dynamic(disk("64k:A 64k:B 128k:-").bytes(), 64 << 10);
    let leak = image.entry(0, u32::MAX);
    std::fs::write(folder.path("leak.vhd"), leak.bytes()).unwrap();
    folder.qemu_img_ok("convert -f vpc -O raw leak.vhd before.raw");
    let mended = folder.goldsmith("check -f vpc -r leaks leak.vhd");
    assert_eq!(mended.status, 0, "{mended:?}");
    folder.goldsmith_ok("check -f vpc leak.vhd");
    folder.qemu_img_ok("compare -f vpc -F raw leak.vhd before.raw");
}

#[test]
fn what_has_no_tables_cannot_be_mended() {
    let twins = Twins::new(|folder| folder.write("disk.raw", &disk("1M:A")));
    twins.neither("check -f raw -r all disk.raw", "does not support checks");
    twins.neither("check -r some disk.raw", "some");
    twins.neither("check -U -r all -f raw disk.raw", "force-share");
}
