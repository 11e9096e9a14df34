//! Going on with a file that an earlier process has left half written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use goldsmith_block::{Error, HostRange, Result, Storage, StorageMut, Transfer, Zeroing, pass_on};

/// A new file of which a part is written already, and stored.
///
/// Whoever goes on with it first makes the same calls again as whoever wrote that part: they are
/// noted, and change nothing. Then [`go_on`](Self::go_on) takes away all that stands behind that
/// part, of which nobody knows how much is there, and from then on calls do what they say.
///
/// ```text
/// file:    part that is stored │ perhaps some of what came later
/// retrace: w w  w w w          │
/// go_on:                       │ zeros: the file ends here, or holes up to its length
/// ```
#[derive(Debug)]
pub struct Unfinished {
    storage: Arc<dyn StorageMut>,
    /// Whether calls are noted only.
    retracing: AtomicBool,
    /// Where the part ends, as far as it was retraced; in bytes.
    end: AtomicU64,
    /// Length that the file would have by the calls that were retraced; in bytes.
    len: AtomicU64,
}

impl Unfinished {
    /// The file in `storage`, of which nothing is retraced yet.
    pub fn new(storage: Arc<dyn StorageMut>) -> Self {
        Self {
            storage,
            retracing: AtomicBool::new(true),
            end: AtomicU64::new(0),
            len: AtomicU64::new(0),
        }
    }

    /// Notes that the bytes before `end` belong to the part, though no call that is made again tells.
    pub fn reaches(&self, end: u64) {
        self.end.fetch_max(end, Ordering::Relaxed);
        self.len.fetch_max(end, Ordering::Relaxed);
    }

    /// Ends the retracing of a file that had `stored` bytes when the part was stored. Where nobody
    /// wrote, the part may be longer than the file; and who was cut off here left the part alone.
    ///
    /// # Errors
    /// `Corrupt` if the file is shorter than it was; those of [`StorageMut::set_len`].
    pub fn go_on(&self, stored: u64) -> Result<()> {
        let (end, len) = (&self.end, &self.len);
        let (end, len) = (end.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
        let (held, stored) = (self.storage.len(), stored.min(end));
        if held < stored {
            let text = format!("it has {held} bytes, but {stored} were stored: it was changed");
            return Err(Error::corrupt(text).in_file(self.name()));
        }
        self.storage.set_len(end)?;
        if len > end {
            self.storage.set_len(len)?;
        }
        self.retracing.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn is_retracing(&self) -> bool {
        self.retracing.load(Ordering::Relaxed)
    }
}

impl Storage for Unfinished {
    pass_on!(storage: name, id, file, read_at, span_at);

    fn len(&self) -> u64 {
        match self.is_retracing() {
            true => self.len.load(Ordering::Relaxed),
            false => self.storage.len(),
        }
    }
}

impl StorageMut for Unfinished {
    pass_on!(storage: best_transfer, fixed_len);

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.is_retracing() {
            return self.storage.write_at(offset, data);
        }
        if !data.is_empty() {
            self.reaches(offset.saturating_add(data.len() as u64));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if !self.is_retracing() {
            return self.storage.set_len(len);
        }
        self.end.fetch_min(len, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        match self.is_retracing() {
            true => Ok(()),
            false => self.storage.zero(range, zeroing),
        }
    }

    fn transfer(&self, source: &dyn Storage, from: HostRange, to: u64, transfer: Transfer) -> bool {
        !self.is_retracing() && self.storage.transfer(source, from, to, transfer)
    }

    fn flush(&self) -> Result<()> {
        match self.is_retracing() {
            true => Ok(()),
            false => self.storage.flush(),
        }
    }

    fn is_blank(&self) -> bool {
        // Behind the part there are only zeros, and the part is what was written.
        true
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::ErrorKind;

    use super::*;
    use crate::MemoryStorage;

    #[test]
    fn retraced_calls_change_nothing_and_what_stands_behind_goes() {
        let file = Arc::new(MemoryStorage::holding(
            "file",
            b"head, data, rubbish".to_vec(),
        ));
        let unfinished = Unfinished::new(Arc::clone(&file) as _);
        assert!(unfinished.is_blank() && unfinished.is_empty());
        unfinished.set_len(0).unwrap();
        unfinished.write_at(0, b"HEAD").unwrap();
        unfinished.reaches(10);
        unfinished.flush().unwrap();
        assert_eq!(unfinished.len(), 10);
        assert_eq!(file.to_vec(), b"head, data, rubbish");
        unfinished.go_on(12).unwrap();
        assert_eq!(file.to_vec(), b"head, data");
        unfinished.write_at(12, b"more").unwrap();
        assert_eq!(file.to_vec(), b"head, data\0\0more");
    }

    #[test]
    fn length_that_was_set_before_all_else_is_set_again() {
        let file = Arc::new(MemoryStorage::holding("file", b"data, rubbish".to_vec()));
        // The second time as if the first one was cut off halfway.
        for cut in [13, 4] {
            file.set_len(cut).unwrap();
            let unfinished = Unfinished::new(Arc::clone(&file) as _);
            unfinished.set_len(8).unwrap();
            unfinished.reaches(4);
            unfinished.go_on(8).unwrap();
            assert_eq!(file.to_vec(), b"data\0\0\0\0");
        }
    }

    #[test]
    fn part_that_ends_in_a_hole_is_longer_than_the_file() {
        let file = Arc::new(MemoryStorage::holding("file", b"data".to_vec()));
        let unfinished = Unfinished::new(Arc::clone(&file) as _);
        unfinished.reaches(6);
        unfinished.go_on(4).unwrap();
        assert_eq!(file.to_vec(), b"data\0\0");
    }

    #[test]
    fn file_that_lost_some_of_the_part_is_refused() {
        let file = Arc::new(MemoryStorage::holding("file", vec![1; 9]));
        let unfinished = Unfinished::new(file);
        unfinished.reaches(12);
        let error = unfinished.go_on(10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(
            error.report(),
            "file: corrupt image: it has 9 bytes, but 10 were stored: it was changed"
        );
    }
}
