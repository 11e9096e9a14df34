//! What `goldsmith info` says of an image's health, and of the files that it names.

use std::process::Command;

use goldsmith_testkit::pattern::disk;
use serde_json::{Value, json};

use crate::Folder;
use crate::info::images;

fn info(folder: &Folder, format: &str, image: &str) -> Value {
    let line = format!("info -f {format} --output=json {image}");
    serde_json::from_str(&folder.goldsmith_ok(&line)).unwrap()
}

/// What ails the image, by name; and the lines that tell people.
fn ailments(folder: &Folder, format: &str, image: &str) -> Vec<String> {
    let info = info(folder, format, image);
    let symptoms = info["symptoms"].as_array().cloned().unwrap_or_default();
    let text = folder.goldsmith_ok(&format!("info -f {format} {image}"));
    let ailment = |symptom: &Value| {
        let (ailment, why) = (&symptom["ailment"], symptom["text"].as_str().unwrap());
        let ailment = ailment.as_str().unwrap().to_owned();
        let line = match &*ailment {
            "warning" => format!("goldsmith: warning: {why}\n"),
            _ => format!("    {}: {why}\n", ailment.replace('-', " ")),
        };
        assert!(text.contains(&line), "{line} in {text}");
        ailment
    };
    symptoms.iter().map(ailment).collect()
}

fn change(folder: &Folder, image: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(folder.path(image)).unwrap();
    change(&mut bytes);
    std::fs::write(folder.path(image), bytes).unwrap();
}

#[test]
fn nothing_ails_sound_images_of_any_kind() {
    let (folder, mut images) = images();
    for line in [
        "create -q -f qcow2 -o preallocation=metadata metadata.qcow2 10M",
        "create -q -f qcow2 -o preallocation=full,cluster_size=4k full.qcow2 3M",
        "create -q -f qcow2 -o cluster_size=512,refcount_bits=64 small.qcow2 1M",
        "create -q -f qcow2 -o extended_l2=on written.qcow2 10M",
        "create -q -f qcow2 -o cluster_size=2M,refcount_bits=1 large.qcow2 100G",
        "create -q -f vpc empty.vhd 10M",
    ] {
        folder.qemu_img_ok(line);
    }
    let parts = [
        "write 5M 1k",
        "write -z 1M 3k",
        "write 9M 70k",
        "discard 5M 64k",
    ];
    folder.qemu_io("written.qcow2", &parts);
    folder.qemu_io("large.qcow2", &["write 99G 1k"]);
    for line in [
        "convert -f raw -O qcow2 -c disk.raw ours.qcow2",
        "convert -f raw -O vpc disk.raw ours.vhd",
        "convert -f raw -O vpc -o subformat=fixed disk.raw ours-fixed.vhd",
    ] {
        folder.goldsmith_ok(line);
    }
    images.extend([
        ("metadata.qcow2", "qcow2"),
        ("full.qcow2", "qcow2"),
        ("small.qcow2", "qcow2"),
        ("written.qcow2", "qcow2"),
        ("large.qcow2", "qcow2"),
        ("ours.qcow2", "qcow2"),
        ("empty.vhd", "vpc"),
        ("ours.vhd", "vpc"),
        ("ours-fixed.vhd", "vpc"),
    ]);
    for (image, format) in images {
        assert_eq!(ailments(&folder, format, image), [""; 0], "{image}");
        let info = info(&folder, format, image);
        assert!(info.get("symptoms").is_none(), "absent, not empty");
        assert!(info.get("content-looks-like").is_none(), "{image}");
        assert!(info.get("also-looks-like").is_none(), "{image}");
    }
}

/// Clusters that are counted and not there; qemu-img converts such an image without a word.
#[test]
fn qcow2_that_lost_its_end_is_truncated() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("4M:A"));
    for (image, options) in [
        ("v3", ""),
        ("v2", "-o compat=0.10 "),
        ("narrow", "-o refcount_bits=1,cluster_size=4k "),
        ("wide", "-o refcount_bits=64,cluster_size=16k "),
    ] {
        folder.qemu_img_ok(&format!(
            "convert -f raw -O qcow2 {options}disk.raw {image}"
        ));
        assert_eq!(ailments(&folder, "qcow2", image), [""; 0], "{image}");
        change(&folder, image, |bytes| bytes.truncate(bytes.len() / 2 + 1));
        assert_eq!(ailments(&folder, "qcow2", image), ["truncated"], "{image}");
        assert_eq!(
            folder.qemu_img(&format!("check -f qcow2 {image}")).status,
            2
        );
    }
}

#[test]
fn qcow2_that_goes_on_behind_its_last_cluster_has_a_tail() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    let checked = folder.qemu_img_ok("check -f qcow2 --output=json disk.qcow2");
    let checked: Value = serde_json::from_str(&checked).unwrap();
    let end = checked["image-end-offset"].as_u64().unwrap();
    change(&folder, "disk.qcow2", |bytes| {
        bytes.resize(end as usize + 5000, 7)
    });
    assert_eq!(
        ailments(&folder, "qcow2", "disk.qcow2"),
        ["unreferenced-tail"]
    );
    let text = folder.goldsmith_ok("info disk.qcow2");
    let line =
        format!("5000 bytes behind the last cluster in use, from {end:#x}, belong to nothing");
    assert!(text.contains(&line), "{text}");
}

#[test]
fn qcow2_marks_of_damage_are_told() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 1M");
    // The last byte of the incompatible features. [spec]
    for (bits, expected) in [
        (1, &["dirty"][..]),
        (2, &["corrupt"]),
        (3, &["corrupt", "dirty"]),
    ] {
        change(&folder, "disk.qcow2", |bytes| bytes[79] = bits);
        assert_eq!(ailments(&folder, "qcow2", "disk.qcow2"), expected);
    }
    // A refcount table that names no place where a block could be.
    change(&folder, "disk.qcow2", |bytes| {
        bytes[79] = 0;
        let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
        bytes[table + 7] = 1;
    });
    assert_eq!(ailments(&folder, "qcow2", "disk.qcow2"), ["corrupt"]);
}

#[test]
fn vhd_that_lost_blocks_or_has_others_says_so() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("2M:A 2M:- 4M:B"));
    folder.qemu_img_ok("convert -f raw -O vpc -o force_size=on disk.raw disk.vhd");
    let whole = std::fs::read(folder.path("disk.vhd")).unwrap();
    change(&folder, "disk.vhd", |bytes| bytes.truncate(whole.len() / 2));
    assert_eq!(
        ailments(&folder, "vpc", "disk.vhd"),
        ["truncated", "warning"]
    );

    let footer = whole.len() - 512;
    let with_gap = [&whole[..footer], &vec![0; 3 << 20], &whole[footer..]].concat();
    std::fs::write(folder.path("disk.vhd"), with_gap).unwrap();
    assert_eq!(ailments(&folder, "vpc", "disk.vhd"), ["unreferenced-tail"]);

    let mut poisoned = whole;
    // Both footers are marked, and add up.
    for footer in [0, footer] {
        let footer = &mut poisoned[footer..footer + 512];
        footer[..8].copy_from_slice(b"v_poison");
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    std::fs::write(folder.path("disk.vhd"), poisoned).unwrap();
    assert_eq!(ailments(&folder, "vpc", "disk.vhd"), ["corrupt"]);
}

#[test]
fn files_that_an_image_names_are_listed_and_judged_by_the_policy() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    folder.qemu_img_ok("create -q -f qcow2 -b base.raw -F raw -o data_file=data top.qcow2");
    let line = "create -q -f qcow2 -u -b /etc/passwd -F raw leak.qcow2 1M";
    folder.qemu_img_ok(line);
    folder.qemu_img_ok("create -q -f qcow2 -u -b nbd://host/x -F raw far.qcow2 1M");
    folder.goldsmith_ok("convert -f raw -O vpc base.raw base.vhd");
    folder.goldsmith_ok("create -q -f vpc -b base.vhd -F vpc child.vhd");
    std::fs::remove_file(folder.path("base.raw")).unwrap();

    let named = |image: &str, policy: &str| {
        let line = format!("info --references {policy} --output=json {image}");
        let info: Value = serde_json::from_str(&folder.goldsmith_ok(&line)).unwrap();
        info["named-files"].clone()
    };
    let top = json!([
        { "role": "backing-file", "name": "base.raw", "format": "raw" },
        { "role": "data-file", "name": "data" },
    ]);
    assert_eq!(named("top.qcow2", "same-directory"), top);
    for (image, policy, why) in [
        ("top.qcow2", "deny", "the reference policy is 'deny'"),
        ("leak.qcow2", "same-directory", "not in the directory"),
        ("far.qcow2", "allow", "of the kind 'nbd:'"),
    ] {
        let named = named(image, policy);
        let refused = named[0]["refused"].as_str().unwrap();
        assert!(refused.contains(why), "{refused}");
        let text = folder.goldsmith_ok(&format!("info --references {policy} {image}"));
        let name = named[0]["name"].as_str().unwrap();
        let line = format!("    backing file: {name} (raw): {refused}\n");
        assert!(text.contains(&line), "{text}");
    }
    let allowed = named("leak.qcow2", "allow");
    assert!(allowed[0].get("refused").is_none(), "{allowed}");
    // Both of a VHD's locators: the way from its directory, and the whole path.
    let parents = named("child.vhd", "allow");
    let names: Vec<_> = parents
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    let whole = folder.path("base.vhd").display().to_string();
    assert!(names.contains(&&json!(whole)), "{parents}");
    assert!(
        names
            .iter()
            .any(|it| it.as_str().unwrap().ends_with("base.vhd") && **it != json!(whole))
    );
}

/// Who asks qemu-img gets its words, and no others.
#[test]
fn nothing_of_it_is_said_under_the_name_of_qemu_img() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw inner.qcow2");
    folder.qemu_img_ok("convert -f raw -O qcow2 inner.qcow2 outer.qcow2");
    folder.qemu_img_ok("rebase -u -f qcow2 -b /etc/passwd -F raw outer.qcow2");
    change(&folder, "outer.qcow2", |bytes| {
        bytes.resize(bytes.len() + (1 << 20), 0)
    });
    let keys = ["named-files", "symptoms", "content-looks-like"];
    let ours = info(&folder, "qcow2", "outer.qcow2");
    let line = "info -f qcow2 --output=json outer.qcow2";
    let called: Value = serde_json::from_str(&folder.as_qemu_img_ok(line)).unwrap();
    for key in keys {
        assert!(ours.get(key).is_some(), "{key}: {ours}");
        assert!(called.get(key).is_none(), "{key}: {called}");
    }
    let line = "info -f qcow2 outer.qcow2";
    assert_eq!(folder.as_qemu_img_ok(line), folder.qemu_img_ok(line));
}

/// Glance's own limits, for all that is looked at beyond what qemu-img looks at.
#[test]
fn looking_at_every_known_image_stays_within_glance_s_limits() {
    let folder = Folder::new();
    let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
    let (mut told, mut refused) = (0, 0);
    for kind in ["bad", "regression", "valid"] {
        let data = format!("{}/../../testdata/{kind}", env!("CARGO_MANIFEST_DIR"));
        let Ok(files) = std::fs::read_dir(data) else {
            continue;
        };
        for file in files {
            let path = file.unwrap().path();
            let line = format!(
                "ulimit -v 1048576; ulimit -t 2; exec {goldsmith} info --backing-chain \
                 --output=json {}",
                path.display()
            );
            let done = folder.run(Command::new("/bin/sh").args(["-c", &line]));
            match done.status {
                0 => told += 1,
                1 => refused += 1,
                _ => panic!("{line}: {done:?}"),
            }
        }
    }
    assert!(told >= 20 && refused >= 20, "{told} {refused}");
}
