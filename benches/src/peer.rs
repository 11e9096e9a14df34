//! Who takes part, and with which settings.

use std::path::{Path, PathBuf};

use crate::input::{Content, Form, Scale};
use crate::machine::tool;
use crate::measure::Step;
use crate::place::Place;
use crate::workload::Task;

/// What a contender is in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// goldsmith as everybody runs it.
    Own,
    /// goldsmith in another setting, to show what that does.
    Variant,
    /// A program that does the same job, in one of its settings.
    Peer,
    /// What merely moving the bytes costs.
    Floor,
}

/// One program in one setting, ready to do one job.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it does, or why it cannot.
    pub(crate) steps: Result<Vec<Step>, String>,
}

/// The name of the peer that everybody uses, as everybody uses it.
pub(crate) const DEFAULT: &str = "qemu-img";

/// Where the programs are.
pub(crate) struct Tools {
    pub(crate) goldsmith: PathBuf,
    /// This program, which does the bare loop.
    pub(crate) this: PathBuf,
}

/// One job: the images it reads and the one it writes.
pub(crate) struct Job<'a> {
    pub(crate) task: Task,
    pub(crate) place: Place,
    pub(crate) scale: Scale,
    pub(crate) sources: &'a [PathBuf],
    pub(crate) target: &'a Path,
}

impl Tools {
    /// `goldsmith convert`; source and target follow.
    pub(crate) fn goldsmith_convert(&self, from: Form, to: Form) -> Step {
        let step = Step::new(&self.goldsmith, "convert -f").words(from.format());
        let step = step.words("-O").words(to.format());
        match to {
            Form::Raw | Form::Qcow2 | Form::Vpc => step,
            Form::Qcow2Zlib => step.words("-c"),
            Form::Qcow2Zstd => step.words("-c -o compression_type=zstd"),
            Form::VpcFixed => step.words("-o subformat=fixed"),
        }
    }

    /// `qemu-img convert` with `options`; source and target follow.
    pub(crate) fn qemu_convert(&self, options: &str, from: Form, to: Form) -> Step {
        let step = Step::new("qemu-img", "convert -f").words(from.format());
        let step = step.words("-O").words(to.format()).words(options);
        match to {
            Form::Raw | Form::Qcow2 => step,
            Form::Qcow2Zlib => step.words("-c"),
            Form::Qcow2Zstd => step.words("-c -o compression_type=zstd"),
            // Without `force_size` the disk becomes larger than the source.
            Form::Vpc => step.words("-o force_size=on"),
            Form::VpcFixed => step.words("-o subformat=fixed,force_size=on"),
        }
    }

    /// Everybody who takes part in `job`, goldsmith first.
    pub(crate) fn contenders(&self, job: &Job<'_>) -> Vec<Contender> {
        match job.task {
            Task::Convert { from, to } => self.converters(job, from.0, from.1, to),
            Task::Compare(a, b) => {
                let line = format!("compare -q -f {} -F {}", a.1.format(), b.1.format());
                self.readers(job, &line)
            }
            Task::Info(image) => {
                self.readers(job, &format!("info -f {} --output=json", image.1.format()))
            }
            Task::Map(image) => {
                self.readers(job, &format!("map -f {} --output=json", image.1.format()))
            }
        }
    }

    /// Jobs without a target, for which goldsmith and qemu-img take the same arguments.
    fn readers(&self, job: &Job<'_>, line: &str) -> Vec<Contender> {
        let step = |program: &Path| {
            let step = Step::new(program, line);
            Ok(vec![job.sources.iter().fold(step, Step::arg)])
        };
        vec![
            contender("goldsmith", Kind::Own, step(&self.goldsmith)),
            contender(DEFAULT, Kind::Peer, step(Path::new("qemu-img"))),
        ]
    }

    fn converters(&self, job: &Job<'_>, content: Content, from: Form, to: Form) -> Vec<Contender> {
        let ours = |options| {
            let step = job.files(self.goldsmith_convert(from, to).words(options));
            match job.place {
                Place::Uncached => vec![step.words("-t none")],
                Place::Unflushed => vec![step.words("-t unsafe")],
                _ => vec![step],
            }
        };
        let theirs = |options| {
            let step = job.files(self.qemu_convert(options, from, to));
            match job.place {
                Place::Disk => vec![step.words("-t writeback"), job.flush()],
                Place::Uncached => vec![step.words("-t none"), job.flush()],
                _ => vec![step],
            }
        };
        let mut all = vec![
            contender("goldsmith", Kind::Own, Ok(ours(""))),
            contender("goldsmith -m 1", Kind::Variant, Ok(ours("-m 1"))),
            contender(DEFAULT, Kind::Peer, Ok(theirs(""))),
            contender("qemu-img -W -m 16", Kind::Peer, Ok(theirs("-W -m 16"))),
        ];
        let offloads = |form| matches!(form, Form::Raw | Form::Qcow2);
        if offloads(from) && offloads(to) {
            all.push(contender("qemu-img -C", Kind::Peer, Ok(theirs("-C"))));
        }
        if job.place.shares() {
            let step = job.files(Step::new("cp", "--reflink=always"));
            all.push(contender("cp --reflink", Kind::Floor, Ok(vec![step])));
            return all;
        }
        all.push(contender(
            "nbdcopy",
            Kind::Peer,
            self.nbdcopy(job, content, from, to),
        ));
        if !from.is_packed() && !to.is_packed() {
            let same = from == Form::Raw && to == Form::Raw && job.place != Place::Uncached;
            let kind = if same { Kind::Peer } else { Kind::Floor };
            let mut cp = vec![job.files(Step::new("cp", "--sparse=always"))];
            if job.place.flushes() {
                cp.push(job.flush());
            }
            all.push(contender("cp --sparse=always", kind, Ok(cp)));
            for (name, threads) in [("bare loop", "1"), ("bare loop, 2 threads", "2")] {
                let step = job.files(Step::new(&self.this, "copy").words(threads));
                let mut steps = vec![step];
                if job.place.flushes() {
                    steps.push(job.flush());
                }
                all.push(contender(name, Kind::Floor, Ok(steps)));
            }
        }
        all
    }

    fn nbdcopy(
        &self,
        job: &Job<'_>,
        content: Content,
        from: Form,
        to: Form,
    ) -> Result<Vec<Step>, String> {
        let program = tool("nbdcopy").ok_or("not installed (Debian package libnbd-bin)")?;
        if to.is_packed() {
            return Err("it cannot compress".into());
        }
        if matches!(job.place, Place::Disk | Place::Unflushed) && to == Form::Raw {
            return Err(
                "it takes what it writes out of the cache, for which it is stored first".into(),
            );
        }
        if matches!(content, Content::Scattered64T | Content::Scattered2T) {
            return Err("it takes minutes for an empty disk of this size".into());
        }
        let server = |step: Step, form: Form, options, path: &Path| match form {
            Form::Raw => step.arg(path),
            form => step
                .words("[ qemu-nbd -f")
                .words(form.format())
                .words(options)
                .arg(path)
                .words("]"),
        };
        let mut steps = Vec::new();
        if to != Form::Raw {
            let create = Step::new("qemu-img", "create -q -f").words(to.format());
            let create = match to {
                Form::Vpc => create.words("-o force_size=on"),
                Form::VpcFixed => create.words("-o subformat=fixed,force_size=on"),
                _ => create,
            };
            let size = job.scale.virtual_size(content);
            steps.push(create.arg(job.target).arg(size.to_string()));
        }
        let step = Step::new(program, "--destination-is-zero");
        let step = server(step.words("--"), from, "--read-only", &job.sources[0]);
        let cache = match job.place {
            Place::Disk => "--cache=writeback",
            Place::Uncached => "--cache=none",
            _ => "--cache=unsafe",
        };
        steps.push(server(step, to, cache, job.target));
        if job.place.flushes() {
            // Its own `--flush` leaves files alone.
            steps.push(job.flush());
        }
        Ok(steps)
    }
}

impl Job<'_> {
    fn files(&self, step: Step) -> Step {
        let step = self.sources.iter().fold(step, Step::arg);
        step.arg(self.target)
    }

    /// What goldsmith does on its own.
    fn flush(&self) -> Step {
        Step::new("sync", "").arg(self.target)
    }
}

fn contender(name: &'static str, kind: Kind, steps: Result<Vec<Step>, String>) -> Contender {
    Contender { name, kind, steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(task: Task, place: Place) -> Vec<String> {
        let tools = Tools {
            goldsmith: "goldsmith".into(),
            this: "bench".into(),
        };
        let sources = match task {
            Task::Compare(..) => vec!["a".into(), "b".into()],
            _ => vec!["a".into()],
        };
        let contenders = tools.contenders(&Job {
            task,
            place,
            scale: Scale::SMALL,
            sources: &sources,
            target: Path::new("t"),
        });
        let steps = contenders.into_iter().filter_map(|contender| {
            let steps = contender.steps.ok()?;
            let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
            Some(steps.join("; "))
        });
        steps.collect()
    }

    fn convert(from: Form, to: Form) -> Task {
        let from = (Content::Files, from);
        Task::Convert { from, to }
    }

    #[test]
    fn everybody_gets_the_same_job() {
        let lines = lines(convert(Form::Raw, Form::VpcFixed), Place::Memory);
        assert_eq!(
            lines[..3],
            [
                "goldsmith convert -f raw -O vpc -o subformat=fixed a t",
                "goldsmith convert -f raw -O vpc -o subformat=fixed -m 1 a t",
                "qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on a t",
            ]
        );
        assert_eq!(lines.last().unwrap(), "bench copy 2 a t");
    }

    #[test]
    fn on_disk_everybody_flushes() {
        for place in [Place::Disk, Place::Uncached] {
            for line in &lines(convert(Form::Raw, Form::Raw), place)[2..] {
                assert!(line.ends_with("; sync t"), "{line}");
            }
        }
    }

    #[test]
    fn nobody_flushes_where_nobody_waits() {
        for line in &lines(convert(Form::Raw, Form::Raw), Place::Unflushed) {
            assert!(!line.contains("sync"), "{line}");
            assert!(
                !line.starts_with("goldsmith") || line.contains("-t unsafe"),
                "{line}"
            );
        }
    }

    #[test]
    fn offloading_is_tried_where_it_can_work() {
        let offloads = |from, to| {
            let lines = lines(convert(from, to), Place::Xfs);
            lines.iter().any(|line| line.contains(" -C "))
        };
        assert!(offloads(Form::Raw, Form::Qcow2));
        assert!(!offloads(Form::Raw, Form::Vpc));
        assert!(!offloads(Form::Raw, Form::Qcow2Zlib));
    }

    #[test]
    fn comparing_names_both_formats() {
        let task = Task::Compare((Content::Files, Form::Raw), (Content::Files, Form::Vpc));
        assert_eq!(
            lines(task, Place::Memory),
            [
                "goldsmith compare -q -f raw -F vpc a b",
                "qemu-img compare -q -f raw -F vpc a b",
            ]
        );
    }
}
