//! What was taken of the processor's time.

use std::time::Duration;

use crate::sys;

/// The processor's time that this thread has taken since it began; `None` where nobody counts it.
pub fn thread_time() -> Option<Duration> {
    sys::thread_time()
}
