//! Where images lie while they are measured.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::machine::{file_system, free_memory, free_space, tool};
use crate::measure::Step;

/// Bytes that are left to others, in memory and on a disk.
const MARGIN: u64 = 1 << 30;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// In memory, so that no disk adds its noise.
    Memory,
    /// On a disk, with everything flushed at the end.
    Disk,
    /// The same, with nothing of the target left in memory.
    Uncached,
    /// On a disk that nobody waits for.
    Unflushed,
    /// XFS in a file on that disk; it shares bytes between files.
    Xfs,
    /// The same with btrfs.
    Btrfs,
}

impl Place {
    /// In the order in which they are measured.
    pub(crate) const ALL: [Self; 6] = [
        Self::Memory,
        Self::Disk,
        Self::Uncached,
        Self::Unflushed,
        Self::Xfs,
        Self::Btrfs,
    ];

    /// The heading of its part of the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Memory => "In memory",
            Self::Disk => "On disk, flushed",
            Self::Uncached => "On disk, flushed, and out of the cache",
            Self::Unflushed => "On disk, and nobody flushes",
            Self::Xfs => "Source and target share an XFS",
            Self::Btrfs => "Source and target share a btrfs",
        }
    }

    /// Whether everybody flushes there.
    pub(crate) fn flushes(self) -> bool {
        matches!(self, Self::Disk | Self::Uncached)
    }

    /// Whether files can share bytes there.
    pub(crate) fn shares(self) -> bool {
        matches!(self, Self::Xfs | Self::Btrfs)
    }
}

/// The directories that rooms are made in.
pub(crate) struct Grounds {
    /// Usually a tmpfs.
    pub(crate) memory: PathBuf,
    /// On a disk.
    pub(crate) disk: PathBuf,
}

/// An empty directory in a [`Place`], which goes away with all that is in it when dropped.
pub(crate) struct Room {
    place: Place,
    path: PathBuf,
    // Unmounted before its directory is removed: fields are dropped in this order.
    _mount: Option<Mount>,
    _dir: TempDir,
}

impl Room {
    /// A room for `bytes` of images; the error says why there cannot be one.
    pub(crate) fn open(place: Place, grounds: &Grounds, bytes: u64) -> Result<Self, String> {
        let ground = match place {
            Place::Memory => &grounds.memory,
            _ => &grounds.disk,
        };
        enough(ground, bytes + MARGIN)?;
        let dir = tempfile::Builder::new()
            .prefix("goldsmith-bench-")
            .tempdir_in(ground)
            .map_err(|error| format!("{}: {error}", ground.display()))?;
        let (path, mount) = match place {
            Place::Xfs => Mount::new(dir.path(), "mkfs.xfs", "-q", bytes)?,
            Place::Btrfs => Mount::new(dir.path(), "mkfs.btrfs", "-q", bytes)?,
            _ => (dir.path().to_owned(), None),
        };
        Ok(Self {
            place,
            path,
            _mount: mount,
            _dir: dir,
        })
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is, for the report.
    pub(crate) fn describe(&self) -> String {
        let kind = file_system(&self.path);
        match self.place.shares() {
            true => {
                let below = self.path.parent().map(file_system);
                format!("{kind} in a file on {}", below.unwrap_or_default())
            }
            false => kind,
        }
    }

    /// Whether `bytes` more can be written here without harm to others.
    pub(crate) fn enough(&self, bytes: u64) -> Result<(), String> {
        let margin = if self.place.shares() { 0 } else { MARGIN };
        enough(&self.path, bytes + margin)
    }

    /// Waits until the disk has nothing left to do for us.
    pub(crate) fn settle(&self) -> Result<(), String> {
        if self.place != Place::Memory {
            Step::new("sync", "-f").arg(&self.path).run()?;
        }
        Ok(())
    }
}

/// Whether `need` bytes are free at `path`. A file system in memory ends where it says or where the
/// memory does.
fn enough(path: &Path, need: u64) -> Result<(), String> {
    let fail = |error| format!("{}: {error}", path.display());
    let space = free_space(path).map_err(fail)?;
    let free = match &*file_system(path) {
        "tmpfs" | "ramfs" => space.min(free_memory().map_err(fail)?),
        _ => space,
    };
    if free < need {
        let mib = |bytes| bytes >> 20;
        return Err(format!(
            "{} has {} MiB free, and {} MiB are needed",
            path.display(),
            mib(free),
            mib(need)
        ));
    }
    Ok(())
}

/// A file system in a file, unmounted when dropped.
struct Mount {
    path: PathBuf,
}

impl Mount {
    fn new(
        dir: &Path,
        mkfs: &str,
        options: &str,
        bytes: u64,
    ) -> Result<(PathBuf, Option<Self>), String> {
        let mkfs = tool(mkfs).ok_or_else(|| format!("{mkfs} is not installed"))?;
        let (image, path) = (dir.join("image"), dir.join("mount"));
        // It takes only what is written to it. More than enough, because file systems become slow
        // when they are nearly full, and refuse to be small.
        let len = 2 * bytes + MARGIN;
        File::create_new(&image)
            .and_then(|file| file.set_len(len))
            .and_then(|()| std::fs::create_dir(&path))
            .map_err(|error| format!("{}: {error}", dir.display()))?;
        Step::new(mkfs, options).arg(&image).run()?;
        Step::new("mount", "-o loop")
            .arg(&image)
            .arg(&path)
            .run()
            .map_err(|error| format!("it takes root to mount a file: {error}"))?;
        Ok((path.clone(), Some(Self { path })))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nobody is left to tell; the directory below cannot be removed then, and shows it.
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_away_with_all_that_is_in_it() {
        let ground = tempfile::tempdir().unwrap();
        let grounds = Grounds {
            memory: ground.path().to_owned(),
            disk: ground.path().to_owned(),
        };
        let room = Room::open(Place::Disk, &grounds, 1).unwrap();
        std::fs::write(room.path().join("file"), "x").unwrap();
        drop(room);
        assert_eq!(ground.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn no_room_without_space() {
        let ground = tempfile::tempdir().unwrap();
        let error = enough(ground.path(), 1 << 60).unwrap_err();
        assert!(error.ends_with("MiB are needed"), "{error}");
    }
}
