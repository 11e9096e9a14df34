//! Files to be written, which must be none of those that are read.

use std::path::Path;

use goldsmith_block::{Chain, Error, Result, Storage, StorageId};
use goldsmith_storage::{Cache, FileStorage, Target, share_bytes};

use crate::Opener;
use crate::reference::is_itself;

/// Prepares to write `path`, which must be no file of the disks that are `read`.
pub(crate) fn create<'a>(
    path: &Path,
    cache: Cache,
    read: impl IntoIterator<Item = Option<&'a Chain>>,
) -> Result<Target> {
    let target = Target::create_cached(path, cache)?;
    refuse_source(path, target.id(), read.into_iter().flatten())?;
    target.lock()?;
    Ok(target)
}

/// As [`create`], for the file of the data of the image that is going to be `image`.
pub(crate) fn create_data<'a>(
    path: &Path,
    cache: Cache,
    read: impl IntoIterator<Item = Option<&'a Chain>>,
    image: &Target,
) -> Result<Target> {
    let target = create(path, cache, read)?;
    match target.meets(image) {
        true => Err(is_itself(path)),
        false => Ok(target),
    }
}

/// Fails as [`create`] would if what stands at `path` now is a file of the disks that are `read`.
pub(crate) fn must_spare<'a>(path: &Path, read: impl IntoIterator<Item = &'a Chain>) -> Result<()> {
    let old = FileStorage::open(path).ok();
    refuse_source(path, old.map(|old| old.id()), read)
}

/// Fails if the target at `path`, which is the file `id`, is one of the disks that are `read`.
pub(crate) fn refuse_source<'a>(
    path: &Path,
    id: Option<StorageId>,
    read: impl IntoIterator<Item = &'a Chain>,
) -> Result<()> {
    if id.is_some_and(|id| files(read).any(|read| share_bytes(read, id))) {
        let text = "the target is also a file of the source, which would be overwritten";
        return Err(Error::usage(text).in_file(path.to_string_lossy()));
    }
    Ok(())
}

/// The files that disks are `read` from.
pub(crate) fn files<'a>(
    read: impl IntoIterator<Item = &'a Chain>,
) -> impl Iterator<Item = StorageId> {
    let layers = read.into_iter().flat_map(Chain::layers);
    layers.flat_map(|layer| [layer.storage().id(), layer.data_storage().id()])
}

/// Says that everything is open, with `targets` still to be published.
pub(crate) fn all_open<'a>(
    opener: &Opener,
    targets: impl IntoIterator<Item = Option<&'a Target>>,
) -> Result<()> {
    let targets = targets.into_iter().flatten();
    let directories: Vec<_> = targets.filter_map(Target::directory).collect();
    opener.all_open(&directories)
}
