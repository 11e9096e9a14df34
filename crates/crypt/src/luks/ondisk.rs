//! The header as it stands in the file, and the bounds of what it may say.

use zerocopy::byteorder::{BE, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Luks;

/// The header as it stands in the file. [LUKS 1.2.3, "PHDR layout"]
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// `b"LUKS\xba\xbe"`.
    pub(super) magic: [u8; 6],
    /// 1.
    pub(super) version: U16<BE>,
    /// Padded with zeros, as all names here.
    pub(super) cipher: [u8; 32],
    pub(super) mode: [u8; 32],
    pub(super) hash: [u8; 32],
    /// Where encrypted data would start, in sectors: behind all key material. qcow2 has it elsewhere.
    pub(super) payload: U32<BE>,
    /// Bytes of the master key.
    pub(super) key_len: U32<BE>,
    /// What the master key becomes with `digest_salt` and `digest_rounds`.
    pub(super) digest: [u8; 20],
    pub(super) digest_salt: [u8; 32],
    pub(super) digest_rounds: U32<BE>,
    pub(super) uuid: [u8; 40],
    pub(super) slots: [RawSlot; SLOTS],
}
const _: () = assert!(size_of::<RawHeader>() == Luks::LEN);

#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawSlot {
    /// [`ACTIVE`] or [`FREE`].
    pub(super) state: U32<BE>,
    pub(super) rounds: U32<BE>,
    pub(super) salt: [u8; 32],
    /// Where the key material starts, in sectors.
    pub(super) offset: U32<BE>,
    pub(super) stripes: U32<BE>,
}

pub(super) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
pub(super) const SLOTS: usize = 8;
pub(super) const ACTIVE: u32 = 0x00ac_71f3;
pub(super) const FREE: u32 = 0x0000_dead;
/// Copies of the key that key material is as long as. [qemu] There are no others.
pub(super) const STRIPES: u32 = 4000;
/// Most rounds of one derivation that are written. [ours] A minute on a slow machine; QEMU's own choice
/// takes two seconds.
pub(super) const ROUNDS: u32 = 1 << 26;
/// Fewest rounds that are written. [LUKS]
pub(super) const LEAST_ROUNDS: u32 = 1000;
/// Key material starts at multiples of this many bytes, the first of which the header's own fields
/// have. [qemu]
pub(super) const ALIGN: u64 = 4096;
