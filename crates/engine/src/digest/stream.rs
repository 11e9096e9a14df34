//! Digests that know only one byte after the other.

use std::sync::{Mutex, PoisonError};

use sha2::Digest;

use super::parts::{Lane, Piece};
use crate::sequencer::Sequencer;

/// What zeros are hashed from: short enough to stay in the cache.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Gives `zeros` zeros to `take`, some at a time.
pub(super) fn zeros(mut zeros: u64, mut take: impl FnMut(&[u8])) {
    while zeros > 0 {
        // At most as many as there are.
        let len = zeros.min(ZEROS.len() as u64) as usize;
        take(&ZEROS[..len]);
        zeros -= len as u64;
    }
}

/// The lane of such a digest: workers take turns.
pub(super) struct Stream<D> {
    turns: Sequencer,
    hasher: Mutex<D>,
}

impl<D: Default> Default for Stream<D> {
    fn default() -> Self {
        Self {
            turns: Sequencer::default(),
            hasher: Mutex::default(),
        }
    }
}

impl<D: Digest + Send> Lane for Stream<D> {
    fn add(&self, ticket: u64, piece: &Piece<'_>) {
        let hash = || {
            let mut hasher = self.hasher.lock().unwrap_or_else(PoisonError::into_inner);
            zeros(piece.zeros, |zeros| hasher.update(zeros));
            hasher.update(piece.bytes);
        };
        // If the work was stopped, nobody asks for the digest any more.
        let _ = self.turns.turn(ticket, hash);
    }

    fn stop(&self) {
        self.turns.stop();
    }

    fn finish(self: Box<Self>) -> Vec<u8> {
        let hasher = self.hasher.into_inner();
        let hasher = hasher.unwrap_or_else(PoisonError::into_inner);
        hasher.finalize().to_vec()
    }
}
