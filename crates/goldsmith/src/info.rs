//! The facts about one image file.

use std::path::{Path, PathBuf};

use goldsmith_block::{Error, ErrorKind, LayerInfo, Result};

use crate::filename::protocol;
use crate::{Opener, registry};

/// The facts about one image file, without opening anything that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Where the image is, as the caller named it.
    pub path: PathBuf,
    /// What its format says.
    pub layer: LayerInfo,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes on its file system.
    pub allocated: u64,
    /// The format that the file looks like, if it looks like one that is known here, and one alone.
    pub looks_like: Option<String>,
}

impl ImageInfo {
    /// Reads the facts about the image at `path`; `format` as in [`Opener::open`].
    ///
    /// # Errors
    /// As [`Opener::open_alone`].
    pub fn read(opener: &Opener, path: impl AsRef<Path>, format: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let layer = opener.open_alone(path, format)?;
        let file_len = layer.storage().len();
        Ok(Self {
            path: path.to_owned(),
            layer: layer.info().clone(),
            file_len,
            allocated: allocated(path)?,
            looks_like: registry::probe(&**layer.storage())
                .ok()
                .map(|format| format.name().into()),
        })
    }

    /// Where the backing file is: a relative name counts from the image's directory, a name of
    /// another kind (`json:`, `nbd:`) is given as it is. Says nothing about whether it may be opened.
    pub fn backing_path(&self) -> Option<PathBuf> {
        let name = &self.layer.backing.as_ref()?.name;
        if protocol(name).is_some() {
            return Some(name.into());
        }
        Some(self.path.parent().unwrap_or(Path::new("")).join(name))
    }
}

#[cfg(unix)]
fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // POSIX counts blocks of 512 bytes here, whatever the file system's own are.
    metadata(path).map(|metadata| metadata.blocks() * 512)
}

#[cfg(not(unix))]
fn allocated(path: &Path) -> Result<u64> {
    metadata(path).map(|metadata| metadata.len())
}

fn metadata(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::metadata(path)
        .map_err(|error| Error::new(ErrorKind::Io, error).in_file(path.to_string_lossy()))
}
