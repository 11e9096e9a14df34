//! Measuring: how long a target would become, without moving a byte.

use goldsmith_block::{Chain, Committed, Demand, GuestRange, Result, Sink, align_down, align_up};

/// The parts of the disk that its tables say hold data, in order; some may touch.
///
/// # Errors
/// Those of [`Chain::extents`].
pub fn data_ranges(chain: &Chain) -> impl Iterator<Item = Result<GuestRange>> + '_ {
    chain.extents().filter_map(|found| match found {
        Ok(found) => {
            let extent = found.extent;
            extent.kind.is_data().then_some(Ok(extent.range))
        }
        Err(error) => Some(Err(error)),
    })
}

/// Gives `data`, parts of the disk that ascend, their places in `sink` and commits it; what stands
/// there is anything.
///
/// # Errors
/// Those of `data` and of the sink.
pub fn lay_out(
    sink: Box<dyn Sink>,
    data: impl IntoIterator<Item = Result<GuestRange>>,
) -> Result<Committed> {
    let (grain, len) = (sink.profile().grain, sink.profile().virtual_size);
    let mut slots = Vec::new();
    let mut placed = 0;
    for range in data {
        let range = range?;
        let start = align_down(range.start, grain).max(placed);
        let end = align_up(range.end, grain).map_or(len, |end| end.min(len));
        if start < end {
            let demand = Demand {
                range: GuestRange::new(start, end),
                packed: None,
            };
            slots.clear();
            sink.reserve(&[demand], &mut slots)?;
            placed = end;
        }
    }
    sink.commit()
}
