//! What this machine is and has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where system tools live that are not on everybody's path.
const MORE_PATH: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The program called `name`, wherever it is.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_PATH.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Bytes of memory that can be taken without driving anything out.
pub(crate) fn free_memory() -> io::Result<u64> {
    memory("MemAvailable:")
}

fn memory(key: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    memory_of(&text, key).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Free bytes of the file system at `path`.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The type of the file system at `path`, which exists.
pub(crate) fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = std::path::absolute(path).unwrap_or_default();
    file_system_of(&mounts, &path).unwrap_or_else(|| "unknown".into())
}

/// The hardware and the kernel, a fact per line.
pub(crate) fn hardware() -> Vec<(&'static str, String)> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model)
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory_of(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    vec![
        ("processor", format!("{model}, {cores} cores")),
        (
            "memory",
            format!("{:.1} GiB", memory as f64 / f64::from(1 << 30)),
        ),
        (
            "kernel",
            format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        ),
        ("load at the start", load),
    ]
}

/// What `program` says when asked for its version: the first line.
pub(crate) fn version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    said.lines().next().unwrap_or("unknown").to_owned()
}

/// The value of `key` in the text of /proc/meminfo, in bytes.
fn memory_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The type of the innermost mount that holds `path`.
fn file_system_of(mounts: &str, path: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((Path::new(fields.next()?), fields.next()?))
        })
        .filter(|(mount, _)| path.starts_with(mount))
        // Of two mounts on one directory the later one hides the other.
        .max_by_key(|(mount, _)| mount.components().count())
        .map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_and_latest_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nb /mnt xfs rw 0 0\n\
                      c /mnt btrfs rw 0 0\n";
        let kind = |path| file_system_of(mounts, Path::new(path)).unwrap();
        assert_eq!(kind("/dev/shm/x"), "tmpfs");
        assert_eq!(kind("/dev/shmem"), "ext4");
        assert_eq!(kind("/mnt/x/y"), "btrfs");
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = "MemTotal:       24 kB\nMemAvailable:    3 kB\n";
        assert_eq!(memory_of(text, "MemAvailable:"), Some(3072));
        assert_eq!(memory_of(text, "SwapTotal:"), None);
    }

    #[test]
    fn this_machine_answers() {
        assert!(free_memory().unwrap() > 0);
        assert!(free_space(Path::new("/")).is_ok());
        assert!(tool("sh").is_some());
        assert!(tool("no-such-tool").is_none());
        assert_ne!(file_system(Path::new("/")), "unknown");
    }
}
