//! Key material: a key blown up until all of it is needed to get the key back.

use super::ondisk::{ALIGN, STRIPES};
use crate::error::CryptError;
use crate::hash::Hash;
use crate::modes::xor;

/// Bytes of key material for a key of `key_len` bytes, which was checked.
pub(super) fn material_len(key_len: usize) -> usize {
    key_len * STRIPES as usize
}

/// Bytes that the key material of each slot takes, for a key of `key_len` bytes.
pub(super) fn slot_len(key_len: usize) -> u64 {
    (material_len(key_len) as u64).next_multiple_of(ALIGN)
}

/// The key that `material` holds. [LUKS, "Anti-forensic splitting"]
pub(super) fn merge(hash: &Hash, material: &[u8], key_len: usize) -> Vec<u8> {
    let mut key = vec![0; key_len];
    let mut stripes = material.chunks_exact(key_len).peekable();
    while let Some(stripe) = stripes.next() {
        xor(&mut key, stripe);
        if stripes.peek().is_some() {
            diffuse(hash, &mut key);
        }
    }
    key
}

/// Key material that [`merge`] makes `key` of.
pub(super) fn split(hash: &Hash, key: &[u8]) -> Result<Vec<u8>, CryptError> {
    let mut material = vec![0; material_len(key.len())];
    let last = material.len() - key.len();
    let (stripes, rest) = material.split_at_mut(last);
    random(stripes)?;
    let mut sum = vec![0; key.len()];
    for stripe in stripes.chunks_exact(key.len()) {
        xor(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    rest.copy_from_slice(key);
    xor(rest, &sum);
    Ok(material)
}

/// Makes each bit depend on all others of its piece.
fn diffuse(hash: &Hash, bytes: &mut [u8]) {
    let piece_len = hash.of(&[]).len();
    for (nth, piece) in bytes.chunks_mut(piece_len).enumerate() {
        // A key has few pieces.
        let digest = hash.of(&[&(nth as u32).to_be_bytes(), piece]);
        let len = piece.len();
        piece.copy_from_slice(&digest[..len]);
    }
}

pub(super) fn random(bytes: &mut [u8]) -> Result<(), CryptError> {
    getrandom::fill(bytes).map_err(|_| CryptError::Random)
}
