//! One gzip'ed file, packed by all cores, the same however many they are.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::{Compress, Compression, FlushCompress, Status};
use goldsmith_block::{Error, ErrorKind, Result, StorageMut};
use goldsmith_engine::Crc32;

/// Bytes that one core packs on its own: without a look at those before, which costs little where
/// deflate itself looks back over 32 KiB at most.
const PIECE: u64 = 1 << 20;
/// The header: deflated, no name, no time, of no known system. [RFC 1952]
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Bytes of the header and of what follows the data: a checksum and a length.
const FRAME: u64 = HEADER.len() as u64 + 8;

/// What is to be packed.
pub(super) trait Bytes: Sync {
    /// How many there are.
    fn len(&self) -> u64;
    /// Fills `buf` with those from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// The longest that `len` bytes get.
pub(super) fn bound(len: u64) -> u64 {
    // [RFC 1951] What does not get shorter is stored, in blocks with five bytes before each. zlib
    // makes blocks of nearly 16 KiB or more, and each piece ends with one of its own.
    FRAME + len + (len.div_ceil(8 << 10) + 2 * len.div_ceil(PIECE)) * 5
}

/// Packs `bytes` into `storage`, from its start; gives the length.
///
/// # Errors
/// Those of either.
pub(super) fn pack(bytes: &dyn Bytes, storage: &dyn StorageMut) -> Result<u64> {
    let threads = goldsmith_engine::cores().get();
    let pieces = bytes.len().div_ceil(PIECE);
    storage.write_at(0, &HEADER)?;
    let (mut at, mut crc) = (HEADER.len() as u64, Crc32::default());
    let mut done = 0;
    while done < pieces {
        let round = (pieces - done).min(threads as u64 * ROUND);
        for packed in pack_round(bytes, done..done + round, threads)? {
            storage.write_at(at, &packed.bytes)?;
            at += packed.bytes.len() as u64;
            crc = crc.then(packed.crc);
        }
        done += round;
    }
    // [RFC 1952] The length modulo 2^32.
    let trailer = [crc.value(), bytes.len() as u32].map(u32::to_le_bytes);
    storage.write_at(at, trailer.as_flattened())?;
    at += 8;
    storage.set_len(at)?;
    Ok(at)
}

/// Pieces that each core packs before all wait for each other.
const ROUND: u64 = 4;

/// A piece, packed.
struct Packed {
    bytes: Vec<u8>,
    crc: Crc32,
}

/// Packs the pieces of these numbers.
fn pack_round(
    bytes: &dyn Bytes,
    pieces: std::ops::Range<u64>,
    threads: usize,
) -> Result<Vec<Packed>> {
    let next = AtomicU64::new(pieces.start);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            let mut buf = vec![0; PIECE as usize];
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces.end {
                    return;
                }
                let packed = pack_piece(bytes, piece, &mut buf);
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                results.push((piece, packed));
            }
        };
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(piece, _)| *piece);
    results.into_iter().map(|(_, packed)| packed).collect()
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
