//! What root may do to files that their owners may not.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::Built;

/// Gives up what it takes to make a program that runs as somebody else: whatever is written to loses the
/// bits that say so (setuid, setgid), and no file gets capabilities.
pub(crate) fn begin() -> Built {
    let lost = CapabilitySet::FSETID | CapabilitySet::SETFCAP;
    let mut sets = capabilities(None)?;
    for set in [
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
    ] {
        set.remove(lost);
    }
    Ok(set_capabilities(None, sets)?)
}
