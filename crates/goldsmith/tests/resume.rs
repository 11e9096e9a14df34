//! A conversion that was cut off is gone on with, or refused if it has become another one.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use goldsmith::{Algorithm, Bitmaps, Cache, Cancel, Convert, Crc32, ErrorKind, Opener, Progress};
use goldsmith_testkit::mount;
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert};

/// 12 MiB of data with a hole.
const PICTURE: &str = "4M:A 2M:- 5M:b 1M:0 3M:C";

/// A folder with a source and the beginning of a conversion of it to `format`.
struct Begun {
    folder: Folder,
    format: &'static str,
}

impl Begun {
    fn new(format: &'static str) -> Self {
        let folder = Folder::new();
        folder.write("source", &disk(PICTURE));
        let begun = Self { folder, format };
        begun.cut(begun.conversion());
        begun
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// The conversion with its journal.
    fn conversion<'a>(&self) -> Convert<'a> {
        let (source, target) = (self.path("source"), self.path("target"));
        convert((&source, "raw"), (&target, self.format))
            .resume(self.path("journal"))
            .milestone(1 << 20)
            .threads(NonZeroUsize::MIN)
    }

    /// Stops `conversion` after 6 MiB of the disk.
    fn cut(&self, conversion: Convert<'_>) {
        let cancel = Cancel::new();
        let stop = |progress: Progress| {
            if progress.done >= 6 << 20 {
                cancel.cancel();
            }
        };
        let error = conversion
            .progress(&stop)
            .cancel(&cancel)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", error.report());
        let names = [".target.goldsmith-partial", "journal", "source"];
        assert_eq!(self.folder.names(), names);
    }

    /// What `end` does to the end of the conversion, as if it had been cut off before the journal went.
    fn ended<T>(&self, end: impl FnOnce() -> T) -> T {
        let (journal, kept) = (self.path("journal"), self.path("kept"));
        std::fs::hard_link(&journal, &kept).unwrap();
        let ended = end();
        std::fs::rename(&kept, &journal).unwrap();
        ended
    }

    /// Fails as `conversion` does, and has changed nothing.
    fn refused(&self, conversion: Convert<'_>) -> String {
        let files = [".target.goldsmith-partial", "journal"];
        let before = files.map(|name| std::fs::read(self.path(name)).unwrap());
        let error = conversion.run().unwrap_err();
        let after = files.map(|name| std::fs::read(self.path(name)).unwrap());
        assert!(before == after, "{}", error.report());
        assert!(!self.path("target").exists());
        error.report()
    }
}

/// What the target is without any of this.
fn whole(source: &Path, format: &str) -> Vec<u8> {
    let folder = Folder::new();
    let target = folder.path("target");
    convert((source, "raw"), (&target, format)).run().unwrap();
    std::fs::read(target).unwrap()
}

#[test]
fn rest_of_a_conversion_is_done_without_the_start() {
    for format in ["raw", "qcow2", "vpc"] {
        let begun = Begun::new(format);
        let first = AtomicU64::new(u64::MAX);
        let look = |progress: Progress| {
            first.fetch_min(progress.done, Ordering::Relaxed);
        };
        let threads = NonZeroUsize::new(3).unwrap();
        let done = begun
            .conversion()
            .threads(threads)
            .progress(&look)
            .run()
            .unwrap();
        let first = first.load(Ordering::Relaxed);
        assert!(first >= 4 << 20, "{format}: it began at {first}");
        assert!(
            done.data <= (15 << 20) - first,
            "{format}: {} bytes were read",
            done.data
        );
        assert_eq!(done.virtual_size, 15 << 20);
        assert_eq!(begun.folder.names(), ["source", "target"]);
        let target = std::fs::read(begun.path("target")).unwrap();
        assert_eq!(done.file_len, target.len() as u64);
        assert!(target == whole(&begun.path("source"), format), "{format}");
    }
}

/// A time and an identity that nobody gave were chosen when the work began.
#[test]
fn identity_and_time_are_those_of_the_beginning() {
    let folder = Folder::new();
    folder.write("source", &disk(PICTURE));
    let (source, target) = (folder.path("source"), folder.path("target"));
    let begin = || {
        Convert::new(&source, &target)
            .source_format("raw")
            .target_format("vpc")
            .resume(folder.path("journal"))
            .milestone(1 << 20)
    };
    let cancel = Cancel::new();
    cancel.cancel();
    begin().cancel(&cancel).run().unwrap_err();
    let journal = std::fs::read_to_string(folder.path("journal")).unwrap();
    begin().run().unwrap();
    let line = |name: &str| {
        let line = journal
            .lines()
            .find_map(|line| line[9..].strip_prefix(name));
        line.unwrap().to_owned()
    };
    let bytes = std::fs::read(target).unwrap();
    let footer = &bytes[..512];
    assert_eq!(
        goldsmith::Uuid::from_slice(&footer[68..84])
            .unwrap()
            .to_string(),
        line("uuid ")
    );
    let seconds = u32::from_be_bytes(footer[24..28].try_into().unwrap());
    assert_eq!(
        (u64::from(seconds) + 946_684_800).to_string(),
        line("timestamp ")
    );
}

#[test]
fn another_source_is_refused() {
    let begun = Begun::new("qcow2");
    let source = begun.path("source");
    let refused = |what: &str| {
        let report = begun.refused(begun.conversion());
        let journal = begun.folder.text("journal");
        assert!(report.starts_with(&journal), "{what}: {report}");
        assert!(
            report.contains("the journal is of another conversion"),
            "{what}: {report}"
        );
    };
    let content = std::fs::read(&source).unwrap();
    let modified = source.metadata().unwrap().modified().unwrap();
    let put_back = |content: &[u8], modified: SystemTime| {
        std::fs::write(&source, content).unwrap();
        let file = std::fs::File::options().write(true).open(&source).unwrap();
        file.set_modified(modified).unwrap();
    };
    put_back(&content, modified + Duration::from_nanos(1000));
    refused("a later time");
    let mut other = content.clone();
    other[5] ^= 1;
    put_back(&other, modified);
    refused("another byte at the start");
    other = content.clone();
    other[3 << 20] ^= 1;
    put_back(&other, modified);
    refused("another byte in what is done");
    put_back(&content[..content.len() - 512], modified);
    refused("another length");
    std::fs::rename(&source, begun.path("old")).unwrap();
    put_back(&content, modified);
    refused("another file");
}

#[test]
fn other_options_are_refused() {
    let begun = Begun::new("qcow2");
    let (source, target) = (begun.path("source"), begun.path("target"));
    let base = || begun.conversion();
    for (conversion, then) in [
        (base().option("cluster_size", "4k"), "options []"),
        (base().compress(true), "compress false"),
        (base().sparse(0), "sparse 4096"),
        (base().share(false), "share true"),
        (base().target_format("raw"), "format qcow2"),
        (base().timestamp(5), "created Some(1000000000)"),
        (base().uuid_from_name(), "identity Given("),
        (base().source_format("qcow2"), ""),
    ] {
        let report = begun.refused(conversion);
        assert!(report.contains(then), "{then}: {report}");
    }
    let elsewhere = begun.path("elsewhere");
    let other = convert((&source, "raw"), (&elsewhere, "qcow2")).resume(begun.path("journal"));
    let report = begun.refused(other);
    assert!(
        report.contains("the journal is of another conversion"),
        "{report}"
    );
    assert!(
        !begun
            .folder
            .names()
            .iter()
            .any(|name| name.contains("elsewhere"))
    );
    // Without the journal the unfinished file is nobody's to go on with, and in nobody's way.
    let report = begun.refused(base().resume(begun.path("another")));
    assert!(
        report.contains("an unfinished file of another conversion is there"),
        "{report}"
    );
    convert((&source, "raw"), (&target, "raw")).run().unwrap();
    std::fs::remove_file(&target).unwrap();
    base().run().unwrap();
}

#[test]
fn unfinished_file_that_is_gone_or_cut_is_refused() {
    let begun = Begun::new("raw");
    let partial = begun.path(".target.goldsmith-partial");
    let file = std::fs::File::options().write(true).open(&partial).unwrap();
    file.set_len(1 << 20).unwrap();
    let report = begun.refused(begun.conversion());
    assert!(report.contains("were stored: it was changed"), "{report}");
    std::fs::remove_file(&partial).unwrap();
    let error = begun.conversion().run().unwrap_err();
    assert!(
        error.report().contains("the unfinished file is gone"),
        "{}",
        error.report()
    );
    assert_eq!(begun.folder.names(), ["journal", "source"]);
}

#[test]
fn file_that_is_no_journal_is_left_alone() {
    let begun = Begun::new("raw");
    let other = begun.path("other");
    std::fs::write(&other, "my only copy").unwrap();
    let error = begun.conversion().resume(&other).run().unwrap_err();
    assert!(
        error.report().contains("it is no journal"),
        "{}",
        error.report()
    );
    assert_eq!(std::fs::read(other).unwrap(), b"my only copy");
}

/// It would be replaced by the target, or the target removed with it.
#[test]
fn journal_that_is_the_target_is_refused() {
    let folder = Folder::new();
    folder.write("source", &disk("1M:A"));
    let (source, target) = (folder.path("source"), folder.path("target"));
    std::os::unix::fs::symlink("target", folder.path("link")).unwrap();
    for journal in ["target", "link", ".target.goldsmith-partial"] {
        let conversion = convert((&source, "raw"), (&target, "raw"));
        let error = conversion.resume(folder.path(journal)).run().unwrap_err();
        let report = error.report();
        assert!(
            report.ends_with("the journal cannot be the target itself"),
            "{report}"
        );
        assert_eq!(folder.names(), ["link", "source"]);
    }
}

/// The journal goes after the target has its name: cut off between the two, nothing is left to do.
#[test]
fn finished_conversion_is_finished() {
    let begun = Begun::new("raw");
    let done = begun.ended(|| begun.conversion().run().unwrap());
    let again = begun.conversion().run().unwrap();
    assert_eq!((again.file_len, again.data), (done.file_len, 0));
    assert_eq!(begun.folder.names(), ["source", "target"]);
}

/// Whatever has the target's name: an inode that is free is given to the next file, and the unfinished file
/// itself may have been moved there.
#[test]
fn what_stands_under_the_name_is_not_taken_for_the_finished_target() {
    for is_moved in [true, false] {
        let begun = Begun::new("raw");
        let (partial, target) = (
            begun.path(".target.goldsmith-partial"),
            begun.path("target"),
        );
        if is_moved {
            std::fs::rename(&partial, &target).unwrap();
        } else {
            let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
            let free = inode(&partial);
            std::fs::remove_file(&partial).unwrap();
            std::fs::write(&target, b"somebody's only copy").unwrap();
            // By chance, as it may be: the journal tells of the inode that this file got.
            let journal = std::fs::read_to_string(begun.path("journal")).unwrap();
            let mut crc = 0;
            let mut lines = String::new();
            for line in journal.lines() {
                let text = line.split_once(' ').unwrap().1;
                let text = match text.strip_prefix(&format!("file {free} ")) {
                    Some(born) => format!("file {} {born}", inode(&target)),
                    None => text.to_owned(),
                };
                crc = Crc32::of(format!("{crc:08x} {text}").as_bytes()).value();
                lines += &format!("{crc:08x} {text}\n");
            }
            std::fs::write(begun.path("journal"), lines).unwrap();
        }
        let before = std::fs::read(&target).unwrap();
        let error = begun.conversion().run().unwrap_err();
        let expected = "the unfinished file is gone; remove the journal to begin again";
        assert!(error.report().ends_with(expected), "{}", error.report());
        assert!(std::fs::read(&target).unwrap() == before);
        assert_eq!(begun.folder.names(), ["journal", "source", "target"]);
    }
}

/// What is written, flushed and removed are the files that the links mean.
#[test]
fn links_to_target_and_journal_stay() {
    let folder = Folder::new();
    let source = folder.write("source", &disk(PICTURE));
    std::fs::create_dir(folder.path("there")).unwrap();
    for name in ["target", "journal"] {
        std::os::unix::fs::symlink(format!("there/{name}"), folder.path(name)).unwrap();
    }
    convert((&source, "raw"), (&folder.path("target"), "raw"))
        .resume(folder.path("journal"))
        .run()
        .unwrap();
    assert!(std::fs::read(folder.path("there/target")).unwrap() == whole(&source, "raw"));
    assert!(folder.path("target").is_symlink() && folder.path("journal").is_symlink());
    assert!(!folder.path("there/journal").exists());
}

/// The digests are those of a conversion in one go.
#[test]
fn target_that_was_written_in_several_goes_is_proved() {
    for format in ["raw", "qcow2", "vpc"] {
        let begun = Begun::new(format);
        let proved = |conversion: Convert<'_>| {
            let conversion = conversion.verify(true).digest(Algorithm::Sha256);
            let done = conversion.file_digest(Algorithm::Md5).run().unwrap();
            assert!(done.verified);
            (done.digests, done.file_digests)
        };
        let source = begun.path("source");
        let whole = begun.path("whole");
        let expected = proved(convert((&source, "raw"), (&whole, format)));
        let first = begun.ended(|| proved(begun.conversion()));
        assert_eq!(first, expected, "{format}");
        // Cut off before the journal went, it is proved once more.
        assert_eq!(proved(begun.conversion()), expected, "{format}");
        assert_eq!(begun.folder.names(), ["source", "target", "whole"]);
    }
}

/// Without a look back nobody would have noticed.
#[test]
fn what_was_spoiled_between_two_goes_is_noticed_before_the_target_has_its_name() {
    use std::os::unix::fs::FileExt;
    let begun = Begun::new("raw");
    let partial = begun.path(".target.goldsmith-partial");
    let file = std::fs::File::options().write(true).open(&partial).unwrap();
    file.write_all_at(b"?", 12345).unwrap();
    let error = begun.conversion().verify(true).run().unwrap_err();
    let report = error.report();
    assert!(
        report.ends_with(
            "what is read back from it is not what its source holds: it differs from guest byte \
             12345 on"
        ),
        "{report}"
    );
    assert!(!begun.path("target").exists());
    begun.conversion().run().unwrap();
    let spoiled = std::fs::read(begun.path("target")).unwrap();
    assert_eq!(spoiled[12345], b'?');
}

/// Each of several disks counts, and which part of them is meant.
#[test]
fn several_disks_and_a_part_of_them_are_gone_on_with() {
    let folder = Folder::new();
    folder.write("first", &disk("4M:A 1M:-"));
    folder.write("second", &disk("6M:b 1M:0 3M:C"));
    let path = |name: &str| folder.path(name);
    let part = |end| {
        convert((&path("first"), "raw"), (&path("target"), "qcow2"))
            .then(path("second"), Some("raw"), Opener::new())
            .between(1 << 20, end)
            .threads(NonZeroUsize::MIN)
    };
    const END: u64 = 14 << 20;
    part(END).run().unwrap();
    let expected = std::fs::read(path("target")).unwrap();
    std::fs::remove_file(path("target")).unwrap();
    let begun = |end| part(end).resume(path("journal")).milestone(1 << 20);
    let cut = || {
        let cancel = Cancel::new();
        let stop = |progress: Progress| {
            if progress.done >= 6 << 20 {
                cancel.cancel();
            }
        };
        let cut = begun(END).progress(&stop).cancel(&cancel);
        assert_eq!(cut.run().unwrap_err().kind(), ErrorKind::Cancelled);
    };
    cut();
    let another = |conversion: Convert<'_>| {
        let report = conversion.run().unwrap_err().report();
        assert!(report.contains("is of another conversion"), "{report}");
    };
    another(begun(END - 512));
    let done = begun(END).run().unwrap();
    assert!(done.data < 9 << 20, "{} bytes were read", done.data);
    assert!(std::fs::read(path("target")).unwrap() == expected);
    // A target that is one of them would be lost.
    let onto = convert((&path("first"), "raw"), (&path("second"), "raw"));
    let onto = onto.then(path("second"), Some("raw"), Opener::new());
    let error = onto.resume(path("journal")).run().unwrap_err();
    assert!(error.report().contains("also a file of the source"));
    std::fs::remove_file(path("target")).unwrap();
    cut();
    let second = std::fs::File::options().write(true).open(path("second"));
    second.unwrap().set_modified(SystemTime::now()).unwrap();
    another(begun(END));
}

#[test]
fn two_do_not_go_on_with_one_conversion() {
    let begun = Begun::new("qcow2");
    let second = std::sync::Mutex::new(None);
    let meanwhile = |_| {
        let mut second = second.lock().unwrap();
        if second.is_none() {
            *second = Some(begun.conversion().run().unwrap_err().report());
        }
    };
    begun.conversion().progress(&meanwhile).run().unwrap();
    let second = second.into_inner().unwrap().unwrap();
    assert!(
        second.ends_with("is another process using the image?"),
        "{second}"
    );
    qemu::check(begun.path("target"));
}

/// However the system's cache is used, and if that changes.
#[test]
fn conversion_goes_on_past_the_cache() {
    for modes in [
        [Cache::None, Cache::None],
        [Cache::Directsync, Cache::Writeback],
        [Cache::Writeback, Cache::Writethrough],
    ] {
        let folder = Folder::new();
        folder.write("source", &disk(PICTURE));
        let begun = Begun {
            folder,
            format: "qcow2",
        };
        begun.cut(begun.conversion().cache(modes[0]));
        begun.conversion().cache(modes[1]).run().unwrap();
        qemu::check(begun.path("target"));
        qemu::compare(begun.path("source"), "raw", begun.path("target"), "qcow2");
    }
}

/// While zeros are read the unfinished file stays empty, and so would be anybody's.
#[test]
fn file_that_one_journal_tells_of_is_not_taken_over_by_another() {
    let folder = Folder::new();
    folder.write("zeros", &disk("8M:0 4M:A"));
    folder.write("source", &disk(PICTURE));
    let convert = |source: &str, journal: &str| {
        let (source, target) = (folder.path(source), folder.path("target"));
        convert((&source, "raw"), (&target, "qcow2"))
            .resume(folder.path(journal))
            .milestone(1 << 20)
            .threads(NonZeroUsize::MIN)
    };
    let cut = |conversion: Convert<'_>| {
        let cancel = Cancel::new();
        let stop = |progress: Progress| {
            if progress.done >= 6 << 20 {
                cancel.cancel();
            }
        };
        conversion
            .progress(&stop)
            .cancel(&cancel)
            .run()
            .unwrap_err()
    };
    let partial = folder.path(".target.goldsmith-partial");
    cut(convert("zeros", "first"));
    assert_eq!(std::fs::metadata(&partial).unwrap().len(), 0);
    cut(convert("source", "second"));
    assert!(std::fs::metadata(&partial).unwrap().len() > 0);
    let refused = convert("zeros", "first").run().unwrap_err().report();
    assert!(refused.contains("the unfinished file is gone"), "{refused}");
    convert("source", "second").run().unwrap();
    qemu::compare(folder.path("source"), "raw", folder.path("target"), "qcow2");
}

/// Both would go on, each from where it knows.
#[test]
fn copy_of_a_journal_is_none() {
    let begun = Begun::new("raw");
    let (journal, copy) = (begun.path("journal"), begun.path("copy"));
    std::fs::copy(&journal, &copy).unwrap();
    let refused = begun.conversion().resume(&copy).run().unwrap_err().report();
    assert!(refused.contains("a copy of another one"), "{refused}");
    // By another name it is the same.
    std::fs::rename(&journal, &copy).unwrap();
    begun.conversion().resume(&copy).run().unwrap();
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    folder.write("source", &disk("1M:A"));
    let (source, target) = (folder.path("source"), folder.path("target"));
    let to = |format| convert((&source, "raw"), (&target, format)).resume(folder.path("journal"));
    for (conversion, why) in [
        (to("raw").salvage(true), "that salvages"),
        (
            to("raw").into_existing(Opener::new()),
            "an image that stands",
        ),
        (to("raw").cache(Cache::Unsafe), "never stored safely"),
        (to("raw").bitmaps(Bitmaps::All), "with bitmaps"),
        (to("qcow2").option("data_file", "data"), "with a data file"),
        (to("raw").option("preallocation", "full"), "preallocated"),
        (
            to("qcow2").option("preallocation", "falloc"),
            "preallocated",
        ),
        (to("xenserver-ovf"), "an archive"),
        (
            to("qcow2")
                .option("encrypt.format", "luks")
                .option("encrypt.iter-time", "10")
                .option("encrypt.key-secret", "s")
                .secret("s", "open"),
            "encrypted",
        ),
    ] {
        let error = conversion.run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().contains(why), "{}", error.report());
        assert_eq!(folder.names(), ["source"], "{why}");
    }
}

/// Where the file system shares blocks the unfinished file gets them, too.
#[test]
fn conversion_that_is_gone_on_with_shares() {
    for mount in mount::sharing() {
        for format in ["raw", "qcow2", "vpc"] {
            let folder = Folder::within(mount.path());
            folder.write("source", &disk(PICTURE));
            let (source, target) = (folder.path("source"), folder.path("target"));
            let conversion = convert((&source, "raw"), (&target, format));
            let conversion = conversion.resume(folder.path("journal"));
            let cancel = Cancel::new();
            cancel.cancel();
            conversion.clone().cancel(&cancel).run().unwrap_err();
            assert!(folder.path("journal").exists());
            let done = conversion.run().unwrap();
            assert_eq!(done.data, 0, "{format}: bytes were read");
            let again = folder.path("again");
            convert((&source, "raw"), (&again, format)).run().unwrap();
            let [target, again] = [target, again].map(|path| std::fs::read(path).unwrap());
            assert!(target == again, "{format}");
        }
    }
}
