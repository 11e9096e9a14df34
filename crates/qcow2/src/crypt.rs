//! Encrypted guest data.

use std::borrow::Cow;
use std::time::Duration;

use goldsmith_block::{Budget, CreateSpec, Detail, Result, Storage};
use goldsmith_crypt::{Cipher, CipherSpec, CryptError, Luks, NewLuks, SECTOR, Slot};

use crate::error::Qcow2Error;
use crate::geometry::{Encryption, Geometry};

/// Bytes that are decrypted together where they do not end at sectors. [ours]
const PIECE: usize = 64 << 10;

/// What guest data needs to be read or written.
#[derive(Debug)]
pub(crate) enum Crypt {
    /// Nothing.
    Plain,
    /// A passphrase that nobody gave.
    Locked {
        /// How it is encrypted.
        method: &'static str,
    },
    /// This.
    Open {
        /// The cipher.
        cipher: Cipher,
        /// Whether sectors are counted in the file where they stand, or on the disk.
        by_host: bool,
    },
}

impl Crypt {
    /// Opens the encryption of an image with `passphrase`; `luks` is its LUKS header.
    ///
    /// # Errors
    /// `Denied` if the passphrase is wrong; `Limit` if it takes more hashing than `budget` has; those of
    /// reading the header.
    pub(crate) fn open(
        geometry: &Geometry,
        luks: Option<&Luks>,
        storage: &dyn Storage,
        passphrase: Option<&str>,
        budget: &Budget,
    ) -> Result<Self> {
        let method = match geometry.encryption {
            Encryption::None => return Ok(Self::Plain),
            Encryption::Aes => "aes",
            Encryption::Luks { .. } => "luks",
        };
        let Some(passphrase) = passphrase else {
            return Ok(Self::Locked { method });
        };
        match (geometry.encryption, luks) {
            (Encryption::Luks { header }, Some(luks)) => {
                let cipher = luks.unlock(passphrase.as_bytes(), |slot, buf| {
                    pay_for_try(luks, slot, budget)
                        .and_then(|()| storage.read_at(header.offset + slot.offset, buf))
                        .map_err(Unlock::Before)
                });
                Ok(Self::luks(cipher?))
            }
            _ => Ok(Self::aes(passphrase)?),
        }
    }

    /// The encryption of images with a LUKS header.
    pub(crate) fn luks(cipher: Cipher) -> Self {
        let by_host = true;
        Self::Open { cipher, by_host }
    }

    /// The encryption of old images: the passphrase is the key.
    pub(crate) fn aes(passphrase: &str) -> Result<Self, Qcow2Error> {
        let mut key = [0; 16];
        let bytes = passphrase.as_bytes();
        let len = bytes.len().min(key.len());
        key[..len].copy_from_slice(&bytes[..len]);
        Ok(Self::Open {
            cipher: Cipher::new(&CipherSpec::named("aes-128", "cbc-plain64")?, &key)?,
            by_host: false,
        })
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    /// Fills `buf` with the guest bytes at `guest`, which stand at `host` of `data`.
    pub(crate) fn read(
        &self,
        data: &dyn Storage,
        host: u64,
        guest: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let (cipher, by_host) = match self {
            Self::Plain => return data.read_at(host, buf),
            Self::Locked { method } => return Err(Qcow2Error::Locked { method }.into()),
            Self::Open { cipher, by_host } => (cipher, *by_host),
        };
        let number = |host: u64, guest: u64| if by_host { host } else { guest } / SECTOR as u64;
        let into = (guest % SECTOR as u64) as usize;
        if into == 0 && buf.len().is_multiple_of(SECTOR) {
            data.read_at(host, buf)?;
            cipher.decrypt(number(host, guest), buf);
            return Ok(());
        }
        // Host and guest offset differ by clusters, so sectors start where they should.
        let (mut host, mut guest) = (host - into as u64, guest - into as u64);
        let (mut rest, mut into) = (buf, into);
        while !rest.is_empty() {
            let len = (into + rest.len()).min(PIECE).next_multiple_of(SECTOR);
            let mut piece = vec![0; len];
            data.read_at(host, &mut piece)?;
            cipher.decrypt(number(host, guest), &mut piece);
            let (part, others) = rest.split_at_mut((len - into).min(rest.len()));
            part.copy_from_slice(&piece[into..into + part.len()]);
            (rest, into) = (others, 0);
            host += len as u64;
            guest += len as u64;
        }
        Ok(())
    }

    /// `data`, for guest offset `guest` and host offset `host`, as it is to be stored: encrypted,
    /// filled up to a whole sector.
    ///
    /// # Errors
    /// `Denied` if nobody gave the passphrase.
    pub(crate) fn encrypt<'a>(
        &self,
        host: u64,
        guest: u64,
        data: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Qcow2Error> {
        self.must_be_open()?;
        let Self::Open { cipher, by_host } = self else {
            return Ok(data.into());
        };
        let mut sectors = data.to_vec();
        sectors.resize(data.len().next_multiple_of(SECTOR), 0);
        let first = if *by_host { host } else { guest } / SECTOR as u64;
        cipher.encrypt(first, &mut sectors);
        Ok(sectors.into())
    }

    /// `data`, which is going to stand at `host`, with zeros up to the end of its unit of 2^`bits` bytes if
    /// it is to be encrypted. The disk may end there, and once it is larger they are seen. [qemu]
    pub(crate) fn filled<'a>(&self, data: &'a [u8], host: u64, bits: u32) -> Cow<'a, [u8]> {
        let end = host + data.len() as u64;
        // At most two megabytes.
        let rest = (end.next_multiple_of(1 << bits) - end) as usize;
        match rest == 0 || self.is_plain() {
            true => data.into(),
            false => [data, &vec![0; rest]].concat().into(),
        }
    }

    /// Fails if guest data can be neither read nor written.
    pub(crate) fn must_be_open(&self) -> Result<(), Qcow2Error> {
        match *self {
            Self::Locked { method } => Err(Qcow2Error::Locked { method }),
            _ => Ok(()),
        }
    }
}

/// Takes what it costs to try a passphrase on `slot`.
///
/// # Errors
/// `Limit` if it is more than `budget` has.
pub(crate) fn pay_for_try(luks: &Luks, slot: &Slot, budget: &Budget) -> Result<()> {
    budget.hash(luks.rounds_of(slot), "LUKS key slot")
}

/// Why a LUKS header does not open.
enum Unlock {
    /// Before a passphrase could be tried.
    Before(goldsmith_block::Error),
    Crypt(CryptError),
}

impl From<CryptError> for Unlock {
    fn from(error: CryptError) -> Self {
        Self::Crypt(error)
    }
}

impl From<Unlock> for goldsmith_block::Error {
    fn from(error: Unlock) -> Self {
        match error {
            Unlock::Before(error) => error,
            Unlock::Crypt(source) => Qcow2Error::Crypt { source }.into(),
        }
    }
}

/// The LUKS header that the options of `spec` ask for.
///
/// # Errors
/// `EncryptOptions` if they do not go together.
pub(crate) fn new_luks(spec: &CreateSpec) -> Result<NewLuks, Qcow2Error> {
    let options = &spec.options;
    let mode = options.choice("encrypt.cipher-mode");
    let iv = match options.choice("encrypt.ivgen-alg") {
        "essiv" => &format!("essiv:{}", options.choice("encrypt.ivgen-hash-alg")),
        iv => iv,
    };
    let (cipher, hash) = (
        options.choice("encrypt.cipher-alg"),
        options.choice("encrypt.hash-alg"),
    );
    let time = Duration::from_millis(options.size("encrypt.iter-time"));
    CipherSpec::named(cipher, &format!("{mode}-{iv}"))
        .and_then(|cipher| NewLuks::new(cipher, hash, time, spec.uuid))
        .map_err(|source| Qcow2Error::EncryptOptions { source })
}

/// Reads the LUKS header of an image that has one.
pub(crate) fn read_luks(storage: &dyn Storage, geometry: &Geometry) -> Result<Option<Luks>> {
    let Encryption::Luks { header } = geometry.encryption else {
        return Ok(None);
    };
    let mut bytes = [0; Luks::LEN];
    if header.len < bytes.len() as u64 {
        return Err(Qcow2Error::NoLuksHeader.into());
    }
    storage.read_at(header.offset, &mut bytes)?;
    let luks = Luks::parse(&bytes, header.len).map_err(Qcow2Error::from)?;
    Ok(Some(luks))
}

/// What `qemu-img info` shows of the encryption, in its order. [qemu]
pub(crate) fn detail(geometry: &Geometry, luks: Option<&Luks>) -> Option<Detail> {
    let text = |text: &str| Detail::Text(text.into());
    let Some(luks) = luks else {
        let aes = geometry.encryption == Encryption::Aes;
        return aes.then(|| Detail::Record(vec![("format", text("aes"))]));
    };
    let slots = luks.slots().map(|slot| {
        let mut facts = vec![("active", Detail::Flag(slot.active))];
        if slot.active {
            facts.push(("iters", Detail::Number(slot.rounds.into())));
        }
        facts.push(("key-offset", Detail::Number(slot.offset)));
        if slot.active {
            facts.push(("stripes", Detail::Number(slot.stripes.into())));
        }
        Detail::Record(facts)
    });
    let slots = Detail::List(slots.collect());
    let cipher = luks.cipher();
    let mut facts = vec![
        ("ivgen-alg", text(cipher.iv_generator())),
        ("detached-header", Detail::Flag(false)),
        ("hash-alg", text(luks.hash())),
        ("cipher-alg", text(cipher.algorithm())),
        ("uuid", text(luks.uuid())),
    ];
    if let Some(hash) = cipher.iv_hash() {
        facts.push(("ivgen-hash-alg", text(hash)));
    }
    facts.extend([
        ("format", text("luks")),
        ("cipher-mode", text(cipher.mode())),
        ("slots", slots),
        ("payload-offset", Detail::Number(luks.payload_offset())),
        ("master-key-iters", Detail::Number(luks.key_rounds().into())),
    ]);
    Some(Detail::Record(facts))
}
