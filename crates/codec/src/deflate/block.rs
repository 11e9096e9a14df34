//! One block, in the form that takes the least. [RFC 1951 3.2.3]

use super::bits::Bits;
use super::huffman::Code;
use super::parse::Phrase;
use super::split::Part;
use super::symbols::{self, Counts, DISTANCES, END, LITERALS};

/// Longest words of literals and lengths: four of them go into one word of the machine.
const LITERAL_BITS: usize = 14;
/// Longest words of distances.
const DISTANCE_BITS: usize = 15;
/// Longest words for the lengths of those words. [RFC 1951 3.2.7]
const LENGTH_BITS: usize = 7;
/// Most bytes in one piece that is stored as it is. [RFC 1951 3.2.4]
const STORED: usize = 0xffff;
/// In which order the lengths of the words for lengths come. [RFC 1951 3.2.7]
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// Literals, lengths and distances of a block.
struct Codes {
    literals: Code<LITERALS>,
    distances: Code<DISTANCES>,
}

impl Codes {
    /// Bits for so many symbols, less those that follow them.
    fn cost(&self, counts: &Counts) -> u64 {
        self.literals.cost(&counts.literals) + self.distances.cost(&counts.distances)
    }
}

/// Writes blocks.
pub(super) struct Writer {
    /// The code that is not written down. [RFC 1951 3.2.6]
    fixed: Codes,
    /// The block's own.
    own: Codes,
    tables: Tables,
}

impl Writer {
    pub(super) fn new() -> Self {
        let mut literals = [8; LITERALS];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        Self {
            fixed: Codes {
                literals: Code::new(literals),
                distances: Code::new([5; DISTANCES]),
            },
            own: Codes {
                literals: Code::new([0; LITERALS]),
                distances: Code::new([0; DISTANCES]),
            },
            tables: Tables::new(),
        }
    }

    /// Writes the part of `unit` that `phrases` say; nothing if there is no room for it. `last` if
    /// no block follows.
    pub(super) fn write(
        &mut self,
        bits: &mut Bits<'_>,
        unit: &[u8],
        phrases: &[Phrase],
        part: &Part,
        last: bool,
    ) -> Option<()> {
        let bytes = unit.get(part.bytes.clone())?;
        let counts = &mut part.counts.clone();
        counts.literals[END] = 1;
        self.own.literals.fit(&counts.literals, LITERAL_BITS);
        self.own.distances.fit(&counts.distances, DISTANCE_BITS);
        let extra = extra(counts);
        let tables = self.tables.fit(&self.own);
        let own = 3 + tables + extra + self.own.cost(counts);
        let fixed = 3 + extra + self.fixed.cost(counts);
        let stored = stored_cost(bits.len(), bytes.len());
        let least = own.min(fixed).min(stored);
        if least > bits.left() as u64 {
            return None;
        }
        let last = u32::from(last);
        if least == stored {
            store(bits, bytes, last);
            return Some(());
        }
        let codes = if least == fixed {
            bits.put(last | 1 << 1, 3);
            &self.fixed
        } else {
            bits.put(last | 2 << 1, 3);
            self.tables.write(bits);
            &self.own
        };
        bits.flush();
        write_phrases(bits, bytes, phrases, codes);
        Some(())
    }
}

/// Bits that follow the symbols of lengths and distances.
fn extra(counts: &Counts) -> u64 {
    let lengths = counts.literals.iter().enumerate().skip(END + 1);
    let lengths = lengths.map(|(n, count)| symbols::length_extra(n) * count);
    let distances = counts.distances.iter().enumerate();
    let distances = distances.map(|(n, count)| symbols::distance_extra(n) * count);
    lengths.chain(distances).map(u64::from).sum()
}

/// Bits for `len` bytes as they are, behind `before` bits.
fn stored_cost(before: usize, len: usize) -> u64 {
    let to_byte = (before + 3).next_multiple_of(8) - before;
    let more = len.div_ceil(STORED).saturating_sub(1);
    (to_byte + 32 + more * 40 + len * 8) as u64
}

/// Writes bytes as they are. [RFC 1951 3.2.4]
fn store(bits: &mut Bits<'_>, bytes: &[u8], last: u32) {
    let mut pieces = bytes.chunks(STORED).peekable();
    while let Some(piece) = pieces.next() {
        bits.put(last & u32::from(pieces.peek().is_none()), 3);
        bits.align();
        let len = piece.len() as u32;
        bits.put(len, 16);
        bits.put(!len & 0xffff, 16);
        bits.flush();
        bits.bytes(piece);
    }
}

/// A word and how many bits it has.
#[derive(Clone, Copy, Default)]
struct Word {
    bits: u32,
    count: u32,
}

impl Word {
    fn new<const N: usize>(code: &Code<N>, symbol: usize) -> Self {
        Self {
            bits: code.words[symbol].into(),
            count: code.lens[symbol].into(),
        }
    }

    /// With the `count` lowest bits of `value` behind it.
    #[inline(always)]
    fn with(self, value: usize, count: u32) -> Self {
        let value = value as u32 & ((1 << count) - 1);
        Self {
            bits: self.bits | value << self.count,
            count: self.count + count,
        }
    }

    #[inline(always)]
    fn put(self, bits: &mut Bits<'_>) {
        bits.put(self.bits, self.count);
    }
}

fn write_phrases(bits: &mut Bits<'_>, bytes: &[u8], phrases: &[Phrase], codes: &Codes) {
    let literals: [Word; 256] = std::array::from_fn(|byte| Word::new(&codes.literals, byte));
    let lengths: [Word; 256] = std::array::from_fn(|n| {
        let symbol = symbols::length(n + 3);
        Word::new(&codes.literals, symbol).with(n, symbols::length_extra(symbol))
    });
    let distances: [(Word, u32); DISTANCES] = std::array::from_fn(|symbol| {
        (
            Word::new(&codes.distances, symbol),
            symbols::distance_extra(symbol),
        )
    });
    let mut at = 0;
    for phrase in phrases {
        let mut left = phrase.literals as usize;
        while left > 4 {
            for byte in four(bytes, at) {
                literals[usize::from(byte)].put(bits);
            }
            bits.flush();
            at += 4;
            left -= 4;
        }
        // Always four, some of them of no bits: how many there are cannot be guessed.
        for (n, byte) in four(bytes, at).into_iter().enumerate() {
            let word = literals[usize::from(byte)];
            let word = if n < left { word } else { Word::default() };
            word.put(bits);
        }
        bits.flush();
        at += left;
        if phrase.len == 0 {
            continue;
        }
        at += usize::from(phrase.len);
        lengths[usize::from(phrase.len).wrapping_sub(3) % 256].put(bits);
        let distance = usize::from(phrase.distance);
        let (word, extra) = distances[symbols::distance(distance) % DISTANCES];
        word.with(distance.wrapping_sub(1), extra).put(bits);
        bits.flush();
    }
    Word::new(&codes.literals, END).put(bits);
    bits.flush();
}

/// Four bytes from `at`, zeros behind the end.
#[inline(always)]
fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.first_chunk().copied().unwrap_or_else(|| {
        let mut four = [0; 4];
        four[..rest.len()].copy_from_slice(rest);
        four
    })
}

/// The lengths of a block's words, as they are written down. [RFC 1951 3.2.7]
struct Tables {
    code: Code<19>,
    /// Symbols, and what follows them in how many bits.
    items: Vec<(usize, usize, u32)>,
    literals: usize,
    distances: usize,
    lengths: usize,
}

impl Tables {
    fn new() -> Self {
        Self {
            code: Code::new([0; 19]),
            items: Vec::new(),
            literals: 0,
            distances: 0,
            lengths: 0,
        }
    }

    /// Takes the lengths of `codes` and says how many bits they take.
    fn fit(&mut self, codes: &Codes) -> u64 {
        let used = |lens: &[u8]| lens.iter().rposition(|len| *len > 0).map_or(0, |n| n + 1);
        self.literals = used(&codes.literals.lens).max(257);
        self.distances = used(&codes.distances.lens).max(1);
        let (mut lens, all) = ([0; LITERALS + DISTANCES], self.literals + self.distances);
        lens[..self.literals].copy_from_slice(&codes.literals.lens[..self.literals]);
        lens[self.literals..all].copy_from_slice(&codes.distances.lens[..self.distances]);
        self.items.clear();
        for run in lens[..all].chunk_by(|a, b| a == b) {
            self.run(run[0].into(), run.len());
        }
        let mut counts = [0; 19];
        let mut bits = 14;
        for (symbol, _, extra) in &self.items {
            counts[*symbol] += 1;
            bits += u64::from(*extra);
        }
        self.code.fit(&counts, LENGTH_BITS);
        let last = ORDER.iter().rposition(|symbol| self.code.lens[*symbol] > 0);
        self.lengths = last.map_or(0, |n| n + 1).max(4);
        bits + 3 * self.lengths as u64 + self.code.cost(&counts)
    }

    /// Adds `times` words of `len` bits.
    fn run(&mut self, len: usize, mut times: usize) {
        if len == 0 {
            while times >= 11 {
                let some = times.min(138);
                self.items.push((18, some - 11, 7));
                times -= some;
            }
            if times >= 3 {
                self.items.push((17, times - 3, 3));
                times = 0;
            }
        } else if times > 3 {
            self.items.push((len, 0, 0));
            times -= 1;
            while times >= 3 {
                let some = times.min(6);
                self.items.push((16, some - 3, 2));
                times -= some;
            }
        }
        self.items.extend(std::iter::repeat_n((len, 0, 0), times));
    }

    fn write(&self, bits: &mut Bits<'_>) {
        bits.put((self.literals - 257) as u32, 5);
        bits.put((self.distances - 1) as u32, 5);
        bits.put((self.lengths - 4) as u32, 4);
        for symbol in &ORDER[..self.lengths] {
            bits.flush();
            bits.put(self.code.lens[*symbol].into(), 3);
        }
        for (symbol, value, extra) in &self.items {
            bits.flush();
            Word::new(&self.code, *symbol)
                .with(*value, *extra)
                .put(bits);
        }
    }
}
