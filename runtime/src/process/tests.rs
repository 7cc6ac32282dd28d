//! What the tests of these modules share, and those of the credentials, on the real kernel in processes of their own.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet};

use super::{attributes, credentials, session_keyring, take_stdio, take_terminal};
use crate::plan::{self, Capabilities, Rlimit};
use crate::spawn::write_oom_score_adj;
use crate::{capabilities, sys};

/// The test that is to run right here, being in a child of its own.
const CHILD: &str = "PODWRIGHT_TEST_IN_CHILD";

/// Runs `test`, which is the body of the test called `name`, in a process of its own: it may change credentials, root or streams.
pub(super) fn in_child(name: &str, test: impl FnOnce()) {
    in_child_through(&[], name, test);
}

/// The same, with the process started by a program such as unshare(1): a test has threads, so it cannot enter a user namespace itself.
fn in_child_through(starter: &[&str], name: &str, test: impl FnOnce()) {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        return test();
    }
    let own = std::env::current_exe().unwrap();
    let mut words = starter.iter().map(std::ffi::OsStr::new).chain([own.as_os_str()]);
    let child = Command::new(words.next().unwrap())
        .args(words)
        .args(["--exact", "--nocapture", "--test-threads=1", name])
        .env(CHILD, name)
        .output()
        .unwrap();
    let said = [child.stdout, child.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(child.status.success() && said[0].contains("1 passed"), "{}\n{}", said[0], said[1]);
}

/// Whether the caller is root; says so if not, as the test is then skipped.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// The least a process can be.
pub(super) fn process() -> plan::Process {
    plan::Process {
        args: vec!["true".into()],
        env: Vec::new(),
        cwd: "/".into(),
        terminal: false,
        console_size: None,
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        umask: None,
        capabilities: Capabilities::default(),
        rlimits: Vec::new(),
        no_new_privileges: false,
        oom_score_adj: None,
        apparmor_profile: None,
        selinux_label: None,
        scheduler: None,
        io_priority: None,
        cpu_affinity_initial: None,
        cpu_affinity_final: None,
    }
}

/// The hexadecimal field `name` of the caller's status file.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn set(names: &[&str]) -> u64 {
    capabilities::set(names.iter().copied()).0
}

/// What `cat /proc/self/status` says of the capabilities after an execve(2) with the caller's credentials.
fn after_exec(name: &str) -> u64 {
    let output = Command::new("/bin/cat").arg("/proc/self/status").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn a_user_gets_what_was_asked_and_exec_drops_the_rest() {
    in_child("process::tests::a_user_gets_what_was_asked_and_exec_drops_the_rest", || {
        if !is_root() {
            return;
        }
        let wanted = set(&["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
        let ambient = set(&["CAP_NET_BIND_SERVICE"]);
        let process = plan::Process {
            uid: 1234,
            gid: 1235,
            additional_gids: vec![7, 8],
            umask: Some(0o027),
            no_new_privileges: true,
            capabilities: Capabilities {
                bounding: wanted,
                effective: wanted,
                permitted: wanted,
                inheritable: ambient,
                ambient,
            },
            ..process()
        };
        credentials(&process, true).unwrap();
        let sys_admin = set(&["CAP_SYS_ADMIN"]);
        assert_eq!(status("CapPrm:"), wanted | sys_admin);
        assert_eq!(status("CapEff:"), wanted | sys_admin);
        assert_eq!(status("CapInh:"), ambient);
        assert_eq!(status("CapBnd:"), wanted);
        assert_eq!(status("CapAmb:"), ambient);
        assert_eq!(rustix::process::getuid().as_raw(), 1234);
        assert_eq!(rustix::process::getegid().as_raw(), 1235);
        let groups = rustix::process::getgroups().unwrap();
        assert_eq!(groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(), [7, 8]);
        assert!(thread::no_new_privs().unwrap());
        assert!(!thread::get_keep_capabilities().unwrap());
        assert_eq!(rustix::process::umask(Mode::empty()).bits(), 0o027);
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
        assert_eq!(after_exec("CapPrm:"), ambient);
        assert_eq!(after_exec("CapEff:"), ambient);
    });
}

#[test]
fn root_regains_its_bounding_set_and_no_more() {
    in_child("process::tests::root_regains_its_bounding_set_and_no_more", || {
        if !is_root() {
            return;
        }
        let bounding = set(&["CAP_CHOWN", "CAP_KILL"]);
        let kill = set(&["CAP_KILL"]);
        let capabilities =
            Capabilities { bounding, effective: kill, permitted: kill, ..Capabilities::default() };
        credentials(&plan::Process { capabilities, ..process() }, true).unwrap();
        assert_eq!(status("CapEff:"), kill | set(&["CAP_SYS_ADMIN"]));
        assert_eq!(rustix::process::umask(Mode::empty()).bits(), 0o022);
        assert!(rustix::process::getgroups().unwrap().is_empty());
        assert_eq!(after_exec("CapPrm:"), bounding);
        assert_eq!(after_exec("CapInh:"), 0);
        assert_eq!(after_exec("CapAmb:"), 0);
    });
}

#[test]
fn nobody_keeps_nothing() {
    in_child("process::tests::nobody_keeps_nothing", || {
        if !is_root() {
            return;
        }
        credentials(&plan::Process { uid: 65534, gid: 65534, ..process() }, false).unwrap();
        for field in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status(field), 0, "{field}");
        }
    });
}

#[test]
fn every_capability_means_every_one_there_is() {
    in_child("process::tests::every_capability_means_every_one_there_is", || {
        if !is_root() {
            return;
        }
        let held = thread::capabilities(None).unwrap().permitted.bits();
        let all = u64::MAX;
        let capabilities =
            Capabilities { bounding: all, effective: all, permitted: all, inheritable: all, ambient: all };
        credentials(&plan::Process { capabilities, uid: 9, gid: 9, ..process() }, false).unwrap();
        assert_eq!(status("CapEff:"), held);
        assert_eq!(after_exec("CapEff:"), held);
    });
}

#[test]
fn an_ambient_capability_that_is_not_inheritable_is_left_out() {
    in_child("process::tests::an_ambient_capability_that_is_not_inheritable_is_left_out", || {
        if !is_root() {
            return;
        }
        let (kill, chown) = (set(&["CAP_KILL"]), set(&["CAP_CHOWN"]));
        let capabilities = Capabilities {
            bounding: kill | chown,
            effective: kill | chown,
            permitted: kill | chown,
            inheritable: kill,
            ambient: kill | chown,
        };
        credentials(&plan::Process { capabilities, uid: 9, gid: 9, ..process() }, false).unwrap();
        assert_eq!(status("CapAmb:"), kill);
    });
}

#[test]
fn credentials_that_cannot_be_had_fail() {
    in_child("process::tests::credentials_that_cannot_be_had_fail", || {
        if !is_root() {
            return;
        }
        let kill = set(&["CAP_KILL"]);
        let capabilities = Capabilities { effective: kill, ..Capabilities::default() };
        let failure = credentials(&plan::Process { capabilities, ..process() }, false).unwrap_err();
        assert_eq!(failure.to_string(), "credentials: unable to apply caps: operation not permitted");
        credentials(&plan::Process { uid: 9, gid: 9, ..process() }, false).unwrap();
        let failure = credentials(&process(), false).unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::PERM));
    });
}

/// Enters a user namespace as one made without privileges is: it may not change its groups at all.
const DENYING: [&str; 3] = ["unshare", "--user", "--map-root-user"];

/// Whether such a namespace can be made; says so if not, as the test is then skipped.
fn user_namespaces() -> bool {
    let made = Command::new(DENYING[0]).args(&DENYING[1..]).arg("true").status();
    let made = made.is_ok_and(|status| status.success());
    if !made {
        println!("skipped: no user namespace can be made");
    }
    made
}

#[test]
fn a_user_namespace_that_denies_groups_is_taken_as_it_is() {
    if !user_namespaces() {
        return;
    }
    let name = "process::tests::a_user_namespace_that_denies_groups_is_taken_as_it_is";
    in_child_through(&DENYING, name, || {
        assert_eq!(std::fs::read_to_string("/proc/self/setgroups").unwrap(), "deny\n");
        let all = Capabilities {
            permitted: u64::MAX,
            effective: u64::MAX,
            bounding: u64::MAX,
            ..Capabilities::default()
        };
        credentials(&plan::Process { capabilities: all, ..process() }, true).unwrap();
        assert_eq!(rustix::process::getuid().as_raw(), 0);
    });
}

#[test]
fn a_user_namespace_refuses_groups_and_ids_it_does_not_have() {
    if !user_namespaces() {
        return;
    }
    let name = "process::tests::a_user_namespace_refuses_groups_and_ids_it_does_not_have";
    in_child_through(&DENYING, name, || {
        let all = Capabilities { bounding: u64::MAX, ..Capabilities::default() };
        let process = plan::Process { capabilities: all, ..process() };
        let groups = plan::Process { additional_gids: vec![0], ..process.clone() };
        let failure = credentials(&groups, false).unwrap_err();
        assert!(failure.to_string().contains("set the groups"), "{failure}");
        let failure = credentials(&plan::Process { uid: 5, ..process }, false).unwrap_err();
        assert!(failure.to_string().contains("uid 5 is not mapped"), "{failure}");
    });
}

#[test]
fn attributes_are_set_and_hard_limits_clamped() {
    in_child("process::tests::attributes_are_set_and_hard_limits_clamped", || {
        let own = sys::current_rlimit(libc::RLIMIT_NOFILE).unwrap();
        let lower = Rlimit { resource: libc::RLIMIT_NOFILE, soft: 64, hard: own.hard - 1 };
        let scheduler = plan::Scheduler { policy: 3, nice: 5, ..plan::Scheduler::default() };
        let process = plan::Process {
            rlimits: vec![lower],
            scheduler: Some(scheduler),
            io_priority: Some((2, 6)),
            ..process()
        };
        attributes(&process).unwrap();
        assert_eq!(sys::current_rlimit(libc::RLIMIT_NOFILE).unwrap(), lower);
        if rustix::process::geteuid().is_root() {
            let sets = thread::CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            thread::set_capabilities(None, sets).unwrap();
        }
        attributes(&plan::Process { rlimits: vec![own], ..process.clone() }).unwrap();
        assert_eq!(sys::current_rlimit(libc::RLIMIT_NOFILE).unwrap().hard, lower.hard);
        let unknown = Rlimit { resource: 1000, soft: 0, hard: 0 };
        let failure = attributes(&plan::Process { rlimits: vec![unknown], ..process }).unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::INVAL));
    });
}

#[test]
fn the_oom_score_rises_and_does_not_fall_without_privilege() {
    in_child("process::tests::the_oom_score_rises_and_does_not_fall_without_privilege", || {
        let own = i32::try_from(std::process::id()).unwrap();
        write_oom_score_adj(own, 700).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/self/oom_score_adj").unwrap(), "700\n");
        // Without CAP_SYS_RESOURCE the floor is what the privileged last set: for others this stays at 700 or falls.
        write_oom_score_adj(own, -999).unwrap();
        assert!(write_oom_score_adj(own, 5000).is_err());
    });
}

#[test]
fn the_session_keyring_is_new() {
    in_child("process::tests::the_session_keyring_is_new", || {
        session_keyring(None).unwrap();
        session_keyring(Some("")).unwrap();
    });
}

#[test]
fn streams_find_their_places_and_their_owner() {
    in_child("process::tests::streams_find_their_places_and_their_owner", || {
        if !is_root() {
            return;
        }
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let identity = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        let inodes = [identity(reader.as_fd()), identity(null.as_fd()), identity(writer.as_fd())];
        let said = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
        let errors = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
        take_stdio([reader, null.into(), writer], &plan::Process { uid: 1234, ..process() }).unwrap();
        let taken = [
            identity(std::io::stdin().as_fd()),
            identity(std::io::stdout().as_fd()),
            identity(std::io::stderr().as_fd()),
        ];
        let owner = rustix::fs::fstat(std::io::stdin()).unwrap().st_uid;
        let inherited =
            !rustix::io::fcntl_getfd(std::io::stdin()).unwrap().contains(rustix::io::FdFlags::CLOEXEC);
        rustix::stdio::dup2_stdout(&said).unwrap();
        rustix::stdio::dup2_stderr(&errors).unwrap();
        assert_eq!(taken, inodes);
        assert_eq!(owner, 1234);
        assert!(inherited);
        assert_eq!(std::fs::metadata("/dev/null").unwrap().uid(), 0);
    });
}

#[test]
fn a_terminal_is_taken_whole() {
    in_child("process::tests::a_terminal_is_taken_whole", || {
        if !is_root() {
            return;
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty()).unwrap();
        sys::unlock_pty(master.as_fd()).unwrap();
        let peer = sys::pty_peer(master.as_fd()).unwrap();
        rustix::process::setsid().unwrap();
        let said = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
        let errors = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
        let wanted = plan::Process { uid: 1234, console_size: Some((80, 24)), ..process() };
        let taken = take_terminal(peer, &wanted);
        rustix::stdio::dup2_stdout(&said).unwrap();
        rustix::stdio::dup2_stderr(&errors).unwrap();
        taken.unwrap();
        let size = rustix::termios::tcgetwinsize(std::io::stdin()).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
        assert_eq!(rustix::fs::fstat(std::io::stdin()).unwrap().st_uid, 1234);
        let session = rustix::termios::tcgetsid(std::io::stdin()).unwrap();
        assert_eq!(session, rustix::process::getpid());
        // The controlling terminal opens by its common name.
        assert!(std::fs::File::open("/dev/tty").is_ok());
        // Closed by the end of the process: before, it would hang up on the session's leader.
        std::mem::forget(master);
    });
}
