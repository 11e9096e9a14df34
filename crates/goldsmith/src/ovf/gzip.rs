//! One gzip'ed file, packed by all cores, the same however many they are, and written front to back.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use flate2::{Compress, Compression, FlushCompress, Status};
use goldsmith_block::{Error, ErrorKind, Result};
use goldsmith_engine::{Bucket, Crc32, Job, Phase, Progress, crew};

/// Bytes that one core packs on its own: without a look at those before, which costs little where
/// deflate itself looks back over 32 KiB at most.
const PIECE: u64 = 1 << 20;
/// Pieces for each core that may be packed or in work before the first of them is written.
const AHEAD: u64 = 4;
/// The header: deflated, no name, no time, of no known system. [RFC 1952]
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Bytes of the header and of what follows the data: a checksum and a length.
const FRAME: u64 = HEADER.len() as u64 + 8;

/// What is to be packed: at least one byte.
pub(super) trait Bytes: Sync {
    /// How many there are.
    fn len(&self) -> u64;
    /// Fills `buf` with those from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Takes what was packed, in order.
pub(crate) type Out<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// The longest that `len` bytes get.
pub(super) fn bound(len: u64) -> u64 {
    // [RFC 1951] What does not get shorter is stored, in blocks with five bytes before each. zlib
    // makes blocks of nearly 16 KiB or more, and each piece ends with one of its own.
    FRAME + len + (len.div_ceil(8 << 10) + 2 * len.div_ceil(PIECE)) * 5
}

/// Packs `bytes` into `out`, with the threads of `job` and no faster than it allows, which is told how
/// far that is of its own total of `disk` bytes; gives the length.
///
/// # Errors
/// Those of either, and `Cancelled`.
///
/// # Cost
/// Memory: up to 4 MiB and a MiB more for each core, packed or not.
pub(super) fn pack(bytes: &dyn Bytes, disk: u64, job: &Job<'_>, out: &mut Out<'_>) -> Result<u64> {
    // One is packed and one or more wait, each with all that it may take.
    let buffers = (AHEAD + 3) * PIECE;
    let threads = crew::workers(job.threads, 1, buffers as usize);
    let line = Line {
        bytes,
        pieces: bytes.len().div_ceil(PIECE),
        ahead: threads as u64 * AHEAD,
        state: Mutex::default(),
        moved: Condvar::new(),
    };
    std::thread::scope(|scope| {
        // Whatever comes of it, nobody must wait for more.
        let _last = Stop { line: &line };
        for _ in 0..threads {
            let started = Builder::new().spawn_scoped(scope, || line.work());
            started.map_err(crew::not_started)?;
        }
        line.write(disk, job, out)
    })
}

/// The pieces between those who pack them and the one who writes them.
struct Line<'a> {
    bytes: &'a dyn Bytes,
    pieces: u64,
    /// How many may be claimed and not yet written.
    ahead: u64,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The piece to be claimed next.
    next: u64,
    /// How many were taken to be written.
    taken: u64,
    packed: BTreeMap<u64, Result<Packed>>,
    stopped: bool,
}

/// A piece, packed.
struct Packed {
    bytes: Vec<u8>,
    crc: Crc32,
}

impl Line<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let state = self.moved.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Packs pieces until there are none left or somebody stopped it.
    fn work(&self) {
        let stop = Stop { line: self };
        let mut buf = vec![0; PIECE as usize];
        while let Some(piece) = self.claim() {
            let packed = pack_piece(self.bytes, piece, &mut buf);
            self.state().packed.insert(piece, packed);
            self.moved.notify_all();
        }
        // Only one that panicked has others stop.
        std::mem::forget(stop);
    }

    fn claim(&self) -> Option<u64> {
        let mut state = self.state();
        while !state.stopped && state.next < self.pieces {
            if state.next < state.taken + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
        None
    }

    /// The packed `piece`, once it is there.
    fn take(&self, piece: u64) -> Result<Packed> {
        let mut state = self.state();
        loop {
            if let Some(packed) = state.packed.remove(&piece) {
                state.taken = piece + 1;
                self.moved.notify_all();
                return packed;
            }
            if state.stopped {
                return Err(Error::new(ErrorKind::Bug, "a worker did not finish"));
            }
            state = self.wait(state);
        }
    }

    fn write(&self, disk: u64, job: &Job<'_>, out: &mut Out<'_>) -> Result<u64> {
        let bucket = job.rate.map(|rate| Bucket::new(rate.get(), job.cancel));
        out(&HEADER)?;
        let (mut len, mut crc) = (FRAME, Crc32::default());
        for piece in 0..self.pieces {
            if job.cancel.is_some_and(|cancel| cancel.is_cancelled()) {
                return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
            }
            let packed = self.take(piece)?;
            if let Some(bucket) = &bucket {
                bucket.wait(packed.bytes.len() as u64)?;
            }
            out(&packed.bytes)?;
            len += packed.bytes.len() as u64;
            crc = crc.then(packed.crc);
            if let Some(tell) = job.progress {
                let part = u128::from(disk) * u128::from(piece + 1) / u128::from(self.pieces);
                // At most `disk`.
                let mut progress = Progress::start(Phase::Copy, disk);
                (progress.done, progress.data) = (part as u64, part as u64);
                tell(progress);
            }
        }
        // [RFC 1952] The length modulo 2^32.
        let trailer = [crc.value(), self.bytes.len() as u32].map(u32::to_le_bytes);
        out(trailer.as_flattened())?;
        Ok(len)
    }
}

/// Stops the line when it goes.
struct Stop<'a> {
    line: &'a Line<'a>,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.line.state().stopped = true;
        self.line.moved.notify_all();
    }
}

fn pack_piece(bytes: &dyn Bytes, piece: u64, buf: &mut [u8]) -> Result<Packed> {
    let start = piece * PIECE;
    let len = (bytes.len() - start).min(PIECE);
    // At most a piece.
    let buf = &mut buf[..len as usize];
    bytes.read_at(start, buf)?;
    let last = start + len == bytes.len();
    // Pieces end at whole bytes, so that the next one can follow.
    let flush = match last {
        true => FlushCompress::Finish,
        false => FlushCompress::Sync,
    };
    let mut compress = Compress::new(Compression::default(), false);
    // More than anything takes: a flush is complete when there is room left behind it.
    let mut packed = vec![0; bound(len) as usize + 64];
    let status = compress
        .compress(buf, &mut packed, flush)
        .map_err(|error| Error::new(ErrorKind::Bug, error))?;
    let (room, packed_len) = (packed.len() as u64, compress.total_out());
    let complete = compress.total_in() == len && packed_len < room;
    if !complete || last != (status == Status::StreamEnd) {
        let text = format!("{len} bytes did not fit in {room} when packed");
        return Err(Error::new(ErrorKind::Bug, text));
    }
    packed.truncate(packed_len as usize);
    Ok(Packed {
        bytes: packed,
        crc: Crc32::of(buf),
    })
}
