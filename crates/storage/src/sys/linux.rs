//! Linux: holes, fallocate, files without a name.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goldsmith_block::{HostRange, StorageId};
use reflink_copy::ReflinkBlockBuilder;
use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, Mode, OFlags, PROC_SUPER_MAGIC, RenameFlags,
    ResolveFlags, SeekFrom, XattrFlags, copy_file_range, fadvise, fallocate, fcntl_getfl,
    fcntl_setfl, fgetxattr, fremovexattr, fsetxattr, fstatfs, linkat, major, makedev, minor,
    openat2, renameat_with, seek, statfs,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};
use rustix::time::{ClockId, clock_gettime};

use crate::beneath::step_by_step;
use crate::device::Nature;

/// Flags for opening whatever stands under a name without waiting for another process (a pipe).
pub(crate) const OPEN_AT_ONCE: i32 = OFlags::NONBLOCK.bits() as i32;
/// Flags for opening what stands under a name itself, not what it points to.
pub(crate) const OPEN_ITSELF: i32 = OFlags::NOFOLLOW.bits() as i32;
/// Flags for opening a block device that nothing else has mounted or opened in this way.
pub(crate) const OPEN_ALONE: i32 = OFlags::EXCL.bits() as i32;

/// Flags for looking at what stands under a name without opening it.
pub(crate) const LOOK: OFlags = OFlags::PATH;

/// Opens `name`, a path from `directory` on that may lead neither out of it nor through a symbolic
/// link; a link that it ends with can be [looked at](LOOK).
///
/// Links of the kernel's own, such as those in `/proc/self/fd`, are symbolic links here. Links that
/// stay inside the directory are refused as well: who may put them there could be somebody else than
/// who may put files there, and may change them at any time.
pub(crate) fn open_beneath(directory: &File, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let all = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match retry_on_intr(|| openat2(directory, name, all, Mode::empty(), resolve)) {
        // Older than the call, or in a container whose filter is.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(directory, name, flags),
        opened => opened.map_err(io::Error::from),
    }
}

/// The offset of the next byte of data at or after `offset`; `None` if there is none.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    next(file, SeekFrom::Data(offset))
}

/// The offset of the next hole at or after `offset`, the end of the file being one.
pub(crate) fn next_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    next(file, SeekFrom::Hole(offset))
}

fn next(file: &File, place: SeekFrom) -> io::Result<Option<u64>> {
    match retry_on_intr(|| seek(file, place)) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(or_unsupported(errno)),
    }
}

/// Makes `range` read as zeros and gives its space back.
pub(crate) fn punch(file: &File, range: HostRange) -> io::Result<()> {
    allocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        range,
    )
}

/// Makes `range` read as zeros and its space its own.
pub(crate) fn zero_allocated(file: &File, range: HostRange) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match allocate(file, flags, range) {
        // tmpfs can do both halves, but not the whole.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            punch(file, range)?;
            allocate(file, FallocateFlags::KEEP_SIZE, range)
        }
        done => done,
    }
}

fn allocate(file: &File, flags: FallocateFlags, range: HostRange) -> io::Result<()> {
    retry_on_intr(|| fallocate(file, flags, range.offset, range.len)).map_err(or_unsupported)
}

fn or_unsupported(errno: Errno) -> io::Error {
    match errno {
        // The last two come from file systems and devices that have never heard of the call.
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV => {
            io::ErrorKind::Unsupported.into()
        }
        errno => errno.into(),
    }
}

/// Gives the file `from` the name `to`, which nothing has. Where a file system cannot see to that, whatever
/// has taken it since the caller looked is replaced.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(from, to),
        done => done.map_err(io::Error::from),
    }
}

/// Who may do what with a file besides owner, group and others: an extended attribute.
const ACL: &str = "system.posix_acl_access";
/// The label that SELinux goes by: another one.
const LABEL: &str = "security.selinux";
/// Longest one, in bytes: the kernel's bound for any such attribute.
const ATTRIBUTE_LEN: usize = 64 << 10;

/// The access control list of `file`; `None` if it has none.
pub(crate) fn acl(file: &File) -> io::Result<Option<Vec<u8>>> {
    attribute(file, ACL)
}

/// By which SELinux tells who may do what with `file`; `None` if it has none.
pub(crate) fn label(file: &File) -> io::Result<Option<Vec<u8>>> {
    attribute(file, LABEL)
}

fn attribute(file: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ATTRIBUTE_LEN];
    match fgetxattr(file, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives `file` this label.
pub(crate) fn set_label(file: &File, label: &[u8]) -> io::Result<()> {
    Ok(fsetxattr(file, LABEL, label, XattrFlags::empty())?)
}

/// Gives `file` the access control list `list`, and the mode that belongs to it, or none.
pub(crate) fn set_acl(file: &File, list: Option<&[u8]>) -> io::Result<()> {
    let done = match list {
        Some(list) => fsetxattr(file, ACL, list, XattrFlags::empty()),
        None => fremovexattr(file, ACL),
    };
    match done {
        Err(Errno::NODATA | Errno::OPNOTSUPP) if list.is_none() => Ok(()),
        done => done.map_err(io::Error::from),
    }
}

/// Locks one byte of `file` for as long as it is open, together with whoever wants to.
pub(crate) fn lock_shared(file: &File, byte: u64) -> io::Result<()> {
    open_lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte..byte + 1).map(drop)
}

/// Whether a lock was refused because somebody else has one. [fcntl(2)]
pub(crate) fn is_taken(error: &io::Error) -> bool {
    [Errno::AGAIN, Errno::ACCESS].contains(&Errno::from_io_error(error).unwrap_or(Errno::NOSYS))
}

/// Gives up all locks on `bytes` of `file`.
pub(crate) fn unlock(file: &File, bytes: Range<u64>) -> io::Result<()> {
    open_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK, bytes).map(drop)
}

/// Whether somebody else has locked one byte of `file`.
pub(crate) fn is_locked(file: &File, byte: u64) -> io::Result<bool> {
    let found = open_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte..byte + 1)?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

/// Locks that belong to what is open, not to the process. `rustix` has those of the process only.
fn open_lock(file: &File, command: i32, kind: i32, bytes: Range<u64>) -> io::Result<libc::flock> {
    #[allow(unsafe_code, reason = "no crate that is here wraps this call")]
    // SAFETY: All bytes zero are numbers, of which the structure is made.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = bytes.start as libc::off_t;
    lock.l_len = (bytes.end - bytes.start) as libc::off_t;
    #[allow(unsafe_code, reason = "no crate that is here wraps this call")]
    // SAFETY: The descriptor is open as long as `file` lives, and the call writes to `lock` alone.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// What the system says of the block device of that number.
fn node(device: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", major(device), minor(device)).into()
}

/// Whether the block device of that number takes no writes, as far as is known.
pub(crate) fn is_read_only(device: u64) -> bool {
    fs::read(node(device).join("ro")).is_ok_and(|text| text.trim_ascii_end() == b"1")
}

/// What the block device of that number stands on, one step down: the file behind a loop device, the
/// disk of a partition, the parts of a mapped device.
pub(crate) fn below_device(device: u64) -> Vec<StorageId> {
    let node = node(device);
    let mut below = Vec::new();
    if let Ok(path) = fs::read(node.join("loop/backing_file")) {
        let path = Path::new(OsStr::from_bytes(path.trim_ascii_end()));
        let file = fs::metadata(path).ok();
        below.extend(file.and_then(|file| Some(Nature::of(&file).ok()?.id(&file))));
    }
    let mut devices = Vec::new();
    if node.join("partition").exists() {
        // The node is a link to a directory inside that of the disk.
        devices.push(node.join("../dev"));
    }
    let parts = fs::read_dir(node.join("slaves")).into_iter().flatten();
    devices.extend(parts.flatten().map(|part| part.path().join("dev")));
    let number = |path| {
        let text = fs::read_to_string(path).ok()?;
        let (major, minor) = text.trim_end().split_once(':')?;
        let number = makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(StorageId::Device(number))
    };
    below.extend(devices.into_iter().filter_map(number));
    below
}

/// Has the disk begin to store what was written so far; returns before it is done.
///
/// # Errors
/// What was written may be lost, and perhaps nobody is told again. That it is not begun is no error: the flush
/// takes longer then.
pub(crate) fn start_writeback(file: &File) -> io::Result<()> {
    #[allow(unsafe_code, reason = "no crate that is here wraps this call")]
    // SAFETY: The call takes numbers alone, and the descriptor is open as long as `file` lives.
    let done =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    match code {
        Some(
            Errno::NOSYS
            | Errno::INVAL
            | Errno::SPIPE
            | Errno::OPNOTSUPP
            | Errno::PERM
            | Errno::INTR,
        ) => Ok(()),
        _ => Err(error),
    }
}

/// Closes `file`, which tells what became of its bytes where the file system knows: one of a network sends
/// them then.
pub(crate) fn close(file: File) -> io::Result<()> {
    #[allow(unsafe_code, reason = "no crate that is here tells what closing gives")]
    // SAFETY: Nobody else has the descriptor: it was `file`'s, which has given it up.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // It is closed.
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}

/// Has the system forget what it keeps in memory of `range`, as far as that is stored; an empty range
/// is all of the file.
pub(crate) fn drop_cached(file: &File, range: HostRange) {
    // Advice, too.
    let _ = fadvise(
        file,
        range.offset,
        NonZeroU64::new(range.len),
        Advice::DontNeed,
    );
}

/// Has what is done through `file` go past the system's cache or not; gives the same file, opened once
/// more, by which all goes through it.
pub(crate) fn pass_cache(file: &File, pass: bool) -> io::Result<File> {
    let flags = fcntl_getfl(file)?;
    let cached = OpenOptions::new()
        .read(true)
        .write(flags.contains(OFlags::RDWR))
        .custom_flags(OPEN_AT_ONCE)
        .open(name_of(file))?;
    // Little is read by it; what the system would read ahead is going to be read past the cache.
    let _ = fadvise(&cached, 0, None, Advice::Random);
    let flags = match pass {
        true => flags | OFlags::DIRECT,
        false => flags - OFlags::DIRECT,
    };
    fcntl_setfl(file, flags)?;
    Ok(cached)
}

/// Whether what is done through `file` goes past the system's cache.
pub(crate) fn passes_cache(file: &File) -> bool {
    fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
}

/// Lets `target` own the blocks at `from` of `source` too, as those at `to`.
pub(crate) fn share(source: &File, from: HostRange, target: &File, to: u64) -> io::Result<()> {
    let Some(len) = NonZeroU64::new(from.len) else {
        return Ok(());
    };
    ReflinkBlockBuilder::new(source, target, len)
        .from_offset(from.offset)
        .to_offset(to)
        .reflink_block()
}

/// Copies `from` of `source` to `to` in `target` without a buffer of this process.
pub(crate) fn copy(source: &File, from: HostRange, target: &File, to: u64) -> io::Result<()> {
    let (mut at, mut to) = (from.offset, to);
    while at < from.end() {
        // More than fits is more than the kernel takes at once.
        let len = usize::try_from(from.end() - at).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut at), target, Some(&mut to), len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether there is no rule against [copying](copy) from `source` to `target`.
pub(crate) fn may_copy(source: &File, target: &File) -> bool {
    copy_file_range(source, Some(&mut 0), target, Some(&mut 0), 0).is_ok()
}

/// Whether a server keeps the bytes of `file`.
pub(crate) fn is_remote(file: &File) -> bool {
    // [statfs(2)] NFS, SMB 1 and later ones, Ceph.
    const REMOTE: [u32; 4] = [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400];
    // The kernel's numbers have 32 bits, in whatever type they come.
    fstatfs(file).is_ok_and(|found| REMOTE.contains(&(found.f_type as u32)))
}

/// Processor time that this thread has taken.
pub(crate) fn thread_time() -> Option<Duration> {
    clock_gettime(ClockId::ThreadCPUTime).try_into().ok()
}

/// Whether the link `path` is one of those that the kernel makes for what a process has open.
pub(crate) fn is_of_process(path: &Path) -> bool {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    statfs(directory.unwrap_or(Path::new("."))).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)
}

/// Whether the process may do with the files of `user` what they may.
pub(crate) fn owns_all_of(user: u32) -> bool {
    // Who cannot know tries.
    geteuid().as_raw() == user
        || capabilities(None).map_or(true, |its| its.effective.contains(CapabilitySet::FOWNER))
}

/// A new file in `directory` that has no name, so that nothing is left of it if this process dies.
pub(crate) fn create_unnamed(directory: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(mode)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(directory)
        .map_err(|error| match Errno::from_io_error(&error) {
            // A kernel that does not know the flag takes it for an attempt to write a directory.
            Some(Errno::ISDIR) => io::ErrorKind::Unsupported.into(),
            Some(errno) => or_unsupported(errno),
            None => error,
        })?;
    // Without this the file could never be named; better to learn it before the work is done.
    match std::fs::metadata(name_of(&file)) {
        Ok(_) => Ok(file),
        Err(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Gives an unnamed file its first name, which nothing else may have.
pub(crate) fn link_unnamed(file: &File, path: &Path) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_FOLLOW;
    linkat(CWD, name_of(file), CWD, path, flags).map_err(io::Error::from)
}

/// The name that the kernel knows an open file by.
fn name_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
