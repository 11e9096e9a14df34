//! Who may read and write what was replaced.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Output};

use goldsmith_testkit::{mount, pattern};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::{Place, output, said};

/// Where the kernel keeps access control lists.
const ACCESS: &str = "system.posix_acl_access";

/// A file "disk" of root's and of group 36 in a directory of root's that all may write to, a "source", and
/// the command.
fn place() -> Place {
    let place = Place::new();
    // Neither the command nor its directory need be anybody's. Were it written to by this process, whatever
    // another test started meanwhile would hold it open, and nobody could run it.
    let mut copy = Command::new("cp");
    copy.args([
        env!("CARGO_BIN_EXE_goldsmith").as_ref(),
        &*place.path("goldsmith"),
    ]);
    assert!(output(&mut copy).status.success());
    place.write("source", &pattern::disk("64k:A"));
    place.write("disk", &pattern::disk("64k:B"));
    chown(place.path("disk"), Some(0), Some(36)).unwrap();
    open(&place, "", 0o777);
    place
}

fn open(place: &Place, path: &str, mode: u32) {
    fs::set_permissions(place.path(path), Permissions::from_mode(mode)).unwrap();
}

/// Converts "source" to "disk", as a user in the groups `groups`, of which the first is the one of his files.
fn convert(place: &Place, groups: [&str; 2]) -> Output {
    let mut command = Command::new("setpriv");
    command
        .arg("--reuid=1000")
        .arg(format!("--regid={}", groups[0]))
        .arg(format!("--groups={}", groups.join(",")))
        .current_dir(place.path(""))
        .arg(place.path("goldsmith"))
        .args("convert -f raw -O raw source disk".split(' '));
    output(&mut command)
}

/// Replaces the file, which has the mode `before`; gives the new file's group and mode.
fn replaced(groups: [&str; 2], before: u32, list: Option<&[u8]>) -> (u32, u32) {
    let place = place();
    open(&place, "disk", before);
    if let Some(list) = list {
        setxattr(place.path("disk"), ACCESS, list, XattrFlags::empty()).unwrap();
    }
    let done = convert(&place, groups);
    assert!(done.status.success(), "{done:?}");
    let metadata = fs::metadata(place.path("disk")).unwrap();
    getxattr(place.path("disk"), ACCESS, &mut [0; 100][..]).unwrap_err();
    assert_eq!(metadata.uid(), 1000);
    assert_eq!(place.bytes("disk"), place.bytes("source"));
    (metadata.gid(), metadata.mode() & 0o777)
}

/// As in `/tmp`: it could be written to, but not be replaced by the finished file.
#[test]
fn file_of_somebody_else_in_a_sticky_directory_is_refused_before_any_work() {
    if !mount::are_allowed("files of other users") {
        return;
    }
    let place = place();
    open(&place, "disk", 0o666);
    open(&place, "", 0o1777);
    let done = convert(&place, ["100", "101"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("only owners replace files"), "{said}");
    assert!(!said.contains("sandbox"), "{said}");
    // Whose the file or the directory is may.
    for owners in [["disk", ""], ["", "disk"]] {
        chown(place.path(owners[0]), Some(1000), None).unwrap();
        chown(place.path(owners[1]), Some(0), None).unwrap();
        let done = convert(&place, ["100", "101"]);
        assert!(done.status.success(), "{done:?}");
        assert_eq!(place.bytes("disk"), place.bytes("source"));
    }
}

#[test]
fn nobody_may_read_what_is_replaced_who_could_not_before() {
    if !mount::are_allowed("files of other users") {
        return;
    }
    // The group stays, with its rights, where the user is in it.
    assert_eq!(replaced(["100", "36"], 0o660, None), (36, 0o660));
    // Where not, group 100 may do what both it, as others, and the group could.
    assert_eq!(replaced(["100", "101"], 0o666, None), (100, 0o666));
    assert_eq!(replaced(["100", "101"], 0o646, None), (100, 0o644));
    // A list that cannot be kept may have forbidden something: user 4242 everything, the group everything,
    // though the mask and others read.
    let entries = [
        (1, 6, u32::MAX),
        (2, 6, 1000),
        (2, 0, 4242),
        (4, 0, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 4, u32::MAX),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(u16::to_le_bytes(tag));
        list.extend(u16::to_le_bytes(rights));
        list.extend(u32::to_le_bytes(id));
    }
    let found = replaced(["100", "101"], 0o600, Some(&list));
    assert_eq!(found, (100, 0o600));
}

/// Who may write the file and not make one beside it is told that, and not to blame the sandbox.
#[test]
fn directory_in_which_nothing_can_be_made_is_told_as_such() {
    let place = place();
    open(&place, "disk", 0o666);
    open(&place, "", 0o555);
    let done = convert(&place, ["1000", "1000"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_eq!(
        said(&done),
        "goldsmith: disk: cannot create a file in its directory: Permission denied (os error 13)"
    );
    open(&place, "", 0o777);
}
