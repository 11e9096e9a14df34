//! Converting: every byte of a chain into a sink.

use std::num::{NonZeroU64, NonZeroUsize};

use goldsmith_block::{Chain, Committed, Error, Result, Sink, ZeroPolicy};

use crate::cancel::Cancel;
use crate::claim::{Claims, largest_unit};
use crate::crew;
use crate::digest::{Algorithm, Digest, Digests};
use crate::milestone::{Finished, Milestones};
use crate::progress::{Meter, Phase, Progress};
use crate::rate::Bucket;
use crate::sequencer::Sequencer;
use crate::source::Source;
use crate::worker::{Shared, Worker};

/// Bytes that one worker takes at a time, unless a unit is larger: big enough that it pays to hand
/// over the right to write, small enough that they are still in the cache when they are written.
const CLAIM: u64 = 1 << 20;
/// The same past the system's cache, where it comes to how large the disk's requests are. [ours]
const UNCACHED_CLAIM: u64 = 4 << 20;
/// How many wait for the disk at a time past the system's cache, if not told otherwise. [ours]
const WAITING: usize = 4;
/// Bytes of zeros that one worker writes at a time, where they have to be written: it may take the disk seconds,
/// and who waits wants to hear of it, or to stop it. [ours] A multiple of any claim.
const WRITTEN_ZEROS: u64 = 1 << 30;

/// How a conversion is to be done.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Workers; by default one per core, and at least four if `uncached`.
    pub threads: Option<NonZeroUsize>,
    /// Whether files are read or written past the system's cache, so that whoever does it waits for
    /// the disk, which wants several large requests at a time. Default: no.
    pub uncached: bool,
    /// Shortest run of zeros that takes no space in the target, in bytes; 0 stores every byte.
    /// What the sink's grain cannot express is stored. Default: 4096.
    pub sparse: u64,
    /// Whether the target may share the source's blocks where the file system can do that. Zeros
    /// among what is shared stay: they take no space of their own. Nothing is shared when all is
    /// read anyway: for a digest, for packing, or to store every byte. Default: yes.
    pub share: bool,
    /// What the target shows where nothing is written to it. Default: nothing.
    pub behind: Behind<'a>,
    /// Which digests of the target's disk to compute on the way: of the source's bytes, and of
    /// zeros where the target is larger. All data is read then.
    pub digests: &'a [Algorithm],
    /// Most bytes per second that are written to the target; zeros that it only has to note and
    /// blocks that are shared are none. Default: no limit.
    pub rate: Option<NonZeroU64>,
    /// Where to begin: the target has what stands before, from an earlier run of the same job that
    /// told this [milestone](Milestones). Default: 0.
    pub start: u64,
    /// Told from time to time how much is done.
    pub milestones: Option<Milestones<'a>>,
    /// Told after each claim, from any worker.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Stops the job when raised.
    pub cancel: Option<&'a Cancel>,
}

/// What a target shows where nothing is written to it, as a sink that
/// [covers](goldsmith_block::ZeroPolicy::Covering) it has to know.
#[derive(Clone, Copy, Default)]
pub enum Behind<'a> {
    /// The sink covers nothing.
    #[default]
    Nothing,
    /// This disk: what is the same there is left out.
    Disk(&'a Chain),
    /// This disk, but its data is not read: all that it has, and all that the source has, is written
    /// over.
    Unread(&'a Chain),
    /// Zeros all over: those of the source are left out.
    Zeros,
}

impl Default for Job<'_> {
    fn default() -> Self {
        Self {
            threads: None,
            uncached: false,
            sparse: 4096,
            share: true,
            behind: Behind::Nothing,
            digests: &[],
            rate: None,
            start: 0,
            milestones: None,
            progress: None,
            cancel: None,
        }
    }
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The finished target.
    pub committed: Committed,
    /// Size of its disk in bytes, as the sink had it.
    pub virtual_size: u64,
    /// Bytes that had to be read from the source.
    pub data: u64,
    /// The digests that the job asked for, in that order.
    pub digests: Vec<Digest>,
}

/// Writes all of `source` into `sink` and commits it.
///
/// The sink may be larger than the source; the rest becomes zeros.
///
/// # Errors
/// The first error of source or sink, after which the sink is dropped and so never commits;
/// `Cancelled` if the job was stopped; `Usage` if the sink is smaller than the source, if the job
/// begins where none can have been cut off, if the sink covers something that the job does not name,
/// or the other way round, or if a checksum is wanted of a source whose start is not read.
///
/// # Cost
/// Memory: per thread one claim (1 MiB, or the largest unit, at most 2 MiB; 4 MiB if `uncached`) and
/// as much again for packed bytes, and as much again to compare with what stands behind the target.
/// Holes of any length are single steps, unless they must be written, or hashed for a digest.
pub fn convert(source: &Chain, sink: Box<dyn Sink>, job: &Job<'_>) -> Result<Outcome> {
    let len = sink.profile().virtual_size;
    let source_len = source.virtual_size();
    if len < source_len {
        return Err(Error::usage(format!(
            "the source has {source_len} bytes, the target only {len}"
        )));
    }

    let profile = sink.profile();
    let covers = !matches!(job.behind, Behind::Nothing);
    if (profile.zeroes == ZeroPolicy::Covering) != covers {
        return Err(Error::usage(
            "a target with a backing file needs that file, and no other target does",
        ));
    }
    let unit = profile
        .packing
        .map_or(profile.grain, |packing| packing.unit);
    let start = job.start;
    let is_edge = start == len || start < len && start.is_multiple_of(unit);
    if !is_edge || !job.digests.is_empty() && start > 0 {
        return Err(Error::usage(format!(
            "the job begins at {start}, which is behind the disk, no multiple of {unit}, or leaves no \
             checksum of it"
        )));
    }
    let (claim, least) = match job.uncached {
        true => (UNCACHED_CLAIM, WAITING),
        false => (CLAIM, 1),
    };
    let step = largest_unit([source]).max(unit).max(claim);
    // For guest bytes, packed ones, those that are compared with, and what makes a page a huge one.
    let threads = crew::workers(job.threads, least, (4 * step) as usize);
    let mut disk = Source::new(source, unit, job.sparse == 0);
    let digests = Digests::new(job.digests);
    let unseen = digests.is_empty() && profile.packing.is_none() && !covers;
    if unseen && job.sparse > 0 {
        disk.transfer_to(&*sink, job.share, threads == 1);
    }
    match job.behind {
        Behind::Disk(behind) => disk.stand_before(behind, digests.is_empty()),
        Behind::Unread(behind) => disk.write_over(behind),
        Behind::Zeros | Behind::Nothing => {}
    }
    let align = match disk.is_shared() {
        true => largest_unit([source]).max(unit),
        false => step,
    };
    let claims = Claims::new(len, step, align, job.cancel, &disk).from(job.start);
    let most_zeros = match profile.zeroes {
        ZeroPolicy::Written => digests.most_zeros().min(WRITTEN_ZEROS),
        ZeroPolicy::Implied | ZeroPolicy::Covering => digests.most_zeros(),
    };
    let claims = claims.with_holes_of(most_zeros);
    let finished = Finished::new(job.milestones, job.start);
    let shared = Shared {
        source: &disk,
        sink: &*sink,
        sequencer: Sequencer::default(),
        meter: Meter::going_on(Phase::Copy, job.start, len, job.progress),
        digests,
        sparse: job.sparse,
        bucket: job.rate.map(|rate| Bucket::new(rate.get(), job.cancel)),
    };
    let stop = || {
        claims.stop();
        shared.sequencer.stop();
        shared.digests.stop();
        if let Some(bucket) = &shared.bucket {
            bucket.stop();
        }
    };
    crew::run(threads, stop, || {
        let mut worker = Worker::new(&shared, step as usize);
        while let Some(claim) = claims.next()? {
            worker.run(&claim)?;
            finished.add(claim.hole.start, claim.range.end)?;
        }
        Ok::<_, Error>(())
    })?;

    let data = shared.meter.data();
    let digests = shared.digests.finish();
    Ok(Outcome {
        committed: sink.commit()?,
        virtual_size: len,
        data,
        digests,
    })
}
