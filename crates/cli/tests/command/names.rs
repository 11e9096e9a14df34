//! The names of images: `file:`, `json:`, `--image-opts`, and parts of files.

use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// A RAW disk, a qcow2, and both in one file, one behind the other.
fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("disk.raw", &disk("256k:A 256k:- 256k:b"));
        folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
        folder.qemu_io("disk.qcow2", &["write -P 1 0 300k"]);
        let read = |name| std::fs::read(folder.path(name)).unwrap();
        let mut both = read("disk.raw");
        both.extend(read("disk.qcow2"));
        std::fs::write(folder.path("both"), both).unwrap();
    })
}

/// Each without spaces, because lines are split at them.
const QCOW2: &str = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}"#;
const INSIDE: &str = r#"json:{"driver":"qcow2","file":{"driver":"raw","offset":786432,"file":{"driver":"file","filename":"both"}}}"#;
const PART: &str = r#"json:{"driver":"raw","offset":131072,"size":"256k","file.filename":"both"}"#;

#[test]
fn every_spelling_gives_the_disk_that_it_gives_qemu_img() {
    let twins = images();
    for name in [
        "file:disk.raw",
        "-f raw file:disk.qcow2",
        QCOW2,
        INSIDE,
        PART,
        r#"json:{"driver":"raw","file.driver":"file","file.filename":"disk.raw","offset":512}"#,
        r#"json:{"driver":"raw","offset":"1k","file":{"driver":"raw","offset":512,"size":"64k","file":{"driver":"file","filename":"disk.raw"}}}"#,
        r#"json:{"file":{"driver":"file","filename":"disk.qcow2"}}"#,
        r#"json:{"driver":"file","filename":"disk.qcow2"}"#,
        r#"-f raw json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}"#,
        "--image-opts driver=raw,offset=512,size=1k,file.driver=file,file.filename=disk.raw",
        "--image-opts driver=qcow2,file.driver=raw,file.offset=768k,file.file.filename=both",
        "--image-opts file.filename=disk.qcow2",
        "--image-opts driver=file,filename=disk.qcow2",
    ] {
        twins.both(&format!("convert -O raw {name} out.raw"));
        twins.same("out.raw", "raw");
    }
}

/// All that reads images, and all that edits them.
#[test]
fn every_command_takes_them() {
    let twins = images();
    for line in [
        format!("map --output=json {INSIDE}"),
        format!("map --output=json {PART}"),
        format!("compare {INSIDE} {QCOW2}"),
        format!("compare -f raw -F raw {PART} file:disk.raw -s -q"),
        format!("check -q {QCOW2}"),
        format!("measure -O qcow2 --output=json {PART}"),
        format!("snapshot -l {INSIDE}"),
        format!("snapshot -c one {QCOW2}"),
        format!("amend -o compat=0.10 {QCOW2}"),
        "bitmap --image-opts --add driver=qcow2,file.filename=none one".into(),
        format!("resize {QCOW2} 2M"),
        format!("rebase -u -b  {QCOW2}"),
    ] {
        let (ours, theirs) = twins.run(&line);
        assert_eq!(ours.status, theirs.status, "{line}: {ours:?} {theirs:?}");
    }
    twins.same("disk.qcow2", "qcow2");
    let info = twins
        .ours
        .goldsmith_ok(&format!("info --output=json {INSIDE}"));
    assert!(info.contains("\"virtual-size\": 1048576"), "{info}");
    assert!(info.contains("\"format\": \"qcow2\""), "{info}");
    twins.both(&format!("dd bs=64k skip=1 if={INSIDE} of=out.raw"));
    twins.same("out.raw", "raw");
}

/// What is edited in a part of a file leaves the rest of it alone.
#[test]
fn image_inside_another_file_is_edited_there() {
    let twins = images();
    twins.both(&format!("snapshot -c one {INSIDE}"));
    twins.both(&format!("snapshot -l {INSIDE}").replace("snapshot -l", "check -q"));
    let read = |folder: &Folder| std::fs::read(folder.path("both")).unwrap();
    let (ours, disk) = (
        read(&twins.ours),
        std::fs::read(twins.ours.path("disk.raw")).unwrap(),
    );
    assert!(ours.starts_with(&disk));
    // A disk in the middle of a file has no room to grow.
    let done = twins.ours.goldsmith(&format!("resize {PART} 1M"));
    assert_eq!(done.status, 1);
    assert!(read(&twins.ours) == ours);
}

#[test]
fn what_names_no_file_here_is_refused() {
    let twins = images();
    for (name, why) in [
        ("nbd://127.0.0.1:1/x", "by other ways than a file"),
        ("ssh://127.0.0.1/x", "by other ways than a file"),
        ("http://127.0.0.1:1/x", "by other ways than a file"),
        ("json:{", "no JSON object"),
        (r#"json:{"driver":"nbd"}"#, "the driver 'nbd'"),
        (r#"json:{"driver":"raw"}"#, "names no file"),
        (
            r#"json:{"driver":"raw","offset":1M,"file.filename":"disk.raw"}"#,
            "no JSON object",
        ),
        (
            r#"json:{"driver":"raw","offset":1048576,"file.filename":"disk.raw"}"#,
            "Offset (1048576) cannot be greater than size of the containing file (786432)",
        ),
        (
            r#"json:{"driver":"raw","offset":512,"size":786432,"file.filename":"disk.raw"}"#,
            "The sum of offset (512) and size (786432) has to be smaller or equal",
        ),
        (
            r#"json:{"driver":"raw","colour":"red","file.filename":"disk.raw"}"#,
            "colour",
        ),
        (
            "--image-opts driver=raw,colour=red,file.filename=disk.raw",
            "colour",
        ),
        (
            "--image-opts driver=raw,size=1M,file.filename=disk.raw",
            "The sum of offset (0) and size (1048576)",
        ),
        (
            "--image-opts driver=raw,size=1000,file.filename=disk.raw",
            "Specified size is not multiple of 512",
        ),
        (
            r#"json:{"driver":"raw","size":1000,"file.filename":"disk.raw"}"#,
            "Specified size is not multiple of 512",
        ),
        ("--image-opts disk.raw", "pairs such as driver="),
        (
            "--image-opts driver=qcow2,filename=disk.qcow2",
            "names no file",
        ),
        ("--image-opts filename=disk.qcow2", "names no file"),
        (
            "-f raw --image-opts driver=raw,file.filename=disk.raw",
            "-f",
        ),
    ] {
        twins.neither(&format!("info {name}"), why);
        twins.neither(&format!("convert -O raw {name} out"), why);
        assert!(!twins.ours.path("out").exists());
    }
}

/// [qemu] Whoever says that it is a device means no file that happens to be called so.
#[test]
fn file_is_no_device() {
    let twins = images();
    for folder in [&twins.ours, &twins.theirs] {
        folder.qemu_img_ok("create -q -u -f qcow2 -b host_device:disk.raw -F raw top.qcow2 1M");
    }
    for line in [
        "info -f raw host_device:disk.raw",
        "info host_device:disk.qcow2",
        r#"info json:{"driver":"raw","file":{"driver":"host_device","filename":"disk.raw"}}"#,
        "info --image-opts driver=raw,file.driver=host_device,file.filename=disk.raw",
        "convert -n -f raw -O raw disk.raw host_device:both",
        "convert -f qcow2 -O raw top.qcow2 out",
        "create -q -f qcow2 -b host_device:disk.raw -F raw out",
    ] {
        twins.neither(line, "to be either a character or block device");
        assert!(!twins.ours.path("out").exists(), "{line}");
    }
}

/// A colon in a name is no reason not to find the file, unless QEMU is who is asked.
#[test]
fn file_with_a_colon_in_its_name_is_a_file() {
    let folder = Folder::new();
    folder.write("disk:1.raw", &disk("64k:A"));
    folder.goldsmith_ok("convert -f raw disk:1.raw file:out:1");
    folder.goldsmith_ok("compare -f raw -F raw disk:1.raw ./out:1");
    assert!(folder.path("out:1").exists());
}

/// A backing file that is part of a file, named inside an image: only as far as the policy allows.
#[test]
fn parts_that_an_image_names_go_through_the_policy() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("sub/both", &disk("256k:A 256k:b"));
    let part = |file: &str| {
        format!(
            r#"json:{{"driver":"raw","offset":262144,"file":{{"driver":"file","filename":"{file}"}}}}"#
        )
    };
    for (place, name, allowed) in [
        ("top.qcow2", "sub/both", false),
        ("sub/top.qcow2", "both", true),
    ] {
        let image = folder.path(place);
        let mut create = std::process::Command::new("qemu-img");
        create.args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b"]);
        let done = folder.run(create.arg(part(name)).arg(image).arg("256k"));
        assert_eq!(done.status, 0, "{done:?}");
        let convert = format!("convert -f qcow2 -O raw {place} out");
        let done = folder.goldsmith(&convert);
        assert_eq!(done.status, i32::from(!allowed), "{done:?}");
        let line = format!("{convert} --references allow");
        assert_eq!(folder.goldsmith(&line).status, 0);
        let whole = std::fs::read(folder.path("sub/both")).unwrap();
        let out = std::fs::read(folder.path("out")).unwrap();
        assert!(out == whole[256 << 10..], "{place}");
        let done = folder.goldsmith(&format!("{convert} --references deny"));
        assert!(done.stderr.contains("the reference policy is 'deny'"));
        // It would be written over from its start.
        let before = whole;
        let commit = format!("commit -f qcow2 --references allow {place}");
        let done = folder.goldsmith(&commit);
        assert_eq!(done.status, 1);
        assert!(done.stderr.contains("only a part of"), "{done:?}");
        assert!(std::fs::read(folder.path("sub/both")).unwrap() == before);
    }
}

/// What an outsider is told of an image that is more than a format and a file.
#[test]
fn image_with_options_is_called_by_them_as_by_qemu_img() {
    let twins = images();
    let folder = &twins.ours;
    let secret = "--object secret,id=s,data=sesame";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    folder.qemu_img_ok(&format!("create -q {secret} -f qcow2 -o {options} top 1M"));
    for name in [
        PART,
        QCOW2,
        r#"json:{"driver":"raw","size":65536,"file.driver":"file","file.filename":"disk.raw"}"#,
        "--image-opts driver=raw,offset=512,size=1k,file.driver=file,file.filename=disk.raw",
        "--image-opts driver=raw,offset=64k,file.filename=disk.raw",
        "--image-opts driver=raw,file.filename=disk.raw",
        "--object secret,id=s,data=sesame --image-opts \
         driver=qcow2,file.filename=top,encrypt.key-secret=s",
        "--object secret,id=s,data=sesame \
         json:{\"driver\":\"qcow2\",\"encrypt\":{\"key-secret\":\"s\"},\"file.filename\":\"top\"}",
    ] {
        let line = format!("info --output=json {name}");
        let told = [folder.goldsmith_ok(&line), folder.qemu_img_ok(&line)].map(|json| {
            let info: serde_json::Value = serde_json::from_str(&json).unwrap();
            let file = &info["children"][0]["info"];
            let len = file["virtual-size"].as_u64().unwrap().next_multiple_of(512);
            (info["filename"].clone(), file["filename"].clone(), len)
        });
        assert_eq!(told[0], told[1], "{name}");
        let line = format!("info {name}");
        let image = |said: String| said.lines().next().unwrap().to_owned();
        let told = [folder.goldsmith_ok(&line), folder.qemu_img_ok(&line)].map(image);
        assert_eq!(told[0], told[1], "{name}");
        if name.contains("raw") {
            for map in ["map", "map --output=json"] {
                let line = format!("{map} {name}");
                assert_eq!(
                    folder.goldsmith_ok(&line),
                    folder.qemu_img_ok(&line),
                    "{line}"
                );
            }
        }
    }
}

/// A colon is nothing else where a name is stated to be a file's.
#[test]
fn colon_in_the_name_of_a_file_is_a_part_of_it() {
    let twins = Twins::new(|folder| folder.write("g:1.raw", &disk("256k:A")));
    for name in [
        "--image-opts driver=raw,file.driver=file,file.filename=g:1.raw",
        "--image-opts driver=raw,file.filename=g:1.raw",
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"g:1.raw"}}"#,
    ] {
        twins.both(&format!("convert -O raw {name} out"));
        twins.same("out", "raw");
    }
}

/// [qemu] Data files are found from the working directory; here, from the image's. What is there for both,
/// and is not the same, would be read or written by mistake.
#[test]
fn data_file_that_is_another_one_for_qemu_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 -o data_file=data,data_file_raw=on sub/disk.qcow2 1M");
    folder.write("sub/data", &disk("1M:b"));
    let before = std::fs::read(folder.path("sub/data")).unwrap();
    folder.write("source", &disk("1M:C"));
    for line in [
        "convert -f qcow2 sub/disk.qcow2 out",
        "resize -f qcow2 --shrink sub/disk.qcow2 512k",
        "convert -n -f raw -O qcow2 source sub/disk.qcow2",
        "convert -f raw -O qcow2 -o data_file=data source sub/new.qcow2",
        "create -f qcow2 -o data_file=data sub/new.qcow2 1M",
    ] {
        let refused = folder.goldsmith(line);
        assert_eq!(refused.status, 1, "{line}: {refused:?}");
        let why =
            "'sub/data' to goldsmith, and to QEMU the file of that name in the working directory";
        assert!(refused.stderr.contains(why), "{line}: {refused:?}");
    }
    assert!(std::fs::read(folder.path("sub/data")).unwrap() == before);
    // Where there is one, there is no doubt.
    std::fs::remove_file(folder.path("data")).unwrap();
    folder.goldsmith_ok("convert -f qcow2 sub/disk.qcow2 out");
    assert!(std::fs::read(folder.path("out")).unwrap() == before);
}

/// [qemu] So are backing files whose names are more than a path.
#[test]
fn backing_file_that_is_another_one_for_qemu_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("sub/base.raw", &disk("1M:A"));
    folder.write("base.raw", &disk("1M:b"));
    let before = std::fs::read(folder.path("sub/base.raw")).unwrap();
    folder.qemu_img_ok("convert -f raw -O qcow2 sub/base.raw sub/whole.qcow2");
    for name in [
        "file:base.raw",
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}"#,
    ] {
        let line = format!("create -q -f qcow2 -b {name} -F raw sub/disk.qcow2");
        folder.qemu_img_ok(&line);
        // Which one it is to QEMU.
        folder.qemu_img_ok("compare -f qcow2 -F raw sub/disk.qcow2 base.raw");
        for line in [
            "convert -f qcow2 sub/disk.qcow2 out",
            "commit -f qcow2 sub/disk.qcow2",
            "rebase -f qcow2 -b NAME -F raw sub/whole.qcow2",
            "convert -f raw -O qcow2 -B NAME -F raw sub/base.raw sub/new.qcow2",
            "create -f qcow2 -b NAME -F raw sub/new.qcow2",
        ] {
            let refused = folder.goldsmith(&line.replace("NAME", name));
            assert_eq!(refused.status, 1, "{line}: {refused:?}");
            let why = "'sub/base.raw' to goldsmith, and to QEMU the file of that name in the working directory";
            assert!(refused.stderr.contains(why), "{line}: {refused:?}");
        }
    }
    assert!(std::fs::read(folder.path("sub/base.raw")).unwrap() == before);
    // Where there is one, there is no doubt.
    std::fs::remove_file(folder.path("base.raw")).unwrap();
    folder.goldsmith_ok("convert -f qcow2 sub/disk.qcow2 out");
    assert!(std::fs::read(folder.path("out")).unwrap() == before);
}

/// Inside the sandbox, too: the name would be replaced, and what is open would get nothing.
#[test]
fn what_is_open_is_no_target() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    std::fs::write(folder.path("out"), "old").unwrap();
    for (opened, name) in [
        ("3<>out", "/dev/fd/3"),
        ("3<>out", "/proc/self/fd/3"),
        (">>out", "/dev/stdout"),
    ] {
        let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
        let script =
            format!("exec {opened}; exec {goldsmith} convert -f raw -O raw disk.raw {name}");
        let refused = folder.run(std::process::Command::new("sh").args(["-c", &script]));
        assert_eq!(refused.status, 1, "{name}: {refused:?}");
        let why = "is a file that a process has open";
        assert!(refused.stderr.contains(why), "{name}: {refused:?}");
        assert_eq!(std::fs::read(folder.path("out")).unwrap(), b"old", "{name}");
    }
}

/// QEMU would put another image behind it; nothing is taken for the wish that is not granted.
#[test]
fn image_to_stand_behind_another_is_not_stated_by_options() {
    let folder = Folder::new();
    for (name, letter) in [("top.raw", "1M:A"), ("base.raw", "1M:B")] {
        folder.write(name, &disk(letter));
    }
    for line in [
        "create -q -f qcow2 alone.qcow2 1M",
        "create -q -f qcow2 -b base.raw -F raw over.qcow2 1M",
    ] {
        folder.qemu_img_ok(line);
    }
    let json = r#"json:{"driver":"qcow2","file.filename":"alone.qcow2","backing":{"driver":"raw","file":{"filename":"base.raw"}}}"#;
    let other = "backing.driver=raw,backing.file.filename=top.raw";
    for image in ["alone.qcow2", "over.qcow2"] {
        let options = format!("driver=qcow2,file.filename={image}");
        for (words, key) in [
            (
                vec!["--image-opts", &*format!("{options},{other}")],
                "backing.driver",
            ),
            (
                vec!["--image-opts", &*format!("{options},backing=x")],
                "backing",
            ),
            (
                vec![
                    "--image-opts",
                    &*format!("{options},backing.backing.size=1"),
                ],
                "backing.backing.size",
            ),
            (vec![json], "backing.driver"),
        ] {
            for verb in [
                &["convert", "-O", "raw"][..],
                &["info"],
                &["check"],
                &["map"],
            ] {
                let mut words = [verb, &words[..]].concat();
                if verb[0] == "convert" {
                    words.push("out.raw");
                }
                let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
                let done = folder.run(command.args(&words));
                assert_eq!(done.status, 1, "{words:?}: {done:?}");
                assert!(done.stderr.contains(&format!("'{key}'")), "{done:?}");
                assert!(!folder.path("out.raw").exists());
            }
        }
    }
    // Of an image that is there, its own options may be stated; of one that is not, none.
    let size = "backing.force_size_calc=chs";
    let line = format!(
        "convert --image-opts driver=qcow2,file.filename=alone.qcow2,{size} -O raw out.raw"
    );
    let done = folder.goldsmith(&line);
    assert_eq!(done.status, 1, "{done:?}");
    assert!(
        done.stderr
            .contains("'backing.force_size_calc' is for an image that is not there"),
        "{done:?}"
    );
}
