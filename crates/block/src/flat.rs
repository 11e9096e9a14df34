//! Disks that are stored byte for byte.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Extent, ExtentKind, GuestRange, Result, Storage};

/// A disk whose first byte is the first byte of a storage, and so on to its end: what RAW and
/// fixed images have in common.
#[derive(Debug)]
pub struct Flat {
    storage: Arc<dyn Storage>,
    /// In bytes.
    len: u64,
    /// The run that was last asked for. Finding the end of a run takes the system time in
    /// proportion to its length, and callers walk long runs in short steps.
    last: Mutex<Option<Run>>,
}

/// Bytes that share one status, as far as that goes.
#[derive(Clone, Copy, Debug)]
struct Run {
    range: GuestRange,
    hole: bool,
}

impl Flat {
    /// The first `len` bytes of `storage`, which must have as many.
    pub fn new(storage: Arc<dyn Storage>, len: u64) -> Self {
        Self {
            storage,
            len,
            last: Mutex::new(None),
        }
    }

    /// Where the bytes live.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// What the disk says of itself from `offset`, up to `limit`; the contract is that of
    /// [`Layer::extent_at`](crate::Layer::extent_at).
    ///
    /// A hole of the file is the image's own word for zeros: nothing can show through it. QEMU's
    /// map says the same.
    ///
    /// # Errors
    /// Those of [`Storage::span_at`].
    pub fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let run = self.run_at(offset)?;
        let host = Some(offset);
        let kind = match run.hole {
            true => ExtentKind::Zero {
                allocated: true,
                host,
            },
            false => ExtentKind::Data { host },
        };
        Ok(Extent {
            range: GuestRange::new(offset, run.range.end.min(limit)),
            kind,
        })
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = last
            && (run.range.start..run.range.end).contains(&offset)
        {
            return Ok(run);
        }
        let span = self.storage.span_at(offset, self.len)?;
        let run = Run {
            range: GuestRange::new(offset, offset + span.len),
            hole: span.hole,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
        Ok(run)
    }
}
