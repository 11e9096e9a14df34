//! Where requests go in an image with tables.
//!
//! A sink takes the disk in order, so there is one for each run of requests that ascend. A unit that
//! gets a new place is filled with what the guest saw there before any request writes into it.

use std::collections::VecDeque;
use std::sync::Arc;

use goldsmith_block::{
    Chain, Demand, Error, ErrorKind, ExtentKind, GuestRange, Layer, Result, Sink, Slot, align_down,
    align_up,
};

use crate::edit::Open;

/// An image that is written to in runs.
pub(super) struct Places {
    open: Open,
    /// What stands behind the image.
    behind: Vec<Arc<dyn Layer>>,
    run: Option<Run>,
}

/// The image, while requests ascend.
struct Run {
    sink: Arc<Box<dyn Sink>>,
    /// The disk as it was.
    before: Chain,
    /// What has a place, and may be written to again.
    pieces: VecDeque<Piece>,
    /// Where on the disk the last of them ends.
    end: u64,
}

/// A part of the disk that stands in one piece.
#[derive(Clone, Copy)]
struct Piece {
    range: GuestRange,
    host: u64,
}

/// Where one request goes.
pub(super) struct Taken {
    sink: Arc<Box<dyn Sink>>,
    pieces: Vec<Piece>,
}

impl Places {
    pub(super) fn new(mut open: Open) -> Result<Self> {
        let editor = open.editor()?;
        let (chain, _) = open.chain(&*editor)?;
        Ok(Self {
            behind: chain.layers()[1..].to_vec(),
            open,
            run: None,
        })
    }

    /// A place for `range`, which starts behind that of the last request of the run.
    pub(super) fn take(&mut self, range: GuestRange) -> Result<Taken> {
        let run = match &mut self.run {
            Some(run) => run,
            none => {
                let mut editor = self.open.editor()?;
                editor.prepare()?;
                let layer = editor.layer();
                let size = layer.info().virtual_size;
                none.insert(Run {
                    before: Chain::new(layer, self.behind.iter().cloned()),
                    sink: Arc::new(editor.into_sink(size)?),
                    pieces: VecDeque::new(),
                    end: 0,
                })
            }
        };
        run.take(range)
    }

    /// Makes what was written part of the image, and durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        let sink = Arc::into_inner(run.sink).ok_or_else(|| {
            Error::new(
                ErrorKind::Bug,
                "a request was under way at the end of its run",
            )
        })?;
        sink.commit().map(|_| ())
    }
}

impl Run {
    fn take(&mut self, range: GuestRange) -> Result<Taken> {
        // Requests start later and later.
        while let Some(first) = self.pieces.front()
            && first.range.end <= range.start
        {
            self.pieces.pop_front();
        }
        let profile = self.sink.profile();
        let (grain, size) = (profile.grain, profile.virtual_size);
        let start = align_down(range.start, grain).max(self.end);
        let end = align_up(range.end, grain).map_or(size, |end| end.min(size));
        if start < end {
            let demand = Demand {
                range: GuestRange::new(start, end),
                packed: None,
            };
            let mut slots = Vec::new();
            self.sink.reserve(&[demand], &mut slots)?;
            for Slot {
                range: part, host, ..
            } in slots
            {
                let piece = Piece { range: part, host };
                self.fill(piece, range, grain)?;
                self.pieces.push_back(piece);
            }
            self.end = end;
        }
        let pieces = self.pieces.iter().filter_map(|piece| piece.part(range));
        Ok(Taken {
            pieces: pieces.collect(),
            sink: Arc::clone(&self.sink),
        })
    }

    /// Gives the units at both ends of `request`, as far as they are in `piece`, what stood there
    /// before, unless it stands there still.
    fn fill(&self, piece: Piece, request: GuestRange, grain: u64) -> Result<()> {
        let before = GuestRange::new(
            piece.range.start,
            request.start.clamp(piece.range.start, piece.range.end),
        );
        let behind = GuestRange::new(
            request.end.clamp(piece.range.start, piece.range.end),
            piece.range.end,
        );
        for rest in [before, behind] {
            if rest.is_empty() {
                continue;
            }
            let Some(rest) = piece.part(rest) else {
                continue;
            };
            if self.stands(rest)? {
                continue;
            }
            debug_assert!(rest.range.len() < grain);
            // Less than a unit.
            let mut bytes = vec![0; rest.range.len() as usize];
            self.before.read_at(rest.range.start, &mut bytes)?;
            self.sink.write(rest.slot(), &bytes)?;
        }
        Ok(())
    }

    /// Whether `piece` has been at its place before.
    fn stands(&self, piece: Piece) -> Result<bool> {
        let GuestRange { start, end } = piece.range;
        let mut at = start;
        while at < end {
            let found = self.before.extent_at(at, end)?;
            let expected = ExtentKind::Data {
                host: Some(piece.host + (at - start)),
            };
            if found.depth > 0 || found.extent.kind != expected {
                return Ok(false);
            }
            at = found.extent.range.end;
        }
        Ok(true)
    }
}

impl Piece {
    /// The part of it that is in `range`.
    fn part(&self, range: GuestRange) -> Option<Self> {
        let start = self.range.start.max(range.start);
        let end = self.range.end.min(range.end);
        (start < end).then(|| Self {
            range: GuestRange::new(start, end),
            host: self.host + (start - self.range.start),
        })
    }

    fn slot(self) -> Slot {
        Slot {
            range: self.range,
            host: self.host,
            packed: None,
        }
    }
}

impl Taken {
    /// Writes `bytes`, as many as the request has.
    pub(super) fn write(self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        for piece in self.pieces {
            // The pieces are the request, all of which is in memory.
            let (part, rest) = bytes.split_at(piece.range.len() as usize);
            self.sink.write(piece.slot(), part)?;
            bytes = rest;
        }
        Ok(())
    }
}
