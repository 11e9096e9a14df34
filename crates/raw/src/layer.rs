//! Reading: the storage is the disk.

use std::sync::Arc;

use goldsmith_block::{Extent, ExtentKind, GuestRange, Layer, LayerInfo, Result, Storage};

pub(crate) struct RawLayer {
    info: LayerInfo,
    storage: Arc<dyn Storage>,
}

impl RawLayer {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        let info = LayerInfo {
            format: "raw",
            virtual_size: storage.len(),
            ..LayerInfo::default()
        };
        Self { info, storage }
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
        let span = self.storage.span_at(offset, limit)?;
        let host = Some(offset);
        // A hole is the image's own word for zeros: nothing can show through it. [qemu]
        let kind = if span.hole {
            let allocated = true;
            ExtentKind::Zero { allocated, host }
        } else {
            ExtentKind::Data { host }
        };
        Ok(Extent {
            range: GuestRange::new(offset, offset + span.len),
            kind,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.storage.read_at(offset, buf)
    }
}
