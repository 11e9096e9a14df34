//! Sectors encrypted and decrypted, and the LUKS header that keeps their key.
//!
//! ```text
//! passphrase ─PBKDF2─► slot key ─decrypts─► split key ─merge─► master key ─► Cipher ─► sectors
//! ```
//!
//! ```
//! use goldsmith_crypt::{Cipher, CipherSpec};
//!
//! let cipher = Cipher::new(&CipherSpec::named("aes-256", "xts-plain64")?, &[7; 64])?;
//! let mut sectors = [1; 1024];
//! cipher.encrypt(100, &mut sectors);
//! assert_ne!(sectors[..512], sectors[512..]);
//! cipher.decrypt(100, &mut sectors);
//! assert_eq!(sectors, [1; 1024]);
//! # Ok::<(), goldsmith_crypt::CryptError>(())
//! ```
//!
//! Every cipher, mode and hash that QEMU makes LUKS images with: AES, Serpent, Twofish and CAST5;
//! XTS, CBC, CTR and ECB; MD5, SHA-1, SHA-2, RIPEMD-160 and SM3. Others are refused by name.
#![forbid(unsafe_code)]

mod algorithm;
mod cipher;
mod error;
mod hash;
mod luks;
mod modes;

pub use cipher::{Cipher, CipherSpec, SECTOR};
pub use error::CryptError;
pub use luks::{Luks, NewLuks, Slot};

#[cfg(test)]
fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}
