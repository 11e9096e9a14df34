//! Files that a stranger names: found beneath a directory, by no way that could lead out of it.
//!
//! The kernel is asked to keep to that (`openat2`); where it cannot, each step is taken by itself, and
//! none through a link. What is opened is looked at first, because opening alone can do something to
//! a device, and again when it is open, because by then the name may mean something else.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::device::Nature;
use crate::error::StorageError as E;
use crate::sys;

/// Opens the regular file `name`, a path from `directory` on.
///
/// # Errors
/// [`E::Refused`] if a symbolic link is on the way, if it leads out of the directory, or if what is
/// there is no regular file; [`E::Open`] if it cannot be opened.
pub(crate) fn open(directory: &Path, name: &Path, write: bool) -> Result<(File, Metadata), E> {
    open_by(directory, name, write, sys::open_beneath)
}

type Way = fn(&File, &Path, OFlags) -> io::Result<OwnedFd>;

fn open_by(directory: &Path, name: &Path, write: bool, way: Way) -> Result<(File, Metadata), E> {
    let cannot_open = |source| E::Open { source };
    let directory = match directory == Path::new("") {
        true => Path::new("."),
        false => directory,
    };
    let flags = sys::LOOK | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty());
    let directory = directory.map(File::from).map_err(|errno| E::Open {
        source: errno.into(),
    })?;
    let find = |flags| match way(&directory, name, flags) {
        Ok(file) => {
            let file = File::from(file);
            let metadata = file.metadata().map_err(cannot_open)?;
            Ok((file, metadata))
        }
        Err(error) => Err(refused(error)),
    };
    let (_, seen) = find(sys::LOOK)?;
    regular(&seen)?;
    let access = match write {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    let (file, found) = find(access | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    regular(&found)?;
    if (seen.dev(), seen.ino()) != (found.dev(), found.ino()) {
        let how = "becomes another file while it is opened";
        return Err(E::Refused { how });
    }
    Ok((file, found))
}

/// Opens `name`, a path from `directory` on, one step after the other.
pub(crate) fn step_by_step(directory: &File, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut parts = name.components().peekable();
    let mut reached: Option<OwnedFd> = None;
    while let Some(Component::Normal(part)) = parts.next() {
        let from = reached
            .as_ref()
            .map_or(directory.as_fd(), |reached| reached.as_fd());
        let last = parts.peek().is_none();
        let flags = match last {
            true => flags,
            false => sys::LOOK | OFlags::DIRECTORY,
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = openat(from, part, flags, Mode::empty())?;
        if last {
            return Ok(next);
        }
        reached = Some(next);
    }
    Err(Errno::XDEV.into())
}

fn refused(error: io::Error) -> E {
    let how = match Errno::from_io_error(&error) {
        Some(Errno::XDEV) => "leads out of the directory",
        // A link that is the last step is opened itself when it is looked at.
        Some(Errno::LOOP | Errno::NOTDIR) => "leads through something that is no directory",
        _ => return E::Open { source: error },
    };
    E::Refused { how }
}

fn regular(metadata: &Metadata) -> Result<(), E> {
    let how = match Nature::of(metadata) {
        Ok(Nature::File) => return Ok(()),
        Ok(Nature::Device) => "is a block device",
        Err(_) if metadata.is_symlink() => "is a symbolic link",
        Err(_) if metadata.is_dir() => "is a directory",
        Err(_) => "is no regular file",
    };
    Err(E::Refused { how })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use goldsmith_testkit::mount::{ROOT, are_allowed};
    use rustix::fs::{CWD, FileType, mkfifoat, mknodat};

    use super::*;

    /// The kernel's way, which is there to be tested, and the other one.
    const WAYS: [(&str, Way); 2] = [("openat2", sys::open_beneath), ("steps", step_by_step)];

    fn outcome(directory: &Path, name: &str, write: bool, way: Way) -> String {
        match open_by(directory, Path::new(name), write, way) {
            Ok((mut file, _)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
            Err(E::Refused { how }) => how.into(),
            Err(error) => panic!("{name}: {error:?}"),
        }
    }

    #[test]
    fn only_regular_files_that_no_link_leads_to_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::create_dir_all(at("images/deeper")).unwrap();
        std::fs::write(at("images/base"), "base").unwrap();
        std::fs::write(at("images/deeper/base"), "deeper").unwrap();
        symlink("../secret", at("images/out")).unwrap();
        symlink("base", at("images/in")).unwrap();
        symlink("deeper", at("images/way")).unwrap();
        symlink("/proc/self/fd/0", at("images/magic")).unwrap();
        symlink("nowhere", at("images/dangling")).unwrap();
        mkfifoat(CWD, at("images/fifo"), Mode::RWXU).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("images/socket")).unwrap();
        let images = at("images");
        let absolute = at("images/base").to_str().unwrap().to_owned();
        for (kind, way) in WAYS {
            for (name, expected) in [
                ("base", "base"),
                ("deeper/base", "deeper"),
                ("out", "is a symbolic link"),
                ("in", "is a symbolic link"),
                ("magic", "is a symbolic link"),
                ("dangling", "is a symbolic link"),
                ("way/base", "leads through something that is no directory"),
                ("base/base", "leads through something that is no directory"),
                ("../secret", "leads out of the directory"),
                ("..", "leads out of the directory"),
                (&absolute, "leads out of the directory"),
                ("/dev/zero", "leads out of the directory"),
                ("deeper", "is a directory"),
                ("fifo", "is no regular file"),
                ("socket", "is no regular file"),
            ] {
                for write in [false, true] {
                    let found = outcome(&images, name, write, way);
                    assert_eq!(found, expected, "{kind}: {name}, to write: {write}");
                }
            }
            // What the system itself keeps: a device, and links that are no paths.
            for (directory, name, expected) in [
                ("/dev", "zero", "is no regular file"),
                ("/proc/self/fd", "0", "is a symbolic link"),
                (
                    "/proc",
                    "self/fd/0",
                    "leads through something that is no directory",
                ),
            ] {
                let found = outcome(Path::new(directory), name, false, way);
                assert_eq!(found, expected, "{kind}: {directory}/{name}");
            }
        }
        drop(socket);
    }

    #[test]
    fn block_device_in_the_directory_is_refused() {
        if !are_allowed("device nodes") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("disk");
        let made = mknodat(CWD, &node, FileType::BlockDevice, Mode::RWXU, 0x700);
        made.expect(ROOT);
        for (kind, way) in WAYS {
            let found = outcome(folder.path(), "disk", false, way);
            assert_eq!(found, "is a block device", "{kind}");
        }
    }

    /// Another program makes the name mean one thing after the other, as fast as it can.
    #[test]
    fn name_that_changes_while_it_is_opened_never_leads_out_and_never_waits() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("images")).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (new, name) = (at("new"), at("images/base"));
                while !over.load(Ordering::Relaxed) {
                    std::fs::write(&new, "base").unwrap();
                    std::fs::rename(&new, &name).unwrap();
                    symlink("../secret", &new).unwrap();
                    std::fs::rename(&new, &name).unwrap();
                    mkfifoat(CWD, &new, Mode::RWXU).unwrap();
                    std::fs::rename(&new, &name).unwrap();
                }
            });
            let mut found = std::collections::BTreeMap::new();
            for (_, way) in WAYS {
                for _ in 0..5000 {
                    let opened = open_by(&at("images"), Path::new("base"), false, way);
                    let what = match opened {
                        Ok((mut file, _)) => {
                            let mut text = String::new();
                            file.read_to_string(&mut text).unwrap();
                            assert_eq!(text, "base");
                            "opened"
                        }
                        Err(E::Refused { how }) => how,
                        // Not there yet.
                        Err(_) => "cannot be opened",
                    };
                    *found.entry(what).or_insert(0) += 1;
                }
            }
            over.store(true, Ordering::Relaxed);
            // Each kind was met, or the race was none.
            for what in ["opened", "is a symbolic link", "is no regular file"] {
                assert!(found.contains_key(what), "{found:?}");
            }
        });
    }
}
