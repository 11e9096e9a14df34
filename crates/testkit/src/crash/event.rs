//! What can be asked of a file, and how much of it may arrive.

use goldsmith_block::{HostRange, SECTOR};

use super::plan::{Arrival, Shape};

/// A call that changes a file, or makes what was changed durable.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Write { offset: u64, data: Vec<u8> },
    Zero(HostRange),
    SetLen(u64),
    Flush,
}

impl Event {
    /// What matters for the choice of states, in a file that is `len` bytes long for certain.
    pub(super) fn shape(&self, file: usize, len: u64) -> Shape {
        let range = self.range();
        Shape {
            file,
            start: range.offset,
            end: range.end(),
            sectors: match self {
                Self::SetLen(_) => 1,
                _ => (range.end().div_ceil(SECTOR) - range.offset / SECTOR) as usize,
            },
            grows: matches!(self, Self::Write { .. }) && range.end() > len,
        }
    }

    /// The bytes that it may change.
    fn range(&self) -> HostRange {
        match self {
            Self::Write { offset, data } => HostRange::new(*offset, data.len() as u64),
            Self::Zero(range) => *range,
            Self::SetLen(len) => HostRange::new(*len, u64::MAX - len),
            Self::Flush => HostRange::new(0, 0),
        }
    }

    /// Changes `bytes` as far as `arrival` says.
    pub(super) fn arrive(&self, bytes: &mut Vec<u8>, arrival: Arrival) {
        let HostRange { offset, len } = self.range();
        let end = offset.saturating_add(len) as usize;
        match self {
            Self::SetLen(len) => return bytes.resize(*len as usize, 0),
            Self::Write { .. } if arrival == Arrival::Length => {
                return bytes.resize(bytes.len().max(end), 0);
            }
            _ => {}
        }
        let first = offset / SECTOR;
        for sector in first..(end as u64).div_ceil(SECTOR) {
            if !arrival.has((sector - first) as usize) {
                continue;
            }
            let start = (sector * SECTOR).max(offset) as usize;
            let end = ((sector + 1) * SECTOR).min(end as u64) as usize;
            match self {
                Self::Write { offset, data } => {
                    bytes.resize(bytes.len().max(end), 0);
                    let data = &data[start - *offset as usize..end - *offset as usize];
                    bytes[start..end].copy_from_slice(data);
                }
                _ => {
                    let held = bytes.len();
                    bytes[start.min(held)..end.min(held)].fill(0);
                }
            }
        }
    }

    /// Words for what has arrived; `None` if it is nothing.
    pub(super) fn part(&self, arrival: Arrival) -> Option<String> {
        let what = match self {
            Self::Write { .. } => format!("write {}", self.range()),
            Self::Zero(range) => format!("zero {range}"),
            Self::SetLen(len) => format!("length {len:#x}"),
            Self::Flush => return None,
        };
        Some(match arrival {
            Arrival::Whole => what,
            Arrival::First(sectors) => format!("{what} first {sectors} sectors"),
            Arrival::From(sector) => format!("{what} from sector {sector}"),
            Arrival::Length => format!("{what} length alone"),
            Arrival::Bits(bits) => format!("{what} sectors {bits:#b}"),
            Arrival::Scattered(seed) => format!("{what} scattered {seed:x}"),
        })
    }
}
