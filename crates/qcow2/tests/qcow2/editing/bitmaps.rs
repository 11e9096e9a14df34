//! Bitmaps that we change, as QEMU reads them.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goldsmith_block::{BitmapChange, Demand, Edit, ErrorKind, GuestRange, NewBitmap};
use goldsmith_storage::FileStorage;
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::qemu;
use serde_json::{Value, json};

use super::{edit, editor, resize};
use crate::bench::Bench;

fn change(name: &str, change: BitmapChange) -> Edit {
    Edit::Bitmap {
        name: name.into(),
        change,
    }
}

fn add(granularity: Option<u64>, enabled: bool) -> BitmapChange {
    BitmapChange::Add {
        granularity,
        enabled,
    }
}

/// What QEMU says of the bitmaps of an image.
fn listed(path: &Path) -> Value {
    let said = qemu::img_ok(&["info", "--output=json", path.to_str().unwrap()]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said["format-specific"]["data"]["bitmaps"].clone()
}

/// The dirty parts of the disk by bitmap `name`, as QEMU serves them: offset and length.
fn dirty(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let socket = socket.to_str().unwrap();
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", name, "-k", socket])
        .arg(path)
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !Path::new(socket).exists() {
        assert!(Instant::now() < patience, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let image = format!(
        "driver=nbd,server.type=unix,server.path={socket},\
         x-dirty-bitmap=qemu:dirty-bitmap:{name}"
    );
    let said = qemu::img_ok(&["map", "--output=json", "--image-opts", &image]);
    // It serves one client and ends; if it did not, this ends it.
    let _ = server.kill();
    server.wait().unwrap();
    let said: Vec<Value> = serde_json::from_str(&said).unwrap();
    let is_dirty = |part: &&Value| part["data"] == false;
    let place = |part: &Value| {
        (
            part["start"].as_u64().unwrap(),
            part["length"].as_u64().unwrap(),
        )
    };
    said.iter().filter(is_dirty).map(place).collect()
}

#[test]
fn bitmap_is_what_qemu_would_have_made_of_it() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "10M", &[]);
    edit(&path, &change("auto", add(None, true))).unwrap();
    edit(&path, &change("fine", add(Some(512), false))).unwrap();
    let ranges = [
        GuestRange::new(0, 512),
        GuestRange::new(1024, 4096),
        GuestRange::new(5 << 20, (7 << 20) + 1),
    ];
    edit(&path, &change("fine", BitmapChange::Mark(ranges.to_vec()))).unwrap();
    assert_eq!(
        listed(&path),
        json!([
            {"flags": ["auto"], "name": "auto", "granularity": 4096},
            {"flags": [], "name": "fine", "granularity": 512},
        ])
    );
    qemu::check(&path);
    let marked = [(0, 512), (1024, 3072), (5 << 20, (2 << 20) + 512)];
    assert_eq!(dirty(&path, "fine"), marked);
    qemu::io_ok(&path, "qcow2", &["write -P 1 8M 8k"]);
    assert_eq!(dirty(&path, "auto"), [(8 << 20, 8192)]);
    edit(&path, &change("auto", BitmapChange::Enable(false))).unwrap();
    edit(&path, &change("fine", BitmapChange::Enable(true))).unwrap();
    qemu::io_ok(&path, "qcow2", &["write -P 1 9M 512"]);
    assert_eq!(dirty(&path, "auto"), [(8 << 20, 8192)]);
    assert_eq!(dirty(&path, "fine")[3..], [(9 << 20, 512)]);
    edit(&path, &change("fine", BitmapChange::Clear)).unwrap();
    assert_eq!(dirty(&path, "fine"), []);
    edit(&path, &change("auto", BitmapChange::Remove)).unwrap();
    edit(&path, &change("fine", BitmapChange::Remove)).unwrap();
    assert_eq!(listed(&path), Value::Null);
    qemu::check(&path);
}

/// QEMU's bitmaps, of disks that we resize: what is left keeps its bits, what is new is clean.
#[test]
fn bitmaps_follow_the_size_of_the_disk() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=512", "16M", &[]);
    let text = path.to_str().unwrap();
    qemu::img_ok(&["bitmap", "--add", "-g", "512", text, "b"]);
    qemu::io_ok(&path, "qcow2", &["write -P 1 1M 64k", "write -P 1 9M 3M"]);
    edit(&path, &resize((10 << 20) + 512)).unwrap();
    qemu::check(&path);
    let left = [(1 << 20, 65536), (9 << 20, (1 << 20) + 512)];
    assert_eq!(dirty(&path, "b"), left);
    edit(&path, &resize(40 << 20)).unwrap();
    qemu::check(&path);
    assert_eq!(dirty(&path, "b"), left);
}

/// What was overwritten until then is dirty; more is not lost.
#[test]
fn bitmaps_outlast_a_sink_that_never_commits() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "1M", &["write -P 1 0 1M"]);
    edit(&path, &change("auto", add(None, true))).unwrap();
    edit(&path, &change("off", add(None, false))).unwrap();
    let storage = Arc::new(FileStorage::edit(&path).unwrap());
    let sink = editor(storage).into_sink(1 << 20).unwrap();
    assert_eq!(listed(&path)[0]["flags"], json!(["in-use", "auto"]));
    let (range, packed) = (GuestRange::new(8192, 16384), None);
    let mut slots = Vec::new();
    sink.reserve(&[Demand { range, packed }], &mut slots)
        .unwrap();
    for slot in slots {
        let data = vec![7; slot.range.len() as usize];
        sink.write(slot, &data).unwrap();
    }
    drop(sink);
    assert_eq!(listed(&path)[0]["flags"], json!(["auto"]));
    assert_eq!(dirty(&path, "auto"), [(8192, 8192)]);
    assert_eq!(dirty(&path, "off"), []);
    qemu::check(&path);
    qemu::io_ok(&path, "qcow2", &["read -P 1 0 8k", "read -P 7 8k 8k"]);
}

/// As long as nothing was done to the header the old image stands, and its bitmaps can be told.
#[test]
fn bitmaps_outlast_a_commit_that_fails() {
    let bench = Bench::new();
    let mut failed = 0;
    for op in [Op::Write, Op::Flush] {
        let mut doubtful = 0;
        for nth in 0.. {
            let path = bench.image("image", "cluster_size=4k", "1M", &["write -P 1 0 512k"]);
            edit(&path, &change("auto", add(None, true))).unwrap();
            let storage = Arc::new(FileStorage::edit(&path).unwrap());
            let storage = Arc::new(FaultStorage::new(storage, op, nth));
            let Ok(sink) = editor(Arc::clone(&storage) as _).into_sink(1 << 20) else {
                continue;
            };
            let (range, packed) = (GuestRange::new(768 << 10, 776 << 10), None);
            let mut slots = Vec::new();
            let demands = [Demand { range, packed }];
            sink.reserve(&demands, &mut slots).unwrap();
            let data = [7; 8192];
            if slots
                .into_iter()
                .any(|slot| sink.write(slot, &data).is_err())
            {
                continue;
            }
            match sink.commit() {
                Ok(_) if !storage.fired() => break,
                Ok(_) => panic!("{op:?} {nth} failed, and nobody says so"),
                Err(_) => failed += 1,
            }
            qemu::check(&path);
            match listed(&path)[0]["flags"] == json!(["auto"]) {
                true => assert_eq!(dirty(&path, "auto"), [(768 << 10, 8192)], "{op:?} {nth}"),
                false => doubtful += 1,
            }
        }
        assert!(doubtful <= u32::from(op == Op::Write), "{op:?}: {doubtful}");
    }
    assert!(failed >= 6, "only {failed} commits failed");
}

/// [spec autoclear_features] Before the first byte of the guest's: who set them may have to hear of writes.
#[test]
fn marks_that_nobody_here_knows_are_gone_before_a_disk_is_written_over() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &["write -P 1 0 1M"]);
    let marks = || std::fs::read(&path).unwrap()[88..96].to_vec();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&(1_u64 << 63).to_be_bytes(), 88).unwrap();
    let storage = Arc::new(FileStorage::edit(&path).unwrap());
    let sink = editor(storage).into_sink(1 << 20).unwrap();
    assert_eq!(marks(), [0; 8]);
    drop(sink);
    qemu::io_ok(&path, "qcow2", &["read -P 1 0 1M"]);
}

#[test]
fn bitmaps_are_added_together_or_not_at_all() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "1M", &[]);
    let new = |name: &str, dirty: Vec<GuestRange>| NewBitmap {
        name: name.into(),
        granularity: Some(4096),
        enabled: name == "on",
        dirty,
    };
    let bitmaps = vec![
        new("on", vec![]),
        new(
            "off",
            vec![GuestRange::new(0, 1), GuestRange::new(8192, 16384)],
        ),
    ];
    edit(&path, &Edit::AddBitmaps(bitmaps)).unwrap();
    qemu::check(&path);
    assert_eq!(listed(&path)[0]["flags"], json!(["auto"]));
    assert_eq!(listed(&path)[1]["flags"], json!([]));
    assert_eq!(dirty(&path, "on"), []);
    assert_eq!(dirty(&path, "off"), [(0, 4096), (8192, 8192)]);
    let before = listed(&path);
    for again in ["off", "third"] {
        let twice = vec![new("third", vec![]), new(again, vec![])];
        let error = edit(&path, &Edit::AddBitmaps(twice)).unwrap_err();
        assert!(error.report().contains("already"), "{}", error.report());
        assert_eq!(listed(&path), before);
    }
}

#[test]
fn nonsense_about_bitmaps_is_refused() {
    let bench = Bench::new();
    let path = bench.image("image", "", "1M", &[]);
    edit(&path, &change("there", add(None, true))).unwrap();
    for (name, what) in [
        ("there", add(None, true)),
        ("missing", BitmapChange::Clear),
        ("missing", BitmapChange::Remove),
        ("new", add(Some(3000), true)),
        ("new", add(Some(256), true)),
        ("", add(None, true)),
    ] {
        let error = edit(&path, &change(name, what)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
    }
    let old = bench.image("old", "compat=0.10", "1M", &[]);
    let error = edit(&old, &change("new", add(None, true))).unwrap_err();
    assert!(error.report().contains("version 2"));
}

/// QEMU does not open an image one of whose bitmaps takes more than 512 MiB, or nothing.
#[test]
fn bitmap_that_would_lock_qemu_out_is_refused() {
    let bench = Bench::new();
    let large = bench.image("large", "", "4T", &[]);
    let finest = || change("finest", add(Some(512), true));
    let error = edit(&large, &finest()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
    qemu::check(&large);

    let path = bench.image("image", "", "2T", &[]);
    edit(&path, &finest()).unwrap();
    qemu::check(&path);
    let error = edit(&path, &resize((2 << 40) + 512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
    qemu::check(&path);

    let empty = bench.image("empty", "", "0", &[]);
    let error = edit(&empty, &finest()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
    qemu::check(&empty);
}
