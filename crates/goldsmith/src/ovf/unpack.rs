//! The VHDs of a tar, one behind the other in a file without a name.

use std::sync::Arc;

use goldsmith_block::{Budget, HostRange, Result, Storage, StorageMut, is_zero};
use goldsmith_storage::{FileStorage, Window};

use super::walk::{Member, walk};

/// Bytes that are stored together.
const PIECE: u64 = 256 << 10;
/// Zeros of this length or more become holes, and each VHD begins at a multiple of it.
const HOLE: usize = 4096;

/// What a tar holds: `0.vhd`, `1.vhd` and so on, put into `scratch`, which is empty.
///
/// # Errors
/// Those of [`walk`]; `Limit` if they are too long for `budget`; `Io` if there is no room for them.
///
/// # Cost
/// All of the file is read, and what it holds is written.
pub(super) fn unpack(
    storage: &dyn Storage,
    budget: &Budget,
    scratch: FileStorage,
) -> Result<Vec<Arc<dyn Storage>>> {
    let scratch = Arc::new(scratch);
    walk(storage, budget.unpacking_time(), |member| {
        member.admit(budget)?;
        let place = HostRange::new(
            scratch.len().next_multiple_of(HOLE as u64),
            // What all of them may take was just taken from the budget.
            member.len,
        );
        copy(member, &scratch, place)?;
        let window = Window::new(Arc::clone(&scratch), place)?;
        Ok(Arc::new(window.named(&*member.name)) as _)
    })
}

/// Puts all of `member` into `file` at `place`, which is its end.
fn copy(member: &mut Member<'_>, file: &FileStorage, place: HostRange) -> Result<()> {
    let mut buf = vec![0; PIECE.min(place.len) as usize];
    let mut at = place.offset;
    while at < place.end() {
        // At most a piece.
        let part = &mut buf[..(place.end() - at).min(PIECE) as usize];
        member.read_exact(part)?;
        for (nth, run) in part.chunks(HOLE).enumerate() {
            if !is_zero(run) {
                file.write_at(at + (nth * HOLE) as u64, run)?;
            }
        }
        at += part.len() as u64;
    }
    file.set_len(place.end())
}
