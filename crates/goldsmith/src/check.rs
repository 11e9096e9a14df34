//! Checking one image file.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Budget, Checked, Result, Storage};
use goldsmith_storage::FileStorage;

use crate::{Opener, registry};

/// Looks at all tables of the image at `path` without changing anything or opening what it names;
/// `format` as in [`Opener::open`]. Gives the format's name, too; `None` if that has nothing to
/// check.
///
/// # Errors
/// As [`Opener::open_alone`].
pub fn check(
    opener: &Opener,
    path: impl AsRef<Path>,
    format: Option<&str>,
) -> Result<Option<(&'static str, Checked)>> {
    let path = path.as_ref();
    let format = format.map(registry::format_named).transpose()?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path)?);
    let format = match format {
        Some(format) => format,
        None => registry::probe(&*storage)?,
    };
    let checked = format
        .check(storage, &Budget::new(&opener.limits))
        .map_err(|error| error.in_file(path.to_string_lossy()))?;
    Ok(checked.map(|checked| (format.name(), checked)))
}
