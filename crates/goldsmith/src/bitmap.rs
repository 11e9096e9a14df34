//! Bitmaps: which parts of a disk were written since when.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{
    BitmapChange, BitmapInfo, Budget, Chain, Detail, Edit, Editor, Error, ErrorKind, GuestRange,
    Layer, NewBitmap, Result,
};

use crate::edit::{Edited, Open, Subject, subject_methods};
use crate::told::told;
use crate::watch::cancel_method;

/// Changes of one bitmap, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Create, EditBitmap, Opener};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// EditBitmap::new(&disk, "monday").format("qcow2").add().run()?;
/// EditBitmap::new(&disk, "week")
///     .format("qcow2")
///     .add()
///     .merge("monday")
///     .run()?;
/// let disk = Opener::new().open(&disk, Some("qcow2"))?;
/// assert_eq!(disk.top().info().bitmaps.len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EditBitmap {
    subject: Subject,
    name: String,
    granularity: Option<u64>,
    source: Option<(PathBuf, Option<String>)>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Change {
    const fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

impl EditBitmap {
    /// Changes the bitmap `name` of the image at `path`.
    pub fn new(path: impl AsRef<Path>, name: impl Into<String>) -> Self {
        Self {
            subject: Subject::new(path),
            name: name.into(),
            granularity: None,
            source: None,
            changes: Vec::new(),
        }
    }

    subject_methods!();
    cancel_method!(subject.cancel);

    /// Then makes it, of clean bits; it records writes.
    #[must_use]
    pub fn add(self) -> Self {
        self.then(Change::Add)
    }

    /// Then forgets it.
    #[must_use]
    pub fn remove(self) -> Self {
        self.then(Change::Remove)
    }

    /// Then makes all its bits clean.
    #[must_use]
    pub fn clear(self) -> Self {
        self.then(Change::Clear)
    }

    /// Then makes it record writes.
    #[must_use]
    pub fn enable(self) -> Self {
        self.then(Change::Enable)
    }

    /// Then makes it record writes no longer.
    #[must_use]
    pub fn disable(self) -> Self {
        self.then(Change::Disable)
    }

    /// Then makes dirty what is so in the bitmap `source`, too.
    #[must_use]
    pub fn merge(self, source: impl Into<String>) -> Self {
        self.then(Change::Merge(source.into()))
    }

    /// Sets the bytes per bit of a bitmap that is added. Default: the format's choice.
    #[must_use]
    pub fn granularity(mut self, bytes: u64) -> Self {
        self.granularity = Some(bytes);
        self
    }

    /// Takes the bitmaps that are merged from the image at `path`. Default: the same image.
    #[must_use]
    pub fn merge_from(mut self, path: impl AsRef<Path>, format: Option<&str>) -> Self {
        self.source = Some((path.as_ref().to_owned(), format.map(str::to_owned)));
        self
    }

    fn then(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// Does all changes in their order. If one fails, those before it stand.
    ///
    /// # Errors
    /// `Usage` if there are none, or one makes no sense; those of opening the images; `Unsupported`
    /// if the format keeps no bitmaps; those of [`Editor::edit`].
    pub fn run(&self) -> Result<Edited> {
        if self.changes.is_empty() {
            return Err(Error::usage(
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
            ));
        }
        let mut open = self.subject.open()?;
        let mut editor = open.editor()?;
        let other = self.other().map_err(|error| self.failed("merge", &error))?;
        self.subject.opener.all_open(&[])?;
        for change in &self.changes {
            let done = self
                .change(change, &open, &*editor, other.as_deref())
                .and_then(|change| match change {
                    Some(change) => editor.edit(&Edit::Bitmap {
                        name: self.name.clone(),
                        change,
                    }),
                    None => Ok(()),
                });
            done.map_err(|error| self.failed(change.name(), &error))?;
        }
        Ok(open.done(&*editor))
    }

    fn failed(&self, change: &str, error: &Error) -> Error {
        let name = &self.name;
        told(error, |why| {
            format!("Operation {change} on bitmap {name} failed: {why}")
        })
    }

    /// The image whose bitmaps are merged, if it is another one.
    fn other(&self) -> Result<Option<Arc<dyn Layer>>> {
        let merges = |change: &Change| matches!(change, Change::Merge(_));
        match &self.source {
            Some((path, format)) if self.changes.iter().any(merges) => {
                let opener = self.subject.opener.for_another_image();
                opener.open_alone(path, format.as_deref()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What `change` means for `editor`; nothing if it would change nothing.
    fn change(
        &self,
        change: &Change,
        open: &Open,
        editor: &dyn Editor,
        other: Option<&dyn Layer>,
    ) -> Result<Option<BitmapChange>> {
        Ok(Some(match change {
            Change::Add => BitmapChange::Add {
                granularity: self.granularity,
                enabled: true,
            },
            Change::Remove => BitmapChange::Remove,
            Change::Clear => BitmapChange::Clear,
            Change::Enable => BitmapChange::Enable(true),
            Change::Disable => BitmapChange::Enable(false),
            Change::Merge(source) => {
                let layer = editor.layer();
                let Some(other) = other else {
                    let ranges = dirty(&*layer, source, &open.budget)?;
                    return Ok((*source != self.name).then_some(BitmapChange::Mark(ranges)));
                };
                let (ours, theirs) = (layer.info().virtual_size, other.info().virtual_size);
                if ours != theirs {
                    return Err(Error::usage(format!(
                        "Bitmaps are of different sizes (destination size is {ours}, source size \
                         is {theirs}) and can't be merged"
                    )));
                }
                let ranges = dirty(other, source, &open.budget);
                let ranges = ranges.map_err(|error| error.in_file(other.storage().name()))?;
                BitmapChange::Mark(ranges)
            }
        }))
    }
}

/// What the bitmap `name` of `layer` says was written.
fn dirty(layer: &dyn Layer, name: &str, budget: &Budget) -> Result<Vec<GuestRange>> {
    let mut bitmaps = layer.info().bitmaps.iter();
    match bitmaps.position(|bitmap| bitmap.name == name) {
        Some(index) => layer.dirty_ranges(index, &budget.afresh()),
        None => Err(Error::usage(format!("Dirty bitmap '{name}' not found"))),
    }
}

/// Which bitmaps of its source a target gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bitmaps {
    /// None.
    #[default]
    None,
    /// All; one that was not saved properly is an error.
    All,
    /// All but those that were not saved properly.
    Sound,
}

impl Bitmaps {
    /// Those of `source` that are meant, with their places.
    fn of(self, source: &dyn Layer) -> impl Iterator<Item = (usize, &BitmapInfo)> {
        let bitmaps = source.info().bitmaps.iter().enumerate();
        bitmaps.filter(move |(_, info)| match self {
            Self::None => false,
            Self::Sound => !info.inconsistent,
            Self::All => true,
        })
    }

    /// Whether `source` has any that is meant.
    pub(crate) fn are_in(self, source: &dyn Layer) -> bool {
        self.of(source).next().is_some()
    }

    /// Fails if [`copy`](Self::copy) would for what is known of `source` and of the image `target` before
    /// anything is written.
    pub(crate) fn must_fit(
        self,
        source: &dyn Layer,
        target: &dyn Layer,
        budget: &Budget,
    ) -> Result<()> {
        let refuse = |text: String| Err(Error::usage(text).in_file(target.storage().name()));
        if self != Self::None && !keeps_bitmaps(target) {
            let format = target.info().format;
            return refuse(format!(
                "bitmaps cannot be copied: this {format} image keeps none"
            ));
        }
        let has = |name| target.info().bitmaps.iter().any(|it| it.name == name);
        self.must_be_readable(source, budget)?;
        match self.of(source).find(|(_, info)| has(&*info.name)) {
            Some((_, BitmapInfo { name, .. })) => refuse(format!(
                "bitmap '{name}' cannot be copied: there is one of that name"
            )),
            None => Ok(()),
        }
    }

    /// Fails if one that is meant was not saved properly, or cannot be read.
    pub(crate) fn must_be_readable(self, source: &dyn Layer, budget: &Budget) -> Result<()> {
        for (index, _) in self.of(source) {
            to_copy(source, index, &budget.afresh())?;
        }
        Ok(())
    }

    /// Fails if the image that `target` only seems to edit cannot have those of `source`, whatever they say.
    pub(crate) fn rehearse(self, source: &dyn Layer, target: &mut dyn Editor) -> Result<()> {
        let copies = self.of(source).map(|(_, info)| like(info, Vec::new()));
        target.edit(&Edit::AddBitmaps(copies.collect()))
    }

    /// Gives the image that `target` edits those of the top of `disk` that are meant.
    pub(crate) fn copy(self, disk: &Chain, target: &mut dyn Editor, budget: &Budget) -> Result<()> {
        // A snapshot's disk may be shorter than the one that the bitmaps are about.
        let end = disk.virtual_size().min(target.layer().info().virtual_size);
        let source = disk.top();
        let (mut copies, mut memory) = (Vec::new(), budget.afresh());
        for (index, info) in self.of(source) {
            let mut dirty = to_copy(source, index, &memory);
            let is_full = |error: &Error| error.kind() == ErrorKind::Limit;
            // As many at once as fit: each change writes the whole directory, and a stranger says how many
            // there are.
            if dirty.as_ref().is_err_and(is_full) && !copies.is_empty() {
                target.edit(&Edit::AddBitmaps(std::mem::take(&mut copies)))?;
                memory = budget.afresh();
                dirty = to_copy(source, index, &memory);
            }
            let mut dirty = dirty?;
            dirty.retain_mut(|range| {
                range.end = range.end.min(end);
                range.start < range.end
            });
            copies.push(like(info, dirty));
        }
        target.edit(&Edit::AddBitmaps(copies))
    }
}

/// A bitmap like the one of `info`, which says that `dirty` is.
fn like(info: &BitmapInfo, dirty: Vec<GuestRange>) -> NewBitmap {
    NewBitmap {
        name: info.name.clone(),
        granularity: Some(info.granularity),
        enabled: info.enabled,
        dirty,
    }
}

/// Whether images such as `layer` have bitmaps at all.
pub(crate) fn keeps_bitmaps(layer: &dyn Layer) -> bool {
    let keeps = ("keeps-bitmaps", Detail::Flag(true));
    layer.info().facts.contains(&keeps)
}

/// What bitmap `index` of `source` says is dirty.
fn to_copy(source: &dyn Layer, index: usize, budget: &Budget) -> Result<Vec<GuestRange>> {
    let BitmapInfo { name, is_text, .. } = &source.info().bitmaps[index];
    if !is_text {
        // The copy would have another name.
        let text = format!("bitmap '{name}' cannot be copied: its name is no text");
        return Err(Error::unsupported(text).in_file(source.storage().name()));
    }
    source.dirty_ranges(index, budget).map_err(|error| {
        let text = |why: &_| format!("bitmap '{name}' cannot be copied: {why}");
        told(&error, text).in_file(source.storage().name())
    })
}
