//! A conversion that writes nothing.

use std::sync::Arc;

use goldsmith_block::{Chain, CreateSpec, Result, Sink, Storage};
use goldsmith_engine::{Behind, Outcome};
use goldsmith_storage::{FileStorage, VoidStorage};

use crate::convert::fresh::Prepared;
use crate::convert::{Convert, Converted};
use crate::target::refuse_source;

impl Convert<'_> {
    pub(super) fn rehearse_all(&self, mut prepared: Prepared) -> Result<Converted> {
        if let Ok(old) = FileStorage::open(&self.target) {
            let read = prepared.disks.iter().chain(&prepared.behind);
            refuse_source(&self.target, Some(old.id()), read)?;
        }
        let void = self.void(&mut prepared.spec)?;
        self.opener_of_source().all_open(&[])?;
        let Prepared {
            disks,
            source,
            losses,
            behind,
            spec,
            ..
        } = prepared;
        let outcome = self.rehearse(&source, &spec, behind.as_ref(), void)?;
        let (losses, lost) = losses.all();
        Ok(Converted {
            lost,
            losses,
            ..self.converted(&disks, &source, spec.virtual_size, outcome)
        })
    }

    /// A target that keeps nothing, or none if it [streams](Self::streams).
    pub(crate) fn void(&self, spec: &mut CreateSpec) -> Result<Option<Box<dyn Sink>>> {
        let format = self.format()?;
        let void = || Arc::new(VoidStorage::new(&*self.target.to_string_lossy(), 0));
        if spec.options.text("data_file").is_some() {
            spec.data = Some(void());
        }
        match self.streams(format) {
            true => Ok(None),
            false => format.create(void(), spec).map(Some),
        }
    }

    /// Converts `source` into `void`.
    pub(crate) fn rehearse(
        &self,
        source: &Chain,
        spec: &CreateSpec,
        behind: Option<&Chain>,
        void: Option<Box<dyn Sink>>,
    ) -> Result<Outcome> {
        let job = self.job(behind.map_or(Behind::Nothing, Behind::Disk));
        match void {
            Some(void) => goldsmith_engine::convert(source, void, &job),
            None => self.stream(source, spec, &job, &mut |_| Ok(())),
        }
    }
}
