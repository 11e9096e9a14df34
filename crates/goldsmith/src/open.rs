//! Opening an image, and what it names only as far as the caller allows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use goldsmith_block::{
    BackingReference, Budget, Chain, Error, ErrorKind, Format, Layer, Limits, Options, Result,
    Storage,
};
use goldsmith_storage::{Cache, FileStorage, Use};

use crate::filename::{ImageName, Part};
use crate::found::Found;
use crate::marks;
use crate::registry;
use crate::secret::Secrets;
use crate::snapshot::SnapshotName;
use crate::when_open::WhenOpen;

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
    secrets: Secrets,
    force_share: bool,
    expected: Option<String>,
    /// Whether nobody is going to read any data: files that hold that of an image are left alone.
    heads_only: bool,
    /// Whether nobody is going to ask for more than where the bytes of a disk are.
    extents_only: bool,
    pub(crate) when_open: WhenOpen,
    cache: Cache,
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

    /// Sets how files that are read go through the system's cache. Default: they stay there.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Opens the topmost image as it was when this internal snapshot was taken.
    #[must_use]
    pub fn snapshot(mut self, name: SnapshotName) -> Self {
        self.snapshot = Some(name);
        self
    }

    /// What decides which disk an image shows, but for the files themselves; to be compared.
    pub(crate) fn wishes(&self) -> impl std::fmt::Debug {
        (&self.snapshot, &self.backing_format, &self.options)
    }

    /// Tells other processes that `storage` is read, and must not be written meanwhile.
    pub(crate) fn lock(&self, storage: &dyn Storage) -> Result<()> {
        match self.force_share {
            true => Ok(()),
            false => goldsmith_storage::lock(storage, Use::Read),
        }
    }

    /// The file `found`, to be read.
    pub(crate) fn read_found(&self, found: &Found) -> Result<FileStorage> {
        Ok(found.open()?.cached(self.cache))
    }

    /// As [`lock`](Self::lock), for all files of these layers.
    pub(crate) fn lock_layers<'a>(
        &self,
        layers: impl IntoIterator<Item = &'a Arc<dyn Layer>>,
    ) -> Result<()> {
        layers.into_iter().try_for_each(|layer| {
            self.lock(&**layer.storage())?;
            self.lock(&**layer.data_storage())
        })
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

    /// Opens the image at `path` with everything behind it, as the disk that a guest sees.
    ///
    /// `format` is the format's name; `None` guesses it, see [`probe`](crate::probe).
    ///
    /// # Errors
    /// `Io` if a file cannot be opened, or somebody else is [writing](Self::force_share) to it;
    /// `Denied` if the image is not what was [expected](Self::expect), needs a file that the policy
    /// forbids or whose format nobody states, or is encrypted and nobody gave the
    /// [passphrase](Self::secret); `Limit` if the chain is too deep; `Corrupt` if it runs
    /// in a circle; `Usage` for an unknown format; and those of
    /// [`Format::open`](goldsmith_block::Format::open).
    pub fn open(&self, path: impl AsRef<Path>, format: Option<&str>) -> Result<Chain> {
        let (chain, _) = self.open_with_paths(path.as_ref(), format)?;
        must_be_unlocked(&chain)?;
        Ok(chain)
    }

    /// As [`open`](Self::open), for whoever asks where the disk's bytes are ([`map`](crate::map())) and
    /// not for the bytes, which may be an error: what is packed as a whole need not be stored then.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn survey(&self, path: impl AsRef<Path>, format: Option<&str>) -> Result<Chain> {
        let surveyor = Self {
            extents_only: true,
            ..self.clone()
        };
        surveyor.open(path, format)
    }

    /// As [`open`](Self::open), with the path of each layer.
    pub(crate) fn open_with_paths(
        &self,
        path: &Path,
        format: Option<&str>,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        let budget = Budget::new(&self.limits);
        let found = Found::by_user(path).only(self.part);
        let mut top = self.open_layer(&found, format, &budget, 0)?;
        let in_top = |error: Error| error.in_file(path.to_string_lossy());
        top = self.with_data(path, top).map_err(in_top)?;
        if let Some(name) = &self.snapshot {
            top = name.open(&*top, &budget).map_err(in_top)?;
        }
        self.open_behind(path, top, &budget)
    }

    /// The layers of the image at `path`, and the path of each: to be asked about themselves, not for
    /// guest data that stands in a file of its own.
    pub(crate) fn open_heads(
        &self,
        path: &Path,
        format: Option<&str>,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        let heads_only = Self {
            heads_only: true,
            ..self.clone()
        };
        heads_only.open_with_paths(path, format)
    }

    /// The file at `path`, if it is of a format that [unpacks](Format::unpacks) and nothing is wanted of
    /// it but its disk.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) that do not come of the image.
    pub(crate) fn open_packed(
        &self,
        path: &Path,
        format: Option<&str>,
    ) -> Result<Option<Arc<dyn Storage>>> {
        let unpacks = |format: &dyn Format| format.unpacks();
        let stated = format.map(registry::format_named).transpose()?;
        if self.snapshot.is_some() || !self.options.is_empty() || !stated.is_none_or(unpacks) {
            return Ok(None);
        }
        let (storage, format) = self.open_file(&Found::by_user(path).only(self.part), format, 0)?;
        Ok(unpacks(format).then_some(storage))
    }

    /// Opens everything behind `top`, the image at `path`; gives the path of each layer, too.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(crate) fn open_behind(
        &self,
        path: &Path,
        top: Arc<dyn Layer>,
        budget: &Budget,
    ) -> Result<(Chain, Vec<PathBuf>)> {
        let mut paths = vec![path.to_owned()];
        let mut warnings = Vec::new();
        let mut behind: Vec<Arc<dyn Layer>> = Vec::new();
        loop {
            let last = behind.last().unwrap_or(&top);
            let path = &paths[behind.len()];
            let Some(reference) = last.info().backing.clone() else {
                break;
            };
            let (next_path, layer) = self
                .open_reference(
                    (path, &**last.storage()),
                    &reference,
                    budget,
                    behind.len() + 1,
                )
                .map_err(|error| error.in_file(path.to_string_lossy()))?;
            warnings.extend(changed_since(path, &reference, &**layer.storage()));
            let id = layer.storage().id();
            if std::iter::once(&top)
                .chain(&behind)
                .any(|seen| seen.storage().id() == id)
            {
                return Err(Error::corrupt(format!(
                    "the backing file '{}' is already part of the chain",
                    next_path.display()
                ))
                .in_file(path.to_string_lossy()));
            }
            behind.push(layer);
            if behind.len() + 1 > self.limits.chain_depth {
                let limit = self.limits.chain_depth;
                let text = format!("the chain of backing files is longer than {limit} images");
                return Err(Error::new(ErrorKind::Limit, text));
            }
            paths.push(next_path);
        }
        Ok((Chain::new(top, behind).warn(warnings), paths))
    }

    /// Opens the image at `path` alone, whatever it names.
    ///
    /// # Errors
    /// `Usage` for an unknown format, and those of
    /// [`Format::open`](goldsmith_block::Format::open).
    pub fn open_alone(
        &self,
        path: impl AsRef<Path>,
        format: Option<&str>,
    ) -> Result<Arc<dyn Layer>> {
        let budget = Budget::new(&self.limits);
        let found = Found::by_user(path.as_ref()).only(self.part);
        self.open_layer(&found, format, &budget, 0)
    }

    /// As [`open_alone`](Self::open_alone), where nothing else is going to be opened and the image is
    /// only asked what it is.
    pub(crate) fn inspect(&self, path: &Path, format: Option<&str>) -> Result<Arc<dyn Layer>> {
        let budget = Budget::new(&self.limits);
        let (storage, format) = self.open_file(&Found::by_user(path).only(self.part), format, 0)?;
        if !format.unpacks() {
            self.all_open(&[])?;
        }
        let options = self.options_for(format, 0)?;
        let layer = format.inspect(storage, &budget, &options);
        let layer = layer.map_err(|error| error.in_file(path.to_string_lossy()))?;
        if format.unpacks() {
            self.all_open(&[])?;
        }
        Ok(layer)
    }

    /// Opens what `reference`, found in the image at the path `from`, means: the first of its names
    /// that leads to an image with the right identity.
    fn open_reference(
        &self,
        from: (&Path, &dyn Storage),
        reference: &BackingReference,
        budget: &Budget,
        depth: usize,
    ) -> Result<(PathBuf, Arc<dyn Layer>)> {
        let mut failures = Vec::new();
        for name in std::iter::once(&reference.name).chain(&reference.other_names) {
            match self.open_name(from, name, reference, budget, depth) {
                Ok(opened) => return Ok(opened),
                Err(error) => failures.push((name, error)),
            }
        }
        Err(self.best_told(failures))
    }

    /// The one of `failures`, each with the name that led to it, that helps the user most: one that
    /// says what is wrong with a file that was found rather than one about a file that is not there.
    fn best_told(&self, mut failures: Vec<(&String, Error)>) -> Error {
        let rank = |error: &Error| match error.kind() {
            ErrorKind::Io => 0,
            ErrorKind::Unsupported | ErrorKind::Denied => 1,
            _ => 2,
        };
        let best = failures.iter().map(|(_, error)| rank(error)).max();
        let at = failures
            .iter()
            .position(|(_, error)| Some(rank(error)) == best);
        // A reference has one name at least, and each gave an error.
        let (_, error) = failures.remove(at.unwrap_or(0));
        if failures.is_empty() || self.references == References::Deny {
            return error;
        }
        let others: Vec<_> = failures
            .iter()
            .map(|(name, _)| format!("'{name}'"))
            .collect();
        let others = others.join(", ");
        told(&error, |why| {
            format!("{why}; nor did its other names in the image lead to it: {others}")
        })
    }

    fn open_name(
        &self,
        from: (&Path, &dyn Storage),
        name: &str,
        reference: &BackingReference,
        budget: &Budget,
        depth: usize,
    ) -> Result<(PathBuf, Arc<dyn Layer>)> {
        let ImageName {
            path: name,
            format: stated,
            part,
            options,
        } = ImageName::parse(name)?;
        // Always text, because it was.
        let name = name.to_string_lossy();
        if let Some((key, _)) = options.first() {
            return Err(Error::unsupported(format!(
                "the name of the backing file '{name}' has the option '{key}'"
            )));
        }
        if let (Some(stated), Some(format)) = (&stated, &reference.format)
            && stated != format
        {
            return Err(Error::unsupported(format!(
                "the image says that its backing file '{name}' is {format}, and in its name that \
                 it is {stated}"
            )));
        }
        let found = Found::by_image(self.references, from, &name, "backing file")?.only(part);
        // Guessing would let whoever fills a RAW backing file turn it into something else.
        let format = reference
            .format
            .as_deref()
            .or(stated.as_deref())
            .or(self.backing_format.as_deref());
        let format = format.ok_or_else(|| {
            denied(format!(
                "the image names its backing file '{name}' without saying its format; say it with \
                 the backing format option (--backing-format)"
            ))
        })?;
        let layer = self.open_layer(&found, Some(format), budget, depth)?;
        let path = found.path();
        let layer = self
            .with_data(path, layer)
            .map_err(|error| error.in_file(path.to_string_lossy()))?;
        let found = layer.info().uuid;
        if let Some(wanted) = reference.uuid
            && found != Some(wanted)
        {
            let found = found.map_or("none".into(), |uuid| uuid.to_string());
            return Err(Error::corrupt(format!(
                "the image is based on the one with the identity {wanted}, and that of '{}' is \
                 {found}",
                path.display()
            )));
        }
        Ok((path.to_owned(), layer))
    }

    /// Opens the image `found` with the options that are meant for the one at `depth`.
    fn open_layer(
        &self,
        found: &Found,
        format: Option<&str>,
        budget: &Budget,
        depth: usize,
    ) -> Result<Arc<dyn Layer>> {
        let (storage, format) = self.open_file(found, format, depth)?;
        self.open_format(storage, format, budget, depth)
            .map_err(|error| error.in_file(found.path().to_string_lossy()))
    }

    /// Opens the file `found`, and tells its format.
    fn open_file(
        &self,
        found: &Found,
        format: Option<&str>,
        depth: usize,
    ) -> Result<(Arc<dyn Storage>, &'static dyn Format)> {
        let mut format = format.map(registry::format_named).transpose()?;
        let mut storage: Arc<dyn Storage> = Arc::new(self.read_found(found)?);
        self.lock(&*storage)?;
        if let Some(part) = found.part() {
            storage = Arc::new(part.of(storage)?);
        }
        if depth == 0 {
            format = self.expected_format(format, &*storage)?.or(format);
        }
        let format = match format {
            Some(format) => format,
            None => registry::probe(&*storage)?,
        };
        Ok((storage, format))
    }

    fn open_format(
        &self,
        storage: Arc<dyn Storage>,
        format: &dyn Format,
        budget: &Budget,
        depth: usize,
    ) -> Result<Arc<dyn Layer>> {
        let options = self.options_for(format, depth)?;
        match (self.heads_only, self.extents_only) {
            (true, _) => format.inspect(storage, budget, &options),
            (_, true) => format.survey(storage, budget, &options),
            _ => format.open_with(storage, budget, &options),
        }
    }

    /// The format that the topmost image was expected to have, if any was; `storage` is its file, and
    /// `stated` the format in which it is to be opened.
    ///
    /// # Errors
    /// `Denied` if it is of another format, or of several, or is to be opened in another.
    pub(crate) fn expected_format(
        &self,
        stated: Option<&'static dyn Format>,
        storage: &dyn Storage,
    ) -> Result<Option<&'static dyn Format>> {
        let Some(expected) = &self.expected else {
            return Ok(None);
        };
        let format = registry::format_named(expected)?;
        let expected = format.name();
        let mut found = marks::of_file(storage)?;
        if found.is_empty() {
            found.push("raw");
        }
        let text = if found != [expected] {
            let found = found.join(" and ");
            format!("the file was expected to be {expected}, and it is {found}")
        } else if let Some(stated) = stated.filter(|stated| stated.name() != expected) {
            let stated = stated.name();
            format!("the file was expected to be {expected}, and it was to be opened as {stated}")
        } else {
            return Ok(Some(format));
        };
        Err(denied(text).in_file(storage.name()))
    }

    /// The options with which `format` opens the image at `depth`.
    pub(crate) fn options_for(&self, format: &dyn Format, depth: usize) -> Result<Options> {
        let prefix = "backing.".repeat(depth);
        let pairs = self.options.iter().filter_map(|(key, value)| {
            let key = key.strip_prefix(&prefix)?;
            (!key.starts_with("backing.")).then_some((key, &**value))
        });
        self.secrets.parse(format.open_options(), pairs)
    }

    /// The part of its file that the image at `depth` is.
    pub(crate) fn part_for(&self, depth: usize) -> Option<Part> {
        self.part.filter(|_| depth == 0)
    }

    /// The passphrases, for options of other kinds.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Gives `layer`, the image at `path`, the file that holds its data, if it needs one.
    fn with_data(&self, path: &Path, layer: Arc<dyn Layer>) -> Result<Arc<dyn Layer>> {
        if self.heads_only {
            return Ok(layer);
        }
        match self.data_file(path, &*layer)? {
            Some(found) => {
                let data = self.read_found(&found)?;
                refuse_itself(&*layer, &data)?;
                self.lock(&data)?;
                layer.with_data(Arc::new(data))
            }
            None => Ok(layer),
        }
    }

    /// The file that holds the data of `layer`, the image at `path`, if it needs one and that may be
    /// opened.
    pub(crate) fn data_file(&self, path: &Path, layer: &dyn Layer) -> Result<Option<Found>> {
        let Some(name) = layer.info().data_file.as_deref() else {
            return Ok(None);
        };
        let Some(name) = ImageName::parse(name)?.into_plain() else {
            let text = format!("the data file '{name}' is no plain path");
            return Err(Error::unsupported(text));
        };
        let name = name.to_string_lossy();
        let from = (path, &**layer.storage());
        Found::by_image(self.references, from, &name, "data file").map(Some)
    }
}

/// `error` in other words, made of its own.
pub(crate) fn told(error: &Error, words: impl FnOnce(&str) -> String) -> Error {
    let mut told = Error::new(error.kind(), words(&why(error)));
    if let Some(path) = error.path() {
        told = told.in_file(path);
    }
    match error.guest() {
        Some(range) => told.at_guest(range),
        None => told,
    }
}

/// What is wrong, without where.
pub(crate) fn why(error: &Error) -> String {
    let mut why = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        why.push(error.to_string());
        source = error.source();
    }
    why.join(": ")
}

/// Whether `data` is another file than that of `layer`, whose data it is said to be.
pub(crate) fn refuse_itself(layer: &dyn Layer, data: &dyn Storage) -> Result<()> {
    if data.id() != layer.storage().id() {
        return Ok(());
    }
    let text = format!("the data file '{}' is the image itself", data.name());
    Err(Error::corrupt(text))
}

/// What to say if the file that `storage` is in is not as the image at `from` last saw it.
///
/// A word of warning only: XenServer's tools never compare the times, and a copied file rarely
/// keeps its own; Hyper-V refuses. The identity has to match in any case.
fn changed_since(
    from: &Path,
    reference: &BackingReference,
    storage: &dyn Storage,
) -> Option<String> {
    let known = UNIX_EPOCH + Duration::from_secs(reference.modified?);
    let found = storage.file()?.metadata().and_then(|it| it.modified());
    let found = found.ok()?;
    let apart = found
        .duration_since(known)
        .unwrap_or_else(|error| error.duration());
    // File systems that keep two seconds of precision are about.
    let apart = Some(apart.as_secs()).filter(|seconds| *seconds > 2)?;
    let order = if found > known { "later" } else { "earlier" };
    Some(format!(
        "{}: its backing file '{}' was last changed {apart} seconds {order} than the image says; if \
         it was written to since, what shows through is wrong",
        from.display(),
        storage.name()
    ))
}

fn denied(text: String) -> Error {
    Error::new(ErrorKind::Denied, text)
}

/// Fails if guest data of `chain` cannot be read, whether or not it holds any: nobody gave a passphrase.
pub(crate) fn must_be_unlocked(chain: &Chain) -> Result<()> {
    let mut layers = chain.layers().iter();
    match layers.find(|layer| layer.info().locked) {
        None => Ok(()),
        Some(layer) => {
            let text = "guest data is encrypted, and no passphrase was given";
            Err(denied(text.into()).in_file(layer.storage().name()))
        }
    }
}
