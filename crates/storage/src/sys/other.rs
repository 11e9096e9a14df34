//! Any other Unix: nothing beyond what the standard library does.
#![cfg_attr(
    test,
    allow(dead_code, reason = "compiled on Linux only to keep it compiling")
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use goldsmith_block::{HostRange, StorageId};
use rustix::fs::OFlags;

use crate::beneath::step_by_step;

pub(crate) const OPEN_AT_ONCE: i32 = 0;
pub(crate) const OPEN_ALONE: i32 = 0;
pub(crate) const OPEN_ITSELF: i32 = 0;
/// There is no way to look without opening; but that does not wait.
pub(crate) const LOOK: OFlags = OFlags::NONBLOCK;

pub(crate) fn close(_file: File) -> io::Result<()> {
    Ok(())
}

pub(crate) fn open_beneath(directory: &File, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    step_by_step(directory, name, flags)
}

pub(crate) fn next_data(_file: &File, _offset: u64) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn next_hole(_file: &File, _offset: u64) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn punch(_file: &File, _range: HostRange) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn zero_allocated(_file: &File, _range: HostRange) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

pub(crate) fn acl(_file: &File) -> io::Result<Option<Vec<u8>>> {
    Ok(None)
}

pub(crate) fn label(_file: &File) -> io::Result<Option<Vec<u8>>> {
    Ok(None)
}

pub(crate) fn set_label(_file: &File, _label: &[u8]) -> io::Result<()> {
    Ok(())
}

pub(crate) fn set_acl(_file: &File, list: Option<&[u8]>) -> io::Result<()> {
    match list {
        Some(_) => Err(io::ErrorKind::Unsupported.into()),
        None => Ok(()),
    }
}

pub(crate) fn lock_shared(_file: &File, _byte: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn is_taken(_error: &io::Error) -> bool {
    false
}

pub(crate) fn unlock(_file: &File, _bytes: Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn is_locked(_file: &File, _byte: u64) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn is_read_only(_device: u64) -> bool {
    false
}

pub(crate) fn below_device(_device: u64) -> Vec<StorageId> {
    Vec::new()
}

pub(crate) fn start_writeback(_file: &File) -> io::Result<()> {
    Ok(())
}

pub(crate) fn drop_cached(_file: &File, _range: HostRange) {}

pub(crate) fn pass_cache(_file: &File, _pass: bool) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn passes_cache(_file: &File) -> bool {
    false
}

pub(crate) fn share(_: &File, _: HostRange, _: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn copy(_: &File, _: HostRange, _: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn may_copy(_: &File, _: &File) -> bool {
    false
}

pub(crate) fn is_remote(_: &File) -> bool {
    false
}

pub(crate) fn thread_time() -> Option<std::time::Duration> {
    None
}

pub(crate) fn is_of_process(_path: &Path) -> bool {
    false
}

pub(crate) fn owns_all_of(_user: u32) -> bool {
    true
}

pub(crate) fn create_unnamed(_directory: &Path, _mode: u32) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn link_unnamed(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
