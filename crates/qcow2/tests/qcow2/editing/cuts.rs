//! Every edit, cut at every point that the barriers allow.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, BitmapChange, Detail, Edit, Format, GuestRange, Layer, Preallocation, Repair,
};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::qemu;

use self::Outcome::{Changed, Refused, Same};
use super::{amend, checked, editor, pack_over, resize, snapshot, states, write_over};
use crate::bench::{Bench, budget};
use crate::check::{check, patch};
use crate::damage::Places;

/// QEMU is asked about one state in so many: it takes its time.
const SAMPLE: usize = 23;

/// Edits of one image, each with its name.
fn edits(layer: &dyn Layer) -> Vec<(String, Edit)> {
    let size = layer.info().virtual_size;
    let backing = BackingReference {
        name: "another-name-of-another-file.qcow2".into(),
        format: Some("qcow2".into()),
        ..BackingReference::default()
    };
    let add = BitmapChange::Add {
        granularity: Some(512),
        enabled: true,
    };
    let edits = [
        ("grow", resize(size * 40)),
        ("grow inside the table", resize(size + 1024)),
        (
            "grow with places",
            Edit::Resize {
                virtual_size: size * 5,
                preallocation: Preallocation::Metadata,
                behind: 0,
            },
        ),
        (
            "grow over a longer disk",
            Edit::Resize {
                virtual_size: size * 5,
                preallocation: Preallocation::Off,
                behind: size * 3,
            },
        ),
        ("shrink", resize(size / 3 / 512 * 512)),
        ("take a snapshot", snapshot("new")),
        ("empty", Edit::Empty),
        ("another backing file", Edit::SetBacking(Some(backing))),
        ("no backing file", Edit::SetBacking(None)),
        ("another version", amend(&[("compat", "0.10")])),
        ("the newer version", amend(&[("compat", "1.1")])),
        ("wider refcounts", amend(&[("refcount_bits", "64")])),
        ("narrower refcounts", amend(&[("refcount_bits", "2")])),
        ("a bitmap", bitmap("new", add)),
    ];
    let edits = edits.map(|(what, edit)| (what.into(), edit));
    let mut edits = Vec::from(edits);
    edits.extend(bitmap_edits(layer));
    for index in 0..layer.info().snapshots.len() {
        edits.push((format!("apply {index}"), Edit::ApplySnapshot(index)));
        edits.push((format!("delete {index}"), Edit::DeleteSnapshot(index)));
    }
    edits
}

/// Edits of each bitmap of an image.
fn bitmap_edits(layer: &dyn Layer) -> Vec<(String, Edit)> {
    let info = layer.info();
    let first_half = GuestRange::new(0, info.virtual_size / 2);
    let edits = info.bitmaps.iter().flat_map(|it| {
        let changes = [
            ("mark", BitmapChange::Mark(vec![first_half])),
            ("clear", BitmapChange::Clear),
            ("switch", BitmapChange::Enable(!it.enabled)),
            ("remove", BitmapChange::Remove),
        ];
        changes.map(|(what, change)| (format!("{what} {}", it.name), bitmap(&it.name, change)))
    });
    edits.collect()
}

fn bitmap(name: &str, change: BitmapChange) -> Edit {
    Edit::Bitmap {
        name: name.into(),
        change,
    }
}

/// What can be seen of an image: its disk and those of its snapshots, the dirty parts of each bitmap,
/// and what its header says.
#[derive(PartialEq)]
struct Looks {
    states: Vec<Vec<u8>>,
    dirty: Vec<Vec<GuestRange>>,
    backing: Option<BackingReference>,
    details: Vec<(&'static str, Detail)>,
}

impl Looks {
    fn of(layer: &dyn Layer) -> Self {
        let info = layer.info();
        let bitmaps = 0..info.bitmaps.len();
        Self {
            states: states(layer),
            dirty: bitmaps.map(|index| dirty(layer, index)).collect(),
            backing: info.backing.clone(),
            details: info.details.clone(),
        }
    }
}

fn dirty(layer: &dyn Layer, index: usize) -> Vec<GuestRange> {
    layer.dirty_ranges(index, &budget()).unwrap()
}

/// What became of an edit.
#[derive(Debug, PartialEq)]
enum Outcome {
    Changed,
    /// The image is what it was asked to be already.
    Same,
    Refused,
}

/// Cuts `edit` of the image `bytes` at every point.
fn cut(what: &str, bytes: &[u8], edit: &Edit) -> Outcome {
    let crash = Arc::new(CrashStorage::new("image", bytes.to_vec()));
    let mut editor = editor(Arc::clone(&crash) as _);
    let before = Looks::of(&*editor.layer());
    if editor.edit(edit).is_err() {
        let layer = QCOW2.open(Arc::clone(&crash) as _, &budget()).unwrap();
        assert!(Looks::of(&*layer) == before, "{what}");
        return Refused;
    }
    let after = Looks::of(&*editor.layer());
    assert!(
        Looks::of(&*open(crash.durable())) == after,
        "{what}: not durable"
    );
    let (mut count, mut seen) = (0, [false; 2]);
    crash.each_state(|cut, state: Arc<MemoryStorage>| {
        let layer = QCOW2.open(Arc::clone(&state) as _, &budget());
        let layer = layer.unwrap_or_else(|error| panic!("{what}, {cut}: {}", error.report()));
        let found = Looks::of(&*layer);
        assert!(found == before || found == after, "{what}, {cut}");
        seen[usize::from(found == after)] = true;
        let checked = checked(&state);
        assert!(
            checked.corruptions == 0 && checked.errors == 0,
            "{what}, {cut}: {:?}",
            checked.flaws
        );
        count += 1;
        if count % SAMPLE == 0 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            std::fs::write(&path, state.to_vec()).unwrap();
            let path = path.to_str().unwrap();
            let said = qemu::img(&["check", "-f", "qcow2", path]);
            assert!(
                matches!(said.status.code(), Some(0 | 3)),
                "{what}, {cut}: {said:?}"
            );
        }
    });
    if before == after {
        return Same;
    }
    assert!(seen == [true; 2], "{what}: {count} states");
    Changed
}

fn open(storage: Arc<MemoryStorage>) -> Arc<dyn Layer> {
    QCOW2.open(storage, &budget()).unwrap()
}

/// Cuts all edits of an image; those that are not named in `idle` change it.
fn cut_all(options: &str, commands: &[&str], snapshots: &[&str], idle: &[(&str, Outcome)]) {
    let bench = Bench::new();
    let path = bench.image("image", options, "96k", commands);
    cut_image(&path, snapshots, idle);
}

fn cut_image(path: &Path, snapshots: &[&str], idle: &[(&str, Outcome)]) {
    for (nth, name) in snapshots.iter().enumerate() {
        qemu::img_ok(&["snapshot", "-c", name, path.to_str().unwrap()]);
        let write = format!("write -P {} {}k 9k", nth + 100, 8 * nth);
        qemu::io_ok(path, "qcow2", &[&write]);
    }
    cut_edits(path, edits, idle);
}

fn cut_edits(path: &Path, edits: fn(&dyn Layer) -> Vec<(String, Edit)>, idle: &[(&str, Outcome)]) {
    let bytes = std::fs::read(path).unwrap();
    let layer = open(Arc::new(MemoryStorage::holding("image", bytes.clone())));
    let mut found = Vec::new();
    for (what, edit) in edits(&*layer) {
        match cut(&what, &bytes, &edit) {
            Changed => {}
            outcome => found.push((what, outcome)),
        }
    }
    let found: Vec<_> = found.iter().map(|(what, it)| (&**what, it)).collect();
    let idle: Vec<_> = idle.iter().map(|(what, it)| (*what, it)).collect();
    assert_eq!(found, idle);
}

/// Gives the image at `path` a bitmap that knows of a write, and one that records none.
fn add_bitmaps(path: &Path) {
    let text = path.to_str().unwrap();
    qemu::img_ok(&["bitmap", "--add", "-g", "512", text, "busy"]);
    qemu::img_ok(&["bitmap", "--add", "-g", "64k", "--disable", text, "idle"]);
    qemu::io_ok(path, "qcow2", &["write -P 9 70k 3k"]);
}

#[test]
fn plain_image_survives_every_cut() {
    cut_all(
        "cluster_size=4k",
        &["write -P 7 4k 20k", "write -z 40k 8k"],
        &[],
        &[("no backing file", Same), ("the newer version", Same)],
    );
}

/// The bits of one bitmap fill several clusters.
#[test]
fn bitmaps_survive_every_cut() {
    for (options, size) in [("cluster_size=4k", "96k"), ("cluster_size=512", "5M")] {
        let bench = Bench::new();
        let path = bench.image("image", options, size, &["write -P 7 4k 20k"]);
        add_bitmaps(&path);
        cut_edits(&path, bitmap_edits, &[("clear idle", Same)]);
    }
}

#[test]
fn image_with_bitmaps_survives_every_cut() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "96k", &["write -P 7 4k 20k"]);
    add_bitmaps(&path);
    cut_image(
        &path,
        &["one"],
        &[
            ("no backing file", Same),
            ("another version", Refused),
            ("the newer version", Same),
            ("clear idle", Same),
            ("apply 0", Refused),
        ],
    );
}

#[test]
fn image_of_large_clusters_survives_every_cut() {
    cut_all(
        "cluster_size=64k",
        &["write -P 7 3k 80k"],
        &["one"],
        &[("no backing file", Same), ("the newer version", Same)],
    );
}

#[test]
fn image_with_snapshots_survives_every_cut() {
    cut_all(
        "cluster_size=1k",
        &["write -P 7 3k 40k", "write -P 8 60k 20k"],
        &["one", "two"],
        &[("no backing file", Same), ("the newer version", Same)],
    );
}

#[test]
fn old_version_survives_every_cut() {
    cut_all(
        "compat=0.10,cluster_size=2k",
        &["write -P 7 3k 40k"],
        &["one"],
        &[
            ("grow", Refused),
            ("grow inside the table", Refused),
            ("grow with places", Refused),
            ("grow over a longer disk", Refused),
            ("shrink", Refused),
            ("no backing file", Same),
            ("another version", Same),
            ("wider refcounts", Refused),
            ("narrower refcounts", Refused),
            ("a bitmap", Refused),
        ],
    );
}

#[test]
fn smallest_clusters_and_widest_refcounts_survive_every_cut() {
    cut_all(
        "cluster_size=512,refcount_bits=64",
        &["write -P 7 3k 11k"],
        &["one"],
        &[
            ("no backing file", Same),
            ("another version", Refused),
            ("the newer version", Same),
            ("wider refcounts", Same),
        ],
    );
}

#[test]
fn subclusters_survive_every_cut() {
    cut_all(
        "cluster_size=16k,extended_l2=on",
        &["write -P 7 3k 20k", "write -P 8 60k 5k"],
        &["one"],
        &[
            ("no backing file", Same),
            ("another version", Refused),
            ("the newer version", Same),
        ],
    );
}

/// A sink that writes over a disk may leave a mixture of old and new bytes where it was to write, and
/// nothing else: neither elsewhere on the disk nor in snapshots.
#[test]
fn disk_that_is_written_over_survives_every_cut() {
    for options in [
        "cluster_size=4k",
        "cluster_size=1k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
    ] {
        let bench = Bench::new();
        let path = bench.image("image", options, "96k", &["write -P 7 3k 60k"]);
        qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
        qemu::io_ok(&path, "qcow2", &["write -P 8 16k 32k"]);
        let bytes = std::fs::read(&path).unwrap();
        let crash = Arc::new(CrashStorage::new("image", bytes));
        let editor = editor(Arc::clone(&crash) as _);
        let before = states(&*editor.layer());
        let parts = [
            (0, 32 << 10, 5),
            (48 << 10, 64 << 10, 0),
            (80 << 10, 96 << 10, 6),
        ];
        write_over(editor, 96 << 10, &parts);
        let mut after = before[0].clone();
        for (start, end, byte) in parts {
            after[start as usize..end as usize].fill(byte);
        }
        assert!(states(&*open(crash.durable()))[0] == after, "{options}");
        crash.each_state(|cut, state: Arc<MemoryStorage>| {
            let layer = QCOW2.open(Arc::clone(&state) as _, &budget()).unwrap();
            let found = states(&*layer);
            let sectors = found[0]
                .chunks(512)
                .zip(before[0].chunks(512).zip(after.chunks(512)));
            for (nth, (found, (before, after))) in sectors.enumerate() {
                assert!(found == before || found == after, "{cut}: sector {nth}");
            }
            assert!(found[1..] == before[1..], "{cut}");
            let checked = checked(&state);
            assert!(
                checked.corruptions == 0 && checked.errors == 0,
                "{cut}: {:?}",
                checked.flaws
            );
        });
    }
}

/// What is packed always gets a new place, so there is no mixture either.
#[test]
fn disk_that_is_compressed_over_is_the_old_or_the_new_one_after_every_cut() {
    for options in [
        "cluster_size=4k",
        "cluster_size=1k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=4k,refcount_bits=2,compression_type=zstd",
    ] {
        let bench = Bench::new();
        let path = bench.image("image", options, "96k", &["write -P 7 3k 60k"]);
        if !options.contains("refcount_bits=1") {
            qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
        }
        qemu::io_ok(&path, "qcow2", &["write -P 8 16k 32k"]);
        let mut bytes = std::fs::read(&path).unwrap();
        // The second time over clusters that are packed.
        for byte in [5, 6] {
            let crash = Arc::new(CrashStorage::new("image", bytes));
            let editor = editor(Arc::clone(&crash) as _);
            let before = states(&*editor.layer());
            let parts = [(0, 32 << 10, byte), (48 << 10, 96 << 10, byte)];
            pack_over(editor, 96 << 10, &parts);
            let mut after = before.clone();
            for (start, end, byte) in parts {
                after[0][start as usize..end as usize].fill(byte);
            }
            assert!(states(&*open(crash.durable())) == after, "{options}");
            let mut seen = [false; 2];
            let mut last = Vec::new();
            crash.each_state(|cut, state: Arc<MemoryStorage>| {
                let layer = QCOW2.open(Arc::clone(&state) as _, &budget()).unwrap();
                let found = states(&*layer);
                assert!(found == before || found == after, "{options}, {cut}");
                seen[usize::from(found == after)] = true;
                let checked = checked(&state);
                let flaws = &checked.flaws;
                assert!(
                    checked.corruptions + checked.errors == 0,
                    "{cut}: {flaws:?}"
                );
                last = state.to_vec();
            });
            assert_eq!(seen, [true; 2]);
            qemu::check_bytes(&last);
            bytes = last;
        }
    }
}

/// The file with the data becomes longer before the image says so, and shorter after.
#[test]
fn disk_in_a_data_file_survives_every_cut() {
    let bench = Bench::new();
    let data = bench.path("data");
    let options = format!("cluster_size=4k,data_file={}", data.display());
    let path = bench.image("image", &options, "90k", &["write -P 7 3k 70k"]);
    let (image, data) = (std::fs::read(path).unwrap(), std::fs::read(data).unwrap());
    for size in [400 << 10, 30 << 10, 91 << 10] {
        let crash = Arc::new(CrashStorage::new("image", image.clone()));
        let beside = Arc::new(crash.beside("data", data.clone()));
        let mut editor = editor(Arc::clone(&crash) as _);
        editor.set_data(Arc::clone(&beside) as _).unwrap();
        let before = states(&*editor.layer());
        editor.edit(&resize(size)).unwrap();
        let after = states(&*editor.layer());
        let durable = open(crash.durable()).with_data(beside.durable());
        assert!(states(&*durable.unwrap()) == after, "{size}");
        let mut seen = [false; 2];
        crash.each_states(|cut, files| {
            let layer = QCOW2.open(Arc::clone(&files[0]) as _, &budget()).unwrap();
            let layer = layer.with_data(Arc::clone(&files[1]) as _).unwrap();
            let found = states(&*layer);
            assert!(found == before || found == after, "{size}, {cut}");
            seen[usize::from(found == after)] = true;
            let checked = checked(&files[0]);
            assert!(checked.corruptions + checked.errors == 0, "{size}, {cut}");
        });
        assert_eq!(seen, [true; 2]);
    }
}

/// What a stopped sink has written stands there and is not written again by the next one; so a bitmap
/// that is to know of it knows, or says that it does not.
#[test]
fn bitmap_knows_of_all_that_a_stopped_sink_wrote() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "96k", &["write -P 7 0 96k"]);
    let text = path.to_str().unwrap();
    for (name, granularity) in [("coarse", "32k"), ("fine", "4k"), ("idle", "4k")] {
        qemu::img_ok(&["bitmap", "--add", "-g", granularity, text, name]);
    }
    qemu::img_ok(&["bitmap", "--disable", text, "idle"]);
    let bytes = std::fs::read(&path).unwrap();
    let crash = Arc::new(CrashStorage::new("image", bytes));
    let editor = editor(Arc::clone(&crash) as _);
    let before = states(&*editor.layer());
    write_over(
        editor,
        96 << 10,
        &[(8 << 10, 16 << 10, 5), (64 << 10, 68 << 10, 0)],
    );
    let mut unsure = false;
    crash.each_state(|cut, state: Arc<MemoryStorage>| {
        let layer = QCOW2.open(Arc::clone(&state) as _, &budget()).unwrap();
        let found = states(&*layer);
        assert_eq!(dirty(&*layer, 2), [], "{cut}");
        for index in 0..2 {
            if layer.info().bitmaps[index].inconsistent {
                unsure = true;
                continue;
            }
            let dirty = dirty(&*layer, index);
            for at in (0..96 << 10).step_by(512) {
                let range = at..at + 512;
                let known = dirty
                    .iter()
                    .any(|it| it.start <= at as u64 && (at as u64) < it.end);
                assert!(
                    known || found[0][range.clone()] == before[0][range],
                    "{cut}: {at}"
                );
            }
        }
    });
    assert!(unsure);
    let layer = open(crash.durable());
    let fine = [
        GuestRange::new(8 << 10, 16 << 10),
        GuestRange::new(64 << 10, 68 << 10),
    ];
    let coarse = [
        GuestRange::new(0, 32 << 10),
        GuestRange::new(64 << 10, 96 << 10),
    ];
    assert_eq!(dirty(&*layer, 0), coarse);
    assert_eq!(dirty(&*layer, 1), fine);
}

/// The name of a data file may fill more than the first sector, and nobody can do without it.
#[test]
fn long_names_survive_every_cut() {
    let bench = Bench::new();
    let folder = "a-folder-with-a-name-that-is-as-long-as-they-can-be".repeat(4);
    let folder = bench.path(&format!("{folder}/{folder}"));
    std::fs::create_dir_all(&folder).unwrap();
    let data = folder.join("data");
    let base = bench.text("base");
    qemu::img_ok(&["create", "-q", "-f", "raw", &base, "96k"]);
    let add = BitmapChange::Add {
        granularity: None,
        enabled: true,
    };
    let backing = Edit::SetBacking(Some(BackingReference {
        name: base,
        format: Some("raw".into()),
        ..BackingReference::default()
    }));
    let short = amend(&[("data_file", "short")]);
    for cluster_size in ["64k", "4k", "2k"] {
        let data = data.to_str().unwrap();
        let options = format!("cluster_size={cluster_size},data_file={data}");
        let mut bytes = std::fs::read(bench.image("image", &options, "96k", &[])).unwrap();
        for edit in [
            &bitmap("new", add.clone()),
            &backing,
            &Edit::SetBacking(None),
            &short,
        ] {
            bytes = cut_names(&bytes, edit);
        }
    }
}

/// Cuts `edit` of the header of the image `bytes` at every point; gives the edited image.
fn cut_names(bytes: &[u8], edit: &Edit) -> Vec<u8> {
    let crash = Arc::new(CrashStorage::new("image", bytes.to_vec()));
    let mut editor = editor(Arc::clone(&crash) as _);
    let look = |layer: &dyn Layer| {
        let info = layer.info();
        let names = (info.data_file.clone(), info.backing.clone());
        (names, info.details.clone())
    };
    let before = look(&*editor.layer());
    editor.edit(edit).unwrap();
    let after = look(&*editor.layer());
    assert!(
        look(&*open(crash.durable())) == after,
        "{edit:?}: not durable"
    );
    let (mut last, mut count) = (Vec::new(), 0);
    crash.each_state(|cut, state: Arc<MemoryStorage>| {
        let layer = QCOW2.open(Arc::clone(&state) as _, &budget());
        let layer = layer.unwrap_or_else(|error| panic!("{edit:?}, {cut}: {}", error.report()));
        let found = look(&*layer);
        assert!(found == before || found == after, "{edit:?}, {cut}");
        last = state.to_vec();
        count += 1;
        if found.0.0.as_deref() != Some("short") && count % 5 == 0 {
            qemu::check_bytes(&last);
        }
    });
    last
}

/// A header of `len` bytes, with extensions of these lengths that nobody knows, perhaps without a mark
/// at their end, and the name of a backing file `gap` bytes behind them.
fn forged(
    bytes: &[u8],
    len: usize,
    unknown: &[usize],
    mark: bool,
    name: &str,
    gap: usize,
) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[104..16 << 10].fill(0);
    bytes[100..104].copy_from_slice(&(len as u32).to_be_bytes());
    let mut at = len;
    for (nth, unknown) in unknown.iter().enumerate() {
        let head = [0x1234_5678 + nth as u32, *unknown as u32].map(u32::to_be_bytes);
        bytes[at..at + 8].copy_from_slice(&head.concat());
        bytes[at + 8..at + 8 + unknown].fill(0xee);
        at += (8 + unknown).next_multiple_of(8);
    }
    if mark {
        at += 8;
    }
    at += gap;
    bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
    bytes[8..16].copy_from_slice(&(at as u64).to_be_bytes());
    bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    bytes
}

#[test]
fn strange_headers_survive_every_cut() {
    let bench = Bench::new();
    let base = bench.text("base");
    qemu::img_ok(&["create", "-q", "-f", "raw", &base, "96k"]);
    let long = format!("{}{base}", "/.".repeat(200));
    let image = bench.image("image", "cluster_size=16k", "96k", &["write -P 7 4k 20k"]);
    let image = std::fs::read(image).unwrap();
    let to = |name: &str| {
        Edit::SetBacking(Some(BackingReference {
            name: name.into(),
            format: Some("raw".into()),
            ..BackingReference::default()
        }))
    };
    let add = BitmapChange::Add {
        granularity: None,
        enabled: true,
    };
    let edits = [
        bitmap("new", add),
        to(&long),
        resize(200 << 10),
        to(&base),
        Edit::SetBacking(None),
        bitmap("new", BitmapChange::Remove),
        amend(&[("compat", "0.10")]),
    ];
    for len in [104, 1000] {
        for unknown in [&[][..], &[0, 700, 9]] {
            for (mark, name, gap) in [(false, &base, 0), (true, &long, 900), (true, &base, 16)] {
                let mut bytes = forged(&image, len, unknown, mark, name, gap);
                for edit in &edits {
                    bytes = cut_names(&bytes, edit);
                }
            }
        }
    }
}

/// A mending that is cut leaves no more errors than there were, and the same disk.
#[test]
fn damaged_image_survives_every_cut() {
    let bench = Bench::new();
    let path = bench.image("image", "cluster_size=4k", "96k", &["write -P 7 4k 60k"]);
    qemu::img_ok(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    let places = Places::of(&path);
    for (at, number) in [
        (places.refcount(4), 0x0005_0000_0003_0001),
        (places.refcount_table(), 1 << 40),
    ] {
        patch(&path, at, &u64::to_be_bytes(number));
        let bytes = std::fs::read(&path).unwrap();
        let found = check(&bytes).unwrap();
        let crash = Arc::new(CrashStorage::new("image", bytes));
        let mut editor = editor(Arc::clone(&crash) as _);
        let before = states(&*editor.layer());
        editor.edit(&Edit::Repair(Repair::All)).unwrap();
        assert!(checked(&crash.durable()).is_flawless());
        crash.each_state(|cut, state: Arc<MemoryStorage>| {
            let layer = QCOW2.open(Arc::clone(&state) as _, &budget()).unwrap();
            assert!(states(&*layer) == before, "{cut}");
            let left = checked(&state);
            assert!(
                left.corruptions <= found.corruptions,
                "{cut}: {:?}",
                left.flaws
            );
            assert!(left.errors <= found.errors, "{cut}: {:?}", left.flaws);
        });
    }
}

/// The name of the backing file stands behind the first sector, and so do those of features.
#[test]
fn overlay_survives_every_cut() {
    let bench = Bench::new();
    let base = bench.text("base-with-a-long-name-so-that-two-of-them-are-longer-than-a-sector");
    qemu::img_ok(&["create", "-q", "-f", "raw", &base, "96k"]);
    let inside_a_cluster = [
        ("grow over a longer disk", Refused),
        ("the newer version", Same),
    ];
    let at_its_border = [("the newer version", Same)];
    let old_version = [
        ("grow over a longer disk", Refused),
        ("another version", Same),
        ("wider refcounts", Refused),
        ("narrower refcounts", Refused),
        ("a bitmap", Refused),
    ];
    for (options, idle) in [
        ("cluster_size=64k", &inside_a_cluster[..]),
        ("cluster_size=4k", &at_its_border),
        ("cluster_size=1k", &at_its_border),
        ("compat=0.10", &old_version),
    ] {
        let backing = format!("{options},backing_file={base},backing_fmt=raw");
        let commands = ["write -P 5 30k 10k"];
        cut_image(&bench.image("image", &backing, "96k", &commands), &[], idle);
    }
}
