//! Files and block devices.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use goldsmith_block::{
    Error, HostRange, Result, Span, Storage, StorageId, StorageMut, Transfer, Zeroing, align_down,
    align_up,
};

use crate::beneath;
use crate::cache::Cache;
use crate::device::Nature;
use crate::direct::Direct;
use crate::error::{StorageError as E, past_end};
use crate::lock::Lockable;
use crate::sys;

/// Zeroing without writing works in whole blocks of this size; a block that is cut is written.
const BLOCK: u64 = 4096;
/// What is transferred to see which ways work, in bytes: whole blocks of any file system.
const TRIAL: u64 = 1 << 16;
/// The most that is written before the disk begins to store it, in bytes: enough to be stored in
/// long runs.
const UNSENT: u64 = 16 << 20;
/// Longest single write into the system's cache, in bytes: file systems keep a file there in pieces as
/// long as its writes, and free memory of that length is the last that a machine has at hand. [ours]
const PIECE: usize = 128 << 10;
/// Longest single write of zeros, in bytes.
const ZEROS: u64 = 1 << 20;

/// A regular file or block device.
///
/// Its length is that at the time of opening, or what this object has made of it since: bytes that
/// another program adds are not seen, and bytes that it takes away are an error when they are read.
#[derive(Debug)]
pub struct FileStorage {
    name: String,
    id: StorageId,
    nature: Nature,
    file: Lockable,
    /// In bytes.
    len: AtomicU64,
    blank: bool,
    cache: Cache,
    /// How to get past the system's cache, where that is wanted and possible.
    direct: Option<Direct>,
    /// Held while a file is written. The kernel lets one write at a time into a file whoever asks,
    /// and those that wait in it do so busily: two threads take no less time than one and nearly
    /// twice the CPU. Here they sleep.
    writing: Mutex<()>,
    /// Bytes written since the disk last began to store.
    unsent: AtomicU64,
    /// What failed where nobody could be told, for the next flush to tell.
    untold: Mutex<Option<Error>>,
}

impl FileStorage {
    /// Opens the file or block device at `path` for reading; every write to it fails.
    ///
    /// # Errors
    /// `Io` if it cannot be opened, `Usage` if it is neither file nor block device.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::existing(path.as_ref(), false)
    }

    /// Opens the existing file or block device at `path` for reading and writing in place.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Io` also for a device that is read-only, mounted or otherwise in use.
    pub fn edit(path: impl AsRef<Path>) -> Result<Self> {
        Self::existing(path.as_ref(), true)
    }

    fn existing(path: &Path, write: bool) -> Result<Self> {
        let name = path.to_string_lossy().into_owned();
        let open = || {
            let cannot_open = |source| E::Open { source };
            // Looking first, because opening alone can do something to a tape or wait for a pipe.
            let nature = Nature::of(&std::fs::metadata(path).map_err(cannot_open)?)?;
            let mut flags = sys::OPEN_AT_ONCE;
            if write && nature == Nature::Device {
                flags |= sys::OPEN_ALONE;
            }
            let file = OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags)
                .open(path)
                .map_err(cannot_open)?;
            // The name may mean something else by now; what is open does not change.
            let metadata = file.metadata().map_err(cannot_open)?;
            // The kernel lets it be opened to be written to all the same.
            if write && nature == Nature::Device && sys::is_read_only(metadata.rdev()) {
                return Err(E::ReadOnly);
            }
            Ok((file, metadata))
        };
        Self::opened(open(), name)
    }

    /// Opens the regular file `name`, a path from `directory` on that a stranger may have chosen, for
    /// reading.
    ///
    /// Never waits, follows no symbolic link beneath `directory`, and leaves alone what is no regular
    /// file, whatever becomes of the name meanwhile. The way to `directory` itself is the caller's.
    ///
    /// # Errors
    /// `Denied` if the path leads out of the directory or through a symbolic link, or to what is no
    /// regular file; `Io` if it cannot be opened.
    pub fn open_beneath(directory: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<Self> {
        Self::beneath(directory.as_ref(), name.as_ref(), false)
    }

    /// As [`open_beneath`](Self::open_beneath), for reading and writing in place.
    ///
    /// # Errors
    /// As [`open_beneath`](Self::open_beneath).
    pub fn edit_beneath(directory: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<Self> {
        Self::beneath(directory.as_ref(), name.as_ref(), true)
    }

    fn beneath(directory: &Path, name: &Path, write: bool) -> Result<Self> {
        let path = directory.join(name).to_string_lossy().into_owned();
        Self::opened(beneath::open(directory, name, write), path)
    }

    /// What was opened, to be known as `name`.
    fn opened(opened: Result<(File, Metadata), E>, name: String) -> Result<Self> {
        let facts = opened.and_then(|(file, metadata)| {
            let nature = Nature::of(&metadata)?;
            let len = nature.len(&file, &metadata);
            let len = len.map_err(|source| E::Open { source })?;
            Ok((file, nature, nature.id(&metadata), len))
        });
        let (file, nature, id, len) = facts.map_err(|error| named(error, &name))?;
        Ok(Self {
            name,
            id,
            nature,
            file: Lockable(file),
            len: AtomicU64::new(len),
            blank: false,
            cache: Cache::default(),
            direct: None,
            writing: Mutex::new(()),
            unsent: AtomicU64::new(0),
            untold: Mutex::new(None),
        })
    }

    /// An empty file without a name, which is gone with this process at the latest, in the
    /// [directory](scratch_directory) for such files, which messages name; `name` is what it is for.
    ///
    /// # Errors
    /// `Io` if it cannot be created.
    pub fn scratch(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let directory = scratch_directory();
        let file = tempfile::tempfile_in(&directory).map_err(|source| {
            let error = named(E::Create { source }, &directory.to_string_lossy());
            error.in_file(&*name)
        })?;
        let name = format!("a temporary file in {}", directory.display());
        Ok(Self::created(file, name)?.cached(Cache::Unsafe))
    }

    /// The same file, going through the system's cache in another way. Default: writeback.
    #[must_use]
    pub fn cached(mut self, cache: Cache) -> Self {
        self.cache = cache;
        if self.direct.take().is_some() {
            // It is tried anew below.
            let _ = sys::pass_cache(&self.file, false);
        }
        if cache.is_passed() {
            self.direct = Direct::of(&self.file);
        }
        self
    }

    /// A file that this program has created, now or when it ran before, and that will be known as
    /// `name`.
    pub(crate) fn created(file: File, name: String) -> Result<Self> {
        let metadata = file.metadata().map_err(|source| {
            let error = E::Open { source };
            named(error, &name)
        })?;
        Ok(Self {
            name,
            id: Nature::File.id(&metadata),
            nature: Nature::File,
            file: Lockable(file),
            len: AtomicU64::new(metadata.len()),
            blank: true,
            cache: Cache::default(),
            direct: None,
            writing: Mutex::new(()),
            unsent: AtomicU64::new(0),
            untold: Mutex::new(None),
        })
    }

    pub(crate) fn handle(&self) -> &File {
        &self.file
    }

    /// Whether what is written shall be there after a power cut.
    pub(crate) fn is_lasting(&self) -> bool {
        self.cache.is_lasting()
    }

    fn error(&self, error: E) -> goldsmith_block::Error {
        named(error, &self.name)
    }

    /// The error for bytes that are not there, whether or not they ever were.
    fn ended(&self, offset: u64, len: u64) -> goldsmith_block::Error {
        let now = match self.nature {
            Nature::File => self.file.metadata().map_or(0, |metadata| metadata.len()),
            Nature::Device => u64::MAX,
        };
        past_end(&self.name, offset, len, now.min(self.len()))
    }

    /// Zeros `range` without writing it, if that is possible.
    fn zero_blocks(&self, range: HostRange, zeroing: Zeroing) -> io::Result<bool> {
        type Way = fn(&File, HostRange) -> io::Result<()>;
        let ways: &[Way] = match zeroing {
            Zeroing::Punch => &[sys::punch, sys::zero_allocated],
            Zeroing::Keep => &[sys::zero_allocated],
        };
        for way in ways {
            match way(&self.file, range) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                done => return done.map(|()| true),
            }
        }
        Ok(false)
    }

    /// The right to write, where one must not write while another does.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        (self.nature == Nature::File)
            .then(|| self.writing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the file end at `len`. A new one that does already is left alone: ext4 takes a file that is
    /// cut to nothing for one that is written anew, and whoever closes it waits until the disk has
    /// begun to store it.
    fn cut(&self, len: u64) -> io::Result<()> {
        match self.blank && self.file.metadata()?.len() == len {
            true => Ok(()),
            false => self.file.set_len(len),
        }
    }

    /// Whether the kernel copies from `source`, as far as it says so without doing it.
    fn may_copy(&self, source: &dyn Storage) -> bool {
        let source = source.file();
        source.is_some_and(|source| {
            !self.passes_cache_with(source) && sys::may_copy(source, &self.file)
        })
    }

    /// Whether this or `source` is not to go through the cache, as what the kernel copies does.
    fn passes_cache_with(&self, source: &File) -> bool {
        self.direct.is_some() || sys::passes_cache(source)
    }

    fn untold(&self) -> MutexGuard<'_, Option<Error>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `len` bytes that were written up to `end`. Left alone the system keeps gigabytes, and the flush at the
    /// end waits for a disk that could have begun with the first.
    fn wrote(&self, end: u64, len: u64) {
        self.len.fetch_max(end, Ordering::Relaxed);
        if self.unsent.fetch_add(len, Ordering::Relaxed) + len >= UNSENT {
            self.unsent.store(0, Ordering::Relaxed);
            if self.cache.is_lasting()
                && let Err(source) = sys::start_writeback(&self.file)
            {
                *self.untold() = Some(self.error(E::Flush { source }));
            }
            // What the disk has stored by now; the rest goes another time.
            self.drop_cached(HostRange::new(0, 0));
        }
    }

    /// Stores what was just changed, where that is not left for later.
    fn changed(&self) -> Result<()> {
        match self.cache.stores_at_once() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes `data` at `offset`, past the cache as far as that is possible.
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            let _turn = self.turn();
            for (index, piece) in data.chunks(PIECE).enumerate() {
                let at = offset.saturating_add((index * PIECE) as u64);
                self.file.write_all_at(piece, at)?;
            }
            return Ok(());
        };
        let done = direct.write_blocks(&self.file, data, offset)?;
        let _turn = self.turn();
        let cached = direct.cached();
        cached.write_all_at(&data[..done.start], offset)?;
        cached.write_all_at(&data[done.end..], offset.saturating_add(done.end as u64))
    }

    /// Fills `buf` from `offset` on, past the cache as far as that is possible.
    fn get(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = match &self.direct {
            None => &*self.file,
            Some(direct) if direct.read(&self.file, buf, offset)? => return Ok(()),
            Some(direct) => direct.cached(),
        };
        file.read_exact_at(buf, offset)?;
        if !buf.is_empty() {
            self.drop_cached(HostRange::new(offset, buf.len() as u64));
        }
        Ok(())
    }

    /// Drops `range` of the file from memory, where it shall not stay; an empty one is all of it.
    fn drop_cached(&self, range: HostRange) {
        if self.cache.is_passed() {
            sys::drop_cached(&self.file, range);
        }
    }

    fn write_zeros(&self, offset: u64, end: u64) -> Result<()> {
        // At most ZEROS, so this length and those below fit.
        let zeros = vec![0; ZEROS.min(end - offset) as usize];
        let mut at = offset;
        while at < end {
            let len = ZEROS.min(end - at);
            self.write_at(at, &zeros[..len as usize])?;
            at += len;
        }
        Ok(())
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // What the kernel copied out of it was never read here.
        self.drop_cached(HostRange::new(0, 0));
    }
}

/// Where files without a name are made that may get large: the directory that `TMPDIR` names, or else
/// `/var/tmp`.
pub fn scratch_directory() -> PathBuf {
    // [qemu] The same choice. [POSIX] One without a word in it is none.
    let named = std::env::var_os("TMPDIR").filter(|name| !name.is_empty());
    named.map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

fn named(error: E, name: &str) -> goldsmith_block::Error {
    goldsmith_block::Error::from(error).in_file(name)
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn file(&self) -> Option<&File> {
        (self.nature == Nature::File).then_some(&self.file)
    }

    fn lockable(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(self.ended(offset, len));
        }
        self.get(offset, buf).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.ended(offset, len),
            _ => self.error(E::Read {
                offset,
                len,
                source,
            }),
        })
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        let until = |end: u64, hole| Span {
            len: end.min(limit) - offset,
            hole,
        };
        Ok(match sys::next_data(&self.file, offset) {
            Ok(Some(data)) if data > offset => until(data, true),
            Ok(Some(_)) => match sys::next_hole(&self.file, offset) {
                Ok(Some(hole)) if hole > offset => until(hole, false),
                // Changed between the calls, or nobody knows: data is never wrong.
                Ok(_) | Err(_) => until(limit, false),
            },
            // Nothing behind `offset` but a hole, or nothing at all.
            Ok(None) if self.file.metadata().is_ok_and(|now| now.len() >= limit) => {
                until(limit, true)
            }
            Ok(None) => return Err(self.ended(offset, limit - offset)),
            // Who reads it is told what is wrong, and where. [qemu]
            Err(_) => until(limit, false),
        })
    }
}

impl StorageMut for FileStorage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        // The system refuses an end that does not fit in 63 bits.
        let end = offset.saturating_add(len);
        if let Some(device) = self.fixed_len()
            && end > device
        {
            return Err(self.error(E::PastDevice {
                offset,
                len,
                device,
            }));
        }
        self.put(offset, data).map_err(|source| {
            self.error(E::Write {
                offset,
                len,
                source,
            })
        })?;
        if !data.is_empty() {
            self.wrote(end, len);
        }
        self.changed()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if let Some(device) = self.fixed_len() {
            if len > device {
                return Err(self.error(E::DeviceTooSmall { device, need: len }));
            }
            return Ok(());
        }
        self.cut(len)
            .map_err(|source| self.error(E::SetLen { len, source }))?;
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        if range.end() > self.len() {
            return Err(past_end(&self.name, range.offset, range.len, self.len()));
        }
        // Devices zero whole blocks only, and it costs files nothing to be treated alike.
        let blocks = align_up(range.offset, BLOCK)
            .map(|start| (start, align_down(range.end(), BLOCK)))
            .filter(|(start, end)| start < end);
        let Some((start, end)) = blocks else {
            return self.write_zeros(range.offset, range.end());
        };
        let inner = HostRange::new(start, end - start);
        let done = self.zero_blocks(inner, zeroing).map_err(|source| {
            self.error(E::Zero {
                range: inner,
                source,
            })
        })?;
        if !done {
            return self.write_zeros(range.offset, range.end());
        }
        self.write_zeros(range.offset, start)?;
        self.write_zeros(end, range.end())?;
        self.changed()
    }

    fn best_transfer(&self, source: &dyn Storage) -> Option<Transfer> {
        // An old file or a device is there to be written: who shares leaves it other blocks.
        if !self.blank || source.is_empty() {
            return None;
        }
        let len = self.len();
        // Behind the end, where nothing stands and nothing is left when the end is put back.
        let end = align_up(len, TRIAL)?;
        let from = HostRange::new(0, TRIAL.min(source.len()));
        let copy = match source.file() {
            Some(file) if sys::is_remote(file) && sys::is_remote(&self.file) => Transfer::Remote,
            _ => Transfer::Copy,
        };
        let mut ways = [Transfer::Share, copy].into_iter();
        let way = ways.find(|way| match way {
            // Any file system copies if the kernel lets it: there is nothing to try.
            Transfer::Copy => self.may_copy(source),
            Transfer::Share | Transfer::Remote => self.transfer(source, from, end, *way),
        });
        if let Err(source) = self.cut(len) {
            // What was tried still stands there, and no way leads back.
            *self.untold() = Some(self.error(E::SetLen { len, source }));
            return None;
        }
        self.len.store(len, Ordering::Relaxed);
        way
    }

    fn transfer(&self, source: &dyn Storage, from: HostRange, to: u64, transfer: Transfer) -> bool {
        let (Some(source), Nature::File) = (source.file(), self.nature) else {
            return false;
        };
        if transfer == Transfer::Copy && self.passes_cache_with(source) {
            return false;
        }
        let turn = self.turn();
        let (done, written) = match transfer {
            // What is shared stands on the disk already.
            Transfer::Share => (sys::share(source, from, &self.file, to), 0),
            Transfer::Remote | Transfer::Copy => {
                (sys::copy(source, from, &self.file, to), from.len)
            }
        };
        drop(turn);
        if done.is_ok() {
            self.wrote(to.saturating_add(from.len), written);
        }
        if done.is_err() {
            return false;
        }
        match self.changed() {
            Ok(()) => true,
            // It may be the write of another thread that was lost, and the system says so only once.
            Err(error) => {
                *self.untold() = Some(error);
                false
            }
        }
    }

    fn flush(&self) -> Result<()> {
        if let Some(error) = self.untold().take() {
            return Err(error);
        }
        if !self.cache.is_lasting() {
            return Ok(());
        }
        self.file
            .sync_data()
            .map_err(|source| self.error(E::Flush { source }))?;
        self.drop_cached(HostRange::new(0, 0));
        Ok(())
    }

    fn fixed_len(&self) -> Option<u64> {
        (self.nature == Nature::Device).then(|| self.len())
    }

    fn is_blank(&self) -> bool {
        self.blank
    }
}
