//! `-t` and `-T`: what is stored when, and what stays in memory.

use goldsmith_testkit::pattern::disk;

use crate::Folder;
use crate::twins::Twins;

fn images() -> Twins {
    Twins::new(|folder| {
        folder.write("base.raw", &disk("1M:A 1M:b"));
        folder.write("other.raw", &disk("1M:A 1M:C"));
        folder.qemu_img_ok("create -q -f qcow2 -b base.raw -F raw top.qcow2");
        folder.qemu_io("top.qcow2", &["write -P 1 0 64k"]);
        folder.qemu_img_ok("convert -O qcow2 base.raw alone.qcow2");
    })
}

/// How often goldsmith waits until something is stored.
fn stored(folder: &Folder, line: &str) -> usize {
    let calls = folder.calls("fsync,fdatasync,syncfs,sync", line);
    calls.iter().filter(|call| call.contains("sync(")).count()
}

/// How many files goldsmith wants to read or write past the cache.
fn direct(folder: &Folder, line: &str) -> usize {
    let calls = folder.calls("fcntl", line);
    let wants = |call: &&String| call.contains("F_SETFL") && call.contains("O_DIRECT");
    calls.iter().filter(wants).count()
}

const LINES: [&str; 6] = [
    "convert -t CACHE -f raw -O raw base.raw out.raw",
    "convert -t CACHE -f raw -O qcow2 base.raw out.qcow2",
    "convert -n -t CACHE -f raw -O raw base.raw other.raw",
    "commit -t CACHE -f qcow2 top.qcow2",
    "rebase -t CACHE -f qcow2 -b other.raw -F raw top.qcow2",
    "amend -t CACHE -f qcow2 -o lazy_refcounts=on alone.qcow2",
];

#[test]
fn unsafe_waits_for_no_disk_and_every_other_mode_does() {
    for line in LINES {
        let counts = ["unsafe", "writeback", "none", "writethrough", "directsync"].map(|cache| {
            let twins = images();
            stored(&twins.ours, &line.replace("CACHE", cache))
        });
        let [none_at_all, at_the_end, also, at_once, at_once_too] = counts;
        assert_eq!(none_at_all, 0, "{line}");
        assert!(at_the_end > 0, "{line}");
        assert_eq!(also, at_the_end, "{line}");
        assert!(at_once > at_the_end, "{line}: {counts:?}");
        // The kernel copies in one step what is read and written where the cache is passed.
        assert!(at_once_too > at_the_end, "{line}: {counts:?}");
    }
}

/// The file and then, once it has its name, the directory.
#[test]
fn new_image_is_stored_with_its_name() {
    let twins = images();
    let folder = &twins.ours;
    let kinds = "fsync,fdatasync,linkat,rename,renameat,renameat2";
    let calls = folder.calls(kinds, "convert -f raw base.raw out.raw");
    let renamed = calls
        .iter()
        .position(|call| call.contains("linkat") || call.contains("rename"))
        .unwrap();
    let syncs = |call: &&String| call.contains("sync(");
    let before: Vec<_> = calls[..renamed].iter().filter(syncs).collect();
    let after: Vec<_> = calls[renamed..].iter().filter(syncs).collect();
    assert!(!before.is_empty(), "{calls:?}");
    let directory = folder.path("");
    let directory = directory.to_str().unwrap().trim_end_matches('/');
    assert!(
        after.len() == 1 && after[0].contains(&format!("<{directory}>")),
        "{calls:?}"
    );
}

#[test]
fn none_and_directsync_go_past_the_cache() {
    let twins = images();
    let folder = &twins.ours;
    for (line, files) in [
        ("convert -f raw -O qcow2 base.raw out", 0),
        ("convert -t none -f raw -O qcow2 base.raw out", 1),
        ("convert -T none -f raw -O qcow2 base.raw out", 1),
        (
            "convert -t none -T directsync -f raw -O raw base.raw out",
            2,
        ),
        ("convert -n -t none -f raw -O raw base.raw other.raw", 1),
        ("compare -T none -f raw -F qcow2 base.raw alone.qcow2", 2),
        ("compare -f raw -F raw base.raw base.raw", 0),
        ("check -T none -f qcow2 alone.qcow2", 1),
        ("bench -c 3 -t none -f qcow2 alone.qcow2", 1),
        ("bench -c 3 -w -t directsync -f qcow2 alone.qcow2", 1),
        ("bench -c 3 -t writethrough -f qcow2 alone.qcow2", 0),
    ] {
        assert_eq!(direct(folder, line), files, "{line}");
    }
}

/// Whatever the mode, the same image.
#[test]
fn cache_modes_are_those_of_qemu_img() {
    for cache in ["none", "directsync", "writethrough", "writeback", "unsafe"] {
        let twins = images();
        for line in LINES {
            let (ours, theirs) = twins.run(&line.replace("CACHE", cache));
            assert_eq!(ours.status, theirs.status, "{line}: {ours:?} {theirs:?}");
        }
        twins.same("out.qcow2", "qcow2");
        twins.same("other.raw", "raw");
        twins.same("top.qcow2", "qcow2");
        twins.both(&format!(
            "compare -T {cache} -f raw -F qcow2 out.raw out.qcow2"
        ));
        twins.both(&format!(
            "convert -T {cache} --source-cache {cache} -f raw -O raw base.raw again.raw"
        ));
        twins.both(&format!("check -T {cache} -q -f qcow2 alone.qcow2"));
    }
    let twins = images();
    for line in [
        "convert -t warm base.raw out",
        "convert -T warm base.raw out",
        "rebase -T warm -b  top.qcow2",
        "commit -t warm top.qcow2",
        "amend -t warm -o compat=1.1 top.qcow2",
        "check -T warm alone.qcow2",
    ] {
        twins.neither(line, "warm");
    }
}
