//! Units to pack, and a judge of deflate streams that shares no code with any codec.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use proptest::prelude::*;

/// Bytes that look random and are the same in every run.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Noise that repeats itself after `period` bytes, so that the best match lies that far back.
pub(crate) fn periodic(len: usize, period: usize) -> Vec<u8> {
    noise(period, 7).into_iter().cycle().take(len).collect()
}

/// Little-endian counters: much alike, never the same.
pub(crate) fn counters(len: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(len).collect()
}

/// Lines as a program would print them.
pub(crate) fn text(len: usize) -> Vec<u8> {
    let line = |n: u32| {
        let square = n.wrapping_mul(n);
        format!("{n:05} the square of {n} is {square} or {square:#x}\n")
    };
    (0..).flat_map(|n| line(n).into_bytes()).take(len).collect()
}

/// Bytes of all kinds, one kind after the other, with copies of earlier ones from all distances.
pub(crate) fn mixed(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![];
    let mut dice = noise(64 + len, seed).into_iter();
    let mut roll = || usize::from(dice.next().unwrap_or(0));
    while bytes.len() < len {
        let some = 1 << (roll() % 13);
        let some = some + roll() * some / 256;
        let byte = roll() as u8;
        match roll() % 5 {
            0 => bytes.extend(vec![byte; some]),
            1 => bytes.extend(noise(some, u64::from(byte))),
            2 => bytes.extend(text(some)),
            3 => bytes.extend(noise(some, 3).iter().map(|noise| noise % (byte | 1))),
            _ => {
                let back = 1 + (roll() * 33 + roll()) % bytes.len().max(1);
                let from = bytes.len().saturating_sub(back);
                (from..from + some).for_each(|at| bytes.push(bytes.get(at).copied().unwrap_or(0)));
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// Noise in which each byte value occurs about as often as its weight says.
pub(crate) fn skewed(weights: &[u32], len: usize, seed: u64) -> Vec<u8> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let pick = |dice: &[u8]| {
        let mut at = u64::from_le_bytes(dice.try_into().unwrap()) % sum.max(1);
        let byte = weights.iter().position(|weight| {
            let found = at < u64::from(*weight);
            at = at.saturating_sub((*weight).into());
            found
        });
        byte.unwrap_or(0) as u8
    };
    noise(8 * len, seed).chunks(8).map(pick).collect()
}

/// Units of any size and kind, of which most can be packed.
pub(crate) fn any_unit() -> impl Strategy<Value = Vec<u8>> {
    let letters = prop::collection::vec(0u8..4, 0..10_000);
    let pieces = prop::collection::vec((any::<u8>(), 1..5000usize), 0..9);
    let piece = |(seed, len): (u8, usize)| match seed % 3 {
        0 => vec![seed; len],
        1 => noise(len, u64::from(seed % 8)),
        _ => text(len),
    };
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        letters,
        (1..20_000usize, 1..9000usize).prop_map(|(len, period)| periodic(len, period)),
        pieces.prop_map(move |pieces| pieces.into_iter().flat_map(piece).collect()),
    ]
}

/// What a deflate stream says.
pub(crate) struct Walk {
    /// The bytes it unpacks to.
    pub(crate) bytes: Vec<u8>,
    /// The farthest that any match reaches back.
    pub(crate) farthest: usize,
}

/// Reads a whole deflate stream in the plainest way the format allows, panicking on any fault.
/// [RFC 1951]
pub(crate) fn walk(packed: &[u8]) -> Walk {
    let mut bits = Bits { packed, at: 0 };
    let mut walk = Walk {
        bytes: vec![],
        farthest: 0,
    };
    loop {
        let last = bits.take(1) == 1;
        match bits.take(2) {
            0 => stored(&mut bits, &mut walk),
            1 => {
                let mut lengths = vec![8; 144];
                lengths.resize(256, 9);
                lengths.resize(280, 7);
                lengths.resize(288, 8);
                symbols(&mut bits, &mut walk, &lengths, &[5; 30]);
            }
            2 => {
                let (literals, distances) = tables(&mut bits);
                symbols(&mut bits, &mut walk, &literals, &distances);
            }
            kind => panic!("block type {kind}"),
        }
        if last {
            let end = bits.at.div_ceil(8);
            assert_eq!(end, packed.len(), "the stream ends where its bytes end");
            return walk;
        }
    }
}

struct Bits<'a> {
    packed: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> usize {
        (0..count).fold(0, |value, n| {
            let bit = self.packed[self.at / 8] >> (self.at % 8) & 1;
            self.at += 1;
            value | usize::from(bit) << n
        })
    }

    /// The next symbol of `code`.
    fn symbol(&mut self, code: &Code) -> usize {
        let (mut word, mut first, mut before) = (0, 0, 0);
        for count in code.counts {
            word = word << 1 | self.take(1);
            first <<= 1;
            if word < first + count {
                return code.symbols[before + word - first];
            }
            first += count;
            before += count;
        }
        panic!("no such code");
    }
}

/// A canonical Huffman code. [RFC 1951 3.2.2]
struct Code {
    /// How many words have one bit, two bits, and so on.
    counts: [usize; 15],
    /// The symbols, those with short words first.
    symbols: Vec<usize>,
}

impl Code {
    fn new(lengths: &[u8]) -> Self {
        let of = |length| (0..lengths.len()).filter(move |s| lengths[*s] == length);
        Self {
            counts: std::array::from_fn(|n| of(n as u8 + 1).count()),
            symbols: (1..=15).flat_map(of).collect(),
        }
    }
}

fn stored(bits: &mut Bits<'_>, walk: &mut Walk) {
    bits.at = bits.at.next_multiple_of(8);
    let len = bits.take(16);
    assert_eq!(bits.take(16), !len & 0xffff);
    (0..len).for_each(|_| walk.bytes.push(bits.take(8) as u8));
}

/// Code lengths of literals and distances. [RFC 1951 3.2.7]
fn tables(bits: &mut Bits<'_>) -> (Vec<u8>, Vec<u8>) {
    const ORDER: [usize; 19] = [
        16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
    ];
    let (literals, distances) = (bits.take(5) + 257, bits.take(5) + 1);
    let mut code = [0; 19];
    for at in &ORDER[..bits.take(4) + 4] {
        code[*at] = bits.take(3) as u8;
    }
    let code = Code::new(&code);
    let mut lengths = vec![];
    while lengths.len() < literals + distances {
        let (length, times) = match bits.symbol(&code) {
            16 => (*lengths.last().unwrap(), bits.take(2) + 3),
            17 => (0, bits.take(3) + 3),
            18 => (0, bits.take(7) + 11),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    assert_eq!(lengths.len(), literals + distances);
    let distances = lengths.split_off(literals);
    (lengths, distances)
}

/// Literals and matches up to the end of the block. [RFC 1951 3.2.5]
fn symbols(bits: &mut Bits<'_>, walk: &mut Walk, literals: &[u8], distances: &[u8]) {
    let (literals, distances) = (Code::new(literals), Code::new(distances));
    loop {
        let length = match bits.symbol(&literals) {
            literal @ 0..=255 => {
                walk.bytes.push(literal as u8);
                continue;
            }
            256 => return,
            285 => 258,
            symbol => 3 + stepped(bits, symbol - 257, 4),
        };
        let symbol = bits.symbol(&distances);
        let distance = 1 + stepped(bits, symbol, 2);
        walk.farthest = walk.farthest.max(distance);
        for _ in 0..length {
            let byte = walk.bytes[walk.bytes.len() - distance];
            walk.bytes.push(byte);
        }
    }
}

/// The value of the `n`th symbol of a series in which every `steps` symbols take one bit more.
fn stepped(bits: &mut Bits<'_>, n: usize, steps: usize) -> usize {
    let extra = (n / steps).saturating_sub(1);
    let base = if n < 2 * steps {
        n
    } else {
        (n % steps + steps) << extra
    };
    base + bits.take(extra)
}
