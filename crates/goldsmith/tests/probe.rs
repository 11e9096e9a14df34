//! Guessing a format: by marks alone, never in doubt.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use goldsmith::{ErrorKind, Opener};
use goldsmith_testkit::pattern::disk;
use support::{Folder, convert};

fn guessed(folder: &Folder, bytes: &[u8]) -> Result<&'static str, (ErrorKind, String)> {
    let path = folder.path("image");
    std::fs::write(&path, bytes).unwrap();
    match Opener::new().open(&path, None) {
        Ok(chain) => Ok(chain.top().info().format),
        Err(error) => Err((error.kind(), error.report())),
    }
}

#[test]
fn own_images_are_known_by_their_marks() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A 512:b"));
    for (format, options) in [
        ("raw", &[][..]),
        ("qcow2", &[]),
        ("vpc", &[]),
        ("vpc", &[("subformat", "fixed")]),
    ] {
        let target = folder.path("target");
        let mut job = convert((&raw, "raw"), (&target, format));
        for (key, value) in options {
            job = job.option(*key, *value);
        }
        job.run().unwrap();
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!(guessed(&folder, &bytes), Ok(format));
    }
    assert_eq!(guessed(&folder, b""), Ok("raw"));
    assert_eq!(guessed(&folder, &[7; 100]), Ok("raw"));
    assert_eq!(guessed(&folder, b"#!/bin/sh\nversion=12\n"), Ok("raw"));
}

#[test]
fn formats_of_others_are_not_taken_for_raw() {
    let folder = Folder::new();
    let vdi = [&[0; 64][..], &0xbeda_107f_u32.to_le_bytes()].concat();
    for (name, head) in [
        ("vhdx", b"vhdxfile".as_slice()),
        ("vmdk", b"KDMV\x01\0\0\0"),
        ("vmdk", b"# Disk DescriptorFile\nversion=1\n"),
        ("vmdk", b"# disk Descriptorfile\n"),
        ("vmdk", b"#\n# mine\r\n \r\nversion=3\r\nCID=fffffffe\n"),
        ("bochs", b"Bochs Virtual HD Image"),
        ("vdi", &vdi),
        ("qed", b"QED\0"),
        ("luks", b"LUKS\xba\xbe\0\x01"),
        ("gzip", b"\x1f\x8b\x08\0"),
        ("xz", b"\xfd7zXZ\0"),
    ] {
        let mut bytes = head.to_vec();
        bytes.resize(4096, 0);
        let (kind, report) = guessed(&folder, &bytes).unwrap_err();
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(report.contains(&format!("looks like {name}")), "{report}");
        // Who states RAW gets RAW.
        assert!(
            Opener::new()
                .open(folder.path("image"), Some("raw"))
                .is_ok()
        );
    }
}

/// It became longer and nothing else was stored, as a power cut may leave it while the disk grows; or
/// somebody copied it onto a larger disk. RAW would be all of it, and the footer a guest's bytes.
#[test]
fn fixed_vhd_before_zeros_is_not_taken_for_raw() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A 512:b"));
    let fixed = folder.path("fixed.vhd");
    convert((&raw, "raw"), (&fixed, "vpc"))
        .option("subformat", "fixed")
        .run()
        .unwrap();
    let image = std::fs::read(&fixed).unwrap();
    for more in [512, 1000, 3 << 20] {
        let longer = [&image[..], &vec![0; more]].concat();
        let (kind, report) = guessed(&folder, &longer).unwrap_err();
        assert_eq!(kind, ErrorKind::Usage);
        assert!(report.contains("could be any of raw, vpc"), "{report}");
        for format in ["raw", "vpc"] {
            let opened = Opener::new().open(folder.path("image"), Some(format));
            assert!(opened.is_ok());
        }
    }
    // A hole costs nothing, however long.
    let file = std::fs::OpenOptions::new().write(true).open(&fixed);
    file.unwrap().set_len(1 << 40).unwrap();
    let error = Opener::new().open(&fixed, None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    // What a guest keeps on its disk is none.
    let inside = [&[1; 512], &image[..], &[0; 4096]].concat();
    assert_eq!(guessed(&folder, &inside), Ok("raw"));
}

/// One file, two disks: whoever guesses right decides what is in it.
#[test]
fn file_with_two_marks_is_refused() {
    let folder = Folder::new();
    let raw = folder.write("disk.raw", &disk("1M:A"));
    let (qcow2, vhd) = (folder.path("a.qcow2"), folder.path("b.vhd"));
    convert((&raw, "raw"), (&qcow2, "qcow2")).run().unwrap();
    convert((&qcow2, "raw"), (&vhd, "vpc"))
        .option("subformat", "fixed")
        .run()
        .unwrap();
    let (kind, report) = guessed(&folder, &std::fs::read(vhd).unwrap()).unwrap_err();
    assert_eq!(kind, ErrorKind::Usage);
    assert!(report.contains("could be any of qcow2, vpc"), "{report}");
}
