//! XenServer's container: the VHDs of one disk in a gzip'ed tar, as Glance stores them for it under
//! the name of a container format that this is not, `ovf`.
//!
//! ```text
//! gzip( tar( 0.vhd   1.vhd   ...   n.vhd ) )
//!            child ─► its parent ─► base
//! ```
//!
//! Nothing in a gzip'ed file can be read before all that stands in front of it is unpacked, so the
//! VHDs are unpacked when the file is opened, into files without names. A new one is written as a VHD
//! into such a file, and packed from there when it is complete: the tar says how long it is before
//! the first of its bytes, and a VHD says last which blocks there are.

mod gzip;
mod unpack;

use std::io::Read;
use std::sync::Arc;

use goldsmith_block::{
    Budget, Chain, Committed, Content, CreateSpec, Demand, Detail, Error, Extent, ExtentKind,
    Format, GuestRange, Layer, LayerInfo, Match, Measured, OptionSpec, Probe, Result, SECTOR, Sink,
    SinkProfile, Slot, Storage, StorageMut,
};
use goldsmith_storage::FileStorage;
use goldsmith_vhd::VHD;

use crate::measure::reckon;

/// The format's name, and that of the cloud that wants it.
pub(crate) const NAME: &str = "xenserver-ovf";

/// The format, for the registry.
pub(crate) static OVF: Ovf = Ovf;

/// VHDs in a gzip'ed tar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ovf;

/// The first bytes of every gzip'ed file that is deflated.
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
/// Bytes of a tar's header, and of the unit of its members.
const BLOCK: usize = 512;

impl Format for Ovf {
    fn name(&self) -> &'static str {
        NAME
    }

    /// By the first tar header of what is packed: that of a VHD, or of the directory that they are in.
    fn probe(&self, probe: &Probe<'_>) -> Match {
        if !probe.head.starts_with(&GZIP) {
            return Match::No;
        }
        let mut inside = flate2::read::GzDecoder::new(probe.head);
        let mut header = [0; BLOCK];
        // A few may say something about the one that follows.
        for _ in 0..4 {
            if inside.read_exact(&mut header).is_err() {
                return Match::No;
            }
            let header = tar::Header::from_byte_slice(&header);
            if header.as_ustar().is_none() && header.as_gnu().is_none() {
                return Match::No;
            }
            let (kind, path) = (header.entry_type(), header.path_bytes());
            let says = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
            if !says {
                let fits = unpack::is_directory(&path) || unpack::number(&path).is_some();
                return if fits { Match::Marked } else { Match::No };
            }
            let text = header
                .entry_size()
                .unwrap_or(u64::MAX)
                .div_ceil(BLOCK as u64);
            let skipped = &mut (&mut inside).take(text.saturating_mul(BLOCK as u64));
            if std::io::copy(skipped, &mut std::io::sink()).is_err() {
                return Match::No;
            }
        }
        Match::No
    }

    fn unpacks(&self) -> bool {
        true
    }

    fn open(&self, storage: Arc<dyn Storage>, budget: &Budget) -> Result<Arc<dyn Layer>> {
        let members = unpack::unpack(&*storage, budget)?;
        Ok(Arc::new(OvfLayer::open(storage, members, budget)?))
    }

    fn options(&self) -> &'static [OptionSpec] {
        VHD.options()
    }

    fn size_unit(&self) -> u64 {
        VHD.size_unit()
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        if spec.backing.is_some() || spec.options.text("backing_file").is_some() {
            let text = "a backing file cannot be named from inside of a tar";
            return Err(Error::usage(text));
        }
        if let Some(len) = storage.fixed_len() {
            let text = format!("a gzip'ed tar ends where its file does, not after {len} bytes");
            return Err(Error::usage(text));
        }
        let vhd = Arc::new(FileStorage::scratch(storage.name())?);
        let sink = VHD.create(Arc::clone(&vhd) as _, spec)?;
        storage.set_len(0)?;
        Ok(Box::new(OvfSink {
            sink,
            vhd,
            storage,
            timestamp: spec.timestamp,
        }))
    }

    /// What packs badly gets a little longer.
    fn measure(&self, spec: &CreateSpec, content: Option<Content<'_>>) -> Result<Option<Measured>> {
        let data = content.map(|content| content.data);
        let vhd = reckon(&VHD, spec, data)?;
        Ok(Some(Measured {
            required: gzip::bound(tar_len(vhd.required)),
            fully_allocated: gzip::bound(tar_len(vhd.fully_allocated)),
            bitmaps: None,
        }))
    }
}

/// Length of the tar of one VHD of `len` bytes: its header, its bytes, and two blocks of zeros.
fn tar_len(len: u64) -> u64 {
    BLOCK as u64 * 3 + len.next_multiple_of(BLOCK as u64)
}

/// The disk of all VHDs in a file.
struct OvfLayer {
    storage: Arc<dyn Storage>,
    info: LayerInfo,
    chain: Chain,
}

impl OvfLayer {
    fn open(
        storage: Arc<dyn Storage>,
        members: Vec<Arc<dyn Storage>>,
        budget: &Budget,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        for member in members {
            let name = member.name().to_owned();
            let layer = VHD.open(member, budget);
            layers.push(layer.map_err(|error| error.in_file(name))?);
        }
        check_parents(&layers)?;
        let records = layers.iter().enumerate();
        let records = records.map(|(number, layer)| member(number, &**layer));
        let members = Detail::List(records.collect());
        let mut layers = layers.into_iter();
        let Some(top) = layers.next() else {
            return Err(Error::corrupt("the tar holds no VHD"));
        };
        let chain = Chain::new(top, layers);
        let top = chain.top().info();
        Ok(Self {
            info: LayerInfo {
                format: NAME,
                backing: None,
                details: vec![("members", members)],
                warnings: chain.warnings().to_vec(),
                ..top.clone()
            },
            storage,
            chain,
        })
    }
}

/// Each VHD must be the child of the next one, and the last one nobody's: where they say that their
/// parents are is where they were before they came into the tar.
fn check_parents(layers: &[Arc<dyn Layer>]) -> Result<()> {
    for (number, layer) in layers.iter().enumerate() {
        let parent = layers.get(number + 1).map(|parent| parent.info().uuid);
        let text = match (&layer.info().backing, parent) {
            (None, None) => continue,
            (Some(wanted), Some(found)) if wanted.uuid.is_some() && wanted.uuid == found => {
                continue;
            }
            (None, Some(_)) => format!("has no parent, and the tar has more: {}.vhd", number + 1),
            (Some(_), None) => "has a parent, which is not in the tar".into(),
            (Some(wanted), Some(found)) => {
                let shown = |uuid: Option<_>| match uuid {
                    Some(uuid) => format!("{uuid}"),
                    None => "none".into(),
                };
                let (wanted, found) = (shown(wanted.uuid), shown(found));
                let next = number + 1;
                format!("has a parent of identity {wanted}, and that of {next}.vhd is {found}")
            }
        };
        return Err(Error::corrupt(format!("{number}.vhd {text}")));
    }
    Ok(())
}

/// What can be said of a VHD in the tar.
fn member(number: usize, layer: &dyn Layer) -> Detail {
    let info = layer.info();
    let mut facts = vec![
        ("name", Detail::Text(format!("{number}.vhd"))),
        ("virtual-size", Detail::Number(info.virtual_size)),
        ("file-length", Detail::Number(layer.storage().len())),
    ];
    if let Some(uuid) = info.uuid {
        facts.push(("uuid", Detail::Text(uuid.to_string())));
    }
    facts.extend(info.details.iter().cloned());
    Detail::Record(facts)
}

impl Layer for OvfLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let extent = self.chain.extent_at(offset, limit)?.extent;
        let kind = match extent.kind {
            // Not in the file that anybody knows of.
            ExtentKind::Zero { allocated, .. } => ExtentKind::Zero {
                allocated,
                host: None,
            },
            _ => ExtentKind::Data { host: None },
        };
        Ok(Extent { kind, ..extent })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read_at(offset, buf)
    }
}

/// A VHD that is being made, to be packed.
struct OvfSink {
    sink: Box<dyn Sink>,
    /// Where it stands until then.
    vhd: Arc<FileStorage>,
    storage: Arc<dyn StorageMut>,
    timestamp: u64,
}

/// All but the end is the VHD's. It shares nothing with the source: all of it is read again anyway.
impl Sink for OvfSink {
    fn profile(&self) -> &SinkProfile {
        self.sink.profile()
    }

    fn reserve(&self, demands: &[Demand], slots: &mut Vec<Slot>) -> Result<()> {
        self.sink.reserve(demands, slots)
    }

    fn write(&self, slot: Slot, data: &[u8]) -> Result<()> {
        self.sink.write(slot, data)
    }

    fn write_zeroes(&self, range: GuestRange) -> Result<()> {
        self.sink.write_zeroes(range)
    }

    fn commit(self: Box<Self>) -> Result<Committed> {
        let len = self.sink.commit()?.file_len;
        let header = header(len, self.timestamp)?;
        let tar = Tar {
            header: header.as_bytes(),
            vhd: &self.vhd,
            len: tar_len(len),
        };
        let file_len = gzip::pack(&tar, &*self.storage)?;
        self.storage.flush()?;
        Ok(Committed { file_len })
    }
}

/// The header of the one member of a new tar: the same for everybody who packs the same.
fn header(len: u64, timestamp: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    let path = header.set_path("0.vhd");
    path.map_err(|error| Error::usage(format!("a tar header cannot be made: {error}")))?;
    header.set_size(len);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(timestamp);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// The bytes of a tar of one VHD.
struct Tar<'a> {
    header: &'a [u8; BLOCK],
    vhd: &'a FileStorage,
    len: u64,
}

impl gzip::Bytes for Tar<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (header_len, vhd_len) = (BLOCK as u64, self.vhd.len());
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (end, kind) = match at {
                at if at < header_len => (header_len, 0),
                at if at < header_len + vhd_len => (header_len + vhd_len, 1),
                _ => (self.len, 2),
            };
            // At most as long as the buffer.
            let len = (end - at).min(rest.len() as u64) as usize;
            let (part, others) = rest.split_at_mut(len);
            match kind {
                0 => part.copy_from_slice(&self.header[at as usize..][..len]),
                1 => self.vhd.read_at(at - header_len, part)?,
                _ => part.fill(0),
            }
            at += len as u64;
            rest = others;
        }
        Ok(())
    }
}

const _: () = assert!(BLOCK as u64 == SECTOR);
