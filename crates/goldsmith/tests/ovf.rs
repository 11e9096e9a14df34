//! XenServer's container: a gzip'ed tar of VHDs.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use goldsmith::{
    Convert, Detail, ErrorKind, ImageInfo, Limits, Measure, Opener, cloud_named, format_named, lint,
};
use goldsmith_testkit::model::ModelDisk;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert, guest};

const OVF: &str = "xenserver-ovf";

goldsmith_testkit::conformance!(format_named(OVF).unwrap(), format);

/// What the command prints, which must go well.
fn run(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}; run scripts/install-test-tools"),
    };
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn picture() -> ModelDisk {
    disk("1M:A 3M:- 1M:b 5M:0 512:C 6291456:- 1M:D 3584:0 512:e 1M:-")
}

/// A folder with a disk, and the same as a VHD and in a container.
fn made() -> Folder {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &picture());
    for (format, name) in [("vpc", "disk.vhd"), (OVF, "disk.tgz")] {
        convert((&source, "raw"), (&folder.path(name), format))
            .option("batmap", "on")
            .run()
            .unwrap();
    }
    folder
}

#[test]
fn tar_holds_the_vhd_that_would_have_been_made_alone() {
    let folder = made();
    let said = run(Command::new("python3").current_dir(folder.path("")).args([
        "-c",
        "import tarfile\n\
         for mode in 'r:gz', 'r|gz':\n\
         \x20   with tarfile.open('disk.tgz', mode) as tar:\n\
         \x20       for it in tar:\n\
         \x20           same = tar.extractfile(it).read() == open('disk.vhd', 'rb').read()\n\
         \x20           print(it.name, it.isreg(), it.uid, it.gid, oct(it.mode), it.mtime, same)\n",
    ]));
    let line = "0.vhd True 0 0 0o644 1000000000 True\n";
    assert_eq!(said, [line, line].concat());

    let tgz = folder.text("disk.tgz");
    run(Command::new("gzip").args(["-t", &tgz]));
    let out = folder.path("out");
    std::fs::create_dir(&out).unwrap();
    // As XenServer's plugin does it.
    let tar = format!("tar -zxf {tgz} --directory={}", out.display());
    run(Command::new("sh").args(["-c", &tar]));
    qemu::compare(out.join("0.vhd"), "vpc", folder.path("disk.raw"), "raw");
}

#[test]
fn same_disk_gives_the_same_bytes() {
    let folder = made();
    let target = folder.path("again.tgz");
    for threads in [1, 3] {
        convert((&folder.path("disk.raw"), "raw"), (&target, OVF))
            .option("batmap", "on")
            .threads(std::num::NonZeroUsize::new(threads).unwrap())
            .run()
            .unwrap();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(folder.path("disk.tgz")).unwrap());
    }
    assert_eq!(
        folder.names(),
        ["again.tgz", "disk.raw", "disk.tgz", "disk.vhd"]
    );
}

#[test]
fn container_is_an_image_like_any_other() {
    let folder = made();
    let tgz = folder.path("disk.tgz");
    assert!(guest(&tgz, OVF) == picture().bytes());
    // Nobody says what it is.
    let chain = Opener::new().open(&tgz, None).unwrap();
    assert_eq!(chain.top().info().format, OVF);
    let back = folder.path("back.qcow2");
    convert((&tgz, OVF), (&back, "qcow2")).run().unwrap();
    qemu::compare(back, "qcow2", folder.path("disk.raw"), "raw");

    let info = ImageInfo::read(&Opener::new(), &tgz, None).unwrap();
    assert_eq!(
        (info.layer.format, info.looks_like.as_deref()),
        (OVF, Some(OVF))
    );
    let [("members", Detail::List(members))] = &info.layer.details[..] else {
        panic!("{:?}", info.layer.details);
    };
    let [Detail::Record(facts)] = &members[..] else {
        panic!("{members:?}");
    };
    let len = std::fs::metadata(folder.path("disk.vhd")).unwrap().len();
    assert_eq!(
        facts[..3],
        [
            ("name", Detail::Text("0.vhd".into())),
            ("virtual-size", Detail::Number(picture().len())),
            ("file-length", Detail::Number(len)),
        ]
    );
}

#[test]
fn length_is_measured() {
    let folder = made();
    let len = std::fs::metadata(folder.path("disk.tgz")).unwrap().len();
    let measure = |source: &str| {
        Measure::new(folder.path(source))
            .source_format("raw")
            .target_format(OVF)
            .option("batmap", "on")
    };
    // All but the identity, the time and what comes of them.
    let measured = measure("disk.raw").run().unwrap();
    let exact = measured.exact.unwrap();
    assert!(exact.abs_diff(len) < 64, "{exact} and {len}");
    assert!(exact <= measured.required && measured.required <= measured.fully_allocated);

    // Nothing packs worse than noise.
    let mut state = 1u64;
    let mut noise = vec![0; 10 << 20];
    for byte in &mut noise {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    std::fs::write(folder.path("noise"), &noise).unwrap();
    let measured = measure("noise").run().unwrap();
    let exact = measured.exact.unwrap();
    assert!(
        exact > 10 << 20 && exact <= measured.required,
        "{measured:?}"
    );
    assert!(measured.required < exact + exact / 300, "{measured:?}");
}

/// A folder with a differencing VHD, `0.vhd`, its parent, `1.vhd`, and the disk of both.
fn family() -> Folder {
    let folder = Folder::new();
    let base = folder.write("base.raw", &disk("2M:A 6M:- 2M:b 2M:-"));
    let child = folder.write(
        "child.raw",
        &disk("1M:A 1M:C 3M:- 512:D 3145216:- 2M:b 2M:-"),
    );
    let parent = folder.path("1.vhd");
    convert((&base, "raw"), (&parent, "vpc"))
        .uuid(goldsmith::Uuid::from_u128(1))
        .option("batmap", "on")
        .run()
        .unwrap();
    convert((&child, "raw"), (&folder.path("0.vhd"), "vpc"))
        .option("batmap", "on")
        .backing("1.vhd", "vpc")
        .run()
        .unwrap();
    folder
}

fn tar(folder: &Folder, how: &str) {
    let tar = format!("tar -zcf disk.tgz {how}");
    run(Command::new("sh")
        .current_dir(folder.path(""))
        .args(["-c", &tar]));
}

#[test]
fn chain_is_read_whatever_made_the_tar() {
    let folder = family();
    let expected = std::fs::read(folder.path("child.raw")).unwrap();
    let tgz = folder.path("disk.tgz");
    let elsewhere = folder.path("vhds");
    std::fs::create_dir(&elsewhere).unwrap();
    for name in ["0.vhd", "1.vhd"] {
        std::fs::copy(folder.path(name), elsewhere.join(name)).unwrap();
    }
    // The parent where the child says it is must not count.
    std::fs::rename(folder.path("1.vhd"), folder.path("hidden")).unwrap();
    for how in [
        "-C vhds 0.vhd 1.vhd",
        "-C vhds 1.vhd 0.vhd",
        "-C vhds .",
        "--format=pax -C vhds 0.vhd 1.vhd",
        "--format=v7 -C vhds 0.vhd 1.vhd",
        "--format=ustar -C vhds ./0.vhd ./1.vhd",
    ] {
        tar(&folder, how);
        assert!(guest(&tgz, OVF) == expected, "{how}");
        if !how.contains("v7") {
            let chain = Opener::new().open(&tgz, None).unwrap();
            assert_eq!(chain.top().info().format, OVF, "{how}");
        }
    }
    run(Command::new("python3").current_dir(&elsewhere).args([
        "-c",
        "import tarfile\n\
         with tarfile.open('../disk.tgz', 'w:gz') as tar:\n\
         \x20   tar.add('0.vhd')\n\
         \x20   tar.add('1.vhd')\n",
    ]));
    assert!(guest(&tgz, OVF) == expected);

    let info = ImageInfo::read(&Opener::new(), &tgz, None).unwrap();
    let [("members", Detail::List(members))] = &info.layer.details[..] else {
        panic!("{:?}", info.layer.details);
    };
    assert_eq!(members.len(), 2);
    assert_eq!(info.layer.backing, None);
    let cloud = cloud_named(OVF).unwrap();
    let findings = lint(&Opener::new(), &tgz, None, cloud).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn backing_file_has_no_place_in_a_container() {
    let folder = family();
    let target = folder.path("new.tgz");
    let error = convert((&folder.path("child.raw"), "raw"), (&target, OVF))
        .backing("1.vhd", "vpc")
        .run()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(!target.exists());
}

/// A tar of these members, not yet packed.
fn plain(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn refused(path: &Path, bytes: &[u8]) -> (ErrorKind, String) {
    std::fs::write(path, bytes).unwrap();
    let error = Opener::new().open(path, Some(OVF)).err().unwrap();
    (error.kind(), error.report())
}

#[test]
fn tar_that_holds_anything_else_is_refused() {
    let folder = family();
    let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
    let (child, base) = (&read("0.vhd")[..], &read("1.vhd")[..]);
    let path = folder.path("image");
    for (members, kind, rule) in [
        (&[][..], ErrorKind::Corrupt, "holds no 0.vhd"),
        (
            &[("1.vhd", base)],
            ErrorKind::Corrupt,
            "holds 1.vhd, and no 0.vhd",
        ),
        (
            &[("0.vhd", child), ("2.vhd", base)],
            ErrorKind::Corrupt,
            "holds 2.vhd, and no 1.vhd",
        ),
        (
            &[("0.vhd", base), ("0.vhd", base)],
            ErrorKind::Corrupt,
            "holds 0.vhd twice",
        ),
        (
            &[("0.vhd", base), ("passwd", b"root")],
            ErrorKind::Unsupported,
            "'passwd', which is none of 0.vhd",
        ),
        (
            &[("image.vhd", base)],
            ErrorKind::Unsupported,
            "'image.vhd'",
        ),
        (&[("00.vhd", base)], ErrorKind::Unsupported, "'00.vhd'"),
        (&[("+0.vhd", base)], ErrorKind::Unsupported, "'+0.vhd'"),
        (&[("a/0.vhd", base)], ErrorKind::Unsupported, "'a/0.vhd'"),
        (
            &[("0.vhd", base), ("200.vhd", base)],
            ErrorKind::Limit,
            "at most 200",
        ),
        (
            &[("0.vhd", base), ("1.vhd", base)],
            ErrorKind::Corrupt,
            "0.vhd has no parent, and the tar has more",
        ),
        (
            &[("0.vhd", child)],
            ErrorKind::Corrupt,
            "0.vhd has a parent, which is not in the tar",
        ),
        (
            &[("0.vhd", child), ("1.vhd", child)],
            ErrorKind::Corrupt,
            "0.vhd has a parent of identity 00000000-0000-0000-0000-000000000001",
        ),
        (&[("0.vhd", b"nothing")], ErrorKind::Corrupt, "0.vhd"),
    ] {
        let (found, report) = refused(&path, &packed(&plain(members)));
        assert_eq!(found, kind, "{report}");
        assert!(report.contains(rule), "{report}");
    }
    // A link by the right name.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "0.vhd", "/etc/passwd")
        .unwrap();
    let (kind, _) = refused(&path, &packed(&tar.into_inner().unwrap()));
    assert_eq!(kind, ErrorKind::Unsupported);
}

#[test]
fn damage_is_noticed_wherever_it_is() {
    let folder = made();
    let whole = std::fs::read(folder.path("disk.tgz")).unwrap();
    let path = folder.path("image");
    for cut in [1, 4, 8, 9, 100, whole.len() / 2, whole.len() - 20] {
        let (kind, report) = refused(&path, &whole[..whole.len() - cut]);
        assert_eq!(kind, ErrorKind::Corrupt, "{cut}: {report}");
    }
    // The checksum, the length, and the data.
    for at in [whole.len() - 8, whole.len() - 1, whole.len() / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let (kind, report) = refused(&path, &bytes);
        assert_eq!(kind, ErrorKind::Corrupt, "{at}: {report}");
    }
    let mut behind = whole.clone();
    behind.extend(b"more");
    assert_eq!(refused(&path, &behind).0, ErrorKind::Corrupt);
    let mut second = whole;
    second.extend(packed(b"more"));
    let (kind, report) = refused(&path, &second);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(report.contains("behind the end of the tar"), "{report}");
}

#[test]
fn bombs_are_stopped_before_they_go_off() {
    let folder = Folder::new();
    let path = folder.path("image");
    // A member that says how long it is.
    let mut tar = plain(&[("0.vhd", b"")]);
    let mut header = tar::Header::new_gnu();
    header.set_path("0.vhd").unwrap();
    header.set_size(64 << 40);
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    let (kind, report) = refused(&path, &packed(&tar));
    assert_eq!(kind, ErrorKind::Limit, "{report}");
    assert!(
        report.contains("70368744177664 bytes of temporary files"),
        "{report}"
    );

    // Those that are as long as they like: names, and what is behind the end.
    let name = "n".repeat(4 << 20);
    let (kind, report) = refused(&path, &packed(&plain(&[(&name, b"")])));
    assert_eq!(kind, ErrorKind::Limit, "{report}");
    let mut zeros = plain(&[]);
    zeros.resize(100 << 20, 0);
    let (kind, report) = refused(&path, &packed(&zeros));
    assert_eq!(kind, ErrorKind::Limit, "{report}");

    // And who wants to pay for less.
    let whole = made();
    let mut limits = Limits::default();
    limits.unpacked_bytes = 1 << 20;
    let opener = Opener::new().limits(limits);
    let error = opener.open(whole.path("disk.tgz"), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);
}

/// Many gzip files in one, as parallel packers make them.
#[test]
fn pieces_packed_apart_are_one_file() {
    let folder = family();
    let base = std::fs::read(folder.path("1.vhd")).unwrap();
    let tar = plain(&[("0.vhd", &base)]);
    let pieces: Vec<u8> = tar.chunks(100_000).flat_map(packed).collect();
    let path = folder.path("image");
    std::fs::write(&path, pieces).unwrap();
    assert!(guest(&path, OVF) == std::fs::read(folder.path("base.raw")).unwrap());
}

#[test]
fn other_gzip_files_are_not_taken_for_one() {
    let folder = Folder::new();
    let path = folder.path("image");
    let text = packed(&b"just text".repeat(1000));
    let tar = packed(&plain(&[("readme.txt", b"0.vhd")]));
    for bytes in [text, tar] {
        std::fs::write(&path, bytes).unwrap();
        let error = Opener::new().open(&path, None).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().contains("looks like gzip"), "{error:?}");
    }
}

#[test]
fn cloud_gets_its_container() {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &disk("1M:A 2M:- 512:b"));
    let target = folder.path("disk.tgz");
    let cloud = cloud_named(OVF).unwrap();
    let done = Convert::new(&source, &target)
        .source_format("raw")
        .cloud(cloud)
        .run()
        .unwrap();
    assert_eq!(done.virtual_size, 4 << 20);
    assert_eq!(done.file_len, std::fs::metadata(&target).unwrap().len());
    let findings = lint(&Opener::new(), &target, None, cloud).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    let mut inside = flate2::read::GzDecoder::new(std::fs::File::open(&target).unwrap());
    let mut head = [0; 520];
    inside.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"0.vhd\0") && head.ends_with(b"conectix"));
}
