//! What an open file turns out to be, and what is different about block devices.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use goldsmith_block::StorageId;

use crate::error::StorageError;
use crate::sys;

/// What holds bytes at offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    File,
    /// Its length is fixed, and what it holds before it is written is anybody's guess.
    Device,
}

impl Nature {
    /// What the metadata describes.
    ///
    /// # Errors
    /// [`StorageError::NotBytes`] for directories, pipes and the like.
    pub(crate) fn of(metadata: &Metadata) -> Result<Self, StorageError> {
        let kind = metadata.file_type();
        let what = if kind.is_file() {
            return Ok(Self::File);
        } else if kind.is_block_device() {
            return Ok(Self::Device);
        } else if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_char_device() {
            "a character device"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "no file"
        };
        Err(StorageError::NotBytes { what })
    }

    pub(crate) fn id(self, metadata: &Metadata) -> StorageId {
        match self {
            Self::File => StorageId::File {
                dev: metadata.dev(),
                ino: metadata.ino(),
            },
            Self::Device => StorageId::Device(metadata.rdev()),
        }
    }

    /// Length in bytes; the metadata of a device does not know it.
    pub(crate) fn len(self, mut file: &File, metadata: &Metadata) -> io::Result<u64> {
        match self {
            Self::File => Ok(metadata.len()),
            Self::Device => file.seek(SeekFrom::End(0)),
        }
    }
}

/// Whether what is written to one of them may show in the other: they are one file or device, or one
/// of them stands on the other, as a loop device does on its file and a partition on its disk.
///
/// What is not known of a device does not count (off Linux, that is everything).
pub fn share_bytes(a: StorageId, b: StorageId) -> bool {
    stands_on(a).contains(&b) || stands_on(b).contains(&a)
}

/// `id` and all that stands below it.
fn stands_on(id: StorageId) -> Vec<StorageId> {
    let mut found = vec![id];
    let mut next = 0;
    while let Some(id) = found.get(next) {
        next += 1;
        if let StorageId::Device(device) = *id {
            for below in sys::below_device(device) {
                if !found.contains(&below) {
                    found.push(below);
                }
            }
        }
    }
    found
}
