//! No more than so many bytes in a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldsmith_block::Result;

use crate::cancel::Cancel;

/// What may be written at once after a pause, as the time in which it is earned.
const BURST: Duration = Duration::from_millis(100);
/// How long somebody who waits is deaf to whoever wants to stop the work.
const NAP: Duration = Duration::from_millis(50);

/// A bucket of tokens, one for each byte: it fills at the rate up to a burst, and whoever takes more
/// than there is waits until it is earned.
pub struct Bucket<'a> {
    /// Bytes per second.
    rate: u64,
    /// When the bucket was or will be empty. Later than a burst ago, if anybody asks.
    empty: Mutex<Option<Instant>>,
    cancel: Option<&'a Cancel>,
    stopped: AtomicBool,
}

impl<'a> Bucket<'a> {
    /// A full bucket; `rate` is at least 1.
    pub fn new(rate: u64, cancel: Option<&'a Cancel>) -> Self {
        Self {
            rate: rate.max(1),
            empty: Mutex::new(None),
            cancel,
            stopped: AtomicBool::new(false),
        }
    }

    /// Waits until `bytes` may be written. Returns at once when the work was stopped.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn wait(&self, bytes: u64) -> Result<()> {
        let start = Instant::now();
        let due = self.take(bytes, start);
        loop {
            if let Some(cancel) = self.cancel {
                cancel.check()?;
            }
            let left = due.saturating_sub(start.elapsed());
            if left.is_zero() || self.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    /// Lets everybody go.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Takes `bytes` tokens; how long from `now` it takes to earn them.
    fn take(&self, bytes: u64, now: Instant) -> Duration {
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.rate as f64);
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        // A machine that has just started knows no time before.
        let full = now.checked_sub(BURST).unwrap_or(now);
        let from = empty.map_or(full, |empty| empty.max(full));
        // Longer than a clock counts is for ever.
        let until = cost.ok().and_then(|cost| from.checked_add(cost));
        *empty = Some(until.unwrap_or(from));
        until.map_or(Duration::MAX, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn first_burst_is_free_and_all_else_takes_its_time() {
        let (bucket, now) = (Bucket::new(1000, None), Instant::now() + SECOND);
        assert_eq!(bucket.take(100, now), Duration::ZERO);
        assert_eq!(bucket.take(1000, now), SECOND);
        assert_eq!(bucket.take(500, now), SECOND * 3 / 2);
        assert_eq!(bucket.take(500, now + SECOND), SECOND);
    }

    #[test]
    fn pause_earns_one_burst_and_no_more() {
        let (bucket, now) = (Bucket::new(1000, None), Instant::now() + SECOND);
        bucket.take(100, now);
        let later = now + 100 * SECOND;
        assert_eq!(bucket.take(100, later), Duration::ZERO);
        assert_eq!(bucket.take(1000, later), SECOND);
    }

    #[test]
    fn more_than_is_ever_earned_takes_for_ever() {
        let bucket = Bucket::new(1, None);
        assert_eq!(bucket.take(u64::MAX, Instant::now()), Duration::MAX);
    }

    /// Or this test would take a year.
    #[test]
    fn who_waits_can_be_stopped() {
        let cancel = Cancel::new();
        let bucket = Bucket::new(1, Some(&cancel));
        bucket.stop();
        bucket.wait(1 << 25).unwrap();
        let bucket = Bucket::new(1, Some(&cancel));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| bucket.wait(1 << 25));
            cancel.cancel();
            assert!(waiting.join().unwrap().is_err());
        });
    }
}
