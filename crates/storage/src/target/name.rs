//! The name that a target takes: where it leads, and how it is taken.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use goldsmith_block::{Error, Result, Storage};
use tempfile::TempPath;

use super::draft::beside;
use crate::FileStorage;
use crate::device::Nature;
use crate::error::StorageError as E;
use crate::sys;

/// As many symbolic links as Linux follows for one name.
const LINKS: usize = 40;

/// The path that `path` stands for once symbolic links are followed, whether or not it exists.
///
/// # Errors
/// `Io` if they lead nowhere; `Usage` if one stands for what a process has open, whatever its text says.
pub fn follow(path: impl AsRef<Path>) -> Result<PathBuf> {
    let given = path.as_ref();
    let mut path = given.to_owned();
    for _ in 0..=LINKS {
        match fs::read_link(&path) {
            Ok(_) if sys::is_of_process(&path) => {
                return Err(Error::from(E::OfProcess).in_file(given.to_string_lossy()));
            }
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            // No link, or nothing at all.
            Err(_) => return Ok(path),
        }
    }
    let source = io::Error::other("it is a symbolic link to itself");
    Err(Error::from(E::Open { source }).in_file(given.to_string_lossy()))
}

/// The directory in which `path` is a name.
pub(super) fn directory_of(path: &Path) -> Result<PathBuf, E> {
    let is_name = path.file_name().is_some() && !path.as_os_str().as_bytes().ends_with(b"/");
    if !is_name {
        let what = "no name of a file";
        return Err(E::NotBytes { what });
    }
    Ok(match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    })
}

pub(super) fn rename(
    storage: &FileStorage,
    path: &Path,
    directory: &File,
    draft: Option<TempPath>,
    old: Option<&FileStorage>,
) -> Result<(), E> {
    let cannot_publish = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => E::Taken,
        _ => E::Publish { source },
    };
    let file = storage.handle();
    let named = match draft {
        Some(draft) => Some(draft),
        None => match sys::link_unnamed(file, path) {
            // A name can only be replaced by another name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && old.is_some() => {
                let parent = directory_of(path)?;
                let link = |at: &Path| sys::link_unnamed(file, at);
                Some(beside(path, &parent, link).map_err(cannot_publish)?.1)
            }
            linked => linked.map(|()| None).map_err(cannot_publish)?,
        },
    };
    if let Some(mut draft) = named {
        match stands(path, old)? {
            true => fs::rename(&draft, path),
            false => sys::rename_new(&draft, path),
        }
        .map_err(cannot_publish)?;
        // It has another name now.
        draft.disable_cleanup(true);
    }
    if !storage.is_lasting() {
        return Ok(());
    }
    flush_directory(directory)
}

/// Stores the names in `directory`, as far as the file system does that when it is asked: that of shared
/// folders says that directories are nothing to flush.
pub(super) fn flush_directory(directory: &File) -> Result<(), E> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    match directory.sync_all() {
        // [fsync(2)] EINVAL, and ENOSYS or EOPNOTSUPP; what fails is another matter.
        Err(source) if matches!(source.kind(), InvalidInput | Unsupported) => Ok(()),
        done => done.map_err(|source| E::FlushDirectory { source }),
    }
}

/// Whether the `old` file stands under the name `path` yet. It may be gone; but what another process has
/// put there meanwhile is somebody's only copy.
pub(super) fn stands(path: &Path, old: Option<&FileStorage>) -> Result<bool, E> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(false);
    };
    let id = Nature::of(&found).ok().map(|nature| nature.id(&found));
    match id.is_some() && id == old.map(|it| it.id()) {
        true => Ok(true),
        false => Err(E::Taken),
    }
}
