//! Changing: the length of the file, and the bytes in it.

use std::sync::Arc;

use goldsmith_block::{
    Edit, Editor, Error, HostRange, Layer, Preallocation, Result, Scribe, Sink, Step, StorageMut,
    Zeroing,
};

use crate::layer::RawLayer;
use crate::sink::{RawSink, write_zeros};
use crate::{RawError, must_be_short};

/// A RAW image that is being changed.
#[derive(Debug)]
pub(crate) struct RawEditor {
    scribe: Scribe,
}

impl RawEditor {
    pub(crate) fn new(storage: Arc<dyn StorageMut>) -> Self {
        Self {
            scribe: Scribe::new(storage),
        }
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        let storage = self.scribe.storage();
        let old = storage.len();
        if preallocation == Preallocation::Metadata {
            return Err(RawError::Metadata.into());
        }
        if let Some(device) = storage.fixed_len()
            && device != len
        {
            return Err(RawError::Device { device, len }.into());
        }
        if len == old {
            return Ok(());
        }
        if len > old {
            must_be_short(len)?;
        }
        self.scribe.set_len(len)?;
        if len > old {
            let added = HostRange::new(old, len - old);
            let filled = match preallocation {
                Preallocation::Off | Preallocation::Metadata => Ok(()),
                Preallocation::Falloc => self.scribe.zero("new space", added, Zeroing::Keep),
                Preallocation::Full => write_zeros(&**storage, old, len),
            };
            if let Err(error) = filled {
                // The first error is the one to tell.
                let _ = self.scribe.set_len(old);
                return Err(error);
            }
        }
        self.scribe.barrier()
    }
}

impl Editor for RawEditor {
    fn layer(&self) -> Arc<dyn Layer> {
        Arc::new(RawLayer::new(self.scribe.read()))
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        let done = match edit {
            Edit::Resize {
                virtual_size,
                preallocation,
                ..
            } => self.resize(*virtual_size, *preallocation),
            edit => Err(nowhere(edit)),
        };
        done.map_err(|error| error.in_file(self.scribe.storage().name()))
    }

    fn into_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        Ok(Box::new(RawSink::over(
            Arc::clone(self.scribe.storage()),
            len,
        )))
    }

    fn steps(&self) -> Vec<Step> {
        self.scribe.steps()
    }
}

/// Why `edit` cannot be: there is nothing in the file but the disk.
fn nowhere(edit: &Edit) -> Error {
    let what = match edit {
        Edit::SetBacking(_) => "backing file",
        Edit::TakeSnapshot { .. } | Edit::ApplySnapshot(_) | Edit::DeleteSnapshot(_) => "snapshots",
        Edit::Empty => "backing file that could show through",
        Edit::Amend(_) => "options to amend",
        Edit::Bitmap { .. } | Edit::AddBitmaps(_) => "bitmaps",
        Edit::Repair(_) | Edit::Resize { .. } => "tables to repair",
    };
    RawError::Nowhere { what }.into()
}
