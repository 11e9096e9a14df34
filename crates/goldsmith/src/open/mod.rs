//! Opening images, and what they name only as far as the caller allows: what is asked for.
//!
//! ```text
//!  path ──► file ──► layer ──────────────────► chain: the disk that a guest sees
//!           locked,  one image, and the file     ▲
//!           probed   that holds its data         │
//!                      └─ backing: what it names ┘
//! ```

use goldsmith_block::{Error, Format, Limits, Options, Result, StorageId};
use goldsmith_engine::Cancel;
use goldsmith_storage::Cache;

use crate::filename::Part;
use crate::secret::Secrets;
use crate::snapshot::SnapshotName;
use when_open::WhenOpen;

mod backing;
mod chain;
mod file;
mod layer;
mod when_open;

pub(crate) use backing::{must_be_unchanged, must_know_backing};
pub(crate) use chain::must_be_unlocked;
pub(crate) use file::ImageFile;
pub(crate) use layer::refuse_itself;

/// Which of the files that an image names may be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum References {
    /// None: an image that needs another one is refused.
    #[default]
    Deny,
    /// Files in the directory of the image that names them.
    ///
    /// They must be regular files that belong to the owner of that image, or that everybody may read
    /// (and write, where they are to be written to): an image gets nobody to open for it what its
    /// owner could not. Symbolic links, devices, pipes and sockets are refused, and so is whatever
    /// becomes one of them while it is opened. Who can put files into the directory decides what such
    /// an image shows.
    SameDirectory,
    /// Any file or block device that the process may read. For images from people you trust.
    Allow,
}

/// Opens images.
///
/// ```
/// use goldsmith::{Create, ErrorKind, Opener, References};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let at = |name: &str| folder.path().join(name);
/// std::fs::write(at("golden.raw"), vec![7; 1 << 20])?;
/// let disk = at("disk.qcow2");
/// Create::new(&disk).format("qcow2").backing("golden.raw", "raw").run()?;
///
/// let strangers = Opener::new();
/// assert_eq!(strangers.open(&disk, Some("qcow2")).unwrap_err().kind(), ErrorKind::Denied);
/// let ours = Opener::new().references(References::SameDirectory);
/// let mut bytes = [0; 512];
/// ours.open(&disk, Some("qcow2"))?.read_at(4096, &mut bytes)?;
/// assert_eq!(bytes, [7; 512]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Opener {
    pub(crate) references: References,
    pub(crate) limits: Limits,
    backing_format: Option<String>,
    options: Vec<(String, String)>,
    part: Option<Part>,
    snapshot: Option<SnapshotName>,
    /// The format of the image behind which the topmost one stands, if it does.
    in_front: Option<&'static str>,
    secrets: Secrets,
    force_share: bool,
    /// Files that are locked for this process already, as a file cannot be twice.
    held: Vec<StorageId>,
    expected: Option<String>,
    /// Whether nobody is going to read any data: files that hold that of an image are left alone.
    heads_only: bool,
    /// Whether nobody is going to ask for more than where the bytes of a disk are.
    extents_only: bool,
    /// Whether to open images in which something is broken that the disk can be read without.
    salvages: bool,
    when_open: WhenOpen,
    cache: Cache,
    cancel: Option<Cancel>,
}

impl Opener {
    /// An opener that follows no references, with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which files an image may pull in.
    #[must_use]
    pub fn references(mut self, references: References) -> Self {
        self.references = references;
        self
    }

    /// Sets what an image may cost.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the format of backing files for images that do not say it themselves.
    #[must_use]
    pub fn backing_format(mut self, format: impl Into<String>) -> Self {
        self.backing_format = Some(format.into());
        self
    }

    /// Sets one of the [options](goldsmith_block::Format::open_options) with which the format of the
    /// topmost image opens it; the last value of a key wins. `backing.` before the key means the
    /// image behind that one, and so on.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Sets which part of its file the topmost image is. Default: all of it.
    #[must_use]
    pub fn part(mut self, part: Part) -> Self {
        self.part = Some(part);
        self
    }

    /// Adds a passphrase, which options name by `id`.
    #[must_use]
    pub fn secret(mut self, id: impl Into<String>, text: impl Into<String>) -> Self {
        self.secrets.insert(id.into(), text.into());
        self
    }

    /// Sets whether to open images although other processes, such as a running virtual machine, may
    /// be writing to them: what is read may then be of no moment that ever was. Default: no, such an
    /// image is refused, and for as long as it is open here they are refused it for writing.
    #[must_use]
    pub fn force_share(mut self, force_share: bool) -> Self {
        self.force_share = force_share;
        self
    }

    /// Leaves the locks on these files to the caller, who has them.
    pub(crate) fn holding(mut self, held: impl IntoIterator<Item = StorageId>) -> Self {
        self.held.extend(held);
        self
    }

    /// Whether the caller has the locks on this file.
    pub(crate) fn holds(&self, file: StorageId) -> bool {
        self.held.contains(&file)
    }

    /// States the format that the topmost image must have: its file must carry that one's marks and
    /// those of no other format (`raw`: none at all), or it is not opened. For files from people who
    /// may have made them look like something else, or like two things at once.
    ///
    /// ```
    /// use goldsmith::{Create, ErrorKind, Opener};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let upload = folder.path().join("upload.img");
    /// // Said to be a raw disk, by somebody who wants it to be opened as something else one day.
    /// Create::new(&upload).format("qcow2").size(1 << 20).run()?;
    /// let opener = Opener::new().expect("raw");
    /// let refused = opener.open(&upload, Some("raw")).err().map(|error| error.kind());
    /// assert_eq!(refused, Some(ErrorKind::Denied));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn expect(mut self, format: impl Into<String>) -> Self {
        self.expected = Some(format.into());
        self
    }

    /// Sets whether to open images in which something is broken that the disk can be read without.
    pub(crate) fn salvaging(mut self, salvages: bool) -> Self {
        self.salvages = salvages;
        self
    }

    pub(crate) fn passes_cache(&self) -> bool {
        self.cache.is_passed()
    }

    /// Sets how files that are read go through the system's cache. Default: they stay there.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Sets the flag that stops opening an image that has to be unpacked for it, a container of VHDs.
    #[must_use]
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    /// The same opener, stopped by this flag if there is one.
    pub(crate) fn stopped_by(&self, cancel: Option<&Cancel>) -> Self {
        match cancel {
            Some(cancel) => self.clone().cancel(cancel),
            None => self.clone(),
        }
    }

    /// Opens the topmost image as it was when this internal snapshot was taken.
    #[must_use]
    pub fn snapshot(mut self, name: SnapshotName) -> Self {
        self.snapshot = Some(name);
        self
    }

    /// Whether nothing is wanted of the topmost image but the disk that its file stands for.
    pub(crate) fn wants_disk_alone(&self) -> bool {
        self.snapshot.is_none() && self.options.is_empty()
    }

    /// What decides which disk an image shows, but for the files themselves; to be compared.
    pub(crate) fn wishes(&self) -> impl std::fmt::Debug {
        (&self.snapshot, &self.backing_format, &self.options)
    }

    /// The same opener, without what is meant for one image alone.
    pub(crate) fn for_another_image(&self) -> Self {
        Self {
            options: Vec::new(),
            part: None,
            snapshot: None,
            expected: None,
            ..self.clone()
        }
    }

    /// The same opener, for what stands behind an image of this format.
    pub(crate) fn behind(&self, format: &'static str) -> Self {
        Self {
            in_front: Some(format),
            ..self.clone()
        }
    }

    /// The options with which `format` opens the image at `depth`.
    pub(crate) fn options_for(&self, format: &dyn Format, depth: usize) -> Result<Options> {
        let implied = match self.in_front == Some(format.name()) {
            true => format.options_behind(),
            false => &[],
        };
        let prefix = "backing.".repeat(depth);
        let stated = self.options.iter().filter_map(|(key, value)| {
            let key = key.strip_prefix(&prefix)?;
            (!key.starts_with("backing.")).then_some((key, &**value))
        });
        let pairs = implied.iter().copied().chain(stated);
        self.secrets.parse(format.open_options(), pairs)
    }

    /// Fails if an option is meant for an image behind the last one of a chain of so many.
    pub(crate) fn must_be_for(&self, images: usize) -> Result<()> {
        let behind_all = "backing.".repeat(images);
        let mut keys = self.options.iter().map(|(key, _)| key);
        match keys.find(|key| key.starts_with(&behind_all)) {
            Some(key) => Err(Error::usage(format!(
                "'{key}' is for an image that is not there: the chain has {images}, the topmost included"
            ))),
            None => Ok(()),
        }
    }

    /// The part of its file that the image at `depth` is.
    pub(crate) fn part_for(&self, depth: usize) -> Option<Part> {
        self.part.filter(|_| depth == 0)
    }

    /// The passphrases, for options of other kinds.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}
