//! Going on with a conversion that was cut off.
//!
//! The target's unfinished file stays beside its name, and a [journal](journal) says up to which
//! offset of the disk all is stored in it, and which places were asked for before that. Because
//! places are handed out in guest order, a new sink that is asked for the same ones again knows
//! what the old one knew, without a byte of the source being read; all behind is done as if nobody
//! had begun with it. So the target is, byte for byte, what it would have been.

mod journal;
mod noted;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use goldsmith_block::{
    Chain, Committed, CreateSpec, Demand, Error, ErrorKind, Format, Layer, Placement, Result, Sink,
    SinkProfile, Storage, StorageId, StorageMut,
};
use goldsmith_engine::{Crc32, Digest, Job, Milestones, Outcome};
use goldsmith_storage::{Cache, FileStorage, Target, Unfinished, VoidStorage, follow};

use crate::Opener;
use crate::cloud::Cloud;
use crate::proof::{Made, Proof};
use crate::reference::{directory_of, is_at};
use crate::target::refuse_source;
use journal::{Journal, Place, header};
use noted::{Noted, Notes};

/// Bytes of the disk after which a conversion makes sure of what is done, unless it is told
/// otherwise. [ours] At the speed of a fast disk that is a few times in a second.
const EVERY: u64 = 256 << 20;
/// Bytes at the start of a source file that are looked at to see whether it is the same.
const HEAD: u64 = 1 << 20;
/// How the last of the facts in a journal begin: what was decided when the work began.
const DECIDED: [&str; 4] = ["uuid ", "timestamp ", "journal ", FILE];
const FILE: &str = "file ";

/// How a conversion is to be one that can be gone on with.
#[derive(Clone, Debug)]
pub(crate) struct Resume {
    journal: PathBuf,
    /// Bytes of the disk.
    pub(crate) every: u64,
}

/// A conversion as far as it is known before its target is opened.
pub(crate) struct Work<'a> {
    pub(crate) target: &'a Path,
    pub(crate) format: &'a dyn Format,
    /// The disk.
    pub(crate) source: &'a Chain,
    /// What it is made of.
    pub(crate) disks: &'a [Chain],
    pub(crate) behind: Option<&'a Chain>,
    pub(crate) spec: CreateSpec,
    /// How the target goes through the system's.
    pub(crate) cache: Cache,
    /// What to do; digests are made at the end.
    pub(crate) job: Job<'a>,
    pub(crate) proof: &'a Proof,
    /// What the caller asked for, a line each.
    pub(crate) wishes: Vec<String>,
    /// Who is told when everything is open.
    pub(crate) opener: &'a Opener,
    /// Who must take the target.
    pub(crate) cloud: Option<&'static Cloud>,
}

impl Resume {
    pub(crate) fn new(journal: &Path) -> Self {
        Self {
            journal: journal.to_owned(),
            every: EVERY,
        }
    }

    /// Does `work`, or what is left of it, and forgets the journal. Gives the digests of the file, too.
    pub(crate) fn run(&self, work: Work<'_>) -> Result<(Outcome, Vec<Digest>)> {
        // What is read, written and forgotten is the same, then.
        let journal = follow(&self.journal)?;
        Self { journal, ..*self }.go(work)
    }

    fn go(&self, mut work: Work<'_>) -> Result<(Outcome, Vec<Digest>)> {
        let facts = work.facts()?;
        let name = work.target.to_string_lossy();
        let is_begun = self.is_begun();
        let mut target = Target::resumable(work.target, work.cache, !is_begun)?;
        let read = work.disks.iter().chain(work.behind);
        refuse_source(work.target, target.id(), read)?;
        target.lock()?;
        let journal_in = Path::new(".").join(directory_of(&self.journal));
        let directories: Vec<_> = target.directory().into_iter().chain([journal_in]).collect();
        let partial = target.storage();
        let Some(file) = partial.file().map(identity).transpose()? else {
            let text = "a conversion into a device cannot be gone on with";
            return Err(Error::unsupported(text).in_file(name));
        };
        self.must_be_apart(partial.id())?;
        let journal = self.open()?;
        if journal.is_some() != is_begun {
            let text = "another process was at work on it, and has just ended; look what it left";
            return Err(self.refuse(text));
        }
        let (mut outcome, mut journal) = match journal {
            None => {
                if !partial.is_empty() {
                    return Err(Error::usage(left(target.draft())).in_file(name));
                }
                // The file stays empty as long as no journal tells of it.
                let trial = work.void()?;
                must_be_plain(&*trial).map_err(|error| error.in_file(name))?;
                let mut journal = self.begin(facts, &work.spec, (&target, &file))?;
                target.keep();
                let sink = work.create(Arc::clone(&partial))?;
                work.opener.all_open(&directories)?;
                let outcome = pour(&work, sink, &*partial, &mut journal, self.every)?;
                (outcome, journal)
            }
            Some((written, mut journal)) => {
                let begun = self.compare(&facts, &written)?;
                if begun.file != file {
                    let gone = "the unfinished file is gone; remove the journal to begin again";
                    if target.id().is_none() {
                        return Err(self.refuse(gone));
                    }
                    let storage = Arc::new(FileStorage::open(work.target)?);
                    let size = work.void()?.profile().virtual_size;
                    let done = published(&storage, &begun, &journal, size)?;
                    let mut done = done.ok_or_else(|| self.refuse(gone))?;
                    work.opener.all_open(&directories)?;
                    let file_digests = work.prove(storage, &mut done)?;
                    target.settle()?;
                    self.forget(&journal)?;
                    return Ok((done, file_digests));
                }
                target.keep();
                (work.spec.uuid, work.spec.timestamp) = (begun.uuid, begun.timestamp);
                let unfinished = Arc::new(Unfinished::new(Arc::clone(&partial)));
                let sink = work.create(Arc::clone(&unfinished) as _)?;
                retrace(&*sink, &unfinished, &journal)?;
                work.opener.all_open(&directories)?;
                let outcome = pour(&work, sink, &*partial, &mut journal, self.every)?;
                (outcome, journal)
            }
        };
        let file_digests = work.prove(Arc::clone(&partial) as _, &mut outcome)?;
        partial.flush()?;
        journal.finish(partial.len())?;
        target.publish()?;
        // Locked until there is no journal any more by which somebody could go on with what is done.
        self.forget(&journal)?;
        drop(partial);
        Ok((outcome, file_digests))
    }

    /// Fails if the journal would be the unfinished file of the target.
    fn must_be_apart(&self, partial: StorageId) -> Result<()> {
        let is_partial = FileStorage::open(&self.journal).is_ok_and(|it| it.id() == partial);
        match is_partial {
            true => Err(self.is_target()),
            false => Ok(()),
        }
    }

    fn is_target(&self) -> Error {
        self.refuse("the journal cannot be the target itself")
    }

    /// The journal with its facts, if there is one.
    ///
    /// # Errors
    /// Those of reading it; `Usage` if it is a copy, of which another one may tell more.
    fn open(&self) -> Result<Option<(Vec<String>, Journal)>> {
        if !self.is_begun() {
            return Ok(None);
        }
        let storage = Arc::new(FileStorage::edit(&self.journal)?);
        let own = storage.file().map(identity).transpose()?;
        let (facts, journal) = Journal::open(storage, FILE)?;
        let written = facts.iter().rev().nth(1);
        if written.and_then(|fact| fact.strip_prefix(DECIDED[2])) != own.as_deref() {
            let text = "the journal is a copy of another one, which may tell more than it does";
            return Err(self.refuse(text));
        }
        Ok(Some((facts, journal)))
    }

    /// Whether there is a journal that says anything.
    fn is_begun(&self) -> bool {
        match std::fs::metadata(&self.journal) {
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            Ok(metadata) => !metadata.is_file() || metadata.len() > 0,
        }
    }

    /// Begins a journal of work on `target`, whose unfinished file is `file`, all at once.
    fn begin(
        &self,
        mut facts: Vec<String>,
        spec: &CreateSpec,
        (target, file): (&Target, &str),
    ) -> Result<Journal> {
        let journal = Target::create(&self.journal)?;
        if journal.meets(target) {
            return Err(self.is_target());
        }
        let storage = journal.storage();
        let own = storage.file().map(identity).transpose()?;
        let values = [
            spec.uuid.to_string(),
            spec.timestamp.to_string(),
            own.unwrap_or_default(),
            file.to_owned(),
        ];
        facts.extend(
            DECIDED
                .iter()
                .zip(values)
                .map(|(name, value)| format!("{name}{value}")),
        );
        storage.write_at(0, header(&facts).as_bytes())?;
        journal.publish()?;
        let storage = Arc::new(FileStorage::edit(&self.journal)?);
        Ok(Journal::open(storage, FILE)?.1)
    }

    /// What was decided when the work began, of which `written` tells; it must be this work.
    fn compare(&self, facts: &[String], written: &[String]) -> Result<Begun> {
        let (then, decided) = written.split_at(written.len().saturating_sub(DECIDED.len()));
        let differs = |(now, then): &(&String, &String)| now != then;
        if let Some((now, then)) = facts.iter().zip(then).find(differs) {
            let text =
                format!("the journal is of another conversion: [{then}], and this is [{now}]");
            return Err(self.refuse(text));
        }
        if facts.len() != then.len() {
            return Err(self.refuse("the journal is of another conversion, of other files"));
        }
        let value = |nth: usize| decided.get(nth)?.strip_prefix(DECIDED[nth]);
        let begun = || {
            Some(Begun {
                uuid: value(0)?.parse().ok()?,
                timestamp: value(1)?.parse().ok()?,
                file: value(3)?.to_owned(),
            })
        };
        begun().ok_or_else(|| self.refuse("the journal does not say how the work began"))
    }

    /// Removes the journal of a work that is done.
    fn forget(&self, journal: &Journal) -> Result<()> {
        let failed =
            |error| Error::new(ErrorKind::Io, error).in_file(self.journal.to_string_lossy());
        // By whatever name, what stands there may be something else by now.
        if is_at(&self.journal, journal.id()) {
            std::fs::remove_file(&self.journal).map_err(failed)?;
        }
        Ok(())
    }

    fn refuse(&self, text: impl Into<String>) -> Error {
        Error::usage(text.into()).in_file(self.journal.to_string_lossy())
    }
}

/// What was decided when a work began, and holds for all of it.
struct Begun {
    uuid: uuid::Uuid,
    timestamp: u64,
    /// Which file the unfinished one is.
    file: String,
}

/// Which file it is, for as long as there are files: an inode is given to another one when it is free.
fn identity(file: &File) -> Result<String> {
    let failed = |error| Error::new(ErrorKind::Io, error);
    let metadata = file.metadata().map_err(failed)?;
    let born = metadata.created().ok();
    let born = born.and_then(|it| it.duration_since(UNIX_EPOCH).ok());
    // Not every file system knows when.
    let born = born.unwrap_or_default();
    let (ino, seconds, nanos) = (metadata.ino(), born.as_secs(), born.subsec_nanos());
    Ok(format!("{ino} {seconds}.{nanos:09}"))
}

impl Work<'_> {
    /// All that the target's bytes depend on, a line each.
    fn facts(&self) -> Result<Vec<String>> {
        // Another version may lay images out in another way.
        let mut facts = vec![format!("version {}", env!("CARGO_PKG_VERSION"))];
        facts.extend(self.wishes.iter().cloned());
        facts.push(format!("disk of {} bytes", self.spec.virtual_size));
        let disks = self.disks.iter().map(|disk| ("source", disk));
        for (what, chain) in disks.chain(self.behind.map(|disk| ("behind", disk))) {
            for layer in chain.layers() {
                facts.push(layer_fact(what, &**layer)?);
                if layer.data_storage().id() != layer.storage().id() {
                    facts.push(file_fact("data", &**layer.data_storage())?);
                }
            }
        }
        Ok(facts)
    }

    /// Proves what shall be of the target, which is complete and stands in `storage`.
    fn prove(&self, storage: Arc<dyn Storage>, outcome: &mut Outcome) -> Result<Vec<Digest>> {
        let made = Made {
            format: self.format,
            spec: &self.spec,
            storage,
            on_device: false,
            file_len: outcome.committed.file_len,
            behind: self.behind,
            limits: &self.opener.limits,
            cloud: self.cloud,
        };
        let proved = made
            .must_please()
            .and_then(|()| self.proof.of_pieces(&made, self.source, &self.job));
        let in_target = |error: Error| error.in_file(self.target.to_string_lossy());
        let (digests, file_digests) = proved.map_err(in_target)?;
        outcome.digests = digests;
        Ok(file_digests)
    }

    /// The sink for a target that keeps nothing.
    fn void(&self) -> Result<Box<dyn Sink>> {
        let name = self.target.to_string_lossy();
        self.create(Arc::new(VoidStorage::new(&*name, 0)))
    }

    fn create(&self, storage: Arc<dyn StorageMut>) -> Result<Box<dyn Sink>> {
        let sink = self.format.create(storage, &self.spec);
        sink.map_err(|error| error.in_file(self.target.to_string_lossy()))
    }
}

fn layer_fact(what: &str, layer: &dyn Layer) -> Result<String> {
    let (info, file) = (layer.info(), file_fact(what, &**layer.storage())?);
    Ok(format!(
        "{file}: {}, a disk of {} bytes",
        info.format, info.virtual_size
    ))
}

/// Which file it is and when anything about it was changed last, which cannot be set as the time of its
/// content can; something of that, too, because not every clock goes right.
fn file_fact(what: &str, storage: &dyn Storage) -> Result<String> {
    let name = storage.name();
    let failed = |error| Error::new(ErrorKind::Io, error).in_file(name);
    let Some(file) = storage.file() else {
        let text = "it is no file, or a part of one, so nobody could tell whether it was changed before the \
                    rest is done";
        return Err(Error::unsupported(text).in_file(name));
    };
    let metadata = file.metadata().map_err(failed)?;
    let mut head = vec![0; HEAD.min(storage.len()) as usize];
    storage.read_at(0, &mut head)?;
    Ok(format!(
        "{what} {:?}, inode {}, {} bytes, changed {}.{:09}, head {:08x}",
        std::path::absolute(name).map_err(failed)?,
        metadata.ino(),
        storage.len(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        Crc32::of(&head).value()
    ))
}

/// What came of a work that was cut off between its last two steps: its file is complete and has its name
/// already. The disk in it has `virtual_size` bytes.
fn published(
    target: &FileStorage,
    begun: &Begun,
    journal: &Journal,
    virtual_size: u64,
) -> Result<Option<Outcome>> {
    let file = target.file().map(identity).transpose()?;
    let is_done = file.as_ref() == Some(&begun.file) && journal.complete == Some(target.len());
    Ok(is_done.then(|| Outcome {
        committed: Committed {
            file_len: target.len(),
        },
        virtual_size,
        data: 0,
        digests: Vec::new(),
    }))
}

/// Fails if bytes do not stand in the target's file as they are on the disk, once and for all.
fn must_be_plain(sink: &dyn Sink) -> Result<()> {
    if sink.slots_in().is_some() {
        return Ok(());
    }
    let text = "a target that is encrypted, preallocated or an archive cannot be gone on with";
    Err(Error::unsupported(text))
}

/// What to say of an unfinished file without a journal.
fn left(draft: Option<&Path>) -> String {
    format!(
        "an unfinished file of another conversion is there; name its journal, or remove '{}'",
        draft.unwrap_or(Path::new("")).display()
    )
}

/// Asks `sink` for what was asked for before all of that was stored.
fn retrace(sink: &dyn Sink, unfinished: &Unfinished, journal: &Journal) -> Result<()> {
    let profile = sink.profile();
    let corrupt = || {
        let text = "the journal tells of places that this disk does not have";
        Error::corrupt(text).in_file(unfinished.name())
    };
    if journal.done > profile.virtual_size {
        return Err(corrupt());
    }
    if profile.placement == Placement::Identity {
        unfinished.reaches(journal.done);
    }
    let (mut at, mut slots) = (0, Vec::new());
    journal.places(|places| {
        for place in places {
            let range = place.range();
            if range.start < at || range.end > journal.done {
                return Err(corrupt());
            }
            at = range.end;
            let asked = match place {
                Place::Demand(demand) if !fits(demand, profile) => return Err(corrupt()),
                Place::Demand(demand) => sink.reserve(&[*demand], &mut slots),
                Place::Zeros(range) => sink.reserve_zeroes(*range),
            };
            asked.map_err(|error| match error.kind() {
                // Not the engine's: it never asked for this.
                ErrorKind::Bug => corrupt(),
                _ => error,
            })?;
            for slot in slots.drain(..) {
                let len = slot.packed.unwrap_or(slot.range.len());
                unfinished.reaches(slot.host.saturating_add(len));
            }
        }
        Ok(())
    })?;
    unfinished.go_on(journal.stored)
}

/// Whether a sink with this `profile` can be asked for this, as far as packed bytes go.
fn fits(demand: &Demand, profile: &SinkProfile) -> bool {
    let unit = profile.packing.map_or(0, |packing| packing.unit);
    demand.packed.is_none_or(|len| len < unit)
}

/// Does what is left of `work`, and writes down from time to time how far it is stored in `partial`.
fn pour(
    work: &Work<'_>,
    sink: Box<dyn Sink>,
    partial: &dyn StorageMut,
    journal: &mut Journal,
    every: u64,
) -> Result<Outcome> {
    let notes = Notes::default();
    let start = journal.done;
    let journal = Mutex::new(journal);
    let reached = |done| {
        let stored = partial.len();
        partial.flush()?;
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.add(&notes.take(done), done, stored)
    };
    let job = Job {
        start,
        milestones: Some(Milestones {
            every,
            reached: &reached,
        }),
        ..work.job
    };
    goldsmith_engine::convert(work.source, Box::new(Noted::new(sink, &notes)), &job)
}

#[cfg(test)]
mod tests;
