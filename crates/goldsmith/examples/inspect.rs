//! Tells what an image is, what it names outside itself, and how much of its disk is stored where.
//!
//! ```sh
//! cargo run --example inspect -- disk.qcow2
//! ```

use std::error::Error;
use std::io::{Write, stdout};

use goldsmith::{Check, ImageInfo, Opener, References, map};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [path] = &words[..] else {
        return Err("usage: inspect IMAGE".into());
    };
    inspect(path, &mut stdout())
}

/// Writes what the image at `path` is to `out`.
pub(crate) fn inspect(path: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    // Nothing that the image names is opened for this.
    let opener = Opener::new();
    let info = ImageInfo::read(&opener, path, None)?;
    let layer = &info.layer;
    writeln!(out, "{}, {} bytes", layer.format, layer.virtual_size)?;
    if let Some(backing) = info.backing_path() {
        writeln!(out, "over {}", backing.display())?;
    }
    for warning in &layer.warnings {
        writeln!(out, "{warning}")?;
    }
    if let Some(report) = Check::new(path).format(layer.format).run()? {
        let (errors, leaks) = (report.checked.corruptions, report.checked.leaks);
        writeln!(out, "{errors} errors, {leaks} wasted units")?;
    }

    // From here on its backing files are opened, too, if they are beside it.
    let opener = opener.references(References::SameDirectory);
    let chain = opener.open(path, Some(layer.format))?;
    let mut stored = vec![0; chain.layers().len()];
    for entry in map(&chain) {
        let entry = entry?;
        if entry.data {
            stored[entry.depth] += entry.range.len();
        }
    }
    for (layer, bytes) in chain.layers().iter().zip(stored) {
        writeln!(out, "{bytes} bytes in {}", layer.storage().name())?;
    }
    Ok(())
}
