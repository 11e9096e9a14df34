//! The earlier states that an image holds: choosing one, taking and forgetting them.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use goldsmith_block::{Budget, Edit, Error, Layer, Result, Snapshot};

use crate::edit::{Edited, Subject, subject_methods};
use crate::watch::cancel_method;

/// Which internal snapshot of an image is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotName {
    /// The one with this id or, if there is none, the first with this name.
    IdOrName(String),
    /// The first with this id and this name, as far as they are given.
    Exactly {
        /// The id.
        id: Option<String>,
        /// The name.
        name: Option<String>,
    },
}

impl SnapshotName {
    /// The disk as it was when the snapshot of `layer` was taken that this means.
    ///
    /// # Errors
    /// `Usage` if there is none; and those of [`Layer::snapshot`].
    pub(crate) fn open(&self, layer: &dyn Layer, budget: &Budget) -> Result<Arc<dyn Layer>> {
        layer.snapshot(self.find(layer)?, budget)
    }

    /// Which snapshot of `layer` this means.
    ///
    /// # Errors
    /// `Usage` if there is none.
    fn find(&self, layer: &dyn Layer) -> Result<usize> {
        let snapshots = &layer.info().snapshots;
        let first = |fits: &dyn Fn(&Snapshot) -> bool| snapshots.iter().position(fits);
        let found = match self {
            Self::IdOrName(text) => {
                first(&|it| it.id == *text).or_else(|| first(&|it| it.name == *text))
            }
            Self::Exactly { id, name } => first(&|it| {
                id.as_ref().is_none_or(|id| it.id == *id)
                    && name.as_ref().is_none_or(|name| it.name == *name)
            }),
        };
        found.ok_or_else(|| Error::usage(self.is_none_of(snapshots)))
    }

    fn is_none_of(&self, snapshots: &[Snapshot]) -> String {
        let wanted = match self {
            Self::IdOrName(text) => format!("the id or name '{text}'"),
            Self::Exactly { id, name } => {
                let id = id.iter().map(|id| format!("the id '{id}'"));
                let name = name.iter().map(|name| format!("the name '{name}'"));
                id.chain(name).collect::<Vec<_>>().join(" and ")
            }
        };
        let known = snapshots.iter().take(10);
        let known: Vec<_> = known
            .map(|it| format!("{} ({})", shown(&it.id), shown(&it.name)))
            .collect();
        let known = match snapshots.len() {
            0 => "none at all".into(),
            count if count > known.len() => format!("{} and others", known.join(", ")),
            _ => known.join(", "),
        };
        format!("Can't find snapshot with {wanted}; the image has {known}")
    }
}

/// The internal snapshots of one image, to be listed or edited.
///
/// ```
/// use goldsmith::{Create, SnapshotName, Snapshots};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// let snapshots = Snapshots::new(&disk).format("qcow2");
/// snapshots.take("before")?;
/// assert_eq!(snapshots.list()?[0].name, "before");
/// snapshots.apply(&SnapshotName::IdOrName("before".into()))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Snapshots {
    subject: Subject,
    taken: Option<(u32, u32)>,
}

impl Snapshots {
    /// Those of the image at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            subject: Subject::new(path),
            taken: None,
        }
    }

    subject_methods!();
    cancel_method!(subject.cancel);

    /// Sets the time at which a new one is said to be taken, in seconds since 1970-01-01 UTC and the
    /// nanoseconds of that second. Default: now.
    #[must_use]
    pub fn taken(mut self, seconds: u32, nanoseconds: u32) -> Self {
        self.taken = Some((seconds, nanoseconds));
        self
    }

    /// The snapshots, in the image's order.
    ///
    /// # Errors
    /// Those of [`Opener::open_alone`](crate::Opener::open_alone).
    pub fn list(&self) -> Result<Vec<Snapshot>> {
        let Subject {
            path,
            opener,
            format,
            ..
        } = &self.subject;
        let layer = opener.inspect(path, format.as_deref())?;
        Ok(layer.info().snapshots.clone())
    }

    /// Keeps the disk as it is now under a name.
    ///
    /// # Errors
    /// Those of opening the image; `Unsupported` if its format keeps no snapshots; those of
    /// [`Editor::edit`](goldsmith_block::Editor::edit).
    pub fn take(&self, name: &str) -> Result<Edited> {
        let (seconds, nanoseconds) = self.taken.unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            // A clock before 1970 is wrong in any case, and the format ends in 2106.
            let since = since.unwrap_or_default();
            (since.as_secs() as u32, since.subsec_nanos())
        });
        self.subject.edit(|_, _| {
            Ok(Edit::TakeSnapshot {
                name: name.to_owned(),
                seconds,
                nanoseconds,
            })
        })
    }

    /// Makes the disk what it was when one was taken; what it is now is lost.
    ///
    /// # Errors
    /// As [`take`](Self::take); `Usage` if there is no such snapshot.
    pub fn apply(&self, name: &SnapshotName) -> Result<Edited> {
        self.edit(name, Edit::ApplySnapshot)
    }

    /// Forgets one.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn delete(&self, name: &SnapshotName) -> Result<Edited> {
        self.edit(name, Edit::DeleteSnapshot)
    }

    fn edit(&self, name: &SnapshotName, edit: fn(usize) -> Edit) -> Result<Edited> {
        self.subject.edit(|open, editor| {
            let found = name.find(&*editor.layer());
            found
                .map(edit)
                .map_err(|error| error.in_file(open.path.to_string_lossy()))
        })
    }
}

/// Text from an image, short and safe to show.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(40).map(plain).collect()
}
