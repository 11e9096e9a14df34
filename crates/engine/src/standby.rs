//! Workers that wait until there is work for them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Where all workers but the first wait, until one of them has had bytes to look at.
///
/// The kernel copies into a file for one thread at a time, so where all that there is to do is to ask
/// it to, a second thread costs time and saves none. What must be read can be read by all at once.
#[derive(Default)]
pub(crate) struct Standby {
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    /// How often there was a call.
    calls: u64,
    waiting: usize,
    dismissed: bool,
}

impl Standby {
    /// Waits for the next call; false if there will be none.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.lock();
        let calls = state.calls;
        state.waiting += 1;
        while state.calls == calls && !state.dismissed {
            state = self
                .called
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        !state.dismissed
    }

    /// Calls everybody who waits now.
    pub(crate) fn call(&self) {
        let mut state = self.lock();
        if state.waiting > 0 {
            state.calls += 1;
            drop(state);
            self.called.notify_all();
        }
    }

    /// Sends home who waits or comes to wait.
    pub(crate) fn dismiss(&self) {
        self.lock().dismissed = true;
        self.called.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_come_when_called() {
        let standby = Standby::default();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| standby.wait())).collect();
            while standby.lock().waiting < 3 {
                std::thread::yield_now();
            }
            standby.call();
            for waiting in waiting {
                assert!(waiting.join().unwrap());
            }
        });
    }

    #[test]
    fn dismissed_go_home_even_if_they_come_late() {
        let standby = Standby::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| standby.wait());
            standby.dismiss();
            assert!(!waiting.join().unwrap());
        });
        assert!(!standby.wait());
    }
}
