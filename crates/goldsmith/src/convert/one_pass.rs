//! A conversion whose source passes by once: what must be read from its beginning to its end, and so
//! would have to be stored to be read in any other order.

use std::sync::Arc;

use goldsmith_block::{Budget, Chain, CreateSpec, Error, ErrorKind, Format, Options, Result};
use goldsmith_engine::{Behind, Outcome, Pour};
use goldsmith_storage::{FileStorage, Target};

use crate::bitmap::Bitmaps;
use crate::convert::{Convert, Converted, WHOLE};
use crate::open::ImageFile;
use crate::ovf::Container;
use crate::proof::Made;
use crate::target;
use crate::watch::Tap;

impl Convert<'_> {
    /// Does it in one pass over `files`, those of all sources; `None` if it is to be done otherwise, and
    /// nothing has been done.
    ///
    /// That is so unless
    /// - the one source is a container of VHDs, and all of its disk is wanted, without anything that
    ///   needs it in guest order (digests, a journal, a disk to compare it with) or needs its images
    ///   (bitmaps, a chain that is kept);
    /// - the target is new, a file, and in a format that takes a disk in any order: RAW, VHD and
    ///   qcow2, with no backing file, not packed, not encrypted and, if it is qcow2, not preallocated;
    /// - the beginning of the container tells how large its disk is.
    ///
    /// What else there may be against it shows on the way. The VHDs are unpacked then after all, for
    /// which a file is made beforehand where that can be: nothing is opened later on.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub(super) fn pass_once(
        &self,
        files: &[ImageFile],
        format: &'static dyn Format,
        options: &Options,
    ) -> Result<Option<Converted>> {
        let Some(container) = self.container(files, format, options) else {
            return Ok(None);
        };
        // What is wrong with the source is told before what is wrong with a target for it, so both
        // are left to those who know all of the source.
        let Some(size) = container.virtual_size() else {
            return Ok(None);
        };
        let Ok(spec) = self.spec_for(size, format, options) else {
            return Ok(None);
        };
        let target = target::create(&self.target, self.cache, [])?;
        if container.is_in(target.id()) || target.storage().fixed_len().is_some() {
            return Ok(None);
        }
        let Ok(sink) = format.create(target.storage(), &spec) else {
            return Ok(None);
        };
        let budget = Budget::new(&self.opener_of_source().limits);
        let Ok(Some(pour)) = Pour::new(sink, &self.job(Behind::Nothing), &budget) else {
            return Ok(None);
        };
        let scratch = FileStorage::scratch(container.name());
        target::all_open(self.opener_of_source(), [Some(&target)])?;
        let in_source = |error: Error| match error.kind() {
            ErrorKind::Cancelled => error,
            _ => error.in_file(container.name()),
        };
        let (outcome, disk, spec) = match container.pour(pour, size).map_err(in_source)? {
            Some((outcome, disk)) => (outcome, disk, spec),
            None => {
                let disk = container.unpack(scratch?).map_err(in_source)?;
                let spec = self.spec_for(disk.virtual_size(), format, options)?;
                let outcome = self.begin_again(&disk, &target, format, &spec)?;
                (outcome, disk, spec)
            }
        };
        let made = Made {
            format,
            spec: &spec,
            storage: target.storage(),
            on_device: false,
            file_len: outcome.committed.file_len,
            behind: None,
            limits: &self.opener_of_source().limits,
            cloud: self.cloud,
        };
        let in_target = |error: Error| error.in_file(self.target.to_string_lossy());
        made.must_please().map_err(in_target)?;
        target.publish()?;
        let disks = [disk];
        let converted = self.converted(&disks, &disks[0], outcome);
        Ok(Some(converted))
    }

    /// The source, the one of `files`, if it may be read in one pass.
    fn container(
        &self,
        files: &[ImageFile],
        format: &dyn Format,
        options: &Options,
    ) -> Option<Container> {
        let [file] = files else {
            return None;
        };
        let opener = self.opener_of_source();
        let needs_more = self.part != WHOLE
            || self.salvage
            || self.dry_run
            || self.keep_chain
            || self.bitmaps != Bitmaps::None
            || self.proof.is_wanted()
            || self.resume.is_some()
            || options.text("backing_file").is_some()
            || options.text("data_file").is_some()
            || !opener.wants_disk_alone();
        if needs_more || format.unpacks() || !file.format.unpacks() {
            return None;
        }
        let storage = Tap::new(self.job.cancel).reading(Arc::clone(&file.storage));
        Some(Container::new(storage, &opener.limits))
    }

    /// The target for a disk of `size` bytes.
    fn spec_for(&self, size: u64, format: &dyn Format, options: &Options) -> Result<CreateSpec> {
        let size = self.virtual_size(size, format)?;
        Ok(self.spec(format, size, options.clone()))
    }

    /// Writes `disk` into `target`, where something stands that is worth nothing.
    fn begin_again(
        &self,
        disk: &Chain,
        target: &Target,
        format: &dyn Format,
        spec: &CreateSpec,
    ) -> Result<Outcome> {
        target.storage().set_len(0)?;
        let sink = format.create(target.storage(), spec);
        let sink = sink.map_err(|error| error.in_file(self.target.to_string_lossy()))?;
        goldsmith_engine::convert(disk, sink, &self.job(Behind::Nothing))
    }
}
