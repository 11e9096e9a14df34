//! The digest of a file as Linux has it for fs-verity. [Linux, Documentation/filesystems/fsverity.rst,
//! "File digest computation"]
//!
//! ```text
//! level 0   hash of each block of data, 4096 bytes
//! level 1   hash of each 128 hashes of level 0: a block again
//! ...       until there is one: the root
//! digest    hash of 256 bytes with the length of the file and the root in them
//! ```
//!
//! A hash does not depend on where its block stands, so there is one for zeros on each level.

use goldsmith_block::is_zero;
use sha2::{Digest, Sha256};

use super::parts::{Parts, Piece};

/// Bytes of a block, of data or of hashes.
const BLOCK: usize = 4096;
/// Bytes of a hash.
const HASH: usize = 32;
/// Hashes in a block.
const ARITY: u64 = (BLOCK / HASH) as u64;
/// Bytes of data under a block of level-0 hashes.
const SPAN: usize = BLOCK * ARITY as usize;

type Hash = [u8; HASH];

fn hash(block: &[u8]) -> Hash {
    Sha256::digest(block).into()
}

/// The tree over all bytes so far.
#[derive(Default)]
pub(super) struct Tree {
    /// Length of the file in bytes.
    len: u64,
    /// For each level the hashes that do not fill a block yet.
    levels: Vec<Vec<u8>>,
    /// The hash of each level over zeros alone, as far as it was needed.
    zeros: Vec<Hash>,
}

/// What has to be known of a piece: the hashes over whole spans, and over what is left at the end of
/// the file.
pub(super) struct Hashes {
    zeros: u64,
    len: u64,
    spans: Vec<Hash>,
    rest: Vec<Hash>,
}

impl Parts for Tree {
    type Part = Hashes;

    fn part(piece: &Piece<'_>) -> Hashes {
        let spans = piece.bytes.chunks_exact(SPAN);
        let rest = spans.remainder().chunks(BLOCK);
        let zero = hash(&[0; BLOCK]);
        let zeros = hash(&zero.repeat(ARITY as usize));
        let mut hashes = [0; BLOCK];
        Hashes {
            zeros: piece.zeros,
            len: piece.bytes.len() as u64,
            spans: spans
                .map(|span| {
                    if is_zero(span) {
                        return zeros;
                    }
                    let places = hashes.chunks_exact_mut(HASH);
                    for (place, block) in places.zip(span.chunks_exact(BLOCK)) {
                        let hash = if is_zero(block) { zero } else { hash(block) };
                        place.copy_from_slice(&hash);
                    }
                    hash(&hashes)
                })
                .collect(),
            rest: rest
                .map(|block| {
                    let mut whole = [0; BLOCK];
                    whole[..block.len()].copy_from_slice(block);
                    hash(&whole)
                })
                .collect(),
        }
    }

    fn add(&mut self, part: Hashes) {
        self.add_zeros(part.zeros);
        self.len += part.len;
        for hash in part.spans {
            self.push(1, hash);
        }
        for hash in part.rest {
            self.push(0, hash);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let root = self.root();
        let mut descriptor = [0; 256];
        // Version, SHA-256, the logarithm of the length of a block.
        descriptor[..3].copy_from_slice(&[1, 1, BLOCK.trailing_zeros() as u8]);
        descriptor[8..16].copy_from_slice(&self.len.to_le_bytes());
        descriptor[16..][..HASH].copy_from_slice(&root);
        hash(&descriptor).to_vec()
    }
}

impl Tree {
    /// Adds `bytes` zeros; only the last ones of a file end inside a block.
    fn add_zeros(&mut self, bytes: u64) {
        let mut at = self.len / BLOCK as u64;
        let mut blocks = bytes.div_ceil(BLOCK as u64);
        self.len += bytes;
        while blocks > 0 {
            // The largest tree of nothing but zeros that starts here.
            let (mut level, mut count) = (0, 1);
            while at.is_multiple_of(count * ARITY) && blocks >= count * ARITY {
                (level, count) = (level + 1, count * ARITY);
            }
            let hash = self.zeros(level);
            self.push(level, hash);
            (at, blocks) = (at + count, blocks - count);
        }
    }

    /// The hash of a tree of this many levels over zeros.
    fn zeros(&mut self, level: usize) -> Hash {
        while self.zeros.len() <= level {
            let hash = match self.zeros.last() {
                None => hash(&[0; BLOCK]),
                Some(below) => hash(&below.repeat(ARITY as usize)),
            };
            self.zeros.push(hash);
        }
        self.zeros[level]
    }

    /// Adds the next hash of a level.
    fn push(&mut self, mut level: usize, mut next: Hash) {
        loop {
            if self.levels.len() <= level {
                self.levels.resize_with(level + 1, Vec::new);
            }
            let block = &mut self.levels[level];
            block.extend_from_slice(&next);
            if block.len() < BLOCK {
                return;
            }
            next = hash(block);
            block.clear();
            level += 1;
        }
    }

    /// The hash over all others.
    fn root(&mut self) -> Hash {
        let mut nodes = self.len.div_ceil(BLOCK as u64);
        if nodes == 0 {
            return [0; HASH];
        }
        let mut level = 0;
        while nodes > 1 {
            let block = &mut self.levels[level];
            if !block.is_empty() {
                block.resize(BLOCK, 0);
                let hash = hash(block);
                block.clear();
                self.push(level + 1, hash);
            }
            nodes = nodes.div_ceil(ARITY);
            level += 1;
        }
        let mut root = [0; HASH];
        root.copy_from_slice(&self.levels[level][..HASH]);
        root
    }
}
