//! A container is an image like any other, whoever made it.

use std::process::Command;

use goldsmith::{Detail, ErrorKind, ImageInfo, Opener, cloud_named, lint};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::support::{Folder, convert, guest};
use crate::{OVF, family, made, packed, picture, plain, run, tar};

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

/// [gzip(1), tar(1)] Whoever writes records or whole blocks fills them up.
#[test]
fn zeros_behind_the_tar_and_behind_what_is_packed_are_nothing() {
    let folder = made();
    let (packed_image, whole) = (folder.path("disk.tgz"), folder.path("whole"));
    let mut bytes = std::fs::read(&packed_image).unwrap();
    bytes.resize(bytes.len() + 1000, 0);
    std::fs::write(&whole, &bytes).unwrap();
    let disk = crate::support::guest(&packed_image, OVF);
    assert!(crate::support::guest(&whole, OVF) == disk);
    let mut tar = Vec::new();
    let mut unpacked = flate2::read::GzDecoder::new(&bytes[..]);
    std::io::Read::read_to_end(&mut unpacked, &mut tar).unwrap();
    tar.resize(tar.len() + (5 << 20), 0);
    std::fs::write(&whole, packed(&tar)).unwrap();
    assert!(crate::support::guest(&whole, OVF) == disk);
}
