//! AppArmor profiles and SELinux labels of a container's process.
//!
//! Both are set for the next execve(2) by a write to a file in `/proc/thread-self/attr` (apparmor(7), selinux(8)). That write is what
//! attackers redirected in other runtimes, by mounting over parts of `/proc`: it goes through a procfs descriptor that the caller
//! opened where nobody could mount over it, and the file is proven to be procfs's before anything is written.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Failure, Step};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: u64 = 0x9fa0;
/// `SELINUX_MAGIC` of linux/magic.h.
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;

/// Whether this kernel enforces AppArmor profiles. Ask on the host, before the container's root is entered.
pub fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether a profile of that name is loaded. None: the list cannot be read (securityfs is not mounted, or not for us).
pub fn apparmor_profile_loaded(name: &str) -> Option<bool> {
    let list = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok()?;
    Some(is_listed(&list, name))
}

/// Whether SELinux is on. Ask on the host, before the container's root is entered.
pub fn selinux_enabled() -> bool {
    rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(SELINUX_MAGIC))
}

/// Refuses what this host cannot enforce, before anything is made: a profile without AppArmor, a label without SELinux.
pub fn check(apparmor_profile: Option<&str>, selinux_label: Option<&str>) -> Result<(), Failure> {
    for text in [apparmor_profile, selinux_label].into_iter().flatten() {
        if text.chars().any(char::is_control) {
            return Err(Failure::because(Step::Label, format!("{text:?} contains a control character")));
        }
    }
    if apparmor_profile.is_some_and(|profile| !matches!(profile, "" | "unconfined")) && !apparmor_enabled() {
        let message = "apparmor: config provided but apparmor not supported";
        return Err(Failure::because(Step::Label, message));
    }
    if selinux_label.is_some_and(|label| !label.is_empty()) && !selinux_enabled() {
        let message = "selinux label is specified in config, but selinux is disabled or not supported";
        return Err(Failure::because(Step::Label, message));
    }
    Ok(())
}

/// The AppArmor profile that the caller's next execve(2) puts it under. `proc` is the root of a procfs that nothing is mounted over.
/// An empty profile means none.
pub fn set_apparmor_exec(proc: BorrowedFd<'_>, profile: &str) -> Result<(), Failure> {
    if profile.is_empty() {
        return Ok(());
    }
    let value = format!("exec {profile}");
    // Before Linux 5.8, and beside no other LSM, AppArmor has only the shared file.
    let written = match write_attribute(proc, "thread-self/attr/apparmor/exec", &value) {
        Err(Errno::NOENT) if !has(proc, "thread-self/attr/apparmor/exec") => {
            write_attribute(proc, "thread-self/attr/exec", &value)
        }
        written => written,
    };
    written.map_err(|errno| {
        let failure = Failure::at(Step::Label, errno, profile);
        match errno {
            Errno::NOENT => failure.with_message("the AppArmor profile is not loaded"),
            _ => failure.with_message("unable to apply apparmor profile"),
        }
    })
}

/// The SELinux label that the caller's next execve(2) gives it. `proc` as in [`set_apparmor_exec`]. Empty means none.
pub fn set_selinux_exec(proc: BorrowedFd<'_>, label: &str) -> Result<(), Failure> {
    set_selinux(proc, "thread-self/attr/exec", label)
}

/// The SELinux label of the session keyring that the caller makes next. `proc` as in [`set_apparmor_exec`]. Empty means none.
pub fn set_selinux_keyring(proc: BorrowedFd<'_>, label: &str) -> Result<(), Failure> {
    set_selinux(proc, "thread-self/attr/keycreate", label)
}

fn set_selinux(proc: BorrowedFd<'_>, file: &str, label: &str) -> Result<(), Failure> {
    if label.is_empty() {
        return Ok(());
    }
    write_attribute(proc, file, label).map_err(|errno| {
        Failure::at(Step::Label, errno, label).with_message("unable to set the SELinux label")
    })
}

fn write_attribute(proc: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), Errno> {
    let fd = rustix::fs::openat(proc, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let fs = rustix::fs::fstatfs(fd.as_fd())?;
    if u64::try_from(fs.f_type) != Ok(PROC_MAGIC) {
        return Err(Errno::XDEV);
    }
    rustix::io::write(&fd, value.as_bytes()).map(drop)
}

fn has(proc: BorrowedFd<'_>, file: &str) -> bool {
    rustix::fs::accessat(proc, file, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
}

/// Lines are `name (mode)`; a name may have spaces.
fn is_listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_found_by_their_whole_name() {
        let list = "docker-default (enforce)\n/usr/bin/a b (complain)\n";
        assert!(is_listed(list, "docker-default"));
        assert!(is_listed(list, "/usr/bin/a b"));
        assert!(!is_listed(list, "docker"));
        assert!(!is_listed(list, "docker-default (enforce)"));
    }

    #[test]
    fn nothing_is_written_outside_of_procfs() {
        let elsewhere = tempfile::tempdir().unwrap();
        let attr = elsewhere.path().join("thread-self/attr/apparmor");
        std::fs::create_dir_all(&attr).unwrap();
        std::fs::write(attr.join("exec"), "").unwrap();
        std::fs::write(attr.parent().unwrap().join("exec"), "").unwrap();
        let fd = rustix::fs::open(elsewhere.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let failure = set_apparmor_exec(fd.as_fd(), "profile").unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::XDEV));
        assert!(set_selinux_exec(fd.as_fd(), "label").is_err());
        assert_eq!(std::fs::read(attr.join("exec")).unwrap(), b"");
        set_apparmor_exec(fd.as_fd(), "").unwrap();
    }

    #[test]
    fn what_the_host_cannot_enforce_is_refused() {
        check(None, None).unwrap();
        check(Some(""), Some("")).unwrap();
        check(Some("unconfined"), None).unwrap();
        assert!(check(Some("a\nb"), None).is_err());
        assert_eq!(check(Some("profile"), None).is_ok(), apparmor_enabled());
        assert_eq!(check(None, Some("u:r:t:s0")).is_ok(), selinux_enabled());
    }
}
