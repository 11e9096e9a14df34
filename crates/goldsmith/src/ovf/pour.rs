//! Reading in one pass, into a target that takes a disk in any order: nothing is stored but the target.
//!
//! ```text
//! 0.vhd   head, tables │ bitmap, block │ bitmap, block │ ... footer     what it says goes to its place
//! 1.vhd   head, tables │ bitmap, block │ ...             ... footer     where 0.vhd said nothing
//! n.vhd   ...                                                           where nobody did
//! ```
//!
//! What a VHD says of itself at its end decides, and comes last. So its beginning is believed until
//! then, and if the end says otherwise the target is worth nothing: that, and all else that one pass
//! cannot do, is [`None`], and whoever asked has the VHDs [unpacked](super::unpack).
//!
//! One pass it is where the members are in their order, the child first; the tables of each begin
//! within its first 32 MiB, and say what its footer says; no two of its blocks share bytes of the
//! file; and what is known of which parts of the disk have come fits in memory (see [`Said`]).
//!
//! What is refused, and as what, does not depend on the way: when all has gone by, the VHDs are opened
//! by what was kept of them, which is what is looked at then, too.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Chain, Error, ErrorKind, GuestRange, Limits, Result, Storage, StorageId,
};
use goldsmith_engine::{Outcome, Pour, Said};
use goldsmith_storage::{FileStorage, share_bytes};
use goldsmith_vhd::{FileBlock, FileOrder};

use super::OvfLayer;
use super::passing::Passing;
use super::skim::Skimmed;
use super::unpack::unpack;
use super::walk::{Member, walk};

/// Bytes that are written together.
const PIECE: u64 = 256 << 10;
/// Bytes that the footer of a fixed VHD takes.
const FOOTER: u64 = 512;

/// A container, of which nothing is known yet.
pub(crate) struct Container {
    storage: Arc<dyn Storage>,
    limits: Limits,
}

/// Why a walk through it was broken off.
enum Stop {
    /// It takes more than one pass.
    Unfit,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Container {
    pub(crate) fn new(storage: Arc<dyn Storage>, limits: &Limits) -> Self {
        Self {
            storage,
            limits: limits.clone(),
        }
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> &str {
        self.storage.name()
    }

    /// Whether its bytes are those of the file `id`.
    pub(crate) fn is_in(&self, id: Option<StorageId>) -> bool {
        id.is_some_and(|id| share_bytes(self.storage.id(), id))
    }

    /// Size of the disk in bytes, by the beginning of its first member; `None` if that is not the
    /// topmost VHD, or does not tell.
    ///
    /// # Cost
    /// The beginning of the file is read and unpacked, up to the tables of that VHD.
    pub(crate) fn virtual_size(&self) -> Option<u64> {
        let mut found = None;
        // It always ends with the first member.
        let _: Result<Vec<()>> = walk(&*self.storage, None, |member| {
            let budget = Budget::new(&self.limits);
            member.admit(&budget)?;
            if member.number == 0 {
                let begun = Skimmed::begin(member, &budget)?;
                found = guess(&begun, &budget)?.map(|order| order.virtual_size());
            }
            Err(Error::usage("the rest can wait"))
        });
        found
    }

    /// The disk, its VHDs unpacked into `scratch`, which is empty.
    ///
    /// # Errors
    /// Those of [`Format::open`](goldsmith_block::Format::open).
    pub(crate) fn unpack(&self, scratch: FileStorage) -> Result<Chain> {
        let budget = Budget::new(&self.limits);
        let members = unpack(&*self.storage, &budget, scratch)?;
        let layer = OvfLayer::open(Arc::clone(&self.storage), members, &budget)?;
        Ok(Chain::new(Arc::new(layer), []))
    }

    /// Writes the disk into `pour`, which was made for one of this [size](Self::virtual_size) at least,
    /// and commits it. Gives what came of it, and the disk, which can only be asked about itself;
    /// `None` if it takes more than one pass, and what was written is worth nothing.
    ///
    /// # Errors
    /// Those of [`Format::open`](goldsmith_block::Format::open) and of the layer that it gives; those
    /// of the sink; `Cancelled`.
    ///
    /// # Cost
    /// All of the file is read and unpacked, on one thread. Memory: as much as the limits allow for
    /// the tables of the VHDs, twice, and for what is known of the disk.
    pub(crate) fn pour(&self, pour: Pour<'_>, size: u64) -> Result<Option<(Outcome, Chain)>> {
        let (budget, own) = (Budget::new(&self.limits), Budget::new(&self.limits));
        let mut filling = Filling {
            pour,
            budget: &own,
            size,
            said: None,
            shown: size,
            next: 0,
            phase: Phase::Filling,
            failure: None,
            members: Vec::new(),
        };
        let mut unfit = false;
        let walked: Result<Vec<()>> = walk(&*self.storage, None, |member| {
            member.admit(&budget)?;
            filling.take(member).map_err(|stop| match stop {
                Stop::Failed(error) => error,
                Stop::Unfit => {
                    unfit = true;
                    Error::usage("the container takes more than one pass")
                }
            })
        });
        if unfit {
            return Ok(None);
        }
        walked?;
        let Filling {
            pour,
            phase,
            failure,
            members,
            ..
        } = filling;
        let storages = members.iter().map(|member| Arc::clone(member) as _);
        let opened = OvfLayer::open(Arc::clone(&self.storage), storages.collect(), &budget);
        if members.iter().any(|member| !member.missed().is_empty()) {
            return Ok(None);
        }
        let layer = opened?;
        if phase == Phase::Blind {
            return Ok(None);
        }
        if let Some((_, error)) = failure {
            return Err(error);
        }
        let disk = Chain::new(Arc::new(layer), []);
        Ok(Some((pour.finish()?, disk)))
    }
}

/// The order of the blocks in the VHD of which `begun` is the beginning, if that tells; `None` if it has
/// none.
fn guess(begun: &Skimmed, budget: &Budget) -> Result<Option<FileOrder>> {
    match begun.has_tables() {
        true => order(begun, budget).1,
        // Its footer comes last. Most are as long as their disks and that.
        false => Ok(begun.len().checked_sub(FOOTER).map(FileOrder::fixed)),
    }
}

/// The order of the blocks in `skimmed`, and whether it takes more to tell.
fn order(skimmed: &Skimmed, budget: &Budget) -> (bool, Result<Option<FileOrder>>) {
    let (attempt, order) = skimmed.order(budget);
    (!attempt.missed().is_empty(), order)
}

/// A disk on its way into the target.
struct Filling<'a> {
    pour: Pour<'a>,
    /// For what is kept.
    budget: &'a Budget,
    /// That of the disk, in bytes.
    size: u64,
    /// What has come of it, once that matters.
    said: Option<Said<'a>>,
    /// Bytes from its beginning that all members so far reach: where one ends, nothing shows through.
    shown: u64,
    /// The number that the next member must have.
    next: u32,
    phase: Phase,
    /// The first byte of the disk that cannot be had, and why.
    failure: Option<(u64, Error)>,
    members: Vec<Arc<Skimmed>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    /// A member without a parent has come: the disk is whole.
    Full,
    /// A member could not be read, so nobody knows what belongs where. Why, will be told in the end.
    Blind,
}

impl Filling<'_> {
    /// Writes what `member` says and nobody before it did; keeps what it takes to open it.
    fn take(&mut self, member: &mut Member<'_>) -> Result<(), Stop> {
        if member.number != self.next {
            return Err(Stop::Unfit);
        }
        self.next += 1;
        let begun = Skimmed::begin(member, self.budget).map_err(over_budget)?;
        let believed = guess(&begun, self.budget);
        if let Ok(None) = believed {
            return Err(Stop::Unfit);
        }
        let believed = believed.ok().flatten();
        let passing = begun.pass(member, &[], self.budget);
        let mut passing = passing.map_err(over_budget)?;
        if let (Some(order), Phase::Filling) = (&believed, self.phase) {
            if self.members.is_empty() && order.virtual_size() != self.size {
                return Err(Stop::Unfit);
            }
            self.fill(order, &mut passing, begun.name())?;
            self.shown = self.shown.min(order.virtual_size());
            if !order.is_differencing() {
                self.phase = Phase::Full;
            }
        }
        self.pass_to(&mut passing, begun.len())?;
        let skimmed = begun.with(passing.finish()?);
        let (is_missing, found) = order(&skimmed, self.budget);
        match found {
            _ if is_missing => return Err(Stop::Unfit),
            Ok(found) if found == believed => {}
            Ok(_) => return Err(Stop::Unfit),
            Err(_) => self.phase = Phase::Blind,
        }
        self.members.push(Arc::new(skimmed));
        Ok(())
    }

    /// Writes what the VHD of this order and `name` says and nobody before it did.
    fn fill(
        &mut self,
        order: &FileOrder,
        passing: &mut Passing<'_, '_>,
        name: &str,
    ) -> Result<(), Stop> {
        let all = self.shown_of(GuestRange::new(0, order.virtual_size()));
        let refused = order.refusal().map(|error| (all, error.at_guest(all)));
        let broken = order
            .broken()
            .map(|(guest, error)| (self.shown_of(guest), error));
        for (guest, error) in refused.into_iter().chain(broken) {
            if let Some(first) = unsaid(self.said.as_ref(), guest).next() {
                let error = error.in_file(name);
                if self
                    .failure
                    .as_ref()
                    .is_none_or(|(at, _)| first.start < *at)
                {
                    self.failure = Some((first.start, error));
                }
                // The ranges ascend.
                break;
            }
        }
        if order.refusal().is_some() {
            return Ok(());
        }
        if order.is_differencing() && self.said.is_none() {
            let said = Said::new(self.size, self.budget);
            self.said = Some(said.map_err(over_budget)?);
        }
        for block in order.blocks() {
            let guest = self.shown_of(block.guest);
            if unsaid(self.said.as_ref(), guest).next().is_none() {
                continue;
            }
            self.pass_to(passing, block.bitmap.offset)?;
            // At most 64 KiB.
            let mut bitmap = vec![0; block.bitmap.len as usize];
            passing.read(&mut bitmap)?;
            for run in order.runs(block, &bitmap) {
                let run = self.shown_of(run);
                self.fill_run(block, run, passing)?;
                if order.is_differencing()
                    && let Some(said) = &mut self.said
                {
                    said.say(run).map_err(over_budget)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what nobody has said of `run`, data of `block`, if there is going to be a disk.
    fn fill_run(
        &mut self,
        block: FileBlock,
        run: GuestRange,
        passing: &mut Passing<'_, '_>,
    ) -> Result<(), Stop> {
        if self.failure.is_some() {
            return Ok(());
        }
        let mut buf = vec![0; PIECE.min(run.len()) as usize];
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min(start + PIECE);
            // Few enough to be kept: what is put must not be looked for meanwhile.
            let parts: Vec<_> = unsaid(self.said.as_ref(), GuestRange::new(start, end)).collect();
            for part in parts {
                self.pass_to(passing, block.data() + (part.start - block.guest.start))?;
                // At most a piece.
                let buf = &mut buf[..part.len() as usize];
                passing.read(buf)?;
                self.pour.put(part.start, buf)?;
                self.tell(passing)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Lets all bytes before `offset` go by.
    fn pass_to(&mut self, passing: &mut Passing<'_, '_>, offset: u64) -> Result<()> {
        while !passing.pass_on(offset)? {
            self.tell(passing)?;
        }
        Ok(())
    }

    fn tell(&mut self, passing: &Passing<'_, '_>) -> Result<()> {
        let (part, whole) = passing.unpacked();
        self.pour.advance(part, whole)
    }

    /// What shows of `range`.
    fn shown_of(&self, range: GuestRange) -> GuestRange {
        GuestRange::new(range.start.min(self.shown), range.end.min(self.shown))
    }
}

/// The parts of `range` that nobody has said.
fn unsaid<'s>(
    said: Option<&'s Said<'_>>,
    range: GuestRange,
) -> impl Iterator<Item = GuestRange> + 's {
    let all = (said.is_none() && !range.is_empty()).then_some(range);
    let parts = said.map(|said| said.unsaid(range));
    all.into_iter().chain(parts.into_iter().flatten())
}

/// Where what this pass keeps is over the limits, unpacking need not be.
fn over_budget(error: Error) -> Stop {
    match error.kind() {
        ErrorKind::Limit => Stop::Unfit,
        _ => Stop::Failed(error),
    }
}

#[cfg(test)]
mod tests;
