//! Every call that anything makes of a storage fails once: under every format's sink and editor, under
//! every source, and under the engine that joins them.
//!
//! ```text
//! what × operation × what the failing call does × n = 0, 1, 2, ... until nothing fails any more
//! ```
//!
//! `cargo test -p goldsmith --test faults` tells how many faults that were.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod editors;
mod sinks;
mod sources;

use std::num::NonZeroUsize;
use std::sync::Arc;

use goldsmith_block::{
    BackingReference, Budget, Chain, CreateSpec, Edit, Editor, Format, Layer, Limits, Options,
    Result, StorageMut,
};
use goldsmith_engine::{Behind, Job};
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::{ModelDisk, ModelLayer, image};

/// A kind of image.
#[derive(Clone, Copy, Debug)]
struct Row {
    format: &'static str,
    options: &'static [(&'static str, &'static str)],
    compress: bool,
    /// What stands behind it.
    behind: Option<&'static str>,
}

const fn row(format: &'static str, options: &'static [(&'static str, &'static str)]) -> Row {
    Row {
        format,
        options,
        compress: false,
        behind: None,
    }
}

impl Row {
    const fn packed(self) -> Self {
        Self {
            compress: true,
            ..self
        }
    }

    const fn over(self, behind: &'static str) -> Self {
        Self {
            behind: Some(behind),
            ..self
        }
    }

    fn format(&self) -> &'static dyn Format {
        goldsmith::format_named(self.format).unwrap()
    }

    /// The disk behind it, if there is one.
    fn behind(&self) -> Option<Arc<dyn Layer>> {
        let layer = |picture| Arc::new(ModelLayer::new(disk(picture))) as Arc<dyn Layer>;
        self.behind.map(layer)
    }

    fn spec(&self, virtual_size: u64) -> CreateSpec {
        let options = self.options.iter().copied();
        CreateSpec {
            virtual_size,
            data: None,
            backing: self.behind.map(|_| BackingReference {
                name: "behind".into(),
                format: Some("raw".into()),
                ..BackingReference::default()
            }),
            options: Options::parse(self.format().options(), options).unwrap(),
            compress: self.compress,
            uuid: image::UUID,
            timestamp: image::TIMESTAMP,
        }
    }

    /// Writes `disk` into `storage` as the engine does it, with one worker, so that the n-th call is
    /// always the same.
    fn write(&self, disk: &ModelDisk, storage: Arc<dyn StorageMut>) -> Result<()> {
        let source = Chain::new(Arc::new(ModelLayer::new(disk.clone())), []);
        let behind = self.behind().map(|layer| Chain::new(layer, []));
        let sink = self.format().create(storage, &self.spec(disk.len()))?;
        let job = Job {
            behind: behind.as_ref().map_or(Behind::Nothing, Behind::Disk),
            ..one_worker()
        };
        goldsmith_engine::convert(&source, sink, &job).map(drop)
    }

    /// The image of `disk`.
    fn image(&self, disk: &ModelDisk) -> Vec<u8> {
        let storage = Arc::new(MemoryStorage::new("image"));
        self.write(disk, Arc::clone(&storage) as _).unwrap();
        storage.to_vec()
    }

    /// The bytes that a guest sees through `layer`.
    fn guest(&self, layer: Arc<dyn Layer>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; layer.info().virtual_size as usize];
        Chain::new(layer, self.behind()).read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, image: Vec<u8>) -> Result<Arc<dyn Layer>> {
        image::open(self.format(), image)
    }

    fn editor(&self, storage: Arc<dyn StorageMut>) -> Result<Box<dyn Editor>> {
        let options = Options::defaults(self.format().open_options());
        self.format().edit(storage, &budget(), &options)
    }

    /// `image` after `edit`, which goes well.
    fn edited(&self, image: Vec<u8>, edit: &Edit) -> Vec<u8> {
        let storage = Arc::new(MemoryStorage::holding("image", image));
        let mut editor = self.editor(Arc::clone(&storage) as _).unwrap();
        editor.edit(edit).unwrap();
        storage.to_vec()
    }
}

fn one_worker() -> Job<'static> {
    Job {
        threads: Some(NonZeroUsize::MIN),
        ..Job::default()
    }
}

fn budget() -> Budget {
    Budget::new(&Limits::default())
}
