//! The RuntimeDefault profile on the real kernel: compiled by the engine and loaded into a thread of this test.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io;
use std::process::{Command, Output};

use cri::seccomp_default;
use cri::translate::capabilities::{self, Names};
use oci_spec::runtime::Arch;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{AddressFamily, SocketType, socket};

/// `AF_ALG` and `AF_VSOCK` of `socket(2)`.
const REFUSED_FAMILIES: [u16; 2] = [38, 40];

/// Runs `work` in a thread under the profile for a bounding set.
fn confined<T: Send + 'static>(
    capabilities: &[&'static str],
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let arch = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };
    let names: Names = capabilities.iter().copied().collect();
    let profile = seccomp_default::profile(&names, arch, (6, 1));
    let program = runtime::seccomp::compile(&profile).unwrap();
    std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        assert!(runtime::seccomp::load(&program).unwrap().is_none());
        work()
    })
    .join()
    .unwrap()
}

fn errno_of_socket(family: u16) -> Option<Errno> {
    socket(AddressFamily::from_raw(family), SocketType::STREAM, None).err()
}

fn run(program: &str, args: &[&str]) -> io::Result<Output> {
    Command::new(program).args(args).output()
}

#[test]
fn programs_run_and_namespaces_cannot_be_made() {
    confined(capabilities::DEFAULT, || {
        // Starting a program needs clone3's ENOSYS to be answered with clone.
        let output = run("/bin/sh", &["-c", "cat /proc/self/status"]).unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        let output = run("unshare", &["--user", "true"]).unwrap();
        assert!(!output.status.success());
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("Operation not permitted"), "{message}");
    });
}

#[test]
fn two_socket_families_are_refused() {
    confined(&[], || {
        for family in REFUSED_FAMILIES {
            assert_eq!(errno_of_socket(family), Some(Errno::PERM), "{family}");
        }
        for family in [AddressFamily::UNIX, AddressFamily::INET] {
            assert_eq!(errno_of_socket(family.as_raw()), None);
        }
    });
}

#[test]
fn mount_calls_come_with_sys_admin() {
    let unmount_nothing = || unmount("/nothing/is/here", UnmountFlags::empty()).unwrap_err();
    assert_eq!(confined(capabilities::DEFAULT, unmount_nothing), Errno::PERM);
    // Let through, the call fails for a reason of its own.
    assert_eq!(confined(&["SYS_ADMIN"], unmount_nothing), unmount_nothing());
}

#[test]
fn personality_is_bounded() {
    confined(&[], || {
        // setarch asks for PER_LINUX32, which is allowed, and with -R for no address randomisation, which is not.
        let allowed = run("setarch", &["linux32", "true"]).unwrap();
        assert!(allowed.status.success(), "{allowed:?}");
        let refused = run("setarch", &["linux64", "-R", "true"]).unwrap();
        assert!(!refused.status.success(), "{refused:?}");
    });
}

#[test]
fn every_capability_set_compiles() {
    for arch in [Arch::ScmpArchX86_64, Arch::ScmpArchAarch64] {
        for capability in capabilities::ALL {
            let names = Names::from([*capability]);
            runtime::seccomp::compile(&seccomp_default::profile(&names, arch, (6, 1))).unwrap();
        }
        let all: Names = capabilities::ALL.iter().copied().collect();
        let program = runtime::seccomp::compile(&seccomp_default::profile(&all, arch, (4, 7))).unwrap();
        assert!(!program.instructions().is_empty());
    }
}
