//! Landlock: which files, ports and processes can be reached.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictSelfAttr, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
    Scope,
};
use rustix::fs::Access;

use crate::reach::Right;
use crate::{Built, Mode, Reach};

/// What is known of files, here and by the kernels that are asked for all of it: from Linux 6.2 on,
/// the right to make a file shorter is among it.
const NEEDED: ABI = ABI::V3;
/// What is asked for beyond that where the kernel has it.
const KNOWN: ABI = ABI::V7;

/// Takes away what no image needs. Files are read and written as before: which those are is not known
/// yet.
pub(crate) fn begin(mode: Mode) -> Built {
    let never = AccessFs::Execute
        | AccessFs::RemoveDir
        | AccessFs::MakeChar
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeBlock
        | AccessFs::MakeSym;
    enforce(ruleset(mode, never)?.create()?)
}

/// Takes away all files but those within `reach`.
pub(crate) fn narrow(mode: Mode, reach: &Reach) -> Built {
    let mut ruleset = ruleset(mode, AccessFs::from_all(NEEDED))?.create()?;
    for (path, right) in &reach.places {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = read | AccessFs::WriteFile | AccessFs::Truncate;
        let rights = match right {
            Right::Read => read,
            Right::Write => write,
            Right::Make => write | AccessFs::MakeReg | AccessFs::RemoveFile,
        };
        // Nothing is there; or a pipe, of which Landlock knows nothing and which it does not refuse.
        if let Ok(place) = PathFd::new(path) {
            let _ = (&mut ruleset).add_rule(PathBeneath::new(place, rights));
        }
    }
    enforce(ruleset)
}

/// Takes away everything but the names of regular files in `directories`.
pub(crate) fn lock_in(mode: Mode, directories: &[PathBuf]) -> Built {
    let ruleset = ruleset(mode, AccessFs::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?;
    let mut ruleset = ruleset.create()?;
    for directory in directories {
        let names = AccessFs::MakeReg | AccessFs::RemoveFile;
        let rule = PathBeneath::new(PathFd::new(directory)?, names);
        ruleset = ruleset.add_rule(rule)?;
    }
    enforce(ruleset)
}

/// See [`crate::is_open_outside`].
pub(crate) fn is_open_outside(path: &Path, written: bool) -> bool {
    let asked = match written {
        true => Access::READ_OK | Access::WRITE_OK,
        false => Access::READ_OK,
    };
    // Landlock has no say in this question.
    rustix::fs::access(path, asked).is_ok()
}

/// Rules about `files`, of which the kernel must know if `mode` says so, and about everything else that
/// it happens to know.
fn ruleset(
    mode: Mode,
    files: BitFlags<AccessFs>,
) -> Result<Ruleset, Box<dyn std::error::Error + Send + Sync>> {
    let level = match mode {
        Mode::Require => CompatLevel::HardRequirement,
        _ => CompatLevel::BestEffort,
    };
    // Sockets and signals to others are refused by seccomp as well.
    Ok(Ruleset::default()
        .set_compatibility(level)
        .handle_access(files)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?)
}

fn enforce(ruleset: RulesetCreated) -> Built {
    let status = ruleset.all_threads(true)?.restrict_self()?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("the kernel has none".into()),
        _ => Ok(()),
    }
}
