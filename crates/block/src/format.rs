//! What every image format can do, so that nothing else needs to know which formats exist.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    BackingReference, Budget, Checked, Content, Editor, Error, Layer, Measured, OptionSpec,
    Options, Result, Sink, Storage, StorageMut,
};

/// An image format.
pub trait Format: Send + Sync {
    /// The name used on the command line and in JSON; qemu-img's where it has one.
    fn name(&self) -> &'static str;

    /// Other names people use for it.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether a file with these bytes is of this format. Looks at nothing but the probe.
    fn probe(&self, probe: &Probe<'_>) -> Match;

    /// Opens the image in `storage`, checking every header.
    ///
    /// Opens nothing else, whatever the image names.
    ///
    /// # Errors
    /// `Corrupt` if a header breaks a rule of the format, `Unsupported` if the image uses something
    /// goldsmith cannot read, `Limit` if its tables are over `budget`, `Io` if they cannot be read.
    fn open(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>>;

    /// Whether opening makes files, to unpack into. Default: no.
    fn unpacks(&self) -> bool {
        false
    }

    /// The options that [`open_with`](Self::open_with) understands.
    fn open_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// Values for [`open_options`](Self::open_options) with which an image is opened that stands behind
    /// another one of this format, unless the caller gives others. Default: none.
    fn options_behind(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// As [`open`](Self::open), with values for [`open_options`](Self::open_options).
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn open_with(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        let _ = options;
        self.open(storage, budget)
    }

    /// As [`open_with`](Self::open_with), for callers who want what can still be read of a damaged disk:
    /// what is broken, and is not needed for that, is left out instead of being refused, and a
    /// [warning](crate::LayerInfo::warnings) says which rule it broke.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn salvage(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        self.open_with(storage, budget, options)
    }

    /// As [`open_with`](Self::open_with), for callers who ask for [`Layer::info`] and nothing else:
    /// what it takes to give extents and bytes may be left out, and these be errors.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn inspect(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        self.open_with(storage, budget, options)
    }

    /// As [`open_with`](Self::open_with), for callers who ask for [`Layer::info`] and
    /// [`Layer::extent_at`] and nothing else: what it takes to give bytes may be left out, and these
    /// be errors.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn survey(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        self.open_with(storage, budget, options)
    }

    /// Looks at all tables of the image in `storage`, but changes nothing; `None` if the format has
    /// nothing that could be checked.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    fn check(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Option<Checked>> {
        let _ = (storage, budget);
        Ok(None)
    }

    /// The creation options that [`create`](Self::create) understands.
    fn options(&self) -> &'static [OptionSpec];

    /// The first bytes of a disk that make other programs read another one from a new image with these
    /// [`options`](Self::options), and a sentence that says so; `None` if there are none.
    fn misread(&self, options: &Options) -> Option<(&'static [u8], &'static str)> {
        let _ = options;
        None
    }

    /// The virtual size is a multiple of this many bytes in images that every reader of the format
    /// reads whole.
    fn size_unit(&self) -> u64;

    /// Whether a new image with these [`options`](Self::options) can have bitmaps.
    fn keeps_bitmaps(&self, options: &Options) -> bool {
        let _ = options;
        false
    }

    /// Begins a new image in `storage`, whose content so far is worth nothing.
    ///
    /// # Errors
    /// `Usage` if the format cannot hold `spec`, `Io` if the storage cannot be prepared.
    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>>;

    /// How long a new image is going to be that holds `content`, if it is not to be an empty one, as
    /// `qemu-img measure` reckons it; `None` if it does not know the format, whose images are
    /// [laid out](Self::create) to be measured then.
    ///
    /// Of `spec` only the options and the size count.
    ///
    /// # Errors
    /// `Usage` if the format cannot hold `spec`; those of `content`.
    fn measure(&self, spec: &CreateSpec, content: Option<Content<'_>>) -> Result<Option<Measured>> {
        let _ = (spec, content);
        Ok(None)
    }

    /// How long a new image of `spec` is going to be, in bytes, if that is known whatever it holds.
    ///
    /// # Errors
    /// Those of [`create`](Self::create), but for `Io`.
    fn len_of_any(&self, spec: &CreateSpec) -> Result<Option<u64>> {
        let _ = spec;
        Ok(None)
    }

    /// Opens the image in `storage` to change it where it stands; `options` as for
    /// [`open_with`](Self::open_with).
    ///
    /// # Errors
    /// Those of [`open`](Self::open); `Corrupt` also if its tables are too damaged to be changed
    /// safely, though they can be read; `Unsupported` if images of the format cannot be changed.
    fn edit(
        &self,
        storage: Arc<dyn StorageMut>,
        budget: &Budget,
        options: &Options,
    ) -> Result<Box<dyn Editor>> {
        let _ = (budget, options);
        let text = format!("{} images cannot be changed in place", self.name());
        Err(Error::unsupported(text).in_file(storage.name()))
    }

    /// The options of [`Edit::Amend`](crate::Edit::Amend): only those that are given change
    /// anything.
    fn amend_options(&self) -> &'static [OptionSpec] {
        &[]
    }
}

/// The bytes that a format is recognised by.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The first bytes of the file: [`Probe::HEAD`], or all there are.
    pub head: &'a [u8],
    /// The last bytes of the file: [`Probe::TAIL`], or all there are.
    pub tail: &'a [u8],
    /// Where `tail` is zeros, the last sector of the file that is not, and its byte offset, if it was
    /// looked for and found.
    pub before_zeros: Option<(u64, &'a [u8])>,
}

impl Probe<'_> {
    /// Length of a full `head` in bytes.
    pub const HEAD: usize = 4096;
    /// Length of a full `tail` in bytes.
    pub const TAIL: usize = 512;
}

/// How well a file fits a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// It is something else.
    No,
    /// Nothing speaks against it: any bytes whatever would fit, or there is half a mark.
    Anything,
    /// It carries the format's own mark.
    Marked,
}

/// What a new image shall be.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// Size of the disk in bytes; exact.
    pub virtual_size: u64,
    /// Where guest data goes if the option `data_file` says that it stands in a file of its own.
    pub data: Option<Arc<dyn StorageMut>>,
    /// The image that shall show through, if there is one: its name by the path from the new image,
    /// its absolute path among the others, its format, identity and time of change.
    ///
    /// A format whose options have no `backing_file` has no use for it.
    pub backing: Option<BackingReference>,
    /// The format's own options.
    pub options: Options,
    /// Whether to pack units of data (`-c`).
    pub compress: bool,
    /// The identity that formats with one give the image.
    pub uuid: Uuid,
    /// The time of creation for formats that keep it, in seconds since 1970-01-01 UTC.
    pub timestamp: u64,
}
