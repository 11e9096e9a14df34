//! Images that are changed where they stand, beside QEMU and beside a model.

mod amended;
mod apart;
mod bitmaps;
mod crowded;
mod cuts;
mod encrypted;
mod lost;
mod repaired;
mod resized;
mod sequences;
mod snapshots;
mod zeros;

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    Checked, Demand, Edit, Editor, Format, GuestRange, Layer, Options, Packing, Preallocation,
    StorageMut,
};
use goldsmith_codec::Packer;
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{FileStorage, MemoryStorage};
use goldsmith_testkit::image;

use crate::bench::budget;

/// An editor of the image in `storage`.
pub(crate) fn editor(storage: Arc<dyn StorageMut>) -> Box<dyn Editor> {
    let options = Options::defaults(QCOW2.open_options());
    QCOW2.edit(storage, &budget(), &options).unwrap()
}

/// Makes one change of the image at `path`.
pub(crate) fn edit(path: &Path, edit: &Edit) -> goldsmith_block::Result<()> {
    let storage = Arc::new(FileStorage::edit(path).unwrap());
    let options = Options::defaults(QCOW2.open_options());
    let mut editor = QCOW2.edit(storage, &budget(), &options)?;
    if let Some(name) = editor.layer().info().data_file.clone() {
        let data = FileStorage::edit(path.parent().unwrap().join(name)).unwrap();
        editor.set_data(Arc::new(data))?;
    }
    editor.edit(edit)
}

pub(crate) fn resize(virtual_size: u64) -> Edit {
    Edit::Resize {
        virtual_size,
        preallocation: Preallocation::Off,
        behind: 0,
    }
}

pub(crate) fn snapshot(name: &str) -> Edit {
    Edit::TakeSnapshot {
        name: name.into(),
        seconds: 1_700_000_000,
        nanoseconds: 5,
    }
}

/// What our own check finds in an image.
pub(crate) fn checked(storage: &Arc<MemoryStorage>) -> Checked {
    let checked = QCOW2.check(Arc::clone(storage) as _, &budget());
    checked.unwrap().unwrap()
}

/// The guest bytes of `layer`, and of each of its snapshots.
pub(crate) fn states(layer: &dyn Layer) -> Vec<Vec<u8>> {
    let snapshots = 0..layer.info().snapshots.len();
    let snapshots = snapshots.map(|index| {
        let snapshot = layer.snapshot(index, &budget()).unwrap();
        image::read(&*snapshot).unwrap()
    });
    std::iter::once(image::read(layer).unwrap())
        .chain(snapshots)
        .collect()
}

/// Writes over parts of the disk, which ascend: start, end and the byte that fills them.
pub(crate) fn write_over(editor: Box<dyn Editor>, size: u64, parts: &[(u64, u64, u8)]) {
    let sink = editor.into_sink(size).unwrap();
    let mut slots = Vec::new();
    for &(start, end, byte) in parts {
        let range = GuestRange::new(start, end);
        if byte == 0 {
            sink.reserve_zeroes(range).unwrap();
            continue;
        }
        let demand = Demand {
            range,
            packed: None,
        };
        sink.reserve(&[demand], &mut slots).unwrap();
        for slot in slots.drain(..) {
            let data = vec![byte; slot.range.len() as usize];
            sink.write(slot, &data).unwrap();
        }
    }
    sink.commit().unwrap();
}

/// As [`write_over`], with packed clusters.
pub(crate) fn pack_over(editor: Box<dyn Editor>, size: u64, parts: &[(u64, u64, u8)]) {
    let sink = editor.into_packing_sink(size).unwrap();
    let Packing { codec, unit } = sink.profile().packing.unwrap();
    let mut packer = Packer::new(codec);
    for &(start, end, byte) in parts {
        for at in (start..end).step_by(unit as usize) {
            let mut packed = Vec::new();
            let len = packer.pack(&vec![byte; unit as usize], &mut packed);
            let demand = Demand {
                range: GuestRange::new(at, at + unit),
                packed: len.unwrap().map(|len| len as u64),
            };
            let mut slots = Vec::new();
            sink.reserve(&[demand], &mut slots).unwrap();
            let slot = slots.pop().unwrap();
            assert!(slots.is_empty());
            assert_eq!(slot.packed, Some(packed.len() as u64));
            sink.write(slot, &packed).unwrap();
        }
    }
    sink.commit().unwrap();
}

/// Other values for some options.
pub(crate) fn amend(options: &[(&'static str, &'static str)]) -> Edit {
    let options = Options::parse(QCOW2.amend_options(), options.iter().copied());
    Edit::Amend(options.unwrap())
}

/// What stands in a header, read by hand.
pub(crate) struct Head {
    pub(crate) version: u32,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) refcount_order: u32,
}

impl Head {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let number = |at: usize, len: usize| {
            let bytes = &bytes[at..at + len];
            bytes
                .iter()
                .fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        let version = number(4, 4) as u32;
        let new = |at, len, old| if version < 3 { old } else { number(at, len) };
        Self {
            version,
            incompatible: new(72, 8, 0),
            compatible: new(80, 8, 0),
            refcount_order: new(96, 4, 4) as u32,
        }
    }
}
