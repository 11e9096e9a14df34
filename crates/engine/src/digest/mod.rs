//! Digests of what a guest reads, computed by many workers at once.
//!
//! ```text
//!               any worker, any order        in guest order
//! fsverity  ┐   hash every block         ──► add its hashes to the tree    ┐
//! blake3    ├─► hash every MiB           ──► add its node to the tree      ├─► digest
//! crc32     ┘   reckon the remainder     ──► combine                       ┘
//! sha, md5  ──► wait for the turn ─────────► hash every byte ──────────────►
//! ```
//!
//! What can be computed apart is, and what comes early is kept until its turn: some dozen bytes per
//! piece. The others take turns, each with its piece in hand, so that one hashes while the others
//! read; nothing is kept beyond the piece that each worker has anyway.

mod blake3;
mod crc32;
mod fsverity;
mod parts;
mod stream;

use std::fmt;

pub use crc32::Crc32;
pub(crate) use parts::Piece;
use parts::{Lane, Parted};
use stream::Stream;

/// A way to make a digest of bytes. Whatever the format of an image and its holes, the digest is that
/// of its disk as a RAW file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Algorithm {
    /// The digest by which Linux knows a file (fs-verity with SHA-256, blocks of 4096 bytes, no
    /// salt): `fsverity digest FILE` prints it. A tree, so all cores work on it, and zeros cost
    /// next to nothing, however many.
    #[default]
    FsVerity,
    /// BLAKE3, as `b3sum` prints it. A tree, so all cores work on it; but the place of each block
    /// counts, so zeros have to be hashed like all else.
    Blake3,
    /// SHA-256, as `sha256sum` prints it: one byte after the other.
    Sha256,
    /// SHA-512, as `sha512sum` prints it: one byte after the other.
    Sha512,
    /// MD5, as `md5sum` prints it: one byte after the other. Shows accidents, but no intent.
    Md5,
    /// CRC-32 (IEEE 802.3, as in gzip). Zeros cost next to nothing. Shows accidents, but no intent.
    Crc32,
}

impl Algorithm {
    /// All there are.
    pub const ALL: &[Self] = &[
        Self::FsVerity,
        Self::Blake3,
        Self::Sha256,
        Self::Sha512,
        Self::Md5,
        Self::Crc32,
    ];

    /// Its name, as users type it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FsVerity => "fsverity",
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Md5 => "md5",
            Self::Crc32 => "crc32",
        }
    }

    /// The one called `name`.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|algorithm| algorithm.name() == name)
    }

    /// Whether any number of zeros takes no longer than a few.
    const fn skips_zeros(self) -> bool {
        matches!(self, Self::FsVerity | Self::Crc32)
    }

    fn lane(self) -> Box<dyn Lane> {
        match self {
            Self::FsVerity => Box::new(Parted::<fsverity::Tree>::default()),
            Self::Blake3 => Box::new(Parted::<blake3::Tree>::default()),
            Self::Crc32 => Box::new(Parted::<Crc32>::default()),
            Self::Sha256 => Box::new(Stream::<sha2::Sha256>::default()),
            Self::Sha512 => Box::new(Stream::<sha2::Sha512>::default()),
            Self::Md5 => Box::new(Stream::<md5::Md5>::default()),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest of some bytes; shown in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// Of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let lane = algorithm.lane();
        // Nobody else has a ticket, so nobody waits.
        lane.add(
            0,
            &Piece {
                at: 0,
                zeros: 0,
                bytes,
            },
        );
        Self {
            algorithm,
            bytes: lane.finish(),
        }
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// All digests that one job makes.
pub(crate) struct Digests {
    lanes: Vec<(Algorithm, Box<dyn Lane>)>,
}

impl Digests {
    /// Pieces start at multiples of this, in bytes, and so do the bytes behind the zeros in them.
    pub(crate) const ALIGN: u64 = blake3::LEAF;

    /// Each of `algorithms` once.
    pub(crate) fn new(algorithms: &[Algorithm]) -> Self {
        let mut lanes: Vec<(Algorithm, Box<dyn Lane>)> = Vec::new();
        for algorithm in algorithms {
            if lanes.iter().all(|(known, _)| known != algorithm) {
                lanes.push((*algorithm, algorithm.lane()));
            }
        }
        Self { lanes }
    }

    /// Whether there are none to be made.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// The longest run of zeros that a piece shall have, in bytes: where they must be hashed, all
    /// workers shall take part, and be heard of now and then.
    pub(crate) fn most_zeros(&self) -> u64 {
        let mut algorithms = self.lanes.iter().map(|(algorithm, _)| algorithm);
        match algorithms.all(|algorithm| algorithm.skips_zeros()) {
            true => u64::MAX,
            false => 64 << 20,
        }
    }

    /// Adds the piece of `ticket`. The pieces of tickets 0, 1, 2, ... are all bytes in their order,
    /// and all tickets must come.
    pub(crate) fn add(&self, ticket: u64, piece: &Piece<'_>) {
        for (_, lane) in &self.lanes {
            lane.add(ticket, piece);
        }
    }

    /// Sends everybody home who waits for a turn.
    pub(crate) fn stop(&self) {
        for (_, lane) in &self.lanes {
            lane.stop();
        }
    }

    /// The digests of all that was added, in the order in which they were asked for.
    pub(crate) fn finish(self) -> Vec<Digest> {
        let lanes = self.lanes.into_iter();
        let digest = |(algorithm, lane): (Algorithm, Box<dyn Lane>)| Digest {
            algorithm,
            bytes: lane.finish(),
        };
        lanes.map(digest).collect()
    }
}
