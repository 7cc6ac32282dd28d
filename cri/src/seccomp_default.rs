//! The `RuntimeDefault` seccomp profile: the system calls that Docker's and containerd's defaults allow.
//!
//! Everything not listed fails with EPERM. The lists are grouped by what the calls are for; the names of 32-bit
//! variants stand beside their 64-bit ones, because a profile covers the machine's secondary architectures too,
//! and a name that an architecture lacks is skipped where the filter is compiled. Calls that need a capability
//! come with it: the capability is what guards them. Four calls are decided by their arguments or by the
//! container's capabilities:
//!
//! | call | allowed | why |
//! |---|---|---|
//! | `clone` | without the flags that make namespaces, unless `CAP_SYS_ADMIN` | a new user namespace opens much of the kernel |
//! | `clone3` | only with `CAP_SYS_ADMIN`, else ENOSYS | its flags are behind a pointer; on ENOSYS libc falls back to `clone` |
//! | `socket` | every family but `AF_ALG` and `AF_VSOCK` | the kernel's crypto parsers; the way to a hypervisor |
//! | `personality` | Linux, `PER_LINUX32`, `UNAME26`, both, and the query | the others weaken address randomisation |
//!
//! `ptrace` and its relatives are allowed from Linux 4.8 on; before, they could be used to bypass a filter.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::translate::capabilities::Names;

/// Files, directories and their attributes.
#[rustfmt::skip]
const FILES: &[&str] = &[
    "access", "cachestat", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range",
    "creat", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate",
    "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl",
    "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstat64",
    "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents",
    "getdents64", "getxattr", "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "ioctl", "lchown", "lchown32", "lgetxattr", "link", "linkat", "listmount", "listxattr",
    "listxattrat", "llistxattr", "_llseek", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "mkdir",
    "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "readahead",
    "readlink", "readlinkat", "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir",
    "setxattr", "setxattrat", "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink",
    "symlinkat", "sync", "sync_file_range", "syncfs", "truncate", "truncate64", "umask", "unlink", "unlinkat",
    "utime", "utimensat", "utimensat_time64", "utimes",
];

/// Reading, writing, waiting for descriptors.
#[rustfmt::skip]
const INPUT_OUTPUT: &[&str] = &[
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_setup", "io_submit", "ioprio_get", "ioprio_set", "_newselect", "pipe", "pipe2",
    "poll", "ppoll", "ppoll_time64", "pread64", "preadv", "preadv2", "pselect6", "pselect6_time64", "pwrite64",
    "pwritev", "pwritev2", "read", "readv", "select", "sendfile", "sendfile64", "splice", "tee", "vmsplice",
    "write", "writev",
];

/// Memory.
#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock",
    "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall",
    "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
];

/// Processes, threads and scheduling.
#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_time64", "futex_wait",
    "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getpgid", "getpgrp", "getpid",
    "getppid", "getpriority", "getrlimit", "getrusage", "getsid", "gettid", "pidfd_open", "pidfd_send_signal",
    "prctl", "prlimit64", "restart_syscall", "rseq", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "set_robust_list", "set_thread_area", "set_tid_address", "setpgid",
    "setpriority", "setrlimit", "setsid", "times", "ugetrlimit", "uretprobe", "vfork", "wait4", "waitid",
    "waitpid",
];

/// Users, groups, capabilities, and giving up rights.
#[rustfmt::skip]
const IDENTITY: &[&str] = &[
    "capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups",
    "getgroups32", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lsm_get_self_attr",
    "lsm_list_modules", "lsm_set_self_attr", "seccomp", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32",
    "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid", "setresgid32",
    "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
];

/// Signals.
#[rustfmt::skip]
const SIGNALS: &[&str] = &[
    "kill", "pause", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sigaltstack",
    "signalfd", "signalfd4", "sigprocmask", "sigreturn", "tgkill", "tkill",
];

/// Clocks, timers, and what the system says of itself.
#[rustfmt::skip]
const TIME_AND_SYSTEM: &[&str] = &[
    "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
    "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "getrandom",
    "gettimeofday", "nanosleep", "setitimer", "sysinfo", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
    "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "uname",
];

/// Sockets, but for making one, and System V and POSIX interprocess communication.
#[rustfmt::skip]
const COMMUNICATION: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "ipc", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send",
    "sendmmsg", "sendmsg", "sendto", "setsockopt", "shmat", "shmctl", "shmdt", "shmget", "shutdown",
    "socketcall", "socketpair",
];

/// Looking into other processes, from Linux 4.8 on.
const TRACING: &[&str] = &["process_vm_readv", "process_vm_writev", "ptrace"];

/// Of x86 and its 64-bit forms.
const X86: &[&str] = &["arch_prctl", "modify_ldt"];

/// Of ARM in both widths.
#[rustfmt::skip]
const ARM: &[&str] = &[
    "arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2",
];

/// Calls that a capability guards, and so come with it.
#[rustfmt::skip]
const BY_CAPABILITY: &[(&str, &[&str])] = &[
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    (
        "SYS_ADMIN",
        &[
            "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
            "lookup_dcookie", "mount", "mount_setattr", "move_mount", "open_tree", "perf_event_open",
            "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2",
            "unshare",
        ],
    ),
    ("SYSLOG", &["syslog"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    (
        "SYS_PTRACE",
        &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"],
    ),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// Values of `personality(2)` that are allowed: `PER_LINUX`, `PER_LINUX32`, each with `UNAME26`, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of `clone(2)` that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const CLONE_NEW: u64 =
    0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// `AF_ALG` of `socket(2)`.
const AF_ALG: u64 = 38;
/// `AF_VSOCK` of `socket(2)`.
const AF_VSOCK: u64 = 40;
/// EPERM of errno(3): what a call that is not listed gives.
const EPERM: u32 = 1;
/// ENOSYS of errno(3).
const ENOSYS: u32 = 38;
/// The first kernel on which ptrace(2) cannot change a system call behind its filter.
const TRACING_SINCE: (u32, u32) = (4, 8);

/// The profile for a container with these capabilities in its bounding set, on a machine and kernel.
pub fn profile(capabilities: &Names, arch: Arch, kernel: (u32, u32)) -> LinuxSeccomp {
    let always = [FILES, INPUT_OUTPUT, MEMORY, PROCESSES, IDENTITY, SIGNALS, TIME_AND_SYSTEM, COMMUNICATION];
    let mut rules: Vec<LinuxSyscall> = always.iter().map(|names| allow(names)).collect();
    if kernel >= TRACING_SINCE {
        rules.push(allow(TRACING));
    }
    match arch {
        Arch::ScmpArchX86_64 => rules.push(allow(X86)),
        Arch::ScmpArchAarch64 => rules.push(allow(ARM)),
        _ => {}
    }
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(allow(names));
        }
    }
    if !capabilities.contains("SYS_ADMIN") {
        rules.push(allow_if("clone", masked(0, CLONE_NEW, 0)));
        rules.push(refuse("clone3", ENOSYS));
    }
    // Separate rules are alternatives. Two conditions on one argument in one rule would be both, for the kernel,
    // but either, for engines that split them: so three ranges that leave out the two families.
    rules.push(allow_if("socket", compare(0, LinuxSeccompOperator::ScmpCmpLt, AF_ALG)));
    rules.push(allow_if("socket", compare(0, LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1)));
    rules.push(allow_if("socket", compare(0, LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK)));
    for value in PERSONALITIES {
        rules.push(allow_if("personality", compare(0, LinuxSeccompOperator::ScmpCmpEq, *value)));
    }

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures(arch)))
        .set_syscalls(Some(rules));
    profile
}

/// The machine and the others whose programs it runs. A call by a foreign number would pass by the filter.
fn architectures(arch: Arch) -> Vec<Arch> {
    match arch {
        Arch::ScmpArchX86_64 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Arch::ScmpArchAarch64 => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        other => vec![other],
    }
}

/// A rule without conditions.
fn allow(names: &[&str]) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|&name| name.to_owned()).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

/// A rule with one condition.
fn allow_if(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allow(&[name]);
    rule.set_args(Some(vec![condition]));
    rule
}

/// A rule that gives an errno of its own.
fn refuse(name: &str, errno: u32) -> LinuxSyscall {
    let mut rule = allow(&[name]);
    rule.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(errno));
    rule
}

/// Argument `index` compared with a value.
fn compare(index: usize, operator: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    let condition = LinuxSeccompArgBuilder::default().index(index).op(operator).value(value);
    condition.build().expect("every field has a default")
}

/// Argument `index` has `value` in the bits of `mask`.
fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    let condition = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value);
    condition.build().expect("every field has a default")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::translate::capabilities;

    fn with(names: &[&'static str]) -> LinuxSeccomp {
        profile(&names.iter().copied().collect(), Arch::ScmpArchX86_64, (6, 1))
    }

    /// Names that a profile allows without a condition.
    fn allowed(profile: &LinuxSeccomp) -> BTreeSet<String> {
        let rules = profile.syscalls().as_deref().unwrap_or_default();
        rules
            .iter()
            .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none())
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn a_name_stands_in_one_group_only() {
        let groups = [
            FILES,
            INPUT_OUTPUT,
            MEMORY,
            PROCESSES,
            IDENTITY,
            SIGNALS,
            TIME_AND_SYSTEM,
            COMMUNICATION,
            X86,
            ARM,
        ];
        let mut seen = BTreeSet::new();
        for name in groups.iter().flat_map(|group| group.iter()) {
            assert!(seen.insert(*name), "{name} twice");
        }
        assert_eq!(groups[..8].iter().map(|group| group.len()).sum::<usize>(), 363);
        for (_, names) in BY_CAPABILITY {
            for name in *names {
                assert!(!seen.contains(name), "{name} is allowed to everyone already");
            }
        }
    }

    #[test]
    fn dangerous_calls_come_with_their_capability_only() {
        let plain = allowed(&with(capabilities::DEFAULT));
        for name in [
            "bpf",
            "clone3",
            "delete_module",
            "kexec_load",
            "keyctl",
            "mount",
            "open_by_handle_at",
            "reboot",
            "setns",
            "swapon",
            "umount2",
            "unshare",
            "userfaultfd",
            "io_uring_setup",
        ] {
            assert!(!plain.contains(name), "{name}");
        }
        // SYS_CHROOT is among the default capabilities.
        assert!(plain.contains("chroot"));
        let all = allowed(&with(capabilities::ALL));
        for (_, names) in BY_CAPABILITY {
            assert!(names.iter().all(|name| all.contains(*name)), "{names:?}");
        }
        assert!(!all.contains("keyctl") && !all.contains("kexec_load"));
    }

    #[test]
    fn clone_is_restricted_without_sys_admin() {
        let clone = |profile: &LinuxSeccomp, name: &str| -> Vec<LinuxSyscall> {
            let rules = profile.syscalls().clone().unwrap();
            rules.into_iter().filter(|rule| rule.names().iter().any(|n| n == name)).collect()
        };
        let plain = with(&[]);
        let [rule] = &clone(&plain, "clone")[..] else { panic!("one rule") };
        let condition = &rule.args().as_deref().unwrap()[0];
        assert_eq!(condition.value(), 0x7e02_0000);
        assert_eq!(condition.value_two(), Some(0));
        assert_eq!(condition.op(), LinuxSeccompOperator::ScmpCmpMaskedEq);
        let [rule] = &clone(&plain, "clone3")[..] else { panic!("one rule") };
        assert_eq!((rule.action(), rule.errno_ret()), (LinuxSeccompAction::ScmpActErrno, Some(38)));

        let admin = with(&["SYS_ADMIN"]);
        for name in ["clone", "clone3"] {
            let [rule] = &clone(&admin, name)[..] else { panic!("one rule") };
            assert!(rule.args().is_none() && rule.action() == LinuxSeccompAction::ScmpActAllow);
        }
    }

    #[test]
    fn sockets_of_two_families_match_no_rule() {
        let rules = with(&[]).syscalls().clone().unwrap();
        let matches = |family: u64| {
            rules.iter().filter(|rule| rule.names() == &["socket"]).any(|rule| {
                let condition = &rule.args().as_deref().unwrap()[0];
                match condition.op() {
                    LinuxSeccompOperator::ScmpCmpLt => family < condition.value(),
                    LinuxSeccompOperator::ScmpCmpEq => family == condition.value(),
                    LinuxSeccompOperator::ScmpCmpGt => family > condition.value(),
                    other => panic!("{other:?}"),
                }
            })
        };
        for family in [1, 2, 10, 16, 17, 37, 39, 41, 44] {
            assert!(matches(family), "{family}");
        }
        assert!(!matches(AF_ALG) && !matches(AF_VSOCK));
    }

    #[test]
    fn personality_takes_five_values() {
        let rules = with(&[]).syscalls().clone().unwrap();
        let values: Vec<u64> = rules
            .iter()
            .filter(|rule| rule.names() == &["personality"])
            .map(|rule| rule.args().as_deref().unwrap()[0].value())
            .collect();
        assert_eq!(values, [0, 8, 0x20000, 0x20008, 0xffff_ffff]);
    }

    #[test]
    fn machine_and_kernel_matter() {
        let none = Names::new();
        let old = allowed(&profile(&none, Arch::ScmpArchX86_64, (4, 7)));
        assert!(!old.contains("ptrace") && old.contains("arch_prctl"));
        assert!(allowed(&with(&[])).contains("ptrace"));
        let arm = profile(&none, Arch::ScmpArchAarch64, (6, 1));
        assert!(allowed(&arm).contains("set_tls") && !allowed(&arm).contains("arch_prctl"));
        assert_eq!(arm.architectures(), &Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]));
        assert_eq!(with(&[]).architectures().as_ref().unwrap().len(), 3);
        assert_eq!(arm.default_action(), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(arm.default_errno_ret(), Some(1));
    }
}
