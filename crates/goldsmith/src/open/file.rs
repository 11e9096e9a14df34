//! The file that an image is in, and which format it has.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Format, Result, Storage};
use goldsmith_storage::{FileStorage, Use};

use crate::found::{Found, denied};
use crate::{Opener, marks, registry};

/// A file that is open, and the format of the image in it.
pub(crate) struct ImageFile {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) format: &'static dyn Format,
}

impl Opener {
    /// Opens the file at `path`, that of the topmost image, and tells its format.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) that do not come of the image.
    pub(crate) fn open_top(&self, path: &Path, format: Option<&str>) -> Result<ImageFile> {
        self.open_file(&Found::by_user(path).only(self.part), format, 0)
    }

    /// Opens the file `found`, and tells its format.
    pub(super) fn open_file(
        &self,
        found: &Found,
        format: Option<&str>,
        depth: usize,
    ) -> Result<ImageFile> {
        let mut format = format.map(registry::format_named).transpose()?;
        let mut storage: Arc<dyn Storage> = Arc::new(self.read_found(found)?);
        self.lock(&*storage)?;
        if let Some(part) = found.part() {
            storage = Arc::new(part.of(storage)?);
        }
        if depth == 0 {
            format = self.expected_format(format, &*storage)?;
        }
        let format = match format {
            Some(format) => format,
            None => registry::probe(&*storage)?,
        };
        Ok(ImageFile { storage, format })
    }

    /// The file `found`, to be read.
    pub(crate) fn read_found(&self, found: &Found) -> Result<FileStorage> {
        Ok(found.open()?.cached(self.cache))
    }

    /// Tells other processes that `storage` is read, and must not be written meanwhile.
    pub(crate) fn lock(&self, storage: &dyn Storage) -> Result<()> {
        match self.force_share || self.holds(storage.id()) {
            true => Ok(()),
            false => goldsmith_storage::lock(storage, Use::Read),
        }
    }

    /// The format of the topmost image, as far as it is known: the one that it was expected to have, or
    /// else the one that was `stated`. Its file is `storage`.
    ///
    /// # Errors
    /// `Denied` if it is not of the format that was expected, or of others, too, or another was stated.
    pub(crate) fn expected_format(
        &self,
        stated: Option<&'static dyn Format>,
        storage: &dyn Storage,
    ) -> Result<Option<&'static dyn Format>> {
        let Some(expected) = &self.expected else {
            return Ok(stated);
        };
        let format = registry::format_named(expected)?;
        let expected = format.name();
        let mut found = marks::of_file(storage)?;
        if found.is_empty() {
            found.push("raw");
        }
        let text = if found != [expected] {
            let found = found.join(" and ");
            format!("the file was expected to be {expected}, and it is {found}")
        } else if let Some(stated) = stated.filter(|stated| stated.name() != expected) {
            let stated = stated.name();
            format!("the file was expected to be {expected}, and it was to be opened as {stated}")
        } else {
            return Ok(Some(format));
        };
        Err(denied(text).in_file(storage.name()))
    }
}
