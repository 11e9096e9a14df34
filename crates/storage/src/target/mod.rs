//! Publishing: a finished file takes its name in one step, an unfinished one never does.

mod draft;
mod inherit;
mod name;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Error, ErrorKind, Result, Storage, StorageId, StorageMut};
use tempfile::TempPath;

use self::draft::{beside, partial, remove_empty};
use self::inherit::{inherit, may_replace};
pub use self::name::follow;
use self::name::{directory_of, flush_directory, rename, stands};
use crate::FileStorage;
use crate::cache::Cache;
use crate::device::{Nature, share_bytes};
use crate::error::StorageError as E;
use crate::lock::{Use, lock};
use crate::sys;

/// Where a new image is going to stand.
///
/// Whoever opens the name finds what stood there before, until [`publish`](Self::publish) puts the
/// whole new file there. Dropping the target instead leaves everything as it was; so does the end
/// of the process, where the file system can hold a file without a name (Linux: `O_TMPFILE`). Only
/// between the last two calls of replacing an old file has the finished one a name of its own,
/// `.NAME.goldsmith-` and six letters, which is what a kill at that moment leaves.
///
/// An existing file hands down its mode, its access control list and, as far as the process may give
/// files away, its owner and group; but other hard links to it keep the old content. A symbolic link
/// stays, and what it points to is replaced. A block device has no second copy: it is written in place.
#[derive(Debug)]
pub struct Target {
    name: String,
    storage: Arc<FileStorage>,
    id: Option<StorageId>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A device, written where it stands.
    InPlace,
    /// A file that is going to be called `path`.
    New {
        path: PathBuf,
        directory: File,
        /// The name it has until then, if it has any.
        draft: Option<TempPath>,
        /// The file that it is going to replace.
        old: Option<FileStorage>,
        /// The image once more, where nothing else tells what became of its bytes: to be closed.
        again: Option<File>,
    },
}

impl Target {
    /// Prepares to put an image at `path`, in the directory of the file that this means.
    ///
    /// # Errors
    /// `Usage` if a directory, pipe, character device or socket stands there; `Io` if its directory
    /// is missing or may not be read and written, if the file there may not, or not be replaced, or if the
    /// device is in use.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::create_cached(path, Cache::default())
    }

    /// As [`create`](Self::create), with a file that goes through the system's cache in this way.
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub fn create_cached(path: impl AsRef<Path>, cache: Cache) -> Result<Self> {
        let path = path.as_ref();
        let name = path.to_string_lossy().into_owned();
        Self::prepare(path, &name, cache, sys::create_unnamed).map_err(|error| error.in_file(name))
    }

    /// As [`create_cached`](Self::create_cached), but until it is published the file has the name
    /// `.NAME.goldsmith-partial`, and once it is to be [kept](Self::keep) it stays under it, whatever
    /// becomes of this target. One that is there is opened as it is; but not one that is empty, if there must
    /// be a `fresh` one: somebody's notes may tell of that.
    ///
    /// # Errors
    /// Those of [`create`](Self::create), and of [`lock`](crate::lock()) if another process writes to
    /// that file.
    pub fn resumable(path: impl AsRef<Path>, cache: Cache, fresh: bool) -> Result<Self> {
        let path = path.as_ref();
        let name = path.to_string_lossy().into_owned();
        let target = Self::prepare_with(path, &name, cache, |path, parent, mode| {
            let partial = partial(path, parent);
            if fresh {
                remove_empty(&partial)?;
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .custom_flags(sys::OPEN_AT_ONCE | sys::OPEN_ITSELF)
                .open(&partial)?;
            Nature::of(&file.metadata()?).map_err(io::Error::other)?;
            let mut draft = TempPath::try_from_path(partial)?;
            // Not before it is known that nobody else is at work on it.
            draft.disable_cleanup(true);
            Ok((file, Some(draft)))
        })
        .and_then(|mut target| {
            if let Place::New { draft, .. } = &mut target.place {
                lock(&*target.storage, Use::Write)?;
                // Whoever had it until now may be done with it.
                let named = draft
                    .as_ref()
                    .and_then(|path| fs::symlink_metadata(path).ok());
                if named.map(|it| Nature::File.id(&it)) != Some(target.storage.id()) {
                    let text =
                        "another process was at work on it, and has just ended; look what it left";
                    return Err(Error::new(ErrorKind::Io, text));
                }
                let is_empty = target.storage.is_empty();
                draft
                    .iter_mut()
                    .for_each(|it| it.disable_cleanup(!is_empty));
            }
            Ok(target)
        });
        target.map_err(|error| error.in_file(name))
    }

    /// Leaves the file of a [resumable](Self::resumable) target under its own name if it is not
    /// published. By default it goes, if it was empty when it was opened.
    pub fn keep(&mut self) {
        if let Place::New {
            draft: Some(draft), ..
        } = &mut self.place
        {
            draft.disable_cleanup(true);
        }
    }

    fn prepare(
        path: &Path,
        name: &str,
        cache: Cache,
        create_unnamed: fn(&Path, u32) -> io::Result<File>,
    ) -> Result<Self> {
        Self::prepare_with(
            path,
            name,
            cache,
            |path, parent, mode| match create_unnamed(parent, mode) {
                Ok(file) => Ok((file, None)),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let (file, draft) = beside(path, parent, |at| {
                        OpenOptions::new()
                            .read(true)
                            .write(true)
                            .create_new(true)
                            .mode(mode)
                            .open(at)
                    })?;
                    Ok((file, Some(draft)))
                }
                Err(error) => Err(error),
            },
        )
    }

    /// `create` makes the file, given the path of the target, its directory and a mode.
    fn prepare_with(
        path: &Path,
        name: &str,
        cache: Cache,
        create: impl FnOnce(&Path, &Path, u32) -> io::Result<(File, Option<TempPath>)>,
    ) -> Result<Self> {
        let cannot_create = |source| E::Create { source };
        let path = follow(path)?;
        let old = match fs::metadata(&path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(E::Open { source }.into()),
        };
        let mut id = None;
        let mut replaced: Option<FileStorage> = None;
        if let Some(old) = &old {
            let nature = Nature::of(old)?;
            id = Some(nature.id(old));
            // Also what tells that the caller may not write the file it is about to replace.
            let storage = FileStorage::edit(&path)?;
            if nature == Nature::Device {
                return Ok(Self {
                    name: name.into(),
                    storage: Arc::new(storage.cached(cache)),
                    id,
                    place: Place::InPlace,
                });
            }
            replaced = Some(storage);
        }
        let parent = directory_of(&path)?;
        let directory = File::open(&parent).map_err(cannot_create)?;
        if let Some(old) = &old {
            let around = directory.metadata().map_err(cannot_create)?;
            if !may_replace(old, &around) {
                return Err(E::Sticky.into());
            }
        }
        // Nobody may read through the draft what they may not read through the old file.
        let mode = if old.is_some() { 0o600 } else { 0o666 };
        let (file, draft) = create(&path, &parent, mode).map_err(cannot_create)?;
        if let (Some(metadata), Some(old)) = (&old, &replaced) {
            inherit(&file, old.handle(), metadata).map_err(cannot_create)?;
        }
        // Now: descriptors may be all given out by the time they are needed.
        let again = (!cache.is_lasting()).then(|| file.try_clone());
        let again = again.transpose().map_err(cannot_create)?;
        Ok(Self {
            name: name.into(),
            storage: Arc::new(FileStorage::created(file, name.into())?.cached(cache)),
            id,
            place: Place::New {
                path,
                directory,
                draft,
                old: replaced,
                again,
            },
        })
    }

    /// Makes sure that no other process writes to the file that is going to be replaced, or uses the
    /// device that is written, and that none begins to until this target has its name: what it wrote
    /// would be lost.
    ///
    /// # Errors
    /// Those of [`lock`](crate::lock()).
    pub fn lock(&self) -> Result<()> {
        match &self.place {
            Place::InPlace => lock(&*self.storage, Use::Write),
            Place::New { old: Some(old), .. } => lock(old, Use::Read),
            Place::New { old: None, .. } => Ok(()),
        }
        .map_err(|error| error.in_file(&*self.name))
    }

    /// Where the image's bytes go; blank unless it is a device.
    pub fn storage(&self) -> Arc<dyn StorageMut> {
        self.storage.clone()
    }

    /// The identity of what stood under the name when the target was made, for finding out that it
    /// is also a source.
    pub fn id(&self) -> Option<StorageId> {
        self.id
    }

    /// Whether both are going to stand under one name, or what stands there is one already.
    pub fn meets(&self, other: &Self) -> bool {
        let ids = self.id.zip(other.id);
        let name = self.name_in_directory();
        ids.is_some_and(|(a, b)| share_bytes(a, b))
            || name.is_some() && name == other.name_in_directory()
    }

    /// Which directory the image is going to take its name in, and what name.
    fn name_in_directory(&self) -> Option<(StorageId, &OsStr)> {
        match &self.place {
            Place::InPlace => None,
            Place::New {
                path, directory, ..
            } => Some((
                Nature::File.id(&directory.metadata().ok()?),
                path.file_name()?,
            )),
        }
    }

    /// The directory in which the image is going to take its name; `None` if it is written where it
    /// stands.
    pub fn directory(&self) -> Option<PathBuf> {
        match &self.place {
            Place::InPlace => None,
            Place::New { path, .. } => directory_of(path).ok(),
        }
    }

    /// Makes the image durable and gives it its name, in place of what stood there. (Durable it is not
    /// made if its cache is [`Unsafe`](Cache::Unsafe); what the system lost already is an error even then.)
    ///
    /// # Errors
    /// `Io` if another file has taken the name since this target was made, which nobody has asked to
    /// have replaced; or if the image or its name cannot be made durable: only if the directory is what
    /// failed may the new file stand there all the same.
    pub fn publish(self) -> Result<()> {
        Self::publish_all([self])
    }

    /// The name that the file of a [resumable](Self::resumable) target has until it is published.
    pub fn draft(&self) -> Option<&Path> {
        match &self.place {
            Place::New { draft, .. } => draft.as_deref(),
            Place::InPlace => None,
        }
    }

    /// Publishes `targets`, one after the other. All of them are durable, and found to be able to take
    /// their names, before the first one does: between that and the last, what belongs together stands
    /// beside what it does not belong to.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish).
    pub fn publish_all(targets: impl IntoIterator<Item = Self>) -> Result<()> {
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.iter_mut().try_for_each(Self::store)?;
        targets.into_iter().try_for_each(Self::take_name)
    }

    /// Makes durable what stands under the name already, and that it does.
    ///
    /// # Errors
    /// `Io` if it cannot be.
    pub fn settle(&self) -> Result<()> {
        let Place::New { directory, old, .. } = &self.place else {
            return self.storage.flush();
        };
        old.iter()
            .try_for_each(|old| old.handle().sync_all())
            .map_err(|source| E::Flush { source })
            .and_then(|()| flush_directory(directory))
            .map_err(|error| Error::from(error).in_file(&*self.name))
    }

    /// Makes the image durable, and sure that it may take its name.
    fn store(&mut self) -> Result<()> {
        self.storage.flush()?;
        let Place::New {
            path, old, again, ..
        } = &mut self.place
        else {
            return Ok(());
        };
        let stored = match again.take() {
            // Not only the data: owner and mode must survive as well.
            None => self.storage.handle().sync_all(),
            // A file system of the network sends what it has, and tells what it lost.
            Some(again) => sys::close(again),
        };
        stored
            .map_err(|source| E::Flush { source })
            .and_then(|()| stands(path, old.as_ref()))
            .map(drop)
            .map_err(|error| Error::from(error).in_file(&*self.name))
    }

    /// Gives the image its name. What it replaces is locked until then, if it ever was.
    fn take_name(self) -> Result<()> {
        let Place::New {
            path,
            directory,
            draft,
            old,
            ..
        } = self.place
        else {
            return Ok(());
        };
        rename(&self.storage, &path, &directory, draft, old.as_ref())
            .map_err(|error| Error::from(error).in_file(self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A file system that knows no files without a name.
    fn plain(_directory: &Path, _mode: u32) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    }

    #[test]
    fn draft_with_a_name_is_hidden_and_goes_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        let target = Target::prepare(&path, "disk.raw", Cache::default(), plain).unwrap();
        let found = names(directory.path());
        assert_eq!(found.len(), 1);
        let random = found[0].strip_prefix(".disk.raw.goldsmith-").unwrap();
        assert_eq!(random.len(), 6);
        drop(target);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn draft_with_a_name_takes_the_other_one_when_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        for content in [&b"silver"[..], b"golden"] {
            let target = Target::prepare(&path, "disk.raw", Cache::default(), plain).unwrap();
            target.storage().write_at(0, content).unwrap();
            target.publish().unwrap();
            assert_eq!(names(directory.path()), ["disk.raw"]);
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    /// A machine that starts in between must not write to what is about to be nobody's.
    #[test]
    fn what_is_replaced_is_locked_until_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        fs::write(&path, b"silver").unwrap();
        let machine = FileStorage::edit(&path).unwrap();
        let mut target = Target::create(&path).unwrap();
        target.lock().unwrap();
        target.store().unwrap();
        lock(&machine, Use::Write).unwrap_err();
        target.take_name().unwrap();
        lock(&machine, Use::Write).unwrap();
    }

    #[test]
    fn targets_that_belong_together_are_published_together_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let [data, image] = ["disk.data", "disk.qcow2"].map(|name| directory.path().join(name));
        for path in [&data, &image] {
            fs::write(path, b"silver").unwrap();
        }
        let targets = [&data, &image].map(|path| Target::create(path).unwrap());
        for target in &targets {
            target.storage().write_at(0, b"golden").unwrap();
        }
        fs::remove_file(&image).unwrap();
        fs::write(&image, b"bronze").unwrap();
        let error = Target::publish_all(targets).unwrap_err();
        assert!(error.report().contains("another file has taken its name"));
        assert_eq!(fs::read(&data).unwrap(), b"silver");
        assert_eq!(fs::read(&image).unwrap(), b"bronze");
    }

    /// From its first moment: a mode that is taken back later was open to all until then.
    #[test]
    fn draft_of_a_secret_file_is_as_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        fs::write(&path, b"silver").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let _target = Target::prepare(&path, "disk.raw", Cache::default(), |_directory, mode| {
            assert_eq!(mode, 0o600);
            Err(io::ErrorKind::Unsupported.into())
        })
        .unwrap();
        for name in names(directory.path()) {
            let metadata = fs::metadata(directory.path().join(name)).unwrap();
            assert_eq!(metadata.mode() & 0o777, 0o600);
        }
    }
}
