//! A picture of where data lies on a disk, layer by layer, in one file that needs no other.
//!
//! ```text
//! the disk     ##xx  ..  ####      what the guest finds
//! top.qcow2    ##        ##        what each image holds, hidden or not
//! base.qcow2   xxxx  ..    ##
//!              0         size
//! ```
//!
//! However many extents there are, the disk is cut into so few columns that the file stays small;
//! each is drawn in the strength in which it is filled.

use std::io::Write;

use goldsmith::{Chain, GuestRange, MapEntry};

use crate::exit::Failure;
use crate::output::human::{rounded, shown};

/// Most columns of a lane, and most rectangles of all lanes.
const COLUMNS: u64 = 1024;
const RECTANGLES: u64 = 4096;
/// Strengths in which a column is drawn.
const STRENGTHS: u64 = 4;
/// Most characters of a name.
const NAME: usize = 120;

/// The margin, the head, a lane and the bar in it, in pixels.
const MARGIN: u64 = 16;
const HEAD: u64 = 64;
const WIDTH: u64 = 1024;
const LANE: u64 = 48;
const BAR: u64 = 22;

const STYLE: &str = "\
text{font:13px sans-serif;fill:#222}.t{font-size:16px;font-weight:bold}.s{fill:#666}\
.b{fill:#f4f4f4;stroke:#bbb}.d{fill:#1f6fb2}.c{fill:#8a4fb0}.z{fill:#c0a030}";

/// What stands somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Compressed,
    Zero,
}

/// Where one is drawn instead of another, that comes first.
const KINDS: [Kind; 3] = [Kind::Data, Kind::Compressed, Kind::Zero];

impl Kind {
    fn of(entry: &MapEntry) -> Option<Self> {
        match entry {
            entry if entry.compressed => Some(Self::Compressed),
            entry if entry.data && !entry.zero => Some(Self::Data),
            entry if entry.present && entry.zero => Some(Self::Zero),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Compressed => "compressed data",
            Self::Zero => "zeros that the image states",
        }
    }

    fn class(self) -> char {
        match self {
            Self::Data => 'd',
            Self::Compressed => 'c',
            Self::Zero => 'z',
        }
    }
}

/// The columns into which a part of a disk is cut.
#[derive(Clone, Copy)]
struct Scale {
    range: GuestRange,
    /// Bytes to a column; the last one may have fewer.
    column: u64,
}

impl Scale {
    fn new(range: GuestRange, lanes: u64) -> Self {
        let columns = (RECTANGLES / lanes).clamp(1, COLUMNS);
        Self {
            range,
            column: range.len().div_ceil(columns).max(1),
        }
    }

    /// Where the disk's byte `offset`, which is in the range or its end, is drawn.
    fn x(self, offset: u64) -> f64 {
        let part = (offset - self.range.start) as f64 / self.range.len().max(1) as f64;
        MARGIN as f64 + part * WIDTH as f64
    }

    /// The bytes of column `index`, as far as it is in the range.
    fn bytes(self, index: usize) -> GuestRange {
        let start = self.range.start + index as u64 * self.column;
        GuestRange::new(start, self.range.end.min(start.saturating_add(self.column)))
    }
}

/// One row of the picture.
struct Lane {
    name: String,
    /// How many bytes of each kind are in each column.
    columns: Vec<[u64; KINDS.len()]>,
}

impl Lane {
    fn new(name: String, chain: &Chain, scale: Scale) -> Result<Self, Failure> {
        let count = scale.range.len().div_ceil(scale.column);
        // At most COLUMNS.
        let mut columns = vec![[0; KINDS.len()]; count as usize];
        for entry in goldsmith::map_range(chain, scale.range) {
            let entry = entry?;
            let Some(kind) = Kind::of(&entry) else {
                continue;
            };
            let mut at = entry.range.start;
            while at < entry.range.end {
                let index = ((at - scale.range.start) / scale.column) as usize;
                let end = entry.range.end.min(scale.bytes(index).end);
                columns[index][kind as usize] += end - at;
                at = end;
            }
        }
        Ok(Self { name, columns })
    }

    /// How column `index` is drawn: as what, and how strongly.
    fn look(&self, index: usize, scale: Scale) -> Option<(Kind, u64)> {
        let found = &self.columns[index];
        let stored = if found[1] > found[0] {
            KINDS[1]
        } else {
            KINDS[0]
        };
        let kind = match found {
            [0, 0, 0] => return None,
            [0, 0, _] => Kind::Zero,
            _ => stored,
        };
        // A product of two 64-bit numbers.
        let filled = u128::from(found[kind as usize]) * u128::from(STRENGTHS);
        let strength = filled.div_ceil(u128::from(scale.bytes(index).len().max(1)));
        Some((kind, strength as u64))
    }

    fn draw(&self, out: &mut impl Write, top: u64, scale: Scale) -> std::io::Result<()> {
        let totals = KINDS.map(|kind| {
            self.columns
                .iter()
                .map(|column| column[kind as usize])
                .sum()
        });
        let amounts = KINDS
            .iter()
            .zip(totals)
            .filter(|(_, bytes): &(_, u64)| *bytes > 0);
        let amounts: Vec<_> = amounts
            .map(|(kind, bytes)| format!("{} of {}", rounded(bytes), kind.name()))
            .collect();
        writeln!(
            out,
            r#"<text x="{MARGIN}" y="{}">{} <tspan class="s">{}</tspan></text>"#,
            top + 14,
            escaped(&self.name),
            amounts.join(", ")
        )?;
        let top = top + 20;
        writeln!(
            out,
            r#"<rect class="b" x="{MARGIN}" y="{top}" width="{WIDTH}" height="{BAR}"/>"#
        )?;
        let mut index = 0;
        while index < self.columns.len() {
            let look = self.look(index, scale);
            let run = (index..self.columns.len()).take_while(|at| self.look(*at, scale) == look);
            let end = index + run.count();
            if let Some((kind, strength)) = look {
                let range = GuestRange::new(scale.bytes(index).start, scale.bytes(end - 1).end);
                let bytes = self.columns[index..end].iter().map(|it| it[kind as usize]);
                let (from, to) = (scale.x(range.start), scale.x(range.end));
                writeln!(
                    out,
                    r#"<rect class="{}" x="{from:.2}" y="{top}" width="{:.2}" height="{BAR}" fill-opacity="{:.2}"><title>{range}: {} bytes of {}</title></rect>"#,
                    kind.class(),
                    to - from,
                    strength as f64 / STRENGTHS as f64,
                    bytes.sum::<u64>(),
                    kind.name(),
                )?;
            }
            index = end;
        }
        Ok(())
    }
}

/// The picture of a part of a disk: what the guest finds, and what each image holds.
pub(crate) fn map(out: &mut impl Write, chain: &Chain, range: GuestRange) -> Result<(), Failure> {
    let layers = chain.layers();
    let scale = Scale::new(range, layers.len() as u64 + 1);
    let mut lanes = Vec::new();
    if layers.len() > 1 {
        lanes.push(Lane::new("the disk".into(), chain, scale)?);
    }
    for layer in layers {
        let name = format!("{} ({})", layer.storage().name(), layer.info().format);
        let alone = Chain::new(layer.clone(), []);
        lanes.push(Lane::new(name, &alone, scale)?);
    }
    // All that can fail is done: nobody gets half a picture.
    picture(out, chain, scale, &lanes)?;
    Ok(())
}

fn picture(
    out: &mut impl Write,
    chain: &Chain,
    scale: Scale,
    lanes: &[Lane],
) -> std::io::Result<()> {
    let (width, foot) = (WIDTH + 2 * MARGIN, HEAD + LANE * lanes.len() as u64);
    let height = foot + 64;
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">"#
    )?;
    writeln!(out, "<style>{STYLE}</style>")?;
    writeln!(
        out,
        r##"<rect width="{width}" height="{height}" fill="#fff"/>"##
    )?;
    let name = escaped(chain.top().storage().name());
    writeln!(out, r#"<text class="t" x="{MARGIN}" y="26">{name}</text>"#)?;
    let size = chain.virtual_size();
    writeln!(
        out,
        r#"<text class="s" x="{MARGIN}" y="46">{} of a disk of {} ({size} bytes)</text>"#,
        scale.range,
        rounded(size)
    )?;
    for (lane, top) in lanes.iter().zip((HEAD..).step_by(LANE as usize)) {
        lane.draw(out, top, scale)?;
    }
    for quarter in 0..=4 {
        let offset = scale.range.start + (u128::from(scale.range.len()) * quarter / 4) as u64;
        let anchor = match quarter {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        writeln!(
            out,
            r#"<text class="s" x="{:.2}" y="{}" text-anchor="{anchor}">{}</text>"#,
            scale.x(offset),
            foot + 14,
            rounded(offset)
        )?;
    }
    for (kind, x) in KINDS.iter().zip((MARGIN..).step_by(180)) {
        let class = kind.class();
        writeln!(
            out,
            r#"<rect class="{class}" x="{x}" y="{}" width="14" height="14"/>"#,
            foot + 34
        )?;
        let (x, y) = (x + 20, foot + 46);
        writeln!(out, r#"<text x="{x}" y="{y}">{}</text>"#, kind.name())?;
    }
    writeln!(out, "</svg>")?;
    out.flush()
}

/// A name as it may stand in XML, which has no characters for control, and no long ones.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    let shown = shown(name);
    for character in shown.chars().take(NAME) {
        match character {
            '&' => text += "&amp;",
            '<' => text += "&lt;",
            '>' => text += "&gt;",
            '"' => text += "&quot;",
            // [XML 1.0 2.2] No characters, either.
            '\u{fffe}' | '\u{ffff}' => text.push(char::REPLACEMENT_CHARACTER),
            character => text.push(character),
        }
    }
    if shown.chars().nth(NAME).is_some() {
        text += "...";
    }
    text
}
