//! Whether two disks hold the same.

use goldsmith_block::Chain;
use goldsmith_engine::{CompareError, CompareJob, Comparison, compare};

use crate::work::{shown_by, work_methods};

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

shown_by!(Compare: disks);

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

    work_methods!();

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
