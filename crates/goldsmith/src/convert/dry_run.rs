//! A conversion that writes nothing.

use goldsmith_block::{Chain, CreateSpec, Result};
use goldsmith_engine::{Behind, Outcome};
use goldsmith_storage::VoidStorage;

use crate::convert::fresh::Prepared;
use crate::convert::plan::Way;
use crate::convert::{Convert, Converted};
use crate::target::must_spare;
use crate::watch::Tap;

impl Convert<'_> {
    pub(super) fn rehearse_all(&self, mut prepared: Prepared) -> Result<Converted> {
        for path in std::iter::once(&self.target).chain(&prepared.data_file) {
            must_spare(path, prepared.disks.iter().chain(&prepared.behind))?;
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
            ..self.converted(&disks, &source, outcome)
        })
    }

    /// The way to write a target that keeps nothing.
    pub(crate) fn void(&self, spec: &mut CreateSpec) -> Result<Way> {
        let tap = Tap::new(self.job.cancel);
        let void = || tap.on_void(VoidStorage::new(&*self.target.to_string_lossy(), 0));
        if spec.options.text("data_file").is_some() {
            spec.data = Some(void());
        }
        self.way(self.format()?, void(), spec)
    }

    /// Converts `source` this `way`, into nothing.
    pub(crate) fn rehearse(
        &self,
        source: &Chain,
        spec: &CreateSpec,
        behind: Option<&Chain>,
        way: Way,
    ) -> Result<Outcome> {
        let job = self.job(behind.map_or(Behind::Nothing, Behind::Disk));
        self.fill(way, source, spec, &job, &mut |_| Ok(()))
    }
}
