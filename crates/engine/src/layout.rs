//! What of a claim must be read, where it stands, and what of it nobody here has to see.

use std::ops::Range;

use goldsmith_block::{Chain, ExtentKind, GuestRange, Result, align_down, align_up};

use crate::claim::Origin;
use crate::source::Source;

/// Bytes to read from one layer.
pub(crate) struct Piece {
    pub(crate) depth: usize,
    pub(crate) range: GuestRange,
    /// Where the first byte stands in the layer's data storage, if all stand there in a row.
    host: Option<u64>,
}

/// Whole units with data in them.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) range: GuestRange,
    /// The pieces in it.
    pub(crate) pieces: Range<usize>,
    /// Where the run stands, if the kernel is to copy it.
    pub(crate) origin: Option<Origin>,
}

/// The data of one claim; memory that is used again for the next.
#[derive(Default)]
pub(crate) struct Layout {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) runs: Vec<Run>,
}

impl Layout {
    /// Finds the data of `source` in those `parts` of `range` that matter; both start at starts of
    /// units. Gaps of less than `sparse` bytes are data too, and if that is 0 everything is.
    pub(crate) fn find(
        &mut self,
        source: &Source<'_>,
        range: GuestRange,
        parts: &[GuestRange],
        sparse: u64,
    ) -> Result<()> {
        self.pieces.clear();
        for part in parts {
            self.find_pieces(source.chain, *part)?;
        }
        self.runs.clear();
        if sparse == 0 {
            self.runs.push(Run {
                range,
                pieces: 0..self.pieces.len(),
                origin: None,
            });
            return Ok(());
        }
        self.lay_runs(source, range, sparse);
        Ok(())
    }

    /// Adds the data in `range`. Neighbours in one layer become one piece, so that the layer can read
    /// them together.
    fn find_pieces(&mut self, source: &Chain, range: GuestRange) -> Result<()> {
        let end = range.end.min(source.virtual_size());
        let mut at = range.start;
        while at < end {
            let found = source.extent_at(at, end)?;
            let (depth, range) = (found.depth, found.extent.range);
            at = range.end;
            let host = match found.extent.kind {
                ExtentKind::Data { host } => host,
                ExtentKind::Compressed { .. } => None,
                ExtentKind::Hole { .. } | ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
                    continue;
                }
            };
            match self.pieces.last_mut() {
                Some(last) if last.depth == depth && last.range.end == range.start => {
                    let in_a_row = last.host.map(|first| first + last.range.len()) == host;
                    last.host = last.host.filter(|_| in_a_row);
                    last.range.end = range.end;
                }
                _ => self.pieces.push(Piece { depth, range, host }),
            }
        }
        Ok(())
    }

    /// Rounds the pieces to whole units and joins those with too small a gap between them.
    fn lay_runs(&mut self, source: &Source<'_>, range: GuestRange, sparse: u64) {
        // What rounding and joining add to flat pieces are holes of the same file.
        let flat = source.chain.is_flat();
        for (index, piece) in self.pieces.iter().enumerate() {
            let start = align_down(piece.range.start, source.unit);
            // The range starts at a multiple of the unit, so only the end of the disk cuts one.
            let end = align_up(piece.range.end, source.unit);
            let run = GuestRange::new(start, end.map_or(range.end, |end| end.min(range.end)));
            if let Some(last) = self.runs.last_mut()
                && join(&mut last.range, run, sparse)
            {
                last.pieces.end = index + 1;
                last.origin = last.origin.filter(|_| flat);
            } else {
                let host = match flat {
                    true => Some(start),
                    false => piece.host.filter(|_| piece.range == run),
                };
                let depth = piece.depth;
                self.runs.push(Run {
                    range: run,
                    pieces: index..index + 1,
                    origin: host.map(|host| Origin { depth, host }),
                });
            }
        }
        for run in &mut self.runs {
            // Behind the source's end there is nothing to copy.
            let inside = run.range.end <= source.chain.virtual_size();
            run.origin = run
                .origin
                .filter(|origin| inside && source.is_copied(origin.depth));
        }
    }
}

/// Makes `run` reach to the end of `next`, the one behind it, if fewer than `sparse` bytes, which are one
/// at least, lie between them: so few zeros are stored with what is around them. Says whether it does.
pub(crate) fn join(run: &mut GuestRange, next: GuestRange, sparse: u64) -> bool {
    let joins = next.start < run.end.saturating_add(sparse);
    if joins {
        run.end = next.end;
    }
    joins
}
