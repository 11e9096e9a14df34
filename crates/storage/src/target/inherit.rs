//! What a new file gets from the old one that it is going to replace.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use crate::sys;

/// Whether the process may put another file in the place of `old`, so far as that is known before it does: it
/// may write to both the file and the directory `around` it.
pub(super) fn may_replace(old: &Metadata, around: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    around.mode() & STICKY == 0 || [old.uid(), around.uid()].into_iter().any(sys::owns_all_of)
}

/// Gives `file` the owner, the group, the rights and the label of the `old` file, which it is going to
/// replace.
/// What cannot be given away is the caller's own then, and nobody gets a right that he did not have.
pub(super) fn inherit(file: &File, old: &File, metadata: &Metadata) -> io::Result<()> {
    let (owner, group) = (Some(metadata.uid()), Some(metadata.gid()));
    let give = |owner| match fchown(file, owner, group) {
        // Only root gives files away, and others to groups of theirs; nobody to a user that is not in the
        // namespace.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(false)
        }
        done => done.map(|()| true),
    };
    let in_group = give(owner)? || give(None)?;
    if let Ok(Some(label)) = sys::label(old) {
        // Where the policy forbids it, that of the directory's new files stays.
        let _ = sys::set_label(file, &label);
    }
    let (mode, list) = (metadata.mode() & 0o777, sys::acl(old)?);
    if list.is_some() {
        // Also where the list cannot be given: who may do what without it nobody knows.
        file.set_permissions(Permissions::from_mode(mode & 0o700))?;
        if !in_group || sys::set_acl(file, list.as_deref()).is_err() {
            sys::set_acl(file, None)?;
        }
        return Ok(());
    }
    // The directory may have given it one.
    sys::set_acl(file, None)?;
    // The new group's members were others, or of the old one, whose members are others now.
    let both = (mode >> 3) & mode & 0o7;
    let mode = match in_group {
        true => mode,
        false => mode & 0o700 | both << 3 | both,
    };
    file.set_permissions(Permissions::from_mode(mode))
}
