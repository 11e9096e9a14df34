//! Feature bits, and the header extensions that explain them.

use goldsmith_block::{HostRange, Result, Storage};
use zerocopy::{FromZeros, IntoBytes};

use crate::area::Area;
use crate::error::Qcow2Error;
use crate::ondisk::{self, RawBitmaps, RawEncryption, RawExtension, RawFeatureName};

/// What the header extensions say, as far as it matters.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    /// Format of the backing file.
    pub(crate) backing_format: Option<String>,
    /// Where the LUKS header stands.
    pub(crate) encryption: Option<RawEncryption>,
    /// The file that holds guest data, if the features say that another one does.
    pub(crate) data_file: Option<String>,
    /// Where the bitmaps are described.
    pub(crate) bitmaps: Option<RawBitmaps>,
    /// The feature name table.
    names: Vec<RawFeatureName>,
}

/// Features that a reader must know, and knows.
const KNOWN: u64 = ondisk::DIRTY
    | ondisk::CORRUPT
    | ondisk::EXTERNAL_DATA
    | ondisk::COMPRESSION_TYPE
    | ondisk::EXTENDED_L2;

/// Longest feature name table that is looked at, in bytes. [ours] Three sets of 64 features.
const NAMES_BYTES: usize = 3 * 64 * size_of::<RawFeatureName>();

impl Extensions {
    /// Reads the header extensions in `area`. Unknown ones are skipped.
    ///
    /// # Errors
    /// `Corrupt` if one leaves the area or the backing format is no good; `Limit` if there are too
    /// many; `Io` if they cannot be read.
    pub(crate) fn read(storage: &dyn Storage, area: &Area) -> Result<Self> {
        let mut found = Self::default();
        let (mut at, end) = area.extensions;
        for _ in 0..ondisk::EXTENSIONS {
            // An area that ends without an end mark is an area all the same. [qemu]
            if at >= end {
                return Ok(found);
            }
            let room = end - at;
            if room < size_of::<RawExtension>() as u64 {
                return Err(Qcow2Error::ExtensionCut { offset: at, room }.into());
            }
            let mut raw = RawExtension::new_zeroed();
            storage.read_at(at, raw.as_mut_bytes())?;
            at += size_of::<RawExtension>() as u64;
            let (kind, len) = (raw.kind.get(), u64::from(raw.len.get()));
            // Of the end mark, too. [qemu]
            if len > end - at {
                let offset = at;
                return Err(Qcow2Error::ExtensionTruncated {
                    kind,
                    offset,
                    len,
                    end,
                }
                .into());
            }
            if kind == ondisk::EXTENSION_END {
                return Ok(found);
            }
            found.take(kind, storage, HostRange::new(at, len))?;
            at += len.next_multiple_of(8);
        }
        let limit = ondisk::EXTENSIONS;
        Err(Qcow2Error::TooManyExtensions { limit }.into())
    }

    fn take(&mut self, kind: u32, storage: &dyn Storage, data: HostRange) -> Result<()> {
        match kind {
            // QEMU takes an empty name for none. [qemu]
            ondisk::EXTENSION_BACKING_FORMAT if data.len > 0 => {
                if self.backing_format.is_some() {
                    return Err(Qcow2Error::ExtensionTwice { kind }.into());
                }
                self.backing_format = Some(read_name(storage, data, "backing format")?);
            }
            ondisk::EXTENSION_ENCRYPTION => {
                if self.encryption.is_some() {
                    return Err(Qcow2Error::ExtensionTwice { kind }.into());
                }
                let mut raw = RawEncryption::new_zeroed();
                let (found, need) = (data.len, size_of::<RawEncryption>() as u64);
                if found != need {
                    return Err(Qcow2Error::ExtensionLength { kind, found, need }.into());
                }
                storage.read_at(data.offset, raw.as_mut_bytes())?;
                self.encryption = Some(raw);
            }
            ondisk::EXTENSION_DATA_FILE => {
                if self.data_file.is_some() {
                    return Err(Qcow2Error::ExtensionTwice { kind }.into());
                }
                self.data_file = Some(read_name(storage, data, "data file's name")?);
            }
            ondisk::EXTENSION_BITMAPS => {
                if self.bitmaps.is_some() {
                    return Err(Qcow2Error::ExtensionTwice { kind }.into());
                }
                let mut raw = RawBitmaps::new_zeroed();
                let (found, need) = (data.len, size_of::<RawBitmaps>() as u64);
                if found != need {
                    return Err(Qcow2Error::ExtensionLength { kind, found, need }.into());
                }
                storage.read_at(data.offset, raw.as_mut_bytes())?;
                self.bitmaps = Some(raw);
            }
            ondisk::EXTENSION_FEATURE_NAMES => {
                let bytes = data.len.min(NAMES_BYTES as u64) as usize;
                let count = bytes / size_of::<RawFeatureName>();
                self.names = vec![RawFeatureName::new_zeroed(); count];
                storage.read_at(data.offset, self.names.as_mut_bytes())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Refuses features that change how an image is read and that nobody here knows.
    pub(crate) fn refuse_unknown(&self, incompatible: u64) -> Result<(), Qcow2Error> {
        let unknown = incompatible & !KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let bits = (0..64).filter(|bit| unknown >> bit & 1 == 1);
        let names: Vec<_> = bits.map(|bit| self.name(bit)).collect();
        let names = names.join(", ");
        Err(Qcow2Error::UnknownFeatures { names })
    }

    /// What the image itself calls an incompatible feature.
    fn name(&self, bit: u8) -> String {
        let entry = self
            .names
            .iter()
            .find(|entry| entry.set == ondisk::INCOMPATIBLE && entry.bit == bit);
        let name = entry.map_or(&[][..], |entry| &entry.name);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        // The name goes to a terminal: nothing but what is plainly text.
        let plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
        match std::str::from_utf8(name) {
            Ok(text) if !name.is_empty() && name.iter().all(plain) => {
                format!("'{text}' (bit {bit})")
            }
            _ => format!("incompatible feature bit {bit}"),
        }
    }
}

/// Reads a name that the image gives to something outside it.
///
/// # Errors
/// `Corrupt` if it is longer than [`ondisk::NAME_LEN`], no UTF-8 or holds a NUL, which other programs
/// would take for its end.
pub(crate) fn read_name(
    storage: &dyn Storage,
    range: HostRange,
    what: &'static str,
) -> Result<String> {
    let refuse = |reason| Qcow2Error::Name { what, reason };
    if range.len > ondisk::NAME_LEN {
        return Err(refuse("it is longer than 1023 bytes").into());
    }
    let mut bytes = vec![0; range.len as usize];
    storage.read_at(range.offset, &mut bytes)?;
    if bytes.contains(&0) {
        return Err(refuse("it holds a NUL byte").into());
    }
    Ok(String::from_utf8(bytes).map_err(|_| refuse("it is no UTF-8"))?)
}

/// The names of the features of this version of the format, spelled as QEMU does. [qemu]
const NAMES: [(u8, u8, &str); 8] = [
    (ondisk::INCOMPATIBLE, 0, "dirty bit"),
    (ondisk::INCOMPATIBLE, 1, "corrupt bit"),
    (ondisk::INCOMPATIBLE, 2, "external data file"),
    (ondisk::INCOMPATIBLE, 3, "compression type"),
    (ondisk::INCOMPATIBLE, 4, "extended L2 entries"),
    (ondisk::COMPATIBLE, 0, "lazy refcounts"),
    (ondisk::AUTOCLEAR, 0, "bitmaps"),
    (ondisk::AUTOCLEAR, 1, "raw external data"),
];

/// The feature name table of a new image, as a whole header extension.
pub(crate) fn name_table() -> Vec<u8> {
    let entries = NAMES.map(|(set, bit, text)| {
        let mut name = [0; 46];
        name[..text.len()].copy_from_slice(text.as_bytes());
        RawFeatureName { set, bit, name }
    });
    extension(ondisk::EXTENSION_FEATURE_NAMES, entries.as_bytes())
}

/// A header extension with its padding.
pub(crate) fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let head = RawExtension {
        kind: kind.into(),
        // Names and tables of ours are short.
        len: (data.len() as u32).into(),
    };
    let mut bytes = [head.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
