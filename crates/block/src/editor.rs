//! Changing an image where it stands.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    BackingReference, Error, GuestRange, HostRange, Layer, Options, Result, Sink, Storage,
    StorageMut, Zeroing,
};

/// One image, open to be changed.
///
/// Nothing is lost on the way: whenever the work stops, by an error, by the end of the process or
/// by a power cut, the image is the old or the new one, and at worst some space of the file is
/// wasted. What an image names is never opened by it.
pub trait Editor: Send {
    /// The image as it stands now, and as long as nothing is changed: whoever goes on to read it has it
    /// given anew after each [`edit`](Self::edit), after a sink has committed, and after
    /// [`prepare`](Self::prepare).
    fn layer(&self) -> Arc<dyn Layer>;

    /// Makes the image ready to be changed, as all changes do first: what somebody did not finish may be
    /// finished now, and tables move. For callers who read the image while they write to it.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Gives the editor the file that holds the image's guest data; see [`Layer::with_data`].
    ///
    /// # Errors
    /// `Usage` if the image names no such file.
    fn set_data(&mut self, data: Arc<dyn StorageMut>) -> Result<()> {
        let text = format!("the image has its data, it does not need '{}'", data.name());
        Err(Error::usage(text))
    }

    /// Makes one change, which is durable on return.
    ///
    /// # Errors
    /// `Usage` if the change makes no sense for the image; `Unsupported` if its format has no such
    /// thing; `Corrupt` if what must be changed breaks a rule of the format; `Io` if a read or a
    /// write fails. The image is the old one then, except that it may be the new one if the very
    /// last flushes failed.
    fn edit(&mut self, edit: &Edit) -> Result<()>;

    /// A sink that writes over the first `len` bytes of the disk, `len` being at most its size and
    /// a multiple of a sector or the whole of it.
    ///
    /// It [covers](crate::ZeroPolicy::Covering): what is neither reserved nor zeroed stays as it is.
    /// Units that stand in the image alone are overwritten where they are, so an unfinished sink
    /// leaves a mixture on the disk; it is for changes that whoever reads the disk does not see:
    /// what an overlay hides, or what the image shows already.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    fn into_sink(self: Box<Self>, len: u64) -> Result<Box<dyn Sink>>;

    /// As [`into_sink`](Self::into_sink), one that takes packed units; `len` must not be inside one
    /// that the disk goes on behind.
    ///
    /// # Errors
    /// As [`edit`](Self::edit); `Unsupported` also if the image cannot hold packed units.
    fn into_packing_sink(self: Box<Self>, _len: u64) -> Result<Box<dyn Sink>> {
        let format = self.layer().info().format;
        Err(Error::unsupported(format!(
            "Compression not supported for this file format ({format})"
        )))
    }

    /// What was done so far.
    fn steps(&self) -> Vec<Step>;
}

/// A change of an image as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Makes the disk `virtual_size` bytes long. Bytes that this adds read as zeros, whatever stands
    /// behind the image; bytes that it takes away are lost.
    Resize {
        /// The new size in bytes.
        virtual_size: u64,
        /// What becomes of the bytes that are added.
        preallocation: Preallocation,
        /// Size of the disk that stands behind the image, 0 if none does: what it has where bytes
        /// are added must not show. A unit at the old end that holds nothing but shows such bytes
        /// must be written by the caller before.
        behind: u64,
    },
    /// Makes the image name another one behind it, or none. What the guest sees through it changes
    /// if those differ.
    SetBacking(Option<BackingReference>),
    /// Keeps the disk as it is now under a name.
    TakeSnapshot {
        /// What people call it.
        name: String,
        /// When, in seconds since 1970-01-01 UTC.
        seconds: u32,
        /// The nanoseconds of that second.
        nanoseconds: u32,
    },
    /// Makes the disk what it was when `info().snapshots[index]` of the layer was taken.
    ApplySnapshot(usize),
    /// Forgets `info().snapshots[index]` of the layer.
    DeleteSnapshot(usize),
    /// Gives up everything the disk holds: what stands behind it shows through everywhere.
    Empty,
    /// Sets those of the format's [`amend_options`](crate::Format::amend_options) that are
    /// [given](Options::given).
    Amend(Options),
    /// Changes the bitmap `name`.
    Bitmap {
        /// What people call it.
        name: String,
        /// The change.
        change: BitmapChange,
    },
    /// Adds bitmaps, all in one change.
    AddBitmaps(Vec<NewBitmap>),
    /// Mends what is broken in the tables.
    Repair(Repair),
}

/// A bitmap that is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBitmap {
    /// What people call it.
    pub name: String,
    /// Bytes per bit; a power of two. By default the format's choice.
    pub granularity: Option<u64>,
    /// Whether it records writes.
    pub enabled: bool,
    /// The parts of the disk whose bits are dirty; they ascend.
    pub dirty: Vec<GuestRange>,
}

/// A change of a bitmap: of the parts of the disk that were written since some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapChange {
    /// Makes a new one, of clean bits.
    Add {
        /// Bytes per bit; a power of two. By default the format's choice.
        granularity: Option<u64>,
        /// Whether it records writes.
        enabled: bool,
    },
    /// Forgets it.
    Remove,
    /// Makes all its bits clean.
    Clear,
    /// Makes it record writes, or not.
    Enable(bool),
    /// Makes the bits of these parts of the disk dirty; they ascend.
    Mark(Vec<GuestRange>),
}

/// How much [`Edit::Repair`] may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Gives back wasted space, no more.
    Leaks,
    /// Mends all that can be mended without guessing at guest data.
    All,
}

/// What becomes of units of the disk that nobody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// They get no place.
    #[default]
    Off,
    /// They get a place, which may be a hole of the file.
    Metadata,
    /// Their place takes space.
    Falloc,
    /// Their place is written.
    Full,
}

impl Preallocation {
    /// The names of all, as QEMU spells them, too.
    pub const NAMES: &'static [&'static str] = &["off", "metadata", "falloc", "full"];

    /// The one called `name`; none for a name that is not among [`NAMES`](Self::NAMES).
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "metadata" => Some(Self::Metadata),
            "falloc" => Some(Self::Falloc),
            "full" => Some(Self::Full),
            _ => None,
        }
    }
}

/// One change to an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What of the image it concerns; reads well behind "write the".
    pub what: &'static str,
    /// The change.
    pub change: Change,
}

/// What is done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes are written.
    Write(HostRange),
    /// Bytes become zeros, or are given back.
    Zero(HostRange),
    /// The file becomes this long, in bytes.
    Length(u64),
    /// All before is safely stored before anything after begins.
    Barrier,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what;
        match self.change {
            Change::Write(range) => {
                let HostRange { offset, len } = range;
                write!(f, "write the {what}: {len} bytes at {offset:#x}")
            }
            Change::Zero(range) => {
                let HostRange { offset, len } = range;
                write!(f, "clear the {what}: {len} bytes at {offset:#x}")
            }
            Change::Length(len) => write!(f, "make the file {len} bytes long"),
            Change::Barrier => f.write_str("wait until all of it is stored"),
        }
    }
}

/// Changes a file and takes notes.
#[derive(Debug)]
pub struct Scribe {
    storage: Arc<dyn StorageMut>,
    steps: Mutex<Vec<Step>>,
}

impl Scribe {
    /// Changes `storage`.
    pub fn new(storage: Arc<dyn StorageMut>) -> Self {
        Self {
            storage,
            steps: Mutex::default(),
        }
    }

    /// What is changed.
    pub fn storage(&self) -> &Arc<dyn StorageMut> {
        &self.storage
    }

    /// What is changed, as whoever only reads sees it.
    pub fn read(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage) as _
    }

    /// Writes `data`, which is (part of) `what`.
    ///
    /// # Errors
    /// Those of [`StorageMut::write_at`].
    pub fn write(&self, what: &'static str, offset: u64, data: &[u8]) -> Result<()> {
        self.storage.write_at(offset, data)?;
        self.note(
            what,
            Change::Write(HostRange::new(offset, data.len() as u64)),
        );
        Ok(())
    }

    /// Makes `range` zeros, as [`StorageMut::zero`] but also behind the end of the file, where that
    /// can grow.
    ///
    /// # Errors
    /// Those of [`StorageMut::zero`] and [`StorageMut::set_len`].
    pub fn zero(&self, what: &'static str, range: HostRange, zeroing: Zeroing) -> Result<()> {
        if range.len == 0 {
            return Ok(());
        }
        if range.end() > self.storage.len() {
            self.set_len(range.end())?;
        }
        self.storage.zero(range, zeroing)?;
        self.note(what, Change::Zero(range));
        Ok(())
    }

    /// Makes the file `len` bytes long.
    ///
    /// # Errors
    /// Those of [`StorageMut::set_len`].
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.storage.set_len(len)?;
        self.note("file", Change::Length(len));
        Ok(())
    }

    /// Returns when all written so far would survive a power cut.
    ///
    /// # Errors
    /// Those of [`StorageMut::flush`].
    pub fn barrier(&self) -> Result<()> {
        self.storage.flush()?;
        let mut steps = self.notes();
        let barrier = Step {
            what: "file",
            change: Change::Barrier,
        };
        if steps.last().is_some_and(|last| *last != barrier) {
            steps.push(barrier);
        }
        Ok(())
    }

    /// What was done so far; writes of one thing that go on where the last one ended are one.
    pub fn steps(&self) -> Vec<Step> {
        self.notes().clone()
    }

    fn notes(&self) -> MutexGuard<'_, Vec<Step>> {
        // A note is pushed or not.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, what: &'static str, change: Change) {
        let mut steps = self.notes();
        if let Some(last) = steps.last_mut()
            && last.what == what
            && let (Change::Write(before), Change::Write(now))
            | (Change::Zero(before), Change::Zero(now)) = (&mut last.change, &change)
            && before.end() == now.offset
        {
            before.len += now.len;
            return;
        }
        steps.push(Step { what, change });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_as_sentences() {
        let step = |change| Step {
            what: "L1 table",
            change,
        };
        let range = HostRange::new(0x10000, 8);
        for (change, sentence) in [
            (
                Change::Write(range),
                "write the L1 table: 8 bytes at 0x10000",
            ),
            (
                Change::Zero(range),
                "clear the L1 table: 8 bytes at 0x10000",
            ),
            (Change::Length(4096), "make the file 4096 bytes long"),
            (Change::Barrier, "wait until all of it is stored"),
        ] {
            assert_eq!(step(change).to_string(), sentence);
        }
    }

    #[test]
    fn every_preallocation_has_its_name() {
        let named = Preallocation::NAMES
            .iter()
            .map(|name| Preallocation::named(name));
        assert_eq!(
            named.collect::<Vec<_>>(),
            [
                Some(Preallocation::Off),
                Some(Preallocation::Metadata),
                Some(Preallocation::Falloc),
                Some(Preallocation::Full)
            ]
        );
        assert_eq!(Preallocation::named("some"), None);
    }
}
