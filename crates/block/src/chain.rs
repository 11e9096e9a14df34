//! An image and all the images behind it, as the one disk that the guest sees.

use std::fmt;
use std::sync::Arc;

use crate::{Extent, ExtentKind, GuestRange, Layer, Result};

/// Layers from the topmost (depth 0) to the last; at least one.
#[derive(Clone)]
pub struct Chain {
    layers: Vec<Arc<dyn Layer>>,
    warnings: Vec<String>,
}

/// An [`Extent`] of the whole chain, and the layer that answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainExtent {
    /// Range and status; never [`ExtentKind::Unallocated`].
    pub extent: Extent,
    /// The layer that decided, or the last one that reaches this far if none did.
    pub depth: usize,
}

/// The names of the files, topmost first.
impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().map(|layer| layer.storage().name());
        f.debug_list().entries(names).finish()
    }
}

impl Chain {
    /// The disk that `top` shows, `behind` being the images behind it, nearest first.
    pub fn new(top: Arc<dyn Layer>, behind: impl IntoIterator<Item = Arc<dyn Layer>>) -> Self {
        let layers: Vec<_> = std::iter::once(top).chain(behind).collect();
        let warnings = layers.iter().flat_map(|layer| {
            let name = layer.storage().name();
            let warnings = &layer.info().warnings;
            warnings.iter().map(move |text| format!("{name}: {text}"))
        });
        Self {
            warnings: warnings.collect(),
            layers,
        }
    }

    /// Adds what is wrong with how the layers fit together.
    #[must_use]
    pub fn warn(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings);
        self
    }

    /// What is wrong without keeping the disk from being read: sentences that begin with the name
    /// of the file meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The layers, topmost first.
    pub fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.layers
    }

    /// The image that the chain was opened for.
    pub fn top(&self) -> &dyn Layer {
        &*self.layers[0]
    }

    /// Size of the disk in bytes: the topmost layer's, whatever the others say.
    pub fn virtual_size(&self) -> u64 {
        self.top().info().virtual_size
    }

    /// Whether the disk is one [flat](Layer::is_flat) layer and nothing else.
    pub fn is_flat(&self) -> bool {
        self.layers.len() == 1 && self.top().is_flat()
    }

    /// What the guest finds from `offset`, up to `limit`.
    ///
    /// The same contract as [`Layer::extent_at`], but never `Unallocated`: what no layer holds is
    /// `Zero { allocated: false, .. }`.
    ///
    /// # Errors
    /// Those of the layers, with the file and the guest range filled in.
    pub fn extent_at(&self, offset: u64, mut limit: u64) -> Result<ChainExtent> {
        let mut depth = 0;
        loop {
            let extent = self.layer_extent(depth, offset, limit)?;
            if extent.kind != ExtentKind::Unallocated {
                return Ok(ChainExtent { extent, depth });
            }
            limit = extent.range.end;
            match self.layers.get(depth + 1) {
                Some(next) if offset < next.info().virtual_size => {
                    depth += 1;
                    limit = limit.min(next.info().virtual_size);
                }
                _ => {
                    let kind = ExtentKind::Zero {
                        allocated: false,
                        host: None,
                    };
                    return Ok(ChainExtent {
                        extent: Extent { kind, ..extent },
                        depth,
                    });
                }
            }
        }
    }

    /// What the guest finds all over the disk, in order; each extent starts where the last one ended.
    ///
    /// # Errors
    /// Each item may be an error of [`extent_at`](Self::extent_at); it is the last one.
    pub fn extents(&self) -> impl Iterator<Item = Result<ChainExtent>> + '_ {
        self.extents_in(GuestRange::new(0, self.virtual_size()))
    }

    /// The same in a part of the disk; `range` may go on behind its end.
    ///
    /// # Errors
    /// As [`extents`](Self::extents).
    pub fn extents_in(&self, range: GuestRange) -> impl Iterator<Item = Result<ChainExtent>> + '_ {
        let end = range.end.min(self.virtual_size());
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let found = self.extent_at(at, end);
            at = found.as_ref().map_or(end, |found| found.extent.range.end);
            Some(found)
        })
    }

    /// Fills `buf` with the guest bytes from `offset`, which end at or before the virtual size.
    ///
    /// # Errors
    /// Those of the layers, with the file and the guest range filled in.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let found = self.extent_at(at, end)?;
            // The extent ends inside `buf`, so both differences fit in usize.
            let part = &mut buf[(at - offset) as usize..(found.extent.range.end - offset) as usize];
            match found.extent.kind {
                kind if kind.is_data() => self.read_layer(found.depth, at, part)?,
                _ => part.fill(0),
            }
            at = found.extent.range.end;
        }
        Ok(())
    }

    /// Fills `buf` from the layer at `depth` alone; for callers that hold its extents.
    ///
    /// # Errors
    /// Those of the layer, with the file and the guest range filled in.
    pub fn read_layer(&self, depth: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let layer = &self.layers[depth];
        layer.read_at(offset, buf).map_err(|error| {
            error
                .at_guest(GuestRange::new(offset, offset + buf.len() as u64))
                .in_file(layer.storage().name())
        })
    }

    fn layer_extent(&self, depth: usize, offset: u64, limit: u64) -> Result<Extent> {
        let layer = &self.layers[depth];
        layer.extent_at(offset, limit).map_err(|error| {
            error
                .at_guest(GuestRange::new(offset, limit))
                .in_file(layer.storage().name())
        })
    }
}
