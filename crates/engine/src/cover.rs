//! What of a claim must be said, because what stands behind the target says something else.

use goldsmith_block::{Buffer, Chain, Demand, GuestRange, Result, is_zero};

/// The disk behind the target, as one worker compares with it.
pub(crate) struct Cover<'a> {
    behind: &'a Chain,
    /// What stands behind the claim.
    buf: Buffer,
}

impl<'a> Cover<'a> {
    /// For claims of at most `step` bytes.
    pub(crate) fn new(behind: &'a Chain, step: usize) -> Self {
        Self {
            behind,
            buf: Buffer::new(step),
        }
    }

    /// Keeps of `demands`, which are for what is not zeros in `range`, the units in one of its
    /// `parts` that differ from what stands behind; and adds to `zeroes` the zeros there that do.
    ///
    /// All start at the start of a unit. `bytes` are those of `range`, as far as they are demanded.
    pub(crate) fn compare(
        &mut self,
        range: GuestRange,
        parts: &[GuestRange],
        unit: u64,
        demands: &mut Vec<Demand>,
        zeroes: &mut Vec<GuestRange>,
        bytes: &[u8],
    ) -> Result<()> {
        let demanded = std::mem::take(demands);
        let mut demanded = demanded.iter().peekable();
        for part in parts {
            // A claim fits in memory.
            let known = &mut self.buf[..part.len() as usize];
            let there = self.behind.virtual_size().clamp(part.start, part.end) - part.start;
            let (inside, beyond) = known.split_at_mut(there as usize);
            self.behind.read_at(part.start, inside)?;
            beyond.fill(0);

            let mut start = part.start;
            while start < part.end {
                let here = GuestRange::new(start, (start + unit).min(part.end));
                start = here.end;
                while demanded
                    .next_if(|demand| demand.range.end <= here.start)
                    .is_some()
                {}
                let is_demanded = demanded
                    .peek()
                    .is_some_and(|demand| demand.range.start <= here.start);
                let at = |base: u64| (here.start - base) as usize..(here.end - base) as usize;
                let behind = &self.buf[at(part.start)];
                if is_demanded && bytes[at(range.start)] != *behind {
                    match demands.last_mut() {
                        Some(last) if last.range.end == here.start => last.range.end = here.end,
                        _ => demands.push(Demand {
                            range: here,
                            packed: None,
                        }),
                    }
                }
                if !is_demanded && !is_zero(behind) {
                    match zeroes.last_mut() {
                        Some(last) if last.end == here.start => last.end = here.end,
                        _ => zeroes.push(here),
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use goldsmith_testkit::model::ModelLayer;
    use goldsmith_testkit::pattern::disk;

    use super::*;

    type Pairs = Vec<(u64, u64)>;

    /// What must be said of `new` where `old` stands behind: data, zeros.
    fn said(new: &str, old: &str) -> (Pairs, Pairs) {
        let (new, old) = (disk(new), disk(old));
        let behind = Chain::new(std::sync::Arc::new(ModelLayer::new(old)), []);
        let range = GuestRange::new(0, new.len());
        let units = new.bytes().chunks(512).enumerate();
        let mut demands: Vec<_> = units
            .filter(|(_, unit)| !is_zero(unit))
            .map(|(index, unit)| {
                let start = 512 * index as u64;
                Demand {
                    range: GuestRange::new(start, start + unit.len() as u64),
                    packed: None,
                }
            })
            .collect();
        let mut cover = Cover::new(&behind, new.len() as usize);
        let mut zeroes = Vec::new();
        cover
            .compare(range, &[range], 512, &mut demands, &mut zeroes, new.bytes())
            .unwrap();
        let pair = |range: &GuestRange| (range.start, range.end);
        let data = demands.iter().map(|demand| pair(&demand.range));
        (data.collect(), zeroes.iter().map(pair).collect())
    }

    #[test]
    fn only_what_differs_is_said() {
        let picture = "1k:A 512:- 1k:B 512:-";
        assert_eq!(said(picture, picture), (vec![], vec![]));
        assert_eq!(
            said(picture, "3k:-"),
            (vec![(0, 1024), (1536, 2560)], vec![])
        );
        assert_eq!(
            said(picture, "1k:A 2k:C"),
            (vec![(1536, 2560)], vec![(1024, 1536), (2560, 3072)])
        );
        // Nothing stands behind the end of a shorter disk, and of a longer one nothing shows.
        assert_eq!(said(picture, "1k:A"), (vec![(1536, 2560)], vec![]));
        assert_eq!(said("700:-", "3k:D"), (vec![], vec![(0, 700)]));
    }
}
