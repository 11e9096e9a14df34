//! The facts about one image file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use goldsmith_block::{Ailment, Error, ErrorKind, Layer, LayerInfo, Result, Storage, Symptom};
use goldsmith_storage::thread_time;

use crate::filename::{ImageName, protocol};
use crate::found::Found;
use crate::marks::Content;
use crate::{Opener, marks, registry};

/// The facts about one image file, without opening anything that it names.
///
/// ```
/// use goldsmith::{Ailment, Create, ImageInfo, Opener};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// let file = std::fs::File::options().write(true).open(&disk)?;
/// file.set_len(file.metadata()?.len() + 4096)?;
///
/// let info = ImageInfo::read(&Opener::new(), &disk, Some("qcow2"))?;
/// assert_eq!(info.symptoms[0].ailment, Ailment::Tail);
/// assert!(info.named_files.is_empty() && info.content_looks_like.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Where the image is, as the caller named it.
    pub path: PathBuf,
    /// What its format says.
    pub layer: LayerInfo,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes on its file system.
    pub allocated: u64,
    /// The format that the file looks like, if it looks like one that is known here, and one alone.
    pub looks_like: Option<String>,
    /// What ails it, as far as that shows at a glance; a [check](crate::Check) looks closer.
    pub symptoms: Vec<Symptom>,
    /// The files that it names, all of them, in the order in which they would be tried.
    pub named_files: Vec<NamedFile>,
    /// The other formats, by name, whose marks the file carries though it was opened in this one:
    /// another program may take it for something else. Says nothing of a raw image, whose file is
    /// its disk.
    pub also_looks_like: Vec<&'static str>,
    /// The formats, by name, whose marks the guest's disk carries, as far as this file holds it: it
    /// is an image inside of an image, or somebody wants it to be taken for one. "unknown" if to look
    /// would have taken longer than the opener's [limits](goldsmith_block::Limits::unpacking_time) allow.
    pub content_looks_like: Vec<&'static str>,
    /// What the disk has for a partition table: "none", a "sound" one, or what is wrong with it.
    pub(crate) partition_table: &'static str,
}

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedFile {
    /// What it is to the image.
    pub role: Role,
    /// The name as it stands in the image. Untrusted.
    pub name: String,
    /// The format that the image says it has.
    pub format: Option<String>,
    /// Why it would not be opened, if the opener's [policy](crate::References) or its name stand in
    /// the way; whether it is there nobody looked.
    pub refused: Option<String>,
}

/// What a file is to the image that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The image that shows through.
    Backing,
    /// The file that holds its guest data.
    Data,
}

impl Role {
    /// The words for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backing => "backing file",
            Self::Data => "data file",
        }
    }
}

impl ImageInfo {
    /// Reads the facts about the image at `path`; `format` as in [`Opener::open`].
    ///
    /// # Errors
    /// As [`Opener::open_alone`].
    ///
    /// # Cost
    /// Headers, and a few reads more; nothing of the disk is mapped.
    pub fn read(opener: &Opener, path: impl AsRef<Path>, format: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let layer = opener.inspect(path, format)?;
        Self::of_layer(opener, path, &*layer, thread_time())
    }

    /// Reads the facts about the image at `path` and about each image behind it, topmost first.
    ///
    /// # Errors
    /// As [`Opener::open`], but that files with the data of an image are not opened.
    pub fn read_chain(
        opener: &Opener,
        path: impl AsRef<Path>,
        format: Option<&str>,
    ) -> Result<Vec<Self>> {
        let (chain, paths) = opener.open_heads(path.as_ref(), format)?;
        opener.all_open(&[])?;
        let layers = chain.layers().iter().zip(&paths);
        let began = thread_time();
        layers
            .map(|(layer, path)| Self::of_layer(opener, path, &**layer, began))
            .collect()
    }

    /// When the thread had taken the time `began`, it looked at the first one.
    fn of_layer(
        opener: &Opener,
        path: &Path,
        layer: &dyn Layer,
        began: Option<Duration>,
    ) -> Result<Self> {
        let storage = &**layer.storage();
        let metadata = metadata(path)?;
        let info = layer.info();
        let mut symptoms = symptoms(layer, metadata.is_file())?;
        let content = Content::look(layer, || has_time(opener, began)).unwrap_or_else(|error| {
            symptoms.push(Ailment::Warning.sign(error));
            Content::unknown()
        });
        let mut also = Vec::new();
        if !layer.is_flat() || info.virtual_size < storage.len() {
            also = marks::of_file(storage)?;
            also.retain(|name| *name != info.format);
        }
        Ok(Self {
            path: path.to_owned(),
            layer: info.clone(),
            file_len: storage.len(),
            allocated: allocated(&metadata),
            looks_like: registry::probe(storage)
                .ok()
                .map(|format| format.name().into()),
            symptoms,
            named_files: named_files(opener, (path, storage), info),
            also_looks_like: also,
            partition_table: content.partition_table,
            content_looks_like: content.marks,
        })
    }

    /// Where the backing file is: a relative name counts from the image's directory, a name of
    /// another kind (`json:`, `nbd:`) is given as it is. Says nothing about whether it may be opened.
    pub fn backing_path(&self) -> Option<PathBuf> {
        let name = &self.layer.backing.as_ref()?.name;
        if protocol(name).is_some() {
            return Some(name.into());
        }
        Some(self.path.parent().unwrap_or(Path::new("")).join(name))
    }
}

/// Fails if the opener's limit to the time for unpacking, since the thread had taken `began`, might be over
/// when the next cluster is unpacked.
fn has_time(opener: &Opener, began: Option<Duration>) -> Result<()> {
    /// The dearest ones take less: 4 MiB that unpack to next to nothing. [ours]
    const CLUSTER: Duration = Duration::from_millis(800);
    let taken = thread_time().zip(began).map(|(now, began)| now - began);
    match (opener.limits.unpacking_time, taken) {
        (Some(limit), Some(taken)) if taken + CLUSTER > limit => Err(Error::new(
            ErrorKind::Limit,
            "what the disk looks like is not known: to unpack its ends takes too long",
        )),
        _ => Ok(()),
    }
}

/// What ails the image; a device that holds one ends where it ends.
fn symptoms(layer: &dyn Layer, is_file: bool) -> Result<Vec<Symptom>> {
    let info = layer.info();
    let mut symptoms = layer.symptoms()?;
    symptoms.retain(|symptom| is_file || symptom.ailment != Ailment::Tail);
    if info.dirty {
        symptoms.push(Ailment::Dirty.sign("the image was not closed properly"));
    }
    let warnings = info.warnings.iter();
    symptoms.extend(warnings.map(|text| Ailment::Warning.sign(text)));
    Ok(symptoms)
}

fn named_files(opener: &Opener, from: (&Path, &dyn Storage), info: &LayerInfo) -> Vec<NamedFile> {
    let named = |role: Role, name: &String, format: Option<&String>| {
        let resolved = ImageName::parse(name).and_then(|name| {
            let name = name.path.to_string_lossy();
            Found::by_image(opener.references, from, &name, role.name())
        });
        NamedFile {
            role,
            name: name.clone(),
            format: format.cloned(),
            refused: resolved.err().map(|error| error.report()),
        }
    };
    let backing = info.backing.iter().flat_map(|backing| {
        let names = std::iter::once(&backing.name).chain(&backing.other_names);
        names.map(|name| named(Role::Backing, name, backing.format.as_ref()))
    });
    let data = info.data_file.iter();
    backing
        .chain(data.map(|name| named(Role::Data, name, None)))
        .collect()
}

#[cfg(unix)]
fn allocated(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // POSIX counts blocks of 512 bytes here, whatever the file system's own are.
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn allocated(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

fn metadata(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::metadata(path)
        .map_err(|error| Error::new(ErrorKind::Io, error).in_file(path.to_string_lossy()))
}
