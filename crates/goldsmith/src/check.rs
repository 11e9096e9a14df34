//! Checking one image file, and mending it.

use std::path::Path;

use goldsmith_block::{Checked, Detail, Edit, Flaw, Repair, Result};

use crate::edit::{Edited, Open, Subject, subject_methods};
use crate::watch::{Watch, watch_methods};
use crate::{Opener, Phase};

/// A check, to be described and then [`run`](Self::run).
///
/// ```
/// use goldsmith::{Check, Create, Repair};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let disk = folder.path().join("disk.qcow2");
/// Create::new(&disk).format("qcow2").size(1 << 20).run()?;
/// let report = Check::new(&disk)
///     .format("qcow2")
///     .repair(Some(Repair::Leaks))
///     .run()?
///     .expect("a qcow2 has tables to check");
/// assert_eq!((report.checked.corruptions, report.leaks_fixed()), (0, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Check<'a> {
    subject: Subject,
    repair: Option<Repair>,
    watch: Watch<'a>,
}

/// What a check found, and what was mended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The format's name.
    pub format: &'static str,
    /// What is wrong now.
    pub checked: Checked,
    /// What was wrong before, if anything was mended.
    pub before: Option<Checked>,
    /// What was done for it.
    pub edited: Edited,
}

impl Report {
    /// How many flaws without harm were mended, of those that are told.
    pub fn notes_fixed(&self) -> u64 {
        let notes = |checked: &Checked| {
            let notes = checked.flaws.iter();
            notes.filter(|flaw| matches!(flaw, Flaw::Note(_))).count() as u64
        };
        let before = self.before.as_ref().map_or(0, notes);
        before.saturating_sub(notes(&self.checked))
    }

    /// How many broken rules were mended.
    pub fn corruptions_fixed(&self) -> u64 {
        let before = self.before.as_ref().map_or(0, |it| it.corruptions);
        before.saturating_sub(self.checked.corruptions)
    }

    /// How many wasted units were given back.
    pub fn leaks_fixed(&self) -> u64 {
        let before = self.before.as_ref().map_or(0, |it| it.leaks);
        before.saturating_sub(self.checked.leaks)
    }
}

impl<'a> Check<'a> {
    /// Looks at all tables of the image at `path`, and at nothing that it names.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            subject: Subject::new(path),
            repair: None,
            watch: Watch::default(),
        }
    }

    subject_methods!();
    watch_methods!(
        "how much of the tables was read before anything is mended.",
        subject.cancel
    );

    /// Sets what may be mended. Default: nothing, the file is only read.
    #[must_use]
    pub fn repair(mut self, repair: Option<Repair>) -> Self {
        self.repair = repair;
        self
    }

    /// Does it; `None` if the format has nothing to check.
    ///
    /// # Errors
    /// Those of opening the image, and of [`Editor::edit`](goldsmith_block::Editor::edit).
    pub fn run(&self) -> Result<Option<Report>> {
        // A rehearsal only reads.
        let mut subject = self.subject.clone();
        subject.dry_run |= self.repair.is_none();
        let mut open = subject.open()?;
        // The file that holds its data is opened while that can be done.
        let editor = self.repair.map(|repair| (repair, open.editor()));
        self.subject.opener.all_open(&[])?;
        let check = |open: &Open| {
            let checked = open.format.check(open.read(), &open.budget.afresh());
            checked.map_err(|error| error.in_file(open.path.to_string_lossy()))
        };
        let (tables, is_marked) = known(&open);
        let first = || check(&open);
        let Some(checked) = self.watch.over(&open.tap, Phase::Check, tables, first)? else {
            return Ok(None);
        };
        let mut report = Report {
            format: open.format.name(),
            checked,
            before: None,
            edited: Edited::default(),
        };
        let Some((repair, editor)) = editor else {
            return Ok(Some(report));
        };
        let is_sound = report.checked.is_flawless();
        if is_sound && !is_marked {
            return Ok(Some(report));
        }
        let mut editor = editor?;
        editor.edit(&Edit::Repair(repair))?;
        if let Some(checked) = check(&open)? {
            let before = std::mem::replace(&mut report.checked, checked);
            report.before = (!is_sound).then_some(before);
        }
        report.edited = open.done(&*editor);
        Ok(Some(report))
    }
}

/// About how many bytes of tables the image in `open` has, and whether it says of itself that something is
/// wrong with it, which QEMU takes back as it repairs it; nothing of one that does not open.
fn known(open: &Open) -> (u64, bool) {
    let Ok(layer) = open.format.open(open.read(), &open.budget.afresh()) else {
        return (0, false);
    };
    let info = layer.info();
    let is_marked = info.dirty || info.details.contains(&("corrupt", Detail::Flag(true)));
    (layer.tables_len(), is_marked)
}

/// Looks at all tables of the image at `path` without changing anything or opening what it names;
/// `format` as in [`Opener::open`]. Gives the format's name, too; `None` if that has nothing to
/// check.
///
/// # Errors
/// As [`Opener::open_alone`].
pub fn check(
    opener: &Opener,
    path: impl AsRef<Path>,
    format: Option<&str>,
) -> Result<Option<(&'static str, Checked)>> {
    let mut check = Check::new(path).opener(opener.clone());
    if let Some(format) = format {
        check = check.format(format);
    }
    let report = check.run()?;
    Ok(report.map(|report| (report.format, report.checked)))
}
