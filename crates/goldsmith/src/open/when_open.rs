//! The moment from which on nothing is opened any more.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use goldsmith_block::Result;

use crate::Opener;

/// Whom to tell of it.
#[derive(Clone, Default)]
pub(super) struct WhenOpen(Option<Arc<Listener>>);

type Listener = dyn Fn(&[PathBuf]) -> Result<()> + Send + Sync;

impl fmt::Debug for WhenOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "tells somebody",
            None => "tells nobody",
        })
    }
}

impl Opener {
    /// Sets what to call when all files are open that the work needs, and before the threads are
    /// started that do it: the place for a program to give up the right to open files, see the crate
    /// `goldsmith-sandbox`. It is given the directories in which a target is going to take its name;
    /// nothing else is opened, made, named or removed after the call. If it fails, so does the work.
    ///
    /// Builders call it once in a run, and [`ImageInfo::read`](crate::ImageInfo::read) before it looks
    /// at the image's bytes, unless the format has to be unpacked.
    /// [`open`](Self::open) does not: there may be more to open. Whoever uses that calls
    /// [`all_open`](Self::all_open).
    ///
    /// Default: nothing. A library does not decide such things for the process it is in.
    #[must_use]
    pub fn when_open(
        mut self,
        call: impl Fn(&[PathBuf]) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.when_open = WhenOpen(Some(Arc::new(call)));
        self
    }

    /// Says that everything is open that will be, but for the names of targets in `directories`.
    ///
    /// # Errors
    /// Those of what [`when_open`](Self::when_open) set.
    pub fn all_open(&self, directories: &[PathBuf]) -> Result<()> {
        let Some(call) = &self.when_open.0 else {
            return Ok(());
        };
        // To be found out while it can be.
        goldsmith_engine::cores();
        call(directories)
    }
}
