//! RAW images as every format is tested, and as files that qemu-img looks at.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{
    Budget, Demand, Edit, Editor, ErrorKind, ExtentKind, Format, GuestRange, Layer, Limits,
    Options, Preallocation, Repair, Result, ZeroPolicy,
};
use goldsmith_raw::{RAW, RawError};
use goldsmith_storage::{FileStorage, MemoryStorage, Target, VoidStorage};
use goldsmith_testkit::conformance;
use goldsmith_testkit::device::DeviceStorage;
use goldsmith_testkit::fault::{FaultStorage, Op};
use goldsmith_testkit::model::ModelStorage;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::trace::{Call, TraceStorage};
use goldsmith_testkit::{ModelDisk, image, qemu};

conformance!(
    &RAW,
    every_format,
    [
        (&[], false),
        (&[("preallocation", "falloc")], false),
        (&[("preallocation", "full")], false),
    ]
);

const PREALLOCATIONS: [&str; 3] = ["off", "falloc", "full"];

/// Data and zeros on and off the borders of 4 KiB, of a size that is a multiple of nothing.
fn mixed() -> ModelDisk {
    disk("64k:A 1M:- 64k:0 4k:b 512:- 3584:C 1M:- 8k:0 100:d 1M:0 777:E 2M:- 1:f")
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `disk` as a file of ours.
    fn write(&self, name: &str, disk: &ModelDisk, preallocation: &str) -> PathBuf {
        let path = self.at(name);
        let target = Target::create(&path).unwrap();
        let options = [("preallocation", preallocation)];
        let spec = image::spec(&RAW, disk.len(), &options, false).unwrap();
        let sink = RAW.create(target.storage(), &spec).unwrap();
        let committed = image::drive(sink, disk).unwrap();
        assert_eq!(committed.file_len, disk.len());
        target.publish().unwrap();
        path
    }
}

fn open(path: &Path) -> Arc<dyn Layer> {
    let storage = Arc::new(FileStorage::open(path).unwrap());
    RAW.open(storage, &Budget::new(&Limits::default())).unwrap()
}

/// Start, length and whether there is data, neighbours that agree being merged.
type Map = Vec<(u64, u64, bool)>;

fn merged(pieces: impl IntoIterator<Item = (u64, u64, bool)>) -> Map {
    let mut map = Map::new();
    for (start, len, data) in pieces {
        match map.last_mut() {
            Some(last) if last.2 == data => last.1 += len,
            _ => map.push((start, len, data)),
        }
    }
    map
}

fn our_map(path: &Path) -> Map {
    let layer = open(path);
    let (mut at, mut pieces) = (0, vec![]);
    while at < layer.info().virtual_size {
        let extent = layer.extent_at(at, layer.info().virtual_size).unwrap();
        assert_eq!(extent.range.start, at);
        let data = match extent.kind {
            ExtentKind::Data { host } => {
                assert_eq!(host, Some(at));
                true
            }
            ExtentKind::Zero { allocated, host } => {
                assert_eq!((allocated, host), (true, Some(at)));
                false
            }
            kind => panic!("{kind:?} in a raw image"),
        };
        pieces.push((at, extent.range.len(), data));
        at = extent.range.end;
    }
    merged(pieces)
}

fn qemu_map(path: &Path) -> Map {
    let json = qemu::img_ok(&["map", "--output=json", "-f", "raw", path.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    merged(json.as_array().unwrap().iter().map(|extent| {
        assert_eq!(extent["offset"], extent["start"]);
        assert_eq!(extent["present"], true);
        assert_eq!(extent["zero"], !extent["data"].as_bool().unwrap());
        let number = |key: &str| extent[key].as_u64().unwrap();
        (number("start"), number("length"), extent["data"] == true)
    }))
}

#[test]
fn file_holds_the_disk_to_the_byte() {
    let directory = Directory::new();
    for picture in [
        "1:a",
        "511:b",
        "512:c",
        "513:- 1:d",
        "4095:e",
        "4096:-",
        "4097:f",
        "1M:- 1:g",
    ] {
        let disk = disk(picture);
        for preallocation in PREALLOCATIONS {
            let path = directory.write("disk.raw", &disk, preallocation);
            assert!(fs::read(&path).unwrap() == disk.bytes(), "{picture}");
            assert!(image::read(&*open(&path)).unwrap() == disk.bytes());
        }
    }
    let path = directory.write("empty.raw", &disk(""), "off");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(open(&path).info().virtual_size, 0);
}

#[test]
fn qemu_reads_our_images_and_we_read_theirs() {
    let directory = Directory::new();
    let disk = mixed();
    let golden = directory.at("golden.raw");
    fs::write(&golden, disk.bytes()).unwrap();
    for preallocation in PREALLOCATIONS {
        let ours = directory.write("ours.raw", &disk, preallocation);
        assert!(fs::read(&ours).unwrap() == disk.bytes());
        qemu::compare(&ours, "raw", &golden, "raw");

        let theirs = directory.at("theirs.raw");
        let option = format!("preallocation={preallocation}");
        let (from, to) = (golden.to_str().unwrap(), theirs.to_str().unwrap());
        qemu::img_ok(&["convert", "-f", "raw", "-O", "raw", "-o", &option, from, to]);
        let read = image::read(&*open(&theirs)).unwrap();
        // QEMU counts in sectors and fills the last one up.
        assert!(read[..disk.bytes().len()] == *disk.bytes());
        assert!(read.len() - disk.bytes().len() < 512);
    }
}

#[test]
fn zeros_become_holes_as_small_as_qemu_makes_them() {
    let directory = Directory::new();
    let disk = disk("64k:A 4k:0 4k:b 2M:- 64k:0 512:C 3584:0 12k:- 4k:d 8k:0");
    let golden = directory.at("golden.raw");
    let theirs = directory.at("theirs.raw");
    fs::write(&golden, disk.bytes()).unwrap();
    let (from, to) = (golden.to_str().unwrap(), theirs.to_str().unwrap());
    qemu::img_ok(&["convert", "-f", "raw", "-O", "raw", "-S", "4k", from, to]);

    let ours = directory.write("ours.raw", &disk, "off");
    let map = our_map(&ours);
    assert_eq!(map, our_map(&theirs));
    assert_eq!(map, qemu_map(&ours));
    assert_eq!(map.iter().filter(|(_, _, data)| *data).count(), 4);
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    assert!(blocks(&ours) <= blocks(&theirs));
}

#[test]
fn map_of_a_sparse_file_is_that_of_qemu() {
    let directory = Directory::new();
    let path = directory.at("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len(5 << 30).unwrap();
    for offset in [0, 1 << 20, (1 << 20) + 4096, 3 << 30, (5 << 30) - 4096] {
        file.write_all_at(&[7; 4096], offset).unwrap();
    }
    file.sync_all().unwrap();
    let map = our_map(&path);
    assert_eq!(map, qemu_map(&path));
    assert_eq!(map.len(), 7);
}

#[test]
fn preallocated_image_takes_its_space_and_still_holds_zeros() {
    let directory = Directory::new();
    let disk = mixed();
    let space = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    for preallocation in ["falloc", "full"] {
        let path = directory.write("disk.raw", &disk, preallocation);
        assert!(space(&path) >= disk.len(), "{preallocation}");
        assert!(fs::read(&path).unwrap() == disk.bytes());
    }
    let sparse = directory.write("disk.raw", &disk, "off");
    assert!(space(&sparse) < 128 << 10, "{}", space(&sparse));
}

#[test]
fn space_is_asked_for_before_anything_is_written() {
    for (preallocation, op) in [("falloc", Op::Zero), ("full", Op::Write)] {
        let storage = Arc::new(MemoryStorage::new("disk"));
        let full = Arc::new(FaultStorage::new(storage, op, 0));
        let options = [("preallocation", preallocation)];
        let spec = image::spec(&RAW, 1 << 20, &options, false).unwrap();
        let error = RAW.create(full, &spec).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}

/// Where the kernel no longer finds the data, at the end of what a file can be, nothing is guessed.
#[test]
fn file_longer_than_any_disk_of_qemu_is_refused() {
    const LONGEST: u64 = (1 << 63) - (1 << 30);
    for (len, is_disk) in [
        (LONGEST, true),
        (LONGEST + 512, false),
        (i64::MAX as u64, false),
    ] {
        let storage = Arc::new(VoidStorage::new("long", len));
        let opened = RAW.open(storage, &Budget::new(&Limits::default()));
        match opened {
            Ok(layer) => assert!(is_disk && layer.info().virtual_size == len, "{len}"),
            Err(error) => assert!(!is_disk && error.kind() == ErrorKind::Limit, "{len}"),
        }
        let storage = || Arc::new(VoidStorage::new("new", 512));
        let created = RAW.create(storage(), &image::spec(&RAW, len, &[], false).unwrap());
        assert_eq!(created.is_ok(), is_disk, "{len}");
        let budget = Budget::new(&Limits::default());
        let mut editor = RAW
            .edit(storage(), &budget, &Options::defaults(&[]))
            .unwrap();
        let resized = editor.edit(&Edit::Resize {
            virtual_size: len,
            preallocation: Preallocation::Off,
            behind: 0,
        });
        assert_eq!(resized.is_ok(), is_disk, "{len}");
    }
}

#[test]
fn compression_is_refused() {
    let spec = image::spec(&RAW, 4096, &[], true).unwrap();
    let storage = Arc::new(MemoryStorage::new("disk"));
    let error = RAW.create(storage, &spec).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(error.report(), RawError::Compressed.to_string());
}

#[test]
fn image_that_is_cut_while_it_is_read_is_an_error() {
    let directory = Directory::new();
    let path = directory.write("disk.raw", &disk("64k:A 1M:- 64k:b"), "off");
    let layer = open(&path);
    let size = layer.info().virtual_size;
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(size - 4096).unwrap();
    let last = layer.read_at(size - 4096, &mut [0; 4096]).unwrap_err();
    assert_eq!(last.kind(), ErrorKind::Io);
    let hole = layer.extent_at(size - 4096, size).unwrap_err();
    assert_eq!(hole.kind(), ErrorKind::Io);
}

#[test]
fn zeros_are_written_where_nobody_knows_what_was_there() {
    let disk = mixed();
    for (preallocation, zeroes) in [
        ("off", ZeroPolicy::Written),
        ("falloc", ZeroPolicy::Implied),
        ("full", ZeroPolicy::Implied),
    ] {
        let old = vec![0xdb; disk.bytes().len() + 5000];
        let device = Arc::new(DeviceStorage::holding(old));
        let options = [("preallocation", preallocation)];
        let spec = image::spec(&RAW, disk.len(), &options, false).unwrap();
        let sink = RAW.create(device.clone(), &spec).unwrap();
        assert_eq!(sink.profile().zeroes, zeroes);
        image::drive(sink, &disk).unwrap();
        let bytes = device.to_vec();
        let (image, behind) = bytes.split_at(disk.bytes().len());
        assert!(image == disk.bytes(), "{preallocation}");
        assert_eq!(behind, [0xdb; 5000], "what is behind the disk is not ours");
    }
}

#[test]
fn old_file_is_emptied_so_that_its_zeros_need_no_writing() {
    let directory = Directory::new();
    let path = directory.at("disk.raw");
    fs::write(&path, vec![0xdb; 3 << 20]).unwrap();
    let storage = Arc::new(FileStorage::edit(&path).unwrap());
    let disk = mixed();
    let spec = image::spec(&RAW, disk.len(), &[], false).unwrap();
    let sink = RAW.create(storage, &spec).unwrap();
    assert_eq!(sink.profile().zeroes, ZeroPolicy::Implied);
    image::drive(sink, &disk).unwrap();
    assert!(fs::read(&path).unwrap() == disk.bytes());
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 128 << 10);
}

#[test]
fn long_run_walked_in_short_steps_is_asked_for_once() {
    let disk = disk("1M:A 3M:- 4k:B");
    let storage = Arc::new(TraceStorage::new(Arc::new(ModelStorage::new(disk.clone()))));
    let layer = RAW
        .open(storage.clone(), &Budget::new(&Limits::default()))
        .unwrap();
    let mut at = 0;
    while at < disk.len() {
        let limit = (at + 65536).min(disk.len());
        at = layer.extent_at(at, limit).unwrap().range.end;
        assert!(at <= limit);
    }
    let spans = storage
        .calls()
        .iter()
        .filter(|call| matches!(call, Call::Span(_)))
        .count();
    assert_eq!(spans, 3);
}

fn edit(path: &Path) -> Box<dyn Editor> {
    let storage = Arc::new(FileStorage::edit(path).unwrap());
    let options = Options::defaults(RAW.open_options());
    let budget = Budget::new(&Limits::default());
    RAW.edit(storage, &budget, &options).unwrap()
}

fn resize(editor: &mut dyn Editor, virtual_size: u64, preallocation: Preallocation) -> Result<()> {
    editor.edit(&Edit::Resize {
        virtual_size,
        preallocation,
        behind: 0,
    })
}

#[test]
fn resize_keeps_what_fits_and_adds_zeros_with_the_space_asked_for() {
    let directory = Directory::new();
    let before = disk("64k:A 100:b");
    for (preallocation, full) in [
        (Preallocation::Off, false),
        (Preallocation::Falloc, true),
        (Preallocation::Full, true),
    ] {
        let path = directory.write("disk.raw", &before, "off");
        let mut editor = edit(&path);
        resize(&mut *editor, 1 << 20, preallocation).unwrap();
        assert_eq!(editor.layer().info().virtual_size, 1 << 20);
        let mut expected = before.bytes().to_vec();
        expected.resize(1 << 20, 0);
        assert!(fs::read(&path).unwrap() == expected);
        let allocated = fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(allocated >= 1 << 20, full, "{preallocation:?}: {allocated}");

        resize(&mut *editor, 777, Preallocation::Off).unwrap();
        assert!(fs::read(&path).unwrap() == expected[..777]);
        let last = editor.steps().into_iter().rev().take(2).rev();
        let last: Vec<_> = last.map(|step| step.to_string()).collect();
        assert_eq!(
            last,
            [
                "make the file 777 bytes long",
                "wait until all of it is stored"
            ]
        );
    }
}

#[test]
fn what_a_raw_image_has_no_place_for_is_refused_by_name() {
    let directory = Directory::new();
    let path = directory.write("disk.raw", &disk("64k:A"), "off");
    let mut editor = edit(&path);
    for (change, what) in [
        (Edit::SetBacking(None), "raw images have no backing file"),
        (Edit::ApplySnapshot(0), "raw images have no snapshots"),
        (
            Edit::Repair(Repair::All),
            "raw images have no tables to repair",
        ),
    ] {
        let error = editor.edit(&change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().ends_with(what), "{}", error.report());
    }
    let error = resize(&mut *editor, 1 << 20, Preallocation::Metadata).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 10);
    assert!(editor.steps().is_empty());
}

#[test]
fn device_is_never_resized() {
    let device = Arc::new(DeviceStorage::holding(vec![1; 1 << 20]));
    let options = Options::defaults(RAW.open_options());
    let budget = Budget::new(&Limits::default());
    let mut editor = RAW.edit(device, &budget, &options).unwrap();
    resize(&mut *editor, 1 << 20, Preallocation::Off).unwrap();
    let error = resize(&mut *editor, 1 << 19, Preallocation::Off).unwrap_err();
    assert_eq!(
        error.report(),
        "device: Cannot resize device files: the device holds 1048576 bytes, not 524288"
    );
}

/// Only what is demanded or zeroed changes, and nothing behind the length that was asked for.
#[test]
fn sink_writes_over_what_it_is_told_and_nothing_else() {
    let directory = Directory::new();
    let path = directory.write("disk.raw", &disk("32k:A 1:b"), "off");
    let sink = edit(&path).into_sink(16 << 10).unwrap();
    let profile = sink.profile().clone();
    assert_eq!(profile.virtual_size, 16 << 10);
    assert_eq!(profile.zeroes, ZeroPolicy::Covering);
    let range = GuestRange::new(4096, 8192);
    let mut slots = Vec::new();
    let demand = Demand {
        range,
        packed: None,
    };
    sink.reserve(&[demand], &mut slots).unwrap();
    for slot in slots {
        sink.write(slot, &[7; 4096]).unwrap();
    }
    sink.reserve_zeroes(GuestRange::new(8192, 12288)).unwrap();
    assert_eq!(sink.commit().unwrap().file_len, (32 << 10) + 1);
    let mut expected = disk("32k:A 1:b").bytes().to_vec();
    expected[4096..8192].fill(7);
    expected[8192..12288].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
}
