//! What does not go together.

use goldsmith_block::{Budget, Chain, CreateSpec, Error, Format, Options, Result};
use goldsmith_engine::Job;
use goldsmith_storage::Cache;

use crate::bitmap::{Bitmaps, keeps_bitmaps};
use crate::convert::Convert;
use crate::new_image::Identity;

impl Convert<'_> {
    /// Fails if something is wanted that only a target shows which is written.
    pub(super) fn must_be_rehearsable(&self) -> Result<()> {
        let proof = &self.proof;
        let wanted = [
            (self.bitmaps != Bitmaps::None, "bitmaps"),
            (self.resume.is_some(), "a journal (--resume)"),
            (proof.verify, "a look back (--verify)"),
            (!proof.file_digests.is_empty(), "a digest of the file"),
        ];
        refuse_first(&wanted, |what| {
            Error::usage(format!(
                "a dry run writes nothing, so there is none with {what}"
            ))
        })
    }

    /// Fails if something is wanted for which all must be done at once.
    pub(super) fn must_be_resumable(&self, has_data_file: bool) -> Result<()> {
        let wanted = [
            (has_data_file, "a target with a data file"),
            // A journal would tell of what a power cut took.
            (
                self.cache == Cache::Unsafe,
                "a target that is never stored safely (cache mode unsafe)",
            ),
            (self.bitmaps != Bitmaps::None, "a target with bitmaps"),
            // What was lost before the cut would not be told.
            (self.salvage, "a conversion that salvages"),
        ];
        refuse_first(&wanted, cannot_resume)
    }

    /// Fails if bitmaps are wanted of `disks` that cannot have any. [qemu] The same words.
    pub(super) fn must_keep_bitmaps(&self, disks: &[Chain]) -> Result<()> {
        let text = match disks {
            _ if self.bitmaps == Bitmaps::None => return Ok(()),
            [only] if keeps_bitmaps(only.top()) => return Ok(()),
            [_] => "Source lacks bitmap support",
            _ => "Copying bitmaps only possible with single source",
        };
        Err(Error::usage(text))
    }

    /// The same, and if a new image of `format` with these `options` has none, whether or not there are any
    /// to copy [qemu], or if one of them cannot be read.
    pub(super) fn must_take_bitmaps(
        &self,
        disks: &[Chain],
        format: &dyn Format,
        options: &Options,
    ) -> Result<()> {
        self.must_keep_bitmaps(disks)?;
        if self.bitmaps == Bitmaps::None {
            return Ok(());
        }
        if !format.keeps_bitmaps(options) {
            let text = format!("Format driver '{}' does not support bitmaps", format.name());
            return Err(Error::usage(text).in_file(self.target.to_string_lossy()));
        }
        let budget = Budget::new(&self.sources[0].opener.limits);
        self.bitmaps.must_be_readable(disks[0].top(), &budget)
    }

    /// Fails if something is wanted that would change images which are to be kept as they are.
    pub(super) fn must_keep_images(&self, source: &Chain, spec: &CreateSpec) -> Result<()> {
        let (has, takes) = (source.virtual_size(), spec.virtual_size);
        let size = format!("another size ({takes} bytes, and it has {has}; see goldsmith resize)");
        let given = matches!(self.identity, Identity::Given(_));
        let digests = !self.proof.algorithms().is_empty();
        let sparse = self.job.sparse != Job::default().sparse;
        let wanted = [
            (takes != has, &*size),
            (!self.options.is_empty(), "creation options (-o)"),
            (given, "another identity (--uuid)"),
            (digests, "a digest of its disk on the way"),
            (self.compress, "packed blocks (-c)"),
            (sparse, "other zeros (-S)"),
        ];
        refuse_first(&wanted, |what| {
            let text =
                format!("a chain that is kept (--keep-chain) is copied, and cannot get {what}");
            Error::usage(text).in_file(self.sources[0].path.to_string_lossy())
        })
    }

    /// Fails if what is asked for does not go together.
    pub(super) fn refuse_mixes(&self, options: &Options) -> Result<()> {
        if self.keep_chain && (self.sources.len() > 1 || self.salvage) {
            return Err(Error::usage(
                "the chains of several sources cannot be kept, nor one that is salvaged",
            ));
        }
        if self.sources.len() > 1 && options.text("backing_file").is_some() {
            return Err(Error::usage(
                "Having a backing file for the target makes no sense when concatenating multiple \
                 input images",
            ));
        }
        Ok(())
    }
}

pub(super) fn cannot_resume(what: &str) -> Error {
    Error::unsupported(format!("{what} cannot be gone on with (--resume)"))
}

/// Fails with the first thing that is wanted, if one is.
fn refuse_first(wanted: &[(bool, &str)], refusal: impl Fn(&str) -> Error) -> Result<()> {
    match wanted.iter().find(|(wanted, _)| *wanted) {
        Some((_, what)) => Err(refusal(what)),
        None => Ok(()),
    }
}
