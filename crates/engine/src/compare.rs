//! Comparing two disks, whatever their formats.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use goldsmith_block::{Buffer, Chain, Error, ExtentKind, Result};

use crate::cancel::Cancel;
use crate::claim::{Claim, Claims, Status, Walk, largest_unit};
use crate::crew;
use crate::progress::{Meter, Phase, Progress};

/// Bytes that one worker takes at a time, unless a unit is larger: both disks' fit in its cache.
const CLAIM: u64 = 512 << 10;

/// How a comparison is to be done.
#[derive(Clone, Copy, Default)]
pub struct CompareJob<'a> {
    /// Workers; by default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Whether sizes and allocation must be equal too, not only what the guest reads.
    pub strict: bool,
    /// Told after each claim, from any worker.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Stops the job when raised.
    pub cancel: Option<&'a Cancel>,
}

/// What a comparison found. Offsets are those of the first difference, in guest bytes, for any
/// number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes; a longer disk holds only zeros after the end of the shorter one.
    Identical,
    /// Other bytes from this offset on.
    Content(u64),
    /// Strict only: allocated otherwise from this offset on.
    Allocation(u64),
    /// Strict only: the sizes differ.
    Size,
}

/// Why a comparison could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The status of a range could not be found out.
    #[error("cannot tell what is allocated")]
    Status(#[source] Error),
    /// Bytes could not be read.
    #[error("cannot read")]
    Read(#[source] Error),
    /// Not a fault of either disk: no threads, or stopped on request.
    #[error("cannot compare")]
    Other(#[from] Error),
}

/// Compares the guest bytes of `a` and `b`.
///
/// # Errors
/// The failure to read either, if there is no difference in claims before it.
///
/// # Cost
/// Reads only where at least one disk has data. Memory: 1 MiB per thread, 4 MiB where units are that large.
pub fn compare(a: &Chain, b: &Chain, job: &CompareJob<'_>) -> Result<Comparison, CompareError> {
    if job.strict && a.virtual_size() != b.virtual_size() {
        return Ok(Comparison::Size);
    }
    let len = a.virtual_size().max(b.virtual_size());
    let pair = Pair {
        disks: [a, b],
        strict: job.strict,
        content: NONE.into(),
        allocation: NONE.into(),
        failed: Mutex::new(None),
    };
    let meter = Meter::new(Phase::Compare, len, job.progress);
    let step = largest_unit([a, b]).max(CLAIM);
    let claims = Claims::new(len, step, step, job.cancel, &pair);
    crew::run(
        crew::workers(job.threads, 1, 2 * step as usize),
        || claims.stop(),
        || {
            let mut buffers = [Buffer::new(step as usize), Buffer::new(step as usize)];
            loop {
                let claim = match claims.next() {
                    Ok(Some(claim)) => claim,
                    Ok(None) => return Ok(()),
                    Err(CompareError::Other(error)) => return Err(error),
                    // It lies behind all that was claimed.
                    Err(error) => {
                        pair.fail(NONE, error);
                        return Ok(());
                    }
                };
                match pair.compare(&claim, &mut buffers) {
                    Ok(data) => meter.add(claim.range.end - claim.hole.start, data),
                    Err(error) => pair.fail(claim.range.start, error),
                }
                // Claims ascend, so whatever comes now lies behind what was found.
                if pair.found() {
                    claims.stop();
                }
            }
        },
    )?;
    pair.result()
}

/// No difference: past any offset.
const NONE: u64 = u64::MAX;

struct Pair<'a> {
    disks: [&'a Chain; 2],
    strict: bool,
    /// Smallest offset where the bytes differ.
    content: AtomicU64,
    /// Smallest offset where the allocation differs.
    allocation: AtomicU64,
    /// The first of the claims that failed, where it starts, and why it did.
    failed: Mutex<Option<(u64, CompareError)>>,
}

/// What strict comparison holds two extents to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Nature {
    data: bool,
    allocated: bool,
    packed: bool,
    /// Stored, in a hole of the file.
    hole: bool,
    /// Whether there is a place for it in the file. [qemu]
    placed: bool,
}

const BEHIND: Nature = Nature {
    placed: false,
    hole: false,
    data: false,
    allocated: false,
    packed: false,
};

impl Walk for &Pair<'_> {
    type Error = CompareError;

    /// What both say about the bytes from `at`: a hole where neither has data.
    fn status(&self, at: u64, limit: u64) -> Result<Status, CompareError> {
        let [(a, end), (b, limit)] = [self.nature(0, at, limit)?, self.nature(1, at, limit)?];
        let end = end.min(limit);
        if self.strict && a != b {
            self.allocation.fetch_min(at, Ordering::Relaxed);
        }
        Ok(Status {
            hole: !a.data && !b.data,
            end,
        })
    }
}

impl Pair<'_> {
    fn nature(&self, which: usize, at: u64, limit: u64) -> Result<(Nature, u64), CompareError> {
        let disk = self.disks[which];
        if at >= disk.virtual_size() {
            return Ok((BEHIND, limit));
        }
        let limit = limit.min(disk.virtual_size());
        let extent = disk
            .extent_at(at, limit)
            .map_err(CompareError::Status)?
            .extent;
        let nature = match extent.kind {
            ExtentKind::Data { host } => Nature {
                data: true,
                allocated: true,
                placed: host.is_some(),
                ..BEHIND
            },
            ExtentKind::Compressed { .. } => Nature {
                data: true,
                allocated: true,
                packed: true,
                ..BEHIND
            },
            ExtentKind::Hole { .. } => Nature {
                allocated: true,
                hole: true,
                placed: true,
                ..BEHIND
            },
            ExtentKind::Zero { allocated, host } => Nature {
                allocated,
                placed: host.is_some(),
                ..BEHIND
            },
            ExtentKind::Unallocated => BEHIND,
        };
        Ok((nature, extent.range.end))
    }

    /// Compares one claim; says how many bytes had to be read.
    fn compare(&self, claim: &Claim, buffers: &mut [Buffer; 2]) -> Result<u64, CompareError> {
        let mut data = 0;
        let mut at = claim.range.start;
        while at < claim.range.end {
            let status = self.status(at, claim.range.end)?;
            if !status.hole {
                let len = (status.end - at) as usize;
                let [a, b] = buffers;
                let (a, b) = (&mut a[..len], &mut b[..len]);
                data += self.read(0, at, a)? + self.read(1, at, b)?;
                if a != b {
                    let same = a.iter().zip(&*b).take_while(|(a, b)| a == b).count();
                    self.content.fetch_min(at + same as u64, Ordering::Relaxed);
                    break;
                }
            }
            at = status.end;
        }
        Ok(data)
    }

    /// Reads from one disk, behind whose end there are zeros; says how many bytes it has there.
    fn read(&self, which: usize, at: u64, buf: &mut [u8]) -> Result<u64, CompareError> {
        let disk = self.disks[which];
        let len = disk.virtual_size().saturating_sub(at).min(buf.len() as u64);
        let (inside, behind) = buf.split_at_mut(len as usize);
        disk.read_at(at, inside).map_err(CompareError::Read)?;
        behind.fill(0);
        Ok(len)
    }

    fn fail(&self, at: u64, error: CompareError) {
        let mut failed = self.failed();
        if failed.as_ref().is_none_or(|(first, _)| at < *first) {
            *failed = Some((at, error));
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<(u64, CompareError)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> bool {
        let found = |offset: &AtomicU64| offset.load(Ordering::Relaxed) != NONE;
        found(&self.content) || found(&self.allocation) || self.failed().is_some()
    }

    fn result(&self) -> Result<Comparison, CompareError> {
        let content = self.content.load(Ordering::Relaxed);
        let allocation = self.allocation.load(Ordering::Relaxed);
        let first = content.min(allocation);
        match self.failed().take() {
            Some((at, error)) if at <= first => return Err(error),
            _ => {}
        }
        Ok(match first {
            NONE => Comparison::Identical,
            first if first == allocation => Comparison::Allocation(first),
            first => Comparison::Content(first),
        })
    }
}
