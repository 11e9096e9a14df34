//! Words for symbols, the shorter the more often a symbol occurs. [RFC 1951 3.2.2]

/// The longest word that the format knows.
const LONGEST: usize = 15;
/// Bits of a symbol in a key.
const SYMBOL: u32 = 9;

/// A word for each of `N` symbols, at most 512.
pub(super) struct Code<const N: usize> {
    /// How many bits; 0 for symbols without a word.
    pub(super) lens: [u8; N],
    /// The bits, the first one lowest.
    pub(super) words: [u16; N],
}

impl<const N: usize> Code<N> {
    /// The code with words so long.
    pub(super) fn new(lens: [u8; N]) -> Self {
        let mut code = Self {
            lens,
            words: [0; N],
        };
        code.name();
        code
    }

    /// Gives a word of at most `limit` bits to each symbol that occurs, less than 2^23 times.
    ///
    /// At least two symbols get one, because some decoders refuse less.
    pub(super) fn fit(&mut self, counts: &[u32; N], limit: usize) {
        let mut keys = [0; N];
        let mut used = 0;
        for (symbol, count) in counts.iter().enumerate() {
            // Branches would be guessed wrong; `used` is at most `symbol`.
            keys[used] = count << SYMBOL | symbol as u32;
            used += usize::from(*count > 0);
        }
        let symbol = |key: u32| key as usize % (1 << SYMBOL);
        self.lens = [0; N];
        if used < 2 {
            let only = if used == 1 { symbol(keys[0]) } else { 0 };
            self.lens[only] = 1;
            self.lens[usize::from(only == 0)] = 1;
            return self.name();
        }
        let keys = &mut keys[..used];
        keys.sort_unstable();
        let mut depths = [0; N];
        let depths = &mut depths[..used];
        for (depth, key) in depths.iter_mut().zip(&*keys) {
            *depth = key >> SYMBOL;
        }
        weigh(depths);
        let mut keys = keys.iter();
        for (len, count) in limited(depths, limit).into_iter().enumerate().rev() {
            for key in keys.by_ref().take(count) {
                self.lens[symbol(*key)] = len as u8;
            }
        }
        self.name();
    }

    /// Finds the words from their lengths.
    fn name(&mut self) {
        let mut counts = [0u16; LONGEST + 1];
        for len in &self.lens {
            counts[usize::from(*len) % counts.len()] += 1;
        }
        counts[0] = 0;
        let mut next = [0u16; LONGEST + 1];
        for len in 1..=LONGEST {
            // One too many after the last length.
            next[len] = (next[len - 1] + counts[len - 1]) << 1;
        }
        for (word, len) in self.words.iter_mut().zip(&self.lens) {
            let next = &mut next[usize::from(*len) % counts.len()];
            *word = next
                .reverse_bits()
                .checked_shr(16 - u32::from(*len))
                .unwrap_or(0);
            *next = next.wrapping_add(1);
        }
    }

    /// How many bits so many symbols take.
    pub(super) fn cost(&self, counts: &[u32; N]) -> u64 {
        let each = self.lens.iter().zip(counts);
        each.map(|(len, count)| u64::from(*len) * u64::from(*count))
            .sum()
    }
}

/// Turns counts, the smallest first and at least two, into the depths of Huffman's tree, the
/// deepest first. In place. [Moffat, Katajainen: In-place calculation of minimum-redundancy codes]
fn weigh(counts: &mut [u32]) {
    let len = counts.len();
    // From the left: counts of leaves become weights of nodes and those the places of parents.
    let (mut leaf, mut node) = (0, 0);
    for parent in 0..len - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            if leaf >= len || node < parent && counts[node] < counts[leaf] {
                weight += counts[node];
                counts[node] = parent as u32;
                node += 1;
            } else {
                weight += counts[leaf];
                leaf += 1;
            }
        }
        counts[parent] = weight;
    }
    // From the right: places of parents become depths of nodes,
    counts[len - 2] = 0;
    for node in (0..len - 2).rev() {
        counts[node] = counts[counts[node] as usize] + 1;
    }
    // and what places the nodes of a depth leave free are leaves.
    let (mut node, mut leaf, mut free, mut depth) = (len - 1, len, 1, 0);
    while leaf > 0 {
        let mut nodes = 0;
        while node > 0 && counts[node - 1] == depth {
            nodes += 1;
            node -= 1;
        }
        for _ in nodes..free {
            leaf -= 1;
            counts[leaf] = depth;
        }
        free = 2 * nodes;
        depth += 1;
    }
}

/// How many words there are of each length, none longer than `limit`.
fn limited(depths: &[u32], limit: usize) -> [usize; LONGEST + 1] {
    let mut counts = [0; LONGEST + 1];
    for depth in depths {
        counts[limit.min(*depth as usize)] += 1;
    }
    // Words of the last length that a full tree has no place for.
    let taken: usize = (1..=limit).map(|len| counts[len] << (limit - len)).sum();
    for _ in 1usize << limit..taken {
        // A word moves one down and takes one from the end with it.
        let Some(len) = (1..limit).rev().find(|len| counts[*len] > 0) else {
            break;
        };
        counts[len] -= 1;
        counts[len + 1] += 2;
        counts[limit] -= 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The least that any code without a limit takes, found in the plainest way.
    fn least(counts: &[u32]) -> u64 {
        let mut all: Vec<u64> = counts
            .iter()
            .map(|n| (*n).into())
            .filter(|n| *n > 0)
            .collect();
        let mut bits = 0;
        while all.len() > 1 {
            all.sort_unstable_by(|a, b| b.cmp(a));
            let two = all.pop().unwrap_or(0) + all.pop().unwrap_or(0);
            bits += two;
            all.push(two);
        }
        bits
    }

    fn assert_is_a_code<const N: usize>(code: &Code<N>, counts: &[u32; N], limit: usize) {
        let mut space = 0;
        for (symbol, count) in counts.iter().enumerate() {
            let len = usize::from(code.lens[symbol]);
            assert!(len <= limit);
            assert!(*count == 0 || len > 0, "symbol {symbol} has a word");
            space += if len > 0 { 1 << (limit - len) } else { 0 };
        }
        assert_eq!(space, 1 << limit, "the code is complete");
        for (a, len) in code.lens.iter().enumerate().filter(|(_, len)| **len > 0) {
            for b in (0..N).filter(|b| *b != a && code.lens[*b] >= *len) {
                let same = (code.words[a] ^ code.words[b]) & ((1 << len) - 1) == 0;
                assert!(!same, "no word starts with another: {a}, {b}");
            }
        }
    }

    proptest! {
        /// Frequencies with which no word needs more than 15 bits.
        #[test]
        fn words_are_as_short_as_can_be(
            counts in prop_oneof![
                prop::collection::vec(0..9u32, 288),
                prop::collection::vec(prop_oneof![Just(0), 100..5000u32], 288),
            ],
        ) {
            let counts: [u32; 288] = counts.try_into().expect("288 of them");
            let mut code = Code::new([0; 288]);
            code.fit(&counts, 15);
            assert_is_a_code(&code, &counts, 15);
            if counts.iter().filter(|n| **n > 0).count() > 1 {
                prop_assert_eq!(code.cost(&counts), least(&counts));
            }
        }

        #[test]
        fn words_keep_to_a_limit(
            counts in prop::collection::vec(prop_oneof![Just(0), 0..5000u32], 19),
            steep: bool,
        ) {
            let mut counts: [u32; 19] = counts.try_into().expect("19 of them");
            if steep {
                counts = std::array::from_fn(|n| counts[n] >> n.min(12));
            }
            let mut code = Code::new([0; 19]);
            code.fit(&counts, 7);
            assert_is_a_code(&code, &counts, 7);
        }
    }

    /// The counts that make the deepest trees.
    #[test]
    fn fibonacci_numbers_keep_to_every_limit() {
        let mut counts = [0; 30];
        let (mut a, mut b) = (1, 1);
        for count in &mut counts {
            *count = a;
            (a, b) = (b, a + b);
        }
        for (limit, part) in [(15, 30), (14, 30), (7, 20), (5, 30)] {
            let mut counts = counts;
            counts[part..].fill(0);
            let mut code = Code::new([0; 30]);
            code.fit(&counts, limit);
            assert_is_a_code(&code, &counts, limit);
        }
    }

    #[test]
    fn one_symbol_does_not_stay_alone() {
        for only in [None, Some(0), Some(1), Some(5)] {
            let mut counts = [0; 6];
            only.into_iter()
                .for_each(|symbol: usize| counts[symbol] = 9);
            let mut code = Code::new([0; 6]);
            code.fit(&counts, 7);
            assert_is_a_code(&code, &counts, 7);
        }
    }
}
