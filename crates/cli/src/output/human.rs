//! For people.

use std::io::{Result, Write};
use std::path::Path;

use goldsmith::{
    Chain, Checked, Cloud, Detail, Edited, Finding, Flaw, Format, GuestRange, ImageInfo,
    Measurement, OptionKind, OptionSpec, Report, Snapshot,
};
use jiff::Timestamp;

use crate::exit::Failure;
use crate::local_time;
use crate::output::beyond;
use crate::output::style::{BAD, DOUBTFUL, GOOD};

/// The facts about an image, as `qemu-img info` lays them out; called by its path if it has no `name`.
pub(crate) fn info(out: &mut impl Write, info: &ImageInfo, name: Option<&str>) -> Result<()> {
    let layer = &info.layer;
    match name {
        Some(name) => writeln!(out, "image: {}", shown(name))?,
        None => writeln!(out, "image: {}", shown(&info.path.to_string_lossy()))?,
    }
    writeln!(out, "file format: {}", layer.format)?;
    let size = layer.virtual_size;
    writeln!(out, "virtual size: {} ({size} bytes)", rounded(size))?;
    writeln!(out, "disk size: {}", rounded(info.allocated))?;
    if layer.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    if let Some(unit) = layer.unit {
        writeln!(out, "cluster_size: {unit}")?;
    }
    if layer.dirty {
        writeln!(out, "cleanly shut down: no")?;
    }
    if let Some(backing) = &layer.backing {
        write!(out, "backing file: {}", shown(&backing.name))?;
        let path = info
            .backing_path()
            .unwrap_or_default()
            .display()
            .to_string();
        if path != backing.name {
            write!(out, " (actual path: {})", shown(&path))?;
        }
        writeln!(out)?;
        if let Some(format) = &backing.format {
            writeln!(out, "backing file format: {}", shown(format))?;
        }
    }
    if !layer.snapshots.is_empty() {
        snapshot_list(out, &layer.snapshots)?;
    }
    if !layer.details.is_empty() {
        writeln!(out, "Format specific information:")?;
    }
    for (name, value) in &layer.details {
        detail(out, 1, name, value)?;
    }
    writeln!(out, "Child node '/file':")?;
    let path = info.path.to_string_lossy();
    writeln!(out, "    filename: {}", shown(&path))?;
    writeln!(out, "    protocol type: file")?;
    writeln!(
        out,
        "    file length: {} ({} bytes)",
        rounded(info.file_len),
        info.file_len
    )?;
    writeln!(out, "    disk size: {}", rounded(info.allocated))?;
    beyond::lines(out, info)
}

/// A table of snapshots, as `qemu-img info` and `qemu-img snapshot -l` show it.
pub(crate) fn snapshot_list(out: &mut impl Write, snapshots: &[Snapshot]) -> Result<()> {
    writeln!(out, "Snapshot list:")?;
    let mut row = |cells: [&str; 6]| {
        let [id, tag, size, date, clock, icount] = cells;
        writeln!(
            out,
            "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}"
        )
    };
    row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
    for snapshot in snapshots {
        let taken = Timestamp::from_second(snapshot.taken_seconds.into());
        let date = taken.map(|taken| {
            let local = taken.to_zoned(local_time::zone());
            local.strftime("%Y-%m-%d %H:%M:%S").to_string()
        });
        let milliseconds = snapshot.vm_clock_nanoseconds / 1_000_000;
        let seconds = milliseconds / 1000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            milliseconds % 1000
        );
        let icount = snapshot.vm_instructions.map(|count| count.to_string());
        row([
            &shown(&snapshot.id),
            &shown(&snapshot.name),
            &rounded(snapshot.vm_state_len),
            // Any 32-bit number of seconds is a time.
            &date.unwrap_or_default(),
            &clock,
            icount.as_deref().unwrap_or("--"),
        ])?;
    }
    Ok(())
}

/// One fact, and those it is made of, each level further in.
fn detail(out: &mut impl Write, depth: usize, name: &str, value: &Detail) -> Result<()> {
    write!(
        out,
        "{:width$}{}:",
        "",
        name.replace('-', " "),
        width = 4 * depth
    )?;
    match value {
        Detail::Flag(on) => writeln!(out, " {on}"),
        Detail::Number(number) => writeln!(out, " {number}"),
        Detail::Text(text) => writeln!(out, " {}", shown(text)),
        Detail::List(items) => {
            writeln!(out)?;
            let mut items = items.iter().enumerate();
            items.try_for_each(|(nth, item)| detail(out, depth + 1, &format!("[{nth}]"), item))
        }
        Detail::Record(fields) => {
            writeln!(out)?;
            let mut fields = fields.iter();
            fields.try_for_each(|(name, value)| detail(out, depth + 1, name, value))
        }
    }
}

/// The stored runs of a part of a disk, as `qemu-img map` lays them out.
pub(crate) fn map(
    out: &mut impl Write,
    chain: &Chain,
    range: GuestRange,
    begin: u64,
) -> std::result::Result<(), Failure> {
    writeln!(
        out,
        "{:<16}{:<16}{:<16}File",
        "Offset", "Length", "Mapped to"
    )?;
    for entry in goldsmith::map_range(chain, range) {
        let entry = entry?;
        if !entry.data || entry.zero {
            continue;
        }
        let Some(offset) = entry.offset else {
            out.flush()?;
            let text = "the image has compressed or encrypted clusters, which have no place to \
                        show; use --output=json";
            return Err(Failure::with_status(1, text));
        };
        let offset = offset + begin;
        let file = chain.layers()[entry.depth].data_storage().name();
        let (start, len) = (hex(entry.range.start), hex(entry.range.len()));
        writeln!(
            out,
            "{start:<16}{len:<16}{:<16}{}",
            hex(offset),
            shown(file)
        )?;
    }
    out.flush()?;
    Ok(())
}

/// How long a target would become, as `qemu-img measure` says it, and what it cannot say.
pub(crate) fn measure(out: &mut impl Write, measured: &Measurement) -> Result<()> {
    writeln!(out, "required size: {}", measured.required)?;
    writeln!(out, "fully allocated size: {}", measured.fully_allocated)?;
    if let Some(bitmaps) = measured.bitmaps {
        writeln!(out, "bitmaps size: {bitmaps}")?;
    }
    if let Some(exact) = measured.exact {
        writeln!(out, "exact size: {exact}")?;
    }
    Ok(())
}

/// What a check found, and what was mended, as `qemu-img check` says it; the flaws go where it puts
/// them, too.
pub(crate) fn check(out: &mut impl Write, report: &Report, quiet: bool) -> Result<()> {
    if let Some(before) = &report.before {
        flaws(before)?;
        if !quiet {
            let (leaks, corruptions) = (report.leaks_fixed(), report.corruptions_fixed());
            let notes = report.notes_fixed();
            let notes = match notes {
                0 => String::new(),
                notes => format!("\n    {notes} without harm"),
            };
            writeln!(
                out,
                "The following inconsistencies were found and repaired:\n\n    {leaks} leaked \
                 clusters\n    {corruptions} corruptions{notes}\n\nDouble checking the fixed image \
                 now..."
            )?;
        }
    }
    checked(out, &report.checked, quiet)
}

/// What a check found, and what would be done to mend it.
pub(crate) fn repairs(out: &mut impl Write, report: &Report, quiet: bool) -> Result<()> {
    checked(
        out,
        report.before.as_ref().unwrap_or(&report.checked),
        quiet,
    )?;
    steps(out, &report.edited)?;
    if report.before.is_some() && !quiet {
        let Checked {
            corruptions, leaks, ..
        } = report.checked;
        writeln!(
            out,
            "{corruptions} errors and {leaks} leaked clusters would be left"
        )?;
    }
    Ok(())
}

fn checked(out: &mut impl Write, checked: &Checked, quiet: bool) -> Result<()> {
    flaws(checked)?;
    if quiet {
        return Ok(());
    }
    let (corruptions, leaks) = (checked.corruptions, checked.leaks);
    if corruptions == 0 && leaks == 0 && checked.errors == 0 {
        writeln!(out, "{GOOD}No errors were found on the image.{GOOD:#}")?;
    }
    if corruptions > 0 {
        writeln!(
            out,
            "\n{BAD}{corruptions} errors were found on the image.{BAD:#}"
        )?;
        let text = "Data may be corrupted, or further writes to the image may corrupt it.";
        writeln!(out, "{text}")?;
    }
    if leaks > 0 {
        writeln!(
            out,
            "\n{DOUBTFUL}{leaks} leaked clusters were found on the image.{DOUBTFUL:#}"
        )?;
        writeln!(out, "This means waste of disk space, but no harm to data.")?;
    }
    if checked.errors > 0 {
        let errors = checked.errors;
        writeln!(
            out,
            "\n{errors} internal errors have occurred during the check."
        )?;
    }
    if checked.units > 0 && checked.allocated > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
        let (units, allocated) = (checked.units, checked.allocated);
        writeln!(
            out,
            "{allocated}/{units} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, units),
            percent(checked.fragmented, allocated),
            percent(checked.compressed, allocated),
        )?;
    }
    writeln!(out, "Image end offset: {}", checked.end)
}

fn flaws(checked: &Checked) -> Result<()> {
    for flaw in &checked.flaws {
        let (style, word, text) = match flaw {
            Flaw::Corruption(text) => (BAD, "ERROR", text),
            Flaw::Leak(text) => (DOUBTFUL, "Leaked:", text),
            Flaw::Note(text) => (DOUBTFUL, "Note:", text),
        };
        writeln!(anstream::stderr(), "{style}{word}{style:#} {}", shown(text))?;
    }
    Ok(())
}

/// What a cloud would refuse, a paragraph for each finding.
pub(crate) fn lint(
    out: &mut impl Write,
    image: &Path,
    cloud: &Cloud,
    findings: &[Finding],
) -> Result<()> {
    if findings.is_empty() {
        return writeln!(
            out,
            "{GOOD}{}: nothing that {} would refuse{GOOD:#}",
            shown(&image.to_string_lossy()),
            cloud.name
        );
    }
    for finding in findings {
        let rule = finding.rule;
        let (fact, found) = (rule.fact, shown(&finding.found));
        let wanted = &finding.wanted;
        let of = finding
            .member
            .iter()
            .map(|name| format!(" of {}", shown(name)));
        let of: String = of.collect();
        writeln!(
            out,
            "{BAD}{fact}{of} is {found}; it must be {wanted}{BAD:#}"
        )?;
        writeln!(out, "    why:  {}", rule.reason)?;
        writeln!(out, "    mend: {}", shown(&rule.mend_for(cloud, image)))?;
    }
    Ok(())
}

/// What `-o help` says of a new image.
pub(crate) fn creation_options(out: &mut impl Write, options: &[OptionSpec]) -> Result<()> {
    writeln!(out, "Supported options:")?;
    option_list(out, options)
}

/// What `amend -o help` says.
pub(crate) fn amend_options(
    out: &mut impl Write,
    format: &dyn Format,
) -> std::result::Result<(), Failure> {
    let name = format.name();
    if format.amend_options().is_empty() {
        let text = format!("Format driver '{name}' does not support option amendment");
        return Err(Failure::with_status(1, text));
    }
    writeln!(out, "Amend options for '{name}':")?;
    option_list(out, format.amend_options())?;
    Ok(())
}

fn option_list(out: &mut impl Write, options: &[OptionSpec]) -> Result<()> {
    for option in options {
        let values = match option.kind {
            OptionKind::Flag => "on|off".to_owned(),
            OptionKind::Size => "size".to_owned(),
            OptionKind::Text => "text".to_owned(),
            OptionKind::Secret => "id".to_owned(),
            OptionKind::Choice(words) => words.join("|"),
        };
        let key = format!("{}=<{values}>", option.name);
        writeln!(
            out,
            "  {key:<36} - {} (default: {})",
            option.help, option.default
        )?;
    }
    Ok(())
}

/// The order in which qemu-img says with which options it makes an image. [qemu]
const FORMATTING: &[&str] = &[
    "encryption",
    "encrypt.format",
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
    "cluster_size",
    "extended_l2",
    "preallocation",
    "compression_type",
    "size",
    "compat",
    "backing_file",
    "backing_fmt",
    "data_file",
    "data_file_raw",
    "lazy_refcounts",
    "refcount_bits",
    "subformat",
    "force_size",
];
/// Those that it says also if nobody gave them. [qemu]
const ALWAYS: &[&str] = &[
    "cluster_size",
    "extended_l2",
    "compression_type",
    "lazy_refcounts",
    "refcount_bits",
];

/// What `create` makes, as qemu-img says it.
pub(crate) fn formatting(
    out: &mut impl Write,
    image: &Path,
    format: &dyn Format,
    size: u64,
    given: &[(String, String)],
) -> Result<()> {
    // The order is that of qcow2; a raw image tells its size first.
    let mut keys: Vec<&str> = match format.options().iter().any(|it| it.name == "cluster_size") {
        true => Vec::new(),
        false => vec!["size"],
    };
    let given_keys = given.iter().map(|(key, _)| &**key);
    for key in FORMATTING.iter().copied().chain(given_keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let image = shown(&image.to_string_lossy());
    write!(out, "Formatting '{image}', fmt={}", format.name())?;
    for key in keys {
        if key == "size" {
            write!(out, " size={size}")?;
            continue;
        }
        let Some(spec) = format.options().iter().find(|it| it.name == key) else {
            continue;
        };
        let value = given.iter().rfind(|(name, _)| name == key);
        let value = value.map(|(_, value)| &**value);
        let Some(value) = value.or_else(|| ALWAYS.contains(&key).then_some(spec.default)) else {
            continue;
        };
        let bytes = (spec.kind == OptionKind::Size)
            .then(|| goldsmith::parse_size(value))
            .flatten();
        match bytes {
            Some(bytes) => write!(out, " {key}={bytes}")?,
            None => write!(out, " {key}={}", shown(&value.replace(',', ",,")))?,
        }
    }
    writeln!(out)
}

/// What an edit would do, a line for each step.
pub(crate) fn steps(out: &mut impl Write, edited: &Edited) -> Result<()> {
    for (path, step) in &edited.steps {
        writeln!(out, "{}: {step}", shown(&path.to_string_lossy()))?;
    }
    if edited.copied > 0 {
        writeln!(out, "{} bytes of guest data to be written", edited.copied)?;
    }
    Ok(())
}

/// [qemu] C's `%#x` writes zero without a prefix.
fn hex(number: u64) -> String {
    if number == 0 {
        "0".to_owned()
    } else {
        format!("{number:#x}")
    }
}

/// Text from an image, safe to show on a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || turns_text(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Whether `c` makes a terminal show what follows in another order, or on another line. [Unicode
/// "Bidi_Control", "Line_Break"]
fn turns_text(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// A size with three significant digits and a unit. [qemu] From 1000 of one unit on it shows the
/// next one.
pub(crate) fn rounded(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 || value == 0.0 => 2,
        _ => 3,
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{number} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_as_qemu_img_rounds_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999_936, "976 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_079_296, "1.03 MiB"),
            (1 << 20, "1 MiB"),
            (10 << 30, "10 GiB"),
            (328_192, "320 KiB"),
        ] {
            assert_eq!(rounded(bytes), text);
        }
    }

    #[test]
    fn control_characters_of_an_image_never_reach_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        // To be read as "base.raw".
        assert_eq!(shown("base\u{202e}war."), "base\u{fffd}war.");
        assert_eq!(shown("голд\u{e9}\u{65e5}"), "голд\u{e9}\u{65e5}");
    }
}
