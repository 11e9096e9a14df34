//! The source of a conversion, as the claims see it: holes, data, and what can be shared.

use std::sync::Arc;

use goldsmith_block::{
    Chain, ChainExtent, ExtentKind, GuestRange, Layer, Placement, Result, Sink, Transfer,
    align_down, align_up, is_same_bytes,
};

use crate::claim::{Origin, Sharing, Status, Walk};
use crate::glimpse::GLIMPSE;

/// The smallest unit of a target for which a glimpse saves anything.
const GLIMPSED: u64 = 4 * GLIMPSE;
/// What file systems share: whole blocks, and none has larger ones by default.
const BLOCK: u64 = 4096;
/// The most that one claim shares, in bytes: it takes no memory, but nobody hears of it before it
/// is done.
const SHARE: u64 = 16 << 30;

pub(crate) struct Source<'a> {
    pub(crate) chain: &'a Chain,
    /// Bytes that the target's format keeps together.
    pub(crate) unit: u64,
    /// Whether zeros are stored like all else.
    dense: bool,
    /// The way for the bytes of each layer that nobody here has to see.
    ways: Vec<Option<Transfer>>,
    /// The disk behind the target.
    pub(crate) behind: Option<&'a Chain>,
    /// Whether the data of that is written over unread.
    pub(crate) unread: bool,
    /// The layers that both disks are made of, as far as that spares looking at them.
    common: Common,
    /// Whether all bytes and holes come to stand in the target as they do in the source.
    same: bool,
}

impl<'a> Source<'a> {
    /// A source all of whose bytes are read.
    pub(crate) fn new(chain: &'a Chain, unit: u64, dense: bool) -> Self {
        Self {
            chain,
            unit,
            dense,
            ways: vec![None; chain.layers().len()],
            behind: None,
            unread: false,
            common: Common::default(),
            same: false,
        }
    }

    /// Takes what `behind` has as said already; without looking, if `skips`, where both disks are
    /// made of the same files.
    pub(crate) fn stand_before(&mut self, behind: &'a Chain, skips: bool) {
        self.behind = Some(behind);
        if skips {
            self.common = Common::of(self.chain.layers(), behind.layers());
        }
    }

    /// Takes nothing of what `behind` has as said already but what it knows to be zeros.
    pub(crate) fn write_over(&mut self, behind: &'a Chain) {
        self.behind = Some(behind);
        self.unread = true;
    }

    /// The parts of `range`, in whole units, in which the target may have to say something:
    /// ascending and apart.
    pub(crate) fn find_parts(&self, range: GuestRange, parts: &mut Vec<GuestRange>) -> Result<()> {
        parts.clear();
        if self.behind.is_none() {
            parts.push(range);
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let status = Walk::status(&self, at, range.end)?;
            // The range starts at a multiple of the unit.
            let start = align_down(at, self.unit);
            let end = align_up(status.end, self.unit).map_or(range.end, |end| end.min(range.end));
            at = status.end;
            if status.hole {
                continue;
            }
            match parts.last_mut() {
                Some(last) if start <= last.end => last.end = end,
                _ => parts.push(GuestRange::new(start, end)),
            }
        }
        Ok(())
    }

    /// Lets bytes go to `sink` without coming here: shared if `share`; copied if `copy`, or where a
    /// server does it.
    pub(crate) fn transfer_to(&mut self, sink: &dyn Sink, share: bool, copy: bool) {
        let Some(target) = sink.slots_in() else {
            return;
        };
        for (way, layer) in self.ways.iter_mut().zip(self.chain.layers()) {
            // Where the kernel can share, it does so when asked to copy.
            *way = target
                .best_transfer(&**layer.data_storage())
                .filter(|way| match way {
                    Transfer::Share => share && self.unit.is_multiple_of(BLOCK),
                    Transfer::Remote => true,
                    Transfer::Copy => copy,
                });
        }
        self.same = self.chain.is_flat() && sink.profile().placement == Placement::Identity;
    }

    /// Whether some of it can be shared.
    pub(crate) fn is_shared(&self) -> bool {
        self.ways.contains(&Some(Transfer::Share))
    }

    /// Whether the kernel may copy what stands in a row in the layer at `depth`.
    ///
    /// That pays where a glimpse of a unit is less than the unit.
    pub(crate) fn is_copied(&self, depth: usize) -> bool {
        self.unit >= GLIMPSED && self.ways[depth].is_some()
    }
}

/// The layers that a source and the disk behind its target have in common. What one layer says of
/// a byte is the same in both.
#[derive(Clone, Copy, Debug, Default)]
struct Common {
    /// How many layers the source has.
    ours: usize,
    /// How many the disk behind the target has.
    theirs: usize,
    /// How many are the same on top.
    top: usize,
    /// How many are the same at the bottom.
    bottom: usize,
}

/// What is known of the disk behind the target by looking at the source alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It is the same.
    Same,
    /// It may be the same.
    Perhaps,
    /// Nothing.
    Nothing,
}

impl Common {
    fn of(ours: &[Arc<dyn Layer>], theirs: &[Arc<dyn Layer>]) -> Self {
        let pairs = ours.iter().zip(theirs);
        let top = pairs.take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
        // Not the topmost layer: of one file there are many, as it was at each snapshot.
        let (below, theirs_below) = (&ours[top.max(1)..], &theirs[top..]);
        let pairs = below.iter().rev().zip(theirs_below.iter().rev());
        let bottom = pairs
            .take_while(|(a, b)| is_one_image(&***a, &***b))
            .count();
        Self {
            ours: ours.len(),
            theirs: theirs.len(),
            top,
            bottom,
        }
    }

    fn knows(&self, found: &ChainExtent) -> Known {
        let in_bottom = found.depth + self.bottom >= self.ours && self.bottom > 0;
        // Where no layer has anything the depth is only that of the last one asked.
        let decided = !matches!(
            found.extent.kind,
            ExtentKind::Zero {
                allocated: false,
                ..
            }
        );
        match () {
            () if found.depth < self.top && decided => Known::Same,
            () if in_bottom && self.theirs <= self.top + self.bottom => Known::Same,
            () if in_bottom => Known::Perhaps,
            () => Known::Nothing,
        }
    }

    /// Whether the source's layer at depth `ours` is the other disk's at depth `theirs`, one of
    /// those at the bottom.
    fn is_same(&self, ours: usize, theirs: usize) -> bool {
        let from_below = self.ours - ours;
        from_below <= self.bottom && from_below + theirs == self.theirs
    }
}

/// Whether both layers are the same image, opened twice.
fn is_one_image(a: &dyn Layer, b: &dyn Layer) -> bool {
    let (ours, theirs) = (a.info(), b.info());
    is_same_bytes(&**a.storage(), &**b.storage())
        && ours.format == theirs.format
        && ours.virtual_size == theirs.virtual_size
}

impl Walk for &Source<'_> {
    type Error = goldsmith_block::Error;

    fn status(&self, at: u64, limit: u64) -> Result<Status> {
        let all = |hole| Status { hole, end: limit };
        let source = self.chain.virtual_size();
        if self.dense {
            return Ok(all(false));
        }
        let mut status = all(true);
        if at < source {
            let found = self.chain.extent_at(at, limit.min(source))?;
            status = Status {
                hole: !found.extent.kind.is_data(),
                end: found.extent.range.end,
            };
            let known = self.common.knows(&found);
            if known == Known::Same {
                status.hole = true;
                return Ok(status);
            }
            if let Some(behind) = self.behind
                && known == Known::Perhaps
                && at < behind.virtual_size()
            {
                let end = status.end.min(behind.virtual_size());
                let there = behind.extent_at(at, end)?;
                status = Status {
                    hole: self.common.is_same(found.depth, there.depth)
                        || status.hole && !there.extent.kind.is_data(),
                    end: there.extent.range.end,
                };
                return Ok(status);
            }
        }
        // A hole that hides something is none.
        if let Some(behind) = self.behind
            && status.hole
            && at < behind.virtual_size()
        {
            let end = status.end.min(behind.virtual_size());
            let extent = behind.extent_at(at, end)?.extent;
            status = Status {
                hole: !extent.kind.is_data(),
                end: extent.range.end,
            };
        }
        Ok(status)
    }

    fn shared(&self, start: u64, limit: u64) -> Result<Option<Sharing>> {
        let source = self.chain.virtual_size();
        let limit = limit.min(source).min(start.saturating_add(SHARE));
        if self.same && self.is_shared() {
            let origin = Origin {
                depth: 0,
                host: start,
            };
            let end = align_down(limit, BLOCK);
            return Ok(Some(Sharing { origin, end }).filter(|_| start < end));
        }
        let mut origin: Option<Origin> = None;
        let mut at = start;
        while at < limit && self.is_shared() {
            let found = self.chain.extent_at(at, limit)?;
            let (kind, range) = (found.extent.kind, found.extent.range);
            let layer = &self.chain.layers()[found.depth];
            let host = match kind {
                ExtentKind::Data { host } => host,
                ExtentKind::Hole { host } => Some(host),
                // What stands there are zeros, and sharing them costs nothing.
                ExtentKind::Zero { .. } if layer.is_flat() => Some(at),
                _ => None,
            };
            let (Some(host), Some(Transfer::Share)) = (host, self.ways[found.depth]) else {
                break;
            };
            let first = origin.get_or_insert(Origin {
                depth: found.depth,
                host,
            });
            let here = first.host + (at - start);
            if found.depth != first.depth || host != here || !first.host.is_multiple_of(BLOCK) {
                break;
            }
            if !kind.is_data() {
                let unit = align_up(at, self.unit).unwrap_or(limit);
                if unit.saturating_add(self.unit) <= range.end {
                    // Whole units of zeros are better left out.
                    at = unit;
                    break;
                }
            }
            at = range.end;
        }
        // Only the end of the disk cuts a unit.
        let end = match at == source && source.is_multiple_of(BLOCK) {
            true => source,
            false => align_down(at, self.unit),
        };
        let sharing = |origin| Sharing { origin, end };
        Ok(origin.filter(|_| end > start).map(sharing))
    }
}
