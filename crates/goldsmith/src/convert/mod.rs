//! One image into another, published only when it is whole: what is asked for.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use goldsmith_block::Result;
use goldsmith_engine::{Algorithm, Digest, Job};
use goldsmith_storage::Cache;

use crate::bitmap::Bitmaps;
use crate::new_image::{Identity, new_image_methods};
use crate::proof::Proof;
use crate::resume::Resume;
use crate::salvage::Loss;
use crate::secret::Secrets;
use crate::work::{shown_by, work_methods};
use crate::{Cloud, Opener};

mod dry_run;
mod existing;
mod fresh;
mod one_pass;
mod plan;
mod refused;
mod source;

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
    /// What size the disk must have, in bytes.
    size: Option<u64>,
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
#[derive(Clone, Debug)]
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
    /// Length of the target file in bytes; on a device, that of a new image there.
    pub file_len: u64,
    /// Bytes that had to be read from the source's data.
    pub data: u64,
    /// Bytes of guest data that were written into an [image that stands](Convert::into_existing); zeros
    /// that only had to be noted are none.
    pub written: Option<u64>,
    /// Digests of the disk: those that were asked for, in that order, or the one that the target
    /// was verified by.
    pub digests: Vec<Digest>,
    /// How many bytes of the target's disk, from the first one on, the digests are of: all, unless an
    /// [image that stands](Convert::into_existing) is larger than the source.
    pub digested: u64,
    /// The digests of the target file that were asked for.
    pub file_digests: Vec<Digest>,
    /// Whether the target was read back, and found to hold the disk with these digests.
    pub verified: bool,
    /// Bytes of the source's disk that could not be [read](Convert::salvage) and became zeros.
    pub lost: u64,
    /// Which bytes those are, as far as that fits in memory.
    pub losses: Vec<Loss>,
    /// What the caller may want to know: what is wrong with the source without keeping it from being
    /// read (see [`Chain::warnings`](crate::Chain::warnings)), that the disk grew to please a cloud, and
    /// that the target holds it but other programs [misread](goldsmith_block::Format::misread) it.
    pub warnings: Vec<String>,
}

shown_by!(Convert: sources, target, target_format, options, compress, existing, dry_run, proof);

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
            size: None,
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
    /// [shared](Self::share). An image is opened, too, in which something is broken that its disk can be
    /// read without; a [warning](Converted::warnings) says which rule it broke. Limits and references
    /// are what they are. Default: no.
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

    /// Sets how many bytes the disk must have, the source's or that of a new target if it has to grow:
    /// if it has others, that is refused. Default: any.
    #[must_use]
    pub fn expect_size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
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
    /// bytes, the outcome's [warnings](Converted::warnings) tell. There is no target if the cloud would
    /// refuse it all the same, for what the options or the disk are.
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
    /// everybody after the work was stopped or failed, which the error says. So it is if what is
    /// [read back](Self::verify) turns out to be something else: what stood there is gone then, too.
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
    /// is the source's unless the disk had to grow. Of a larger [image that
    /// stands](Self::into_existing) it is of the source, in whole sectors, and not of what stays behind
    /// it. All data is read then, and no block is shared with the source.
    #[must_use]
    pub fn digest(mut self, algorithm: Algorithm) -> Self {
        self.proof.digests.push(algorithm);
        self
    }

    /// Adds a digest of the target file, of its bytes as they stand there. It is read back for that:
    /// formats write their headers last. (Of a new RAW target it is the disk's.) On a device it is of a
    /// new image there; of an [image that stands](Self::into_existing) it is of all of its file or
    /// device, also where the image is only a part of that.
    #[must_use]
    pub fn file_digest(mut self, algorithm: Algorithm) -> Self {
        self.proof.file_digests.push(algorithm);
        self
    }

    /// Sets whether the target is read back before it takes its name: opened anew, and held against
    /// the source by the digests that were asked for, or by [the default one](Algorithm::default). (An
    /// [image that stands](Self::into_existing) has its name already; as far as the source reaches it is
    /// read back in the same way.) What is read back may come from the system's cache. Default: no.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.proof.verify = verify;
        self
    }

    /// Sets whether to write nothing: the source is read as for the target, which tells what ails it,
    /// what would be refused, the [digests](Self::digest), and how long the target would be, or how much
    /// would be [written](Converted::written) to one that stands. Default: no.
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
    /// is another one by now, [`run`](Self::run) fails with `Usage`. What is to be
    /// [proved](Self::verify) is proved at the end: the target is read back and held against the whole
    /// source, and its [digests](Self::digest) are made of what is read back.
    ///
    /// Not for what has no place of its own in one file: a target on a device or with a data file,
    /// encrypted, preallocated (but for qcow2 metadata) or an archive, and bitmaps; nor for a source on
    /// a device or one that is [salvaged](Self::salvage), as what was lost before the cut would not be
    /// told.
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
        match &self.existing {
            Some(opener) => self.write_into(opener),
            None => self.write_new(),
        }
    }
}

/// Now, in seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    // A clock before 1970 is wrong in any case.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
