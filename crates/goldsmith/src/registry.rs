//! The formats there are. A new one is one line here.

use goldsmith_block::{
    Error, Format, Match, Probe, Result, SECTOR, Storage, align_down, did_you_mean, is_zero,
    last_byte,
};

use crate::ovf::OVF;

/// Every format, in the order to list them.
pub static FORMATS: &[&dyn Format] = &[
    &goldsmith_raw::RAW,
    &goldsmith_qcow2::QCOW2,
    &goldsmith_vhd::VHD,
    &OVF,
];

/// Marks of formats that are not read here, by name, byte offset and bytes. Whoever leaves the
/// guessing to us must not get the insides of such a file as a RAW disk.
pub(crate) static FOREIGN: &[(&str, usize, &[u8])] = &[
    ("vhdx", 0, b"vhdxfile"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("bzip2", 0, b"BZh"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format"),
];

/// The formats that are not read here whose marks `head` carries, the first bytes of a file.
pub(crate) fn foreign(head: &[u8]) -> impl Iterator<Item = &'static str> {
    let marked = FOREIGN.iter().filter(|(_, at, mark)| {
        let there = head.get(*at..);
        there.is_some_and(|bytes| bytes.starts_with(mark))
    });
    let described = is_vmdk_descriptor(head).then_some("vmdk");
    marked.map(|(name, ..)| *name).chain(described)
}

/// Whether `head` is the beginning of a text that describes a VMDK, whose data is in other files.
///
/// [qemu vmdk_probe] Comments and empty lines, then a version. [oslo] The first comment says what it is.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    const COMMENT: &[u8] = b"# disk descriptorfile";
    let comment = head.get(..COMMENT.len());
    if comment.is_some_and(|bytes| bytes.eq_ignore_ascii_case(COMMENT)) {
        return true;
    }
    let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut said = lines.skip_while(|line| line.is_empty() || line.starts_with(b"#"));
    let versions: [&[u8]; 3] = [b"version=1", b"version=2", b"version=3"];
    said.next().is_some_and(|line| versions.contains(&line))
}

/// Most zeros at the end of a file that are read to find what stands before them, in bytes. [ours]
const MOST_ZEROS: u64 = 4 << 20;

/// The bytes at both ends of a file or a disk.
pub(crate) struct Ends {
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
}

impl Ends {
    /// Those of a whole file.
    pub(crate) fn of_file(storage: &dyn Storage) -> Result<Self> {
        let len = storage.len();
        let mut head = vec![0; len.min(Probe::HEAD as u64) as usize];
        let mut tail = vec![0; len.min(Probe::TAIL as u64) as usize];
        storage.read_at(0, &mut head)?;
        storage.read_at(len - tail.len() as u64, &mut tail)?;
        Ok(Self { head, tail })
    }

    pub(crate) fn probe(&self) -> Probe<'_> {
        Probe {
            head: &self.head,
            tail: &self.tail,
            before_zeros: None,
        }
    }
}

/// The format called `name`, by its own name or an alias.
///
/// # Errors
/// `Usage` if there is none.
pub fn format_named(name: &str) -> Result<&'static dyn Format> {
    let found = FORMATS
        .iter()
        .find(|format| format.name() == name || format.aliases().contains(&name));
    found.copied().ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
        let aliases = FORMATS.iter().flat_map(|format| format.aliases()).copied();
        // One that is known for what it is was not mistyped.
        let hint = match FOREIGN.iter().any(|(foreign, ..)| *foreign == name) {
            true => String::new(),
            false => did_you_mean(name, known.iter().copied().chain(aliases)),
        };
        Error::usage(format!(
            "unknown format '{name}'; there are: {}{hint}",
            known.join(", ")
        ))
    })
}

/// Whether any format takes the option `name` when one of its images is opened.
pub(crate) fn has_open_option(name: &str) -> bool {
    let mut specs = FORMATS.iter().flat_map(|format| format.open_options());
    specs.any(|spec| spec.name == name)
}

/// The name by which QEMU knows a format that an image says of another one, which nobody looks at: one of
/// ours, or one that only QEMU reads.
///
/// # Errors
/// `Usage` if QEMU has none of that name.
pub(crate) fn name_in_qemu(name: &str) -> Result<&str> {
    const OTHERS: [&str; 10] = [
        "bochs",
        "cloop",
        "dmg",
        "luks",
        "parallels",
        "qcow",
        "qed",
        "vdi",
        "vhdx",
        "vmdk",
    ];
    match OTHERS.contains(&name) {
        true => Ok(name),
        false => format_named(name).map(Format::name),
    }
}

/// Options for a new image, in which what others will read is the format's own name.
pub(crate) fn named(options: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    options.iter().map(|(key, value)| match &**key {
        "backing_fmt" => {
            let format = format_named(value);
            (&**key, format.map_or(&**value, |format| format.name()))
        }
        key => (key, &**value),
    })
}

/// The format of the bytes in `storage`, by the marks it carries.
///
/// A guess: whoever wrote the image decides its outcome. Callers who know the format should say so.
///
/// # Errors
/// `Usage` if the bytes carry the marks of several formats, `Unsupported` if they carry those of a
/// format that is not read here, `Io` if they cannot be read.
pub fn probe(storage: &dyn Storage) -> Result<&'static dyn Format> {
    let ends = Ends::of_file(storage)?;
    let mut sector = [0; SECTOR as usize];
    let mut probe = ends.probe();
    let head = probe.head;

    // One format that is read here is gzip'ed.
    let foreign = foreign(head)
        .next()
        .filter(|_| OVF.probe(&probe) != Match::Marked);
    if let Some(name) = foreign {
        let text = format!(
            "the file looks like {name}; if it is a raw disk all the same, say so with the format \
             option (-f raw)"
        );
        return Err(Error::unsupported(text).in_file(storage.name()));
    }

    let best = |probe: &Probe<'_>| {
        let matches = FORMATS.iter().map(|format| format.probe(probe));
        matches.max().unwrap_or(Match::No)
    };
    let mut best_match = best(&probe);
    if best_match != Match::Marked
        && is_zero(probe.tail)
        && let Some(last) = last_byte(storage, MOST_ZEROS)?
    {
        let offset = align_down(last, SECTOR);
        // The zeros behind it are a sector at least.
        storage.read_at(offset, &mut sector)?;
        probe.before_zeros = Some((offset, &sector));
        best_match = best(&probe);
    }
    let matches: Vec<_> = FORMATS
        .iter()
        .filter(|format| format.probe(&probe) == best_match)
        .copied()
        .collect();
    match matches[..] {
        [format] if best_match != Match::No => Ok(format),
        _ => {
            let names: Vec<_> = matches.iter().map(|format| format.name()).collect();
            Err(Error::usage(format!(
                "the file could be any of {}; say which it is with the format option (-f)",
                names.join(", ")
            ))
            .in_file(storage.name()))
        }
    }
}
