//! Mending what a check finds.

use std::sync::Arc;

use goldsmith_block::{Checked, Repair, Result};

use super::Qcow2Editor;
use super::counts::Counts;
use super::draft::Draft;
use crate::check::{self, Refcounts, Survey, survey};
use crate::error::Qcow2Error;
use crate::ondisk::{CORRUPT, DIRTY};

/// Most passes over the copied flags of one image.
const PASSES: u32 = 3;
/// Most rounds of mending. [ours] Two are enough but for images whose tables stand on one another.
const ROUNDS: u32 = 16;

impl Qcow2Editor {
    /// Makes the refcounts what they should be: those that are too great, or all of them. With all
    /// of them also the copied flags, and entries of the snapshot table that say too little. With those
    /// that are too great the flags, too, if nothing else is wrong `[qemu]`: what turns out to have one
    /// user has to say so. What is wrong with a place of guest data stays: nobody knows the right one.
    ///
    /// # Errors
    /// `Corrupt` if there are no refcounts to speak of, but only leaks are to be mended; if a table cannot be
    /// read, so that what it names would be given up; if the file was truncated and mending would make zeros
    /// of what is lost; those of reading and writing.
    pub(super) fn repair(&mut self, repair: Repair) -> Result<()> {
        let all = repair == Repair::All;
        let mut found = self.judged()?;
        // Where tables stand on one another, what leaves its place gives up what others use.
        for _ in 0..ROUNDS {
            let (leaks, wrong) = (found.checked.leaks, wrong(&found.checked));
            if leaks == 0 && !(all && wrong > 0) {
                break;
            }
            if let Some(table) = found.uses.table_lost {
                return Err(Qcow2Error::TableLost { table }.into());
            }
            let flags = all || wrong == 0;
            if !self.mend(found.uses, found.refcounts_lost, all, flags)? {
                break;
            }
            found = self.judged()?;
        }
        let geometry = self.layer.geometry();
        // [qemu] Whichever it was.
        if (geometry.dirty || geometry.corrupt) && wrong(&found.checked) == 0 {
            let mut draft = self.draft()?;
            let features = draft.header.raw.incompatible_features.get();
            draft.header.raw.incompatible_features = (features & !(DIRTY | CORRUPT)).into();
            draft.publish()?;
            self.reopen()?;
        }
        self.sound = false;
        Ok(())
    }

    fn judged(&self) -> Result<Survey> {
        let budget = self.budget.afresh();
        survey(&**self.scribe.storage(), &budget, Refcounts::Judged)
    }

    /// Mends once, where clusters have these `uses`, and makes the copied `flags` fit if that is asked.
    /// Says whether there was anything that can be mended.
    fn mend(
        &mut self,
        uses: check::Counts,
        refcounts_lost: bool,
        all: bool,
        flags: bool,
    ) -> Result<bool> {
        let mut draft = match all && refcounts_lost {
            false => {
                let mut draft = self.draft()?;
                let budget = Arc::clone(&draft.budget);
                draft.counts.correct(uses, all, &budget)?;
                draft
            }
            true => {
                let budget = Arc::new(self.budget.afresh());
                let storage = Arc::clone(self.scribe.storage());
                let found = survey(&*storage, &self.budget.afresh(), Refcounts::Ignored)?;
                let (read, geometry) = (self.scribe.read(), self.layer.geometry());
                let counts = Counts::anew(read, geometry, found.uses, &budget)?;
                let (scribe, data) = (Arc::clone(&self.scribe), self.data.clone());
                Draft::with_counts(scribe, data, geometry, budget, counts)?
            }
        };
        if all && draft.geometry.version >= 3 {
            draft.complete_snapshots(self.layer.snapshots())?;
        }
        if flags {
            let mut l1 = draft.l1()?;
            // What a table has left is used less often. A second time tables stay where they are,
            // so a third pass finds nothing.
            for _ in 0..PASSES {
                if !draft.settle_copied(&mut l1)? {
                    break;
                }
            }
            draft.put_l1(l1)?;
        }
        if !draft.is_changed() {
            return Ok(false);
        }
        draft.publish()?;
        self.reopen()?;
        Ok(true)
    }
}

/// How much is wrong that is more than wasted space.
fn wrong(checked: &Checked) -> u64 {
    checked.corruptions + checked.errors
}
