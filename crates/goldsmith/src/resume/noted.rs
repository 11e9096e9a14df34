//! A sink that keeps what it was asked for, so that it can be asked again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Committed, Demand, GuestRange, Placement, Result, Sink, SinkProfile, Slot, Storage, StorageMut,
    Transfer,
};

use super::journal::Place;

/// What a [`Noted`] sink was asked for and nobody has taken yet, in guest order.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Mutex<VecDeque<Place>>>);

impl Notes {
    /// Takes what was asked for before `end`, where a claim ends.
    pub(super) fn take(&self, end: u64) -> Vec<Place> {
        let mut notes = self.lock();
        let count = notes.partition_point(|place| place.range().start < end);
        notes.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Place>> {
        // A place is added or not.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes everything on to another sink.
pub(super) struct Noted {
    sink: Box<dyn Sink>,
    /// None where each byte has its place from the start, which nobody has to be asked for again.
    notes: Option<Notes>,
}

impl Noted {
    pub(super) fn new(sink: Box<dyn Sink>, notes: &Notes) -> Self {
        let is_asked = sink.profile().placement == Placement::Allocated;
        Self {
            notes: is_asked.then(|| notes.clone()),
            sink,
        }
    }
}

impl Sink for Noted {
    fn profile(&self) -> &SinkProfile {
        self.sink.profile()
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        self.sink.reserve(demands, slots)?;
        if let Some(notes) = &self.notes {
            notes
                .lock()
                .extend(demands.iter().copied().map(Place::Demand));
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        self.sink.reserve_zeroes(range)?;
        if let Some(notes) = &self.notes {
            notes.lock().push_back(Place::Zeros(range));
        }
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.sink.write(slot, data)
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        self.sink.slots_in()
    }

    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        self.sink.transfer(slot, source, from, transfer)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        self.sink.write_zeroes(range)
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        self.sink.commit()
    }
}
