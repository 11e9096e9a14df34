//! `goldsmith rebase`

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

/// A chain of three, and other images to be based on: of other content, shorter and longer.
fn chain() -> Twins {
    Twins::new(|folder| {
        folder.write("base", &disk("512k:B 256k:- 232k:b"));
        folder.write("other", &disk("128k:B 64k:x 320k:B 256k:x 232k:b"));
        folder.write("short", &disk("300k:B"));
        folder.write("long", &disk("2M:L"));
        folder.qemu_img_ok("create -q -f qcow2 -b base -F raw middle");
        folder.qemu_io(
            "middle",
            &[
                "write -P 2 128k 128k",
                "write -z 64k 64k",
                "write -P 2 600k 9k",
            ],
        );
        folder.qemu_img_ok("create -q -f qcow2 -b middle -F qcow2 top");
        folder.qemu_io("top", &["write -P 3 200k 128k", "write -z 600k 64k"]);
        folder.qemu_img_ok("create -q -f qcow2 top.raw.qcow2 1M");
    })
}

#[test]
fn guest_sees_the_same_disk_over_any_backing_file() {
    for line in [
        "rebase -b base -F raw top",
        "rebase -f qcow2 -b other -F raw top",
        "rebase -b short -F raw -t none -T writeback top",
        "rebase -b long -F raw top",
        "rebase -b  top",
        "rebase -b other -F raw middle",
        "rebase -b  middle",
        "rebase -b base -F raw top.raw.qcow2",
        "rebase -b middle -F qcow2 top",
    ] {
        let twins = chain();
        let image = line.rsplit(' ').next().unwrap();
        let before = twins.ours.path("before");
        twins
            .ours
            .qemu_img_ok(&format!("convert -O raw {image} before"));
        twins.both(line);
        twins.same(image, "qcow2");
        twins
            .ours
            .qemu_img_ok(&format!("compare -F raw -f qcow2 {image} before"));
        std::fs::remove_file(before).unwrap();
    }
}

#[test]
fn nothing_is_written_that_both_chains_show() {
    let twins = chain();
    twins
        .ours
        .qemu_img_ok("create -q -f qcow2 -b base -F raw child");
    twins.ours.goldsmith_ok("rebase -b other -F raw child");
    let map = twins.ours.qemu_img_ok("map --output=json -f qcow2 child");
    let own = map.lines().filter(|line| line.contains("\"depth\": 0"));
    let own: Vec<_> = own.collect();
    assert_eq!(own.len(), 2, "{map}");
    assert!(own[0].contains("\"start\": 131072, \"length\": 65536"));
    assert!(own[1].contains("\"start\": 524288, \"length\": 262144"));
}

#[test]
fn only_the_name_changes_if_nobody_is_to_look() {
    for line in [
        "rebase -u -b nothing -F qcow2 top",
        "rebase -u -b base -F raw top",
        "rebase -u -b base -F vmdk top",
        "rebase -u -b  top",
        "rebase -u top",
        "rebase -u -f qcow2 -b a/longer/name/that/stands/elsewhere -F raw top",
    ] {
        let twins = chain();
        twins.both(line);
        let info = |folder: &crate::Folder| {
            let info = folder.qemu_img_ok("info -f qcow2 top");
            let lines = info.lines().filter(|line| line.starts_with("backing file"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(info(&twins.ours), info(&twins.theirs), "{line}");
        let map = "map --output=json -f qcow2 top";
        if !["nothing", "elsewhere", "vmdk"]
            .iter()
            .any(|it| line.contains(it))
        {
            twins.same("top", "qcow2");
            assert!(twins.ours.qemu_img(map).status == 0);
        }
    }
}

#[test]
fn image_that_cannot_be_based_there_stays_as_it_is() {
    let twins = chain();
    for (line, hint) in [
        (
            "rebase top",
            "Must specify backing file (-b) or use unsafe mode (-u)",
        ),
        ("rebase", "IMAGE"),
        (
            "rebase -b nothing -F qcow2 top",
            "No such file or directory",
        ),
        ("rebase -b base top", "backing format must be specified"),
        ("rebase -u -b base top", "backing format must be specified"),
        ("rebase -u -b base -F qcow3 top", "qcow3"),
        ("rebase -b top -F qcow2 top", "stand behind itself"),
        ("rebase -b top -F qcow2 middle", "stand behind itself"),
        (
            "rebase -b other -F raw -f raw base",
            "raw images have no backing file",
        ),
        ("rebase -t lazily -b base -F raw top", "lazily"),
    ] {
        twins.neither(line, hint);
        for (name, format) in [("base", "raw"), ("middle", "qcow2"), ("top", "qcow2")] {
            twins.same(name, format);
        }
    }
    // Not as qemu-img, which makes an image that nothing can open.
    let refused = twins.ours.goldsmith("rebase -u -b top -F qcow2 top");
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("its own backing file"),
        "{refused:?}"
    );
    // What it holds stands there, and would show where it holds nothing.
    let ours = &twins.ours;
    ours.qemu_img_ok("create -q -f qcow2 -o data_file=data apart 1M");
    ours.qemu_img_ok("create -q -f qcow2 -F raw -b data over.apart");
    for line in [
        "rebase -b data -F raw apart",
        "rebase -b over.apart -F qcow2 apart",
    ] {
        let refused = ours.goldsmith(line);
        assert_eq!(refused.status, 1);
        assert!(
            refused.stderr.contains("stand behind itself"),
            "{refused:?}"
        );
    }
}

#[test]
fn rehearsal_counts_what_would_be_written() {
    let twins = chain();
    let said = twins.rehearsed("rebase -f qcow2 -b short -F raw middle");
    assert!(said.contains("middle: write the header"), "{said}");
    assert!(
        said.ends_with(" bytes of guest data to be written\n"),
        "{said}"
    );
}

#[test]
fn what_is_copied_is_compressed_if_wanted() {
    for line in [
        "rebase -c -b  top",
        "rebase -f qcow2 -c -b other -F raw top",
        "rebase --compress -b short -F raw middle",
        "rebase -u -c -b  top",
    ] {
        let twins = chain();
        let image = line.rsplit(' ').next().unwrap();
        twins.both(line);
        twins.same(image, "qcow2");
        let compressed = |folder: &crate::Folder| {
            let check = format!("check --output=json -f qcow2 {image}");
            let check = folder.qemu_img_ok(&check);
            let check: serde_json::Value = serde_json::from_str(&check).unwrap();
            check["compressed-clusters"].as_u64().unwrap_or(0)
        };
        // QEMU also copies what is the same.
        let [ours, theirs] = [&twins.ours, &twins.theirs].map(compressed);
        assert!(
            ours <= theirs && (ours == 0) == (theirs == 0),
            "{line}: {ours} {theirs}"
        );
    }
    let twins = Twins::new(|folder| {
        folder.write("base", &disk("1M:B"));
        folder.write("other", &disk("1M:o"));
        let options = "-o data_file=data -b base -F raw";
        folder.qemu_img_ok(&format!("create -q -f qcow2 {options} split"));
    });
    twins.neither("rebase -c -b other -F raw split", "in a data file");
    let said = chain().rehearsed("rebase -c -f qcow2 -b short -F raw middle");
    assert!(
        said.ends_with(" bytes of guest data to be written\n"),
        "{said}"
    );
}

/// The head of the image becomes longer, for which its first block has to make room, and shorter again.
#[test]
fn vhd_that_gets_a_parent_and_loses_it_has_nothing_to_mend() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("6M:A"));
    folder.write("base.raw", &disk("6M:b"));
    folder.qemu_img_ok("convert -f raw -O vpc -o force_size=on disk.raw disk.vhd");
    for base in ["base.raw -F raw", ""] {
        // An empty word is no parent.
        folder.goldsmith_ok(&format!("rebase -q -f vpc -b {base} disk.vhd"));
        folder.goldsmith_ok("check -q -f vpc disk.vhd");
    }
    folder.qemu_img_ok("compare -f vpc -F raw disk.vhd disk.raw");
}
