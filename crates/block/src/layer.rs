//! One image, speaking for itself.

use std::sync::Arc;

use uuid::Uuid;

use crate::{Budget, Error, Extent, GuestRange, Result, Storage, Symptom};

/// One open image: what it says about each guest byte, and the bytes themselves.
///
/// A layer never looks behind itself; [`Chain`](crate::Chain) composes layers. Everything that an
/// image file claims was checked when it was opened, or is checked before it is used.
/// Safe to use from many threads at once.
pub trait Layer: Send + Sync {
    /// The facts that hold for the whole image.
    fn info(&self) -> &LayerInfo;

    /// Where the image's bytes live.
    fn storage(&self) -> &Arc<dyn Storage>;

    /// Where the host offsets of extents count: where the image's bytes live, unless guest data
    /// stands in a file of its own.
    fn data_storage(&self) -> &Arc<dyn Storage> {
        self.storage()
    }

    /// Whether guest byte n is byte n of [`data_storage`](Self::data_storage), all over the disk
    /// and also where that has holes.
    fn is_flat(&self) -> bool {
        false
    }

    /// What this layer says about the bytes from `offset`, up to `limit`.
    ///
    /// `offset < limit <= info().virtual_size`, in guest bytes; callers check, implementations may
    /// assert. The extent starts at `offset`, holds at least one byte and ends at or before
    /// `limit`. Neighbours with the same status may be merged or not; callers must not depend on
    /// it. Runs without data are long: a whole empty table is one step.
    ///
    /// # Errors
    /// `Corrupt` if a table entry breaks the format's rules or names bytes past the end of the
    /// file; `Io` if a table cannot be read. Never cached. The [guest range](Error::guest) of the error
    /// is what nothing can be said of, however little of it is asked for: it may begin behind `offset`,
    /// and without one it is all up to `limit`.
    ///
    /// # Cost
    /// At most one table read, none once the table is cached; and at most one look for a
    /// [hole](crate::Storage::span_at), none in a run of host bytes that was looked at before.
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent>;

    /// Fills `buf` with the guest bytes from `offset`.
    ///
    /// The range may cross extents of any kind and ends at or before `info().virtual_size`;
    /// unallocated bytes read as zeros. Units that stand next to each other in the file are read
    /// together, so large buffers aligned to the unit are cheapest.
    ///
    /// # Errors
    /// As [`extent_at`](Self::extent_at), and `Corrupt` if a packed unit does not unpack to exactly
    /// one unit. Nothing can be said of `buf` then.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// This image with its guest data in `data`, the file that `info().data_file` names.
    ///
    /// Until it has it, every byte that stands there is an error.
    ///
    /// # Errors
    /// `Usage` if the image names no such file.
    fn with_data(&self, data: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
        let text = format!("the image has its data, it does not need '{}'", data.name());
        Err(Error::usage(text))
    }

    /// The disk as it was when `info().snapshots[index]` was taken.
    ///
    /// # Errors
    /// Those of [`Format::open`](crate::Format::open), and `Usage` if there is no such snapshot.
    fn snapshot(&self, index: usize, budget: &Budget) -> Result<Arc<dyn Layer>> {
        let _ = (index, budget);
        Err(Error::usage("the image has no such snapshot"))
    }

    /// The parts of the disk that `info().bitmaps[index]` says were written, ascending; they do not
    /// touch.
    ///
    /// # Errors
    /// `Corrupt` if the bitmap breaks a rule or was not saved properly; `Limit` if it is over
    /// `budget`; `Usage` if there is no such bitmap.
    fn dirty_ranges(&self, index: usize, budget: &Budget) -> Result<Vec<GuestRange>> {
        let _ = (index, budget);
        Err(Error::usage("the image has no such bitmap"))
    }

    /// The first bytes of a disk that make other programs read another one from this image, as of a
    /// [new one](crate::Format::misread).
    fn misread(&self) -> Option<(&'static [u8], &'static str)> {
        None
    }

    /// What ails the image as far as it shows at a glance, beyond what [`info`](Self::info) says: no
    /// substitute for [`Format::check`](crate::Format::check), which looks at all tables.
    ///
    /// # Errors
    /// `Io` if a table cannot be read. What is wrong with one is a symptom.
    ///
    /// # Cost
    /// A few reads, whatever the size of the disk; nothing of it is mapped.
    fn symptoms(&self) -> Result<Vec<Symptom>> {
        Ok(Vec::new())
    }

    /// About how many bytes of tables a [check](crate::Format::check) of the image reads; 0 if nobody
    /// knows without reading them.
    fn tables_len(&self) -> u64 {
        0
    }
}

/// The facts about an image as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerInfo {
    /// The format's name, as in the registry.
    pub format: &'static str,
    /// Size of the disk that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of guest data that are allocated together (cluster, block), a power of two; `None`
    /// where the format has no such unit.
    pub unit: Option<u64>,
    /// The image that shows through where this one holds nothing.
    pub backing: Option<BackingReference>,
    /// The file that holds the image's guest data, if it is not the image file.
    pub data_file: Option<String>,
    /// Earlier states of the disk that the image file holds too, in its order.
    pub snapshots: Vec<Snapshot>,
    /// Which parts of the disk were written since when, as far as the image keeps that.
    pub bitmaps: Vec<BitmapInfo>,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
    /// Whether it cannot be read, because nobody gave its passphrase.
    pub locked: bool,
    /// Whether the image was not closed properly; its guest data is readable all the same.
    pub dirty: bool,
    /// The identity of the image, where its format keeps one.
    pub uuid: Option<Uuid>,
    /// What only this format knows, in the order to show it.
    pub details: Vec<(&'static str, Detail)>,
    /// What else its headers say, by names of the format's own: for checks, not for show.
    pub facts: Vec<(&'static str, Detail)>,
    /// What is wrong with the image without keeping it from being read: whole sentences.
    pub warnings: Vec<String>,
}

/// How an image names the one behind it. Untrusted: a name, never an order to open it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackingReference {
    /// The name as it stands in the image.
    pub name: String,
    /// The format that the image says the other one has.
    pub format: Option<String>,
    /// Other names of the same file, to be tried in this order where the first leads nowhere.
    pub other_names: Vec<String>,
    /// The identity that the other one must have, in formats that keep one.
    pub uuid: Option<Uuid>,
    /// When the other one was last changed, in seconds since 1970-01-01 UTC, as the image knows it.
    pub modified: Option<u64>,
}

/// An earlier state of the disk, kept inside the image file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the image file calls it; unique in a sound image.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Size of the disk at that time, in bytes.
    pub virtual_size: u64,
    /// Bytes of a virtual machine's state that belong to it.
    pub vm_state_len: u64,
    /// When it was taken, in seconds since 1970-01-01 UTC.
    pub taken_seconds: u32,
    /// The nanoseconds of that second.
    pub taken_nanoseconds: u32,
    /// How long the virtual machine had run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// How many instructions it had run, where that was counted.
    pub vm_instructions: Option<u64>,
}

/// Facts about a bitmap: about which parts of the disk were written since some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitmapInfo {
    /// What people call it; unique in a sound image.
    pub name: String,
    /// Whether that is its name and not what text can be made of it.
    pub is_text: bool,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Whether it records writes.
    pub enabled: bool,
    /// Whether it was not saved properly, so that its bits say nothing.
    pub inconsistent: bool,
}

/// The value of a format's own fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Yes or no.
    Flag(bool),
    /// A count or a size in bytes.
    Number(u64),
    /// A word.
    Text(String),
    /// Several values.
    List(Vec<Detail>),
    /// Facts of one thing, in the order to show them.
    Record(Vec<(&'static str, Detail)>),
}
