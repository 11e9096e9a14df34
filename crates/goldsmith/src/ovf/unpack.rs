//! The VHDs of a tar, each in a file without a name.

use std::sync::Arc;

use goldsmith_block::{Budget, Result, Storage, StorageMut, is_zero};
use goldsmith_storage::FileStorage;

use super::walk::{Member, check_len, walk};

/// Bytes that are stored together.
const PIECE: u64 = 256 << 10;
/// Zeros of this length or more become holes.
const HOLE: usize = 4096;

/// What a tar holds: `0.vhd`, `1.vhd` and so on.
///
/// # Errors
/// Those of [`walk`]; `Limit` if they are too long for `budget`; `Io` if there is no room for them.
///
/// # Cost
/// All of the file is read, and what it holds is written.
pub(super) fn unpack(storage: &dyn Storage, budget: &Budget) -> Result<Vec<Arc<dyn Storage>>> {
    walk(storage, |member| {
        budget.unpack(member.len, "VHD in the tar")?;
        check_len(member, storage.len())?;
        let file = FileStorage::scratch(&*member.name)?;
        copy(member, &file)?;
        Ok(Arc::new(file) as _)
    })
}

/// Puts all of `member` into `file`, which is empty.
fn copy(member: &mut Member<'_>, file: &FileStorage) -> Result<()> {
    let len = member.len;
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    while at < len {
        // At most a piece.
        let part = &mut buf[..(len - at).min(PIECE) as usize];
        member.read_exact(part)?;
        for (nth, run) in part.chunks(HOLE).enumerate() {
            if !is_zero(run) {
                file.write_at(at + (nth * HOLE) as u64, run)?;
            }
        }
        at += part.len() as u64;
    }
    file.set_len(len)
}
