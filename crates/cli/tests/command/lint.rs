//! `goldsmith lint`, and `goldsmith convert --for`

use std::process::Command;

use goldsmith_testkit::pattern::disk;
use serde_json::Value;

use crate::Folder;

#[test]
fn finding_is_told_with_its_reason_and_its_mend() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 19M:- 512:b"));
    folder.goldsmith_ok("convert -f raw -O vpc -o subformat=fixed disk.raw disk.vhd");
    let done = folder.goldsmith("lint --for azure -f vpc disk.vhd");
    assert_eq!((done.status, &*done.stderr), (1, ""));
    assert_eq!(
        done.stdout,
        "virtual-size is 20972032; it must be a multiple of 1048576\n    \
         why:  Azure refuses disks that are no whole number of MiB\n    \
         mend: goldsmith convert --for azure disk.vhd NEW\n"
    );
    let done = folder.goldsmith("lint --for azure --output=json disk.vhd");
    assert_eq!(done.status, 1);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["cloud"], "azure");
    assert_eq!(report["filename"], "disk.vhd");
    let finding = &report["findings"][0];
    assert_eq!(finding["fact"], "virtual-size");
    assert_eq!(finding["found"], "20972032");
    assert_eq!(finding["must-be"], "a multiple of 1048576");
    assert_eq!(
        finding["mend"],
        "goldsmith convert --for azure disk.vhd NEW"
    );
    assert!(report["findings"].get(1).is_none());

    // Whatever its name, it is told as a shell would understand it.
    std::fs::copy(folder.path("disk.vhd"), folder.path("$(disk).vhd")).unwrap();
    let done = folder.goldsmith("lint --for azure $(disk).vhd");
    let mend = "mend: goldsmith convert --for azure '$(disk).vhd' NEW";
    assert!(done.stdout.contains(mend), "{done:?}");

    // Done as told.
    let done = folder.goldsmith("convert --for azure disk.vhd new.vhd");
    assert_eq!((done.status, &*done.stderr), (0, ""));
    assert_eq!(
        done.stdout,
        "goldsmith: warning: new.vhd: the disk grew by 1048064 zero bytes to 22020096, a size that \
         azure takes\n"
    );
    let said = folder.goldsmith_ok("lint --for azure new.vhd");
    assert_eq!(said, "new.vhd: nothing that azure would refuse\n");
    let quiet = folder.goldsmith("convert -q --for azure disk.vhd new.vhd");
    assert_eq!((quiet.status, &*quiet.stdout, &*quiet.stderr), (0, "", ""));
}

/// What `info` finds out of the tables counts as well: nobody starts from an image that is marked as damaged,
/// or reads one that was cut.
#[test]
fn damaged_image_is_a_finding() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 1M:b"));
    for line in ["-O qcow2 disk.raw marked.qcow2", "-O vpc disk.raw cut.vhd"] {
        folder.goldsmith_ok(&format!("convert -f raw {line}"));
    }
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(folder.path(name)).unwrap();
        change(&mut bytes);
        std::fs::write(folder.path(name), bytes).unwrap();
    };
    let sound = folder.goldsmith_ok("lint --for kvm -f qcow2 marked.qcow2");
    assert!(sound.contains("nothing that kvm would refuse"));
    change("marked.qcow2", &|bytes| bytes[79] |= 2);
    folder.qemu_img_ok("convert -f raw -O qcow2 disk.raw cut.qcow2");
    change("cut.qcow2", &|bytes| bytes.truncate(bytes.len() - 200_000));
    // [spec BAT] The first entry, of what stands behind the end of the file.
    change("cut.vhd", &|bytes| bytes[1536] = 0x10);
    for (cloud, format, name) in [
        ("kvm", "qcow2", "marked.qcow2"),
        ("kvm", "qcow2", "cut.qcow2"),
        ("hyperv", "vpc", "cut.vhd"),
    ] {
        let done = folder.goldsmith(&format!("lint --for {cloud} -f {format} {name}"));
        assert_eq!((done.status, &*done.stderr), (1, ""), "{name}: {done:?}");
        let told = "the image is damaged; goldsmith info says how";
        assert!(done.stdout.contains(told), "{name}: {done:?}");
    }
    std::fs::rename(folder.path("cut.vhd"), folder.path("0.vhd")).unwrap();
    let tar = ["-czf", "cut.tgz", "0.vhd"];
    assert_eq!(folder.run(Command::new("tar").args(tar)).status, 0);
    let done = folder.goldsmith("lint --for xenserver-ovf -f xenserver-ovf cut.tgz");
    assert!(
        done.stdout.contains("damage is 1; it must be 0"),
        "{done:?}"
    );
}

#[test]
fn image_that_cannot_be_opened_is_no_finding() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    for line in [
        "lint --for kvm gone.raw",
        "lint --for kvm -f qcow2 disk.raw",
        "lint --for kvm --expect qcow2 disk.raw",
    ] {
        let done = folder.goldsmith(line);
        assert_eq!((done.status, &*done.stdout), (2, ""), "{done:?}");
        assert!(!done.stderr.is_empty());
    }
}

#[test]
fn unknown_cloud_and_two_formats_are_refused() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A"));
    for line in [
        "convert --for mars disk.raw new",
        "convert --for azure -O qcow2 disk.raw new",
    ] {
        let done = folder.goldsmith(line);
        assert_eq!(done.status, 1, "{done:?}");
    }
    let done = folder.goldsmith("lint --for mars disk.raw");
    assert_eq!(done.status, 2, "{done:?}");
    assert!(
        done.stderr
            .contains("there are: azure, xenserver, xenserver-ovf, hyperv, kvm"),
        "{done:?}"
    );
}

#[test]
fn options_of_a_cloud_give_way_to_those_of_the_user() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("4M:A"));
    folder.goldsmith_ok("convert --for xenserver -o batmap=off -f raw disk.raw disk.vhd");
    let image = std::fs::read(folder.path("disk.vhd")).unwrap();
    assert_eq!(image[28..32], *b"qem2");
    folder.goldsmith_ok("convert --for xenserver -f raw disk.raw disk.vhd");
    let image = std::fs::read(folder.path("disk.vhd")).unwrap();
    assert_eq!(image[28..32], *b"tap\0");
    let help = folder.goldsmith_ok("convert --for xenserver -o help");
    assert!(help.contains("batmap=<on|off>"), "{help}");
}

#[test]
fn container_of_xenserver_is_made_told_and_found_good() {
    let folder = Folder::new();
    folder.write("golden.raw", &disk("1M:A 3M:- 2M:b"));
    folder.goldsmith_ok("convert --for xenserver-ovf golden.raw disk.tgz");
    let info = folder.goldsmith_ok("info disk.tgz");
    for line in [
        "file format: xenserver-ovf\n",
        "virtual size: 6 MiB (6291456 bytes)\n",
        "            name: 0.vhd\n",
    ] {
        assert!(info.contains(line), "{info}");
    }
    assert_eq!(
        folder.goldsmith_ok("lint --for xenserver-ovf disk.tgz"),
        "disk.tgz: nothing that xenserver-ovf would refuse\n"
    );
    folder.goldsmith_ok("convert -O vpc disk.tgz disk.vhd");
    let done = folder.goldsmith("lint --for xenserver-ovf disk.vhd");
    assert_eq!(done.status, 1);
    assert!(
        done.stdout
            .contains("format is vpc; it must be xenserver-ovf"),
        "{done:?}"
    );
    // Nothing is stored on the way, neither to make one nor to tell of it.
    let nowhere = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldsmith"));
        folder.run(command.args(line.split(' ')).env("TMPDIR", "/nonexistent"))
    };
    for line in [
        "convert --for xenserver-ovf golden.raw again.tgz",
        "measure -O xenserver-ovf golden.raw",
        "info again.tgz",
        "lint --for xenserver-ovf again.tgz",
    ] {
        let done = nowhere(line);
        assert_eq!((done.status, &*done.stderr), (0, ""), "{line}");
    }
    folder.goldsmith_ok("convert -f xenserver-ovf -O raw disk.tgz back.raw");
    folder.qemu_img_ok("compare -f raw -F raw golden.raw back.raw");
    let done = folder.goldsmith("convert --unpack-limit 1M -O raw disk.tgz back.raw");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("1048576 allowed are left"), "{done:?}");
}

/// The parents, too: each of them is imported.
#[test]
fn every_member_of_a_container_is_looked_at() {
    let folder = Folder::new();
    folder.write("base.raw", &disk("2M:A 2M:-"));
    folder.write("disk.raw", &disk("1M:A 3M:b"));
    for line in [
        "convert -O vpc -o block_size=512k base.raw 1.vhd",
        "convert -O vpc -B 1.vhd -F vpc disk.raw 0.vhd",
    ] {
        folder.goldsmith_ok(line);
    }
    let tar = ["-czf", "disk.tgz", "0.vhd", "1.vhd"];
    assert_eq!(folder.run(Command::new("tar").args(tar)).status, 0);
    let done = folder.goldsmith("lint --for xenserver-ovf disk.tgz");
    assert_eq!((done.status, &*done.stderr), (1, ""));
    let is_head = |line: &&str| !line.starts_with(' ');
    let found: Vec<_> = done.stdout.lines().filter(is_head).collect();
    assert_eq!(
        found,
        ["block-size of 1.vhd is 524288; it must be 2097152"],
        "{done:?}"
    );
    let done = folder.goldsmith("lint --output=json --for xenserver-ovf disk.tgz");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["findings"][0]["member"], "1.vhd");
    // What is done about it.
    folder.goldsmith_ok("convert --for xenserver-ovf disk.tgz mended.tgz");
    folder.goldsmith_ok("lint --for xenserver-ovf mended.tgz");
}

/// Whatever else is asked for, and whatever the disk holds: no target, rather than one that is refused.
#[test]
fn what_its_cloud_would_refuse_is_not_made() {
    let folder = Folder::new();
    folder.write("disk.raw", &disk("1M:A 20M:- 512:b"));
    folder.goldsmith_ok("convert -f raw -O vpc disk.raw base.vhd");
    folder.goldsmith_ok("convert -f raw -O qcow2 disk.raw nested");
    for (line, fact) in [
        (
            "--for azure -o subformat=dynamic disk.raw",
            "its subformat would be dynamic, and must be fixed",
        ),
        (
            "--for openstack-raw nested",
            "its looks-like would be qcow2, and must be raw",
        ),
        (
            "--for xenserver -B base.vhd -F vpc disk.raw",
            "its subformat would be differencing",
        ),
        (
            "--for xenserver -o force_size=off disk.raw",
            "its virtual-size would be",
        ),
        (
            "--for xenserver --timestamp 4000000000 disk.raw",
            "its timestamp would be 4000000000",
        ),
        (
            "--for kvm -o data_file=data disk.raw",
            "its data-file would be true",
        ),
    ] {
        // What only the disk shows is seen when it has been copied.
        let is_of_disk = line.contains("nested");
        let resumed = format!("--resume journal {line}");
        let dry = format!("--dry-run {line}");
        let goes = !line.contains("data_file");
        let more = [(&*resumed, goes), (&*dry, !is_of_disk)];
        let more = more.into_iter().filter(|(_, goes)| *goes);
        for line in std::iter::once(line).chain(more.map(|(line, _)| line)) {
            let refused = folder.goldsmith(&format!("convert -f raw {line} out"));
            assert_eq!(refused.status, 1, "{line}: {refused:?}");
            assert!(refused.stderr.contains(fact), "{line}: {refused:?}");
            for name in ["out", "data"] {
                assert!(!folder.path(name).exists(), "{line}");
            }
            assert!(is_of_disk || !folder.path("journal").exists(), "{line}");
            for entry in std::fs::read_dir(folder.path("")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if name == "journal" || name.starts_with('.') {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }
    // As of a container, which is read in one pass.
    folder.goldsmith_ok("convert -f raw --for xenserver-ovf nested nested.tgz");
    let refused = folder.goldsmith("convert -f xenserver-ovf --for openstack-raw nested.tgz out");
    assert_eq!(refused.status, 1, "{refused:?}");
    let fact = "its looks-like would be qcow2";
    assert!(refused.stderr.contains(fact), "{refused:?}");
    assert!(!folder.path("out").exists());
}
