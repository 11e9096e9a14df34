//! What is measured, and what is asked of it.

use crate::input::{Content, Form, Input};
use crate::place::Place;

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Convert { from: Input, to: Form },
    Compare(Input, Input),
    Info(Input),
    Map(Input),
}

/// The least ratios, best peer to goldsmith, that goldsmith has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) wall: f64,
    pub(crate) cpu: Option<f64>,
    /// Of the wall time, against qemu-img without options.
    pub(crate) wall_default: Option<f64>,
}

/// One row of the report.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) task: Task,
    pub(crate) asked: Asked,
}

impl Task {
    /// The images it reads.
    pub(crate) fn sources(self) -> Vec<Input> {
        match self {
            Self::Convert { from, .. } => vec![from],
            Self::Compare(a, b) => vec![a, b],
            Self::Info(image) | Self::Map(image) => vec![image],
        }
    }

    /// Whether `input` is read, or what is read is made from it.
    pub(crate) fn needs(self, input: Input) -> bool {
        let mut sources = self.sources().into_iter();
        sources.any(|source| source == input || (source.0, Form::Raw) == input)
    }

    /// Whether one run at full scale takes minutes.
    pub(crate) fn is_slow(self) -> bool {
        matches!(
            self,
            Self::Convert {
                to: Form::Qcow2Zlib,
                ..
            }
        )
    }
}

impl Workload {
    /// What `--list` calls it.
    pub(crate) fn title(&self) -> String {
        format!("{}: {}", self.place.title(), self.name)
    }
}

/// Those of `workloads` in whose titles one of `words` occurs, in any case; a word that is a whole
/// title means that one alone. All, if there is no word.
pub(crate) fn called(workloads: Vec<Workload>, words: &[String]) -> Vec<Workload> {
    let titles: Vec<_> = workloads
        .iter()
        .map(|row| row.title().to_lowercase())
        .collect();
    let words: Vec<_> = words.iter().map(|word| word.to_lowercase()).collect();
    let is_meant = |title: &String| {
        words.iter().any(|word| match titles.contains(word) {
            true => title == word,
            false => title.contains(word),
        })
    };
    let pairs = workloads.into_iter().zip(&titles);
    let meant = pairs.filter(|(_, title)| words.is_empty() || is_meant(title));
    meant.map(|(row, _)| row).collect()
}

/// All of them, those that share images next to each other.
pub(crate) fn all() -> Vec<Workload> {
    use Form::{Qcow2, Qcow2Zlib, Qcow2Zstd, Raw, Vpc, VpcFixed};

    let moved = asked(1.0, 1.15);
    let allocated = asked(1.15, 1.25);
    let plain = [
        (Raw, Qcow2, allocated),
        (Raw, Vpc, allocated),
        (Raw, Raw, moved),
        (Raw, VpcFixed, moved),
        (Qcow2, Raw, moved),
        (Qcow2, Vpc, moved),
        (Vpc, Raw, moved),
    ];
    let packed = [
        (Qcow2Zlib, Raw, asked(1.8, 1.7)),
        (Qcow2Zstd, Raw, asked(1.1, 1.1)),
        (Raw, Qcow2Zlib, asked(2.2, 2.2).against_default(4.5)),
        (Raw, Qcow2Zstd, asked(1.1, 1.1).against_default(2.8)),
        (Qcow2Zlib, Qcow2Zlib, asked(2.2, 2.2).against_default(4.5)),
        (Qcow2Zstd, Qcow2Zstd, asked(1.1, 1.1).against_default(2.8)),
    ];
    let compared = [(Raw, Qcow2), (Qcow2, Vpc)];
    let scattered = [
        (Content::Scattered64T, Raw, Qcow2),
        (Content::Scattered64T, Qcow2, Raw),
        (Content::Scattered64T, Raw, Raw),
        (Content::Scattered2T, Raw, Vpc),
        (Content::Scattered2T, Vpc, Raw),
    ];
    let fragmented = (Content::Fragmented, Qcow2);

    let mut all = Vec::new();
    let mut add = |name: String, place, task, asked| {
        all.push(Workload {
            name,
            place,
            task,
            asked,
        });
    };
    let files = |from, to| Task::Convert {
        from: (Content::Files, from),
        to,
    };
    for (from, to, asked) in plain {
        add(arrow(from, to), Place::Memory, files(from, to), asked);
    }
    for (a, b) in compared {
        add(
            format!("compare {} and {}", word(a), word(b)),
            Place::Memory,
            Task::Compare((Content::Files, a), (Content::Files, b)),
            asked(1.5, 1.5),
        );
    }
    for (from, to, asked) in packed {
        add(arrow(from, to), Place::Memory, files(from, to), asked);
    }
    for (content, from, to) in scattered {
        let task = Task::Convert {
            from: (content, from),
            to,
        };
        let size = match content {
            Content::Scattered64T => "64 TiB",
            _ => "2040 GiB",
        };
        let name = format!("scattered {size}, {}", arrow(from, to));
        add(name, Place::Memory, task, asked(2.0, 2.0));
    }
    for to in [Raw, Qcow2] {
        let task = Task::Convert {
            from: (Content::Zeros, Raw),
            to,
        };
        let name = format!("written zeros, {}", arrow(Raw, to));
        add(name, Place::Memory, task, asked(1.5, 1.5));
    }
    for (verb, task) in [
        ("info", Task::Info(fragmented)),
        ("map", Task::Map(fragmented)),
    ] {
        let name = format!("{verb} of a fragmented 1 TiB qcow2");
        add(name, Place::Memory, task, asked(2.0, 2.0));
    }
    for to in [Raw, Qcow2] {
        let asked = Asked {
            wall: 1.0,
            cpu: None,
            wall_default: None,
        };
        for place in [Place::Disk, Place::Uncached, Place::Unflushed] {
            add(arrow(Raw, to), place, files(Raw, to), asked);
        }
    }
    for place in [Place::Xfs, Place::Btrfs] {
        for (from, to, _) in plain {
            let asked = asked(3.0, 20.0).against_default(20.0);
            add(arrow(from, to), place, files(from, to), asked);
        }
    }
    all
}

impl Asked {
    fn against_default(self, ratio: f64) -> Self {
        Self {
            wall_default: Some(ratio),
            ..self
        }
    }
}

fn asked(wall: f64, cpu: f64) -> Asked {
    Asked {
        wall,
        cpu: Some(cpu),
        wall_default: None,
    }
}

fn arrow(from: Form, to: Form) -> String {
    format!("{} -> {}", word(from), word(to))
}

fn word(form: Form) -> &'static str {
    match form {
        Form::Raw => "raw",
        Form::Qcow2 => "qcow2",
        Form::Qcow2Zlib => "qcow2 (zlib)",
        Form::Qcow2Zstd => "qcow2 (zstd)",
        Form::Vpc => "vpc",
        Form::VpcFixed => "vpc (fixed)",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|row| (row.place, &row.name)).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn words_pick_rows_by_place_and_name() {
        let count = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            called(all(), &words).len()
        };
        assert_eq!(count(&[]), all().len());
        assert_eq!(count(&["xfs: raw -> qcow2"]), 1);
        assert_eq!(count(&["memory: raw -> qcow2"]), 3);
        assert_eq!(count(&["in memory: raw -> qcow2"]), 1);
        assert_eq!(count(&["in memory: raw -> qcow2", "zstd"]), 4);
        assert_eq!(count(&["ZLIB"]), 3);
        assert_eq!(count(&["zlib", "zstd"]), 6);
        assert_eq!(count(&["no such row"]), 0);
    }

    #[test]
    fn base_of_a_source_is_needed_too() {
        let from = (Content::Files, Form::Vpc);
        let task = Task::Convert {
            from,
            to: Form::Raw,
        };
        assert!(task.needs(from) && task.needs((Content::Files, Form::Raw)));
        assert!(!task.needs((Content::Files, Form::Qcow2)));
        assert!(!task.needs((Content::Zeros, Form::Raw)));
    }
}
