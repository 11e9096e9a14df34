//! What the process may use up.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::Built;

const NONE: Rlimit = Rlimit {
    current: Some(0),
    maximum: Some(0),
};

/// No core dumps: they would hold passphrases and other people's disks.
pub(crate) fn begin() -> Built {
    Ok(setrlimit(Resource::Core, NONE)?)
}

/// No further descriptors: those that are open stay so.
pub(crate) fn lock_in() -> Built {
    Ok(setrlimit(Resource::Nofile, NONE)?)
}
