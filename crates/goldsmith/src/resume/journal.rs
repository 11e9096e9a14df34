//! What a conversion writes down, so that another process can go on with it.
//!
//! ```text
//! 5d6c07aa goldsmith journal 1
//! 9a1e33b0 source /images/golden.raw: raw, inode 77, 4294967296 bytes, changed ..., head 1f0c2a9e
//! c0ffee11 ...                        what else the target depends on, a line each
//! 90b3d417 journal 4712 1795000001.5  the inode of this file, and when it was made: it is no copy
//! 01d4a3c2 file 4711 1795000000.5     those of the unfinished file
//! 7be20d31 data 0 1048576             places that were asked for, in order
//! 66a90f17 packed 1048576 65536 977 1204 31007
//! f3d1c5ab zeros 1245184 1310720
//! 20b58a44 done 134217728 134283264   all before is stored, in a file of so many bytes
//! 84c1de90 complete 4295229440        the file is, with so many bytes, and wants nothing but its name
//! ```
//!
//! Each line begins with the CRC-32 of the one before, as it is written there, and its own text. Lines
//! are only ever added, and each addition is flushed; what stands behind the first line that does not
//! add up was being added when the machine stopped, and counts for nothing.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use goldsmith_block::{Demand, Error, GuestRange, Result, StorageId, StorageMut};
use goldsmith_engine::Crc32;

/// The first line.
const TITLE: &str = "goldsmith journal 1";
/// How the lines begin that say how far the work is.
const DONE: &str = "done ";
const COMPLETE: &str = "complete ";
/// Longest line, in bytes: names in it are short, and so are lists.
const LINE: u64 = 1 << 20;
/// Most packed units in one line.
const UNITS: usize = 4096;

/// One place that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// For data.
    Demand(Demand),
    /// For zeros that hide what stands behind the target.
    Zeros(GuestRange),
}

impl Place {
    pub(super) fn range(&self) -> GuestRange {
        match self {
            Self::Demand(demand) => demand.range,
            Self::Zeros(range) => *range,
        }
    }
}

/// The journal of one conversion.
#[derive(Debug)]
pub(super) struct Journal {
    storage: Arc<dyn StorageMut>,
    /// Where the next line goes.
    end: u64,
    /// The checksum of the last line.
    crc: u32,
    /// Where the lines about places begin, and the checksum before them.
    start: (u64, u32),
    /// Before this offset of the disk all is stored; the last line says so, if it is not 0.
    pub(super) done: u64,
    /// Bytes that the unfinished file had then, at least.
    pub(super) stored: u64,
    /// Bytes of the file, if it is complete.
    pub(super) complete: Option<u64>,
}

/// The bytes of a journal that tells of `facts` and of nothing done.
pub(super) fn header(facts: &[String]) -> String {
    let mut lines = Lines::default();
    lines.add(TITLE);
    facts.iter().for_each(|fact| lines.add(fact));
    lines.text
}

/// Lines to be added, each with its checksum.
#[derive(Default)]
struct Lines {
    text: String,
    crc: u32,
}

impl Lines {
    fn add(&mut self, line: &str) {
        self.crc = checksum(self.crc, line);
        self.text += &format!("{:08x} {line}\n", self.crc);
    }
}

fn checksum(before: u32, line: &str) -> u32 {
    Crc32::of(format!("{before:08x} {line}").as_bytes()).value()
}

impl Journal {
    /// Reads the journal in `storage`; gives its facts, too, whose last one begins with `last`.
    ///
    /// # Errors
    /// `Usage` if it is no journal, or one of another version; `Io` if it cannot be read.
    pub(super) fn open(storage: Arc<dyn StorageMut>, last: &str) -> Result<(Vec<String>, Self)> {
        let mut reader = LineReader::new(&*storage, 0, 0);
        if reader.next()?.as_deref() != Some(TITLE) {
            let text = "it is no journal of a conversion, or one of another version of goldsmith";
            return Err(Error::usage(text).in_file(storage.name()));
        }
        let mut facts = Vec::new();
        while facts
            .last()
            .is_none_or(|fact: &String| !fact.starts_with(last))
        {
            let Some(fact) = reader.next()? else {
                let text = "the journal ends before it says what it is about";
                return Err(Error::usage(text).in_file(storage.name()));
            };
            facts.push(fact);
        }
        let start = (reader.at, reader.crc);
        let (mut end, mut crc) = start;
        let (mut done, mut stored, mut complete) = (0, 0, None);
        while let Some(line) = reader.next()? {
            if let Some(numbers) = line.strip_prefix(DONE) {
                let numbers = numbers.split_once(' ');
                let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                (done, stored) = numbers.ok_or_else(|| reader.makes_no_sense(&line))?;
                complete = None;
            } else if let Some(len) = line.strip_prefix(COMPLETE) {
                let len = len.parse().map_err(|_| reader.makes_no_sense(&line))?;
                complete = Some(len);
            } else {
                continue;
            }
            (end, crc) = (reader.at, reader.crc);
        }
        drop(reader);
        Ok((
            facts,
            Self {
                storage,
                end,
                crc,
                start,
                done,
                stored,
                complete,
            },
        ))
    }

    /// The file that it is.
    pub(super) fn id(&self) -> StorageId {
        self.storage.id()
    }

    /// Calls `each` with the places that were asked for before `done`, in their order, some at a time.
    ///
    /// # Errors
    /// Those of `each`; `Corrupt` if a line makes no sense; `Io`.
    pub(super) fn places(&self, mut each: impl FnMut(&[Place]) -> Result<()>) -> Result<()> {
        let mut reader = LineReader::new(&*self.storage, self.start.0, self.start.1);
        while reader.at < self.end
            && let Some(line) = reader.next()?
        {
            if line.starts_with(DONE) || line.starts_with(COMPLETE) {
                continue;
            }
            let places = parse(&line).ok_or_else(|| reader.makes_no_sense(&line))?;
            each(&places)?;
        }
        Ok(())
    }

    /// Adds `places`, asked for since the last time, and that all before `done` is stored in a file of
    /// at least `stored` bytes.
    ///
    /// # Errors
    /// Those of the storage.
    pub(super) fn add(&mut self, places: &[Place], done: u64, stored: u64) -> Result<()> {
        let mut lines = self.lines();
        write(places, |line| lines.add(line));
        lines.add(&format!("{DONE}{done} {stored}"));
        self.append(lines)?;
        (self.done, self.stored) = (done, stored);
        Ok(())
    }

    /// Adds that the file is complete, with `len` bytes.
    ///
    /// # Errors
    /// Those of the storage.
    pub(super) fn finish(&mut self, len: u64) -> Result<()> {
        let mut lines = self.lines();
        lines.add(&format!("{COMPLETE}{len}"));
        self.append(lines)
    }

    fn lines(&self) -> Lines {
        Lines {
            text: String::new(),
            crc: self.crc,
        }
    }

    fn append(&mut self, lines: Lines) -> Result<()> {
        self.storage.write_at(self.end, lines.text.as_bytes())?;
        // What a line that did not add up has left there must not be taken for one.
        self.storage.set_len(self.end + lines.text.len() as u64)?;
        self.storage.flush()?;
        self.end += lines.text.len() as u64;
        self.crc = lines.crc;
        Ok(())
    }
}

/// The lines that mean `places`.
fn write(places: &[Place], mut line: impl FnMut(&str)) {
    let mut rest = places;
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let range = first.range();
        let kind = match first {
            Place::Zeros(_) => "zeros",
            Place::Demand(Demand { packed: None, .. }) => "data",
            Place::Demand(Demand {
                packed: Some(len), ..
            }) => {
                // Those that follow, each as long as the first one.
                let mut text = format!("packed {} {} {len}", range.start, range.len());
                let mut end = range.end;
                for _ in 1..UNITS {
                    let Some((Place::Demand(next), more)) = rest.split_first() else {
                        break;
                    };
                    let Some(len) = next.packed else { break };
                    if next.range.start != end || next.range.len() != range.len() {
                        break;
                    }
                    text += &format!(" {len}");
                    (end, rest) = (next.range.end, more);
                }
                line(&text);
                continue;
            }
        };
        line(&format!("{kind} {} {}", range.start, range.end));
    }
}

/// The places that `line` means.
fn parse(line: &str) -> Option<Vec<Place>> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let &[start, second, ref lens @ ..] = &*numbers else {
        return None;
    };
    let range = || (start < second).then(|| GuestRange::new(start, second));
    match (kind, lens) {
        ("data", []) => Some(vec![Place::Demand(Demand {
            range: range()?,
            packed: None,
        })]),
        ("zeros", []) => Some(vec![Place::Zeros(range()?)]),
        ("packed", [_, ..]) => {
            let unit = Some(second).filter(|unit| *unit > 0)?;
            let mut at = start;
            let mut place = |len: &u64| {
                let range = GuestRange::new(at, at.checked_add(unit)?);
                at = range.end;
                Some(Place::Demand(Demand {
                    range,
                    packed: Some(*len),
                }))
            };
            lens.iter().map(&mut place).collect()
        }
        _ => None,
    }
}

/// Reads lines for as long as they add up.
struct LineReader<'a> {
    name: &'a str,
    bytes: BufReader<Bytes<'a>>,
    /// Where the next line begins.
    at: u64,
    crc: u32,
}

impl<'a> LineReader<'a> {
    fn new(storage: &'a dyn StorageMut, at: u64, crc: u32) -> Self {
        Self {
            name: storage.name(),
            bytes: BufReader::new(Bytes { storage, at }),
            at,
            crc,
        }
    }

    /// The next line, without its checksum.
    fn next(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut self.bytes).take(LINE).read_until(b'\n', &mut line);
        read.map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::new(goldsmith_block::ErrorKind::Io, error).in_file(self.name),
        })?;
        let len = line.len() as u64;
        let text = std::str::from_utf8(&line).ok();
        let text = text.and_then(|text| text.strip_suffix('\n')?.split_once(' '));
        let Some((crc, text)) = text else {
            return Ok(None);
        };
        let found = checksum(self.crc, text);
        if crc != format!("{found:08x}") {
            return Ok(None);
        }
        self.crc = found;
        self.at += len;
        Ok(Some(text.to_owned()))
    }

    fn makes_no_sense(&self, line: &str) -> Error {
        let text = format!("the line '{line}' of the journal makes no sense");
        Error::corrupt(text).in_file(self.name)
    }
}

/// The bytes of a storage, one after the other.
struct Bytes<'a> {
    storage: &'a dyn StorageMut,
    at: u64,
}

impl Read for Bytes<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = self.storage.len().saturating_sub(self.at);
        // No more than the buffer.
        let len = rest.min(buf.len() as u64) as usize;
        if len > 0 {
            let read = self.storage.read_at(self.at, &mut buf[..len]);
            read.map_err(io::Error::other)?;
            self.at += len as u64;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_storage::MemoryStorage;

    use super::*;

    fn demand(start: u64, end: u64, packed: Option<u64>) -> Place {
        let range = GuestRange::new(start, end);
        Place::Demand(Demand { range, packed })
    }

    fn places() -> Vec<Place> {
        vec![
            demand(0, 3000, None),
            demand(4096, 8192, Some(100)),
            demand(8192, 12288, Some(7)),
            // A gap, and the last unit of a disk.
            demand(16384, 20480, Some(1)),
            demand(20480, 20992, Some(2)),
            Place::Zeros(GuestRange::new(30000, 40000)),
        ]
    }

    fn journal(text: Vec<u8>) -> Result<(Vec<String>, Journal)> {
        Journal::open(Arc::new(MemoryStorage::holding("journal", text)), "file ")
    }

    fn found(journal: &Journal) -> Vec<Place> {
        let mut found = Vec::new();
        journal
            .places(|places| {
                found.extend_from_slice(places);
                Ok(())
            })
            .unwrap();
        found
    }

    fn facts() -> Vec<String> {
        ["source a b", "file 7"].map(String::from).to_vec()
    }

    /// A journal with two additions, and where the first one begins and ends.
    fn whole() -> (Vec<u8>, usize, usize) {
        let storage = Arc::new(MemoryStorage::holding(
            "journal",
            header(&facts()).into_bytes(),
        ));
        let (_, mut journal) = Journal::open(Arc::clone(&storage) as _, "file ").unwrap();
        let start = storage.to_vec().len();
        journal.add(&places()[..2], 8192, 9000).unwrap();
        let first = storage.to_vec().len();
        journal.add(&places()[2..], 50000, 60000).unwrap();
        (storage.to_vec(), start, first)
    }

    #[test]
    fn what_was_added_is_found_again() {
        let (text, _, _) = whole();
        let (found_facts, journal) = journal(text).unwrap();
        assert_eq!((found_facts, journal.done), (facts(), 50000));
        assert_eq!(journal.stored, 60000);
        assert_eq!(found(&journal), places());
        let mut lines = Vec::new();
        write(&places(), |line| lines.push(line.to_owned()));
        assert_eq!(
            lines,
            [
                "data 0 3000",
                "packed 4096 4096 100 7",
                "packed 16384 4096 1",
                "packed 20480 512 2",
                "zeros 30000 40000"
            ]
        );
    }

    /// Cut anywhere, or with any byte changed, it tells of what was whole before, and takes more.
    #[test]
    fn torn_end_counts_for_nothing() {
        let (text, start, first) = whole();
        for cut in start..text.len() {
            let mut flipped = text.clone();
            flipped[cut] ^= 1;
            let mut zeroed = text.clone();
            zeroed[cut..].fill(0);
            for torn in [text[..cut].to_vec(), flipped, zeroed] {
                let (_, mut journal) = journal(torn).unwrap();
                let expected = match cut < first {
                    true => (0, vec![]),
                    false => (8192, places()[..2].to_vec()),
                };
                assert_eq!((journal.done, found(&journal)), expected, "cut at {cut}");
                journal
                    .add(&[demand(60000, 60001, None)], 70000, 1)
                    .unwrap();
                let again = found(&journal);
                assert_eq!(again.len(), expected.1.len() + 1);
                let storage = Arc::clone(&journal.storage);
                let (_, reread) = Journal::open(storage, "file ").unwrap();
                assert_eq!((reread.done, found(&reread)), (70000, again));
            }
        }
    }

    #[test]
    fn file_is_complete_until_work_goes_on() {
        let (text, _, _) = whole();
        let storage = Arc::new(MemoryStorage::holding("journal", text));
        let open = || Journal::open(Arc::clone(&storage) as _, "file ").unwrap().1;
        let mut journal = open();
        assert_eq!(journal.complete, None);
        journal.finish(77).unwrap();
        let mut journal = open();
        assert_eq!((journal.done, journal.complete), (50000, Some(77)));
        assert_eq!(found(&journal), places());
        journal
            .add(&[demand(60000, 60001, None)], 70000, 1)
            .unwrap();
        assert_eq!((open().done, open().complete), (70000, None));
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let (text, start, _) = whole();
        for bad in [&b"my only copy"[..], b"", &text[..start - 5], &text[1..]] {
            let error = journal(bad.to_vec()).unwrap_err();
            assert_eq!(error.kind(), goldsmith_block::ErrorKind::Usage);
        }
    }

    #[test]
    fn lines_without_sense_are_refused() {
        for line in [
            "data 5 5",
            "data 5",
            "zeros 9 1",
            "packed 0 0 1",
            "packed 1 18446744073709551615 1",
            "packed 1 2",
            "data 1 2 3",
            "other 1 2",
            "data 1 -2",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
