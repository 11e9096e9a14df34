//! Which states are looked at: all of them would be two to the number of sectors.

use std::collections::HashSet;

use crate::pattern::noise;

/// Of one kind of state, at most so many changes are looked at one by one.
const CHANGES: usize = 24;
/// At most so many writes of an epoch are torn, and each in so many places.
const TORN: usize = 16;
const CUTS: usize = 6;
/// So many states of an epoch are chosen at random.
const RANDOM: u64 = 24;
/// An epoch of at most so many sectors is looked at in all its states.
const FEW: usize = 6;

/// What matters of a change for the choice of states.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) file: usize,
    /// The bytes that it may change.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Into how many parts it may be torn.
    pub(super) sectors: usize,
    /// Whether it makes the file longer.
    pub(super) grows: bool,
}

/// How much of a change has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Arrival {
    Whole,
    /// The first so many sectors.
    First(usize),
    /// All but the first so many sectors.
    From(usize),
    /// The new length of the file, but no byte: the file system wrote down the one before the other.
    Length,
    /// The sectors whose bits are set, the lowest being the first.
    Bits(u64),
    /// Any sectors.
    Scattered(u64),
}

impl Arrival {
    pub(super) fn has(self, sector: usize) -> bool {
        match self {
            Self::Whole => true,
            Self::First(sectors) => sector < sectors,
            Self::From(first) => sector >= first,
            Self::Length => false,
            Self::Bits(bits) => bits >> sector & 1 != 0,
            Self::Scattered(seed) => noise(seed ^ sector as u64).is_multiple_of(2),
        }
    }
}

/// One state: what has arrived, in order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) what: &'static str,
    pub(super) arrivals: Vec<(usize, Arrival)>,
}

/// The states of an epoch with such changes; the same ones for the same `seed`.
pub(super) fn plans(shapes: &[Shape], seed: u64) -> Vec<Plan> {
    let count = shapes.len();
    let mut plans = Plans {
        shapes,
        known: HashSet::new(),
        list: Vec::new(),
    };
    let whole = |range: &mut dyn Iterator<Item = usize>| -> Vec<_> {
        range.map(|nth| (nth, Arrival::Whole)).collect()
    };
    let but = |nth: usize| whole(&mut (0..count).filter(move |other| *other != nth));
    plans.add("nothing", Vec::new());
    plans.add("all", whole(&mut (0..count)));
    for end in evenly(count, CHANGES) {
        plans.add("first changes", whole(&mut (0..end)));
    }
    for nth in evenly(count, CHANGES) {
        plans.add("one change", whole(&mut std::iter::once(nth)));
        plans.add("all but one", but(nth));
    }
    let can_tear: Vec<_> = (0..count)
        .filter(|nth| shapes[*nth].sectors > 1 || shapes[*nth].grows)
        .collect();
    for nth in evenly(can_tear.len(), TORN).map(|at| can_tear[at]) {
        let cuts = evenly(shapes[nth].sectors - 1, CUTS).map(|cut| cut + 1);
        let torn = cuts.flat_map(|cut| [Arrival::First(cut), Arrival::From(cut)]);
        let length = shapes[nth].grows.then_some(Arrival::Length);
        for arrival in torn.chain(length) {
            plans.add("one torn", vec![(nth, arrival)]);
            let mut others = but(nth);
            others.insert(nth, (nth, arrival));
            plans.add("all, one torn", others);
        }
    }
    if shapes.iter().map(|shape| shape.sectors).sum::<usize>() <= FEW {
        plans.add_every();
    }
    for nth in 0..RANDOM {
        plans.add_random(noise(seed << 32 | nth));
    }
    plans.list
}

/// Up to `most` of the numbers below `count`, with the first and the last.
fn evenly(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let chosen = count.min(most);
    (0..chosen).map(move |nth| match chosen {
        1 => 0,
        _ => nth * (count - 1) / (chosen - 1),
    })
}

struct Plans<'a> {
    shapes: &'a [Shape],
    known: HashSet<Vec<(usize, Arrival)>>,
    list: Vec<Plan>,
}

impl Plans<'_> {
    /// Adds a state, and the one with the opposite order if that makes a difference.
    fn add(&mut self, what: &'static str, arrivals: Vec<(usize, Arrival)>) {
        let turned = self.has_overlap(&arrivals).then(|| {
            let mut turned = arrivals.clone();
            turned.reverse();
            turned
        });
        for arrivals in [arrivals].into_iter().chain(turned) {
            if self.known.insert(arrivals.clone()) {
                self.list.push(Plan { what, arrivals });
            }
        }
    }

    /// Adds every choice of sectors.
    fn add_every(&mut self) {
        let parts: usize = self.shapes.iter().map(|shape| shape.sectors).sum();
        for choice in 0..1u64 << parts {
            let mut left = choice;
            let arrivals = self.shapes.iter().enumerate().map(|(nth, shape)| {
                let all = (1 << shape.sectors) - 1;
                let bits = left & all;
                left >>= shape.sectors;
                match bits == all {
                    true => (nth, Arrival::Whole),
                    false => (nth, Arrival::Bits(bits)),
                }
            });
            let arrivals = arrivals.filter(|(_, arrival)| *arrival != Arrival::Bits(0));
            let arrivals = arrivals.collect();
            self.add("any sectors", arrivals);
        }
    }

    fn add_random(&mut self, seed: u64) {
        let mut arrivals = Vec::new();
        for nth in 0..self.shapes.len() {
            let dice = noise(seed ^ (nth as u64) << 8);
            match dice % 3 {
                0 => arrivals.push((nth, Arrival::Whole)),
                1 if self.shapes[nth].sectors > 1 => {
                    arrivals.push((nth, Arrival::Scattered(dice)));
                }
                _ => {}
            }
        }
        if self.has_overlap(&arrivals) {
            arrivals.sort_by_key(|(nth, _)| noise(seed ^ (*nth as u64) << 16));
        }
        self.add("random", arrivals);
    }

    fn has_overlap(&self, arrivals: &[(usize, Arrival)]) -> bool {
        let mut ranges: Vec<_> = arrivals
            .iter()
            .map(|(nth, _)| self.shapes[*nth])
            .map(|shape| (shape.file, shape.start, shape.end))
            .collect();
        ranges.sort_unstable();
        // Sorted by start, so the one that reaches furthest decides for all that follow.
        let mut last = (usize::MAX, 0);
        ranges.into_iter().any(|(file, start, end)| {
            let overlaps = last.0 == file && start < last.1;
            last = (file, end.max(if last.0 == file { last.1 } else { 0 }));
            overlaps
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(start: u64, sectors: usize) -> Shape {
        Shape {
            file: 0,
            start,
            end: start + sectors as u64 * 512,
            sectors,
            grows: false,
        }
    }

    #[test]
    fn first_and_last_are_always_chosen() {
        for (count, most, expected) in [
            (0, 3, vec![]),
            (1, 3, vec![0]),
            (3, 3, vec![0, 1, 2]),
            (100, 3, vec![0, 49, 99]),
        ] {
            assert_eq!(evenly(count, most).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn number_of_states_is_bounded_for_any_epoch() {
        let shapes: Vec<_> = (0..1000).map(|nth| shape(nth << 20, 64)).collect();
        let plans = plans(&shapes, 1);
        let most = 2 + 3 * CHANGES + TORN * CUTS * 4 + RANDOM as usize;
        assert!((most / 2..=most).contains(&plans.len()), "{}", plans.len());
        for sector in [1, 63] {
            let torn = (999, Arrival::First(sector));
            assert!(plans.iter().any(|plan| plan.arrivals == [torn]));
        }
    }

    #[test]
    fn order_matters_only_where_changes_overlap() {
        let apart = plans(&[shape(0, 1), shape(512, 1)], 0);
        assert!(
            apart
                .iter()
                .all(|plan| plan.arrivals.is_sorted_by_key(|it| it.0))
        );
        let plans = plans(&[shape(0, 3), shape(8192, 1), shape(1024, 1)], 0);
        let whole = |nth| (nth, Arrival::Whole);
        for order in [[0, 1, 2], [2, 1, 0]] {
            let wanted = order.map(whole);
            assert!(
                plans.iter().any(|plan| plan.arrivals == wanted),
                "{order:?}"
            );
        }
    }
}
