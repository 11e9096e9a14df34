//! `goldsmith bench`

use std::io::{Write, stdout};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use goldsmith::{Bench as Benchmark, Benched, Writing};

use crate::exit::{self, Failure};
use crate::options::{Cache, Opening, Spelling, size};
use crate::progress::Showing;
use crate::sandbox;

/// Measure how fast an image takes requests like a guest's
///
/// A thread for each request that is under way reads, or with -w writes, through all layers of the
/// image, and through the page cache unless -t says otherwise.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  goldsmith bench -f qcow2 -c 10000 -d 4 disk.qcow2
  Write over the whole content of a scratch image, a mebibyte at a time:
    goldsmith bench -f qcow2 -w --pattern 65 -s 1M -c 1024 scratch.qcow2")]
pub(crate) struct Bench {
    /// Format of the image; without it the format is guessed
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// Number of requests
    #[arg(short = 'c', long, value_name = "COUNT", default_value = "75000", value_parser = positive)]
    count: u64,

    /// Requests that are under way at once, at most 1024
    #[arg(short = 'd', long, value_name = "DEPTH", default_value = "64", value_parser = depth)]
    depth: usize,

    /// Length of a request
    #[arg(short = 's', long, value_name = "SIZE", default_value = "4096", value_parser = positive)]
    buffer_size: u64,

    /// From the start of one request to that of the next; 0 means the length of a request
    #[arg(short = 'S', long, value_name = "SIZE", default_value = "0", value_parser = at_most)]
    step_size: u64,

    /// Where the first request begins
    #[arg(short = 'o', long, value_name = "OFFSET", default_value = "0", value_parser = offset)]
    offset: u64,

    /// Say nothing but errors, and what was measured
    #[arg(short = 'q', long)]
    quiet: bool,

    /// How requests go through the page cache: with none and directsync past it, if the file system can
    /// do that; with writethrough and directsync each write is stored safely before it is done
    #[arg(
        short = 't',
        long,
        value_enum,
        value_name = "CACHE",
        default_value = "writeback"
    )]
    cache: Cache,

    /// Who makes the requests: threads, the others are not to be had
    #[arg(
        short = 'i',
        long,
        value_enum,
        value_name = "AIO",
        default_value = "threads"
    )]
    aio: Aio,

    /// The same as -i native
    #[arg(short = 'n', long)]
    native: bool,

    /// Write OVER THE CONTENT OF THE IMAGE instead of reading it; its tables stay sound
    #[arg(short = 'w', long, conflicts_with = "force_share")]
    write: bool,

    /// With -w: the byte to write
    #[arg(long, value_name = "BYTE", default_value = "0", value_parser = byte)]
    pattern: u8,

    /// With -w: after how many requests all is stored safely; no fewer than are under way at once
    #[arg(long, value_name = "COUNT", value_parser = positive)]
    flush_interval: Option<u64>,

    /// With --flush-interval: make other requests meanwhile, where the image has no tables
    #[arg(long)]
    no_drain: bool,

    #[command(flatten)]
    opening: Opening,

    #[command(flatten)]
    spelling: Spelling,

    /// The image
    image: PathBuf,
}

/// Who makes requests. [qemu]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Aio {
    /// Threads that wait for them
    Threads,
    /// The kernel's AIO
    Native,
    /// The kernel's rings
    #[value(name = "io_uring")]
    IoUring,
}

impl Bench {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        self.refuse_what_is_not_there()?;
        let Self {
            count,
            depth,
            buffer_size,
            offset,
            ..
        } = self;
        let source = self.spelling.source(&self.image, self.format.as_deref())?;
        sandbox::narrow(&self.opening.reach_of_edit(&source.path, !self.write))?;
        // At most 2^31 - 1.
        let mut bench = Benchmark::new(&source.path)
            .opener(source.opener(self.opening.opener()))
            .direct(matches!(self.cache, Cache::None | Cache::Directsync))
            .count(count)
            .depth(depth)
            .request_len(buffer_size as usize)
            .offset(offset);
        if let Some(format) = &source.format {
            bench = bench.format(format);
        }
        let step = NonZeroU64::new(self.step_size);
        if let Some(step) = step {
            bench = bench.step(step);
        }
        if self.write {
            bench = bench.write(Writing {
                pattern: self.pattern,
                flush_interval: self.flush_interval.and_then(NonZeroU64::new),
                no_drain: self.no_drain,
                sync_each: matches!(self.cache, Cache::Writethrough | Cache::Directsync),
            });
        }
        let step = step.map_or(buffer_size, NonZeroU64::get);
        let kind = if self.write { "write" } else { "read" };
        let mut lines = format!(
            "Sending {count} {kind} requests, {buffer_size} bytes each, {depth} in parallel \
             (starting at offset {offset}, step size {step})\n"
        );
        if let Some(interval) = self.flush_interval {
            lines += &format!("Sending flush every {interval} requests\n");
        }
        let announced = Mutex::new(Ok(()));
        let announce = || {
            let written = stdout().write_all(lines.as_bytes());
            *announced.lock().unwrap_or_else(PoisonError::into_inner) = written;
        };
        let watch = Showing::default().watch(true, 1);
        let bench = bench.on_start(&announce).cancel(watch.cancel());
        let Benched { time, warnings, .. } = bench.run()?;
        exit::warn(&warnings);
        announced
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)?;
        let mut out = stdout().lock();
        writeln!(out, "Run completed in {:.3} seconds.", time.as_secs_f64())?;
        Ok(ExitCode::SUCCESS)
    }

    fn refuse_what_is_not_there(&self) -> Result<(), Failure> {
        let why = match self.flush_interval {
            Some(_) if !self.write => "--flush-interval is only available in write tests",
            Some(interval) if interval < self.depth as u64 => {
                "Flush interval can't be smaller than depth"
            }
            _ if self.native || self.aio != Aio::Threads => {
                "requests are made by threads; there is no other way to make them (-i threads)"
            }
            _ => return Ok(()),
        };
        Err(Failure::with_status(1, why))
    }
}

/// Lengths and counts are C's `int`. [qemu]
const MOST: u64 = i32::MAX.unsigned_abs() as u64;

fn between(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = size(text)?;
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("must be between {least} and {most}")),
    }
}

fn positive(text: &str) -> Result<u64, String> {
    between(text, 1, MOST)
}

fn at_most(text: &str) -> Result<u64, String> {
    between(text, 0, MOST)
}

fn offset(text: &str) -> Result<u64, String> {
    between(text, 0, i64::MAX.unsigned_abs())
}

fn depth(text: &str) -> Result<usize, String> {
    // Fits: it is at most 1024.
    between(text, 1, Benchmark::DEPTH as u64).map(|depth| depth as usize)
}

fn byte(text: &str) -> Result<u8, String> {
    // Fits: it is at most 255.
    let byte = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).map_err(|error| error.to_string())?,
        None => between(text, 0, u8::MAX.into())?,
    };
    u8::try_from(byte).map_err(|_| "must be between 0 and 255".into())
}
