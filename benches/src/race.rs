//! All contenders in turn, again and again, over the same input.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::input::{Inputs, Random, Scale};
use crate::measure::{Step, Usage};
use crate::peer::{Contender, Job, Kind, Tools};
use crate::place::Room;
use crate::supply::Supply;
use crate::workload::{Task, Workload};

/// Bytes of a target from which on it matters what memory they are written to.
const MUCH: u64 = 1 << 30;

/// What one workload showed.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) workload: Workload,
    pub(crate) entries: Vec<Entry>,
    /// What is wrong with goldsmith's result, if anything is.
    pub(crate) fault: Option<String>,
}

/// All runs of one contender, in the order of the pairs, or why there are none.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) runs: Result<Vec<Run>, String>,
}

/// One run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) usage: Usage,
    /// Length of the target and the space that it takes, in bytes; 0 without one.
    pub(crate) target_len: u64,
    pub(crate) target_space: u64,
}

/// Where and how to run.
pub(crate) struct Track<'a> {
    pub(crate) room: &'a Room,
    pub(crate) scale: Scale,
    pub(crate) tools: &'a Tools,
    pub(crate) pairs: usize,
    /// Raised when the user wants no more.
    pub(crate) stop: &'a AtomicBool,
}

impl Track<'_> {
    /// Runs one workload.
    ///
    /// # Errors
    /// If the inputs cannot be made, there is no space, or the user wants no more. That a
    /// contender fails is part of the result.
    pub(crate) fn run(&self, workload: &Workload, inputs: &mut Inputs<'_>) -> Result<Row, String> {
        self.room.enough(self.scale.step())?;
        let sources = workload.task.sources();
        let sources = sources.into_iter().map(|input| inputs.get(input));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let target = self.room.path().join("target");
        let job = Job {
            task: workload.task,
            place: workload.place,
            scale: self.scale,
            sources: &sources,
            target: &target,
        };

        let contenders = self.tools.contenders(&job);
        let mut row = Row {
            workload: workload.clone(),
            entries: contenders.iter().map(entry).collect(),
            fault: self.unlike_qemu(&job),
        };
        let most = if job.task.is_slow() { 3 } else { usize::MAX };
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        let mut random = Random::new(3);
        let _supply = self.supply(job.task)?;
        for pair in 0..self.pairs.min(most) {
            // None always runs in the wake of the same other.
            random.shuffle(&mut order);
            for &index in &order {
                let contender = &contenders[index];
                let (Ok(steps), Ok(runs)) = (&contender.steps, &mut row.entries[index].runs) else {
                    continue;
                };
                let run = run(steps, &target);
                if self.stop.load(Ordering::Relaxed) {
                    return Err("the run was stopped".into());
                }
                match run {
                    Ok(run) => {
                        runs.push(run);
                        if contender.kind == Kind::Own && pair == 0 && row.fault.is_none() {
                            row.fault = verify(&job).err();
                        }
                    }
                    Err(reason) => {
                        if contender.kind == Kind::Own {
                            row.fault = Some(reason.clone());
                        }
                        row.entries[index].runs = Err(reason);
                    }
                }
                remove(&target)?;
                self.room.settle()?;
            }
        }
        Ok(row)
    }

    /// The memory for the targets of `task`; none where little is written.
    fn supply(&self, task: Task) -> Result<Option<Supply>, String> {
        let writes = matches!(task, Task::Convert { .. }) && !self.room.place().shares();
        match writes && self.scale.files >= MUCH {
            true => Supply::keep(&self.tools.this, self.scale.files).map(Some),
            false => Ok(None),
        }
    }

    /// What goldsmith says otherwise than qemu-img, where both print the same.
    fn unlike_qemu(&self, job: &Job<'_>) -> Option<String> {
        if !matches!(job.task, Task::Map(_)) {
            return None;
        }
        // Through files: what this program keeps in memory, its children seem to take.
        let said = |program: &Path, name| {
            let path = self.room.path().join(name);
            let status = Command::new(program)
                .args(["map", "-f", "qcow2", "--output=json"])
                .args(job.sources)
                .stdout(File::create(&path)?)
                .status()?;
            io::Result::Ok((path, status.success()))
        };
        let compare = || {
            let (ours, well) = said(&self.tools.goldsmith, "ours")?;
            let (theirs, also) = said(Path::new("qemu-img"), "theirs")?;
            let same = Step::new("cmp", "-s").arg(&ours).arg(&theirs).run();
            fs::remove_file(ours)?;
            fs::remove_file(theirs)?;
            io::Result::Ok(well && also && same.is_ok())
        };
        match compare() {
            Ok(true) => None,
            Ok(false) => Some("goldsmith and qemu-img print different maps".into()),
            Err(error) => Some(error.to_string()),
        }
    }
}

fn entry(contender: &Contender) -> Entry {
    Entry {
        name: contender.name,
        kind: contender.kind,
        runs: contender
            .steps
            .as_ref()
            .map(|_| Vec::new())
            .map_err(Clone::clone),
    }
}

fn run(steps: &[Step], target: &Path) -> Result<Run, String> {
    let mut usage = Usage::default();
    for step in steps {
        usage = usage.then(step.run()?);
    }
    let found = fs::metadata(target);
    Ok(Run {
        usage,
        target_len: found.as_ref().map_or(0, fs::Metadata::len),
        // Blocks of 512 bytes, whatever the file system's are.
        target_space: found.map_or(0, |found| found.blocks() * 512),
    })
}

/// QEMU reads from our target what it reads from the source.
fn verify(job: &Job<'_>) -> Result<(), String> {
    let Task::Convert { from, to } = job.task else {
        return Ok(());
    };
    Step::new("qemu-img", "compare -f")
        .words(from.1.format())
        .words("-F")
        .words(to.format())
        .arg(&job.sources[0])
        .arg(job.target)
        .run()
        .map(drop)
}

fn remove(target: &Path) -> Result<(), String> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", target.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_is_all_its_steps_and_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let write = Step::new("truncate", "-s 5000").arg(&target);
        let found = run(&[write, Step::new("sleep", "0.01")], &target).unwrap();
        assert_eq!(found.target_len, 5000);
        assert!(found.usage.wall.as_millis() >= 10);
        remove(&target).unwrap();
        assert!(!target.exists());
        remove(&target).unwrap();
        assert_eq!(
            run(&[Step::new("true", "")], &target).unwrap().target_len,
            0
        );
    }
}
