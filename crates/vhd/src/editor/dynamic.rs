//! The editor of a dynamic or differencing image.

use std::sync::Arc;

use goldsmith_block::{Edit, Editor, Layer, Result, Sink, Step};

use super::image::Image;
use super::sink::BlockSink;
use super::unsupported;

/// See the module.
pub(super) struct DynamicEditor {
    image: Image,
}

impl DynamicEditor {
    pub(super) fn new(image: Image) -> Self {
        Self { image }
    }
}

impl Editor for DynamicEditor {
    fn layer(&self) -> Arc<dyn Layer> {
        self.image.layer.clone()
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        let image = &mut self.image;
        match edit {
            Edit::Repair(repair) => return image.repair(*repair),
            Edit::Resize { .. } | Edit::Empty => {
                image.check_one_size()?;
                image.prepare()?;
            }
            Edit::SetBacking(_) => image.prepare()?,
            other => return Err(unsupported(other)),
        }
        match edit {
            Edit::Resize {
                virtual_size,
                preallocation,
                behind,
            } => image.resize(*virtual_size, *preallocation, *behind)?,
            Edit::SetBacking(parent) => image.set_backing(parent.as_ref())?,
            _ => image.empty()?,
        }
        image.refresh()
    }

    fn into_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        let mut image = self.image;
        super::check_reach(len, image.layer.info.virtual_size)?;
        image.prepare()?;
        Ok(Box::new(BlockSink::new(image, len)?))
    }

    fn steps(&self) -> Vec<Step> {
        self.image.scribe.steps()
    }
}
