//! Looking for zeros in bytes that the kernel is to copy.

use goldsmith_block::{GuestRange, Result, is_zero};

/// What is read of a unit to see whether it holds more than zeros, in bytes: most data shows at
/// once.
pub(crate) const GLIMPSE: u64 = 4096;

/// What is known of one run of bytes, unit by unit.
pub(crate) struct Glimpses {
    /// Up to here the run was read.
    known: u64,
    /// Length of the zeros just before the next unit.
    zeros: u64,
}

impl Glimpses {
    /// Of a run that starts at `start` nothing is known.
    pub(crate) fn new(start: u64) -> Self {
        Self {
            known: start,
            zeros: 0,
        }
    }

    /// Whether there are only zeros in `unit`, which is the next one.
    ///
    /// `bytes` go from the start of the unit to the end of the run; `read` fills a part of them, and
    /// what it filled for earlier units is still there.
    pub(crate) fn is_empty(
        &mut self,
        unit: GuestRange,
        bytes: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<bool> {
        let (len, rest) = (unit.len(), bytes.len() as u64);
        // Zeros come in long runs, so as many again are read together.
        let steps = match self.zeros {
            0 => &[GLIMPSE, len][..],
            zeros => &[zeros.max(len)],
        };
        for step in steps {
            let at = self.known.max(unit.start);
            if at < unit.start + len.min(*step) {
                let end = unit.start + rest.min(*step);
                // Inside `bytes`, so these fit.
                let part = (at - unit.start) as usize..(end - unit.start) as usize;
                read(at, &mut bytes[part])?;
                self.known = end;
            }
            if !is_zero(&bytes[..len.min(*step) as usize]) {
                self.zeros = 0;
                return Ok(false);
            }
        }
        self.zeros += len;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use goldsmith_testkit::pattern::disk;

    use super::*;

    /// Which units of 16 KiB are empty, and what was read for that.
    fn look(picture: &str) -> (Vec<bool>, Vec<(u64, u64)>) {
        let disk = disk(picture);
        let mut buf = vec![0xEE; disk.len() as usize];
        let reads = RefCell::new(Vec::new());
        let mut glimpses = Glimpses::new(0);
        let mut empty = Vec::new();
        for start in (0..disk.len()).step_by(16 << 10) {
            let unit = GuestRange::new(start, (start + (16 << 10)).min(disk.len()));
            let read = |at: u64, buf: &mut [u8]| {
                reads.borrow_mut().push((at >> 10, buf.len() as u64 >> 10));
                buf.copy_from_slice(&disk.bytes()[at as usize..][..buf.len()]);
                Ok(())
            };
            let bytes = &mut buf[start as usize..];
            empty.push(glimpses.is_empty(unit, bytes, read).unwrap());
        }
        (empty, reads.into_inner())
    }

    #[test]
    fn data_costs_a_glimpse() {
        assert_eq!(look("32k:A"), (vec![false; 2], vec![(0, 4), (16, 4)]));
    }

    #[test]
    fn zeros_are_read_once_and_ever_more_at_a_time() {
        let reads = vec![(0, 4), (4, 12), (16, 16), (32, 32), (64, 64)];
        assert_eq!(look("128k:0"), (vec![true; 8], reads));
        // The end of the run ends the last unit and what is read ahead.
        let reads = vec![(0, 4), (4, 12), (16, 16), (32, 4)];
        assert_eq!(look("36k:0"), (vec![true; 3], reads));
    }

    #[test]
    fn data_behind_zeros_is_seen() {
        let (empty, reads) = look("8k:0 8k:A 40k:0 16k:B 8k:0 4k:C");
        assert_eq!(empty, [false, true, true, false, false, false]);
        let first = [(0, 4), (4, 12), (16, 4), (20, 12)];
        assert_eq!(reads, [&first[..], &[(32, 16), (48, 32), (80, 4)]].concat());
    }
}
