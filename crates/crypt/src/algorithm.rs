//! The block ciphers that a LUKS header may name.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use cast5::Cast5;
use serpent::Serpent;
use twofish::Twofish;

use crate::error::{CryptError, known};
use crate::hash::Hash;
use crate::modes::{Mode, of_narrow, of_wide};

/// A block cipher with keys of one length.
pub(crate) struct Algorithm {
    /// Its family, and the bits of its key.
    pub(crate) name: &'static str,
    /// Bytes of its key.
    pub(crate) key_len: usize,
    modes: &'static [Mode],
}

/// All that QEMU knows. [qemu]
static ALGORITHMS: [Algorithm; 10] = [
    algorithm("aes-128", 16, &const { of_wide::<Aes128>() }),
    algorithm("aes-192", 24, &const { of_wide::<Aes192>() }),
    algorithm("aes-256", 32, &const { of_wide::<Aes256>() }),
    algorithm("cast5-128", 16, &const { of_narrow::<Cast5>() }),
    algorithm("serpent-128", 16, &const { of_wide::<Serpent>() }),
    algorithm("serpent-192", 24, &const { of_wide::<Serpent>() }),
    algorithm("serpent-256", 32, &const { of_wide::<Serpent>() }),
    algorithm("twofish-128", 16, &const { of_wide::<Twofish>() }),
    algorithm("twofish-192", 24, &const { of_wide::<Twofish>() }),
    algorithm("twofish-256", 32, &const { of_wide::<Twofish>() }),
];

const fn algorithm(name: &'static str, key_len: usize, modes: &'static [Mode]) -> Algorithm {
    Algorithm {
        name,
        key_len,
        modes,
    }
}

impl fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Algorithm {
    pub(crate) fn named(name: &str) -> Result<&'static Self, CryptError> {
        let found = ALGORITHMS.iter().find(|one| one.name == name);
        found.ok_or_else(|| unknown(name))
    }

    /// All that LUKS calls `family`, which have the same modes.
    pub(crate) fn all_of(family: &str) -> Result<impl Iterator<Item = &'static Self>, CryptError> {
        let mut all = ALGORITHMS
            .iter()
            .filter(move |one| one.family() == family)
            .peekable();
        match all.peek() {
            Some(_) => Ok(all),
            None => Err(unknown(family)),
        }
    }

    /// What LUKS calls it.
    pub(crate) fn family(&self) -> &'static str {
        match self.name.split_once('-') {
            Some((family, _)) => family,
            None => self.name,
        }
    }

    pub(crate) fn mode(&self, name: &str) -> Result<&'static Mode, CryptError> {
        let found = self.modes.iter().find(|mode| mode.name == name);
        found.ok_or_else(|| CryptError::NoMode {
            cipher: self.name,
            name: name.to_owned(),
            known: known(self.modes.iter().map(|mode| mode.name)),
        })
    }

    /// The one of its family that takes a digest of `hash` as its key.
    pub(crate) fn for_essiv(&self, hash: &Hash) -> Result<&'static Self, CryptError> {
        let len = hash.of(&[]).len();
        let found = Self::all_of(self.family())?.find(|one| one.key_len == len);
        found.ok_or(CryptError::Essiv {
            hash: hash.name,
            cipher: self.family(),
            len,
        })
    }
}

fn unknown(name: &str) -> CryptError {
    CryptError::Unsupported {
        what: "cipher",
        name: name.to_owned(),
        known: known(ALGORITHMS.iter().map(|one| one.name)),
    }
}
