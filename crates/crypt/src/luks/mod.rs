//! The LUKS header, version 1: a master key, locked up once for each passphrase.
//!
//! ```text
//!   0        592    4096           + a slot each                   payload
//!   | header |      | key material 0 | key material 1 | ... 7      |
//! ```
//!
//! Key material is the master key, blown up to 4000 times its length in such a way that all of it
//! is needed to get the key back, and encrypted with what a passphrase becomes.

mod material;
mod ondisk;
mod rules;
mod slots;

use std::time::{Duration, Instant};

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use self::material::{material_len, merge, random, slot_len, split};
use self::ondisk::{
    ACTIVE, ALIGN, FREE, LEAST_ROUNDS, MAGIC, ROUNDS, RawHeader, RawSlot, SLOTS, STRIPES,
};
use self::rules::{bytes, check_rounds, check_slots};
use crate::cipher::{Cipher, CipherSpec, SECTOR};
use crate::error::CryptError;
use crate::hash::Hash;

/// A LUKS header, checked.
#[derive(Clone, Debug)]
pub struct Luks {
    raw: RawHeader,
    spec: CipherSpec,
    hash: &'static Hash,
    uuid: String,
}

/// What a new header shall be.
#[derive(Clone, Debug)]
pub struct NewLuks {
    cipher: CipherSpec,
    hash: &'static Hash,
    time: Duration,
    uuid: Uuid,
}

impl NewLuks {
    /// A header for `cipher`, with the identity `uuid`; a guess of a passphrase shall take `time`,
    /// spent with `hash` ("sha256").
    ///
    /// # Errors
    /// `Unsupported` for an unknown hash; `Ragged` for keys of 24 bytes, which are read only.
    pub fn new(
        cipher: CipherSpec,
        hash: &str,
        time: Duration,
        uuid: Uuid,
    ) -> Result<Self, CryptError> {
        let len = material_len(cipher.key_len());
        if !len.is_multiple_of(SECTOR) {
            // [qemu] It stops at an assertion; LUKS itself fills up the last sector.
            let cipher = format!("{}-{}", cipher.algorithm(), cipher.name());
            return Err(CryptError::Ragged { cipher, len });
        }
        Ok(Self {
            cipher,
            hash: Hash::named(hash)?,
            time,
            uuid,
        })
    }

    /// Length of the whole header, key material included, in bytes.
    pub fn header_len(&self) -> u64 {
        ALIGN + SLOTS as u64 * slot_len(self.cipher.key_len())
    }
}

/// A place for one passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether there is one.
    pub active: bool,
    /// How often it is hashed.
    pub rounds: u32,
    /// How many times the key its material is as long as.
    pub stripes: u32,
    /// Byte offset of its key material in the header.
    pub offset: u64,
}

impl Luks {
    /// Bytes of the header that [`parse`](Self::parse) takes.
    pub const LEN: usize = 592;

    /// Checks a header whose key material ends within `area` bytes from its start.
    ///
    /// # Errors
    /// One for each rule; `Unsupported` names what is not done.
    pub fn parse(bytes: &[u8; Self::LEN], area: u64) -> Result<Self, CryptError> {
        let raw = RawHeader::read_from_bytes(bytes).map_err(|_| CryptError::Magic)?;
        if raw.magic != MAGIC {
            return Err(CryptError::Magic);
        }
        let found = raw.version.get();
        if found != 1 {
            return Err(CryptError::Version { found });
        }
        let key_len = raw.key_len.get() as usize;
        let (cipher, mode) = (text("cipher", &raw.cipher)?, text("mode", &raw.mode)?);
        let spec = CipherSpec::parse(cipher, mode, key_len)?;
        let hash = Hash::named(text("hash", &raw.hash)?)?;
        check_rounds(raw.digest_rounds.get())?;
        check_slots(&raw, key_len, area)?;
        let uuid = text("UUID", &raw.uuid)?.to_owned();
        Ok(Self {
            raw,
            spec,
            hash,
            uuid,
        })
    }

    /// The cipher with the master key, which `passphrase` opens. `read` fills a buffer with the key
    /// material of a slot, which is tried then.
    ///
    /// # Errors
    /// `Passphrase` if it opens no slot; those of `read`.
    ///
    /// # Cost
    /// Seconds: [`rounds_of`](Self::rounds_of) each slot up to the right one.
    pub fn unlock<E: From<CryptError>>(
        &self,
        passphrase: &[u8],
        mut read: impl FnMut(&Slot, &mut [u8]) -> Result<(), E>,
    ) -> Result<Cipher, E> {
        let key_len = self.raw.key_len.get() as usize;
        // Whole sectors are encrypted, though the last one need not be full.
        let mut material = vec![0; material_len(key_len).next_multiple_of(SECTOR)];
        for (slot, raw) in self.slots().zip(&self.raw.slots) {
            if !slot.active {
                continue;
            }
            read(&slot, &mut material)?;
            if let Some(key) = self.open(raw, passphrase, &mut material)? {
                return Ok(Cipher::new(&self.spec, &key)?);
            }
        }
        Err(CryptError::Passphrase.into())
    }

    /// The master key, if `passphrase` opens `slot`, whose key material is `material`.
    fn open(
        &self,
        slot: &RawSlot,
        passphrase: &[u8],
        material: &mut [u8],
    ) -> Result<Option<Vec<u8>>, CryptError> {
        let key_len = self.raw.key_len.get() as usize;
        let mut slot_key = vec![0; key_len];
        let rounds = slot.rounds.get();
        self.hash
            .derive(passphrase, &slot.salt, rounds, &mut slot_key);
        Cipher::new(&self.spec, &slot_key)?.decrypt(0, material);
        let key = merge(self.hash, &material[..material_len(key_len)], key_len);
        Ok((self.digest(&key) == self.raw.digest).then_some(key))
    }

    /// Locks `key` up in slot `nth`, which `passphrase` opens after `rounds`; gives its key material.
    fn lock(
        &mut self,
        nth: usize,
        key: &[u8],
        passphrase: &[u8],
        rounds: u32,
    ) -> Result<Vec<u8>, CryptError> {
        let slot = &mut self.raw.slots[nth];
        random(&mut slot.salt)?;
        slot.state = ACTIVE.into();
        slot.rounds = rounds.into();
        slot.stripes = STRIPES.into();
        let mut material = split(self.hash, key)?;
        material.resize(material.len().next_multiple_of(SECTOR), 0);
        let mut slot_key = vec![0; key.len()];
        self.hash
            .derive(passphrase, &slot.salt, rounds, &mut slot_key);
        Cipher::new(&self.spec, &slot_key)?.encrypt(0, &mut material);
        Ok(material)
    }

    fn digest(&self, key: &[u8]) -> [u8; 20] {
        let mut digest = [0; 20];
        let (salt, rounds) = (&self.raw.digest_salt, self.raw.digest_rounds.get());
        self.hash.derive(key, salt, rounds, &mut digest);
        digest
    }

    /// A new header with a random master key that `passphrase` opens: the cipher with that key, and
    /// the whole header with its key material.
    ///
    /// # Errors
    /// `Random` if the system has no random numbers.
    pub fn create(passphrase: &[u8], new: &NewLuks) -> Result<(Cipher, Vec<u8>), CryptError> {
        let (spec, hash) = (new.cipher, new.hash);
        let mut key = vec![0; spec.key_len()];
        random(&mut key)?;
        let cipher = Cipher::new(&spec, &key)?;
        let key_len = key.len();

        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = 1.into();
        put(&mut raw.cipher, spec.family());
        put(&mut raw.mode, &spec.name());
        put(&mut raw.hash, hash.name);
        put(&mut raw.uuid, &new.uuid.to_string());
        raw.key_len = (key_len as u32).into();
        let (slot_len, end) = (slot_len(key_len), new.header_len());
        let sectors = |bytes: u64| (bytes / SECTOR as u64) as u32;
        raw.payload = sectors(end).into();
        for (nth, slot) in raw.slots.iter_mut().enumerate() {
            slot.state = FREE.into();
            slot.offset = sectors(ALIGN + nth as u64 * slot_len).into();
            slot.stripes = STRIPES.into();
        }
        random(&mut raw.digest_salt)?;
        let rounds = rounds_in(hash, new.time, key_len);
        // [qemu] The digest takes an eighth of the time.
        raw.digest_rounds = (rounds / 8).max(LEAST_ROUNDS).into();
        let uuid = new.uuid.to_string();
        let mut luks = Self {
            raw,
            spec,
            hash,
            uuid,
        };
        luks.raw.digest = luks.digest(&key);

        let material = luks.lock(0, &key, passphrase, rounds)?;
        // Two megabytes.
        let mut header = vec![0; end as usize];
        header[..Self::LEN].copy_from_slice(luks.raw.as_bytes());
        header[ALIGN as usize..][..material.len()].copy_from_slice(&material);
        Ok((cipher, header))
    }

    /// The cipher.
    pub fn cipher(&self) -> CipherSpec {
        self.spec
    }

    /// The name of the hash.
    pub fn hash(&self) -> &'static str {
        self.hash.name
    }

    /// The identity, as it stands there.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Where the header ends and data would start, in bytes.
    pub fn payload_offset(&self) -> u64 {
        bytes(self.raw.payload)
    }

    /// How often the master key is hashed to know it.
    pub fn key_rounds(&self) -> u32 {
        self.raw.digest_rounds.get()
    }

    /// Rounds of the hash that it takes to try a passphrase on `slot`: a key that is longer than what
    /// the hash gives takes its rounds several times.
    pub fn rounds_of(&self, slot: &Slot) -> u64 {
        let times = |rounds: u32, len: usize| u64::from(rounds) * self.hash.times(len);
        let key_len = self.raw.key_len.get() as usize;
        times(slot.rounds, key_len) + times(self.key_rounds(), self.raw.digest.len())
    }

    /// The places for passphrases.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.raw.slots.iter().map(|slot| Slot {
            active: slot.state.get() == ACTIVE,
            rounds: slot.rounds.get(),
            stripes: slot.stripes.get(),
            offset: bytes(slot.offset),
        })
    }
}

fn text<'a>(what: &'static str, field: &'a [u8]) -> Result<&'a str, CryptError> {
    let end = field.iter().position(|byte| *byte == 0);
    let name = &field[..end.unwrap_or(field.len())];
    let plain = name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok();
    name.filter(|_| plain).ok_or(CryptError::Name { what })
}

fn put(field: &mut [u8], text: &str) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// As many rounds as this machine does in `time`, within reason.
fn rounds_in(hash: &Hash, time: Duration, key_len: usize) -> u32 {
    let mut key = vec![0; key_len];
    let sample = 1 << 15;
    let start = Instant::now();
    hash.derive(b"how fast", b"is this machine", sample, &mut key);
    let taken = start.elapsed().max(Duration::from_micros(1));
    let rounds = f64::from(sample) * (time.as_secs_f64() / taken.as_secs_f64());
    // A float that is too large becomes the largest number.
    (rounds as u32).clamp(LEAST_ROUNDS, ROUNDS)
}

#[cfg(test)]
mod tests;
