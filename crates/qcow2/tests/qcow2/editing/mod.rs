//! Images that are changed where they stand, beside QEMU and beside a model.

mod cuts;
mod sequences;
mod snapshots;

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Checked, Edit, Editor, Format, Layer, Options, Preallocation, StorageMut};
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
