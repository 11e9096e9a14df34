//! What all that edits an image in place has in common.

mod named;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{
    Budget, Chain, Edit, Editor, Error, Format, Layer, Options, Result, Step, Storage, StorageId,
    StorageMut,
};
use goldsmith_engine::Job;
use goldsmith_storage::{Cache, Rehearsal, Use, lock};

use self::named::Named;
use crate::carry::Carry;
use crate::found::Found;
use crate::open::refuse_itself;
use crate::watch::Tap;
use crate::{Cancel, Opener, registry};

/// What an edit did, or would do if it was only rehearsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Edited {
    /// The changes to each image file but for its guest data, in their order.
    pub steps: Vec<(PathBuf, Step)>,
    /// Bytes of guest data that were written; zeros that only had to be noted are none.
    pub copied: u64,
    /// What the caller may want to know.
    pub warnings: Vec<String>,
}

impl Edited {
    /// Adds what `editor` did to the image at `path`.
    pub(crate) fn add(&mut self, path: &Path, editor: &dyn Editor) {
        let steps = editor.steps().into_iter();
        self.steps.extend(steps.map(|step| (path.to_owned(), step)));
    }
}

/// How an image is opened to be edited.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) path: PathBuf,
    pub(crate) opener: Opener,
    /// The format's name, if somebody stated it.
    pub(crate) format: Option<String>,
    pub(crate) cache: Cache,
    pub(crate) dry_run: bool,
    /// What stops it, if anything does.
    pub(crate) cancel: Option<Cancel>,
}

/// An image file that is open to be edited.
pub(crate) struct Open {
    pub(crate) path: PathBuf,
    pub(crate) format: &'static dyn Format,
    pub(crate) budget: Budget,
    pub(crate) warnings: Vec<String>,
    opener: Opener,
    options: Options,
    /// The file, of which the image may be a part.
    whole: Arc<dyn StorageMut>,
    storage: Arc<dyn StorageMut>,
    /// The file that holds the image's data, once it is known to have one.
    data: Option<Arc<dyn StorageMut>>,
    cache: Cache,
    dry_run: bool,
    /// On all files that are written to.
    pub(crate) tap: Arc<Tap>,
}

impl Subject {
    pub(crate) fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            opener: Opener::new(),
            format: None,
            cache: Cache::default(),
            dry_run: false,
            cancel: None,
        }
    }

    /// `carry`, done as everything else to the image.
    pub(crate) fn carrying<'a>(&self, carry: Carry<'a>) -> Carry<'a> {
        Carry {
            dry_run: self.dry_run,
            job: Job {
                uncached: self.cache.is_passed() || self.opener.passes_cache(),
                ..carry.job
            },
        }
    }

    /// The same, to find out what becomes of it, whoever has it open.
    pub(crate) fn rehearsed(&self) -> Self {
        Self {
            dry_run: true,
            opener: self.opener.clone().force_share(true),
            ..self.clone()
        }
    }

    /// Opens the file.
    pub(crate) fn open(&self) -> Result<Open> {
        self.open_at(0)
    }

    /// Opens the file, with the opener's options for the image at `depth` of a chain.
    pub(crate) fn open_at(&self, depth: usize) -> Result<Open> {
        let path = self.path.clone();
        let found = Found::by_user(&path).only(self.opener.part_for(depth));
        let tap = Tap::new(self.cancel.as_ref());
        let whole = storage(&self.opener, &found, self.cache, self.dry_run)?;
        let storage = tap.on(match found.part() {
            Some(part) => Arc::new(part.of(Arc::clone(&whole))?),
            None => Arc::clone(&whole),
        });
        let mut warnings = Vec::new();
        let stated = self.format.as_deref().map(registry::format_named);
        let mut stated = stated.transpose()?;
        if depth == 0 {
            stated = self.opener.expected_format(stated, &*storage)?;
        }
        let format = match stated {
            Some(format) => format,
            None => {
                let format = registry::probe(&*storage)?;
                // Whoever fills a RAW disk decides what it looks like.
                if format.name() == "raw" {
                    let path = path.display();
                    warnings.push(format!(
                        "{path}: nobody stated its format, and it was taken for raw; state it with \
                         the format option (-f raw)"
                    ));
                }
                format
            }
        };
        Ok(Open {
            format,
            budget: Budget::new(&self.opener.limits),
            warnings,
            options: self.opener.options_for(format, depth)?,
            opener: self.opener.clone(),
            whole,
            storage,
            data: None,
            cache: self.cache,
            dry_run: self.dry_run,
            tap,
            path,
        })
    }

    /// Makes one change.
    pub(crate) fn edit(
        &self,
        edit: impl FnOnce(&Open, &dyn Editor) -> Result<Edit>,
    ) -> Result<Edited> {
        let mut open = self.open()?;
        let mut editor = open.editor()?;
        self.opener.all_open(&[])?;
        let edit = edit(&open, &*editor)?;
        open.prepare(&mut *editor)?;
        editor.edit(&edit)?;
        Ok(open.done(&*editor))
    }
}

impl Open {
    /// Lets `cancel` stop what is done to the image from now on.
    pub(crate) fn stopped_by(&mut self, cancel: Option<&Cancel>) {
        self.storage = Tap::new(cancel).on(Arc::clone(&self.storage));
    }

    /// Opens the image, with the file that holds its data. Its errors say which file is meant.
    pub(crate) fn editor(&mut self) -> Result<Box<dyn Editor>> {
        let in_file = |error: Error| error.in_file(self.path.to_string_lossy());
        let mut editor = self
            .format
            .edit(
                Arc::clone(&self.storage),
                &self.budget.afresh(),
                &self.options,
            )
            .map_err(in_file)?;
        let found = self
            .opener
            .data_file(&self.path, &*editor.layer())
            .map_err(in_file)?;
        if let Some(found) = found {
            if self.data.is_none() {
                // Before it is locked, which would keep the image from being so.
                let file = found.open().map_err(in_file)?;
                refuse_itself(&*editor.layer(), &file).map_err(in_file)?;
                let data = storage(&self.opener, &found, self.cache, self.dry_run);
                self.data = Some(self.tap.on(data.map_err(in_file)?));
            }
            if let Some(data) = &self.data {
                editor.set_data(Arc::clone(data)).map_err(in_file)?;
            }
        }
        Ok(Box::new(Named {
            path: self.path.to_string_lossy().into(),
            editor,
        }))
    }

    /// Gets `editor` ready for a change. What that mends is done to its end, and the change may be stopped.
    pub(crate) fn prepare(&self, editor: &mut dyn Editor) -> Result<()> {
        let is_held = self.tap.is_held();
        editor.prepare()?;
        self.tap.hold(is_held);
        Ok(())
    }

    /// The disk that the image shows together with everything behind it, and the path of each
    /// layer.
    pub(crate) fn chain(&self, editor: &dyn Editor) -> Result<(Chain, Vec<PathBuf>)> {
        let budget = self.budget.afresh();
        self.opener.open_behind(&self.path, editor.layer(), &budget)
    }

    /// What [`chain`](Self::chain) gave, with the image of `editor` as it is now.
    pub(crate) fn chain_now(chain: &Chain, editor: &dyn Editor) -> Chain {
        Chain::new(editor.layer(), chain.layers()[1..].iter().cloned())
    }

    /// The files that are written to.
    pub(crate) fn storages(&self) -> Vec<Arc<dyn StorageMut>> {
        let data = self.data.iter().cloned();
        std::iter::once(Arc::clone(&self.storage))
            .chain(data)
            .collect()
    }

    /// What tells the files that are written to from all others.
    pub(crate) fn ids(&self) -> Vec<StorageId> {
        self.storages().iter().map(|storage| storage.id()).collect()
    }

    /// The file as whoever only reads sees it.
    pub(crate) fn read(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage) as _
    }

    /// The whole file, of which the image may be a part.
    pub(crate) fn whole(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.whole) as _
    }

    /// What came of it all.
    pub(crate) fn done(self, editor: &dyn Editor) -> Edited {
        let mut edited = Edited {
            warnings: self.warnings,
            ..Edited::default()
        };
        edited.add(&self.path, editor);
        edited
    }
}

/// What the caller may want to know when something else comes to stand behind `layer`, the image at
/// `path`: the disk stays what it is, but not what the image keeps of earlier ones. [qemu]
pub(crate) fn snapshots_lose_sight(path: &Path, layer: &dyn Layer) -> Option<String> {
    let count = layer.info().snapshots.len();
    (count > 0).then(|| {
        format!(
            "{}: its {count} snapshots show what is behind the image now where they hold nothing \
             themselves, not what was there before",
            path.display()
        )
    })
}

/// The whole file that was `found`, which nobody else may write to from now on.
fn storage(
    opener: &Opener,
    found: &Found,
    cache: Cache,
    dry_run: bool,
) -> Result<Arc<dyn StorageMut>> {
    if dry_run {
        let file = opener.read_found(found)?;
        opener.lock(&file)?;
        return Ok(Arc::new(Rehearsal::new(Arc::new(file))));
    }
    let file = found.edit()?.cached(cache);
    if !opener.holds(file.id()) {
        lock(&file, Use::Write)?;
    }
    Ok(Arc::new(file))
}

/// The methods that every editing builder has; `subject` is a field of it.
macro_rules! subject_methods {
    () => {
        /// Sets how the image is opened: its limits, its secrets, and what it may name.
        #[must_use]
        pub fn opener(mut self, opener: crate::Opener) -> Self {
            self.subject.opener = opener;
            self
        }

        /// States the image's format. Do so whenever you know it.
        #[must_use]
        pub fn format(mut self, name: impl Into<String>) -> Self {
            self.subject.format = Some(name.into());
            self
        }

        /// Sets how what is written goes through the system's cache. Default: it stays there, and is
        /// stored safely at every step that has to be.
        #[must_use]
        pub fn cache(mut self, cache: crate::Cache) -> Self {
            self.subject.cache = cache;
            self
        }

        /// Sets whether to leave all files as they are, and only tell what would be done. Default:
        /// no.
        #[must_use]
        pub fn dry_run(mut self, dry_run: bool) -> Self {
            self.subject.dry_run = dry_run;
            self
        }
    };
}
pub(crate) use subject_methods;
