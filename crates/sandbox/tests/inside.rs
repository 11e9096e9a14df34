//! What a thread inside can do: nothing that it should not, and all that it must.
//!
//! A process that has locked itself in stays so, so each test runs the [`prisoner`] in a process of
//! its own. What it tries there it tries outside first, where all of it works; or else that it fails
//! inside would prove nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "an unwrap here is an assertion")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use goldsmith::{Convert, Error, ErrorKind, Opener};
use goldsmith_sandbox::{Mode, Reach, Sandbox};
use goldsmith_testkit::pattern::disk;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where a prisoner is, what there is to reach, and how it got there.
#[derive(Clone)]
struct Cell {
    folder: PathBuf,
    port: u16,
    mode: Mode,
}

impl Cell {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

type Attempt = (&'static str, fn(&Cell) -> io::Result<()>);

/// What whoever broke in would try.
const ATTEMPTS: &[Attempt] = &[
    ("read another file", |_| File::open("/etc/passwd").map(drop)),
    ("read a neighbour", |cell| {
        File::open(cell.at("secret")).map(drop)
    }),
    ("write to a neighbour", |cell| {
        let file = OpenOptions::new().write(true).open(cell.at("secret"));
        file.map(drop)
    }),
    ("make a file", |cell| File::create(cell.at("new")).map(drop)),
    ("make a file without a name", |cell| {
        tempfile::tempfile_in(&cell.folder).map(drop)
    }),
    ("make a file in memory", |_| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        Ok(rustix::fs::memfd_create("new", flags).map(drop)?)
    }),
    ("open the source again", |_| {
        File::open("/proc/self/fd/0").map(drop)
    }),
    ("list a directory", |cell| {
        let mut entries = std::fs::read_dir(&cell.folder)?;
        entries.next().unwrap().map(drop)
    }),
    ("make a directory", |cell| std::fs::create_dir(cell.at("d"))),
    ("make a link", |cell| {
        std::os::unix::fs::symlink("secret", cell.at("link"))
    }),
    ("cut a neighbour off", |cell| {
        let secret = cell.at("elsewhere/secret");
        Ok(rustix::fs::open(
            secret,
            rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::empty(),
        )
        .and_then(|file| rustix::fs::ftruncate(file, 1))?)
    }),
    ("rename a file elsewhere", |cell| {
        std::fs::rename(cell.at("elsewhere/secret"), cell.at("elsewhere/taken"))
    }),
    ("remove a file elsewhere", |cell| {
        std::fs::remove_file(cell.at("elsewhere/other"))
    }),
    ("change a mode", |cell| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(cell.at("secret"), mode)
    }),
    ("change the mode of what is open", |_| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        Ok(rustix::fs::fchmod(io::stdin(), mode)?)
    }),
    ("see a file change", |_| {
        let flags = rustix::fs::inotify::CreateFlags::CLOEXEC;
        Ok(rustix::fs::inotify::init(flags).map(drop)?)
    }),
    ("connect over TCP", |cell| {
        TcpStream::connect(("127.0.0.1", cell.port)).map(drop)
    }),
    ("listen", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("send a packet", |cell| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket
            .send_to(b"secret", ("127.0.0.1", cell.port))
            .map(drop)
    }),
    ("connect to a socket with a name", |cell| {
        UnixStream::connect(cell.at("socket")).map(drop)
    }),
    ("listen without a file", |_| {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("goldsmith-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        UnixListener::bind_addr(&address).map(drop)
    }),
    ("make a pair of sockets", |_| UnixStream::pair().map(drop)),
    ("start a program", |_| {
        Command::new("/bin/true").status().map(drop)
    }),
    ("signal another process", |_| {
        let parent = rustix::process::getppid().unwrap();
        Ok(rustix::process::test_kill_process(parent)?)
    }),
    ("get hold of another process", |_| {
        let parent = rustix::process::getppid().unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        Ok(rustix::process::pidfd_open(parent, flags).map(drop)?)
    }),
    ("write code", |_| {
        memmap2::MmapMut::map_anon(4096)?.make_exec().map(drop)
    }),
    ("lift a limit", |_| {
        let more = Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        Ok(setrlimit(Resource::Nofile, more)?)
    }),
];

/// Tries everything and tells how each attempt ended.
fn try_all(cell: &Cell) -> Vec<String> {
    let outcomes = ATTEMPTS.iter().map(|(what, attempt)| {
        let outcome = match attempt(cell) {
            Ok(()) => "done".to_owned(),
            // No right, or no descriptor: which wall is met first does not matter.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => "refused".into(),
            Err(error) if error.raw_os_error() == Some(24) => "refused".into(),
            Err(error) => format!("failed otherwise: {error}"),
        };
        format!("{what}: {outcome}")
    });
    outcomes.collect()
}

/// The process that is locked in. What it has to say it says on lines that begin with `> `.
#[test]
#[ignore = "it locks its process in, so the other tests run it in processes of its own"]
fn prisoner() {
    let variable = |name: &str| std::env::var(name).expect("the other tests run this one");
    let cell = Cell {
        folder: variable("CELL_FOLDER").into(),
        port: variable("CELL_PORT").parse().unwrap(),
        mode: match &*variable("CELL_MODE") {
            "require" => Mode::Require,
            "try" => Mode::Try,
            "off" => Mode::Off,
            mode => panic!("no mode {mode}"),
        },
    };
    let told = match &*variable("CELL_CASE") {
        "after" => after(&cell),
        "before" => before(&cell),
        "parser" => parser(&cell),
        "work" => work(&cell),
        "names" => names(&cell),
        "early" => early(&cell),
        "narrow" => narrow(&cell),
        "rights" => rights(&cell),
        case => panic!("no case {case}"),
    };
    let mut out = io::stdout().lock();
    writeln!(out).unwrap();
    for line in told {
        writeln!(out, "> {line}").unwrap();
    }
}

/// In a thread that was started inside.
fn after(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    sandbox.lock_in(&[]).unwrap();
    std::thread::scope(|scope| scope.spawn(|| try_all(cell)).join().unwrap())
}

/// In a thread that was there before files could no longer be opened.
fn before(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    let (go, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            wait.recv().unwrap();
            try_all(cell)
        });
        sandbox.lock_in(&[]).unwrap();
        go.send(()).unwrap();
        thread.join().unwrap()
    })
}

/// In a worker of a conversion, from where it hands over what it read: as a reader would that an image
/// has taken over.
fn parser(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    let opener = Opener::new().when_open(move |directories| {
        let locked = sandbox.lock_in(directories);
        locked.map_err(|error| Error::new(ErrorKind::Unsupported, error))
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = |_| {
        let mut told = told.lock().unwrap();
        if told.is_empty() {
            *told = try_all(cell);
        }
    };
    Convert::new(cell.at("disk.raw"), cell.at("target/disk.qcow2"))
        .source_format("raw")
        .target_format("qcow2")
        .opener(opener)
        .progress(&listener)
        .run()
        .unwrap();
    let told = told.lock().unwrap();
    told.clone()
}

/// What must still work: reading and writing what is open, threads, memory, time, and a panic.
fn work(cell: &Cell) -> Vec<String> {
    let mut source = File::open(cell.at("secret")).unwrap();
    let mut target = File::create(cell.at("target/work")).unwrap();
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    sandbox.lock_in(&[]).unwrap();
    let thread = std::thread::spawn(move || {
        let mut text = String::new();
        source.read_to_string(&mut text).unwrap();
        target.write_all(text.as_bytes()).unwrap();
        target.set_len(3).unwrap();
        target.sync_all().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        vec![1u8; 64 << 20].len() + text.len()
    });
    let core = getrlimit(Resource::Core);
    let mut told = vec![
        format!("worked: {}", thread.join().unwrap()),
        format!("core dump: {:?} {:?}", core.current, core.maximum),
    ];
    let panicked = std::thread::spawn(|| panic!("on purpose")).join();
    told.push(format!("panic is caught: {}", panicked.is_err()));
    told
}

/// Names in the directory of a target, while one is to be published.
fn names(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    sandbox.lock_in(&[cell.at("target")]).unwrap();
    let outcome = |what: &str, done: io::Result<()>| format!("{what}: {}", done.is_ok());
    let (old, new) = (cell.at("target/old"), cell.at("target/new"));
    vec![
        outcome("rename", std::fs::rename(&old, &new)),
        outcome("link", std::fs::hard_link(&new, &old)),
        outcome("remove", std::fs::remove_file(&new)),
        outcome("take away", std::fs::rename(&old, cell.at("old"))),
        outcome("bring in", std::fs::rename(cell.at("secret"), &new)),
        outcome("read", File::open(&old).map(drop)),
        outcome("write", OpenOptions::new().write(true).open(&old).map(drop)),
    ]
}

/// After the first half: files can be opened, and nothing else.
fn early(cell: &Cell) -> Vec<String> {
    Sandbox::begin(cell.mode).unwrap();
    try_all(cell)
}

/// What an image could do while its headers are read, if it took the reader over: one that stands in
/// `elsewhere` and is to be converted into `target`.
fn narrow(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    let mut reach = Reach::default();
    reach.read(cell.at("elsewhere"));
    reach.write(cell.at("disk.raw"));
    reach.make(cell.at("target"));
    reach.read(cell.at("nothing"));
    sandbox.narrow(&reach).unwrap();
    let outcome = |what: &str, done: io::Result<()>| format!("{what}: {}", done.is_ok());
    let at = |name: &str| cell.at(name);
    let write = |name: &str| OpenOptions::new().write(true).open(at(name)).map(drop);
    let mut told = vec![
        outcome("read within", File::open(at("elsewhere/secret")).map(drop)),
        outcome("list within", std::fs::read_dir(at("elsewhere")).map(drop)),
        outcome("edit", write("disk.raw")),
        outcome("make", File::create(at("target/new")).map(drop)),
        outcome(
            "make unnamed",
            tempfile::tempfile_in(at("target")).map(drop),
        ),
        outcome("name", std::fs::rename(at("target/new"), at("target/x"))),
        outcome("remove", std::fs::remove_file(at("target/x"))),
        outcome("read a neighbour", File::open(at("secret")).map(drop)),
        outcome("read another file", File::open("/etc/passwd").map(drop)),
        outcome("list", std::fs::read_dir(&cell.folder).map(drop)),
        outcome("write within", write("elsewhere/secret")),
        outcome("remove within", std::fs::remove_file(at("elsewhere/other"))),
        outcome("write to a neighbour", write("secret")),
        outcome("make elsewhere", File::create(at("new")).map(drop)),
        outcome("bring in", std::fs::rename(at("secret"), at("target/x"))),
        outcome("make a directory", std::fs::create_dir(at("target/d"))),
        outcome(
            "change a mode within",
            set_mode(&at("elsewhere/secret"), 0o600),
        ),
    ];
    // Another step, as without this one.
    sandbox.lock_in(&[at("target")]).unwrap();
    let (old, new) = (at("target/old"), at("target/new"));
    told.extend([
        outcome("publish", std::fs::rename(old, new)),
        outcome("read", File::open(at("elsewhere/secret")).map(drop)),
    ]);
    told
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let mode = rustix::fs::Mode::from_raw_mode(mode);
    Ok(rustix::fs::fchmod(File::open(path)?, mode)?)
}

/// Where a target gets the rights of the file that it replaces.
fn rights(cell: &Cell) -> Vec<String> {
    let sandbox = Sandbox::begin(cell.mode).unwrap();
    let mut reach = Reach::default();
    reach.read(cell.at("elsewhere"));
    reach.make(cell.at("target"));
    reach.hand_down();
    sandbox.narrow(&reach).unwrap();
    let modes = [0o600, 0o4755, 0o2755];
    let told = modes.map(|mode| set_mode(&cell.at("elsewhere/secret"), mode).is_ok());
    let mut told = told.map(|done| done.to_string()).to_vec();
    told.extend([false, true].map(|newer| makes_program(&cell.at("target"), newer).to_string()));
    told
}

/// Whether a file can be made that runs as its owner and holds something; by the `newer` call, whose mode no
/// filter sees.
fn makes_program(folder: &Path, newer: bool) -> bool {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
    let folder = File::open(folder).unwrap();
    let (flags, mode) = (OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o4755));
    let made = match newer {
        true => openat2(&folder, "newer", flags, mode, ResolveFlags::empty()),
        false => openat(&folder, "older", flags, mode),
    };
    let Ok(made) = made.map(File::from) else {
        return false;
    };
    (&made).write_all(b"program").unwrap();
    use std::os::unix::fs::MetadataExt;
    made.metadata().unwrap().mode() & 0o4000 != 0
}

/// Runs a prisoner; gives what it said and the folder.
fn run(case: &str, mode: &str) -> (Vec<String>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for directory in ["elsewhere", "target"] {
        std::fs::create_dir(at(directory)).unwrap();
    }
    for file in [
        "secret",
        "elsewhere/secret",
        "elsewhere/other",
        "target/old",
    ] {
        std::fs::write(at(file), "secret").unwrap();
    }
    std::fs::write(at("disk.raw"), disk("3M:A 5M:- 2M:b").bytes()).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "prisoner", "--ignored", "--nocapture"])
        .env("CELL_FOLDER", folder.path())
        .env("CELL_PORT", port.to_string())
        .env("CELL_MODE", mode)
        .env("CELL_CASE", case)
        .stdin(File::open(at("disk.raw")).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{case}: {text}\n{error}");
    let lines = text.lines().filter_map(|line| line.strip_prefix("> "));
    (lines.map(str::to_owned).collect(), folder)
}

fn all(outcome: &str) -> Vec<String> {
    let lines = ATTEMPTS
        .iter()
        .map(|(what, _)| format!("{what}: {outcome}"));
    lines.collect()
}

/// Where the system has all of it, what is tried is all of it as well.
const INSIDE: [&str; 2] = ["require", "try"];

#[test]
fn outside_everything_works_that_is_refused_inside() {
    for case in ["after", "before", "parser"] {
        assert_eq!(run(case, "off").0, all("done"), "{case}");
    }
}

#[test]
fn thread_inside_opens_connects_and_starts_nothing() {
    for mode in INSIDE {
        for case in ["after", "before"] {
            let (told, folder) = run(case, mode);
            assert_eq!(told, all("refused"), "{case} {mode}");
            let secret = std::fs::read(folder.path().join("secret")).unwrap();
            assert_eq!(secret, b"secret");
        }
    }
}

#[test]
fn reader_that_an_image_took_over_gets_nothing_and_the_target_is_whole() {
    for mode in INSIDE {
        let (told, folder) = run("parser", mode);
        assert_eq!(told, all("refused"), "{mode}");
        let at = |name: &str| folder.path().join(name);
        let back = Convert::new(at("target/disk.qcow2"), at("back.raw"));
        back.source_format("qcow2").run().unwrap();
        let [source, back] = ["disk.raw", "back.raw"].map(|name| std::fs::read(at(name)).unwrap());
        assert!(source == back);
    }
}

#[test]
fn work_goes_on_inside() {
    let (told, folder) = run("work", "require");
    let sum = (64 << 20) + 6;
    let expected = [
        &format!("worked: {sum}"),
        "core dump: Some(0) Some(0)",
        "panic is caught: true",
    ];
    assert_eq!(told, expected);
    let written = std::fs::read(folder.path().join("target/work")).unwrap();
    assert_eq!(written, b"sec");
}

#[test]
fn names_change_in_the_directory_of_a_target_and_nowhere_else() {
    let (told, _folder) = run("names", "require");
    let expected = [
        ("rename", true),
        ("link", true),
        ("remove", true),
        ("take away", false),
        ("bring in", false),
        ("read", false),
        ("write", false),
    ];
    let expected = expected.map(|(what, works)| format!("{what}: {works}"));
    assert_eq!(told, expected);
}

#[test]
fn first_half_leaves_files_and_nothing_else() {
    let (told, _folder) = run("early", "require");
    let works = |what: &str| {
        [
            "read another file",
            "read a neighbour",
            "write to a neighbour",
            "make a file",
            "make a file without a name",
            "open the source again",
            "change the mode of what is open",
            "list a directory",
            "cut a neighbour off",
            "rename a file elsewhere",
            "remove a file elsewhere",
            "lift a limit",
        ]
        .contains(&what)
    };
    for line in told {
        let (what, outcome) = line.split_once(": ").unwrap();
        match works(what) {
            true => assert_eq!(outcome, "done", "{what}"),
            false => assert_eq!(outcome, "refused", "{what}"),
        }
    }
}

#[test]
fn narrowed_down_files_are_reached_where_they_are_needed_and_nowhere_else() {
    let (told, folder) = run("narrow", "require");
    let works = [
        "read within",
        "list within",
        "edit",
        "make",
        "make unnamed",
        "name",
        "remove",
        "publish",
    ];
    for line in &told {
        let (what, outcome) = line.split_once(": ").unwrap();
        assert_eq!(outcome == "true", works.contains(&what), "{line}");
    }
    assert_eq!(told.len(), 19);
    let secret = std::fs::read(folder.path().join("secret")).unwrap();
    assert_eq!(secret, b"secret");
    let (told, _folder) = run("narrow", "off");
    assert!(told.iter().all(|line| line.ends_with(": true")), "{told:?}");
}

#[test]
fn rights_that_are_handed_down_make_nobodys_program() {
    let told = run("rights", "require").0;
    assert_eq!(told, ["true", "false", "false", "false", "false"]);
    if goldsmith_testkit::mount::are_allowed("files that keep their bits when root writes to them")
    {
        assert_eq!(run("rights", "off").0, ["true"; 5]);
    }
}

/// As on a kernel that knows none of it: nothing is asked of it, and nothing is refused.
#[test]
fn off_is_off() {
    let sandbox = Sandbox::begin(Mode::Off).unwrap();
    sandbox.narrow(&Reach::default()).unwrap();
    sandbox.lock_in(&[PathBuf::from("/nowhere")]).unwrap();
    assert!(!sandbox.is_on());
    assert!(File::open(Path::new("/etc/passwd")).is_ok());
}
