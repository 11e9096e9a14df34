//! What the target is to be, as it was asked for.

use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Chain, CreateSpec, Error, Format, Options, Result, Sink, StorageMut,
};
use goldsmith_engine::{Behind, Job};
use goldsmith_storage::FileStorage;

use crate::convert::{Convert, now};
use crate::new_image::{backing_must_fit, imagined};
use crate::proof::Made;
use crate::reference::behind;
use crate::{Opener, ovf, registry};

/// How a target is written.
pub(crate) enum Way {
    /// In any order.
    Sink(Box<dyn Sink>),
    /// Front to back. Digests are made of a disk in pieces that a container does not come in: if there
    /// are to be some, what it holds is made in this file first.
    Stream(Option<Arc<FileStorage>>),
}

impl<'a> Convert<'a> {
    /// How `storage`, which becomes the target or nothing, is to be written.
    pub(super) fn way(
        &self,
        format: &dyn Format,
        storage: Arc<dyn StorageMut>,
        spec: &CreateSpec,
    ) -> Result<Way> {
        if format.name() != ovf::NAME {
            return format.create(storage, spec).map(Way::Sink);
        }
        ovf::refuse_device(&*storage)?;
        // Those of a chain that is kept are refused in its own words.
        let digests = !self.keep_chain && !self.proof.algorithms().is_empty();
        let scratch = digests.then(|| FileStorage::scratch(storage.name()));
        Ok(Way::Stream(scratch.transpose()?.map(Arc::new)))
    }

    pub(crate) fn format(&self) -> Result<&'static dyn Format> {
        let format = registry::format_named(&self.target_format)?;
        if self.keep_chain && format.name() != ovf::NAME {
            let text = format!(
                "an image of {} holds one disk and no chain (--keep-chain); {} does",
                format.name(),
                ovf::NAME
            );
            return Err(Error::usage(text));
        }
        Ok(format)
    }

    /// The creation options of the target.
    pub(crate) fn options(&self, format: &dyn Format) -> Result<Options> {
        backing_must_fit(format, &self.options)?;
        self.secrets.parse(format.options(), self.named_options())
    }

    fn named_options(&self) -> impl Iterator<Item = (&str, &str)> {
        let of_cloud = self.cloud.map_or(&[][..], |cloud| cloud.options);
        let given = registry::named(&self.options);
        of_cloud.iter().copied().chain(given)
    }

    /// Fails if the cloud would refuse even an empty image as the target is going to be: what only the
    /// disk shows is seen when it is [made](Made::must_please).
    ///
    /// # Errors
    /// `Usage` if so; those of creating it.
    pub(super) fn must_please_empty(&self, format: &dyn Format, spec: &CreateSpec) -> Result<()> {
        if self.cloud.is_none() || format.unpacks() {
            return Ok(());
        }
        let storage = imagined(&self.target);
        // These take time and memory, and no cloud minds them.
        let costly = |name: &str| name == "preallocation" || name.starts_with("encrypt");
        let options = self.named_options().filter(|(name, _)| !costly(name));
        let options = self.secrets.parse(format.options(), options)?;
        let data = options.text("data_file").map(|_| imagined(&self.target));
        let spec = CreateSpec {
            options,
            data,
            ..spec.clone()
        };
        let committed = format.create(Arc::clone(&storage), &spec)?.commit()?;
        let made = Made {
            format,
            spec: &spec,
            storage: storage as _,
            on_device: false,
            file_len: committed.file_len,
            behind: None,
            limits: &self.opener_of_source().limits,
            cloud: self.cloud,
        };
        made.must_please()
    }

    /// What the target says of the disk behind it, and that disk, if there is to be one.
    pub(crate) fn behind(
        &self,
        format: &dyn Format,
        options: &Options,
    ) -> Result<Option<(BackingReference, Chain)>> {
        let opener = self.opener_of_source().stopped_by(self.job.cancel);
        behind(&opener.behind(format.name()), &self.target, options)
    }

    pub(crate) fn opener_of_source(&self) -> &Opener {
        &self.sources[0].opener
    }

    /// The target, as far as it is known without what stands behind it.
    pub(crate) fn spec(
        &self,
        format: &dyn Format,
        virtual_size: u64,
        options: Options,
    ) -> CreateSpec {
        CreateSpec {
            virtual_size,
            data: None,
            backing: None,
            options,
            compress: self.compress,
            uuid: self
                .identity
                .uuid(&self.target, format, virtual_size, self.timestamp),
            timestamp: self.timestamp.unwrap_or_else(now),
        }
    }

    /// The work to be done, for a target with `behind` behind it.
    pub(crate) fn job<'b>(&'b self, behind: Behind<'b>) -> Job<'b>
    where
        'a: 'b,
    {
        let mut sources = self.sources.iter().map(|source| &source.opener);
        Job {
            behind,
            rate: self.job.rate.filter(|_| !self.dry_run),
            digests: self.proof.algorithms(),
            uncached: self.cache.is_passed() || sources.any(Opener::passes_cache),
            ..self.job
        }
    }

    /// What was asked for, as far as the target's bytes depend on it: a line each.
    pub(super) fn wishes(&self) -> Vec<String> {
        let cloud = self.cloud.map(|cloud| cloud.name);
        let opened = self.sources.iter();
        let opened = opened.map(|source| format!("opened {:?}", source.opener.wishes()));
        let target = std::path::absolute(&self.target);
        let target = target.unwrap_or_else(|_| self.target.clone());
        let wishes = [
            format!("target {target:?}"),
            format!("format {}, for {cloud:?}", self.target_format),
            format!("options {:?}, compress {}", self.options, self.compress),
            format!("sparse {}, share {}", self.job.sparse, self.job.share),
            format!("identity {:?}, created {:?}", self.identity, self.timestamp),
            format!("bytes {:?}", self.part),
        ];
        wishes.into_iter().chain(opened).collect()
    }
}
