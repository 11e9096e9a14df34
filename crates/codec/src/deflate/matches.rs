//! Where bytes occurred before.

/// Matches reach back less than this: QEMU inflates with `inflateInit2(-12)`. [qemu]
pub(super) const WINDOW: usize = 4096;
/// Bytes that are looked at together; no match crosses their end.
///
/// Places are kept as 16 bits, and they stay right when all of them move by this.
pub(super) const SEGMENT: usize = 1 << 16;
/// Places are taken modulo this, so that the compiler sees that they exist.
const PLACES: usize = 2 * SEGMENT;
/// The longest match of the format. [RFC 1951 3.2.5]
const LONGEST: usize = 258;
/// Base-2 logarithms of how many hashes are told apart, of four bytes and of three.
///
/// Enough for it to be rare among the 4096 places of the window that two share one by chance: the
/// search looks no further when the first place does not match.
const BITS: (u32, u32) = (15, 13);

/// The window, a segment, and where each hash occurred there.
///
/// What the tables say is believed only where the bytes prove it, so they may say anything; but
/// they are cleared before each unit, for its packed form to be always the same.
pub(super) struct Finder {
    bytes: [u8; PLACES + 8],
    /// First place of the unit; the window does not reach back farther.
    start: usize,
    /// Place behind the segment's last byte.
    end: usize,
    /// The last place of each hash of three bytes.
    threes: [u16; 1 << BITS.1],
    /// The last place of each hash of four bytes.
    fours: [u16; 1 << BITS.0],
    /// The place before it with the same hash of four bytes.
    before: [u16; WINDOW],
}

/// As many bytes as this occurred so far back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// From 3 to 258; 0 for none.
    pub(super) len: usize,
    /// From 1 to 4095; 0 for none.
    pub(super) distance: usize,
}

/// How long to look.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// Earlier places to look at; at least one.
    pub(super) places: u32,
    /// Length to be content with.
    pub(super) nice: usize,
}

impl Finder {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; PLACES + 8],
            start: WINDOW,
            end: WINDOW,
            threes: [0; 1 << BITS.1],
            fours: [0; 1 << BITS.0],
            before: [0; WINDOW],
        }
    }

    /// Forgets the last unit.
    pub(super) fn clear(&mut self) {
        self.start = WINDOW;
        self.end = WINDOW;
        self.threes.fill(0);
        self.fours.fill(0);
        self.before.fill(0);
    }

    /// Takes the unit's next segment, of which only the last may be short, and says at which place
    /// it starts and where it ends.
    pub(super) fn load(&mut self, segment: &[u8]) -> (usize, usize) {
        if self.end > WINDOW {
            self.start = 0;
            self.bytes.copy_within(self.end - WINDOW..self.end, 0);
        }
        self.end = WINDOW + segment.len();
        self.bytes[WINDOW..self.end].copy_from_slice(segment);
        // What stood there must not have a say in the choice of matches.
        self.bytes[self.end..self.end + 8].fill(0);
        (WINDOW, self.end)
    }

    #[inline(always)]
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.bytes[at % PLACES]
    }

    #[inline(always)]
    fn four(&self, at: usize) -> u32 {
        let bytes = self.bytes[at % PLACES..].first_chunk();
        bytes.map_or(0, |four| u32::from_le_bytes(*four))
    }

    #[inline(always)]
    fn eight(&self, at: usize) -> u64 {
        let bytes = self.bytes[at % PLACES..].first_chunk();
        bytes.map_or(0, |eight| u64::from_le_bytes(*eight))
    }

    /// The longest match at `at`, or one that is long enough; remembers the place.
    #[inline(always)]
    pub(super) fn first(&mut self, at: usize, effort: Effort) -> Match {
        let bytes = self.four(at);
        let (three, four) = self.insert(at);
        // A place outside of the window becomes another one inside, which as a rule does not match:
        // one branch less than asking where it is.
        let (near_three, near_four) = (three % WINDOW, four % WINDOW);
        let differ = self.four(at - near_four) ^ bytes;
        let differ_in_three = (self.four(at - near_three) ^ bytes) << 8;
        if differ != 0 && differ_in_three != 0 {
            return Match::default();
        }
        let (reach, most) = (self.reach(at), self.most(at));
        if differ == 0 && near_four.wrapping_sub(1) < reach && most >= 4 {
            let found = Match {
                len: self.common(at, near_four, most),
                distance: near_four,
            };
            if found.len >= effort.nice || four != near_four {
                return found;
            }
            return self.longer(at, found, effort);
        }
        if differ_in_three == 0 && near_three.wrapping_sub(1) < reach && most >= 3 {
            return Match {
                len: 3,
                distance: near_three,
            };
        }
        Match::default()
    }

    /// A match at `at` that is longer than `len`, which is at least 3; remembers the place.
    #[inline(always)]
    pub(super) fn next(&mut self, at: usize, len: usize, effort: Effort) -> Match {
        self.insert(at);
        if len >= self.most(at) {
            return Match::default();
        }
        let none = Match { len, distance: 0 };
        let found = self.longer(at, none, effort);
        if found.distance == 0 {
            return Match::default();
        }
        found
    }

    /// Remembers the place `at` and says how far back its hashes of three and of four bytes occurred
    /// last, if they did.
    #[inline(always)]
    pub(super) fn insert(&mut self, at: usize) -> (usize, usize) {
        let bytes = self.four(at);
        let here = at as u16;
        let three = (bytes << 8).wrapping_mul(0x9e37_79b1) >> (32 - BITS.1);
        let four = bytes.wrapping_mul(0x9e37_79b1) >> (32 - BITS.0);
        let three = std::mem::replace(&mut self.threes[three as usize], here);
        let four = std::mem::replace(&mut self.fours[four as usize], here);
        self.before[at % WINDOW] = four;
        let back = |place| usize::from(here.wrapping_sub(place));
        (back(three), back(four))
    }

    /// Goes on to earlier places than that of `found`, which is at least 3 bytes long.
    #[inline(always)]
    fn longer(&self, at: usize, mut found: Match, effort: Effort) -> Match {
        let (reach, most) = (self.reach(at), self.most(at));
        let (here, bytes) = (at as u16, self.four(at));
        // The four bytes with which a longer match would end.
        let mut tail = self.four(at + found.len - 3);
        let mut distance = found.distance;
        for _ in 0..effort.places {
            let place = self.before[(at - distance) % WINDOW];
            let next = usize::from(here.wrapping_sub(place));
            // Out of reach, or no earlier than the last one.
            if next.wrapping_sub(distance + 1) >= reach - distance {
                break;
            }
            distance = next;
            let from = at - distance;
            if self.four(from + found.len - 3) == tail && self.four(from) == bytes {
                let len = self.common(at, distance, most);
                if len > found.len {
                    found = Match { len, distance };
                    if len >= effort.nice.min(most) {
                        break;
                    }
                    tail = self.four(at + len - 3);
                }
            }
        }
        found
    }

    /// How far back the window goes from `at`.
    #[inline(always)]
    fn reach(&self, at: usize) -> usize {
        (at - self.start).min(WINDOW - 1)
    }

    /// How long a match can be at `at`.
    #[inline(always)]
    fn most(&self, at: usize) -> usize {
        self.end.saturating_sub(at).min(LONGEST)
    }

    /// How many bytes from `at`, at most `most`, are those so far back; four are.
    #[inline(always)]
    fn common(&self, at: usize, distance: usize, most: usize) -> usize {
        let mut len = 4;
        while len < most {
            let differ = self.eight(at + len) ^ self.eight(at + len - distance);
            if differ != 0 {
                return most.min(len + differ.trailing_zeros() as usize / 8);
            }
            len += 8;
        }
        most
    }
}
