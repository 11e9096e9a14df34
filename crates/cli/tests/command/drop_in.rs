//! Called `qemu-img`, as OpenStack's services call it: their command lines, word by word, each with
//! the environment and the limits that it comes with.

use std::os::unix::fs::symlink;
use std::process::Command;

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::{Done, Folder};

const SIZE: u64 = 8 << 20;

/// A folder with goldsmith under the name `qemu-img` in `bin`, and the golden disk in several
/// formats.
fn folder() -> Folder {
    let folder = bare();
    folder.write("golden.raw", &disk("1M:A 2M:- 1M:b 4M:-"));
    for line in [
        "convert -f raw -O qcow2 golden.raw disk.qcow2",
        "convert -f raw -O qcow2 -c golden.raw zlib.qcow2",
        "convert -f raw -O qcow2 -c -o compression_type=zstd golden.raw zstd.qcow2",
        "convert -f raw -O qcow2 -o compat=0.10 golden.raw v2.qcow2",
        "convert -f raw -O vpc -o force_size=on golden.raw dynamic.vhd",
        "convert -f raw -O vpc -o subformat=fixed,force_size=on golden.raw fixed.vhd",
    ] {
        folder.qemu_img_ok(line);
    }
    folder
}

fn bare() -> Folder {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("bin")).unwrap();
    let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
    symlink(goldsmith, folder.path("bin/qemu-img")).unwrap();
    folder
}

/// Runs `line` in a shell that finds ours first and has nothing else in its environment.
fn shell(folder: &Folder, line: &str) -> Done {
    let path = format!("{}:/usr/bin:/bin", folder.path("bin").display());
    let mut command = Command::new("/bin/sh");
    folder.run(command.args(["-c", line]).env_clear().env("PATH", path))
}

/// As [`shell`]; it must do as it is told and say nothing on standard error.
fn called(folder: &Folder, line: &str) -> String {
    let done = shell(folder, line);
    assert!(
        done.status == 0 && done.stderr.is_empty(),
        "{line}: {done:?}"
    );
    done.stdout
}

/// What is said on standard error by a command that fails.
fn refused(folder: &Folder, line: &str) -> String {
    let done = shell(folder, line);
    assert_eq!((done.status, &*done.stdout), (1, ""), "{line}: {done:?}");
    done.stderr
}

/// The facts that oslo.utils reads, of which those about the file are left out: they are held
/// against qemu-img's elsewhere.
fn facts(json: &str) -> Value {
    let mut info: Value = serde_json::from_str(json).unwrap();
    let info_map = info.as_object_mut().unwrap();
    info_map.remove("children");
    info
}

const IMAGES: [(&str, &str); 7] = [
    ("raw", "golden.raw"),
    ("qcow2", "disk.qcow2"),
    ("qcow2", "zlib.qcow2"),
    ("qcow2", "zstd.qcow2"),
    ("qcow2", "v2.qcow2"),
    ("vpc", "dynamic.vhd"),
    ("vpc", "fixed.vhd"),
];

/// Glance, Nova, Cinder, Ironic's agent: each asks in its own way, and gets what qemu-img tells.
#[test]
fn info_lines_of_all_services_get_qemu_img_s_answer() {
    let folder = folder();
    for (format, name) in IMAGES {
        let path = folder.path(name).display().to_string();
        for line in [
            format!("info -f {format} --output=json {path}"),
            format!("info {path} --force-share --output=json -f {format}"),
            format!("info -f {format} --output=json --force-share {path}"),
            format!("info {path} --output=json -f {format}"),
            format!("info -f {format} --output=json file://{path}"),
            format!("info -f {format} --output=json file:{path}"),
        ] {
            let limited =
                format!("ulimit -v 1048576; ulimit -t 2; exec env LC_ALL=C LANG=C qemu-img {line}");
            let ours = facts(&called(&folder, &limited));
            assert_eq!(ours, facts(&folder.qemu_img_ok(&line)), "{line}");
            assert_eq!(ours["format"], format);
            assert_eq!(ours["virtual-size"], SIZE);
            assert!(ours.get("backing-filename").is_none(), "absent, not null");
            assert_ne!(ours.get("format-specific"), Some(&Value::Null));
        }
    }
}

/// Glance calls the format `vhd`, qemu-img `vpc`, and Glance takes no answer but its own word.
#[test]
fn vhd_is_what_it_was_called_by_whoever_asks() {
    let folder = folder();
    for image in ["dynamic.vhd", "fixed.vhd"] {
        for (asked, answer) in [("-f vhd", "vhd"), ("-f vpc", "vpc"), ("", "vpc")] {
            let json = called(
                &folder,
                &format!("qemu-img info {asked} --output=json {image}"),
            );
            assert_eq!(facts(&json)["format"], answer);
            let text = called(&folder, &format!("qemu-img info {asked} {image}"));
            assert!(text.contains(&format!("file format: {answer}\n")), "{text}");
        }
    }
    let line = "qemu-img convert -f vhd -O vhd dynamic.vhd again.vhd";
    assert_eq!(called(&folder, line), "");
    folder.qemu_img_ok("compare -f raw -F vpc golden.raw again.vhd");
    // Glance's inspector finds a VHD by its first bytes alone.
    assert!(
        std::fs::read(folder.path("again.vhd"))
            .unwrap()
            .starts_with(b"conectix")
    );
}

/// The lines of Glance, Nova, Cinder and Ironic; qemu-img's own result is the golden disk, too.
#[test]
fn convert_lines_of_all_services_give_the_golden_disk() {
    let folder = folder();
    let here = folder.path("").display().to_string();
    for (line, target, format) in [
        ("convert -f qcow2 -O raw disk.qcow2 out", "out", "raw"),
        ("convert -f raw -O qcow2 golden.raw out", "out", "qcow2"),
        ("convert -f vpc -O raw dynamic.vhd out", "out", "raw"),
        (
            "convert -f qcow2 -O raw file:///HERE/zlib.qcow2 /HERE/out",
            "out",
            "raw",
        ),
        (
            "convert -f qcow2 -O raw file:disk.qcow2 file:out",
            "out",
            "raw",
        ),
        (
            "convert -t none -O qcow2 -f raw -c golden.raw out",
            "out",
            "qcow2",
        ),
        (
            "convert -t writeback -O raw -f qcow2 zstd.qcow2 out",
            "out",
            "raw",
        ),
        (
            "convert -O vpc -t none -S 0 -o subformat=fixed -f qcow2 v2.qcow2 out",
            "out",
            "vpc",
        ),
        (
            "convert -O raw -T none -f qcow2 disk.qcow2 out",
            "out",
            "raw",
        ),
        (
            "convert -O raw -S 0 -f qcow2 -W disk.qcow2 out",
            "out",
            "raw",
        ),
        (
            "convert -O raw -m 8 -W disk.qcow2 out -f qcow2",
            "out",
            "raw",
        ),
        (
            "convert -O qcow2 -o compat=0.10 -o cluster_size=4k -f raw golden.raw out",
            "out",
            "qcow2",
        ),
        (
            "convert -f raw -O raw -O qcow2 -S 4k -S 0 golden.raw out",
            "out",
            "qcow2",
        ),
    ] {
        let line = line.replace("/HERE", &here);
        let compare = format!("compare -f raw -F {format} golden.raw {target}");
        folder.qemu_img_ok(&line);
        let theirs = folder.qemu_img(&compare);
        std::fs::remove_file(folder.path(target)).unwrap();

        assert_eq!(called(&folder, &format!("exec qemu-img {line}")), "");
        let ours = folder.qemu_img(&compare);
        // Asked for a VHD, qemu-img makes the disk longer than it is.
        let longer = theirs.stdout.contains("size mismatch");
        assert_eq!(longer, format == "vpc", "{line}: {theirs:?}");
        assert_eq!(
            (ours.status, &*ours.stdout),
            (0, "Images are identical.\n"),
            "{line}"
        );
        std::fs::remove_file(folder.path(target)).unwrap();
    }
}

/// Ironic's conductor clears the environment, PATH included.
#[test]
fn neither_path_nor_home_nor_tmpdir_is_needed() {
    let folder = folder();
    let mut command = Command::new(folder.path("bin/qemu-img"));
    let command = command
        .args(["convert", "-f", "qcow2", "-O", "raw", "zlib.qcow2", "out"])
        .env_clear()
        .envs([("LC_ALL", "C"), ("MALLOC_ARENA_MAX", "3")]);
    let done = folder.run(command);
    assert_eq!(
        (done.status, &*done.stdout, &*done.stderr),
        (0, "", ""),
        "{done:?}"
    );
    folder.qemu_img_ok("compare -f raw -F raw golden.raw out");
}

/// Nova's overlays, and Cinder's.
#[test]
fn editing_lines_of_nova_and_cinder_leave_sound_images() {
    let folder = folder();
    std::fs::create_dir(folder.path("base")).unwrap();
    folder.qemu_img_ok("convert -f raw -O qcow2 golden.raw base/one.qcow2");
    folder.qemu_img_ok("convert -f raw -O qcow2 golden.raw base/two.qcow2");
    let base = folder.path("base").display().to_string();
    for line in [
        "create -f qcow2 -o backing_file=BASE/one.qcow2,backing_fmt=qcow2,cluster_size=65536 disk 16M",
        "resize -f qcow2 disk 24M",
        "rebase -b BASE/two.qcow2 -F qcow2 disk",
        "rebase -u -b BASE/one.qcow2 -F qcow2 disk",
        "rebase -u -b BASE/two.qcow2 disk -F qcow2",
        "resize disk 1G",
        "info disk --force-share --output=json -f qcow2",
        "convert -O raw -f qcow2 disk whole",
        "commit -d disk",
        "create -f qcow2 -o backing_file=BASE/two.qcow2,backing_fmt=qcow2 disk 2G",
        "rebase -b  disk",
        "create -f qcow2 -o preallocation=metadata disk 8388608",
        "resize -f raw golden.raw 1G",
    ] {
        let line = line.replace("BASE", &base);
        let words: Vec<_> = line.split(' ').map(|word| format!("'{word}'")).collect();
        called(
            &folder,
            &format!("exec env LC_ALL=C LANG=C qemu-img {}", words.join(" ")),
        );
        if folder.path("disk").exists() {
            folder.qemu_img_ok("check -q -f qcow2 disk");
        }
    }
    let whole = folder.path("whole");
    assert_eq!(std::fs::metadata(whole).unwrap().len(), 1 << 30);
    folder.qemu_img_ok("compare -f qcow2 -F raw base/one.qcow2 whole");
    let info = facts(&called(
        &folder,
        "qemu-img info -f raw --output=json golden.raw",
    ));
    assert_eq!(info["virtual-size"], 1 << 30);
}

/// qemu-img follows whatever an image names; goldsmith under its own name stays in the directory.
#[test]
fn backing_files_anywhere_are_followed_unless_it_is_forbidden() {
    let folder = folder();
    std::fs::create_dir(folder.path("a")).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 -b ../disk.qcow2 -F qcow2 a/top.qcow2");
    let line = "convert -f qcow2 -O raw a/top.qcow2 out";
    called(&folder, &format!("qemu-img {line}"));
    folder.qemu_img_ok("compare -f raw -F raw golden.raw out");
    let done = folder.goldsmith(line);
    assert!(done.status == 1 && done.stderr.contains("'same-directory'"));
    let said = refused(&folder, &format!("qemu-img {line} --references deny"));
    assert!(
        said.starts_with("qemu-img: Could not open 'a/top.qcow2': ") && said.contains("'deny'"),
        "{said}"
    );
}

#[test]
fn version_is_one_that_cinder_can_read() {
    let folder = bare();
    let version = called(&folder, "qemu-img --version");
    let expected = format!(
        "qemu-img version 10.0.2 (goldsmith {})\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(version, expected);
    assert!(
        folder
            .qemu_img_ok("--version")
            .starts_with("qemu-img version ")
    );
}

/// The words for which services look in what is said about a failure.
#[test]
fn failures_are_told_in_qemu_img_s_phrases() {
    let folder = folder();
    for (line, said) in [
        ("info -f raw --output=json none", "Could not open 'none': "),
        ("info none", "No such file or directory"),
        (
            "convert -f qcow2 -O raw none out",
            "No such file or directory",
        ),
        (
            "info -f qcow2 --output=json golden.raw",
            "Could not open 'golden.raw': Image is not in qcow2 format",
        ),
        (
            "convert -f qcow2 -O raw golden.raw out",
            "Could not open 'golden.raw': Image is not in qcow2 format",
        ),
        (
            "info -f vmfs golden.raw",
            "Could not open 'golden.raw': Unknown driver 'vmfs'",
        ),
        (
            "convert -f vmfs -O raw golden.raw out",
            "Could not open 'golden.raw': Unknown driver 'vmfs'",
        ),
        (
            "convert -f raw -O vmfs golden.raw out",
            "Unknown file format 'vmfs'",
        ),
        ("create -f vmfs out 1M", "Unknown file format 'vmfs'"),
        (
            "info foo:disk",
            "Could not open 'foo:disk': Unknown protocol 'foo'",
        ),
        (
            "convert -f raw -O host_device golden.raw out",
            "No such file or directory",
        ),
        ("resize -f raw none 1G", "No such file or directory"),
    ] {
        assert!(refused(&folder, &format!("qemu-img {line}")).starts_with("qemu-img: "));
        let ours = refused(&folder, &format!("qemu-img {line}"));
        let theirs = folder.qemu_img(line);
        assert_eq!(theirs.status, 1, "{line}");
        for stderr in [ours, theirs.stderr] {
            assert!(stderr.contains(said), "{line}: {stderr}");
        }
        assert!(!folder.path("out").exists());
    }
    // Cinder asks every raw file whether it is this, and expects a failure.
    for line in [
        "info -f luks --output=json golden.raw",
        "info --output=json rbd:pool/volume",
        "info json:{}",
        "convert --image-opts driver=luks,file.driver=file,file.filename=golden.raw -O raw out",
        "info --frobnicate golden.raw",
        "frobnicate",
    ] {
        assert!(
            refused(&folder, &format!("qemu-img '{}'", line.replace(' ', "' '")))
                .starts_with("qemu-img: "),
            "{line}"
        );
        assert_eq!(folder.qemu_img(line).status, 1, "{line}");
    }
    // Read as "qemu-img is not installed" if it failed.
    std::fs::write(folder.path("empty"), "").unwrap();
    called(&folder, "qemu-img info -f raw --output=json empty");
}

/// However an image lies about itself, looking at it costs next to nothing.
#[test]
fn info_of_every_known_image_stays_within_glance_s_limits() {
    let folder = bare();
    let mut asked = 0;
    for kind in ["bad", "regression", "valid"] {
        let data = format!("{}/../../testdata/{kind}", env!("CARGO_MANIFEST_DIR"));
        let Ok(files) = std::fs::read_dir(data) else {
            continue;
        };
        for file in files {
            let path = file.unwrap().path();
            let format = match path.extension().and_then(|name| name.to_str()) {
                Some("qcow2") => "qcow2",
                Some("vhd") => "vhd",
                _ => "raw",
            };
            let line = format!(
                "ulimit -v 1048576; ulimit -t 2; exec qemu-img info -f {format} --output=json {}",
                path.display()
            );
            let done = shell(&folder, &line);
            match done.status {
                0 => {
                    assert_eq!(done.stderr, "");
                    assert_eq!(facts(&done.stdout)["format"], format);
                }
                1 => assert!(
                    done.stderr.starts_with("qemu-img: Could not open '"),
                    "{done:?}"
                ),
                _ => panic!("{line}: {done:?}"),
            }
            asked += 1;
        }
    }
    assert!(asked >= 60, "{asked}");
}

/// As many snapshots as there can be, which QEMU counts in a u32 and caps. [qemu]
#[test]
fn info_of_65536_snapshots_stays_within_glance_s_limits() {
    const SNAPSHOTS: u32 = 65536;
    let folder = bare();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 1M");
    let mut image = std::fs::read(folder.path("disk.qcow2")).unwrap();
    let (l1_len, l1_offset) = (image[36..40].to_owned(), image[40..48].to_owned());
    image.resize(image.len().next_multiple_of(1 << 16), 0);
    let table = image.len() as u64;
    for nth in 0..SNAPSHOTS {
        let (id, name) = (nth.to_string(), format!("snapshot-{nth}"));
        let begin = image.len();
        image.extend(l1_offset.iter().chain(&l1_len));
        image.extend(
            [id.len(), name.len()]
                .map(|len| (len as u16).to_be_bytes())
                .concat(),
        );
        // When, by which clock, how much memory: nothing of it; and 16 bytes of more such.
        image.extend([0; 20]);
        image.extend(16_u32.to_be_bytes());
        image.extend([0; 16]);
        image.extend(id.bytes().chain(name.bytes()));
        let len = (image.len() - begin).next_multiple_of(8);
        image.resize(begin + len, 0);
    }
    image[60..64].copy_from_slice(&SNAPSHOTS.to_be_bytes());
    image[64..72].copy_from_slice(&table.to_be_bytes());
    std::fs::write(folder.path("disk.qcow2"), image).unwrap();
    let line =
        "ulimit -v 1048576; ulimit -t 2; exec qemu-img info -f qcow2 --output=json disk.qcow2";
    let ours = facts(&called(&folder, line));
    assert_eq!(
        ours["snapshots"].as_array().unwrap().len(),
        SNAPSHOTS as usize
    );
}

/// As Ironic's agent writes an image to the disk of a machine. Only where loop devices are to be
/// had, as for all tests of devices.
#[test]
fn host_device_is_written_in_place_zeros_included() {
    let folder = folder();
    let backing = folder.path("backing");
    std::fs::write(&backing, vec![7; SIZE as usize + 4096]).unwrap();
    let line = "qemu-img convert -O host_device -t directsync -S 0 -f qcow2 -W disk.qcow2";
    let done = folder.on_device("backing", |device| {
        shell(&folder, &format!("{line} {device}"))
    });
    let Some(done) = done else {
        return;
    };
    assert_eq!((done.status, &*done.stdout, &*done.stderr), (0, "", ""));

    let (written, golden) = (std::fs::read(&backing).unwrap(), folder.path("golden.raw"));
    let (disk, rest) = written.split_at(SIZE as usize);
    assert!(disk == std::fs::read(golden).unwrap());
    assert!(rest.iter().all(|byte| *byte == 7), "the rest of the device");

    let said = refused(
        &folder,
        "qemu-img convert -O host_device -f qcow2 disk.qcow2 golden.raw",
    );
    assert!(said.contains("no block device"), "{said}");
}
