//! Completions, by the shells themselves.

use std::process::Command;

use crate::Folder;
use crate::examples::subcommands;

/// What bash offers for the last of `words`, which may be empty.
fn bash(folder: &Folder, words: &[&str]) -> Vec<String> {
    std::fs::write(folder.path("goldsmith.bash"), script(folder, "bash")).unwrap();
    // What bash does when somebody presses the tabulator key.
    let ask = r#"
        source ./goldsmith.bash
        compopt() { :; } # which bash has only while it completes
        function=$(complete -p goldsmith | sed 's/.* -F \([^ ]*\).*/\1/')
        COMP_WORDS=(goldsmith "$@")
        COMP_CWORD=$#
        "$function" goldsmith "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let done = folder.run(Command::new("bash").args(["-c", ask, "bash"]).args(words));
    assert_eq!((done.status, &*done.stderr), (0, ""), "{words:?}");
    done.stdout.lines().map(str::to_owned).collect()
}

fn script(folder: &Folder, shell: &str) -> String {
    folder.goldsmith_ok(&format!("completions {shell}"))
}

#[test]
fn bash_offers_subcommands_options_formats_and_clouds() {
    let folder = Folder::new();
    let mut offered = bash(&folder, &[""]);
    offered.retain(|word| !word.starts_with('-') && word != "help");
    assert_eq!(offered, subcommands(&folder));
    assert_eq!(bash(&folder, &["conv"]), ["convert"]);

    for (words, offered) in [
        (&["convert", "-O", "q"][..], &["qcow2"][..]),
        (&["convert", "-O", "v"], &["vpc", "vhd"]),
        (&["info", "-f", "r"], &["raw"]),
        (&["convert", "--for", "az"], &["azure"]),
        (&["convert", "--refer"], &["--references"]),
        (&["convert", "--references", "s"], &["same-directory"]),
        (&["resize", "--preallocation", "f"], &["falloc", "full"]),
        (&["check", "--output", "j"], &["json"]),
        (&["completions", "z"], &["zsh"]),
    ] {
        assert_eq!(bash(&folder, words), offered, "{words:?}");
    }
}

#[test]
fn files_are_offered_where_a_file_is_meant() {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.qcow2"), "").unwrap();
    for words in [&["info", "di"][..], &["create", "-b", "di"]] {
        // bash itself offers files where the function has nothing to say, unless that says them.
        let offered = bash(&folder, words);
        assert!(
            offered == [""] || offered == ["disk.qcow2"],
            "{words:?}: {offered:?}"
        );
    }
    assert!(script(&folder, "bash").contains("-o default goldsmith"));
}

#[test]
fn scripts_are_right_in_the_eyes_of_their_shells() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        std::fs::write(folder.path(shell), script(&folder, shell)).unwrap();
        let done = folder.run(Command::new(shell).args(["-n", shell]));
        assert_eq!((done.status, &*done.stderr), (0, ""), "{shell}");
    }
    assert!(script(&folder, "zsh").starts_with("#compdef goldsmith\n"));

    let done = folder.run(
        Command::new("fish").args(["-c", "source ./fish; complete -C 'goldsmith convert -O q'"]),
    );
    assert_eq!((done.status, &*done.stdout), (0, "qcow2\n"), "{done:?}");
}

#[test]
fn under_the_name_qemu_img_that_is_completed() {
    let folder = Folder::new();
    let link = folder.path("qemu-img");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_goldsmith"), &link).unwrap();
    let done = folder.run(Command::new(link).args(["completions", "bash"]));
    assert!(done.stdout.contains("-o default qemu-img\n"), "{done:?}");
}
