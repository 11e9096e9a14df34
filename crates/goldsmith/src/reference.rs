//! What a new image says of the files beside it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use goldsmith_block::{
    BackingReference, Chain, Error, ErrorKind, Layer, Options, Result, StorageId,
};
use goldsmith_storage::follow;

use crate::Opener;
use crate::filename::{ImageName, must_be_device};
use crate::registry::name_in_qemu;

/// What the new image at `target` says of the disk behind it, and that disk, if the creation
/// `options` ask for one. `opener` is [for it](Opener::behind).
pub(crate) fn behind(
    opener: &Opener,
    target: &Path,
    options: &Options,
) -> Result<Option<(BackingReference, Chain)>> {
    let names = options
        .text("backing_file")
        .zip(options.text("backing_fmt"));
    // The format refuses one without the other.
    let Some((name, format)) = names else {
        return Ok(None);
    };
    let (path, chain) = open_beside(opener, target, name, Some(format))?;
    let reference = reference(directory_of(target), &path, chain.top())?;
    Ok(Some((reference, chain)))
}

/// Opens the image that `name`, to be found in the image at `target`, means; gives the path that it
/// spells, too.
pub(crate) fn open_beside(
    opener: &Opener,
    target: &Path,
    name: &str,
    format: Option<&str>,
) -> Result<(String, Chain)> {
    let ImageName {
        path,
        format: stated,
        part: None,
        options,
        is_device,
        is_bare,
    } = ImageName::parse(name)?
    else {
        let text = format!("the backing file '{name}' cannot be a part of a file");
        return Err(Error::unsupported(text));
    };
    let path = path.to_string_lossy().into_owned();
    if let Some((key, _)) = options.first() {
        let text = format!("the name of the backing file '{path}' has the option '{key}'");
        return Err(Error::unsupported(text));
    }
    if let (Some(stated), Some(format)) = (&stated, format)
        && stated != format
    {
        let text = format!("the backing file '{name}' is said to be {format}");
        return Err(Error::usage(text));
    }
    if is_device {
        must_be_device(&beside(target, &path))?;
    }
    if !is_bare {
        must_be_that_of_qemu("backing file", Path::new(&path), &beside(target, &path))?;
    }
    let opener = opener.for_another_image();
    // It need not be read, so it may be encrypted.
    let format = format.or(stated.as_deref());
    let (chain, _) = opener.open_with_paths(&beside(target, &path), format)?;
    Ok((path, chain))
}

/// What the image at `target` says of a backing file that nobody looks at.
///
/// # Errors
/// `Usage` if that is the image itself, or there is no such format.
pub(crate) fn unseen(target: &Path, name: &str, format: &str) -> Result<BackingReference> {
    let names_itself = ImageName::parse(name)
        .is_ok_and(|name| are_one(&directory_of(target).join(name.path), target));
    if names_itself {
        let error = Error::usage("an image cannot be its own backing file");
        return Err(error.in_file(target.to_string_lossy()));
    }
    Ok(BackingReference {
        name: name.into(),
        format: Some(name_in_qemu(format)?.into()),
        ..BackingReference::default()
    })
}

/// The file for the data of the new image at `target`, if the creation `options` ask for another
/// one.
pub(crate) fn data_file(target: &Path, options: &Options) -> Result<Option<PathBuf>> {
    let Some(name) = options.text("data_file") else {
        return Ok(None);
    };
    let Some(path) = ImageName::parse(name)?.into_plain() else {
        let text = format!("the data file '{name}' is no plain path");
        return Err(Error::usage(text));
    };
    let (name, path) = (&path, directory_of(target).join(&path));
    if are_one(&path, target) {
        return Err(is_itself(&path));
    }
    must_be_that_of_qemu("data file", name, &path)?;
    Ok(Some(path))
}

/// Whether `a` and `b` are one file, or are going to be.
fn are_one(a: &Path, b: &Path) -> bool {
    let place = |path| real_directory_of(&follow(path).ok()?).ok();
    let (ids, places) = ([a, b].map(id_at), [a, b].map(place));
    a == b || ids[0].is_some() && ids[0] == ids[1] || places[0].is_some() && places[0] == places[1]
}

/// Fails if there is a file `name` in the working directory, where QEMU looks for `what`, and it is not
/// the one at `path`, beside the image. One of them is the wrong one. [qemu bdrv_open_child] So QEMU does
/// for data files, and [qemu path_has_protocol] for backing files whose names are more than a path.
///
/// # Errors
/// `Usage` if so.
pub(crate) fn must_be_that_of_qemu(what: &str, name: &Path, path: &Path) -> Result<()> {
    match id_at(name) {
        Some(theirs) if !is_at(path, theirs) => Err(Error::usage(format!(
            "the {what} '{}' is '{}' to goldsmith, and to QEMU the file of that name in the working \
             directory: work in the directory of the image, or give the {what} an absolute name",
            name.display(),
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// What to say of the data file at `path` if that is the image.
pub(crate) fn is_itself(path: &Path) -> Error {
    let path = path.display();
    Error::usage(format!("the data file '{path}' cannot be the image itself"))
}

/// The path that `name` stands for in the image at `target`.
pub(crate) fn beside(target: &Path, name: &str) -> PathBuf {
    directory_of(target).join(name)
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// How an image in `directory` names the image `behind`, whose path from there is `name`: by that
/// path, which survives a move of both, and by the absolute one, which survives a move of one.
///
/// # Errors
/// `Io` if the process has no current directory; `Usage` if a path is no text, or none leads there.
pub(crate) fn reference(
    directory: &Path,
    name: &str,
    behind: &dyn Layer,
) -> Result<BackingReference> {
    let (given, id) = (directory.join(name), behind.storage().id());
    let mut names = [directory, &*given].map(plain);
    let leads_there = |[from, path]: &[Result<PathBuf>; 2]| match (from, path) {
        (Ok(from), Ok(path)) => is_at(path, id) && is_at(&directory.join(relative(path, from)), id),
        _ => false,
    };
    if !leads_there(&names) {
        // A step back from behind a symbolic link leads elsewhere than it reads.
        names = [real(directory), real_directory_of(&given)];
        if !leads_there(&names) {
            let text = format!("no path leads from its directory to '{}'", given.display());
            return Err(Error::usage(text));
        }
    }
    let [from, path] = names;
    let (from, path) = (from?, path?);
    let text = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let text = format!(
                "the path '{}' is no text, so no image can name it",
                path.display()
            );
            Err(Error::usage(text))
        }
    };
    let info = behind.info();
    Ok(BackingReference {
        name: text(&relative(&path, &from))?,
        other_names: vec![text(&path)?],
        format: Some(info.format.into()),
        uuid: info.uuid,
        modified: std::fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
    })
}

/// Whether the file or device at `path` is `id`.
pub(crate) fn is_at(path: &Path, id: StorageId) -> bool {
    match id {
        StorageId::File { .. } | StorageId::Device(_) => id_at(path) == Some(id),
        _ => path.exists(),
    }
}

/// What the file or block device at `path` is, which is not opened for that.
fn id_at(path: &Path) -> Option<StorageId> {
    let found = std::fs::metadata(path).ok()?;
    let (dev, ino) = (found.dev(), found.ino());
    match () {
        () if found.is_file() => Some(StorageId::File { dev, ino }),
        () if found.file_type().is_block_device() => Some(StorageId::Device(found.rdev())),
        () => None,
    }
}

/// `directory` from the root of the file system on, without symbolic links.
#[allow(clippy::disallowed_methods, reason = "a name to be kept, no identity")]
fn real(directory: &Path) -> Result<PathBuf> {
    let directory = Path::new(".").join(directory);
    std::fs::canonicalize(directory).map_err(|error| Error::new(ErrorKind::Io, error))
}

/// `path` in its [real](real) directory; it may be a link itself.
fn real_directory_of(path: &Path) -> Result<PathBuf> {
    let directory = real(directory_of(path))?;
    Ok(directory.join(path.file_name().unwrap_or_default()))
}

/// `path` from the root of the file system on, without steps that lead nowhere. Symbolic links are
/// left alone.
fn plain(path: &Path) -> Result<PathBuf> {
    // Of no path at all nothing is made.
    let path = std::path::absolute(Path::new(".").join(path))
        .map_err(|error| Error::new(ErrorKind::Io, error))?;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            // At the root it leads to the root.
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    Ok(plain)
}

/// The way from `directory` to `path`, both [`plain`].
fn relative(path: &Path, directory: &Path) -> PathBuf {
    let (mut to, mut from) = (
        path.components().peekable(),
        directory.components().peekable(),
    );
    while to.peek().is_some() && to.peek() == from.peek() {
        to.next();
        from.next();
    }
    from.map(|_| Component::ParentDir).chain(to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn way_leads_up_as_far_as_it_must() {
        for (path, way) in [
            ("/vms/base.vhd", "base.vhd"),
            ("/vms/a/b.vhd", "a/b.vhd"),
            ("/base.vhd", "../base.vhd"),
            ("/pool/base.vhd", "../pool/base.vhd"),
        ] {
            assert_eq!(relative(Path::new(path), Path::new("/vms")), Path::new(way));
        }
    }

    #[test]
    fn plain_path_has_no_steps_back() {
        for (path, expected) in [("/a/../b", "/b"), ("/a/./b/", "/a/b"), ("/../a", "/a")] {
            assert_eq!(plain(Path::new(path)).unwrap(), Path::new(expected));
        }
        assert!(plain(Path::new("")).unwrap().is_absolute());
    }
}
