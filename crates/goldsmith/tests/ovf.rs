//! XenServer's container: a gzip'ed tar of VHDs.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use goldsmith::{
    Algorithm, Convert, Detail, ErrorKind, ImageInfo, Limits, Measure, Opener, References,
    cloud_named, format_named, lint,
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

/// Who wants a checksum on the way has the VHD made in a file, and packed from there.
#[test]
fn container_that_streams_is_the_one_that_is_packed_from_a_file() {
    let folder = Folder::new();
    // Written zeros, a hole at the end of the last block, and a disk that ends within it.
    let source = folder.write(
        "disk.raw",
        &disk("1M:A 3M:0 512:b 2M:0 512:C 6291456:- 1M:D 3584:0 512:e 3M:0 1536:-"),
    );
    let qcow2 = folder.path("disk.qcow2");
    convert((&source, "raw"), (&qcow2, "qcow2"))
        .compress(true)
        .run()
        .unwrap();
    for options in [
        &[][..],
        &[("block_size", "512k"), ("batmap", "on")],
        &[("subformat", "fixed")],
        &[("force_size", "off")],
    ] {
        for (source, format) in [(&source, "raw"), (&qcow2, "qcow2")] {
            for sparse in [4096, 0] {
                let make = |name: &str, digest: Option<Algorithm>| {
                    let target = folder.path(name);
                    let mut job = convert((source, format), (&target, OVF)).sparse(sparse);
                    for (key, value) in options {
                        job = job.option(*key, *value);
                    }
                    if let Some(algorithm) = digest {
                        job = job.digest(algorithm);
                    }
                    let done = job.run().unwrap();
                    assert_eq!(done.digests.len(), usize::from(digest.is_some()));
                    (done.file_len, std::fs::read(target).unwrap())
                };
                let (len, streamed) = make("streamed.tgz", None);
                let (_, packed) = make("packed.tgz", Some(Algorithm::Crc32));
                assert!(streamed == packed, "{options:?} {format} {sparse}");
                assert_eq!(len, streamed.len() as u64);
            }
        }
    }
}

/// `child.vhd` over `middle.vhd` over `base.vhd`, and the disk of all.
fn generations() -> Folder {
    let folder = Folder::new();
    let mut below = None;
    for (name, uuid, picture) in [
        ("base", 1, "2M:A 6M:- 2M:b 2M:-"),
        ("middle", 2, "1M:A 1M:C 3M:- 512:D 3145216:- 2M:b 2M:-"),
        (
            "child",
            3,
            "1M:A 1M:C 3M:- 512:D 3145216:- 512:E 2096640:b 2M:-",
        ),
    ] {
        let source = folder.write(&format!("{name}.raw"), &disk(picture));
        let target = folder.path(&format!("{name}.vhd"));
        let mut job = convert((&source, "raw"), (&target, "vpc"))
            .uuid(goldsmith::Uuid::from_u128(uuid))
            .option("batmap", "on");
        if let Some(below) = below {
            job = job.backing(format!("{below}.vhd"), "vpc");
        }
        job.run().unwrap();
        below = Some(name);
    }
    folder
}

fn keep(folder: &Folder, from: &str, to: &str) -> Convert<'static> {
    Convert::new(folder.path(from), folder.path(to))
        .opener(Opener::new().references(References::SameDirectory))
        .cloud(cloud_named(OVF).unwrap())
        .timestamp(1_000_000_000)
        .keep_chain(true)
}

#[test]
fn chain_is_kept_or_becomes_one_disk() {
    let folder = generations();
    let expected = std::fs::read(folder.path("child.raw")).unwrap();
    let before: Vec<_> = ["child.vhd", "middle.vhd", "base.vhd"]
        .map(|name| std::fs::read(folder.path(name)).unwrap())
        .into();
    let kept = folder.path("kept.tgz");
    let done = keep(&folder, "child.vhd", "kept.tgz").run().unwrap();
    assert_eq!(done.file_len, std::fs::metadata(&kept).unwrap().len());
    keep(&folder, "child.vhd", "flat.tgz")
        .keep_chain(false)
        .run()
        .unwrap();
    // Nothing is resolved beside the container.
    let elsewhere = folder.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for (name, members) in [("kept.tgz", 3), ("flat.tgz", 1)] {
        let path = elsewhere.join(name);
        std::fs::rename(folder.path(name), &path).unwrap();
        assert!(guest(&path, OVF) == expected, "{name}");
        let info = ImageInfo::read(&Opener::new(), &path, None).unwrap();
        let [("members", Detail::List(found))] = &info.layer.details[..] else {
            panic!("{:?}", info.layer.details);
        };
        assert_eq!(found.len(), members);
        assert_eq!(
            info.layer.uuid.map(|it| it.as_u128()) == Some(3),
            members == 3
        );
        let cloud = cloud_named(OVF).unwrap();
        let findings = lint(&Opener::new(), &path, None, cloud).unwrap();
        assert!(findings.is_empty(), "{name}: {findings:?}");
        convert((&path, OVF), (&folder.path("back.raw"), "raw"))
            .run()
            .unwrap();
        qemu::compare(
            folder.path("back.raw"),
            "raw",
            folder.path("child.raw"),
            "raw",
        );
    }

    // What stands in the tar is a chain for everybody who unpacks it, by the names it has there.
    let tar = "tar -xzf elsewhere/kept.tgz && rm elsewhere/*";
    run(Command::new("sh")
        .current_dir(folder.path(""))
        .args(["-c", tar]));
    assert!(guest(&folder.path("0.vhd"), "vpc") == expected);
    run(Command::new("7zz")
        .current_dir(folder.path(""))
        .args(["x", "-tvhd", "-oout", "0.vhd"]));
    let theirs = std::fs::read_dir(folder.path("out")).unwrap();
    let theirs = theirs.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    assert!(theirs.eq([expected]));
    for (name, old) in ["child.vhd", "middle.vhd", "base.vhd"].iter().zip(&before) {
        assert!(std::fs::read(folder.path(name)).unwrap() == *old, "{name}");
    }
    assert!(std::fs::read(folder.path("2.vhd")).unwrap() == before[2]);
}

#[test]
fn kept_chain_is_the_same_for_any_number_of_threads() {
    let folder = generations();
    for threads in [1, 3] {
        let target = format!("{threads}.tgz");
        keep(&folder, "child.vhd", &target)
            .threads(std::num::NonZeroUsize::new(threads).unwrap())
            .run()
            .unwrap();
    }
    let read = |name| std::fs::read(folder.path(name)).unwrap();
    assert!(read("1.tgz") == read("3.tgz"));
}

#[test]
fn chain_that_cannot_be_kept_is_refused() {
    let folder = generations();
    let base = folder.path("base.vhd");
    convert((&base, "vpc"), (&folder.path("fixed.vhd"), "vpc"))
        .option("subformat", "fixed")
        .run()
        .unwrap();
    convert((&base, "vpc"), (&folder.path("small.vhd"), "vpc"))
        .option("block_size", "512k")
        .run()
        .unwrap();
    convert((&base, "vpc"), (&folder.path("disk.qcow2"), "qcow2"))
        .run()
        .unwrap();
    let odd = folder.write("odd.raw", &disk("1M:A 512:b"));
    convert((&odd, "raw"), (&folder.path("odd.vhd"), "vpc"))
        .run()
        .unwrap();
    let mut torn = std::fs::read(&base).unwrap();
    torn[50] ^= 1;
    std::fs::write(folder.path("torn.vhd"), torn).unwrap();
    let refused = |convert: Convert<'_>, why: &str| {
        let error = convert.run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
        assert!(error.report().contains(why), "{}", error.report());
        assert!(!folder.path("new.tgz").exists());
    };
    for (name, why) in [
        (
            "fixed.vhd",
            "it is fixed, and XenServer chains dynamic VHDs alone",
        ),
        ("small.vhd", "its blocks have 524288 bytes"),
        (
            "disk.qcow2",
            "it is qcow2, and a container keeps chains of VHDs",
        ),
        (
            "torn.vhd",
            "it is damaged (the copy of the footer at the start is broken",
        ),
        (
            "odd.vhd",
            "cannot get another size (2097152 bytes, and it has 1049088",
        ),
    ] {
        refused(keep(&folder, name, "new.tgz"), why);
    }
    let child = || keep(&folder, "child.vhd", "new.tgz");
    refused(child().option("batmap", "off"), "creation options");
    refused(
        child().uuid(goldsmith::Uuid::from_u128(9)),
        "another identity",
    );
    refused(
        child().cloud(cloud_named("xenserver").unwrap()),
        "an image of vpc holds one disk and no chain",
    );
}

/// What is kept of a container tells the same as all of it, wherever its tables stand.
#[test]
fn container_is_told_of_as_if_it_was_unpacked() {
    let folder = family();
    let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
    let base = read("1.vhd");
    let mut lost = base.clone();
    let end = lost.len() - 512;
    lost[end..].fill(0xc7);
    let mut copy = base.clone();
    copy[50] ^= 1;
    let fixed = folder.path("fixed.vhd");
    convert((&folder.path("base.raw"), "raw"), (&fixed, "vpc"))
        .option("subformat", "fixed")
        .run()
        .unwrap();
    // A table behind all blocks, further away than anything that is kept, and not at the end either.
    let far = folder.write("far.raw", &disk("35M:a"));
    convert((&far, "raw"), (&folder.path("far.vhd"), "vpc"))
        .run()
        .unwrap();
    let mut far = read("far.vhd");
    let end = far.len() - 512;
    let table = [&far[1536..2048], &[0; 8192]].concat();
    far.splice(end..end, table);
    far[512 + 16..512 + 24].copy_from_slice(&(end as u64).to_be_bytes());
    far[512 + 36..512 + 40].fill(0);
    let sum: u32 = far[512..1536].iter().map(|byte| u32::from(*byte)).sum();
    far[512 + 36..512 + 40].copy_from_slice(&(!sum).to_be_bytes());

    let path = folder.path("image");
    for members in [
        vec![base],
        vec![read("0.vhd"), read("1.vhd")],
        vec![lost],
        vec![copy],
        vec![read("fixed.vhd")],
        vec![far],
    ] {
        let names = ["0.vhd", "1.vhd"];
        let named: Vec<_> = names
            .into_iter()
            .zip(members.iter().map(|it| &**it))
            .collect();
        std::fs::write(&path, packed(&plain(&named))).unwrap();
        let told = ImageInfo::read(&Opener::new(), &path, Some(OVF))
            .unwrap()
            .layer;
        let chain = Opener::new().open(&path, Some(OVF)).unwrap();
        assert_eq!(told, *chain.top().info());
    }
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

/// Where nothing is stored, too.
#[test]
fn claims_that_no_file_can_hold_are_refused_with_the_figures() {
    let folder = Folder::new();
    let path = folder.path("image");
    let told = |tar: Vec<u8>| {
        std::fs::write(&path, packed(&tar)).unwrap();
        let error = ImageInfo::read(&Opener::new(), &path, Some(OVF)).unwrap_err();
        (error.kind(), error.report())
    };
    let entry = |path: &str, size: u64, kind: tar::EntryType| {
        let mut header = tar::Header::new_gnu();
        // What the library does not write.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(size);
        header.set_entry_type(kind);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let file = tar::EntryType::Regular;
    let sparse = {
        let mut header = tar::Header::new_gnu();
        header.set_path("0.vhd").unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_size(0);
        // Its length with all its holes.
        header.as_mut_bytes()[483..494].fill(b'0');
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for size in [64 << 40, (8 << 60) - 1] {
        let (kind, report) = told(entry("0.vhd", size, file));
        assert_eq!(kind, ErrorKind::Limit, "{report}");
        let claim = format!("the VHD in the tar takes {size} bytes");
        assert!(report.contains(&claim), "{report}");
    }
    for size in [1 << 30, 64 << 30] {
        let (kind, report) = told(entry("0.vhd", size, file));
        assert_eq!(kind, ErrorKind::Corrupt, "{report}");
        let claim = format!("0.vhd is said to have {size} bytes; the ");
        assert!(report.contains(&claim), "{report}");
        assert!(
            report.contains("bytes of the gzip'ed tar can hold"),
            "{report}"
        );
    }
    for (tar, kind, rule) in [
        (
            entry("0.vhd", u64::MAX, file),
            ErrorKind::Corrupt,
            "size overflow",
        ),
        (
            entry("./", 0, tar::EntryType::Directory).repeat(2000),
            ErrorKind::Limit,
            "the tar has more than 1000 entries",
        ),
        (sparse, ErrorKind::Unsupported, "the sparse file '0.vhd'"),
        (
            entry("../0.vhd", 0, file),
            ErrorKind::Unsupported,
            "'../0.vhd', which is none of 0.vhd",
        ),
        (
            entry("/etc/0.vhd", 0, file),
            ErrorKind::Unsupported,
            "'/etc/0.vhd'",
        ),
        (
            entry("0.vhd", 0, tar::EntryType::Link),
            ErrorKind::Unsupported,
            "the link '0.vhd'",
        ),
        (
            entry("0.vhd", 0, tar::EntryType::Char),
            ErrorKind::Unsupported,
            "the special file '0.vhd'",
        ),
    ] {
        let (found, report) = told(tar);
        assert_eq!(found, kind, "{report}");
        assert!(report.contains(rule), "{report}");
    }
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
