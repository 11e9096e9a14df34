//! How a block cipher makes one sector of its blocks.

use std::fmt;
use std::marker::PhantomData;

use aes::cipher::consts::{U8, U16};
use aes::cipher::inout::InOutBuf;
use aes::cipher::{
    Block, BlockCipher, BlockDecrypt, BlockDecryptMut, BlockEncrypt, BlockEncryptMut,
    BlockSizeUser, InnerIvInit, InvalidLength, KeyInit, StreamCipherCore,
};
use ctr::flavors::{Ctr64BE, Ctr128BE, CtrFlavor};

use crate::cipher::SECTOR;

/// A block cipher in one of its modes, with its key. Of an IV count as many bytes as a block has.
pub(crate) trait Keyed: Send + Sync {
    /// Encrypts the blocks of a sector in place.
    fn encrypt(&self, sector: &mut [u8], iv: &[u8; 16]);
    /// Decrypts the blocks of a sector in place.
    fn decrypt(&self, sector: &mut [u8], iv: &[u8; 16]);
}

/// How blocks depend on each other and on their sector.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// Keys of the block cipher that it takes, one behind the other.
    pub(crate) keys: usize,
    /// The block cipher with these keys in this mode.
    pub(crate) with_key: WithKey,
}

type WithKey = fn(&[u8]) -> Result<Box<dyn Keyed>, InvalidLength>;

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What a block cipher has to be for all modes.
pub(crate) trait Cipher:
    BlockCipher + BlockEncrypt + BlockDecrypt + KeyInit + Send + Sync + 'static
{
}

impl<C> Cipher for C where
    C: BlockCipher + BlockEncrypt + BlockDecrypt + KeyInit + Send + Sync + 'static
{
}

/// The modes of a cipher with blocks of 16 bytes.
pub(crate) const fn of_wide<C: Cipher + BlockSizeUser<BlockSize = U16>>() -> [Mode; 4] {
    [xts::<C>(), cbc::<C>(), ctr::<C, Ctr128BE>(), ecb::<C>()]
}

/// The modes of a cipher with blocks of 8 bytes, which XTS does not go with.
pub(crate) const fn of_narrow<C: Cipher + BlockSizeUser<BlockSize = U8>>() -> [Mode; 3] {
    [cbc::<C>(), ctr::<C, Ctr64BE>(), ecb::<C>()]
}

const fn xts<C: Cipher + BlockSizeUser<BlockSize = U16>>() -> Mode {
    Mode {
        name: "xts",
        keys: 2,
        with_key: |keys| {
            let (data, tweak) = keys.split_at(keys.len() / 2);
            Ok(Box::new(Xts {
                data: C::new_from_slice(data)?,
                tweak: C::new_from_slice(tweak)?,
            }))
        },
    }
}

const fn cbc<C: Cipher>() -> Mode {
    Mode {
        name: "cbc",
        keys: 1,
        with_key: |key| Ok(Box::new(Cbc(C::new_from_slice(key)?))),
    }
}

const fn ctr<C: Cipher, F: CtrFlavor<C::BlockSize> + 'static>() -> Mode {
    Mode {
        name: "ctr",
        keys: 1,
        with_key: |key| Ok(Box::new(Ctr::<C, F>(C::new_from_slice(key)?, PhantomData))),
    }
}

const fn ecb<C: Cipher>() -> Mode {
    Mode {
        name: "ecb",
        keys: 1,
        with_key: |key| Ok(Box::new(Ecb(C::new_from_slice(key)?))),
    }
}

/// Each block for itself, changed before and after by its place. [IEEE 1619]
struct Xts<C> {
    data: C,
    tweak: C,
}

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> Xts<C> {
    /// What changes the blocks of a sector: the IV encrypted, and doubled from block to block.
    fn mask(&self, iv: &[u8; 16]) -> [u8; SECTOR] {
        let mut first = *iv;
        self.tweak.encrypt_block((&mut first).into());
        let mut tweak = u128::from_le_bytes(first);
        let mut mask = [0; SECTOR];
        for block in mask.chunks_exact_mut(16) {
            block.copy_from_slice(&tweak.to_le_bytes());
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
        mask
    }
}

/// All blocks of a sector go through the cipher together, because AES takes eight in little more
/// time than one. The package `xts-mode` hands them over one by one, and takes six times as long.
impl<C: Cipher + BlockSizeUser<BlockSize = U16>> Keyed for Xts<C> {
    fn encrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        let mask = self.mask(iv);
        xor(sector, &mask);
        self.data.encrypt_blocks_inout(blocks::<C>(sector));
        xor(sector, &mask);
    }

    fn decrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        let mask = self.mask(iv);
        xor(sector, &mask);
        self.data.decrypt_blocks_inout(blocks::<C>(sector));
        xor(sector, &mask);
    }
}

/// Each block changed by the one before. [NIST SP 800-38A, 6.2]
struct Cbc<C>(C);

impl<C: Cipher> Keyed for Cbc<C> {
    fn encrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        cbc::Encryptor::inner_iv_init(&self.0, block::<C>(iv))
            .encrypt_blocks_inout_mut(blocks::<C>(sector));
    }

    fn decrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        cbc::Decryptor::inner_iv_init(&self.0, block::<C>(iv))
            .decrypt_blocks_inout_mut(blocks::<C>(sector));
    }
}

/// The IV counted up, all of it as one big-endian number, and encrypted. [NIST SP 800-38A, 6.5]
struct Ctr<C, F>(C, PhantomData<fn() -> F>);

impl<C: Cipher, F: CtrFlavor<C::BlockSize>> Keyed for Ctr<C, F> {
    fn encrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        ctr::CtrCore::<_, F>::inner_iv_init(&self.0, block::<C>(iv))
            .apply_keystream_blocks_inout(blocks::<C>(sector));
    }

    fn decrypt(&self, sector: &mut [u8], iv: &[u8; 16]) {
        self.encrypt(sector, iv);
    }
}

/// Each block for itself, wherever it stands. [NIST SP 800-38A, 6.1]
struct Ecb<C>(C);

impl<C: Cipher> Keyed for Ecb<C> {
    fn encrypt(&self, sector: &mut [u8], _: &[u8; 16]) {
        self.0.encrypt_blocks_inout(blocks::<C>(sector));
    }

    fn decrypt(&self, sector: &mut [u8], _: &[u8; 16]) {
        self.0.decrypt_blocks_inout(blocks::<C>(sector));
    }
}

/// Changes `bytes` by `others`, as far as both go.
pub(crate) fn xor(bytes: &mut [u8], others: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(others) {
        *byte ^= other;
    }
}

fn block<C: BlockSizeUser>(iv: &[u8; 16]) -> &Block<C> {
    Block::<C>::from_slice(&iv[..C::block_size()])
}

fn blocks<C: BlockSizeUser>(sector: &mut [u8]) -> InOutBuf<'_, '_, Block<C>> {
    InOutBuf::from(sector).into_chunks().0
}

#[cfg(test)]
mod tests {
    use aes::Aes128;
    use cast5::Cast5;

    use super::*;
    use crate::hex;

    fn assert_vector(mode: &Mode, key: &str, iv: &str, plain: &str, encrypted: &str) {
        let keyed = (mode.with_key)(&hex(key)).unwrap();
        let iv = hex(iv).try_into().unwrap();
        let mut bytes = hex(plain);
        keyed.encrypt(&mut bytes, &iv);
        assert_eq!(bytes, hex(encrypted), "{}", mode.name);
        keyed.decrypt(&mut bytes, &iv);
        assert_eq!(bytes, hex(plain), "{}", mode.name);
    }

    const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
                         30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710";
    const KEY: &str = "2b7e151628aed2a6abf7158809cf4f3c";

    /// NIST SP 800-38A, F.1.1, F.2.1 and F.5.1.
    #[test]
    fn modes_with_one_key_are_as_nist_has_them() {
        assert_vector(
            &ecb::<Aes128>(),
            KEY,
            "00000000000000000000000000000000",
            PLAIN,
            "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf\
             43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
        );
        assert_vector(
            &cbc::<Aes128>(),
            KEY,
            "000102030405060708090a0b0c0d0e0f",
            PLAIN,
            "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2\
             73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
        );
        assert_vector(
            &ctr::<Aes128, Ctr128BE>(),
            KEY,
            "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            PLAIN,
            "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff\
             5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
        );
    }

    /// IEEE 1619-2007, B.1, vectors 1 to 3.
    #[test]
    fn xts_is_as_ieee_has_it() {
        let zeros = "00".repeat(32);
        for (key, iv, plain, encrypted) in [
            (
                &*zeros,
                "00000000000000000000000000000000",
                &*zeros,
                "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e",
            ),
            (
                "1111111111111111111111111111111122222222222222222222222222222222",
                "33333333330000000000000000000000",
                &"44".repeat(32),
                "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
            ),
            (
                "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f022222222222222222222222222222222",
                "33333333330000000000000000000000",
                &"44".repeat(32),
                "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
            ),
        ] {
            assert_vector(&xts::<Aes128>(), key, iv, plain, encrypted);
        }
    }

    /// What QEMU counts up, too: a carry goes all the way.
    #[test]
    fn counter_is_the_whole_block() {
        let second = |modes: &[Mode], iv: &[u8; 16], block_len: usize| {
            let keyed = |name| {
                let mode = modes.iter().find(|mode| mode.name == name).unwrap();
                (mode.with_key)(&[7; 16]).unwrap()
            };
            let mut counts = [0; 32];
            keyed("ctr").encrypt(&mut counts, iv);
            keyed("ecb").decrypt(&mut counts, iv);
            counts[block_len..2 * block_len].to_vec()
        };
        let (wide, narrow) = (of_wide::<Aes128>(), of_narrow::<Cast5>());
        assert_eq!(second(&wide, &[0xff; 16], 16), [0; 16]);
        assert_eq!(second(&narrow, &[0xff; 16], 8), [0; 8]);
        let mut iv = [0; 16];
        iv[8..].fill(0xff);
        assert_eq!(second(&wide, &iv, 16), (1_u128 << 64).to_be_bytes());
    }
}
