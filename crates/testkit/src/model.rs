//! The reference: a disk whose every byte is known from a list of runs.

use std::fmt;
use std::sync::{Arc, OnceLock};

use goldsmith_block::{
    Extent, ExtentKind, GuestRange, HostRange, Layer, LayerInfo, Result, Span, Storage, StorageId,
    end_of_storage,
};
use proptest::prelude::*;

use crate::pattern;

/// What fills a [`Run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Never written.
    Hole,
    /// Zeros that were written.
    Zero,
    /// What the letter stands for at this place (see [`pattern`]).
    Data(u8),
}

/// Neighbouring bytes with one fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The bytes; never none.
    pub range: GuestRange,
    /// What they are.
    pub fill: Fill,
}

/// A disk of which everything is known.
#[derive(Clone)]
pub struct ModelDisk {
    runs: Vec<Run>,
    bytes: OnceLock<Vec<u8>>,
}

impl ModelDisk {
    /// The disk made of these pieces (length in bytes, fill), one after the other.
    pub fn new(pieces: impl IntoIterator<Item = (u64, Fill)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (len, fill) in pieces {
            let start = runs.last().map_or(0, |run| run.range.end);
            match runs.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.fill == fill => last.range.end += len,
                _ => runs.push(Run {
                    range: GuestRange::new(start, start + len),
                    fill,
                }),
            }
        }
        Self {
            runs,
            bytes: OnceLock::new(),
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.range.end)
    }

    /// Whether the disk has no byte at all.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending, without gaps; neighbours have different fills.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// All bytes of a disk that fits in memory.
    ///
    /// # Panics
    /// If the disk is larger than 1 GiB; [`read_at`](Self::read_at) takes any.
    pub fn bytes(&self) -> &[u8] {
        assert!(
            self.len() <= 1 << 30,
            "{self:?} is too large to hold in memory"
        );
        self.bytes.get_or_init(|| {
            let mut bytes = vec![0; self.len() as usize];
            self.read_at(0, &mut bytes);
            bytes
        })
    }

    /// Fills `buf` with the bytes from `offset`, which must all exist.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) {
        let end = offset + buf.len() as u64;
        assert!(end <= self.len(), "{offset}..{end} is not on {self:?}");
        let mut at = offset;
        while at < end {
            let run = self.run_at(at);
            let stop = run.range.end.min(end);
            let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            match run.fill {
                Fill::Data(letter) => pattern::fill(letter, at, part),
                Fill::Hole | Fill::Zero => part.fill(0),
            }
            at = stop;
        }
    }

    /// The run that holds the byte at `offset`, which must exist.
    pub fn run_at(&self, offset: u64) -> Run {
        self.runs[self.runs.partition_point(|run| run.range.end <= offset)]
    }
}

/// As a picture that [`pattern::disk`] reads back.
impl fmt::Debug for ModelDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.runs.iter().map(|run| {
            let fill = match run.fill {
                Fill::Hole => '-',
                Fill::Zero => '0',
                Fill::Data(letter) => char::from(letter),
            };
            format!("{}:{fill}", run.range.len())
        });
        write!(f, "\"{}\"", words.collect::<Vec<_>>().join(" "))
    }
}

/// Any disk of up to `max_len` bytes whose size and run boundaries are multiples of `align`.
///
/// Never uniform where there is room for two runs, and rich in short runs: bugs live at borders.
pub fn any_disk(max_len: u64, align: u64) -> impl Strategy<Value = ModelDisk> {
    let most = (max_len / align).max(1);
    let steps = prop_oneof![
        3 => 1..=most.min(16),
        2 => 1..=most.min(256),
        1 => 1..=most.div_ceil(2),
    ];
    let fill = prop_oneof![
        2 => Just(Fill::Hole),
        1 => Just(Fill::Zero),
        2 => (b'A'..=b'Z').prop_map(Fill::Data),
        1 => (b'a'..=b'z').prop_map(Fill::Data),
    ];
    let pieces = proptest::collection::vec((steps, fill), 2..12);
    pieces.prop_map(move |mut pieces| {
        let mut left = most;
        for (steps, _) in &mut pieces {
            *steps = (*steps).min(left);
            left -= *steps;
        }
        pieces.retain(|(steps, _)| *steps > 0);
        let is_data = |fill: &Fill| matches!(fill, Fill::Data(_));
        if pieces.iter().all(|(_, fill)| is_data(fill)) && pieces.len() > 1 {
            pieces[0].1 = Fill::Hole;
        } else if !pieces.iter().any(|(_, fill)| is_data(fill)) {
            pieces[0].1 = Fill::Data(b'M');
        }
        ModelDisk::new(
            pieces
                .into_iter()
                .map(|(steps, fill)| (steps * align, fill)),
        )
    })
}

/// A model disk as a raw file: holes are holes, and host offsets are guest offsets.
#[derive(Debug)]
pub struct ModelStorage {
    disk: ModelDisk,
    id: StorageId,
}

impl ModelStorage {
    /// The raw file that holds `disk`.
    pub fn new(disk: ModelDisk) -> Self {
        let id = StorageId::unique();
        Self { disk, id }
    }
}

impl Storage for ModelStorage {
    fn name(&self) -> &str {
        "model.raw"
    }

    fn id(&self) -> StorageId {
        self.id
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let range = HostRange::new(offset, buf.len() as u64);
        if range.end() > self.len() {
            return Err(end_of_storage(range, self.len()));
        }
        self.disk.read_at(offset, buf);
        Ok(())
    }

    fn span_at(&self, offset: u64, limit: u64) -> Result<Span> {
        assert!(offset < limit && limit <= self.len());
        let run = self.disk.run_at(offset);
        Ok(Span {
            len: run.range.end.min(limit) - offset,
            hole: run.fill == Fill::Hole,
        })
    }
}

/// A model disk as a layer, so that an engine can be tested without any format.
///
/// A hole is `Unallocated`, written zeros are `Zero`, and data is read through the storage.
pub struct ModelLayer {
    disk: ModelDisk,
    storage: Arc<dyn Storage>,
    info: LayerInfo,
    step: u64,
}

impl ModelLayer {
    /// The layer that shows `disk`.
    pub fn new(disk: ModelDisk) -> Self {
        let storage = Arc::new(ModelStorage::new(disk.clone()));
        Self::over(disk, storage)
    }

    /// The layer that has the runs of `disk`, but reads its data from `storage` at the same offsets.
    pub fn over(disk: ModelDisk, storage: Arc<dyn Storage>) -> Self {
        let info = LayerInfo {
            format: "model",
            virtual_size: disk.len(),
            ..LayerInfo::default()
        };
        Self {
            disk,
            storage,
            info,
            step: u64::MAX,
        }
    }

    /// Makes no extent of data or zeros longer than `step` bytes: neighbours need not be merged.
    #[must_use]
    pub fn in_steps_of(mut self, step: u64) -> Self {
        self.step = step;
        self
    }
}

impl Layer for ModelLayer {
    fn info(&self) -> &LayerInfo {
        &self.info
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        assert!(
            offset < limit && limit <= self.disk.len(),
            "extent_at({offset}, {limit}) on a disk of {} bytes",
            self.disk.len()
        );
        let run = self.disk.run_at(offset);
        let end = run.range.end.min(limit);
        let (end, kind) = match run.fill {
            Fill::Hole => (end, ExtentKind::Unallocated),
            Fill::Zero => {
                let kind = ExtentKind::Zero {
                    allocated: true,
                    host: None,
                };
                (end.min(offset.saturating_add(self.step)), kind)
            }
            Fill::Data(_) => {
                let kind = ExtentKind::Data { host: Some(offset) };
                (end.min(offset.saturating_add(self.step)), kind)
            }
        };
        let range = GuestRange::new(offset, end);
        Ok(Extent { range, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let run = self.disk.run_at(at);
            let stop = run.range.end.min(end);
            let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            match run.fill {
                Fill::Data(_) => self.storage.read_at(at, part)?,
                Fill::Hole | Fill::Zero => part.fill(0),
            }
            at = stop;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_a_picture_of_the_disk() {
        let disk = pattern::disk("1k:A 2k:- 512:0 1:z");
        let picture = format!("{disk:?}");
        assert_eq!(picture, "\"1024:A 2048:- 512:0 1:z\"");
        assert_eq!(pattern::disk(picture.trim_matches('"')).runs(), disk.runs());
    }

    #[test]
    fn equal_neighbours_are_one_run_and_empty_pieces_none() {
        let disk = pattern::disk("512:A 0:- 512:A 512:-");
        assert_eq!(disk.runs().len(), 2);
        assert_eq!(disk.run_at(1023).fill, Fill::Data(b'A'));
        assert_eq!(disk.run_at(1024).fill, Fill::Hole);
    }

    #[test]
    fn layer_of_a_huge_disk_needs_no_memory() {
        let layer = ModelLayer::new(pattern::disk("4k:A 64T:- 4k:B"));
        let size = layer.info().virtual_size;
        let hole = layer.extent_at(4096, size).unwrap();
        assert_eq!(hole.range, GuestRange::new(4096, 4096 + (64 << 40)));
        let mut tail = [0; 32];
        layer.read_at(size - 4096 - 16, &mut tail).unwrap();
        assert_eq!(tail[..16], [0; 16]);
        assert_eq!(tail[16], b'B');
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_disk_is_mixed_and_aligned(disk in any_disk(64 << 10, 512)) {
            prop_assert!(disk.len() <= 64 << 10 && disk.len().is_multiple_of(512));
            prop_assert!(disk.runs().iter().any(|run| matches!(run.fill, Fill::Data(_))));
            prop_assert!(disk.runs().len() == 1 || disk.runs().iter().any(|run| run.fill != disk.runs()[0].fill));
        }

        #[test]
        fn layer_and_storage_show_the_disk(disk in any_disk(16 << 10, 1), step in 1u64..5000) {
            let layer = ModelLayer::new(disk.clone()).in_steps_of(step);
            let mut bytes = vec![0xaa; disk.len() as usize];
            layer.read_at(0, &mut bytes).unwrap();
            prop_assert_eq!(&bytes, disk.bytes());
            ModelStorage::new(disk.clone()).read_at(0, &mut bytes).unwrap();
            prop_assert_eq!(&bytes, disk.bytes());
        }
    }
}
