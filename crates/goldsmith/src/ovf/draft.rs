//! A VHD that is worked out before it is written: how long it is and what stands where in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Chain, CreateSpec, Demand, Error, ErrorKind, Format, GuestRange, Placement, Result, Sink,
    Storage, StorageMut, is_zero, pass_on,
};
use goldsmith_engine::{Job, crew, data_ranges};
use goldsmith_storage::VoidStorage;
use goldsmith_vhd::VHD;

use super::gzip::Bytes;

/// Bytes of a block that are looked at first: most blocks that hold anything begin with it.
const GLIMPSE: u64 = 4096;
/// Bytes of it that are looked at together from there on.
const LOOK: u64 = 64 << 10;

/// A new VHD of the disk of `source`: its tables are in memory, and its data is read from there.
pub(super) struct Draft<'a> {
    source: &'a Chain,
    tables: Arc<Tables>,
    /// Where guest bytes go, ascending, both here and there.
    parts: Vec<Part>,
    len: u64,
    /// Bytes of the source that its tables do not call zeros.
    pub(super) data: u64,
}

struct Part {
    host: u64,
    guest: u64,
    len: u64,
}

impl<'a> Draft<'a> {
    /// Looks for the blocks that hold anything, and has the VHD's own sink lay them out.
    ///
    /// A tar says how long a VHD is before the first of its bytes, and a VHD says first which blocks
    /// there are. The tables of the source alone would do for that, but zeros that somebody wrote
    /// would become blocks, here and wherever it is imported. So the disk is looked at: a block that
    /// holds data shows that, mostly, by its first bytes, and one of zeros is not read again.
    ///
    /// # Errors
    /// Those of the source; `Usage` if a VHD cannot hold it; `Cancelled`.
    pub(super) fn new(source: &'a Chain, spec: &CreateSpec, job: &Job<'_>) -> Result<Self> {
        let tables = Arc::new(Tables::new());
        let sink = VHD.create(Arc::clone(&tables) as _, spec)?;
        let disk = GuestRange::new(0, sink.profile().virtual_size);
        let block_size = spec.options.size("block_size");
        let data: u64 = data_ranges(source).try_fold(0, |sum, range| {
            range.map(|range| sum + range.len()) as Result<u64>
        })?;
        let mut draft = Self {
            source,
            tables,
            parts: Vec::new(),
            len: 0,
            data,
        };
        if sink.profile().placement == Placement::Identity {
            draft.place(&*sink, disk)?;
        } else if job.sparse == 0 {
            let mut start = 0;
            while start < disk.end {
                let end = disk.end.min(start + block_size);
                draft.place(&*sink, GuestRange::new(start, end))?;
                start = end;
            }
        } else {
            for block in blocks(source, block_size, job)? {
                let start = block * block_size;
                let end = disk.end.min(start + block_size);
                draft.place(&*sink, GuestRange::new(start, end))?;
            }
        }
        draft.len = sink.commit()?.file_len;
        Ok(draft)
    }

    fn place(&mut self, sink: &dyn Sink, range: GuestRange) -> Result<()> {
        let mut slots = Vec::new();
        let demand = Demand {
            range,
            packed: None,
        };
        sink.reserve(&[demand], &mut slots)?;
        self.parts.extend(slots.into_iter().map(|slot| Part {
            host: slot.host,
            guest: slot.range.start,
            len: slot.range.len(),
        }));
        Ok(())
    }

    /// Fills `buf` with the guest bytes from `at`; the new disk may be longer than the old one.
    fn read_guest(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let known = self.source.virtual_size().saturating_sub(at);
        let known = known.min(buf.len() as u64) as usize;
        self.source.read_at(at, &mut buf[..known])
    }
}

impl Bytes for Draft<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        self.tables.read_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        let first = self
            .parts
            .partition_point(|part| part.host + part.len <= offset);
        for part in &self.parts[first..] {
            if part.host >= end {
                break;
            }
            let start = part.host.max(offset);
            let stop = (part.host + part.len).min(end);
            // Both inside the buffer.
            let buf = &mut buf[(start - offset) as usize..(stop - offset) as usize];
            self.read_guest(part.guest + (start - part.host), buf)?;
        }
        Ok(())
    }
}

/// The blocks of `unit` bytes in which `source` holds anything but zeros, ascending.
fn blocks(source: &Chain, unit: u64, job: &Job<'_>) -> Result<Vec<u64>> {
    let mut candidates: Vec<u64> = Vec::new();
    for range in data_ranges(source) {
        let range = range?;
        for block in range.start / unit..range.end.div_ceil(unit) {
            if candidates.last() != Some(&block) {
                candidates.push(block);
            }
        }
    }
    let held: Vec<AtomicBool> = candidates.iter().map(|_| AtomicBool::new(false)).collect();
    let next = AtomicUsize::new(0);
    let stop = || next.store(candidates.len(), Ordering::Relaxed);
    let threads = crew::workers(job.threads, 1, LOOK as usize);
    crew::run(threads, stop, || {
        let mut buf = vec![0; LOOK as usize];
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = candidates.get(nth) else {
                return Ok::<_, Error>(());
            };
            if job.cancel.is_some_and(|cancel| cancel.is_cancelled()) {
                return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
            }
            let end = source.virtual_size().min((block + 1) * unit);
            let range = GuestRange::new(block * unit, end);
            let found = holds_anything(source, range, &mut buf)?;
            held[nth].store(found, Ordering::Relaxed);
        }
    })?;
    let held = held.into_iter().map(AtomicBool::into_inner);
    let blocks = candidates.into_iter().zip(held);
    Ok(blocks
        .filter_map(|(block, held)| held.then_some(block))
        .collect())
}

fn holds_anything(source: &Chain, range: GuestRange, buf: &mut [u8]) -> Result<bool> {
    let mut at = range.start;
    let mut step = GLIMPSE;
    while at < range.end {
        let found = source.extent_at(at, range.end)?;
        let end = found.extent.range.end;
        while found.extent.kind.is_data() && at < end {
            // At most the buffer.
            let part = &mut buf[..(end - at).min(step) as usize];
            source.read_layer(found.depth, at, part)?;
            if !is_zero(part) {
                return Ok(true);
            }
            at += part.len() as u64;
            step = LOOK;
        }
        at = end;
    }
    Ok(false)
}

/// A file of which only what was written is kept, which is little: everything but guest data.
#[derive(Debug)]
struct Tables {
    /// The same without any bytes.
    void: VoidStorage,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// By byte offset; they do not overlap.
    pieces: BTreeMap<u64, Arc<[u8]>>,
    /// The longest of them, in bytes.
    longest: u64,
    /// The last of them: a million sector bitmaps are all the same, and kept once.
    last: Option<Arc<[u8]>>,
}

impl Tables {
    fn new() -> Self {
        Self {
            void: VoidStorage::new("VHD", 0),
            written: Mutex::default(),
        }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Tables {
    pass_on!(void: name, id, len);

    /// Zeros where nothing was written; also behind the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let written = self.written();
        let end = offset + buf.len() as u64;
        let first = offset.saturating_sub(written.longest);
        for (at, piece) in written.pieces.range(first..end) {
            let start = offset.max(*at);
            let stop = end.min(at + piece.len() as u64);
            if start < stop {
                buf[(start - offset) as usize..(stop - offset) as usize]
                    .copy_from_slice(&piece[(start - at) as usize..(stop - at) as usize]);
            }
        }
        Ok(())
    }
}

impl StorageMut for Tables {
    // To zero changes nothing: nothing was written there.
    pass_on!(void: set_len, zero, flush, fixed_len, is_blank);

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut written = self.written();
        let piece = match &written.last {
            Some(last) if **last == *data => Arc::clone(last),
            _ => Arc::from(data),
        };
        written.last = Some(Arc::clone(&piece));
        written.pieces.insert(offset, piece);
        written.longest = written.longest.max(data.len() as u64);
        self.void.write_at(offset, data)
    }
}
