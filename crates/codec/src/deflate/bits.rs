//! Bits put together to bytes, the first one lowest. [RFC 1951 3.1.1]

/// Fills a room that its user knows to be large enough; what lies past its end is lost.
pub(super) struct Bits<'a> {
    room: &'a mut [u8],
    /// Whole bytes written.
    at: usize,
    /// Bits that wait for a byte of their own, the first one lowest.
    word: u64,
    /// How many wait; less than 8 after a flush.
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(room: &'a mut [u8]) -> Self {
        Self {
            room,
            at: 0,
            word: 0,
            count: 0,
        }
    }

    /// Bits written.
    pub(super) fn len(&self) -> usize {
        self.at * 8 + self.count as usize
    }

    /// Bits that can be written.
    pub(super) fn left(&self) -> usize {
        (self.room.len() * 8).saturating_sub(self.len())
    }

    /// Adds the `count` lowest bits of `bits`, of which the others are zero: at most 56 from one
    /// flush to the next.
    #[inline(always)]
    pub(super) fn put(&mut self, bits: u32, count: u32) {
        self.word |= u64::from(bits) << self.count;
        self.count += count;
    }

    /// Moves whole bytes into the room.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        let bytes = self.word.to_le_bytes();
        let room = self.room.get_mut(self.at..);
        match room.and_then(|room| room.first_chunk_mut()) {
            Some(room) => *room = bytes,
            None => self.flush_at_end(bytes),
        }
        let whole = self.count / 8;
        self.at += whole as usize;
        self.word >>= whole * 8;
        self.count %= 8;
    }

    #[cold]
    fn flush_at_end(&mut self, bytes: [u8; 8]) {
        let room = self.room.get_mut(self.at..).unwrap_or_default();
        for (to, byte) in room.iter_mut().zip(bytes) {
            *to = byte;
        }
    }

    /// Adds zeros up to the next whole byte.
    pub(super) fn align(&mut self) {
        self.count = self.count.next_multiple_of(8);
        self.flush();
    }

    /// Adds whole bytes, where no bit waits.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(room) = self.room.get_mut(self.at..end) {
            room.copy_from_slice(bytes);
        }
        self.at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bit_is_the_lowest_of_the_first_byte() {
        let mut room = [0xee; 12];
        let mut bits = Bits::new(&mut room);
        bits.put(1, 1);
        bits.put(0b10, 2);
        bits.flush();
        bits.put(0x1fff, 13);
        bits.flush();
        assert_eq!((bits.len(), bits.left()), (16, 80));
        bits.put(1, 1);
        bits.align();
        bits.bytes(&[7, 8]);
        assert_eq!(bits.len(), 40);
        assert_eq!(room[..5], [0b1111_1101, 0xff, 1, 7, 8]);
    }

    #[test]
    fn room_may_end_anywhere() {
        for len in 0..20 {
            let mut room = vec![0; len];
            let mut bits = Bits::new(&mut room);
            for byte in 1..=15 {
                bits.put(byte, 8);
                bits.flush();
            }
            assert_eq!(bits.len(), 120);
            assert_eq!(bits.left(), (len * 8).saturating_sub(120));
            let kept = room.iter().zip(1..=15).all(|(found, byte)| *found == byte);
            assert!(kept, "{room:?}");
        }
    }
}
