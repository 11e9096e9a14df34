//! What of a claim must be said, because what stands behind the target says something else.

use goldsmith_block::{Chain, Demand, GuestRange, Result, is_zero};

/// The disk behind the target, as one worker compares with it.
pub(crate) struct Cover<'a> {
    behind: &'a Chain,
    /// What stands behind the claim.
    buf: Vec<u8>,
    /// Where the target must say that there are zeros; ascending, between the demands.
    pub(crate) zeroes: Vec<GuestRange>,
}

impl<'a> Cover<'a> {
    /// For claims of at most `step` bytes.
    pub(crate) fn new(behind: &'a Chain, step: usize) -> Self {
        Self {
            behind,
            buf: vec![0; step],
            zeroes: Vec::new(),
        }
    }

    /// Keeps of `demands`, which are for what is not zeros in `range`, the units that differ from
    /// what stands behind; and finds the zeros that do.
    ///
    /// `range` starts at the start of a unit. `bytes` are those of `range`, as far as they are
    /// demanded.
    pub(crate) fn compare(
        &mut self,
        range: GuestRange,
        unit: u64,
        demands: &mut Vec<Demand>,
        bytes: &[u8],
    ) -> Result<()> {
        self.zeroes.clear();
        // A claim fits in memory.
        let behind = &mut self.buf[..range.len() as usize];
        let there = self.behind.virtual_size().clamp(range.start, range.end) - range.start;
        let (known, beyond) = behind.split_at_mut(there as usize);
        self.behind.read_at(range.start, known)?;
        beyond.fill(0);

        let demanded = std::mem::take(demands);
        let mut demanded = demanded.iter().peekable();
        let mut start = range.start;
        while start < range.end {
            let part = GuestRange::new(start, (start + unit).min(range.end));
            let at = (start - range.start) as usize..(part.end - range.start) as usize;
            start = part.end;
            while demanded
                .next_if(|demand| demand.range.end <= part.start)
                .is_some()
            {}
            let is_demanded = demanded
                .peek()
                .is_some_and(|demand| demand.range.start <= part.start);
            if is_demanded && bytes[at.clone()] != behind[at.clone()] {
                match demands.last_mut() {
                    Some(last) if last.range.end == part.start => last.range.end = part.end,
                    _ => demands.push(Demand {
                        range: part,
                        packed: None,
                    }),
                }
            }
            if !is_demanded && !is_zero(&behind[at]) {
                match self.zeroes.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => self.zeroes.push(part),
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
        cover
            .compare(range, 512, &mut demands, new.bytes())
            .unwrap();
        let pair = |range: &GuestRange| (range.start, range.end);
        let data = demands.iter().map(|demand| pair(&demand.range));
        (data.collect(), cover.zeroes.iter().map(pair).collect())
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
