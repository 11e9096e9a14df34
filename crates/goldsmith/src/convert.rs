//! One image into another, published only when it is whole.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use goldsmith_block::{
    BackingReference, Budget, Chain, CreateSpec, Error, Format, Options, Result,
};
use goldsmith_engine::{Cancel, Crc32, Job, Progress};
use goldsmith_storage::Target;
use uuid::Uuid;

use crate::bitmap::Bitmaps;
use crate::reference::{behind, data_file};
use crate::secret::Secrets;
use crate::{Cloud, Opener, registry};

/// A conversion, to be described and then [`run`](Self::run).
#[derive(Clone)]
pub struct Convert<'a> {
    source: PathBuf,
    target: PathBuf,
    opener: Opener,
    source_format: Option<String>,
    target_format: String,
    options: Vec<(String, String)>,
    secrets: Secrets,
    compress: bool,
    bitmaps: Bitmaps,
    round_up: bool,
    cloud: Option<&'static Cloud>,
    identity: Identity,
    timestamp: Option<u64>,
    job: Job<'a>,
}

/// Where the target's UUID comes from.
#[derive(Clone, Copy)]
enum Identity {
    Random,
    Name,
    Given(Uuid),
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the target file in bytes.
    pub file_len: u64,
    /// Bytes that had to be read from the source's data.
    pub data: u64,
    /// Checksum of the source's guest bytes, if it was asked for.
    pub crc32: Option<Crc32>,
    /// What the caller may want to know: what is wrong with the source without keeping it from being
    /// read (see [`Chain::warnings`]), and that the disk grew to please a cloud.
    pub warnings: Vec<String>,
}

impl<'a> Convert<'a> {
    /// The image at `source` into a RAW image at `target`, the source's format to be guessed.
    pub fn new(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        Self {
            source: source.as_ref().to_owned(),
            target: target.as_ref().to_owned(),
            opener: Opener::new(),
            source_format: None,
            target_format: "raw".into(),
            options: Vec::new(),
            secrets: Secrets::default(),
            compress: false,
            bitmaps: Bitmaps::None,
            round_up: false,
            cloud: None,
            identity: Identity::Random,
            timestamp: None,
            job: Job::default(),
        }
    }

    /// Sets how the source is opened: its references, its limits.
    #[must_use]
    pub fn opener(mut self, opener: Opener) -> Self {
        self.opener = opener;
        self
    }

    /// States the source's format. Do so whenever you know it.
    #[must_use]
    pub fn source_format(mut self, name: impl Into<String>) -> Self {
        self.source_format = Some(name.into());
        self
    }

    /// Sets the target's format. Default: `raw`.
    #[must_use]
    pub fn target_format(mut self, name: impl Into<String>) -> Self {
        self.target_format = name.into();
        self
    }

    /// Sets one creation option of the target's format; the last value of a key wins.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Adds a passphrase, which options of the target name by `id`. The source's are its
    /// [opener](Opener::secret)'s.
    #[must_use]
    pub fn secret(mut self, id: impl Into<String>, text: impl Into<String>) -> Self {
        self.secrets.insert(id.into(), text.into());
        self
    }

    /// Makes the target show the image `name`, a path from the target's directory, where it holds
    /// nothing itself, and puts only what differs into it. `format` is that image's.
    #[must_use]
    pub fn backing(self, name: impl Into<String>, format: impl Into<String>) -> Self {
        self.option("backing_file", name)
            .option("backing_fmt", format)
    }

    /// Sets whether the target is packed, where its format can be. Default: no.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Sets which bitmaps of the source image, which it alone has, the target gets. Default: none.
    #[must_use]
    pub fn bitmaps(mut self, bitmaps: Bitmaps) -> Self {
        self.bitmaps = bitmaps;
        self
    }

    /// Sets whether the disk may grow by some zero bytes where the target's format holds only
    /// multiples of a sector. Default: no, such a disk is refused.
    #[must_use]
    pub fn round_up(mut self, round_up: bool) -> Self {
        self.round_up = round_up;
        self
    }

    /// Makes what `cloud` wants: its format and creation options, over which [`option`](Self::option)
    /// lays others, and a disk of a size that it takes. If the disk has to grow for that, by zero
    /// bytes, the outcome's [warnings](Converted::warnings) tell.
    #[must_use]
    pub fn cloud(mut self, cloud: &'static Cloud) -> Self {
        self.target_format = cloud.format.into();
        self.cloud = Some(cloud);
        self
    }

    /// Sets the target's identity, for formats that have one. Default: a random one.
    #[must_use]
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.identity = Identity::Given(uuid);
        self
    }

    /// Derives the target's identity from its file name, its format and the source's size, so that
    /// the same build gives the same bytes.
    #[must_use]
    pub fn uuid_from_name(mut self) -> Self {
        self.identity = Identity::Name;
        self
    }

    /// Sets the target's time of creation, in seconds since 1970-01-01 UTC, for formats that keep
    /// it. Default: now.
    #[must_use]
    pub fn timestamp(mut self, seconds: u64) -> Self {
        self.timestamp = Some(seconds);
        self
    }

    /// Sets the shortest run of zeros, in bytes, that takes no space in the target; 0 stores every
    /// byte. Default: 4096.
    #[must_use]
    pub fn sparse(mut self, bytes: u64) -> Self {
        self.job.sparse = bytes;
        self
    }

    /// Sets whether the target may share the source's blocks where the file system can do that
    /// (XFS, btrfs): it takes next to no time and space then, and zeros among what is shared are
    /// not looked for. Default: yes.
    #[must_use]
    pub fn share(mut self, share: bool) -> Self {
        self.job.share = share;
        self
    }

    /// Sets the number of workers. Default: one per core. It never changes the target's bytes.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.job.threads = Some(threads);
        self
    }

    /// Sets whether to compute the checksum of the guest's bytes on the way. Default: no.
    #[must_use]
    pub fn digest(mut self, digest: bool) -> Self {
        self.job.digest = digest;
        self
    }

    /// Sets whom to tell how far the work has come; called often, from any worker.
    #[must_use]
    pub fn progress(mut self, listener: &'a (dyn Fn(Progress) + Sync)) -> Self {
        self.job.progress = Some(listener);
        self
    }

    /// Sets the flag that stops the work.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.job.cancel = Some(cancel);
        self
    }

    /// Does it. On success the target stands complete and durable under its name; otherwise
    /// whatever stood there still does. (A block device is the exception: it is written in place.)
    ///
    /// # Errors
    /// Those of opening the source; `Usage` if the target's format cannot hold the disk, an option
    /// is wrong, or the target is a file that is read; `Io` if either side fails.
    pub fn run(&self) -> Result<Converted> {
        let format = self.format()?;
        let options = self.options(format)?;
        let source = self.source()?;
        let virtual_size = self.virtual_size(source.virtual_size(), format)?;
        let (reference, behind) = self.behind(&options)?.unzip();
        let data_file = data_file(&self.target, &options)?;
        let mut spec = self.spec(format, virtual_size, options);
        spec.backing = reference;

        let name = self.target.to_string_lossy();
        let read = [Some(&source), behind.as_ref()];
        let target = target(&self.target, read)?;
        let data_file = data_file
            .map(|path| self::target(&path, read))
            .transpose()?;
        spec.data = data_file.as_ref().map(Target::storage);
        let sink = format
            .create(target.storage(), &spec)
            .map_err(|error| error.in_file(name.clone()))?;
        let job = self.job(behind.as_ref());
        let outcome = goldsmith_engine::convert(&source, sink, &job)?;
        let mut file_len = outcome.committed.file_len;
        if self.bitmaps != Bitmaps::None && !source.top().info().bitmaps.is_empty() {
            let budget = Budget::new(&self.opener.limits);
            let options = Options::defaults(format.open_options());
            let mut editor = format.edit(target.storage(), &budget, &options)?;
            self.bitmaps.copy(source.top(), &mut *editor, &budget)?;
            file_len = target.storage().len();
        }
        // First what the image needs, so that it never stands there without.
        if let Some(data_file) = data_file {
            data_file.publish()?;
        }
        target.publish()?;
        Ok(Converted {
            virtual_size: spec.virtual_size,
            file_len,
            data: outcome.data,
            crc32: outcome.crc32,
            warnings: self.warnings(&source, virtual_size),
        })
    }

    pub(crate) fn format(&self) -> Result<&'static dyn Format> {
        registry::format_named(&self.target_format)
    }

    /// The creation options of the target.
    pub(crate) fn options(&self, format: &dyn Format) -> Result<Options> {
        let of_cloud = self.cloud.map_or(&[][..], |cloud| cloud.options);
        let given = registry::named(&self.options);
        let options = of_cloud.iter().copied().chain(given);
        self.secrets.parse(format.options(), options)
    }

    /// What the target says of the disk behind it, and that disk, if there is to be one.
    pub(crate) fn behind(&self, options: &Options) -> Result<Option<(BackingReference, Chain)>> {
        behind(&self.opener, &self.target, options)
    }

    pub(crate) fn source(&self) -> Result<Chain> {
        self.opener
            .open(&self.source, self.source_format.as_deref())
    }

    /// The target, as far as it is known without what stands behind it.
    pub(crate) fn spec(
        &self,
        format: &dyn Format,
        virtual_size: u64,
        options: Options,
    ) -> CreateSpec {
        CreateSpec {
            virtual_size,
            data: None,
            backing: None,
            options,
            compress: self.compress,
            uuid: self.new_uuid(virtual_size, format),
            timestamp: self.timestamp.unwrap_or_else(now),
        }
    }

    /// The work to be done, for a target with `behind` behind it.
    pub(crate) fn job<'b>(&self, behind: Option<&'b Chain>) -> Job<'b>
    where
        'a: 'b,
    {
        Job { behind, ..self.job }
    }

    /// What is wrong with the source, and that the disk grew if nobody asked for it by name.
    fn warnings(&self, source: &Chain, virtual_size: u64) -> Vec<String> {
        let mut warnings = source.warnings().to_vec();
        let added = virtual_size - source.virtual_size();
        if let Some(cloud) = self.cloud
            && added > 0
        {
            warnings.push(format!(
                "{}: the disk grew by {added} zero bytes to {virtual_size}, a size that {} takes",
                self.target.display(),
                cloud.name
            ));
        }
        warnings
    }

    fn new_uuid(&self, virtual_size: u64, format: &dyn Format) -> Uuid {
        match self.identity {
            Identity::Random => Uuid::new_v4(),
            Identity::Given(uuid) => uuid,
            Identity::Name => {
                let name = self
                    .target
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy();
                let text = format!("goldsmith:{}:{virtual_size}:{name}", format.name());
                Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes())
            }
        }
    }

    /// The size of the target's disk: `size`, the source's, or rounded up if that is needed and allowed.
    pub(crate) fn virtual_size(&self, size: u64, format: &dyn Format) -> Result<u64> {
        let unit = format.size_unit();
        if let Some(cloud) = self.cloud {
            return cloud
                .disk_size(size)
                .map_err(|error| error.in_file(self.source.to_string_lossy()));
        }
        if size.is_multiple_of(unit) {
            return Ok(size);
        }
        let missing = unit - size % unit;
        if self.round_up {
            return Ok(size + missing);
        }
        Err(Error::usage(format!(
            "the disk has {size} bytes, and {} images hold multiples of {unit} bytes; allow \
             rounding up (--round-up) to add {missing} zero bytes",
            format.name()
        ))
        .in_file(self.source.to_string_lossy()))
    }
}

/// Prepares to write `path`, which must be no file of the disks that are `read`.
pub(crate) fn target<'a>(
    path: &Path,
    read: impl IntoIterator<Item = Option<&'a Chain>>,
) -> Result<Target> {
    let target = Target::create(path)?;
    let layers = read.into_iter().flatten().flat_map(Chain::layers);
    let mut ids = layers.flat_map(|layer| [layer.storage().id(), layer.data_storage().id()]);
    if target.id().is_some_and(|id| ids.any(|read| read == id)) {
        let text = "the target is also a file of the source, which would be overwritten";
        return Err(Error::usage(text).in_file(path.to_string_lossy()));
    }
    target.lock()?;
    Ok(target)
}

/// Now, in seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    // A clock before 1970 is wrong in any case.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
