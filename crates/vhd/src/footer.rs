//! The footer: found at the end of the file, or recovered from its copy at the start.

use goldsmith_block::{
    Detail, ErrorKind, Gaps, HostRange, Result, SECTOR, Storage, align_down, is_zero, last_byte,
};
use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use crate::error::VhdError;
use crate::geometry::{Chs, Dynamic, GAP};
use crate::ondisk::{
    CREATOR_QEMU_CHS, CREATOR_TAPDISK, CREATOR_VIRTUAL_PC, DIFFERENCING, DYNAMIC, EPOCH,
    FEATURE_RESERVED, FEATURE_TEMPORARY, FIXED, FOOTER_COOKIE, FOOTER_LEN, NO_OFFSET,
    POISON_COOKIE, RawFooter, RawHeader, SHORT_FOOTER_LEN, TAPDISK_0_1, TAPDISK_1_1, TAPDISK_1_2,
    TAPDISK_1_3, VERSION,
};

/// Whether these are the first bytes of a footer.
pub(crate) fn is_cookie(bytes: &[u8]) -> bool {
    bytes.starts_with(&FOOTER_COOKIE) || bytes.starts_with(&POISON_COOKIE)
}

/// The footer in the last bytes of a file, and its length in bytes: 512, or 511 in images of
/// Virtual PC before 2004. [spec "Hard Disk Footer Format"]
///
/// Only the cookie is looked at.
pub(crate) fn footer_at_end(tail: &[u8]) -> Option<(RawFooter, u64)> {
    [FOOTER_LEN, SHORT_FOOTER_LEN].into_iter().find_map(|len| {
        let start = tail.len().checked_sub(len as usize)?;
        let found = &tail[start..];
        if !is_cookie(found) {
            return None;
        }
        // The byte that a short footer lacks is one of the reserved zeros.
        let mut raw = RawFooter::new_zeroed();
        raw.as_mut_bytes()[..found.len()].copy_from_slice(found);
        Some((raw, len))
    })
}

/// The footer that holds, and how it was come by.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) footer: Footer,
    /// The same as it stands in the file.
    pub(crate) raw: RawFooter,
    /// Where the data ends: where the footer begins, or the end of a file that lost it.
    pub(crate) data_end: u64,
    /// Whether the footer does not stand at the end of the file.
    pub(crate) recovered: bool,
    /// What is wrong with either footer.
    pub(crate) warnings: Vec<String>,
    /// The copy at the start, if it is whole and says something else.
    pub(crate) other: Option<RawFooter>,
}

impl Found {
    /// Reads the footers of the file in `storage`.
    ///
    /// [spec] "This footer ... is replicated at the front of the file to provide redundancy": so
    /// the one at the end counts, and the copy is taken where that is lost. A file that lost more
    /// than its footer shows it by blocks that lie past its end, each of which is an error.
    pub(crate) fn read(storage: &dyn Storage, rule: SizeRule) -> Result<Self> {
        Self::of_file(storage, rule, false)
    }

    /// The same, where a footer that cannot be read is one that is lost, as is one of another image than
    /// the file begins with.
    pub(crate) fn salvage(storage: &dyn Storage, rule: SizeRule) -> Result<Self> {
        Self::of_file(storage, rule, true)
    }

    fn of_file(storage: &dyn Storage, rule: SizeRule, salvages: bool) -> Result<Self> {
        let file_len = storage.len();
        // What is lost is neither a footer's nor zeros.
        let mut gaps = match salvages {
            true => Gaps::filled_with(u8::MAX),
            false => Gaps::default(),
        };
        let mut tail = vec![0; file_len.min(FOOTER_LEN) as usize];
        gaps.read_at(storage, file_len - tail.len() as u64, &mut tail)?;
        let tail = &tail[..];
        let mut copy = RawFooter::new_zeroed();
        if file_len >= FOOTER_LEN {
            gaps.read_at(storage, 0, copy.as_mut_bytes())?;
        }
        // A fixed image begins with the guest's bytes, whatever these look like.
        let cookie = copy.cookie;
        let is_copy = |footer: &Footer| is_cookie(&cookie) && footer.disk != Disk::Fixed;

        let lost = match footer_at_end(tail).map(|(raw, len)| (Footer::parse(&raw, rule), raw, len))
        {
            None => VhdError::NoFooter { file_len },
            Some((Err(error @ VhdError::FooterChecksum { .. }), ..)) => error,
            // Its checksum vouches for it, so it is not damaged but wrong or too new.
            Some((Err(error), ..)) => return Err(error.into()),
            Some((Ok(mut footer), raw, len)) => {
                let mut warnings = Vec::new();
                let mut other = None;
                if footer.disk != Disk::Fixed {
                    // [libvhd] These versions hid an image in the copy alone.
                    footer.hidden |= keeps_hidden_in_copy(&copy) && copy.hidden != 0;
                    if !is_same(&raw, &copy, len) {
                        let is_whole = Footer::parse(&copy, SizeRule::Creator).is_ok()
                            && is_cookie(&copy.cookie);
                        let what = match is_whole {
                            true => format!("differs from it in {}", differences(&raw, &copy)),
                            false => "is broken".into(),
                        };
                        warnings.push(format!(
                            "the copy of the footer at the start {what}; the footer at the end \
                                 was used"
                        ));
                        other = is_whole.then(|| copy.clone());
                    }
                }
                let found = Self {
                    footer,
                    raw,
                    data_end: file_len - len,
                    recovered: false,
                    warnings,
                    other,
                };
                return match found.refuse_other_image(storage, &copy) {
                    Err(error) if salvages && error.kind() == ErrorKind::Corrupt => Ok(Self {
                        footer: Footer::parse(&copy, rule)?,
                        raw: copy,
                        data_end: file_len,
                        recovered: true,
                        warnings: vec![format!(
                            "{}; the one at the start was used",
                            error.report()
                        )],
                        other: None,
                    }),
                    done => {
                        done?;
                        found.or_other(storage, rule)
                    }
                };
            }
        };
        let before_zeros = before_zeros(storage, tail, rule)?;
        match (Footer::parse(&copy, rule), before_zeros) {
            (Ok(footer), None) if is_copy(&footer) => {
                if is_left_of_fixed(tail, file_len, &copy) {
                    let broken = Box::new(lost);
                    return Err(VhdError::FixedFooterLost { broken }.into());
                }
                Ok(Self {
                    footer,
                    raw: copy,
                    data_end: file_len,
                    recovered: true,
                    warnings: vec![format!(
                        "{lost}; its copy at the start is intact and was used"
                    )],
                    other: None,
                })
            }
            (Ok(footer), Some((.., offset))) if is_copy(&footer) => {
                Err(VhdError::TwoFooters { offset }.into())
            }
            (_, Some((footer, raw, data_end))) => Ok(Self {
                footer,
                raw,
                data_end,
                recovered: true,
                warnings: vec![format!(
                    "{lost}; behind the one at {data_end:#x}, which was used, are only zeros"
                )],
                other: None,
            }),
            (_, None) => {
                let end = HostRange::new(file_len - tail.len() as u64, tail.len() as u64);
                Err(gaps.error_in(end).unwrap_or_else(|| lost.into()))
            }
        }
    }
}

impl Found {
    /// Fails if `copy`, the footer at the start, is that of another image than this one at the end.
    ///
    /// [ours] Where a file was cut inside a block, it ends with what its guest wrote, be it a footer. The
    /// guest of a fixed image may have written one to the start; but then the one at the end is right
    /// behind the disk. Tools that give an image another identity may forget one footer, and no more.
    fn refuse_other_image(&self, storage: &dyn Storage, copy: &RawFooter) -> Result<()> {
        let Ok(footer) = Footer::parse(copy, SizeRule::Creator) else {
            return Ok(());
        };
        let (raw, what) = (&self.raw, |raw: &RawFooter| {
            (raw.current_size, raw.chs(), raw.disk_type, raw.data_offset)
        });
        let is_other = match self.footer.disk {
            Disk::Fixed => self.data_end - self.footer.reach.min(self.data_end) > GAP,
            _ => raw.uuid != copy.uuid && what(raw) != what(copy),
        };
        if !is_other || !is_cookie(&copy.cookie) {
            return Ok(());
        }
        if !matches!(self.header_by(&footer, storage)?, Some(Ok(_))) {
            return Ok(());
        }
        let shown = |raw: &RawFooter, size| {
            format!("a disk of {size} bytes ({})", Uuid::from_bytes(raw.uuid))
        };
        let end = shown(raw, self.footer.virtual_size);
        let start = shown(copy, footer.virtual_size);
        Err(VhdError::OfTwoImages { end, start }.into())
    }

    /// The dynamic header to which `footer`, one of the file's two, leads, or what is wrong with it; `None`
    /// if it leads to no place in the file.
    fn header_by(
        &self,
        footer: &Footer,
        storage: &dyn Storage,
    ) -> Result<Option<Result<Dynamic, VhdError>>> {
        let offset = footer.header_offset();
        let place = offset.and_then(|at| Dynamic::header_range(at, self.data_end).ok());
        let Some(place) = place else {
            return Ok(None);
        };
        let mut raw = RawHeader::new_zeroed();
        storage.read_at(place.offset, raw.as_mut_bytes())?;
        let parsed = Dynamic::parse(&raw, place, footer.virtual_size, self.data_end);
        Ok(Some(parsed))
    }

    /// What the other footer says if that leads to a dynamic header, and this one to something else.
    ///
    /// [ours] An edit that was cut may leave a footer for each of two heads. QEMU goes by the copy, and
    /// puts its next block over the other's head; if that is longer than the block, its footer stays.
    fn or_other(self, storage: &dyn Storage, rule: SizeRule) -> Result<Self> {
        let Some(copy) = &self.other else {
            return Ok(self);
        };
        if copy.data_offset == self.raw.data_offset {
            return Ok(self);
        }
        let Ok(footer) = Footer::parse(copy, rule) else {
            return Ok(self);
        };
        let (this, there) = (
            self.header_by(&self.footer, storage)?,
            self.header_by(&footer, storage)?,
        );
        let is_gone = matches!(&this, Some(Err(error)) if error.is_of_damaged_header());
        if !is_gone || !matches!(there, Some(Ok(_))) {
            return Ok(self);
        }
        let differences = differences(&self.raw, copy);
        Ok(Self {
            footer,
            raw: copy.clone(),
            warnings: vec![format!(
                "the footer at the end differs from its copy at the start in {differences}, and leads \
                 to no dynamic header; the copy was used"
            )],
            other: Some(self.raw),
            ..self
        })
    }
}

/// Whether `tail`, the last sector of a file of `file_len` bytes, has what is left of the footer of a
/// fixed image. Its sector at the start is the guest's then, whatever stands there.
///
/// [ours] Where both lead to the same header, it is that of `copy`: a fixed image has no header. Else two
/// of the four things are enough that it has and bytes of a guest, or another footer, have not.
fn is_left_of_fixed(tail: &[u8], file_len: u64, copy: &RawFooter) -> bool {
    let cut_short = file_len % SECTOR;
    [FOOTER_LEN, SHORT_FOOTER_LEN, cut_short]
        .into_iter()
        .any(|len| {
            // At most a sector.
            let left = &tail[tail.len().saturating_sub(len as usize)..];
            let mut raw = RawFooter::new_zeroed();
            raw.as_mut_bytes()[..left.len()].copy_from_slice(left);
            let signs = [
                is_cookie(&raw.cookie),
                raw.disk_type == FIXED,
                raw.data_offset == NO_OFFSET,
                raw.current_size == file_len.saturating_sub(len),
            ];
            let count = signs.into_iter().filter(|sign| *sign).count();
            raw.data_offset != copy.data_offset && count >= 2
        })
}

/// Most zeros that are no hole behind which a footer is looked for, in bytes. [ours]
const MOST_ZEROS: u64 = 64 << 20;

/// The footer of a fixed image whose file became longer while nothing else did: the last sector
/// that holds anything, right behind the disk. Gives its offset, too.
///
/// [ours] File systems may store the new length of a file before the bytes that made it longer, so
/// a power cut while the disk grows may leave this, and a fixed image has no copy of its footer.
fn before_zeros(
    storage: &dyn Storage,
    tail: &[u8],
    rule: SizeRule,
) -> Result<Option<(Footer, RawFooter, u64)>> {
    if !is_zero(tail) {
        return Ok(None);
    }
    let Some(last) = last_byte(storage, MOST_ZEROS)? else {
        return Ok(None);
    };
    let offset = align_down(last, SECTOR);
    let mut sector = [0; FOOTER_LEN as usize];
    storage.read_at(offset, &mut sector)?;
    let found = is_behind_disk(&sector, offset, rule);
    Ok(found.map(|(footer, raw)| (footer, raw, offset)))
}

/// The footer of a fixed image in `sector`, if that stands at `offset`, right behind the disk.
pub(crate) fn is_behind_disk(
    sector: &[u8],
    offset: u64,
    rule: SizeRule,
) -> Option<(Footer, RawFooter)> {
    let (raw, _) = footer_at_end(sector)?;
    let footer = Footer::parse(&raw, rule).ok()?;
    (footer.disk == Disk::Fixed && footer.virtual_size == offset).then_some((footer, raw))
}

impl RawFooter {
    /// What a check may want to know.
    pub(crate) fn facts(&self) -> Vec<(&'static str, Detail)> {
        let subformat = match self.disk_type.get() {
            FIXED => "fixed",
            DYNAMIC => "dynamic",
            _ => "differencing",
        };
        let current_size = self.current_size.get();
        let features = self.features.get();
        let reserved = features | FEATURE_TEMPORARY != FEATURE_TEMPORARY | FEATURE_RESERVED;
        vec![
            ("subformat", Detail::Text(subformat.into())),
            ("current-size", Detail::Number(current_size)),
            (
                "geometry-too-large",
                Detail::Flag(self.chs() > Chs::of_size(current_size)),
            ),
            ("newer-version", Detail::Flag(self.version.get() != VERSION)),
            (
                "newer-tapdisk",
                // [libvhd] Three letters are compared.
                Detail::Flag(
                    self.creator.starts_with(b"tap") && self.creator_version.get() > TAPDISK_1_3,
                ),
            ),
            ("reserved-features", Detail::Flag(reserved)),
            ("reserved-bytes", Detail::Flag(!is_zero(&self.reserved))),
            ("null-uuid", Detail::Flag(is_zero(&self.uuid))),
            ("timestamp", Detail::Number(unix_time(self.timestamp.get()))),
            ("saved-state", Detail::Flag(self.saved_state != 0)),
            ("hidden", Detail::Flag(self.hidden != 0)),
            ("poisoned", Detail::Flag(self.cookie == POISON_COOKIE)),
        ]
    }

    pub(crate) fn chs(&self) -> Chs {
        Chs {
            cylinders: self.cylinders.get(),
            heads: self.heads,
            sectors: self.sectors,
        }
    }
}

/// Whether the copy at the start is that of the footer at the end, of which `len` bytes are there.
fn is_same(raw: &RawFooter, copy: &RawFooter, len: u64) -> bool {
    let mut copy = copy.clone();
    if keeps_hidden_in_copy(&copy) {
        (copy.hidden, copy.checksum) = (raw.hidden, raw.checksum);
    }
    let [front, copy_front] = [raw, &copy].map(|raw| &raw.as_bytes()[..len as usize]);
    front == copy_front
}

/// What of two footers is not the same, with both values, the copy's behind the other.
fn differences(raw: &RawFooter, copy: &RawFooter) -> String {
    let chs = |raw: &RawFooter| {
        let chs = raw.chs();
        format!("{}/{}/{}", chs.cylinders, chs.heads, chs.sectors)
    };
    let creator = |raw: &RawFooter| {
        let name = raw.creator.escape_ascii();
        format!("'{name}' {:#x}", raw.creator_version.get())
    };
    let facts = |raw: &RawFooter| {
        [
            ("cookie", raw.cookie.escape_ascii().to_string()),
            ("features", format!("{:#x}", raw.features.get())),
            ("version", format!("{:#x}", raw.version.get())),
            ("data offset", format!("{:#x}", raw.data_offset.get())),
            ("timestamp", raw.timestamp.get().to_string()),
            ("creator", creator(raw)),
            ("host", raw.creator_host.escape_ascii().to_string()),
            ("original size", raw.original_size.get().to_string()),
            ("current size", raw.current_size.get().to_string()),
            ("geometry", chs(raw)),
            ("disk type", raw.disk_type.get().to_string()),
            ("uuid", Uuid::from_bytes(raw.uuid).to_string()),
            ("saved state", raw.saved_state.to_string()),
            ("hidden", raw.hidden.to_string()),
        ]
    };
    let mut found = Vec::new();
    for ((name, end), (_, start)) in facts(raw).into_iter().zip(facts(copy)) {
        if end != start {
            found.push(format!("{name} ({end}, copy {start})"));
        }
    }
    if raw.reserved != copy.reserved {
        found.push("reserved bytes".into());
    }
    found.join(", ")
}

/// Whether all readers see the same disk, whichever of these footers they go by and whichever of its
/// sizes, but for where its header stands.
///
/// [ours] The specification only knows mirrors. [libvhd] Its check wants the two the same, byte for
/// byte. What is left out here, the time, who wrote it, the flags, changes no byte that a guest reads.
pub(crate) fn shows_same_disk(raw: &RawFooter, copy: &RawFooter) -> bool {
    let disk = |raw: &RawFooter| {
        let sizes = (raw.current_size.get(), raw.chs());
        let identity = (raw.cookie, raw.disk_type.get(), raw.uuid);
        let footer = Footer::parse(raw, SizeRule::Creator).ok();
        let read = footer.map(|it| (it.virtual_size, it.low_bit_first, it.batmap));
        (sizes, identity, read)
    };
    disk(raw) == disk(copy)
}

/// [libvhd] "early td-util did not re-calculate checksum when marking vhds 'hidden'".
pub(crate) fn keeps_hidden_in_copy(raw: &RawFooter) -> bool {
    let version = raw.creator_version.get();
    raw.creator == CREATOR_TAPDISK && [TAPDISK_0_1, TAPDISK_1_1].contains(&version)
}

/// Which of the two sizes in a footer is that of the disk; an option when an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeRule {
    /// The one that the creator means.
    Creator,
    /// That of the geometry.
    Geometry,
    /// `current_size`.
    CurrentSize,
}

/// What a footer says about the whole image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Size of the disk in bytes.
    pub(crate) virtual_size: u64,
    /// Where it ends for those who go by the other size that the footer gives, if that is farther; else
    /// the same. What stands between the two is theirs.
    pub(crate) reach: u64,
    pub(crate) disk: Disk,
    pub(crate) uuid: [u8; 16],
    /// Whether the sector bitmaps count from the lowest bit of each byte.
    pub(crate) low_bit_first: bool,
    pub(crate) batmap: Presence,
    /// Whether a virtual machine is suspended on the disk.
    pub(crate) saved_state: bool,
    /// Whether XenServer hides the image.
    pub(crate) hidden: bool,
    /// Whether XenServer's tools were working on the image, and stopped.
    pub(crate) poisoned: bool,
    /// Whether the disk may be deleted when its machine stops.
    pub(crate) temporary: bool,
}

/// The disk type, with what matters for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Fixed,
    Dynamic { header_offset: u64 },
    Differencing { header_offset: u64 },
}

/// Whether something stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    No,
    Maybe,
    Yes,
}

impl Footer {
    /// Where the dynamic header stands, if there is one.
    pub(crate) fn header_offset(&self) -> Option<u64> {
        match self.disk {
            Disk::Fixed => None,
            Disk::Dynamic { header_offset } | Disk::Differencing { header_offset } => {
                Some(header_offset)
            }
        }
    }

    /// Checks all that can be checked without the rest of the file.
    pub(crate) fn parse(raw: &RawFooter, rule: SizeRule) -> Result<Self, VhdError> {
        let (stored, computed) = (raw.checksum.get(), raw.computed_checksum());
        // Zero is a checksum like any other: the specification knows none that means "unset".
        let unhidden = || {
            RawFooter {
                hidden: 0,
                ..raw.clone()
            }
            .computed_checksum()
        };
        if stored != computed && !(keeps_hidden_in_copy(raw) && stored == unhidden()) {
            return Err(VhdError::FooterChecksum { stored, computed });
        }
        let version = raw.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(VhdError::FooterVersion { found: version });
        }
        let header_offset = raw.data_offset.get();
        let disk = match raw.disk_type.get() {
            FIXED => Disk::Fixed,
            DYNAMIC => Disk::Dynamic { header_offset },
            DIFFERENCING => Disk::Differencing { header_offset },
            found => return Err(VhdError::DiskType { found }),
        };
        let tapdisk = (raw.creator == CREATOR_TAPDISK).then(|| raw.creator_version.get());
        let size = virtual_size(raw, rule)?;
        let by_creator = virtual_size(raw, SizeRule::Creator).unwrap_or(0);
        Ok(Self {
            virtual_size: size,
            reach: size.max(by_creator).max(raw.current_size.get()),
            disk,
            uuid: raw.uuid,
            low_bit_first: tapdisk == Some(TAPDISK_0_1),
            batmap: match tapdisk {
                Some(TAPDISK_1_2..) => Presence::Yes,
                // [libvhd] These "probably have a batmap", but not if they are older images that
                // were brought up to date.
                Some(version) if version > TAPDISK_0_1 => Presence::Maybe,
                _ => Presence::No,
            },
            saved_state: raw.saved_state != 0,
            hidden: raw.hidden != 0,
            poisoned: raw.cookie == POISON_COOKIE,
            temporary: raw.features.get() & FEATURE_TEMPORARY != 0,
        })
    }
}

/// The moment that a time stamp means, in seconds since 1970-01-01 UTC.
pub(crate) fn unix_time(timestamp: u32) -> u64 {
    EPOCH + u64::from(timestamp)
}

/// Which of its two sizes an image means, in bytes.
///
/// Virtual PC shows the guest what the geometry gives, and so do the images that QEMU writes
/// without `force_size`; everybody else means `current_size`, which is also the only one that can
/// be right where the geometry is at its maximum. [qemu block/vpc.c]
fn virtual_size(raw: &RawFooter, rule: SizeRule) -> Result<u64, VhdError> {
    let chs = raw.chs();
    let current_size = raw.current_size.get();
    let by_geometry = match rule {
        // QEMU knows no differencing images, and all who do go by the current size of every image.
        SizeRule::Creator if raw.disk_type == DIFFERENCING => false,
        SizeRule::Creator => [CREATOR_VIRTUAL_PC, CREATOR_QEMU_CHS].contains(&raw.creator),
        SizeRule::Geometry => true,
        SizeRule::CurrentSize => false,
    };
    if !by_geometry || chs.total_sectors() == Chs::MAX.total_sectors() {
        return Ok(current_size);
    }
    // [ours] QEMU shows an empty disk here, and so loses all of it without a word.
    if chs.total_sectors() == 0 && current_size != 0 {
        return Err(VhdError::EmptyGeometry {
            cylinders: chs.cylinders,
            heads: chs.heads,
            sectors: chs.sectors,
            current_size,
        });
    }
    Ok(chs.total_sectors() * SECTOR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::byteorder::big_endian::U32;

    use super::*;

    #[test]
    fn footer_is_found_in_the_last_512_or_511_bytes_only() {
        let mut tail = [0; 512];
        assert!(footer_at_end(&tail).is_none());
        tail[2..10].copy_from_slice(b"conectix");
        assert!(footer_at_end(&tail).is_none());
        tail[1..9].copy_from_slice(b"conectix");
        let (raw, len) = footer_at_end(&tail).unwrap();
        assert_eq!((raw.cookie, len), (*b"conectix", 511));
        assert!(footer_at_end(&tail[2..]).is_none());
    }

    proptest! {
        /// Any 512 bytes: an answer, never a panic. With the checksum put right in half of them.
        #[test]
        fn footer_parse_is_total(
            bytes in prop::collection::vec(any::<u8>(), 512),
            sealed: bool,
            disk_type in 0u32..6,
            by_geometry: bool,
        ) {
            let mut raw = RawFooter::new_zeroed();
            raw.as_mut_bytes().copy_from_slice(&bytes);
            if sealed {
                raw.version = U32::new(VERSION);
                raw.disk_type = U32::new(disk_type);
                if by_geometry {
                    raw.creator = CREATOR_VIRTUAL_PC;
                }
                raw.checksum = U32::new(raw.computed_checksum());
            }
            let parsed = Footer::parse(&raw, SizeRule::Creator);
            prop_assert!(parsed.is_err() || sealed && (2..=4).contains(&disk_type));
        }
    }
}
