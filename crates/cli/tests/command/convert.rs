//! `goldsmith convert`

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::Folder;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:- 512k:b 64k:0 512:C"));
    folder
}

#[test]
fn golden_flow_is_silent_and_lossless() {
    let folder = folder();
    for line in [
        "convert -O qcow2 disk.raw a.qcow2",
        "convert -f qcow2 -O vpc a.qcow2 b.vhd",
        "convert -f vhd -O qcow2 -c -o compression_type=zstd,cluster_size=1M b.vhd c.qcow2",
        "convert -f qcow2 -O vpc -o subformat=fixed c.qcow2 d.vhd",
        "convert -f vpc d.vhd e.raw",
    ] {
        assert_eq!(folder.goldsmith_ok(line), "");
    }
    let read = |name| std::fs::read(folder.path(name)).unwrap();
    assert!(read("disk.raw") == read("e.raw"));
    folder.qemu_img_ok("check -q a.qcow2");
    folder.qemu_img_ok("compare -q -f raw -F vpc disk.raw d.vhd");
}

#[test]
fn format_is_guessed_from_its_marks() {
    let folder = folder();
    folder.goldsmith_ok("convert -O vpc -o subformat=fixed disk.raw fixed.vhd");
    folder.goldsmith_ok("convert -O qcow2 fixed.vhd a.qcow2");
    folder.goldsmith_ok("convert a.qcow2 back.raw");
    let read = |name| std::fs::read(folder.path(name)).unwrap();
    assert!(read("disk.raw") == read("back.raw"));
}

#[test]
fn options_may_follow_the_names() {
    let folder = folder();
    folder.goldsmith_ok("convert disk.raw a.qcow2 -O qcow2 -o cluster_size=4k -o compat=0.10");
    let info = folder.qemu_img_ok("info a.qcow2");
    assert!(
        info.contains("cluster_size: 4096") && info.contains("compat: 0.10"),
        "{info}"
    );
}

#[test]
fn progress_without_a_terminal_is_that_of_qemu_img() {
    let folder = folder();
    let shown = folder.goldsmith_ok("convert -p -O qcow2 disk.raw a.qcow2");
    let lines: Vec<_> = shown.split('\r').collect();
    assert!(lines.len() >= 2, "{shown:?}");
    assert_eq!(lines[lines.len() - 2..], ["    (100.00/100%)", "\n"]);
    for line in &lines[..lines.len() - 1] {
        let number = line
            .trim_start()
            .strip_prefix('(')
            .unwrap()
            .strip_suffix("/100%)")
            .unwrap();
        assert!(
            (0.0..=100.0).contains(&number.parse::<f64>().unwrap()),
            "{line:?}"
        );
        assert_eq!(number.split_once('.').unwrap().1.len(), 2, "{line:?}");
    }
    assert_eq!(
        folder.goldsmith_ok("convert -p -q -O qcow2 disk.raw b.qcow2"),
        ""
    );
}

#[test]
fn sparse_size_zero_allocates_everything() {
    let folder = folder();
    folder.goldsmith_ok("convert -S 0 -O qcow2 disk.raw a.qcow2");
    let map = folder.goldsmith_ok("map --output=json a.qcow2");
    assert_eq!(map.lines().count(), 1, "{map}");
    assert!(map.contains("\"data\": true"), "{map}");
}

#[test]
fn same_inputs_give_the_same_vhd() {
    let folder = folder();
    let made = |line: &str, epoch: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        command
            .args(line.split(' '))
            .current_dir(folder.path(""))
            .env_remove("SOURCE_DATE_EPOCH");
        if let Some(epoch) = epoch {
            command.env("SOURCE_DATE_EPOCH", epoch);
        }
        assert!(command.status().unwrap().success());
        std::fs::read(folder.path(line.rsplit(' ').next().unwrap())).unwrap()
    };
    let uuid = "--uuid 6f6c6473-6d69-7468-8000-000000000001 --timestamp 1000000000";
    let stated = |m| {
        made(
            &format!("convert -O vpc -m {m} {uuid} disk.raw a.vhd"),
            None,
        )
    };
    assert!(stated(1) == stated(4));

    let line = "convert -O vpc disk.raw a.vhd";
    let reproducible = made(line, Some("1700000000"));
    assert!(reproducible == made(line, Some("1700000000")));
    assert!(
        reproducible != made(line, Some("1700000001")),
        "the timestamp has no effect"
    );
    // Seconds since 2000 stand at byte 24 of the footer.
    let seconds = u32::from_be_bytes(reproducible[24..28].try_into().unwrap());
    assert_eq!(u64::from(seconds), 1_700_000_000 - 946_684_800);
    assert!(
        made(line, None) != made(line, None),
        "two images share one identity"
    );
}

#[test]
fn help_lists_what_the_target_takes() {
    let folder = Folder::new();
    let help = folder.goldsmith_ok("convert -O qcow2 -o help");
    for option in [
        "cluster_size=<size>",
        "compat=<0.10|1.1|v2|v3>",
        "(default: 65536)",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
}

#[test]
fn child_is_flattened_over_its_parent_and_a_lost_footer_is_a_warning() {
    use goldsmith_testkit::build::vhd::{Vhd, footer};
    let folder = Folder::new();
    let (below, above) = (disk("8k:A 8k:B 8k:-"), disk("8k:- 8k:b 8k:-"));
    let base = Vhd::dynamic(below.bytes(), 8 << 10).footer(footer::UUID, &[9; 16]);
    let child = Vhd::dynamic(above.bytes(), 8 << 10);
    let child = child.child_of([9; 16], 0, "", &[(b"W2ru", r".\base.vhd")]);
    std::fs::write(folder.path("base.vhd"), base.bytes()).unwrap();
    let child = child.bytes();
    std::fs::write(folder.path("top.vhd"), &child).unwrap();
    let line = "convert -f vpc -O raw top.vhd out.raw";
    assert_eq!(folder.goldsmith_ok(line), "");
    let mut expected = below.bytes()[..8 << 10].to_vec();
    expected.extend(&above.bytes()[8 << 10..]);
    assert!(std::fs::read(folder.path("out.raw")).unwrap() == expected);

    std::fs::write(folder.path("top.vhd"), &child[..child.len() - 512]).unwrap();
    // Standard error is for failures.
    for line in [line, "compare top.vhd out.raw", "info top.vhd"] {
        let said = folder.goldsmith_ok(line);
        let warning = said
            .lines()
            .find(|line| line.starts_with("goldsmith: warning: "));
        let text = "its copy at the start is intact and was used";
        assert!(warning.is_some_and(|line| line.ends_with(text)), "{said}");
    }
    for line in ["map top.vhd", "info --output=json top.vhd"] {
        assert!(!folder.goldsmith_ok(line).contains("goldsmith: "), "{line}");
    }
    assert!(std::fs::read(folder.path("out.raw")).unwrap() == expected);
    let done = folder.goldsmith("convert --references deny -f vpc -O raw top.vhd out.raw");
    assert_eq!(done.status, 1);
    assert!(
        done.stderr.contains("needs the backing file 'base.vhd'"),
        "{done:?}"
    );
}

#[test]
fn snapshot_is_chosen_as_qemu_img_chooses_it() {
    let folder = Folder::new();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
    for (pattern, name) in [(1, "2"), (2, "one,two"), (3, "three")] {
        folder.qemu_io("disk.qcow2", &[&format!("write -P {pattern} 0 300k")]);
        folder.qemu_img_ok(&format!("snapshot -c {name} disk.qcow2"));
    }
    folder.qemu_io("disk.qcow2", &["write -P 9 0 300k"]);
    for choice in [
        "2",
        "one,two",
        "snapshot.id=3",
        "snapshot.name=one,,two",
        "snapshot.id=1,snapshot.name=2",
    ] {
        let line = |out| format!("convert -f qcow2 -l {choice} -O raw disk.qcow2 {out}");
        assert_eq!(folder.goldsmith_ok(&line("ours")), "");
        folder.qemu_img_ok(&line("theirs"));
        let [ours, theirs] = ["ours", "theirs"].map(|name| std::fs::read(folder.path(name)));
        assert!(ours.unwrap() == theirs.unwrap(), "{choice}");
    }
    for choice in [
        "four",
        "snapshot.id=1,snapshot.name=three",
        "snapshot.age=1",
    ] {
        let done = folder.goldsmith(&format!("convert -l {choice} -O raw disk.qcow2 none"));
        assert_eq!(done.status, 1);
        assert!(!folder.path("none").exists());
    }
}

#[test]
fn target_over_a_backing_file_is_that_of_qemu_img() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A 1M:b"));
    folder.qemu_img_ok("create -q -f qcow2 -b base.raw -F raw top.qcow2 2M");
    folder.qemu_io("top.qcow2", &["write -P 1 0 64k", "write -z 1M 64k"]);
    let line = |target| format!("convert -f qcow2 -O qcow2 -B base.raw -F raw top.qcow2 {target}");
    assert_eq!(folder.goldsmith_ok(&line("ours.qcow2")), "");
    folder.qemu_img_ok(&line("theirs.qcow2"));
    folder.qemu_img_ok("check -q ours.qcow2");
    folder.qemu_img_ok("compare -q ours.qcow2 top.qcow2");
    let facts = |image| {
        let info = folder.qemu_img_ok(&format!("info {image}"));
        let backing = info.lines().filter(|line| line.starts_with("backing"));
        backing.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(facts("ours.qcow2"), facts("theirs.qcow2"));
    for line in [
        "convert -O qcow2 -B base.raw top.qcow2 none",
        "convert -O qcow2 -F raw top.qcow2 none",
        "convert -O raw -B base.raw -F raw top.qcow2 none",
    ] {
        assert_eq!(folder.goldsmith(line).status, 1, "{line}");
        assert!(!folder.path("none").exists());
    }
}

#[test]
fn encrypted_images_go_to_qemu_img_and_come_back() {
    let folder = Folder::new();
    let source = disk("1M:A 64k:- 300k:b");
    folder.write("disk.raw", &source);
    std::fs::write(folder.path("word"), "open sesame").unwrap();
    std::fs::write(folder.path("coded"), "b3BlbiBz\nZXNhbWU=\n").unwrap();
    let raw = |name: &str| std::fs::read(folder.path(name)).unwrap();
    for format in ["luks,encrypt.iter-time=10", "aes"] {
        let object = "--object secret,id=s,file=word";
        let options = format!("-o encrypt.format={format},encrypt.key-secret=s");
        let line = format!("convert {object} -f raw -O qcow2 {options} disk.raw");
        assert_eq!(folder.goldsmith_ok(&format!("{line} ours.qcow2")), "");
        folder.qemu_img_ok(&format!("{line} theirs.qcow2"));
        for image in ["ours.qcow2", "theirs.qcow2"] {
            let opts =
                format!("--image-opts driver=qcow2,encrypt.key-secret=s,file.filename={image}");
            for object in [object, "--object secret,id=s,file=coded,format=base64"] {
                folder.goldsmith_ok(&format!("convert {object} {opts} -O raw back.raw"));
                assert!(raw("back.raw") == source.bytes(), "{image}");
            }
            folder.qemu_img_ok(&format!("convert {object} {opts} -O raw back.raw"));
            assert!(raw("back.raw") == source.bytes(), "{image}");
            let map = format!("map {object} --output=json {opts}");
            assert_eq!(
                folder.goldsmith_ok(&map),
                folder.qemu_img_ok(&map),
                "{image}"
            );

            // Without the word, or with another one, there is nothing.
            for line in [
                format!("convert -f qcow2 -O raw {image} none"),
                format!("convert {opts} -O raw none"),
                format!(
                    "convert {object} {} -O raw none",
                    opts.replace("=s,", "=t,")
                ),
            ] {
                let done = folder.goldsmith(&line);
                assert_eq!(done.status, 1, "{line}: {done:?}");
                assert!(!folder.path("none").exists());
                assert!(!done.stderr.contains("sesame"));
            }
        }
        let wrong = "convert --object secret,id=s,data=x --image-opts \
                     driver=qcow2,encrypt.key-secret=s,file.filename=ours.qcow2 -O raw none";
        let done = folder.goldsmith(wrong);
        assert!(
            format == "aes" || done.stderr.contains("opens none of the key slots"),
            "{done:?}"
        );
    }
}

/// Each image of a chain has a secret of its own.
#[test]
fn encrypted_backing_files_are_opened_with_their_own_secrets() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 64k:- 300k:b"));
    let objects = "--object secret,id=s,data=one --object secret,id=t,data=two";
    let luks = "-o encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret";
    folder.goldsmith_ok(&format!(
        "convert {objects} -O qcow2 {luks}=t disk.raw base.qcow2"
    ));
    let size = disk("1M:A 64k:- 300k:b").len();
    folder.qemu_img_ok(&format!(
        "create -q -f qcow2 -u {objects} {luks}=s -b base.qcow2 -F qcow2 top.qcow2 {size}"
    ));
    let opts = "--image-opts driver=qcow2,encrypt.key-secret=s,backing.encrypt.key-secret=t,\
                file.filename=top.qcow2";
    folder.goldsmith_ok(&format!("convert {objects} {opts} -O raw back.raw"));
    let [back, disk] = ["back.raw", "disk.raw"].map(|name| std::fs::read(folder.path(name)));
    assert!(back.unwrap() == disk.unwrap());
}
