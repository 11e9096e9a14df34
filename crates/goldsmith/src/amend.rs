//! Setting options of an image that exists.

use std::path::Path;

use goldsmith_block::{Edit, Error, ErrorKind, OptionSpec, Options, Preallocation, Result};

use crate::edit::{Edited, Subject, subject_methods};
use crate::resize::{new_size, resize};
use crate::watch::cancel_method;

/// A change of options, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Amend, Create};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// Amend::new(&disk)
///     .format("qcow2")
///     .option("lazy_refcounts", "on")
///     .run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Amend {
    subject: Subject,
    options: Vec<(String, String)>,
}

impl Amend {
    /// Sets options of the image at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            subject: Subject::new(path),
            options: Vec::new(),
        }
    }

    subject_methods!();
    cancel_method!(subject.cancel);

    /// Sets one of the format's [amend options](goldsmith_block::Format::amend_options), or `size`;
    /// the last value of a key wins. For another backing file there is [`Rebase`](crate::Rebase).
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Does it, one change after the other: the options, the size. A smaller size loses the data
    /// behind the new end.
    ///
    /// # Errors
    /// Those of opening the image; `Unsupported` if its format has no options that can be amended;
    /// `Usage` for a wrong one; those of [`Editor::edit`](goldsmith_block::Editor::edit).
    pub fn run(&self) -> Result<Edited> {
        let mut open = self.subject.open()?;
        let specs = open.format.amend_options();
        if specs.is_empty() {
            let name = open.format.name();
            let text = format!("Format driver '{name}' does not support option amendment");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let (options, size) = self.wanted(specs)?;
        let mut edited = Edited {
            warnings: std::mem::take(&mut open.warnings),
            ..Edited::default()
        };
        let mut editor = open.editor()?;
        let layer = editor.layer();
        let (now, has_backing) = (layer.info().virtual_size, layer.info().backing.is_some());
        let size = size.filter(|size| *size != now);
        let size = size.map(|size| new_size(&open, now, Some(size)));
        let size = size.transpose()?;
        let chain = match size.is_some() && has_backing {
            true => Some(open.chain(&*editor)?.0),
            false => None,
        };
        self.subject.opener.all_open(&[])?;
        if !options.given().is_empty() {
            open.prepare(&mut *editor)?;
            editor.edit(&Edit::Amend(options))?;
        }
        if let Some(size) = size {
            let behind = chain.as_ref().map_or(&[][..], |chain| &chain.layers()[1..]);
            let off = Preallocation::Off;
            editor = resize(&mut open, editor, size, off, behind, &mut edited)?;
        }
        edited.add(&open.path, &*editor);
        Ok(edited)
    }

    /// What was asked for: by the format's own options, and the size.
    fn wanted(&self, specs: &'static [OptionSpec]) -> Result<(Options, Option<u64>)> {
        let mut own = Vec::new();
        let mut size = None;
        for (key, value) in &self.options {
            match &**key {
                // [qemu] It lists them, too.
                "backing_file" | "backing_fmt" => {
                    let text = "Cannot amend the backing file; rebase the image instead";
                    return Err(Error::usage(text));
                }
                key if specs.iter().any(|spec| spec.name == key) => own.push((key, &**value)),
                "size" => {
                    let bytes = goldsmith_block::parse_size(value).ok_or_else(|| {
                        Error::usage(format!(
                            "Parameter 'size' expects a size, which '{value}' is not"
                        ))
                    })?;
                    // [qemu] It leaves the disk as it is.
                    size = Some(bytes).filter(|bytes| *bytes > 0);
                }
                key => own.push((key, value)),
            }
        }
        let options = self.subject.opener.secrets().parse(specs, own)?;
        Ok((options, size))
    }
}
