//! Writing in one pass, front to back: into a file, or whatever else takes bytes in order.

use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Budget, Chain, Committed, CreateSpec, Detail, Edit, Error, Format, Layer,
    Limits, Options, Result, Storage, StorageMut,
};
use goldsmith_engine::{Job, Outcome, Progress};
use goldsmith_storage::{FileStorage, Rehearsal};
use goldsmith_vhd::VHD;

use super::draft::Draft;
use super::gzip::{self, Bytes, Out};
use super::sink::Whole;
use super::tarball::Tarball;

/// Bytes of the blocks in which XenServer's tools count every VHD. [libvhd]
const BLOCK_SIZE: u64 = 2 << 20;

/// Writes the container of one VHD, which holds the disk of `source`, into `out`.
///
/// Bytes for bytes what the sink writes, but nothing is stored on the way.
///
/// # Errors
/// Those of the source and of `out`; `Usage` if a VHD cannot hold the disk.
///
/// # Cost
/// Each data block of the source is read once, written zeros twice; memory for 24 bytes and some
/// for each block.
pub(crate) fn write(
    source: &Chain,
    spec: &CreateSpec,
    job: &Job<'_>,
    out: &mut Out<'_>,
) -> Result<Outcome> {
    super::refuse_backing(spec)?;
    let draft = Draft::new(source, spec, job)?;
    let tarball = Tarball::new(&[&draft], spec.timestamp)?;
    let file_len = gzip::pack(&tarball, spec.virtual_size, job, out)?;
    Ok(Outcome {
        committed: Committed { file_len },
        virtual_size: spec.virtual_size,
        data: draft.data,
        digests: Vec::new(),
    })
}

/// As [`write()`], bytes for bytes, with the digests that `job` asks for: the VHD is made in `vhd`, an
/// empty file, so that they are those of what is packed, and packed from there.
///
/// # Errors
/// Those of [`write()`].
///
/// # Cost
/// The source is read once; space for the VHD.
pub(crate) fn write_from(
    vhd: Arc<FileStorage>,
    source: &Chain,
    spec: &CreateSpec,
    job: &Job<'_>,
    out: &mut Out<'_>,
) -> Result<Outcome> {
    super::refuse_backing(spec)?;
    // Each is half of the work, for whoever looks on.
    let told = |second: bool| {
        move |mut progress: Progress| {
            progress.done = (progress.done + progress.total * u64::from(second)) / 2;
            progress.data = (progress.data + progress.total * u64::from(second)) / 2;
            if let Some(tell) = job.progress {
                tell(progress);
            }
        }
    };
    let (first, second) = (told(false), told(true));
    let making = Job {
        // What is written there is not yet the target.
        rate: None,
        progress: Some(&first),
        ..*job
    };
    let sink = VHD.create(Arc::clone(&vhd) as _, spec)?;
    let made = goldsmith_engine::convert(source, sink, &making)?;
    let packing = Job {
        progress: Some(&second),
        ..*job
    };
    let whole = Whole(&*vhd);
    let tarball = Tarball::new(&[&whole], spec.timestamp)?;
    let file_len = gzip::pack(&tarball, spec.virtual_size, &packing, out)?;
    Ok(Outcome {
        committed: Committed { file_len },
        ..made
    })
}

/// Writes the container of the VHDs that `source` consists of, the topmost first, into `out`. Each
/// stays what it is but for where it says that its parent is: beside it, by the name in the tar.
///
/// # Errors
/// Those of the source and of `out`; `Usage` if it is no chain of VHDs that XenServer takes.
pub(crate) fn write_chain(
    source: &Chain,
    timestamp: u64,
    job: &Job<'_>,
    out: &mut Out<'_>,
) -> Result<Outcome> {
    let layers = source.layers().iter().enumerate();
    let files = layers.map(|(number, layer)| {
        check_kept(&**layer)
            .and_then(|()| renamed(number, &**layer))
            .map_err(|error| error.in_file(layer.storage().name()))
    });
    let files: Vec<_> = files.collect::<Result<_>>()?;
    let files: Vec<_> = files.iter().map(|file| Whole(&**file)).collect();
    let members: Vec<_> = files.iter().map(|file| file as &dyn Bytes).collect();
    let tarball = Tarball::new(&members, timestamp)?;
    let file_len = gzip::pack(&tarball, source.virtual_size(), job, out)?;
    Ok(Outcome {
        committed: Committed { file_len },
        virtual_size: source.virtual_size(),
        data: members.iter().map(|file| file.len()).sum(),
        digests: Vec::new(),
    })
}

/// Takes bytes for `storage`, front to back.
pub(crate) fn into(storage: &dyn StorageMut) -> impl FnMut(&[u8]) -> Result<()> + '_ {
    let mut at = 0;
    move |bytes| {
        storage.write_at(at, bytes)?;
        at += bytes.len() as u64;
        Ok(())
    }
}

/// Refuses what could not be a part of a chain in a container.
fn check_kept(layer: &dyn Layer) -> Result<()> {
    let info = layer.info();
    let what = if info.format != VHD.name() {
        format!(
            "it is {}, and a container keeps chains of VHDs",
            info.format
        )
    } else if let Some((_, Detail::Text(kind))) = info
        .facts
        .iter()
        .find(|(name, what)| *name == "subformat" && *what == Detail::Text("fixed".into()))
    {
        format!("it is {kind}, and XenServer chains dynamic VHDs alone")
    } else if let Some(warning) = info.warnings.first() {
        format!("it is damaged ({warning}); mend it with: goldsmith check -r all")
    } else if let Some(unit) = info.unit.filter(|unit| *unit != BLOCK_SIZE) {
        format!("its blocks have {unit} bytes, and XenServer counts in blocks of {BLOCK_SIZE}")
    } else if info.uuid.is_none() {
        "its UUID is null, so no child could name it".into()
    } else {
        return Ok(());
    };
    Err(Error::usage(format!(
        "{what}; without keeping the chain (--keep-chain) its disk becomes one VHD"
    )))
}

/// The file of `layer`, the VHD of this number, as it stands in the tar.
fn renamed(number: usize, layer: &dyn Layer) -> Result<Arc<dyn Storage>> {
    let storage = Arc::clone(layer.storage());
    let Some(backing) = &layer.info().backing else {
        return Ok(storage);
    };
    let reference = BackingReference {
        name: format!("{}.vhd", number + 1),
        other_names: Vec::new(),
        ..backing.clone()
    };
    let changed = Arc::new(Rehearsal::of(storage));
    let budget = Budget::new(&Limits::default());
    let options = Options::defaults(VHD.open_options());
    let mut editor = VHD.edit(Arc::clone(&changed) as _, &budget, &options)?;
    editor.edit(&Edit::SetBacking(Some(reference)))?;
    Ok(changed)
}
