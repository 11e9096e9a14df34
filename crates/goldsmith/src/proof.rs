//! What is proved of a target before it takes its name: that it holds the disk, and its digests.

use std::sync::Arc;

use goldsmith_block::{
    Budget, Chain, CreateSpec, Error, ErrorKind, Format, GuestRange, HostRange, Limits, Options,
    Result, Storage,
};
use goldsmith_engine::{
    Algorithm, ChecksumJob, CompareError, CompareJob, Comparison, Digest, Job, Phase, checksum,
    compare,
};
use goldsmith_storage::{FileStorage, Window};

use crate::cloud::Cloud;
use crate::convert::now;
use crate::lint::{Looks, lint_layer};
use crate::marks::Content;
use crate::ovf::Container;
use crate::registry;
use crate::splice::Splice;
use crate::watch::Tap;

/// What is to be proved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proof {
    /// Digests of the disk.
    pub(crate) digests: Vec<Algorithm>,
    /// Digests of the file.
    pub(crate) file_digests: Vec<Algorithm>,
    /// Whether the target is read back.
    pub(crate) verify: bool,
}

impl Proof {
    /// Whether anything is.
    pub(crate) fn is_wanted(&self) -> bool {
        self.verify || !(self.digests.is_empty() && self.file_digests.is_empty())
    }
}

/// The options with which an image is opened that was made with `options`.
pub(crate) fn opening(format: &dyn Format, options: &Options) -> Result<Options> {
    let specs = format.open_options();
    let secrets = specs.iter().filter_map(|spec| {
        let secret = options.secret(spec.name)?;
        Some((spec.name, secret))
    });
    Options::parse(specs, secrets)
}

/// A target that is complete and has no name yet.
pub(crate) struct Made<'a> {
    pub(crate) format: &'a dyn Format,
    pub(crate) spec: &'a CreateSpec,
    pub(crate) storage: Arc<dyn Storage>,
    /// Whether that is a device, which is as long as it is.
    pub(crate) on_device: bool,
    /// Length of the file in bytes or, on a device, that of what was written there.
    pub(crate) file_len: u64,
    pub(crate) behind: Option<&'a Chain>,
    pub(crate) limits: &'a Limits,
    /// The cloud that it is for.
    pub(crate) cloud: Option<&'static Cloud>,
}

impl Made<'_> {
    /// Fails if its cloud would refuse it. Of a container, which would have to be unpacked, that is not
    /// known; it is made as the cloud wants it, whatever the options.
    ///
    /// # Errors
    /// `Usage` if so; those of opening it.
    pub(crate) fn must_please(&self) -> Result<()> {
        let Some(cloud) = self.cloud.filter(|_| !self.format.unpacks()) else {
            return Ok(());
        };
        let mut storage = Arc::clone(&self.storage);
        if self.on_device {
            // What stands behind it is none of it.
            storage = Arc::new(Window::new(storage, HostRange::new(0, self.file_len))?);
        }
        let (budget, options) = (
            Budget::new(self.limits),
            Options::defaults(self.format.open_options()),
        );
        let looks_like = registry::probe(&*storage).ok();
        let layer = self.format.inspect(storage, &budget, &options)?;
        let content = Content::look(&*layer, || Ok(()))?;
        let looks = Looks {
            file: looks_like.map(|format| format.name()),
            disk: &content.marks,
            partition_table: content.partition_table,
        };
        let told = layer.info().warnings.len();
        let findings = lint_layer(layer.info(), &looks, told, cloud, now());
        let Some(finding) = findings.first() else {
            return Ok(());
        };
        let (fact, found, wanted) = (finding.rule.fact, &finding.found, &finding.wanted);
        let (name, reason) = (cloud.name, finding.rule.reason);
        Err(Error::usage(format!(
            "{name} would not take it: its {fact} would be {found}, and must be {wanted} ({reason})"
        )))
    }

    /// The disk in it, as whoever opens it for the first time finds it. What stands on a device behind a
    /// RAW one is none of it.
    fn disk(&self) -> Result<Chain> {
        let options = opening(self.format, &self.spec.options)?;
        let (storage, budget) = (Arc::clone(&self.storage), Budget::new(self.limits));
        let mut layer = self.format.open_with(storage, &budget, &options)?;
        if let Some(data) = &self.spec.data {
            layer = layer.with_data(Arc::clone(data) as _)?;
        }
        let behind = self.behind.into_iter().flat_map(Chain::layers);
        let disk = Chain::new(layer, behind.map(Arc::clone));
        let written = GuestRange::new(0, self.spec.virtual_size);
        if self.on_device && disk.is_flat() && disk.virtual_size() > written.end {
            return Ok(Chain::new(Arc::new(Splice::cut(&disk, written)?), []));
        }
        Ok(disk)
    }
}

impl Proof {
    /// The digests of the disk to make while it is written.
    pub(crate) fn algorithms(&self) -> &[Algorithm] {
        match self.verify && self.digests.is_empty() {
            true => &[Algorithm::FsVerity],
            false => &self.digests,
        }
    }

    /// Proves it of `made`, written from `source`, whose disk had these `digests` on the way; gives
    /// the digests of the file.
    ///
    /// # Errors
    /// `Io` if the disk that is read back is another one; those of opening and reading the target.
    pub(crate) fn of(
        &self,
        made: &Made<'_>,
        source: &Chain,
        digests: &[Digest],
        job: &Job<'_>,
    ) -> Result<Vec<Digest>> {
        if self.verify {
            self.of_disk(&made.disk()?, source, digests, job)?;
        }
        self.of_made(made, job)
    }

    /// As [`of`](Self::of) of an archive, which is unpacked into `scratch` to be read back.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) fn of_archive(
        &self,
        made: &Made<'_>,
        scratch: FileStorage,
        source: &Chain,
        digests: &[Digest],
        job: &Job<'_>,
    ) -> Result<Vec<Digest>> {
        let storage = Tap::new(job.cancel).reading(Arc::clone(&made.storage));
        let archive = Container::new(storage, made.limits);
        self.of_disk(&archive.unpack(scratch)?, source, digests, job)?;
        self.of_made(made, job)
    }

    /// As [`of`](Self::of) of a target that was written in several goes, so that nobody saw all of its
    /// disk pass: it is held against the source itself, and the digests of the disk, which come first,
    /// are those of what is read back.
    ///
    /// # Errors
    /// As [`of`](Self::of), and those of reading the source.
    pub(crate) fn of_pieces(
        &self,
        made: &Made<'_>,
        source: &Chain,
        job: &Job<'_>,
    ) -> Result<(Vec<Digest>, Vec<Digest>)> {
        let mut digests = Vec::new();
        if !self.algorithms().is_empty() {
            let disk = made.disk()?;
            if self.verify {
                must_equal(&disk, source, job)?;
            }
            digests = checksum(&disk, &reading(self.algorithms(), Phase::Verify, job))?;
        }
        Ok((digests, self.of_made(made, job)?))
    }

    /// Proves that `disk`, as it is read back, is what was written from `source`, which had these
    /// `digests` on the way.
    ///
    /// # Errors
    /// `Io` if it is another one; those of reading it.
    pub(crate) fn of_disk(
        &self,
        disk: &Chain,
        source: &Chain,
        digests: &[Digest],
        job: &Job<'_>,
    ) -> Result<()> {
        let read = reading(self.algorithms(), Phase::Verify, job);
        verify(disk, source, digests, &read)
    }

    fn of_made(&self, made: &Made<'_>, job: &Job<'_>) -> Result<Vec<Digest>> {
        let storage = Arc::clone(&made.storage);
        self.of_file(storage, made.file_len, made.limits, job)
    }

    /// The digests of the first `file_len` bytes of a file; a device may be longer than what was written
    /// to it.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn of_file(
        &self,
        file: Arc<dyn Storage>,
        file_len: u64,
        limits: &Limits,
        job: &Job<'_>,
    ) -> Result<Vec<Digest>> {
        if self.file_digests.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = Window::new(file, HostRange::new(0, file_len))?;
        let raw = registry::format_named("raw")?;
        let layer = raw.open(Arc::new(bytes), &Budget::new(limits))?;
        let read = reading(&self.file_digests, Phase::Checksum, job);
        checksum(&Chain::new(layer, []), &read)
    }
}

/// How digests are made beside `job`.
fn reading<'a>(algorithms: &'a [Algorithm], phase: Phase, job: &Job<'a>) -> ChecksumJob<'a> {
    ChecksumJob {
        algorithms,
        threads: job.threads,
        phase,
        progress: job.progress,
        cancel: job.cancel,
    }
}

/// Fails if `disk` holds anything but `source` and zeros behind it.
fn must_equal(disk: &Chain, source: &Chain, job: &Job<'_>) -> Result<()> {
    let job = CompareJob {
        threads: job.threads,
        progress: job.progress,
        cancel: job.cancel,
        ..CompareJob::default()
    };
    let found = compare(disk, source, &job).map_err(|error| match error {
        CompareError::Status(error) | CompareError::Read(error) | CompareError::Other(error) => {
            error
        }
    })?;
    let Comparison::Content(offset) = found else {
        return Ok(());
    };
    let text = format!(
        "what is read back from it is not what its source holds: it differs from guest byte \
         {offset} on"
    );
    Err(Error::new(ErrorKind::Io, text))
}

/// Fails if `disk` is not the one with these `digests`, which was written from `source`.
fn verify(disk: &Chain, source: &Chain, digests: &[Digest], job: &ChecksumJob<'_>) -> Result<()> {
    let found = checksum(disk, job)?;
    let mut pairs = digests.iter().zip(&found);
    let Some((written, read)) = pairs.find(|(written, read)| written != read) else {
        return Ok(());
    };
    let mut text = format!(
        "what is read back from it is not what was written: its {} is {read}, not {written}",
        read.algorithm()
    );
    // The digest alone says no; this helps whoever looks for the reason.
    let job = CompareJob {
        threads: job.threads,
        cancel: job.cancel,
        ..CompareJob::default()
    };
    if let Ok(Comparison::Content(offset)) = compare(disk, source, &job) {
        text.push_str(&format!("; it differs from guest byte {offset} on"));
    }
    Err(Error::new(ErrorKind::Io, text))
}

#[cfg(test)]
mod tests {
    use goldsmith_engine::Cancel;
    use goldsmith_storage::MemoryStorage;
    use goldsmith_testkit::fault::{Fault, FaultStorage, Op};
    use goldsmith_testkit::model::{ModelDisk, ModelLayer};
    use goldsmith_testkit::pattern;
    use uuid::Uuid;

    use super::*;

    /// Writes `disk` with its `nth` write spoiled; says whether it was proved, whether a guest finds
    /// the disk there, and what was wrong. `None` if there are not so many writes.
    fn proved(
        format: &dyn Format,
        compress: bool,
        disk: &ModelDisk,
        nth: u64,
    ) -> Option<(bool, bool, String)> {
        let memory = Arc::new(MemoryStorage::new("target"));
        let storage = Arc::new(FaultStorage::new(memory, Op::Write, nth).doing(Fault::Spoil));
        let source = Chain::new(Arc::new(ModelLayer::new(disk.clone())), []);
        let spec = CreateSpec {
            virtual_size: disk.len(),
            data: None,
            backing: None,
            options: Options::defaults(format.options()),
            compress,
            uuid: Uuid::from_u128(7),
            timestamp: 1_000_000_000,
        };
        let proof = Proof {
            verify: true,
            ..Proof::default()
        };
        let job = Job {
            threads: std::num::NonZeroUsize::new(1),
            digests: proof.algorithms(),
            ..Job::default()
        };
        let sink = format.create(storage.clone(), &spec).unwrap();
        let outcome = goldsmith_engine::convert(&source, sink, &job).unwrap();
        if !storage.fired() {
            return None;
        }
        let made = Made {
            format,
            spec: &spec,
            storage,
            on_device: false,
            file_len: outcome.committed.file_len,
            behind: None,
            limits: &Limits::default(),
            cloud: None,
        };
        let found = proof.of(&made, &source, &outcome.digests, &job);
        let reads = || {
            let disk = made.disk()?;
            let mut bytes = vec![0; disk.virtual_size() as usize];
            disk.read_at(0, &mut bytes).map(|()| bytes)
        };
        let holds = reads().is_ok_and(|bytes| bytes == disk.bytes());
        let report = found.err().map(|error| error.report());
        Some((report.is_none(), holds, report.unwrap_or_default()))
    }

    /// Whatever write it was, also one of a table: what does not hold the disk is not proved.
    #[test]
    fn spoiled_write_is_noticed_if_a_guest_would_notice() {
        let disk = pattern::disk("1M:A 1M:- 300k:b 64k:0 2M:C");
        for (name, compress) in [
            ("raw", false),
            ("qcow2", false),
            ("qcow2", true),
            ("vpc", false),
        ] {
            let format = registry::format_named(name).unwrap();
            let mut noticed = 0;
            for nth in 0.. {
                let Some((proved, holds, report)) = proved(format, compress, &disk, nth) else {
                    break;
                };
                assert_eq!(proved, holds, "{name}: write {nth}: {report}");
                noticed += u32::from(!proved);
            }
            assert!(noticed > 0, "{name}");
        }
    }

    /// Before any of it is unpacked again.
    #[test]
    fn look_back_at_an_archive_is_stopped() {
        let format = registry::format_named("xenserver-ovf").unwrap();
        let spec = CreateSpec {
            virtual_size: 1 << 20,
            data: None,
            backing: None,
            options: Options::defaults(format.options()),
            compress: false,
            uuid: Uuid::from_u128(7),
            timestamp: 1_000_000_000,
        };
        let made = Made {
            format,
            spec: &spec,
            storage: Arc::new(MemoryStorage::holding("target", b"no archive".to_vec())),
            on_device: false,
            file_len: 10,
            behind: None,
            limits: &Limits::default(),
            cloud: None,
        };
        let source = Chain::new(Arc::new(ModelLayer::new(pattern::disk("1M:A"))), []);
        let stopped = Cancel::new();
        stopped.cancel();
        for (cancel, kind) in [
            (None, ErrorKind::Corrupt),
            (Some(&stopped), ErrorKind::Cancelled),
        ] {
            let job = Job {
                cancel,
                ..Job::default()
            };
            let scratch = FileStorage::scratch("target").unwrap();
            let found = Proof::default().of_archive(&made, scratch, &source, &[], &job);
            assert_eq!(found.unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn first_damaged_byte_is_named() {
        let disk = pattern::disk("1M:A 1M:- 1M:B");
        let format = registry::format_named("raw").unwrap();
        let (proved, _, report) = proved(format, false, &disk, 1).unwrap();
        assert!(!proved);
        let place = (2 << 20) + (512 << 10);
        assert!(
            report
                .starts_with("what is read back from it is not what was written: its fsverity is ")
                && report.ends_with(&format!("; it differs from guest byte {place} on")),
            "{report}"
        );
    }
}
