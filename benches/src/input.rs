//! The images that are converted, made from what the machine has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::machine::tool;
use crate::measure::Step;
use crate::peer::Tools;
use crate::place::Room;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Bytes of data in one place of a scattered disk.
const CHUNK: u64 = MIB;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Size of the disk with files, in bytes.
    pub(crate) disk: u64,
    /// Bytes of files on it.
    pub(crate) files: u64,
    /// Places with data on a scattered disk.
    pub(crate) chunks: u64,
    /// Size of the disk of zeros, in bytes.
    pub(crate) zeros: u64,
    /// Clusters of the fragmented image.
    pub(crate) fragments: u64,
}

impl Scale {
    /// What a claim is made with.
    pub(crate) const FULL: Self = Self {
        disk: 10 * GIB,
        files: 2 * GIB,
        chunks: 1024,
        zeros: 2 * GIB,
        fragments: 32 << 10,
    };
    /// Enough to see that everything works, in seconds.
    pub(crate) const SMALL: Self = Self {
        disk: 256 * MIB,
        files: 32 * MIB,
        chunks: 8,
        zeros: 32 * MIB,
        fragments: 64,
    };

    /// Size of the disk that holds `content`, in bytes.
    pub(crate) fn virtual_size(&self, content: Content) -> u64 {
        match content {
            Content::Files => self.disk,
            Content::Scattered64T => 64 * TIB,
            Content::Scattered2T => 2040 * GIB,
            Content::Zeros => self.zeros,
            Content::Fragmented => TIB,
        }
    }

    /// The most that lies around at once, in bytes: the disk in three formats, a target, and what
    /// a file system needs of its own.
    pub(crate) fn room(&self) -> u64 {
        4 * self.files + self.files / 2
    }

    /// The most that one workload adds: its input, made and derived, and its target.
    pub(crate) fn step(&self) -> u64 {
        2 * self.files + self.files / 2
    }
}

/// What is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Content {
    /// A file system with files of this machine.
    Files,
    /// 64 TiB, of which nearly nothing is data.
    Scattered64T,
    /// The same in 2040 GiB, the most that qemu-img puts into a VHD.
    Scattered2T,
    /// Zeros that were written.
    Zeros,
    /// 1 TiB of which each cluster lies elsewhere.
    Fragmented,
}

/// How an image holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Raw,
    Qcow2,
    Qcow2Zlib,
    Qcow2Zstd,
    Vpc,
    VpcFixed,
}

impl Form {
    /// The format's name, for goldsmith and its peers.
    pub(crate) fn format(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 | Self::Qcow2Zlib | Self::Qcow2Zstd => "qcow2",
            Self::Vpc | Self::VpcFixed => "vpc",
        }
    }

    /// Whether its clusters are compressed.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::Qcow2Zlib | Self::Qcow2Zstd)
    }
}

/// An image to start from.
pub(crate) type Input = (Content, Form);

/// The images in one room, made when they are needed.
pub(crate) struct Inputs<'a> {
    room: &'a Room,
    scale: Scale,
    files: &'a Files,
    tools: &'a Tools,
    made: BTreeMap<Input, PathBuf>,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(room: &'a Room, scale: Scale, files: &'a Files, tools: &'a Tools) -> Self {
        Self {
            room,
            scale,
            files,
            tools,
            made: BTreeMap::new(),
        }
    }

    /// The image `input`, made now if it was not there.
    pub(crate) fn get(&mut self, input: Input) -> Result<PathBuf, String> {
        if let Some(path) = self.made.get(&input) {
            return Ok(path.clone());
        }
        let path = self
            .room
            .path()
            .join(format!("{:?}.{:?}", input.0, input.1));
        if let Err(error) = self.make(input, &path).and_then(|()| self.room.settle()) {
            // Half of an image must not stay in memory; why it is half says more than why it stays.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.made.insert(input, path.clone());
        Ok(path)
    }

    fn make(&mut self, (content, form): Input, path: &Path) -> Result<(), String> {
        let fail = |error| format!("{}: {error}", path.display());
        let size = self.scale.virtual_size(content);
        match (content, form) {
            (Content::Fragmented, _) => self.fragment(path, size),
            (Content::Files, Form::Raw) => {
                let files = self.files.get()?;
                let mkfs = tool("mkfs.ext4").ok_or("mkfs.ext4 is not installed")?;
                let make = Step::new(mkfs, "-q -F -b 4096 -d").arg(files).arg(path);
                make.arg((size / 4096).to_string()).run().map(drop)
            }
            (Content::Scattered64T | Content::Scattered2T, Form::Raw) => {
                scatter(path, size, self.scale.chunks).map_err(fail)
            }
            (Content::Zeros, Form::Raw) => write_zeros(path, size).map_err(fail),
            (_, form) => {
                let raw = self.get((content, Form::Raw))?;
                // QEMU puts the data of a VHD where no file system can share it.
                let step = if self.room.place().shares() && form == Form::Vpc {
                    self.tools.goldsmith_convert(Form::Raw, form)
                } else {
                    self.tools.qemu_convert("-W -m 16", Form::Raw, form)
                };
                step.arg(raw).arg(path).run().map(drop)
            }
        }
    }

    /// Removes the images that `wanted` does not name.
    pub(crate) fn keep(&mut self, wanted: impl Fn(Input) -> bool) -> Result<(), String> {
        let unwanted = self.made.extract_if(.., |input, _| !wanted(*input));
        for (_, path) in unwanted {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A qcow2 image with one cluster in each stretch of `size` bytes, written in an order that has nothing to do with
    /// where they are.
    fn fragment(&self, path: &Path, size: u64) -> Result<(), String> {
        let fail = |error| format!("{}: {error}", path.display());
        let script = path.with_extension("script");
        let mut order: Vec<u64> = (0..self.scale.fragments).collect();
        Random::new(1).shuffle(&mut order);
        let stretch = size / self.scale.fragments;
        let mut text = String::new();
        for index in order {
            text += &format!("write -q -P {} {} 64k\n", 1 + index % 255, index * stretch);
        }
        fs::write(&script, text).map_err(fail)?;
        Step::new("qemu-img", "create -q -f qcow2")
            .arg(path)
            .arg(size.to_string())
            .run()?;
        Step::new("qemu-io", "-f qcow2 -t unsafe")
            .arg(path)
            .input(&script)
            .run()?;
        fs::remove_file(&script).map_err(fail)
    }
}

/// A copy of some of this machine's files, made when it is needed.
pub(crate) struct Files {
    ground: PathBuf,
    bytes: u64,
    made: std::cell::OnceCell<TempDir>,
}

impl Files {
    /// `bytes` of files, in a directory below `ground`.
    pub(crate) fn new(ground: &Path, bytes: u64) -> Self {
        Self {
            ground: ground.to_owned(),
            bytes,
            made: std::cell::OnceCell::new(),
        }
    }

    fn get(&self) -> Result<&Path, String> {
        if let Some(dir) = self.made.get() {
            return Ok(dir.path());
        }
        let copied = || {
            let dir = tempfile::Builder::new()
                .prefix("goldsmith-bench-files-")
                .tempdir_in(&self.ground)?;
            copy_files(Path::new("/usr"), dir.path(), &mut self.bytes.clone())?;
            io::Result::Ok(dir)
        };
        let dir = copied().map_err(|error| format!("copying /usr: {error}"))?;
        Ok(self.made.get_or_init(|| dir).path())
    }
}

/// Copies plain files below `from`, in the order of their names, until `left` bytes are spent.
/// Makes the directories that they need.
fn copy_files(from: &Path, to: &Path, left: &mut u64) -> io::Result<()> {
    let mut names = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_files(&entry.path(), &to, left)?;
        } else if kind.is_file() {
            // As much as it will take on the disk; no single file may be most of it.
            let len = entry.metadata()?.len().next_multiple_of(4096);
            if len > *left || len > 64 * MIB {
                continue;
            }
            // Only now: directories without a file would be most of a small disk.
            fs::create_dir_all(to.parent().unwrap_or(Path::new("")))?;
            match fs::copy(entry.path(), &to) {
                Ok(_) => *left -= len,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A disk of `len` bytes with `chunks` pieces of noise, one somewhere in each of as many stretches.
fn scatter(path: &Path, len: u64, chunks: u64) -> io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(len)?;
    let mut random = Random::new(2);
    let mut noise = vec![0; CHUNK as usize];
    for offset in places(len, chunks, &mut random) {
        for bytes in noise.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all_at(&noise, offset)?;
    }
    Ok(())
}

/// Where the pieces go: on the grid of qcow2 clusters.
fn places(len: u64, chunks: u64, random: &mut Random) -> Vec<u64> {
    const GRID: u64 = 64 << 10;
    let stretch = len / chunks / GRID * GRID;
    (0..chunks)
        .map(|index| index * stretch + random.below((stretch - CHUNK) / GRID) * GRID)
        .collect()
}

fn write_zeros(path: &Path, len: u64) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let zeros = vec![0; MIB as usize];
    for _ in 0..len / MIB {
        file.write_all(&zeros)?;
    }
    Ok(())
}

/// SplitMix64: the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index as u64 + 1) as usize);
        }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, nearly evenly.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_ascend_and_do_not_touch() {
        let places = places(64 * TIB, 1024, &mut Random(2));
        assert_eq!(places.len(), 1024);
        assert!(places.is_sorted_by(|a, b| a + CHUNK <= *b));
        assert!(places.iter().all(|place| place % 65536 == 0));
        assert!(places[1023] > 63 * TIB && places[1023] + CHUNK <= 64 * TIB);
    }

    #[test]
    fn scattered_disk_is_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |name: &str| {
            let path = dir.path().join(name);
            scatter(&path, 8 * MIB, 2).unwrap();
            fs::read(path).unwrap()
        };
        let first = disk("a");
        assert!(first == disk("b"));
        assert_eq!(first.len() as u64, 8 * MIB);
        assert!(first.iter().any(|byte| *byte != 0));
    }

    #[test]
    fn files_are_copied_until_the_bytes_are_spent() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("a")).unwrap();
        fs::write(from.path().join("a/1"), [1; 5000]).unwrap();
        fs::write(from.path().join("b"), [2; 5000]).unwrap();
        fs::write(from.path().join("c"), [3; 4096]).unwrap();
        std::os::unix::fs::symlink("c", from.path().join("d")).unwrap();
        let mut left = 8192 + 4096;
        copy_files(from.path(), to.path(), &mut left).unwrap();
        assert_eq!(left, 0);
        assert!(to.path().join("a/1").exists() && to.path().join("c").exists());
        assert!(!to.path().join("b").exists() && !to.path().join("d").exists());
    }
}
