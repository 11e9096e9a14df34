//! One sector in, one sector out.

use std::fmt;

use aes::cipher::consts::U16;
use aes::cipher::{
    Block, BlockCipher, BlockDecrypt, BlockDecryptMut, BlockEncrypt, BlockEncryptMut,
    BlockSizeUser, InnerIvInit, KeyInit,
};
use aes::{Aes128, Aes192, Aes256};
use xts_mode::Xts128;

use crate::error::CryptError;
use crate::hash::Hash;

/// Bytes that are encrypted together.
pub const SECTOR: usize = 512;

/// A cipher, its mode, and how a sector's number goes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    mode: Mode,
    iv: IvSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Xts,
    Cbc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IvSpec {
    Plain,
    Plain64,
    Essiv(Hash),
}

impl CipherSpec {
    /// AES with 128 bits in CBC mode: the encryption of old qcow2 images.
    pub const OLD_QCOW2: Self = Self {
        mode: Mode::Cbc,
        iv: IvSpec::Plain64,
    };

    /// What LUKS calls `cipher` ("aes") in `mode` ("xts-plain64").
    ///
    /// # Errors
    /// `Unsupported` for all but AES in the modes XTS and CBC.
    pub fn parse(cipher: &str, mode: &str) -> Result<Self, CryptError> {
        let unsupported = |what, name: &str| CryptError::Unsupported {
            what,
            name: name.to_owned(),
        };
        if cipher != "aes" {
            return Err(unsupported("cipher", cipher));
        }
        let (mode, iv) = match mode.split_once('-') {
            Some(("xts", iv)) => (Mode::Xts, iv),
            Some(("cbc", iv)) => (Mode::Cbc, iv),
            _ => return Err(unsupported("cipher mode", mode)),
        };
        let iv = match (iv, iv.strip_prefix("essiv:")) {
            ("plain", _) => IvSpec::Plain,
            ("plain64", _) => IvSpec::Plain64,
            // Its digest is the key of an AES-256.
            (_, Some("sha256")) => IvSpec::Essiv(Hash::Sha256),
            _ => return Err(unsupported("IV generator", iv)),
        };
        Ok(Self { mode, iv })
    }

    /// What LUKS calls the mode: "xts-plain64".
    pub fn name(&self) -> String {
        let iv = self.iv_generator();
        match self.iv_hash() {
            Some(hash) => format!("{}-{iv}:{hash}", self.mode()),
            None => format!("{}-{iv}", self.mode()),
        }
    }

    /// "xts" or "cbc".
    pub fn mode(&self) -> &'static str {
        match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        }
    }

    /// "plain", "plain64" or "essiv".
    pub fn iv_generator(&self) -> &'static str {
        match self.iv {
            IvSpec::Plain => "plain",
            IvSpec::Plain64 => "plain64",
            IvSpec::Essiv(_) => "essiv",
        }
    }

    /// The hash of an "essiv".
    pub fn iv_hash(&self) -> Option<&'static str> {
        match self.iv {
            IvSpec::Essiv(hash) => Some(hash.name()),
            _ => None,
        }
    }

    /// Bytes of the key for AES with `bits` bits: in XTS mode there are two keys.
    pub fn key_len(&self, bits: usize) -> usize {
        match self.mode {
            Mode::Xts => bits / 4,
            Mode::Cbc => bits / 8,
        }
    }

    /// Bits of AES for a key of `key_len` bytes.
    pub fn key_bits(&self, key_len: usize) -> usize {
        match self.mode {
            Mode::Xts => key_len * 4,
            Mode::Cbc => key_len * 8,
        }
    }
}

/// A cipher with its key.
pub struct Cipher {
    keyed: Keyed,
    iv: Iv,
}

enum Keyed {
    Xts128(Box<Xts128<Aes128>>),
    Xts256(Box<Xts128<Aes256>>),
    Cbc128(Box<Aes128>),
    Cbc192(Box<Aes192>),
    Cbc256(Box<Aes256>),
}

enum Iv {
    Plain,
    Plain64,
    Essiv(Box<Aes256>),
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
            cipher: format!("aes-{}", spec.mode()),
        };
        let (first, second) = key.split_at(key.len() / 2);
        let keyed = match (spec.mode, key.len()) {
            (Mode::Xts, 32) => Keyed::Xts128(Box::new(Xts128::new(
                Aes128::new_from_slice(first).map_err(wrong)?,
                Aes128::new_from_slice(second).map_err(wrong)?,
            ))),
            (Mode::Xts, _) => Keyed::Xts256(Box::new(Xts128::new(
                Aes256::new_from_slice(first).map_err(wrong)?,
                Aes256::new_from_slice(second).map_err(wrong)?,
            ))),
            (Mode::Cbc, 16) => Keyed::Cbc128(Box::new(Aes128::new_from_slice(key).map_err(wrong)?)),
            (Mode::Cbc, 24) => Keyed::Cbc192(Box::new(Aes192::new_from_slice(key).map_err(wrong)?)),
            (Mode::Cbc, _) => Keyed::Cbc256(Box::new(Aes256::new_from_slice(key).map_err(wrong)?)),
        };
        let iv = match spec.iv {
            IvSpec::Plain => Iv::Plain,
            IvSpec::Plain64 => Iv::Plain64,
            IvSpec::Essiv(hash) => {
                let salt = hash.of(&[key]);
                Iv::Essiv(Box::new(Aes256::new_from_slice(&salt).map_err(wrong)?))
            }
        };
        Ok(Self { keyed, iv })
    }

    /// Decrypts whole sectors in place; `first` is the number of the first one.
    pub fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.each(first, sectors, |sector, iv| match &self.keyed {
            Keyed::Xts128(xts) => xts.decrypt_sector(sector, iv),
            Keyed::Xts256(xts) => xts.decrypt_sector(sector, iv),
            Keyed::Cbc128(aes) => decrypt_cbc(&**aes, sector, iv),
            Keyed::Cbc192(aes) => decrypt_cbc(&**aes, sector, iv),
            Keyed::Cbc256(aes) => decrypt_cbc(&**aes, sector, iv),
        });
    }

    /// Encrypts whole sectors in place; `first` is the number of the first one.
    pub fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.each(first, sectors, |sector, iv| match &self.keyed {
            Keyed::Xts128(xts) => xts.encrypt_sector(sector, iv),
            Keyed::Xts256(xts) => xts.encrypt_sector(sector, iv),
            Keyed::Cbc128(aes) => encrypt_cbc(&**aes, sector, iv),
            Keyed::Cbc192(aes) => encrypt_cbc(&**aes, sector, iv),
            Keyed::Cbc256(aes) => encrypt_cbc(&**aes, sector, iv),
        });
    }

    fn each(&self, first: u64, sectors: &mut [u8], work: impl Fn(&mut [u8], [u8; 16])) {
        debug_assert!(sectors.len().is_multiple_of(SECTOR));
        for (nth, sector) in sectors.chunks_exact_mut(SECTOR).enumerate() {
            work(sector, self.iv(first.wrapping_add(nth as u64)));
        }
    }

    fn iv(&self, sector: u64) -> [u8; 16] {
        let mut iv = [0; 16];
        match &self.iv {
            // As narrow as it was once.
            Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Iv::Plain64 => iv[..8].copy_from_slice(&sector.to_le_bytes()),
            Iv::Essiv(aes) => {
                iv[..8].copy_from_slice(&sector.to_le_bytes());
                aes.encrypt_block((&mut iv).into());
            }
        }
        iv
    }
}

fn decrypt_cbc<A>(aes: &A, sector: &mut [u8], iv: [u8; 16])
where
    A: Clone + BlockCipher + BlockDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut cbc = cbc::Decryptor::inner_iv_init(aes.clone(), &iv.into());
    for block in sector.chunks_exact_mut(16) {
        cbc.decrypt_block_mut(Block::<A>::from_mut_slice(block));
    }
}

fn encrypt_cbc<A>(aes: &A, sector: &mut [u8], iv: [u8; 16])
where
    A: Clone + BlockCipher + BlockEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut cbc = cbc::Encryptor::inner_iv_init(aes.clone(), &iv.into());
    for block in sector.chunks_exact_mut(16) {
        cbc.encrypt_block_mut(Block::<A>::from_mut_slice(block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors() -> Vec<u8> {
        (0..3 * SECTOR).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[test]
    fn every_cipher_gives_back_what_it_was_given() {
        for (mode, lens) in [
            ("xts-plain64", &[32, 64][..]),
            ("xts-plain", &[64]),
            ("cbc-plain64", &[16, 24, 32]),
            ("cbc-essiv:sha256", &[16, 32]),
        ] {
            for len in lens {
                let key: Vec<u8> = (0..*len as u8).collect();
                let spec = CipherSpec::parse("aes", mode).unwrap();
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

    #[test]
    fn keys_of_other_lengths_and_other_ciphers_are_refused() {
        let xts = CipherSpec::parse("aes", "xts-plain64").unwrap();
        for len in [0, 1, 16, 33, 63, 65] {
            let refused = Cipher::new(&xts, &vec![0; len]).unwrap_err();
            assert!(matches!(refused, CryptError::KeyLength { .. }));
        }
        for (cipher, mode) in [
            ("serpent", "xts-plain64"),
            ("aes", "ecb"),
            ("aes", "gcm-random"),
            ("aes", "xts-benbi"),
            ("aes", "cbc-essiv:sha1"),
        ] {
            CipherSpec::parse(cipher, mode).unwrap_err();
        }
    }
}
