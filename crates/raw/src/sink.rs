//! Writing: every byte has its place from the start.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Committed, CreateSpec, Demand, GuestRange, HostRange, Placement, Result, Sink,
    SinkProfile, Slot, StorageMut, ZeroPolicy, Zeroing,
};

use crate::{RawError, must_be_short};

/// Zeros are found in pieces of this size, which is the smallest hole that file systems make.
/// [qemu] `convert -S 4k`
const GRAIN: u64 = 4096;
/// Longest single write of zeros, in bytes. [ours]
const ZEROS: u64 = 1 << 20;

/// A new image, or one that is written over.
pub(crate) struct RawSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    zeroing: Zeroing,
}

impl RawSink {
    pub(crate) fn create(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Self> {
        if spec.compress {
            return Err(RawError::Compressed.into());
        }
        let virtual_size = spec.virtual_size;
        must_be_short(virtual_size)?;
        let is_file = storage.fixed_len().is_none();
        if is_file && !storage.is_blank() {
            // What an old file loses does not come back: all that is added again reads as zeros.
            storage.set_len(0)?;
        }
        storage.set_len(virtual_size)?;

        // All at once and before anything else, so that a full disk shows now.
        let preallocation = spec.options.choice("preallocation");
        match preallocation {
            "falloc" => storage.zero(HostRange::new(0, virtual_size), Zeroing::Keep)?,
            "full" => write_zeros(&*storage, 0, virtual_size)?,
            _ => {}
        }
        let preallocated = preallocation != "off";
        let zeroes = if is_file || preallocated {
            ZeroPolicy::Implied
        } else {
            ZeroPolicy::Written
        };
        let zeroing = if preallocated {
            Zeroing::Keep
        } else {
            Zeroing::Punch
        };
        let profile = SinkProfile {
            virtual_size,
            grain: GRAIN,
            placement: Placement::Identity,
            zeroes,
            packing: None,
        };
        Ok(Self {
            storage,
            profile,
            zeroing,
        })
    }

    /// Writes over the first `len` bytes of `storage`.
    pub(crate) fn over(storage: Arc<dyn StorageMut>, len: u64) -> Self {
        let profile = SinkProfile {
            virtual_size: len,
            grain: GRAIN,
            placement: Placement::Identity,
            zeroes: ZeroPolicy::Covering,
            packing: None,
        };
        Self {
            storage,
            profile,
            zeroing: Zeroing::Punch,
        }
    }
}

/// Writes zeros from `at` to `end`.
pub(crate) fn write_zeros(storage: &dyn StorageMut, mut at: u64, end: u64) -> Result<()> {
    // At most ZEROS, so this length and those below fit.
    let zeros = vec![0; ZEROS.min(end - at) as usize];
    while at < end {
        let piece = ZEROS.min(end - at);
        storage.write_at(at, &zeros[..piece as usize])?;
        at += piece;
    }
    Ok(())
}

impl Sink for RawSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        slots.extend(demands.iter().map(Demand::in_place));
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        self.write_zeroes(range)
    }

    /// Only where zeros need not be written, which could hide what came before.
    fn take_any_order(&mut self, _budget: &Budget) -> Result<bool> {
        Ok(self.profile.zeroes == ZeroPolicy::Implied)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        // Shared blocks are not the target's own, which is what preallocation is for.
        (self.zeroing == Zeroing::Punch).then_some(&*self.storage)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        let host = HostRange::new(range.start, range.len());
        self.storage.zero(host, self.zeroing)
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        self.storage.flush()?;
        // A device is longer than what was written to it.
        let file_len = match self.storage.fixed_len() {
            Some(_) => self.profile.virtual_size,
            None => self.storage.len(),
        };
        Ok(Committed { file_len })
    }
}
