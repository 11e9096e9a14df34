//! What happens to an image that is changed again and again.

use std::sync::Arc;

use goldsmith_block::{
    BackingReference, BitmapChange, Edit, Editor, ErrorKind, Format, GuestRange, Layer, Options,
    Preallocation::{self, Falloc, Full, Metadata, Off},
    Repair, Result,
};
use goldsmith_storage::MemoryStorage;

use self::Step::*;
use super::whole::WHOLE;
use super::{METADATA, look_around};
use crate::hostile::{assert_blames_image, budget, check, open, options};
use crate::image;
use crate::model::{Fill, ModelDisk};

/// Snapshots whose disks are kept in mind.
const SNAPSHOTS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Halve,
    Double,
    /// By half a kilobyte more than a large cluster, over a disk behind that goes on, or not.
    Grow(Preallocation, bool),
    /// Some parts of the disk become others.
    Write,
    Pack,
    /// A part of the disk becomes zeros.
    Blank,
    Empty,
    Back,
    Flatten,
    Take,
    Apply,
    Forget,
    Repair(Repair),
    AddBitmap(bool),
    MarkBitmap,
    ClearBitmap,
    EnableBitmap(bool),
    RemoveBitmap,
    Amend(&'static str, &'static str),
}

/// What is done one after the other; each begins anywhere in its row and goes round.
const ROWS: [&[Step]; 8] = [
    &[
        Halve,
        Grow(Off, false),
        Write,
        Repair(Repair::Leaks),
        Take,
        Write,
        Apply,
    ],
    &[
        Take,
        Write,
        Forget,
        Blank,
        Repair(Repair::All),
        Double,
        Write,
    ],
    &[
        AddBitmap(true),
        Write,
        MarkBitmap,
        Take,
        EnableBitmap(false),
        Blank,
        ClearBitmap,
        RemoveBitmap,
    ],
    &[
        Amend("compat", "0.10"),
        Write,
        Blank,
        Amend("compat", "1.1"),
        Amend("lazy_refcounts", "on"),
        Take,
        Write,
    ],
    &[Back, Write, Grow(Off, true), Empty, Write, Blank, Flatten],
    &[
        Pack,
        Write,
        Halve,
        Grow(Full, false),
        Pack,
        Take,
        Pack,
        Forget,
    ],
    &[
        Amend("refcount_bits", "1"),
        Take,
        Write,
        Amend("refcount_bits", "64"),
        Take,
        Apply,
        Forget,
        Amend("refcount_bits", "16"),
    ],
    &[
        Grow(Metadata, false),
        Write,
        Take,
        Grow(Falloc, false),
        AddBitmap(false),
        EnableBitmap(true),
        Empty,
        Repair(Repair::All),
    ],
];

/// Takes `data` as an image and changes it, several times in a row; its last byte says how.
///
/// # Panics
/// If the format panics, blames anything but the image or the request, or if an image in which a check
/// found no errors has some after a change, or a disk or a snapshot of it is not what it should be.
pub fn edit(format: &dyn Format, data: &[u8]) {
    let Ok(layer) = open(format, data.to_vec(), METADATA) else {
        return;
    };
    let sound = is_sound(format, data.to_vec());
    let mut disks = Some(&layer).filter(|_| sound).and_then(disks_of);
    let storage = Arc::new(MemoryStorage::holding("image", data.to_vec()));
    let how = usize::from(data.last().copied().unwrap_or_default());
    let row = ROWS[how % ROWS.len()];
    for nth in 0..row.len() {
        let step = row[(how / ROWS.len() + nth) % row.len()];
        let letter = b'a' + nth as u8;
        let done = format
            .edit(
                Arc::clone(&storage) as _,
                &budget(METADATA),
                &options(format),
            )
            .and_then(|editor| step.run(format, editor, letter, &mut disks));
        match done {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Usage => {}
            Err(error) => assert_blames_image(&error),
        }
        let bytes = storage.to_vec();
        let layer = open(format, bytes.clone(), METADATA);
        let layer = layer.unwrap_or_else(|error| panic!("{step:?} leaves no image: {error:?}"));
        assert!(
            !sound || is_sound(format, bytes.clone()),
            "{step:?} leaves {:?}",
            check(format, bytes, METADATA)
        );
        match &disks {
            Some(disks) => disks.check(step, &layer),
            None => look_around(&*layer, 0, layer.info().virtual_size),
        }
    }
}

fn is_sound(format: &dyn Format, image: Vec<u8>) -> bool {
    matches!(check(format, image, METADATA), Ok(Some(found)) if found.corruptions + found.errors == 0)
}

/// What an image shows when nothing stands behind it.
struct Disks {
    disk: Vec<u8>,
    snapshots: Vec<Vec<u8>>,
}

/// The disks of `layer`, if all can be read and none is large.
fn disks_of(layer: &Arc<dyn Layer>) -> Option<Disks> {
    let disk = |layer: &dyn Layer| {
        let small = layer.info().virtual_size <= WHOLE;
        small.then(|| image::read(layer).ok()).flatten()
    };
    let count = layer.info().snapshots.len();
    if count > SNAPSHOTS {
        return None;
    }
    let snapshot = |index| disk(&*layer.snapshot(index, &budget(METADATA)).ok()?);
    Some(Disks {
        disk: disk(&**layer)?,
        snapshots: (0..count).map(snapshot).collect::<Option<_>>()?,
    })
}

impl Disks {
    fn check(&self, step: Step, layer: &Arc<dyn Layer>) {
        let found = disks_of(layer).unwrap_or_else(|| panic!("{step:?} leaves what is not read"));
        assert!(found.disk == self.disk, "{step:?} leaves another disk");
        assert!(
            found.snapshots == self.snapshots,
            "{step:?} leaves other snapshots"
        );
    }
}

impl Step {
    /// Does it, to the image and, if it can be done, to what is known of its disks: nothing, where
    /// that becomes too much or is left half done.
    fn run(
        self,
        format: &dyn Format,
        mut editor: Box<dyn Editor>,
        letter: u8,
        disks: &mut Option<Disks>,
    ) -> Result<()> {
        let size = editor.layer().info().virtual_size;
        let edit = match self {
            Write | Pack | Blank => return self.write(editor, letter, disks),
            Halve => resize(size / 2 / 512 * 512, Off, 0),
            Double => resize(size.saturating_mul(2).min(1 << 40), Off, 0),
            Grow(..) if size > WHOLE => return Ok(()),
            Grow(preallocation, over) => {
                let more = size / 512 * 512 + 66_048;
                resize(more, preallocation, if over { more - 1024 } else { 0 })
            }
            Empty => Edit::Empty,
            Back => Edit::SetBacking(Some(BackingReference {
                name: "base.raw".into(),
                format: Some("raw".into()),
                ..BackingReference::default()
            })),
            Flatten => Edit::SetBacking(None),
            Take => Edit::TakeSnapshot {
                name: "s".into(),
                seconds: 1,
                nanoseconds: 2,
            },
            Apply => Edit::ApplySnapshot(0),
            Forget => Edit::DeleteSnapshot(0),
            Repair(repair) => Edit::Repair(repair),
            AddBitmap(enabled) => bitmap(BitmapChange::Add {
                granularity: None,
                enabled,
            }),
            MarkBitmap => bitmap(BitmapChange::Mark(vec![GuestRange::new(
                size / 3,
                size / 2,
            )])),
            ClearBitmap => bitmap(BitmapChange::Clear),
            EnableBitmap(enabled) => bitmap(BitmapChange::Enable(enabled)),
            RemoveBitmap => bitmap(BitmapChange::Remove),
            Amend(key, value) => {
                Edit::Amend(Options::parse(format.amend_options(), [(key, value)])?)
            }
        };
        editor.edit(&edit)?;
        if let Some(known) = disks {
            known.follow(&edit);
            if known.disk.len() as u64 > WHOLE || known.snapshots.len() > SNAPSHOTS {
                *disks = None;
            }
        }
        Ok(())
    }

    /// Writes over parts of the disk.
    fn write(self, editor: Box<dyn Editor>, letter: u8, disks: &mut Option<Disks>) -> Result<()> {
        let size = editor.layer().info().virtual_size;
        if size > WHOLE {
            return Ok(());
        }
        let sink = match self {
            Pack => editor.into_packing_sink(size)?,
            _ => editor.into_sink(size)?,
        };
        // From here on a part of it may be done.
        let known = disks.take();
        let profile = sink.profile();
        let unit = profile
            .packing
            .map_or(profile.grain, |packing| packing.unit);
        let units = size.div_ceil(unit);
        let (first, end, last) = (
            units / 4 * unit,
            units / 2 * unit,
            units.saturating_sub(1) * unit,
        );
        let fill = match self {
            Pack => Fill::Data(letter.to_ascii_uppercase()),
            Blank => Fill::Zero,
            _ => Fill::Data(letter),
        };
        let pieces = [
            (first, Fill::Hole),
            (end - first, fill),
            (last - end.min(last), Fill::Hole),
            (size - last.max(end), fill),
        ];
        let written = ModelDisk::new(pieces);
        if let Blank = self {
            for run in written.runs().iter().filter(|run| run.fill == fill) {
                sink.reserve_zeroes(run.range)?;
            }
            sink.commit()?;
        } else {
            image::drive(sink, &written)?;
        }
        *disks = known.map(|mut known| {
            for run in written.runs().iter().filter(|run| run.fill == fill) {
                let range = run.range.start as usize..run.range.end as usize;
                known.disk[range.clone()].copy_from_slice(&written.bytes()[range]);
            }
            known
        });
        Ok(())
    }
}

impl Disks {
    /// Does what `edit` does to the disks.
    fn follow(&mut self, edit: &Edit) {
        match edit {
            Edit::Resize { virtual_size, .. } => self.disk.resize(*virtual_size as usize, 0),
            Edit::TakeSnapshot { .. } => self.snapshots.push(self.disk.clone()),
            Edit::ApplySnapshot(index) => self.disk.clone_from(&self.snapshots[*index]),
            Edit::DeleteSnapshot(index) => {
                self.snapshots.remove(*index);
            }
            Edit::Empty => self.disk.fill(0),
            _ => {}
        }
    }
}

fn resize(virtual_size: u64, preallocation: Preallocation, behind: u64) -> Edit {
    Edit::Resize {
        virtual_size,
        preallocation,
        behind,
    }
}

fn bitmap(change: BitmapChange) -> Edit {
    Edit::Bitmap {
        name: "b".into(),
        change,
    }
}
