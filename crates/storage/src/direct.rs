//! Reading and writing past the system's cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use goldsmith_block::{Buffer, Storage, align_down, align_up};

use crate::sys;

/// What stands on its own goes past the cache in blocks of this size, from memory that starts at a
/// multiple of it: a page, and at least a sector of any disk.
const BLOCK: u64 = 4096;
/// The most that is carried over in memory of our own, in bytes.
const PIECE: usize = 1 << 20;

/// How bytes get past the cache of a file.
///
/// ```text
/// read:   ├─────────── blocks ───────────┤     all blocks that have a part in it
/// wanted:      ├──────────────────────┤
/// write:       ├odd┤├── blocks ──┤├odd┤         whole ones; the odd ends go through the cache
/// ```
///
/// Nobody has to read a block to write a part of it, and so nobody can undo what another thread writes
/// to the rest of it. The system keeps what both ways see the same.
#[derive(Debug)]
pub(crate) struct Direct {
    /// The same file, opened once more, for the odd ends.
    cached: File,
    /// Memory that nobody uses at the moment.
    spare: Mutex<Vec<Buffer>>,
}

impl Direct {
    /// Has what is done with whole blocks of `file` from now on done past the cache; `None` if its file
    /// system or device knows no such thing.
    pub(crate) fn of(file: &File) -> Option<Self> {
        let cached = sys::pass_cache(file, true).ok()?;
        let direct = Self {
            cached,
            spare: Mutex::default(),
        };
        let mut pages = direct.pages();
        let read = file.read_at(&mut pages[..BLOCK as usize], 0);
        direct.give_back(pages);
        // Some take the flag and then no block.
        if read.is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput) {
            let _ = sys::pass_cache(file, false);
            return None;
        }
        Some(direct)
    }

    /// The file by the way through the cache.
    pub(crate) fn cached(&self) -> &File {
        &self.cached
    }

    /// Fills `buf` with what stands at `offset` of `file`, which must not end before; false if it has to
    /// be read through the cache, where one also learns what is wrong.
    pub(crate) fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let blocks = [offset, buf.len() as u64, address(buf)];
        if blocks.iter().all(|number| number.is_multiple_of(BLOCK)) {
            return unless_odd(file.read_exact_at(buf, offset)).map(|done| done.is_some());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let room = PIECE - (at % BLOCK) as usize;
            let len = room.min(buf.len() - done);
            let Some((pages, from)) = self.read_blocks(file, at, len)? else {
                return Ok(false);
            };
            buf[done..done + len].copy_from_slice(&pages[from..from + len]);
            self.give_back(pages);
            done += len;
        }
        Ok(true)
    }

    /// Memory that holds all blocks which have a part in the `len` bytes at `offset`, no more of them
    /// than a piece, and where in it those bytes begin. `None` if that cannot be read.
    fn read_blocks(
        &self,
        file: &File,
        offset: u64,
        len: usize,
    ) -> io::Result<Option<(Buffer, usize)>> {
        let start = align_down(offset, BLOCK);
        let from = (offset - start) as usize;
        let end = (from + len).next_multiple_of(BLOCK as usize);
        let mut pages = self.pages();
        let read = loop {
            match file.read_at(&mut pages[..end], start) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break unless_odd(read)?,
            }
        };
        match read {
            // The last block is not whole where the file ends.
            Some(read) if read >= from + len => Ok(Some((pages, from))),
            _ => Ok(None),
        }
    }

    /// Writes the whole blocks that `data` covers at `offset` of `file`; says which bytes those are, the
    /// others being the caller's to write.
    pub(crate) fn write_blocks(
        &self,
        file: &File,
        data: &[u8],
        offset: u64,
    ) -> io::Result<Range<usize>> {
        let end = align_down(offset.saturating_add(data.len() as u64), BLOCK);
        let Some(start) = align_up(offset, BLOCK).filter(|start| *start < end) else {
            return Ok(0..0);
        };
        // Inside the data.
        let blocks = (start - offset) as usize..(end - offset) as usize;
        let written = match &data[blocks.clone()] {
            whole if address(whole).is_multiple_of(BLOCK) => file.write_all_at(whole, start),
            whole => self.carry(file, whole, start),
        };
        Ok(unless_odd(written)?.map_or(0..0, |()| blocks))
    }

    /// Writes `blocks`, which stand anywhere in memory.
    fn carry(&self, file: &File, blocks: &[u8], offset: u64) -> io::Result<()> {
        let mut pages = self.pages();
        let mut at = offset;
        for piece in blocks.chunks(PIECE) {
            let bytes = &mut pages[..piece.len()];
            bytes.copy_from_slice(piece);
            file.write_all_at(bytes, at)?;
            at += piece.len() as u64;
        }
        self.give_back(pages);
        Ok(())
    }

    fn pages(&self) -> Buffer {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_else(|| Buffer::new(PIECE))
    }

    fn give_back(&self, pages: Buffer) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(pages);
    }
}

/// Whether what is read from and written to `storage` goes past the system's cache. What is no regular
/// file is taken to do so.
pub fn is_direct(storage: &dyn Storage) -> bool {
    storage.file().is_none_or(sys::passes_cache)
}

/// `None` if it is not done because something about it was not a multiple of what it has to be.
fn unless_odd<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        // The caller knows how to ask for the end of a file.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        done => done.map(Some),
    }
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().addr() as u64
}
