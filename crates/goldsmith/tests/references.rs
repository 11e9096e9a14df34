//! What an image may pull in, and what it may not.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;

use goldsmith::{
    Chain, ErrorKind, Limits, NewSize, Opener, References, Resize, Result, SnapshotName,
};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::Folder;

fn overlay(folder: &Folder, name: &str, backing: &str) -> std::path::PathBuf {
    overlay_of(folder, name, backing, "raw")
}

fn overlay_of(folder: &Folder, name: &str, backing: &str, format: &str) -> std::path::PathBuf {
    let path = folder.path(name);
    let image = path.to_str().unwrap();
    qemu::img_ok(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, image, "1M",
    ]);
    path
}

fn open(path: &Path, references: References) -> Result<Chain> {
    Opener::new()
        .references(references)
        .open(path, Some("qcow2"))
}

fn denied(path: &Path, references: References) -> String {
    let error = open(path, references).expect_err("it was opened");
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

/// An overlay whose backing file has any name. QEMU itself wants to look behind some of them, so
/// the name is set afterwards.
fn overlay_named(folder: &Folder, name: &str) -> std::path::PathBuf {
    let stand_in = "x".repeat(name.len());
    let top = overlay(folder, "top.qcow2", &stand_in);
    let mut bytes = std::fs::read(&top).unwrap();
    let at = bytes
        .windows(name.len())
        .position(|part| part == stand_in.as_bytes())
        .unwrap();
    bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
    std::fs::write(&top, bytes).unwrap();
    top
}

#[test]
fn name_of_another_kind_than_a_file_is_never_followed() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("1M:A"));
    for name in [
        r#"json:{"driver":"raw"}"#,
        r#"json:{"driver":"nbd","host":"localhost"}"#,
        r#"json:{"driver":"qcow2","file.filename":"base.raw"}"#,
        "nbd://localhost/x",
        "fat:rw:.",
    ] {
        let top = overlay_named(&folder, name);
        let error = open(&top, References::Allow).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
    }
}

#[test]
fn every_spelling_of_a_file_is_that_file() {
    let folder = Folder::new();
    let base = disk("300k:A 700k:b 24k:-");
    folder.write("base.raw", &base);
    let absolute = folder.text("base.raw");
    for name in [
        "././base.raw",
        "file:base.raw",
        &format!("file:{absolute}"),
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}"#,
        r#"json:{"file.driver":"file","file.filename":"base.raw"}"#,
        &format!(r#"json:{{"driver":"raw","file.filename":"{absolute}"}}"#),
    ] {
        let top = overlay_named(&folder, name);
        denied(&top, References::Deny);
        let chain = open(&top, References::SameDirectory).unwrap();
        let mut ours = vec![0; base.len() as usize];
        chain.read_at(0, &mut ours).unwrap();
        assert!(ours == base.bytes(), "{name}");
        // QEMU looks for relative names where it runs.
        let mut qemu = std::process::Command::new("qemu-img");
        qemu.args(["convert", "-f", "qcow2", "-O", "raw", "top.qcow2", "theirs"]);
        assert!(
            qemu.current_dir(folder.path(""))
                .status()
                .unwrap()
                .success()
        );
        assert!(
            std::fs::read(folder.path("theirs")).unwrap() == ours,
            "{name}"
        );
    }
    for name in [
        "file:../base.raw",
        r#"json:{"file.filename":"../base.raw"}"#,
        r#"json:{"file.filename":"/base.raw"}"#,
    ] {
        denied(&overlay_named(&folder, name), References::SameDirectory);
    }
}

#[test]
fn data_file_is_opened_only_if_the_policy_says_so() {
    let folder = Folder::new();
    let image = folder.path("image.qcow2");
    let create = |data: &str| {
        let options = format!("data_file={data},data_file_raw=on");
        let image = image.to_str().unwrap();
        qemu::img_ok(&["create", "-q", "-f", "qcow2", "-o", &options, image, "1M"]);
        qemu::io_ok(image, "qcow2", &["write -P 7 100k 300k"]);
    };
    std::fs::create_dir(folder.path("inner")).unwrap();
    create(&folder.text("inner/data"));
    assert!(denied(&image, References::Deny).contains("needs the data file"));
    let report = denied(&image, References::SameDirectory);
    assert!(
        report.contains("is not in the directory of the image"),
        "{report}"
    );
    open(&image, References::Allow).unwrap();

    create(&folder.text("data"));
    denied(&image, References::Deny);
    let chain = open(&image, References::SameDirectory).unwrap();
    let mut ours = vec![0; 1 << 20];
    chain.read_at(0, &mut ours).unwrap();
    assert!(std::fs::read(folder.path("data")).unwrap() == ours);
    assert!(ours.contains(&7));
    // What is denied for an image is denied for one behind it.
    let top = overlay_of(&folder, "top.qcow2", "image.qcow2", "qcow2");
    let report = denied(&top, References::Deny);
    assert!(
        report.contains("needs the backing file 'image.qcow2'"),
        "{report}"
    );
    assert_eq!(
        open(&top, References::SameDirectory)
            .unwrap()
            .layers()
            .len(),
        2
    );
    std::fs::rename(folder.path("data"), folder.path("inner/data")).unwrap();
    std::os::unix::fs::symlink("inner/data", folder.path("data")).unwrap();
    for path in [&top, &image] {
        let report = denied(path, References::SameDirectory);
        assert!(report.contains("data' is a symbolic link"), "{report}");
        open(path, References::Allow).unwrap();
    }
}

#[test]
fn snapshot_is_found_by_id_and_by_name() {
    let folder = Folder::new();
    let path = folder.path("image.qcow2");
    let image = path.to_str().unwrap();
    qemu::img_ok(&["create", "-q", "-f", "qcow2", image, "1M"]);
    for (byte, name) in [("1", "2"), ("2", "one"), ("3", "one")] {
        qemu::io_ok(image, "qcow2", &[&format!("write -P {byte} 0 64k")]);
        qemu::img_ok(&["snapshot", "-c", name, image]);
    }
    let first_byte = |name: SnapshotName| {
        let chain = Opener::new().snapshot(name).open(&path, Some("qcow2"))?;
        let mut byte = [0];
        chain.read_at(0, &mut byte).map(|()| byte[0])
    };
    let either = |text: &str| first_byte(SnapshotName::IdOrName(text.into()));
    let both = |id: Option<&str>, name: Option<&str>| {
        let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
        first_byte(SnapshotName::Exactly { id, name })
    };
    assert_eq!(either("2").unwrap(), 2);
    assert_eq!(either("one").unwrap(), 2);
    assert_eq!(both(None, Some("2")).unwrap(), 1);
    assert_eq!(both(Some("3"), None).unwrap(), 3);
    assert_eq!(both(Some("3"), Some("one")).unwrap(), 3);
    let error = both(Some("1"), Some("one")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.report().ends_with(
        "Can't find snapshot with the id '1' and the name 'one'; the image has 1 (2), 2 (one), \
         3 (one)"
    ));
    either("four").unwrap_err();
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

/// By its own name, by another spelling of it, and by another name of the file.
#[test]
fn image_that_stands_behind_itself_is_corrupt() {
    let folder = Folder::new();
    let image = folder.path("self.qcow2");
    let absolute = folder.text("self.qcow2");
    for name in [
        "self.qcow2",
        "./self.qcow2",
        "file:self.qcow2",
        &absolute,
        "hard.qcow2",
        "soft.qcow2",
    ] {
        let _ = std::fs::remove_file(&image);
        std::fs::rename(overlay_named(&folder, name), &image).unwrap();
        for other in ["hard.qcow2", "soft.qcow2"] {
            let _ = std::fs::remove_file(folder.path(other));
        }
        std::fs::hard_link(&image, folder.path("hard.qcow2")).unwrap();
        std::os::unix::fs::symlink("self.qcow2", folder.path("soft.qcow2")).unwrap();
        let error = open(&image, References::Allow).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        let report = error.report();
        assert!(report.contains("is already part of the chain"), "{report}");
    }
}

#[test]
fn image_that_is_its_own_data_file_is_corrupt() {
    let folder = Folder::new();
    let (image, data) = (folder.text("image.qcow2"), folder.text("other.qcow2"));
    let options = format!("data_file={data}");
    qemu::img_ok(&["create", "-q", "-f", "qcow2", "-o", &options, &image, "1M"]);
    std::fs::remove_file(&data).unwrap();
    std::fs::hard_link(&image, &data).unwrap();
    let error = open(Path::new(&image), References::Allow).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.report().contains("is the image itself"), "{error:?}");

    // And it is not written to as if it were.
    let before = std::fs::read(&image).unwrap();
    let opener = Opener::new().references(References::Allow);
    let resize = Resize::new(&image, NewSize::Exactly(2 << 20)).opener(opener);
    let error = resize.run().unwrap_err();
    assert!(error.report().contains("is the image itself"), "{error:?}");
    assert!(std::fs::read(&image).unwrap() == before);
}

/// 300 images, each over the next one, of which the last holds the only byte.
#[test]
fn chain_of_300_images_is_refused_unless_it_is_asked_for() {
    let folder = Folder::new();
    let bottom = folder.write("disk.raw", &disk("512k:- 512:A 523776:- 1M:-"));
    let name = |depth: u32| format!("{depth:03}.qcow2");
    support::convert((&bottom, "raw"), (&folder.path(&name(0)), "qcow2"))
        .run()
        .unwrap();
    overlay_of(&folder, &name(1), &name(0), "qcow2");
    let template = std::fs::read(folder.path(&name(1))).unwrap();
    let at = template.windows(9).position(|bytes| bytes == b"000.qcow2");
    let at = at.unwrap();
    for depth in 2..300 {
        let mut image = template.clone();
        image[at..at + 9].copy_from_slice(name(depth - 1).as_bytes());
        std::fs::write(folder.path(&name(depth)), image).unwrap();
    }
    let top = folder.path(&name(299));
    let error = open(&top, References::SameDirectory).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);
    let report = error.report();
    assert!(report.contains("longer than 200 images"), "{report}");

    let mut limits = Limits::default();
    limits.chain_depth = 300;
    let opener = Opener::new()
        .references(References::SameDirectory)
        .limits(limits);
    let chain = opener.open(&top, Some("qcow2")).unwrap();
    assert_eq!(chain.layers().len(), 300);
    let mut bytes = vec![1; chain.virtual_size() as usize];
    chain.read_at(0, &mut bytes).unwrap();
    assert!(bytes == std::fs::read(bottom).unwrap()[..bytes.len()]);
    let data = goldsmith::map(&chain).find(|entry| entry.as_ref().is_ok_and(|it| it.data));
    assert_eq!(data.unwrap().unwrap().depth, 299);
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
