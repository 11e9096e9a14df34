//! One worker's share of a conversion: a claim at a time, from the source into the sink.

use goldsmith_block::{
    Chain, Demand, GuestRange, Packing, Placement, Result, Sink, Slot, ZeroPolicy, align_down,
    align_up, is_zero,
};
use goldsmith_codec::Packer;

use crate::claim::Claim;
use crate::digest::{Crc32, Mosaic};
use crate::progress::Meter;
use crate::sequencer::Sequencer;

/// What all workers of one conversion share.
pub(crate) struct Shared<'a> {
    pub(crate) source: &'a Chain,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) sequencer: Sequencer,
    pub(crate) meter: Meter<'a>,
    pub(crate) digest: Option<Mosaic>,
    /// Shortest run of zeros that is left out, in bytes; 0 stores every byte.
    pub(crate) sparse: u64,
}

/// A worker and the memory it keeps from claim to claim.
pub(crate) struct Worker<'a> {
    shared: &'a Shared<'a>,
    /// The claim's guest bytes; only those in `runs` mean anything.
    buf: Vec<u8>,
    packer: Option<Packer>,
    /// The packed units of the claim, one after the other.
    packed: Vec<u8>,
    pieces: Vec<Piece>,
    runs: Vec<GuestRange>,
    demands: Vec<Demand>,
    slots: Vec<Slot>,
}

/// Bytes to read from one layer.
struct Piece {
    depth: usize,
    range: GuestRange,
}

impl<'a> Worker<'a> {
    /// A worker for claims of at most `step` bytes.
    pub(crate) fn new(shared: &'a Shared<'a>, step: usize) -> Self {
        let packer = shared
            .sink
            .profile()
            .packing
            .map(|packing| Packer::new(packing.codec));
        Self {
            shared,
            buf: vec![0; step],
            packer,
            packed: Vec::new(),
            pieces: Vec::new(),
            runs: Vec::new(),
            demands: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Takes one claim all the way.
    pub(crate) fn run(&mut self, claim: &Claim) -> Result<()> {
        let profile = self.shared.sink.profile();
        let unit = profile
            .packing
            .map_or(profile.grain, |packing| packing.unit);

        self.find_pieces(claim.range)?;
        self.lay_runs(claim.range, unit);
        self.read(claim.range.start, unit)?;
        self.find_demands(claim.range.start, unit);
        if let Some(packing) = profile.packing {
            self.pack(claim.range.start, packing)?;
        }
        if let Some(mosaic) = &self.shared.digest {
            self.digest(claim, mosaic);
        }
        self.reserve(claim.ticket, profile.placement)?;
        self.write(claim.range.start)?;
        if profile.zeroes == ZeroPolicy::Written {
            self.write_zeroes(claim)?;
        }

        let data = self.pieces.iter().map(|piece| piece.range.len()).sum();
        self.shared
            .meter
            .add(claim.range.end - claim.hole.start, data);
        Ok(())
    }

    /// Lists what must be read of `range`. Neighbours in one layer become one piece, so that the
    /// layer can read them together.
    fn find_pieces(&mut self, range: GuestRange) -> Result<()> {
        self.pieces.clear();
        let source = self.shared.source;
        let end = range.end.min(source.virtual_size());
        let mut at = range.start;
        while at < end {
            let found = source.extent_at(at, end)?;
            let found_range = found.extent.range;
            at = found_range.end;
            if !found.extent.kind.is_data() {
                continue;
            }
            match self.pieces.last_mut() {
                Some(last) if last.depth == found.depth && last.range.end == found_range.start => {
                    last.range.end = found_range.end;
                }
                _ => self.pieces.push(Piece {
                    depth: found.depth,
                    range: found_range,
                }),
            }
        }
        Ok(())
    }

    /// Rounds the pieces to whole units and joins those with too small a gap between them.
    fn lay_runs(&mut self, range: GuestRange, unit: u64) {
        self.runs.clear();
        if self.shared.sparse == 0 {
            self.runs.push(range);
            return;
        }
        for piece in &self.pieces {
            let start = align_down(piece.range.start, unit);
            // The range starts at a multiple of the unit, so only the end of the disk cuts one.
            let end = align_up(piece.range.end, unit).map_or(range.end, |end| end.min(range.end));
            match self.runs.last_mut() {
                Some(last) if start < last.end.saturating_add(self.shared.sparse) => {
                    last.end = end;
                }
                _ => self.runs.push(GuestRange::new(start, end)),
            }
        }
    }

    /// Fills the runs of the buffer: pieces from their layers, everything between them with zeros.
    fn read(&mut self, base: u64, unit: u64) -> Result<()> {
        let mut pieces = self.pieces.iter().peekable();
        for run in &self.runs {
            // A packed unit is always whole, also where the disk ends inside it.
            let end = align_up(run.end, unit).unwrap_or(run.end);
            let mut at = run.start;
            while let Some(piece) = pieces.next_if(|piece| piece.range.end <= run.end) {
                part(&mut self.buf, base, GuestRange::new(at, piece.range.start)).fill(0);
                let buf = part(&mut self.buf, base, piece.range);
                self.shared
                    .source
                    .read_layer(piece.depth, piece.range.start, buf)?;
                at = piece.range.end;
            }
            let end = end.min(base + self.buf.len() as u64);
            part(&mut self.buf, base, GuestRange::new(at, end)).fill(0);
        }
        Ok(())
    }

    /// Looks for zeros while the bytes are hot in the cache, and demands places for the rest.
    fn find_demands(&mut self, base: u64, unit: u64) {
        self.demands.clear();
        let sparse = self.shared.sparse;
        for run in &self.runs {
            if sparse == 0 {
                self.demands.push(Demand {
                    range: *run,
                    packed: None,
                });
                continue;
            }
            let first = self.demands.len();
            let mut start = run.start;
            while start < run.end {
                let range = GuestRange::new(start, (start + unit).min(run.end));
                start = range.end;
                if is_zero(part(&mut self.buf, base, range)) {
                    continue;
                }
                match self.demands[first..].last_mut() {
                    Some(last)
                        if range.start == last.range.end
                            || range.start - last.range.end < sparse =>
                    {
                        last.range.end = range.end;
                    }
                    _ => self.demands.push(Demand {
                        range,
                        packed: None,
                    }),
                }
            }
        }
    }

    /// Packs the demanded units; one that does not become smaller stays as it is.
    fn pack(&mut self, base: u64, packing: Packing) -> Result<()> {
        let Some(packer) = &mut self.packer else {
            return Ok(());
        };
        self.packed.clear();
        let runs = std::mem::take(&mut self.demands);
        for run in runs {
            let mut start = run.range.start;
            while start < run.range.end {
                let whole = GuestRange::new(start, start + packing.unit);
                let range = GuestRange::new(start, whole.end.min(run.range.end));
                let packed = packer.pack(part(&mut self.buf, base, whole), &mut self.packed)?;
                let packed = packed.map(|len| len as u64);
                self.demands.push(Demand { range, packed });
                start = range.end;
            }
        }
        Ok(())
    }

    /// Adds the checksum of the claim and of the hole before it.
    fn digest(&mut self, claim: &Claim, mosaic: &Mosaic) {
        let end = self.shared.source.virtual_size();
        let zeros = |from: u64, to: u64| Crc32::of_zeros(to.min(end).saturating_sub(from));
        let mut crc = Crc32::default();
        let mut at = claim.hole.start;
        for demand in &self.demands {
            // A sink may be larger than the source; those bytes are not the source's.
            let range = GuestRange::new(demand.range.start.min(end), demand.range.end.min(end));
            crc = crc.then(zeros(at, range.start));
            crc = crc.then(Crc32::of(part(&mut self.buf, claim.range.start, range)));
            at = range.end;
        }
        crc = crc.then(zeros(at, claim.range.end));
        mosaic.insert(
            GuestRange::new(claim.hole.start, claim.hole.start + crc.bytes()),
            crc,
        );
    }

    fn reserve(&mut self, ticket: u64, placement: Placement) -> Result<()> {
        self.slots.clear();
        let (sink, sequencer) = (self.shared.sink, &self.shared.sequencer);
        if self.demands.is_empty() {
            sequencer.pass(ticket);
            return Ok(());
        }
        match placement {
            Placement::Identity => sink.reserve(&self.demands, &mut self.slots),
            Placement::Allocated => sequencer
                .turn(ticket, || sink.reserve(&self.demands, &mut self.slots))
                // Somebody else failed and says why; there is nothing left to do here.
                .unwrap_or(Ok(())),
        }
    }

    fn write(&mut self, base: u64) -> Result<()> {
        let mut packed = &self.packed[..];
        for slot in self.slots.drain(..) {
            let data = match slot.packed {
                Some(len) => {
                    // Slots come in the order of the demands, and so do the packed units.
                    let (unit, rest) = packed.split_at(len as usize);
                    packed = rest;
                    unit
                }
                None => part(&mut self.buf, base, slot.range),
            };
            self.shared.sink.write(slot, data)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, claim: &Claim) -> Result<()> {
        let mut at = claim.hole.start;
        for demand in &self.demands {
            if at < demand.range.start {
                self.shared
                    .sink
                    .write_zeroes(GuestRange::new(at, demand.range.start))?;
            }
            at = demand.range.end;
        }
        if at < claim.range.end {
            self.shared
                .sink
                .write_zeroes(GuestRange::new(at, claim.range.end))?;
        }
        Ok(())
    }
}

/// The bytes of `range` in a buffer whose first byte is guest byte `base`.
fn part(buf: &mut [u8], base: u64, range: GuestRange) -> &mut [u8] {
    // Ranges lie inside one claim, whose length fits in memory.
    &mut buf[(range.start - base) as usize..(range.end - base) as usize]
}
