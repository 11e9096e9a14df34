//! What `info` says of an image that qemu-img does not: what ails it, which files it names, and what
//! else it could be taken for. Only what there is to say, and under our own name alone.

use std::io::{Result, Write};

use goldsmith::{Ailment, ImageInfo};
use serde_json::{Map, Value, json};

use crate::called;
use crate::output::human::shown;

/// For people; warnings are told elsewhere.
pub(super) fn lines(out: &mut impl Write, info: &ImageInfo) -> Result<()> {
    if called::qemu_img() {
        return Ok(());
    }
    if !info.named_files.is_empty() {
        writeln!(out, "Files that the image names:")?;
    }
    for file in &info.named_files {
        write!(out, "    {}: {}", file.role.name(), shown(&file.name))?;
        if let Some(format) = &file.format {
            write!(out, " ({})", shown(format))?;
        }
        match &file.refused {
            Some(why) => writeln!(out, ": {}", shown(why))?,
            None => writeln!(out)?,
        }
    }
    if !info.also_looks_like.is_empty() {
        writeln!(
            out,
            "The file also looks like: {}",
            info.also_looks_like.join(", ")
        )?;
    }
    if !info.content_looks_like.is_empty() {
        writeln!(
            out,
            "The disk looks like: {}{}",
            info.content_looks_like.join(", "),
            match info.content_looks_like[..] {
                ["unknown"] => " (to unpack its ends takes too long)",
                _ => "",
            }
        )?;
    }
    let symptoms = info.symptoms.iter();
    let mut symptoms = symptoms
        .filter(|symptom| symptom.ailment != Ailment::Warning)
        .peekable();
    if symptoms.peek().is_some() {
        writeln!(out, "Health:")?;
    }
    symptoms.try_for_each(|symptom| {
        let ailment = symptom.ailment.name().replace('-', " ");
        writeln!(out, "    {ailment}: {}", shown(&symptom.text))
    })
}

/// For programs.
pub(super) fn facts(facts: &mut Map<String, Value>, info: &ImageInfo) {
    if called::qemu_img() {
        return;
    }
    let files = info.named_files.iter().map(|file| {
        let mut facts = Map::new();
        facts.insert("role".into(), json!(file.role.name().replace(' ', "-")));
        facts.insert("name".into(), json!(file.name));
        if let Some(format) = &file.format {
            facts.insert("format".into(), json!(format));
        }
        if let Some(why) = &file.refused {
            facts.insert("refused".into(), json!(why));
        }
        Value::Object(facts)
    });
    let symptoms = info.symptoms.iter();
    let symptoms =
        symptoms.map(|symptom| json!({ "ailment": symptom.ailment.name(), "text": symptom.text }));
    let names = |names: &[&'static str]| names.iter().map(|name| json!(name)).collect();
    for (key, list) in [
        ("named-files", files.collect()),
        ("also-looks-like", names(&info.also_looks_like)),
        ("content-looks-like", names(&info.content_looks_like)),
        ("symptoms", symptoms.collect()),
    ] {
        let list: Vec<Value> = list;
        if !list.is_empty() {
            facts.insert(key.into(), Value::Array(list));
        }
    }
}
