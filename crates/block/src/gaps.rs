//! Tables of which some sectors cannot be read.

use crate::{Error, ErrorKind, HostRange, Result, Span, Storage, middle_sector, pass_on};

/// What of a table could not be read, for those who take what is left of a damaged image; for all others
/// there are no gaps, but errors.
#[derive(Debug, Default)]
pub struct Gaps {
    /// What stands for lost bytes; `None` if none may be lost.
    filler: Option<u8>,
    /// Each gap and why it is one, in the order of the file.
    found: Vec<(HostRange, String)>,
}

impl Gaps {
    /// None yet; what is lost will be `filler` in the table.
    pub fn filled_with(filler: u8) -> Self {
        Self {
            filler: Some(filler),
            found: Vec::new(),
        }
    }

    /// None yet, and what may be lost is what may be here.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self {
            filler: self.filler,
            found: Vec::new(),
        }
    }

    /// Fills `buf` with the bytes from `offset`, as far as they can be read.
    ///
    /// # Errors
    /// `Io` if they cannot be read, and there may be no gaps.
    ///
    /// # Cost
    /// One read if all goes well; around a lost sector two for each halving of `buf`.
    pub fn read_at(&mut self, storage: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<()> {
        match (storage.read_at(offset, buf), self.filler) {
            (Err(error), Some(filler)) if error.kind() == ErrorKind::Io => {
                let gap = HostRange::new(offset, buf.len() as u64);
                let Some(middle) = middle_sector(offset, gap.end()) else {
                    buf.fill(filler);
                    self.add(gap, error.report());
                    return Ok(());
                };
                // Inside the buffer.
                let (first, rest) = buf.split_at_mut((middle - offset) as usize);
                self.read_at(storage, offset, first)?;
                self.read_at(storage, middle, rest)
            }
            (read, _) => read,
        }
    }

    /// `storage` for whoever does without what is lost, if that may be: `filler` stands for it.
    pub fn over<'a>(&self, storage: &'a dyn Storage, filler: u8) -> impl Storage + 'a {
        let filler = self.filler.map(|_| filler);
        let found = Vec::new();
        Around {
            storage,
            gaps: Self { filler, found },
        }
    }

    fn add(&mut self, gap: HostRange, why: String) {
        let at = self.found.partition_point(|(it, _)| it.offset < gap.offset);
        match self.found[..at].last_mut() {
            Some((last, _)) if last.end() == gap.offset => last.len += gap.len,
            _ => self.found.insert(at, (gap, why)),
        }
    }

    /// Why a byte of `range` is not there, if one is in a gap.
    pub fn error_in(&self, range: HostRange) -> Option<Error> {
        let touched = |gap: &HostRange| gap.offset < range.end() && range.offset < gap.end();
        let (_, why) = self.found.iter().find(|(gap, _)| touched(gap))?;
        Some(Error::new(ErrorKind::Io, why.clone()))
    }

    /// A sentence for each gap in `table`.
    pub fn warnings(&self, table: &str) -> impl Iterator<Item = String> {
        self.found.iter().map(move |(gap, why)| {
            format!("{table}: the bytes {gap} of the file cannot be read: {why}; what does not need them is read all the same")
        })
    }
}

/// A storage, but that lost bytes are others.
#[derive(Debug)]
struct Around<'a> {
    storage: &'a dyn Storage,
    /// Always none: only what may be lost counts.
    gaps: Gaps,
}

impl Storage for Around<'_> {
    pass_on!(storage: name, id, len);

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.gaps.afresh().read_at(self.storage, offset, buf)
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        self.storage.span_at(offset, limit)
    }
}
