//! Differencing VHDs over parents whose footer gives two sizes: all who read them go by the current one.
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

mod support;

use std::path::Path;

use goldsmith::{Commit, NewSize, Opener, Rebase, References, Resize};
use goldsmith_testkit::build::vhd::{Vhd, footer};
use goldsmith_testkit::pattern::disk;
use goldsmith_testkit::qemu;
use support::{Folder, convert};

const BLOCK: usize = 8 << 10;
const BASE: [u8; 16] = *b"the base of them";
/// 34 sectors.
const CHS: [u8; 4] = [0, 1, 2, 17];
const SIZE: usize = 32 << 10;
/// The parent has the third block, in which it ends by its geometry, and the fourth.
const PARENT: &str = "16k:- 8k:B 8k:D";

/// `image` as Virtual PC would have made it, which goes by the geometry.
fn of_two_sizes(image: Vhd) -> Vhd {
    image
        .footer(footer::CREATOR, b"vpc ")
        .footer(footer::CHS, &CHS)
}

fn parents() -> [Vhd; 2] {
    let content = disk(PARENT);
    let kinds = [
        Vhd::dynamic(content.bytes(), BLOCK),
        Vhd::fixed(content.bytes()),
    ];
    kinds.map(|kind| of_two_sizes(kind.footer(footer::UUID, &BASE)))
}

/// Children that hold the second block, of several creators.
fn children() -> [Vhd; 3] {
    let content = disk("8k:- 8k:c 16k:-");
    let child = Vhd::dynamic(content.bytes(), BLOCK).child_of(
        BASE,
        0,
        "base.vhd",
        &[(b"W2ru", r".\base.vhd")],
    );
    let by = |creator: &[u8]| child.clone().footer(footer::CREATOR, creator);
    [by(b"win "), by(b"tap\0"), of_two_sizes(child.clone())]
}

fn opener() -> Opener {
    Opener::new().references(References::SameDirectory)
}

fn read(path: &Path) -> Vec<u8> {
    let chain = opener().open(path, Some("vpc")).unwrap();
    let mut bytes = vec![0xaa; chain.virtual_size() as usize];
    chain.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The disk of QEMU in an image without a parent, by the current size.
fn theirs(path: &Path) -> Vec<u8> {
    let path = path.to_str().unwrap();
    let options = format!("driver=vpc,force_size_calc=current_size,file.filename={path}");
    let raw = format!("{path}.raw");
    qemu::img_ok(&["convert", "--image-opts", &options, "-O", "raw", &raw]);
    std::fs::read(raw).unwrap()
}

/// Calls `with` for each child over each parent, with their folder and what the guest sees.
fn each_child(with: impl Fn(&Folder, &Path, &[u8])) {
    for parent in parents() {
        for child in children() {
            let folder = Folder::new();
            let base = folder.path("base.vhd");
            std::fs::write(&base, parent.bytes()).unwrap();
            let top = folder.path("top.vhd");
            std::fs::write(&top, child.bytes()).unwrap();
            let mut shown = theirs(&base);
            assert_eq!(shown.len(), SIZE);
            shown[BLOCK..2 * BLOCK].copy_from_slice(&disk("8k:- 8k:c").bytes()[BLOCK..]);
            with(&folder, &top, &shown);
        }
    }
}

#[test]
fn child_shows_its_parent_to_the_end_of_the_current_size() {
    each_child(|_, top, shown| assert!(read(top) == shown));
}

#[test]
fn parent_is_read_by_another_rule_if_that_is_asked_for() {
    each_child(|_, top, shown| {
        let opener = opener().option("backing.force_size_calc", "chs");
        let chain = opener.open(top, Some("vpc")).unwrap();
        let end = chain.layers()[1].info().virtual_size as usize;
        let mut bytes = vec![0xaa; SIZE];
        chain.read_at(0, &mut bytes).unwrap();
        assert!(bytes == [&shown[..end], &vec![0; SIZE - end]].concat());
    });
}

#[test]
fn image_that_needs_its_parent_no_longer_holds_all_of_it() {
    each_child(|_, top, shown| {
        let rebase = Rebase::new(top).format("vpc").opener(opener());
        rebase.run().unwrap();
        assert!(read(top) == shown && theirs(top) == shown);
        // Whoever the creator is now, its size is that of the disk.
        assert!(qemu::read("vpc", &std::fs::read(top).unwrap()) == shown);
    });
}

#[test]
fn nothing_of_the_parent_shows_in_bytes_that_are_added() {
    each_child(|_, top, shown| {
        let size = NewSize::Exactly(5 * BLOCK as u64);
        let resize = Resize::new(top, size).format("vpc").opener(opener());
        resize.run().unwrap();
        assert!(read(top) == [shown, &[0; BLOCK]].concat());
    });
}

#[test]
fn zeros_over_the_end_of_a_parent_are_written_to_the_child() {
    for parent in parents() {
        let folder = Folder::new();
        std::fs::write(folder.path("base.vhd"), parent.bytes()).unwrap();
        let content = disk("40k:-");
        let raw = folder.write("source.raw", &content);
        let top = folder.path("top.vhd");
        convert((&raw, "raw"), (&top, "vpc"))
            .backing("base.vhd", "vpc")
            .run()
            .unwrap();
        // Whatever size of its parent a reader goes by.
        for rule in ["chs", "current_size"] {
            let opener = opener().option("backing.force_size_calc", rule);
            let chain = opener.open(&top, Some("vpc")).unwrap();
            let mut bytes = vec![0xaa; content.bytes().len()];
            chain.read_at(0, &mut bytes).unwrap();
            assert!(bytes == content.bytes(), "{rule}");
        }
    }
}

/// Which size of an image is the disk's is another one once it has a parent.
#[test]
fn image_of_two_sizes_gets_no_parent_while_data_stand_between_the_two() {
    for (content, is_refused) in [("32k:A", true), ("17408:A 15k:-", false)] {
        let folder = Folder::new();
        folder.write("base.raw", &disk("32k:R"));
        let top = folder.path("top.vhd");
        let content = disk(content);
        let image = of_two_sizes(Vhd::dynamic(content.bytes(), BLOCK)).bytes();
        std::fs::write(&top, &image).unwrap();
        let shown = read(&top);
        let rebase = Rebase::new(&top).format("vpc").opener(opener());
        let outcome = rebase.onto("base.raw", Some("raw")).run();
        if is_refused {
            let report = outcome.unwrap_err().report();
            assert!(
                report.contains("17408 bytes by one of the two sizes"),
                "{report}"
            );
        } else {
            outcome.unwrap();
        }
        assert!(read(&top) == shown);
    }
}

/// Which of the two the base has from then on nobody can know, unless somebody says so.
#[test]
fn parent_of_two_sizes_takes_its_child_only_by_the_stated_one() {
    each_child(|folder, top, shown| {
        let base = folder.path("base.vhd");
        let before = [&base, top].map(|path| std::fs::read(path).unwrap());
        let commit = |opener: Opener| Commit::new(top).format("vpc").opener(opener).run();
        let error = commit(opener()).unwrap_err();
        assert!(
            error.report().starts_with(base.to_str().unwrap()),
            "{}",
            error.report()
        );
        assert!([&base, top].map(|path| std::fs::read(path).unwrap()) == before);
        commit(opener().option("backing.force_size_calc", "current_size")).unwrap();
        assert!(read(top) == shown && theirs(&base) == shown);
    });
    // Of a base that is shorter for those behind whom it stands.
    let folder = Folder::new();
    let content = disk("17408:A");
    let short = Vhd::dynamic(content.bytes(), BLOCK)
        .footer(footer::UUID, &BASE)
        .footer(footer::CURRENT_SIZE, &(16_u64 << 10).to_be_bytes());
    std::fs::write(folder.path("base.vhd"), of_two_sizes(short).bytes()).unwrap();
    let raw = folder.write("source.raw", &disk("17408:c"));
    let top = folder.path("top.vhd");
    convert((&raw, "raw"), (&top, "vpc"))
        .backing("base.vhd", "vpc")
        .run()
        .unwrap();
    let shown = read(&top);
    let commit = Commit::new(&top).format("vpc").opener(opener());
    commit.run().unwrap_err();
    assert!(read(&top) == shown);
}

#[test]
fn chain_in_a_container_shows_what_it_shows_outside() {
    each_child(|folder, top, shown| {
        let (tgz, back) = (folder.path("chain.tgz"), folder.path("back.raw"));
        for (name, member) in [(top, "0.vhd"), (&folder.path("base.vhd"), "1.vhd")] {
            std::fs::copy(name, folder.path(member)).unwrap();
        }
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(folder.path("")).arg("-czf").arg(&tgz);
        assert!(tar.args(["0.vhd", "1.vhd"]).status().unwrap().success());
        convert((&tgz, "xenserver-ovf"), (&back, "raw"))
            .run()
            .unwrap();
        let found = std::fs::read(&back).unwrap();
        let differ = found.iter().zip(shown).position(|(a, b)| a != b);
        assert_eq!((found.len(), differ), (shown.len(), None));
    });
}
