//! `goldsmith dd`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::called;
use crate::exit::{self, Failure};
use crate::names;
use crate::options::{Opening, Spelling};
use crate::progress::Showing;
use crate::sandbox;

/// Copy a part of a disk into a new image
///
/// Counts in blocks of the guest's bytes, whatever the formats. As in qemu-img, and other than in
/// dd(1), count= counts from the start of the disk, so the blocks that skip= leaves out are among
/// them. Holes stay holes, and the new image takes its name when it is complete.
#[derive(Args)]
#[command(
    override_usage = "goldsmith dd [OPTIONS] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=IMAGE of=TARGET",
    after_long_help = "\
Examples:
  The first mebibyte of a disk:
    goldsmith dd -f qcow2 bs=1M count=1 if=disk.qcow2 of=start.raw
  All but that:
    goldsmith dd -f qcow2 -O qcow2 bs=1M skip=1 if=disk.qcow2 of=rest.qcow2"
)]
pub(crate) struct Dd {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Format of the target
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    output_format: String,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// if=IMAGE to read; of=TARGET to write; bs=SIZE of a block (512); count=BLOCKS of the disk
    /// that are looked at (all); skip=BLOCKS of them that are left out (none)
    #[arg(value_name = "OPERAND", required = true)]
    operands: Vec<OsString>,
}

/// What the operands say; of each the last one counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Operands {
    source: Option<PathBuf>,
    target: Option<PathBuf>,
    block: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut operands = Self::default();
        for word in words {
            let bytes = word.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=');
            let (key, value) = bytes.split_at(at.unwrap_or(bytes.len()));
            let key = String::from_utf8_lossy(key);
            let value = OsStr::from_bytes(value.get(1..).unwrap_or_default());
            let path = || Some(PathBuf::from(value));
            match &*key {
                _ if at.is_none() => return Err(format!("unrecognized operand {key}")),
                "if" => operands.source = path(),
                "of" => operands.target = path(),
                // [qemu] No block is longer.
                "bs" => operands.block = Some(number(&key, value, 1, i32::MAX as u64)?),
                "count" => operands.count = Some(number(&key, value, 0, i64::MAX as u64)?),
                "skip" => operands.skip = number(&key, value, 0, i64::MAX as u64)?,
                _ => return Err(format!("unrecognized operand {key}")),
            }
        }
        Ok(operands)
    }

    /// The bytes meant: from where, and up to where.
    fn bytes(&self) -> (u64, u64) {
        let block = self.block.unwrap_or(512);
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        (bytes(self.skip), self.count.map_or(u64::MAX, bytes))
    }
}

fn number(key: &str, value: &OsStr, least: u64, most: u64) -> Result<u64, String> {
    let text = value.to_string_lossy();
    match goldsmith::parse_size(&text) {
        Some(number) if (least..=most).contains(&number) => Ok(number),
        Some(_) => Err(format!(
            "Invalid {key} specified. Must be between {least} and {most}."
        )),
        None => Err(format!("Invalid {key} specified: '{text}'.")),
    }
}

impl Dd {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let operands = Operands::parse(&self.operands);
        let operands = operands.map_err(|why| Failure::with_status(1, why))?;
        let (Some(source), Some(target)) = (&operands.source, &operands.target) else {
            let text = "Must specify both input and output files (if= and of=)";
            return Err(Failure::with_status(1, text));
        };
        let source = self.spelling.source(source, self.format.as_deref())?;
        let format = called::target_format(&self.output_format)?.name();
        let watch = Showing::default().watch(true, 1);
        let (start, end) = operands.bytes();
        let target = names::whole_file(target)?.path;
        let mut reach = self.opening.reach_of(&source.path);
        reach.target(&target);
        sandbox::narrow(&reach)?;
        let mut convert = goldsmith::Convert::new(&source.path, target)
            .opener(source.opener(self.opening.opener()))
            .target_format(format)
            .between(start, end)
            // [qemu] Whatever the last block leaves of what the format keeps together is zeros.
            .round_up(true)
            .cancel(watch.cancel());
        if let Some(format) = &source.format {
            convert = convert.source_format(format);
        }
        let done = convert.run()?;
        exit::warn(&done.warnings);
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Operands, String> {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        Operands::parse(&words)
    }

    #[test]
    fn blocks_are_counted_in_bytes() {
        for (line, bytes) in [
            ("if=a", (0, u64::MAX)),
            ("skip=2 count=4", (1024, 2048)),
            ("bs=1k skip=2 count=4 bs=4k", (8192, 16384)),
            ("count=0 skip=9223372036854775807", (u64::MAX, 0)),
        ] {
            assert_eq!(parsed(line).unwrap().bytes(), bytes, "{line}");
        }
        let operands = parsed("if=a of=b=c").unwrap();
        assert_eq!(operands.target, Some("b=c".into()));
    }

    #[test]
    fn other_operands_and_numbers_are_refused() {
        for (line, why) in [
            ("seek=1", "unrecognized operand seek"),
            ("junk", "unrecognized operand junk"),
            ("bs=0", "Must be between 1 and 2147483647"),
            ("bs=2G", "Must be between 1 and 2147483647"),
            ("count=x", "Invalid count specified: 'x'."),
        ] {
            assert!(parsed(line).unwrap_err().contains(why), "{line}");
        }
    }
}
