//! For programs: qemu-img's keys and types, in its order.

use std::io::{BufWriter, Write};
use std::path::Path;

use goldsmith::{
    Chain, Cloud, Detail, Finding, Flaw, GuestRange, ImageInfo, MapEntry, Measurement, Report,
    Snapshot,
};
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Serializer, Value, json};

use crate::exit::Failure;
use crate::output::beyond;
use crate::output::plain::Plain;

/// The facts about an image, as `qemu-img info --output=json` gives them.
pub(crate) fn info(
    out: &mut impl Write,
    info: &ImageInfo,
    name: Option<&str>,
) -> Result<(), Failure> {
    pretty(out, &image(info, name))
}

/// The facts about an image and all behind it, as `qemu-img info --backing-chain` gives them.
pub(crate) fn chain_info(
    out: &mut impl Write,
    infos: &[ImageInfo],
    name: Option<&str>,
) -> Result<(), Failure> {
    let names = std::iter::once(name).chain(std::iter::repeat(None));
    let images = infos
        .iter()
        .zip(names)
        .map(|(info, name)| image(info, name));
    pretty(out, &images.collect::<Vec<_>>())
}

/// The facts about an image, which is called by its path if it has no `name`.
fn image(info: &ImageInfo, name: Option<&str>) -> Map<String, Value> {
    let filename = info.path.to_string_lossy();
    let layer = &info.layer;
    let mut facts = Map::new();
    let mut say = |key: &str, value: Value| {
        facts.insert(key.to_owned(), value);
    };
    say(
        "children",
        json!([{
            "name": "file",
            "info": {
                "children": [],
                "virtual-size": info.file_len,
                "filename": filename,
                "format": "file",
                "actual-size": info.allocated,
                "format-specific": { "type": "file", "data": {} },
                "dirty-flag": false,
            },
        }]),
    );
    if let Some(format) = layer
        .backing
        .as_ref()
        .and_then(|backing| backing.format.as_ref())
    {
        say("backing-filename-format", json!(format));
    }
    if !layer.snapshots.is_empty() {
        say("snapshots", layer.snapshots.iter().map(snapshot).collect());
    }
    say("virtual-size", json!(layer.virtual_size));
    say("filename", json!(name.unwrap_or(&filename)));
    if let Some(unit) = layer.unit {
        say("cluster-size", json!(unit));
    }
    say("format", json!(layer.format));
    say("actual-size", json!(info.allocated));
    if !layer.details.is_empty() {
        let data = record(&layer.details);
        say(
            "format-specific",
            json!({ "type": layer.format, "data": data }),
        );
    }
    if let Some(path) = info.backing_path() {
        say("full-backing-filename", json!(path.to_string_lossy()));
    }
    if layer.encrypted {
        say("encrypted", json!(true));
    }
    if let Some(backing) = &layer.backing {
        say("backing-filename", json!(backing.name));
    }
    say("dirty-flag", json!(layer.dirty));
    beyond::facts(&mut facts, info);
    facts
}

/// `value` as qemu-img lays JSON out.
pub(crate) fn pretty(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    laid_out(out, value, Plain::pretty())
}

/// `value` on one line.
pub(crate) fn line(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    laid_out(out, value, Plain::compact())
}

fn laid_out(
    out: &mut impl Write,
    value: &impl Serialize,
    layout: impl Formatter,
) -> Result<(), Failure> {
    // Standard output is written line by line, and these are short.
    let mut out = BufWriter::new(out);
    let mut serializer = Serializer::with_formatter(&mut out, layout);
    value
        .serialize(&mut serializer)
        .map_err(std::io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

fn value(detail: &Detail) -> Value {
    match detail {
        Detail::Flag(on) => json!(on),
        Detail::Number(number) => json!(number),
        Detail::Text(text) => json!(text),
        Detail::List(items) => items.iter().map(value).collect(),
        Detail::Record(fields) => record(fields),
    }
}

fn snapshot(snapshot: &Snapshot) -> Value {
    let mut facts = Map::new();
    if let Some(count) = snapshot.vm_instructions {
        facts.insert("icount".to_owned(), json!(count));
    }
    let clock = snapshot.vm_clock_nanoseconds;
    for (key, value) in [
        ("vm-clock-nsec", json!(clock % 1_000_000_000)),
        ("name", json!(snapshot.name)),
        ("date-sec", json!(snapshot.taken_seconds)),
        ("date-nsec", json!(snapshot.taken_nanoseconds)),
        ("vm-clock-sec", json!(clock / 1_000_000_000)),
        ("id", json!(snapshot.id)),
        ("vm-state-size", json!(snapshot.vm_state_len)),
    ] {
        facts.insert(key.to_owned(), value);
    }
    Value::Object(facts)
}

fn record(fields: &[(&'static str, Detail)]) -> Value {
    let fields = fields.iter();
    fields
        .map(|(key, detail)| ((*key).to_owned(), value(detail)))
        .collect()
}

/// The runs of a part of a disk, as `qemu-img map --output=json` gives them: one object to a line.
pub(crate) fn map(
    out: &mut impl Write,
    chain: &Chain,
    range: GuestRange,
    begin: u64,
) -> Result<(), Failure> {
    let mut separator = "[";
    for entry in goldsmith::map_range(chain, range) {
        let mut entry = entry?;
        entry.offset = entry.offset.map(|offset| offset + begin);
        run(out, separator, &entry)?;
        separator = ",\n";
    }
    if separator == "[" {
        // [qemu] There is always one, be it empty.
        write!(
            out,
            "[{{ \"start\": {}, \"length\": 0, \"depth\": 0, \"present\": false, \"zero\": false, \
             \"data\": false, \"compressed\": false}}",
            range.start,
        )?;
    }
    writeln!(out, "]")?;
    out.flush()?;
    Ok(())
}

fn run(out: &mut impl Write, separator: &str, entry: &MapEntry) -> std::io::Result<()> {
    write!(
        out,
        "{separator}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
         \"data\": {}, \"compressed\": {}",
        entry.range.start,
        entry.range.len(),
        entry.depth,
        entry.present,
        entry.zero,
        entry.data,
        entry.compressed,
    )?;
    if let Some(offset) = entry.offset {
        write!(out, ", \"offset\": {offset}")?;
    }
    write!(out, "}}")
}

/// How long a target would become, as `qemu-img measure --output=json` gives it, and exactly.
pub(crate) fn measure(out: &mut impl Write, measured: &Measurement) -> Result<(), Failure> {
    let mut facts = Map::new();
    let mut say = |key: &str, value: u64| {
        facts.insert(key.to_owned(), json!(value));
    };
    if let Some(bitmaps) = measured.bitmaps {
        say("bitmaps", bitmaps);
    }
    say("required", measured.required);
    say("fully-allocated", measured.fully_allocated);
    if let Some(exact) = measured.exact {
        say("exact", exact);
    }
    pretty(out, &facts)
}

/// What a check found and what was mended, as `qemu-img check --output=json` gives it, and each flaw.
pub(crate) fn check(image: &Path, report: &Report) -> Value {
    let (format, checked) = (report.format, &report.checked);
    let mut facts = Map::new();
    let mut say = |key: &str, value: Value| {
        facts.insert(key.to_owned(), value);
    };
    say("image-end-offset", json!(checked.end));
    if checked.compressed > 0 {
        say("compressed-clusters", json!(checked.compressed));
    }
    if checked.units > 0 {
        say("total-clusters", json!(checked.units));
    }
    if checked.corruptions > 0 {
        say("corruptions", json!(checked.corruptions));
    }
    if report.corruptions_fixed() > 0 {
        say("corruptions-fixed", json!(report.corruptions_fixed()));
    }
    say("check-errors", json!(checked.errors));
    if report.leaks_fixed() > 0 {
        say("leaks-fixed", json!(report.leaks_fixed()));
    }
    if checked.leaks > 0 {
        say("leaks", json!(checked.leaks));
    }
    if checked.allocated > 0 {
        say("allocated-clusters", json!(checked.allocated));
    }
    say("filename", json!(image.to_string_lossy()));
    say("format", json!(format));
    if checked.fragmented > 0 {
        say("fragmented-clusters", json!(checked.fragmented));
    }
    if !checked.flaws.is_empty() {
        let flaws = checked.flaws.iter().map(|flaw| match flaw {
            Flaw::Corruption(text) => json!({ "corruption": text }),
            Flaw::Leak(text) => json!({ "leak": text }),
            Flaw::Note(text) => json!({ "note": text }),
        });
        say("flaws", flaws.collect());
    }
    Value::Object(facts)
}

/// What a cloud would refuse.
pub(crate) fn lint(
    out: &mut impl Write,
    image: &Path,
    cloud: &Cloud,
    findings: &[Finding],
) -> Result<(), Failure> {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            let mut entry = json!({
                "fact": finding.rule.fact,
                "found": finding.found,
                "must-be": finding.wanted,
                "reason": finding.rule.reason,
                "mend": finding.rule.mend_for(cloud, image),
            });
            if let Some(member) = &finding.member {
                entry["member"] = json!(member);
            }
            entry
        })
        .collect();
    let report = json!({
        "filename": image.to_string_lossy(),
        "cloud": cloud.name,
        "findings": findings,
    });
    pretty(out, &report)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what it is asked.
    struct Calls(usize);

    impl Write for Calls {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Each costs a call of the system, of which `info` on a hostile image would make millions.
    #[test]
    fn short_lines_are_written_together() {
        let mut calls = Calls(0);
        pretty(&mut calls, &vec![1; 10_000]).unwrap();
        assert!(calls.0 < 100, "{}", calls.0);
    }
}
