//! CRC-32, whose parts combine.

use crc32fast::Hasher;

use super::parts::{Parts, Piece};

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

impl Parts for Crc32 {
    type Part = Self;

    fn part(piece: &Piece<'_>) -> Self {
        Self::of_zeros(piece.zeros).then(Self::of(piece.bytes))
    }

    fn add(&mut self, part: Self) {
        *self = self.then(part);
    }

    /// As the four bytes of the number, first the highest: what people write.
    fn finish(self) -> Vec<u8> {
        self.value.to_be_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
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
}
