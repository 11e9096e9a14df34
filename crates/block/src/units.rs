//! Byte ranges that cannot be mistaken for each other.

use std::fmt;

/// The smallest unit a guest can address, in bytes.
pub const SECTOR: u64 = 512;

/// A range of the virtual disk, in bytes as the guest counts them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestRange {
    /// First byte.
    pub start: u64,
    /// First byte after the range; never before `start`.
    pub end: u64,
}

impl GuestRange {
    /// The bytes from `start` up to `end`.
    pub const fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "a range ends before it starts");
        Self { start, end }
    }

    /// Length in bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the range holds no byte.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {self}")
    }
}

/// A range of an image file, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl HostRange {
    /// `len` bytes from `offset`; the end must fit in 64 bits, so check a file's word before.
    pub const fn new(offset: u64, len: u64) -> Self {
        assert!(offset.checked_add(len).is_some(), "a range ends past 2^64");
        Self { offset, len }
    }

    /// First byte after the range.
    pub const fn end(&self) -> u64 {
        self.offset + self.len
    }
}

impl fmt::Display for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.offset, self.end())
    }
}

impl fmt::Debug for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {self}")
    }
}

/// `value` rounded down to a multiple of `unit`, which is a power of two.
pub const fn align_down(value: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two());
    value & !(unit - 1)
}

/// `value` rounded up to a multiple of `unit`, which is a power of two; `None` past 2^64.
pub const fn align_up(value: u64, unit: u64) -> Option<u64> {
    debug_assert!(unit.is_power_of_two());
    match value.checked_add(unit - 1) {
        Some(sum) => Some(align_down(sum, unit)),
        None => None,
    }
}

/// A start of a sector near the middle of what is from `start` to `end`; `None` if no sector starts between
/// them. Whoever halves by it comes to single sectors.
pub const fn middle_sector(start: u64, end: u64) -> Option<u64> {
    let middle = align_down(start + (end - start) / 2, SECTOR);
    if middle > start {
        return Some(middle);
    }
    match align_up(start + 1, SECTOR) {
        Some(next) if next < end => Some(next),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_stops_at_the_end_of_the_number_line() {
        assert_eq!(align_down(4097, 4096), 4096);
        assert_eq!(align_up(4097, 4096), Some(8192));
        assert_eq!(align_up(0, 4096), Some(0));
        assert_eq!(align_up(u64::MAX, 4096), None);
    }

    #[test]
    fn halves_are_of_whole_sectors() {
        for (start, end, middle) in [
            (0, 512, None),
            (0, 513, Some(512)),
            (512, 1280, Some(1024)),
            (500, 1020, Some(512)),
            (0, 4096, Some(2048)),
            (1, 512, None),
        ] {
            assert_eq!(middle_sector(start, end), middle, "{start}..{end}");
        }
    }
}
