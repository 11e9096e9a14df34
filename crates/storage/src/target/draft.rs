//! Files that nobody is to see yet, and their names if they have any.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use goldsmith_block::Storage;
use tempfile::TempPath;

use crate::FileStorage;
use crate::lock::{Use, lock};

/// Bytes of the target's name that its temporary neighbour repeats: 255 less room for the rest.
const NAME: usize = 200;

/// Makes something with a name of its own next to `path`; it goes when the name is dropped.
pub(super) fn beside<T>(
    path: &Path,
    parent: &Path,
    make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(T, TempPath)> {
    tempfile::Builder::new()
        .prefix(&OsString::from_vec(hidden(path)))
        .make_in(parent, make)
        .map(tempfile::NamedTempFile::into_parts)
}

/// Where the unfinished file of a [resumable](super::Target::resumable) target is that is going to be `path`, in the
/// directory `parent`.
pub(super) fn partial(path: &Path, parent: &Path) -> PathBuf {
    let mut name = OsString::from_vec(hidden(path));
    name.push("partial");
    parent.join(name)
}

/// Removes the file `partial` if it is empty and nobody is at work on it.
pub(super) fn remove_empty(partial: &Path) -> io::Result<()> {
    let is_empty = |found: Metadata| found.is_file() && found.len() == 0;
    if !fs::symlink_metadata(partial).is_ok_and(is_empty) {
        return Ok(());
    }
    let file = FileStorage::edit(partial).map_err(io::Error::other)?;
    match lock(&file, Use::Write) {
        Ok(()) if file.is_empty() => fs::remove_file(partial),
        // Who has it is told of when it is opened.
        _ => Ok(()),
    }
}

/// How the names of files begin that are going to be `path`.
fn hidden(path: &Path) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let name = &name[..name.len().min(NAME)];
    [b".", name, b".goldsmith-"].concat()
}
