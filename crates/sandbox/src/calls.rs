//! seccomp: which system calls can be made, and with what.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::Built;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that reach nothing but the process itself and what it has open.
const OWN: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Facts.
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // What is open.
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_sync_file_range,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Calls that tell what stands under a name or is open, and where, and do nothing to it.
const LOOKING: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

/// Calls that open files and prepare targets.
const OPENING: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_fgetxattr,
    libc::SYS_getdents64,
    libc::SYS_openat,
    libc::SYS_openat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// Calls that give a new file the rights of the one that it replaces. Landlock knows none of them: what can
/// be read could be given away.
const RIGHTS: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
];

/// Bits of a mode that make a program somebody's: no image hands them down.
const SOMEBODYS: u64 = 0o7000;

/// Calls that give files names and take them.
const NAMING: &[c_long] = &[
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Calls by which the second half of the sandbox is set up; they only ever take away.
const LOCKING: &[c_long] = &[
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_seccomp,
];

/// What an open file or terminal may be asked for, beyond reading and writing: sharing blocks (XFS,
/// btrfs), the size of a device and giving its space back, the size of a terminal, and that a child
/// would not get it.
const CONTROLS: &[u64] = &[
    0x4004_9409, // FICLONE
    0x4020_940d, // FICLONERANGE
    0x8008_1272, // BLKGETSIZE64
    0x1277,      // BLKDISCARD
    0x127f,      // BLKZEROOUT
    0x5401,      // TCGETS
    0x5413,      // TIOCGWINSZ
    0x5451,      // FIOCLEX
];

/// What may be done with a descriptor: copying it, its flags, and the locks of images.
const DESCRIPTOR: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
];

/// What may be changed about the process: the names of threads and of memory, and that it gets no
/// rights by other programs.
const PROCESS: &[i32] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    0x5356_4d41, // PR_SET_VMA
];

/// Everything but what is listed here fails from now on.
pub(crate) fn begin() -> Built {
    let mut allowed = Rules::new();
    for calls in [OWN, LOOKING, OPENING, RIGHTS, NAMING, LOCKING] {
        allowed.extend(calls.iter().map(|call| (*call, Vec::new())));
    }
    let each = |numbers: &[i32], at| -> Result<Vec<SeccompRule>, Error> {
        // Small numbers, none below 0.
        let rule = |number: &i32| when(at, Dword, Eq, *number as u64);
        numbers.iter().map(rule).collect()
    };
    let execute = libc::PROT_EXEC as u64;
    let thread = libc::CLONE_THREAD as u64;
    let own_pid = std::process::id().into();
    let controls = CONTROLS.iter().map(|code| when(1, Dword, Eq, *code));
    allowed.extend([
        // Memory that can be executed is what whoever broke in would write to next.
        (libc::SYS_mmap, vec![when(2, Dword, MaskedEq(execute), 0)?]),
        (
            libc::SYS_mprotect,
            vec![when(2, Dword, MaskedEq(execute), 0)?],
        ),
        (
            libc::SYS_fchmod,
            vec![when(1, Dword, MaskedEq(SOMEBODYS), 0)?],
        ),
        (
            libc::SYS_openat,
            vec![when(3, Dword, MaskedEq(SOMEBODYS), 0)?],
        ),
        #[cfg(target_arch = "x86_64")]
        (
            libc::SYS_open,
            vec![when(2, Dword, MaskedEq(SOMEBODYS), 0)?],
        ),
        // Threads, no processes.
        (
            libc::SYS_clone,
            vec![when(0, Qword, MaskedEq(thread), thread)?],
        ),
        // Its flags are in memory, where a filter cannot look: see below.
        (libc::SYS_clone3, Vec::new()),
        (libc::SYS_tgkill, vec![when(0, Dword, Eq, own_pid)?]),
        (libc::SYS_prlimit64, vec![when(0, Dword, Eq, 0)?]),
        (libc::SYS_prctl, each(PROCESS, 0)?),
        (libc::SYS_fcntl, each(DESCRIPTOR, 1)?),
        (libc::SYS_ioctl, controls.collect::<Result<_, _>>()?),
    ]);
    // Who is told that the kernel does not know the call takes the older one.
    let unknown = Rules::from([(libc::SYS_clone3, Vec::new())]);
    apply(unknown, SeccompAction::Allow, errno(libc::ENOSYS))?;
    apply(allowed, errno(libc::EPERM), SeccompAction::Allow)
}

/// No file gets other rights from now on, unless they are `handed_down`.
pub(crate) fn narrow(handed_down: bool) -> Built {
    if handed_down {
        return Ok(());
    }
    let refused = RIGHTS.iter().map(|call| (*call, Vec::new())).collect();
    apply(refused, SeccompAction::Allow, errno(libc::EPERM))
}

/// Opening fails from now on, and so does naming unless something is to be `published`.
pub(crate) fn lock_in(published: bool) -> Built {
    let mut refused = Rules::new();
    let naming = match published {
        true => &[][..],
        false => NAMING,
    };
    for calls in [OPENING, RIGHTS, naming] {
        refused.extend(calls.iter().map(|call| (*call, Vec::new())));
    }
    // Root could lift the limits again.
    let to_set = when(2, Qword, Ne, 0)?;
    refused.insert(libc::SYS_prlimit64, vec![to_set]);
    apply(refused, SeccompAction::Allow, errno(libc::EPERM))
}

/// If argument `at` compares to `value` in this way.
fn when(
    at: u8,
    len: SeccompCmpArgLen,
    compares: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(at, len, compares, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn errno(number: i32) -> SeccompAction {
    // Error numbers are small and positive.
    SeccompAction::Errno(number as u32)
}

/// Sets up a filter for all threads of the process.
fn apply(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Built {
    let processor = std::env::consts::ARCH.try_into()?;
    let filter: BpfProgram = SeccompFilter::new(rules, otherwise, listed, processor)?.try_into()?;
    Ok(seccompiler::apply_filter_all_threads(&filter)?)
}
