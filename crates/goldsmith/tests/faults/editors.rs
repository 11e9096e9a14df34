//! Images that are changed where they stand, on a storage that fails.

use std::sync::Arc;

use goldsmith_block::{
    BackingReference, BitmapChange, BitmapInfo, Chain, Checked, Detail, Edit, ErrorKind,
    GuestRange, Layer, Options, Preallocation, Repair, Result,
};
use goldsmith_engine::{Behind, Job};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::fault::{Fault, FaultStorage, Op};
use goldsmith_testkit::figure;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, ModelLayer, image};

use crate::{Row, budget, one_worker, row};

const OVER: &[(&str, &str)] = &[
    ("backing_file", "behind"),
    ("backing_fmt", "raw"),
    ("cluster_size", "4k"),
];
const VHD_OVER: &[(&str, &str)] = &[
    ("backing_file", "behind"),
    ("backing_fmt", "raw"),
    ("block_size", "512k"),
];
const BEHIND: &str = "32k:A 80k:D";

const ROWS: [Row; 9] = [
    row("raw", &[]),
    row("qcow2", &[("cluster_size", "4k")]),
    row("qcow2", &[("cluster_size", "512"), ("compat", "0.10")]),
    row("qcow2", &[("cluster_size", "16k"), ("extended_l2", "on")]),
    row("qcow2", &[("cluster_size", "1k"), ("refcount_bits", "8")]).packed(),
    row("qcow2", OVER).over(BEHIND),
    row("vpc", &[("block_size", "512k")]),
    row("vpc", &[("subformat", "fixed")]),
    row("vpc", VHD_OVER).over(BEHIND),
];

/// For each row the edits that change nothing, and those that are refused; all others change the image.
const IDLE: [Idle; ROWS.len()] = [
    Idle {
        same: &[],
        refused: &[
            "grow with places",
            "take a snapshot",
            "apply a snapshot",
            "delete a snapshot",
            "empty",
            "another backing file",
            "no backing file",
            "add",
            "mark",
            "disable",
            "clear",
            "remove",
            "repair",
        ],
    },
    WITH_BITMAPS,
    // [qemu] Of a snapshot of version 2 nobody knows how large the disk was.
    Idle {
        same: &["no backing file", "repair", "the old version"],
        refused: &[
            "grow",
            "grow a little",
            "grow with places",
            "grow with zeros",
            "shrink",
            "add",
            "mark",
            "disable",
            "clear",
            "remove",
            "wide refcounts",
            "narrow refcounts",
            "lazy refcounts",
        ],
    },
    WITH_BITMAPS,
    // More packed clusters begin in one than a narrow refcount counts.
    Idle {
        same: &["no backing file", "repair", "the new version"],
        refused: &[
            "mark",
            "disable",
            "clear",
            "remove",
            "the old version",
            "narrow refcounts",
        ],
    },
    Idle {
        same: &["repair", "the new version"],
        ..WITH_BITMAPS
    },
    Idle {
        same: &["no backing file", "repair"],
        refused: &[
            "take a snapshot",
            "apply a snapshot",
            "delete a snapshot",
            "add",
            "mark",
            "disable",
            "clear",
            "remove",
        ],
    },
    Idle {
        same: &["no backing file", "repair"],
        refused: &[
            "take a snapshot",
            "apply a snapshot",
            "delete a snapshot",
            "empty",
            "another backing file",
            "add",
            "mark",
            "disable",
            "clear",
            "remove",
        ],
    },
    Idle {
        same: &["repair"],
        refused: &[
            "take a snapshot",
            "apply a snapshot",
            "delete a snapshot",
            "add",
            "mark",
            "disable",
            "clear",
            "remove",
        ],
    },
];

const WITH_BITMAPS: Idle = Idle {
    same: &["no backing file", "repair", "the new version"],
    refused: &["apply a snapshot", "the old version"],
};

struct Idle {
    same: &'static [&'static str],
    refused: &'static [&'static str],
}

const OPS: [Op; 5] = [Op::Read, Op::Write, Op::SetLen, Op::Zero, Op::Flush];

fn picture() -> ModelDisk {
    disk("24k:A 30k:- 12k:b 4k:0 20k:- 6k:C")
}

impl Row {
    /// An image with all that its format has.
    fn furnished(&self) -> Vec<u8> {
        if self.format != "qcow2" {
            return self.image(&picture());
        }
        let older = self.image(&disk("24k:A 30k:- 12k:e 4k:0 20k:- 6k:C"));
        let storage = MemoryStorage::holding("image", self.edited(older, &take_snapshot("old")));
        let storage = Arc::new(storage);
        write_over(self, Arc::clone(&storage) as _, &picture()).unwrap();
        let mut image = storage.to_vec();
        // With bitmaps no snapshot can be applied.
        if self.options.contains(&("compat", "0.10")) || self.compress {
            return image;
        }
        let marked = BitmapChange::Mark(vec![GuestRange::new(12 << 10, 20 << 10)]);
        for (name, change) in [
            ("map", add(4096, true)),
            ("map", marked),
            ("idle", add(65536, false)),
        ] {
            image = self.edited(image, &bitmap(name, change));
        }
        image
    }

    /// What can be seen of an image: the disk, those of its snapshots, what its bitmaps know, what it
    /// says of itself.
    fn look(&self, layer: &Arc<dyn Layer>) -> Looks {
        let info = layer.info();
        let snapshots = 0..info.snapshots.len();
        let snapshots = snapshots.map(|nth| layer.snapshot(nth, &budget()).unwrap());
        let layers = std::iter::once(Arc::clone(layer)).chain(snapshots);
        let bitmaps = info.bitmaps.iter().enumerate();
        let bitmaps = bitmaps.map(|(nth, it)| {
            let dirty = match it.inconsistent {
                true => None,
                false => Some(layer.dirty_ranges(nth, &budget()).unwrap()),
            };
            (it.clone(), dirty)
        });
        // What a failure between the two footers of a VHD leaves, and what a repair mends.
        let details = info.details.iter();
        let details = details.filter(|(name, _)| *name != "footer-recovered");
        Looks {
            disks: layers.map(|layer| self.guest(layer).unwrap()).collect(),
            backing: info.backing.clone().map(|it| it.name),
            bitmaps: bitmaps.collect(),
            details: details.cloned().collect(),
        }
    }

    fn look_at(&self, image: Vec<u8>, what: &str) -> Looks {
        let layer = self.open(image);
        let layer = layer.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
        self.look(&layer)
    }

    fn check(&self, image: Vec<u8>) -> Option<Checked> {
        let storage = Arc::new(MemoryStorage::holding("image", image));
        self.format().check(storage, &budget()).unwrap()
    }

    /// The image is one that can be mended without any loss, if there is anything to be mended.
    fn assert_mendable(&self, image: &[u8], looks: &Looks, what: &str) {
        let Some(found) = self.check(image.to_vec()) else {
            return;
        };
        if self.format == "qcow2" {
            let sound = found.corruptions == 0 && found.errors == 0;
            assert!(sound, "{what}: {:?}", found.flaws);
        }
        let mended = self.edited(image.to_vec(), &Edit::Repair(Repair::All));
        let found = self.check(mended.clone()).unwrap();
        assert!(found.flaws.is_empty(), "{what}: {:?}", found.flaws);
        assert!(
            self.look_at(mended, what) == *looks,
            "{what}: mending changes it"
        );
    }

    /// All edits, each with its name.
    fn edits(&self) -> Vec<(&'static str, Edit)> {
        let size = picture().len();
        let resize = |virtual_size, preallocation| Edit::Resize {
            virtual_size,
            preallocation,
            behind: self.behind().map_or(0, |layer| layer.info().virtual_size),
        };
        let other = BackingReference {
            name: "another-name".into(),
            format: Some("raw".into()),
            uuid: Some(image::UUID),
            ..BackingReference::default()
        };
        let mut edits = vec![
            ("grow", resize(size * 40, Preallocation::Off)),
            ("grow a little", resize(size + 1024, Preallocation::Off)),
            (
                "grow with places",
                resize(size * 5, Preallocation::Metadata),
            ),
            ("grow with zeros", resize(size * 2, Preallocation::Full)),
            ("shrink", resize(size / 3 / 512 * 512, Preallocation::Off)),
            ("take a snapshot", take_snapshot("new")),
            ("apply a snapshot", Edit::ApplySnapshot(0)),
            ("delete a snapshot", Edit::DeleteSnapshot(0)),
            ("empty", Edit::Empty),
            ("another backing file", Edit::SetBacking(Some(other))),
            ("no backing file", Edit::SetBacking(None)),
            ("add", bitmap("new", add(512, false))),
            (
                "mark",
                bitmap("map", BitmapChange::Mark(vec![GuestRange::new(0, 8192)])),
            ),
            ("disable", bitmap("map", BitmapChange::Enable(false))),
            ("clear", bitmap("map", BitmapChange::Clear)),
            ("remove", bitmap("map", BitmapChange::Remove)),
            ("repair", Edit::Repair(Repair::All)),
        ];
        let amendable = self.format().amend_options();
        for (what, option, value) in [
            ("the old version", "compat", "0.10"),
            ("the new version", "compat", "1.1"),
            ("wide refcounts", "refcount_bits", "64"),
            ("narrow refcounts", "refcount_bits", "2"),
            ("lazy refcounts", "lazy_refcounts", "on"),
        ] {
            if let Ok(options) = Options::parse(amendable, [(option, value)]) {
                edits.push((what, Edit::Amend(options)));
            }
        }
        edits
    }
}

#[derive(PartialEq)]
struct Looks {
    disks: Vec<Vec<u8>>,
    backing: Option<String>,
    /// Each with its dirty parts, if it knows them.
    bitmaps: Vec<(BitmapInfo, Option<Vec<GuestRange>>)>,
    details: Vec<(&'static str, Detail)>,
}

fn take_snapshot(name: &str) -> Edit {
    Edit::TakeSnapshot {
        name: name.into(),
        seconds: 1_700_000_000,
        nanoseconds: 5,
    }
}

fn bitmap(name: &str, change: BitmapChange) -> Edit {
    Edit::Bitmap {
        name: name.into(),
        change,
    }
}

fn add(granularity: u64, enabled: bool) -> BitmapChange {
    BitmapChange::Add {
        granularity: Some(granularity),
        enabled,
    }
}

/// What becomes of an edit on a storage that does not fail.
enum Outcome {
    Changed,
    /// The image is what it was asked to be already.
    Same,
    Refused,
}

/// Makes `edit` with each call failing once. Gives what becomes of it otherwise, and the faults.
fn fail_everywhere(row: &Row, image: &[u8], edit: &Edit) -> (Outcome, usize) {
    let before = row.look_at(image.to_vec(), "before");
    let storage = Arc::new(MemoryStorage::holding("image", image.to_vec()));
    let editor = row.editor(Arc::clone(&storage) as _);
    if editor.unwrap().edit(edit).is_err() {
        assert!(row.look_at(storage.to_vec(), "refused") == before);
        return (Outcome::Refused, 0);
    }
    let after = row.look_at(storage.to_vec(), "after");
    let mut faults = 0;
    for op in OPS {
        for fault in Fault::EACH {
            if op == Op::Read && !matches!(fault, Fault::Nothing | Fault::ForGood) {
                continue;
            }
            for nth in 0.. {
                let what = format!("{row:?}: {edit:?}: {op:?} {nth}, which does {fault:?}");
                let memory = Arc::new(MemoryStorage::holding("image", image.to_vec()));
                let faulty = FaultStorage::new(Arc::clone(&memory), op, nth).doing(fault);
                let faulty = Arc::new(faulty);
                let editor = row.editor(Arc::clone(&faulty) as _);
                let result = editor.and_then(|mut editor| editor.edit(edit));
                if !faulty.fired() {
                    result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    break;
                }
                faults += 1;
                let left = memory.to_vec();
                let looks = row.look_at(left.clone(), &what);
                match &result {
                    Err(error) => {
                        let report = error.report();
                        assert_eq!(error.kind(), ErrorKind::Io, "{what}: {report}");
                        assert!(report.starts_with("image: "), "{what}: {report}");
                        assert!(looks == before || looks == after, "{what}: neither");
                    }
                    // Only what does not matter may fail unheard.
                    Ok(()) => assert!(looks == after, "{what}: success, but not done"),
                }
                row.assert_mendable(&left, &looks, &what);
                if looks == before {
                    // A VHD with two footers is edited only once it is mended.
                    let left = match row.format {
                        "vpc" => row.edited(left, &Edit::Repair(Repair::All)),
                        _ => left,
                    };
                    let again = Arc::new(MemoryStorage::holding("image", left));
                    let result = row.editor(Arc::clone(&again) as _).unwrap().edit(edit);
                    result.unwrap_or_else(|error| panic!("{what}, then: {error:?}"));
                    let looks = row.look_at(again.to_vec(), &what);
                    assert!(looks == after, "{what}: it cannot be done again");
                }
            }
        }
    }
    let outcome = match before == after {
        true => Outcome::Same,
        false => Outcome::Changed,
    };
    (outcome, faults)
}

#[test]
fn edit_on_a_failing_storage_is_an_error_and_leaves_the_old_image_or_the_new() {
    let mut all = 0;
    for (row, idle) in ROWS.iter().zip(IDLE) {
        let image = row.furnished();
        let (mut faults, mut same, mut refused) = (0, Vec::new(), Vec::new());
        for (what, edit) in row.edits() {
            let (outcome, under) = fail_everywhere(row, &image, &edit);
            faults += under;
            match outcome {
                Outcome::Changed => assert!(under > 0, "{row:?}: {what}"),
                Outcome::Same => same.push(what),
                Outcome::Refused => refused.push(what),
            }
        }
        let (same, refused) = (&*same, &*refused);
        assert_eq!((same, refused), (idle.same, idle.refused), "{row:?}");
        figure(format_args!("{faults} faults under edits of {row:?}"));
        assert!(faults >= 10, "{row:?}: only {faults} faults");
        all += faults;
    }
    figure(format_args!("{all} faults under edits"));
    assert!(all >= 5000, "only {all} faults");
}

/// A commit writes over what an overlay hides, so it may leave some of both; but nothing else, and it can
/// be done again.
#[test]
fn disk_written_over_on_a_failing_storage_is_a_mixture_sector_by_sector() {
    let new = disk("8k:x 16k:A 10k:y 20k:- 12k:b 20k:z 10k:C");
    let mut faults = 0;
    for row in ROWS {
        let image = row.furnished();
        let before = row.look_at(image.clone(), "before");
        for op in OPS {
            for fault in Fault::EACH {
                for nth in 0.. {
                    let what = format!("{row:?}: {op:?} {nth}, which does {fault:?}");
                    let memory = Arc::new(MemoryStorage::holding("image", image.clone()));
                    let faulty = FaultStorage::new(Arc::clone(&memory), op, nth).doing(fault);
                    let faulty = Arc::new(faulty);
                    let result = write_over(&row, Arc::clone(&faulty) as _, &new);
                    let is_last = !faulty.fired();
                    if is_last {
                        result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    } else {
                        faults += 1;
                        let left = memory.to_vec();
                        let looks = row.look_at(left.clone(), &what);
                        if let Err(error) = &result {
                            let report = error.report();
                            assert_eq!(error.kind(), ErrorKind::Io, "{what}: {report}");
                            assert!(report.starts_with("image: "), "{what}: {report}");
                        }
                        // A write of half its bytes ends inside a sector here.
                        let sectors = looks.disks[0].chunks(512);
                        let pairs = before.disks[0].chunks(512).zip(new.bytes().chunks(512));
                        let mixed = sectors
                            .zip(pairs)
                            .filter(|(found, (old, new))| found != old && found != new);
                        assert!(mixed.count() <= usize::from(fault == Fault::Half), "{what}");
                        assert!(looks.disks[1..] == before.disks[1..], "{what}: snapshots");
                        row.assert_mendable(&left, &looks, &what);
                        if result.is_err() {
                            if row.format == "vpc" {
                                let mut editor = row.editor(Arc::clone(&memory) as _).unwrap();
                                editor.edit(&Edit::Repair(Repair::All)).unwrap();
                            }
                            write_over(&row, Arc::clone(&memory) as _, &new).unwrap();
                        }
                    }
                    let looks = row.look_at(memory.to_vec(), &what);
                    assert!(looks.disks[0] == new.bytes(), "{what}: not done");
                    if is_last {
                        break;
                    }
                }
            }
        }
    }
    figure(format_args!(
        "{faults} faults under disks that are written over"
    ));
    assert!(faults >= 1000, "only {faults} faults");
}

/// As a commit does it: what differs from what the image shows goes into it.
fn write_over(
    row: &Row,
    storage: Arc<dyn goldsmith_block::StorageMut>,
    new: &ModelDisk,
) -> Result<()> {
    let editor = row.editor(storage)?;
    let behind = Chain::new(editor.layer(), row.behind());
    let sink = editor.into_sink(new.len())?;
    let source = Chain::new(Arc::new(ModelLayer::new(new.clone())), []);
    let job = Job {
        behind: Behind::Disk(&behind),
        ..one_worker()
    };
    goldsmith_engine::convert(&source, sink, &job).map(drop)
}
