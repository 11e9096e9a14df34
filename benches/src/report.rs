//! The results as Markdown.

use std::fmt::{self, Display, Write};

use crate::measure::median;
use crate::peer::{DEFAULT, Kind};
use crate::race::{Entry, Row, Run};

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    /// What was measured and where, a fact per line.
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) sections: Vec<Section>,
    /// Workers of goldsmith, which bound the memory that it may take.
    pub(crate) threads: u64,
}

/// What was measured in one place.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// The file system, or why nothing was measured.
    pub(crate) ground: Result<String, String>,
    pub(crate) rows: Vec<Row>,
    /// Workloads that could not be measured, and why.
    pub(crate) left_out: Vec<(String, String)>,
}

/// A ratio that was asked for, and the one that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ratio {
    found: f64,
    asked: Option<f64>,
}

impl Ratio {
    fn is_missed(self) -> bool {
        self.asked.is_some_and(|asked| self.found < asked)
    }
}

impl Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.asked {
            None => write!(f, "{:.2}", self.found),
            Some(asked) if self.is_missed() => write!(f, "**{:.2}** < {asked}", self.found),
            Some(asked) => write!(f, "{:.2} >= {asked}", self.found),
        }
    }
}

/// One row, boiled down.
struct Summary<'a> {
    own: &'a [Run],
    wall: Option<(&'a Entry, &'a [Run], Ratio)>,
    wall_default: Option<Ratio>,
    cpu: Option<(&'a Entry, &'a [Run], Ratio)>,
    floor: Option<(&'a Entry, &'a [Run])>,
}

fn wall(run: &Run) -> f64 {
    run.usage.wall.as_secs_f64()
}

fn cpu(run: &Run) -> f64 {
    run.usage.cpu.as_secs_f64()
}

fn peak(run: &Run) -> f64 {
    run.usage.peak as f64 / f64::from(1 << 20)
}

/// The median of `theirs` over `ours`, pair by pair.
fn ratio(theirs: &[Run], ours: &[Run], of: fn(&Run) -> f64, asked: Option<f64>) -> Ratio {
    let pairs = theirs.iter().zip(ours);
    // The kernel counts CPU time in microseconds and may find none.
    let found = median(pairs.map(|(theirs, ours)| of(theirs) / of(ours).max(1e-6)));
    Ratio { found, asked }
}

fn middle(runs: &[Run], of: fn(&Run) -> f64) -> f64 {
    median(runs.iter().map(of))
}

/// The runs of the one of a kind that needs least.
fn best(row: &Row, kind: Kind, of: fn(&Run) -> f64) -> Option<(&Entry, &[Run])> {
    row.entries
        .iter()
        .filter(|entry| entry.kind == kind)
        .filter_map(|entry| Some((entry, &**entry.runs.as_ref().ok()?)))
        .filter(|(_, runs)| !runs.is_empty())
        .min_by(|(_, a), (_, b)| middle(a, of).total_cmp(&middle(b, of)))
}

impl<'a> Summary<'a> {
    /// `None` if goldsmith has no runs.
    fn of(row: &'a Row) -> Option<Self> {
        let asked = row.workload.asked;
        let (_, own) = best(row, Kind::Own, wall)?;
        let against = |of, asked| {
            let (entry, runs) = best(row, Kind::Peer, of)?;
            Some((entry, runs, ratio(runs, own, of, asked)))
        };
        let default = row.entries.iter().find(|entry| entry.name == DEFAULT);
        let default = default.and_then(|entry| entry.runs.as_deref().ok());
        Some(Self {
            own,
            wall: against(wall, Some(asked.wall)),
            wall_default: asked
                .wall_default
                .and_then(|asked| Some(ratio(default?, own, wall, Some(asked)))),
            cpu: against(cpu, asked.cpu),
            floor: best(row, Kind::Floor, wall),
        })
    }

    fn ratios(&self) -> impl Iterator<Item = Ratio> {
        let of = |found: &Option<(_, _, Ratio)>| found.as_ref().map(|found| found.2);
        [of(&self.wall), self.wall_default, of(&self.cpu)]
            .into_iter()
            .flatten()
    }
}

impl Report {
    /// Whether everything was measured and goldsmith did it right, however fast.
    pub(crate) fn is_sound(&self) -> bool {
        let mut rows = self.rows();
        self.gaps().is_empty() && rows.all(|row| row.fault.is_none())
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|section| &section.rows)
    }

    /// What was not measured, and why.
    fn gaps(&self) -> Vec<(String, &str)> {
        let mut gaps = Vec::new();
        for section in &self.sections {
            if let Err(reason) = &section.ground {
                gaps.push((section.title.to_owned(), &**reason));
            }
            let left_out = section.left_out.iter();
            gaps.extend(left_out.map(|(name, reason)| (name.clone(), &**reason)));
        }
        let idle = self
            .rows()
            .filter(|row| row.fault.is_none() && Summary::of(row).is_none());
        gaps.extend(idle.map(|row| (row.workload.name.clone(), "no runs")));
        if self.rows().next().is_none() {
            gaps.push(("everything".into(), "no workload was run"));
        }
        gaps
    }

    /// The most memory that goldsmith may take: 64 MiB and 8 MiB for each thread.
    fn allowed_peak(&self) -> f64 {
        (64 + 8 * self.threads) as f64
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# goldsmith beside its peers\n")?;
        for (name, fact) in &self.facts {
            writeln!(f, "- {name}: {fact}")?;
        }
        writeln!(
            f,
            "\nSeconds and MiB, medians. Ratios are peer / goldsmith, the median over pairs, each \
             against the\npeer that needs least of it; the ratio asked for stands behind it. \
             Goldsmith flushes its target to\nstable storage before it ends, the others do not, \
             except where it says \"flushed\"."
        )?;
        for section in &self.sections {
            write!(f, "\n## {}\n\n", section.title)?;
            match &section.ground {
                Ok(kind) => writeln!(f, "File system: {kind}.")?,
                Err(reason) => writeln!(f, "Not measured: {reason}")?,
            }
            if !section.rows.is_empty() {
                self.summary(f, section)?;
            }
            if !section.left_out.is_empty() {
                writeln!(f)?;
            }
            for (name, reason) in &section.left_out {
                writeln!(f, "- {name}: not measured: {reason}")?;
            }
        }
        self.verdict(f)?;
        for section in &self.sections {
            for row in &section.rows {
                details(f, section.title, row)?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn summary(&self, f: &mut fmt::Formatter<'_>, section: &Section) -> fmt::Result {
        writeln!(
            f,
            "\n| workload | wall | CPU | peak | best peer, wall | ratio | best peer, CPU | ratio \
             | floor, wall (CPU) |\n|---|--:|--:|--:|---|---|---|---|---|"
        )?;
        for row in &section.rows {
            let name = &row.workload.name;
            let Some(summary) = Summary::of(row) else {
                let fault = row.fault.as_deref().unwrap_or("no runs");
                writeln!(f, "| {name} | failed: {} |", cell(fault))?;
                continue;
            };
            let memory = middle(summary.own, peak);
            let mark = if memory > self.allowed_peak() {
                "**"
            } else {
                ""
            };
            write!(
                f,
                "| {name} | {} | {} | {mark}{memory:.0}{mark} |",
                seconds(middle(summary.own, wall)),
                seconds(middle(summary.own, cpu)),
            )?;
            let mut against = |found: &Option<(&Entry, &[Run], Ratio)>, of, more: Option<Ratio>| {
                let Some((entry, runs, ratio)) = found else {
                    return write!(f, " none | |");
                };
                write!(f, " {} {} | {ratio}", entry.name, seconds(middle(runs, of)))?;
                if let Some(more) = more {
                    write!(f, "; {more} against {DEFAULT}")?;
                }
                write!(f, " |")
            };
            against(&summary.wall, wall, summary.wall_default)?;
            against(&summary.cpu, cpu, None)?;
            match summary.floor {
                None => writeln!(f, " |")?,
                Some((entry, runs)) => writeln!(
                    f,
                    " {} {} ({}) |",
                    entry.name,
                    seconds(middle(runs, wall)),
                    seconds(middle(runs, cpu))
                )?,
            }
        }
        Ok(())
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratios: Vec<Ratio> = self
            .rows()
            .filter_map(Summary::of)
            .flat_map(|summary| summary.ratios().collect::<Vec<_>>())
            .filter(|ratio| ratio.asked.is_some())
            .collect();
        let missed = ratios.iter().filter(|ratio| ratio.is_missed()).count();
        writeln!(
            f,
            "\n{} of {} ratios reached. Memory asked for: at most {:.0} MiB.",
            ratios.len() - missed,
            ratios.len(),
            self.allowed_peak()
        )?;
        if self.is_sound() {
            return writeln!(
                f,
                "QEMU reads from every target what it reads from its source."
            );
        }
        for (name, reason) in self.gaps() {
            writeln!(f, "**Not measured: {name}: {reason}**")?;
        }
        for row in self.rows() {
            if let Some(fault) = &row.fault {
                writeln!(f, "**Wrong: {}: {fault}**", row.workload.name)?;
            }
        }
        Ok(())
    }
}

/// Every contender of one workload.
fn details(f: &mut fmt::Formatter<'_>, title: &str, row: &Row) -> fmt::Result {
    writeln!(
        f,
        "\n### {title}: {}\n\n| | wall | from - to | CPU | peak | target length | target space \
         |\n|---|--:|--:|--:|--:|--:|--:|",
        row.workload.name
    )?;
    let mut notes = String::new();
    for entry in &row.entries {
        let runs = match &entry.runs {
            Ok(runs) if !runs.is_empty() => runs,
            Ok(_) => continue,
            Err(reason) => {
                writeln!(notes, "- {}: {reason}", entry.name)?;
                continue;
            }
        };
        let floor = if entry.kind == Kind::Floor {
            " (floor)"
        } else {
            ""
        };
        let walls = runs.iter().map(wall);
        let mib = |bytes: fn(&Run) -> u64| {
            middle_bytes(runs, bytes).map_or_else(String::new, |mib| format!("{mib:.1}"))
        };
        writeln!(
            f,
            "| {}{floor} | {} | {} - {} | {} | {:.0} | {} | {} |",
            entry.name,
            seconds(middle(runs, wall)),
            seconds(walls.clone().fold(f64::INFINITY, f64::min)),
            seconds(walls.fold(0.0, f64::max)),
            seconds(middle(runs, cpu)),
            middle(runs, peak),
            mib(|run| run.target_len),
            mib(|run| run.target_space),
        )?;
    }
    if !notes.is_empty() {
        write!(f, "\n{notes}")?;
    }
    Ok(())
}

/// In MiB; `None` if there is no target.
fn middle_bytes(runs: &[Run], of: fn(&Run) -> u64) -> Option<f64> {
    let bytes = median(runs.iter().map(|run| of(run) as f64));
    (bytes > 0.0).then(|| bytes / f64::from(1 << 20))
}

/// Three digits that mean something.
fn seconds(seconds: f64) -> String {
    match seconds {
        0.0..1.0 => format!("{seconds:.3}"),
        1.0..100.0 => format!("{seconds:.2}"),
        _ => format!("{seconds:.0}"),
    }
}

/// `text` on one line and within one cell.
fn cell(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::Usage;
    use crate::workload;

    fn runs(walls: &[u64]) -> Result<Vec<Run>, String> {
        let run = |wall: &u64| Run {
            usage: Usage {
                wall: Duration::from_millis(*wall),
                cpu: Duration::from_millis(2 * wall),
                peak: 10 << 20,
            },
            target_len: 3 << 20,
            target_space: 2 << 20,
        };
        Ok(walls.iter().map(run).collect())
    }

    fn row() -> Row {
        let entry = |name, kind, runs| Entry { name, kind, runs };
        Row {
            // raw -> qcow2, which has to be 1.15 times as fast, with 1.25 times less CPU.
            workload: workload::all().remove(0),
            entries: vec![
                entry("goldsmith", Kind::Own, runs(&[1000, 2000, 1000])),
                entry(DEFAULT, Kind::Peer, runs(&[1500, 9000, 1500])),
                entry("fast", Kind::Peer, runs(&[1200, 2400, 1000])),
                entry("absent", Kind::Peer, Err("not installed".into())),
                entry("bare loop", Kind::Floor, runs(&[900, 900, 900])),
            ],
            fault: None,
        }
    }

    fn report(row: Row) -> Report {
        Report {
            facts: vec![("kernel", "Linux 1".into())],
            sections: vec![Section {
                title: "In memory",
                ground: Ok("tmpfs".into()),
                rows: vec![row],
                left_out: Vec::new(),
            }],
            threads: 2,
        }
    }

    #[test]
    fn ratio_is_the_median_over_pairs_against_the_best_peer() {
        let row = row();
        let summary = Summary::of(&row).unwrap();
        let (peer, _, ratio) = summary.wall.unwrap();
        // 1.2, 1.2 and 1.0: not the ratio of the medians.
        assert_eq!((peer.name, ratio.found), ("fast", 1.2));
        assert!(!ratio.is_missed());
        assert!(summary.cpu.unwrap().2.is_missed());
        assert_eq!(summary.floor.unwrap().0.name, "bare loop");
    }

    #[test]
    fn report_shows_ratios_and_who_did_not_take_part() {
        let mut report = report(row());
        let gap = ("something".into(), "no space".into());
        report.sections[0].left_out.push(gap);
        let text = report.to_string();
        for part in [
            "- kernel: Linux 1\n",
            "| raw -> qcow2 | 1.00 | 2.00 | 10 | fast 1.20 | 1.20 >= 1.15 | fast 2.40 | \
             **1.20** < 1.25 | bare loop 0.900 (1.80) |\n",
            "- something: not measured: no space\n",
            "1 of 2 ratios reached. Memory asked for: at most 80 MiB.\n",
            "| qemu-img | 1.50 | 1.50 - 9.00 | 3.00 | 10 | 3.0 | 2.0 |\n",
            "- absent: not installed\n",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_sound() {
        let refused = |change: fn(&mut Report), why: &str| {
            let mut report = report(row());
            change(&mut report);
            assert!(!report.is_sound(), "{why}");
            let text = report.to_string();
            assert!(
                text.contains(&format!("**Not measured: {why}**\n")),
                "{text}"
            );
            assert!(!text.contains("QEMU reads from every target"), "{text}");
        };
        refused(
            |report| report.sections[0].ground = Err("no space".into()),
            "In memory: no space",
        );
        refused(
            |report| report.sections[0].left_out = vec![("it".into(), "no input".into())],
            "it: no input",
        );
        refused(
            |report| report.sections[0].rows[0].entries.clear(),
            "raw -> qcow2: no runs",
        );
        refused(
            |report| report.sections.clear(),
            "everything: no workload was run",
        );
    }

    #[test]
    fn wrong_result_is_not_sound() {
        let mut row = row();
        assert!(report(row.clone()).is_sound());
        row.fault = Some("Content mismatch at offset 0!".into());
        let report = report(row);
        assert!(!report.is_sound());
        assert!(
            report
                .to_string()
                .contains("**Wrong: raw -> qcow2: Content mismatch")
        );
    }
}
