//! Another parent, or none.

use goldsmith_block::{BackingReference, Result};
use uuid::Uuid;
use zerocopy::byteorder::big_endian::{U16, U32};

use super::head::Head;
use super::image::Image;
use super::resized;
use crate::footer::Footer;
use crate::locator::NewParent;
use crate::ondisk::{DIFFERENCING, DYNAMIC, RawLocator};

impl Image {
    /// Makes `parent` the one that shows where this image holds nothing; zeros do if it is `None`.
    pub(super) fn set_backing(&mut self, parent: Option<&BackingReference>) -> Result<()> {
        let own = Uuid::from_bytes(self.footer.uuid);
        let parent = parent.map(|parent| NewParent::new(own, parent));
        let parent = parent.transpose()?;
        let was_differencing = self.is_differencing()?;
        if parent.is_none() && !was_differencing {
            return Ok(());
        }
        let mut footer = self.footer.clone();
        footer.disk_type = U32::new(match parent {
            Some(_) => DIFFERENCING,
            None => DYNAMIC,
        });
        footer.checksum = U32::new(footer.computed_checksum());
        // Which of two sizes counts depends on whether there is a parent.
        let virtual_size = self.layer.info.virtual_size;
        if Footer::parse(&footer, self.rule)?.virtual_size != virtual_size {
            self.check_one_size()?;
            footer = resized(&footer, virtual_size);
        }
        let mut head = Head::of(self)?;
        let before = head.len();
        head.header.parent_locators = [RawLocator::NONE; 8];
        head.header.parent_uuid = Uuid::nil().into_bytes();
        head.header.parent_timestamp = U32::ZERO;
        head.header.parent_name = [U16::ZERO; 256];
        head.names.clear();
        if let Some(parent) = &parent {
            parent.describe(&mut head.header);
            head.names = parent
                .names()
                .map(|name| name.map(<[u8]>::to_vec))
                .collect();
        }
        // Sectors without data are zeros in one kind of image and the parent's in the other.
        if was_differencing != parent.is_some() {
            self.clear_absent_sectors()?;
        }
        if !was_differencing {
            self.scribe.barrier()?;
            self.set_all_bits()?;
        }
        let shrinks = head.len() < before;
        let moved = self.switch(head, footer)?;
        if parent.is_none() {
            self.set_all_bits()?;
            self.scribe.barrier()?;
        }
        match moved || shrinks {
            true => self.reclaim_rest(),
            false => Ok(()),
        }
    }

    /// Gives up all blocks.
    pub(super) fn empty(&mut self) -> Result<()> {
        let mut head = Head::of(self)?;
        let blocks = self.bat.len();
        head.set_blocks(blocks, 0);
        head.set_blocks(0, blocks);
        let footer = self.footer.clone();
        self.switch(head, footer)?;
        self.reclaim_rest()
    }
}
