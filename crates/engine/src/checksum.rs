//! Digests of a disk, whatever its format.

use std::num::NonZeroUsize;

use goldsmith_block::{Buffer, Chain, Error, Result};

use crate::cancel::Cancel;
use crate::claim::{Claims, Status, Walk, largest_unit};
use crate::crew;
use crate::digest::{Algorithm, Digest, Digests, Piece};
use crate::progress::{Meter, Phase, Progress};

/// How digests are to be made.
#[derive(Clone, Copy)]
pub struct ChecksumJob<'a> {
    /// Which.
    pub algorithms: &'a [Algorithm],
    /// Workers; by default one per core.
    pub threads: Option<NonZeroUsize>,
    /// What the listener is told that is being done.
    pub phase: Phase,
    /// Told after each claim, from any worker.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Stops the job when raised.
    pub cancel: Option<&'a Cancel>,
}

impl Default for ChecksumJob<'_> {
    fn default() -> Self {
        Self {
            algorithms: &[Algorithm::FsVerity],
            threads: None,
            phase: Phase::Checksum,
            progress: None,
            cancel: None,
        }
    }
}

/// The digests of the bytes that a guest reads from `disk`: those of the same disk as a RAW file.
///
/// # Errors
/// The first failure to read; `Cancelled` if the job was stopped.
///
/// # Cost
/// Reads all data, once for all digests, and no holes. Memory: 1 MiB per thread, 2 MiB where units
/// are that large.
pub fn checksum(disk: &Chain, job: &ChecksumJob<'_>) -> Result<Vec<Digest>> {
    let len = disk.virtual_size();
    let digests = Digests::new(job.algorithms);
    let meter = Meter::new(job.phase, len, job.progress);
    let step = largest_unit([disk]).max(Digests::ALIGN);
    let claims = Claims::new(len, step, step, job.cancel, Data(disk));
    let claims = claims.with_holes_of(digests.most_zeros());
    let stop = || {
        claims.stop();
        digests.stop();
    };
    let threads = crew::workers(job.threads, 1, step as usize);
    crew::run(threads, stop, || {
        let mut buf = Buffer::new(step as usize);
        while let Some(claim) = claims.next()? {
            // At most a step.
            let bytes = &mut buf[..claim.range.len() as usize];
            let data = read(disk, claim.range.start, bytes)?;
            let piece = Piece {
                at: claim.hole.start,
                zeros: claim.hole.len(),
                bytes,
            };
            digests.add(claim.ticket, &piece);
            meter.add(claim.range.end - claim.hole.start, data);
        }
        Ok::<_, Error>(())
    })?;
    Ok(digests.finish())
}

/// As [`Chain::read_at`]; says how many of the bytes were data.
fn read(disk: &Chain, offset: u64, buf: &mut [u8]) -> Result<u64> {
    let end = offset + buf.len() as u64;
    let (mut at, mut data) = (offset, 0);
    while at < end {
        let found = disk.extent_at(at, end)?;
        let range = found.extent.range;
        // The extent ends inside `buf`.
        let part = &mut buf[(at - offset) as usize..(range.end - offset) as usize];
        if found.extent.kind.is_data() {
            disk.read_layer(found.depth, at, part)?;
            data += range.len();
        } else {
            part.fill(0);
        }
        at = range.end;
    }
    Ok(data)
}

/// The data of a disk.
struct Data<'a>(&'a Chain);

impl Walk for Data<'_> {
    type Error = Error;

    fn status(&self, at: u64, limit: u64) -> Result<Status> {
        let extent = self.0.extent_at(at, limit)?.extent;
        Ok(Status {
            hole: !extent.kind.is_data(),
            end: extent.range.end,
        })
    }
}
