//! Guest data that goes into an image which stands already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith_block::{
    Chain, Committed, Demand, GuestRange, Result, Sink, SinkProfile, Slot, StorageMut,
};
use goldsmith_engine::{Behind, Job};

/// How guest data is carried over.
#[derive(Clone, Copy, Default)]
pub(crate) struct Carry<'a> {
    pub(crate) job: Job<'a>,
    /// Whether to count only.
    pub(crate) dry_run: bool,
}

impl Carry<'_> {
    /// Puts into `sink` what `source` shows and `behind`, which is what the sink writes over
    /// together with all that stands behind that, does not; gives the bytes of data.
    ///
    /// This is where the engine writes to a file that it reads: the sink's is in both disks. Each
    /// unit is read before it is written, and by the same worker.
    pub(crate) fn run(&self, source: &Chain, sink: Box<dyn Sink>, behind: &Chain) -> Result<u64> {
        let (sink, bytes) = tally(sink, self.dry_run);
        let job = Job {
            behind: Behind::Disk(behind),
            rate: self.job.rate.filter(|_| !self.dry_run),
            ..self.job
        };
        goldsmith_engine::convert(source, sink, &job)?;
        Ok(bytes.load(Ordering::Relaxed))
    }
}

/// `sink`, or one that takes what it would take if it is a `dry_run`; and the bytes of guest data that
/// it was given so far.
pub(crate) fn tally(sink: Box<dyn Sink>, dry_run: bool) -> (Box<dyn Sink>, Arc<AtomicU64>) {
    let bytes = Arc::new(AtomicU64::new(0));
    let tally = Tally {
        profile: sink.profile().clone(),
        sink: (!dry_run).then_some(sink),
        bytes: Arc::clone(&bytes),
    };
    (Box::new(tally), bytes)
}

/// A sink that counts what another one takes, or would take.
struct Tally {
    profile: SinkProfile,
    /// Who stores it, if anybody does.
    sink: Option<Box<dyn Sink>>,
    /// So far.
    bytes: Arc<AtomicU64>,
}

impl Sink for Tally {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        match &self.sink {
            Some(sink) => sink.reserve(demands, slots),
            None => {
                slots.extend(demands.iter().map(Demand::in_place));
                Ok(())
            }
        }
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        match &self.sink {
            Some(sink) => sink.reserve_zeroes(range),
            None => Ok(()),
        }
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.bytes.fetch_add(slot.range.len(), Ordering::Relaxed);
        match &self.sink {
            Some(sink) => sink.write(slot, data),
            None => Ok(()),
        }
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        // All is compared with what stands behind, and so seen anyway.
        None
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        match &self.sink {
            Some(sink) => sink.write_zeroes(range),
            None => Ok(()),
        }
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        match self.sink {
            Some(sink) => sink.commit(),
            None => Ok(Committed { file_len: 0 }),
        }
    }
}

/// The methods that every builder has which carries guest data; `carry` is a field of it.
macro_rules! carry_methods {
    () => {
        /// Sets the number of workers, at most [`MOST_THREADS`](crate::MOST_THREADS). Default: one per
        /// core.
        #[must_use]
        pub fn threads(mut self, threads: std::num::NonZeroUsize) -> Self {
            self.carry.job.threads = Some(threads);
            self
        }

        /// Sets whom to tell how far the work has come; called often, from any worker.
        #[must_use]
        pub fn progress(mut self, listener: &'a (dyn Fn(crate::Progress) + Sync)) -> Self {
            self.carry.job.progress = Some(listener);
            self
        }

        /// Sets the flag that stops the work, after which the disk is what it was.
        #[must_use]
        pub fn cancel(mut self, cancel: &'a crate::Cancel) -> Self {
            self.carry.job.cancel = Some(cancel);
            self
        }
    };
}
pub(crate) use carry_methods;
