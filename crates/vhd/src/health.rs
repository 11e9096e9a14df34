//! What shows at a glance: whether the file ends where its blocks do.

use goldsmith_block::{Ailment, Gaps, HostRange, Result, SECTOR, Symptom};

use crate::check::{is_alignment, tables, tail};
use crate::error::VhdError;
use crate::layer::{DynamicLayer, FixedLayer, read_header};
use crate::ondisk::UNUSED;

/// What ails a fixed image; the disk itself is known to be all there.
pub(crate) fn fixed(layer: &FixedLayer, data_end: u64) -> Vec<Symptom> {
    let mut symptoms: Vec<_> = poison(layer.poisoned).into_iter().collect();
    if layer.reach < data_end {
        let rest = HostRange::new(layer.reach, data_end - layer.reach);
        symptoms.push(belongs_to_nothing(rest));
    }
    symptoms
}

/// What ails a dynamic or differencing image.
///
/// The block table is in memory, so this reads no more than the header, and a page.
pub(crate) fn dynamic(layer: &DynamicLayer) -> Result<Vec<Symptom>> {
    let geometry = &layer.geometry;
    let mut symptoms: Vec<_> = poison(layer.poisoned).into_iter().collect();
    let (header, _) = read_header(
        &*layer.storage,
        geometry.header.offset,
        geometry.data_end,
        &mut Gaps::default(),
    )?;
    let tables = tables(layer, &header);
    let mut end = tables.iter().map(|place| place.end).max().unwrap_or(0);
    let (mut outside, mut worst) = (0_u64, None);
    for (block, entry) in (0..).zip(&layer.bat) {
        if *entry == UNUSED {
            continue;
        }
        match geometry.block_in_reach(block, *entry) {
            // The last block may end with the disk.
            Ok(_) => end = end.max(u64::from(*entry) * SECTOR + geometry.block_len()),
            Err(error) => {
                if error.is_cut_off() {
                    // What is left of it stands there.
                    end = geometry.data_end;
                }
                outside += 1;
                worst.get_or_insert(error);
            }
        }
    }
    if let Some(error) = worst {
        let ailment = match error {
            VhdError::BlockOutside { .. } => Ailment::Truncated,
            _ => Ailment::Corrupt,
        };
        let others = outside - 1;
        symptoms.push(match others {
            0 => ailment.sign(error),
            _ => ailment.sign(format_args!(
                "{error}; {others} other blocks are wrong, too"
            )),
        });
    }
    if let Some(rest) = tail(layer, &header, end)
        && !is_alignment(layer, rest)?
    {
        symptoms.push(belongs_to_nothing(rest));
    }
    Ok(symptoms)
}

fn poison(poisoned: bool) -> Option<Symptom> {
    poisoned.then(|| Ailment::Corrupt.sign(VhdError::Poisoned))
}

fn belongs_to_nothing(rest: HostRange) -> Symptom {
    let text = format!("{} bytes of the file, {rest}, belong to nothing", rest.len);
    Ailment::Tail.sign(text)
}
