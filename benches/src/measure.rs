//! Running one child process, and what it cost.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::Wait4;

/// A command to run.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    program: PathBuf,
    args: Vec<OsString>,
    input: Option<PathBuf>,
}

impl Step {
    /// `program` with the arguments in `line`, which are separated by spaces.
    pub(crate) fn new(program: impl AsRef<Path>, line: &str) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            input: None,
        }
        .words(line)
    }

    /// Adds the arguments in `line`.
    pub(crate) fn words(mut self, line: &str) -> Self {
        self.args.extend(line.split_whitespace().map(Into::into));
        self
    }

    /// Adds one argument, whatever is in it.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Lets the command read the file at `path` as its standard input.
    pub(crate) fn input(mut self, path: &Path) -> Self {
        self.input = Some(path.to_owned());
        self
    }

    /// Runs the command to its end; what it prints to standard output is dropped.
    ///
    /// The error is a sentence with the last thing that it said.
    pub(crate) fn run(&self) -> Result<Usage, String> {
        let fail = |error: std::io::Error| format!("{self}: {error}");
        let input = match &self.input {
            Some(path) => Stdio::from(File::open(path).map_err(fail)?),
            None => Stdio::null(),
        };
        // A file and not a pipe: nobody empties a pipe while we wait.
        let mut said = tempfile::tempfile().map_err(fail)?;
        let start = Instant::now();
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(said.try_clone().map_err(fail)?)
            .spawn()
            .map_err(fail)?;
        let used = child.wait4().map_err(fail)?;
        let wall = start.elapsed();
        if used.status.success() {
            return Ok(Usage {
                wall,
                cpu: used.rusage.utime + used.rusage.stime,
                peak: used.rusage.maxrss,
            });
        }
        let mut text = Vec::new();
        said.rewind().map_err(fail)?;
        said.read_to_end(&mut text).map_err(fail)?;
        let text = String::from_utf8_lossy(&text);
        let last = text.trim().lines().last().unwrap_or_default();
        Err(format!("{self}: {}: {last}", used.status))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.args
            .iter()
            .try_for_each(|arg| write!(f, " {}", arg.display()))
    }
}

/// What a command cost, with everything that it waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// From start to end.
    pub(crate) wall: Duration,
    /// On all cores, in user and kernel mode.
    pub(crate) cpu: Duration,
    /// Largest resident set of any of its processes, in bytes. Never less than this program's own:
    /// a child begins its life in its parent's memory.
    pub(crate) peak: u64,
}

impl Usage {
    /// The cost of this and then `next`.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            peak: self.peak.max(next.peak),
        }
    }
}

/// The middle of `values`, or the mean of the two in the middle; 0 for none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_whatever_the_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([7.0]), 7.0);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn steps_add_times_and_keep_the_larger_peak() {
        let usage = |seconds, peak| Usage {
            wall: Duration::from_secs(seconds),
            cpu: Duration::from_secs(2 * seconds),
            peak,
        };
        assert_eq!(usage(1, 7).then(usage(2, 5)), usage(3, 7));
    }

    #[test]
    fn cost_of_a_child_is_its_own() {
        let lazy = Step::new("sleep", "0.05").run().unwrap();
        assert!(lazy.wall >= Duration::from_millis(50));
        assert!(lazy.cpu < lazy.wall);
        assert!(lazy.peak > 0);
    }

    #[test]
    fn failure_tells_what_the_command_said() {
        let error = Step::new("sh", "-c")
            .arg("echo one >&2; echo two >&2; exit 3")
            .run()
            .unwrap_err();
        assert!(error.ends_with("exit status: 3: two"), "{error}");
        let error = Step::new("/no/such/tool", "").run().unwrap_err();
        assert!(error.starts_with("/no/such/tool: "), "{error}");
    }

    #[test]
    fn input_comes_from_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "exit 0").unwrap();
        Step::new("sh", "").input(file.path()).run().unwrap();
        std::fs::write(&file, "exit 1").unwrap();
        Step::new("sh", "").input(file.path()).run().unwrap_err();
    }
}
