//! Which formats' marks a file or a disk carries, more than one perhaps.

use goldsmith_block::{Layer, Match, Probe, Result, Storage};

use crate::ovf::NAME as OVF_NAME;
use crate::registry::{Ends, FOREIGN, FORMATS};

/// Marks of what is no disk image to convert, but worth knowing of where it stands on a disk: name,
/// byte offset and bytes.
static ON_A_DISK: &[(&str, u64, &[u8])] = &[
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format"),
    // [ECMA-119 6.2.1, 8.1.2] The first volume descriptor stands in sector 16 of 2048 bytes.
    ("iso", 16 * 2048 + 1, b"CD001"),
];

/// The formats whose marks the file in `storage` carries, also those that are not read here; none if
/// it can only be raw.
pub(crate) fn of_file(storage: &dyn Storage) -> Result<Vec<&'static str>> {
    Ok(marked(&Ends::of_file(storage)?.probe()))
}

/// The formats whose marks the disk of `layer` carries, as if it were a file of its own.
pub(crate) fn of_disk(layer: &dyn Layer) -> Result<Vec<&'static str>> {
    let size = layer.info().virtual_size;
    let ends = Ends::read(size, |offset, buf| layer.read_at(offset, buf))?;
    let mut names = marked(&ends.probe());
    for (name, at, mark) in ON_A_DISK {
        let mut found = vec![0; mark.len()];
        if at + found.len() as u64 <= size {
            layer.read_at(*at, &mut found)?;
            if found == *mark {
                names.push(name);
            }
        }
    }
    // [xpwn] An Apple disk image begins with its data, too, and ends with 512 bytes of this.
    if ends.probe().tail.starts_with(b"koly") {
        names.push("dmg");
    }
    Ok(names)
}

fn marked(probe: &Probe<'_>) -> Vec<&'static str> {
    let ours = FORMATS.iter();
    let ours = ours.filter(|format| format.probe(probe) == Match::Marked);
    let mut names: Vec<_> = ours.map(|format| format.name()).collect();
    for (name, at, mark) in FOREIGN {
        let is_there = |bytes: &[u8]| bytes.starts_with(mark);
        // One of ours is gzip'ed.
        let is_ours = *name == "gzip" && names.contains(&OVF_NAME);
        if !is_ours && !names.contains(name) && probe.head.get(*at..).is_some_and(is_there) {
            names.push(name);
        }
    }
    names
}
