//! Choosing one of the earlier states that an image holds.

use std::sync::Arc;

use goldsmith_block::{Budget, Error, Layer, Result, Snapshot};

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
        let Some(index) = found else {
            return Err(Error::usage(self.is_none_of(snapshots)));
        };
        layer.snapshot(index, budget)
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
        format!("the image has no snapshot with {wanted}; it has {known}")
    }
}

/// Text from an image, short and safe to show.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(40).map(plain).collect()
}
