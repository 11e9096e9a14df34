//! One image into another, published only when it is whole.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use goldsmith_block::{
    BackingReference, Budget, Chain, CreateSpec, Error, Format, GuestRange, Options, Result, Sink,
    Storage, StorageId,
};
use goldsmith_engine::{Algorithm, Behind, Digest, Job, Outcome};
use goldsmith_storage::{Cache, FileStorage, Target, VoidStorage, share_bytes};

use crate::bitmap::Bitmaps;
use crate::new_image::{Identity, backing_must_fit, new_image_methods};
use crate::proof::{Made, Proof};
use crate::reference::{behind, data_file};
use crate::resume::{Resume, Work};
use crate::salvage::{Loss, Losses, Salvage};
use crate::secret::Secrets;
use crate::splice::Splice;
use crate::work::work_methods;
use crate::{Cloud, Opener, ovf, registry};

/// First byte and end of what is converted, if that is all.
const WHOLE: (u64, u64) = (0, u64::MAX);

/// A conversion, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Cancel, Convert, ErrorKind, cloud_named};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let at = |name: &str| folder.path().join(name);
/// std::fs::write(at("golden.raw"), vec![7; 1 << 20])?;
/// let azure = Convert::new(at("golden.raw"), at("azure.vhd"))
///     .source_format("raw")
///     .cloud(cloud_named("azure")?);
/// let done = azure.run()?;
/// assert_eq!(done.virtual_size, 20 << 20, "Azure's smallest disk");
/// assert_eq!(done.warnings.len(), 1, "which tells that it grew");
///
/// // From any thread, at any time:
/// let cancel = Cancel::new();
/// cancel.cancel();
/// let error = azure.cancel(&cancel).run().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Cancelled, "and azure.vhd is what it was");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Convert<'a> {
    /// At least one.
    sources: Vec<Source>,
    /// The bytes of the source's disk that are meant: from where, and up to where.
    part: (u64, u64),
    pub(crate) target: PathBuf,
    target_format: String,
    pub(crate) options: Vec<(String, String)>,
    secrets: Secrets,
    pub(crate) compress: bool,
    pub(crate) bitmaps: Bitmaps,
    round_up: bool,
    pub(crate) keep_chain: bool,
    pub(crate) cloud: Option<&'static Cloud>,
    /// How the image is opened that is written into, if there is one.
    existing: Option<Opener>,
    pub(crate) target_is_zero: bool,
    salvage: bool,
    pub(crate) cache: Cache,
    identity: Identity,
    timestamp: Option<u64>,
    pub(crate) proof: Proof,
    resume: Option<Resume>,
    dry_run: bool,
    job: Job<'a>,
}

/// An image to be read.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    opener: Opener,
    format: Option<String>,
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the target file in bytes.
    pub file_len: u64,
    /// Bytes that had to be read from the source's data.
    pub data: u64,
    /// Digests of the disk: those that were asked for, in that order, or the one that the target
    /// was verified by.
    pub digests: Vec<Digest>,
    /// The digests of the target file that were asked for.
    pub file_digests: Vec<Digest>,
    /// Whether the target was read back, and found to hold the disk with these digests.
    pub verified: bool,
    /// Bytes of the source's disk that could not be [read](Convert::salvage) and became zeros.
    pub lost: u64,
    /// Which bytes those are, as far as that fits in memory.
    pub losses: Vec<Loss>,
    /// What the caller may want to know: what is wrong with the source without keeping it from being
    /// read (see [`Chain::warnings`]), and that the disk grew to please a cloud.
    pub warnings: Vec<String>,
}

impl<'a> Convert<'a> {
    /// The image at `source` into a RAW image at `target`, the source's format to be guessed.
    pub fn new(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        Self {
            sources: vec![Source {
                path: source.as_ref().to_owned(),
                opener: Opener::new(),
                format: None,
            }],
            part: WHOLE,
            target: target.as_ref().to_owned(),
            target_format: "raw".into(),
            options: Vec::new(),
            secrets: Secrets::default(),
            compress: false,
            bitmaps: Bitmaps::None,
            round_up: false,
            keep_chain: false,
            cloud: None,
            existing: None,
            target_is_zero: false,
            salvage: false,
            cache: Cache::default(),
            identity: Identity::default(),
            timestamp: None,
            proof: Proof::default(),
            resume: None,
            dry_run: false,
            job: Job::default(),
        }
    }

    /// Sets how the source is opened: its references, its limits.
    #[must_use]
    pub fn opener(mut self, opener: Opener) -> Self {
        self.sources[0].opener = opener;
        self
    }

    /// States the source's format. Do so whenever you know it.
    #[must_use]
    pub fn source_format(mut self, name: impl Into<String>) -> Self {
        self.sources[0].format = Some(name.into());
        self
    }

    /// Adds another source, whose disk follows behind those before it. Each disk but the last takes
    /// whole sectors of 512 bytes. Holes stay holes, but nothing is [shared](Self::share).
    ///
    /// `opener` and `format` are for this one alone; `None` guesses the format.
    #[must_use]
    pub fn then(mut self, source: impl AsRef<Path>, format: Option<&str>, opener: Opener) -> Self {
        self.sources.push(Source {
            path: source.as_ref().to_owned(),
            opener,
            format: format.map(str::to_owned),
        });
        self
    }

    /// Converts only the bytes of the disk from `start` up to `end`, or to the end of the disk if
    /// that comes first. If `start` is behind that, the target is empty, and a warning says so.
    #[must_use]
    pub fn between(mut self, start: u64, end: u64) -> Self {
        self.part = (start, end);
        self
    }

    /// Sets the target's format. Default: `raw`.
    #[must_use]
    pub fn target_format(mut self, name: impl Into<String>) -> Self {
        self.target_format = name.into();
        self
    }

    new_image_methods!();

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

    /// Sets how the target goes through the system's cache. Default: it stays there, and is stored
    /// safely in the end; how the source does is its [opener](Opener::cache)'s.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Sets whether what cannot be read of the source becomes zeros, which the outcome
    /// [tells](Converted::losses), instead of ending the work. All of the source is read then, nothing
    /// [shared](Self::share). Default: no.
    #[must_use]
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.salvage = salvage;
        self
    }

    /// Sets whether the disk may grow by some zero bytes where the target's format holds only
    /// multiples of a sector. Default: no, such a disk is refused.
    #[must_use]
    pub fn round_up(mut self, round_up: bool) -> Self {
        self.round_up = round_up;
        self
    }

    /// Sets whether the images that the source consists of stay apart, where the target's format holds
    /// such chains: XenServer's container of VHDs does. They keep their identities, and options do
    /// not change them. Default: no, the target is one disk.
    #[must_use]
    pub fn keep_chain(mut self, keep_chain: bool) -> Self {
        self.keep_chain = keep_chain;
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

    /// Writes into the image that stands at the target, which must hold a disk of at least that size,
    /// instead of making a new one; `opener` says how to open it. It has no creation options then.
    ///
    /// What the disk has behind the last sector of the source stays. Zeros are written where it has
    /// data, unless the [target is zero](Self::target_is_zero). With a [backing](Self::backing)
    /// the target is compared with the source, and only what differs is written.
    ///
    /// That is not done in one step: whoever opens the target meanwhile finds a mixture, and so does
    /// everybody after the work was stopped or failed, which the error says. It is not
    /// [read back](Self::verify) either.
    ///
    /// ```
    /// use goldsmith::{Convert, Create, Opener};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let at = |name: &str| folder.path().join(name);
    /// std::fs::write(at("golden.raw"), vec![7; 1 << 20])?;
    /// Create::new(at("disk.qcow2")).format("qcow2").size(1 << 30).run()?;
    /// Convert::new(at("golden.raw"), at("disk.qcow2"))
    ///     .source_format("raw")
    ///     .target_format("qcow2")
    ///     .into_existing(Opener::new())
    ///     .target_is_zero(true)
    ///     .run()?;
    /// let disk = Opener::new().open(at("disk.qcow2"), Some("qcow2"))?;
    /// assert_eq!(disk.virtual_size(), 1 << 30);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn into_existing(mut self, opener: Opener) -> Self {
        self.existing = Some(opener);
        self
    }

    /// Sets whether the [image that stands](Self::into_existing) reads as zeros all over, so that
    /// those of the source need not be written. If it does not, what it has there stays. Default: no.
    #[must_use]
    pub fn target_is_zero(mut self, target_is_zero: bool) -> Self {
        self.target_is_zero = target_is_zero;
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

    /// Sets the most bytes that are written in a second; 0 is no limit, which is the default. Blocks
    /// that are [shared](Self::share) are not written.
    #[must_use]
    pub fn rate(mut self, bytes: u64) -> Self {
        self.job.rate = NonZeroU64::new(bytes);
        self
    }

    work_methods!();

    /// Adds a digest of the disk to make on the way: that of the target's disk as a RAW file, which
    /// is the source's unless the disk had to grow. All data is read then, and no block is shared
    /// with the source.
    #[must_use]
    pub fn digest(mut self, algorithm: Algorithm) -> Self {
        self.proof.digests.push(algorithm);
        self
    }

    /// Adds a digest of the target file, of its bytes as they stand there. It is read back for that:
    /// formats write their headers last. (Of a RAW target it is the disk's, which costs no reading.)
    #[must_use]
    pub fn file_digest(mut self, algorithm: Algorithm) -> Self {
        self.proof.file_digests.push(algorithm);
        self
    }

    /// Sets whether the target is read back before it takes its name: opened anew, and held against
    /// the source by the digests that were asked for, or by [the default one](Algorithm::default).
    /// What is read back may come from the system's cache. Default: no.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.proof.verify = verify;
        self
    }

    /// Sets whether to write nothing: the source is read as for the target, which tells what ails it,
    /// what would be refused, the [digests](Self::digest), and how long the target would be. Default:
    /// no.
    ///
    /// ```
    /// use goldsmith::Convert;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.vhd"));
    /// std::fs::write(&golden, vec![7; 1 << 20])?;
    /// let convert = Convert::new(&golden, &disk).source_format("raw").target_format("vpc");
    /// let would = convert.clone().dry_run(true).run()?;
    /// assert!(!disk.exists());
    /// assert_eq!(would.file_len, convert.run()?.file_len);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Makes the work one that can be gone on with after it was cut off, by an error, the end of the
    /// process or a power cut: how far it has come is written to the file `journal`, and the
    /// unfinished target stays beside its name as `.NAME.goldsmith-partial`. If the journal is there
    /// already, the work is gone on with: what is done is not read again, and the target becomes
    /// what it would have become otherwise, byte for byte. At the end both files are gone.
    ///
    /// It must be the same conversion, but for the number of workers: if a source file or an option
    /// is another one by now, [`run`](Self::run) fails with `Usage`. Not for what has no place of its
    /// own in one file: a target on a device or with a data file, encrypted, preallocated (but for
    /// qcow2 metadata) or an archive, bitmaps, a [digest](Self::digest); nor for a source on a device.
    #[must_use]
    pub fn resume(mut self, journal: impl AsRef<Path>) -> Self {
        self.resume = Some(Resume::new(journal.as_ref()));
        self
    }

    /// Sets after how many bytes of the disk a conversion with a [journal](Self::resume) makes sure of
    /// what is done, which is what it may have to do again. Default: 256 MiB.
    #[must_use]
    pub fn milestone(mut self, bytes: u64) -> Self {
        if let Some(resume) = &mut self.resume {
            resume.every = bytes;
        }
        self
    }

    /// Does it. On success the target stands complete and durable under its name; otherwise
    /// whatever stood there still does. (What is written in place is the exception: a block device,
    /// and an [image that stands](Self::into_existing).)
    ///
    /// # Errors
    /// Those of opening the source; `Usage` if the target's format cannot hold the disk, an option
    /// is wrong, or the target is a file that is read; `Io` if either side fails, or if what is
    /// [read back](Self::verify) is not what was written.
    pub fn run(&self) -> Result<Converted> {
        if self.dry_run {
            self.must_be_rehearsable()?;
        }
        if let Some(opener) = &self.existing {
            if self.resume.is_some() {
                return Err(cannot_resume("a conversion into an image that stands"));
            }
            return self.write_into(opener);
        }
        let format = self.format()?;
        let options = self.options(format)?;
        self.refuse_mixes(&options)?;
        let disks = self.disks()?;
        let (source, losses) = self.whole(&disks)?;
        let virtual_size = self.virtual_size(source.virtual_size(), format)?;
        let (reference, behind) = self.behind(&options)?.unzip();
        let data_file = data_file(&self.target, &options)?;
        let mut spec = self.spec(format, virtual_size, options);
        spec.backing = reference;
        if self.dry_run {
            if let Ok(old) = FileStorage::open(&self.target) {
                let read = disks.iter().chain(&behind);
                refuse_source(&self.target, Some(old.id()), read)?;
            }
            let void = self.void(&mut spec)?;
            self.opener_of_source().all_open(&[])?;
            let outcome = self.rehearse(&source, &spec, behind.as_ref(), void)?;
            let (losses, lost) = losses.all();
            return Ok(Converted {
                lost,
                losses,
                ..self.converted(&disks, &source, virtual_size, outcome)
            });
        }
        if let Some(resume) = &self.resume {
            self.must_be_resumable(data_file.is_some())?;
            let outcome = resume.run(Work {
                target: &self.target,
                format,
                source: &source,
                behind: behind.as_ref(),
                spec,
                job: self.job(behind.as_ref().map_or(Behind::Nothing, Behind::Disk)),
                wishes: self.wishes(),
                opener: self.opener_of_source(),
            })?;
            return Ok(self.converted(&disks, &source, virtual_size, outcome));
        }

        let name = self.target.to_string_lossy();
        let read = || disks.iter().map(Some).chain([behind.as_ref()]);
        let target = target(&self.target, self.cache, read())?;
        let data_file = data_file
            .map(|path| self::target(&path, self.cache, read()))
            .transpose()?;
        spec.data = data_file.as_ref().map(Target::storage);
        let sink = match self.streams(format) {
            true => ovf::refuse_device(&*target.storage()).map(|()| None),
            false => format.create(target.storage(), &spec).map(Some),
        };
        let sink = sink.map_err(|error| error.in_file(name.clone()))?;
        // What is read back may have to be unpacked, into files.
        if !(self.proof.verify && format.unpacks()) {
            all_open(self.opener_of_source(), [Some(&target), data_file.as_ref()])?;
        }
        let job = self.job(behind.as_ref().map_or(Behind::Nothing, Behind::Disk));
        let outcome = match sink {
            Some(sink) => goldsmith_engine::convert(&source, sink, &job)?,
            None => {
                let storage = target.storage();
                self.stream(&source, &spec, &job, &mut ovf::into(&*storage))
                    .map_err(|error| error.in_file(name.clone()))?
            }
        };
        let mut file_len = outcome.committed.file_len;
        // [qemu] Those of the first, if there are several.
        let top = disks[0].top();
        if self.bitmaps != Bitmaps::None && !top.info().bitmaps.is_empty() {
            let budget = Budget::new(&self.sources[0].opener.limits);
            let options = Options::defaults(format.open_options());
            let mut editor = format.edit(target.storage(), &budget, &options)?;
            self.bitmaps.copy(top, &mut *editor, &budget)?;
            file_len = target.storage().len();
        }
        let made = Made {
            format,
            spec: &spec,
            storage: target.storage(),
            file_len,
            behind: behind.as_ref(),
            limits: &self.sources[0].opener.limits,
        };
        let file_digests = self
            .proof
            .of(&made, &source, &outcome.digests, &job)
            .map_err(|error| error.in_file(name.clone()))?;
        // First what the image needs, so that it never stands there without.
        if let Some(data_file) = data_file {
            data_file.publish()?;
        }
        target.publish()?;
        let (losses, lost) = losses.all();
        Ok(Converted {
            file_len,
            file_digests,
            verified: self.proof.verify,
            lost,
            losses,
            ..self.converted(&disks, &source, virtual_size, outcome)
        })
    }

    fn converted(
        &self,
        disks: &[Chain],
        source: &Chain,
        virtual_size: u64,
        outcome: Outcome,
    ) -> Converted {
        Converted {
            virtual_size,
            file_len: outcome.committed.file_len,
            data: outcome.data,
            digests: outcome.digests,
            file_digests: Vec::new(),
            verified: false,
            lost: 0,
            losses: Vec::new(),
            warnings: self.warnings(disks, source, virtual_size),
        }
    }

    /// A target that keeps nothing, or none if it [streams](Self::streams).
    pub(crate) fn void(&self, spec: &mut CreateSpec) -> Result<Option<Box<dyn Sink>>> {
        let format = self.format()?;
        let void = || Arc::new(VoidStorage::new(&*self.target.to_string_lossy(), 0));
        if spec.options.text("data_file").is_some() {
            spec.data = Some(void());
        }
        match self.streams(format) {
            true => Ok(None),
            false => format.create(void(), spec).map(Some),
        }
    }

    /// Converts `source` into `void`.
    pub(crate) fn rehearse(
        &self,
        source: &Chain,
        spec: &CreateSpec,
        behind: Option<&Chain>,
        void: Option<Box<dyn Sink>>,
    ) -> Result<Outcome> {
        let job = self.job(behind.map_or(Behind::Nothing, Behind::Disk));
        match void {
            Some(void) => goldsmith_engine::convert(source, void, &job),
            None => self.stream(source, spec, &job, &mut |_| Ok(())),
        }
    }

    /// Fails if something is wanted that only a target shows which is written.
    fn must_be_rehearsable(&self) -> Result<()> {
        let proof = &self.proof;
        let wanted = [
            (self.existing.is_some(), "an image that stands (-n)"),
            (self.bitmaps != Bitmaps::None, "bitmaps"),
            (self.resume.is_some(), "a journal (--resume)"),
            (proof.verify, "a look back (--verify)"),
            (!proof.file_digests.is_empty(), "a digest of the file"),
        ];
        match wanted.into_iter().find(|(wanted, _)| *wanted) {
            Some((_, what)) => Err(Error::usage(format!(
                "a dry run writes nothing, so there is none with {what}"
            ))),
            None => Ok(()),
        }
    }

    /// What was asked for, as far as the target's bytes depend on it: a line each.
    fn wishes(&self) -> Vec<String> {
        let cloud = self.cloud.map(|cloud| cloud.name);
        vec![
            format!("target {:?}", std::path::absolute(&self.target)),
            format!("format {}, for {cloud:?}", self.target_format),
            format!("options {:?}, compress {}", self.options, self.compress),
            format!("sparse {}, share {}", self.job.sparse, self.job.share),
            format!("identity {:?}, created {:?}", self.identity, self.timestamp),
            format!("opened {:?}", self.sources[0].opener.wishes()),
        ]
    }

    /// Fails if something is wanted for which all must be done at once.
    fn must_be_resumable(&self, has_data_file: bool) -> Result<()> {
        let wanted = [
            (has_data_file, "a target with a data file"),
            (self.bitmaps != Bitmaps::None, "a target with bitmaps"),
            (self.sources.len() > 1, "a conversion of several sources"),
            (self.part != WHOLE, "a conversion of a part of the source"),
            (self.salvage, "a conversion that salvages"),
            (
                self.proof.is_wanted(),
                "a conversion with digests or a look back",
            ),
        ];
        match wanted.into_iter().find(|(wanted, _)| *wanted) {
            Some((_, what)) => Err(cannot_resume(what)),
            None => Ok(()),
        }
    }

    /// Whether a target of this format is written in one pass, front to back.
    pub(crate) fn streams(&self, format: &dyn Format) -> bool {
        // Digests are made of a disk that passes once, in pieces of its own.
        format.name() == ovf::NAME && (self.keep_chain || self.proof.algorithms().is_empty())
    }

    /// Writes a target that [streams](Self::streams) into `out`.
    pub(crate) fn stream(
        &self,
        source: &Chain,
        spec: &CreateSpec,
        job: &Job<'_>,
        out: &mut ovf::Out<'_>,
    ) -> Result<Outcome> {
        match self.keep_chain {
            true => {
                self.check_kept(source, spec)?;
                ovf::write_chain(source, spec.timestamp, job, out)
            }
            false => ovf::write(source, spec, job, out),
        }
    }

    /// Refuses whatever would change images that are to be kept as they are.
    fn check_kept(&self, source: &Chain, spec: &CreateSpec) -> Result<()> {
        let what = if spec.virtual_size != source.virtual_size() {
            let (has, takes) = (source.virtual_size(), spec.virtual_size);
            format!("another size ({takes} bytes, and it has {has}; see goldsmith resize)")
        } else if !self.options.is_empty() {
            "creation options (-o)".into()
        } else if matches!(self.identity, Identity::Given(_)) {
            "another identity (--uuid)".into()
        } else if !self.proof.algorithms().is_empty() {
            "a digest of its disk on the way".into()
        } else {
            return Ok(());
        };
        let text = format!("a chain that is kept (--keep-chain) is copied, and cannot get {what}");
        Err(Error::usage(text).in_file(self.sources[0].path.to_string_lossy()))
    }

    pub(crate) fn format(&self) -> Result<&'static dyn Format> {
        let format = registry::format_named(&self.target_format)?;
        if self.keep_chain && format.name() != ovf::NAME {
            let text = format!(
                "an image of {} holds one disk and no chain (--keep-chain); {} does",
                format.name(),
                ovf::NAME
            );
            return Err(Error::usage(text));
        }
        Ok(format)
    }

    /// The creation options of the target.
    pub(crate) fn options(&self, format: &dyn Format) -> Result<Options> {
        backing_must_fit(format, &self.options)?;
        let of_cloud = self.cloud.map_or(&[][..], |cloud| cloud.options);
        let given = registry::named(&self.options);
        let options = of_cloud.iter().copied().chain(given);
        self.secrets.parse(format.options(), options)
    }

    /// What the target says of the disk behind it, and that disk, if there is to be one.
    pub(crate) fn behind(&self, options: &Options) -> Result<Option<(BackingReference, Chain)>> {
        behind(&self.sources[0].opener, &self.target, options)
    }

    pub(crate) fn opener_of_source(&self) -> &Opener {
        &self.sources[0].opener
    }

    /// The disk to be converted.
    pub(crate) fn source(&self) -> Result<Chain> {
        self.whole(&self.disks()?).map(|(source, _)| source)
    }

    /// The disks of all sources.
    pub(crate) fn disks(&self) -> Result<Vec<Chain>> {
        let open = |source: &Source| source.opener.open(&source.path, source.format.as_deref());
        self.sources.iter().map(open).collect()
    }

    /// The disk that `disks`, those of all sources, make, and what it turns out to have lost.
    pub(crate) fn whole(&self, disks: &[Chain]) -> Result<(Chain, Arc<Losses>)> {
        let losses = Arc::new(Losses::default());
        let mut whole = match disks {
            [disk] => disk.clone(),
            disks => Chain::new(Arc::new(Splice::join(disks)?), []),
        };
        if self.salvage {
            let salvage = Salvage::new(whole, Arc::clone(&losses));
            whole = Chain::new(Arc::new(salvage), []);
        }
        let size = whole.virtual_size();
        let end = self.part.1.min(size);
        let part = GuestRange::new(self.part.0.min(end), end);
        if part.len() < size {
            whole = Chain::new(Arc::new(Splice::cut(&whole, part)?), []);
        }
        Ok((whole, losses))
    }

    /// Fails if what is asked for does not go together.
    fn refuse_mixes(&self, options: &Options) -> Result<()> {
        if self.keep_chain && (self.sources.len() > 1 || self.salvage) {
            return Err(Error::usage(
                "the chains of several sources cannot be kept, nor one that is salvaged",
            ));
        }
        if self.sources.len() > 1 && options.text("backing_file").is_some() {
            return Err(Error::usage(
                "Having a backing file for the target makes no sense when concatenating multiple \
                 input images",
            ));
        }
        Ok(())
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
            uuid: self.identity.uuid(&self.target, format, virtual_size),
            timestamp: self.timestamp.unwrap_or_else(now),
        }
    }

    /// The work to be done, for a target with `behind` behind it.
    pub(crate) fn job<'b>(&'b self, behind: Behind<'b>) -> Job<'b>
    where
        'a: 'b,
    {
        Job {
            behind,
            digests: self.proof.algorithms(),
            ..self.job
        }
    }

    /// What is wrong with the source, and that the disk grew if nobody asked for it by name.
    pub(crate) fn warnings(
        &self,
        disks: &[Chain],
        source: &Chain,
        virtual_size: u64,
    ) -> Vec<String> {
        let warnings = disks.iter().flat_map(Chain::warnings);
        let mut warnings: Vec<_> = warnings.cloned().collect();
        let size: u64 = disks.iter().map(Chain::virtual_size).sum();
        let (start, end) = (self.part.0, self.part.1.min(size));
        if start > end {
            let path = self.sources[0].path.display();
            warnings.push(format!(
                "{path}: cannot skip to specified offset {start}: what there is to read ends at {end}"
            ));
        }
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

    /// The size of the target's disk: `size`, the source's, or rounded up if that is needed and allowed.
    pub(crate) fn virtual_size(&self, size: u64, format: &dyn Format) -> Result<u64> {
        let unit = format.size_unit();
        if let Some(cloud) = self.cloud {
            return cloud
                .disk_size(size)
                .map_err(|error| error.in_file(self.sources[0].path.to_string_lossy()));
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
        .in_file(self.sources[0].path.to_string_lossy()))
    }
}

fn cannot_resume(what: &str) -> Error {
    Error::unsupported(format!("{what} cannot be gone on with (--resume)"))
}

/// Prepares to write `path`, which must be no file of the disks that are `read`.
pub(crate) fn target<'a>(
    path: &Path,
    cache: Cache,
    read: impl IntoIterator<Item = Option<&'a Chain>>,
) -> Result<Target> {
    let target = Target::create_cached(path, cache)?;
    refuse_source(path, target.id(), read.into_iter().flatten())?;
    target.lock()?;
    Ok(target)
}

/// Fails if the target at `path`, which is the file `id`, is one of the disks that are `read`.
pub(crate) fn refuse_source<'a>(
    path: &Path,
    id: Option<StorageId>,
    read: impl IntoIterator<Item = &'a Chain>,
) -> Result<()> {
    let layers = read.into_iter().flat_map(Chain::layers);
    let mut ids = layers.flat_map(|layer| [layer.storage().id(), layer.data_storage().id()]);
    if id.is_some_and(|id| ids.any(|read| share_bytes(read, id))) {
        let text = "the target is also a file of the source, which would be overwritten";
        return Err(Error::usage(text).in_file(path.to_string_lossy()));
    }
    Ok(())
}

/// Says that everything is open, with `targets` still to be published.
pub(crate) fn all_open<'a>(
    opener: &Opener,
    targets: impl IntoIterator<Item = Option<&'a Target>>,
) -> Result<()> {
    let targets = targets.into_iter().flatten();
    let directories: Vec<_> = targets.filter_map(Target::directory).collect();
    opener.all_open(&directories)
}

/// Now, in seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    // A clock before 1970 is wrong in any case.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
