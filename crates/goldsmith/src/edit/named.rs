//! Editors of which several work on one chain.

use std::sync::Arc;

use goldsmith_block::{Edit, Editor, Layer, Result, Sink, Step, StorageMut};

/// An editor whose errors say which file is meant.
pub(super) struct Named {
    pub(super) path: String,
    pub(super) editor: Box<dyn Editor>,
}

impl Editor for Named {
    fn layer(&self) -> Arc<dyn Layer> {
        self.editor.layer()
    }

    fn prepare(&mut self) -> Result<()> {
        let done = self.editor.prepare();
        done.map_err(|error| error.in_file(&*self.path))
    }

    fn set_data(&mut self, data: Arc<dyn StorageMut>) -> Result<()> {
        let done = self.editor.set_data(data);
        done.map_err(|error| error.in_file(&*self.path))
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        let done = self.editor.edit(edit);
        done.map_err(|error| error.in_file(&*self.path))
    }

    fn into_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        let Self { path, editor } = *self;
        editor.into_sink(len).map_err(|error| error.in_file(path))
    }

    fn into_packing_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        let Self { path, editor } = *self;
        editor
            .into_packing_sink(len)
            .map_err(|error| error.in_file(path))
    }

    fn steps(&self) -> Vec<Step> {
        self.editor.steps()
    }
}
