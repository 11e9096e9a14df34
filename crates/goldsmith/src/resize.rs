//! Making a disk longer or shorter where it stands.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    Chain, Demand, Edit, Editor, Error, ExtentKind, GuestRange, Layer, Preallocation, Result, Sink,
    align_down,
};

use crate::Phase;
use crate::edit::{Edited, Open, Subject, subject_methods};
use crate::open::must_know_backing;
use crate::watch::{Watch, watch_methods};

/// How long a disk shall be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// As many.
    Exactly(u64),
    /// As many more than now.
    More(u64),
    /// As many less than now.
    Less(u64),
}

/// A resize, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{NewSize, Resize};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.raw");
/// std::fs::write(&disk, vec![7; 1 << 20])?;
/// let resize = |size| Resize::new(&disk, size).format("raw");
/// resize(NewSize::More(512)).run()?;
/// assert_eq!(std::fs::metadata(&disk)?.len(), (1 << 20) + 512);
///
/// let smaller = resize(NewSize::Exactly(4096));
/// assert!(smaller.run().is_err(), "that would lose data");
/// smaller.shrink(true).run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Resize<'a> {
    subject: Subject,
    watch: Watch<'a>,
    size: NewSize,
    shrink: bool,
    preallocation: Preallocation,
}

impl<'a> Resize<'a> {
    /// Gives the disk in the image at `path` another size.
    pub fn new(path: impl AsRef<Path>, size: NewSize) -> Self {
        Self {
            subject: Subject::new(path),
            watch: Watch::default(),
            size,
            shrink: false,
            preallocation: Preallocation::Off,
        }
    }

    subject_methods!();
    watch_methods!(
        "how many of the bytes that are added have got their space.",
        subject.cancel
    );

    /// Sets whether the disk may become shorter, which loses what stands behind its new end.
    /// Default: no.
    #[must_use]
    pub fn shrink(mut self, shrink: bool) -> Self {
        self.shrink = shrink;
        self
    }

    /// Sets what becomes of the bytes that are added. Default: they get no place.
    #[must_use]
    pub fn preallocation(mut self, preallocation: Preallocation) -> Self {
        self.preallocation = preallocation;
        self
    }

    /// Does it. On success the image is durable; otherwise it is what it was.
    ///
    /// # Errors
    /// Those of opening the image; `Usage` if the disk would become shorter and may not, or of a
    /// size that the format cannot hold; `Denied` if it would become longer over a backing file that an
    /// image knows by no identity and by another time of its last change; those of
    /// [`Editor::edit`](goldsmith_block::Editor::edit).
    pub fn run(&self) -> Result<Edited> {
        let mut open = self.subject.open()?;
        let editor = open.editor()?;
        let now = editor.layer().info().virtual_size;
        let virtual_size = self.checked(&open, now)?;
        let chain = match virtual_size > now && editor.layer().info().backing.is_some() {
            true => Some(open.chain(&*editor)?.0),
            false => None,
        };
        if let Some(chain) = &chain {
            must_know_backing(chain.layers())?;
        }
        self.subject.opener.all_open(&[])?;
        let mut edited = Edited {
            warnings: std::mem::take(&mut open.warnings),
            ..Edited::default()
        };
        let behind = chain.as_ref().map_or(&[][..], |chain| &chain.layers()[1..]);
        let preallocation = self.preallocation;
        let tap = Arc::clone(&open.tap);
        let added = virtual_size.saturating_sub(now);
        let editor = self.watch.over(&tap, Phase::Allocate, added, || {
            let (open, edited) = (&mut open, &mut edited);
            resize(open, editor, virtual_size, preallocation, behind, edited)
        })?;
        edited.add(&open.path, &*editor);
        Ok(edited)
    }

    /// The new size of a disk that has `now` bytes.
    fn checked(&self, open: &Open, now: u64) -> Result<u64> {
        let refuse = |text: String| Err(Error::usage(text).in_file(open.path.to_string_lossy()));
        let virtual_size = match self.size {
            NewSize::Exactly(size) => Some(size),
            NewSize::More(more) => now.checked_add(more),
            NewSize::Less(less) => now.checked_sub(less),
        };
        let virtual_size = new_size(open, now, virtual_size)?;
        if virtual_size < now && !self.shrink {
            return refuse(format!(
                "shrinking the disk from {now} to {virtual_size} bytes loses all data behind its \
                 new end. Use the --shrink option to perform a shrink operation"
            ));
        }
        if virtual_size < now && self.preallocation != Preallocation::Off {
            return refuse("Preallocation can only be used for growing images".into());
        }
        Ok(virtual_size)
    }
}

/// The size `wanted` for the disk in `open`, which has `now` bytes.
///
/// # Errors
/// `Usage` if no disk has such a size, or none of this format.
pub(crate) fn new_size(open: &Open, now: u64, wanted: Option<u64>) -> Result<u64> {
    let refuse = |text: String| Err(Error::usage(text).in_file(open.path.to_string_lossy()));
    let wanted = wanted.filter(|size| *size > 0 && i64::try_from(*size).is_ok());
    let Some(wanted) = wanted else {
        return refuse("New image size must be positive".into());
    };
    let unit = open.format.size_unit();
    if wanted != now && !wanted.is_multiple_of(unit) {
        let name = open.format.name();
        return refuse(format!(
            "{name} images hold multiples of {unit} bytes, which {wanted} is not"
        ));
    }
    Ok(wanted)
}

/// Gives the disk of `editor` another size, `behind` being what stands behind the image; bytes that
/// are added are zeros.
pub(crate) fn resize(
    open: &mut Open,
    mut editor: Box<dyn Editor>,
    virtual_size: u64,
    preallocation: Preallocation,
    behind: &[Arc<dyn Layer>],
    edited: &mut Edited,
) -> Result<Box<dyn Editor>> {
    open.prepare(&mut *editor)?;
    let layer = editor.layer();
    let now = layer.info().virtual_size;
    let behind_len = behind.first().map_or(0, |it| it.info().virtual_size);
    if virtual_size > now && behind_len > now {
        let chain = Chain::new(layer, behind.iter().cloned());
        edited.add(&open.path, &*editor);
        // It must be able to take back what it began; what else there is to do may take long.
        let was_held = open.tap.is_held();
        open.tap.hold(true);
        let sink = editor.into_sink(now)?;
        edited.copied += keep_unit(&chain, &*sink, now)?;
        sink.commit()?;
        open.tap.hold(was_held);
        editor = open.editor()?;
    }
    editor.edit(&Edit::Resize {
        virtual_size,
        preallocation,
        behind: behind_len,
    })?;
    Ok(editor)
}

/// Puts what the guest sees in the unit of the image that `end` cuts into the image itself, if it
/// has none of it: part of it is about to become something else. Gives its length.
pub(crate) fn keep_unit(chain: &Chain, sink: &dyn Sink, end: u64) -> Result<u64> {
    let grain = sink.profile().grain;
    let start = align_down(end, grain);
    let limit = start.saturating_add(grain).min(chain.virtual_size());
    if start == end || is_own(chain, start, limit)? {
        return Ok(0);
    }
    let range = GuestRange::new(start, limit);
    // A unit fits in memory.
    let mut bytes = vec![0; range.len() as usize];
    chain.read_at(start, &mut bytes)?;
    let demand = Demand {
        range,
        packed: None,
    };
    let mut slots = Vec::new();
    sink.reserve(&[demand], &mut slots)?;
    for slot in slots {
        let at = (slot.range.start - start) as usize..(slot.range.end - start) as usize;
        sink.write(slot, &bytes[at])?;
    }
    Ok(range.len())
}

/// Whether the topmost layer itself says what stands from `at` to `limit`.
fn is_own(chain: &Chain, mut at: u64, limit: u64) -> Result<bool> {
    while at < limit {
        let extent = chain.top().extent_at(at, limit)?;
        if extent.kind == ExtentKind::Unallocated {
            return Ok(false);
        }
        at = extent.range.end;
    }
    Ok(true)
}
