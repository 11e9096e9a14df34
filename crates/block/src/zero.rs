//! Finding zeros.

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
