//! Publishing, as those see it who look at the directory meanwhile.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use goldsmith_block::{ErrorKind, Result, Storage};
use goldsmith_storage::{Cache, FileStorage, Target};
#[cfg(target_os = "linux")]
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn publish(path: &Path, bytes: &[u8]) {
    let target = Target::create(path).unwrap();
    target.storage().write_at(0, bytes).unwrap();
    target.publish().unwrap();
}

fn refused(path: &Path) -> (ErrorKind, String) {
    let error = Target::create(path).unwrap_err();
    assert_eq!(error.path(), Some(&*path.to_string_lossy()));
    (error.kind(), error.report())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[test]
fn new_file_appears_whole_and_with_the_usual_mode() {
    let directory = directory();
    let path = directory.path().join("disk.raw");
    let target = Target::create(&path).unwrap();
    assert_eq!(target.id(), None);
    assert_eq!(target.storage().name(), path.to_str().unwrap());
    assert!(target.storage().is_blank());
    target.storage().write_at(0, b"golden").unwrap();
    assert!(!path.exists());
    target.publish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"golden");
    assert_eq!(names(directory.path()), ["disk.raw"]);

    let usual = directory.path().join("usual");
    File::create(&usual).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode();
    assert_eq!(mode(&path), mode(&usual));
}

#[test]
fn dropped_target_leaves_what_stood_there() {
    let directory = directory();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    fs::write(&old, b"silver").unwrap();
    for path in [&old, &new] {
        let target = Target::create(path).unwrap();
        target.storage().write_at(0, b"golden").unwrap();
        drop(target);
    }
    assert_eq!(names(directory.path()), ["old"]);
    assert_eq!(fs::read(&old).unwrap(), b"silver");
}

/// The file has no name yet, so there is nothing for anybody to clean up.
#[test]
fn killed_process_leaves_nothing() {
    const CHILD: &str = "GOLDSMITH_TEST_DIRECTORY";
    if let Some(directory) = std::env::var_os(CHILD) {
        let target = Target::create(Path::new(&directory).join("disk")).unwrap();
        target.storage().write_at(0, &[1; 100_000]).unwrap();
        std::process::abort();
    }
    // Memory keeps files without a name wherever it keeps files; other places may not.
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return;
    }
    let directory = tempfile::tempdir_in(memory).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_process_leaves_nothing"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    assert!(!child.status.success(), "it was to be killed");
    assert!(names(directory.path()).is_empty());
}

#[test]
fn readers_see_the_old_file_or_the_whole_new_one() {
    let directory = directory();
    let path = directory.path().join("disk");
    let content = |letter: u8| vec![letter; 50_000];
    fs::write(&path, content(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let seen = fs::read(&path).unwrap();
                assert_eq!(seen, content(seen[0]));
            }
        });
        (1..50).for_each(|letter| publish(&path, &content(letter)));
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read(&path).unwrap(), content(49));
}

#[test]
fn reader_of_the_old_file_keeps_it() {
    let directory = directory();
    let path = directory.path().join("disk");
    fs::write(&path, b"silver").unwrap();
    let reader = FileStorage::open(&path).unwrap();
    publish(&path, b"golden");
    let mut bytes = [0; 6];
    reader.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"silver");
    assert_ne!(FileStorage::open(&path).unwrap().id(), reader.id());
}

#[test]
fn replaced_file_hands_down_mode_and_owner() {
    let directory = directory();
    let path = directory.path().join("disk");
    fs::write(&path, b"silver").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&path, Some(12345), Some(23456)).unwrap();
    }
    let old = fs::metadata(&path).unwrap();
    publish(&path, b"golden");
    let new = fs::metadata(&path).unwrap();
    assert_ne!(new.ino(), old.ino());
    let facts = |m: &fs::Metadata| (m.mode() & 0o7777, m.uid(), m.gid());
    assert_eq!(facts(&new), facts(&old));
    assert_eq!(new.mode() & 0o777, 0o640);
}

/// Of which no system that lacks SELinux makes anything, but which each keeps for root.
#[test]
#[cfg(target_os = "linux")]
fn replaced_file_hands_down_its_label() {
    const LABEL: &str = "security.selinux";
    if !is_root() {
        return;
    }
    let directory = directory();
    let path = directory.path().join("disk");
    fs::write(&path, b"silver").unwrap();
    let label = b"system_u:object_r:svirt_image_t:s0\0";
    setxattr(&path, LABEL, label, XattrFlags::empty()).unwrap();
    publish(&path, b"golden");
    let mut found = [0; 100];
    let len = getxattr(&path, LABEL, &mut found[..]).unwrap();
    assert_eq!(found[..len], label[..]);
}

/// As the kernel keeps it: version 2, then entries of a tag, rights and an id.
#[cfg(target_os = "linux")]
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// With a list, the mode shows its mask where the group's rights stand otherwise.
#[test]
#[cfg(target_os = "linux")]
fn replaced_file_hands_down_its_access_control_list() {
    const ACCESS: &str = "system.posix_acl_access";
    const NOBODY: u32 = u32::MAX;
    let (owner, user, group, mask, others) = (1, 2, 4, 0x10, 0x20);
    let listed = list(&[
        (owner, 6, NOBODY),
        (user, 6, 12345),
        (group, 0, NOBODY),
        (mask, 6, NOBODY),
        (others, 0, NOBODY),
    ]);
    let directory = directory();
    let path = directory.path().join("disk");
    fs::write(&path, b"silver").unwrap();
    setxattr(&path, ACCESS, &listed, XattrFlags::empty()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&path), 0o660);
    publish(&path, b"golden");
    let mut found = [0; 100];
    let len = getxattr(&path, ACCESS, &mut found[..]).unwrap();
    assert_eq!(found[..len], listed);
    assert_eq!(mode(&path), 0o660);

    // What a directory gives to its new files is not for one that is replaced.
    setxattr(
        directory.path(),
        "system.posix_acl_default",
        &listed,
        XattrFlags::empty(),
    )
    .unwrap();
    removexattr(&path, ACCESS).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    publish(&path, b"bronze");
    getxattr(&path, ACCESS, &mut found[..]).unwrap_err();
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn symbolic_link_stays_and_its_file_is_replaced() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("images")).unwrap();
    fs::write(at("images/disk"), b"silver").unwrap();
    symlink("images/disk", at("relative")).unwrap();
    symlink(at("relative"), at("absolute")).unwrap();
    symlink("images/fresh", at("dangling")).unwrap();

    for link in ["relative", "absolute"] {
        let target = Target::create(at(link)).unwrap();
        let real = FileStorage::open(at("images/disk")).unwrap();
        assert_eq!(target.id(), Some(real.id()));
        drop(target);
        publish(&at(link), link.as_bytes());
        assert!(at(link).is_symlink());
        assert_eq!(fs::read(at("images/disk")).unwrap(), link.as_bytes());
    }
    publish(&at("dangling"), b"golden");
    assert!(at("dangling").is_symlink());
    assert_eq!(fs::read(at("images/fresh")).unwrap(), b"golden");
    assert_eq!(names(&at("images")), ["disk", "fresh"]);
}

#[test]
fn symbolic_link_to_itself_is_an_error() {
    let directory = directory();
    let path = directory.path().join("disk");
    symlink("disk", &path).unwrap();
    let (kind, text) = refused(&path);
    assert_eq!(kind, ErrorKind::Io);
    assert!(text.ends_with("it is a symbolic link to itself"), "{text}");
}

#[test]
fn what_cannot_be_an_image_is_refused() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status();
    assert!(made.unwrap().success());
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (path, what) in [
        (directory.path().to_owned(), "a directory"),
        (at("pipe"), "a pipe"),
        (at("socket"), "a socket"),
        (PathBuf::from("/dev/null"), "a character device"),
        (PathBuf::from(".."), "a directory"),
        (at("missing/"), "no name of a file"),
        (PathBuf::from(""), "no name of a file"),
    ] {
        let text = format!(
            "{}: is {what}; only files and block devices hold images",
            path.display()
        );
        let (kind, found) = refused(&path);
        assert_eq!(kind, ErrorKind::Usage);
        assert!(text.ends_with(found.trim_start_matches(": ")), "{found}");
    }
}

#[test]
fn directory_that_takes_no_files_is_reported_under_the_name_of_the_target() {
    let directory = directory();
    let missing = directory.path().join("missing/disk.raw");
    let text = "cannot create a file in its directory: No such file or directory (os error 2)";
    let expected = format!("{}: {text}", missing.display());
    assert_eq!(refused(&missing), (ErrorKind::Io, expected));

    // Nobody, not even root, makes files there.
    let (kind, text) = refused(Path::new("/proc/disk.raw"));
    assert_eq!(kind, ErrorKind::Io);
    assert!(
        text.starts_with("/proc/disk.raw: cannot create a file in its directory: "),
        "{text}"
    );
    assert!(!text.contains(".goldsmith-"), "{text}");
}

#[test]
fn directory_that_vanishes_fails_the_publishing() {
    let directory = directory();
    let parent = directory.path().join("images");
    fs::create_dir(&parent).unwrap();
    let path = parent.join("disk");
    let target = Target::create(&path).unwrap();
    fs::remove_dir_all(&parent).unwrap();
    let error = target.publish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.path(), path.to_str());
    assert!(names(directory.path()).is_empty());
}

#[test]
fn name_that_became_a_directory_fails_the_publishing_and_leaves_nothing() {
    let directory = directory();
    let path = directory.path().join("disk");
    let target = Target::create(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = target.publish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(names(directory.path()), ["disk"]);
}

/// What another process has put there meanwhile stays: it may be a running machine's disk by now.
#[test]
fn name_that_another_file_took_meanwhile_is_left_to_it() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let text = "another file has taken its name since this one was begun";
    for (name, old) in [("new", None), ("old", Some("silver"))] {
        for is_resumable in [false, true] {
            let path = at(name);
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            let target = match is_resumable {
                true => resumable(&path).unwrap(),
                false => Target::create(&path).unwrap(),
            };
            target.storage().write_at(0, b"golden").unwrap();
            publish(&path, b"only copy");
            let error = target.publish().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert_eq!(error.report(), format!("{}: {text}", path.display()));
            assert_eq!(fs::read(&path).unwrap(), b"only copy");
            assert_eq!(names(directory.path()), [name]);
            fs::remove_file(&path).unwrap();
        }
    }
    // What is gone is in nobody's way.
    fs::write(at("old"), b"silver").unwrap();
    let target = Target::create(at("old")).unwrap();
    fs::remove_file(at("old")).unwrap();
    target.publish().unwrap();
    assert_eq!(names(directory.path()), ["old"]);
}

#[test]
fn any_name_will_do() {
    let directory = directory();
    for name in [
        OsStr::from_bytes(b"d\xffsk"),
        OsStr::new(&"n".repeat(255)),
        OsStr::new(".hidden"),
        OsStr::new("with space\nand line"),
    ] {
        let path = directory.path().join(name);
        publish(&path, b"golden");
        publish(&path, b"golder");
        assert_eq!(fs::read(&path).unwrap(), b"golder");
    }
    assert_eq!(names(directory.path()).len(), 4);
}

fn resumable(path: &Path) -> Result<Target> {
    Target::resumable(path, Cache::default(), false)
}

#[test]
fn resumable_target_is_found_as_it_was_left() {
    let directory = directory();
    let path = directory.path().join("disk");
    let mut target = resumable(&path).unwrap();
    let id = target.storage().id();
    target.storage().write_at(0, b"gol").unwrap();
    target.keep();
    let busy = resumable(&path).unwrap_err();
    assert_eq!(busy.path(), path.to_str());
    let report = busy.report();
    assert!(
        report.ends_with("is another process using the image?"),
        "{report}"
    );
    drop(target);
    assert_eq!(names(directory.path()), [".disk.goldsmith-partial"]);

    let target = resumable(&path).unwrap();
    assert_eq!((target.storage().id(), target.storage().len()), (id, 3));
    assert!(target.storage().is_blank());
    target.storage().write_at(3, b"den").unwrap();
    target.publish().unwrap();
    assert_eq!(names(directory.path()), ["disk"]);
    assert_eq!(fs::read(&path).unwrap(), b"golden");
}

#[test]
fn resumable_target_that_nobody_keeps_goes_if_it_was_empty() {
    let directory = directory();
    let path = directory.path().join("disk");
    let target = resumable(&path).unwrap();
    target.storage().write_at(0, b"gol").unwrap();
    drop(target);
    assert!(names(directory.path()).is_empty());
    let partial = directory.path().join(".disk.goldsmith-partial");
    fs::write(&partial, b"gol").unwrap();
    drop(resumable(&path).unwrap());
    assert_eq!(names(directory.path()), [".disk.goldsmith-partial"]);
    // Whoever can make links here must not have us write elsewhere.
    fs::rename(&partial, directory.path().join("other")).unwrap();
    symlink(directory.path().join("other"), &partial).unwrap();
    resumable(&path).unwrap_err();
    assert_eq!(fs::read(directory.path().join("other")).unwrap(), b"gol");
}

/// A link below /proc says in words what stands for something else, which may be nowhere.
#[test]
fn what_a_process_has_open_is_no_target() {
    let directory = directory();
    let path = directory.path().join("disk");
    fs::write(&path, "silver").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    for gone in [false, true] {
        if gone {
            fs::remove_file(&path).unwrap();
        }
        for form in ["/dev/fd", "/proc/self/fd"] {
            let open = format!("{form}/{}", file.as_raw_fd());
            let error = Target::create(&open).unwrap_err();
            assert_eq!(
                (error.kind(), error.path()),
                (ErrorKind::Usage, Some(&*open))
            );
        }
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn fresh_target_is_another_file_than_an_empty_one_that_was_left() {
    let directory = directory();
    let path = directory.path().join("disk");
    let partial = directory.path().join(".disk.goldsmith-partial");
    let fresh = || Target::resumable(&path, Cache::default(), true);
    // As long as it is open, no other file has its number.
    let left = fs::File::create(&partial).unwrap();
    let id = |file: &fs::File| file.metadata().unwrap().ino();
    let target = fresh().unwrap();
    assert_ne!(id(target.storage().file().unwrap()), id(&left));
    // Not while somebody is at work on it, nor what holds something.
    fresh().unwrap_err();
    drop(target);
    fs::write(&partial, "gol").unwrap();
    assert_eq!(fresh().unwrap().storage().len(), 3);
}
