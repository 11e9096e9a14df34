//! Encrypted images: QEMU's word on ours, and ours on QEMU's. Secrets are the same all over.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use goldsmith_block::{
    Budget, Edit, ErrorKind, ExtentKind, Format, Layer, Limits, Options, Result,
};
use goldsmith_qcow2::QCOW2;
use goldsmith_storage::MemoryStorage;
use goldsmith_testkit::{ModelDisk, hostile, image, pattern, qemu};

use crate::bench::Bench;
use crate::features::assert_same_info;

pub(crate) const SECRET: &str = "a word of more than sixteen bytes";

const DISK: &str = "4608:A 3584:- 64k:b 512:- 100k:C 1536:0 130k:- 20k:d 70k:E 8k:- 300k:F 512:g";

/// What QEMU calls the secret.
fn object() -> String {
    format!("secret,id=s,data={SECRET}")
}

/// QEMU's words for the image at `path` with its secret.
pub(crate) fn spec(path: &Path) -> String {
    format!(
        "driver=qcow2,encrypt.key-secret=s,file.filename={}",
        path.display()
    )
}

/// An image that QEMU made and wrote `disk` to.
pub(crate) fn by_qemu(bench: &Bench, disk: &ModelDisk, options: &str) -> std::path::PathBuf {
    let (path, raw) = (bench.path("image"), bench.text("disk"));
    std::fs::write(&raw, disk.bytes()).unwrap();
    let text = path.to_str().unwrap();
    let options = format!("encrypt.key-secret=s,{options}");
    let size = disk.len().to_string();
    let object = object();
    qemu::img_ok(&[
        "create", "-q", "-f", "qcow2", "--object", &object, "-o", &options, text, &size,
    ]);
    qemu::img_ok(&[
        "convert",
        "--object",
        &object,
        "-n",
        "--target-image-opts",
        &raw,
        &spec(&path),
    ]);
    path
}

fn open(path: &Path, secret: &str) -> Result<Arc<dyn Layer>> {
    open_within(path, secret, &Limits::default())
}

fn open_within(path: &Path, secret: &str, limits: &Limits) -> Result<Arc<dyn Layer>> {
    let storage = MemoryStorage::holding("image", std::fs::read(path).unwrap());
    let pairs = [("encrypt.key-secret", secret)];
    let options = Options::parse(QCOW2.open_options(), pairs).unwrap();
    QCOW2.open_with(Arc::new(storage), &Budget::new(limits), &options)
}

#[test]
fn qemus_encrypted_images_read_the_same() {
    let disk = pattern::disk(DISK);
    for options in [
        "encrypt.format=luks,extended_l2=on",
        "encrypt.format=luks,encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1,cluster_size=512",
        "encrypt.format=luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,\
         encrypt.ivgen-hash-alg=sha256,encrypt.cipher-alg=aes-256",
        "encrypt.format=luks,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
         encrypt.ivgen-alg=plain,encrypt.hash-alg=sha512",
        "encrypt.format=aes",
        "encrypt.format=aes,compat=0.10,cluster_size=2M",
    ] {
        let bench = Bench::new();
        let time = if options.contains("luks") {
            ",encrypt.iter-time=10"
        } else {
            ""
        };
        let path = by_qemu(&bench, &disk, &format!("{options}{time}"));
        let layer = open(&path, SECRET).unwrap();
        assert!(image::read(&*layer).unwrap() == disk.bytes(), "{options}");
        assert!(layer.info().encrypted);
        assert_same_info(&path);
        let mut part = vec![0; 100_001];
        layer.read_at(4001, &mut part).unwrap();
        assert!(part == disk.bytes()[4001..104_002], "{options}");
        // Its bytes are nowhere as the guest sees them.
        for extent in hostile::walk(&*layer, 0, disk.len(), usize::MAX).unwrap() {
            let placed = matches!(extent.kind, ExtentKind::Data { host: Some(_) });
            assert!(!placed, "{extent:?}");
        }
    }
}

/// With the images above each family, mode, generator and hash at least once: QEMU takes seconds for
/// each, so the rest is left to headers of ours.
#[test]
fn qemus_luks_headers_open() {
    let disk = pattern::disk("4608:A 3584:- 64k:b 8k:C");
    for (cipher, mode, iv, hash) in [
        ("aes-192", "xts", "essiv,encrypt.ivgen-hash-alg=sm3", "md5"),
        (
            "cast5-128",
            "cbc",
            "essiv,encrypt.ivgen-hash-alg=md5",
            "sha224",
        ),
        ("serpent-192", "xts", "plain", "sha384"),
        ("serpent-256", "ctr", "essiv", "sm3"),
        // Here the hash means nothing, and it stands in the header.
        (
            "twofish-128",
            "ecb",
            "plain64,encrypt.ivgen-hash-alg=sha1",
            "ripemd160",
        ),
        (
            "twofish-256",
            "cbc",
            "essiv,encrypt.ivgen-hash-alg=md5",
            "sha256",
        ),
    ] {
        let bench = Bench::new();
        let options = format!(
            "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg={cipher},\
             encrypt.cipher-mode={mode},encrypt.ivgen-alg={iv},encrypt.hash-alg={hash}"
        );
        let path = by_qemu(&bench, &disk, &options);
        let layer = open(&path, SECRET).unwrap();
        assert!(image::read(&*layer).unwrap() == disk.bytes(), "{options}");
        assert_same_info(&path);
    }
}

#[test]
fn encrypted_data_is_never_passed_on_as_it_is() {
    let bench = Bench::new();
    let disk = pattern::disk(DISK);
    for format in ["luks,encrypt.iter-time=10", "aes"] {
        let path = by_qemu(&bench, &disk, &format!("encrypt.format={format}"));
        let locked = open(&path, "").unwrap();
        let error = image::read(&*locked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.report().contains("no passphrase was given"));
        match (format, open(&path, "another word")) {
            ("aes", Ok(layer)) => assert!(image::read(&*layer).unwrap() != disk.bytes()),
            (_, Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Denied);
                assert!(error.report().contains("opens none of the key slots"));
            }
            (_, Ok(_)) => panic!("{format} opens with another word"),
        }
    }
}

/// A stranger's header may have each of its eight slots take a minute.
#[test]
fn passphrase_is_not_tried_for_longer_than_allowed() {
    let options = [
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", SECRET),
        ("encrypt.iter-time", "1"),
    ];
    let disk = pattern::disk("4608:A 3584:-");
    let mut file = image::write(&QCOW2, &disk, &options, false).unwrap();
    let luks = file.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe");
    let luks = luks.unwrap();
    let slot = |nth: usize| luks + 208 + 48 * nth;
    let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
    let (digest, key) = (number(luks + 164), number(slot(0) + 4));
    // A key takes two digests of this hash.
    let first = u64::from(2 * key + digest);
    for nth in 1..8 {
        let active = file[slot(0)..][..4].to_vec();
        file[slot(nth)..][..4].copy_from_slice(&active);
        file[slot(nth) + 4..][..4].copy_from_slice(&(1_u32 << 26).to_be_bytes());
    }
    let bench = Bench::new();
    let path = bench.path("image");
    std::fs::write(&path, &file).unwrap();
    let mut limits = Limits::default();
    limits.hash_rounds = first;
    let open = |secret| open_within(&path, secret, &limits);
    assert!(image::read(&*open(SECRET).unwrap()).unwrap() == disk.bytes());
    let error = open("another word").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit);
    let expected = format!(
        "the LUKS key slot takes {} rounds of hashing; 0 of the {first} allowed are left",
        (2 << 26) + digest
    );
    assert!(error.report().contains(&expected), "{}", error.report());

    let budget = Budget::new(&limits);
    let storage = Arc::new(MemoryStorage::holding("image", file.clone()));
    let pairs = [("encrypt.key-secret", SECRET)];
    let opened = Options::parse(QCOW2.open_options(), pairs).unwrap();
    let amend = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().copied();
        let options = Options::parse(QCOW2.amend_options(), pairs).unwrap();
        let mut editor = QCOW2.edit(storage.clone(), &budget, &opened).unwrap();
        editor.edit(&Edit::Amend(options))
    };
    let inactive = ("encrypt.state", "inactive");
    let error = amend(&[inactive, ("encrypt.old-secret", "another word")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    let error = amend(&[("encrypt.state", "active"), ("encrypt.new-secret", "word")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(storage.to_vec() == file);
    // Nobody needs to know what a slot hides to make it hide nothing.
    for nth in ["1", "2", "3", "4", "5", "6", "7"] {
        amend(&[inactive, ("encrypt.keyslot", nth)]).unwrap();
    }
    std::fs::write(&path, storage.to_vec()).unwrap();
    assert_eq!(
        open("another word").err().unwrap().kind(),
        ErrorKind::Denied
    );
}

/// Our image of `disk`: QEMU finds it sound, and in it the disk.
fn assert_accepted(disk: &ModelDisk, options: &[(&str, &str)]) -> Vec<u8> {
    let bench = Bench::new();
    let (path, raw) = (bench.path("image"), bench.text("disk"));
    let data = bench.text("data");
    let options: Vec<_> = options
        .iter()
        .map(|(key, value)| (*key, if *key == "data_file" { &*data } else { value }))
        .chain([("encrypt.key-secret", SECRET)])
        .collect();
    let mut spec = image::spec(&QCOW2, disk.len(), &options, false).unwrap();
    let [file, content] = ["image", "data"].map(|name| Arc::new(MemoryStorage::new(name)));
    let split = options.iter().any(|(key, _)| *key == "data_file");
    spec.data = split.then(|| content.clone() as _);
    image::drive(QCOW2.create(file.clone(), &spec).unwrap(), disk).unwrap();
    std::fs::write(&path, file.to_vec()).unwrap();
    std::fs::write(&data, content.to_vec()).unwrap();
    std::fs::write(&raw, disk.bytes()).unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("qemu-img").args(args).output().unwrap();
        assert!(output.status.success(), "{options:?}: {output:?}");
    };
    let (object, spec) = (object(), self::spec(&path));
    run(&["check", "-q", "--object", &object, "--image-opts", &spec]);
    let out = bench.text("out");
    run(&[
        "convert",
        "--object",
        &object,
        "--image-opts",
        &spec,
        "-O",
        "raw",
        &out,
    ]);
    assert!(std::fs::read(out).unwrap() == disk.bytes(), "{options:?}");

    let mut layer = open(&path, SECRET).unwrap();
    if split {
        layer = layer.with_data(content).unwrap();
    }
    assert!(image::read(&*layer).unwrap() == disk.bytes(), "{options:?}");
    file.to_vec()
}

#[test]
fn our_encrypted_images_are_sound() {
    let luks = [("encrypt.format", "luks"), ("encrypt.iter-time", "10")];
    let aes = [("encrypt.format", "aes")];
    for more in [
        &[][..],
        &[
            ("encrypt.cipher-alg", "aes-128"),
            ("encrypt.hash-alg", "sha512"),
        ],
        &[
            ("encrypt.cipher-mode", "cbc"),
            ("encrypt.ivgen-alg", "essiv"),
            ("encrypt.hash-alg", "sha1"),
        ],
        &[("cluster_size", "4k"), ("refcount_bits", "64")],
        &[("cluster_size", "2M"), ("extended_l2", "on")],
        &[("extended_l2", "on")],
        &[("compat", "0.10")],
        &[("data_file", "")],
    ] {
        // Those options are of LUKS alone.
        let of_both = more.iter().all(|(name, _)| !name.starts_with("encrypt."));
        for format in [&luks[..], &aes].into_iter().take(1 + usize::from(of_both)) {
            let all = [DISK, "1M:-", "512:A"];
            for picture in if more.is_empty() { &all } else { &all[..1] } {
                let image = assert_accepted(&pattern::disk(picture), &[format, more].concat());
                // Lines of the guest's text are not to be found.
                let line = b"A00000000000000\n";
                assert!(!image.chunks(16).any(|bytes| bytes == line));
            }
        }
    }
}

/// All that `cipher` goes with: QEMU reads what we wrote, and we read what it writes then.
fn assert_shared(cipher: &str) {
    let [first, second] = ["8k:A 512:- 3584:b", "512:- 4k:C 7680:d"].map(pattern::disk);
    let narrow = cipher == "cast5-128";
    let modes = match cipher {
        "cast5-128" => &["cbc", "ctr", "ecb"][..],
        _ if cipher.ends_with("-192") => &["xts"],
        _ => &["xts", "cbc", "ctr", "ecb"],
    };
    let hashes = [
        "sha1",
        "sha224",
        "sha256",
        "sha384",
        "sha512",
        "ripemd160",
        "sm3",
        "md5",
    ];
    let digests = if narrow {
        &["md5"][..]
    } else {
        &["md5", "sha256", "sm3"]
    };
    let plain = [("plain64", "sha256"), ("plain", "sha256")];
    let generators = plain
        .into_iter()
        .chain(digests.iter().map(|hash| ("essiv", *hash)));
    for (nth, (mode, (generator, digest))) in modes
        .iter()
        .flat_map(|mode| generators.clone().map(move |generator| (mode, generator)))
        .enumerate()
    {
        let options = [
            ("encrypt.format", "luks"),
            ("encrypt.key-secret", SECRET),
            ("encrypt.iter-time", "1"),
            ("encrypt.cipher-alg", cipher),
            ("encrypt.cipher-mode", mode),
            ("encrypt.ivgen-alg", generator),
            ("encrypt.ivgen-hash-alg", digest),
            ("encrypt.hash-alg", hashes[nth % hashes.len()]),
        ];
        let bench = Bench::new();
        let [path, raw, out] = ["image", "raw", "out"].map(|name| bench.path(name));
        std::fs::write(
            &path,
            image::write(&QCOW2, &first, &options, false).unwrap(),
        )
        .unwrap();
        assert_same_info(&path);
        let object = object();
        let (spec, raw, out) = (spec(&path), raw.to_str().unwrap(), out.to_str().unwrap());
        let read = [
            "convert",
            "--object",
            &object,
            "--image-opts",
            &spec,
            "-O",
            "raw",
            out,
        ];
        qemu::img_ok(&read);
        assert!(std::fs::read(out).unwrap() == first.bytes(), "{options:?}");
        std::fs::write(raw, second.bytes()).unwrap();
        let write = [
            "convert",
            "--object",
            &object,
            "-n",
            "--target-image-opts",
            raw,
            &spec,
        ];
        qemu::img_ok(&write);
        let layer = open(&path, SECRET).unwrap();
        assert!(
            image::read(&*layer).unwrap() == second.bytes(),
            "{options:?}"
        );
    }
}

#[test]
fn aes_is_shared_with_qemu() {
    for cipher in ["aes-128", "aes-192", "aes-256"] {
        assert_shared(cipher);
    }
}

#[test]
fn cast5_is_shared_with_qemu() {
    assert_shared("cast5-128");
}

#[test]
fn serpent_is_shared_with_qemu() {
    for cipher in ["serpent-128", "serpent-192", "serpent-256"] {
        assert_shared(cipher);
    }
}

#[test]
fn twofish_is_shared_with_qemu() {
    for cipher in ["twofish-128", "twofish-192", "twofish-256"] {
        assert_shared(cipher);
    }
}

#[test]
fn encryption_that_is_not_possible_is_refused_with_the_reason() {
    let refused = |compress, options: &[(&str, &str)]| {
        let storage = Arc::new(MemoryStorage::new("new"));
        let spec = image::spec(&QCOW2, 1 << 20, options, compress).unwrap();
        let error = QCOW2.create(storage, &spec).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage, "{options:?}");
        error.report()
    };
    let luks = [
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", "x"),
        ("encrypt.iter-time", "1"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&luks[..], more].concat();
    assert!(refused(false, &luks[..1]).contains("goes with encrypt.format"));
    assert!(refused(false, &luks[1..2]).contains("goes with encrypt.format"));
    assert!(refused(true, &luks).contains("a compressed image cannot"));
    let preallocated = with(&[("preallocation", "metadata")]);
    assert!(refused(false, &preallocated).contains("a preallocated image cannot"));
    assert!(refused(false, &with(&[("cluster_size", "512")])).contains("needs larger clusters"));
    let narrow = with(&[("encrypt.cipher-alg", "cast5-128")]);
    assert!(refused(false, &narrow).contains("cast5-128 has no mode 'xts', only cbc, ctr, ecb"));
    let digest = with(&[
        ("encrypt.ivgen-alg", "essiv"),
        ("encrypt.ivgen-hash-alg", "sha512"),
    ]);
    assert!(refused(false, &digest).contains("essiv with sha512 takes keys of 64 bytes"));
    let ragged = with(&[
        ("encrypt.cipher-alg", "serpent-192"),
        ("encrypt.cipher-mode", "cbc"),
    ]);
    assert!(refused(false, &ragged).contains("96000 bytes, no whole sectors"));
    let old = [
        ("compat", "0.10"),
        ("backing_file", "b"),
        ("backing_fmt", "raw"),
    ];
    assert!(refused(false, &with(&old)).contains("needs compat=1.1"));
}

/// Who adds or removes a passphrase writes over the place of its slot, free or not: no other thing may
/// stand there.
#[test]
fn slots_are_refused_where_qemu_refuses_them() {
    let bench = Bench::new();
    let disk = pattern::disk("4608:A 3584:-");
    let path = by_qemu(&bench, &disk, "encrypt.format=luks,encrypt.iter-time=10");
    let sound = std::fs::read(&path).unwrap();
    let luks = sound.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe");
    let luks = luks.unwrap();
    let (payload, offset, stripes) = (
        104,
        |nth: usize| 248 + 48 * nth,
        |nth: usize| 252 + 48 * nth,
    );
    // Sectors: slots take 504 each, the first one is at 8, and data would start at 4040.
    for (at, number, rule) in [
        (offset(1), 8, "LUKS key slots 0 and 1 overlap"),
        (offset(1), 511, "LUKS key slots 0 and 1 overlap"),
        (offset(7), 3535, "LUKS key slots 6 and 7 overlap"),
        (offset(0), 1, "LUKS key slot 0 is at offset 512"),
        (offset(0), 7, "LUKS key slot 0 is at offset 3584"),
        (offset(7), 3537, "data starts at 2068480"),
        (payload, 4039, "data starts at 2067968"),
        (payload, 0, "data starts at 0"),
        (stripes(3), 0, "LUKS key slot 3 has 0 stripes"),
        (offset(1), 512, ""),
        (212 + 48, 7, ""),
        (payload, 50_000, ""),
    ] {
        let mut bytes = sound.clone();
        bytes[luks + at..][..4].copy_from_slice(&u32::to_be_bytes(number));
        std::fs::write(&path, &bytes).unwrap();
        let accepted = qemu::img(&["info", path.to_str().unwrap()])
            .status
            .success();
        assert_eq!(accepted, rule.is_empty(), "{at}: {number}");
        let storage = Arc::new(MemoryStorage::holding("image", bytes));
        let checked = QCOW2.check(storage, &Budget::new(&Limits::default()));
        match open(&path, "") {
            Ok(_) => assert!(accepted && checked.is_ok(), "{at}: {number}"),
            Err(error) => {
                assert!(error.report().contains(rule), "{}", error.report());
                assert!(!accepted, "{at}: {number}");
                // Stripes are something that is not done, and no harm to what is checked.
                assert!(checked.is_err() || at == stripes(3), "{at}: {number}");
            }
        }
    }
}

#[test]
fn damaged_encryption_gets_an_answer() {
    let options = [
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", SECRET),
        ("encrypt.iter-time", "1"),
        ("cluster_size", "4k"),
    ];
    let image = image::write(&QCOW2, &pattern::disk("8k:A"), &options, false).unwrap();
    // The header's fields, its extensions, and those of the LUKS header.
    let places = (0..160).chain(4096..4096 + 592);
    for bit in places.flat_map(|at| [at * 8, at * 8 + 7]) {
        let mut damaged = image.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let opened = image::open(&QCOW2, damaged);
        if let Err(error) = opened.and_then(|layer| image::read(&*layer).map(|_| ())) {
            let kind = error.kind();
            assert!(!matches!(
                kind,
                ErrorKind::Bug | ErrorKind::Io | ErrorKind::Usage
            ));
        }
    }
    for cut in [4096 + 100, 4096 + 592, 1 << 20] {
        let error = image::open(&QCOW2, &image[..cut]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
