//! What every storage must keep to.

use std::sync::Arc;

use goldsmith_block::{ErrorKind, HostRange, StorageMut, Zeroing, is_zero};
use proptest::prelude::*;

use super::runner;
use crate::pattern;

/// Gives a new, empty, blank storage with each call.
pub type Blank<'a> = &'a mut dyn FnMut() -> Arc<dyn StorageMut>;

/// All bytes of `storage`.
fn all(storage: &dyn StorageMut) -> Vec<u8> {
    let mut bytes = vec![0xaa; storage.len() as usize];
    storage.read_at(0, &mut bytes).unwrap();
    bytes
}

fn data(letter: u8, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern::fill(letter, offset, &mut bytes);
    bytes
}

/// A new storage holds nothing, and says so.
pub fn blank_storage_is_empty(blank: Blank<'_>) {
    let storage = blank();
    assert_eq!(storage.len(), 0);
    assert!(storage.is_empty() && storage.is_blank());
    assert_eq!(storage.fixed_len(), None);
    assert!(!storage.name().is_empty());
    storage.read_at(0, &mut []).unwrap();
}

/// What is written at an offset is read there, also after a flush; a gap reads as zeros.
pub fn bytes_come_back_where_they_were_put(blank: Blank<'_>) {
    let storage = blank();
    let (tail, head) = (data(b'B', 100_000, 5000), data(b'a', 7, 3000));
    storage.write_at(100_000, &tail).unwrap();
    storage.write_at(7, &head).unwrap();
    storage.flush().unwrap();
    assert_eq!(storage.len(), 105_000);
    let bytes = all(&*storage);
    assert!(is_zero(&bytes[..7]) && is_zero(&bytes[3007..100_000]));
    assert!(bytes[7..3007] == head && bytes[100_000..] == tail);
}

/// A read that ends past the end is refused, wherever it starts.
pub fn read_past_the_end_is_an_io_error(blank: Blank<'_>) {
    let storage = blank();
    storage.write_at(0, &[1; 1000]).unwrap();
    for (offset, len) in [(0, 1001), (999, 2), (1000, 1), (1 << 40, 512)] {
        let error = storage.read_at(offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{len} bytes at {offset}");
    }
    storage.read_at(999, &mut [0]).unwrap();
}

/// `set_len` cuts and grows; what was cut does not come back.
pub fn growing_adds_zeros_and_shrinking_forgets(blank: Blank<'_>) {
    let storage = blank();
    storage.write_at(0, &[1; 10_000]).unwrap();
    storage.set_len(5001).unwrap();
    assert_eq!(storage.len(), 5001);
    storage.set_len(20_000).unwrap();
    let bytes = all(&*storage);
    assert_eq!(bytes.len(), 20_000);
    assert!(bytes[..5001].iter().all(|byte| *byte == 1) && is_zero(&bytes[5001..]));
}

/// `zero` takes exactly its range, with either promise about the space.
pub fn zeroed_range_reads_zero_and_nothing_else_changes(blank: Blank<'_>) {
    for zeroing in [Zeroing::Punch, Zeroing::Keep] {
        for (offset, len) in [
            (0, 1),
            (4095, 2),
            (4096, 8192),
            (5, 70_000),
            (99_000, 1000),
            (0, 100_000),
        ] {
            let storage = blank();
            let mut expected = data(b'c', 0, 100_000);
            storage.write_at(0, &expected).unwrap();
            storage.zero(HostRange::new(offset, len), zeroing).unwrap();
            expected[offset as usize..(offset + len) as usize].fill(0);
            assert_eq!(storage.len(), 100_000);
            assert!(
                all(&*storage) == expected,
                "{len} bytes at {offset}, {zeroing:?}"
            );
        }
    }
}

/// Any sequence of changes leaves what it leaves in a `Vec<u8>`.
pub fn any_history_reads_as_a_vec_would(blank: Blank<'_>) {
    let change = (0..4u8, 0..30_000u64, 0..9000u64, b'a'..=b'z');
    let blank = std::cell::RefCell::new(blank);
    let history = proptest::collection::vec(change, 1..12);
    let result = runner(24).run(&history, |history| {
        let storage = (blank.borrow_mut())();
        let mut model = Vec::new();
        for (what, offset, len, letter) in history {
            let end = (offset + len) as usize;
            match what {
                0 | 1 => {
                    let bytes = data(letter, offset, len as usize);
                    storage.write_at(offset, &bytes).unwrap();
                    // A write of no bytes does not grow a file.
                    if len > 0 && model.len() < end {
                        model.resize(end, 0);
                    }
                    if len > 0 {
                        model[offset as usize..end].copy_from_slice(&bytes);
                    }
                }
                2 => {
                    let (start, end) = ((offset as usize).min(model.len()), end.min(model.len()));
                    let range = HostRange::new(start as u64, (end - start) as u64);
                    storage.zero(range, Zeroing::Punch).unwrap();
                    model[start..end].fill(0);
                }
                _ => {
                    storage.set_len(offset).unwrap();
                    model.resize(offset as usize, 0);
                }
            }
            prop_assert_eq!(storage.len(), model.len() as u64);
        }
        prop_assert!(all(&*storage) == model);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Spans start where they were asked to, end at or before the limit, and call no data a hole.
pub fn spans_keep_their_contract(blank: Blank<'_>) {
    let storage = blank();
    storage.write_at(0, &[1; 5000]).unwrap();
    storage.write_at(300_000, &[1; 5000]).unwrap();
    storage.set_len(700_001).unwrap();
    let bytes = all(&*storage);
    for (start, limit) in [
        (0, 700_001),
        (0, 1),
        (4999, 5001),
        (200_000, 300_001),
        (700_000, 700_001),
    ] {
        let mut at = start;
        while at < limit {
            let span = storage.span_at(at, limit).unwrap();
            assert!(
                0 < span.len && span.len <= limit - at,
                "{span:?} of {at}..{limit}"
            );
            let part = &bytes[at as usize..(at + span.len) as usize];
            assert!(!span.hole || is_zero(part), "{span:?} at {at} is no hole");
            at += span.len;
        }
    }
}

/// Writes of different places from different threads all arrive.
pub fn threads_write_side_by_side(blank: Blank<'_>) {
    let storage = &blank();
    std::thread::scope(|scope| {
        for nth in 0..4u64 {
            scope.spawn(move || {
                for step in 0..32 {
                    let offset = (step * 4 + nth) * 1000;
                    storage.write_at(offset, &data(b'p', offset, 1000)).unwrap();
                }
            });
        }
    });
    assert!(all(&**storage) == data(b'p', 0, 128_000));
}

/// A storage is itself, and no other.
pub fn identity_is_ones_own(blank: Blank<'_>) {
    let (one, other) = (blank(), blank());
    assert_eq!(one.id(), one.id());
    assert_ne!(one.id(), other.id());
}
