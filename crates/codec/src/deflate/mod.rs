//! Bare deflate streams. [RFC 1951]
//!
//! ```text
//! unit -> segments -> matches -> phrases -> parts -> blocks -> bits
//!         (matches)   (parse)               (split)  (block, huffman, symbols)
//! ```
//!
//! Streams are read by libraries and written by code of our own, because no library finds what
//! QEMU's zlib finds in the time that there is. In 268 MB of programs, libraries and texts, cut into
//! units of 64 KiB, one thread of an Intel Xeon (model 207) packs:
//!
//! | packer | window | size to zlib's | MB/s |
//! |---|---|---|---|
//! | zlib 1.2.13, level 6, as QEMU | 4 KiB | | 30 |
//! | zlib, Cloudflare's, level 6 | 4 KiB | + 0.0 % | 40 |
//! | zlib-rs 0.6, zlib-ng 2.2, level 6 | 4 KiB | + 1.7 % | 89, 70 |
//! | zlib-rs 0.6, zlib-ng 2.2, level 9 | 4 KiB | - 0.2 % | 49, 44 |
//! | libdeflate 1.26, level 6 | 32 KiB, always | - 8.9 % | 97 |
//! | this one | 4 KiB | - 0.8 % | 109 |
//!
//! zlib-ng and its port look for matches of three bytes at level 9 alone, and no other setting
//! changes that; libdeflate's window cannot be made smaller. What makes this one fast: a search that
//! gives up at once where the first place does not match, and few branches that can be guessed
//! wrong. What makes it tight: blocks end where the bytes change their nature.

mod bits;
mod block;
mod huffman;
mod matches;
mod parse;
mod split;
mod symbols;
mod unpack;

use bits::Bits;
use block::Writer;
use matches::{Finder, SEGMENT};
use parse::{Phrase, parse};
use split::Part;
use symbols::Counts;
pub(crate) use unpack::Unpacker;

/// Bytes after which a block may end.
const PIECE: usize = 8192;

/// Packs units so that matches reach back less than 4096 bytes.
pub(crate) struct Packer {
    finder: Finder,
    writer: Writer,
    phrases: Vec<Phrase>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self {
            finder: Finder::new(),
            writer: Writer::new(),
            phrases: Vec::new(),
        }
    }

    /// Packs `unit` into the front of `room` and says how many bytes it takes there; `None` if it
    /// does not fit.
    pub(crate) fn pack(&mut self, unit: &[u8], room: &mut [u8]) -> Option<usize> {
        let mut bits = Bits::new(room);
        let mut block = Part::new(0..0, Counts::NONE);
        self.phrases.clear();
        self.finder.clear();
        for segment in unit.chunks(SEGMENT) {
            let (mut at, end) = self.finder.load(segment);
            while at < end {
                let limit = if end - at < 2 * PIECE {
                    end
                } else {
                    at + PIECE
                };
                let (known, start) = (self.phrases.len(), block.bytes.end);
                let mut counts = Counts::NONE;
                let next = parse(&mut self.finder, at, limit, &mut self.phrases, &mut counts);
                let part = Part::new(start..start + next - at, counts);
                at = next;
                if let Some(both) = block.with(&part) {
                    block = both;
                    continue;
                }
                let phrases = self.phrases.drain(..known);
                self.writer
                    .write(&mut bits, unit, phrases.as_slice(), &block, false)?;
                block = part;
            }
        }
        self.writer
            .write(&mut bits, unit, &self.phrases, &block, true)?;
        bits.align();
        Some(bits.len() / 8)
    }
}
