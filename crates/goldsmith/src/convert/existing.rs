//! A conversion into an image that stands already, which is written in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{Chain, Editor, Error, GuestRange, Result, SECTOR, Sink, Storage, align_up};
use goldsmith_engine::{Behind, Digest, Outcome};
use goldsmith_storage::FileStorage;

use crate::Opener;
use crate::carry::tally;
use crate::convert::refused::cannot_resume;
use crate::convert::{Convert, Converted};
use crate::edit::{Open, Subject};
use crate::open::must_know_backing;
use crate::resize::keep_unit;
use crate::splice::Splice;
use crate::target::{files, refuse_source};
use crate::told::told;

impl Convert<'_> {
    /// Does it; `opener` is for the target.
    pub(crate) fn write_into(&self, opener: &Opener) -> Result<Converted> {
        let path = &self.target;
        let in_file = |error: Error| error.in_file(path.to_string_lossy());
        self.refuse_creation().map_err(in_file)?;
        let disks = self.disks()?;
        self.must_keep_bitmaps(&disks)?;
        let (source, losses) = self.whole(&disks)?;
        // Before it is locked, which does not keep those out who have it open in this process.
        refuse_source(path, Some(FileStorage::open(path)?.id()), &disks)?;
        let subject = Subject {
            path: path.clone(),
            // Of what is read, which the data of the target may be, it is said below that it is.
            opener: opener.clone().holding(files(&disks)),
            format: Some(self.format()?.name().to_owned()),
            cache: self.cache,
            dry_run: self.dry_run,
            // The engine is stopped, and its sink must be able to take back what it began.
            cancel: None,
        };
        let mut open = subject.open()?;
        let mut editor = open.editor()?;
        for id in open.ids() {
            refuse_source(path, Some(id), &disks)?;
        }
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
        let bitmaps = self.bitmaps;
        bitmaps
            .must_fit(disks[0].top(), &*layer, &open.budget)
            .map_err(in_file)?;
        if bitmaps.are_in(disks[0].top()) {
            let mut editor = subject.rehearsed().open()?.editor()?;
            bitmaps.rehearse(disks[0].top(), &mut *editor)?;
        }
        let misread = layer.misread();
        drop(layer);
        let mut shown = match self.target_is_zero {
            true => None,
            false => Some(open.chain(&*editor)?.0),
        };
        if let Some(shown) = &shown {
            must_know_backing(shown.layers())?;
        }
        self.opener_of_source().all_open(&[])?;
        editor.prepare().map_err(in_file)?;
        let (sink, bytes) = self
            .over(&mut open, editor, &mut shown, need)
            .map_err(in_file)?;
        let behind = match &shown {
            None => Behind::Zeros,
            Some(shown) if self.is_based() => Behind::Disk(shown),
            Some(shown) => Behind::Unread(shown),
        };
        let written = goldsmith_engine::convert(&source, sink, &self.job(behind));
        let written = written.and_then(|outcome| {
            self.give_bitmaps(&mut open, &disks)?;
            Ok(outcome)
        });
        let outcome = written.map_err(|error| match self.dry_run {
            true => error,
            false => {
                let path = path.display();
                told(&error, |why| {
                    format!("{why}; '{path}' was written in place and is incomplete")
                })
            }
        });
        let outcome = outcome.map_err(in_file)?;
        let file_digests = self.prove_over(&mut open, shown.as_ref(), &source, &outcome);
        let file_digests = file_digests.map_err(in_file)?;
        let (losses, lost) = losses.all();
        Ok(Converted {
            virtual_size: size,
            file_len: open.whole().len(),
            data: outcome.data,
            digested: reach(need, size),
            digests: outcome.digests,
            written: Some(bytes.load(Ordering::Relaxed)),
            file_digests,
            verified: self.proof.verify,
            lost,
            losses,
            warnings: self.warnings(&disks, &source, need, misread),
        })
    }

    /// Fails if something is said of how the target is to be created.
    fn refuse_creation(&self) -> Result<()> {
        if self.resume.is_some() {
            return Err(cannot_resume("a conversion into an image that stands"));
        }
        let of_backing = |key: &str| matches!(key, "backing_file" | "backing_fmt");
        let mut options = self.options.iter();
        let given = options.any(|(key, _)| !of_backing(key)) || self.size.is_some();
        if given || self.cloud.is_some() {
            return Err(Error::usage(
                "-o has no effect when skipping image creation",
            ));
        }
        if self.keep_chain {
            return Err(Error::unsupported("an image that stands gets one disk"));
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

    /// What writes over the front of the disk of `editor`, which `shown` was and is, as far as a source of
    /// `need` bytes reaches; and how much guest data it was given.
    fn over(
        &self,
        open: &mut Open,
        mut editor: Box<dyn Editor>,
        shown: &mut Option<Chain>,
        need: u64,
    ) -> Result<(Box<dyn Sink>, Arc<AtomicU64>)> {
        let size = editor.layer().info().virtual_size;
        let len = reach(need, size);
        if let Some(shown) = shown {
            *shown = Open::chain_now(shown, &*editor);
            if shown.layers().len() > 1 && len < size {
                let sink = editor.into_sink(size)?;
                keep_unit(shown, &*sink, len)?;
                sink.commit()?;
                editor = open.editor()?;
                *shown = Open::chain_now(shown, &*editor);
            }
        }
        let sink = match self.compress {
            true => editor.into_packing_sink(len)?,
            false => editor.into_sink(len)?,
        };
        Ok(tally(sink, self.dry_run))
    }

    /// Proves what is to be proved of the image in `open` now that `source` is in it; gives the digests of
    /// the file.
    fn prove_over(
        &self,
        open: &mut Open,
        shown: Option<&Chain>,
        source: &Chain,
        outcome: &Outcome,
    ) -> Result<Vec<Digest>> {
        let job = self.job(Behind::Nothing);
        if self.proof.verify {
            let top = open.editor()?.layer();
            // What stands behind it is open, and nothing else can be by now.
            let behind = shown.map_or(&[][..], |shown| &shown.layers()[1..]);
            let disk = Chain::new(top, behind.iter().cloned());
            let len = reach(source.virtual_size(), disk.virtual_size());
            let front = Splice::cut(&disk, GuestRange::new(0, len))?;
            let front = Chain::new(Arc::new(front), []);
            self.proof.of_disk(&front, source, &outcome.digests, &job)?;
        }
        let (file, limits) = (open.whole(), &self.opener_of_source().limits);
        let file_len = file.len();
        self.proof.of_file(file, file_len, limits, &job)
    }

    fn give_bitmaps(&self, open: &mut Open, disks: &[Chain]) -> Result<()> {
        if !self.bitmaps.are_in(disks[0].top()) {
            return Ok(());
        }
        let budget = open.budget.afresh();
        open.stopped_by(self.job.cancel);
        self.bitmaps.copy(&disks[0], &mut *open.editor()?, &budget)
    }
}

/// Where the last sector of a source of `need` bytes ends on a disk of `size`. [qemu] Nothing is written
/// behind it.
fn reach(need: u64, size: u64) -> u64 {
    align_up(need, SECTOR).map_or(size, |len| len.min(size))
}

const IS_BACKED: &str = "Cannot use --target-is-zero when the destination image has a backing file";
