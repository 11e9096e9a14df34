//! One worker's share of a conversion: a claim at a time, from the source into the sink.

use goldsmith_block::{
    Buffer, Demand, Error, ErrorKind, GuestRange, Packing, Placement, Result, Sink, Slot, Transfer,
    ZeroPolicy, align_up, is_zero,
};

use crate::claim::{Claim, Origin};
use crate::cover::Cover;
use crate::digest::{Digests, Piece};
use crate::glimpse::Glimpses;
use crate::layout::{Layout, Run, join};
use crate::packed::Packed;
use crate::progress::Meter;
use crate::rate::Bucket;
use crate::sequencer::Sequencer;
use crate::source::Source;

/// What all workers of one conversion share.
pub(crate) struct Shared<'a> {
    pub(crate) source: &'a Source<'a>,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) sequencer: Sequencer,
    pub(crate) meter: Meter<'a>,
    pub(crate) digests: Digests,
    /// Shortest run of zeros that is left out, in bytes; 0 stores every byte.
    pub(crate) sparse: u64,
    /// What keeps the work slow, if anything shall.
    pub(crate) bucket: Option<Bucket<'a>>,
}

impl Shared<'_> {
    /// Waits until `bytes` may be written.
    fn wait(&self, bytes: u64) -> Result<()> {
        self.bucket
            .as_ref()
            .map_or(Ok(()), |bucket| bucket.wait(bytes))
    }
}

/// A worker and the memory it keeps from claim to claim.
pub(crate) struct Worker<'a> {
    shared: &'a Shared<'a>,
    /// The claim's guest bytes; only those in runs without an origin mean anything.
    buf: Buffer,
    /// The packed units of the claim, if the target is to have such.
    packed: Option<Packed>,
    layout: Layout,
    /// What of the claim matters.
    parts: Vec<GuestRange>,
    demands: Vec<Demand>,
    slots: Vec<Slot>,
    /// The disk behind the target, if there is one to compare with.
    cover: Option<Cover<'a>>,
    /// Where the target must be told of zeros; ascending, between the demands.
    zeroes: Vec<GuestRange>,
}

impl<'a> Worker<'a> {
    /// A worker for claims of at most `step` bytes that are not shared.
    pub(crate) fn new(shared: &'a Shared<'a>, step: usize) -> Self {
        let packing = shared.sink.profile().packing;
        let behind = shared.source.behind.filter(|_| !shared.source.unread);
        Self {
            shared,
            buf: Buffer::new(step),
            packed: packing.map(Packed::new),
            layout: Layout::default(),
            parts: Vec::new(),
            demands: Vec::new(),
            slots: Vec::new(),
            cover: behind.map(|behind| Cover::new(behind, step)),
            zeroes: Vec::new(),
        }
    }

    /// Takes one claim all the way.
    pub(crate) fn run(&mut self, claim: &Claim) -> Result<()> {
        self.zeroes.clear();
        let profile = self.shared.sink.profile();
        let mut data = 0;
        match claim.origin {
            Some(origin) => self.share(claim, origin)?,
            None => {
                let Shared { source, sparse, .. } = *self.shared;
                source.find_parts(claim.range, &mut self.parts)?;
                self.layout.find(source, claim.range, &self.parts, sparse)?;
                self.read(claim.range.start)?;
                self.find_demands(claim.range.start)?;
                if !self.shared.digests.is_empty() {
                    self.digest(claim);
                }
                if let Some(cover) = &mut self.cover {
                    let unit = self.shared.source.unit;
                    let parts = &self.parts;
                    let (demands, zeroes) = (&mut self.demands, &mut self.zeroes);
                    cover.compare(claim.range, parts, unit, demands, zeroes, &self.buf)?;
                } else if source.unread {
                    let parts = std::mem::take(&mut self.parts);
                    parts.iter().for_each(|part| self.find_gaps(*part));
                    self.parts = parts;
                }
                if let Some(packing) = profile.packing {
                    self.pack(claim.range.start, packing)?;
                }
                self.reserve(claim.ticket, profile.placement)?;
                self.write(claim.range.start)?;
                let pieces = self.layout.pieces.iter();
                data = pieces.map(|piece| piece.range.len()).sum();
            }
        }
        if profile.zeroes == ZeroPolicy::Written {
            self.zeroes.clear();
            self.find_gaps(GuestRange::new(claim.hole.start, claim.range.end));
            for range in &self.zeroes {
                self.shared.sink.write_zeroes(*range)?;
            }
        }
        self.shared
            .meter
            .add(claim.range.end - claim.hole.start, data);
        Ok(())
    }

    /// Lets the target share all of a claim.
    fn share(&mut self, claim: &Claim, origin: Origin) -> Result<()> {
        self.demands.clear();
        self.demands.push(Demand {
            range: claim.range,
            packed: None,
        });
        self.reserve(claim.ticket, self.shared.sink.profile().placement)?;
        for slot in std::mem::take(&mut self.slots) {
            let offset = slot.range.start - claim.range.start;
            if !self.transfer(&slot, origin, offset, Transfer::Share)? {
                self.copy(&slot)?;
            }
        }
        Ok(())
    }

    /// Fills the buffer: pieces from their layers, everything between them with zeros. What the
    /// kernel is to copy is left out.
    fn read(&mut self, base: u64) -> Result<()> {
        if let Some(packed) = &mut self.packed {
            packed.clear();
        }
        for run in &self.layout.runs {
            if run.origin.is_some() {
                continue;
            }
            let mut at = run.range.start;
            for piece in &self.layout.pieces[run.pieces.clone()] {
                part(&mut self.buf, base, GuestRange::new(at, piece.range.start)).fill(0);
                let buf = part(&mut self.buf, base, piece.range);
                let chain = self.shared.source.chain;
                match &mut self.packed {
                    Some(packed) => packed.read(chain, piece, buf)?,
                    None => chain.read_layer(piece.depth, piece.range.start, buf)?,
                }
                at = piece.range.end;
            }
            // A packed unit is always whole, also where the disk ends inside it.
            let end = align_up(run.range.end, self.shared.source.unit).unwrap_or(run.range.end);
            let end = end.min(base + self.buf.len() as u64);
            part(&mut self.buf, base, GuestRange::new(at, end)).fill(0);
        }
        Ok(())
    }

    /// Looks for zeros while the bytes are hot in the cache, and demands places for the rest.
    fn find_demands(&mut self, base: u64) -> Result<()> {
        self.demands.clear();
        let sparse = self.shared.sparse;
        for run in &self.layout.runs {
            if sparse == 0 {
                self.demands.push(Demand {
                    range: run.range,
                    packed: None,
                });
                continue;
            }
            let first = self.demands.len();
            let mut start = run.range.start;
            let mut glimpses = Glimpses::new(start);
            while start < run.range.end {
                let range =
                    GuestRange::new(start, (start + self.shared.source.unit).min(run.range.end));
                start = range.end;
                let empty = match run.origin {
                    None => is_zero(part(&mut self.buf, base, range)),
                    Some(origin) => {
                        let source = self.shared.source.chain;
                        let rest = GuestRange::new(range.start, run.range.end);
                        let rest = part(&mut self.buf, base, rest);
                        let read = |at, buf: &mut [u8]| source.read_layer(origin.depth, at, buf);
                        glimpses.is_empty(range, rest, read)?
                    }
                };
                if empty {
                    continue;
                }
                let last = self.demands[first..].last_mut();
                if !last.is_some_and(|last| join(&mut last.range, range, sparse)) {
                    self.demands.push(Demand {
                        range,
                        packed: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// Packs the demanded units; one that does not become smaller stays as it is.
    fn pack(&mut self, base: u64, packing: Packing) -> Result<()> {
        let Some(packed) = &mut self.packed else {
            return Ok(());
        };
        let runs = std::mem::take(&mut self.demands);
        for run in runs {
            let mut start = run.range.start;
            while start < run.range.end {
                let whole = GuestRange::new(start, start + packing.unit);
                let range = GuestRange::new(start, whole.end.min(run.range.end));
                let packed = packed.add(start, part(&mut self.buf, base, whole))?;
                self.demands.push(Demand { range, packed });
                start = range.end;
            }
        }
        Ok(())
    }

    /// Adds the claim and the hole before it to the digests.
    fn digest(&mut self, claim: &Claim) {
        let base = claim.range.start;
        let mut at = base;
        for run in &self.layout.runs {
            part(&mut self.buf, base, GuestRange::new(at, run.range.start)).fill(0);
            at = run.range.end;
        }
        part(&mut self.buf, base, GuestRange::new(at, claim.range.end)).fill(0);
        let piece = Piece {
            at: claim.hole.start,
            zeros: claim.hole.len(),
            bytes: part(&mut self.buf, base, claim.range),
        };
        self.shared.digests.add(claim.ticket, &piece);
    }

    fn reserve(&mut self, ticket: u64, placement: Placement) -> Result<()> {
        self.slots.clear();
        let (sink, sequencer) = (self.shared.sink, &self.shared.sequencer);
        let (demands, slots) = (&self.demands, &mut self.slots);
        let zeroes = &self.zeroes;
        if demands.is_empty() && zeroes.is_empty() {
            sequencer.pass(ticket);
            return Ok(());
        }
        match placement {
            Placement::Identity => reserve(sink, demands, zeroes, slots),
            Placement::Allocated => sequencer
                .turn(ticket, || reserve(sink, demands, zeroes, slots))
                // Somebody else failed and says why, but this claim is not done either.
                .unwrap_or_else(|| Err(Error::new(ErrorKind::Cancelled, "another worker failed"))),
        }
    }

    fn write(&mut self, base: u64) -> Result<()> {
        let mut packed = 0;
        let mut run = 0;
        for slot in std::mem::take(&mut self.slots) {
            if let Some(len) = slot.packed {
                // Slots come in the order of the demands, and so do the packed units.
                let unit = packed..packed + len as usize;
                packed = unit.end;
                let bytes = self.packed.as_ref().map_or(&[][..], Packed::bytes);
                self.shared.wait(len)?;
                self.shared.sink.write(slot, &bytes[unit])?;
                continue;
            }
            // Demands lie in runs, slots in demands, and all ascend.
            while self.layout.runs[run].range.end <= slot.range.start {
                run += 1;
            }
            match self.layout.runs[run] {
                Run {
                    origin: Some(origin),
                    range,
                    ..
                } => {
                    let offset = slot.range.start - range.start;
                    self.shared.wait(slot.range.len())?;
                    if !self.transfer(&slot, origin, offset, Transfer::Copy)? {
                        self.copy(&slot)?;
                    }
                }
                _ => {
                    self.shared.wait(slot.range.len())?;
                    let data = part(&mut self.buf, base, slot.range);
                    self.shared.sink.write(slot, data)?;
                }
            }
        }
        Ok(())
    }

    /// Has `slot` filled by the kernel with what stands `offset` bytes behind `origin`.
    fn transfer(
        &self,
        slot: &Slot,
        origin: Origin,
        offset: u64,
        transfer: Transfer,
    ) -> Result<bool> {
        let layer = &self.shared.source.chain.layers()[origin.depth];
        let (storage, from) = (&**layer.data_storage(), origin.host + offset);
        self.shared.sink.transfer(slot, storage, from, transfer)
    }

    /// Fills `slot` by reading and writing, where the kernel does not do it. Holes stay what they
    /// are: bytes are only transferred to where nothing stands.
    fn copy(&mut self, slot: &Slot) -> Result<()> {
        let chain = self.shared.source.chain;
        let mut at = slot.range.start;
        while at < slot.range.end {
            let end = slot.range.end.min(at + self.buf.len() as u64);
            let extent = chain.extent_at(at, end)?.extent;
            if extent.kind.is_data() {
                let part = Slot {
                    range: extent.range,
                    host: slot.host + (at - slot.range.start),
                    packed: None,
                };
                // At most as long as the buffer.
                let buf = &mut self.buf[..extent.range.len() as usize];
                chain.read_at(at, buf)?;
                self.shared.sink.write(part, buf)?;
            }
            at = extent.range.end;
        }
        Ok(())
    }

    /// Adds to the zeros what of `range` no demand is for.
    fn find_gaps(&mut self, range: GuestRange) {
        let mut at = range.start;
        let after = |demand: &Demand| demand.range.end <= range.start;
        let first = self.demands.partition_point(after);
        for demand in &self.demands[first..] {
            if demand.range.start >= range.end {
                break;
            }
            if at < demand.range.start {
                self.zeroes.push(GuestRange::new(at, demand.range.start));
            }
            at = demand.range.end;
        }
        if at < range.end {
            self.zeroes.push(GuestRange::new(at, range.end));
        }
    }
}

/// Asks `sink` for places and for zeros, all in guest order.
fn reserve(
    sink: &dyn Sink,
    mut demands: &[Demand],
    zeroes: &[GuestRange],
    slots: &mut Vec<Slot>,
) -> Result<()> {
    for range in zeroes {
        let before = demands.partition_point(|demand| demand.range.start < range.start);
        let (now, rest) = demands.split_at(before);
        if !now.is_empty() {
            sink.reserve(now, slots)?;
        }
        sink.reserve_zeroes(*range)?;
        demands = rest;
    }
    if demands.is_empty() {
        return Ok(());
    }
    sink.reserve(demands, slots)
}

/// The bytes of `range` in a buffer whose first byte is guest byte `base`.
fn part(buf: &mut [u8], base: u64, range: GuestRange) -> &mut [u8] {
    // Ranges lie inside one claim, whose length fits in memory.
    &mut buf[(range.start - base) as usize..(range.end - base) as usize]
}
