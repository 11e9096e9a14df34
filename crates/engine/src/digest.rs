//! A checksum of the guest's bytes, computed by many workers out of order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;
use goldsmith_block::GuestRange;

/// The CRC-32 (IEEE 802.3, as in gzip) of a run of bytes, and its length.
///
/// Two runs combine into the checksum of both without reading a byte again, so workers may hash
/// in any order and a hole costs next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Crc32 {
    value: u32,
    len: u64,
}

impl Crc32 {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            value: crc32fast::hash(bytes),
            len: bytes.len() as u64,
        }
    }

    /// Of `len` zeros.
    ///
    /// # Cost
    /// Logarithmic in `len`.
    pub fn of_zeros(len: u64) -> Self {
        let mut result = Self::default();
        let mut power = Self::of(&[0]);
        let mut left = len;
        while left > 0 {
            if left & 1 == 1 {
                result = result.then(power);
            }
            left >>= 1;
            if left > 0 {
                power = power.then(power);
            }
        }
        result
    }

    /// Of these bytes and then those of `next`.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let mut hasher = Hasher::new_with_initial_len(self.value, self.len);
        hasher.combine(&Hasher::new_with_initial_len(next.value, next.len));
        Self {
            value: hasher.finalize(),
            len: self.len + next.len,
        }
    }

    /// The checksum.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// How many bytes it is of.
    pub fn bytes(&self) -> u64 {
        self.len
    }
}

/// Checksums of pieces of a disk, growing together as the gaps between them close.
#[derive(Default)]
pub(crate) struct Mosaic {
    /// By first byte. Neighbours never touch: they would have been joined.
    pieces: Mutex<BTreeMap<u64, Crc32>>,
}

impl Mosaic {
    /// Adds the checksum of the bytes of `range`.
    pub(crate) fn insert(&self, range: GuestRange, mut crc: Crc32) {
        if range.is_empty() {
            return;
        }
        let mut start = range.start;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((&before, &left)) = pieces.range(..start).next_back()
            && before + left.len == start
        {
            pieces.remove(&before);
            (start, crc) = (before, left.then(crc));
        }
        if let Some(right) = pieces.remove(&range.end) {
            crc = crc.then(right);
        }
        pieces.insert(start, crc);
    }

    /// The checksum of bytes `0..len`, if all of them were added.
    pub(crate) fn whole(self, len: u64) -> Option<Crc32> {
        let pieces = self
            .pieces
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match pieces.iter().next() {
            None if len == 0 => Some(Crc32::default()),
            Some((0, crc)) if pieces.len() == 1 && crc.len == len => Some(*crc),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(Crc32::of(b"123456789").value(), 0xcbf4_3926);
    }

    #[test]
    fn zeros_cost_no_reading() {
        for len in [0, 1, 2, 3, 511, 4096, 100_001] {
            assert_eq!(
                Crc32::of_zeros(len),
                Crc32::of(&vec![0; len as usize]),
                "{len}"
            );
        }
        assert_eq!(Crc32::of_zeros(64 << 40).bytes(), 64 << 40);
    }

    proptest! {
        /// Pieces in any order give the checksum of the whole.
        #[test]
        fn order_of_the_pieces_does_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            mut cuts in prop::collection::vec(0usize..200, 0..8),
            seed: u64,
        ) {
            cuts.extend([0, bytes.len()]);
            cuts.retain(|cut| *cut <= bytes.len());
            cuts.sort_unstable();
            let mut pieces: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
            let turns = seed as usize % pieces.len().max(1);
            pieces.rotate_left(turns);
            let mosaic = Mosaic::default();
            for (start, end) in pieces {
                let range = GuestRange::new(start as u64, end as u64);
                mosaic.insert(range, Crc32::of(&bytes[start..end]));
            }
            prop_assert_eq!(mosaic.whole(bytes.len() as u64), Some(Crc32::of(&bytes)));
        }

        #[test]
        fn missing_piece_is_noticed(len in 1u64..1000, at in 0u64..1000) {
            let mosaic = Mosaic::default();
            let at = at % len;
            mosaic.insert(GuestRange::new(0, at), Crc32::of_zeros(at));
            mosaic.insert(GuestRange::new(at + 1, len), Crc32::of_zeros(len - at - 1));
            prop_assert_eq!(mosaic.whole(len), None);
        }
    }
}
