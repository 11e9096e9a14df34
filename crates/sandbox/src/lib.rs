//! Locking the process in that reads a stranger's image.
//!
//! ```text
//!  begin ──► no network, no other programs, no executable memory, no core dumps
//!    ▼
//!  narrow ─► files can still be opened where that is going to be needed: the images, and what they
//!    │       are allowed to name
//!    ▼
//!  lock_in ► no file is opened any more; in the directories of the targets, files can be given
//!            names and lose them
//! ```
//!
//! Three walls of Linux stand behind each other, so that a hole in one of them is no way out:
//! Landlock (files, TCP ports, signals), seccomp (system calls, by an allow-list, with the arguments
//! of those that could do more than is needed), and resource limits (no further descriptors, no core
//! dumps). What is refused fails with `EPERM` or `EACCES` and kills nobody: a wall that stands too near
//! must not take a conversion down without a word.
//!
//! ```
//! use goldsmith_sandbox::{Mode, Reach, Sandbox};
//!
//! # fn main() -> Result<(), goldsmith_sandbox::SandboxError> {
//! // Before anything else, while there is one thread.
//! let sandbox = Sandbox::begin(Mode::Try)?;
//! // When it is known where files are, and before one of them is looked at.
//! let mut reach = Reach::default();
//! reach.read("/etc/hostname");
//! sandbox.narrow(&reach)?;
//! let image = std::fs::File::open("/etc/hostname");
//! // When everything is open, and before threads are started.
//! sandbox.lock_in(&[])?;
//! # drop(image);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here happens by itself: whoever links this calls it, and it holds for the whole process and
//! for good. Threads that exist before a step are held by seccomp and the limits, which are the
//! process's; Landlock holds the calling thread and those it starts, and all of them from Linux 7.0
//! on.
//!
//! What stays possible: reading and writing what is open, using memory and time, and, while a target
//! is to be published, giving and taking names of regular files in its directory and those below.
//! Landlock knows no smaller right.
#![forbid(unsafe_code)]

#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
))]
mod calls;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod powers;
mod reach;

use std::path::{Path, PathBuf};

pub use reach::Reach;

/// How much of a sandbox there must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All of it, or an error.
    Require,
    /// What the system has.
    #[default]
    Try,
    /// None.
    Off,
}

/// A process that has begun to lock itself in.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    mode: Mode,
}

/// Why the process is not locked in as it must be.
#[derive(Debug, thiserror::Error)]
#[error("{wall} cannot be set up")]
pub struct SandboxError {
    wall: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Whether the file at `path` could be read, and `written` to if that is asked, if there were no
/// sandbox. It may be so, and another program may change it at any time: for messages only.
pub fn is_open_outside(path: &Path, written: bool) -> bool {
    files::is_open_outside(path, written)
}

/// What setting up a wall comes to.
type Built = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Sandbox {
    /// Gives up what no image needs, whatever it names: network, other programs, executable memory.
    ///
    /// Call it before the process starts threads.
    ///
    /// # Errors
    /// If `mode` is [`Mode::Require`] and a wall is missing.
    ///
    /// # Cost
    /// Less than a millisecond, and a few nanoseconds for each system call from now on.
    pub fn begin(mode: Mode) -> Result<Self, SandboxError> {
        let sandbox = Self { mode };
        sandbox.build("resource limits", limits::begin)?;
        sandbox.build("capabilities", powers::begin)?;
        sandbox.build("Landlock", || files::begin(mode))?;
        sandbox.build("seccomp", calls::begin)?;
        Ok(sandbox)
    }

    /// Gives up opening, making and naming files but within `reach`, and changing their rights.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    ///
    /// # Cost
    /// Two system calls for each place.
    pub fn narrow(&self, reach: &Reach) -> Result<(), SandboxError> {
        self.build("Landlock", || files::narrow(self.mode, reach))?;
        self.build("seccomp", || calls::narrow(reach.hands_down))
    }

    /// Gives up opening files. In `directories` and below them, regular files can still be linked,
    /// renamed and removed, which is how targets are published; without any, that is given up, too.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn lock_in(&self, directories: &[PathBuf]) -> Result<(), SandboxError> {
        self.build("Landlock", || files::lock_in(self.mode, directories))?;
        // The last that needs a descriptor is done.
        self.build("resource limits", limits::lock_in)?;
        self.build("seccomp", || calls::lock_in(!directories.is_empty()))
    }

    /// Whether anything is to be locked.
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    fn build(&self, wall: &'static str, build: impl FnOnce() -> Built) -> Result<(), SandboxError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        match build() {
            Err(source) if self.mode == Mode::Require => Err(SandboxError { wall, source }),
            _ => Ok(()),
        }
    }
}

/// Where the walls are not known.
#[cfg(not(target_os = "linux"))]
mod files {
    pub(crate) fn begin(_: crate::Mode) -> crate::Built {
        Err("this system has none".into())
    }

    pub(crate) fn narrow(mode: crate::Mode, _: &crate::Reach) -> crate::Built {
        begin(mode)
    }

    pub(crate) fn is_open_outside(_: &std::path::Path, _: bool) -> bool {
        false
    }

    pub(crate) fn lock_in(mode: crate::Mode, _: &[std::path::PathBuf]) -> crate::Built {
        begin(mode)
    }
}

#[cfg(not(target_os = "linux"))]
mod limits {
    pub(crate) fn begin() -> crate::Built {
        Err("this system has none that are known here".into())
    }

    pub(crate) fn lock_in() -> crate::Built {
        begin()
    }
}

#[cfg(not(target_os = "linux"))]
mod powers {
    pub(crate) fn begin() -> crate::Built {
        Err("this system has none that are known here".into())
    }
}

#[cfg(not(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
)))]
mod calls {
    pub(crate) fn begin() -> crate::Built {
        Err("this system or processor has none that is known here".into())
    }

    pub(crate) fn narrow(_: bool) -> crate::Built {
        begin()
    }

    pub(crate) fn lock_in(_: bool) -> crate::Built {
        begin()
    }
}
