//! Who may read and write what was replaced.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use goldsmith_testkit::{mount, pattern};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::{Place, output};

/// Where the kernel keeps access control lists.
const ACCESS: &str = "system.posix_acl_access";

/// Replaces a file of root's and of group 36 with the mode `before`, as a user in the groups `groups`,
/// of which the first is the one of his files; gives the new file's group and mode.
fn replaced(groups: [&str; 2], before: u32, list: Option<&[u8]>) -> (u32, u32) {
    let place = Place::new();
    let open = |path: &str, mode| {
        fs::set_permissions(place.path(path), Permissions::from_mode(mode)).unwrap();
    };
    // Neither the command nor its directory need be anybody's.
    fs::copy(env!("CARGO_BIN_EXE_goldsmith"), place.path("goldsmith")).unwrap();
    place.write("source", &pattern::disk("64k:A"));
    place.write("disk", &pattern::disk("64k:B"));
    chown(place.path("disk"), Some(0), Some(36)).unwrap();
    open("", 0o777);
    open("disk", before);
    if let Some(list) = list {
        setxattr(place.path("disk"), ACCESS, list, XattrFlags::empty()).unwrap();
    }
    let user = ["--reuid=1000", &format!("--regid={}", groups[0])].map(str::to_owned);
    let mut command = Command::new("setpriv");
    command
        .args(user)
        .arg(format!("--groups={}", groups.join(",")));
    command
        .current_dir(place.path(""))
        .arg(place.path("goldsmith"));
    command.args("convert -f raw -O raw source disk".split(' '));
    let done = output(&mut command);
    assert!(done.status.success(), "{done:?}");
    let metadata = fs::metadata(place.path("disk")).unwrap();
    getxattr(place.path("disk"), ACCESS, &mut [0; 100][..]).unwrap_err();
    assert_eq!(metadata.uid(), 1000);
    assert_eq!(place.bytes("disk"), place.bytes("source"));
    (metadata.gid(), metadata.mode() & 0o777)
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
