//! Changing a storage for show: what is written stays in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use goldsmith_block::{HostRange, Result, Span, Storage, StorageId, StorageMut, Zeroing, is_zero};

use crate::error::{StorageError, past_end};

/// A storage as it would be after changes that are never made to it.
///
/// The storage behind it is only read. Written bytes take as much memory; zeros and lengths take
/// none.
#[derive(Debug)]
pub struct Rehearsal {
    storage: Arc<dyn Storage>,
    /// The same, if its length cannot be changed.
    device: Option<Arc<dyn StorageMut>>,
    is_blank: bool,
    changes: RwLock<Changes>,
}

/// What is to be seen instead of the storage's own bytes.
#[derive(Debug)]
struct Changes {
    /// Length in bytes.
    len: u64,
    /// Where the storage's own bytes end, as far as they were never cut off.
    own: u64,
    /// By their first offset; they do not overlap, and end at or before `len`.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Vec<u8>),
    /// So many zeros.
    Zeros(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Splits off what stands `at` bytes behind the start.
    fn split_off(&mut self, at: u64) -> Self {
        match self {
            // Inside the bytes, whose count is a usize.
            Self::Data(bytes) => Self::Data(bytes.split_off(at as usize)),
            Self::Zeros(len) => {
                let rest = *len - at;
                *len = at;
                Self::Zeros(rest)
            }
        }
    }
}

impl Changes {
    /// Forgets all pieces from `start` to `end`.
    fn clear(&mut self, start: u64, end: u64) {
        self.split(start);
        self.split(end);
        let mut rest = self.pieces.split_off(&start);
        self.pieces.append(&mut rest.split_off(&end));
    }

    /// Makes a piece that spans `at` end there and another one begin.
    fn split(&mut self, at: u64) {
        if let Some((start, piece)) = self.pieces.range_mut(..at).next_back()
            && at - start < piece.len()
        {
            let rest = piece.split_off(at - start);
            self.pieces.insert(at, rest);
        }
    }

    fn put(&mut self, at: u64, piece: Piece) {
        let end = at + piece.len();
        self.clear(at, end);
        if let Piece::Zeros(more) = piece
            && let Some((start, Piece::Zeros(len))) = self.pieces.range_mut(..at).next_back()
            && start + *len == at
        {
            *len += more;
        } else {
            self.pieces.insert(at, piece);
        }
    }

    /// The piece that `at` stands in, if it stands in one, and the end of the answer.
    fn piece_at(&self, at: u64) -> (Option<(u64, &Piece)>, u64) {
        if let Some((start, piece)) = self.pieces.range(..=at).next_back()
            && at - start < piece.len()
        {
            return (Some((*start, piece)), start + piece.len());
        }
        let next = self.pieces.range(at..).next();
        (None, next.map_or(self.len, |(start, _)| *start))
    }
}

impl Rehearsal {
    /// What `storage` would become.
    pub fn new(storage: Arc<dyn StorageMut>) -> Self {
        let device = storage.fixed_len().map(|_| Arc::clone(&storage));
        Self {
            device,
            is_blank: storage.is_blank(),
            ..Self::of(storage)
        }
    }

    /// What a file of the bytes of `storage` would become.
    pub fn of(storage: Arc<dyn Storage>) -> Self {
        let len = storage.len();
        Self {
            storage,
            device: None,
            is_blank: false,
            changes: RwLock::new(Changes {
                len,
                own: len,
                pieces: BTreeMap::new(),
            }),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Changes> {
        // A panic in between is a bug already reported, and all of this is for show.
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Rehearsal {
    fn name(&self) -> &str {
        self.storage.name()
    }

    fn id(&self) -> StorageId {
        self.storage.id()
    }

    fn len(&self) -> u64 {
        self.read().len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let changes = self.read();
        let len = buf.len() as u64;
        let Some(end) = offset.checked_add(len).filter(|end| *end <= changes.len) else {
            return Err(past_end(self.name(), offset, len, changes.len));
        };
        let mut at = offset;
        while at < end {
            let (piece, until) = changes.piece_at(at);
            let own = piece.is_none() && at < changes.own;
            let until = until.min(if own { changes.own } else { end }).min(end);
            // Inside the buffer.
            let part = &mut buf[(at - offset) as usize..(until - offset) as usize];
            match piece {
                Some((start, Piece::Data(bytes))) => {
                    let from = (at - start) as usize;
                    part.copy_from_slice(&bytes[from..from + part.len()]);
                }
                None if own => self.storage.read_at(at, part)?,
                _ => part.fill(0),
            }
            at = until;
        }
        Ok(())
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        let changes = self.read();
        let (piece, until) = changes.piece_at(offset);
        if piece.is_none() && offset < changes.own {
            return self
                .storage
                .span_at(offset, until.min(changes.own).min(limit));
        }
        Ok(Span {
            len: until.min(limit) - offset,
            hole: !matches!(piece, Some((_, Piece::Data(_)))),
        })
    }
}

impl StorageMut for Rehearsal {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        // No file is that long.
        let end = offset.checked_add(len);
        let Some(end) = end.filter(|end| i64::try_from(*end).is_ok()) else {
            return Err(past_end(self.name(), offset, len, self.len()));
        };
        if let Some(device) = self.fixed_len()
            && end > device
        {
            let error = StorageError::PastDevice {
                offset,
                len,
                device,
            };
            return Err(goldsmith_block::Error::from(error).in_file(self.name()));
        }
        let mut changes = self.write();
        changes.len = changes.len.max(end);
        let piece = match is_zero(data) {
            true => Piece::Zeros(len),
            false => Piece::Data(data.to_vec()),
        };
        changes.put(offset, piece);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if let Some(device) = &self.device {
            // It only checks.
            return device.set_len(len);
        }
        let mut changes = self.write();
        changes.clear(len, u64::MAX);
        changes.len = len;
        changes.own = changes.own.min(len);
        Ok(())
    }

    fn zero(&self, range: HostRange, _zeroing: Zeroing) -> Result<()> {
        let mut changes = self.write();
        if range.end() > changes.len {
            return Err(past_end(self.name(), range.offset, range.len, changes.len));
        }
        if range.len > 0 {
            changes.put(range.offset, Piece::Zeros(range.len));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn fixed_len(&self) -> Option<u64> {
        self.device.as_ref().and_then(|device| device.fixed_len())
    }

    fn is_blank(&self) -> bool {
        self.is_blank
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MemoryStorage;

    /// One call, in bytes.
    #[derive(Clone, Debug)]
    enum Call {
        Write(u64, Vec<u8>),
        Zero(u64, u64),
        SetLen(u64),
    }

    fn call() -> impl Strategy<Value = Call> {
        let offset = || 0u64..200;
        let data = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..50),
            prop::collection::vec(Just(0), 0..50),
        ];
        prop_oneof![
            (offset(), data).prop_map(|(at, data)| Call::Write(at, data)),
            (offset(), 0u64..50).prop_map(|(at, len)| Call::Zero(at, len)),
            (0u64..250).prop_map(Call::SetLen),
        ]
    }

    fn run(storage: &dyn StorageMut, call: &Call) -> bool {
        let done = match call {
            Call::Write(at, data) => storage.write_at(*at, data),
            Call::Zero(at, len) => storage.zero(HostRange::new(*at, *len), Zeroing::Punch),
            Call::SetLen(len) => storage.set_len(*len),
        };
        done.is_ok()
    }

    proptest! {
        /// Whatever is done, both hold the same afterwards, and what was rehearsed on is untouched.
        #[test]
        fn rehearsal_shows_what_a_change_would_leave(
            before in prop::collection::vec(1u8.., 0..200),
            calls in prop::collection::vec(call(), 0..20),
        ) {
            let untouched = Arc::new(MemoryStorage::holding("disk", before.clone()));
            let changed = MemoryStorage::holding("disk", before.clone());
            let rehearsal = Rehearsal::new(untouched.clone());
            for call in &calls {
                prop_assert_eq!(run(&rehearsal, call), run(&changed, call), "{:?}", call);
            }
            let after = changed.to_vec();
            prop_assert_eq!(rehearsal.len(), after.len() as u64);
            let mut shown = vec![0xee; after.len()];
            rehearsal.read_at(0, &mut shown).unwrap();
            prop_assert_eq!(&shown, &after);
            for (from, expected) in after.iter().enumerate() {
                let mut byte = [0xee];
                rehearsal.read_at(from as u64, &mut byte).unwrap();
                prop_assert_eq!(byte[0], *expected);
            }
            let mut at = 0;
            while at < rehearsal.len() {
                let span = rehearsal.span_at(at, rehearsal.len()).unwrap();
                prop_assert!(span.len > 0 && at + span.len <= rehearsal.len());
                let bytes = &after[at as usize..(at + span.len) as usize];
                prop_assert!(!span.hole || is_zero(bytes));
                at += span.len;
            }
            prop_assert_eq!(untouched.to_vec(), before);
        }
    }

    #[test]
    fn long_runs_of_zeros_are_one_piece() {
        let rehearsal = Rehearsal::new(Arc::new(MemoryStorage::new("disk")));
        for at in 0..1000 {
            rehearsal.write_at(at * 1000, &[0; 1000]).unwrap();
        }
        rehearsal.set_len(1 << 50).unwrap();
        rehearsal
            .zero(HostRange::new(1_000_000, 1 << 49), Zeroing::Keep)
            .unwrap();
        assert_eq!(rehearsal.read().pieces.len(), 1);
        assert_eq!(rehearsal.len(), 1 << 50);
    }

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let storage = Arc::new(MemoryStorage::holding("disk", vec![7; 100]));
        let rehearsal = Rehearsal::new(storage);
        rehearsal.set_len(50).unwrap();
        rehearsal.set_len(100).unwrap();
        let mut bytes = [1; 2];
        rehearsal.read_at(49, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0]);
        let report = rehearsal.read_at(99, &mut bytes).unwrap_err().report();
        assert_eq!(
            report,
            "disk: bytes 0x63..0x65 are past the end of the file (100 bytes)"
        );
    }
}
