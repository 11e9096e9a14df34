//! A container is read once, from its beginning to its end, where that does.

use std::process::Command;
use std::sync::Mutex;

use goldsmith::{Algorithm, Cancel, Convert, ErrorKind, Opener, Progress};
use goldsmith_testkit::qemu;

use crate::kept::{generations, keep};
use crate::support::{Folder, convert, guest};
use crate::{OVF, packed, plain, run};

/// A folder with three generations of a disk in `kept.tgz`, and that disk in `child.raw`.
fn chain() -> Folder {
    let folder = generations();
    keep(&folder, "child.vhd", "kept.tgz").run().unwrap();
    folder
}

/// The VHDs of a tar by Python's tarfile, and their disk sector by sector, which knows nothing of what
/// was done here.
const JUDGE: &str = r#"
import io, struct, sys, tarfile
tar = tarfile.open(sys.argv[1])
names = sorted((it.name for it in tar), key=lambda name: int(name.split('.')[0]))
layers = []
for name in names:
    file = tar.extractfile(name).read()
    size, kind = struct.unpack('>Q', file[-464:-456])[0], struct.unpack('>I', file[-452:-448])[0]
    header = struct.unpack('>Q', file[-496:-488])[0]
    table = struct.unpack('>Q', file[header + 16:header + 24])[0] if kind > 2 else 0
    unit = struct.unpack('>I', file[header + 32:header + 36])[0] if kind > 2 else 0
    layers.append((file, size, kind, table, unit))
def sector(at):
    for file, size, kind, table, unit in layers:
        if at >= size:
            break
        if kind == 2:
            return file[at:at + 512]
        entry = struct.unpack_from('>I', file, table + at // unit * 4)[0]
        if entry == 0xffffffff:
            continue
        nth = at % unit // 512
        if file[entry * 512 + nth // 8] & 0x80 >> nth % 8:
            data = entry * 512 + (unit // 512 + 4095) // 4096 * 512
            return file[data + nth * 512:][:512]
    return bytes(512)
with open(sys.argv[2], 'wb') as disk:
    for at in range(0, layers[0][1], 512):
        disk.write(sector(at))
"#;

#[test]
fn chain_becomes_the_disk_that_python_finds_in_it() {
    let folder = chain();
    let (tgz, judged) = (folder.path("kept.tgz"), folder.path("judged.raw"));
    let mut python = Command::new("python3");
    run(python.args(["-c", JUDGE]).args([&tgz, &judged]));
    qemu::compare(&judged, "raw", folder.path("child.raw"), "raw");
    for (format, options) in [
        ("raw", &[][..]),
        ("vpc", &[]),
        ("vpc", &[("subformat", "fixed")]),
        ("vpc", &[("block_size", "512k"), ("batmap", "on")]),
        ("qcow2", &[]),
        ("qcow2", &[("cluster_size", "512")]),
        ("qcow2", &[("extended_l2", "on")]),
        ("qcow2", &[("compat", "0.10")]),
        // And those that come in order.
        ("qcow2", &[("preallocation", "metadata")]),
        ("raw", &[("preallocation", "falloc")]),
    ] {
        let target = folder.path("target");
        let mut job = convert((&tgz, OVF), (&target, format));
        for (key, value) in options {
            job = job.option(*key, *value);
        }
        job.run().unwrap();
        qemu::compare(&target, format, &judged, "raw");
        let checked = goldsmith::check(&Opener::new(), &target, Some(format)).unwrap();
        assert!(
            checked.is_none_or(|(_, found)| found.flaws.is_empty()),
            "{format} {options:?}"
        );
        if format == "qcow2" {
            qemu::check(&target);
        }
    }
}

/// Whatever the way, and the figures are the same.
#[test]
fn raw_target_is_the_one_that_is_written_in_order() {
    let folder = chain();
    let tgz = folder.path("kept.tgz");
    let make = |name: &str, digests: &[Algorithm]| {
        let target = folder.path(name);
        let mut job = convert((&tgz, OVF), (&target, "raw"));
        for digest in digests {
            // Which needs the disk in order.
            job = job.digest(*digest);
        }
        let mut done = job.run().unwrap();
        done.digests.clear();
        (done, std::fs::read(target).unwrap())
    };
    let (poured, ordered) = (make("poured", &[]), make("ordered", &[Algorithm::Crc32]));
    assert_eq!(poured.0, ordered.0);
    assert!(poured.1 == ordered.1);
}

#[test]
fn target_of_a_cloud_grows_to_the_size_that_it_takes() {
    let folder = chain();
    let target = folder.path("azure.vhd");
    let done = Convert::new(folder.path("kept.tgz"), &target)
        .cloud(goldsmith::cloud_named("azure").unwrap())
        .run()
        .unwrap();
    assert_eq!(done.virtual_size, 20 << 20);
    assert_eq!(done.warnings.len(), 1, "{:?}", done.warnings);
    let mut expected = std::fs::read(folder.path("child.raw")).unwrap();
    expected.resize(20 << 20, 0);
    assert!(guest(&target, "vpc") == expected);
}

/// A damaged container, the end of which tells that nothing of it can be trusted.
#[test]
fn target_is_what_it_was_until_the_last_byte_was_right() {
    let folder = chain();
    let whole = std::fs::read(folder.path("kept.tgz")).unwrap();
    let (tgz, target) = (folder.path("image"), folder.path("target"));
    let mut wrong_sum = whole.clone();
    wrong_sum[whole.len() - 8] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &wrong_sum] {
        std::fs::write(&tgz, bytes).unwrap();
        for old in [None, Some("what stood here")] {
            match old {
                Some(old) => std::fs::write(&target, old).unwrap(),
                None => assert!(!target.exists()),
            }
            let names = folder.names();
            for format in ["raw", "vpc", "qcow2"] {
                let error = convert((&tgz, OVF), (&target, format)).run().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
                assert_eq!(error.path(), tgz.to_str());
                assert_eq!(folder.names(), names);
                let found = std::fs::read_to_string(&target).ok();
                assert_eq!(found.as_deref(), old);
            }
        }
        std::fs::remove_file(&target).unwrap();
    }
}

#[test]
fn progress_ends_with_the_disk_and_work_is_stopped_on_request() {
    let folder = chain();
    let (tgz, target) = (folder.path("kept.tgz"), folder.path("target"));
    let told: Mutex<Vec<Progress>> = Mutex::default();
    let listener = |progress| told.lock().unwrap().push(progress);
    convert((&tgz, OVF), (&target, "raw"))
        .progress(&listener)
        .run()
        .unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done));
    let last = told.last().unwrap();
    assert_eq!((last.done, last.total), (12 << 20, 12 << 20));

    std::fs::remove_file(&target).unwrap();
    for when in [0, 1 << 20] {
        let cancel = Cancel::new();
        let listener = |progress: Progress| {
            if progress.done >= when {
                cancel.cancel();
            }
        };
        let stopped = convert((&tgz, OVF), (&target, "raw"))
            .progress(&listener)
            .cancel(&cancel)
            .run();
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(!target.exists());
    }
}

/// The container itself, under whatever name.
#[test]
fn source_is_not_written_over() {
    let folder = chain();
    let tgz = folder.path("kept.tgz");
    let before = std::fs::read(&tgz).unwrap();
    let link = folder.path("link.raw");
    std::os::unix::fs::symlink(&tgz, &link).unwrap();
    for target in [&tgz, &link] {
        let error = convert((&tgz, OVF), (target, "raw")).run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.report());
        assert!(std::fs::read(&tgz).unwrap() == before);
    }
}

#[test]
fn chain_that_takes_more_than_one_pass_is_unpacked() {
    let folder = generations();
    let names = ["child.vhd", "middle.vhd", "base.vhd"];
    let members = names.map(|name| std::fs::read(folder.path(name)).unwrap());
    let named: Vec<_> = ["0.vhd", "1.vhd", "2.vhd"]
        .into_iter()
        .zip(&members)
        .collect();
    let expected = std::fs::read(folder.path("child.raw")).unwrap();
    let (tgz, target) = (folder.path("image"), folder.path("target"));
    // The parent first.
    let turned: Vec<_> = named
        .iter()
        .rev()
        .map(|(name, it)| (*name, &it[..]))
        .collect();
    std::fs::write(&tgz, packed(&plain(&turned))).unwrap();
    for format in ["raw", "qcow2"] {
        convert((&tgz, OVF), (&target, format)).run().unwrap();
        assert!(guest(&target, format) == expected, "{format}");
    }
}
