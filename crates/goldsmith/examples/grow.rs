//! Makes a disk longer, with a snapshot to come back to, after saying what is going to be written.
//!
//! ```sh
//! cargo run --example grow -- disk.qcow2 10G
//! ```

use std::error::Error;
use std::io::{Write, stdout};

use goldsmith::{NewSize, Resize, Snapshots, parse_size};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [path, more] = &words[..] else {
        return Err("usage: grow IMAGE SIZE".into());
    };
    let more = parse_size(more).ok_or("the size is none")?;
    grow(path, more, &mut stdout())
}

/// Makes the disk in the qcow2 image at `path` longer by `more` bytes.
pub(crate) fn grow(path: &str, more: u64, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let snapshots = Snapshots::new(path).format("qcow2");
    snapshots.take("before-growing")?;
    for snapshot in snapshots.list()? {
        let size = snapshot.virtual_size;
        writeln!(out, "snapshot {}: {size} bytes", snapshot.name)?;
    }

    let resize = Resize::new(path, NewSize::More(more)).format("qcow2");
    for (file, step) in resize.clone().dry_run(true).run()?.steps {
        writeln!(out, "{}: {step}", file.display())?;
    }
    resize.run()?;
    Ok(())
}
