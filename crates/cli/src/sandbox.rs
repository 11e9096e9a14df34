//! The command locked in: it reads strangers' images.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use goldsmith::{Error, ErrorKind, Opener};
use goldsmith_sandbox::{Mode, Sandbox};

use crate::exit::Failure;
use crate::local_time;

/// It holds for the whole process, and there is one.
static SANDBOX: OnceLock<Sandbox> = OnceLock::new();

/// Whether files can no longer be opened.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// What the user wants of it.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Wanted {
    /// All of it; without it the command does nothing
    Require,
    /// As much of it as the system has
    Try,
    /// None
    Off,
}

/// Begins, before anything is opened and any thread started.
pub(crate) fn begin(wanted: Wanted) -> Result<(), Failure> {
    let mode = match wanted {
        Wanted::Require => Mode::Require,
        Wanted::Try => Mode::Try,
        Wanted::Off => Mode::Off,
    };
    let sandbox = Sandbox::begin(mode).map_err(|error| Failure::from(told(error)))?;
    SANDBOX.get_or_init(|| sandbox);
    Ok(())
}

/// An opener that locks the command in when everything is open.
pub(crate) fn opener() -> Opener {
    Opener::new().when_open(lock_in)
}

fn lock_in(directories: &[PathBuf]) -> goldsmith::Result<()> {
    match SANDBOX.get() {
        Some(sandbox) => {
            // What has no target may show dates.
            if directories.is_empty() {
                local_time::zone();
            }
            LOCKED.store(sandbox.is_on(), Ordering::Relaxed);
            sandbox.lock_in(directories).map_err(told)
        }
        None => Ok(()),
    }
}

fn told(error: goldsmith_sandbox::SandboxError) -> Error {
    Error::new(ErrorKind::Unsupported, NotLocked(error))
}

#[derive(Debug)]
struct NotLocked(goldsmith_sandbox::SandboxError);

impl std::fmt::Display for NotLocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the command cannot lock itself in, which --sandbox=require wants")
    }
}

impl std::error::Error for NotLocked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// What to add to the report of `error`, if the sandbox may be what refused the command something.
pub(crate) fn hint(error: &Error) -> &'static str {
    // Before that no file is refused.
    let locked = LOCKED.load(Ordering::Relaxed);
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let io = error.downcast_ref::<std::io::Error>();
        if locked && io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            return "; the command had locked itself in: if it does its work with --sandbox=off, \
                    please report it";
        }
        source = error.source();
    }
    ""
}
