//! A workshop for images that QEMU makes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{Budget, Format, Layer, Limits};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::hostile::walk;
use goldsmith_testkit::{image, qemu};
use tempfile::TempDir;

/// A folder of its own for one test.
pub(crate) struct Bench(TempDir);

impl Bench {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new image of QEMU's, on which these `qemu-io` commands ran.
    pub(crate) fn image(
        &self,
        name: &str,
        options: &str,
        size: &str,
        commands: &[&str],
    ) -> PathBuf {
        let path = self.text(name);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([&path, size]);
        qemu::img_ok(&args);
        if !commands.is_empty() {
            qemu::io_ok(&path, "qcow2", commands);
        }
        self.path(name)
    }
}

/// The image at `path`, and the file of its data if that is another one.
pub(crate) fn open(path: &Path) -> Arc<dyn Layer> {
    let file = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        Arc::new(MemoryStorage::holding(path.to_str().unwrap(), bytes))
    };
    let layer = QCOW2.open(file(path), &budget()).unwrap();
    match layer.info().data_file.clone() {
        Some(name) => layer.with_data(file(Path::new(&name))).unwrap(),
        None => layer,
    }
}

pub(crate) fn budget() -> Budget {
    Budget::new(&Limits::default())
}

/// The guest bytes of the image at `path` as QEMU sees them.
pub(crate) fn qemu_reads(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu::img_ok(&["convert", "-f", "qcow2", "-O", "raw", from, to]);
    std::fs::read(raw).unwrap()
}

/// Our reader finds in the image at `path` what QEMU finds.
pub(crate) fn assert_same(path: &Path) -> Arc<dyn Layer> {
    let layer = open(path);
    walk(&*layer, 0, layer.info().virtual_size, usize::MAX).unwrap();
    let (ours, theirs) = (image::read(&*layer).unwrap(), qemu_reads(path));
    assert_eq!(ours.len(), theirs.len());
    let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first byte that differs in {path:?}");
    layer
}
