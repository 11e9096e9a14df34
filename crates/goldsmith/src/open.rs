//! Opening an image, and what it names only as far as the caller allows.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Budget, Chain, Error, ErrorKind, Layer, Limits, Result, Storage,
};
use goldsmith_storage::FileStorage;

use crate::registry;

/// Which of the files that an image names may be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum References {
    /// None: an image that needs another one is refused.
    #[default]
    Deny,
    /// Files in the directory of the image that names them, symbolic links excepted.
    SameDirectory,
    /// Any file that the process may read. For images from people you trust.
    Allow,
}

/// Opens images.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    references: References,
    limits: Limits,
    backing_format: Option<String>,
}

impl Opener {
    /// An opener that follows no references, with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which files an image may pull in.
    #[must_use]
    pub fn references(mut self, references: References) -> Self {
        self.references = references;
        self
    }

    /// Sets what an image may cost.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the format of backing files for images that do not say it themselves.
    #[must_use]
    pub fn backing_format(mut self, format: impl Into<String>) -> Self {
        self.backing_format = Some(format.into());
        self
    }

    /// Opens the image at `path` with everything behind it, as the disk that a guest sees.
    ///
    /// `format` is the format's name; `None` guesses it, see [`probe`](crate::probe).
    ///
    /// # Errors
    /// `Denied` if the image needs a file that the policy forbids or whose format nobody states;
    /// `Limit` if the chain is too deep; `Corrupt` if it runs in a circle; `Usage` for an unknown
    /// format; and those of [`Format::open`](goldsmith_block::Format::open).
    pub fn open(&self, path: impl AsRef<Path>, format: Option<&str>) -> Result<Chain> {
        let budget = Budget::new(&self.limits);
        let mut path = path.as_ref().to_owned();
        let top = open_layer(&path, format, &budget)?;
        let mut behind: Vec<Arc<dyn Layer>> = Vec::new();
        loop {
            let last = behind.last().unwrap_or(&top);
            let Some(reference) = last.info().backing.clone() else {
                break;
            };
            let (next_path, layer) = self
                .open_reference(&path, &reference, &budget)
                .map_err(|error| error.in_file(path.to_string_lossy()))?;
            let id = layer.storage().id();
            if std::iter::once(&top)
                .chain(&behind)
                .any(|seen| seen.storage().id() == id)
            {
                return Err(Error::corrupt(format!(
                    "the backing file '{}' is already part of the chain",
                    reference.name
                ))
                .in_file(path.to_string_lossy()));
            }
            behind.push(layer);
            if behind.len() + 1 > self.limits.chain_depth {
                let limit = self.limits.chain_depth;
                let text = format!("the chain of backing files is longer than {limit} images");
                return Err(Error::new(ErrorKind::Limit, text));
            }
            path = next_path;
        }
        Ok(Chain::new(top, behind))
    }

    /// Opens the image at `path` alone, whatever it names.
    ///
    /// # Errors
    /// `Usage` for an unknown format, and those of
    /// [`Format::open`](goldsmith_block::Format::open).
    pub fn open_alone(
        &self,
        path: impl AsRef<Path>,
        format: Option<&str>,
    ) -> Result<Arc<dyn Layer>> {
        open_layer(path.as_ref(), format, &Budget::new(&self.limits))
    }

    fn open_reference(
        &self,
        from: &Path,
        reference: &BackingReference,
        budget: &Budget,
    ) -> Result<(PathBuf, Arc<dyn Layer>)> {
        let path = self.resolve(from, &reference.name)?;
        // Guessing would let whoever fills a RAW backing file turn it into something else.
        let format = reference
            .format
            .as_deref()
            .or(self.backing_format.as_deref());
        let format = format.ok_or_else(|| {
            denied(format!(
                "the image names its backing file '{}' without saying its format; say it with \
                 the backing format option (--backing-format)",
                reference.name
            ))
        })?;
        let layer = open_layer(&path, Some(format), budget)?;
        Ok((path, layer))
    }

    /// The path that `name`, found in the image at `from`, stands for, if it may be opened.
    fn resolve(&self, from: &Path, name: &str) -> Result<PathBuf> {
        if let Some((protocol, _)) = name.split_once(':')
            && !protocol.contains('/')
        {
            return Err(Error::unsupported(format!(
                "the backing file '{name}' is no plain path but of the kind '{protocol}:'"
            )));
        }
        let directory = from.parent().unwrap_or(Path::new(""));
        let path = directory.join(name);
        match self.references {
            References::Allow => Ok(path),
            References::Deny => Err(denied(format!(
                "the image needs the backing file '{name}', and the reference policy \
                 is 'deny' (--references)"
            ))),
            References::SameDirectory => {
                let mut parts = Path::new(name).components();
                let file_only = matches!(
                    (parts.next(), parts.next()),
                    (Some(Component::Normal(_)), None)
                );
                let in_directory = file_only || path.parent() == Some(&absolute(directory)?);
                if !in_directory
                    || !matches!(path.components().next_back(), Some(Component::Normal(_)))
                {
                    return Err(denied(format!(
                        "the backing file '{name}' is not in the directory of the image that \
                         names it, and the reference policy is 'same-directory' (--references)"
                    )));
                }
                if path.is_symlink() {
                    return Err(denied(format!(
                        "the backing file '{name}' is a symbolic link, and the reference policy \
                         is 'same-directory' (--references)"
                    )));
                }
                Ok(path)
            }
        }
    }
}

fn absolute(directory: &Path) -> Result<PathBuf> {
    let directory = if directory == Path::new("") {
        Path::new(".")
    } else {
        directory
    };
    std::path::absolute(directory).map_err(|error| Error::new(ErrorKind::Io, error))
}

fn open_layer(path: &Path, format: Option<&str>, budget: &Budget) -> Result<Arc<dyn Layer>> {
    let format = format.map(registry::format_named).transpose()?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path)?);
    let format = match format {
        Some(format) => format,
        None => registry::probe(&*storage)?,
    };
    format
        .open(storage, budget)
        .map_err(|error| error.in_file(path.to_string_lossy()))
}

fn denied(text: String) -> Error {
    Error::new(ErrorKind::Denied, text)
}
