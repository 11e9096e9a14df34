//! The hashes that a LUKS header may name.

use std::fmt;

use md5::Md5;
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use sm3::Sm3;

use crate::error::{CryptError, known};

/// A hash function.
pub(crate) struct Hash {
    pub(crate) name: &'static str,
    of: fn(&[&[u8]]) -> Vec<u8>,
    derive: fn(&[u8], &[u8], u32, &mut [u8]),
}

/// All that QEMU knows. [qemu]
static HASHES: [Hash; 8] = [
    hash("md5", digest::<Md5>, pbkdf2_hmac::<Md5>),
    hash("sha1", digest::<Sha1>, pbkdf2_hmac::<Sha1>),
    hash("sha224", digest::<Sha224>, pbkdf2_hmac::<Sha224>),
    hash("sha256", digest::<Sha256>, pbkdf2_hmac::<Sha256>),
    hash("sha384", digest::<Sha384>, pbkdf2_hmac::<Sha384>),
    hash("sha512", digest::<Sha512>, pbkdf2_hmac::<Sha512>),
    hash("ripemd160", digest::<Ripemd160>, pbkdf2_hmac::<Ripemd160>),
    hash("sm3", digest::<Sm3>, pbkdf2_hmac::<Sm3>),
];

const fn hash(
    name: &'static str,
    of: fn(&[&[u8]]) -> Vec<u8>,
    derive: fn(&[u8], &[u8], u32, &mut [u8]),
) -> Hash {
    Hash { name, of, derive }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().to_vec()
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Hash {
    pub(crate) fn named(name: &str) -> Result<&'static Self, CryptError> {
        let found = HASHES.iter().find(|hash| hash.name == name);
        found.ok_or_else(|| CryptError::Unsupported {
            what: "hash",
            name: name.to_owned(),
            known: known(HASHES.iter().map(|hash| hash.name)),
        })
    }

    /// The hash of `parts`, one behind the other.
    pub(crate) fn of(&self, parts: &[&[u8]]) -> Vec<u8> {
        (self.of)(parts)
    }

    /// How often the rounds are done for a key of `len` bytes.
    pub(crate) fn times(&self, len: usize) -> u64 {
        len.div_ceil(self.of(&[]).len()) as u64
    }

    /// Fills `key` from a passphrase. [RFC 8018, PBKDF2]
    pub(crate) fn derive(&self, passphrase: &[u8], salt: &[u8], rounds: u32, key: &mut [u8]) {
        (self.derive)(passphrase, salt, rounds, key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex;

    /// RFC 1321, FIPS 180-4, the RIPEMD-160 paper, and GB/T 32905-2016.
    #[test]
    fn hashes_are_those_of_their_names() {
        for (name, abc) in [
            ("md5", "900150983cd24fb0d6963f7d28e17f72"),
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                "sha224",
                "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
            ),
            (
                "sha256",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "sha384",
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                 8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                "sha512",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            ("ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
            (
                "sm3",
                "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0",
            ),
        ] {
            assert_eq!(
                Hash::named(name).unwrap().of(&[b"a", b"bc"]),
                hex(abc),
                "{name}"
            );
        }
        let refused = Hash::named("whirlpool").unwrap_err().to_string();
        assert!(refused.contains("'whirlpool' is not supported; there are md5, sha1,"));
    }

    /// RFC 6070.
    #[test]
    fn keys_are_derived_as_pbkdf2_does() {
        let mut key = [0; 20];
        Hash::named("sha1")
            .unwrap()
            .derive(b"password", b"salt", 4096, &mut key);
        assert_eq!(key[..], hex("4b007901b765489abead49d926f721d065a429c1"));
    }
}
