//! A storage that remembers its writes, and what a power cut may leave of them.
//!
//! Until a flush returns nothing is certain: of what was asked for since the one before any part
//! may have arrived, in any order, and of each write any sectors. A sector of 512 bytes arrives
//! whole or not at all. \[ours] Drives promise that much, and no more.
//!
//! ```text
//! write a, write b, flush, write c, flush
//! └─── epoch 0 ────┘       └ epoch 1 ┘
//!  -, a, b, ab, torn a...   ab, abc, ab + torn c...
//! ```

mod event;
mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{HostRange, Result, Storage, StorageMut, Zeroing, pass_on};
use goldsmith_storage::MemoryStorage;

use event::Event;
use plan::Arrival;

/// Bytes in memory, every change of which is written down.
///
/// ```
/// use goldsmith_block::{Storage, StorageMut};
/// use goldsmith_testkit::crash::CrashStorage;
///
/// let crash = CrashStorage::new("disk", b"old data, old head".to_vec());
/// crash.write_at(0, b"new")?;
/// crash.flush()?;
/// crash.write_at(10, b"new")?;
/// crash.each_state(|what, storage| {
///     let bytes = storage.to_vec();
///     assert!(bytes.starts_with(b"new") || bytes.ends_with(b"old head"), "{what}");
/// });
/// # Ok::<(), goldsmith_block::Error>(())
/// ```
#[derive(Debug)]
pub struct CrashStorage {
    /// What reads find now: the caches of a running machine lose nothing.
    now: MemoryStorage,
    /// Which of the files of `log` this is.
    file: usize,
    log: Arc<Mutex<Log>>,
}

/// What happened to the files of one machine, in order.
#[derive(Clone, Debug, Default)]
struct Log {
    /// Names of the files, and what they held at first.
    files: Vec<(String, Vec<u8>)>,
    /// Each with the file that it was for.
    events: Vec<(usize, Event)>,
}

impl CrashStorage {
    /// A file that holds `bytes`, all of them durable.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self::on(Arc::default(), name.into(), bytes)
    }

    /// Another file of the same machine: a power cut hits both at the same moment, but a flush of
    /// one says nothing of the other.
    #[must_use]
    pub fn beside(&self, name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self::on(self.log.clone(), name.into(), bytes)
    }

    fn on(log: Arc<Mutex<Log>>, name: String, bytes: Vec<u8>) -> Self {
        let now = match bytes.is_empty() {
            true => MemoryStorage::new(&*name),
            false => MemoryStorage::holding(&*name, bytes.clone()),
        };
        let file = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.files.push((name, bytes));
            log.files.len() - 1
        };
        Self { now, file, log }
    }

    /// All bytes as they are if nothing is lost.
    pub fn to_vec(&self) -> Vec<u8> {
        self.now.to_vec()
    }

    /// What would be left of this file now if nothing arrived but what was flushed.
    pub fn durable(&self) -> Arc<MemoryStorage> {
        let log = self.log();
        let (name, mut bytes) = log.files[self.file].clone();
        let events = log.events.iter().filter(|(file, _)| *file == self.file);
        let events: Vec<_> = events.map(|(_, event)| event).collect();
        let is_flush = |event: &&Event| matches!(event, Event::Flush);
        let last = events.iter().rposition(is_flush).unwrap_or(0);
        for event in &events[..last] {
            event.arrive(&mut bytes, Arrival::Whole);
        }
        Arc::new(MemoryStorage::holding(name, bytes))
    }

    /// How many changes were asked for so far, of all files; flushes are none.
    pub fn changes(&self) -> usize {
        let events = &self.log().events;
        let is_change = |(_, event): &&(usize, Event)| !matches!(event, Event::Flush);
        events.iter().filter(is_change).count()
    }

    /// Calls `look` with each state that a power cut may leave of this file, and with words for it.
    ///
    /// Which states: see [`each_states`](Self::each_states).
    pub fn each_state(&self, mut look: impl FnMut(&str, Arc<MemoryStorage>)) {
        self.each_states(|what, files| look(what, files[self.file].clone()));
    }

    /// Calls `look` with each state that a power cut may leave of all files of the machine, in the
    /// order in which they were made, and with words for it.
    ///
    /// For each epoch, that is, before each flush and at the end: nothing of it has arrived; all;
    /// the first n changes; one change alone; all but one; of a write over several sectors the
    /// first n or all but the first n of them, alone and with all other changes, or only the new
    /// length of the file; some random parts; and of an epoch of a few sectors, every choice of them.
    /// Changes that overlap arrive in the order in which they were made and in the opposite one. Of
    /// long epochs and long writes evenly chosen changes and sectors are looked at, the first and
    /// the last always.
    ///
    /// # Cost
    /// One copy of all files for each state: some ten states for each change.
    pub fn each_states(&self, mut look: impl FnMut(&str, &[Arc<MemoryStorage>])) {
        // A copy, so that `look` may look at this object, too.
        let log = self.log().clone();
        let mut durable: Vec<_> = log.files.iter().map(|(_, bytes)| bytes.clone()).collect();
        let mut pending: Vec<(usize, &Event)> = Vec::new();
        let mut epoch = 0;
        // The cut after the last change is one before a flush that never was.
        for (file, event) in log.events.iter().chain([&(usize::MAX, Event::Flush)]) {
            if !matches!(event, Event::Flush) {
                pending.push((*file, event));
                continue;
            }
            log.show(epoch, &durable, &pending, &mut look);
            for (of, event) in pending.iter().filter(|(of, _)| of == file) {
                event.arrive(&mut durable[*of], Arrival::Whole);
            }
            pending.retain(|(of, _)| of != file);
            epoch += 1;
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `change`, and writes it down if it went well; both at once, so that the order is right.
    fn note(&self, event: Event, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut log = self.log();
        change()?;
        log.events.push((self.file, event));
        Ok(())
    }
}

impl Log {
    /// Calls `look` with what may be left of `pending` on top of `durable`.
    fn show(
        &self,
        epoch: usize,
        durable: &[Vec<u8>],
        pending: &[(usize, &Event)],
        look: &mut impl FnMut(&str, &[Arc<MemoryStorage>]),
    ) {
        let shapes = pending
            .iter()
            .map(|(file, event)| event.shape(*file, durable[*file].len() as u64));
        for plan in plan::plans(&shapes.collect::<Vec<_>>(), epoch as u64) {
            let mut files = durable.to_vec();
            let mut what = format!("epoch {epoch}: {}", plan.what);
            for (nth, arrival) in plan.arrivals {
                let (file, event) = pending[nth];
                event.arrive(&mut files[file], arrival);
                if let Some(part) = event.part(arrival) {
                    what += &format!("; {} {part}", self.files[file].0);
                }
            }
            let names = self.files.iter().map(|(name, _)| &**name);
            let files = names.zip(files);
            let files = files.map(|(name, bytes)| Arc::new(MemoryStorage::holding(name, bytes)));
            look(&what, &files.collect::<Vec<_>>());
        }
    }
}

impl Storage for CrashStorage {
    pass_on!(now: name, id, len, read_at, span_at);
}

impl StorageMut for CrashStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let event = Event::Write {
            offset,
            data: data.to_vec(),
        };
        self.note(event, || self.now.write_at(offset, data))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.note(Event::SetLen(len), || self.now.set_len(len))
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.note(Event::Zero(range), || self.now.zero(range, zeroing))
    }

    fn flush(&self) -> Result<()> {
        self.note(Event::Flush, || self.now.flush())
    }

    fn fixed_len(&self) -> Option<u64> {
        None
    }

    fn is_blank(&self) -> bool {
        self.now.is_blank()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    crate::storage_conformance!(
        || std::sync::Arc::new(CrashStorage::new("new", Vec::new())),
        storage
    );

    /// The letters at the starts of the sectors of each state.
    fn states(crash: &CrashStorage) -> BTreeSet<String> {
        let mut states = BTreeSet::new();
        crash.each_state(|_, storage| {
            let sectors = storage.to_vec();
            let letters = sectors.chunks(512).map(|sector| char::from(sector[0]));
            states.insert(letters.collect());
        });
        states
    }

    fn sectors(letters: &str) -> Vec<u8> {
        letters.bytes().flat_map(|letter| [letter; 512]).collect()
    }

    fn set<const N: usize>(states: [&str; N]) -> BTreeSet<String> {
        states.into_iter().map(String::from).collect()
    }

    #[test]
    fn two_writes_arrive_in_either_order_unless_a_flush_stands_between() {
        let crash = CrashStorage::new("m", sectors("ab"));
        crash.write_at(0, &sectors("A")).unwrap();
        crash.write_at(512, &sectors("B")).unwrap();
        assert_eq!(states(&crash), set(["ab", "Ab", "aB", "AB"]));

        let crash = CrashStorage::new("m", sectors("ab"));
        crash.write_at(0, &sectors("A")).unwrap();
        crash.flush().unwrap();
        crash.write_at(512, &sectors("B")).unwrap();
        crash.flush().unwrap();
        assert_eq!(states(&crash), set(["ab", "Ab", "AB"]));
        assert_eq!(crash.changes(), 2);
    }

    #[test]
    fn what_was_flushed_is_durable_and_nothing_else() {
        let one = CrashStorage::new("one", sectors("ab"));
        let two = one.beside("two", sectors("c"));
        let durable = |file: &CrashStorage| file.durable().to_vec();
        one.write_at(0, &sectors("A")).unwrap();
        two.flush().unwrap();
        assert!(durable(&one) == sectors("ab"));
        one.flush().unwrap();
        one.write_at(512, &sectors("B")).unwrap();
        two.write_at(0, &sectors("C")).unwrap();
        assert!(durable(&one) == sectors("Ab"));
        assert!(durable(&two) == sectors("c"));
        one.flush().unwrap();
        assert!(durable(&one) == sectors("AB"));
    }

    #[test]
    fn write_over_sectors_is_torn_and_a_sector_is_not() {
        let crash = CrashStorage::new("m", sectors("abc"));
        crash.write_at(0, &sectors("ABC")).unwrap();
        let all: BTreeSet<_> = (0..8)
            .map(|bits| {
                let letters = "abc".chars().enumerate();
                let letters = letters.map(|(nth, letter)| match bits >> nth & 1 {
                    1 => letter.to_ascii_uppercase(),
                    _ => letter,
                });
                letters.collect::<String>()
            })
            .collect();
        assert_eq!(states(&crash), all);

        let crash = CrashStorage::new("m", vec![b'a'; 1024]);
        crash.write_at(500, &[b'A'; 20]).unwrap();
        let mut parts = BTreeSet::new();
        crash.each_state(|_, storage| {
            let bytes = storage.to_vec();
            let part = bytes.iter().filter(|byte| **byte == b'A').count();
            parts.insert((bytes[511], bytes[512], part));
        });
        let all = [
            (b'A', b'A', 20),
            (b'A', b'a', 12),
            (b'a', b'A', 8),
            (b'a', b'a', 0),
        ];
        assert_eq!(parts, all.into());
    }

    #[test]
    fn overlapping_changes_arrive_in_both_orders() {
        let crash = CrashStorage::new("m", sectors("a"));
        crash.write_at(0, &sectors("A")).unwrap();
        crash.write_at(0, &sectors("B")).unwrap();
        assert_eq!(states(&crash), set(["a", "A", "B"]));
        crash.each_state(|what, storage| {
            if what.ends_with("write 0x0..0x200; m write 0x0..0x200") {
                assert!(b"AB".contains(&storage.to_vec()[0]));
            }
        });
    }

    #[test]
    fn length_changes_apart_from_the_bytes() {
        let crash = CrashStorage::new("m", sectors("ab"));
        crash.set_len(512).unwrap();
        crash.flush().unwrap();
        crash.write_at(512, &sectors("CD")).unwrap();
        let cut = set(["ab", "a", "aC", "a\0D", "aCD", "a\0\0"]);
        assert_eq!(states(&crash), cut);
    }

    #[test]
    fn zeros_are_torn_like_writes() {
        let crash = CrashStorage::new("m", sectors("ab"));
        crash.zero(HostRange::new(0, 1024), Zeroing::Punch).unwrap();
        assert_eq!(states(&crash), set(["ab", "\0b", "a\0", "\0\0"]));
    }

    #[test]
    fn flush_of_one_file_says_nothing_of_another() {
        for second_flushed in [false, true] {
            let one = CrashStorage::new("one", sectors("a"));
            let two = one.beside("two", sectors("b"));
            two.write_at(0, &sectors("B")).unwrap();
            if second_flushed {
                two.flush().unwrap();
            } else {
                one.flush().unwrap();
            }
            one.write_at(0, &sectors("A")).unwrap();
            let mut seen = BTreeSet::new();
            one.each_states(|_, files| {
                let first = |file: &MemoryStorage| char::from(file.to_vec()[0]);
                seen.insert(files.iter().map(|file| first(file)).collect::<String>());
            });
            assert_eq!(seen.contains("Ab"), !second_flushed, "{seen:?}");
            assert!(seen.is_superset(&set(["ab", "aB", "AB"])));
        }
    }
}
