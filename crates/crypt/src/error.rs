//! Every rule that encryption can break.

/// Why something cannot be decrypted or encrypted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CryptError {
    /// A cipher, IV generator or hash that is not done.
    #[error("the {what} '{name}' is not supported; there are {known}")]
    Unsupported {
        /// Cipher, IV generator or hash.
        what: &'static str,
        /// Its name.
        name: String,
        /// Names of those that are.
        known: String,
    },
    /// A mode that the cipher does not have.
    #[error("{cipher} has no mode '{name}', only {known}")]
    NoMode {
        /// The cipher.
        cipher: &'static str,
        /// Name of the mode.
        name: String,
        /// Names of the modes that it has.
        known: String,
    },
    /// Keys whose key material ends inside a sector.
    #[error("key material of {cipher} takes {len} bytes, no whole sectors, which QEMU cannot read")]
    Ragged {
        /// The cipher and its mode.
        cipher: String,
        /// Length of the key material.
        len: usize,
    },
    /// A hash whose digest is no key for the IV generator essiv.
    #[error("essiv with {hash} takes keys of {len} bytes, which {cipher} does not have")]
    Essiv {
        /// The hash.
        hash: &'static str,
        /// Length of its digest.
        len: usize,
        /// The family of ciphers.
        cipher: &'static str,
    },
    /// A key of another length than the cipher's.
    #[error("the key has {len} bytes, which '{cipher}' does not take")]
    KeyLength {
        /// Its length.
        len: usize,
        /// The cipher and its mode.
        cipher: String,
    },
    /// Wrong first bytes.
    #[error("there is no LUKS header")]
    Magic,
    /// A version that is not 1.
    #[error("the LUKS header has version {found}; version 1 is supported")]
    Version {
        /// The version.
        found: u16,
    },
    /// A name in the header that is none.
    #[error("the LUKS header's {what} is no text")]
    Name {
        /// Whose name.
        what: &'static str,
    },
    /// A slot that is neither in use nor free.
    #[error("LUKS key slot {slot} has the state {found:#x}")]
    SlotState {
        /// Its number.
        slot: usize,
        /// Its state.
        found: u32,
    },
    /// Key material outside the header's area.
    #[error("LUKS key slot {slot} takes {len} bytes at offset {offset}; the header has {area}")]
    SlotOutside {
        /// Its number.
        slot: usize,
        /// Byte offset of its key material.
        offset: u64,
        /// Length of it.
        len: u64,
        /// Length of the whole header.
        area: u64,
    },
    /// Key material where the header itself stands.
    #[error("LUKS key slot {slot} is at offset {offset}; the header's own fields end at {end}")]
    SlotInHeader {
        /// Its number.
        slot: usize,
        /// Byte offset of its key material.
        offset: u64,
        /// Where key material may start.
        end: u64,
    },
    /// Key material where data would stand.
    #[error("LUKS key slot {slot} takes {len} bytes at offset {offset}; data starts at {payload}")]
    SlotInPayload {
        /// Its number.
        slot: usize,
        /// Byte offset of its key material.
        offset: u64,
        /// Length of its place.
        len: u64,
        /// Byte offset of the data.
        payload: u64,
    },
    /// Two slots at one place: whoever writes to one of them destroys the other.
    #[error("LUKS key slots {first} and {second} overlap: {len} bytes each, {apart} apart")]
    SlotsOverlap {
        /// Number of the one.
        first: usize,
        /// Number of the other.
        second: usize,
        /// Length of a place.
        len: u64,
        /// Bytes from the start of the one to that of the other.
        apart: u64,
    },
    /// Data where the header itself stands.
    #[error("the LUKS header says that data starts at {found}; its own fields end at {end}")]
    Payload {
        /// Byte offset of the data.
        found: u64,
        /// Where it may start.
        end: u64,
    },
    /// Another number of stripes than everybody writes.
    #[error("LUKS key slot {slot} has {found} stripes; 4000 are supported")]
    Stripes {
        /// Its number.
        slot: usize,
        /// Its stripes.
        found: u32,
    },
    /// A number of rounds that is none.
    #[error("the LUKS header asks for 0 rounds of its hash; there is at least 1")]
    Rounds,
    /// No slot opens.
    #[error("the passphrase opens none of the key slots")]
    Passphrase,
    /// A slot that there is not.
    #[error("there is no LUKS key slot {slot}; they are numbered from 0 to 7")]
    NoSlot {
        /// Its number.
        slot: usize,
    },
    /// A slot for another passphrase.
    #[error("LUKS key slot {slot} is taken")]
    SlotTaken {
        /// Its number.
        slot: usize,
    },
    /// A slot that nothing can be taken from.
    #[error("LUKS key slot {slot} is free; there is no passphrase to remove")]
    SlotFree {
        /// Its number.
        slot: usize,
    },
    /// No place for one more passphrase.
    #[error("all LUKS key slots are taken")]
    SlotsTaken,
    /// Nobody could open the disk any more.
    #[error("no other LUKS key slot would be left, and with the last one the disk would be lost")]
    LastSlot,
    /// The machine has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Names, one behind the other.
pub(crate) fn known<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
