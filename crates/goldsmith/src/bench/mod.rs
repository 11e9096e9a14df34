//! How fast an image takes requests like a guest's.

mod crew;
mod place;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use goldsmith_block::{Error, GuestRange, Result, Storage};
use goldsmith_storage::{Cache, is_direct};

use crate::edit::{Open, Subject};
use crate::work::shown_by;
use crate::{Cancel, Opener};
use crew::{Crew, Way};
use place::Places;

/// A benchmark, to be described and then [`run`](Self::run).
///
/// Requests of one length step over the disk, and begin at its start again when they come to its
/// end; so many of them are under way at once as there are threads.
///
/// ```
/// use goldsmith::{Bench, Create};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// let bench = Bench::new(&disk).format("qcow2").count(100).depth(4);
/// println!("{:?}", bench.run()?.time);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bench<'a> {
    path: PathBuf,
    opener: Opener,
    format: Option<String>,
    load: Load,
    direct: bool,
    on_start: Option<&'a (dyn Fn() + Sync)>,
    cancel: Option<&'a Cancel>,
}

/// What a benchmark found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Benched {
    /// From the first request to the end of the last, and until all that was written is part of the image
    /// and stored.
    pub time: Duration,
    /// What the user should know of the image that was written to.
    pub warnings: Vec<String>,
}

/// The requests.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) count: u64,
    pub(crate) depth: usize,
    /// Bytes of a request.
    pub(crate) len: usize,
    /// Bytes from the start of one to that of the next.
    pub(crate) step: Option<NonZeroU64>,
    pub(crate) offset: u64,
    pub(crate) writing: Option<Writing>,
}

/// How requests write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writing {
    /// The byte that is written everywhere.
    pub pattern: u8,
    /// After how many requests what was written is stored safely, too; it is in the end in any case.
    pub flush_interval: Option<NonZeroU64>,
    /// Whether other requests go on meanwhile, where the image has no tables that must stand still.
    pub no_drain: bool,
    /// Whether each request has to be stored safely before it is done.
    pub sync_each: bool,
}

shown_by!(Bench: path, opener, format, load, direct);

impl<'a> Bench<'a> {
    /// Most requests that can be under way at once.
    pub const DEPTH: usize = 1024;

    /// 75000 reads of 4096 bytes of the image at `path`, 64 of them at once.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            opener: Opener::new(),
            format: None,
            load: Load {
                count: 75_000,
                depth: 64,
                len: 4096,
                step: None,
                offset: 0,
                writing: None,
            },
            direct: false,
            on_start: None,
            cancel: None,
        }
    }

    /// Sets how the image is opened: its limits, its secrets, and what it may name.
    #[must_use]
    pub fn opener(mut self, opener: Opener) -> Self {
        self.opener = opener;
        self
    }

    /// States the image's format. Do so whenever you know it.
    #[must_use]
    pub fn format(mut self, name: impl Into<String>) -> Self {
        self.format = Some(name.into());
        self
    }

    /// Sets how many requests there are.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.load.count = count;
        self
    }

    /// Sets how many requests are under way at once: 1 to [`DEPTH`](Self::DEPTH).
    #[must_use]
    pub fn depth(mut self, depth: usize) -> Self {
        self.load.depth = depth;
        self
    }

    /// Sets the length of a request, in bytes.
    #[must_use]
    pub fn request_len(mut self, len: usize) -> Self {
        self.load.len = len;
        self
    }

    /// Sets the bytes from the start of one request to that of the next. Default: its length.
    #[must_use]
    pub fn step(mut self, step: NonZeroU64) -> Self {
        self.load.step = Some(step);
        self
    }

    /// Sets where on the disk the first request begins, in bytes.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.load.offset = offset;
        self
    }

    /// Makes the requests write, over what the disk holds. Default: they read.
    #[must_use]
    pub fn write(mut self, writing: Writing) -> Self {
        self.load.writing = Some(writing);
        self
    }

    /// Sets whether requests go past the system's cache. Default: no.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Sets what is called when the image is open, right before the first request.
    #[must_use]
    pub fn on_start(mut self, call: &'a (dyn Fn() + Sync)) -> Self {
        self.on_start = Some(call);
        self
    }

    /// Sets the flag that stops it before the next request. What was written so far is lost then or
    /// not, request by request, where the image has tables; those stay sound.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Does it.
    ///
    /// A new place in an image with tables is found by its readers from the next flush on, which is
    /// also when requests come to the end of the disk, and at the end of all.
    ///
    /// # Errors
    /// `Usage` if a request goes past the end of the disk, or writes less than whole sectors of an
    /// encrypted one; `Unsupported` if a file's cache cannot be [passed](Self::direct); `Cancelled`;
    /// those of opening the image, of reading, and of [`Editor`](goldsmith_block::Editor).
    pub fn run(&self) -> Result<Benched> {
        let Load { depth, len, .. } = self.load;
        if !(1..=Self::DEPTH).contains(&depth) || len == 0 {
            let most = Self::DEPTH;
            return Err(Error::usage(format!(
                "{depth} requests of {len} bytes at once; there must be 1 to {most}, of a byte at least"
            )));
        }
        if self.load.writing.is_none() {
            let (time, warnings) = (self.read()?, Vec::new());
            return Ok(Benched { time, warnings });
        }
        let mut open = self.subject().open()?;
        let warnings = std::mem::take(&mut open.warnings);
        let time = self.overwrite(open)?;
        Ok(Benched { time, warnings })
    }

    fn read(&self) -> Result<Duration> {
        let opener = self.opener.stopped_by(self.cancel).cache(self.cache());
        let chain = opener.open(&self.path, self.format.as_deref())?;
        for layer in chain.layers() {
            self.must_pass_cache(&**layer.data_storage())?;
        }
        self.time(chain.virtual_size(), Way::Read(&chain))
    }

    fn subject(&self) -> Subject {
        Subject {
            path: self.path.clone(),
            opener: self.opener.clone(),
            format: self.format.clone(),
            cache: self.cache(),
            dry_run: false,
            cancel: None,
        }
    }

    fn overwrite(&self, mut open: Open) -> Result<Duration> {
        let editor = open.editor()?;
        let layer = editor.layer();
        let size = layer.info().virtual_size;
        let storages = open.storages();
        for storage in &storages {
            self.must_pass_cache(&**storage)?;
        }
        // Without a sink: one that is not committed leaves its mark in the bitmaps.
        if layer.is_flat() {
            let sink = editor.into_sink(size)?;
            let way = Way::InPlace {
                sink: &*sink,
                storages,
            };
            let time = self.time(size, way)?;
            let start = Instant::now();
            sink.commit()?;
            return Ok(time + start.elapsed());
        }
        drop(editor);
        if layer.info().encrypted {
            self.load.must_be_sectors()?;
        }
        let way = Way::Placed {
            places: Box::new(Mutex::new(Places::new(open)?)),
            storages,
        };
        self.time(size, way)
    }

    fn cache(&self) -> Cache {
        match self.direct {
            true => Cache::None,
            false => Cache::default(),
        }
    }

    /// Fails if requests to `storage` shall not go through the cache and do.
    fn must_pass_cache(&self, storage: &dyn Storage) -> Result<()> {
        if !self.direct || is_direct(storage) {
            return Ok(());
        }
        // [qemu] The same words.
        let text = "filesystem does not support O_DIRECT";
        Err(Error::unsupported(text).in_file(storage.name()))
    }

    fn time(&self, size: u64, way: Way<'_>) -> Result<Duration> {
        self.opener.all_open(&[])?;
        let crew = Crew::new(&self.load, size, way, self.cancel)?;
        if let Some(call) = self.on_start {
            call();
        }
        crew.run()
    }
}

impl Load {
    fn step(&self) -> u64 {
        self.step.map_or(self.len as u64, NonZeroU64::get)
    }

    /// The bytes of request `index` on a disk of `size` bytes. [qemu] All but the first begin anew at
    /// the end of the disk.
    pub(crate) fn request(&self, index: u64, size: u64) -> Result<GuestRange> {
        let mut start = u128::from(self.offset) + u128::from(index) * u128::from(self.step());
        if index > 0 {
            start %= u128::from(size.max(1));
        }
        let end = start + self.len as u128;
        if end > u128::from(size) {
            return Err(Error::usage(format!(
                "request {index}, of {} bytes from {start} on, goes past the end of the disk ({size} bytes)",
                self.len
            )));
        }
        // Both are at most the size.
        Ok(GuestRange::new(start as u64, end as u64))
    }

    /// How many requests from `index` on ascend, before they begin anew.
    pub(crate) fn ascending(&self, index: u64, size: u64) -> u64 {
        match self.request(index, size) {
            Ok(first) => (size - first.start).div_ceil(self.step()),
            // An error belongs to the request itself.
            Err(_) => 1,
        }
    }

    /// How many requests from `index` on are made before the next flush.
    pub(crate) fn to_flush(&self, index: u64) -> u64 {
        let interval = self.writing.and_then(|writing| writing.flush_interval);
        interval.map_or(u64::MAX, |interval| interval.get() - index % interval)
    }

    fn must_be_sectors(&self) -> Result<()> {
        let sector = goldsmith_block::SECTOR;
        let numbers = [self.len as u64, self.step(), self.offset];
        if numbers.iter().all(|number| number.is_multiple_of(sector)) {
            return Ok(());
        }
        let text = "an encrypted disk is written in whole sectors of 512 bytes";
        Err(Error::usage(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(count: u64, len: usize, step: u64, offset: u64) -> Load {
        Load {
            count,
            depth: 1,
            len,
            step: NonZeroU64::new(step),
            offset,
            writing: None,
        }
    }

    #[test]
    fn requests_step_over_the_disk_and_begin_anew() {
        let load = load(10, 10, 30, 5);
        let starts: Vec<_> = (0..6).map(|index| load.request(index, 110)).collect();
        let starts: Vec<_> = starts.into_iter().map(|it| it.unwrap().start).collect();
        assert_eq!(starts, [5, 35, 65, 95, 15, 45]);
        assert_eq!(load.ascending(0, 110), 4);
        assert_eq!(load.ascending(4, 110), 4);
        assert!(load.request(3, 100).is_err());
    }
}
