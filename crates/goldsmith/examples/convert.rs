//! Converts an image, tells how far it has come, and stops when somebody presses Enter.
//!
//! ```sh
//! cargo run --example convert -- golden.raw raw disk.qcow2 qcow2
//! ```

use std::error::Error;
use std::io::{Write, stderr, stdin, stdout};
use std::sync::atomic::{AtomicU64, Ordering};

use goldsmith::{Cancel, Convert, Opener, Progress, References};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [source, source_format, target, target_format] = &words[..] else {
        return Err("usage: convert SOURCE FORMAT TARGET FORMAT".into());
    };
    let cancel = Cancel::new();
    let raise = cancel.clone();
    std::thread::spawn(move || {
        // The end of the input is nobody's wish.
        if stdin()
            .read_line(&mut String::new())
            .is_ok_and(|len| len > 0)
        {
            raise.cancel();
        }
    });
    convert([source, source_format], [target, target_format], &cancel)
}

/// Converts the image with this path and format into one with that path and format.
pub(crate) fn convert(
    [source, source_format]: [&str; 2],
    [target, target_format]: [&str; 2],
    cancel: &Cancel,
) -> Result<(), Box<dyn Error>> {
    // Workers call it from any thread, and not in order.
    let shown = AtomicU64::new(0);
    let listener = |progress: Progress| {
        let percent = 100 * progress.done / progress.total.max(1);
        if shown.fetch_max(percent, Ordering::Relaxed) < percent {
            let _ = write!(stderr(), "\r{percent} %");
        }
    };
    let done = Convert::new(source, target)
        .source_format(source_format)
        .target_format(target_format)
        .opener(Opener::new().references(References::Deny))
        .progress(&listener)
        .cancel(cancel)
        .run()?;
    let size = done.virtual_size;
    let mut out = stdout();
    writeln!(out, "{target}: a disk of {size} bytes in {}", done.file_len)?;
    for warning in &done.warnings {
        writeln!(out, "{warning}")?;
    }
    Ok(())
}
