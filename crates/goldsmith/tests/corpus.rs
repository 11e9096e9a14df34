//! Replays the corpus of every fuzz target, so that a finding stays found without a fuzzer.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::path::PathBuf;

use goldsmith::{Cache, Convert};
use goldsmith_block::{Detail, Format, LayerInfo};
use goldsmith_testkit::hostile::{self, Outcome, survives};
use goldsmith_testkit::slow::{self, Sector};
use goldsmith_testkit::{build, fuzz, qemu};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Calls `body` with each input of `target`.
fn replay(target: &str, body: impl Fn(&[u8])) {
    let corpus = folder().join("corpus").join(target);
    let mut inputs = 0;
    for file in corpus
        .read_dir()
        .unwrap_or_else(|error| panic!("{corpus:?}: {error}"))
    {
        let path = file.unwrap().path();
        body(&std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")));
        inputs += 1;
    }
    assert!(inputs > 0, "{target} has no inputs");
}

fn open_read(target: &str, format: &dyn Format) {
    replay(target, |data| fuzz::open_read(format, data));
}

fn write_read(target: &str, format: &dyn Format) {
    replay(target, |data| fuzz::write_read(format, data));
}

fn fixed_up(target: &str, format: &dyn Format, fix_up: fn(&mut [u8])) {
    replay(target, |data| {
        let mut file = data.to_vec();
        fix_up(&mut file);
        fuzz::open_read(format, &file);
    });
}

fn ovf() -> &'static dyn Format {
    goldsmith::format_named("xenserver-ovf").unwrap()
}

fn container(target: &str) {
    let opened = std::cell::Cell::new(0);
    replay(target, |data| {
        let file = build::ovf::fix_up(data);
        fuzz::open_read(ovf(), &file);
        let found = survives(ovf(), file);
        opened.set(opened.get() + u32::from(matches!(found, Outcome::Content { .. })));
    });
    assert!(opened.get() > 0, "none is a container at all");
}

fn edit(target: &str, format: &dyn Format, fix_up: fn(&mut [u8])) {
    whole(target, format, fix_up, fuzz::edit);
}

fn whole(target: &str, format: &dyn Format, fix_up: fn(&mut [u8]), body: fn(&dyn Format, &[u8])) {
    replay(target, |data| {
        let mut file = data.to_vec();
        fix_up(&mut file);
        body(format, &file);
    });
}

fn chain(target: &str, format: &dyn Format, fix_up: fn(&mut [u8])) {
    let chains = std::cell::Cell::new(0);
    replay(target, |data| {
        chains.set(chains.get() + u32::from(fuzz::chain(format, data, fix_up)));
    });
    assert!(chains.get() > 0, "none is a chain at all");
}

fn convert(target: &str, format: &dyn Format, fix_up: fn(&mut [u8])) {
    whole(target, format, fix_up, |format, file| {
        let targets: [&dyn Format; 3] = [
            &goldsmith_raw::RAW,
            &goldsmith_qcow2::QCOW2,
            &goldsmith_vhd::VHD,
        ];
        fuzz::convert(format, file, &targets);
    });
}

fn differential(
    target: &str,
    format: &dyn Format,
    fix_up: fn(&mut [u8]),
    slow: fn(&[u8], u64) -> Sector,
) {
    replay(target, |data| {
        let mut file = data.to_vec();
        fix_up(&mut file);
        fuzz::differential(format, &file, slow);
    });
}

fn in_one_pass(target: &str) {
    replay(target, |data| {
        fuzz::in_one_pass(ovf(), &build::ovf::fix_up(data), |source, target| {
            let convert = Convert::new(source, target).source_format(ovf().name());
            convert.target_format("raw").cache(Cache::Unsafe).run()?;
            Ok(())
        });
    });
}

macro_rules! targets {
    ($($target:ident => $body:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            fn $target() {
                $body(stringify!($target), $($argument),*);
            }
        )*

        #[test]
        fn every_fuzz_target_is_replayed() {
            let replayed = [$(stringify!($target)),*];
            for file in folder().join("fuzz_targets").read_dir().unwrap() {
                let path = file.unwrap().path();
                let target = path.file_stem().unwrap().to_str().unwrap();
                assert!(replayed.contains(&target), "{target} is not");
            }
        }
    };
}

targets! {
    deflate_pack => replay(fuzz::deflate_pack);
    ovf_convert => in_one_pass();
    ovf_fixed_up => container();
    ovf_open_read => open_read(ovf());
    qcow2_chain => chain(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up);
    qcow2_check => whole(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up, fuzz::check_whole);
    qcow2_convert => convert(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up);
    qcow2_differential => differential(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up, slow::qcow2);
    qcow2_edit => edit(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up);
    qcow2_fixed_up => fixed_up(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up);
    qcow2_map => whole(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up, fuzz::map);
    qcow2_open_read => open_read(&goldsmith_qcow2::QCOW2);
    qcow2_repair => whole(&goldsmith_qcow2::QCOW2, build::qcow2::fix_up, fuzz::repair);
    qcow2_write_read => write_read(&goldsmith_qcow2::QCOW2);
    raw_write_read => write_read(&goldsmith_raw::RAW);
    vhd_chain => chain(&goldsmith_vhd::VHD, build::vhd::fix_up);
    vhd_check => whole(&goldsmith_vhd::VHD, build::vhd::fix_up, fuzz::check_whole);
    vhd_convert => convert(&goldsmith_vhd::VHD, build::vhd::fix_up);
    vhd_differential => differential(&goldsmith_vhd::VHD, build::vhd::fix_up, slow::vhd);
    vhd_edit => edit(&goldsmith_vhd::VHD, build::vhd::fix_up);
    vhd_fixed_up => fixed_up(&goldsmith_vhd::VHD, build::vhd::fix_up);
    vhd_map => whole(&goldsmith_vhd::VHD, build::vhd::fix_up, fuzz::map);
    vhd_open_read => open_read(&goldsmith_vhd::VHD);
    vhd_repair => whole(&goldsmith_vhd::VHD, build::vhd::fix_up, fuzz::repair);
    vhd_write_read => write_read(&goldsmith_vhd::VHD);
}

/// Those that were mended are images, and have what images have besides a plain disk.
#[test]
fn inputs_reach_what_an_image_can_have() {
    let detail = |info: &LayerInfo, name: &str| {
        let found = info.details.iter().find(|(it, _)| *it == name);
        found.map(|(_, detail)| detail.clone())
    };
    type Has<'a> = (&'a str, &'a dyn Fn(&LayerInfo) -> bool);
    let qcow2: [Has<'_>; 8] = [
        ("data", &|info| info.virtual_size > 0),
        ("encryption", &|info| info.encrypted && !info.locked),
        ("snapshots", &|info| !info.snapshots.is_empty()),
        ("bitmaps", &|info| !info.bitmaps.is_empty()),
        ("the mark of one that was not closed", &|info| info.dirty),
        ("the mark of a corrupt one", &|info| {
            detail(info, "corrupt") == Some(Detail::Flag(true))
        }),
        ("zstd", &|info| {
            detail(info, "compression-type") == Some(Detail::Text("zstd".into()))
        }),
        ("refcounts of other than 16 bits", &|info| {
            detail(info, "refcount-bits").is_some_and(|it| it != Detail::Number(16))
        }),
    ];
    let vhd: [Has<'_>; 3] = [
        ("data", &|info| info.virtual_size > 0),
        ("a parent", &|info| info.backing.is_some()),
        ("a part of the head that is broken", &|info| {
            !info.warnings.is_empty()
        }),
    ];
    for (target, kinds) in [("qcow2_fixed_up", &qcow2[..]), ("vhd_fixed_up", &vhd[..])] {
        let infos = std::cell::RefCell::new(Vec::new());
        replay(target, |data| {
            let mut file = data.to_vec();
            let layer = if target == "qcow2_fixed_up" {
                build::qcow2::fix_up(&mut file);
                hostile::open(&goldsmith_qcow2::QCOW2, file, 16 << 20)
            } else {
                build::vhd::fix_up(&mut file);
                hostile::open(&goldsmith_vhd::VHD, file, 16 << 20)
            };
            infos.borrow_mut().extend(layer.map(|it| it.info().clone()));
        });
        for (what, has) in kinds {
            let count = infos.borrow().iter().filter(|info| has(info)).count();
            assert!(count > 0, "no input of {target} has {what}");
            goldsmith_testkit::figure(format_args!("{count} inputs of {target} have {what}"));
        }
    }
}

/// Has QEMU overlook the bitmaps of a qcow2: it refuses images for what is wrong with them, and they are no part
/// of the disk.
fn forget_bitmaps(image: &mut [u8]) {
    const AUTOCLEAR: usize = 95;
    let is_new = image
        .get(4..8)
        .is_some_and(|version| version != [0, 0, 0, 2]);
    if is_new && let Some(flags) = image.get_mut(AUTOCLEAR) {
        *flags &= !1;
    }
}

/// Damaged as the inputs are: what goldsmith reads without an error, QEMU reads too, and the same.
/// The other way round does not hold, because QEMU reads past the end of a file as zeros.
#[test]
fn what_is_read_from_a_qcow2_is_what_qemu_reads() {
    let mut read = 0;
    for (target, fix_up) in [
        ("qcow2_open_read", (|_| {}) as fn(&mut [u8])),
        ("qcow2_fixed_up", build::qcow2::fix_up),
    ] {
        let corpus = folder().join("corpus").join(target);
        for file in corpus.read_dir().unwrap() {
            let path = file.unwrap().path();
            let mut image = std::fs::read(&path).unwrap();
            fix_up(&mut image);
            let outcome = survives(&goldsmith_qcow2::QCOW2, image.clone());
            if let Outcome::Content {
                bytes: Some(mut bytes),
                ..
            } = outcome
            {
                // QEMU leaves off what is less than a sector.
                bytes.truncate(bytes.len() / 512 * 512);
                forget_bitmaps(&mut image);
                assert!(qemu::read("qcow2", &image) == bytes, "{path:?}");
                read += 1;
            }
        }
    }
    assert!(read > 10, "only {read} inputs can be read at all");
}
