//! One at a time, in the order of the tickets.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lets the holders of tickets 0, 1, 2, ... through in that order.
///
/// Every ticket must come to [`turn`](Self::turn) or [`pass`](Self::pass). A worker waits only
/// for smaller tickets, which were claimed before its own, so somebody can always go on.
#[derive(Default)]
pub(crate) struct Sequencer {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The ticket whose turn it is.
    turn: u64,
    /// Later tickets that need no turn.
    passed: BTreeSet<u64>,
    stopped: bool,
}

impl Sequencer {
    /// Waits for the turn of `ticket`, does `work`, and lets the next one through.
    ///
    /// `None` if the work was stopped instead.
    pub(crate) fn turn<T>(&self, ticket: u64, work: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.lock();
        while state.turn != ticket && !state.stopped {
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return None;
        }
        // Nobody else has this turn, so the work needs no lock.
        drop(state);
        let result = work();
        self.advance(self.lock());
        Some(result)
    }

    /// Gives up the turn of `ticket`, without waiting for it.
    pub(crate) fn pass(&self, ticket: u64) {
        let mut state = self.lock();
        if state.turn == ticket {
            self.advance(state);
        } else {
            state.passed.insert(ticket);
        }
    }

    /// Sends everybody home.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }

    fn advance(&self, mut state: MutexGuard<'_, State>) {
        state.turn += 1;
        while state.passed.first() == Some(&state.turn) {
            state.passed.pop_first();
            state.turn += 1;
        }
        drop(state);
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_ticket_order_whoever_waits_first() {
        let sequencer = Sequencer::default();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for ticket in [3, 1, 4, 0] {
                let (sequencer, order) = (&sequencer, &order);
                scope.spawn(move || {
                    sequencer
                        .turn(ticket, || order.lock().unwrap().push(ticket))
                        .unwrap();
                });
            }
            sequencer.pass(2);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 3, 4]);
    }

    #[test]
    fn stop_releases_who_waits() {
        let sequencer = Sequencer::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sequencer.turn(7, || ()));
            sequencer.stop();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
