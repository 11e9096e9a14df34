//! Programs with threads, too, use the library: everything in it can be sent to one, and almost
//! everything be shared by some.

use goldsmith::*;

fn send<T: Send>() {}
fn both<T: Send + Sync>() {}

/// Calls `$check` for each type, and gives their names.
macro_rules! checked {
    ($check:ident: $($name:ident$(<$($lifetime:lifetime),+>)?),+ $(,)?) => {{
        $($check::<$name$(<$($lifetime),+>)?>();)+
        vec![$(stringify!($name)),+]
    }};
}

#[test]
fn every_public_type_is_send_and_sync() {
    let mut known = checked!(both:
        Ailment, Algorithm, Amend, BackingReference, Bench<'static>, Benched, BitmapInfo, Bitmaps, Budget,
        Cache, Cancel, Chain, ChainExtent, Change, Check, Checked, Checksum<'static>, Cloud, Codec,
        Commit<'static>, Compare<'static>, CompareError, Comparison, Convert<'static>, Converted,
        Crc32, Create, Created, Detail, Digest, EditBitmap, Edited, Error, ErrorKind, Extent,
        ExtentKind, Finding, Flaw, GuestRange, HostRange, ImageInfo, ImageName, LayerInfo, Limits,
        Loss, MapEntry, Measure<'static>, Measurement, Must, NamedFile, NewSize, Opener, OptionKind,
        OptionSpec, Part, Phase, Preallocation, Progress, Rebase<'static>, References, Repair,
        Report, Resize, Role, Rule, Snapshot, SnapshotName, Snapshots, Step, Symptom, Uuid, Writing,
    );
    both::<std::sync::Arc<dyn Layer>>();
    both::<std::sync::Arc<dyn Storage>>();
    both::<&dyn Format>();
    send::<Result<()>>();
    // Traits, values, and the result that is another's under a shorter name.
    known.extend([
        "Format",
        "Layer",
        "Result",
        "Storage",
        "CLOUDS",
        "FORMATS",
        "MOST_THREADS",
    ]);

    let exported = include_str!("../src/lib.rs")
        .lines()
        .skip_while(|line| !line.starts_with("pub use"))
        .filter(|line| !line.trim_start().starts_with("///"));
    let exported: String = exported.map(|line| format!("{line} ")).collect();
    let exported: Vec<_> = exported
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|word| *word != "Readme" && *word != "README")
        .collect();
    assert!(exported.len() > 50, "{exported:?}");
    for name in exported {
        assert!(known.contains(&name), "{name} is not looked at");
    }
}
