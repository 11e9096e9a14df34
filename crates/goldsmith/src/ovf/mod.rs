//! XenServer's container: the VHDs of one disk in a gzip'ed tar, as Glance stores them for it under
//! the name of a container format that this is not, `ovf`.
//!
//! ```text
//! gzip( tar( 0.vhd   1.vhd   ...   n.vhd ) )
//!            child ─► its parent ─► base
//! ```
//!
//! Nothing in a gzip'ed file can be read before all that stands in front of it is unpacked. Who wants
//! to ask for bytes of the disk has the VHDs unpacked when the file is opened, into a file without a
//! name; who wants to know what they are has all of it unpacked, too, but only their tables kept, in
//! memory. Who wants all of the disk, in whatever order it comes, has it [poured](pour) out in one
//! pass, and nothing stored.
//!
//! A new one is written front to back, though a tar says how long a VHD is before the first of its
//! bytes, and a VHD says first which blocks there are: those are looked for before. Who wants digests of
//! its disk has the VHD made in a file without a name, and packed from there.

mod draft;
mod gunzip;
mod gzip;
mod passing;
mod pour;
mod sink;
mod skim;
mod stream;
mod tarball;
mod unpack;
mod walk;

use std::io::Read;
use std::sync::Arc;

use goldsmith_block::{
    Ailment, Budget, Chain, Content, CreateSpec, Detail, Error, ErrorKind, Extent, ExtentKind,
    Format, Layer, LayerInfo, Match, Measured, OptionSpec, Options, Probe, Result, SECTOR, Sink,
    Storage, StorageMut, Symptom,
};
use goldsmith_storage::FileStorage;
use goldsmith_vhd::VHD;

use crate::measure::reckon;

pub(crate) use gzip::Out;
pub(crate) use pour::Container;
pub(crate) use stream::{into, write, write_chain, write_from};

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
                let fits = walk::is_directory(&path) || walk::number(&path).is_some();
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
        let scratch = FileStorage::scratch(storage.name())?;
        let members = unpack::unpack(&*storage, budget, scratch)?;
        Ok(Arc::new(OvfLayer::open(storage, members, budget)?))
    }

    fn inspect(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        _options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        match skim::skim(&*storage, budget)? {
            Some(members) => Ok(Arc::new(OvfLayer::open(storage, members, budget)?)),
            // Their tables stand behind their data.
            None => self.open(storage, &budget.afresh()),
        }
    }

    fn survey(
        &self,
        storage: Arc<dyn Storage>,
        budget: &Budget,
        _options: &Options,
    ) -> Result<Arc<dyn Layer>> {
        // Apart from what is paid for if they are unpacked.
        match skim::survey(&*storage, &budget.afresh()) {
            Ok(Some(members)) => Ok(Arc::new(OvfLayer::open(storage, members, budget)?)),
            Err(error) if error.kind() != ErrorKind::Limit => Err(error),
            // Their tables stand behind their data, or are over what was allowed for two of them.
            _ => self.open(storage, budget),
        }
    }

    fn options(&self) -> &'static [OptionSpec] {
        VHD.options()
    }

    fn size_unit(&self) -> u64 {
        VHD.size_unit()
    }

    fn create(&self, storage: Arc<dyn StorageMut>, spec: &CreateSpec) -> Result<Box<dyn Sink>> {
        refuse_backing(spec)?;
        refuse_device(&*storage)?;
        Ok(Box::new(sink::OvfSink::new(storage, spec)?))
    }

    /// What packs badly gets a little longer.
    fn measure(&self, spec: &CreateSpec, content: Option<Content<'_>>) -> Result<Option<Measured>> {
        let data = content.map(|content| content.data);
        let vhd = reckon(&VHD, spec, data)?;
        Ok(Some(Measured {
            required: gzip::bound(tarball::len_of(vhd.required)),
            fully_allocated: gzip::bound(tarball::len_of(vhd.fully_allocated)),
            bitmaps: None,
        }))
    }
}

/// Refuses a target whose length cannot be changed.
pub(crate) fn refuse_device(storage: &dyn StorageMut) -> Result<()> {
    match storage.fixed_len() {
        Some(len) => {
            let text = format!("a gzip'ed tar ends where its file does, not after {len} bytes");
            Err(Error::usage(text))
        }
        None => Ok(()),
    }
}

/// Refuses a VHD that would need another one.
fn refuse_backing(spec: &CreateSpec) -> Result<()> {
    match spec.backing.is_some() || spec.options.text("backing_file").is_some() {
        true => {
            let text = "a backing file cannot be named from inside of a tar";
            Err(Error::usage(text))
        }
        false => Ok(()),
    }
}

/// The disk of all VHDs in a file.
struct OvfLayer {
    storage: Arc<dyn Storage>,
    info: LayerInfo,
    chain: Chain,
}

/// The options with which the VHD of this number is opened: all others stand behind the first.
fn options_of(number: u32) -> Result<Options> {
    let implied = match number {
        0 => &[],
        _ => VHD.options_behind(),
    };
    Options::parse(VHD.open_options(), implied.iter().copied())
}

impl OvfLayer {
    fn open(
        storage: Arc<dyn Storage>,
        members: Vec<Arc<dyn Storage>>,
        budget: &Budget,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        for (number, member) in (0..).zip(members) {
            let name = member.name().to_owned();
            let layer = VHD.open_with(member, budget, &options_of(number)?);
            layers.push(layer.map_err(|error| error.in_file(name))?);
        }
        check_parents(&layers)?;
        let records = layers.iter().enumerate();
        let records = records.map(|(number, layer)| member(number, &**layer));
        let members = Detail::List(records.collect());
        let parents = layers.iter().enumerate().skip(1);
        let parents = parents.map(|(number, layer)| parent(number, layer.info()));
        let behind = Detail::List(parents.collect());
        let mut layers = layers.into_iter();
        let Some(top) = layers.next() else {
            return Err(Error::corrupt("the tar holds no VHD"));
        };
        let chain = Chain::new(top, layers);
        let top = chain.top().info();
        let mut facts = top.facts.clone();
        facts.push(("members-behind", behind));
        Ok(Self {
            info: LayerInfo {
                format: NAME,
                backing: None,
                details: vec![("members", members)],
                facts,
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

/// What can be checked of a VHD in the tar that is the parent of another one.
fn parent(number: usize, info: &LayerInfo) -> Detail {
    let mut facts = vec![
        ("name", Detail::Text(format!("{number}.vhd"))),
        ("virtual-size", Detail::Number(info.virtual_size)),
    ];
    // XenServer's storage manager hides parents: they are no disks of their own.
    let own = info.facts.iter().filter(|(name, _)| *name != "hidden");
    facts.extend(own.cloned());
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

    fn symptoms(&self) -> Result<Vec<Symptom>> {
        let mut symptoms = Vec::new();
        for layer in self.chain.layers() {
            let name = layer.storage().name();
            let own = layer.symptoms()?.into_iter();
            let own = own.filter(|symptom| symptom.ailment != Ailment::Tail);
            symptoms.extend(own.map(|it| it.ailment.sign(format_args!("{name}: {}", it.text))));
        }
        Ok(symptoms)
    }
}

const _: () = assert!(BLOCK as u64 == SECTOR);
