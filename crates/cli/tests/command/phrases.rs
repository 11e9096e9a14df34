//! What goes wrong, told by both commands: the same exit status, and the words that scripts look for.

use std::os::unix::fs::symlink;
use std::process::Command;

use goldsmith_testkit::pattern::disk;

use crate::Folder;

/// A folder with the images that the lines name, and goldsmith under the name `qemu-img` in `bin`.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A 1M:-"));
    for line in [
        "convert -f raw -O qcow2 golden.raw disk.qcow2",
        "snapshot -c one disk.qcow2",
        "bitmap --add disk.qcow2 monday",
        "create -q -f qcow2 -b disk.qcow2 -F qcow2 over.qcow2",
        "convert -f raw -O qcow2 golden.raw plain.qcow2",
        "create -q -f raw small.raw 1M",
        "convert -f raw -O vpc -o force_size=on golden.raw disk.vhd",
    ] {
        folder.qemu_img_ok(line);
    }
    std::fs::create_dir(folder.path("bin")).unwrap();
    let goldsmith = env!("CARGO_BIN_EXE_goldsmith");
    symlink(goldsmith, folder.path("bin/qemu-img")).unwrap();
    folder
}

/// Runs both, and holds them against each other; gives what ours and theirs said on standard error.
fn both(folder: &Folder, line: &str) -> [String; 2] {
    let words: Vec<_> = line.split(' ').collect();
    let before = files(folder);
    let ours = folder.run(Command::new(folder.path("bin/qemu-img")).args(&words));
    assert_eq!(files(folder), before, "{line} leaves something behind");
    let theirs = folder.run(Command::new("qemu-img").args(&words));
    // QEMU leaves some targets behind.
    let _ = std::fs::remove_file(folder.path("out"));
    assert_ne!(theirs.status, 0, "{line}: {theirs:?}");
    assert_eq!(ours.status, theirs.status, "{line}: {ours:?} {theirs:?}");
    // QEMU says what it makes before it fails to.
    assert!(ours.stdout.is_empty(), "{line}: {ours:?}");
    let begins = ours.stderr.starts_with("qemu-img: ");
    assert!(begins, "{line}: {ours:?}");
    [ours.stderr, theirs.stderr]
}

/// The command line, and the words that are in what both say; none where a person has to read it.
const FAILURES: &str = "\
info nothing | Could not open 'nothing':
info nothing | No such file or directory
info -f qcow2 golden.raw | Could not open 'golden.raw': Image is not in qcow2 format
info -f nosuch golden.raw | Could not open 'golden.raw': Unknown driver 'nosuch'
info foo:bar | Could not open 'foo:bar': Unknown protocol 'foo'
info |
info golden.raw disk.qcow2 |
info --nosuch golden.raw | --nosuch
info --output=xml golden.raw | xml
map nothing | Could not open 'nothing':
map -f qcow2 golden.raw | Could not open 'golden.raw': Image is not in qcow2 format
map --output=xml golden.raw | xml
check nothing | Could not open 'nothing':
check -f qcow2 golden.raw | Could not open 'golden.raw': Image is not in qcow2 format
check -f raw golden.raw | This image format does not support checks
check -r nosuch disk.qcow2 | nosuch
compare golden.raw |
compare nothing golden.raw | Could not open 'nothing':
compare golden.raw nothing | No such file or directory
compare -f qcow2 golden.raw golden.raw | Could not open 'golden.raw': Image is not in qcow2 format
compare -f nosuch golden.raw golden.raw | Could not open 'golden.raw': Unknown driver 'nosuch'
convert nothing out | Could not open 'nothing':
convert -f qcow2 golden.raw out | Could not open 'golden.raw': Image is not in qcow2 format
convert -f nosuch golden.raw out | Could not open 'golden.raw': Unknown driver 'nosuch'
convert -O nosuch golden.raw out | Unknown file format 'nosuch'
convert golden.raw |
convert -O qcow2 -o nosuch=1 golden.raw out | Invalid parameter 'nosuch'
convert -O qcow2 -o cluster_size=5000 golden.raw out | Cluster size must be a power of two between 512 and 2048k
convert -O qcow2 -o cluster_size=lots golden.raw out | Parameter 'cluster_size' expects a
convert -O qcow2 -o compat=2 golden.raw out | does not accept value '2'
convert -O qcow2 -o preallocation=much golden.raw out | Parameter 'preallocation' does not accept value 'much'
convert -O qcow2 -o lazy_refcounts=maybe golden.raw out | Parameter 'lazy_refcounts' expects 'on' or 'off'
convert -O qcow2 -o refcount_bits=3 golden.raw out |
convert -O raw -c golden.raw out | Compression not supported for this file format
convert -O vpc -c golden.raw out | Compression not supported for this file format
convert -O vpc -o subformat=nosuch golden.raw out | Parameter 'subformat' does not accept value 'nosuch'
convert --bitmaps -O qcow2 golden.raw out | Source lacks bitmap support
convert -l nothing disk.qcow2 out | Can't find snapshot
convert -l one golden.raw out |
convert -S nosuch golden.raw out | nosuch
convert -m 0 golden.raw out |
convert -m nosuch golden.raw out | nosuch
convert -t nosuch golden.raw out | nosuch
convert -T nosuch golden.raw out | nosuch
convert golden.raw nowhere/out | No such file or directory
convert -O qcow2 -B nothing -F qcow2 golden.raw out | Could not open 'nothing': No such file or directory
convert -O raw -B disk.qcow2 -F qcow2 golden.raw out | Backing file not supported for file format 'raw'
convert -n golden.raw nothing | Could not open 'nothing':
convert -n -f raw -O raw golden.raw small.raw | output file is smaller than input file
dd if=nothing of=out | Could not open 'nothing':
dd if=golden.raw nosuch=1 |
dd |
create -f nosuch out 1M | Unknown file format 'nosuch'
create -f qcow2 out | Image creation needs a size parameter
create -f raw out | Image creation needs a size parameter
create -f qcow2 out 1Q | Invalid image size specified: '1Q'
create -f qcow2 -o size=1M out 1M | The image size must be specified only once
create -f qcow2 -o nosuch=1 out 1M | Invalid parameter 'nosuch'
create -f qcow2 -o cluster_size=5000 out 1M | Cluster size must be a power of two between 512 and 2048k
create -f qcow2 -b nothing -F qcow2 out | Could not open 'nothing': No such file or directory
create -f qcow2 -b disk.qcow2 out | Backing file specified without backing format
create -f qcow2 -b golden.raw -F nosuch out | 'nosuch'
create -f raw -b disk.qcow2 -F qcow2 out | Backing file not supported for file format 'raw'
create -f qcow2 nowhere/out 1M | No such file or directory
create |
create -f qcow2 -o backing_file=out,backing_fmt=qcow2 out |
resize disk.qcow2 |
resize nothing 2M | Could not open 'nothing':
resize -f qcow2 disk.qcow2 1M | Use the --shrink option to perform a shrink operation
resize -f raw golden.raw -1M | Use the --shrink option to perform a shrink operation
resize -f raw --shrink golden.raw -100M | New image size must be positive
resize -f raw golden.raw nosuch |
resize -f qcow2 --preallocation=nosuch disk.qcow2 4M | Invalid preallocation mode 'nosuch'
resize -f qcow2 --shrink --preallocation=full disk.qcow2 1M | Preallocation can only be used for growing images
snapshot -a nothing plain.qcow2 | Could not apply snapshot 'nothing':
snapshot -d nothing disk.qcow2 | Could not delete snapshot 'nothing':
snapshot -c two -f raw golden.raw | Could not create snapshot 'two':
snapshot -l nothing | Could not open 'nothing':
snapshot -c a -d b disk.qcow2 |
snapshot |
rebase disk.qcow2 | Must specify backing file (-b) or use unsafe mode (-u)
rebase -b nothing -F qcow2 over.qcow2 | Could not open 'nothing': No such file or directory
rebase -b golden.raw over.qcow2 | Could not change the backing file to 'golden.raw': backing format must be specified
rebase -b golden.raw -F nosuch over.qcow2 | 'nosuch'
rebase -b over.qcow2 -F qcow2 over.qcow2 |
rebase -f raw -b disk.qcow2 -F qcow2 golden.raw |
commit disk.qcow2 | Image does not have a backing file
commit nothing | Could not open 'nothing':
commit -b nothing over.qcow2 | Did not find 'nothing' in the backing chain of 'over.qcow2'
commit -f raw golden.raw | Image does not have a backing file
amend -o nosuch=1 disk.qcow2 | Invalid parameter 'nosuch'
amend -f raw -o size=4M golden.raw | Format driver 'raw' does not support option amendment
amend -f vpc -o size=4M disk.vhd | Format driver 'vpc' does not support option amendment
amend -f qcow2 -o refcount_bits=3 disk.qcow2 |
amend disk.qcow2 |
amend nothing -o compat=1.1 | Could not open 'nothing':
bitmap disk.qcow2 monday | Need at least one of --add, --remove, --clear, --enable, --disable, or --merge
bitmap --remove disk.qcow2 tuesday | Operation remove on bitmap tuesday failed:
bitmap --add disk.qcow2 monday | Operation add on bitmap monday failed:
bitmap --add -g 100 disk.qcow2 tuesday | Operation add on bitmap tuesday failed:
bitmap --merge tuesday disk.qcow2 monday | Operation merge on bitmap monday failed: Dirty bitmap 'tuesday' not found
bitmap --add disk.qcow2 |
bitmap --add -f raw golden.raw monday | Operation add on bitmap monday failed:
measure | Either --size N or one filename must be specified.
measure nothing | Could not open 'nothing':
measure --size 1M golden.raw | --size N cannot be used together with a filename.
measure -O nosuch golden.raw | Unknown file format 'nosuch'
measure --size nosuch | nosuch
measure -O qcow2 -o nosuch=1 golden.raw | Invalid parameter 'nosuch'
measure -O qcow2 -o cluster_size=5000 golden.raw | Cluster size must be a power of two between 512 and 2048k
measure -l nothing disk.qcow2 | Can't find snapshot
nosuch | Command not found: nosuch
";

#[test]
fn failures_have_qemu_img_s_exit_status_and_words() {
    let folder = folder();
    for row in FAILURES.lines() {
        let (line, words) = row.split_once(" |").unwrap();
        for said in both(&folder, line) {
            assert!(said.contains(words.trim()), "{line}: {said}");
        }
    }
}

fn files(folder: &Folder) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(folder.path("")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}
