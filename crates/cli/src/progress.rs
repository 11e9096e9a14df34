//! Showing how far a command has come, and heeding signals meanwhile.

use std::io::{IsTerminal, PipeReader, PipeWriter, Read, Write, stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use goldsmith::{Cancel, Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::low_level::pipe;

use crate::exit::Failure;
use crate::options::OutputFormat;

/// Least time between two JSON lines of one phase: a program that looks on wants a few in a second.
const JSON_EVERY: Duration = Duration::from_millis(200);

/// How progress is shown.
#[derive(Args, Default)]
pub(crate) struct Showing {
    /// Show progress; with '=json' as lines of JSON on standard output, for programs. SIGUSR1 has it
    /// printed once, on standard error
    #[arg(
        short = 'p',
        long,
        value_enum,
        value_name = "FOR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "human"
    )]
    progress: Option<OutputFormat>,
}

impl Showing {
    /// Begins a job of so many phases, one after the other.
    pub(crate) fn watch(&self, quiet: bool, phases: usize) -> Watch {
        let shown = self.progress.filter(|_| !quiet);
        Watch::new(shown.map(|format| Display::new(format, phases)), phases)
    }

    /// Fails if it and what is told for `output` cannot both be read: they share standard output.
    pub(crate) fn must_fit(&self, output: OutputFormat) -> Result<(), Failure> {
        match (output, self.progress) {
            (OutputFormat::Json, Some(OutputFormat::Human)) => {
                let text = "with --output=json progress is for a program, too: --progress=json";
                Err(Failure::with_status(1, text))
            }
            _ => Ok(()),
        }
    }

    /// Who is shown it, if anybody is.
    pub(crate) fn format(&self) -> Option<OutputFormat> {
        self.progress
    }
}

/// Where signals write a byte, and where it is read. A pipe and no socket, and made before the command
/// locks itself in, where it may make neither nor send through one.
static WAKE: Mutex<Option<(PipeReader, PipeWriter)>> = Mutex::new(None);

/// Lets nobody who asks for progress (SIGUSR1) end a command that has none to show [qemu], nor a limit to
/// the length of files one that can say which file met it.
pub(crate) fn bear_signals() {
    // Without it the signal ends the process where it is, which harms no image.
    for signal in [SIGUSR1, SIGXFSZ] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    *lock(&WAKE) = std::io::pipe().ok();
}

/// Calls `heed` from a thread of its own, with whether it was to stop or to tell, whenever a signal
/// comes that is not ignored.
fn listen(heed: impl Fn(bool) + Send + 'static) -> std::io::Result<()> {
    let Some((mut reader, writer)) = lock(&WAKE).take() else {
        return Ok(());
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // First: what nobody listens to must go on ending the process.
    std::thread::Builder::new().spawn(move || {
        // Goes on when it is interrupted.
        while reader.read_exact(&mut [0]).is_ok() {
            heed(stopped.load(Ordering::SeqCst));
        }
    })?;
    pipe::register(SIGUSR1, writer.try_clone()?)?;
    let ignored = ignored();
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // By nohup, or by a shell that runs this in the background: whoever did that means it.
        if ignored & 1 << (signal - 1) != 0 {
            continue;
        }
        // In this order: whoever reads the byte finds the flag.
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
        pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(())
}

/// Which signals this process was begun to ignore, the lowest bit for signal 1; none where nobody knows.
fn ignored() -> u64 {
    // [proc_pid_status(5)] No crate that is here asks without `unsafe`.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let set = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default()
}

/// Who watches a long command: somebody who looks on, perhaps, and somebody who may interrupt it or
/// ask how far it is.
pub(crate) struct Watch {
    display: Option<Display>,
    gauge: Arc<Mutex<Gauge>>,
    cancel: Cancel,
}

impl Watch {
    /// Begins; from now on an interrupt only raises the flag.
    fn new(display: Option<Display>, phases: usize) -> Self {
        let cancel = Cancel::new();
        let gauge = Arc::new(Mutex::new(Gauge::new(phases)));
        let (raise, asked) = (cancel.clone(), Arc::clone(&gauge));
        // Without a handler an interrupt ends the process where it is, which harms no image; that
        // the handler cannot be set is no reason not to begin.
        let _ = listen(move |stop| {
            if stop {
                raise.cancel();
            } else {
                let percent = lock(&asked).percent;
                // [qemu] Standard error, because nobody has to have asked for progress.
                let _ = writeln!(stderr(), "    ({percent:.2}/100%)");
            }
        });
        Self {
            display,
            gauge,
            cancel,
        }
    }

    /// The flag that an interrupt raises.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Notes `progress`, and shows it if somebody looks on. Safe to call from many threads, out of
    /// order.
    pub(crate) fn show(&self, progress: Progress) {
        let mut gauge = lock(&self.gauge);
        let is_new = gauge.note(progress);
        if let (true, Some(display)) = (is_new, &self.display) {
            display.show(progress, &gauge);
        }
    }

    /// Leaves the display as it ends.
    pub(crate) fn finish(self) {
        if let Some(display) = self.display {
            display.finish();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a job is that may have several phases.
struct Gauge {
    phases: usize,
    /// Phases that are over.
    over: usize,
    phase: Option<(Phase, Instant)>,
    /// Bytes of this phase.
    done: u64,
    /// Of the whole job, each phase having an equal share.
    percent: f64,
}

impl Gauge {
    fn new(phases: usize) -> Self {
        Self {
            phases,
            over: 0,
            phase: None,
            done: 0,
            percent: 0.0,
        }
    }

    /// Whether `progress` is more than what was known.
    fn note(&mut self, progress: Progress) -> bool {
        let before = self.phase.map(|(phase, _)| phase);
        if before != Some(progress.phase) {
            self.over += usize::from(before.is_some());
            self.phase = Some((progress.phase, Instant::now()));
            self.done = 0;
        } else if progress.done <= self.done {
            return false;
        }
        self.done = progress.done;
        let part = match progress.total {
            0 => 1.0,
            total => progress.done as f64 / total as f64,
        };
        self.percent = (100.0 * (self.over as f64 + part) / self.phases as f64).min(100.0);
        true
    }

    /// Bytes per second since the phase began, once there is something to tell.
    fn rate(&self) -> Option<f64> {
        let elapsed = self.phase?.1.elapsed().as_secs_f64();
        (self.done > 0 && elapsed > 0.0).then(|| self.done as f64 / elapsed)
    }
}

/// A progress display on standard output: for a person a bar on a terminal and qemu-img's lines
/// elsewhere, for a program JSON.
enum Display {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
    Json(Mutex<Option<Instant>>),
}

impl Display {
    fn new(format: OutputFormat, phases: usize) -> Self {
        if let OutputFormat::Json = format {
            return Self::Json(Mutex::new(None));
        }
        if !stdout().is_terminal() {
            return Self::Lines(Mutex::new(Lines { shown: None }));
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        let phase = if phases > 1 { "{prefix:8} " } else { "" };
        let template = format!(
            "{phase}{{bar:30}} {{percent:>3}}% {{bytes}} of {{total_bytes}}, {{bytes_per_sec}}, \
             {{eta}} left"
        );
        // A template that does not parse is a fault of ours; the plain bar still serves.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self::Bar(bar)
    }

    fn show(&self, progress: Progress, gauge: &Gauge) {
        match self {
            Self::Bar(bar) => {
                if progress.done == 0 {
                    bar.reset();
                    bar.set_prefix(progress.phase.name());
                }
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
            Self::Lines(lines) => lock(lines).show(gauge.percent),
            Self::Json(told) => {
                let mut told = lock(told);
                let is_edge = progress.done == 0 || progress.done == progress.total;
                if is_edge || told.is_none_or(|at| at.elapsed() >= JSON_EVERY) {
                    *told = Some(Instant::now());
                    // A reader that went away does not stop the work.
                    let _ = writeln!(stdout(), "{}", line(progress, gauge.rate()));
                }
            }
        }
    }

    /// Leaves the display as it ends.
    fn finish(self) {
        match self {
            Self::Bar(bar) => bar.finish(),
            Self::Lines(lines) => {
                lock(&lines).show(100.0);
                let _ = writeln!(stdout());
            }
            Self::Json(_) => {}
        }
    }
}

/// One JSON line. Its keys stay what they are; others may be added.
fn line(progress: Progress, rate: Option<f64>) -> serde_json::Value {
    let left = rate.map(|rate| ((progress.total - progress.done) as f64 / rate).ceil() as u64);
    json!({
        "phase": progress.phase.name(),
        "done": progress.done,
        "total": progress.total,
        "data": progress.data,
        "rate": rate.map(|rate| rate as u64),
        "left": left,
    })
}

/// What was last shown of `(12.34/100%)`.
struct Lines {
    shown: Option<f64>,
}

impl Lines {
    /// [qemu] A new line for every percent, and for the last.
    fn show(&mut self, percent: f64) {
        let step = self.shown.map_or(f64::INFINITY, |shown| percent - shown);
        if step >= 1.0 || (percent >= 100.0 && step > 0.0) {
            self.shown = Some(percent);
            // A reader that went away does not stop the conversion.
            let _ = write!(stdout(), "    ({percent:.2}/100%)\r");
            let _ = stdout().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: Phase, done: u64) -> Progress {
        let mut progress = Progress::start(phase, 200);
        progress.done = done;
        progress
    }

    #[test]
    fn phases_share_the_percents_and_none_goes_back() {
        let mut gauge = Gauge::new(2);
        let mut note = |phase, done| {
            let is_new = gauge.note(progress(phase, done));
            (is_new, gauge.percent)
        };
        assert_eq!(note(Phase::Copy, 0), (true, 0.0));
        assert_eq!(note(Phase::Copy, 100), (true, 25.0));
        assert_eq!(note(Phase::Copy, 50), (false, 25.0), "a late one");
        assert_eq!(note(Phase::Copy, 200), (true, 50.0));
        assert_eq!(note(Phase::Verify, 0), (true, 50.0));
        assert_eq!(note(Phase::Verify, 200), (true, 100.0));
    }

    #[test]
    fn line_tells_rate_and_time_left_once_they_are_known() {
        let told = line(progress(Phase::Copy, 0), None).to_string();
        assert_eq!(
            told,
            r#"{"phase":"copy","done":0,"total":200,"data":0,"rate":null,"left":null}"#
        );
        let told = line(progress(Phase::Copy, 50), Some(60.0)).to_string();
        assert_eq!(
            told,
            r#"{"phase":"copy","done":50,"total":200,"data":0,"rate":60,"left":3}"#
        );
    }
}
