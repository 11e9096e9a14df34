//! The formats there are. A new one is one line here.

use goldsmith_block::{Error, Format, Match, Probe, Result, Storage};

/// Every format, in the order to list them.
pub static FORMATS: &[&dyn Format] = &[
    &goldsmith_raw::RAW,
    &goldsmith_qcow2::QCOW2,
    &goldsmith_vhd::VHD,
];

/// The format called `name`, by its own name or an alias.
///
/// # Errors
/// `Usage` if there is none.
pub fn format_named(name: &str) -> Result<&'static dyn Format> {
    let found = FORMATS
        .iter()
        .find(|format| format.name() == name || format.aliases().contains(&name));
    found.copied().ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
        Error::usage(format!(
            "unknown format '{name}'; there are: {}",
            known.join(", ")
        ))
    })
}

/// The format of the bytes in `storage`, by the marks it carries.
///
/// A guess: whoever wrote the image decides its outcome. Callers who know the format should say so.
///
/// # Errors
/// `Usage` if the bytes carry the marks of several formats; `Io` if they cannot be read.
pub fn probe(storage: &dyn Storage) -> Result<&'static dyn Format> {
    let mut head = [0; Probe::HEAD];
    let mut tail = [0; Probe::TAIL];
    let head = &mut head[..storage.len().min(Probe::HEAD as u64) as usize];
    let tail = &mut tail[..storage.len().min(Probe::TAIL as u64) as usize];
    storage.read_at(0, head)?;
    storage.read_at(storage.len() - tail.len() as u64, tail)?;
    let probe = Probe { head, tail };

    let best = FORMATS
        .iter()
        .map(|format| format.probe(&probe))
        .max()
        .unwrap_or(Match::No);
    let matches: Vec<_> = FORMATS
        .iter()
        .filter(|format| format.probe(&probe) == best)
        .copied()
        .collect();
    match matches[..] {
        [format] if best != Match::No => Ok(format),
        _ => {
            let names: Vec<_> = matches.iter().map(|format| format.name()).collect();
            Err(Error::usage(format!(
                "the file could be any of {}; say which it is with the format option",
                names.join(", ")
            ))
            .in_file(storage.name()))
        }
    }
}
