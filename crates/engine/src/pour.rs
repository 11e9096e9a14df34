//! A disk that comes in any order, into a sink that takes it so.

use goldsmith_block::{
    Budget, Demand, GuestRange, Result, Sink, Slot, align_down, align_up, is_zero,
};

use crate::cancel::Cancel;
use crate::convert::{Job, Outcome};
use crate::layout::join;
use crate::progress::{Meter, Phase};
use crate::rate::Bucket;

/// Writes a disk into a sink, for a source that cannot be asked for what it is wanted next: one that
/// passes by, once.
///
/// All of it happens on the thread of the caller. Zeros are left out as [`convert`](crate::convert())
/// leaves them out, and what is never [`put`](Self::put) is zeros.
pub struct Pour<'a> {
    sink: Box<dyn Sink>,
    /// Shortest run of zeros that is left out, in bytes.
    sparse: u64,
    bucket: Option<Bucket<'a>>,
    cancel: Option<&'a Cancel>,
    meter: Meter<'a>,
    /// How far the work has come, in bytes of the disk.
    done: u64,
    slots: Vec<Slot>,
}

impl<'a> Pour<'a> {
    /// Begins to write into `sink`; `None` if that takes a disk only in guest order, or the job needs
    /// it in that order: for digests, to store every byte, to compare it with another disk, or to go on
    /// with work that was cut off.
    ///
    /// # Errors
    /// As [`Sink::take_any_order`].
    pub fn new(mut sink: Box<dyn Sink>, job: &Job<'a>, budget: &Budget) -> Result<Option<Self>> {
        let in_order = !job.digests.is_empty()
            || job.sparse == 0
            || !matches!(job.behind, crate::Behind::Nothing)
            || job.start > 0
            || job.milestones.is_some();
        if in_order || !sink.take_any_order(budget)? {
            return Ok(None);
        }
        let len = sink.profile().virtual_size;
        Ok(Some(Self {
            sparse: job.sparse,
            bucket: job.rate.map(|rate| Bucket::new(rate.get(), job.cancel)),
            cancel: job.cancel,
            meter: Meter::new(Phase::Copy, len, job.progress),
            done: 0,
            slots: Vec::new(),
            sink,
        }))
    }

    /// Size of the disk that is written, in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.sink.profile().virtual_size
    }

    /// Writes `bytes` to the disk from `at` on. They lie on it, and none of them was put before.
    ///
    /// # Errors
    /// Those of the sink; `Cancelled`.
    pub fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.meter.add(0, bytes.len() as u64);
        let grain = self.sink.profile().grain;
        let end = at + bytes.len() as u64;
        let mut run: Option<GuestRange> = None;
        let mut start = at;
        while start < end {
            let stop = end.min(align_down(start, grain) + grain);
            let range = GuestRange::new(start, stop);
            // Both inside of what was given.
            let empty = is_zero(&bytes[(start - at) as usize..(stop - at) as usize]);
            let joins = |run: &mut GuestRange| join(run, range, self.sparse);
            if !empty
                && !run.as_mut().is_some_and(joins)
                && let Some(run) = run.replace(range)
            {
                self.write(run, at, bytes)?;
            }
            start = stop;
        }
        match run {
            Some(run) => self.write(run, at, bytes),
            None => Ok(()),
        }
    }

    /// Stores `run` of the `bytes` that begin at `base`.
    fn write(&mut self, run: GuestRange, base: u64, bytes: &[u8]) -> Result<()> {
        let profile = self.sink.profile();
        let (grain, len) = (profile.grain, profile.virtual_size);
        let end = align_up(run.end, grain).map_or(len, |end| end.min(len));
        let demand = Demand {
            range: GuestRange::new(align_down(run.start, grain), end),
            packed: None,
        };
        self.slots.clear();
        self.sink.reserve(&[demand], &mut self.slots)?;
        for slot in self.slots.drain(..) {
            let start = run.start.max(slot.range.start);
            let end = run.end.min(slot.range.end);
            if start >= end {
                continue;
            }
            if let Some(bucket) = &self.bucket {
                bucket.wait(end - start)?;
            }
            let part = Slot {
                host: slot.host + (start - slot.range.start),
                range: GuestRange::new(start, end),
                packed: None,
            };
            // Inside the run, and so inside of what was given.
            let bytes = &bytes[(start - base) as usize..(end - base) as usize];
            self.sink.write(part, bytes)?;
        }
        Ok(())
    }

    /// Tells that `part` of `whole` is done with, of whatever it is that passes by.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn advance(&mut self, part: u64, whole: u64) -> Result<()> {
        if let Some(cancel) = self.cancel {
            cancel.check()?;
        }
        let disk = u128::from(self.virtual_size());
        let done = disk * u128::from(part.min(whole)) / u128::from(whole.max(1));
        // At most the disk.
        let done = (done as u64).max(self.done);
        self.meter.add(done - self.done, 0);
        self.done = done;
        Ok(())
    }

    /// Commits the sink: all of the disk has come.
    ///
    /// # Errors
    /// Those of the sink; `Cancelled`.
    pub fn finish(mut self) -> Result<Outcome> {
        self.advance(1, 1)?;
        Ok(Outcome {
            virtual_size: self.virtual_size(),
            data: self.meter.data(),
            committed: self.sink.commit()?,
            digests: Vec::new(),
        })
    }
}
