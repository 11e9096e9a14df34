"""What a new file gets from the old one that it is going to replace."""

import contextlib
import errno
import os

# Who may do what with a file besides owner, group and others.
ACL = "system.posix_acl_access"


def inherit(new: str, old: str) -> None:
    """Gives the file `new` the owner, the group and the rights of the file `old`.

    What cannot be given away is the caller's own then, and nobody gets a right that he had not.
    """
    found, acl = os.stat(old), _acl(old)
    in_group = _give(new, found.st_uid, found.st_gid) or _give(new, -1, found.st_gid)
    # The folder may have given it one.
    if _acl(new) is not None:
        os.removexattr(new, ACL)
    if acl is None:
        os.chmod(new, _rights(found.st_mode, in_group))
        return
    # Also where the list cannot be given: who may do what without it nobody knows.
    os.chmod(new, found.st_mode & 0o700)
    if in_group:
        with contextlib.suppress(OSError):
            os.setxattr(new, ACL, acl)


def _give(path: str, owner: int, group: int) -> bool:
    """Whether the file at `path` is theirs now; -1 leaves it to whom it belongs."""
    # Only root gives files away, and others to groups of theirs; nobody to a user that is not in
    # the namespace. Servers have rules of their own.
    with suppressed(errno.EPERM, errno.EACCES, errno.EINVAL):
        os.chown(path, owner, group)
        return True
    return False


def _acl(path: str) -> bytes | None:
    """The access control list of the file at `path`, if it has one."""
    # Python knows them on Linux alone.
    if hasattr(os, "getxattr"):
        with suppressed(errno.ENODATA, errno.EOPNOTSUPP):
            return os.getxattr(path, ACL)
    return None


def _rights(mode: int, in_group: bool) -> int:
    """What is left of the rights in `mode`, of a file in its group or in another one."""
    if in_group:
        return mode & 0o777
    # The new group's members were others, or of the old one, whose members are others now.
    both = (mode >> 3) & mode & 0o7
    return mode & 0o700 | both << 3 | both


@contextlib.contextmanager
def suppressed(*numbers: int):
    """Passes over what the system answers with one of these error numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
