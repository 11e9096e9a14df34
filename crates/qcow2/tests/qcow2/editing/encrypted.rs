//! Encrypted images that are changed, and passphrases that come and go.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use goldsmith_block::{
    Edit, Editor, ErrorKind, Format, HostRange, Options, Repair, Result, Storage, StorageMut,
    Zeroing, pass_on,
};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::{FileStorage, MemoryStorage};
use goldsmith_testkit::crash::CrashStorage;
use goldsmith_testkit::{image, pattern, qemu};

use super::{amend, resize, snapshot, write_over};
use crate::bench::{Bench, budget};
use crate::encryption::{SECRET, by_qemu, spec};

const OTHER: &str = "another word";

pub(super) fn editor(path: &Path, secret: &str) -> Result<Box<dyn Editor>> {
    let pairs = [("encrypt.key-secret", secret)];
    let options = Options::parse(QCOW2.open_options(), pairs)?;
    let storage = Arc::new(FileStorage::edit(path).unwrap());
    QCOW2.edit(storage, &budget(), &options)
}

fn edit(path: &Path, secret: &str, edit: &Edit) -> Result<()> {
    editor(path, secret)?.edit(edit)
}

/// Whether QEMU opens the image at `path` with `secret`, and what it reads then.
pub(super) fn qemu_reads(path: &Path, secret: &str) -> Option<Vec<u8>> {
    let object = format!("secret,id=s,data={secret}");
    let raw = path.with_extension("raw");
    let said = qemu::img(&[
        "convert",
        "--object",
        &object,
        "--image-opts",
        "-O",
        "raw",
        &spec(path),
        raw.to_str().unwrap(),
    ]);
    said.status.success().then(|| std::fs::read(raw).unwrap())
}

/// QEMU, which has to know the word, finds neither errors nor leaks.
pub(super) fn check(path: &Path, secret: &str) {
    let object = format!("secret,id=s,data={secret}");
    qemu::img_ok(&["check", "--object", &object, "--image-opts", &spec(path)]);
}

#[test]
fn encrypted_image_is_edited_as_any_other() {
    let disk = pattern::disk("4608:A 3584:- 64k:b 512:- 100k:C 1536:0 130k:- 20k:d");
    for format in ["luks,encrypt.iter-time=10", "aes"] {
        let bench = Bench::new();
        let path = by_qemu(&bench, &disk, &format!("encrypt.format={format}"));
        let mut expected = disk.bytes().to_vec();
        edit(&path, SECRET, &snapshot("one")).unwrap();
        // The last cluster has a tail to be cleared.
        for size in [disk.len() - 20 * 512, disk.len() + (1 << 20)] {
            edit(&path, SECRET, &resize(size)).unwrap();
            expected.resize(size as usize, 0);
        }
        let parts = [
            (0, 128 << 10, 5),
            (256 << 10, 320 << 10, 0),
            (1 << 20, (1 << 20) + 65536, 6),
        ];
        write_over(
            editor(&path, SECRET).unwrap(),
            expected.len() as u64,
            &parts,
        );
        for (start, end, byte) in parts {
            expected[start as usize..end as usize].fill(byte);
        }
        assert!(qemu_reads(&path, SECRET).unwrap() == expected, "{format}");
        check(&path, SECRET);
        edit(&path, SECRET, &Edit::ApplySnapshot(0)).unwrap();
        assert!(
            qemu_reads(&path, SECRET).unwrap() == disk.bytes(),
            "{format}"
        );
        check(&path, SECRET);
        // Without the word QEMU does not open it, so nothing is done that it would not do.
        let before = std::fs::read(&path).unwrap();
        for change in [
            snapshot("two"),
            Edit::ApplySnapshot(0),
            Edit::DeleteSnapshot(0),
            Edit::SetBacking(None),
            Edit::Empty,
            resize(256 << 10),
            resize(disk.len() + (1 << 20)),
            amend(&[("lazy_refcounts", "on")]),
            amend(&[("encrypt.state", "inactive"), ("encrypt.keyslot", "0")]),
        ] {
            let error = edit(&path, "", &change).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{format}: {change:?}");
            assert!(
                std::fs::read(&path).unwrap() == before,
                "{format}: {change:?}"
            );
        }
        edit(&path, "", &Edit::Repair(Repair::All)).unwrap();
        check(&path, SECRET);
    }
}

#[test]
fn passphrases_come_and_go() {
    let disk = pattern::disk("64k:b 100k:C 130k:- 20k:d");
    let bench = Bench::new();
    let path = by_qemu(&bench, &disk, "encrypt.format=luks,encrypt.iter-time=10");
    let add = [
        ("encrypt.state", "active"),
        ("encrypt.new-secret", OTHER),
        ("encrypt.iter-time", "10"),
    ];
    edit(&path, SECRET, &amend(&add)).unwrap();
    for word in [SECRET, OTHER] {
        assert!(qemu_reads(&path, word).unwrap() == disk.bytes());
    }
    check(&path, SECRET);
    let remove = [
        ("encrypt.state", "inactive"),
        ("encrypt.old-secret", SECRET),
    ];
    edit(&path, OTHER, &amend(&remove)).unwrap();
    assert_eq!(qemu_reads(&path, SECRET), None);
    assert!(qemu_reads(&path, OTHER).unwrap() == disk.bytes());
    let layer = editor(&path, OTHER).unwrap().layer();
    assert!(image::read(&*layer).unwrap() == disk.bytes());
    check(&path, OTHER);

    for (options, kind, rule) in [
        (
            vec![("encrypt.state", "inactive"), ("encrypt.old-secret", OTHER)],
            ErrorKind::Usage,
            "the disk would be lost",
        ),
        (
            vec![
                ("encrypt.state", "inactive"),
                ("encrypt.old-secret", SECRET),
            ],
            ErrorKind::Denied,
            "opens none",
        ),
        (
            vec![("encrypt.state", "inactive"), ("encrypt.keyslot", "9")],
            ErrorKind::Usage,
            "from 0 to 7",
        ),
        (
            vec![("encrypt.state", "inactive"), ("encrypt.keyslot", "5")],
            ErrorKind::Usage,
            "slot 5 is free",
        ),
        (
            vec![
                ("encrypt.state", "active"),
                ("encrypt.new-secret", "x"),
                ("encrypt.keyslot", "1"),
            ],
            ErrorKind::Usage,
            "taken",
        ),
    ] {
        let before = std::fs::read(&path).unwrap();
        let error = edit(&path, OTHER, &amend(&options)).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.report().contains(rule), "{}", error.report());
        assert!(std::fs::read(&path).unwrap() == before);
    }
    // QEMU's own words for the same, on what we left.
    let known = format!("secret,id=s,data={OTHER}");
    let new = "secret,id=n,data=a third word";
    let options = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10";
    qemu::img_ok(&[
        "amend",
        "--object",
        &known,
        "--object",
        new,
        "-o",
        options,
        "--image-opts",
        &spec(&path),
    ]);
    let layer = editor(&path, "a third word").unwrap().layer();
    assert!(image::read(&*layer).unwrap() == disk.bytes());
}

/// Who opened the image with the word that goes has its disk open still, but no longer a word for it.
#[test]
fn word_that_opened_the_image_can_be_revoked() {
    let disk = pattern::disk("64k:b 20k:d");
    let bench = Bench::new();
    let path = by_qemu(&bench, &disk, "encrypt.format=luks,encrypt.iter-time=10");
    let add = |word| {
        amend(&[
            ("encrypt.state", "active"),
            ("encrypt.new-secret", word),
            ("encrypt.iter-time", "10"),
        ])
    };
    let mut editor = editor(&path, SECRET).unwrap();
    editor.edit(&add(OTHER)).unwrap();
    let remove = [
        ("encrypt.state", "inactive"),
        ("encrypt.old-secret", SECRET),
    ];
    editor.edit(&amend(&remove)).unwrap();
    assert!(!editor.layer().info().locked);
    assert!(image::read(&*editor.layer()).unwrap() == disk.bytes());
    editor.edit(&snapshot("one")).unwrap();
    let error = editor.edit(&add("a third word")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(qemu_reads(&path, SECRET), None);
    assert!(qemu_reads(&path, OTHER).unwrap() == disk.bytes());
    check(&path, OTHER);

    // By its number, too: OTHER is in slot 1.
    let mut editor = self::editor(&path, OTHER).unwrap();
    editor.edit(&add(SECRET)).unwrap();
    let remove = [("encrypt.state", "inactive"), ("encrypt.keyslot", "1")];
    editor.edit(&amend(&remove)).unwrap();
    assert_eq!(qemu_reads(&path, OTHER), None);
    assert!(qemu_reads(&path, SECRET).unwrap() == disk.bytes());
}

/// A file that keeps what is given back, as its file system does.
#[derive(Debug)]
struct Grave {
    inner: MemoryStorage,
    /// Whether nothing was written since the last flush.
    flushed: AtomicBool,
    /// Places that were given back, and what they held.
    buried: Mutex<Vec<(HostRange, Vec<u8>)>>,
}

impl Grave {
    fn bury(&self, range: HostRange) {
        assert!(self.flushed.load(Ordering::Relaxed), "{range:?}");
        let mut bytes = vec![0; range.len as usize];
        self.inner.read_at(range.offset, &mut bytes).unwrap();
        self.buried.lock().unwrap().push((range, bytes));
    }
}

impl Storage for Grave {
    pass_on!(inner: name, id, len, read_at, span_at);
}

impl StorageMut for Grave {
    pass_on!(inner: fixed_len, is_blank);

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.flushed.store(false, Ordering::Relaxed);
        self.inner.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len < self.inner.len() {
            self.bury(HostRange::new(len, self.inner.len() - len));
        }
        self.inner.set_len(len)
    }

    fn zero(&self, range: HostRange, zeroing: Zeroing) -> Result<()> {
        self.bury(range);
        self.inner.zero(range, zeroing)
    }

    fn flush(&self) -> Result<()> {
        self.flushed.store(true, Ordering::Relaxed);
        self.inner.flush()
    }
}

fn luks_headers(bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, window) in bytes.windows(6).enumerate() {
        if window == b"LUKS\xba\xbe" {
            found.push(at);
        }
    }
    found
}

/// What a file system takes back it does not wipe; with the old header a word that was revoked would
/// open the disk still.
#[test]
fn old_luks_header_is_overwritten_before_its_place_is_given_back() {
    let disk = pattern::disk("64k:b 20k:d");
    let bench = Bench::new();
    let path = by_qemu(&bench, &disk, "encrypt.format=luks,encrypt.iter-time=10");
    let bytes = std::fs::read(&path).unwrap();
    let inner = MemoryStorage::holding("image", bytes);
    let grave = Arc::new(Grave {
        inner,
        flushed: AtomicBool::new(false),
        buried: Mutex::default(),
    });
    let options = Options::parse(QCOW2.open_options(), [("encrypt.key-secret", SECRET)]);
    let mut editor = QCOW2
        .edit(Arc::clone(&grave) as _, &budget(), &options.unwrap())
        .unwrap();
    let add = [
        ("encrypt.state", "active"),
        ("encrypt.new-secret", OTHER),
        ("encrypt.iter-time", "10"),
    ];
    let remove = [("encrypt.state", "inactive"), ("encrypt.old-secret", OTHER)];
    // The first header stands in the middle of the file, the second one at its end.
    for options in [&add[..], &remove] {
        let before = grave.inner.to_vec();
        let [old] = luks_headers(&before)[..] else {
            panic!("one header");
        };
        // Eight slots of 4000 keys of 64 bytes, each at a multiple of 4096.
        let old = HostRange::new(old as u64, 4096 + 8 * 258_048);
        editor.edit(&amend(options)).unwrap();
        let mut left = old.len;
        for (range, bytes) in grave.buried.lock().unwrap().drain(..) {
            assert!(luks_headers(&bytes).is_empty());
            let start = range.offset.max(old.offset);
            let end = range.end().min(old.end());
            if start >= end {
                continue;
            }
            let part = (start - range.offset) as usize..(end - range.offset) as usize;
            assert!(bytes[part].iter().all(|byte| *byte == 0), "{range:?}");
            left -= end - start;
        }
        assert_eq!(left, 0);
        assert_eq!(luks_headers(&grave.inner.to_vec()).len(), 1);
    }
    std::fs::write(&path, grave.inner.to_vec()).unwrap();
    assert_eq!(qemu_reads(&path, OTHER), None);
    assert!(qemu_reads(&path, SECRET).unwrap() == disk.bytes());
    check(&path, SECRET);
}

/// What somebody did not finish is finished by whoever may change the image.
#[test]
fn encrypted_image_that_was_not_closed_is_left_alone_without_its_word() {
    let bench = Bench::new();
    let disk = pattern::disk("64k:b 20k:d");
    let format = "encrypt.format=luks,encrypt.iter-time=10,lazy_refcounts=on";
    let path = by_qemu(&bench, &disk, format);
    let mut image = std::fs::read(&path).unwrap();
    image[79] |= 1;
    // The refcount of the last cluster, which is counted anew.
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let counts = number(number(48));
    let last = image.len() / 65536 - 1;
    image[counts + 2 * last..][..2].fill(0);
    std::fs::write(&path, &image).unwrap();
    let denied = |outcome: Result<()>| {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Denied);
        assert!(std::fs::read(&path).unwrap() == image);
    };
    denied(editor(&path, "").unwrap().prepare());
    denied(editor(&path, "").unwrap().into_sink(disk.len()).map(drop));
    denied(edit(&path, "", &snapshot("one")));
    edit(&path, SECRET, &snapshot("one")).unwrap();
    check(&path, SECRET);
}

/// Wherever it is cut, the old word opens the disk, or the new one after the old one went.
#[test]
fn passphrases_survive_every_cut() {
    let disk = pattern::disk("64k:b 20k:d");
    let bench = Bench::new();
    let path = by_qemu(&bench, &disk, "encrypt.format=luks,encrypt.iter-time=10");
    let add = [
        ("encrypt.state", "active"),
        ("encrypt.new-secret", OTHER),
        ("encrypt.iter-time", "10"),
    ];
    let with_both = {
        edit(&path, SECRET, &amend(&add)).unwrap();
        std::fs::read(&path).unwrap()
    };
    let remove = [
        ("encrypt.state", "inactive"),
        ("encrypt.old-secret", SECRET),
    ];
    let crash = Arc::new(CrashStorage::new("image", with_both));
    let open = |storage: Arc<dyn Storage>, word: &str| {
        let options = Options::parse(QCOW2.open_options(), [("encrypt.key-secret", word)]);
        QCOW2.open_with(storage, &budget(), &options.unwrap())
    };
    let options = Options::parse(QCOW2.open_options(), [("encrypt.key-secret", SECRET)]);
    let mut editor = QCOW2
        .edit(Arc::clone(&crash) as _, &budget(), &options.unwrap())
        .unwrap();
    editor.edit(&amend(&remove)).unwrap();
    // Whoever is told that a word is revoked can rely on it.
    assert!(open(crash.durable(), SECRET).is_err());
    crash.each_state(|cut, state| {
        let layer = open(state, OTHER);
        let layer = layer.unwrap_or_else(|error| panic!("{cut}: {}", error.report()));
        assert!(image::read(&*layer).unwrap() == disk.bytes(), "{cut}");
    });
}
