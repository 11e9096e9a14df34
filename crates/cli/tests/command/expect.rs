//! Images that look like something else, and `--expect`, which will not have them.

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

fn info(folder: &Folder, line: &str) -> Value {
    let line = format!("info --output=json {line}");
    serde_json::from_str(&folder.goldsmith_ok(&line)).unwrap()
}

fn names(info: &Value, key: &str) -> Vec<String> {
    let names = info[key].as_array().cloned().unwrap_or_default();
    let name = |name: Value| name.as_str().unwrap().to_owned();
    names.into_iter().map(name).collect()
}

/// What qemu-img makes, taken for a disk.
#[test]
fn raw_disk_that_begins_as_an_image_is_told() {
    let folder = Folder::new();
    for format in [
        "qcow2",
        "vpc",
        "vhdx",
        "vmdk",
        "vdi",
        "qed",
        "parallels",
        "qcow",
    ] {
        folder.qemu_img_ok(&format!("create -q -f {format} image 1M"));
        let found = info(&folder, "-f raw image");
        let expected = match format {
            // The first version of qcow2's mark.
            "qcow" => "qcow2",
            format => format,
        };
        assert_eq!(names(&found, "content-looks-like"), [expected], "{format}");
        // The file is the disk.
        assert!(found.get("also-looks-like").is_none(), "{format}");
        let text = folder.goldsmith_ok("info -f raw image");
        assert!(
            text.contains(&format!("The disk looks like: {expected}\n")),
            "{text}"
        );
    }
    let luks =
        "create -q -f luks --object secret,id=s,data=x -o key-secret=s,iter-time=10 image 1M";
    folder.qemu_img_ok(luks);
    assert_eq!(
        names(&info(&folder, "-f raw image"), "content-looks-like"),
        ["luks"]
    );

    // [ECMA-119 8.4] A primary volume descriptor in sector 16, and a footer at the very end.
    let mut disk = vec![0; 1 << 20];
    disk[16 * 2048..][..6].copy_from_slice(b"\x01CD001");
    std::fs::write(folder.path("image"), &disk).unwrap();
    assert_eq!(
        names(&info(&folder, "image"), "content-looks-like"),
        ["iso"]
    );
    let end = disk.len() - 512;
    disk[end..][..4].copy_from_slice(b"koly");
    std::fs::write(folder.path("image"), &disk).unwrap();
    assert_eq!(
        names(&info(&folder, "image"), "content-looks-like"),
        ["iso", "dmg"]
    );
}

#[test]
fn image_in_an_image_of_any_format_is_told() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw inner");
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c "),
        ("vpc", "-o force_size=on "),
    ] {
        folder.qemu_img_ok(&format!("convert -f raw -O {format} {options}inner outer"));
        let found = info(&folder, "outer");
        assert_eq!(names(&found, "content-looks-like"), ["qcow2"], "{format}");
        assert!(found.get("also-looks-like").is_none(), "{format}");
    }
    // What cannot be read tells nothing, and is no error.
    folder.qemu_img_ok(
        "convert -f raw -O qcow2 --object secret,id=s,data=x -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 inner outer",
    );
    assert!(info(&folder, "outer").get("content-looks-like").is_none());
}

/// A fixed VHD begins with whatever the guest wrote there.
#[test]
fn file_that_two_formats_accept_is_told_and_not_guessed() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw inner");
    folder.qemu_img_ok("convert -f raw -O vpc -o subformat=fixed,force_size=on inner both");
    for (format, other) in [("vpc", "qcow2"), ("qcow2", "vpc")] {
        let found = info(&folder, &format!("-f {format} both"));
        assert_eq!(names(&found, "also-looks-like"), [other], "{format}");
        let text = folder.goldsmith_ok(&format!("info -f {format} both"));
        assert!(
            text.contains(&format!("The file also looks like: {other}\n")),
            "{text}"
        );
    }
    let found = info(&folder, "-f raw both");
    assert_eq!(names(&found, "content-looks-like"), ["qcow2", "vpc"]);
    for line in [
        "info both",
        "info --expect vpc both",
        "info --expect qcow2 both",
        "info -f qcow2 --expect qcow2 both",
        "convert --expect vpc -O raw both out",
    ] {
        let done = folder.goldsmith(line);
        assert_eq!((done.status, &*done.stdout), (1, ""), "{line}");
        for format in ["qcow2", "vpc"] {
            assert!(done.stderr.contains(format), "{line}: {done:?}");
        }
    }
    assert!(!folder.path("out").exists());
}

#[test]
fn what_was_not_expected_is_refused_by_both_names() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    folder.qemu_img_ok("convert -f raw -O vpc -o subformat=fixed,force_size=on disk.raw disk.vhd");
    folder.qemu_img_ok("create -q -f vmdk disk.vmdk 1M");
    let before = std::fs::read(folder.path("disk.qcow2")).unwrap();
    for (line, expected, found) in [
        ("info --expect vpc disk.qcow2", "vpc", "qcow2"),
        ("info --expect raw disk.qcow2", "raw", "qcow2"),
        ("info -f raw --expect raw disk.qcow2", "raw", "qcow2"),
        ("info -f raw --expect qcow2 disk.qcow2", "qcow2", "raw"),
        ("info --expect raw disk.vmdk", "raw", "vmdk"),
        ("info --expect qcow2 disk.raw", "qcow2", "raw"),
        ("info --expect raw disk.vhd", "raw", "vpc"),
        ("convert --expect raw -O raw disk.qcow2 out", "raw", "qcow2"),
        (
            "convert -f raw --expect raw -O raw disk.vhd out",
            "raw",
            "vpc",
        ),
        ("check --expect vpc disk.qcow2", "vpc", "qcow2"),
        ("measure --expect vpc disk.qcow2", "vpc", "qcow2"),
        ("compare --expect vpc disk.qcow2 disk.qcow2", "vpc", "qcow2"),
        ("map --expect vpc disk.qcow2", "vpc", "qcow2"),
        ("bench -c 1 --expect vpc disk.qcow2", "vpc", "qcow2"),
        ("resize --expect raw disk.qcow2 2M", "raw", "qcow2"),
        ("resize -f raw --expect raw disk.qcow2 2M", "raw", "qcow2"),
        ("snapshot --expect vpc -c one disk.qcow2", "vpc", "qcow2"),
    ] {
        let done = folder.goldsmith(line);
        let status = if line.starts_with("compare") { 2 } else { 1 };
        assert_eq!(
            (done.status, &*done.stdout),
            (status, ""),
            "{line}: {done:?}"
        );
        let why = format!("expected to be {expected}, and it ");
        assert!(done.stderr.contains(&why), "{line}: {done:?}");
        assert!(done.stderr.trim_end().ends_with(found), "{line}: {done:?}");
    }
    assert!(!folder.path("out").exists());
    assert!(before == std::fs::read(folder.path("disk.qcow2")).unwrap());
}

/// Also a file that nobody else would look at twice: an image of a CD is a raw disk.
#[test]
fn what_was_expected_is_opened_as_that() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    folder.qemu_img_ok("convert -f raw -O vpc -o subformat=fixed,force_size=on disk.raw disk.vhd");
    let mut cd = vec![0; 1 << 20];
    cd[16 * 2048..][..6].copy_from_slice(b"\x01CD001");
    std::fs::write(folder.path("cd.iso"), cd).unwrap();
    for (image, expected, format) in [
        ("disk.raw", "raw", "raw"),
        ("cd.iso", "raw", "raw"),
        ("disk.qcow2", "qcow2", "qcow2"),
        ("disk.vhd", "vhd", "vpc"),
        ("disk.vhd", "vpc", "vpc"),
    ] {
        let found = info(&folder, &format!("--expect {expected} {image}"));
        assert_eq!(found["format"], format, "{image}");
        folder.goldsmith_ok(&format!("convert --expect {expected} -O raw {image} out"));
    }
    // The files behind it have a format that the image states.
    folder.qemu_img_ok("create -q -f qcow2 -b disk.raw -F raw top.qcow2");
    folder.goldsmith_ok("convert --expect qcow2 -O raw top.qcow2 out");
    folder.qemu_img_ok("compare -f raw -F raw disk.raw out");
    // Nobody guessed.
    let said = folder.goldsmith_ok("resize --expect raw disk.raw 2M");
    assert_eq!(said, "Image resized.\n");
    let done = folder.goldsmith("info --expect vhdx disk.raw");
    assert!(
        done.status == 1 && done.stderr.contains("unknown format 'vhdx'"),
        "{done:?}"
    );
}
