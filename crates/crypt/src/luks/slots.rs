//! Passphrases that come and go.

use std::time::Duration;

use zerocopy::IntoBytes;

use super::material::material_len;
use super::ondisk::{ACTIVE, FREE, SLOTS};
use super::rules::bytes;
use super::{Luks, rounds_in};
use crate::cipher::SECTOR;
use crate::error::CryptError;

impl Luks {
    /// Lets `passphrase`, too, open what `known` opens: in slot `slot`, or in the first free one.
    /// `header` is the whole header with its key material, which becomes the new one.
    ///
    /// # Errors
    /// `Passphrase` if `known` opens no slot; `SlotTaken` or `SlotsTaken` if there is no free slot;
    /// `NoSlot` if there is none of that number; `Random` if the system has no random numbers.
    ///
    /// # Cost
    /// [`rounds_of`](Self::rounds_of) each slot up to the right one, and `time` more.
    pub fn add_passphrase(
        &mut self,
        header: &mut [u8],
        known: &[u8],
        passphrase: &[u8],
        slot: Option<usize>,
        time: Duration,
    ) -> Result<(), CryptError> {
        let is_free = |nth: usize| self.raw.slots[nth].state.get() == FREE;
        let nth = match slot {
            Some(slot) if slot >= SLOTS => return Err(CryptError::NoSlot { slot }),
            Some(slot) if !is_free(slot) => return Err(CryptError::SlotTaken { slot }),
            Some(slot) => slot,
            None => (0..SLOTS)
                .find(|nth| is_free(*nth))
                .ok_or(CryptError::SlotsTaken)?,
        };
        let key = self.master_key(header, known)?;
        let rounds = rounds_in(self.hash, time, key.len());
        let material = self.lock(nth, &key, passphrase, rounds)?;
        self.material(header, nth)?.copy_from_slice(&material);
        header[..Self::LEN].copy_from_slice(self.raw.as_bytes());
        Ok(())
    }

    /// Makes `slots` open to nobody, and wipes their key material. `header` as for
    /// [`add_passphrase`](Self::add_passphrase).
    ///
    /// # Errors
    /// `LastSlot` if no other slot would be left, which would lose the disk; `SlotFree` if one is open
    /// to nobody already; `NoSlot` if there is none of that number; `Random` if the system has no
    /// random numbers.
    pub fn remove_slots(&mut self, header: &mut [u8], slots: &[usize]) -> Result<(), CryptError> {
        if let Some(slot) = slots.iter().copied().find(|slot| *slot >= SLOTS) {
            return Err(CryptError::NoSlot { slot });
        }
        let is_active = |nth: usize| self.raw.slots[nth].state.get() == ACTIVE;
        if let Some(slot) = slots.iter().copied().find(|slot| !is_active(*slot)) {
            return Err(CryptError::SlotFree { slot });
        }
        if !(0..SLOTS).any(|nth| is_active(nth) && !slots.contains(&nth)) {
            return Err(CryptError::LastSlot);
        }
        for nth in slots.iter().copied() {
            super::random(self.material(header, nth)?)?;
            self.raw.slots[nth].state = FREE.into();
            self.raw.slots[nth].rounds = 0.into();
            self.raw.slots[nth].salt = [0; 32];
        }
        header[..Self::LEN].copy_from_slice(self.raw.as_bytes());
        Ok(())
    }

    /// The slots that `passphrase` opens; `header` as for
    /// [`add_passphrase`](Self::add_passphrase).
    ///
    /// # Errors
    /// `Passphrase` if there is none.
    ///
    /// # Cost
    /// [`rounds_of`](Self::rounds_of) all active slots.
    pub fn slots_of(&self, header: &mut [u8], passphrase: &[u8]) -> Result<Vec<usize>, CryptError> {
        let mut opened = Vec::new();
        for nth in 0..SLOTS {
            if self.key_in(nth, header, passphrase)?.is_some() {
                opened.push(nth);
            }
        }
        match opened.is_empty() {
            true => Err(CryptError::Passphrase),
            false => Ok(opened),
        }
    }

    fn master_key(&self, header: &mut [u8], passphrase: &[u8]) -> Result<Vec<u8>, CryptError> {
        for nth in 0..SLOTS {
            if let Some(key) = self.key_in(nth, header, passphrase)? {
                return Ok(key);
            }
        }
        Err(CryptError::Passphrase)
    }

    /// The master key, if `passphrase` opens slot `nth`.
    fn key_in(
        &self,
        nth: usize,
        header: &mut [u8],
        passphrase: &[u8],
    ) -> Result<Option<Vec<u8>>, CryptError> {
        let slot = &self.raw.slots[nth];
        if slot.state.get() != ACTIVE {
            return Ok(None);
        }
        let mut material = self.material(header, nth)?.to_vec();
        self.open(slot, passphrase, &mut material)
    }

    /// The key material of slot `nth` in `header`.
    fn material<'a>(&self, header: &'a mut [u8], nth: usize) -> Result<&'a mut [u8], CryptError> {
        let area = header.len() as u64;
        let offset = bytes(self.raw.slots[nth].offset);
        let len = material_len(self.raw.key_len.get() as usize).next_multiple_of(SECTOR);
        let outside = CryptError::SlotOutside {
            slot: nth,
            offset,
            len: len as u64,
            area,
        };
        // Slots that are not in use may be behind the header, where data would start later still.
        match offset + len as u64 {
            end if end <= area => Ok(&mut header[offset as usize..end as usize]),
            _ => Err(outside),
        }
    }
}
