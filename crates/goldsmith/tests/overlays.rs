//! Targets that need other files: over a backing file, beside a data file.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;

use goldsmith::{Algorithm, Digest, ErrorKind, ExtentKind, Opener, Rebase, References};
use goldsmith_testkit::model::{ModelDisk, any_disk};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use proptest::test_runner::{Config, TestRunner};
use support::{Folder, convert, guest, open};

/// Two parts of one file are two disks: what one shows is copied where the other would show through.
#[test]
fn parts_of_one_file_are_not_one_disk() {
    let folder = Folder::new();
    let [first, second] = [disk("1M:A"), disk("1M:B")];
    let two = folder.text("two.raw");
    std::fs::write(&two, [first.bytes(), second.bytes()].concat()).unwrap();
    let part = |offset: u32| {
        format!(
            r#"json:{{"driver":"raw","offset":{offset},"size":1048576,"file":{{"driver":"file","filename":"{two}"}}}}"#
        )
    };
    let over = |name: &str, behind: &str| {
        let path = folder.text(name);
        let over = [
            "create", "-q", "-f", "qcow2", "-b", behind, "-F", "raw", &path, "1M",
        ];
        qemu::img_ok(&over);
    };
    over("top.qcow2", &part(0));
    over("mid.qcow2", &part(1 << 20));
    let (top, copy) = (folder.path("top.qcow2"), folder.path("copy.qcow2"));
    let opener = || Opener::new().references(References::Allow);
    convert((&top, "qcow2"), (&copy, "qcow2"))
        .backing("mid.qcow2", "qcow2")
        .opener(opener())
        .run()
        .unwrap();
    Rebase::new(&top)
        .format("qcow2")
        .opener(opener())
        .onto("mid.qcow2", Some("qcow2"))
        .run()
        .unwrap();
    let raw = folder.text("out");
    for path in [top, copy] {
        qemu::img_ok(&[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            path.to_str().unwrap(),
            &raw,
        ]);
        assert!(std::fs::read(&raw).unwrap() == first.bytes(), "{path:?}");
    }
}

/// Creation options of a target, and whether it is compressed.
type Shape = (&'static [(&'static str, &'static str)], bool);

const SHAPES: &[Shape] = &[
    (&[], false),
    (&[], true),
    (&[("cluster_size", "512"), ("refcount_bits", "1")], false),
    (&[("cluster_size", "512"), ("compat", "0.10")], true),
    (&[("cluster_size", "4k"), ("compat", "0.10")], false),
    (
        &[("cluster_size", "2M"), ("compression_type", "zstd")],
        true,
    ),
    (&[("extended_l2", "on")], false),
    (&[("extended_l2", "on"), ("cluster_size", "16k")], true),
    (&[("extended_l2", "on"), ("cluster_size", "2M")], false),
    (
        &[("extended_l2", "on"), ("preallocation", "metadata")],
        false,
    ),
    (&[("extended_l2", "on"), ("preallocation", "full")], false),
    (&[("data_file", "data")], false),
    (&[("data_file", "data"), ("extended_l2", "on")], false),
];

/// Converts `source` over `base`, and checks that everybody finds the source in the target.
fn assert_overlay(source: &ModelDisk, base: &ModelDisk, (options, compress): Shape) -> Folder {
    let folder = Folder::new();
    let (raw, top) = (folder.write("disk.raw", source), folder.path("top.qcow2"));
    folder.write("base.raw", base);
    let mut job = convert((&raw, "raw"), (&top, "qcow2"))
        .compress(compress)
        .backing("base.raw", "raw");
    for (key, value) in options {
        job = job.option(*key, *value);
    }
    let what = format!("{source:?} over {base:?} with {options:?}, compressed: {compress}");
    let mut seen = None;
    for threads in [1, 4] {
        let threads = NonZeroUsize::new(threads).unwrap();
        let done = job.clone().threads(threads).verify(true).run();
        let done = done.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
        assert!(guest(&top, "qcow2") == source.bytes(), "{what}");
        assert_eq!(done.virtual_size, source.len());
        assert_eq!(
            done.digests,
            [Digest::of(Algorithm::FsVerity, source.bytes())]
        );
        let bytes = std::fs::read(&top).unwrap();
        assert!(
            *seen.get_or_insert_with(|| bytes.clone()) == bytes,
            "{what}"
        );
    }
    // QEMU takes the data file's name from the directory where it runs.
    let run = |args: &[&str]| {
        let mut qemu = std::process::Command::new("qemu-img");
        let output = qemu.args(args).current_dir(folder.path("")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{what}: {args:?}: {output:?}");
    };
    run(&["check", "-q", "-f", "qcow2", "top.qcow2"]);
    run(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "top.qcow2",
        "disk.raw",
    ]);
    folder
}

#[test]
fn everybody_finds_the_source_in_a_target_over_another_image() {
    let pairs = [
        ("3M:A 512:b", "3M:A 512:b"),
        ("64k:A 128k:- 64k:b 1M:- 300k:C", "100k:A 100k:D 2M:b"),
        ("1M:- 1M:0 512:-", "1M:A 200k:- 824k:B"),
        ("512:A 2M:- 700k:b", "2k:A 1M:C"),
        ("100k:A 100k:-", "5M:b"),
        ("1M:A", "0:-"),
    ];
    for (source, base) in pairs {
        for shape in SHAPES {
            assert_overlay(&disk(source), &disk(base), *shape);
        }
    }
}

#[test]
fn any_disk_over_any_other_is_the_disk() {
    let config = Config {
        cases: 25,
        failure_persistence: None,
        ..Config::default()
    };
    let shapes = proptest::sample::select(SHAPES);
    let strategy = (any_disk(600 << 10, 512), any_disk(600 << 10, 512), shapes);
    TestRunner::new(config)
        .run(&strategy, |(source, base, shape)| {
            assert_overlay(&source, &base, shape);
            Ok(())
        })
        .unwrap();
}

#[test]
fn only_what_differs_is_in_the_target() {
    let base = disk("1M:A 1M:b 64k:-");
    let same = assert_overlay(&base, &base, (&[], false));
    let chain = open(&same.path("top.qcow2"), "qcow2");
    let extent = chain.layers()[0].extent_at(0, base.len()).unwrap();
    assert_eq!(
        (extent.range.end, extent.kind),
        (base.len(), ExtentKind::Unallocated)
    );

    // One cluster of other data, one of zeros, and zeros where there were some.
    let changed = disk("1M:A 64k:C 64k:0 64k:b 832k:b 64k:0");
    let folder = assert_overlay(&changed, &base, (&[], false));
    let chain = open(&folder.path("top.qcow2"), "qcow2");
    let kind = |at: u64| chain.layers()[0].extent_at(at, at + 512).unwrap().kind;
    assert_eq!(kind(0), ExtentKind::Unallocated);
    assert!(matches!(kind(1 << 20), ExtentKind::Data { .. }));
    let zero = ExtentKind::Zero {
        allocated: true,
        host: None,
    };
    assert_eq!(kind((1 << 20) + (64 << 10)), zero);
    assert_eq!(kind((1 << 20) + (128 << 10)), ExtentKind::Unallocated);
    assert_eq!(kind(2 << 20), ExtentKind::Unallocated);
}

#[test]
fn overlay_moves_onto_a_copy_of_its_base_as_qemu_moves_it() {
    let folder = Folder::new();
    let (base, top) = (folder.text("base.qcow2"), folder.text("top.qcow2"));
    folder.write("base.raw", &disk("9M:A 3M:b"));
    let create = |image: &str, backing: &str, format: &str, size: &str| {
        let args = [
            "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, image, size,
        ];
        qemu::img_ok(&args);
    };
    create(&base, "base.raw", "raw", "10M");
    qemu::io_ok(&base, "qcow2", &["write -P 1 1M 100k", "write -z 3M 64k"]);
    create(&top, "base.qcow2", "qcow2", "11M");
    qemu::io_ok(
        &top,
        "qcow2",
        &["write -P 2 2M 100k", "write -z 4M 70k", "write -P 3 10M 1k"],
    );

    let ours = folder.path("ours.qcow2");
    let job = convert((top.as_ref(), "qcow2"), (&ours, "qcow2")).backing("base.qcow2", "qcow2");
    let done = job.run().unwrap();
    // Where both are made of the same files, nothing is read.
    assert!(done.data <= 3 << 20, "{}", done.data);
    let theirs = folder.text("theirs.qcow2");
    qemu::img_ok(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "qcow2",
        "-B",
        "base.qcow2",
        "-F",
        "qcow2",
        &top,
        &theirs,
    ]);
    qemu::check(&ours);
    qemu::compare(&ours, "qcow2", &top, "qcow2");
    let backing = |path: &str| {
        let said = qemu::img_ok(&["info", "--output=json", path]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        (
            said["backing-filename"].clone(),
            said["backing-filename-format"].clone(),
        )
    };
    assert_eq!(backing(ours.to_str().unwrap()), backing(&theirs));
    let map = |path: &str| qemu::img_ok(&["map", "--output=json", path]);
    let depths = |map: &str| -> Vec<(String, String)> {
        let map: Vec<serde_json::Value> = serde_json::from_str(map).unwrap();
        let layer = |run: &serde_json::Value| (run["start"].to_string(), run["depth"].to_string());
        map.iter().map(layer).collect()
    };
    assert_eq!(depths(&map(ours.to_str().unwrap())), depths(&map(&theirs)));
}

/// A snapshot stands in the same file as the disk it was taken of, and is another one.
#[test]
fn snapshot_over_its_own_image_holds_the_difference() {
    let folder = Folder::new();
    let image = folder.text("image.qcow2");
    qemu::img_ok(&["create", "-q", "-f", "qcow2", &image, "1M"]);
    qemu::io_ok(&image, "qcow2", &["write -P 1 0 300k"]);
    qemu::img_ok(&["snapshot", "-c", "one", &image]);
    qemu::io_ok(&image, "qcow2", &["write -P 2 100k 300k"]);
    let target = folder.path("old.qcow2");
    let opener = goldsmith::Opener::new()
        .references(goldsmith::References::Allow)
        .snapshot(goldsmith::SnapshotName::IdOrName("one".into()));
    convert((image.as_ref(), "qcow2"), (&target, "qcow2"))
        .opener(opener)
        .backing("image.qcow2", "qcow2")
        .run()
        .unwrap();
    qemu::check(&target);
    let raw = folder.text("one.raw");
    qemu::img_ok(&["convert", "-l", "one", "-O", "raw", &image, &raw]);
    qemu::compare(&target, "qcow2", &raw, "raw");
}

#[test]
fn targets_that_would_destroy_what_they_need_are_refused() {
    let folder = Folder::new();
    let (raw, base) = (
        folder.write("disk.raw", &disk("1M:A")),
        folder.write("base.raw", &disk("1M:b")),
    );
    let top = folder.path("top.qcow2");
    let refused = |job: goldsmith::Convert<'_>| {
        let error = job.run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
        error.report()
    };
    let job = || convert((&raw, "raw"), (&top, "qcow2"));
    let over_base = convert((&raw, "raw"), (&base, "qcow2")).backing("base.raw", "raw");
    assert!(refused(over_base).contains("which would be overwritten"));
    for file in ["disk.raw", "base.raw"] {
        let job = job().backing("base.raw", "raw").option("data_file", file);
        assert!(refused(job).contains("which would be overwritten"));
    }
    std::os::unix::fs::symlink("top.qcow2", folder.path("link")).unwrap();
    for file in ["top.qcow2", "./top.qcow2", "link"] {
        let created = goldsmith::Create::new(&top).format("qcow2").size(1 << 20);
        let error = created.option("data_file", file).run().unwrap_err();
        for report in [error.report(), refused(job().option("data_file", file))] {
            assert!(report.contains("the image itself"), "{report}");
        }
    }
    std::fs::remove_file(folder.path("link")).unwrap();
    assert!(refused(job().option("backing_file", "base.raw")).contains("needs backing_fmt"));
    assert!(refused(job().backing("base.raw", "floppy")).contains("unknown format 'floppy'"));
    let stated = r#"json:{"driver":"qcow2","file.filename":"base.raw"}"#;
    assert!(refused(job().backing(stated, "raw")).contains("is said to be raw"));
    let flat = convert((&raw, "raw"), (&top, "raw")).backing("base.raw", "raw");
    assert!(refused(flat).contains("Backing file not supported for file format 'raw'"));
    let missing = job().backing("none.raw", "raw").run().unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
    assert_eq!(folder.names(), ["base.raw", "disk.raw"]);
    assert!(std::fs::read(&base).unwrap() == disk("1M:b").bytes());
}

#[test]
fn data_file_appears_with_its_image() {
    let folder = Folder::new();
    let source = disk("5k:A 60k:- 1M:b 64k:0 300k:- 700k:C 1536:D");
    let raw = folder.write("disk.raw", &source);
    let image = folder.path("image.qcow2");
    for raw_data in ["on", "off"] {
        convert((&raw, "raw"), (&image, "qcow2"))
            .option("data_file", "data")
            .option("data_file_raw", raw_data)
            .run()
            .unwrap();
        assert_eq!(folder.names(), ["data", "disk.raw", "image.qcow2"]);
        assert!(guest(&image, "qcow2") == source.bytes());
        if raw_data == "on" {
            qemu::compare(folder.path("data"), "raw", &raw, "raw");
        }
    }
    // Nothing of a failed conversion is left, and nothing that stood there is lost.
    let before = std::fs::read(folder.path("data")).unwrap();
    let job = convert((&raw, "raw"), (&image, "qcow2"));
    job.option("data_file", "data")
        .option("compat", "0.10")
        .run()
        .unwrap_err();
    assert_eq!(folder.names(), ["data", "disk.raw", "image.qcow2"]);
    assert!(std::fs::read(folder.path("data")).unwrap() == before);
}

/// A child that had the identity of its parent would take any file of it for that.
#[test]
fn identity_from_a_name_is_another_one_over_each_parent() {
    let folder = Folder::new();
    for name in ["first", "second", "child"] {
        std::fs::create_dir(folder.path(name)).unwrap();
    }
    let raw = folder.write("disk.raw", &disk("1M:A"));
    let uuid = |path: &str| {
        let path = folder.path(path);
        let info = goldsmith::ImageInfo::read(&Opener::new(), path, Some("vpc")).unwrap();
        info.layer.uuid.unwrap()
    };
    let created = |path: &str, seconds| {
        let create = goldsmith::Create::new(folder.path(path)).format("vpc");
        create.uuid_from_name().timestamp(seconds)
    };
    created("first/disk.vhd", 1_000_000_000)
        .size(1 << 20)
        .run()
        .unwrap();
    created("second/disk.vhd", 1_000_000_001)
        .size(1 << 20)
        .run()
        .unwrap();
    let parents = ["first", "second"].map(|name| uuid(&format!("{name}/disk.vhd")));
    // The same name, size and format on another day.
    assert_ne!(parents[0], parents[1]);
    let mut seen = parents.to_vec();
    for parent in ["../first/disk.vhd", "../second/disk.vhd"] {
        let child = created("child/disk.vhd", 1_000_000_000).backing(parent, "vpc");
        let child = child.opener(Opener::new().references(References::Allow));
        child.run().unwrap();
        let empty = uuid("child/disk.vhd");
        convert((&raw, "raw"), (&folder.path("child/disk.vhd"), "vpc"))
            .backing(parent, "vpc")
            .uuid_from_name()
            .run()
            .unwrap();
        // As `create` does it, and as it did it before.
        assert_eq!(uuid("child/disk.vhd"), empty);
        assert!(!seen.contains(&empty), "{parent}");
        seen.push(empty);
    }
}
