//! Sectors encrypted and decrypted, and the LUKS header that keeps their key.
//!
//! ```text
//! passphrase ─PBKDF2─► slot key ─decrypts─► split key ─merge─► master key ─► Cipher ─► sectors
//! ```
//!
//! ```
//! use goldsmith_crypt::{Cipher, CipherSpec};
//!
//! let cipher = Cipher::new(&CipherSpec::parse("aes", "xts-plain64")?, &[7; 64])?;
//! let mut sectors = [1; 1024];
//! cipher.encrypt(100, &mut sectors);
//! assert_ne!(sectors[..512], sectors[512..]);
//! cipher.decrypt(100, &mut sectors);
//! assert_eq!(sectors, [1; 1024]);
//! # Ok::<(), goldsmith_crypt::CryptError>(())
//! ```
//!
//! AES in the modes XTS and CBC; SHA-1, SHA-256 and SHA-512. Other ciphers are refused by name.
#![forbid(unsafe_code)]

mod cipher;
mod error;
mod hash;
mod luks;

pub use cipher::{Cipher, CipherSpec, SECTOR};
pub use error::CryptError;
pub use luks::{Luks, NewLuks, Slot};
