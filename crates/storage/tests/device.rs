//! Block devices, by way of loop devices.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goldsmith_block::{Error, ErrorKind, HostRange, Storage, StorageId, StorageMut, Zeroing};
use goldsmith_storage::{FileStorage, MmapStorage, Target, Use, lock};

const LEN: usize = (1 << 20) + 512;

/// A loop device over a file of `LEN` sevens; detached when dropped.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
    /// A tool that another test starts holds our open devices until it runs, so they are not ours
    /// alone: one test at a time.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Loop {
    /// `None` where they were ruled out.
    fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// The same, with more options for `losetup`.
    fn with(options: &[&str]) -> Option<Self> {
        if !goldsmith_testkit::mount::are_allowed("loop devices") {
            return None;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![7; LEN]).unwrap();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(file.path())
            .output()
            .expect("losetup is there; run scripts/install-test-tools");
        assert!(output.status.success(), "losetup: {output:?}");
        let device = String::from_utf8(output.stdout).unwrap();
        Some(Self {
            device: device.trim().into(),
            _file: file,
            _alone: alone,
        })
    }

    fn path(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

#[test]
fn device_has_a_fixed_length_and_an_identity() {
    let Some(disk) = Loop::new() else { return };
    let storage = FileStorage::open(disk.path()).unwrap();
    assert_eq!(storage.len(), LEN as u64);
    assert_eq!(storage.fixed_len(), Some(LEN as u64));
    assert!(!storage.is_blank());
    assert!(matches!(storage.id(), StorageId::Device(_)));
    let span = storage.span_at(4096, LEN as u64).unwrap();
    assert_eq!((span.len, span.hole), (LEN as u64 - 4096, false));

    let mut tail = [0; 513];
    storage.read_at(LEN as u64 - 513, &mut tail).unwrap();
    assert_eq!(tail, [7; 513]);
    let error = storage.read_at(LEN as u64 - 512, &mut tail).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);

    // SAFETY: the device is ours and nobody changes it.
    let map = unsafe { MmapStorage::open(disk.path()) }.unwrap();
    assert_eq!(map.len(), LEN as u64);
    map.read_at(0, &mut tail).unwrap();
    assert_eq!(tail, [7; 513]);
}

#[test]
fn writes_past_a_device_are_refused_with_the_numbers() {
    let Some(disk) = Loop::new() else { return };
    let storage = FileStorage::edit(disk.path()).unwrap();
    storage.write_at(LEN as u64 - 4, b"gold").unwrap();
    let error = storage.write_at(LEN as u64 - 3, b"gold").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.report().ends_with("the device holds 1049088 bytes"));

    storage.set_len(1).unwrap();
    assert_eq!(storage.len(), LEN as u64);
    let error = storage.set_len(LEN as u64 + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(
        error.report(),
        format!(
            "{}: the device holds 1049088 bytes; 1049089 are needed",
            disk.path().display()
        )
    );
}

#[test]
fn zeroed_parts_of_a_device_read_zero_and_nothing_else_changes() {
    let Some(disk) = Loop::new() else { return };
    let storage = FileStorage::edit(disk.path()).unwrap();
    let mut expected = vec![7; LEN];
    for (offset, len, zeroing) in [
        (0, 4096, Zeroing::Punch),
        (9000, 100_000, Zeroing::Punch),
        (200_001, 70_000, Zeroing::Keep),
        (LEN - 600, 600, Zeroing::Punch),
        (300_000, 1, Zeroing::Keep),
    ] {
        let range = HostRange::new(offset as u64, len as u64);
        storage.zero(range, zeroing).unwrap();
        expected[offset..offset + len].fill(0);
    }
    storage.flush().unwrap();
    let mut bytes = vec![0xaa; LEN];
    storage.read_at(0, &mut bytes).unwrap();
    assert!(bytes == expected);
}

#[test]
fn device_is_written_by_one_at_a_time() {
    let Some(disk) = Loop::new() else { return };
    let first = FileStorage::edit(disk.path()).unwrap();
    let error = FileStorage::edit(disk.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.report().contains("Device or resource busy"));
    FileStorage::open(disk.path()).unwrap();
    drop(first);
    FileStorage::edit(disk.path()).unwrap();
}

/// [qemu] A machine that runs on the device, or its tools, hold the same locks as on a file.
#[test]
fn device_is_locked_as_a_file_is() {
    let Some(disk) = Loop::new() else { return };
    let reader = FileStorage::open(disk.path()).unwrap();
    lock(&reader, Use::Read).unwrap();
    let refused = |error: Error| {
        error
            .report()
            .contains("is another process using the image?")
    };
    let target = Target::create(disk.path()).unwrap();
    assert!(refused(target.lock().unwrap_err()));
    drop((reader, target));

    let target = Target::create(disk.path()).unwrap();
    target.lock().unwrap();
    let reader = FileStorage::open(disk.path()).unwrap();
    assert!(refused(lock(&reader, Use::Read).unwrap_err()));
    drop(target);
    lock(&reader, Use::Read).unwrap();

    // Who can change the device, though nothing is changed yet.
    let device = disk.path().to_str().unwrap();
    let mut machine = Command::new("qemu-io")
        .args(["-f", "raw", device])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io is installed");
    drop(reader);
    let mut said = BufReader::new(machine.stdout.take().unwrap());
    let mut input = machine.stdin.take().unwrap();
    input.write_all(b"read 0 512\n").unwrap();
    said.read_line(&mut String::new()).unwrap();
    let reader = FileStorage::open(disk.path()).unwrap();
    let locked = lock(&reader, Use::Read);
    drop(input);
    machine.wait().unwrap();
    assert!(refused(locked.unwrap_err()));
}

#[test]
fn target_on_a_device_is_the_device_itself() {
    let Some(disk) = Loop::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("disk");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    for path in [disk.path(), &link] {
        let target = Target::create(path).unwrap();
        let source = FileStorage::open(disk.path()).unwrap();
        assert_eq!(target.id(), Some(source.id()));
        let storage: Arc<dyn StorageMut> = target.storage();
        assert_eq!(storage.fixed_len(), Some(LEN as u64));
        storage.write_at(0, b"golden").unwrap();
        target.publish().unwrap();
        let mut bytes = [0; 6];
        source.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"golden");
    }
    assert!(link.is_symlink());
}

#[test]
fn device_that_takes_no_writes_is_refused_before_any() {
    let Some(device) = Loop::with(&["--read-only"]) else {
        return;
    };
    assert_eq!(FileStorage::open(device.path()).unwrap().len(), LEN as u64);
    for error in [
        FileStorage::edit(device.path()).unwrap_err(),
        Target::create(device.path()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(
            error.report().ends_with(": the device is read-only"),
            "{error:?}"
        );
    }
}
