//! One sector in, one sector out.

use std::fmt;

use aes::cipher::InvalidLength;

use crate::algorithm::Algorithm;
use crate::error::CryptError;
use crate::hash::Hash;
use crate::modes::{Keyed, Mode};

/// Bytes that are encrypted together.
pub const SECTOR: usize = 512;

/// A cipher, its mode, and how a sector's number goes into it.
#[derive(Clone, Copy, Debug)]
pub struct CipherSpec {
    algorithm: &'static Algorithm,
    mode: &'static Mode,
    iv: IvSpec,
}

#[derive(Clone, Copy, Debug)]
enum IvSpec {
    Plain,
    Plain64,
    Essiv {
        hash: &'static Hash,
        /// What encrypts the number, with the hash of the key as its key.
        by: &'static Algorithm,
    },
}

impl CipherSpec {
    /// What QEMU calls `cipher` ("aes-256"), in what LUKS calls `mode` ("xts-plain64").
    ///
    /// # Errors
    /// `Unsupported`, `NoMode` and `Essiv` name what there is not, and what there is.
    pub fn named(cipher: &str, mode: &str) -> Result<Self, CryptError> {
        Self::new(Algorithm::named(cipher)?, mode)
    }

    /// What LUKS calls `cipher` ("aes") in `mode` ("xts-plain64"), where it is the length of the
    /// key in bytes that tells one AES from the other.
    ///
    /// # Errors
    /// Those of [`named`](Self::named); `KeyLength` if the cipher has no such keys.
    pub fn parse(cipher: &str, mode: &str, key_len: usize) -> Result<Self, CryptError> {
        for algorithm in Algorithm::all_of(cipher)? {
            let spec = Self::new(algorithm, mode)?;
            if spec.key_len() == key_len {
                return Ok(spec);
            }
        }
        Err(CryptError::KeyLength {
            len: key_len,
            cipher: format!("{cipher}-{mode}"),
        })
    }

    fn new(algorithm: &'static Algorithm, mode: &str) -> Result<Self, CryptError> {
        let (mode, iv) = mode.split_once('-').unwrap_or((mode, ""));
        let mode = algorithm.mode(mode)?;
        let (generator, hash) = match iv.split_once(':') {
            Some((generator, hash)) => (generator, Some(Hash::named(hash)?)),
            None => (iv, None),
        };
        let iv = match (generator, hash) {
            // [qemu] A hash may stand there, and does nothing.
            ("plain", _) => IvSpec::Plain,
            ("plain64", _) => IvSpec::Plain64,
            ("essiv", Some(hash)) => IvSpec::Essiv {
                hash,
                by: algorithm.for_essiv(hash)?,
            },
            _ => {
                return Err(CryptError::Unsupported {
                    what: "IV generator",
                    name: iv.to_owned(),
                    known: "plain, plain64 and essiv with a hash".to_owned(),
                });
            }
        };
        Ok(Self {
            algorithm,
            mode,
            iv,
        })
    }

    /// The name of the cipher, with the bits of its key: "aes-256".
    pub fn algorithm(&self) -> &'static str {
        self.algorithm.name
    }

    /// What LUKS calls the cipher: "aes".
    pub fn family(&self) -> &'static str {
        self.algorithm.family()
    }

    /// What LUKS calls the mode: "xts-plain64".
    pub fn name(&self) -> String {
        let iv = self.iv_generator();
        match self.iv_hash() {
            Some(hash) => format!("{}-{iv}:{hash}", self.mode()),
            None => format!("{}-{iv}", self.mode()),
        }
    }

    /// "xts", "cbc", "ctr" or "ecb".
    pub fn mode(&self) -> &'static str {
        self.mode.name
    }

    /// "plain", "plain64" or "essiv".
    pub fn iv_generator(&self) -> &'static str {
        match self.iv {
            IvSpec::Plain => "plain",
            IvSpec::Plain64 => "plain64",
            IvSpec::Essiv { .. } => "essiv",
        }
    }

    /// The hash of an "essiv".
    pub fn iv_hash(&self) -> Option<&'static str> {
        match self.iv {
            IvSpec::Essiv { hash, .. } => Some(hash.name),
            _ => None,
        }
    }

    /// Bytes of the key: in XTS mode there are two keys.
    pub fn key_len(&self) -> usize {
        self.algorithm.key_len * self.mode.keys
    }
}

/// A cipher with its key.
pub struct Cipher {
    keyed: Box<dyn Keyed>,
    iv: Iv,
}

enum Iv {
    Plain,
    Plain64,
    Essiv(Box<dyn Keyed>),
}

impl fmt::Debug for Cipher {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// The cipher `spec` with `key`.
    ///
    /// # Errors
    /// `KeyLength` if the key has another length than the cipher's.
    pub fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        let wrong = |_| CryptError::KeyLength {
            len: key.len(),
            cipher: format!("{}-{}", spec.algorithm(), spec.name()),
        };
        if key.len() != spec.key_len() {
            return Err(wrong(InvalidLength));
        }
        let keyed = (spec.mode.with_key)(key).map_err(wrong)?;
        let iv = match spec.iv {
            IvSpec::Plain => Iv::Plain,
            IvSpec::Plain64 => Iv::Plain64,
            IvSpec::Essiv { hash, by } => {
                let block = by.mode("ecb")?;
                Iv::Essiv((block.with_key)(&hash.of(&[key])).map_err(wrong)?)
            }
        };
        Ok(Self { keyed, iv })
    }

    /// Decrypts whole sectors in place; `first` is the number of the first one.
    pub fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.each(first, sectors, |sector, iv| self.keyed.decrypt(sector, iv));
    }

    /// Encrypts whole sectors in place; `first` is the number of the first one.
    pub fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.each(first, sectors, |sector, iv| self.keyed.encrypt(sector, iv));
    }

    fn each(&self, first: u64, sectors: &mut [u8], work: impl Fn(&mut [u8], &[u8; 16])) {
        debug_assert!(sectors.len().is_multiple_of(SECTOR));
        for (nth, sector) in sectors.chunks_exact_mut(SECTOR).enumerate() {
            work(sector, &self.iv(first.wrapping_add(nth as u64)));
        }
    }

    fn iv(&self, sector: u64) -> [u8; 16] {
        let mut iv = [0; 16];
        match &self.iv {
            // As narrow as it was once.
            Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Iv::Plain64 => iv[..8].copy_from_slice(&sector.to_le_bytes()),
            Iv::Essiv(block) => {
                iv[..8].copy_from_slice(&sector.to_le_bytes());
                block.encrypt(&mut iv, &[0; 16]);
            }
        }
        iv
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex;

    /// Every block of a sector for itself, and back.
    fn assert_block(cipher: &str, key: &str, plain: &str, encrypted: &str) {
        let spec = CipherSpec::named(cipher, "ecb-plain64").unwrap();
        let cipher = Cipher::new(&spec, &hex(key)[..spec.key_len()]).unwrap();
        let sector = |block: &str| hex(block).repeat(2 * SECTOR / block.len());
        let mut bytes = sector(plain);
        cipher.encrypt(5, &mut bytes);
        assert_eq!(bytes, sector(encrypted), "{spec:?}");
        cipher.decrypt(9, &mut bytes);
        assert_eq!(bytes, sector(plain), "{spec:?}");
    }

    /// FIPS 197, appendix C; RFC 2144, B.1; NESSIE's vectors for Serpent, set 4; the Twofish
    /// paper, B.2.
    #[test]
    fn ciphers_are_those_of_their_names() {
        let (key, plain) = (
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "00112233445566778899aabbccddeeff",
        );
        for (cipher, encrypted) in [
            ("aes-128", "69c4e0d86a7b0430d8cdb78070b4c55a"),
            ("aes-192", "dda97ca4864cdfe06eaf70a0ec0d7191"),
            ("aes-256", "8ea2b7ca516745bfeafc49904b496089"),
            ("serpent-128", "563e2cf8740a27c164804560391e9b27"),
            ("serpent-192", "6ab816c82de53b93005008afa2246a02"),
            ("serpent-256", "2868b7a2d28ecd5e4fdefac3c4330074"),
        ] {
            assert_block(cipher, key, plain, encrypted);
        }
        let key = "0123456712345678234567893456789a";
        assert_block("cast5-128", key, "0123456789abcdef", "238b4fe5847e44b2");
        let zeros = "00".repeat(16);
        assert_block(
            "twofish-128",
            &zeros,
            &zeros,
            "9f589f5cf6122c32b6bfec2f2ae8c35a",
        );
        let key = "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff";
        assert_block(
            "twofish-192",
            key,
            &zeros,
            "cfd1d2e5a9be9cdf501f13b892bd2248",
        );
        assert_block(
            "twofish-256",
            key,
            &zeros,
            "37527be0052334b89f0cfccae87cfa20",
        );
    }

    /// IEEE 1619-2007, B.1, vector 10, by its first and last blocks.
    #[test]
    fn number_of_a_sector_goes_into_it() {
        let key = "27182818284590452353602874713526624977572470936999595749669676273141592653589793\
                   238462643383279502884197169399375105820974944592";
        let spec = CipherSpec::named("aes-256", "xts-plain64").unwrap();
        let cipher = Cipher::new(&spec, &hex(key)).unwrap();
        let plain: Vec<u8> = (0..SECTOR).map(|at| at as u8).collect();
        let mut bytes = [plain.clone(), plain.clone()].concat();
        cipher.encrypt(0xfe, &mut bytes);
        let (_, sector) = bytes.split_at_mut(SECTOR);
        let first = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b";
        let last = "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
        assert_eq!(sector[..32], hex(first));
        assert_eq!(sector[SECTOR - 32..], hex(last));
        cipher.decrypt(0xff, sector);
        assert_eq!(sector, plain);
    }

    fn sectors() -> Vec<u8> {
        (0..3 * SECTOR).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[test]
    fn every_cipher_gives_back_what_it_was_given() {
        for cipher in ["aes-192", "serpent-256", "twofish-128", "cast5-128"] {
            for mode in ["xts", "cbc", "ctr", "ecb"] {
                for iv in ["plain", "plain64", "essiv:md5"] {
                    let Ok(spec) = CipherSpec::named(cipher, &format!("{mode}-{iv}")) else {
                        assert_eq!((cipher, mode), ("cast5-128", "xts"));
                        continue;
                    };
                    let key: Vec<u8> = (0..spec.key_len() as u8).collect();
                    let cipher = Cipher::new(&spec, &key).unwrap();
                    let mut bytes = sectors();
                    cipher.encrypt(5, &mut bytes);
                    let plain = sectors();
                    let mut parts = bytes.chunks(SECTOR).zip(plain.chunks(SECTOR));
                    assert!(parts.all(|(ours, theirs)| ours != theirs));
                    // Each sector alone.
                    cipher.decrypt(6, &mut bytes[SECTOR..2 * SECTOR]);
                    assert_eq!(bytes[SECTOR..2 * SECTOR], plain[SECTOR..2 * SECTOR]);
                }
            }
        }
    }

    #[test]
    fn what_there_is_not_is_refused_with_what_there_is() {
        let refused = |cipher, mode| CipherSpec::named(cipher, mode).unwrap_err().to_string();
        assert_eq!(
            refused("aes-512", "xts-plain64"),
            "the cipher 'aes-512' is not supported; there are aes-128, aes-192, aes-256, \
             cast5-128, serpent-128, serpent-192, serpent-256, twofish-128, twofish-192, \
             twofish-256"
        );
        assert_eq!(
            refused("cast5-128", "xts-plain64"),
            "cast5-128 has no mode 'xts', only cbc, ctr, ecb"
        );
        assert_eq!(
            refused("aes-128", "gcm-random"),
            "aes-128 has no mode 'gcm', only xts, cbc, ctr, ecb"
        );
        assert_eq!(
            refused("twofish-192", "cbc-essiv:sha1"),
            "essiv with sha1 takes keys of 20 bytes, which twofish does not have"
        );
        for iv in ["xts", "xts-", "xts-benbi", "xts-essiv", "xts-plain64-"] {
            let text = refused("aes-128", iv);
            assert!(
                text.contains("there are plain, plain64 and essiv with a hash"),
                "{text}"
            );
        }
        for iv in [
            "xts-plain64:sha0",
            "xts-essiv:sha0",
            "xts-essiv:",
            "xts-plain:",
        ] {
            let text = refused("aes-128", iv);
            assert!(text.contains("there are md5, sha1, sha224"), "{text}");
        }
    }

    #[test]
    fn length_of_the_key_tells_one_cipher_from_the_other() {
        let named = |family, mode, key_len| {
            let spec = CipherSpec::parse(family, mode, key_len)?;
            Ok((spec.algorithm(), spec.name()))
        };
        let ctr = "ctr-plain".to_owned();
        assert_eq!(named("serpent", "ctr-plain", 24), Ok(("serpent-192", ctr)));
        let xts = "xts-essiv:sm3".to_owned();
        assert_eq!(named("aes", "xts-essiv:sm3", 64), Ok(("aes-256", xts)));
        for len in [0, 1, 16, 33, 63, 65, usize::MAX] {
            let refused = named("aes", "xts-plain64", len).unwrap_err();
            assert!(matches!(refused, CryptError::KeyLength { .. }));
        }
        let refused = named("camellia", "xts-plain64", 64)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("'camellia' is not supported"), "{refused}");
        let spec = CipherSpec::named("aes-128", "xts-plain64").unwrap();
        for len in [0, 16, 31, 64] {
            let refused = Cipher::new(&spec, &vec![0; len]).unwrap_err();
            assert!(matches!(refused, CryptError::KeyLength { .. }));
        }
    }

    /// [qemu] It writes the hash that it was given, for whatever generator.
    #[test]
    fn hash_of_a_plain_number_does_nothing() {
        let spec = CipherSpec::parse("aes", "xts-plain64:sha1", 32).unwrap();
        assert_eq!((spec.iv_generator(), spec.iv_hash()), ("plain64", None));
    }
}
