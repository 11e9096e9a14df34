//! A conversion into an image that stands already, which is written in place.

use goldsmith_block::{Chain, Editor, Error, Result, SECTOR, Storage, align_up};
use goldsmith_engine::{Behind, Outcome};
use goldsmith_storage::FileStorage;

use crate::convert::refused::cannot_resume;
use crate::convert::{Convert, Converted};
use crate::edit::{Open, Subject};
use crate::open::told;
use crate::resize::keep_unit;
use crate::target::refuse_source;
use crate::{Bitmaps, Opener};

impl Convert<'_> {
    /// Does it; `opener` is for the target.
    pub(crate) fn write_into(&self, opener: &Opener) -> Result<Converted> {
        let path = &self.target;
        let in_file = |error: Error| error.in_file(path.to_string_lossy());
        self.refuse_creation().map_err(in_file)?;
        let disks = self.disks()?;
        let (source, losses) = self.whole(&disks)?;
        // Before it is locked, which does not keep those out who have it open in this process.
        refuse_source(path, Some(FileStorage::open(path)?.id()), &disks)?;
        let mut open = Subject {
            path: path.clone(),
            opener: opener.clone(),
            format: Some(self.format()?.name().to_owned()),
            cache: self.cache,
            dry_run: false,
            cancel: None,
        }
        .open()?;
        let editor = open.editor()?;
        let layer = editor.layer();
        let (size, need) = (layer.info().virtual_size, source.virtual_size());
        if size < need {
            return Err(in_file(Error::usage(format!(
                "output file is smaller than input file: its disk has {size} bytes, and the \
                 source's {need}"
            ))));
        }
        if self.target_is_zero && layer.info().backing.is_some() {
            return Err(in_file(Error::usage(IS_BACKED)));
        }
        drop(layer);
        let shown = match self.target_is_zero {
            true => None,
            false => Some(open.chain(&*editor)?.0),
        };
        self.opener_of_source().all_open(&[])?;
        let written = self.write_over(&mut open, editor, shown.as_ref(), &source);
        let written = written.and_then(|outcome| {
            self.give_bitmaps(&mut open, &disks)?;
            Ok(outcome)
        });
        let outcome = written.map_err(|error| {
            let path = path.display();
            told(&error, |why| {
                format!("{why}; '{path}' was written in place and is incomplete")
            })
        });
        let outcome = outcome.map_err(in_file)?;
        let (losses, lost) = losses.all();
        Ok(Converted {
            virtual_size: size,
            file_len: open.read().len(),
            data: outcome.data,
            digests: outcome.digests,
            file_digests: Vec::new(),
            verified: false,
            lost,
            losses,
            warnings: self.warnings(&disks, &source, need),
        })
    }

    /// Fails if something is said of how the target is to be created.
    fn refuse_creation(&self) -> Result<()> {
        if self.resume.is_some() {
            return Err(cannot_resume("a conversion into an image that stands"));
        }
        let of_backing = |key: &str| matches!(key, "backing_file" | "backing_fmt");
        let mut options = self.options.iter();
        if options.any(|(key, _)| !of_backing(key)) || self.cloud.is_some() {
            return Err(Error::usage(
                "-o has no effect when skipping image creation",
            ));
        }
        if self.keep_chain {
            return Err(Error::unsupported("an image that stands gets one disk"));
        }
        if self.compress {
            return Err(Error::unsupported(
                "what is written into an image that stands cannot be compressed",
            ));
        }
        if self.proof.verify || !self.proof.file_digests.is_empty() {
            return Err(Error::unsupported(
                "an image that stood already is not read back",
            ));
        }
        if self.target_is_zero && self.is_based() {
            return Err(Error::usage(IS_BACKED));
        }
        Ok(())
    }

    /// Whether the target is said to have a backing file.
    fn is_based(&self) -> bool {
        self.options.iter().any(|(key, _)| key == "backing_file")
    }

    /// Puts `source` over the front of the disk of `editor`, which `shown` is; without that it is
    /// zeros.
    fn write_over(
        &self,
        open: &mut Open,
        mut editor: Box<dyn Editor>,
        shown: Option<&Chain>,
        source: &Chain,
    ) -> Result<Outcome> {
        let size = editor.layer().info().virtual_size;
        // [qemu] Nothing is written behind the last sector of the source.
        let len = align_up(source.virtual_size(), SECTOR).map_or(size, |len| len.min(size));
        if let Some(shown) = shown
            && shown.layers().len() > 1
            && len < size
        {
            let sink = editor.into_sink(size)?;
            keep_unit(shown, &*sink, len)?;
            sink.commit()?;
            editor = open.editor()?;
        }
        let behind = match shown {
            None => Behind::Zeros,
            Some(shown) if self.is_based() => Behind::Disk(shown),
            Some(shown) => Behind::Unread(shown),
        };
        goldsmith_engine::convert(source, editor.into_sink(len)?, &self.job(behind))
    }

    fn give_bitmaps(&self, open: &mut Open, disks: &[Chain]) -> Result<()> {
        let top = disks[0].top();
        if self.bitmaps == Bitmaps::None || top.info().bitmaps.is_empty() {
            return Ok(());
        }
        let budget = open.budget.afresh();
        self.bitmaps.copy(top, &mut *open.editor()?, &budget)
    }
}

const IS_BACKED: &str = "Cannot use --target-is-zero when the destination image has a backing file";
