//! Another backing file under an image.

use std::path::Path;
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Chain, Edit, Error, Extent, ExtentKind, Layer, LayerInfo, Result, Storage,
};

use crate::carry::{Carry, carry_methods};
use crate::edit::{Edited, Open, Subject, snapshots_lose_sight, subject_methods};
use crate::filename::ImageName;
use crate::open::{must_be_unlocked, must_know_backing};
use crate::reference::{beside, directory_of, open_beside, reference, unseen};
use crate::registry;
use crate::work::shown_by;

/// A rebase, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Create, Opener, Rebase, References};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let at = |name: &str| folder.path().join(name);
/// std::fs::write(at("golden.raw"), vec![7; 1 << 20])?;
/// let disk = at("disk.qcow2");
/// Create::new(&disk).format("qcow2").backing("golden.raw", "raw").run()?;
///
/// // What the golden disk shows comes to stand in the image itself, which needs it no longer.
/// let opener = Opener::new().references(References::SameDirectory);
/// let done = Rebase::new(&disk).opener(opener).run()?;
/// assert_eq!(done.copied, 1 << 20);
/// std::fs::remove_file(at("golden.raw"))?;
/// assert_eq!(Opener::new().open(&disk, Some("qcow2"))?.layers().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Rebase<'a> {
    subject: Subject,
    backing: Option<(String, Option<String>)>,
    unseen: bool,
    compress: bool,
    carry: Carry<'a>,
}

shown_by!(Rebase: subject, backing, unseen, compress);

impl<'a> Rebase<'a> {
    /// Makes the image at `path` need no other one.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            subject: Subject::new(path),
            backing: None,
            unseen: false,
            compress: false,
            carry: Carry::default(),
        }
    }

    subject_methods!();
    carry_methods!();

    /// Bases it on the image `name`, a path from its own directory, instead; `format` is that
    /// image's.
    #[must_use]
    pub fn onto(mut self, name: impl Into<String>, format: Option<&str>) -> Self {
        self.backing = Some((name.into(), format.map(str::to_owned)));
        self
    }

    /// Sets whether to change only the name, without looking at what either backing file shows: the
    /// guest sees another disk then, unless both show the same. Default: no, what differs is copied.
    #[must_use]
    pub fn unseen(mut self, unseen: bool) -> Self {
        self.unseen = unseen;
        self
    }

    /// Sets whether what is copied is packed, where the format can. Default: no.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Does it. On success the image is durable; otherwise the guest sees what it saw before.
    ///
    /// Snapshots in the image are not looked at: where they hold nothing themselves they show the new
    /// backing file, and a warning says so.
    ///
    /// # Errors
    /// Those of opening the image and everything behind it, now and then; `Usage` if the image would
    /// come to stand behind itself, or nobody says the format of the new backing file;
    /// `Denied` if an image knows what is behind it, now or then, by no identity and by another time of
    /// its last change, unless neither is [looked at](Self::unseen); `Unsupported` if the format has no
    /// backing files, or nothing is packed in it that shall be; `Cancelled`; and those of [`Editor`](goldsmith_block::Editor).
    ///
    /// # Cost
    /// Where the image holds the data itself, or both chains lead to the same file, nothing is read.
    /// The rest is read from both, and what differs is written.
    pub fn run(&self) -> Result<Edited> {
        let mut open = self.subject.open()?;
        let mut edited = Edited {
            warnings: std::mem::take(&mut open.warnings),
            ..Edited::default()
        };
        let mut editor = open.editor()?;
        let layer = editor.layer();
        let (reference, behind) = self.new_backing(&open, &*layer)?;
        if !self.unseen {
            let snapshots = snapshots_lose_sight(&open.path, &*layer);
            edited.warnings.extend(snapshots);
            let (before, _) = open.chain(&*editor)?;
            self.subject.opener.all_open(&[])?;
            edited.warnings.extend_from_slice(before.warnings());
            editor.prepare()?;
            let layer = editor.layer();
            let top: Arc<dyn Layer> = match layer.info().backing {
                Some(_) => layer,
                None => Arc::new(Alone(layer)),
            };
            for chain in std::iter::once(&before).chain(&behind) {
                must_be_unlocked(chain)?;
                must_know_backing(chain.layers())?;
            }
            let behind = behind.as_ref().map_or(&[][..], |chain| chain.layers());
            let after = Chain::new(Arc::clone(&top), behind.iter().cloned());
            let before = Chain::new(top, before.layers()[1..].iter().cloned());
            edited.warnings.extend_from_slice(after.warnings());
            let carry = self.subject.carrying(self.carry);
            edited.add(&open.path, &*editor);
            let sink = match self.compress {
                true => editor.into_packing_sink(before.virtual_size())?,
                false => editor.into_sink(before.virtual_size())?,
            };
            edited.copied = carry.run(&before, sink, &after)?;
            editor = open.editor()?;
        } else {
            self.subject.opener.all_open(&[])?;
        }
        editor.edit(&Edit::SetBacking(reference))?;
        edited.add(&open.path, &*editor);
        Ok(edited)
    }

    /// What the image is going to say of its backing file, and what that is.
    fn new_backing(
        &self,
        open: &Open,
        image: &dyn Layer,
    ) -> Result<(Option<BackingReference>, Option<Chain>)> {
        let refuse = |text: String| Err(Error::usage(text).in_file(open.path.to_string_lossy()));
        let Some((name, format)) = &self.backing else {
            return Ok((None, None));
        };
        let Some(format) = format else {
            return refuse(format!(
                "Could not change the backing file to '{name}': backing format must be specified"
            ));
        };
        if self.unseen {
            let mut reference = unseen(&open.path, name, format)?;
            if image.info().uuid.is_some() {
                // A format that knows other images by their identity has to be told that.
                let path = ImageName::parse(name)?.path;
                let path = path.to_string_lossy();
                let opener = self.subject.opener.for_another_image().force_share(true);
                let opener = opener.behind(image.info().format);
                let parent = opener.open_alone(beside(&open.path, &path), Some(format))?;
                reference = self::reference(directory_of(&open.path), &path, &*parent)?;
            }
            return Ok((Some(reference), None));
        }
        let format = registry::format_named(format)?.name();
        let ours = open.ids();
        let opener = self.subject.opener.stopped_by(self.carry.job.cancel);
        let opener = opener.holding(ours.clone()).behind(image.info().format);
        let (path, chain) = open_beside(&opener, &open.path, name, Some(format))?;
        let is_ours = |layer: &Arc<dyn Layer>| {
            let files = [layer.storage().id(), layer.data_storage().id()];
            files.iter().any(|file| ours.contains(file))
        };
        if chain.layers().iter().any(is_ours) {
            return refuse(format!(
                "based on '{name}' the image would stand behind itself"
            ));
        }
        let mut reference = reference(directory_of(&open.path), &path, chain.top())?;
        // A format that knows other images by their identity has the place for more than one name.
        if image.info().uuid.is_none() {
            reference.name = name.clone();
        }
        Ok((Some(reference), Some(chain)))
    }
}

/// An image over nothing, as it is going to be over another one. Which of its zeros are its own and
/// which are only what nothing shows, the formats do not tell alike; so none are its own.
struct Alone(Arc<dyn Layer>);

impl Layer for Alone {
    fn info(&self) -> &LayerInfo {
        self.0.info()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.0.storage()
    }

    fn data_storage(&self) -> &Arc<dyn Storage> {
        self.0.data_storage()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let mut extent = self.0.extent_at(offset, limit)?;
        if matches!(extent.kind, ExtentKind::Zero { .. }) {
            extent.kind = ExtentKind::Unallocated;
        }
        Ok(extent)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }
}
