//! How much an image may ask for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Error, ErrorKind, Result};

/// What a stranger's image may make us spend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of memory for the metadata of one chain of images. Default: 256 MiB.
    pub metadata_bytes: u64,
    /// Images in one chain, the topmost included. Default: 200.
    pub chain_depth: usize,
    /// Bytes of temporary files for what has to be unpacked as a whole. Default: 64 GiB.
    pub unpacked_bytes: u64,
    /// Processor time that the thread which unpacks such a thing may have taken since it began, for callers
    /// who are themselves bound to some. Default: any.
    pub unpacking_time: Option<Duration>,
    /// Rounds of hashing that try a passphrase, in one chain of images. Default: 2^31, which take some
    /// ten minutes. QEMU asks for what two seconds do for each key slot, on the machine that it runs on.
    pub hash_rounds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            metadata_bytes: 256 << 20,
            chain_depth: 200,
            unpacked_bytes: 64 << 30,
            unpacking_time: None,
            hash_rounds: 1 << 31,
        }
    }
}

/// The part of [`Limits`] that is used up while images are opened.
///
/// Every allocation whose size a file decides goes through here first, and so does all else that a file
/// decides the cost of.
#[derive(Debug)]
pub struct Budget {
    memory: Purse,
    files: Purse,
    hashing: Purse,
    unpacking_time: Option<Duration>,
}

/// What there was to spend, and what is left of it.
#[derive(Debug)]
struct Purse {
    total: u64,
    left: AtomicU64,
}

impl Purse {
    fn new(total: u64) -> Self {
        let left = AtomicU64::new(total);
        Self { total, left }
    }

    fn take(&self, amount: u64, what: &'static str, unit: &'static str) -> Result<()> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(amount)
            })
            .map(|_| ())
            .map_err(|left| {
                let total = self.total;
                let over = OverBudget {
                    what,
                    amount,
                    unit,
                    left,
                    total,
                };
                Error::new(ErrorKind::Limit, over)
            })
    }
}

impl Budget {
    /// The whole of `limits`, unspent.
    pub fn new(limits: &Limits) -> Self {
        Self {
            memory: Purse::new(limits.metadata_bytes),
            files: Purse::new(limits.unpacked_bytes),
            hashing: Purse::new(limits.hash_rounds),
            unpacking_time: limits.unpacking_time,
        }
    }

    /// The same budget, unspent.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self {
            memory: Purse::new(self.memory.total),
            files: Purse::new(self.files.total),
            hashing: Purse::new(self.hashing.total),
            unpacking_time: self.unpacking_time,
        }
    }

    /// Takes `bytes` of memory for `what`, which reads well after "the" ("block table").
    ///
    /// # Errors
    /// `Limit` if less is left; nothing is taken then.
    pub fn reserve(&self, bytes: u64, what: &'static str) -> Result<()> {
        self.memory.take(bytes, what, "bytes of memory")
    }

    /// As [`reserve`](Self::reserve), but `bytes` of temporary files.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn unpack(&self, bytes: u64, what: &'static str) -> Result<()> {
        self.files.take(bytes, what, "bytes of temporary files")
    }

    /// See [`Limits::unpacking_time`].
    pub fn unpacking_time(&self) -> Option<Duration> {
        self.unpacking_time
    }

    /// As [`reserve`](Self::reserve), but `rounds` of hashing, each of which takes about a tenth of a
    /// microsecond to one.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn hash(&self, rounds: u64, what: &'static str) -> Result<()> {
        self.hashing.take(rounds, what, "rounds of hashing")
    }

    /// `len` zeroed elements for `what`, paid for.
    ///
    /// # Errors
    /// `Limit` if the budget does not cover them or the machine has no such memory.
    pub fn zeroed<T: Copy + Default>(&self, len: u64, what: &'static str) -> Result<Vec<T>> {
        let bytes = len.saturating_mul(size_of::<T>() as u64);
        self.reserve(bytes, what)?;
        let mut items = Vec::new();
        // A length that passed the budget fits in usize or fails right here.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        items
            .try_reserve_exact(len)
            .map_err(|error| Error::new(ErrorKind::Limit, error))?;
        items.resize(len, T::default());
        Ok(items)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the {what} takes {amount} {unit}; {left} of the {total} allowed are left")]
struct OverBudget {
    what: &'static str,
    amount: u64,
    unit: &'static str,
    left: u64,
    total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: u64) -> Budget {
        Budget::new(&Limits {
            metadata_bytes: bytes,
            ..Limits::default()
        })
    }

    #[test]
    fn spent_budget_refuses_with_the_numbers() {
        let budget = budget(100);
        budget.reserve(60, "block table").unwrap();
        let error = budget.reserve(41, "L1 table").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert_eq!(
            error.report(),
            "over a limit: the L1 table takes 41 bytes of memory; 40 of the 100 allowed are left"
        );
        budget.reserve(40, "L1 table").unwrap();
    }

    #[test]
    fn temporary_files_are_paid_for_apart_from_memory() {
        let budget = budget(100);
        budget.unpack(64 << 30, "tarball").unwrap();
        budget.reserve(100, "block table").unwrap();
        let report = budget.unpack(1, "tarball").unwrap_err().report();
        assert_eq!(
            report,
            "over a limit: the tarball takes 1 bytes of temporary files; 0 of the 68719476736 \
             allowed are left"
        );
    }

    #[test]
    fn hashing_is_paid_for_in_rounds() {
        let budget = Budget::new(&Limits {
            hash_rounds: 1000,
            ..Limits::default()
        });
        budget.hash(900, "key slot").unwrap();
        let report = budget.hash(101, "key slot").unwrap_err().report();
        assert_eq!(
            report,
            "over a limit: the key slot takes 101 rounds of hashing; 100 of the 1000 allowed are left"
        );
        budget.afresh().hash(1000, "key slot").unwrap();
    }

    #[test]
    fn size_that_overflows_is_over_budget() {
        assert!(budget(100).zeroed::<u64>(u64::MAX / 4, "L1 table").is_err());
        assert_eq!(budget(100).zeroed::<u64>(3, "L1 table").unwrap(), [0, 0, 0]);
    }
}
