//! Digests of a disk.

use goldsmith_block::{Chain, Result};
use goldsmith_engine::{Algorithm, ChecksumJob, Digest, checksum};

use crate::work::{shown_by, work_methods};

/// Digests of what a guest reads from a disk, to be described and then [`run`](Self::run): those of
/// the same disk as a RAW file, whatever its format and wherever it has holes.
///
/// ```
/// use goldsmith::{Algorithm, Checksum, Convert, Digest, Opener};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.vhd"));
/// let content = vec![7; 1 << 20];
/// std::fs::write(&golden, &content)?;
/// Convert::new(&golden, &disk).source_format("raw").target_format("vpc").run()?;
///
/// let disk = Opener::new().open(&disk, Some("vpc"))?;
/// let digests = Checksum::new(&disk).digest(Algorithm::Sha256).run()?;
/// assert_eq!(digests, [Digest::of(Algorithm::Sha256, &content)]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Checksum<'a> {
    disk: &'a Chain,
    algorithms: Vec<Algorithm>,
    job: ChecksumJob<'a>,
}

shown_by!(Checksum: disk, algorithms);

impl<'a> Checksum<'a> {
    /// The [default](Algorithm::default) digest of `disk`, unless others are [added](Self::digest).
    pub fn new(disk: &'a Chain) -> Self {
        Self {
            disk,
            algorithms: Vec::new(),
            job: ChecksumJob::default(),
        }
    }

    /// Adds a digest. All are made in one reading.
    #[must_use]
    pub fn digest(mut self, algorithm: Algorithm) -> Self {
        self.algorithms.push(algorithm);
        self
    }

    work_methods!();

    /// Does it; gives the digests in the order in which they were added, each once.
    ///
    /// # Errors
    /// The first failure to read; `Cancelled` if the work was stopped.
    ///
    /// # Cost
    /// Reads all data once, and no holes. Memory: 1 MiB per thread, 2 MiB where units are that
    /// large.
    pub fn run(&self) -> Result<Vec<Digest>> {
        let mut job = self.job;
        if !self.algorithms.is_empty() {
            job.algorithms = &self.algorithms;
        }
        checksum(self.disk, &job)
    }
}
