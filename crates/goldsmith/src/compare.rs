//! Whether two disks hold the same.

use std::num::NonZeroUsize;

use goldsmith_block::Chain;
use goldsmith_engine::{Cancel, CompareError, CompareJob, Comparison, Progress, compare};

/// A comparison of what a guest reads from two disks, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Compare, Comparison, Convert, Opener};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (golden, disk) = (folder.path().join("golden.raw"), folder.path().join("disk.vhd"));
/// std::fs::write(&golden, vec![7; 1 << 20])?;
/// Convert::new(&golden, &disk).source_format("raw").target_format("vpc").run()?;
///
/// let opener = Opener::new();
/// let (golden, disk) = (opener.open(&golden, Some("raw"))?, opener.open(&disk, Some("vpc"))?);
/// assert_eq!(Compare::new(&golden, &disk).run()?, Comparison::Identical);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Compare<'a> {
    disks: [&'a Chain; 2],
    job: CompareJob<'a>,
}

impl<'a> Compare<'a> {
    /// Compares all bytes of `first` and `second`, whatever their formats.
    pub fn new(first: &'a Chain, second: &'a Chain) -> Self {
        Self {
            disks: [first, second],
            job: CompareJob::default(),
        }
    }

    /// Sets whether sizes and allocation must be equal too. Default: no, a longer disk may hold zeros
    /// behind the end of the shorter one.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.job.strict = strict;
        self
    }

    /// Sets the number of workers. Default: one per core. It never changes what is found.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.job.threads = Some(threads);
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

    /// Does it, up to the first difference.
    ///
    /// # Errors
    /// The first failure to read either disk; differences found before it are not reported then.
    ///
    /// # Cost
    /// Reads only where at least one disk has data. Memory: 1 MiB per thread, 4 MiB where units are
    /// that large.
    pub fn run(&self) -> Result<Comparison, CompareError> {
        let [first, second] = self.disks;
        compare(first, second, &self.job)
    }
}
