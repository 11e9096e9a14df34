//! Work that one thread does on one file: somebody looks on, and may stop it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use goldsmith_block::{Error, ErrorKind, HostRange, Result, Storage, StorageMut, Zeroing, pass_on};
use goldsmith_engine::{Cancel, Phase, Progress};
use goldsmith_storage::VoidStorage;

/// How often who looks on is told.
const EVERY: Duration = Duration::from_millis(100);

/// Who looks on, if anybody does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watch<'a>(pub(crate) Option<&'a (dyn Fn(Progress) + Sync)>);

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "tells somebody",
            None => "tells nobody",
        })
    }
}

/// What has gone through some files so far, and what keeps more from doing so.
#[derive(Debug)]
pub(crate) struct Tap {
    read: AtomicU64,
    written: AtomicU64,
    cancel: Option<Cancel>,
    is_held: AtomicBool,
}

impl Watch<'_> {
    /// Does `work` on files with this `tap`, of which about `total` bytes have to be read in a
    /// [check](Phase::Check), and written otherwise.
    pub(crate) fn over<T>(
        &self,
        tap: &Tap,
        phase: Phase,
        total: u64,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(tell) = self.0 else {
            return work();
        };
        let count = match phase {
            Phase::Check => &tap.read,
            _ => &tap.written,
        };
        let tell = |done: u64| {
            let mut progress = Progress::start(phase, total);
            progress.done = done.min(total);
            tell(progress);
        };
        let before = count.load(Ordering::Relaxed);
        tell(0);
        let done = std::thread::scope(|scope| {
            let (end, ended) = channel::<()>();
            let looking = move || {
                while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    tell(count.load(Ordering::Relaxed) - before);
                }
            };
            // Without it the work is done as well.
            let _ = std::thread::Builder::new().spawn_scoped(scope, looking);
            let done = work();
            drop(end);
            done
        })?;
        tell(total);
        Ok(done)
    }
}

impl Tap {
    pub(crate) fn new(cancel: Option<&Cancel>) -> Arc<Self> {
        Arc::new(Self {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            cancel: cancel.cloned(),
            is_held: AtomicBool::new(false),
        })
    }

    /// Whether nothing is kept from going through.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// Sets that.
    pub(crate) fn hold(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
    }

    /// `storage`, which is only read, with this tap on it.
    pub(crate) fn reading(self: &Arc<Self>, storage: Arc<dyn Storage>) -> Arc<dyn Storage> {
        self.tapping(storage, ZEROS)
    }

    /// `storage` with this tap on it.
    pub(crate) fn on(self: &Arc<Self>, storage: Arc<dyn StorageMut>) -> Arc<dyn StorageMut> {
        self.tapping(storage, ZEROS)
    }

    /// `void`, which keeps nothing and zeros any length at once, with this tap on it.
    pub(crate) fn on_void(self: &Arc<Self>, void: VoidStorage) -> Arc<dyn StorageMut> {
        let storage: Arc<dyn StorageMut> = Arc::new(void);
        self.tapping(storage, u64::MAX)
    }

    fn tapping<S: ?Sized>(self: &Arc<Self>, storage: Arc<S>, zeros: u64) -> Arc<Tapped<S>> {
        let tap = Arc::clone(self);
        Arc::new(Tapped {
            storage,
            tap,
            zeros,
        })
    }

    fn check(&self) -> Result<()> {
        match &self.cancel {
            Some(cancel) if cancel.is_cancelled() && !self.is_held() => {
                Err(Error::new(ErrorKind::Cancelled, "stopped on request"))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes that are zeroed together, before anybody asks again whether to go on: whole blocks of any file.
const ZEROS: u64 = 256 << 20;

/// A file that counts what goes through it.
///
/// Only reading and writing can be stopped, and not where a change [may not be](StorageMut::may_stop). What
/// ends a change (the length, a flush) is left alone.
#[derive(Debug)]
struct Tapped<S: ?Sized> {
    storage: Arc<S>,
    tap: Arc<Tap>,
    /// Most bytes that are zeroed without a look at whether to stop.
    zeros: u64,
}

impl<S: Storage + ?Sized> Storage for Tapped<S> {
    pass_on!(storage: name, id, len, file, offset, lockable, span_at);

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.tap.check()?;
        self.storage.read_at(offset, buf)?;
        self.tap.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl StorageMut for Tapped<dyn StorageMut> {
    pass_on!(storage: set_len, best_transfer, transfer, flush, fixed_len, is_blank);

    fn may_stop(&self, may: bool) {
        self.tap.hold(!may);
        self.storage.may_stop(may);
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.tap.check()?;
        self.storage.write_at(offset, data)?;
        let len = data.len() as u64;
        self.tap.written.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            // Giving space back is what ends a change.
            if zeroing == Zeroing::Keep {
                self.tap.check()?;
            }
            // Where it takes writing, all of a disk takes hours.
            let end = range
                .end()
                .min((at / self.zeros + 1).saturating_mul(self.zeros));
            let piece = HostRange::new(at, end - at);
            self.storage.zero(piece, zeroing)?;
            self.tap.written.fetch_add(piece.len, Ordering::Relaxed);
            at = end;
        }
        Ok(())
    }
}

/// The methods of every builder whose work one thread does; `watch` is a field of it, and `cancel`.
macro_rules! watch_methods {
    ($what:literal, $($cancel:ident).+) => {
        #[doc = concat!("Sets whom to tell from time to time, from another thread, ", $what)]
        #[must_use]
        pub fn progress(mut self, listener: &'a (dyn Fn(crate::Progress) + Sync)) -> Self {
            self.watch = crate::watch::Watch(Some(listener));
            self
        }

        crate::watch::cancel_method!($($cancel).+);
    };
}
pub(crate) use watch_methods;

/// The method by which such work is stopped.
macro_rules! cancel_method {
    ($($cancel:ident).+) => {
        /// Sets the flag that stops the work: before anything is changed that anybody sees, unless all
        /// but giving space back is done.
        #[must_use]
        pub fn cancel(mut self, cancel: &crate::Cancel) -> Self {
            self.$($cancel).+ = Some(cancel.clone());
            self
        }
    };
}
pub(crate) use cancel_method;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use goldsmith_storage::MemoryStorage;

    use super::*;

    /// From nothing to all, and never more than all.
    #[test]
    fn listener_hears_of_the_start_and_of_the_end() {
        let tap = Tap::new(None);
        let file = tap.on(Arc::new(MemoryStorage::new("file")));
        let told = Mutex::new(Vec::new());
        let listener = |progress: Progress| {
            told.lock().unwrap().push((progress.done, progress.total));
        };
        let work = || file.write_at(0, &[7; 150]);
        let watch = Watch(Some(&listener));
        watch.over(&tap, Phase::Allocate, 100, work).unwrap();
        let told = told.into_inner().unwrap();
        assert_eq!(
            (told.first(), told.last()),
            (Some(&(0, 100)), Some(&(100, 100)))
        );
    }

    #[test]
    fn raised_flag_stops_reading_and_writing_but_no_flush() {
        let cancel = Cancel::new();
        let tap = Tap::new(Some(&cancel));
        let file = tap.on(Arc::new(MemoryStorage::holding("file", vec![1; 10])));
        file.read_at(0, &mut [0]).unwrap();
        cancel.cancel();
        let stopped = |done: Result<()>| done.unwrap_err().kind() == ErrorKind::Cancelled;
        assert!(stopped(file.read_at(0, &mut [0])));
        assert!(stopped(file.write_at(0, &[0])));
        file.set_len(5).unwrap();
        file.flush().unwrap();
        file.may_stop(false);
        file.write_at(0, &[0]).unwrap();
        assert!(tap.is_held());
        tap.hold(false);
        assert!(stopped(file.write_at(0, &[0])));
    }
}
