//! An image with everything behind it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Budget, Chain, Error, ErrorKind, Layer, Result, is_same_bytes};

use crate::Opener;
use crate::found::denied;
use crate::open::ImageFile;
use crate::open::backing::changed_since;
use crate::told::told;

impl Opener {
    /// Opens the image at `path` with everything behind it, as the disk that a guest sees.
    ///
    /// `format` is the format's name; `None` guesses it, see [`probe`](crate::probe).
    ///
    /// # Errors
    /// `Io` if a file cannot be opened, or somebody else is [writing](Self::force_share) to it;
    /// `Denied` if the image is not what was [expected](Self::expect), needs a file that the policy
    /// forbids or whose format nobody states, or is encrypted and nobody gave the
    /// [passphrase](Self::secret); `Limit` if the chain is too deep; `Corrupt` if it runs
    /// in a circle; `Usage` for an unknown format; and those of
    /// [`Format::open`](goldsmith_block::Format::open).
    pub fn open(&self, path: impl AsRef<Path>, format: Option<&str>) -> Result<Chain> {
        let path = path.as_ref();
        self.open_from(path, self.open_top(path, format)?)
    }

    /// As [`open`](Self::open), from the `file` at `path` on, which is open already.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(crate) fn open_from(&self, path: &Path, file: ImageFile) -> Result<Chain> {
        let (chain, _) = self.chain_from(path, file)?;
        must_be_unlocked(&chain)?;
        Ok(chain)
    }

    /// As [`open`](Self::open), for whoever asks where the disk's bytes are ([`map`](crate::map())) and
    /// not for the bytes, which may be an error: what is packed as a whole need not be stored then.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn survey(&self, path: impl AsRef<Path>, format: Option<&str>) -> Result<Chain> {
        let surveyor = Self {
            extents_only: true,
            ..self.clone()
        };
        surveyor.open(path, format)
    }

    /// As [`open`](Self::open), with the path of each layer.
    pub(crate) fn open_with_paths(
        &self,
        path: &Path,
        format: Option<&str>,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        self.chain_from(path, self.open_top(path, format)?)
    }

    /// As [`open_with_paths`](Self::open_with_paths), from the `file` at `path` on.
    fn chain_from(&self, path: &Path, file: ImageFile) -> Result<(Chain, Vec<PathBuf>)> {
        let budget = Budget::new(&self.limits);
        let in_top = |error: Error| error.in_file(path.to_string_lossy());
        let mut top = self.open_image(file, &budget, 0).map_err(in_top)?;
        top = self.with_data(path, top).map_err(in_top)?;
        if let Some(name) = &self.snapshot {
            let found = name.open(&*top, &budget);
            top = found.map_err(|error| in_top(self.with_damage(error, &*top)))?;
        }
        self.open_behind(path, top, &budget)
    }

    /// `error`, and what of `layer` was left out that may be why.
    fn with_damage(&self, error: Error, layer: &dyn Layer) -> Error {
        match &layer.info().warnings[..] {
            warnings @ [_, ..] if self.salvages => {
                told(&error, |why| format!("{why}: {}", warnings.join("; ")))
            }
            _ => error,
        }
    }

    /// The layers of the image at `path`, and the path of each: to be asked about themselves, not for
    /// guest data that stands in a file of its own.
    pub(crate) fn open_heads(
        &self,
        path: &Path,
        format: Option<&str>,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        let heads_only = Self {
            heads_only: true,
            ..self.clone()
        };
        heads_only.open_with_paths(path, format)
    }

    /// Opens everything behind `top`, the image at `path`; gives the path of each layer, too.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(crate) fn open_behind(
        &self,
        path: &Path,
        top: Arc<dyn Layer>,
        budget: &Budget,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        let mut paths = vec![path.to_owned()];
        let mut warnings = Vec::new();
        let mut behind: Vec<Arc<dyn Layer>> = Vec::new();
        loop {
            let last = behind.last().unwrap_or(&top);
            let path = &paths[behind.len()];
            let Some(reference) = last.info().backing.clone() else {
                break;
            };
            let (next_path, layer) = self
                .behind(last.info().format)
                .open_reference(
                    (path, &**last.storage()),
                    &reference,
                    budget,
                    behind.len() + 1,
                )
                .map_err(|error| error.in_file(path.to_string_lossy()))?;
            warnings.extend(changed_since(path, &reference, &**layer.storage()));
            if std::iter::once(&top)
                .chain(&behind)
                .any(|seen| is_same_bytes(&**seen.storage(), &**layer.storage()))
            {
                return Err(Error::corrupt(format!(
                    "the backing file '{}' is already part of the chain",
                    next_path.display()
                ))
                .in_file(path.to_string_lossy()));
            }
            behind.push(layer);
            if behind.len() + 1 > self.limits.chain_depth {
                let limit = self.limits.chain_depth;
                let text = format!("the chain of backing files is longer than {limit} images");
                return Err(Error::new(ErrorKind::Limit, text));
            }
            paths.push(next_path);
        }
        self.must_be_for(paths.len())?;
        Ok((Chain::new(top, behind).warn(warnings), paths))
    }
}

/// Fails if guest data of `chain` cannot be read, whether or not it holds any: nobody gave a passphrase.
pub(crate) fn must_be_unlocked(chain: &Chain) -> Result<()> {
    let mut layers = chain.layers().iter();
    match layers.find(|layer| layer.info().locked) {
        None => Ok(()),
        Some(layer) => {
            let text = "guest data is encrypted, and no passphrase was given";
            Err(denied(text.into()).in_file(layer.storage().name()))
        }
    }
}
