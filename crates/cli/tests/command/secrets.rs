//! Edits of encrypted images, and of those whose data stands in a file of its own.

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

const SECRETS: &str = "--object secret,id=s,data=sesame --object secret,id=n,data=barley";
const TOP: &str = "--image-opts driver=qcow2,file.filename=top,encrypt.key-secret=s";

/// An encrypted image over a plain one.
fn encrypted() -> Twins {
    Twins::new(|folder| {
        folder.write("base", &disk("1M:B"));
        folder.write("other", &disk("512k:B 512k:o"));
        let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
        let create = format!("create {SECRETS} -q -f qcow2 -o {options} -b base -F raw top");
        folder.qemu_img_ok(&create);
        let mut io = std::process::Command::new("qemu-io");
        io.args(SECRETS.split(' '))
            .args(["-c", "write -P 7 100k 300k"]);
        let image = TOP.trim_start_matches("--image-opts ");
        assert_eq!(folder.run(io.args(["--image-opts", image])).status, 0);
    })
}

/// What the guest sees in the image that `image` spells, with the secret called `id`.
fn content(folder: &Folder, image: &str) -> Vec<u8> {
    let line = format!("convert {SECRETS} {image} -O raw content.out");
    folder.qemu_img_ok(&line);
    std::fs::read(folder.path("content.out")).unwrap()
}

#[test]
fn encrypted_image_is_edited_as_with_qemu_img() {
    let image = TOP.trim_start_matches("--image-opts ");
    for line in [
        format!("resize {SECRETS} --image-opts {image} 3M"),
        format!("snapshot {SECRETS} -c one --image-opts {image}"),
        format!("rebase {SECRETS} -b  --image-opts {image}"),
        format!("commit {SECRETS} -d --image-opts {image}"),
        format!("commit {SECRETS} --image-opts {image}"),
        format!("check {SECRETS} -q --image-opts {image}"),
    ] {
        let twins = encrypted();
        twins.both(&line);
        let both = [&twins.ours, &twins.theirs].map(|folder| content(folder, TOP));
        assert!(both[0] == both[1], "{line}");
        twins.same("base", "raw");
        let check = format!("check {SECRETS} -q {TOP}");
        twins.ours.qemu_img_ok(&check);
    }
}

#[test]
fn passphrase_changes_as_with_qemu_img() {
    let twins = encrypted();
    let options = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10";
    twins.both(&format!("amend {SECRETS} -o {options} {TOP}"));
    let new = TOP.replace("key-secret=s", "key-secret=n");
    let before = content(&twins.theirs, TOP);
    for image in [TOP, &new] {
        assert!(content(&twins.ours, image) == before, "{image}");
    }
    let options = "encrypt.state=inactive,encrypt.old-secret=s";
    twins.both(&format!("amend {SECRETS} -o {options} {new}"));
    assert!(content(&twins.ours, &new) == before);
    for folder in [&twins.ours, &twins.theirs] {
        let line = format!("convert {SECRETS} {TOP} -O raw content.out");
        assert_eq!(folder.qemu_img(&line).status, 1);
        assert_eq!(folder.goldsmith(&line).status, 1);
    }
}

#[test]
fn wrong_or_missing_passphrase_changes_nothing() {
    let twins = encrypted();
    let before = content(&twins.theirs, TOP);
    let missing = "driver=qcow2,file.filename=top";
    let wrong = TOP.replace("key-secret=s", "key-secret=n");
    for line in [
        format!("rebase {SECRETS} -b  --image-opts {missing}"),
        format!("rebase {SECRETS} -b  {wrong}"),
        format!("commit {SECRETS} {wrong}"),
    ] {
        twins.neither(&line, "goldsmith: ");
        assert!(content(&twins.ours, TOP) == before, "{line}");
    }
}

#[test]
fn image_with_a_data_file_is_edited_as_with_qemu_img() {
    for options in ["data_file=data", "data_file=data,data_file_raw=on"] {
        let twins = Twins::new(|folder| {
            folder.qemu_img_ok(&format!("create -q -f qcow2 -o {options} base 1M"));
            folder.qemu_io("base", &["write -P 1 0 300k"]);
            folder.qemu_img_ok("create -q -f qcow2 -b base -F qcow2 top");
            folder.qemu_io("top", &["write -P 2 200k 300k", "write -z 0 64k"]);
        });
        for line in [
            "commit top",
            "resize -f qcow2 base 3M",
            "resize -f qcow2 --shrink base 1M",
            "amend -f qcow2 -o lazy_refcounts=on base",
            "bitmap -f qcow2 --add base seen",
            "check -q -r all base",
        ] {
            twins.both(line);
            twins.same("base", "qcow2");
            twins.same("top", "qcow2");
        }
        if options.contains("raw") {
            twins.same("data", "raw");
        }
    }
}

/// Also where nothing is stored that would have to be decrypted.
#[test]
fn encrypted_disk_is_not_read_without_its_passphrase() {
    let twins = Twins::new(|folder| {
        folder.write("disk.raw", &disk("1M:-"));
        let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
        folder.qemu_img_ok(&format!(
            "create {SECRETS} -q -f qcow2 -o {options} empty 1M"
        ));
        folder.qemu_img_ok("create -q -f qcow2 -b empty -F qcow2 over");
        folder.qemu_img_ok("create -q -f qcow2 -b disk.raw -F raw plain");
    });
    let why = "and no passphrase was given";
    for line in [
        "convert -O raw empty out",
        "convert -O raw over out",
        "convert -n -O qcow2 disk.raw empty",
        "dd if=empty of=out",
        "compare empty disk.raw",
        "compare disk.raw over",
        "map empty",
        "map over",
        "measure -O raw empty",
        "bench -c 1 empty",
        "commit over",
        "rebase -b  over",
        "rebase -b empty -F qcow2 plain",
    ] {
        twins.neither(line, why);
    }
    let checksum = twins.ours.goldsmith("checksum empty");
    assert_eq!(checksum.status, 1, "{checksum:?}");
    // Whoever only names it does not read it.
    twins.both("create -q -f qcow2 -b empty -F qcow2 another");
    twins.ours.goldsmith_ok("info --backing-chain over");
}
