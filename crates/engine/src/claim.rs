//! Who works on what: ranges in guest order, holes left out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use goldsmith_block::{Chain, GuestRange, Result, align_down};

use crate::cancel::Cancel;

/// The largest unit of a source that claims are aligned to; units beyond are read in parts.
const LARGEST_UNIT: u64 = 2 << 20;

/// The largest unit of `sources` that claims are aligned to, so that none is unpacked twice; 1 if
/// there is none.
pub(crate) fn largest_unit<'a>(sources: impl IntoIterator<Item = &'a Chain>) -> u64 {
    let layers = sources.into_iter().flat_map(Chain::layers);
    let units = layers.filter_map(|layer| layer.info().unit);
    units.filter(|unit| *unit <= LARGEST_UNIT).fold(1, u64::max)
}

/// What there is to be done on a disk, as [`Claims`] sees it.
pub(crate) trait Walk {
    /// Why the disk cannot be looked at.
    type Error: From<goldsmith_block::Error>;

    /// Whether the bytes from `at`, up to `limit`, are a hole, and where that ends.
    fn status(&self, at: u64, limit: u64) -> Result<Status, Self::Error>;

    /// The bytes from `start`, the start of a unit, up to at most `limit`, as far as the target is
    /// to share them.
    fn shared(&self, start: u64, limit: u64) -> Result<Option<Sharing>, Self::Error> {
        let _ = (start, limit);
        Ok(None)
    }
}

/// Whether a range is a hole, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) hole: bool,
    pub(crate) end: u64,
}

/// Bytes that stand in a row in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    pub(crate) origin: Origin,
    /// The end of the guest bytes meant.
    pub(crate) end: u64,
}

/// Where guest bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The layer that has them.
    pub(crate) depth: usize,
    /// Byte offset of the first one in the layer's data storage.
    pub(crate) host: u64,
}

/// Hands out the ranges of a disk, one after the other, to any number of workers.
pub(crate) struct Claims<'a, W> {
    walk: W,
    /// Bytes of the disk.
    len: u64,
    /// Bytes per claim, a power of two; claims end at multiples of it.
    step: u64,
    /// Claims start at multiples of this, a power of two and at most a step.
    align: u64,
    /// The longest hole before a claim, in bytes.
    most_hole: u64,
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
    /// The bytes to work on, perhaps empty at the end of the disk, or where a long hole goes on.
    pub(crate) range: GuestRange,
    /// Where all of `range` stands, if the target is to share it; it may be longer than a step then.
    pub(crate) origin: Option<Origin>,
    /// Counts the claims, from zero.
    pub(crate) ticket: u64,
}

impl<'a, W: Walk> Claims<'a, W> {
    /// Claims of `step` bytes that start at multiples of `align`.
    pub(crate) fn new(
        len: u64,
        step: u64,
        align: u64,
        cancel: Option<&'a Cancel>,
        walk: W,
    ) -> Self {
        let next = Mutex::new(Next {
            cursor: 0,
            ticket: 0,
            stopped: false,
        });
        Self {
            walk,
            len,
            step,
            align,
            most_hole: u64::MAX,
            cancel,
            next,
        }
    }

    /// Gives out longer holes than `most` bytes, a multiple of a step, in parts.
    pub(crate) fn with_holes_of(mut self, most: u64) -> Self {
        self.most_hole = most;
        self
    }

    /// The same, but of the bytes from `start` on, which is where one of the claims starts or ends.
    #[must_use]
    pub(crate) fn from(self, start: u64) -> Self {
        self.lock().cursor = start;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next claim, or `None` when there is nothing left or somebody stopped the work.
    pub(crate) fn next(&self) -> Result<Option<Claim>, W::Error> {
        let mut next = self.lock();
        if next.stopped || next.cursor == self.len {
            return Ok(None);
        }
        if let Some(cancel) = self.cancel {
            cancel.check()?;
        }
        let limit = next.cursor.saturating_add(self.most_hole).min(self.len);
        let start = self.hole_end(next.cursor, limit)?;
        let sharing = match start < limit {
            true => self.walk.shared(start, self.len)?,
            false => None,
        };
        let end = match (sharing, start.checked_add(self.step)) {
            _ if start == limit => start,
            (Some(sharing), _) => sharing.end,
            (None, Some(end)) => align_down(end, self.step).min(self.len),
            (None, None) => self.len,
        };
        let claim = Claim {
            hole: GuestRange::new(next.cursor, start),
            range: GuestRange::new(start, end),
            origin: sharing.map(|sharing| sharing.origin),
            ticket: next.ticket,
        };
        next.cursor = end;
        next.ticket += 1;
        Ok(Some(claim))
    }

    /// Gives nothing out any more.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
    }

    /// The start of the first claim at or after `start`, where one may start, that is not all hole;
    /// `limit` if there is none before it.
    fn hole_end(&self, start: u64, limit: u64) -> Result<u64, W::Error> {
        let mut at = start;
        while at < limit {
            let status = self.walk.status(at, limit)?;
            if !status.hole {
                // What is shared may end inside what reads are aligned to.
                return Ok(align_down(at, self.align).max(start));
            }
            if let Some(cancel) = self.cancel {
                cancel.check()?;
            }
            at = status.end;
        }
        Ok(limit)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::Error;

    use super::*;

    /// A disk whose bytes in these runs are data and whose other bytes are holes.
    struct Runs(Vec<std::ops::Range<u64>>);

    impl Walk for Runs {
        type Error = Error;

        fn status(&self, at: u64, limit: u64) -> Result<Status, Error> {
            let inside = self.0.iter().find(|run| run.contains(&at));
            let next = self.0.iter().find(|run| run.start > at);
            Ok(match inside {
                Some(run) => Status {
                    hole: false,
                    end: run.end.min(limit),
                },
                None => Status {
                    hole: true,
                    end: next.map_or(limit, |run| run.start),
                },
            })
        }
    }

    fn claims(len: u64, data: &[std::ops::Range<u64>]) -> Claims<'static, Runs> {
        Claims::new(len, 64, 64, None, Runs(data.to_vec()))
    }

    fn all(claims: Claims<'_, impl Walk<Error = Error>>) -> Vec<Claim> {
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
                    origin: None,
                    ticket: 0
                },
                Claim {
                    hole: range(128, 896),
                    range: range(896, 960),
                    origin: None,
                    ticket: 1
                },
                Claim {
                    hole: range(960, 960),
                    range: range(960, 1000),
                    origin: None,
                    ticket: 2
                },
            ]
        );
    }

    #[test]
    fn long_holes_come_in_parts() {
        let claims = all(claims(1000, &[500..505, 505..510]).with_holes_of(192));
        let ranges = claims.iter().map(|claim| (claim.hole, claim.range));
        let range = GuestRange::new;
        assert_eq!(
            ranges.collect::<Vec<_>>(),
            [
                (range(0, 192), range(192, 192)),
                (range(192, 384), range(384, 384)),
                (range(384, 448), range(448, 512)),
                (range(512, 704), range(704, 704)),
                (range(704, 896), range(896, 896)),
                (range(896, 1000), range(1000, 1000)),
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
                origin: None,
                ticket: 0
            }]
        );
        assert_eq!(all(claims(0, &[])), []);
    }

    /// Whoever goes on does what would have been done.
    #[test]
    fn claims_from_a_later_start_are_the_later_ones() {
        let data = [70..80, 130..140, 300..301, 900..1000];
        let whole = all(claims(1000, &data));
        for (nth, claim) in whole.iter().enumerate() {
            let rest = all(claims(1000, &data).from(claim.range.end));
            let pair = |claim: &Claim| (claim.hole, claim.range);
            let expected: Vec<_> = whole[nth + 1..].iter().map(pair).collect();
            assert_eq!(rest.iter().map(pair).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn stopped_claims_give_nothing() {
        let claims = claims(1000, &[0..500, 500..1000]);
        assert!(claims.next().unwrap().is_some());
        claims.stop();
        assert_eq!(claims.next().unwrap(), None);
    }

    /// Everything before 128 is shared, from byte 1000 of a file on.
    struct Shared(Runs);

    impl Walk for Shared {
        type Error = Error;

        fn status(&self, at: u64, limit: u64) -> Result<Status, Error> {
            self.0.status(at, limit)
        }

        fn shared(&self, start: u64, limit: u64) -> Result<Option<Sharing>, Error> {
            let origin = Origin {
                depth: 0,
                host: 1000 + start,
            };
            let end = limit.min(128);
            Ok((start < end).then_some(Sharing { origin, end }))
        }
    }

    #[test]
    fn shared_claims_are_as_long_as_they_can_be() {
        let walk = Shared(Runs(vec![20..100, 100..200]));
        let claims = all(Claims::new(200, 64, 16, None, walk));
        let ranges: Vec<_> = claims
            .iter()
            .map(|claim| {
                (
                    claim.hole,
                    claim.range,
                    claim.origin.map(|origin| origin.host),
                )
            })
            .collect();
        let range = GuestRange::new;
        assert_eq!(
            ranges,
            [
                (range(0, 16), range(16, 128), Some(1016)),
                (range(128, 128), range(128, 192), None),
                (range(192, 192), range(192, 200), None),
            ]
        );
    }
}
