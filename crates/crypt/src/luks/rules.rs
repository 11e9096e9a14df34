//! What a header may say of slots.

use zerocopy::byteorder::{BE, U32};

use super::material::{material_len, slot_len};
use super::ondisk::{ACTIVE, ALIGN, FREE, RawHeader, STRIPES};
use crate::cipher::SECTOR;
use crate::error::CryptError;

/// Checks all slots, those in use and those that may be one day. [qemu] The same rules, so no header
/// that it reads is lost; but for one that counts offsets past 2 TiB.
pub(super) fn check_slots(raw: &RawHeader, key_len: usize, area: u64) -> Result<(), CryptError> {
    let payload = bytes(raw.payload);
    if payload < ALIGN {
        return Err(CryptError::Payload {
            found: payload,
            end: ALIGN,
        });
    }
    let len = slot_len(key_len);
    for (slot, found) in raw.slots.iter().enumerate() {
        let (state, stripes) = (found.state.get(), found.stripes.get());
        if state != FREE && state != ACTIVE {
            let found = state;
            return Err(CryptError::SlotState { slot, found });
        }
        if stripes != STRIPES {
            let found = stripes;
            return Err(CryptError::Stripes { slot, found });
        }
        let offset = bytes(found.offset);
        if state == ACTIVE {
            check_rounds(found.rounds.get())?;
            let len = material_len(key_len).next_multiple_of(SECTOR) as u64;
            if offset + len > area {
                return Err(CryptError::SlotOutside {
                    slot,
                    offset,
                    len,
                    area,
                });
            }
        }
        if offset < ALIGN {
            return Err(CryptError::SlotInHeader {
                slot,
                offset,
                end: ALIGN,
            });
        }
        if offset + len > payload {
            return Err(CryptError::SlotInPayload {
                slot,
                offset,
                len,
                payload,
            });
        }
        for (first, before) in raw.slots[..slot].iter().enumerate() {
            let apart = offset.abs_diff(bytes(before.offset));
            if apart < len {
                return Err(CryptError::SlotsOverlap {
                    first,
                    second: slot,
                    len,
                    apart,
                });
            }
        }
    }
    Ok(())
}

/// A number of sectors of the file, in bytes.
pub(super) fn bytes(sectors: U32<BE>) -> u64 {
    u64::from(sectors.get()) * SECTOR as u64
}

/// However many there are: whoever tries a passphrase pays for them.
pub(super) fn check_rounds(found: u32) -> Result<(), CryptError> {
    match found {
        0 => Err(CryptError::Rounds),
        _ => Ok(()),
    }
}
