//! Long runs of alike table entries, found once.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The long run of alike entries that was found last in a table that does not change.
///
/// Whoever walks a chain asks an upper image again wherever the one behind it changes. If each answer
/// looked for the end of the same run, the walk would take time with the square of the table.
#[derive(Debug, Default)]
pub struct LastRun(Mutex<Range<u64>>);

impl LastRun {
    /// Entries that are looked at again rather than remembered. [ours] Workers that look at a piece of
    /// the disk must not make the table forget the run of whoever walks all of it.
    const SHORT: u64 = 256;

    /// Where the run ends that entry `first` is in, at the latest at `limit`; both count entries, and
    /// `first < limit`. `is_in` says whether an entry is of the kind that is meant, and `first` is.
    ///
    /// # Cost
    /// However often a run is asked for by whoever walks it, one look at each entry; besides, up to
    /// 256 for each call.
    pub fn end(&self, first: u64, limit: u64, is_in: impl Fn(u64) -> bool) -> u64 {
        let known = self.lock().clone();
        let (start, from) = match known.contains(&first) {
            true => (known.start, known.end),
            false => (first, first),
        };
        if from >= limit {
            return limit;
        }
        let end = (from..limit).find(|at| !is_in(*at)).unwrap_or(limit);
        if end - from >= Self::SHORT {
            *self.lock() = start..end;
        }
        end
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Range<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// Half of a table is one run, and so is the rest but for one entry.
    #[test]
    fn walk_looks_at_each_entry_of_a_long_run_once() {
        const LEN: u64 = 100_000;
        let looks = Cell::new(0);
        let is_in = |at| {
            looks.set(looks.get() + 1);
            at != LEN / 2
        };
        let last = LastRun::default();
        for first in (0..LEN).filter(|first| *first != LEN / 2) {
            let end = if first < LEN / 2 { LEN / 2 } else { LEN };
            assert_eq!(last.end(first, LEN, is_in), end);
            // Somebody else looks at a piece behind or before.
            let piece = (first / 2..LEN).find(|at| *at != LEN / 2).unwrap();
            last.end(piece, piece + 1, is_in);
        }
        assert!(looks.get() < 4 * LEN, "{} looks", looks.get());
    }

    proptest! {
        /// In any order, up to any limit: the end that a fresh look finds.
        #[test]
        fn memory_changes_no_answer(
            runs in prop::collection::vec((1..2000_u64, any::<bool>()), 1..8),
            asked in prop::collection::vec((any::<prop::sample::Index>(), 1..4000_u64), 1..50),
        ) {
            let table: Vec<bool> = runs
                .into_iter()
                .flat_map(|(len, it)| std::iter::repeat_n(it, len as usize))
                .collect();
            let last = LastRun::default();
            for (first, len) in asked {
                let first = first.index(table.len());
                let limit = (first + len as usize).min(table.len());
                if !table[first] {
                    continue;
                }
                let run = table[first..limit].iter().take_while(|it| **it).count();
                let end = last.end(first as u64, limit as u64, |at| table[at as usize]);
                prop_assert_eq!(end, (first + run) as u64);
            }
        }
    }
}
