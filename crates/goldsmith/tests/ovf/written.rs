//! A disk becomes a container.

use std::io::Read;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Mutex;

use goldsmith::{
    Algorithm, Cancel, Convert, Create, ErrorKind, Measure, Opener, Rebase, cloud_named, lint,
};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;

use crate::support::{Folder, convert};
use crate::{OVF, family, made, run};

#[test]
fn tar_holds_the_vhd_that_would_have_been_made_alone() {
    let folder = made();
    let said = run(Command::new("python3").current_dir(folder.path("")).args([
        "-c",
        "import tarfile\n\
         for mode in 'r:gz', 'r|gz':\n\
         \x20   with tarfile.open('disk.tgz', mode) as tar:\n\
         \x20       for it in tar:\n\
         \x20           same = tar.extractfile(it).read() == open('disk.vhd', 'rb').read()\n\
         \x20           print(it.name, it.isreg(), it.uid, it.gid, oct(it.mode), it.mtime, same)\n",
    ]));
    let line = "0.vhd True 0 0 0o644 1000000000 True\n";
    assert_eq!(said, [line, line].concat());

    let tgz = folder.text("disk.tgz");
    run(Command::new("gzip").args(["-t", &tgz]));
    let out = folder.path("out");
    std::fs::create_dir(&out).unwrap();
    // As XenServer's plugin does it.
    let tar = format!("tar -zxf {tgz} --directory={}", out.display());
    run(Command::new("sh").args(["-c", &tar]));
    qemu::compare(out.join("0.vhd"), "vpc", folder.path("disk.raw"), "raw");
}

#[test]
fn same_disk_gives_the_same_bytes() {
    let folder = made();
    let target = folder.path("again.tgz");
    for threads in [1, 3] {
        convert((&folder.path("disk.raw"), "raw"), (&target, OVF))
            .option("batmap", "on")
            .threads(NonZeroUsize::new(threads).unwrap())
            .run()
            .unwrap();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(folder.path("disk.tgz")).unwrap());
    }
    assert_eq!(
        folder.names(),
        ["again.tgz", "disk.raw", "disk.tgz", "disk.vhd"]
    );
}

#[test]
fn length_is_measured() {
    let folder = made();
    let len = std::fs::metadata(folder.path("disk.tgz")).unwrap().len();
    let measure = |source: &str| {
        Measure::new(folder.path(source))
            .source_format("raw")
            .target_format(OVF)
            .option("batmap", "on")
    };
    let same = measure("disk.raw")
        .uuid(goldsmith::Uuid::from_u128(7))
        .timestamp(1_000_000_000);
    let measured = same.run().unwrap();
    assert_eq!(measured.exact, Some(len));
    assert!(len <= measured.required && measured.required <= measured.fully_allocated);

    // Nothing packs worse than noise.
    let mut state = 1u64;
    let mut noise = vec![0; 10 << 20];
    for byte in &mut noise {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    std::fs::write(folder.path("noise"), &noise).unwrap();
    let measured = measure("noise").run().unwrap();
    let exact = measured.exact.unwrap();
    assert!(
        exact > 10 << 20 && exact <= measured.required,
        "{measured:?}"
    );
    assert!(measured.required < exact + exact / 300, "{measured:?}");
}

/// Who wants a checksum on the way has the VHD made in a file, and packed from there.
#[test]
fn container_that_streams_is_the_one_that_is_packed_from_a_file() {
    let folder = Folder::new();
    // Written zeros, a hole at the end of the last block, and a disk that ends within it.
    let source = folder.write(
        "disk.raw",
        &disk("1M:A 3M:0 512:b 2M:0 512:C 6291456:- 1M:D 3584:0 512:e 3M:0 1536:-"),
    );
    let qcow2 = folder.path("disk.qcow2");
    convert((&source, "raw"), (&qcow2, "qcow2"))
        .compress(true)
        .run()
        .unwrap();
    for options in [
        &[][..],
        &[("block_size", "512k"), ("batmap", "on")],
        &[("subformat", "fixed")],
        &[("force_size", "off")],
    ] {
        for (source, format) in [(&source, "raw"), (&qcow2, "qcow2")] {
            for sparse in [4096, 0] {
                let make = |name: &str, digest: Option<Algorithm>| {
                    let target = folder.path(name);
                    let mut job = convert((source, format), (&target, OVF)).sparse(sparse);
                    for (key, value) in options {
                        job = job.option(*key, *value);
                    }
                    if let Some(algorithm) = digest {
                        job = job.digest(algorithm);
                    }
                    let done = job.run().unwrap();
                    assert_eq!(done.digests.len(), usize::from(digest.is_some()));
                    (done.file_len, std::fs::read(target).unwrap())
                };
                let (len, streamed) = make("streamed.tgz", None);
                let (_, packed) = make("packed.tgz", Some(Algorithm::Crc32));
                assert!(streamed == packed, "{options:?} {format} {sparse}");
                assert_eq!(len, streamed.len() as u64);
            }
        }
    }
}

/// The VHD in a file, and the container: each is half of it, and either can be stopped.
#[test]
fn container_with_a_digest_is_told_of_and_stopped_while_it_is_packed() {
    let folder = Folder::new();
    let target = folder.path("disk.tgz");
    // One claim, after which nobody asks whether there are more.
    let source = folder.write("small.raw", &disk("2M:A"));
    let job = || convert((&source, "raw"), (&target, OVF)).digest(Algorithm::Crc32);
    for stop in [1 << 20, 3 << 19] {
        let cancel = Cancel::new();
        let look = |progress: goldsmith::Progress| {
            if progress.done >= stop {
                cancel.cancel();
            }
        };
        let error = job().progress(&look).cancel(&cancel).run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{stop}");
        assert_eq!(folder.names(), ["small.raw"]);
    }
    let source = folder.write("disk.raw", &disk("8M:A"));
    let job = || convert((&source, "raw"), (&target, OVF)).digest(Algorithm::Crc32);
    let told = Mutex::new(Vec::new());
    let look = |progress: goldsmith::Progress| {
        assert_eq!(progress.total, 8 << 20);
        assert!(progress.data <= progress.done);
        told.lock().unwrap().push(progress.done);
    };
    job().progress(&look).run().unwrap();
    let mut told = told.into_inner().unwrap();
    // Workers tell in any order.
    told.sort();
    told.dedup();
    assert_eq!((told[0], told.last()), (0, Some(&(8 << 20))));
    let packing = told.iter().filter(|done| **done > 4 << 20).count();
    assert_eq!(
        packing, 9,
        "eight MiB of data, and what is around them: {told:?}"
    );
}

/// What is broken shows when all of it is unpacked.
#[test]
fn source_that_is_unpacked_is_stopped_while_it_is() {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &disk("2M:A"));
    let tgz = folder.path("disk.tgz");
    convert((&source, "raw"), (&tgz, OVF)).run().unwrap();
    let mut bytes = std::fs::read(&tgz).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&tgz, &bytes).unwrap();
    let back = folder.path("back.raw");
    let cancel = Cancel::new();
    let job = || {
        let job = convert((&tgz, OVF), (&back, "raw")).cancel(&cancel);
        job.digest(Algorithm::Crc32)
    };
    assert_eq!(job().run().unwrap_err().kind(), ErrorKind::Corrupt);
    cancel.cancel();
    assert_eq!(job().run().unwrap_err().kind(), ErrorKind::Cancelled);
    let opener = Opener::new().cancel(&cancel);
    let opened = opener.open(&tgz, Some(OVF));
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Cancelled);

    // Where it stands behind another one.
    let over = folder.path("over.qcow2");
    let create = Create::new(&over).format("qcow2").backing("disk.tgz", OVF);
    let error = create.cancel(&cancel).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let copy = convert((&source, "raw"), (&over, "qcow2")).backing("disk.tgz", OVF);
    let error = copy.cancel(&cancel).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    Create::new(&over)
        .format("qcow2")
        .size(2 << 20)
        .run()
        .unwrap();
    let rebase = Rebase::new(&over)
        .format("qcow2")
        .onto("disk.tgz", Some(OVF));
    let error = rebase.cancel(&cancel).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn backing_file_has_no_place_in_a_container() {
    let folder = family();
    let target = folder.path("new.tgz");
    let error = convert((&folder.path("child.raw"), "raw"), (&target, OVF))
        .backing("1.vhd", "vpc")
        .run()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(!target.exists());
}

#[test]
fn cloud_gets_its_container() {
    let folder = Folder::new();
    let source = folder.write("disk.raw", &disk("1M:A 2M:- 512:b"));
    let target = folder.path("disk.tgz");
    let cloud = cloud_named(OVF).unwrap();
    let done = Convert::new(&source, &target)
        .source_format("raw")
        .cloud(cloud)
        .run()
        .unwrap();
    assert_eq!(done.virtual_size, 4 << 20);
    assert_eq!(done.file_len, std::fs::metadata(&target).unwrap().len());
    let findings = lint(&Opener::new(), &target, None, cloud).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    let mut inside = flate2::read::GzDecoder::new(std::fs::File::open(&target).unwrap());
    let mut head = [0; 520];
    inside.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"0.vhd\0") && head.ends_with(b"conectix"));
}
