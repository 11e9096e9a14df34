//! A conversion into a new image.

use std::path::PathBuf;
use std::sync::Arc;

use goldsmith_block::{Budget, Chain, CreateSpec, Format, Result};
use goldsmith_engine::{Behind, Job, Outcome};
use goldsmith_storage::{FileStorage, Target};

use crate::convert::plan::Way;
use crate::convert::{Convert, Converted};
use crate::proof::{Made, opening};
use crate::reference::data_file;
use crate::resume::{Resume, Work};
use crate::salvage::Losses;
use crate::watch::Tap;
use crate::{ovf, target};

/// What is known once all that is read is open.
pub(super) struct Prepared {
    pub(super) disks: Vec<Chain>,
    /// The one disk that they make.
    pub(super) source: Chain,
    pub(super) losses: Arc<Losses>,
    /// The disk behind the target.
    pub(super) behind: Option<Chain>,
    /// Where the target keeps its data, if not in itself.
    pub(super) data_file: Option<PathBuf>,
    format: &'static dyn Format,
    pub(super) spec: CreateSpec,
}

impl Convert<'_> {
    pub(super) fn write_new(&self) -> Result<Converted> {
        let format = self.format()?;
        let options = self.options(format)?;
        self.refuse_mixes(&options)?;
        let files = self.files()?;
        if let Some(done) = self.pass_once(&files, format, &options)? {
            return Ok(done);
        }
        let disks = self.disks_in(files)?;
        let (source, losses) = self.whole(&disks)?;
        let virtual_size = self.virtual_size(source.virtual_size(), format)?;
        let (reference, behind) = self.behind(format, &options)?.unzip();
        let data_file = data_file(&self.target, &options)?;
        let mut spec = self.spec(format, virtual_size, options);
        spec.uuid = self.identity.over(reference.as_ref(), spec.uuid);
        spec.backing = reference;
        self.must_please_empty(format, &spec)
            .map_err(|error| error.in_file(self.target.to_string_lossy()))?;
        let prepared = Prepared {
            disks,
            source,
            losses,
            behind,
            data_file,
            format,
            spec,
        };
        match &self.resume {
            _ if self.dry_run => self.rehearse_all(prepared),
            Some(resume) => self.go_on(resume, prepared),
            None => self.make(prepared),
        }
    }

    fn go_on(&self, resume: &Resume, prepared: Prepared) -> Result<Converted> {
        self.must_be_resumable(prepared.data_file.is_some())?;
        let Prepared {
            disks,
            source,
            behind,
            format,
            spec,
            ..
        } = prepared;
        let behind = behind.as_ref();
        let (outcome, file_digests) = resume.run(Work {
            target: &self.target,
            format,
            source: &source,
            disks: &disks,
            behind,
            spec,
            cache: self.cache,
            job: Job {
                digests: &[],
                ..self.job(behind.map_or(Behind::Nothing, Behind::Disk))
            },
            proof: &self.proof,
            wishes: self.wishes(),
            opener: self.opener_of_source(),
            cloud: self.cloud,
        })?;
        Ok(Converted {
            file_digests,
            verified: self.proof.verify,
            ..self.converted(&disks, &source, outcome)
        })
    }

    fn make(&self, prepared: Prepared) -> Result<Converted> {
        let Prepared {
            disks,
            source,
            losses,
            behind,
            data_file,
            format,
            mut spec,
        } = prepared;
        self.must_take_bitmaps(&disks, format, &spec.options)?;
        let name = self.target.to_string_lossy();
        let read = || disks.iter().map(Some).chain([behind.as_ref()]);
        let target = target::create(&self.target, self.cache, read())?;
        let data_file = data_file
            .map(|path| target::create_data(&path, self.cache, read(), &target))
            .transpose()?;
        // What is allocated before, and filled up after the disk was copied, can be stopped as well.
        let tap = Tap::new(self.job.cancel);
        let storage = |target: &Target| tap.on(target.storage());
        spec.data = data_file.as_ref().map(storage);
        let way = self.way(format, storage(&target), &spec);
        let way = way.map_err(|error| error.in_file(name.clone()))?;
        // What is read back may have to be unpacked.
        let scratch = (self.proof.verify && format.unpacks())
            .then(|| FileStorage::scratch(&*name))
            .transpose()?;
        target::all_open(self.opener_of_source(), [Some(&target), data_file.as_ref()])?;
        let job = self.job(behind.as_ref().map_or(Behind::Nothing, Behind::Disk));
        let storage = target.storage();
        let outcome = self.fill(way, &source, &spec, &job, &mut ovf::into(&*storage))?;
        let mut file_len = outcome.committed.file_len;
        if self.bitmaps.are_in(disks[0].top()) {
            let budget = Budget::new(&self.sources[0].opener.limits);
            let options = opening(format, &spec.options)?;
            format
                .edit(tap.on(target.storage()), &budget, &options)
                .and_then(|mut editor| self.bitmaps.copy(&disks[0], &mut *editor, &budget))
                .map_err(|error| error.in_file(name.clone()))?;
            file_len = target.storage().len();
        }
        let made = Made {
            format,
            spec: &spec,
            storage: target.storage(),
            on_device: target.storage().fixed_len().is_some(),
            file_len,
            behind: behind.as_ref(),
            limits: &self.sources[0].opener.limits,
            cloud: self.cloud,
        };
        made.must_please()
            .map_err(|error| error.in_file(name.clone()))?;
        let proved = match scratch {
            Some(scratch) => {
                let proof = &self.proof;
                proof.of_archive(&made, scratch, &source, &outcome.digests, &job)
            }
            None => self.proof.of(&made, &source, &outcome.digests, &job),
        };
        let file_digests = proved.map_err(|error| error.in_file(name.clone()))?;
        // First what the image needs, so that it never stands there without.
        Target::publish_all(data_file.into_iter().chain([target]))?;
        let (losses, lost) = losses.all();
        Ok(Converted {
            file_len,
            file_digests,
            verified: self.proof.verify,
            lost,
            losses,
            ..self.converted(&disks, &source, outcome)
        })
    }

    pub(super) fn converted(&self, disks: &[Chain], source: &Chain, outcome: Outcome) -> Converted {
        let virtual_size = outcome.virtual_size;
        Converted {
            virtual_size,
            file_len: outcome.committed.file_len,
            data: outcome.data,
            digested: virtual_size,
            written: None,
            digests: outcome.digests,
            file_digests: Vec::new(),
            verified: false,
            lost: 0,
            losses: Vec::new(),
            warnings: self.warnings(disks, source, virtual_size, self.misread()),
        }
    }

    /// Writes the target, [this way](Self::way); what is streamed goes into `out`.
    pub(super) fn fill(
        &self,
        way: Way,
        source: &Chain,
        spec: &CreateSpec,
        job: &Job<'_>,
        out: &mut ovf::Out<'_>,
    ) -> Result<Outcome> {
        let done = match way {
            Way::Sink(sink) => return goldsmith_engine::convert(source, sink, job),
            Way::Stream(_) if self.keep_chain => self
                .must_keep_images(source, spec)
                .and_then(|()| ovf::write_chain(source, spec.timestamp, job, out)),
            Way::Stream(None) => ovf::write(source, spec, job, out),
            Way::Stream(Some(vhd)) => ovf::write_from(vhd, source, spec, job, out),
        };
        done.map_err(|error| error.in_file(self.target.to_string_lossy()))
    }
}
