//! Which matches to take.

use super::matches::{Effort, Finder, Match};
use super::symbols::Counts;

/// How long to look for matches. [ours]
///
/// Twice the places make units smaller by a tenth of a per cent and take a tenth more of time. With
/// fewer, units of 4 KiB, where little is gained by ending blocks well, become larger than QEMU's.
const EFFORT: Effort = Effort {
    places: 24,
    nice: 130,
};
/// From this length on, a better match is looked for at fewer places,
const GOOD: usize = 12;
/// and from this one on not at all.
const LAZY: usize = 32;

/// Some literals, then perhaps a match.
#[derive(Clone, Copy)]
pub(super) struct Phrase {
    /// How many literals.
    pub(super) literals: u32,
    /// The match's length; 0 for none.
    pub(super) len: u16,
    /// How far back it is.
    pub(super) distance: u16,
}

/// Appends the phrases that make up the bytes from `at` to `limit` or a little farther, counts
/// their symbols, and says where they end.
///
/// A match is put off by a byte as long as a better one starts there.
pub(super) fn parse(
    finder: &mut Finder,
    mut at: usize,
    limit: usize,
    phrases: &mut Vec<Phrase>,
    counts: &mut Counts,
) -> usize {
    let mut literals = 0;
    while at < limit {
        let mut found = finder.first(at, EFFORT);
        if found.len == 0 {
            counts.literal(finder.byte(at));
            literals += 1;
            at += 1;
            continue;
        }
        let mut next = at + 1;
        while found.len < LAZY {
            let effort = Effort {
                places: if found.len < GOOD {
                    EFFORT.places
                } else {
                    EFFORT.places / 4
                },
                ..EFFORT
            };
            let other = finder.next(next, (found.len - 1).max(3), effort);
            next += 1;
            if !is_better(other, found) {
                break;
            }
            counts.literal(finder.byte(at));
            literals += 1;
            at += 1;
            found = other;
        }
        counts.matched(found);
        phrases.push(Phrase {
            literals,
            len: found.len as u16,
            distance: found.distance as u16,
        });
        literals = 0;
        at += found.len;
        for place in next..at {
            finder.insert(place);
        }
    }
    if literals > 0 {
        phrases.push(Phrase {
            literals,
            len: 0,
            distance: 0,
        });
    }
    at
}

/// Whether `next`, a byte later, is worth the literal in between. A byte more is worth about four
/// bits, and so is a distance that is shorter by that many bits.
#[inline(always)]
fn is_better(next: Match, found: Match) -> bool {
    if next.len < found.len {
        return false;
    }
    let near = |of: Match| of.distance.ilog2();
    let longer = 4 * (next.len - found.len) as u32;
    longer + near(found) > 2 + near(next)
}
