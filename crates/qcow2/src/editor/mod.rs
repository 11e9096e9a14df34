//! Changing an image where it stands.
//!
//! Every change is a [`Draft`]: a new state beside the old one, and one write that turns from that to
//! this. Before the first change all tables are checked, because a draft puts new things where the
//! refcounts say that nothing is.

mod amend;
mod backing;
mod bitmaps;
mod counts;
mod draft;
mod header;
mod repair;
mod resize;
mod sink;
mod snapshots;
mod tables;

use std::sync::Arc;

use goldsmith_block::{
    Budget, Edit, Editor, Error, Flaw, Layer, Packing, Repair, Result, Scribe, Sink, Step,
    StorageMut,
};

use crate::check;
use crate::error::Qcow2Error;
use crate::layer::Qcow2Layer;
pub(crate) use amend::OPTIONS as AMEND_OPTIONS;
use draft::Draft;
use sink::OverSink;

/// A qcow2 image that is being changed.
pub(crate) struct Qcow2Editor {
    scribe: Arc<Scribe>,
    /// Where guest data stands, if it has a file of its own.
    data: Option<Arc<dyn StorageMut>>,
    budget: Budget,
    passphrase: Option<String>,
    layer: Arc<Qcow2Layer>,
    /// Whether the tables were found to be sound.
    sound: bool,
}

impl Qcow2Editor {
    pub(crate) fn open(
        storage: Arc<dyn StorageMut>,
        budget: &Budget,
        passphrase: Option<&str>,
    ) -> Result<Self> {
        let scribe = Arc::new(Scribe::new(storage));
        let budget = budget.afresh();
        let layer = Qcow2Layer::open(scribe.read(), &budget.afresh(), passphrase)?;
        Ok(Self {
            scribe,
            data: None,
            budget,
            passphrase: passphrase.map(str::to_owned),
            layer: Arc::new(layer),
            sound: false,
        })
    }

    /// Looks at all tables, once, before anything but a repair is done.
    ///
    /// # Errors
    /// `Denied` if the disk is encrypted and nobody gave a passphrase; `Corrupt` if anything is wrong with
    /// them that is more than wasted space.
    fn check(&mut self) -> Result<()> {
        if self.sound {
            return Ok(());
        }
        // Who cannot read the disk does not get to cut it off, or to lock out who can. [qemu]
        self.layer.crypt().must_be_open()?;
        if self.layer.geometry().dirty {
            // Refcounts were to be updated later, and never were. [qemu]
            self.repair(Repair::All)?;
        }
        let checked = check::check(&**self.scribe.storage(), &self.budget.afresh())?;
        let corruptions = checked.corruptions + checked.errors;
        if corruptions > 0 {
            let first = checked.flaws.into_iter().find_map(|flaw| match flaw {
                Flaw::Corruption(text) => Some(text),
                Flaw::Leak(_) | Flaw::Note(_) => None,
            });
            let first = first.unwrap_or_else(|| "a part of them cannot be read".into());
            return Err(Qcow2Error::Damaged { corruptions, first }.into());
        }
        if self.layer.geometry().corrupt {
            return Err(Qcow2Error::MarkedCorrupt.into());
        }
        self.sound = true;
        Ok(())
    }

    fn draft(&self) -> Result<Draft> {
        let (scribe, data) = (Arc::clone(&self.scribe), self.data.clone());
        let budget = Arc::new(self.budget.afresh());
        Draft::begin(scribe, data, self.layer.geometry(), budget)
    }

    /// Makes bitmaps that record writes say that they do not know of all, for now; gives their places
    /// in the directory. What nobody here knows, and who wrote it may have to hear of writes, is taken back
    /// as well. [spec autoclear_features]
    fn suspend_bitmaps(&mut self) -> Result<Vec<usize>> {
        let mut draft = self.draft()?;
        let suspended = draft.suspend_bitmaps()?;
        if draft.is_changed() {
            draft.publish()?;
            let mut layer = self.read_again()?;
            // The disk is where it was.
            layer.superseded = Arc::clone(&self.layer.superseded);
            self.layer = Arc::new(layer);
        }
        Ok(suspended)
    }

    /// Reads the image again, which has become another.
    fn reopen(&mut self) -> Result<()> {
        self.layer.supersede();
        self.layer = Arc::new(self.read_again()?);
        Ok(())
    }

    /// The image as it is now. The master key has not changed, but the passphrase may be gone.
    fn read_again(&self) -> Result<Qcow2Layer> {
        let layer = Qcow2Layer::open(self.scribe.read(), &self.budget.afresh(), None)?;
        let layer = layer.unlocked_as(&self.layer);
        match &self.data {
            Some(data) => layer.reading(Arc::clone(data) as _),
            None => Ok(layer),
        }
    }
}

impl Qcow2Editor {
    /// How units are packed that are written over the first `len` bytes of the disk.
    ///
    /// # Errors
    /// `Unsupported` if the image cannot hold such; `Usage` if the disk goes on in the last of them.
    fn packing(&self, len: u64) -> Result<Packing> {
        let geometry = self.layer.geometry();
        let unit = geometry.cluster_size();
        let what = match () {
            () if geometry.has_data_file() => "in a data file",
            () if !self.layer.crypt().is_plain() => "encrypted",
            () if len < geometry.virtual_size && !len.is_multiple_of(unit) => {
                return Err(Error::usage(format!(
                    "the first {len} bytes of the disk end inside a cluster of {unit}, which is \
                     compressed as a whole or not at all"
                )));
            }
            () => {
                let codec = geometry.codec;
                return Ok(Packing { codec, unit });
            }
        };
        Err(Error::unsupported(format!(
            "guest data is {what}, where no cluster can be compressed"
        )))
    }
}

impl Editor for Qcow2Editor {
    fn layer(&self) -> Arc<dyn Layer> {
        Arc::clone(&self.layer) as _
    }

    fn prepare(&mut self) -> Result<()> {
        self.check()
    }

    fn set_data(&mut self, data: Arc<dyn StorageMut>) -> Result<()> {
        self.layer = Arc::new(self.layer.reading(Arc::clone(&data) as _)?);
        self.data = Some(data);
        Ok(())
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        if let Edit::Repair(repair) = edit {
            return self.repair(*repair);
        }
        self.check()?;
        let geometry = self.layer.geometry().clone();
        let mut draft = self.draft()?;
        let snapshots = self.layer.snapshots();
        match edit {
            Edit::Resize {
                virtual_size,
                preallocation,
                behind,
            } => draft.resize(&self.layer, *virtual_size, *preallocation, *behind)?,
            Edit::SetBacking(backing) => draft.set_backing(backing.as_ref())?,
            Edit::TakeSnapshot {
                name,
                seconds,
                nanoseconds,
            } => draft.take_snapshot(snapshots, name, (*seconds, *nanoseconds))?,
            Edit::ApplySnapshot(index) => draft.apply_snapshot(snapshots, *index)?,
            Edit::DeleteSnapshot(index) => draft.delete_snapshot(snapshots, *index)?,
            Edit::Empty => draft.empty()?,
            Edit::Bitmap { name, change } => draft.change_bitmap(name, change)?,
            Edit::AddBitmaps(bitmaps) => draft.add_bitmaps(bitmaps)?,
            Edit::Amend(options) => draft.amend(snapshots, options, self.passphrase.as_deref())?,
            // Not a change of what the image says.
            Edit::Repair(_) => {}
        }
        draft.publish()?;
        if let (Edit::Resize { virtual_size, .. }, Some(data)) = (edit, &self.data)
            && *virtual_size < geometry.virtual_size
        {
            data.set_len(*virtual_size)?;
        }
        self.reopen()
    }

    fn into_sink(mut self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        self.check()?;
        Ok(Box::new(OverSink::new(*self, len, None)?))
    }

    fn into_packing_sink(mut self: Box<Self>, len: u64) -> Result<Box<dyn Sink>> {
        self.check()?;
        let packing = self.packing(len)?;
        Ok(Box::new(OverSink::new(*self, len, Some(packing))?))
    }

    fn steps(&self) -> Vec<Step> {
        self.scribe.steps()
    }
}
