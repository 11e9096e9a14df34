//! A new image, written from the first host cluster to the last.
//!
//! ```text
//! header | data | L2 | data | refcount block | data | L2 | L1 | refcount blocks | refcount table
//! ```
//!
//! Places are asked for in guest order, so an L2 table is complete when the first cluster behind
//! its range is asked for, and a refcount block when the clusters it counts are used up. Each then
//! takes the next cluster and is written, once. All else stays in memory: the L1 table, the
//! offsets of refcount blocks, one L2 table, one refcount block.
//!
//! A disk that comes in [any order](Sink::take_any_order) has all its L2 tables behind the data, and in
//! memory until then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Budget, Committed, CreateSpec, Demand, GuestRange, HostRange, Packing, Placement, Result, Sink,
    SinkProfile, Slot, Storage, StorageMut, Transfer, ZeroPolicy,
};
use goldsmith_crypt::Luks;

use crate::crypt::{Crypt, new_luks};
use crate::error::Qcow2Error;
use crate::layout::{Layout, clear_rest};
use crate::plan::{KEY_SECRET, Plan, Preallocation, Protection};

/// Makes the encryption that `plan` asks for, and writes its header.
fn protect(
    plan: &mut Plan,
    spec: &CreateSpec,
    layout: &mut Layout,
    storage: &dyn StorageMut,
) -> Result<Crypt> {
    let passphrase = spec.options.secret(KEY_SECRET).unwrap_or_default();
    match &mut plan.protection {
        Protection::None => Ok(Crypt::Plain),
        Protection::Aes => Ok(Crypt::aes(passphrase)?),
        Protection::Luks { header } => {
            let new = new_luks(spec)?;
            let created = Luks::create(passphrase.as_bytes(), &new);
            let (cipher, bytes) = created.map_err(Qcow2Error::from)?;
            let place = layout.place_header(bytes.len() as u64)?;
            storage.write_at(place.offset, &bytes)?;
            *header = Some(place);
            Ok(Crypt::luks(cipher))
        }
    }
}

/// A qcow2 image that is being made.
pub(crate) struct Qcow2Sink {
    storage: Arc<dyn StorageMut>,
    /// Where guest data goes: the same storage, unless the image has a data file.
    data: Arc<dyn StorageMut>,
    plan: Plan,
    crypt: Crypt,
    profile: SinkProfile,
    /// Held only while places are handed out; never while data is written.
    layout: Mutex<Layout>,
}

impl Qcow2Sink {
    pub(crate) fn create(storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Self> {
        let mut plan = Plan::new(spec)?;
        let data = match (&plan.data_file, &spec.data) {
            (None, None) => None,
            (Some(_), Some(data)) => Some(Arc::clone(data)),
            _ => {
                let what = "gave a data file without its name, or a name without the file";
                return Err(Qcow2Error::Contract { what }.into());
            }
        };
        if !storage.is_blank() {
            // Whatever was there must not open as an image while this one is unfinished.
            storage.write_at(0, &vec![0; plan.cluster_size() as usize])?;
            storage.flush()?;
        }
        if let Some(data) = &data {
            if data.fixed_len().is_none() && !data.is_blank() {
                // What an old file loses does not come back: all that is added reads as zeros.
                data.set_len(0)?;
            }
            data.set_len(plan.virtual_size)?;
        }
        let mut layout = Layout::new(Arc::clone(&storage), data.clone(), &plan);
        let crypt = protect(&mut plan, spec, &mut layout, &*storage)?;
        let packing = Packing {
            codec: plan.codec,
            unit: plan.cluster_size(),
        };
        Ok(Self {
            profile: SinkProfile {
                virtual_size: plan.virtual_size,
                grain: 1 << plan.status_bits(),
                placement: Placement::Allocated,
                zeroes: match plan.backing {
                    Some(_) => ZeroPolicy::Covering,
                    None => ZeroPolicy::Implied,
                },
                packing: spec.compress.then_some(packing),
            },
            layout: Mutex::new(layout),
            crypt,
            data: data.unwrap_or_else(|| Arc::clone(&storage)),
            plan,
            storage,
        })
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        // A panic in between is a bug already reported; what it left cannot be worse than no image.
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes and blocks of the source are not good enough as they are: encrypted they are
    /// others, and space that was asked for must be the file's own.
    fn is_particular(&self) -> bool {
        let owns_its_space = matches!(
            self.plan.preallocation,
            Preallocation::Falloc | Preallocation::Full
        );
        owns_its_space || !self.crypt.is_plain()
    }

    /// Clears what is left of the last cluster or subcluster behind `host_end`: the disk may end
    /// inside it. A data file ends with the disk.
    fn clear_behind(&self, host_end: u64) -> Result<()> {
        match self.plan.data_file {
            Some(_) => Ok(()),
            None => clear_rest(&*self.storage, host_end, self.plan.status_bits()),
        }
    }
}

impl Sink for Qcow2Sink {
    fn profile(&self) -> &SinkProfile {
        &self.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        let mut layout = self.layout();
        for demand in demands {
            match demand.packed {
                None => layout.place(demand.range, slots)?,
                Some(len) => slots.push(layout.place_packed(demand.range, len)?),
            }
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        if self.plan.backing.is_none() {
            let what = "covered a backing file that there is not";
            return Err(Qcow2Error::Contract { what }.into());
        }
        self.layout().place_zeroes(range)
    }

    /// All L2 tables stay in memory for that.
    fn take_any_order(&mut self, budget: &Budget) -> Result<bool> {
        let plan = &self.plan;
        // What is encrypted, or stands over something old, does not read as zeros before it is
        // written; and what shows through, is packed or has its place from the start comes in order.
        let is_plain = self.crypt.is_plain() && self.storage.is_blank();
        let is_free = plan.backing.is_none()
            && plan.data_file.is_none()
            && plan.preallocation == Preallocation::Off
            && self.profile.packing.is_none();
        if is_plain && is_free {
            budget.reserve(plan.l1_entries << plan.cluster_bits, "L2 tables")?;
            self.layout().keep_tables();
        }
        Ok(is_plain && is_free)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        if len != slot.packed.unwrap_or(slot.range.len()) {
            let what = "wrote another length than it reserved";
            return Err(Qcow2Error::Contract { what }.into());
        }
        let guest = slot.range.start;
        let whole = self.crypt.filled(data, slot.host, self.plan.status_bits());
        let stored = self.crypt.encrypt(slot.host, guest, &whole)?;
        self.data.write_at(slot.host, &stored)?;
        if slot.packed.is_none() {
            self.clear_behind(slot.host + stored.len() as u64)?;
        }
        Ok(())
    }

    fn slots_in(&self) -> Option<&dyn StorageMut> {
        (!self.is_particular()).then_some(&*self.data)
    }

    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let from = HostRange::new(from, slot.range.len());
        let storage = self.slots_in();
        let done =
            storage.is_some_and(|storage| storage.transfer(source, from, slot.host, transfer));
        if done {
            self.clear_behind(slot.host + slot.range.len())?;
        }
        Ok(done)
    }

    fn write_zeroes(&self, _range: GuestRange) -> Result<()> {
        let what = "wrote zeros where they are implied";
        Err(Qcow2Error::Contract { what }.into())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let layout = self.layout.into_inner();
        let tail = layout.unwrap_or_else(PoisonError::into_inner).finish()?;
        let file_len = tail.file_len;
        self.storage.set_len(file_len)?;
        if self.plan.data_file.is_some() {
            self.data.flush()?;
        }
        self.storage.flush()?;
        self.storage.write_at(0, &self.plan.header(&tail))?;
        self.storage.flush()?;
        Ok(Committed { file_len })
    }
}
