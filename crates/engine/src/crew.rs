//! A crew of workers: all do the same, the first error sends everybody home.

use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock, PoisonError};

use goldsmith_block::{Buffer, Error, ErrorKind};

/// How many threads can run at once. Found out once: the files that say it may be out of reach later.
pub fn cores() -> NonZeroUsize {
    static CORES: OnceLock<NonZeroUsize> = OnceLock::new();
    // A machine that does not say it gets one worker.
    *CORES.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// The most workers of one job: each has buffers of its own. `[ours]` More machines have no use for.
pub const MOST_THREADS: usize = 1024;

/// Address space that a thread takes before it does anything, in bytes: 2 MiB for its stack, and what
/// glibc sets aside for what it allocates, 64 MiB where there is plenty.
const OF_THREAD: usize = match cfg!(target_pointer_width = "64") {
    true => 66 << 20,
    false => 3 << 20,
};
/// What is left to all others, in bytes.
const OF_OTHERS: usize = 64 << 20;

/// As many workers as are `asked` for, else one per core, and no fewer than `least`; but [`MOST_THREADS`]
/// at most, and only half of them, or half of those, where there is no room for so many in the address
/// space, each with `buffers` bytes of its own: a service may have as little as a GiB or two on a machine
/// with hundreds of cores.
pub fn workers(asked: Option<NonZeroUsize>, least: usize, buffers: usize) -> usize {
    let wanted = asked.map_or_else(|| cores().get().max(least), NonZeroUsize::get);
    let mut count = wanted.min(MOST_THREADS);
    while count > 1 && !has_room(count, OF_THREAD.saturating_add(buffers)) {
        count /= 2;
    }
    count
}

/// Whether there is room for `count` threads that take `each` bytes, by taking it for a moment: a thread
/// that finds none ends the process.
fn has_room(count: usize, each: usize) -> bool {
    let parts = std::iter::once(OF_OTHERS).chain(std::iter::repeat_n(each, count));
    let taken: Option<Vec<_>> = parts.map(Buffer::try_new).collect();
    taken.is_some()
}

/// Why a thread could not be started.
pub fn not_started(error: std::io::Error) -> Error {
    let text = format!("no more threads can be started (-m takes fewer): {error}");
    Error::new(ErrorKind::Io, text)
}

/// Runs `work` on `threads` threads at once, and returns when all are back.
///
/// When one fails or panics, `stop` is called at once, so that the others return too; the first
/// failure in time is the result.
///
/// Threads come from a pool of our own, never from the global one: whoever links us may use that
/// for something that waits for us.
///
/// # Errors
/// That failure; `Io` if a thread cannot be started.
pub fn run<E: Send + From<Error>>(
    threads: usize,
    stop: impl Fn() + Sync,
    work: impl Fn() -> Result<(), E> + Sync,
) -> Result<(), E> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("goldsmith-{index}"))
        .build()
        .map_err(|error| not_started(std::io::Error::other(error)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each takes a quarter of what a pointer can name.
    #[test]
    fn where_there_is_no_room_there_is_one_worker() {
        let asked = NonZeroUsize::new(7);
        assert_eq!(workers(asked, 1, 1 << 20), 7);
        assert_eq!(workers(asked, 1, usize::MAX / 4), 1);
        assert_eq!(workers(None, 4, usize::MAX / 4), 1);
    }
}
