//! Whatever a stranger packs is refused for what it is.

use goldsmith::{ErrorKind, ImageInfo, Limits, Opener};

use crate::support::Folder;
use crate::{OVF, family, made, packed, plain, refused};

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
    // [GNU tar] What is between its holes, under its name.
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("GNU.sparse.size", &b"1048576"[..])])
        .unwrap();
    let mut sparse = tar.into_inner().unwrap();
    sparse.truncate(1024);
    sparse.extend(plain(&[("0.vhd", base)]));
    let (kind, report) = refused(&path, &packed(&sparse));
    assert_eq!(kind, ErrorKind::Unsupported, "{report}");
    assert!(report.contains("the sparse file '0.vhd'"), "{report}");
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
