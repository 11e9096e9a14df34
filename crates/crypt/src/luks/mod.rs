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
mod tests {
    use super::*;

    fn new() -> (Cipher, Vec<u8>) {
        with("aes-256", "xts-plain64", "sha256")
    }

    fn with(cipher: &str, mode: &str, hash: &str) -> (Cipher, Vec<u8>) {
        let new = header_of(cipher, mode, hash).unwrap();
        Luks::create(b"sesame", &new).unwrap()
    }

    fn header_of(cipher: &str, mode: &str, hash: &str) -> Result<NewLuks, CryptError> {
        let cipher = CipherSpec::named(cipher, mode)?;
        NewLuks::new(cipher, hash, Duration::ZERO, Uuid::from_u128(7))
    }

    #[test]
    fn headers_that_qemu_does_not_read_are_not_made() {
        for cipher in ["aes-192", "serpent-192", "twofish-192"] {
            for mode in ["cbc-plain64", "ctr-plain64", "ecb-plain64"] {
                let refused = header_of(cipher, mode, "sha256").unwrap_err();
                let cipher = format!("{cipher}-{mode}");
                assert_eq!(
                    refused,
                    CryptError::Ragged {
                        cipher,
                        len: 96_000
                    }
                );
            }
            header_of(cipher, "xts-plain64", "sha256").unwrap();
        }
        let refused = header_of("aes-256", "xts-plain64", "whirlpool").unwrap_err();
        assert!(refused.to_string().contains("'whirlpool' is not supported"));
    }

    #[test]
    fn every_cipher_and_hash_keeps_its_key() {
        for (cipher, mode, hash) in [
            ("aes-128", "xts-plain", "sha1"),
            ("aes-128", "cbc-essiv:sha256", "sha512"),
            ("aes-256", "cbc-plain64", "sha256"),
            ("serpent-192", "xts-essiv:sm3", "md5"),
            ("twofish-256", "ctr-plain64", "sha384"),
            ("cast5-128", "ecb-essiv:md5", "ripemd160"),
        ] {
            let (cipher, header) = with(cipher, mode, hash);
            let mut sector = [9; SECTOR];
            cipher.encrypt(77, &mut sector);
            unlock(&header, b"sesame").unwrap().decrypt(77, &mut sector);
            assert_eq!(sector, [9; SECTOR], "{mode}");
        }
    }

    fn head(header: &[u8]) -> [u8; Luks::LEN] {
        header[..Luks::LEN].try_into().unwrap()
    }

    fn unlock(header: &[u8], passphrase: &[u8]) -> Result<Cipher, CryptError> {
        let luks = Luks::parse(&head(header), header.len() as u64)?;
        luks.unlock(passphrase, |slot, buf| {
            buf.copy_from_slice(&header[slot.offset as usize..][..buf.len()]);
            Ok(())
        })
    }

    #[test]
    fn rounds_are_those_that_are_done() {
        for (cipher, mode, hash, of_key, of_digest) in [
            ("aes-256", "xts-plain64", "sha256", 2, 1),
            ("aes-256", "xts-plain64", "sha1", 4, 1),
            ("aes-128", "cbc-plain64", "sha256", 1, 1),
            ("aes-256", "cbc-plain64", "md5", 2, 2),
        ] {
            let (_, header) = with(cipher, mode, hash);
            let luks = Luks::parse(&head(&header), header.len() as u64).unwrap();
            let slot = luks.slots().next().unwrap();
            let least = u64::from(LEAST_ROUNDS);
            assert_eq!(
                luks.rounds_of(&slot),
                least * (of_key + of_digest),
                "{hash}"
            );
        }
    }

    #[test]
    fn passphrase_opens_what_it_locked_and_no_other_does() {
        let (cipher, header) = new();
        let mut sector = [9; SECTOR];
        cipher.encrypt(77, &mut sector);
        unlock(&header, b"sesame").unwrap().decrypt(77, &mut sector);
        assert_eq!(sector, [9; SECTOR]);
        for wrong in [&b"sesam"[..], b"sesame ", b""] {
            assert_eq!(unlock(&header, wrong).unwrap_err(), CryptError::Passphrase);
        }
    }

    /// 24 bytes, 4000 times, are no whole number of sectors.
    #[test]
    fn key_of_192_bits_is_looked_for() {
        let (_, mut header) = new();
        header[40..72].fill(0);
        header[40..51].copy_from_slice(b"cbc-plain64");
        header[108..112].copy_from_slice(&24_u32.to_be_bytes());
        assert_eq!(
            unlock(&header, b"sesame").unwrap_err(),
            CryptError::Passphrase
        );
    }

    #[test]
    fn key_material_that_lost_a_bit_holds_no_key() {
        let (_, mut header) = new();
        header[200_000] ^= 1;
        assert_eq!(
            unlock(&header, b"sesame").unwrap_err(),
            CryptError::Passphrase
        );
    }

    #[test]
    fn headers_that_break_a_rule_are_refused() {
        let (_, header) = new();
        let refused = |at: usize, bytes: &[u8]| {
            let mut head = head(&header);
            head[at..at + bytes.len()].copy_from_slice(bytes);
            Luks::parse(&head, header.len() as u64).unwrap_err()
        };
        let be = u32::to_be_bytes;
        assert_eq!(refused(0, b"l"), CryptError::Magic);
        assert_eq!(refused(7, &[2]), CryptError::Version { found: 2 });
        assert!(
            refused(8, b"blowfish")
                .to_string()
                .contains("'blowfish' is not supported")
        );
        assert!(
            refused(40, b"ecb-null\0\0\0\0")
                .to_string()
                .contains("'null' is not supported")
        );
        assert!(refused(72, b"whirlpool").to_string().contains("whirlpool"));
        assert_eq!(refused(72, b"\x1b"), CryptError::Name { what: "hash" });
        assert!(matches!(
            refused(108, &be(63)),
            CryptError::KeyLength { .. }
        ));
        assert!(matches!(
            refused(108, &be(u32::MAX)),
            CryptError::KeyLength { .. }
        ));
        assert!(matches!(
            refused(164, &be(0)),
            CryptError::Rounds { found: 0, .. }
        ));
        assert!(matches!(
            refused(208, &be(7)),
            CryptError::SlotState { slot: 0, found: 7 }
        ));
        assert!(matches!(
            refused(212, &be(u32::MAX)),
            CryptError::Rounds { .. }
        ));
        assert!(matches!(
            refused(248, &be(u32::MAX)),
            CryptError::SlotOutside { .. }
        ));
        assert!(matches!(
            refused(252, &be(1)),
            CryptError::Stripes { slot: 0, found: 1 }
        ));
    }

    /// Free slots have a place, too: who takes or wipes one must not hit another.
    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let (_, header) = new();
        let refused = |numbers: &[(usize, u32)]| {
            let mut head = head(&header);
            for (at, number) in numbers {
                head[*at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            Luks::parse(&head, header.len() as u64).unwrap_err()
        };
        let (offset, stripes) = (|nth: usize| 248 + 48 * nth, |nth: usize| 252 + 48 * nth);
        let overlap = |first, second, apart| CryptError::SlotsOverlap {
            first,
            second,
            len: 504 * 512,
            apart,
        };
        // Sectors: slots take 504 each, the first one is at 8, and data starts at 4040.
        for (found, expected) in [
            (refused(&[(offset(1), 8)]), overlap(0, 1, 0)),
            (refused(&[(offset(1), 511)]), overlap(0, 1, 503 * 512)),
            (refused(&[(offset(7), 3500)]), overlap(6, 7, 468 * 512)),
            (refused(&[(offset(1), 2024)]), overlap(1, 4, 0)),
            (
                refused(&[(offset(0), 1)]),
                CryptError::SlotInHeader {
                    slot: 0,
                    offset: 512,
                    end: 4096,
                },
            ),
            (
                refused(&[(offset(1), 0)]),
                CryptError::SlotInHeader {
                    slot: 1,
                    offset: 0,
                    end: 4096,
                },
            ),
            (
                refused(&[(offset(7), 3537)]),
                CryptError::SlotInPayload {
                    slot: 7,
                    offset: 3537 * 512,
                    len: 504 * 512,
                    payload: 4040 * 512,
                },
            ),
            (
                refused(&[(104, 4039)]),
                CryptError::SlotInPayload {
                    slot: 7,
                    offset: 3536 * 512,
                    len: 504 * 512,
                    payload: 4039 * 512,
                },
            ),
            (
                refused(&[(104, 7)]),
                CryptError::Payload {
                    found: 7 * 512,
                    end: 4096,
                },
            ),
            (
                refused(&[(stripes(3), 0)]),
                CryptError::Stripes { slot: 3, found: 0 },
            ),
        ] {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn slots_that_stand_elsewhere_are_read() {
        let (_, header) = new();
        let mut head = head(&header);
        let mut put = |at: usize, number: u32| {
            head[at..at + 4].copy_from_slice(&number.to_be_bytes());
        };
        // Others may leave gaps, count in another order, and keep the rounds of a slot that was used;
        // in qcow2 nothing stands where data would start.
        put(248 + 48, 3536);
        put(248 + 48 * 7, 512);
        put(248 + 48 * 6, 50_000);
        put(212 + 48, 7);
        put(104, u32::MAX);
        Luks::parse(&head, header.len() as u64).unwrap();
    }

    #[test]
    fn slot_without_passphrase_cannot_lose_one() {
        let (_, mut header) = new();
        let before = header.clone();
        let mut luks = Luks::parse(&head(&header), header.len() as u64).unwrap();
        for slots in [&[3][..], &[0, 3]] {
            let refused = luks.remove_slots(&mut header, slots).unwrap_err();
            assert_eq!(refused, CryptError::SlotFree { slot: 3 });
        }
        assert!(header == before);
        assert_eq!(
            luks.remove_slots(&mut header, &[0]),
            Err(CryptError::LastSlot)
        );
    }

    #[test]
    fn any_bit_of_a_header_may_be_wrong() {
        let (_, header) = new();
        for bit in 0..8 * Luks::LEN {
            let mut head = head(&header);
            head[bit / 8] ^= 1 << (bit % 8);
            let _ = Luks::parse(&head, header.len() as u64);
        }
    }
}
