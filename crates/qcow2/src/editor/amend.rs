//! Other options for an image that stands.

use std::collections::BTreeMap;
use std::time::Duration;

use goldsmith_block::{Error, HostRange, OptionKind, OptionSpec, Options, Result};
use goldsmith_crypt::CryptError;
use zerocopy::IntoBytes;

use super::draft::{Draft, offset_of};
use crate::crypt::{pay_for_try, read_luks};
use crate::error::Qcow2Error;
use crate::geometry::{DataPlace, Encryption};
use crate::ondisk::{
    self, COMPRESSED, COPIED, LAZY_REFCOUNTS, RAW_EXTERNAL_DATA, RawSnapshotExtra, ZERO,
};
use crate::plan::REFCOUNT_BITS;
use crate::snapshot::Snapshots;

/// What can be changed; names are QEMU's. [qemu] Of those that are not given nothing changes,
/// whatever their default is.
pub(crate) static OPTIONS: [OptionSpec; 12] = [
    OptionSpec {
        name: "compat",
        kind: OptionKind::Choice(&["0.10", "1.1", "v2", "v3"]),
        default: "1.1",
        help: "version of the format: 0.10 is 2, 1.1 is 3",
    },
    OptionSpec {
        name: "lazy_refcounts",
        kind: OptionKind::Flag,
        default: "off",
        help: "let whoever writes to the image update counts late; needs compat=1.1",
    },
    OptionSpec {
        name: "refcount_bits",
        kind: OptionKind::Choice(&REFCOUNT_BITS),
        default: "16",
        help: "width of a reference count in bits; all but 16 need compat=1.1",
    },
    OptionSpec {
        name: "backing_file",
        kind: OptionKind::Text,
        default: "",
        help: "image that shows through, by its path from this one; nothing is copied",
    },
    OptionSpec {
        name: "backing_fmt",
        kind: OptionKind::Text,
        default: "",
        help: "format of the backing file",
    },
    OptionSpec {
        name: "data_file",
        kind: OptionKind::Text,
        default: "",
        help: "another name of the file with the guest's data",
    },
    OptionSpec {
        name: "data_file_raw",
        kind: OptionKind::Flag,
        default: "off",
        help: "off: the data file is no longer said to be the disk, byte for byte",
    },
    OptionSpec {
        name: STATE,
        kind: OptionKind::Choice(&["active", "inactive"]),
        default: "active",
        help: "luks: let a passphrase open the disk, or no longer",
    },
    OptionSpec {
        name: NEW_SECRET,
        kind: OptionKind::Secret,
        default: "",
        help: "luks: the secret that shall open the disk, too",
    },
    OptionSpec {
        name: OLD_SECRET,
        kind: OptionKind::Secret,
        default: "",
        help: "luks: the secret that shall no longer open the disk",
    },
    OptionSpec {
        name: KEY_SLOT,
        kind: OptionKind::Size,
        default: "0",
        help: "luks: number of the key slot meant, from 0 to 7",
    },
    OptionSpec {
        name: ITER_TIME,
        kind: OptionKind::Size,
        default: "2000",
        help: "luks: milliseconds that a guess of the new passphrase takes on this machine",
    },
];

const STATE: &str = "encrypt.state";
const NEW_SECRET: &str = "encrypt.new-secret";
const OLD_SECRET: &str = "encrypt.old-secret";
const KEY_SLOT: &str = "encrypt.keyslot";
const ITER_TIME: &str = "encrypt.iter-time";

impl Draft {
    /// Sets the options that are given. `passphrase` opens the disk as it is.
    ///
    /// # Errors
    /// `Usage` if the image cannot have one of them.
    pub(super) fn amend(
        &mut self,
        snapshots: &Snapshots,
        options: &Options,
        passphrase: Option<&str>,
    ) -> Result<()> {
        let mut version = self.geometry.version;
        if options.is_given("compat") {
            version = match options.choice("compat") {
                "0.10" | "v2" => 2,
                _ => 3,
            };
        }
        if version == 3 && self.geometry.version == 2 {
            self.upgrade(snapshots)?;
        }
        if options.is_given("refcount_bits") {
            self.set_refcount_bits(options.choice("refcount_bits"), version)?;
        }
        if options.is_given("lazy_refcounts") {
            let lazy = options.flag("lazy_refcounts");
            if lazy && version < 3 {
                let option = "lazy_refcounts";
                return Err(Qcow2Error::NeedsVersion3 { option }.into());
            }
            let features = self.header.raw.compatible_features.get();
            self.header.raw.compatible_features = match lazy {
                true => features | LAZY_REFCOUNTS,
                false => features & !LAZY_REFCOUNTS,
            }
            .into();
        }
        self.amend_names(options)?;
        if version == 2 && self.geometry.version == 3 {
            self.downgrade(snapshots)?;
        }
        let mut given = options.given().iter();
        if given.any(|name| name.starts_with("encrypt.")) {
            // Last, so that no new key is left in the file by a change that is refused.
            self.amend_keys(options, passphrase)?;
        }
        Ok(())
    }

    fn amend_names(&mut self, options: &Options) -> Result<()> {
        if options.is_given("backing_file") || options.is_given("backing_fmt") {
            let name = match options.is_given("backing_file") {
                true => options.text("backing_file").map(str::to_owned),
                false => self.header.backing_name(),
            };
            let format = match options.is_given("backing_fmt") {
                true => options.text("backing_fmt").map(str::to_owned),
                false => self.header.backing_format(),
            };
            if name.is_some() && self.geometry.is_raw_data() {
                return conflict("backing_file", "the data file of this image is its disk");
            }
            if name.is_none() && options.text("backing_fmt").is_some() {
                return conflict("backing_fmt", "it needs backing_file");
            }
            if name.is_some() && format.is_none() {
                return conflict("backing_file", "it needs backing_fmt");
            }
            let backing = name.as_deref().map(|name| (name, format.as_deref()));
            self.header.set_backing(backing)?;
        }
        if options.is_given("data_file") {
            let name = options.text("data_file");
            let Some(name) = name.filter(|_| self.geometry.has_data_file()) else {
                return conflict("data_file", "it names another file only where there is one");
            };
            self.header.set_data_file(name)?;
        }
        if options.is_given("data_file_raw") {
            let on = options.flag("data_file_raw");
            if on && !self.geometry.is_raw_data() {
                return conflict("data_file_raw", "what the data file holds is not the disk");
            }
            let features = self.header.raw.autoclear_features.get();
            if !on {
                self.header.raw.autoclear_features = (features & !RAW_EXTERNAL_DATA).into();
            }
        }
        Ok(())
    }

    /// Lets another passphrase open the disk, or one no longer. The LUKS header gets a new place, like
    /// everything that changes. The old one, in which a passphrase opens the disk that shall not, or
    /// shall not one day, is overwritten where it stands as soon as the new one is the image's.
    ///
    /// Not all is in our hands: file systems that copy on write, snapshots of them, journals of data
    /// and flash may keep what was overwritten, and so do copies of the image. Of a change that failed
    /// or was cut between the two, one of the headers is left in clusters that nobody uses. And the
    /// master key stays the same: whoever had it once can read the disk for ever.
    fn amend_keys(&mut self, options: &Options, passphrase: Option<&str>) -> Result<()> {
        let Encryption::Luks { header: place } = self.geometry.encryption else {
            return conflict(
                STATE,
                "only images encrypted with LUKS have several passphrases",
            );
        };
        if !options.is_given(STATE) {
            return conflict(STATE, "it must be said whether a passphrase comes or goes");
        }
        let scribe = self.scribe().read();
        let mut header = self.budget.zeroed::<u8>(place.len, "LUKS header")?;
        scribe.read_at(place.offset, &mut header)?;
        let Some(mut luks) = read_luks(&*scribe, &self.geometry)? else {
            return Err(Qcow2Error::NoLuksHeader.into());
        };
        let slot = options.is_given(KEY_SLOT).then(|| options.size(KEY_SLOT));
        let slot = slot.map(|slot| usize::try_from(slot).unwrap_or(usize::MAX));
        let (new, old) = (options.secret(NEW_SECRET), options.secret(OLD_SECRET));
        let method = "luks";
        if new.or(old).is_some() {
            for slot in luks.slots().filter(|slot| slot.active) {
                pay_for_try(&luks, &slot, &self.budget)?;
            }
        }
        match (options.choice(STATE), new, old) {
            ("active", Some(new), None) => {
                let known = passphrase.ok_or(Qcow2Error::Locked { method })?;
                let time = Duration::from_millis(options.size(ITER_TIME));
                luks.add_passphrase(&mut header, known.as_bytes(), new.as_bytes(), slot, time)
            }
            ("inactive", ..) if options.is_given(ITER_TIME) => {
                return conflict(ITER_TIME, "it goes with encrypt.state=active");
            }
            ("inactive", None, Some(old)) => {
                luks.slots_of(&mut header, old.as_bytes())
                    .and_then(|slots| match slot {
                        Some(slot) if !slots.contains(&slot) => Err(CryptError::Passphrase),
                        Some(slot) => luks.remove_slots(&mut header, &[slot]),
                        None => luks.remove_slots(&mut header, &slots),
                    })
            }
            ("inactive", None, None) if slot.is_some() => {
                luks.remove_slots(&mut header, slot.as_slice())
            }
            ("active", ..) => return conflict(STATE, "active goes with encrypt.new-secret"),
            _ => {
                let rule = "inactive goes with encrypt.old-secret or encrypt.keyslot";
                return conflict(STATE, rule);
            }
        }
        .map_err(Qcow2Error::from)?;
        self.sub(place)?;
        self.wipe("old LUKS header", place);
        let offset = self.write_bytes("LUKS header", &header)?;
        self.header.set_luks(HostRange::new(offset, place.len));
        Ok(())
    }

    /// Makes it version 3.
    fn upgrade(&mut self, snapshots: &Snapshots) -> Result<()> {
        self.header.set_version(3);
        self.geometry.version = 3;
        self.complete_snapshots(snapshots)
    }

    /// Makes the entries of the snapshot table say what they must say.
    pub(super) fn complete_snapshots(&mut self, snapshots: &Snapshots) -> Result<()> {
        let need = size_of::<RawSnapshotExtra>();
        let short =
            |entry: &crate::snapshot::Entry| (entry.extra.len() as u64) < ondisk::SNAPSHOT_EXTRA_V3;
        if !snapshots.entries.iter().any(short) {
            return Ok(());
        }
        let mut entries = snapshots.entries.clone();
        for (entry, info) in entries.iter_mut().zip(&snapshots.infos) {
            if short(entry) {
                let extra = RawSnapshotExtra {
                    vm_state_len: info.vm_state_len.into(),
                    virtual_size: info.virtual_size.into(),
                    instructions: u64::MAX.into(),
                };
                entry.extra = extra.as_bytes().to_vec();
                entry.raw.extra_len = (need as u32).into();
            }
        }
        self.put_snapshots(snapshots, &entries)
    }

    /// Counts in other widths.
    fn set_refcount_bits(&mut self, bits: &str, version: u32) -> Result<()> {
        // The value is one of the choices.
        let order = REFCOUNT_BITS.iter().position(|choice| *choice == bits);
        let order = order.unwrap_or_default() as u32;
        if order == self.geometry.refcount_bits.trailing_zeros() {
            return Ok(());
        }
        if version < 3 && order != ondisk::REFCOUNT_ORDER_V2 {
            let option = "refcount_bits";
            return Err(Qcow2Error::NeedsVersion3 { option }.into());
        }
        self.counts.convert(order, &self.budget)?;
        self.header.raw.refcount_order = order.into();
        self.geometry.refcount_bits = 1 << order;
        Ok(())
    }

    /// Makes it version 2.
    fn downgrade(&mut self, snapshots: &Snapshots) -> Result<()> {
        let geometry = &self.geometry;
        let (incompatible, autoclear) = (
            self.header.raw.incompatible_features.get(),
            self.header.raw.autoclear_features.get(),
        );
        let news = [
            (geometry.extended_l2, "subclusters (extended_l2)"),
            (geometry.data != DataPlace::Here, "a data file"),
            (
                incompatible & ondisk::COMPRESSION_TYPE != 0,
                "clusters packed with zstd (compression_type)",
            ),
            (
                geometry.refcount_bits.trailing_zeros() != ondisk::REFCOUNT_ORDER_V2,
                "refcounts of another width than 16 bits (refcount_bits)",
            ),
            (autoclear & ondisk::BITMAPS_VALID != 0, "bitmaps"),
            (
                // Old entries of the snapshot table do not say how large the disk was. [qemu]
                (snapshots.infos.iter()).any(|info| {
                    info.virtual_size != geometry.virtual_size || info.vm_state_len > 0
                }),
                "snapshots of another size or with the state of a machine",
            ),
        ];
        if let Some((_, what)) = news.into_iter().find(|(there, _)| *there) {
            let text = format!("the image has {what}, which version 2 of the format has not");
            return Err(Error::usage(text));
        }
        self.store_zeros(snapshots)?;
        self.header.set_version(2);
        Ok(())
    }

    /// Makes zeros what they are in version 2: data, or nothing where nothing shows through.
    fn store_zeros(&mut self, snapshots: &Snapshots) -> Result<()> {
        let mut l1 = self.l1()?;
        let mut entries = snapshots.entries.clone();
        let mut tables = vec![std::mem::take(&mut l1.entries)];
        for entry in &entries {
            let (offset, len) = entry.l1_table();
            tables.push(self.read_l1(offset, len.into())?);
        }
        // How often each is used: a refcount that is too great is nothing but a leak.
        let mut uses = BTreeMap::new();
        for entry in tables.iter().flatten() {
            *uses.entry(offset_of(*entry)).or_insert(0) += 1;
        }
        // Each L2 table once, whoever names it.
        let mut replaced = BTreeMap::new();
        for entry in tables.iter_mut().flatten() {
            let table = offset_of(*entry);
            if table == 0 {
                continue;
            }
            let new = match replaced.get(&table) {
                Some(new) => *new,
                None => {
                    let times = uses.get(&table).copied().unwrap_or_default();
                    let new = self.without_zeros(table, times)?;
                    replaced.insert(table, new);
                    new
                }
            };
            *entry = new | *entry & COPIED;
        }
        let mut tables = tables.into_iter();
        l1.entries = tables.next().unwrap_or_default();
        for (entry, table) in entries.iter_mut().zip(tables) {
            let (offset, len) = entry.l1_table();
            if self.read_l1(offset, len.into())? != table {
                self.sub(HostRange::new(offset, u64::from(len) * 8))?;
                let offset = self.write_table("L1 table of the snapshot", &table)?;
                entry.raw.l1_offset = offset.into();
            }
        }
        self.settle_copied(&mut l1)?;
        self.put_l1(l1)?;
        self.put_snapshots(snapshots, &entries)
    }

    /// An L2 table that says the same as the one at `table` without zeros that are not stored, for those who
    /// use that one, so many `times`.
    fn without_zeros(&mut self, table: u64, times: u64) -> Result<u64> {
        let covers = self.header.has_backing();
        let mut entries = self.read_l2(table)?;
        let mut changed = false;
        for entry in &mut entries {
            if *entry & COMPRESSED != 0 || *entry & ZERO == 0 {
                continue;
            }
            changed = true;
            let old = offset_of(*entry);
            let len = self.geometry.cluster_size();
            *entry = 0;
            if covers && self.geometry.is_encrypted() {
                let text = "the disk is encrypted and has zeros that hide what is behind it, which \
                            version 2 of the format has not";
                return Err(Error::usage(text));
            }
            if covers {
                let offset = self.take(len)?;
                self.write_zeros(offset, len)?;
                *entry = offset;
            }
            for nth in 0..times {
                if old != 0 {
                    self.sub(HostRange::new(old, len))?;
                }
                if covers && nth > 0 {
                    self.add(HostRange::new(offset_of(*entry), len))?;
                }
            }
        }
        if !changed {
            return Ok(table);
        }
        let len = self.geometry.cluster_size();
        let new = self.write_table("L2 tables", &entries)?;
        for nth in 0..times {
            self.sub(HostRange::new(table, len))?;
            if nth > 0 {
                self.add(HostRange::new(new, len))?;
            }
        }
        Ok(new)
    }
}

fn conflict<T>(option: &'static str, rule: &'static str) -> Result<T> {
    Err(Qcow2Error::Conflict { option, rule }.into())
}
