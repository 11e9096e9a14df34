//! A new image without anything in it.

use std::path::{Path, PathBuf};

use goldsmith_block::{BackingReference, Chain, CreateSpec, Error, Format, Options, Result};
use goldsmith_storage::{Cache, Target};

use crate::convert::now;
use crate::new_image::{Identity, backing_must_fit, imagined, new_image_methods};
use crate::reference::{behind, data_file, unseen};
use crate::secret::Secrets;
use crate::watch::{Tap, Watch, watch_methods};
use crate::{Cancel, Opener, Phase, registry, target};

/// A new image, to be described and then made by [`run`](Self::run).
///
/// ```
/// use goldsmith::{Create, Opener, References};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let at = |name: &str| folder.path().join(name);
/// Create::new(at("golden.qcow2")).format("qcow2").size(20 << 30).run()?;
/// let disk = Create::new(at("disk.qcow2"))
///     .format("qcow2")
///     .backing("golden.qcow2", "qcow2")
///     .run()?;
/// assert_eq!(disk.virtual_size, 20 << 30);
///
/// let opener = Opener::new().references(References::SameDirectory);
/// let chain = opener.open(at("disk.qcow2"), Some("qcow2"))?;
/// assert_eq!(chain.layers().len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Create<'a> {
    path: PathBuf,
    format: String,
    virtual_size: Option<u64>,
    options: Vec<(String, String)>,
    opener: Opener,
    secrets: Secrets,
    unseen: bool,
    identity: Identity,
    timestamp: Option<u64>,
    dry_run: bool,
    watch: Watch<'a>,
    cancel: Option<Cancel>,
}

/// A new image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Created {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the image file in bytes.
    pub file_len: u64,
    /// What the caller may want to know.
    pub warnings: Vec<String>,
}

impl<'a> Create<'a> {
    /// An empty RAW image at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            format: "raw".into(),
            virtual_size: None,
            options: Vec::new(),
            opener: Opener::new(),
            secrets: Secrets::default(),
            unseen: false,
            identity: Identity::default(),
            timestamp: None,
            dry_run: false,
            watch: Watch::default(),
            cancel: None,
        }
    }

    /// Sets the format. Default: `raw`.
    #[must_use]
    pub fn format(mut self, name: impl Into<String>) -> Self {
        self.format = name.into();
        self
    }

    /// Sets the size of the disk in bytes; it becomes the next multiple that the format can hold.
    /// Default: that of the backing file.
    #[must_use]
    pub fn size(mut self, virtual_size: u64) -> Self {
        self.virtual_size = Some(virtual_size);
        self
    }

    new_image_methods!();

    /// Sets whether to believe that the backing file is there instead of opening it. Default: no.
    #[must_use]
    pub fn unseen_backing(mut self, unseen: bool) -> Self {
        self.unseen = unseen;
        self
    }

    /// Sets how the backing file is opened: its references, its limits.
    #[must_use]
    pub fn opener(mut self, opener: Opener) -> Self {
        self.opener = opener;
        self
    }

    /// Sets whether to leave all files as they are, and only tell what would be made. Default: no.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    watch_methods!("how many of the disk's bytes have got their space.", cancel);

    /// Makes it. On success it stands complete and durable under its name; otherwise whatever stood
    /// there still does. (A block device is the exception: it is written in place.)
    ///
    /// # Errors
    /// `Usage` if the format cannot hold the disk, an option is wrong, there is no size, or the
    /// image would be its own backing file; those of opening the backing file; `Io` if a file
    /// cannot be written.
    ///
    /// # Cost
    /// Nothing that depends on the size of the disk, unless space is preallocated: the backing
    /// file's headers are read, and none of its data.
    pub fn run(&self) -> Result<Created> {
        let format = registry::format_named(&self.format)?;
        let given = |name: &str| self.options.iter().any(|(key, _)| key == name);
        backing_must_fit(format, &self.options)
            .map_err(|error| error.in_file(self.path.to_string_lossy()))?;
        if given("backing_file") && !given("backing_fmt") {
            return Err(self.refuse("Backing file specified without backing format"));
        }
        let options = registry::named(&self.options);
        let options = self.secrets.parse(format.options(), options)?;
        let (backing, behind) = match self.unseen {
            true => (self.unseen(&options)?, None),
            // None of its data is read, so whoever writes to it may go on.
            false => {
                let opener = self.opener.stopped_by(self.cancel.as_ref());
                let opener = opener.force_share(true).behind(format.name());
                behind(&opener, &self.path, &options)?.unzip()
            }
        };
        let size = self
            .virtual_size
            .or_else(|| behind.as_ref().map(Chain::virtual_size));
        let Some(size) = size else {
            return Err(self.refuse("Image creation needs a size parameter"));
        };
        let mut warnings = behind
            .as_ref()
            .map_or(Vec::new(), |chain| chain.warnings().to_vec());
        let virtual_size = self.rounded(size, format, &mut warnings)?;
        let uuid = self
            .identity
            .uuid(&self.path, format, virtual_size, self.timestamp);
        let mut spec = CreateSpec {
            uuid: self.identity.over(backing.as_ref(), uuid),
            virtual_size,
            data: None,
            backing,
            options,
            compress: false,
            timestamp: self.timestamp.unwrap_or_else(now),
        };
        let data_file = data_file(&self.path, &spec.options)?;
        let read = [behind.as_ref()];
        let committed = if self.dry_run {
            for path in std::iter::once(&self.path).chain(&data_file) {
                target::must_spare(path, &behind)?;
            }
            spec.data = data_file.map(|path| imagined(&path));
            let sink = format.create(imagined(&self.path), &spec);
            sink.and_then(|sink| sink.commit())
                .map_err(|error| error.in_file(self.path.to_string_lossy()))?
        } else {
            let target = target::create(&self.path, Cache::default(), read)?;
            let data_file = data_file
                .map(|path| target::create_data(&path, Cache::default(), read, &target))
                .transpose()?;
            let tap = Tap::new(self.cancel.as_ref());
            let storage = |target: &Target| tap.on(target.storage());
            spec.data = data_file.as_ref().map(storage);
            let all_open = || target::all_open(&self.opener, [Some(&target), data_file.as_ref()]);
            let make = || {
                // One that has to be packed opens a file to make it in.
                if !format.unpacks() {
                    all_open()?;
                }
                let sink = format.create(storage(&target), &spec)?;
                if format.unpacks() {
                    all_open()?;
                }
                sink.commit()
            };
            let committed = self
                .watch
                .over(&tap, Phase::Allocate, virtual_size, make)
                .map_err(|error| error.in_file(self.path.to_string_lossy()))?;
            // First what the image needs, so that it never stands there without.
            Target::publish_all(data_file.into_iter().chain([target]))?;
            committed
        };
        Ok(Created {
            virtual_size,
            file_len: committed.file_len,
            warnings,
        })
    }

    fn unseen(&self, options: &Options) -> Result<Option<BackingReference>> {
        let names = options
            .text("backing_file")
            .zip(options.text("backing_fmt"));
        names
            .map(|(name, format)| unseen(&self.path, name, format))
            .transpose()
    }

    /// `size` as the format can hold it. Empty bytes cost nobody anything, but the caller hears of
    /// them.
    fn rounded(&self, size: u64, format: &dyn Format, warnings: &mut Vec<String>) -> Result<u64> {
        let unit = format.size_unit();
        let rounded = size.checked_next_multiple_of(unit);
        let Some(rounded) = rounded.filter(|size| i64::try_from(*size).is_ok()) else {
            return Err(self.refuse(format!("no disk has {size} bytes")));
        };
        if rounded != size {
            warnings.push(format!(
                "{}: the disk has {rounded} bytes instead of {size}: {} images hold multiples of \
                 {unit} bytes",
                self.path.display(),
                format.name()
            ));
        }
        Ok(rounded)
    }

    fn refuse(&self, why: impl Into<String>) -> Error {
        Error::usage(why.into()).in_file(self.path.to_string_lossy())
    }
}
