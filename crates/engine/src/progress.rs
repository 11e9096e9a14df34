//! How far a job has come.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// A disk goes into an image.
    Copy,
    /// Two disks are compared.
    Compare,
    /// A digest is made of a disk or a file.
    Checksum,
    /// What was written is read back.
    Verify,
    /// The tables of an image are looked at.
    Check,
    /// Space is taken for what nobody has written yet.
    Allocate,
}

impl Phase {
    /// Its name, for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Compare => "compare",
            Self::Checksum => "checksum",
            Self::Verify => "verify",
            Self::Check => "check",
            Self::Allocate => "allocate",
        }
    }
}

/// How far a job has come, in guest bytes; in a [check](Phase::Check) in bytes of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done; a job may have several phases, one after the other.
    pub phase: Phase,
    /// Bytes of the disk that are done with, holes included.
    pub done: u64,
    /// Bytes of the disk.
    pub total: u64,
    /// Bytes that had to be read, out of `done`.
    pub data: u64,
}

impl Progress {
    /// That of a job over `total` bytes before anything is done.
    #[must_use]
    pub fn start(phase: Phase, total: u64) -> Self {
        Self {
            phase,
            done: 0,
            total,
            data: 0,
        }
    }
}

/// Counts for all workers and tells the listener.
pub(crate) struct Meter<'a> {
    phase: Phase,
    done: AtomicU64,
    data: AtomicU64,
    total: u64,
    listener: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl<'a> Meter<'a> {
    /// Of a phase that begins; the listener hears of that, too.
    pub(crate) fn new(
        phase: Phase,
        total: u64,
        listener: Option<&'a (dyn Fn(Progress) + Sync)>,
    ) -> Self {
        Self::going_on(phase, 0, total, listener)
    }

    /// Of a phase that goes on with `done` bytes behind it.
    pub(crate) fn going_on(
        phase: Phase,
        done: u64,
        total: u64,
        listener: Option<&'a (dyn Fn(Progress) + Sync)>,
    ) -> Self {
        let meter = Self {
            phase,
            done: AtomicU64::new(done),
            data: AtomicU64::new(0),
            total,
            listener,
        };
        meter.add(0, 0);
        meter
    }

    /// Adds `done` bytes of the disk, `data` of which were read.
    pub(crate) fn add(&self, done: u64, data: u64) {
        let data = self.data.fetch_add(data, Ordering::Relaxed) + data;
        let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
        if let Some(tell) = self.listener {
            tell(Progress {
                phase: self.phase,
                done,
                total: self.total,
                data,
            });
        }
    }

    pub(crate) fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }
}
