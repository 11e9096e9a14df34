//! How long a target would become.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{Chain, Content, CreateSpec, Format, GuestRange, Measured, Result};
use goldsmith_engine::{Cancel, Progress, data_ranges, lay_out};
use goldsmith_storage::VoidStorage;
use uuid::Uuid;

use crate::bitmap::keeps_bitmaps;
use crate::work::shown_by;
use crate::{Cloud, Convert, Opener};

/// A conversion that is not made but measured: to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Convert, Measure};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.qcow2"));
/// std::fs::write(&golden, vec![7; 1 << 20])?;
/// let measured = Measure::new(&golden).source_format("raw").target_format("qcow2").run()?;
/// let done = Convert::new(&golden, &disk).source_format("raw").target_format("qcow2").run()?;
/// assert_eq!(measured.exact, Some(done.file_len));
///
/// let empty = Measure::of_size(40 << 30).target_format("vpc").run()?;
/// assert!(empty.required < 1 << 20 && empty.fully_allocated > 40 << 30);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Measure<'a> {
    convert: Convert<'a>,
    /// Size of a new disk to be measured instead of a source.
    size: Option<u64>,
    exact: bool,
}

/// How long a target would become, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measurement {
    /// With the data of the source: what is enough, and for qcow2 the number that qemu-img gives.
    pub required: u64,
    /// When all of the disk has been written to.
    pub fully_allocated: u64,
    /// What the source's bitmaps take in addition, where both formats keep some.
    pub bitmaps: Option<u64>,
    /// Just how long the file is that [`Convert`] makes, if that was [wanted](Measure::exact). That of a
    /// packed container hangs on its identity and its time too, by some bytes.
    pub exact: Option<u64>,
}

shown_by!(Measure: convert, size, exact);

impl<'a> Measure<'a> {
    /// The image at `source`, its format to be guessed, as a RAW image.
    pub fn new(source: impl AsRef<Path>) -> Self {
        Self {
            // There is no target; only its directory matters, and that to what it names.
            convert: Convert::new(source, "measured").round_up(true),
            size: None,
            exact: true,
        }
    }

    /// A new image of `size` bytes that nobody has written to, a RAW one.
    pub fn of_size(size: u64) -> Self {
        Self {
            size: Some(size),
            ..Self::new("")
        }
    }

    /// Sets how the source is opened, as [`Convert::opener`].
    #[must_use]
    pub fn opener(self, opener: Opener) -> Self {
        self.with(|convert| convert.opener(opener))
    }

    /// States the source's format, as [`Convert::source_format`].
    #[must_use]
    pub fn source_format(self, name: impl Into<String>) -> Self {
        self.with(|convert| convert.source_format(name))
    }

    /// Sets the target's format, as [`Convert::target_format`].
    #[must_use]
    pub fn target_format(self, name: impl Into<String>) -> Self {
        self.with(|convert| convert.target_format(name))
    }

    /// Sets one creation option of the target's format, as [`Convert::option`]. Names of files count
    /// from the working directory.
    #[must_use]
    pub fn option(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|convert| convert.option(key, value))
    }

    /// Sets how many bytes the disk must have, as [`Convert::expect_size`].
    #[must_use]
    pub fn expect_size(self, bytes: u64) -> Self {
        self.with(|convert| convert.expect_size(bytes))
    }

    /// Adds a passphrase, as [`Convert::secret`].
    #[must_use]
    pub fn secret(self, id: impl Into<String>, text: impl Into<String>) -> Self {
        self.with(|convert| convert.secret(id, text))
    }

    /// Measures what `cloud` wants, as [`Convert::cloud`].
    #[must_use]
    pub fn cloud(self, cloud: &'static Cloud) -> Self {
        self.with(|convert| convert.cloud(cloud))
    }

    /// Sets the target's identity, as [`Convert::uuid`].
    #[must_use]
    pub fn uuid(self, uuid: Uuid) -> Self {
        self.with(|convert| convert.uuid(uuid))
    }

    /// Sets the target's time of creation, as [`Convert::timestamp`].
    #[must_use]
    pub fn timestamp(self, seconds: u64) -> Self {
        self.with(|convert| convert.timestamp(seconds))
    }

    /// Sets the flag that stops the work.
    #[must_use]
    pub fn cancel(self, cancel: &'a Cancel) -> Self {
        self.with(|convert| convert.cancel(cancel))
    }

    /// Sets whom to tell how far the work has come; called often, from any worker.
    #[must_use]
    pub fn progress(self, listener: &'a (dyn Fn(Progress) + Sync)) -> Self {
        self.with(|convert| convert.progress(listener))
    }

    /// Sets whether to find out the exact length, for which all data is read, as only then is it
    /// known what of it is zeros. Otherwise the tables must do. Default: yes.
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    fn with(self, change: impl FnOnce(Convert<'a>) -> Convert<'a>) -> Self {
        Self {
            convert: change(self.convert),
            ..self
        }
    }

    /// Does it. Writes nothing.
    ///
    /// The exact length is that of a target that shares nothing with the source: where blocks are
    /// [shared](Convert::share), zeros among them stay, and a target of allocated units gets longer.
    ///
    /// # Errors
    /// Those of [`Convert::run`], except those of writing.
    ///
    /// # Cost
    /// The exact length: a conversion without its writes, or nothing to speak of where every byte of the disk
    /// has its place in advance (`preallocation`). All else: the source's tables.
    pub fn run(&self) -> Result<Measurement> {
        let convert = &self.convert;
        let format = convert.format()?;
        let options = convert.options(format)?;
        let source = match self.size {
            Some(_) => None,
            None => Some(convert.source()?),
        };
        let source = source.as_ref();
        // An estimate may not need the disk behind, and then that need not be there.
        let is_later = !self.exact && options.text("backing_file").is_some();
        let mut named = None;
        if !is_later {
            named = convert.behind(format, &options)?;
            convert.opener_of_source().all_open(&[])?;
        }
        let size = source.map(Chain::virtual_size).or(self.size);
        let virtual_size = convert.virtual_size(size.unwrap_or_default(), format)?;
        let mut spec = convert.spec(format, virtual_size, options);

        let measured = match source {
            Some(source) => {
                let info = source.top().info();
                let content = Content {
                    data: &mut data_ranges(source),
                    bitmaps: keeps_bitmaps(source.top()).then_some(&info.bitmaps),
                };
                format.measure(&spec, Some(content))?
            }
            None => format.measure(&spec, None)?,
        };
        if let (Some(measured), false) = (measured, self.exact) {
            return Ok(Measurement::of(measured, None));
        }

        if is_later {
            named = convert.behind(format, &spec.options)?;
            convert.opener_of_source().all_open(&[])?;
        }
        let (reference, behind) = named.unzip();
        spec.backing = reference;
        if spec.options.text("data_file").is_some() {
            spec.data = Some(void());
        }
        let sink = || format.create(void(), &spec);
        let measured = match measured {
            Some(measured) => measured,
            None => match source {
                Some(source) => reckon(format, &spec, Some(&mut data_ranges(source)))?,
                None => reckon(format, &spec, None)?,
            },
        };
        let known = match self.exact {
            true => format.len_of_any(&spec)?,
            false => None,
        };
        let exact = match source {
            _ if !self.exact || known.is_some() => known,
            Some(source) => {
                let void = convert.void(&mut spec)?;
                let outcome = convert.rehearse(source, &spec, behind.as_ref(), void)?;
                Some(outcome.committed.file_len)
            }
            None => Some(lay_out(sink()?, [])?.file_len),
        };
        Ok(Measurement::of(measured, exact))
    }
}

/// Measures for a format that does not do so itself, by laying images out: with the parts of the disk
/// in `data`, if it is not to be an empty one.
pub(crate) fn reckon(
    format: &dyn Format,
    spec: &CreateSpec,
    data: Option<&mut dyn Iterator<Item = Result<GuestRange>>>,
) -> Result<Measured> {
    let sink = || format.create(void(), spec);
    let whole = GuestRange::new(0, u64::MAX);
    let fully_allocated = lay_out(sink()?, [Ok(whole)])?.file_len;
    Ok(Measured {
        required: match data {
            None => lay_out(sink()?, [])?.file_len,
            // How much shows through cannot be known without a look.
            Some(_) if spec.backing.is_some() => fully_allocated,
            Some(data) => lay_out(sink()?, data)?.file_len,
        },
        fully_allocated,
        bitmaps: None,
    })
}

impl Measurement {
    fn of(measured: Measured, exact: Option<u64>) -> Self {
        let Measured {
            required,
            fully_allocated,
            bitmaps,
        } = measured;
        Self {
            required,
            fully_allocated,
            bitmaps,
            exact,
        }
    }
}

fn void() -> Arc<VoidStorage> {
    Arc::new(VoidStorage::new("measured", 0))
}
