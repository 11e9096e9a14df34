//! A fixed image: each byte at its own offset, then the footer.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Committed, Demand, GuestRange, Placement, Result, Sink, SinkProfile, Slot, StorageMut,
    ZeroPolicy,
};
use zerocopy::IntoBytes;

use super::{GRAIN, Wanted};
use crate::ondisk::{FIXED, FOOTER_LEN, NO_OFFSET, RawFooter};

/// See the module.
pub(super) struct FixedSink {
    storage: Arc<dyn StorageMut>,
    profile: SinkProfile,
    footer: RawFooter,
}

impl FixedSink {
    pub(super) fn new(storage: Arc<dyn StorageMut>, wanted: &Wanted) -> Self {
        Self {
            storage,
            profile: SinkProfile {
                virtual_size: wanted.virtual_size,
                grain: GRAIN,
                placement: Placement::Identity,
                // The storage was emptied.
                zeroes: ZeroPolicy::Implied,
                packing: None,
            },
            footer: wanted.footer(FIXED, NO_OFFSET),
        }
    }
}

impl Sink for FixedSink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        slots.extend(demands.iter().map(Demand::in_place));
        Ok(())
    }

    fn take_any_order(&mut self, _budget: &Budget) -> Result<bool> {
        Ok(true)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.storage.write_at(slot.host, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        Some(&*self.storage)
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        // Nobody wrote there, so it reads as zeros.
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        self.storage.flush()?;
        self.storage
            .write_at(self.profile.virtual_size, self.footer.as_bytes())?;
        self.storage.flush()?;
        Ok(Committed {
            file_len: self.profile.virtual_size + FOOTER_LEN,
        })
    }
}
