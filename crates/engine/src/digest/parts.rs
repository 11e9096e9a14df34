//! Digests whose parts can be computed apart, by anybody and in any order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many parts may wait for one that is late.
const AHEAD: u64 = 4096;

/// Bytes of a disk that one worker has seen.
pub(crate) struct Piece<'a> {
    /// Where it starts, in guest bytes.
    pub(crate) at: u64,
    /// How many zeros it starts with.
    pub(crate) zeros: u64,
    /// What comes behind them.
    pub(crate) bytes: &'a [u8],
}

/// One digest, as the pieces come in.
pub(crate) trait Lane: Send + Sync {
    /// Adds the piece of `ticket`; may wait for those of smaller tickets.
    fn add(&self, ticket: u64, piece: &Piece<'_>);

    /// Lets nobody wait any more; the digest is of no use then.
    fn stop(&self);

    /// The digest of all that was added.
    fn finish(self: Box<Self>) -> Vec<u8>;
}

/// A digest that is made of parts.
pub(crate) trait Parts: Default + Send {
    /// What has to be known of a piece.
    type Part: Send;

    /// That of `piece`.
    fn part(piece: &Piece<'_>) -> Self::Part;

    /// Adds the next part.
    fn add(&mut self, part: Self::Part);

    /// The digest of all that was added.
    fn finish(self) -> Vec<u8>;
}

/// The lane of such a digest.
#[derive(Default)]
pub(crate) struct Parted<P: Parts> {
    state: Mutex<State<P>>,
    moved: Condvar,
}

struct State<P: Parts> {
    sum: P,
    /// The ticket of the next part to be added.
    next: u64,
    /// Parts that came before their turn.
    early: BTreeMap<u64, P::Part>,
    stopped: bool,
}

impl<P: Parts> Default for State<P> {
    fn default() -> Self {
        Self {
            sum: P::default(),
            next: 0,
            early: BTreeMap::new(),
            stopped: false,
        }
    }
}

impl<P: Parts> Parted<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Parts> Lane for Parted<P> {
    fn add(&self, ticket: u64, piece: &Piece<'_>) {
        let part = P::part(piece);
        let mut state = self.lock();
        // The next part is never one that waits here.
        while ticket - state.next > AHEAD && !state.stopped {
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let State {
            sum, next, early, ..
        } = &mut *state;
        early.insert(ticket, part);
        while let Some(part) = early.remove(next) {
            sum.add(part);
            *next += 1;
        }
        drop(state);
        self.moved.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }

    fn finish(self: Box<Self>) -> Vec<u8> {
        let state = self.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.sum.finish()
    }
}
