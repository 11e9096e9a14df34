//! The outside judge: QEMU's tools, run for real.
//!
//! # Panics
//! Everything here panics when a tool is missing or disagrees. A differential test that skips
//! itself proves nothing.

use std::path::Path;
use std::process::{Command, Output};

use crate::hostile::SECRET;
use crate::model::ModelDisk;

/// Runs `qemu-img` with `args`, whatever comes of it.
pub fn img(args: &[&str]) -> Output {
    run("qemu-img", args)
}

/// Runs `qemu-img` with `args`, which must go well; gives what it printed.
pub fn img_ok(args: &[&str]) -> String {
    ok("qemu-img", args)
}

/// Runs the `commands` of `qemu-io` on the image at `path`, which must all go well; gives what it
/// printed.
pub fn io_ok(path: impl AsRef<Path>, format: &str, commands: &[&str]) -> String {
    let mut args = vec!["-f", format];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(text(path.as_ref()));
    let output = ok("qemu-io", &args);
    // qemu-io exits with 0 after a failed command.
    for word in ["failed", "rror:", "verification"] {
        assert!(!output.contains(word), "qemu-io {args:?}: {output}");
    }
    output
}

/// `qemu-img check` finds neither errors nor leaks in the qcow2 image at `path`.
pub fn check(path: impl AsRef<Path>) {
    img_ok(&["check", "-f", "qcow2", text(path.as_ref())]);
}

/// `qemu-img compare` finds that the guest sees the same in both images, and the same size.
pub fn compare(a: impl AsRef<Path>, a_format: &str, b: impl AsRef<Path>, b_format: &str) {
    let (a, b) = (text(a.as_ref()), text(b.as_ref()));
    // Not `-s`: that wants the same holes too.
    let said = img_ok(&["compare", "-f", a_format, "-F", b_format, a, b]);
    assert_eq!(said, "Images are identical.\n", "{a} and {b}");
}

/// The guest bytes that QEMU reads from `image`, which [`SECRET`] opens if it is encrypted qcow2.
pub fn read(format: &str, image: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("image"), dir.path().join("raw"));
    std::fs::write(&from, image).unwrap();
    let secret = format!("secret,id=s,data={SECRET}");
    let key = if format == "qcow2" {
        ",encrypt.key-secret=s"
    } else {
        ""
    };
    let source = format!("driver={format},file.filename={}{key}", text(&from));
    img_ok(&[
        "convert",
        "--object",
        &secret,
        "--image-opts",
        &source,
        "-O",
        "raw",
        text(&to),
    ]);
    std::fs::read(to).unwrap()
}

/// The image of `disk` that QEMU makes; `args` go to `convert`, for example
/// `["-o", "cluster_size=4k", "-c"]`.
pub fn write(format: &str, disk: &ModelDisk, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("raw"), dir.path().join("image"));
    std::fs::write(&from, disk.bytes()).unwrap();
    let mut all = vec!["convert", "-f", "raw", "-O", format];
    all.extend(args);
    all.extend([text(&from), text(&to)]);
    img_ok(&all);
    std::fs::read(to).unwrap()
}

/// `qemu-img check` finds neither errors nor leaks in these bytes of a qcow2 image.
pub fn check_bytes(image: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    check(path);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("tests name their files in Unicode")
}

fn ok(tool: &str, args: &[&str]) -> String {
    let output = run(tool, args);
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn run(tool: &str, args: &[&str]) -> Output {
    match Command::new(tool).args(args).output() {
        Ok(output) => output,
        Err(error) => panic!("{tool}: {error}; install it with: apt-get install qemu-utils"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    #[test]
    fn qemu_gives_back_what_it_was_given() {
        let disk = pattern::disk("64k:A 128k:- 64k:b 512:C");
        let image = write("qcow2", &disk, &["-o", "cluster_size=4k"]);
        assert!(read("qcow2", &image) == disk.bytes());
        check_bytes(&image);
    }

    #[test]
    #[should_panic(expected = "Pattern verification failed")]
    fn failed_qemu_io_command_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, [0; 4096]).unwrap();
        io_ok(file.path(), "raw", &["read -P 1 0 4096"]);
    }

    #[test]
    #[should_panic(expected = "exit status: 1")]
    fn different_content_is_noticed() {
        let (a, b) = (
            tempfile::NamedTempFile::new().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        std::fs::write(&a, [0; 4096]).unwrap();
        std::fs::write(&b, [1; 4096]).unwrap();
        compare(a.path(), "raw", b.path(), "raw");
    }
}
