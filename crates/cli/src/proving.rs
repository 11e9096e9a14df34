//! Options for digests, and for proving that a target is what it shall be.

use std::io::{Write, stdout};
use std::path::Path;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use goldsmith::{Algorithm, Convert, Converted, Digest, ErrorKind};
use serde_json::{Map, Value, json};

use crate::exit::{self, Failure};
use crate::options::OutputFormat;
use crate::output::json::line;
use crate::progress::Showing;

/// What a conversion shall tell of its target.
#[derive(Args)]
pub(crate) struct Proving {
    /// Print digests of the disk, computed while it is converted: those of the same disk as RAW. With -n
    /// and a larger target, of the source in whole sectors, not of what the target has behind it.
    /// All data is read then, and no block is shared. (With --resume they are computed at the end, of
    /// the target)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = algorithm())]
    digest: Vec<Algorithm>,

    /// Print digests of the target file, for which it is read once more; on a device, of the new image
    /// there. With -n, of the whole file or device, though the image be a part of it
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = algorithm())]
    file_digest: Vec<Algorithm>,

    /// Read the target back before it takes its name, and give up if its disk has not the digests
    /// that the source has: those of --digest, or fsverity. With -n the target has its name already; it is
    /// read back as far as the source reaches. (With --resume: if it does not hold the
    /// same bytes as the source, which is read once more)
    #[arg(long)]
    verify: bool,

    /// For whom what was done is told: for a program as one line of JSON
    #[arg(long, value_enum, default_value = "human", value_name = "FOR")]
    output: OutputFormat,
}

impl Proving {
    /// How many phases the conversion has; with a journal the target is held against the source, and
    /// digests are made of it.
    pub(crate) fn phases(&self, with_journal: bool) -> usize {
        let compared = with_journal && self.verify;
        let read_back = self.verify || with_journal && !self.digest.is_empty();
        let phases = [compared, read_back, !self.file_digest.is_empty()];
        1 + phases.into_iter().map(usize::from).sum::<usize>()
    }

    /// Adds it to `convert`.
    pub(crate) fn of<'a>(&self, convert: Convert<'a>) -> Convert<'a> {
        let convert = convert.verify(self.verify);
        let digests = self.digest.iter().copied();
        let convert = digests.fold(convert, Convert::digest);
        let digests = self.file_digest.iter().copied();
        digests.fold(convert, Convert::file_digest)
    }

    /// Fails if progress and result cannot both be read.
    pub(crate) fn must_fit(&self, showing: &Showing) -> Result<(), Failure> {
        showing.must_fit(self.output)
    }

    /// Whether what was done is told as JSON.
    pub(crate) fn is_for_programs(&self, showing: &Showing) -> bool {
        // Whoever reads progress as JSON reads nothing else.
        matches!(
            (self.output, showing.format()),
            (OutputFormat::Json, _) | (_, Some(OutputFormat::Json))
        )
    }

    /// Tells what was `done`.
    pub(crate) fn say(&self, done: &Converted, showing: &Showing) -> Result<(), Failure> {
        if self.is_for_programs(showing) {
            return line(&mut stdout(), &json(done));
        }
        exit::warn(&done.warnings);
        let mut out = stdout().lock();
        let is_whole = done.digested == done.virtual_size;
        if done.verified || !self.digest.is_empty() {
            let front = match is_whole {
                true => String::new(),
                false => format!(" of its first {} bytes", done.digested),
            };
            for digest in &done.digests {
                writeln!(out, "disk {}{front}: {digest}", digest.algorithm())?;
            }
        }
        for digest in &done.file_digests {
            writeln!(out, "file {}: {digest}", digest.algorithm())?;
        }
        if done.verified {
            let there = match is_whole {
                true => "",
                false => " at its beginning",
            };
            writeln!(
                out,
                "verified: the target was read back and holds this disk{there}"
            )?;
        }
        Ok(())
    }
}

fn json(done: &Converted) -> Value {
    let mut told = json!({
        "virtual-size": done.virtual_size,
        "file-length": done.file_len,
        "data": done.data,
        "digests": by_name(&done.digests),
        "file-digests": by_name(&done.file_digests),
        "verified": done.verified,
        "warnings": done.warnings,
    });
    if done.lost > 0 {
        told["lost"] = done.lost.into();
    }
    if let Some(written) = done.written {
        told["written"] = written.into();
        told["digested"] = done.digested.into();
    }
    told
}

/// Digests for a program, each by the name of its algorithm.
pub(crate) fn by_name(digests: &[Digest]) -> Value {
    let pair = |digest: &Digest| (digest.algorithm().to_string(), json!(digest.to_string()));
    Value::Object(digests.iter().map(pair).collect::<Map<_, _>>())
}

/// The name of an algorithm, for clap.
pub(crate) fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    let names = Algorithm::ALL.iter().map(|algorithm| algorithm.name());
    // Only names of algorithms come through.
    PossibleValuesParser::new(names).map(|name| Algorithm::named(&name).unwrap_or_default())
}

/// What a conversion into `target` that was stopped leaves there.
pub(crate) fn stopped(error: goldsmith::Error, target: &Path) -> Failure {
    if error.kind() != ErrorKind::Cancelled {
        return error.into();
    }
    let shown = target.display();
    let left = match std::fs::metadata(target) {
        Ok(found) if found.is_file() => format!("{shown} is what it was before"),
        Ok(_) => format!("{shown} holds only a part of the disk"),
        Err(_) => format!("no {shown} was made"),
    };
    Failure::with_status(exit::STOPPED, format!("stopped on request: {left}"))
}
