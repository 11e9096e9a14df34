//! The locks by which QEMU's programs keep out of each other's way.
//!
//! ```text
//! byte 100+n  locked by who uses permission n          n = 0 read, 1 write, 3 resize
//! byte 200+n  locked by who cannot bear others to
//! ```
//!
//! All these locks are shared ones, so that any number of processes can hold them; they say what
//! their holders do. Whoever comes later takes its own first, then looks whether the other kind is
//! held by somebody else. [qemu] block/file-posix.c

use std::fs::File;
use std::io;
use std::ops::Deref;

use goldsmith_block::{Error, ErrorKind, Result, Storage};

use crate::sys;

/// The first of the bytes for what is done.
const USED: u64 = 100;
/// The first of the bytes for what others may not do.
const UNSHARED: u64 = 200;
/// Permissions, by number.
const NAMES: [(u64, &str); 3] = [(0, "consistent read"), (1, "write"), (3, "resize")];
/// Those that an image needs which nobody may change meanwhile.
const WRITES: [u64; 2] = [1, 3];

/// What is done with an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is read, and nobody may change it meanwhile.
    Read,
    /// It is changed, which nobody else may do meanwhile.
    Write,
}

/// Tells other processes what is done with `storage`, for as long as it is open.
///
/// They are those that heed such locks: QEMU, its tools, and goldsmith. A storage that is neither file
/// nor device is not locked, nor is a file system that cannot even be asked for locks, and that is no
/// error. [qemu qemu_has_file_lock]
///
/// # Errors
/// `Io` if what another process does with the file does not go with it, or if it cannot be locked.
pub fn lock(storage: &dyn Storage, what: Use) -> Result<()> {
    let Some(file) = storage.lockable() else {
        return Ok(());
    };
    let uses = |permission: u64| what == Use::Write || !WRITES.contains(&permission);
    let mut mine = Vec::new();
    mine.extend(
        NAMES
            .iter()
            .filter(|(n, _)| uses(*n))
            .map(|(n, _)| USED + n),
    );
    mine.extend(WRITES.map(|n| UNSHARED + n));
    for byte in mine {
        match sys::lock_shared(file, byte) {
            Ok(()) => {}
            Err(error) if sys::is_taken(&error) => {
                return Err(in_use(storage, &format!("Failed to lock byte {byte}")));
            }
            Err(_) if sys::is_locked(file, byte).is_err() => return Ok(()),
            Err(error) => return Err(unlockable(storage, byte, &error)),
        }
    }
    let taken = |byte| {
        let found = sys::is_locked(file, byte);
        found.map_err(|error| unlockable(storage, byte, &error))
    };
    for (n, name) in NAMES {
        if uses(n) && taken(UNSHARED + n)? {
            return Err(in_use(storage, &format!("Failed to get \"{name}\" lock")));
        }
    }
    for (n, name) in NAMES {
        if WRITES.contains(&n) && taken(USED + n)? {
            let text = format!("Failed to get shared \"{name}\" lock");
            return Err(in_use(storage, &text));
        }
    }
    Ok(())
}

/// A file that gives up whatever [`lock`] took of it when it is closed. Closing alone is not enough: a
/// child that was forked just then still has it, until it becomes another program.
#[derive(Debug)]
pub(crate) struct Lockable(pub(crate) File);

impl Deref for Lockable {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Lockable {
    fn drop(&mut self) {
        // Nothing can be done about a lock that stays, and it goes with the last who has the file.
        let _ = sys::unlock(&self.0, USED..UNSHARED + 100);
    }
}

fn in_use(storage: &dyn Storage, text: &str) -> Error {
    let text = format!("{text}: is another process using the image?");
    Error::new(ErrorKind::Io, text).in_file(storage.name())
}

/// Nobody knows then who else is at work on the file.
fn unlockable(storage: &dyn Storage, byte: u64, error: &io::Error) -> Error {
    let text = format!("Failed to lock byte {byte}: {error}");
    Error::new(ErrorKind::Io, text).in_file(storage.name())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::FileStorage;

    /// What the second of two users is told.
    fn second(first: Use, second: Use) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let one = FileStorage::edit(file.path()).unwrap();
        let two = FileStorage::edit(file.path()).unwrap();
        lock(&one, first).unwrap();
        lock(&one, first).unwrap();
        let refused = lock(&two, second).err().map(|error| error.report());
        // What a user held goes with it.
        drop(two);
        lock(&one, first).unwrap();
        drop(one);
        let three = FileStorage::edit(file.path()).unwrap();
        lock(&three, Use::Write).unwrap();
        refused.map(|report| report.split_once(": ").unwrap().1.to_owned())
    }

    #[test]
    fn any_number_may_read_and_one_alone_may_write() {
        let refused = |what: &str| Some(format!("{what}: is another process using the image?"));
        assert_eq!(second(Use::Read, Use::Read), None);
        let write = refused("Failed to get \"write\" lock");
        assert_eq!(second(Use::Read, Use::Write), write);
        assert_eq!(second(Use::Write, Use::Write), write);
        let shared = refused("Failed to get shared \"write\" lock");
        assert_eq!(second(Use::Write, Use::Read), shared);
    }

    /// As a child has it that was forked and has not yet become another program.
    #[test]
    fn lock_goes_with_its_holder_though_a_child_has_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let one = FileStorage::edit(file.path()).unwrap();
        lock(&one, Use::Write).unwrap();
        let inherited = one.file().unwrap().try_clone().unwrap();
        drop(one);
        let two = FileStorage::edit(file.path()).unwrap();
        lock(&two, Use::Write).unwrap();
        drop(inherited);
    }

    /// As programs have it that know no other lock than one of the whole file.
    #[test]
    fn file_that_another_has_locked_against_everybody_is_in_use() {
        let file = tempfile::NamedTempFile::new().unwrap();
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        // Closing any other of this process would give that lock up.
        let one = FileStorage::edit(file.path()).unwrap();
        for what in [Use::Read, Use::Write] {
            let refused = lock(&one, what).unwrap_err();
            assert!(
                refused.report().contains("Failed to lock byte 1"),
                "{refused:?}"
            );
        }
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
        lock(&one, Use::Write).unwrap();
    }

    #[test]
    fn what_is_no_file_needs_no_lock() {
        let memory = crate::MemoryStorage::new("disk");
        lock(&memory, Use::Write).unwrap();
    }
}
