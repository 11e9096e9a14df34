//! A crew of workers: all do the same, the first error sends everybody home.

use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock, PoisonError};

use goldsmith_block::{Error, ErrorKind};

/// How many threads can run at once. Found out once: the files that say it may be out of reach later.
pub fn cores() -> NonZeroUsize {
    static CORES: OnceLock<NonZeroUsize> = OnceLock::new();
    // A machine that does not say it gets one worker.
    *CORES.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// The most workers of one job: each has buffers of its own. [ours] More machines have no use for.
pub const MOST_THREADS: usize = 1024;

/// As many workers as are `asked` for, [`MOST_THREADS`] at most; else one per core, and no fewer than `least`.
pub(crate) fn workers(asked: Option<NonZeroUsize>, least: usize) -> usize {
    let own = || cores().get().max(least);
    asked.map_or_else(own, |asked| asked.get().min(MOST_THREADS))
}

/// Runs `work` on `threads` threads at once, and returns when all are back.
///
/// When one fails or panics, `stop` is called at once, so that the others return too; the first
/// failure in time is the result.
///
/// Threads come from a pool of our own, never from the global one: whoever links us may use that
/// for something that waits for us.
pub(crate) fn run<E: Send + From<Error>>(
    threads: usize,
    stop: impl Fn() + Sync,
    work: impl Fn() -> Result<(), E> + Sync,
) -> Result<(), E> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("goldsmith-{index}"))
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, error))?;
    let first = Mutex::new(None);
    // `broadcast` starts every worker right away; a parallel iterator would start them one by one
    // as others fall idle.
    pool.broadcast(|_| {
        let _stop = StopOnPanic(&stop);
        if let Err(error) = work() {
            first
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
            stop();
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Without this, workers would wait for ever for the turn of one that panicked.
struct StopOnPanic<'a, F: Fn()>(&'a F);

impl<F: Fn()> Drop for StopOnPanic<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}
