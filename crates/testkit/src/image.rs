//! The slow, obvious engine: one thread, one pass, no shortcuts.

use std::sync::{Arc, Mutex};

use goldsmith_block::{
    Budget, Committed, CreateSpec, Demand, Format, GuestRange, Layer, Limits, Options, Result,
    Sink, SinkProfile, Slot, ZeroPolicy, align_down, align_up, is_zero,
};
use goldsmith_codec::Packer;
use goldsmith_storage::MemoryStorage;
use uuid::{Uuid, uuid};

use crate::model::{Fill, ModelDisk};
use crate::pattern::noise;

/// The identity of every image made here.
pub const UUID: Uuid = uuid!("6f6c6473-6d69-7468-8000-000000000001");
/// When every image made here was made, in seconds since 1970-01-01 UTC.
pub const TIMESTAMP: u64 = 1_000_000_000;

/// What `create` is asked for.
///
/// # Errors
/// `Usage` if `format` has no such options.
pub fn spec(
    format: &dyn Format,
    virtual_size: u64,
    options: &[(&str, &str)],
    compress: bool,
) -> Result<CreateSpec> {
    Ok(CreateSpec {
        virtual_size,
        data: None,
        backing: None,
        options: Options::parse(format.options(), options.iter().copied())?,
        compress,
        uuid: UUID,
        timestamp: TIMESTAMP,
    })
}

/// The image file of `format` that holds `disk`, followed by zeros where the format makes it larger.
///
/// # Errors
/// Those of the format.
pub fn write(
    format: &dyn Format,
    disk: &ModelDisk,
    options: &[(&str, &str)],
    compress: bool,
) -> Result<Vec<u8>> {
    let storage = Arc::new(MemoryStorage::new("image"));
    let spec = spec(format, disk.len(), options, compress)?;
    let sink = format.create(storage.clone(), &spec)?;
    let more = sink.profile().virtual_size - disk.len();
    let pieces = disk.runs().iter().map(|run| (run.range.len(), run.fill));
    drive(sink, &ModelDisk::new(pieces.chain([(more, Fill::Hole)])))?;
    Ok(storage.to_vec())
}

/// Puts all of `disk` into `sink` and commits it.
///
/// # Errors
/// Those of the sink.
pub fn drive(sink: Box<dyn Sink>, disk: &ModelDisk) -> Result<Committed> {
    Drive::default().run(sink, disk)
}

/// Opens `bytes` as an image of `format`, with the default limits.
///
/// # Errors
/// Those of the format.
pub fn open(format: &dyn Format, bytes: impl Into<Vec<u8>>) -> Result<Arc<dyn Layer>> {
    let storage = Arc::new(MemoryStorage::holding("image", bytes.into()));
    format.open(storage, &Budget::new(&Limits::default()))
}

/// All guest bytes of `layer`, read in pieces of awkward sizes.
///
/// # Errors
/// Those of the layer.
pub fn read(layer: &dyn Layer) -> Result<Vec<u8>> {
    let mut bytes = vec![0xaa; layer.info().virtual_size as usize];
    let (mut rest, mut at) = (&mut bytes[..], 0);
    for len in [1, 511, 70_001, 4096, 1_000_003].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, tail) = rest.split_at_mut(len.min(rest.len()));
        layer.read_at(at, piece)?;
        at += piece.len() as u64;
        rest = tail;
    }
    Ok(bytes)
}

/// How the engine goes about it; a sink must give the same file whatever is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// Longest unpacked demand in grains.
    pub cut: u64,
    /// In which order the slots are written.
    pub order: Order,
}

impl Default for Drive {
    fn default() -> Self {
        Self {
            cut: 256,
            order: Order::Reserved,
        }
    }
}

/// The order of writes.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// As they were reserved, each before the next is reserved.
    Reserved,
    /// The last first, after everything was reserved.
    Reversed,
    /// Any, decided by this seed, after everything was reserved.
    Shuffled(u64),
    /// From four threads at once, after everything was reserved.
    Concurrent,
    /// As [`Reversed`](Self::Reversed), and reserved from the end of the disk too; only for
    /// [`Placement::Identity`](goldsmith_block::Placement::Identity).
    Backwards,
}

impl Drive {
    /// As [`drive`], in the way chosen.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn run(&self, sink: Box<dyn Sink>, disk: &ModelDisk) -> Result<Committed> {
        self.fill(&*sink, disk)?;
        sink.commit()
    }

    /// Puts all of `disk` into `sink`, but does not commit.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn fill(&self, sink: &dyn Sink, disk: &ModelDisk) -> Result<()> {
        let profile = sink.profile();
        assert_eq!(
            profile.virtual_size,
            disk.len(),
            "the sink is for another disk"
        );
        let ranges = data_ranges(disk, profile);
        if profile.zeroes == ZeroPolicy::Written {
            for zeroes in between(&ranges, disk.len()) {
                sink.write_zeroes(zeroes)?;
            }
        }
        let mut pieces = cut(
            &ranges,
            match profile.packing {
                Some(packing) => packing.unit,
                None => self.cut.saturating_mul(profile.grain),
            },
        );
        if matches!(self.order, Order::Backwards) {
            pieces.reverse();
        }
        let mut packer = profile.packing.map(|packing| Packer::new(packing.codec));
        let mut pending = Vec::new();
        for piece in pieces {
            let (demand, bytes) = demand(disk, piece, profile, &mut packer);
            let mut slots = Vec::new();
            sink.reserve(&[demand], &mut slots)?;
            for slot in slots {
                let part = match slot.packed {
                    Some(_) => &bytes[..],
                    None => {
                        &bytes[(slot.range.start - piece.start) as usize..]
                            [..slot.range.len() as usize]
                    }
                };
                pending.push((slot, part.to_vec()));
            }
            if matches!(self.order, Order::Reserved) {
                flush(sink, &mut pending)?;
            }
        }
        match self.order {
            Order::Reserved | Order::Backwards => {}
            Order::Reversed => pending.reverse(),
            Order::Shuffled(seed) => {
                pending.sort_by_key(|(slot, _)| noise(seed ^ noise(slot.range.start)));
            }
            Order::Concurrent => return flush_from_threads(sink, pending),
        }
        flush(sink, &mut pending)
    }
}

fn flush(sink: &dyn Sink, pending: &mut Vec<(Slot, Vec<u8>)>) -> Result<()> {
    pending
        .drain(..)
        .try_for_each(|(slot, bytes)| sink.write(slot, &bytes))
}

fn flush_from_threads(sink: &dyn Sink, pending: Vec<(Slot, Vec<u8>)>) -> Result<()> {
    let next = Mutex::new(pending.into_iter());
    let work = || {
        loop {
            let Some((slot, bytes)) = next.lock().unwrap().next() else {
                return Ok(());
            };
            sink.write(slot, &bytes)?;
        }
    };
    std::thread::scope(|scope| {
        let workers = [(); 4].map(|()| scope.spawn(work));
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap())
    })
}

/// What lies before, between and behind `ranges` on a disk of `len` bytes.
fn between(ranges: &[GuestRange], len: u64) -> Vec<GuestRange> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain([len]);
    let gaps = starts
        .zip(ends)
        .map(|(start, end)| GuestRange::new(start, end));
    gaps.filter(|gap| !gap.is_empty()).collect()
}

/// `ranges` in pieces of at most `len` bytes.
fn cut(ranges: &[GuestRange], len: u64) -> Vec<GuestRange> {
    let mut pieces = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let end = at.saturating_add(len).min(range.end);
            pieces.push(GuestRange::new(at, end));
            at = end;
        }
    }
    pieces
}

/// The runs of grains (or of packed units, where the image is compressed) that hold a byte other
/// than zero, ascending and merged.
fn data_ranges(disk: &ModelDisk, profile: &SinkProfile) -> Vec<GuestRange> {
    let step = profile
        .packing
        .map_or(profile.grain, |packing| packing.unit);
    let mut ranges: Vec<GuestRange> = Vec::new();
    let mut seen_to = 0;
    for run in disk.runs() {
        if !matches!(run.fill, Fill::Data(_)) {
            continue;
        }
        let mut at = align_down(run.range.start, step).max(seen_to);
        while at < run.range.end {
            let end = at.saturating_add(step).min(disk.len());
            let mut bytes = vec![0; (end - at) as usize];
            disk.read_at(at, &mut bytes);
            if !is_zero(&bytes) {
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => ranges.push(GuestRange::new(at, end)),
                }
            }
            at = end;
        }
        seen_to = at;
    }
    ranges
}

/// The demand for `range`, and the bytes that it will take: packed if that is asked for and helps.
fn demand(
    disk: &ModelDisk,
    range: GuestRange,
    profile: &SinkProfile,
    packer: &mut Option<Packer>,
) -> (Demand, Vec<u8>) {
    let mut bytes = vec![0; range.len() as usize];
    disk.read_at(range.start, &mut bytes);
    if let (Some(packing), Some(packer)) = (profile.packing, packer) {
        let mut unit = bytes.clone();
        let full = align_up(bytes.len() as u64, packing.unit).expect("a unit fits in memory");
        unit.resize(full as usize, 0);
        let mut stream = Vec::new();
        let len = packer.pack(&unit, &mut stream);
        if let Some(len) = len.expect("any bytes can be packed") {
            let packed = Some(len as u64);
            return (Demand { range, packed }, stream);
        }
    }
    let packed = None;
    (Demand { range, packed }, bytes)
}
