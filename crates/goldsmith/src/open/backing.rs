//! What an image names as standing behind it.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use goldsmith_block::{BackingReference, Budget, Error, ErrorKind, Layer, Result, Storage};

use crate::filename::{ImageName, must_be_device};
use crate::found::{Found, denied};
use crate::reference::must_be_that_of_qemu;
use crate::told::{told, why};
use crate::{Opener, References};

impl Opener {
    /// Opens what `reference`, found in the image at the path `from`, means: the first of its names
    /// that leads to an image with the right identity, or to any file if it tells none.
    pub(super) fn open_reference(
        &self,
        from: (&Path, &dyn Storage),
        reference: &BackingReference,
        budget: &Budget,
        depth: usize,
    ) -> Result<(PathBuf, Arc<dyn Layer>)> {
        let mut failures = Vec::new();
        for name in std::iter::once(&reference.name).chain(&reference.other_names) {
            match self.open_name(from, name, reference, budget, depth) {
                Ok(opened) => return Ok(opened),
                // Whatever has the next name would do, and this one may be the parent's.
                Err(error) if reference.uuid.is_none() && !leads_nowhere(&error) => {
                    return Err(error);
                }
                Err(error) => failures.push((name, error)),
            }
        }
        Err(self.best_told(failures))
    }

    /// The one of `failures`, each with the name that led to it, that helps the user most: one that
    /// says what is wrong with a file that was found rather than one about a file that is not there.
    fn best_told(&self, mut failures: Vec<(&String, Error)>) -> Error {
        let rank = |error: &Error| match error.kind() {
            ErrorKind::Io => 0,
            ErrorKind::Unsupported | ErrorKind::Denied => 1,
            _ => 2,
        };
        let best = failures.iter().map(|(_, error)| rank(error)).max();
        let at = failures
            .iter()
            .position(|(_, error)| Some(rank(error)) == best);
        // A reference has one name at least, and each gave an error.
        let (_, error) = failures.remove(at.unwrap_or(0));
        if failures.is_empty() || self.references == References::Deny {
            return error;
        }
        let others: Vec<_> = failures
            .iter()
            .map(|(name, error)| match error.kind() {
                // It may well be the right one.
                ErrorKind::Denied => format!("'{name}' ({})", why(error)),
                _ => format!("'{name}'"),
            })
            .collect();
        let others = others.join(", ");
        told(&error, |wrong| {
            format!("{wrong}; nor did its other names in the image lead to it: {others}")
        })
    }

    fn open_name(
        &self,
        from: (&Path, &dyn Storage),
        name: &str,
        reference: &BackingReference,
        budget: &Budget,
        depth: usize,
    ) -> Result<(PathBuf, Arc<dyn Layer>)> {
        let ImageName {
            path: name,
            format: stated,
            part,
            options,
            is_device,
            is_bare,
        } = ImageName::parse(name)?;
        // Always text, because it was.
        let name = name.to_string_lossy();
        if let Some((key, _)) = options.first() {
            return Err(Error::unsupported(format!(
                "the name of the backing file '{name}' has the option '{key}'"
            )));
        }
        if let (Some(stated), Some(format)) = (&stated, &reference.format)
            && stated != format
        {
            return Err(Error::unsupported(format!(
                "the image says that its backing file '{name}' is {format}, and in its name that \
                 it is {stated}"
            )));
        }
        let found = Found::by_image(self.references, from, &name, "backing file")?.only(part);
        // Guessing would let whoever fills a RAW backing file turn it into something else.
        let format = reference
            .format
            .as_deref()
            .or(stated.as_deref())
            .or(self.backing_format.as_deref());
        let format = format.ok_or_else(|| {
            denied(format!(
                "the image names its backing file '{name}' without saying its format; say it with \
                 the backing format option (--backing-format)"
            ))
        })?;
        let path = found.path();
        if is_device {
            must_be_device(path)?;
        }
        if !is_bare {
            must_be_that_of_qemu("backing file", Path::new(&*name), path)?;
        }
        let file = self.open_file(&found, Some(format), depth)?;
        let layer = self
            .open_image(file, budget, depth)
            .and_then(|layer| self.with_data(path, layer))
            .map_err(|error| error.in_file(path.to_string_lossy()))?;
        let found = layer.info().uuid;
        if let Some(wanted) = reference.uuid
            && found != Some(wanted)
        {
            let found = found.map_or("none".into(), |uuid| uuid.to_string());
            return Err(Error::corrupt(format!(
                "the image is based on the one with the identity {wanted}, and that of '{}' is \
                 {found}",
                path.display()
            )));
        }
        Ok((path.to_owned(), layer))
    }
}

/// Whether `error` says that there is no file of that name.
fn leads_nowhere(error: &Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), NotFound | NotADirectory);
        }
        source = error.source();
    }
    false
}

/// What to say if the file that `storage` is in is not as the image at `from` last saw it.
///
/// A word of warning only: XenServer's tools never compare the times, and a copied file rarely
/// keeps its own; Hyper-V refuses. The identity has to match in any case.
pub(super) fn changed_since(
    from: &Path,
    reference: &BackingReference,
    storage: &dyn Storage,
) -> Option<String> {
    let changed = drift(reference.modified?, modified(storage)?)?;
    Some(format!(
        "{}: its backing file '{}' was last changed {changed} than the image says; if it was written \
         to since, what shows through is wrong",
        from.display(),
        storage.name()
    ))
}

/// Fails if nothing says that the file that `storage` is in is the one that `reference` means: it has
/// no identity, and was not last changed when the image says. To be asked before it is written to.
///
/// Where an image notes neither, as those of qcow2, its word must do.
///
/// # Errors
/// `Denied`.
pub(crate) fn must_be_unchanged(reference: &BackingReference, storage: &dyn Storage) -> Result<()> {
    let Some(doubt) = Doubt::about(reference, storage) else {
        return Ok(());
    };
    let Doubt { why, .. } = &doubt;
    let way_out = match doubt.can_be_settled {
        true => {
            "if it is not, as after a commit that was cut off, base the image on it once more \
             (rebase -u), or name it (commit -b), which does not empty the image"
        }
        false => "if it is not, name it (commit -b), which does not empty the image",
    };
    Err(denied(format!("{why}; {way_out}")))
}

/// Fails if nothing says that the files behind the images of `layers` are the ones that those mean. To be
/// asked before an image is changed by what they show: what is copied from another disk stays, and what is
/// not copied because another disk has it, too, is lost.
///
/// # Errors
/// `Denied`.
pub(crate) fn must_know_backing(layers: &[Arc<dyn Layer>]) -> Result<()> {
    for (image, behind) in layers.iter().zip(layers.iter().skip(1)) {
        let reference = image.info().backing.as_ref();
        let doubt = reference.and_then(|it| Doubt::about(it, &**behind.storage()));
        let Some(doubt) = doubt else {
            continue;
        };
        let way_out = match doubt.can_be_settled {
            true => "base the image on it once more (rebase -u)",
            false => "convert the image into another one",
        };
        let why = doubt.why;
        let text = format!("{why}; to go by what it shows all the same, {way_out}");
        return Err(denied(text).in_file(image.storage().name()));
    }
    Ok(())
}

/// What makes the file behind an image look like another one.
struct Doubt {
    /// A sentence.
    why: String,
    /// Whether the image can note what the file is like now.
    can_be_settled: bool,
}

impl Doubt {
    /// What speaks against the file that `storage` is in as the one that `reference` means.
    fn about(reference: &BackingReference, storage: &dyn Storage) -> Option<Self> {
        let (None, Some(known)) = (reference.uuid, reference.modified) else {
            return None;
        };
        let found = modified(storage);
        let how = match found {
            Some(found) => {
                let drift = drift(known, found)?;
                format!("was last changed {drift} than the image says")
            }
            // The time of a device is that of its name.
            None => "does not tell when it was last changed".into(),
        };
        let name = storage.name();
        Some(Self {
            why: format!(
                "its backing file '{name}' has no identity and {how}: it may be another disk"
            ),
            can_be_settled: found.is_some(),
        })
    }
}

fn modified(storage: &dyn Storage) -> Option<SystemTime> {
    storage.file()?.metadata().ok()?.modified().ok()
}

/// How far `found` is from the time that is `known`, in seconds since 1970, if it is another one.
fn drift(known: u64, found: SystemTime) -> Option<String> {
    let known = UNIX_EPOCH + Duration::from_secs(known);
    let apart = found
        .duration_since(known)
        .unwrap_or_else(|error| error.duration());
    // File systems that keep two seconds of precision are about.
    let apart = Some(apart.as_secs()).filter(|seconds| *seconds > 2)?;
    let order = if found > known { "later" } else { "earlier" };
    Some(format!("{apart} seconds {order}"))
}

#[cfg(test)]
mod tests {
    use goldsmith_storage::MemoryStorage;

    use super::*;

    #[test]
    fn what_tells_no_time_is_not_taken_for_what_the_image_saw() {
        let storage = MemoryStorage::new("/dev/sdb");
        let mut reference = BackingReference {
            modified: Some(1_600_000_000),
            ..BackingReference::default()
        };
        let error = must_be_unchanged(&reference, &storage).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let way_out = "if it is not, name it (commit -b), which does not empty the image";
        assert!(error.report().ends_with(way_out), "{error:?}");
        // To note its time once more would be of no use.
        assert!(!Doubt::about(&reference, &storage).unwrap().can_be_settled);
        reference.uuid = Some(crate::Uuid::from_u128(7));
        must_be_unchanged(&reference, &storage).unwrap();
        must_be_unchanged(&BackingReference::default(), &storage).unwrap();
    }
}
