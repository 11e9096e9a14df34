//! How far a job has come.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a job has come, in guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the disk that are done with, holes included.
    pub done: u64,
    /// Bytes of the disk.
    pub total: u64,
    /// Bytes that had to be read, out of `done`.
    pub data: u64,
}

/// Counts for all workers and tells the listener.
pub(crate) struct Meter<'a> {
    done: AtomicU64,
    data: AtomicU64,
    total: u64,
    listener: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(total: u64, listener: Option<&'a (dyn Fn(Progress) + Sync)>) -> Self {
        Self {
            done: AtomicU64::new(0),
            data: AtomicU64::new(0),
            total,
            listener,
        }
    }

    /// Adds `done` bytes of the disk, `data` of which were read.
    pub(crate) fn add(&self, done: u64, data: u64) {
        let data = self.data.fetch_add(data, Ordering::Relaxed) + data;
        let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
        if let Some(tell) = self.listener {
            tell(Progress {
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
