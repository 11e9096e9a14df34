//! Setting options of an image that exists.

use std::path::Path;

use goldsmith_block::{
    BackingReference, Edit, Editor, Error, ErrorKind, OptionSpec, Options, Preallocation, Result,
};

use crate::edit::{Edited, Open, Subject, subject_methods};
use crate::registry;
use crate::resize::resize;

/// A change of options, to be described and then [`run`](Self::run).
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

    /// Sets one of the format's [amend options](goldsmith_block::Format::amend_options), or `size`,
    /// `backing_file` or `backing_fmt`; the last value of a key wins.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Does it, one change after the other: the options, the backing file, the size.
    ///
    /// Another backing file is only named, not looked at, and a smaller size loses the data behind
    /// the new end.
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
        let Wanted {
            options,
            backing,
            size,
        } = self.wanted(specs)?;
        let mut edited = Edited {
            warnings: std::mem::take(&mut open.warnings),
            ..Edited::default()
        };
        let mut editor = open.editor()?;
        if !options.given().is_empty() {
            editor.edit(&Edit::Amend(options))?;
        }
        if let Some(backing) = backing {
            editor.edit(&Edit::SetBacking(backing.over(&*editor)))?;
        }
        if let Some(size) = size {
            editor = self.resize(&mut open, editor, size, &mut edited)?;
        }
        edited.add(&open.path, &*editor);
        Ok(edited)
    }

    fn resize(
        &self,
        open: &mut Open,
        editor: Box<dyn Editor>,
        size: u64,
        edited: &mut Edited,
    ) -> Result<Box<dyn Editor>> {
        let chain = match editor.layer().info().backing.is_some() {
            true => Some(open.chain(&*editor)?.0),
            false => None,
        };
        let behind = chain.as_ref().map_or(&[][..], |chain| &chain.layers()[1..]);
        resize(open, editor, size, Preallocation::Off, behind, edited)
    }

    /// What was asked for: by the format's own options, and by those that other commands have, too.
    fn wanted(&self, specs: &'static [OptionSpec]) -> Result<Wanted> {
        let mut own = Vec::new();
        let mut backing = Backing::default();
        let mut size = None;
        for (key, value) in registry::named(&self.options) {
            match key {
                key if specs.iter().any(|spec| spec.name == key) => own.push((key, value)),
                "backing_file" => backing.name = Some(value.to_owned()),
                "backing_fmt" => backing.format = Some(value.to_owned()),
                "size" => {
                    let bytes = goldsmith_block::parse_size(value).ok_or_else(|| {
                        Error::usage(format!("option size is a size, which '{value}' is not"))
                    })?;
                    size = Some(bytes);
                }
                key => own.push((key, value)),
            }
        }
        Ok(Wanted {
            options: self.subject.opener.secrets().parse(specs, own)?,
            backing: Some(backing).filter(|backing| *backing != Backing::default()),
            size,
        })
    }
}

struct Wanted {
    options: Options,
    backing: Option<Backing>,
    size: Option<u64>,
}

/// The parts of a backing file's name that are to change.
#[derive(Default, PartialEq, Eq)]
struct Backing {
    name: Option<String>,
    format: Option<String>,
}

impl Backing {
    /// The new reference of `editor`'s image: what is not given stays.
    fn over(self, editor: &dyn Editor) -> Option<BackingReference> {
        let now = editor.layer().info().backing.clone().unwrap_or_default();
        let name = self.name.unwrap_or(now.name);
        (!name.is_empty()).then(|| BackingReference {
            name,
            format: self.format.or(now.format),
            ..BackingReference::default()
        })
    }
}
