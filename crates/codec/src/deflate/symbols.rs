//! What literals, lengths and distances are called. [RFC 1951 3.2.5]

use super::matches::Match;

/// Literals, the end of a block, lengths, and two that never occur.
pub(super) const LITERALS: usize = 288;
/// Distances, and two that never occur.
pub(super) const DISTANCES: usize = 32;
/// The end of a block.
pub(super) const END: usize = 256;
/// The first length.
const LENGTHS: usize = 257;

/// How often each symbol occurs.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) literals: [u32; LITERALS],
    pub(super) distances: [u32; DISTANCES],
}

impl Counts {
    pub(super) const NONE: Self = Self {
        literals: [0; LITERALS],
        distances: [0; DISTANCES],
    };

    #[inline(always)]
    pub(super) fn literal(&mut self, byte: u8) {
        self.literals[usize::from(byte)] += 1;
    }

    #[inline(always)]
    pub(super) fn matched(&mut self, found: Match) {
        self.literals[length(found.len)] += 1;
        self.distances[distance(found.distance)] += 1;
    }

    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (sum, count) in sum.literals.iter_mut().zip(&other.literals) {
            *sum += count;
        }
        for (sum, count) in sum.distances.iter_mut().zip(&other.distances) {
            *sum += count;
        }
        sum
    }
}

/// The symbol of a length from 3 to 258.
#[inline(always)]
pub(super) fn length(len: usize) -> usize {
    const SYMBOLS: [u16; 256] = {
        let mut symbols = [0; 256];
        let mut n = 0;
        while n < 255 {
            symbols[n] = (LENGTHS + slot(n, 2)) as u16;
            n += 1;
        }
        // The longest has a symbol of its own, out of the series.
        symbols[255] = 285;
        symbols
    };
    usize::from(SYMBOLS[len.wrapping_sub(3) % 256])
}

/// How many bits follow the symbol of a length.
pub(super) fn length_extra(symbol: usize) -> u32 {
    if symbol == 285 {
        return 0;
    }
    ((symbol - LENGTHS) as u32 / 4).saturating_sub(1)
}

/// The symbol of a distance.
#[inline(always)]
pub(super) fn distance(distance: usize) -> usize {
    slot(distance.wrapping_sub(1) % (1 << 15), 1)
}

/// How many bits follow the symbol of a distance.
pub(super) fn distance_extra(symbol: usize) -> u32 {
    (symbol as u32 / 2).saturating_sub(1)
}

/// Where `value` falls in a series of ever wider steps, of which `1 << bits` have each width. As
/// many low bits of the value as the step is wide follow its symbol.
#[inline(always)]
const fn slot(value: usize, bits: u32) -> usize {
    let top = (value | 1).ilog2();
    if top <= bits {
        return value;
    }
    let width = top - bits;
    ((width as usize) << bits) + (value >> width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_those_of_the_tables() {
        // [RFC 1951 3.2.5]
        let lengths = [
            (3, 257, 0),
            (10, 264, 0),
            (11, 265, 1),
            (12, 265, 1),
            (13, 266, 1),
            (18, 268, 1),
            (19, 269, 2),
            (66, 276, 3),
            (67, 277, 4),
            (130, 280, 4),
            (131, 281, 5),
            (257, 284, 5),
            (258, 285, 0),
        ];
        for (len, symbol, extra) in lengths {
            assert_eq!((length(len), length_extra(symbol)), (symbol, extra));
        }
        let distances = [
            (1, 0, 0),
            (4, 3, 0),
            (5, 4, 1),
            (6, 4, 1),
            (7, 5, 1),
            (9, 6, 2),
            (1024, 19, 8),
            (1025, 20, 9),
            (4096, 23, 10),
            (32768, 29, 13),
        ];
        for (far, symbol, extra) in distances {
            assert_eq!((distance(far), distance_extra(symbol)), (symbol, extra));
        }
    }
}
