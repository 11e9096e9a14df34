//! `goldsmith check`

use goldsmith_testkit::build::vhd::Vhd;
use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

/// The outcomes that scripts tell apart, by qemu-img's exit statuses and words.
#[test]
fn outcome_is_told_as_qemu_img_tells_it() {
    let folder = Folder::new();
    let image = Vhd::dynamic(disk("64k:A 64k:B 128k:-").bytes(), 64 << 10);
    let write = |name: &str, image: &Vhd| std::fs::write(folder.path(name), image.bytes()).unwrap();
    write("sound.vhd", &image);
    write("leak.vhd", &image.clone().entry(0, u32::MAX));
    write("bad.vhd", &image.clone().entry(0, 1 << 20));
    folder.write("disk.raw", &disk("1M:A"));

    let sound = "No errors were found on the image.\n\
                 2/4 = 50.00% allocated, 0.00% fragmented, 0.00% compressed clusters\n\
                 Image end offset: 134656\n";
    assert_eq!(folder.goldsmith_ok("check sound.vhd"), sound);
    assert_eq!(folder.goldsmith_ok("check -q -f vpc sound.vhd"), "");
    let json: Value =
        serde_json::from_str(&folder.goldsmith_ok("check --output=json sound.vhd")).unwrap();
    let expected = serde_json::json!({
        "image-end-offset": 134_656,
        "total-clusters": 4,
        "check-errors": 0,
        "allocated-clusters": 2,
        "filename": "sound.vhd",
        "format": "vpc",
    });
    assert_eq!(json, expected);

    let leak = folder.goldsmith("check leak.vhd");
    assert_eq!(leak.status, 3);
    assert!(
        leak.stderr
            .contains("nothing points to 0x800..0x10a00 of the file")
    );
    let text = "\n1 leaked clusters were found on the image.\n\
                This means waste of disk space, but no harm to data.\n1/4 = 25.00% allocated";
    assert!(leak.stdout.starts_with(text), "{leak:?}");

    let bad = folder.goldsmith("check bad.vhd");
    assert_eq!(bad.status, 2);
    assert!(
        bad.stderr
            .starts_with("ERROR block 0 should fill 0x20000000.."),
        "{bad:?}"
    );
    let text = "\n1 errors were found on the image.\n\
                Data may be corrupted, or further writes to the image may corrupt it.\n";
    assert!(bad.stdout.starts_with(text), "{bad:?}");
    let json = folder.goldsmith("check --output=json bad.vhd").stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["corruptions"], 1);
    assert!(json["flaws"][0]["corruption"].is_string());

    let none = folder.goldsmith("check -f raw disk.raw");
    assert_eq!(none.status, 63);
    assert_eq!(
        none.stderr,
        "goldsmith: This image format does not support checks\n"
    );
    assert_eq!(folder.qemu_img("check -f raw disk.raw").status, 63);
    assert_eq!(folder.goldsmith("check -f vpc disk.raw").status, 1);
}

/// Word for word, but for the flaws: those have words of our own, and a list in the JSON.
#[test]
fn qcow2_is_reported_as_qemu_img_reports_it() {
    let folder = Folder::new();
    assert_eq!(
        folder.qemu_img("create -q -f qcow2 new.qcow2 10M").status,
        0
    );
    folder.write("disk.raw", &disk("1M:A 3M:- 1M:b"));
    folder.goldsmith_ok("convert -f raw -O qcow2 -o cluster_size=4k disk.raw disk.qcow2");
    let mut image = std::fs::read(folder.path("disk.qcow2")).unwrap();
    // The refcount table's place, then the first block's, then the refcounts of clusters 2 and 3.
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    image[block + 5] = 0;
    image[block + 7] = 2;
    std::fs::write(folder.path("bad.qcow2"), image).unwrap();
    for (name, status) in [("new", 0), ("disk", 0), ("bad", 2)] {
        for output in ["human", "json"] {
            let line = format!("check --output={output} {name}.qcow2");
            let (ours, theirs) = (folder.goldsmith(&line), folder.qemu_img(&line));
            assert_eq!((ours.status, theirs.status), (status, status));
            if output == "human" {
                assert_eq!(ours.stdout, theirs.stdout);
                continue;
            }
            let mut ours: Value = serde_json::from_str(&ours.stdout).unwrap();
            ours.as_object_mut().unwrap().remove("flaws");
            assert_eq!(ours, serde_json::from_str::<Value>(&theirs.stdout).unwrap());
        }
    }
}
