//! Which formats' marks a file or a disk carries, more than one perhaps.

use goldsmith_block::{Layer, Match, Probe, Result, SECTOR, Storage};

use crate::ovf::NAME as OVF_NAME;
use crate::registry::{Ends, FORMATS, foreign};

/// Marks of what is no disk image to convert, but worth knowing of where it stands on a disk: name,
/// byte offset and bytes.
static ON_A_DISK: &[(&str, u64, &[u8])] = &[
    // [ECMA-119 6.2.1, 8.1.2] The first volume descriptor stands in sector 16 of 2048 bytes. [ECMA-167] So
    // may those of UDF.
    ("iso", 16 * 2048 + 1, b"CD001"),
    ("iso", 16 * 2048 + 1, b"NSR02"),
    ("iso", 16 * 2048 + 1, b"NSR03"),
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

/// What the disk of `layer` has for a partition table: "none", a "sound" one, or what is wrong with it for
/// OpenStack's services.
///
/// [oslo.utils GPTInspector] The boot sector of a FAT file system, which ends in the same two bytes, has none.
pub(crate) fn partition_table(layer: &dyn Layer) -> Result<&'static str> {
    const PROTECTIVE: u8 = 0xEE;
    let mut sector = [0; SECTOR as usize];
    if layer.info().virtual_size < SECTOR {
        return Ok("none");
    }
    layer.read_at(0, &mut sector)?;
    let is_fat = sector[0x10] == 2 && sector[0x15] == 0xF8;
    if sector[510..] != [0x55, 0xAA] || is_fat {
        return Ok("none");
    }
    let (entries, _) = sector[446..510].as_chunks::<16>();
    let used: Vec<_> = (0..).zip(entries).filter(|(_, it)| it[4] != 0).collect();
    let gpt: Vec<_> = used.iter().filter(|(_, it)| it[4] == PROTECTIVE).collect();
    let flaws = [
        (
            entries.iter().any(|entry| !matches!(entry[0], 0 | 0x80)),
            "one with a boot flag that is neither 0 nor 0x80",
        ),
        (
            gpt.iter().any(|(_, entry)| entry[1..4] != [0, 2, 0]),
            "one whose GPT entry does not start at the right cylinder, head and sector",
        ),
        (
            gpt.iter().any(|(_, entry)| entry[8..12] != [1, 0, 0, 0]),
            "one whose GPT entry does not start at sector 1",
        ),
        (
            !gpt.is_empty() && !matches!(used[..], [(0, _)]),
            "one of a GPT with other partitions",
        ),
        (used.is_empty(), "one without partitions"),
    ];
    let flaw = flaws.into_iter().find(|(is_so, _)| *is_so);
    Ok(flaw.map_or("sound", |(_, flaw)| flaw))
}

fn marked(probe: &Probe<'_>) -> Vec<&'static str> {
    let ours = FORMATS.iter();
    let ours = ours.filter(|format| format.probe(probe) == Match::Marked);
    let mut names: Vec<_> = ours.map(|format| format.name()).collect();
    for name in foreign(probe.head) {
        // One of ours is gzip'ed.
        let is_ours = name == "gzip" && names.contains(&OVF_NAME);
        if !is_ours && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
