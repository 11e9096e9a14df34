//! What a stranger's image names: links, devices, pipes, and files that are not his.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use goldsmith::{
    Chain, Commit, Create, ErrorKind, NewSize, Opener, References, Resize, Result, SnapshotName,
    Snapshots,
};
use goldsmith_testkit::mount::are_allowed;
use goldsmith_testkit::pattern::disk;
use support::Folder;

const SAME: &str = "and the reference policy is 'same-directory' (--references)";

fn overlay(folder: &Folder, name: &str, backing: &str) -> PathBuf {
    let path = folder.path(name);
    let create = Create::new(&path).format("qcow2").size(1 << 20);
    let create = create.backing(backing, "raw").unseen_backing(true);
    create.run().unwrap();
    path
}

fn opener(references: References) -> Opener {
    Opener::new().references(references)
}

fn open(path: &Path, references: References) -> Result<Chain> {
    opener(references).open(path, Some("qcow2"))
}

fn denied(path: &Path) -> String {
    let error = open(path, References::SameDirectory).expect_err("it was opened");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    error.report()
}

fn first_byte(chain: &Chain) -> u8 {
    let mut byte = [0];
    chain.read_at(0, &mut byte).unwrap();
    byte[0]
}

fn make_fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[test]
fn each_way_out_of_the_directory_is_refused() {
    let folder = Folder::new();
    folder.write("secret.raw", &disk("1M:S"));
    std::fs::create_dir_all(folder.path("images/deeper")).unwrap();
    let images = folder.path("images");
    std::fs::copy(folder.path("secret.raw"), images.join("deeper/base.raw")).unwrap();
    symlink("../secret.raw", images.join("link.raw")).unwrap();
    symlink("deeper", images.join("way")).unwrap();
    make_fifo(&images.join("pipe"));
    let socket = std::os::unix::net::UnixListener::bind(images.join("socket")).unwrap();
    let held = std::fs::File::open(folder.path("secret.raw")).unwrap();
    let descriptor = format!("/proc/self/fd/{}", held.as_raw_fd());
    let absolute = folder.text("secret.raw");
    for (name, how) in [
        ("link.raw", "is a symbolic link"),
        ("pipe", "is no regular file"),
        ("socket", "is no regular file"),
        ("deeper", "is a directory"),
        ("way/base.raw", "is not in the directory of the image"),
        ("deeper/base.raw", "is not in the directory of the image"),
        ("../secret.raw", "is not in the directory of the image"),
        (&absolute, "is not in the directory of the image"),
        ("/dev/zero", "is not in the directory of the image"),
        (&descriptor, "is not in the directory of the image"),
    ] {
        let top = overlay(&folder, "images/top.qcow2", name);
        let report = denied(&top);
        let start = format!(
            "{}: not allowed: the backing file '{name}' {how}",
            top.display()
        );
        assert!(
            report.starts_with(&start) && report.ends_with(SAME),
            "{report}"
        );
    }
    drop((socket, held));
}

/// As QEMU does, but that it never waits for whoever might write into a pipe, and never reads what
/// has no end.
#[test]
fn what_is_allowed_may_lead_anywhere_but_not_to_what_has_no_end() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    std::fs::create_dir(folder.path("images")).unwrap();
    symlink("../base.raw", folder.path("images/link.raw")).unwrap();
    symlink(".", folder.path("images/way")).unwrap();
    make_fifo(&folder.path("images/pipe"));
    let held = std::fs::File::open(folder.path("base.raw")).unwrap();
    let descriptor = format!("/proc/self/fd/{}", held.as_raw_fd());
    for name in ["link.raw", "way/link.raw", "../base.raw", &descriptor] {
        let top = overlay(&folder, "images/top.qcow2", name);
        let chain = open(&top, References::Allow).unwrap();
        assert_ne!(first_byte(&chain), 0, "{name}");
    }
    for (name, what) in [("pipe", "a pipe"), ("/dev/zero", "a character device")] {
        let top = overlay(&folder, "images/top.qcow2", name);
        let error = open(&top, References::Allow).expect_err("it was opened");
        assert!(error.report().contains(what), "{error:?}");
    }
}

/// The caller may open everything: the tests run as root, as services do that call us.
#[test]
fn file_that_the_owner_of_the_image_could_not_read_is_not_read_for_him() {
    if !are_allowed("files of several owners that are read") {
        return;
    }
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    let (top, base) = (
        overlay(&folder, "top.qcow2", "base.raw"),
        folder.path("base.raw"),
    );
    let (owner, other) = (Some(1234), Some(4321));
    let who = "belongs to another user than the image, and not everybody may read it";
    for (image, file, mode, opens) in [
        (owner, other, 0o600, false),
        (owner, other, 0o660, false),
        (owner, Some(0), 0o640, false),
        (Some(0), other, 0o600, false),
        (owner, other, 0o644, true),
        (owner, owner, 0o600, true),
        (Some(0), Some(0), 0o600, true),
    ] {
        chown(&top, image, None).unwrap();
        chown(&base, file, None).unwrap();
        std::fs::set_permissions(&base, Permissions::from_mode(mode)).unwrap();
        assert!(open(&top, References::Allow).is_ok());
        match opens {
            true => assert_eq!(
                open(&top, References::SameDirectory)
                    .unwrap()
                    .layers()
                    .len(),
                2
            ),
            false => assert!(denied(&top).contains(who), "{image:?} {file:?} {mode:o}"),
        }
    }
}

#[test]
fn file_that_the_owner_of_the_image_could_not_write_is_not_written_for_him() {
    if !are_allowed("files of several owners that are written") {
        return;
    }
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    let base = folder.path("base.raw");
    let before = std::fs::read(&base).unwrap();
    let top = overlay(&folder, "top.qcow2", "base.raw");
    goldsmith_testkit::qemu::io_ok(top.to_str().unwrap(), "qcow2", &["write -P 7 0 64k"]);
    chown(&top, Some(1234), None).unwrap();
    let commit = |references| {
        let commit = Commit::new(&top).format("qcow2");
        commit.opener(opener(references)).run()
    };
    let error = commit(References::SameDirectory).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let report = error.report();
    assert!(report.contains("not everybody may write to it"), "{report}");
    assert!(std::fs::read(&base).unwrap() == before);
    commit(References::Allow).unwrap();
    assert_eq!(std::fs::read(&base).unwrap()[0], 7);

    // And the file with an image's data, which a longer disk needs longer.
    let image = folder.path("image.qcow2");
    let create = Create::new(&image).format("qcow2").size(1 << 20);
    create.option("data_file", "data").run().unwrap();
    chown(&image, Some(1234), None).unwrap();
    let resize = |references| {
        let resize = Resize::new(&image, NewSize::Exactly(2 << 20)).format("qcow2");
        resize.opener(opener(references)).run()
    };
    let error = resize(References::SameDirectory).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        open(&image, References::SameDirectory).is_ok(),
        "to be read"
    );
    chown(folder.path("data"), Some(1234), None).unwrap();
    resize(References::SameDirectory).unwrap();
}

/// What an image names is not opened for what needs none of it.
#[test]
fn image_is_listed_whatever_it_names() {
    let folder = Folder::new();
    let top = overlay(&folder, "top.qcow2", "/dev/zero");
    let snapshots = Snapshots::new(&top).format("qcow2");
    snapshots.take("one").unwrap();
    assert_eq!(snapshots.list().unwrap().len(), 1);
    let chosen = opener(References::Deny).snapshot(SnapshotName::IdOrName("one".into()));
    let error = chosen.open(&top, Some("qcow2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

/// Another program makes the name a link and a file again, as fast as it can.
#[test]
fn name_that_becomes_a_link_while_it_is_opened_never_shows_the_secret() {
    let folder = Folder::new();
    folder.write("secret", &disk("1M:S"));
    std::fs::create_dir(folder.path("images")).unwrap();
    let top = overlay(&folder, "images/top.qcow2", "base.raw");
    let base = disk("1M:A");
    let base = base.bytes();
    let secret = std::fs::read(folder.path("secret")).unwrap()[0];
    assert_ne!(base[0], secret);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (new, name) = (folder.path("new"), folder.path("images/base.raw"));
            while !over.load(Ordering::Relaxed) {
                std::fs::write(&new, &base[..4096]).unwrap();
                std::fs::rename(&new, &name).unwrap();
                symlink("../secret", &new).unwrap();
                std::fs::rename(&new, &name).unwrap();
            }
        });
        let (mut opened, mut refused) = (0, 0);
        for nth in 0..1_000_000 {
            // Who gets to run when is not ours to say: sooner or later it was both.
            if nth >= 3000 && opened > 0 && refused > 0 {
                break;
            }
            match open(&top, References::SameDirectory) {
                Ok(chain) => {
                    assert_eq!(first_byte(&chain), base[0]);
                    opened += 1;
                }
                Err(error) if error.kind() == ErrorKind::Denied => refused += 1,
                // Not there yet.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error:?}"),
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(opened > 0 && refused > 0, "{opened} {refused}");
    });
}
