//! `goldsmith convert` of several sources.

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("a.raw", &disk("64k:A 1M:- 64k:b"));
        folder.write("b.raw", &disk("2M:- 300k:C"));
        folder.write("odd.raw", &disk("64k:A 700:d"));
        folder.qemu_img_ok("create -q -f qcow2 c.qcow2 3M");
        folder.qemu_io("c.qcow2", &["write -P 1 0 100k", "write -z 1M 64k"]);
        folder.qemu_img_ok("snapshot -c one c.qcow2");
        folder.qemu_io("c.qcow2", &["write -P 2 64k 2M"]);
        folder.qemu_img_ok("create -q -f qcow2 -b b.raw -F raw over.qcow2 2560k");
        folder.qemu_io("over.qcow2", &["write -P 3 2M 64k"]);
        folder.qemu_img_ok("convert -c -O qcow2 a.raw packed.qcow2");
    })
}

#[test]
fn disks_follow_each_other_as_in_qemu_img() {
    let twins = images();
    for (line, target, format) in [
        ("a.raw b.raw", "raw.out", "raw"),
        ("-f raw a.raw b.raw a.raw", "three.out", "raw"),
        ("-O qcow2 c.qcow2 over.qcow2 packed.qcow2", "c.out", "qcow2"),
        (
            "-O qcow2 -c -o cluster_size=4k packed.qcow2 b.raw",
            "d.out",
            "qcow2",
        ),
        ("-O vpc -o force_size=on b.raw c.qcow2", "e.out", "vpc"),
        ("-O qcow2 odd.raw b.raw", "odd.out", "qcow2"),
        (
            "-O qcow2 -l snapshot.name=one c.qcow2 c.qcow2",
            "snapshot.out",
            "qcow2",
        ),
        (
            "--image-opts -O qcow2 driver=raw,file.filename=a.raw \
             driver=qcow2,file.filename=c.qcow2",
            "opts.out",
            "qcow2",
        ),
    ] {
        twins.both(&format!("convert {line} {target}"));
        twins.same(target, format);
    }
}

/// Nothing of a hole is read, and nothing of it is written.
#[test]
fn holes_of_every_source_stay_holes() {
    let folder = Folder::new();
    for name in ["a.raw", "b.raw"] {
        let file = std::fs::File::create(folder.path(name)).unwrap();
        file.set_len(1 << 40).unwrap();
    }
    folder.goldsmith_ok("convert -O qcow2 a.raw b.raw a.raw whole.qcow2");
    let map = folder.goldsmith_ok("map --output=json whole.qcow2");
    assert_eq!(map.lines().count(), 1, "{map}");
    assert!(
        map.contains(&format!("\"length\": {}", 3_u64 << 40)),
        "{map}"
    );
    assert!(std::fs::metadata(folder.path("whole.qcow2")).unwrap().len() < 1 << 20);
}

#[test]
fn what_makes_no_sense_with_several_sources_is_refused() {
    let twins = images();
    for (line, why) in [
        (
            "convert -l one -O raw c.qcow2 c.qcow2 out",
            "No support for concatenating multiple snapshot",
        ),
        (
            "convert -O qcow2 -B b.raw -F raw a.raw b.raw out",
            "Having a backing file for the target makes no sense when concatenating",
        ),
        (
            "convert -O qcow2 -o backing_file=b.raw,backing_fmt=raw a.raw b.raw out",
            "Having a backing file for the target makes no sense when concatenating",
        ),
        ("convert a.raw missing.raw out", "missing.raw"),
        ("convert a.raw", "Must specify image file name"),
    ] {
        twins.neither(line, why);
        assert!(!twins.ours.path("out").exists(), "{line}");
    }
    // QEMU writes over what it is about to read.
    let done = twins.ours.goldsmith("convert a.raw b.raw b.raw");
    assert_eq!(done.status, 1);
    assert!(
        done.stderr
            .contains("the target is also a file of the source")
    );
}
