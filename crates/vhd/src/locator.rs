//! The names by which a differencing image knows its parent.

use goldsmith_block::{BackingReference, Detail, HostRange, Result, SECTOR, Storage};
use uuid::Uuid;
use zerocopy::byteorder::big_endian::{U16, U32, U64};

use crate::error::VhdError;
use crate::footer::unix_time;
use crate::ondisk::{
    EPOCH, LOCATOR_MAC, LOCATOR_MACX, LOCATOR_NONE, LOCATOR_W2KU, LOCATOR_W2RU, LOCATOR_WI2K,
    LOCATOR_WI2R, RawHeader, RawLocator,
};

/// Longest name that is read, in bytes. [ours] Windows ends paths at 32767 characters.
const NAME_LEN: u32 = 64 << 10;

/// Kinds of names in the order in which they are tried, each with what `info` calls it: the one
/// that survives a move of the whole folder first.
const KINDS: [([u8; 4], &str); 5] = [
    (LOCATOR_W2RU, "parent-locator-W2ru"),
    (LOCATOR_W2KU, "parent-locator-W2ku"),
    (LOCATOR_MACX, "parent-locator-MacX"),
    (LOCATOR_WI2R, "parent-locator-Wi2r"),
    (LOCATOR_WI2K, "parent-locator-Wi2k"),
];

/// What a differencing image says about its parent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parent {
    pub(crate) reference: BackingReference,
    /// The names as they stand in the image.
    pub(crate) details: Vec<(&'static str, Detail)>,
    /// Names that cannot be read.
    pub(crate) warnings: Vec<String>,
}

impl Parent {
    /// Reads what `header` names; names end at or before `data_end`.
    ///
    /// # Errors
    /// `Corrupt` if no name is left; `Io` if one cannot be read.
    pub(crate) fn read(storage: &dyn Storage, header: &RawHeader, data_end: u64) -> Result<Self> {
        let mut parent = Self::default();
        let mut names = Vec::new();
        for (code, label) in KINDS {
            for locator in header.parent_locators.iter().filter(|it| it.code == code) {
                match name(storage, locator, data_end)? {
                    Ok(name) => {
                        names.push(local_path(&name));
                        parent.details.push((label, Detail::Text(name)));
                    }
                    Err(error) => parent.warnings.push(error.to_string()),
                }
            }
        }
        let is_name = |code: &[u8; 4]| KINDS.iter().any(|(known, _)| known == code);
        for locator in &header.parent_locators {
            let code = locator.code;
            if locator.is_unused() || is_name(&code) {
                continue;
            }
            match range(locator, data_end) {
                Ok(_) if code == LOCATOR_MAC => {}
                Ok(_) => parent.warnings.push(format!(
                    "parent locator of the unknown kind '{}'",
                    code.escape_ascii()
                )),
                Err(error) => parent.warnings.push(error.to_string()),
            }
        }
        let uuid = Uuid::from_bytes(header.parent_uuid);
        // [libvhd] A parent without an identity is no VHD: XenServer puts images on RAW disks.
        let raw = uuid.is_nil();
        let unicode = decode_utf16(&header.parent_name, |unit: &U16| unit.get());
        if let Some(name) = unicode.filter(|name| !name.is_empty()) {
            let path = local_path(&name);
            if !raw {
                // [spec] It is "the parent hard disk filename", but some write the whole path.
                let file = path.rsplit('/').next().unwrap_or(&path).to_owned();
                names.extend([path, file]);
            } else if header.parent_locators.iter().all(RawLocator::is_unused) {
                // [ours] Nothing tells a file of that name beside the image from the parent, so it
                // counts only where no locator says where the parent is, readably or not.
                names.push(path);
            } else if names.is_empty() {
                return Err(VhdError::RawParentLost { name }.into());
            }
            parent.details.push(("parent-name", Detail::Text(name)));
        }

        let mut seen = Vec::new();
        names.retain(|name| {
            !name.is_empty() && !seen.contains(name) && {
                seen.push(name.clone());
                true
            }
        });
        let mut names = names.into_iter();
        parent.reference = BackingReference {
            name: names.next().ok_or(VhdError::NoParentName)?,
            format: Some(if raw { "raw" } else { crate::NAME }.into()),
            other_names: names.collect(),
            uuid: (!raw).then_some(uuid),
            modified: match header.parent_timestamp.get() {
                // Nobody changed a disk in the first second of 2000: it was not known.
                0 => None,
                timestamp => Some(unix_time(timestamp)),
            },
        };
        Ok(parent)
    }
}

/// The names of its parent that a new differencing image gives.
#[derive(Debug)]
pub(crate) struct NewParent {
    uuid: [u8; 16],
    timestamp: U32,
    name: [U16; 256],
    /// Platform codes and names as they will stand in the file.
    locators: Vec<([u8; 4], Vec<u8>)>,
}

impl NewParent {
    /// What the child `own` of `parent` says about it.
    pub(crate) fn new(own: Uuid, parent: &BackingReference) -> std::result::Result<Self, VhdError> {
        let uuid = match (parent.format.as_deref(), parent.uuid) {
            // [libvhd] A parent without an identity is a RAW disk.
            (Some("raw"), _) => Uuid::nil(),
            (Some(crate::NAME), Some(uuid)) if uuid == own => {
                return Err(VhdError::OwnParent { uuid });
            }
            (Some(crate::NAME), Some(uuid)) => uuid,
            (Some(crate::NAME), None) => return Err(VhdError::ParentWithoutUuid),
            (format, _) => {
                let format = format.unwrap_or("unknown").into();
                return Err(VhdError::ParentFormat { format });
            }
        };
        let mut locators = Vec::new();
        for path in std::iter::once(&parent.name).chain(&parent.other_names) {
            let code = if path.starts_with('/') {
                LOCATOR_W2KU
            } else {
                LOCATOR_W2RU
            };
            if locators.iter().any(|(known, _)| *known == code) {
                continue;
            }
            let text = windows_path(path)?;
            let bytes: Vec<_> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            if bytes.len() as u64 > u64::from(NAME_LEN) {
                return Err(VhdError::ParentName { name: path.clone() });
            }
            locators.push((code, bytes));
        }
        let file = parent.name.rsplit('/').next().unwrap_or(&parent.name);
        let mut name = [U16::ZERO; 256];
        let mut units = file.encode_utf16();
        // The last one stays zero and ends the name.
        for (to, unit) in name[..255].iter_mut().zip(&mut units) {
            *to = U16::new(unit);
        }
        if units.next().is_some() || file.is_empty() {
            return Err(VhdError::ParentName { name: file.into() });
        }
        let modified = parent.modified.unwrap_or(0).saturating_sub(EPOCH);
        Ok(Self {
            uuid: uuid.into_bytes(),
            timestamp: U32::new(u32::try_from(modified).unwrap_or(u32::MAX)),
            name,
            locators,
        })
    }

    /// Puts everything into `header`; gives the bytes of the names, which are to stand at `offset`,
    /// in whole sectors.
    pub(crate) fn place(&self, header: &mut RawHeader, offset: u64) -> Vec<u8> {
        self.describe(header);
        place(header, self.names(), offset)
    }

    /// Puts everything into `header` but where the names stand.
    pub(crate) fn describe(&self, header: &mut RawHeader) {
        header.parent_uuid = self.uuid;
        header.parent_timestamp = self.timestamp;
        header.parent_name = self.name;
        for (entry, (code, _)) in header.parent_locators.iter_mut().zip(&self.locators) {
            entry.code = *code;
        }
    }

    /// The names alone, as they will stand in the file.
    pub(crate) fn names(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.locators.iter().map(|(_, name)| Some(&**name))
    }
}

impl RawLocator {
    fn is_unused(&self) -> bool {
        self.code == LOCATOR_NONE
    }

    /// An entry that is not used.
    pub(crate) const NONE: Self = Self {
        code: LOCATOR_NONE,
        space: U32::ZERO,
        len: U32::ZERO,
        reserved: U32::ZERO,
        offset: U64::ZERO,
    };
}

/// Lets the locators of `header` point to `names`, in the same order, which are to stand at
/// `offset`, each in whole sectors; gives their bytes. A locator without a name stays as it is.
pub(crate) fn place<'a>(
    header: &mut RawHeader,
    names: impl Iterator<Item = Option<&'a [u8]>>,
    offset: u64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, name) in header.parent_locators.iter_mut().zip(names) {
        let Some(name) = name else {
            continue;
        };
        let start = bytes.len();
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        // Names are at most 64 KiB. The room is in bytes, as Microsoft's tools and libvhd write it,
        // and not in sectors, as the specification has it.
        entry.space = U32::new((bytes.len() - start) as u32);
        entry.len = U32::new(name.len() as u32);
        entry.offset = U64::new(offset + start as u64);
    }
    bytes
}

/// Where each locator of `header` has its name, whatever that means: `None` for one that is not used.
pub(crate) fn places(
    header: &RawHeader,
    data_end: u64,
) -> Vec<std::result::Result<Option<HostRange>, VhdError>> {
    let place = |locator: &RawLocator| match locator.code {
        LOCATOR_NONE => Ok(None),
        _ => range(locator, data_end).map(Some),
    };
    header.parent_locators.iter().map(place).collect()
}

/// Where the room ends that `header` keeps for names, as far as that lies before `data_end`.
///
/// [libvhd] What counts more bytes than a sector has does not count sectors, as the specification has it.
pub(crate) fn room_end(header: &RawHeader, data_end: u64) -> u64 {
    let used = header.parent_locators.iter();
    let used = used.filter(|locator| !locator.is_unused());
    let ends = used.filter_map(|locator| {
        let space = u64::from(locator.space.get());
        let room = if space < SECTOR {
            space * SECTOR
        } else {
            space
        };
        let end = locator.offset.get().checked_add(room);
        end.filter(|end| *end <= data_end)
    });
    ends.max().unwrap_or(0)
}

/// A path of this system as one of Windows; libvhd turns it back. A relative one begins with a dot:
/// Microsoft's tools want it.
fn windows_path(path: &str) -> std::result::Result<String, VhdError> {
    if path.contains('\\') {
        return Err(VhdError::ParentName { name: path.into() });
    }
    let windows = path.replace('/', r"\");
    Ok(
        match path.starts_with('/') || path.starts_with("./") || path.starts_with("../") {
            true => windows,
            false => format!(r".\{windows}"),
        },
    )
}

/// The name that `locator` points to. The inner error is the locator's, the outer one the file's.
fn name(
    storage: &dyn Storage,
    locator: &RawLocator,
    data_end: u64,
) -> Result<std::result::Result<String, VhdError>> {
    let range = match range(locator, data_end) {
        Ok(range) => range,
        Err(error) => return Ok(Err(error)),
    };
    let mut bytes = vec![0; range.len as usize];
    storage.read_at(range.offset, &mut bytes)?;
    let name = match locator.code {
        LOCATOR_W2RU | LOCATOR_W2KU => from_utf16(&bytes),
        LOCATOR_MACX => from_utf8(&bytes).map(|url| from_url(&url)),
        // [ours] No specification says in which letters these are, or whether a zero ends them.
        _ if has_zero_within(&bytes) => from_utf16(&bytes),
        _ => from_utf8(&bytes),
    };
    Ok(name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| VhdError::LocatorText {
            code: locator.code.escape_ascii().to_string(),
        }))
}

/// Whether one of `bytes` is zero, but for those at the end.
fn has_zero_within(bytes: &[u8]) -> bool {
    let mut bytes = bytes.iter().rev().skip_while(|byte| **byte == 0);
    bytes.any(|byte| *byte == 0)
}

/// Where the name of `locator` stands; at most 64 KiB that end at or before `data_end`.
fn range(locator: &RawLocator, data_end: u64) -> std::result::Result<HostRange, VhdError> {
    let (len, offset) = (locator.len.get(), locator.offset.get());
    let code = || locator.code.escape_ascii().to_string();
    // The room that the name has is not looked at: writers disagree on its unit, and the name
    // counts only as far as its own length says.
    if len == 0 || len > NAME_LEN {
        return Err(VhdError::LocatorLength { code: code(), len });
    }
    match offset.checked_add(len.into()) {
        Some(end) if end <= data_end => Ok(HostRange::new(offset, len.into())),
        _ => Err(VhdError::LocatorOutside {
            code: code(),
            offset,
            len,
            data_end,
        }),
    }
}

/// UTF-16 in the order of bytes that makes it a path: little-endian from nearly all writers,
/// big-endian as everything else from those that follow the specification to the letter.
///
/// Most paths begin with a dot or a backslash. Letters tell less: there are scripts in which many have a
/// low byte of zero.
fn from_utf16(bytes: &[u8]) -> Option<String> {
    let (units, []) = bytes.as_chunks::<2>() else {
        return None;
    };
    let latin = |high: usize| units.iter().filter(|unit| unit[high] == 0).count();
    let is_big = match units {
        [[0, b'.' | b'\\'], ..] => true,
        [[0, first], ..] if first.is_ascii_graphic() => latin(0) > latin(1),
        _ => false,
    };
    if is_big {
        decode_utf16(units, |unit| u16::from_be_bytes(*unit))
    } else {
        decode_utf16(units, |unit| u16::from_le_bytes(*unit))
    }
}

/// The text up to the first zero; `None` if it is no UTF-16.
///
/// An order of bytes that was taken the wrong way round is put right by its mark.
fn decode_utf16<T>(units: &[T], get: impl Fn(&T) -> u16) -> Option<String> {
    const MARK: u16 = 0xfeff;
    let swap = units
        .first()
        .is_some_and(|unit| get(unit) == MARK.swap_bytes());
    let units = units.iter().map(|unit| {
        if swap {
            get(unit).swap_bytes()
        } else {
            get(unit)
        }
    });
    let text = units
        .skip_while(|unit| *unit == MARK)
        .take_while(|unit| *unit != 0);
    char::decode_utf16(text)
        .collect::<std::result::Result<_, _>>()
        .ok()
}

fn from_utf8(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// The path of a file URL. [RFC 2396] libvhd writes relative paths behind `file://`, and no
/// percent signs.
fn from_url(url: &str) -> String {
    let path = url.strip_prefix("file://").unwrap_or(url);
    let path = match path.strip_prefix("localhost") {
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    };
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| char::from(*tail.get(at)?).to_digit(16);
        match (first, digit(0), digit(1)) {
            // Two digits, so it fits, and no zero may hide in a path.
            (b'%', Some(high), Some(low)) if high + low > 0 => {
                bytes.push((high << 4 | low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| path.to_owned())
}

/// A path of Windows as one of this system, as libvhd turns it: slashes, and no drive. With a colon in its
/// first part it begins with a dot, so that nobody takes it for a protocol and a name.
fn local_path(name: &str) -> String {
    let path = name.replace('\\', "/");
    let path = path.strip_prefix("//?/").unwrap_or(&path);
    let mut path = match path.as_bytes() {
        [drive, b':', ..] if drive.is_ascii_alphabetic() => &path[2..],
        _ => path,
    };
    while let Some(rest) = path.strip_prefix("./") {
        path = rest.trim_start_matches('/');
    }
    match path
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'))
    {
        true => format!("./{path}"),
        false => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_all_writers_become_paths_of_this_system() {
        for (name, path) in [
            (r".\base.vhd", "base.vhd"),
            (r".\disks\base.vhd", "disks/base.vhd"),
            (r"..\base.vhd", "../base.vhd"),
            (r"C:\vms\base.vhd", "/vms/base.vhd"),
            (r"\\?\d:\vms\base.vhd", "/vms/base.vhd"),
            (r"\\server\share\base.vhd", "//server/share/base.vhd"),
            (".//etc/passwd", "etc/passwd"),
            ("base.vhd", "base.vhd"),
            (r".\file:base.vhd", "./file:base.vhd"),
            ("golden-12:30.vhd", "./golden-12:30.vhd"),
            (r"C:\a:b\base.vhd", "/a:b/base.vhd"),
            ("disks/a:b.vhd", "disks/a:b.vhd"),
        ] {
            assert_eq!(local_path(name), path);
        }
        for (url, path) in [
            ("file:///vms/my%20base.vhd", "/vms/my base.vhd"),
            ("file://localhost/vms/base.vhd", "/vms/base.vhd"),
            ("file://./base.vhd", "./base.vhd"),
            ("file://localhost.vhd", "localhost.vhd"),
            ("100%.vhd", "100%.vhd"),
            ("a%00b", "a%00b"),
            ("%ff", "%ff"),
        ] {
            assert_eq!(from_url(url), path);
        }
    }

    #[test]
    fn utf16_is_read_in_either_order() {
        let text = ".\\b\u{e4}se \u{1f4be}.vhd";
        let little: Vec<_> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<_> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let marked = [&[0xff, 0xfe][..], &little, &[0, 0]].concat();
        for bytes in [&little, &big, &marked] {
            assert_eq!(from_utf16(bytes).as_deref(), Some(text));
        }
        // Low bytes of zero wherever there is no dot and no backslash.
        let hangul = ".\\\u{b300}\u{c800}\u{ac00}";
        let little: Vec<_> = hangul.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<_> = hangul.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let marked = [&[0xfe, 0xff][..], &big].concat();
        for bytes in [&little, &big, &marked] {
            assert_eq!(from_utf16(bytes).as_deref(), Some(hangul));
        }
        // Nor is the first letter of a name the last word.
        let han: Vec<_> = "\u{6100}.vhd".encode_utf16().collect();
        let little: Vec<_> = han.into_iter().flat_map(u16::to_le_bytes).collect();
        assert_eq!(from_utf16(&little).as_deref(), Some("\u{6100}.vhd"));
        assert_eq!(from_utf16(&little[1..]), None, "half a character");
        assert_eq!(from_utf16(&[0, 0xd8, b'x', 0]), None, "half a pair");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_name_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for name in [from_utf16(&bytes), from_utf8(&bytes)].into_iter().flatten() {
                prop_assert!(!name.contains('\0'));
                prop_assert!(!from_url(&name).contains('\0'));
                prop_assert!(!local_path(&name).contains('\\'));
            }
        }
    }
}
