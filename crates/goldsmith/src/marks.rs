//! Which formats' marks a file or a disk carries, more than one perhaps.

use goldsmith_block::{Error, Layer, Match, Probe, Result, SECTOR, Storage};

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

/// What the disk of a layer carries, as far as that holds it.
#[derive(Debug)]
pub(crate) struct Content {
    /// The formats whose marks it carries, as if it were a file of its own.
    pub(crate) marks: Vec<&'static str>,
    /// See [`partition_table`].
    pub(crate) partition_table: &'static str,
}

impl Content {
    /// Looks at the disk of `layer`, with `may_go_on` before each of the few reads.
    ///
    /// # Errors
    /// Those of `may_go_on`. What cannot be read, because it is encrypted or damaged, tells nothing.
    ///
    /// # Cost
    /// What stands in one cluster is read in a row: it may have to be unpacked.
    pub(crate) fn look(layer: &dyn Layer, may_go_on: impl Fn() -> Result<()>) -> Result<Self> {
        let size = layer.info().virtual_size;
        let read = |at: u64, most: usize| {
            may_go_on()?;
            let mut bytes = vec![0; size.saturating_sub(at).min(most as u64) as usize];
            if bytes.is_empty() {
                return Ok(bytes);
            }
            let done = layer.read_at(at, &mut bytes);
            Ok::<_, Error>(done.map(|()| bytes).unwrap_or_default())
        };
        let head = read(0, Probe::HEAD)?;
        let mut also = Vec::new();
        for (name, at, mark) in ON_A_DISK {
            if read(*at, mark.len())? == *mark {
                also.push(*name);
            }
        }
        if is_text(&head) && describes_vmdk(&read(0, DESCRIPTION)?) {
            also.push("vmdk");
        }
        let tail = read(size.saturating_sub(Probe::TAIL as u64), Probe::TAIL)?;
        // [xpwn] An Apple disk image begins with its data, too, and ends with 512 bytes of this.
        if tail.starts_with(b"koly") {
            also.push("dmg");
        }
        let partition_table = partition_table(&head);
        let ends = Ends { head, tail };
        let mut marks = marked(&ends.probe());
        also.retain(|name| !marks.contains(name));
        marks.extend(also);
        Ok(Self {
            marks,
            partition_table,
        })
    }

    /// Nothing is known of it, so nobody should take it for harmless.
    pub(crate) fn unknown() -> Self {
        Self {
            marks: vec!["unknown"],
            partition_table: "unknown",
        }
    }
}

/// Most bytes of a text that oslo.utils looks for what it says of a VMDK.
const DESCRIPTION: usize = (1 << 20) - 1;

/// Whether what begins with `head` may be a text. [oslo.utils VMDKInspector]
fn is_text(head: &[u8]) -> bool {
    let is_of_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t'..=b'\r' | 0x1c..=0x1f);
    !head.is_empty() && head.iter().take(SECTOR as usize).all(is_of_text)
}

/// Whether the beginning of a disk says anywhere before its first zero what kind of VMDK it describes; or has
/// characters there at which oslo.utils fails. [oslo.utils VMDKInspector]
fn describes_vmdk(beginning: &[u8]) -> bool {
    const KIND: &[u8] = b"createtype=\"";
    let end = beginning.iter().position(|byte| *byte == 0);
    let text = &beginning[..end.unwrap_or(beginning.len())];
    let mut words = text.windows(KIND.len());
    !text.is_ascii() || words.any(|word| word.eq_ignore_ascii_case(KIND))
}

/// What a disk that begins with `head` has for a partition table: "none", a "sound" one, or what is wrong with
/// it for OpenStack's services.
///
/// [oslo.utils GPTInspector] The boot sector of a FAT file system, which ends in the same two bytes, has none.
fn partition_table(head: &[u8]) -> &'static str {
    const PROTECTIVE: u8 = 0xEE;
    let Some(sector) = head.first_chunk::<{ SECTOR as usize }>() else {
        return "none";
    };
    let is_fat = sector[0x10] == 2 && sector[0x15] == 0xF8;
    if sector[510..] != [0x55, 0xAA] || is_fat {
        return "none";
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
    flaw.map_or("sound", |(_, flaw)| flaw)
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
