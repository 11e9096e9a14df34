//! `goldsmith convert` with `--digest`, `--file-digest` and `--verify`

use std::process::Command;

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 3M:- 512k:b 64k:0 512:C"));
    folder
}

fn tool(folder: &Folder, tool: &str, name: &str) -> String {
    let done = folder.run(Command::new(tool).arg(name));
    assert_eq!(done.status, 0, "{done:?}");
    done.stdout.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn digests_are_those_of_the_tools_and_the_summary_tells_them() {
    let folder = folder();
    let content = ["sha256sum", "md5sum"].map(|it| tool(&folder, it, "disk.raw"));
    for format in ["raw", "qcow2", "qcow2 -c", "vpc", "vpc -o subformat=fixed"] {
        let line = "--verify --digest sha256,md5 --file-digest sha512 disk.raw target";
        let said = folder.goldsmith_ok(&format!("convert -f raw -O {format} {line}"));
        let file = tool(&folder, "sha512sum", "target");
        let [sha256, md5] = &content;
        assert_eq!(
            said,
            format!(
                "disk sha256: {sha256}\ndisk md5: {md5}\nfile sha512: {file}\n\
                 verified: the target was read back and holds this disk\n"
            ),
            "{format}"
        );
    }
    let said = folder.goldsmith_ok("convert -f raw -O qcow2 --verify disk.raw target");
    let done = folder.run(Command::new("fsverity").args(["digest", "--compact", "disk.raw"]));
    assert_eq!(
        said,
        format!(
            "disk fsverity: {}\nverified: the target was read back and holds this disk\n",
            done.stdout.trim()
        )
    );
    let line = "convert -q -f raw -O qcow2 --verify --digest md5 disk.raw target";
    assert_eq!(folder.goldsmith_ok(line), "");
}

/// The disk ends before the device, which keeps what it has behind. Only where loop devices are to be
/// had, as for all tests of devices.
#[test]
fn disk_on_a_larger_device_is_verified_without_what_stands_behind_it() {
    let folder = folder();
    let (disk, backing) = (folder.path("disk.raw"), folder.path("backing"));
    let disk = std::fs::read(disk).unwrap();
    std::fs::write(
        &backing,
        vec![7; disk.len() + 4096 - disk.len() % 4096 + 4096],
    )
    .unwrap();
    let line = "convert -f raw --verify --digest sha256 --file-digest sha256 disk.raw";
    let written = folder.on_device("backing", |device| {
        let done = folder.goldsmith(&format!("{line} {device}"));
        let json = folder.goldsmith(&format!("{line} --output=json {device}"));
        (done, json)
    });
    let Some((done, json)) = written else {
        return;
    };

    let sha256 = tool(&folder, "sha256sum", "disk.raw");
    let said = format!(
        "disk sha256: {sha256}\nfile sha256: {sha256}\n\
         verified: the target was read back and holds this disk\n"
    );
    assert_eq!((&*done.stderr, &*done.stdout), ("", &*said));
    let facts: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(facts["file-length"], disk.len());
    let written = std::fs::read(backing).unwrap();
    let (front, rest) = written.split_at(disk.len());
    assert!(front == disk);
    assert!(rest.iter().all(|byte| *byte == 7), "the rest of the device");
}

#[test]
fn summary_for_programs_is_one_line() {
    let folder = folder();
    // A disk that Azure takes only when it has grown.
    let line = "convert -f raw --for azure --digest sha256 --file-digest md5,crc32 --output=json";
    let said = folder.goldsmith_ok(&format!("{line} disk.raw target"));
    assert_eq!(said.lines().count(), 1);
    let facts: Value = serde_json::from_str(&said).unwrap();
    let keys: Vec<_> = facts.as_object().unwrap().keys().collect();
    let expected = [
        "virtual-size",
        "file-length",
        "data",
        "digests",
        "file-digests",
        "verified",
        "warnings",
    ];
    assert_eq!(keys, expected);
    assert_eq!(facts["virtual-size"], 20 << 20);
    assert_eq!(facts["file-length"], (20 << 20) + 512);
    assert_eq!(facts["verified"], false);
    let warning = facts["warnings"][0].as_str().unwrap();
    assert!(warning.contains("the disk grew by"), "{warning}");
    folder.qemu_img_ok("convert -f vpc -O raw target back.raw");
    assert_eq!(
        facts["digests"]["sha256"],
        *tool(&folder, "sha256sum", "back.raw")
    );
    assert_eq!(
        facts["file-digests"]["md5"],
        *tool(&folder, "md5sum", "target")
    );
    let checksum = folder.goldsmith_ok("checksum -f raw --digest crc32 target");
    let crc32 = facts["file-digests"]["crc32"].as_str().unwrap();
    assert_eq!(checksum, format!("{crc32}  target\n"));

    let done = folder.goldsmith(&format!("{line} -p disk.raw none"));
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("--progress=json"), "{done:?}");
    assert!(!folder.path("none").exists());
}

/// [VPC] Of a size that no geometry has, a disk becomes the next one that has.
#[test]
fn outcome_tells_the_size_and_the_digest_of_the_disk_that_was_made() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("6M:A"));
    for more in ["", " --dry-run"] {
        let line = "convert -f raw -O vpc -o force_size=off --digest sha256 --output json";
        let said = folder.goldsmith_ok(&format!("{line}{more} disk.raw disk.vhd"));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        if more.is_empty() {
            folder.qemu_img_ok("convert -f vpc -O raw disk.vhd out.raw");
        }
        let len = std::fs::metadata(folder.path("out.raw")).unwrap().len();
        assert!(len > 6 << 20, "{len}");
        assert_eq!(said["virtual-size"], len, "{said}");
        let sum = folder.run(std::process::Command::new("sha256sum").arg("out.raw"));
        let sum = sum.stdout.split(' ').next().unwrap();
        assert!(said.to_string().contains(sum), "{said}: {sum}");
    }
}
