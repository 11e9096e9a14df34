//! Makes a VHD that Azure takes of any image, after a look at what it would refuse of that.
//!
//! ```sh
//! cargo run --example azure -- disk.qcow2 qcow2 azure.vhd
//! ```

use std::error::Error;
use std::io::{Write, stdout};

use goldsmith::{Convert, Measure, Opener, cloud_named, lint};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [source, format, target] = &words[..] else {
        return Err("usage: azure IMAGE FORMAT TARGET".into());
    };
    azure(source, format, target, &mut stdout())
}

/// Makes the VHD at `target` of the image at `source`, whose format is `format`.
pub(crate) fn azure(
    source: &str,
    format: &str,
    target: &str,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let azure = cloud_named("azure")?;
    for finding in lint(&Opener::new(), source, Some(format), azure)? {
        writeln!(out, "{source}: {}", finding.rule.reason)?;
    }
    // A fixed VHD is as long as its disk, whatever that holds: no data needs to be looked at.
    let measured = Measure::new(source)
        .source_format(format)
        .cloud(azure)
        .exact(false)
        .run()?;
    writeln!(out, "{target}: {} bytes to be written", measured.required)?;

    let done = Convert::new(source, target)
        .source_format(format)
        .cloud(azure)
        // The same source under the same name gives the same bytes.
        .uuid_from_name()
        .timestamp(0)
        .run()?;
    for warning in &done.warnings {
        writeln!(out, "{warning}")?;
    }
    let left = lint(&Opener::new(), target, Some("vpc"), azure)?;
    match left.first() {
        None => Ok(()),
        Some(finding) => Err(finding.rule.reason.into()),
    }
}
