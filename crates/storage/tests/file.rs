//! Files on the file systems at hand, told what to do and then looked at from outside.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldsmith_block::{ErrorKind, HostRange, Storage, StorageMut, Zeroing};
use goldsmith_storage::{FileStorage, MemoryStorage, Rehearsal, Target};
use goldsmith_testkit::storage_conformance;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Where the tests put their files: the usual place, and memory where the system has it.
fn places() -> Vec<PathBuf> {
    let memory = PathBuf::from("/dev/shm");
    let mut places = vec![std::env::temp_dir()];
    places.extend(memory.is_dir().then_some(memory));
    places
}

fn directories() -> Vec<TempDir> {
    let places = places();
    places
        .iter()
        .map(|place| tempfile::tempdir_in(place).unwrap())
        .collect()
}

fn blank(place: &Path) -> Arc<dyn StorageMut> {
    let directory = tempfile::tempdir_in(place).unwrap();
    let target = Target::create(directory.path().join("disk")).unwrap();
    target.storage()
}

storage_conformance!(|| blank(&places()[0]), file);
storage_conformance!(|| blank(&places()[places().len() - 1]), file_in_memory);
storage_conformance!(|| Arc::new(MemoryStorage::new("disk")), memory);
storage_conformance!(
    || Arc::new(Rehearsal::new(Arc::new(MemoryStorage::new("disk")))),
    rehearsal
);

/// Data at 0..64k and at 1M..1M+64k of a file of `len` bytes; the rest was never written.
fn sparse(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(&[1; 65536], 0).unwrap();
    file.write_all_at(&[2; 65536], MIB).unwrap();
    file.sync_all().unwrap();
}

fn spans(storage: &dyn Storage) -> Vec<(u64, bool)> {
    let (mut at, mut spans) = (0, vec![]);
    while at < storage.len() {
        let span = storage.span_at(at, storage.len()).unwrap();
        spans.push((span.len, span.hole));
        at += span.len;
    }
    spans
}

fn report(result: goldsmith_block::Result<FileStorage>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.report())
}

#[test]
fn holes_are_found_where_they_are() {
    for directory in directories() {
        let path = directory.path().join("disk");
        sparse(&path, 3 * MIB);
        let storage = FileStorage::open(&path).unwrap();
        let gap = MIB - 65536;
        let expected = [
            (65536, false),
            (gap, true),
            (65536, false),
            (MIB + gap, true),
        ];
        assert_eq!(spans(&storage), expected, "{path:?}");
        let inside = storage.span_at(70_000, 80_000).unwrap();
        assert_eq!((inside.len, inside.hole), (10_000, true));
    }
}

#[test]
fn hole_of_many_tebibytes_is_one_step() {
    for directory in directories() {
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(7 << 40).unwrap();
        let storage = FileStorage::open(&path).unwrap();
        assert_eq!(spans(&storage), [(7 << 40, true)]);
    }
}

#[test]
fn empty_file_is_a_storage() {
    let directory = &directories()[0];
    let path = directory.path().join("disk");
    File::create(&path).unwrap();
    let storage = FileStorage::open(&path).unwrap();
    assert!(storage.is_empty());
    storage.read_at(0, &mut []).unwrap();
    assert!(storage.read_at(0, &mut [0]).is_err());
}

/// A hole would be zeros that nobody wrote: the worst answer there is.
#[test]
fn file_that_was_cut_since_it_was_opened_is_an_error_and_no_hole() {
    for directory in directories() {
        let path = directory.path().join("disk");
        sparse(&path, 3 * MIB);
        let storage = FileStorage::open(&path).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MIB)
            .unwrap();

        assert_eq!(storage.len(), 3 * MIB);
        let error = storage.read_at(MIB - 1, &mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let text = format!(
            "{}: bytes 0xfffff..0x100001 are past the end of the file (1048576 bytes)",
            path.display()
        );
        assert_eq!(error.report(), text);
        for offset in [65536, MIB, 2 * MIB] {
            let error = storage.span_at(offset, 3 * MIB).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{offset}");
        }
        let still = storage.span_at(65536, MIB).unwrap();
        assert!(still.hole);
    }
}

#[test]
fn bytes_that_others_add_are_not_seen() {
    let directory = &directories()[0];
    let path = directory.path().join("disk");
    fs::write(&path, [1; 100]).unwrap();
    let storage = FileStorage::open(&path).unwrap();
    fs::write(&path, [1; 200]).unwrap();
    assert_eq!(storage.len(), 100);
    assert!(storage.read_at(99, &mut [0; 2]).is_err());
}

#[test]
fn punched_space_is_given_back_and_kept_space_is_not() {
    for directory in directories() {
        let path = directory.path().join("disk");
        for (zeroing, least, most) in [
            (Zeroing::Punch, 0, 128 << 10),
            (Zeroing::Keep, MIB, 2 * MIB),
        ] {
            fs::write(&path, vec![7; MIB as usize]).unwrap();
            let storage = FileStorage::edit(&path).unwrap();
            let range = HostRange::new(100, MIB - 200);
            storage.zero(range, zeroing).unwrap();
            storage.flush().unwrap();
            let space = fs::metadata(&path).unwrap().blocks() * 512;
            assert!(
                (least..=most).contains(&space),
                "{zeroing:?} of {path:?} leaves {space} bytes"
            );
            let bytes = fs::read(&path).unwrap();
            let (head, tail) = (&bytes[..100], &bytes[bytes.len() - 100..]);
            assert!(head.iter().chain(tail).all(|byte| *byte == 7));
            assert!(bytes[100..bytes.len() - 100].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn space_kept_for_a_hole_is_taken_at_once() {
    for directory in directories() {
        let path = directory.path().join("disk");
        File::create(&path).unwrap();
        let storage = FileStorage::edit(&path).unwrap();
        storage.set_len(MIB + 5000).unwrap();
        let whole = HostRange::new(0, MIB + 5000);
        storage.zero(whole, Zeroing::Keep).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= MIB + 5000, "{path:?}");
        assert_eq!(metadata.len(), MIB + 5000);
    }
}

#[test]
fn missing_file_is_reported_in_the_words_of_the_system() {
    let (kind, text) = report(FileStorage::open("no/such/disk.raw"));
    assert_eq!(kind, ErrorKind::Io);
    assert_eq!(
        text,
        "no/such/disk.raw: cannot open: No such file or directory (os error 2)"
    );
}

#[test]
fn what_holds_no_bytes_is_refused_without_waiting() {
    let directory = &directories()[0];
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, what) in [
        (directory.path(), "a directory"),
        (&pipe, "a pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a character device"),
    ] {
        let text = format!(
            "{}: is {what}; only files and block devices hold images",
            path.display()
        );
        let expected = (ErrorKind::Usage, text);
        assert_eq!(report(FileStorage::open(path)), expected);
        assert_eq!(report(FileStorage::edit(path)), expected);
    }
}

#[test]
fn every_name_of_a_file_gives_one_identity() {
    let directory = &directories()[0];
    let at = |name| directory.path().join(name);
    fs::write(at("disk"), b"gold").unwrap();
    fs::hard_link(at("disk"), at("hard")).unwrap();
    std::os::unix::fs::symlink("disk", at("soft")).unwrap();
    fs::copy(at("disk"), at("copy")).unwrap();
    let id = |name| FileStorage::open(at(name)).unwrap().id();
    assert_eq!(id("disk"), id("hard"));
    assert_eq!(id("disk"), id("soft"));
    assert_ne!(id("disk"), id("copy"));
}

#[test]
fn file_opened_for_reading_is_not_written() {
    let directory = &directories()[0];
    let path = directory.path().join("disk");
    fs::write(&path, [1; 8192]).unwrap();
    let storage = FileStorage::open(&path).unwrap();
    let error = storage.write_at(4096, b"gold").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = "cannot write 4 bytes at offset 0x1000: Bad file descriptor (os error 9)";
    assert_eq!(error.report(), format!("{}: {text}", path.display()));
    assert_eq!(fs::read(&path).unwrap(), [1; 8192]);
}

#[test]
fn offsets_beyond_all_files_are_errors() {
    let directory = &directories()[0];
    let path = directory.path().join("disk");
    fs::write(&path, [1; 100]).unwrap();
    let storage = FileStorage::edit(&path).unwrap();
    for offset in [1 << 63, u64::MAX - 1, u64::MAX] {
        assert!(storage.read_at(offset, &mut [0; 4]).is_err(), "{offset:#x}");
        assert!(storage.write_at(offset, b"gold").is_err(), "{offset:#x}");
        assert!(storage.set_len(offset).is_err(), "{offset:#x}");
    }
    assert_eq!(storage.len(), 100);
    let range = HostRange::new(90, 20);
    assert!(storage.zero(range, Zeroing::Punch).is_err());
}

#[test]
fn edited_file_is_not_blank_and_keeps_what_it_held() {
    let directory = &directories()[0];
    let path = directory.path().join("disk");
    fs::write(&path, b"gold and silver").unwrap();
    let storage = FileStorage::edit(&path).unwrap();
    assert!(!storage.is_blank());
    assert_eq!(storage.fixed_len(), None);
    storage.write_at(0, b"lead").unwrap();
    storage.set_len(8).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"lead and");
}

#[test]
fn scratch_file_is_blank_and_nowhere_to_be_found() {
    let scratch = FileStorage::scratch("what it is for").unwrap();
    let place = goldsmith_storage::scratch_directory();
    let name = format!("a temporary file in {}", place.display());
    assert_eq!((scratch.name(), scratch.len()), (&*name, 0));
    assert!(scratch.is_blank() && scratch.fixed_len().is_none());
    scratch.write_at(5, b"gold").unwrap();
    scratch.flush().unwrap();
    let mut bytes = [1; 9];
    scratch.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0gold");
    assert_eq!(scratch.file().unwrap().metadata().unwrap().nlink(), 0);
}
