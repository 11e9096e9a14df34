//! Reading: the storage is the disk.

use std::sync::Arc;

use goldsmith_block::{Extent, Flat, Layer, LayerInfo, Result, Storage};

pub(crate) struct RawLayer {
    info: LayerInfo,
    disk: Flat,
}

impl RawLayer {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        let virtual_size = storage.len();
        let info = LayerInfo {
            format: "raw",
            virtual_size,
            ..LayerInfo::default()
        };
        let disk = Flat::new(storage, virtual_size);
        Self { info, disk }
    }
}

impl Layer for RawLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.disk.storage()
    }

    fn is_flat(&self) -> bool {
        true
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.storage().read_at(offset, buf)
    }
}
