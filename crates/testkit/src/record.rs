//! A sink that watches its caller, and keeps what it was given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Committed, Demand, Error, ErrorKind, GuestRange, Placement, Result, Sink, SinkProfile, Slot,
    Storage, StorageMut, ZeroPolicy, is_zero,
};
use goldsmith_codec::Unpacker;

use crate::sparse::SparseStorage;

/// What happened to a [`RecordingSink`]; stays when the sink is gone.
#[derive(Debug)]
pub struct Recording {
    profile: SinkProfile,
    /// Longest slot handed out for an unpacked demand, in bytes.
    slot_len: u64,
    fault: Option<(Step, u64)>,
    guest: SparseStorage,
    log: Mutex<Log>,
}

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Sink::reserve`].
    Reserve,
    /// [`Sink::reserve_zeroes`].
    ReserveZeroes,
    /// [`Sink::write`].
    Write,
    /// [`Sink::write_zeroes`].
    WriteZeroes,
    /// [`Sink::commit`].
    Commit,
}

#[derive(Debug, Default)]
struct Log {
    /// What became of the guest bytes, by first byte; pieces do not overlap.
    pieces: BTreeMap<u64, Piece>,
    reserves: Vec<Demand>,
    /// End of what was last reserved.
    reached: u64,
    /// Where the next place is, under [`Placement::Allocated`].
    next_host: u64,
    /// Slots reserved and not yet written.
    open: u64,
    calls: [u64; 5],
    committed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reserved { host: u64, packed: Option<u64> },
    Written,
    Zeroed,
}

impl Recording {
    /// A recording for sinks with this profile.
    pub fn new(profile: SinkProfile) -> Arc<Self> {
        Self::with(profile, u64::MAX, None)
    }

    /// As [`new`](Self::new), but an unpacked demand becomes slots of at most `slot_len` bytes.
    pub fn in_slots_of(profile: SinkProfile, slot_len: u64) -> Arc<Self> {
        Self::with(profile, slot_len, None)
    }

    /// As [`new`](Self::new), but the `nth` call (from 0) of `step` fails with `Io`.
    pub fn failing(profile: SinkProfile, step: Step, nth: u64) -> Arc<Self> {
        Self::with(profile, u64::MAX, Some((step, nth)))
    }

    fn with(profile: SinkProfile, slot_len: u64, fault: Option<(Step, u64)>) -> Arc<Self> {
        assert!(profile.grain.is_power_of_two());
        assert!(
            slot_len >= profile.grain
                && (slot_len == u64::MAX || slot_len.is_multiple_of(profile.grain))
        );
        let guest = SparseStorage::new();
        guest.set_len(profile.virtual_size).unwrap();
        Arc::new(Self {
            profile,
            slot_len,
            fault,
            guest,
            log: Mutex::default(),
        })
    }

    /// The profile of a sink that allocates, takes unpacked data and needs no zeros.
    pub fn profile(virtual_size: u64, grain: u64) -> SinkProfile {
        SinkProfile {
            virtual_size,
            grain,
            placement: Placement::Allocated,
            zeroes: ZeroPolicy::Implied,
            packing: None,
        }
    }

    /// The sink that is recorded here; there should be only one.
    pub fn sink(self: &Arc<Self>) -> Box<dyn Sink> {
        Box::new(RecordingSink {
            recording: self.clone(),
        })
    }

    /// All guest bytes of a disk that fits in memory. What was neither written nor zeroed is `0xee`,
    /// unless zeros are [implied](ZeroPolicy::Implied).
    pub fn bytes(&self) -> Vec<u8> {
        assert!(
            self.profile.virtual_size <= 1 << 30,
            "too large to hold in memory"
        );
        let mut bytes = vec![0; self.profile.virtual_size as usize];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// The guest bytes from `offset`, as [`bytes`](Self::bytes) has them.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) {
        let log = self.log();
        let end = offset + buf.len() as u64;
        let background = match self.profile.zeroes {
            ZeroPolicy::Implied => 0,
            ZeroPolicy::Written | ZeroPolicy::Covering => 0xee,
        };
        buf.fill(background);
        // Pieces start on grains, so the one that reaches into `buf` from before it is the last
        // that starts at or before `offset`.
        let first = log.pieces.range(..=offset).next_back();
        let first = first.map_or(offset, |(start, _)| *start);
        for (start, piece) in log.pieces.range(first..end) {
            let (from, to) = ((*start).max(offset), piece.end.min(end));
            if from >= to {
                continue;
            }
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match piece.state {
                State::Written => self.guest.read_at(from, part).unwrap(),
                State::Zeroed => part.fill(0),
                State::Reserved { .. } => {}
            }
        }
    }

    /// Puts what was written and zeroed over `behind`, the bytes of the disk behind the target.
    pub fn lay_over(&self, behind: &mut [u8]) {
        for (start, piece) in &self.log().pieces {
            let part = &mut behind[*start as usize..piece.end as usize];
            match piece.state {
                State::Written => self.guest.read_at(*start, part).unwrap(),
                State::Zeroed => part.fill(0),
                State::Reserved { .. } => {}
            }
        }
    }

    /// Every demand, in the order of the calls.
    pub fn reserves(&self) -> Vec<Demand> {
        self.log().reserves.clone()
    }

    /// How often `step` was called.
    pub fn calls(&self, step: Step) -> u64 {
        self.log().calls[step as usize]
    }

    /// Whether `commit` was called and did not fail.
    pub fn is_committed(&self) -> bool {
        self.log().committed
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // A broken contract panics; the test that expects that still wants to look.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, log: &mut Log, step: Step) -> Result<()> {
        assert!(!log.committed, "{step:?} after commit");
        let nth = log.calls[step as usize];
        log.calls[step as usize] += 1;
        if self.fault == Some((step, nth)) {
            let error = std::io::Error::other(format!("{step:?} number {nth} was told to fail"));
            return Err(Error::new(ErrorKind::Io, error));
        }
        Ok(())
    }

    /// Places come in guest order where that matters.
    fn check_order(&self, log: &mut Log, range: GuestRange) {
        if self.profile.placement == Placement::Allocated {
            let reached = std::mem::replace(&mut log.reached, range.end);
            assert!(
                reached <= range.start,
                "reserve goes back from {reached:#x} to {range}"
            );
        }
    }

    fn check_range(&self, range: GuestRange, what: &str) {
        let SinkProfile {
            virtual_size,
            grain,
            ..
        } = self.profile;
        assert!(!range.is_empty(), "{what}: {range} is empty");
        assert!(
            range.start.is_multiple_of(grain),
            "{what}: {range} starts off the grain {grain}"
        );
        assert!(
            range.end == virtual_size
                || range.end < virtual_size && range.end.is_multiple_of(grain),
            "{what}: {range} ends off the grain {grain} of a disk of {virtual_size} bytes"
        );
    }
}

impl Log {
    fn claim(&mut self, range: GuestRange, state: State) {
        let before = self.pieces.range(..range.end).next_back();
        if let Some((start, piece)) = before {
            assert!(
                piece.end <= range.start,
                "{range} overlaps {:#x}..{:#x}, which is {:?}",
                start,
                piece.end,
                piece.state
            );
        }
        let piece = Piece {
            end: range.end,
            state,
        };
        self.pieces.insert(range.start, piece);
    }
}

/// Asserts the engine's side of the [`Sink`] contract with every call.
///
/// # Panics
/// In the call that breaks it.
#[derive(Debug)]
pub struct RecordingSink {
    recording: Arc<Recording>,
}

impl Sink for RecordingSink {
    fn profile(&self) -> &SinkProfile {
        &self.recording.profile
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        let recording = &*self.recording;
        let mut log = recording.log();
        recording.enter(&mut log, Step::Reserve)?;
        for demand in demands {
            let range = demand.range;
            recording.check_range(range, "reserve");
            recording.check_order(&mut log, range);
            if let Some(packed) = demand.packed {
                let packing = recording
                    .profile
                    .packing
                    .expect("packed, though nobody asked for it");
                let end = range.start.saturating_add(packing.unit);
                let end = end.min(recording.profile.virtual_size);
                assert!(
                    range.start.is_multiple_of(packing.unit) && range.end == end,
                    "packed demand {range} is no unit of {} bytes",
                    packing.unit
                );
                assert!(
                    0 < packed && packed < packing.unit,
                    "a unit of {} bytes packed to {packed}",
                    packing.unit
                );
            }
            log.reserves.push(*demand);
            let mut at = range.start;
            while at < range.end {
                let end = match demand.packed {
                    Some(_) => range.end,
                    None => at.saturating_add(recording.slot_len).min(range.end),
                };
                let host = match recording.profile.placement {
                    Placement::Identity => at,
                    Placement::Allocated => log.next_host,
                };
                log.next_host += demand.packed.unwrap_or(end - at);
                let packed = demand.packed;
                let part = GuestRange::new(at, end);
                log.claim(part, State::Reserved { host, packed });
                log.open += 1;
                slots.push(Slot {
                    range: part,
                    host,
                    packed,
                });
                at = end;
            }
        }
        Ok(())
    }

    fn reserve_zeroes(&self, range: GuestRange) -> Result<()> {
        let recording = &*self.recording;
        let mut log = recording.log();
        recording.enter(&mut log, Step::ReserveZeroes)?;
        assert_eq!(
            recording.profile.zeroes,
            ZeroPolicy::Covering,
            "zeros reserved for {range}, which nothing stands behind"
        );
        recording.check_range(range, "reserve_zeroes");
        recording.check_order(&mut log, range);
        log.claim(range, State::Zeroed);
        Ok(())
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        let recording = &*self.recording;
        let range = slot.range;
        {
            let mut log = recording.log();
            recording.enter(&mut log, Step::Write)?;
            let piece = log.pieces.get_mut(&range.start);
            let piece = piece.filter(|piece| piece.end == range.end);
            let piece = piece.unwrap_or_else(|| panic!("slot {range} was never handed out"));
            let (host, packed) = (slot.host, slot.packed);
            assert!(
                piece.state == State::Reserved { host, packed },
                "slot {range} is written while {:?}",
                piece.state
            );
            piece.state = State::Written;
            log.open -= 1;
        }
        let Some(packed) = slot.packed else {
            assert_eq!(
                data.len() as u64,
                range.len(),
                "length of the data for {range}"
            );
            return recording.guest.write_at(range.start, data);
        };
        assert_eq!(
            data.len() as u64,
            packed,
            "length of the packed data for {range}"
        );
        // Checked when it was reserved.
        let packing = recording.profile.packing.unwrap();
        let mut unit = vec![0xee; packing.unit as usize];
        Unpacker::new()
            .unpack(packing.codec, data, &mut unit)
            .unwrap_or_else(|error| panic!("packed data for {range}: {error}"));
        let (inside, padding) = unit.split_at(range.len() as usize);
        assert!(
            is_zero(padding),
            "the last unit, {range}, is not filled up with zeros"
        );
        recording.guest.write_at(range.start, inside)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        let recording = &*self.recording;
        let mut log = recording.log();
        recording.enter(&mut log, Step::WriteZeroes)?;
        assert_eq!(
            recording.profile.zeroes,
            ZeroPolicy::Written,
            "write_zeroes({range}) of implied zeros"
        );
        recording.check_range(range, "write_zeroes");
        log.claim(range, State::Zeroed);
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let recording = &*self.recording;
        let mut log = recording.log();
        recording.enter(&mut log, Step::Commit)?;
        assert_eq!(log.open, 0, "slots that were never written before commit");
        if recording.profile.zeroes == ZeroPolicy::Written {
            let mut at = 0;
            for (start, piece) in &log.pieces {
                assert_eq!(*start, at, "nothing says what is at {at:#x}");
                at = piece.end;
            }
            assert_eq!(
                at, recording.profile.virtual_size,
                "nothing says what is at {at:#x}"
            );
        }
        log.committed = true;
        Ok(Committed {
            file_len: log.next_host,
        })
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_block::{Codec, Packing};

    use super::*;
    use crate::image::{Drive, Order, drive};
    use crate::pattern::disk;

    const GRAIN: u64 = 4096;

    fn sink(change: impl FnOnce(&mut SinkProfile)) -> Box<dyn Sink> {
        let mut profile = Recording::profile(10 * GRAIN, GRAIN);
        change(&mut profile);
        Recording::new(profile).sink()
    }

    fn reserve(sink: &dyn Sink, start: u64, end: u64) -> Vec<Slot> {
        let range = GuestRange::new(start, end);
        let mut slots = Vec::new();
        sink.reserve(
            &[Demand {
                range,
                packed: None,
            }],
            &mut slots,
        )
        .unwrap();
        slots
    }

    #[test]
    fn every_profile_gives_the_disk_back() {
        let disk = disk("3000:A 70k:- 5000:b 64k:0 9k:C 700:-");
        for placement in [Placement::Identity, Placement::Allocated] {
            for zeroes in [ZeroPolicy::Implied, ZeroPolicy::Written] {
                for codec in [None, Some(Codec::Deflate), Some(Codec::Zstd)] {
                    for order in [Order::Reserved, Order::Reversed, Order::Shuffled(7)] {
                        let unit = 4 * GRAIN;
                        let profile = SinkProfile {
                            placement,
                            zeroes,
                            packing: codec.map(|codec| Packing { codec, unit }),
                            ..Recording::profile(disk.len(), GRAIN)
                        };
                        let recording = Recording::in_slots_of(profile, 2 * GRAIN);
                        Drive { cut: 3, order }
                            .run(recording.sink(), &disk)
                            .unwrap();
                        assert!(recording.is_committed());
                        assert!(recording.bytes() == disk.bytes());
                        let packed = recording
                            .reserves()
                            .iter()
                            .any(|demand| demand.packed.is_some());
                        assert_eq!(packed, codec.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn told_step_fails_at_the_told_call() {
        let disk = disk("4k:A 4k:- 4k:B 4k:- 4k:C");
        for (step, nth) in [(Step::Reserve, 2), (Step::Write, 1), (Step::Commit, 0)] {
            let profile = Recording::profile(disk.len(), GRAIN);
            let recording = Recording::failing(profile, step, nth);
            let error = drive(recording.sink(), &disk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert_eq!(recording.calls(step), nth + 1);
            assert!(!recording.is_committed());
        }
    }

    #[test]
    fn huge_disk_takes_what_its_data_takes() {
        let disk = disk("4k:A 64T:- 4k:B");
        let recording = Recording::new(Recording::profile(disk.len(), 65536));
        drive(recording.sink(), &disk).unwrap();
        let mut tail = [0; 4096];
        recording.read_at(disk.len() - 4096, &mut tail);
        assert_eq!(tail[0], b'B');
    }

    #[test]
    #[should_panic(expected = "reserve goes back from")]
    fn reserve_that_goes_back_is_caught() {
        let sink = sink(|_| {});
        reserve(&*sink, GRAIN, 2 * GRAIN);
        reserve(&*sink, 0, GRAIN);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn second_reserve_of_a_place_is_caught() {
        let sink = sink(|profile| profile.placement = Placement::Identity);
        reserve(&*sink, 0, 2 * GRAIN);
        reserve(&*sink, GRAIN, 3 * GRAIN);
    }

    #[test]
    #[should_panic(expected = "starts off the grain")]
    fn demand_off_the_grain_is_caught() {
        reserve(&*sink(|_| {}), 512, GRAIN);
    }

    #[test]
    #[should_panic(expected = "ends off the grain")]
    fn demand_past_the_disk_is_caught() {
        reserve(&*sink(|_| {}), 9 * GRAIN, 11 * GRAIN);
    }

    #[test]
    #[should_panic(expected = "is written while Written")]
    fn second_write_of_a_slot_is_caught() {
        let sink = sink(|_| {});
        let slot = reserve(&*sink, 0, GRAIN).remove(0);
        let again = Slot { ..slot };
        sink.write(slot, &[1; GRAIN as usize]).unwrap();
        sink.write(again, &[1; GRAIN as usize]).unwrap();
    }

    #[test]
    #[should_panic(expected = "length of the data")]
    fn short_data_is_caught() {
        let sink = sink(|_| {});
        let slot = reserve(&*sink, 0, GRAIN).remove(0);
        sink.write(slot, &[1; 512]).unwrap();
    }

    #[test]
    #[should_panic(expected = "of implied zeros")]
    fn needless_zeroes_are_caught() {
        let _ = sink(|_| {}).write_zeroes(GuestRange::new(0, GRAIN));
    }

    #[test]
    #[should_panic(expected = "slots that were never written")]
    fn commit_before_the_last_write_is_caught() {
        let sink = sink(|_| {});
        reserve(&*sink, 0, GRAIN);
        let _ = sink.commit();
    }

    #[test]
    #[should_panic(expected = "nothing says what is at 0x1000")]
    fn forgotten_zeroes_are_caught() {
        let sink = sink(|profile| profile.zeroes = ZeroPolicy::Written);
        sink.write_zeroes(GuestRange::new(0, GRAIN)).unwrap();
        let _ = sink.commit();
    }

    #[test]
    #[should_panic(expected = "is no unit of 8192 bytes")]
    fn packed_part_of_a_unit_is_caught() {
        let packing = Some(Packing {
            codec: Codec::Deflate,
            unit: 2 * GRAIN,
        });
        let demand = Demand {
            range: GuestRange::new(0, GRAIN),
            packed: Some(100),
        };
        let _ = sink(|profile| profile.packing = packing).reserve(&[demand], &mut Vec::new());
    }
}
