//! Finding zeros.

use crate::{Result, Storage};

/// Whether every byte of `bytes` is zero.
///
/// # Cost
/// Reads at the speed of memory and stops soon after the first byte that is not zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most data differs from zero at once; blocks of 256 bytes fold into wide registers.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Byte offset of the last byte of `storage` that is not zero, if it stands before holes and at most
/// `most` bytes of zeros that had to be read.
///
/// # Errors
/// `Io` if the storage cannot be read.
///
/// # Cost
/// Holes are stepped over in ever longer strides; 64 KiB are read at each end of one.
pub fn last_byte(storage: &dyn Storage, most: u64) -> Result<Option<u64>> {
    const PIECE: u64 = 64 << 10;
    let mut end = storage.len();
    let (mut step, mut seen) = (PIECE, 0);
    let mut piece = vec![0; PIECE as usize];
    while end > 0 && seen < most {
        let start = end.saturating_sub(step);
        let span = storage.span_at(start, end)?;
        if span.hole && span.len == end - start {
            (end, step) = (start, step.saturating_mul(2));
            continue;
        }
        step = PIECE;
        let start = end.saturating_sub(step);
        // At most a piece.
        let piece = &mut piece[..(end - start) as usize];
        storage.read_at(start, piece)?;
        if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
            return Ok(Some(start + last as u64));
        }
        seen += end - start;
        end = start;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for len in [0, 1, 255, 256, 257, 511, 513, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
