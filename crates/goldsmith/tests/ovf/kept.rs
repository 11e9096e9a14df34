//! A chain of VHDs becomes a container, and stays a chain.

use std::num::NonZeroUsize;
use std::process::Command;

use goldsmith::{
    Convert, Detail, ErrorKind, ImageInfo, Opener, References, Uuid, cloud_named, lint,
};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::support::{Folder, convert, guest};
use crate::{OVF, run};

/// `child.vhd` over `middle.vhd` over `base.vhd`, and the disk of all.
pub(crate) fn generations() -> Folder {
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
            .uuid(Uuid::from_u128(uuid))
            .option("batmap", "on");
        if let Some(below) = below {
            job = job.backing(format!("{below}.vhd"), "vpc");
        }
        job.run().unwrap();
        below = Some(name);
    }
    folder
}

pub(crate) fn keep(folder: &Folder, from: &str, to: &str) -> Convert<'static> {
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
            .threads(NonZeroUsize::new(threads).unwrap())
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
    refused(child().uuid(Uuid::from_u128(9)), "another identity");
    refused(child().compress(true), "packed blocks (-c)");
    refused(child().sparse(0), "other zeros (-S)");
    refused(child().sparse(64 << 10), "other zeros (-S)");
    refused(
        child().cloud(cloud_named("xenserver").unwrap()),
        "an image of vpc holds one disk and no chain",
    );
}
