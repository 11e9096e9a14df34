//! Reading: the storage is the disk.

use std::sync::{Arc, Mutex, PoisonError};

use goldsmith_block::{Extent, ExtentKind, GuestRange, Layer, LayerInfo, Result, Storage};

pub(crate) struct RawLayer {
    info: LayerInfo,
    storage: Arc<dyn Storage>,
    /// The run that was last asked for. Finding the end of a run takes the system time in
    /// proportion to its length, and callers walk long runs in short steps.
    last: Mutex<Option<Run>>,
}

/// Bytes that share one status, as far as that goes.
#[derive(Clone, Copy)]
struct Run {
    range: GuestRange,
    hole: bool,
}

impl RawLayer {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        let info = LayerInfo {
            format: "raw",
            virtual_size: storage.len(),
            ..LayerInfo::default()
        };
        let last = Mutex::new(None);
        Self {
            info,
            storage,
            last,
        }
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = last
            && (run.range.start..run.range.end).contains(&offset)
        {
            return Ok(run);
        }
        let span = self.storage.span_at(offset, self.info.virtual_size)?;
        let run = Run {
            range: GuestRange::new(offset, offset + span.len),
            hole: span.hole,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
        Ok(run)
    }
}

impl Layer for RawLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let run = self.run_at(offset)?;
        let host = Some(offset);
        // A hole is the image's own word for zeros: nothing can show through it. [qemu]
        let kind = if run.hole {
            let allocated = true;
            ExtentKind::Zero { allocated, host }
        } else {
            ExtentKind::Data { host }
        };
        Ok(Extent {
            range: GuestRange::new(offset, run.range.end.min(limit)),
            kind,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.storage.read_at(offset, buf)
    }
}
