//! What an image holds, put into the one behind it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Chain, Edit, Error, ErrorKind, Layer, Preallocation, Result, Storage,
};
use goldsmith_storage::FileStorage;

use crate::carry::{Carry, carry_methods};
use crate::edit::{Edited, Open, Subject, snapshots_lose_sight, subject_methods};
use crate::found::may_write;
use crate::open::{must_be_unchanged, must_be_unlocked, must_know_backing};
use crate::reference::{beside, directory_of, reference};
use crate::resize::{keep_unit, resize};
use crate::told::told;
use crate::work::shown_by;

/// A commit, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Commit, Convert, Opener, References};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let at = |name: &str| folder.path().join(name);
/// std::fs::write(at("golden.raw"), vec![7; 1 << 20])?;
/// std::fs::write(at("new.raw"), vec![8; 1 << 20])?;
/// Convert::new(at("new.raw"), at("disk.qcow2"))
///     .source_format("raw")
///     .target_format("qcow2")
///     .backing("golden.raw", "raw")
///     .run()?;
///
/// let opener = Opener::new().references(References::SameDirectory);
/// Commit::new(at("disk.qcow2")).format("qcow2").opener(opener).run()?;
/// assert_eq!(std::fs::read(at("golden.raw"))?, vec![8; 1 << 20]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Commit<'a> {
    subject: Subject,
    base: Option<String>,
    keep: bool,
    carry: Carry<'a>,
}

shown_by!(Commit: subject, base, keep);

impl<'a> Commit<'a> {
    /// Puts what the image at `path` holds into its backing file, and empties it.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            subject: Subject::new(path),
            base: None,
            keep: false,
            carry: Carry::default(),
        }
    }

    subject_methods!();
    carry_methods!();

    /// Puts everything above the image `name` into that one, which is somewhere behind the image;
    /// what stands between the two shows something else then and is of no use any more. The image is
    /// not emptied.
    #[must_use]
    pub fn base(mut self, name: impl Into<String>) -> Self {
        self.base = Some(name.into());
        self
    }

    /// Sets whether the image keeps what it holds, though its backing file has it then: for one that
    /// is going to be deleted. Default: no.
    #[must_use]
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Sets the most bytes that are written in a second; 0 is no limit, which is the default.
    #[must_use]
    pub fn rate(mut self, bytes: u64) -> Self {
        self.carry.job.rate = NonZeroU64::new(bytes);
        self
    }

    /// Does it. On success all is durable; otherwise the guest of the image sees what it saw before,
    /// and must see it through the image: the backing file may have some of it.
    ///
    /// Whoever else is based on the backing file finds another disk there, and so do snapshots in the
    /// image; of those a warning tells.
    ///
    /// # Errors
    /// `Usage` if the image has no backing file, or not this one; those of opening all of them;
    /// `Denied` if an image knows its backing file by no identity and by another time of its last change,
    /// unless that is the one written to and is [named](Self::base); `Unsupported` if the backing file cannot be written in
    /// place; `Cancelled`; and those of [`Editor`](goldsmith_block::Editor).
    pub fn run(&self) -> Result<Edited> {
        let Subject { path, format, .. } = &self.subject;
        let image = match self.is_emptied() {
            true => {
                let mut image = self.subject.open()?;
                // It is going to be emptied, so the file with its data is locked from now on, too.
                image.editor()?;
                Some(image)
            }
            false => None,
        };
        let mut base = self.open_base()?;
        let mut editor = base.editor()?;
        let ours = image.iter().chain([&base]).flat_map(Open::ids);
        let opener = self.subject.opener.clone().holding(ours);
        let (chain, paths) = opener.open_with_paths(path, format.as_deref())?;
        must_be_unlocked(&chain)?;
        let depth = self.depth(&chain, &paths)?;
        let mut edited = Edited {
            warnings: chain.warnings().to_vec(),
            ..Edited::default()
        };
        let layers = chain.layers();
        let (above, below) = (&layers[..depth], &layers[depth + 1..]);
        self.must_be(&base, &*layers[depth])?;
        let [alone, behind] = [&*editor.layer(), &*layers[depth]].map(|it| it.info().virtual_size);
        if alone != behind {
            // What is behind the shorter end would be lost, or show.
            return Err(Error::usage(format!(
                "its disk has {alone} bytes by itself, and {behind} as a backing file; state which one counts \
                 (--image-opts backing.force_size_calc=current_size), or give it one size (resize); where both are \
                 refused, convert the image above it"
            ))
            .in_file(base.path.to_string_lossy()));
        }
        // By its name an image does not get to write where its owner could not.
        let [names_it, it] = [depth - 1, depth].map(|depth| &**layers[depth].storage());
        may_write(self.subject.opener.references, names_it, it)?;
        if let (None, Some(reference)) = (&self.base, &layers[depth - 1].info().backing) {
            must_be_unchanged(reference, it).map_err(|error| error.in_file(names_it.name()))?;
        }
        must_know_backing(&layers[depth..])?;
        if image.is_some() {
            self.must_be_emptiable()?;
        }
        self.subject.opener.all_open(&[])?;
        editor.prepare()?;
        let size = chain.virtual_size();
        if size > editor.layer().info().virtual_size {
            let off = Preallocation::Off;
            editor = resize(&mut base, editor, size, off, below, &mut edited)?;
        }
        edited.add(&base.path, &*editor);
        let mut behind = Chain::new(editor.layer(), below.iter().cloned());
        if size < behind.virtual_size() && !below.is_empty() {
            let sink = editor.into_sink(behind.virtual_size())?;
            edited.copied += keep_unit(&behind, &*sink, size)?;
            sink.commit()?;
            editor = base.editor()?;
            behind = Chain::new(editor.layer(), below.iter().cloned());
        }
        let mut whole = above.iter().chain(behind.layers()).cloned();
        let Some(top) = whole.next() else {
            return Err(self.refuse("Image does not have a backing file"));
        };
        let source = Chain::new(top, whole);
        let carry = self.subject.carrying(self.carry);
        let copied = carry.run(&source, editor.into_sink(size)?, &behind);
        edited.copied += copied.map_err(|error| self.in_part(&base.path, error))?;

        let snapshots = snapshots_lose_sight(path, &*layers[0]);
        edited.warnings.extend(snapshots);
        for between in &paths[1..depth] {
            edited.warnings.push(format!(
                "{}: shows another disk than before, for what is behind it has changed",
                between.display()
            ));
        }
        if let Some(image) = image {
            self.empty(image, &paths[depth], &*behind.layers()[0], &mut edited)?;
        }
        Ok(edited)
    }

    fn is_emptied(&self) -> bool {
        self.base.is_none() && !self.keep
    }

    /// How deep in `chain`, whose layers have these `paths`, the image is that takes it all.
    fn depth(&self, chain: &Chain, paths: &[PathBuf]) -> Result<usize> {
        let layers = chain.layers();
        if layers.len() < 2 {
            return Err(self.refuse("Image does not have a backing file"));
        }
        let Some(name) = &self.base else {
            return Ok(1);
        };
        let id = |layer: &Arc<dyn Layer>| layer.storage().id();
        let file = |place: PathBuf| FileStorage::open(place).ok().map(|file| file.id());
        // [qemu] From each image on the way the name is that of the next one, or means none there: two
        // images of one chain may have it.
        let is_next = |depth: &usize| {
            let spelled = layers[depth - 1].info().backing.as_ref();
            spelled.is_some_and(|it| it.name == *name)
                || file(beside(&paths[depth - 1], name)) == Some(id(&layers[*depth]))
        };
        let next = (1..layers.len()).find(is_next);
        let found = next.or_else(|| {
            let here = file(PathBuf::from(name))?;
            (1..layers.len()).find(|depth| id(&layers[*depth]) == here)
        });
        found.ok_or_else(|| {
            let path = self.subject.path.display();
            self.refuse(format!(
                "Did not find '{name}' in the backing chain of '{path}'"
            ))
        })
    }

    /// Fails if the image could not be [emptied](Self::empty), before anything is written for that.
    fn must_be_emptiable(&self) -> Result<()> {
        let mut editor = self.subject.rehearsed().open()?.editor()?;
        editor.edit(&Edit::Empty)?;
        // As it is told of the backing file again, which has changed.
        let known = editor.layer().info().backing.clone();
        match known.filter(|it| it.modified.is_some()) {
            Some(known) => editor.edit(&Edit::SetBacking(Some(known))),
            None => Ok(()),
        }
    }

    /// Opens the image that takes it all, to be written over.
    fn open_base(&self) -> Result<Open> {
        let Subject { path, format, .. } = &self.subject;
        // Not to be gone by: somebody may be writing to them.
        let opener = self.subject.opener.clone().force_share(true);
        let (chain, mut paths) = opener.open_with_paths(path, format.as_deref())?;
        let depth = self.depth(&chain, &paths)?;
        let subject = Subject {
            path: paths.swap_remove(depth),
            format: Some(chain.layers()[depth].info().format.into()),
            ..self.subject.clone()
        };
        subject.open_at(depth)
    }

    /// Fails if `base` is not all of what `layer` is read from.
    fn must_be(&self, base: &Open, layer: &dyn Layer) -> Result<()> {
        let path = base.path.display();
        if base.read().id() != layer.storage().id() {
            return Err(self.refuse(format!("'{path}' has become another file")));
        }
        if base.read().len() != layer.storage().len() {
            return Err(self.refuse(format!(
                "its backing file is only a part of '{path}', into which nothing is put"
            )));
        }
        Ok(())
    }

    /// Lets the image show nothing but its backing file, the one at `path`, which has changed.
    fn empty(
        &self,
        mut image: Open,
        path: &Path,
        behind: &dyn Layer,
        edited: &mut Edited,
    ) -> Result<()> {
        let mut editor = image.editor()?;
        editor.edit(&Edit::Empty)?;
        let knows_when = |it: &BackingReference| it.modified.is_some();
        let now = editor.layer().info().backing.clone();
        if now.as_ref().is_some_and(knows_when) {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let name = absolute.to_string_lossy();
            let reference = reference(directory_of(&image.path), &name, behind)?;
            editor.edit(&Edit::SetBacking(Some(reference)))?;
        }
        edited.add(&image.path, &*editor);
        edited.warnings.append(&mut image.warnings);
        Ok(())
    }

    /// `error`, which came while the guest's data went to the image at `base`.
    fn in_part(&self, base: &Path, error: Error) -> Error {
        if self.subject.dry_run || error.kind() == ErrorKind::Cancelled {
            return error;
        }
        let base = base.display();
        told(&error, |why| {
            format!(
                "{why}; '{base}' may have a part of it by now, and is whole once this is committed again"
            )
        })
    }

    fn refuse(&self, why: impl Into<String>) -> Error {
        Error::usage(why.into()).in_file(self.subject.path.to_string_lossy())
    }
}
