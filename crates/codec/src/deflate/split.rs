//! Where a block should end.

use std::ops::Range;

use super::symbols::Counts;

/// What a block takes at its front, in bits: so much, [ours]
const FRONT: u64 = 200;
/// and so much for each symbol that occurs. [ours]
const SYMBOL: u64 = 3;
/// Bytes that a block can have, for its phrases not to take more than a megabyte.
const MOST: usize = 256 << 10;

/// Part of a unit, with the symbols that it is made of.
#[derive(Clone)]
pub(super) struct Part {
    /// Its bytes in the unit.
    pub(super) bytes: Range<usize>,
    pub(super) counts: Counts,
    /// About how many bits its symbols take in a block of their own,
    cost: u64,
    /// and the front of that block.
    front: u64,
}

impl Part {
    pub(super) fn new(bytes: Range<usize>, counts: Counts) -> Self {
        let cost = (entropy(&counts.literals) + entropy(&counts.distances)) >> STEPS;
        let all = counts.literals.iter().chain(&counts.distances);
        let front = FRONT + SYMBOL * all.filter(|count| **count > 0).count() as u64;
        Self {
            bytes,
            counts,
            cost,
            front,
        }
    }

    /// This part and the one behind it in one block, unless two blocks are better.
    pub(super) fn with(&self, next: &Self) -> Option<Self> {
        let bytes = self.bytes.start..next.bytes.end;
        if bytes.len() > MOST {
            return None;
        }
        let both = Self::new(bytes, self.counts.plus(&next.counts));
        let fronts = self.front + next.front - both.front;
        (both.cost <= self.cost + next.cost + fronts).then_some(both)
    }
}

/// Base-2 logarithm of the parts of a bit.
const STEPS: u32 = 8;

/// Shannon's limit, in parts of a bit: `n log n` for all symbols less that for each.
fn entropy(counts: &[u32]) -> u64 {
    let all = counts.iter().sum();
    let each: u64 = counts.iter().map(|count| n_log_n(*count)).sum();
    n_log_n(all).saturating_sub(each)
}

/// `n` times its logarithm, in whole numbers, for every machine to pack in the same way.
fn n_log_n(n: u32) -> u64 {
    let top = (n | 1).ilog2();
    // The bits behind the first one.
    let rest = (n << (31 - top) >> (31 - STEPS)) as usize % LOGS.len();
    u64::from(n) * (u64::from(top << STEPS) + u64::from(LOGS[rest]))
}

/// Logarithms of the numbers from 1 up to 2, in parts of a bit.
const LOGS: [u16; 1 << STEPS] = {
    let mut logs = [0; 1 << STEPS];
    let mut n = 0;
    while n < logs.len() {
        // Each squaring doubles the logarithm and so brings the next of its bits to the front.
        let one = 1u64 << 31;
        let mut number = one + ((n as u64) << (31 - STEPS));
        let mut bit = STEPS;
        while bit > 0 {
            bit -= 1;
            number = (number * number) >> 31;
            if number >= 2 * one {
                number /= 2;
                logs[n] |= 1 << bit;
            }
        }
        n += 1;
    }
    logs
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Which symbols occur how often.
    fn part(bytes: Range<usize>, symbols: &[(usize, u32)]) -> Part {
        let mut counts = Counts::NONE;
        for (symbol, count) in symbols {
            counts.literals[*symbol] = *count;
        }
        Part::new(bytes, counts)
    }

    #[test]
    fn cost_is_shannons() {
        let cost = |symbols: &[_]| part(0..1, symbols).cost;
        assert_eq!(cost(&[]), 0);
        assert_eq!(cost(&[(7, 1000)]), 0);
        assert_eq!(cost(&[(7, 1000), (8, 1000)]), 2000);
        assert_eq!(cost(&[(7, 1 << 21), (8, 1 << 21)]), 1 << 22);
        // 100 * (0.9 * log2(10 / 9) + 0.1 * log2(10)) = 46.9
        assert!((46..=47).contains(&cost(&[(7, 90), (8, 10)])));
    }

    #[test]
    fn unlike_parts_are_kept_apart() {
        let bits = part(0..1000, &[(0, 500), (1, 500)]);
        let same = part(1000..2000, &[(0, 400), (1, 600)]);
        let other = part(1000..2000, &[(8, 500), (9, 500)]);
        assert_eq!(bits.with(&same).map(|both| both.bytes), Some(0..2000));
        assert!(bits.with(&other).is_none());
    }

    #[test]
    fn blocks_end() {
        let first = part(0..MOST, &[]);
        assert!(first.with(&part(MOST..MOST + 1, &[])).is_none());
    }
}
