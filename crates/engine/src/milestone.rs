//! How much of a target is written from the start of the disk on, without a gap.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use goldsmith_block::Result;

/// Somebody who wants to know how much is done, to go on from there if the work is cut off.
#[derive(Clone, Copy)]
pub struct Milestones<'a> {
    /// Bytes of the disk from one to the next, at least.
    pub every: u64,
    /// Told an offset before which everything was given to the sink and written, though perhaps not
    /// stored yet; they ascend. Called by one worker at a time, while others go on; an error stops
    /// the job.
    pub reached: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

/// Joins what the workers have finished, and tells.
pub(crate) struct Finished<'a> {
    milestones: Option<Milestones<'a>>,
    ranges: Mutex<Ranges>,
    /// What was told last.
    told: Mutex<u64>,
}

struct Ranges {
    /// Everything before is finished.
    prefix: u64,
    /// Start and end of what is finished behind a gap.
    apart: BTreeMap<u64, u64>,
}

impl<'a> Finished<'a> {
    /// Everything before `start` is finished, and nothing else.
    pub(crate) fn new(milestones: Option<Milestones<'a>>, start: u64) -> Self {
        let ranges = Ranges {
            prefix: start,
            apart: BTreeMap::new(),
        };
        Self {
            milestones,
            ranges: Mutex::new(ranges),
            told: Mutex::new(start),
        }
    }

    /// Adds the bytes from `start` to `end`, which nobody else does.
    pub(crate) fn add(&self, start: u64, end: u64) -> Result<()> {
        let Some(Milestones { every, reached }) = self.milestones else {
            return Ok(());
        };
        {
            let mut ranges = self.ranges();
            ranges.apart.insert(start, end);
            let mut prefix = ranges.prefix;
            while let Some(end) = ranges.apart.remove(&prefix) {
                prefix = end;
            }
            ranges.prefix = prefix;
        }
        // Whoever is at it already tells this, too, or the next one will.
        let Ok(mut told) = self.told.try_lock() else {
            return Ok(());
        };
        let prefix = self.ranges().prefix;
        if prefix - *told >= every {
            reached(prefix)?;
            *told = prefix;
        }
        Ok(())
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of these ranges, finished in this order.
    fn told(every: u64, start: u64, ranges: &[(u64, u64)]) -> Vec<u64> {
        let told = Mutex::new(Vec::new());
        let reached = |offset| {
            told.lock().unwrap().push(offset);
            Ok(())
        };
        let milestones = Milestones {
            every,
            reached: &reached,
        };
        let finished = Finished::new(Some(milestones), start);
        for (start, end) in ranges {
            finished.add(*start, *end).unwrap();
        }
        told.into_inner().unwrap()
    }

    #[test]
    fn nothing_behind_a_gap_is_told() {
        assert_eq!(told(1, 0, &[(10, 20), (30, 40), (0, 10)]), [20]);
        assert_eq!(told(1, 0, &[(10, 20), (20, 40)]), [0; 0]);
        assert_eq!(told(1, 10, &[(10, 20), (20, 40)]), [20, 40]);
    }

    #[test]
    fn milestones_are_as_far_apart_as_was_asked() {
        let steps: Vec<_> = (0..10).map(|nth| (nth * 10, nth * 10 + 10)).collect();
        assert_eq!(told(25, 0, &steps), [30, 60, 90]);
    }
}
