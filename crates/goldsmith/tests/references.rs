//! What an image may pull in, and what it may not.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;

use goldsmith::{Chain, ErrorKind, Limits, Opener, References, Result};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::Folder;

fn overlay(folder: &Folder, name: &str, backing: &str) -> std::path::PathBuf {
    let path = folder.path(name);
    let image = path.to_str().unwrap();
    qemu::img_ok(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", image, "1M",
    ]);
    path
}

fn open(path: &Path, references: References) -> Result<Chain> {
    Opener::new()
        .references(references)
        .open(path, Some("qcow2"))
}

fn denied(path: &Path, references: References) -> String {
    let error = open(path, references).err().expect("it was opened");
    assert_eq!(error.kind(), ErrorKind::Denied);
    error.report()
}

#[test]
fn neighbour_is_opened_only_if_the_policy_says_so() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    let top = overlay(&folder, "top.qcow2", "base.raw");
    assert_eq!(
        denied(&top, References::Deny),
        format!(
            "{}: not allowed: the image needs the backing file 'base.raw', and the reference \
             policy is 'deny' (--references)",
            top.display()
        )
    );
    for policy in [References::SameDirectory, References::Allow] {
        assert_eq!(open(&top, policy).unwrap().layers().len(), 2);
    }
    let absolute = overlay(&folder, "absolute.qcow2", &folder.text("base.raw"));
    assert!(open(&absolute, References::SameDirectory).is_ok());
}

#[test]
fn same_directory_is_left_by_no_trick() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inner")).unwrap();
    folder.write("secret.raw", &disk("1M:A"));
    std::os::unix::fs::symlink("../secret.raw", folder.path("inner/link.raw")).unwrap();
    let absolute = folder.text("secret.raw");
    let roundabout = folder.text("inner/../secret.raw");
    for name in [
        "../secret.raw",
        &absolute,
        &roundabout,
        "link.raw",
        "./../secret.raw",
        "..",
        ".",
    ] {
        let top = overlay(&folder, "inner/top.qcow2", name);
        let report = denied(&top, References::SameDirectory);
        assert!(report.contains(name), "{report}");
    }
    let down = overlay(&folder, "top.qcow2", "inner/link.raw");
    denied(&down, References::SameDirectory);
}

#[test]
fn name_with_a_protocol_is_never_followed() {
    let folder = Folder::new();
    for name in [
        r#"json:{"driver":"raw"}"#,
        "nbd://localhost/x",
        "file:base.raw",
    ] {
        // qemu-img itself wants to look behind such names, so the name is set afterwards.
        let stand_in = "x".repeat(name.len());
        let top = overlay(&folder, "top.qcow2", &stand_in);
        let mut bytes = std::fs::read(&top).unwrap();
        let at = bytes
            .windows(name.len())
            .position(|part| part == stand_in.as_bytes())
            .unwrap();
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        std::fs::write(&top, bytes).unwrap();
        let error = open(&top, References::Allow).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
    }
}

#[test]
fn backing_format_is_never_guessed() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    let path = folder.path("top.qcow2");
    let image = path.to_str().unwrap();
    let base = "base.raw";
    qemu::img_ok(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image, "1M",
    ]);
    qemu::img_ok(&[
        "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image,
    ]);
    forget_backing_format(&path);
    assert!(denied(&path, References::Allow).contains("without saying its format"));
    let opener = Opener::new()
        .references(References::Allow)
        .backing_format("raw");
    assert_eq!(opener.open(&path, Some("qcow2")).unwrap().layers().len(), 2);
}

/// Turns the header extension that holds the backing format into one that nobody knows.
fn forget_backing_format(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let magic = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|part| part == magic).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn chain_that_bites_its_tail_is_corrupt() {
    let folder = Folder::new();
    let mut path = Path::new("").to_owned();
    for (name, backing) in [
        ("a.qcow2", "b.qcow2"),
        ("b.qcow2", "c.qcow2"),
        ("c.qcow2", "a.qcow2"),
    ] {
        path = folder.path(name);
        let image = path.to_str().unwrap();
        let args = [
            "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", image, "1M",
        ];
        qemu::img_ok(&args);
    }
    let error = open(&path, References::Allow).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.report().contains("is already part of the chain"),
        "{}",
        error.report()
    );
}

#[test]
fn chain_deeper_than_the_limit_is_refused() {
    let folder = Folder::new();
    folder.write("0.qcow2", &disk("1M:-"));
    qemu::img_ok(&["create", "-q", "-f", "qcow2", &folder.text("0.qcow2"), "1M"]);
    for depth in 1..6 {
        let (image, backing) = (
            folder.text(&format!("{depth}.qcow2")),
            format!("{}.qcow2", depth - 1),
        );
        let args = [
            "create", "-q", "-u", "-f", "qcow2", "-b", &backing, "-F", "qcow2", &image, "1M",
        ];
        qemu::img_ok(&args);
    }
    let mut limits = Limits::default();
    let top = folder.path("5.qcow2");
    for (depth, fits) in [(6, true), (5, false)] {
        limits.chain_depth = depth;
        let opener = Opener::new()
            .references(References::Allow)
            .limits(limits.clone());
        match opener.open(&top, Some("qcow2")) {
            Ok(chain) => assert!(fits && chain.layers().len() == 6),
            Err(error) => assert!(!fits && error.kind() == ErrorKind::Limit),
        }
    }
}
