//! Files that images name, as far as the policy lets them be opened.
//!
//! ```text
//!  name in an image ──► find ──► Found ──► open, edit ──► belongs to whoever may see it?
//!                      a path              by no link                └─► FileStorage
//! ```

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use goldsmith_block::{Error, ErrorKind, Result, Storage};
use goldsmith_storage::FileStorage;

use crate::References;
use crate::filename::Part;
use crate::told::why;

/// Modes in which everybody may read and write.
const ALL_READ: u32 = 0o004;
const ALL_WRITE: u32 = 0o002;

/// A file that was named, not opened yet.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    path: PathBuf,
    /// How it must be opened if an image named it and not everything is allowed.
    guard: Option<Guard>,
    /// What of it is meant, if not all.
    part: Option<Part>,
}

#[derive(Clone, Debug)]
struct Guard {
    /// The directory of the image, as the user spelled it.
    directory: PathBuf,
    /// The file's name in it.
    name: OsString,
    /// What the message calls it.
    called: String,
    /// Whose the image is.
    owner: Option<u32>,
}

impl Found {
    /// A file that the user named, who may name any.
    pub(crate) fn by_user(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            guard: None,
            part: None,
        }
    }

    /// Only a `part` of it, if one is said.
    pub(crate) fn only(self, part: Option<Part>) -> Self {
        Self { part, ..self }
    }

    /// The file that `name` means in `image`, which stands at `from`, if it may be opened. `what` is
    /// what the file is to the image.
    ///
    /// # Errors
    /// `Denied` if it may not; `Io` if the process has no current directory.
    pub(crate) fn by_image(
        references: References,
        (from, image): (&Path, &dyn Storage),
        name: &str,
        what: &str,
    ) -> Result<Self> {
        let directory = from.parent().unwrap_or(Path::new(""));
        let path = directory.join(name);
        match references {
            References::Allow => {
                return Ok(Self {
                    path,
                    guard: None,
                    part: None,
                });
            }
            References::Deny => {
                return Err(denied(format!(
                    "the image needs the {what} '{name}', and the reference policy is 'deny' \
                     (--references)"
                )));
            }
            References::SameDirectory => {}
        }
        let parts = Path::new(name).components();
        let mut parts = parts.filter(|part| *part != Component::CurDir);
        let file_only = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        let in_directory = file_only || path.parent() == Some(&absolute(directory)?);
        let last = path.components().next_back();
        let (true, Some(Component::Normal(last))) = (in_directory, last) else {
            return Err(denied(format!(
                "the {what} '{name}' is not in the directory of the image that names it, and the \
                 reference policy is 'same-directory' (--references)"
            )));
        };
        let guard = Guard {
            directory: directory.to_owned(),
            name: last.to_owned(),
            called: format!("the {what} '{name}'"),
            // One that is only rehearsed is no file.
            owner: owner(image).or_else(|| Some(std::fs::metadata(from).ok()?.uid())),
        };
        Ok(Self {
            path,
            guard: Some(guard),
            part: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What of it is meant, if not all.
    pub(crate) fn part(&self) -> Option<Part> {
        self.part
    }

    /// Opens all of it for reading.
    ///
    /// # Errors
    /// Those of [`FileStorage::open`] and [`FileStorage::open_beneath`]; `Denied` if it is somebody
    /// else's.
    pub(crate) fn open(&self) -> Result<FileStorage> {
        let Some(guard) = &self.guard else {
            return FileStorage::open(&self.path);
        };
        guard.pass(
            FileStorage::open_beneath(&guard.directory, &guard.name),
            ALL_READ,
        )
    }

    /// Opens all of it for reading and writing in place.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn edit(&self) -> Result<FileStorage> {
        let Some(guard) = &self.guard else {
            return FileStorage::edit(&self.path);
        };
        guard.pass(
            FileStorage::edit_beneath(&guard.directory, &guard.name),
            ALL_READ | ALL_WRITE,
        )
    }
}

impl Guard {
    /// What was `opened`, if the image's owner could do so, too: that is, if the file is his or if
    /// everybody has the `rights`. Otherwise whoever runs this, root perhaps, would do it for him.
    fn pass(&self, opened: Result<FileStorage>, rights: u32) -> Result<FileStorage> {
        let refuse = |why: &str| {
            format!(
                "{} {why}, and the reference policy is 'same-directory' (--references)",
                self.called
            )
        };
        let opened = opened.map_err(|error| match error.kind() {
            ErrorKind::Denied => denied(refuse(&why(&error))),
            _ => error,
        })?;
        match belongs(self.owner, &opened, rights) {
            Ok(()) => Ok(opened),
            Err(why) => Err(denied(refuse(why))),
        }
    }
}

/// Fails unless `named`, a file that `image` names, may be written to: as
/// [`edit`](Found::edit) does, for a file that is open already.
///
/// # Errors
/// `Denied`.
pub(crate) fn may_write(
    references: References,
    image: &dyn Storage,
    named: &dyn Storage,
) -> Result<()> {
    if references == References::Allow {
        return Ok(());
    }
    belongs(owner(image), named, ALL_READ | ALL_WRITE).map_err(|why| {
        denied(format!(
            "it {why}, and the reference policy is 'same-directory' (--references)"
        ))
        .in_file(named.name())
    })
}

/// Whether `file` is the `owner`'s, or else everybody has the `rights` to it; says why not.
fn belongs(owner: Option<u32>, file: &dyn Storage, rights: u32) -> Result<(), &'static str> {
    let found = file.file().and_then(|file| file.metadata().ok());
    let Some(found) = found else {
        return Err("cannot be looked at");
    };
    if owner == Some(found.uid()) || found.mode() & rights == rights {
        return Ok(());
    }
    Err(match rights == ALL_READ {
        true => "belongs to another user than the image, and not everybody may read it",
        false => "belongs to another user than the image, and not everybody may write to it",
    })
}

fn owner(storage: &dyn Storage) -> Option<u32> {
    Some(storage.file()?.metadata().ok()?.uid())
}

fn absolute(directory: &Path) -> Result<PathBuf> {
    let directory = match directory == Path::new("") {
        true => Path::new("."),
        false => directory,
    };
    std::path::absolute(directory).map_err(|error| Error::new(ErrorKind::Io, error))
}

pub(crate) fn denied(text: String) -> Error {
    Error::new(ErrorKind::Denied, text)
}
