//! Who works on what: ranges in guest order, holes left out.

use std::sync::{Mutex, PoisonError};

use goldsmith_block::{Chain, GuestRange, Result, align_down};

use crate::cancel::Cancel;

/// Bytes that one worker takes at a time, unless a unit is larger: big enough that a claim costs
/// nothing beside its bytes, small enough that they are still in the cache when they are written.
const CLAIM: u64 = 1 << 20;

/// The largest unit of a source that claims are aligned to; units beyond are read in parts.
const LARGEST_UNIT: u64 = 2 << 20;

/// Bytes per claim for reading `sources`: whole units, so that none is unpacked twice.
pub(crate) fn claim_len<'a>(sources: impl IntoIterator<Item = &'a Chain>) -> u64 {
    let layers = sources.into_iter().flat_map(Chain::layers);
    let units = layers.filter_map(|layer| layer.info().unit);
    units
        .filter(|unit| *unit <= LARGEST_UNIT)
        .fold(CLAIM, u64::max)
}

/// Hands out the ranges of a disk, one after the other, to any number of workers.
pub(crate) struct Claims<'a, F> {
    /// Says whether the bytes from an offset up to a limit are a hole, and where that ends.
    status: F,
    /// Bytes of the disk.
    len: u64,
    /// Bytes per claim, a power of two; claims start at multiples of it.
    step: u64,
    cancel: Option<&'a Cancel>,
    next: Mutex<Next>,
}

struct Next {
    cursor: u64,
    ticket: u64,
    stopped: bool,
}

/// What one worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The hole just before `range`, perhaps empty.
    pub(crate) hole: GuestRange,
    /// The bytes to work on, perhaps empty at the end of the disk.
    pub(crate) range: GuestRange,
    /// Counts the claims, from zero.
    pub(crate) ticket: u64,
}

/// Whether a range is a hole, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) hole: bool,
    pub(crate) end: u64,
}

impl<'a, E, F> Claims<'a, F>
where
    F: Fn(u64, u64) -> Result<Status, E>,
    E: From<goldsmith_block::Error>,
{
    pub(crate) fn new(len: u64, step: u64, cancel: Option<&'a Cancel>, status: F) -> Self {
        let next = Mutex::new(Next {
            cursor: 0,
            ticket: 0,
            stopped: false,
        });
        Self {
            status,
            len,
            step,
            cancel,
            next,
        }
    }

    /// The next claim, or `None` when there is nothing left or somebody stopped the work.
    pub(crate) fn next(&self) -> Result<Option<Claim>, E> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.stopped || next.cursor == self.len {
            return Ok(None);
        }
        if let Some(cancel) = self.cancel {
            cancel.check()?;
        }
        let hole = GuestRange::new(next.cursor, self.hole_end(next.cursor)?);
        let end = match hole.end.checked_add(self.step) {
            Some(end) => align_down(end, self.step).min(self.len),
            None => self.len,
        };
        let claim = Claim {
            hole,
            range: GuestRange::new(hole.end, end),
            ticket: next.ticket,
        };
        next.cursor = end;
        next.ticket += 1;
        Ok(Some(claim))
    }

    /// Gives nothing out any more.
    pub(crate) fn stop(&self) {
        self.next
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stopped = true;
    }

    /// The start of the first claim at or after `start`, a multiple of the step, that is not all
    /// hole.
    fn hole_end(&self, start: u64) -> Result<u64, E> {
        let mut at = start;
        while at < self.len {
            let status = (self.status)(at, self.len)?;
            if !status.hole {
                return Ok(align_down(at, self.step));
            }
            if let Some(cancel) = self.cancel {
                cancel.check()?;
            }
            at = status.end;
        }
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::Error;

    use super::*;

    /// A disk whose bytes in `data` are data and whose other bytes are holes.
    fn claims(
        len: u64,
        data: &[std::ops::Range<u64>],
    ) -> Claims<'static, impl Fn(u64, u64) -> Result<Status, Error>> {
        let data = data.to_vec();
        Claims::new(len, 64, None, move |at, limit| {
            let inside = data.iter().find(|run| run.contains(&at));
            let next = data
                .iter()
                .find(|run| run.start > at)
                .map_or(limit, |run| run.start);
            Ok(match inside {
                Some(run) => Status {
                    hole: false,
                    end: run.end.min(limit),
                },
                None => Status {
                    hole: true,
                    end: next.min(limit),
                },
            })
        })
    }

    fn all(claims: Claims<'_, impl Fn(u64, u64) -> Result<Status, Error>>) -> Vec<Claim> {
        std::iter::from_fn(|| claims.next().unwrap()).collect()
    }

    #[test]
    fn holes_are_stepped_over_in_whole_claims() {
        let range = GuestRange::new;
        assert_eq!(
            all(claims(1000, &[70..80, 900..1000])),
            [
                Claim {
                    hole: range(0, 64),
                    range: range(64, 128),
                    ticket: 0
                },
                Claim {
                    hole: range(128, 896),
                    range: range(896, 960),
                    ticket: 1
                },
                Claim {
                    hole: range(960, 960),
                    range: range(960, 1000),
                    ticket: 2
                },
            ]
        );
    }

    #[test]
    fn empty_tail_is_a_hole_without_work() {
        let range = GuestRange::new;
        assert_eq!(
            all(claims(1000, &[])),
            [Claim {
                hole: range(0, 1000),
                range: range(1000, 1000),
                ticket: 0
            }]
        );
        assert_eq!(all(claims(0, &[])), []);
    }

    #[test]
    fn stopped_claims_give_nothing() {
        let claims = claims(1000, &[0..500, 500..1000]);
        assert!(claims.next().unwrap().is_some());
        claims.stop();
        assert_eq!(claims.next().unwrap(), None);
    }
}
