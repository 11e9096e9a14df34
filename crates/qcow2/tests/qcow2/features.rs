//! What few images use: subclusters, data in another file, snapshots, bitmaps. QEMU's word on each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Detail, ErrorKind, ExtentKind};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::walk;
use goldsmith_testkit::{image, qemu};
use serde_json::{Value, json};

use crate::bench::{Bench, assert_same, budget, open};
use crate::check::check;
use crate::damage::Places;

/// A fact as JSON has it.
fn value(detail: &Detail) -> Value {
    match detail {
        Detail::Flag(on) => json!(on),
        Detail::Number(number) => json!(number),
        Detail::Text(text) => json!(text),
        Detail::List(items) => items.iter().map(value).collect(),
        Detail::Record(fields) => record(fields),
    }
}

fn record(fields: &[(&'static str, Detail)]) -> Value {
    let fields = fields.iter();
    fields
        .map(|(key, detail)| ((*key).to_owned(), value(detail)))
        .collect()
}

fn said_by_qemu(path: &Path) -> Value {
    let said = qemu::img_ok(&["info", "--output=json", path.to_str().unwrap()]);
    serde_json::from_str(&said).unwrap()
}

/// What QEMU says of the image, in its order, is what we say.
pub(crate) fn assert_same_info(path: &Path) {
    let (said, layer) = (said_by_qemu(path), open(path));
    let info = layer.info();
    assert_eq!(said["virtual-size"], info.virtual_size);
    assert_eq!(said["cluster-size"], info.unit.unwrap());
    let said = said["format-specific"]["data"].to_string();
    assert_eq!(said, record(&info.details).to_string());
}

#[test]
fn info_is_what_qemu_says() {
    let bench = Bench::new();
    for options in [
        "",
        "compat=0.10",
        "compression_type=zstd,cluster_size=4k",
        "lazy_refcounts=on,refcount_bits=1",
        "refcount_bits=64,cluster_size=2M",
        "extended_l2=on",
    ] {
        assert_same_info(&bench.image("image", options, "5M", &[]));
    }
    for raw in ["on", "off"] {
        let options = format!("data_file={},data_file_raw={raw}", bench.text("data"));
        assert_same_info(&bench.image("image", &options, "5M", &[]));
    }
}

#[test]
fn subclusters_read_the_same() {
    let bench = Bench::new();
    let commands = [
        "write -P 1 0 300k",
        "write -z 10k 6k",
        "discard 64k 4k",
        "write -z -u 70k 30k",
        "write -P 2 400k 512",
        "write -c -P 3 512k 64k",
        "write -c -P 3 640k 64k",
        "write -P 4 700k 2k",
        "write -z 800k 2k",
        "write -P 5 2000k 100k",
        "write -P 6 4090k 9k",
    ];
    for (cluster_size, codec) in [("16k", "zlib"), ("64k", "zstd"), ("2M", "zlib")] {
        let options =
            format!("extended_l2=on,cluster_size={cluster_size},compression_type={codec}");
        // QEMU packs whole clusters.
        let possible = |command: &&&str| cluster_size != "2M" || !command.contains("-c");
        let commands: Vec<_> = commands.iter().filter(possible).copied().collect();
        assert_same(&bench.image("image", &options, "4099k", &commands));
    }
}

#[test]
fn subcluster_is_an_extent_of_its_own() {
    let bench = Bench::new();
    // 64 KiB clusters have subclusters of 2 KiB.
    let commands = [
        "write -P 1 4k 4k",
        "write -z 10k 2k",
        "write -c -P 2 64k 64k",
    ];
    let path = bench.image("image", "extended_l2=on", "1M", &commands);
    let layer = assert_same(&path);
    let extents = walk(&*layer, 0, 1 << 20, 100).unwrap();
    let found: Vec<_> = extents
        .iter()
        .map(|extent| (extent.range.end >> 10, extent.kind))
        .collect();
    let unallocated = ExtentKind::Unallocated;
    // Nothing is there but a place for it, and nothing behind the image.
    let placed = |kind| {
        matches!(
            kind,
            ExtentKind::Zero {
                allocated: false,
                host: Some(_)
            }
        )
    };
    assert!(found[0].0 == 4 && placed(found[0].1));
    assert!(matches!(found[1], (8, ExtentKind::Data { host: Some(host) }) if host % 65536 == 4096));
    assert!(found[2].0 == 10 && placed(found[2].1));
    assert!(matches!(
        found[3],
        (
            12,
            ExtentKind::Zero {
                allocated: true,
                host: Some(_)
            }
        )
    ));
    assert!(found[4].0 == 64 && placed(found[4].1));
    assert!(matches!(found[5], (128, ExtentKind::Compressed { .. })));
    assert_eq!(found[6..], [(1024, unallocated)]);
    let inside = layer.extent_at(70_000, 80_000).unwrap();
    assert_eq!((inside.range.start, inside.range.end), (70_000, 80_000));
    let ExtentKind::Compressed { unit, .. } = inside.kind else {
        panic!("{inside:?}");
    };
    assert_eq!((unit.start, unit.end), (65_536, 131_072));
}

#[test]
fn data_in_another_file_reads_the_same() {
    let bench = Bench::new();
    let commands = [
        "write -P 1 0 100k",
        "write -z 64k 64k",
        "write -P 2 300k 10k",
        "discard 310k 100k",
        "write -P 3 1020k 5k",
    ];
    for options in [
        "data_file_raw=on",
        "data_file_raw=off",
        "extended_l2=on",
        "cluster_size=512",
        "data_file_raw=on,extended_l2=on",
    ] {
        let data = bench.path("data");
        let _ = std::fs::remove_file(&data);
        let options = format!("data_file={},{options}", data.display());
        let layer = assert_same(&bench.image("image", &options, "1025k", &commands));
        let extent = layer.extent_at(0, 1).unwrap();
        assert_eq!(extent.kind, ExtentKind::Data { host: Some(0) });
        assert_eq!(layer.data_storage().name(), data.to_str().unwrap());
        assert_ne!(layer.data_storage().id(), layer.storage().id());
    }
}

#[test]
fn data_file_that_was_not_opened_is_an_error_and_no_zeros() {
    let bench = Bench::new();
    let options = format!("data_file={}", bench.text("data"));
    let path = bench.image("image", &options, "1M", &["write -P 1 64k 64k"]);
    let layer = image::open(&QCOW2, std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        layer.extent_at(0, 1 << 20).unwrap().kind,
        ExtentKind::Unallocated
    );
    for error in [
        layer.extent_at(64 << 10, 1 << 20).unwrap_err(),
        layer.read_at(64 << 10, &mut [0]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied);
        let text = format!("file '{}', which was not opened", bench.text("data"));
        assert!(error.report().ends_with(&text), "{}", error.report());
    }
    let here = bench.image("here", "", "1M", &[]);
    let refused = open(&here).with_data(Arc::new(MemoryStorage::new("data")));
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Usage);
}

/// [spec] Its host offset there is its guest offset; QEMU refuses to read another one.
#[test]
fn cluster_that_stands_elsewhere_in_the_data_file_is_an_error() {
    for options in [
        "data_file_raw=on",
        "data_file_raw=off",
        "cluster_size=16k,extended_l2=on",
    ] {
        let bench = Bench::new();
        let options = format!("data_file={},{options}", bench.text("data"));
        let commands = [
            "write -P 1 0 64k",
            "write -P 2 64k 64k",
            "write -P 3 128k 64k",
        ];
        let path = bench.image("image", &options, "1M", &commands);
        let sound = std::fs::read(&path).unwrap();
        let l2 = Places::of(&path).l2(0);
        let len = if options.contains("extended") { 16 } else { 8 };
        // The second cluster where the third one stands, and the first one as well.
        for (from, to) in [(2, 1), (1, 0), (0, 1)] {
            let mut image = sound.clone();
            let at = |entry: u64| (l2 + len * entry) as usize;
            image.copy_within(at(from)..at(from) + len as usize, at(to));
            std::fs::write(&path, &image).unwrap();
            let layer = open(&path);
            let cluster = layer.info().unit.unwrap();
            let error = layer.read_at(to * cluster, &mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert!(error.report().contains("of the data file"), "{error:?}");
            layer.read_at(4 * cluster, &mut [0; 512]).unwrap();
            let found = check(&image).unwrap();
            assert_eq!(found.corruptions, 1, "{found:?}");
            let theirs = qemu::img(&[
                "convert",
                "-O",
                "raw",
                path.to_str().unwrap(),
                &bench.text("r"),
            ]);
            assert!(!theirs.status.success());
        }
    }
}

#[test]
fn data_file_cut_short_is_truncation_and_named() {
    let bench = Bench::new();
    let options = format!("data_file={},data_file_raw=on", bench.text("data"));
    let path = bench.image("image", &options, "1M", &["write -P 1 0 1M"]);
    let data = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path("data"));
    data.unwrap().set_len(1_000_000).unwrap();
    let error = open(&path).read_at(0, &mut vec![0; 1 << 20]).unwrap_err();
    assert_eq!(
        error.report(),
        format!(
            "{}: corrupt image: guest range 0xf4240..0x100000: data at host range \
             0xf4240..0x100000 is missing: the file is truncated at 0xf4240",
            bench.text("data")
        )
    );
}

/// Three snapshots of an image, the second of a larger disk.
fn with_snapshots(bench: &Bench, options: &str) -> PathBuf {
    let path = bench.image(
        "image",
        options,
        "1M",
        &["write -P 1 0 300k", "write -c -P 9 512k 64k"],
    );
    let text = path.to_str().unwrap();
    qemu::img_ok(&["snapshot", "-c", "before", text]);
    qemu::io_ok(
        text,
        "qcow2",
        &["write -P 2 100k 300k", "write -z 512k 64k"],
    );
    // QEMU does not resize old images that have snapshots.
    if options != "compat=0.10" {
        qemu::img_ok(&["resize", "-q", "-f", "qcow2", text, "9M"]);
        qemu::io_ok(text, "qcow2", &["write -P 3 8M 64k"]);
    }
    qemu::img_ok(&["snapshot", "-c", "2", text]);
    qemu::io_ok(text, "qcow2", &["discard 0 1M"]);
    qemu::img_ok(&["snapshot", "-c", "b\u{e4}r", text]);
    path
}

#[test]
fn snapshots_are_listed_as_qemu_lists_them() {
    let bench = Bench::new();
    let path = with_snapshots(&bench, "");
    let said = said_by_qemu(&path)["snapshots"].to_string();
    let layer = open(&path);
    let ours: Vec<_> = layer
        .info()
        .snapshots
        .iter()
        .map(|snapshot| {
            json!({
                "icount": snapshot.vm_instructions,
                "vm-clock-nsec": snapshot.vm_clock_nanoseconds % 1_000_000_000,
                "name": snapshot.name,
                "date-sec": snapshot.taken_seconds,
                "date-nsec": snapshot.taken_nanoseconds,
                "vm-clock-sec": snapshot.vm_clock_nanoseconds / 1_000_000_000,
                "id": snapshot.id,
                "vm-state-size": snapshot.vm_state_len,
            })
        })
        .collect();
    assert_eq!(said, Value::from(ours).to_string());
    let sizes = layer
        .info()
        .snapshots
        .iter()
        .map(|snapshot| snapshot.virtual_size >> 20);
    assert_eq!(sizes.collect::<Vec<_>>(), [1, 9, 9]);
}

#[test]
fn snapshot_reads_as_it_was_taken() {
    let bench = Bench::new();
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        let path = with_snapshots(&bench, options);
        let layer = open(&path);
        for (index, id) in ["1", "2", "3"].iter().enumerate() {
            let snapshot = layer.snapshot(index, &budget()).unwrap();
            let raw = bench.text("snapshot.raw");
            let from = path.to_str().unwrap();
            qemu::img_ok(&[
                "convert",
                "-l",
                &format!("snapshot.id={id}"),
                "-O",
                "raw",
                from,
                &raw,
            ]);
            // QEMU gives an old snapshot the size that the disk has now.
            let theirs = std::fs::read(&raw).unwrap();
            let size = snapshot.info().virtual_size as usize;
            assert!(
                image::read(&*snapshot).unwrap() == theirs[..size],
                "{options} {id}"
            );
            assert!(theirs[size..].iter().all(|byte| *byte == 0));
        }
        let error = layer.snapshot(3, &budget()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        // The current disk is none of them.
        let mut first = [9; 4096];
        layer.read_at(0, &mut first).unwrap();
        assert_eq!(first, [0; 4096]);
    }
}

#[test]
fn bitmaps_are_listed_as_qemu_lists_them() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &[]);
    let text = path.to_str().unwrap();
    let long = "x".repeat(1023);
    qemu::img_ok(&["bitmap", "--add", "-g", "512", text, "fine"]);
    qemu::img_ok(&["bitmap", "--add", "--disable", text, "b\u{e4}r"]);
    qemu::img_ok(&["bitmap", "--add", "-g", "2G", text, &long]);
    assert_same_info(&path);
    assert!(said_by_qemu(&path).to_string().contains("\"auto\""));

    // A program that knows no bitmaps clears the autoclear bit: they mean nothing from then on.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[95] = 0;
    std::fs::write(&path, bytes).unwrap();
    assert_same_info(&path);
    let said = said_by_qemu(&path);
    assert!(said["format-specific"]["data"].get("bitmaps").is_none());
}
