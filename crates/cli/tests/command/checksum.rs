//! `goldsmith checksum`, held against the tools that print digests of files

use std::fs::File;
use std::process::Command;

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

/// What prints a digest of a file as the first word of a line, but for these first letters.
const TOOLS: [(&str, &[&str], &str); 6] = [
    ("fsverity", &["fsverity", "digest"], "sha256:"),
    ("blake3", &["b3sum"], ""),
    ("sha256", &["sha256sum"], ""),
    ("sha512", &["sha512sum"], ""),
    ("md5", &["md5sum"], ""),
    (
        "crc32",
        &[
            "python3",
            "-c",
            "import sys, zlib; print('%08x' % zlib.crc32(open(sys.argv[1], 'rb').read()))",
        ],
        "",
    ),
];

/// All digests of a file, by the tools.
fn by_tools(folder: &Folder, name: &str) -> Vec<(&'static str, String)> {
    let digest = |(algorithm, words, before): (&'static str, &[&str], &str)| {
        let done = folder.run(Command::new(words[0]).args(&words[1..]).arg(name));
        assert_eq!(done.status, 0, "{done:?}");
        let digest = done.stdout.split_whitespace().next().unwrap();
        (algorithm, digest.strip_prefix(before).unwrap().to_owned())
    };
    TOOLS.map(digest).to_vec()
}

#[test]
fn digests_are_those_that_the_tools_print_of_the_raw_disk() {
    let folder = Folder::new();
    // A length of no round size, data that packs and data that does not.
    folder.write(
        "disk.raw",
        &disk("1M:A 3M:- 512k:b 64k:0 70M:- 300k:C 9M:d 512:E"),
    );
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw plain.qcow2");
    folder.qemu_img_ok("convert -c -f raw -O qcow2 disk.raw packed.qcow2");
    folder.qemu_img_ok("convert -S 0 -f raw -O qcow2 disk.raw dense.qcow2");
    folder.qemu_img_ok("convert -f raw -O vpc -o force_size disk.raw dynamic.vhd");
    folder.qemu_img_ok("create -q -f qcow2 -b packed.qcow2 -F qcow2 top.qcow2");
    let tools = by_tools(&folder, "disk.raw");
    for image in [
        "-f raw disk.raw",
        "-f qcow2 plain.qcow2",
        "-f qcow2 packed.qcow2",
        "-f qcow2 dense.qcow2",
        "-f vpc dynamic.vhd",
        "-f qcow2 top.qcow2",
        "-m 1 -f qcow2 packed.qcow2",
        "--image-opts driver=qcow2,file.filename=plain.qcow2",
    ] {
        let name = image.rsplit([' ', '=']).next().unwrap();
        for (algorithm, digest) in &tools {
            let said = folder.goldsmith_ok(&format!("checksum --digest {algorithm} {image}"));
            assert_eq!(said, format!("{digest}  {name}\n"), "{algorithm}");
        }
        let said = folder.goldsmith_ok(&format!("checksum {image}"));
        assert_eq!(said, format!("{}  {name}\n", tools[0].1), "the default");
    }
}

#[test]
fn several_digests_take_one_reading() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:- 1:b"));
    let tools = by_tools(&folder, "disk.raw");
    let names: Vec<_> = tools.iter().map(|(name, _)| *name).collect();
    let line = format!("checksum -f raw --digest {} disk.raw", names.join(","));
    let lines = tools
        .iter()
        .map(|(name, digest)| format!("{name}: {digest}  disk.raw\n"));
    assert_eq!(folder.goldsmith_ok(&line), lines.collect::<String>());

    let said = folder.goldsmith_ok(&format!("{line} --output=json"));
    let facts: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(facts["filename"], "disk.raw");
    assert_eq!(facts["format"], "raw");
    assert_eq!(facts["virtual-size"], (4 << 20) + 1);
    for (name, digest) in tools {
        assert_eq!(facts["digests"][name], digest);
    }
}

/// Hashing so many zeros would take hours.
#[test]
fn tebibytes_of_zeros_cost_nothing() {
    let folder = Folder::new();
    let raw = File::create(folder.path("disk.raw")).unwrap();
    raw.set_len(1 << 43).unwrap();
    folder.qemu_img_ok("create -q -f qcow2 disk.qcow2 8T");
    folder.qemu_img_ok("create -q -f qcow2 -o cluster_size=2M large.qcow2 8T");
    folder.qemu_io("disk.qcow2", &["write -q -P 7 1T 64k"]);
    folder.qemu_io("large.qcow2", &["write -q -P 7 1T 64k"]);
    std::os::unix::fs::FileExt::write_all_at(&raw, &[7; 64 << 10], 1 << 40).unwrap();
    for algorithm in ["fsverity", "crc32"] {
        let digest = |image| {
            let said = folder.goldsmith_ok(&format!("checksum --digest {algorithm} {image}"));
            said.split_once(' ').unwrap().0.to_owned()
        };
        let expected = digest("-f raw disk.raw");
        assert_eq!(digest("-f qcow2 disk.qcow2"), expected);
        assert_eq!(digest("-f qcow2 large.qcow2"), expected);
    }
}

#[test]
fn internal_snapshot_has_digests_of_its_own() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 1M:-"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    folder.qemu_img_ok("snapshot -c before disk.qcow2");
    folder.qemu_io("disk.qcow2", &["write -q -P 1 0 1M"]);
    let digest = |line: &str| {
        let said = folder.goldsmith_ok(&format!("checksum {line}"));
        said.split_once(' ').unwrap().0.to_owned()
    };
    let before = digest("-f raw disk.raw");
    assert_eq!(digest("-f qcow2 -l before disk.qcow2"), before);
    assert_ne!(digest("-f qcow2 disk.qcow2"), before);
}

#[test]
fn damaged_image_has_no_digest() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("4M:A"));
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw disk.qcow2");
    let file = File::options().write(true).open(folder.path("disk.qcow2"));
    file.unwrap().set_len(2 << 20).unwrap();
    let done = folder.goldsmith("checksum -f qcow2 disk.qcow2");
    assert_eq!((done.status, &*done.stdout), (1, ""));
    assert!(done.stderr.contains("guest range"), "{done:?}");
    let done = folder.goldsmith("checksum --digest sha3 -f qcow2 disk.qcow2");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("fsverity, blake3, sha256"), "{done:?}");
}
