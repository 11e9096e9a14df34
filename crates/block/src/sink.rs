//! Where a conversion's bytes go: allocations are ordered, writes are not.

use crate::{
    Budget, Codec, Error, ErrorKind, GuestRange, HostRange, Result, Storage, StorageMut, Transfer,
};

/// An image that is being written from nothing.
///
/// The engine walks the disk once, in guest order. For each run of data it first
/// [`reserve`](Self::reserve)s places, calls in guest order and one at a time, then
/// [`write`](Self::write)s them from any thread in any order. When every slot is written it
/// [`commit`](Self::commit)s: only then does a header make the file an image. Because places are
/// handed out in guest order, the same disk gives the same file for any number of threads.
pub trait Sink: Send + Sync {
    /// What this sink wants to be given.
    fn profile(&self) -> &SinkProfile;

    /// Hands out a place for each demand.
    ///
    /// Demands ascend, do not overlap, and start where or after all earlier ones ended. The slots
    /// pushed to `slots` cover the demands exactly and in order; one unpacked demand may become
    /// several slots, because a slot is contiguous in the file.
    ///
    /// # Errors
    /// `Io` if finished metadata cannot be written; `Limit` if the format cannot hold more.
    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()>;

    /// Makes `range` read as zeros although something else stands behind the image; called, in
    /// guest order with [`reserve`](Self::reserve), only under [`ZeroPolicy::Covering`].
    ///
    /// `range` starts at a multiple of the grain and ends at one or at the end of the disk.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        let text = format!("this sink covers nothing, so it has no zeros for {range}");
        Err(Error::new(ErrorKind::Bug, text))
    }

    /// Makes the sink take a disk that does not come in guest order: demands in any order, and again
    /// for what has a place already, which it keeps; and writes of any part of a slot, whose other
    /// parts read as zeros as long as nobody writes them. To be called before the first demand.
    ///
    /// False if the sink does not do that; nothing has changed then. The file depends on the order.
    ///
    /// # Errors
    /// `Limit` if the tables that stay open until the end are over `budget`.
    fn take_any_order(&mut self, budget: &Budget) -> Result<bool> {
        let _ = budget;
        Ok(false)
    }

    /// Stores `data` in `slot`: the guest bytes of its range, or their packed form.
    ///
    /// Where a [`transfer`](Self::transfer) was refused the slot may be a part of a reserved one,
    /// and parts that hold zeros may be left out.
    ///
    /// # Errors
    /// `Io` if they cannot be written.
    fn write(&self, slot: Slot, data: &[u8]) -> Result<()>;

    /// Where slots stand, if bytes may come there by [`transfer`](Self::transfer) too; `None` if
    /// all must be written.
    fn slots_in(&self) -> Option<&dyn StorageMut> {
        None
    }

    /// Stores in `slot`, which is not packed, the bytes that `source` has from offset `from`,
    /// without this process seeing them.
    ///
    /// False if that cannot be; the slot is still to be [`write`](Self::write)n then.
    ///
    /// # Errors
    /// `Io` if what belongs around the bytes cannot be written.
    fn transfer(
        &self,
        slot: &Slot,
        source: &dyn Storage,
        from: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let from = HostRange::new(from, slot.range.len());
        let storage = self.slots_in();
        Ok(storage.is_some_and(|storage| storage.transfer(source, from, slot.host, transfer)))
    }

    /// Makes `range` read as zeros; called, in any order, only under [`ZeroPolicy::Written`].
    ///
    /// # Errors
    /// `Io` if zeros cannot be written.
    fn write_zeroes(&self, range: GuestRange) -> Result<()>;

    /// Writes what is left of the tables, makes everything durable, then writes the header and
    /// makes that durable too.
    ///
    /// Dropping a sink instead leaves bytes that no reader takes for a complete image.
    ///
    /// # Errors
    /// `Io` if any of it fails; the target must then be thrown away.
    fn commit(self: Box<Self>) -> Result<Committed>;
}

/// What a [`Sink`] wants to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkProfile {
    /// Size of the disk being written, in bytes.
    pub virtual_size: u64,
    /// Demands start at multiples of this power of two, and end at multiples of it or at
    /// `virtual_size`. In bytes.
    pub grain: u64,
    /// Whether the order of `reserve` matters.
    pub placement: Placement,
    /// Who sees to the zeros.
    pub zeroes: ZeroPolicy,
    /// How units are to be packed, where the image is a compressed one.
    pub packing: Option<Packing>,
}

/// Whether a place in the file depends on what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Each guest byte has its place from the start: `reserve` may be called in any order, by
    /// many threads at once.
    Identity,
    /// Places are handed out as they are asked for: `reserve` is called in guest order.
    Allocated,
}

/// Who sees to the ranges that hold only zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPolicy {
    /// What is not written reads as zeros.
    Implied,
    /// What is not written holds anything, so zeros go through [`Sink::write_zeroes`].
    Written,
    /// What is not written shows what stands behind the image, so zeros where that holds something
    /// else go through [`Sink::reserve_zeroes`].
    Covering,
}

/// How the engine packs units before it asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The codec.
    pub codec: Codec,
    /// Bytes of guest data per packed unit; the disk's last unit is filled up with zeros.
    pub unit: u64,
}

/// A run of guest bytes that needs a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The guest bytes: whole grains, or one unit if it is packed.
    pub range: GuestRange,
    /// Length of the packed unit in bytes; `None` for bytes stored as they are.
    pub packed: Option<u64>,
}

impl Demand {
    /// The place of an unpacked demand where each guest byte has its own: what a sink of
    /// [`Placement::Identity`] hands out.
    pub fn in_place(&self) -> Slot {
        let Self { range, packed } = *self;
        Slot {
            range,
            host: range.start,
            packed,
        }
    }
}

/// A place in the file, to be written once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// The guest bytes that go there.
    pub range: GuestRange,
    /// Byte offset in the file.
    pub host: u64,
    /// Length of the packed unit in bytes; `None` for bytes stored as they are.
    pub packed: Option<u64>,
}

/// What a finished image turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Length of the image file in bytes.
    pub file_len: u64,
}
