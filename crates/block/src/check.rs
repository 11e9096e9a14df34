//! What a look at all of an image's tables finds.

use std::fmt::Display;

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many places break a rule of the format.
    pub corruptions: u64,
    /// How many units or tables could not be looked at, for whatever reason.
    pub errors: u64,
    /// How many units of the file hold nothing that the image knows of.
    pub leaks: u64,
    /// The first of either, [`Checked::FLAWS`] at most.
    pub flaws: Vec<Flaw>,
    /// Units in the disk; 0 where the format has none.
    pub units: u64,
    /// Units that have a place in the file.
    pub allocated: u64,
    /// Units that do not stand behind the one before.
    pub fragmented: u64,
    /// Units that are packed.
    pub compressed: u64,
    /// Byte offset in the file behind everything that the image knows of.
    pub end: u64,
}

/// Something that a check found; whole sentences without their stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A rule is broken: data is lost, or will be when somebody writes.
    Corruption(String),
    /// Space is wasted, and no more than that.
    Leak(String),
    /// Something is not as it should be, but all readers see the same disk.
    Note(String),
}

impl Checked {
    /// How many flaws are kept: a broken image may have one in every entry.
    pub const FLAWS: usize = 1000;
    /// How many characters of each are kept.
    pub const FLAW_CHARS: usize = 2000;

    /// Notes a broken rule.
    pub fn corruption(&mut self, what: impl Display) {
        self.corruption_in(1, what);
    }

    /// Notes a rule that is broken in so many places.
    pub fn corruption_in(&mut self, places: u64, what: impl Display) {
        self.corruptions = self.corruptions.saturating_add(places);
        self.keep(Flaw::Corruption, what);
    }

    /// Notes what is wrong and does no harm.
    pub fn note(&mut self, what: impl Display) {
        self.keep(Flaw::Note, what);
    }

    /// Whether there is nothing to tell.
    pub fn is_flawless(&self) -> bool {
        self.corruptions + self.errors + self.leaks == 0 && self.flaws.is_empty()
    }

    /// Notes wasted space of so many units.
    pub fn leak(&mut self, units: u64, what: impl Display) {
        self.leaks += units;
        self.keep(Flaw::Leak, what);
    }

    /// Keeps a flaw, if it is one of the first. An image decides how long the names are that stand in it.
    fn keep(&mut self, flaw: fn(String) -> Flaw, what: impl Display) {
        if self.flaws.len() >= Self::FLAWS {
            return;
        }
        let mut text = what.to_string();
        if let Some((end, _)) = text.char_indices().nth(Self::FLAW_CHARS) {
            text.truncate(end);
            text.push('…');
        }
        self.flaws.push(flaw(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_are_few_and_short_whatever_stands_in_an_image() {
        let mut checked = Checked::default();
        let name = "é".repeat(65_535);
        for _ in 0..Checked::FLAWS {
            checked.corruption(&name);
            checked.leak(1, &name);
            checked.note(&name);
        }
        checked.note("short");
        assert_eq!((checked.corruptions, checked.leaks), (1000, 1000));
        assert_eq!(checked.flaws.len(), Checked::FLAWS);
        let kept = "é".repeat(Checked::FLAW_CHARS) + "…";
        assert_eq!(checked.flaws[0], Flaw::Corruption(kept));
    }
}
