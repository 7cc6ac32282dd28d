//! The working directory, and the proof that it is inside the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{fchdir, getcwd, getegid, geteuid, getgroups};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::credentials;
use crate::plan;
use crate::{Failure, Step};

/// Makes the plan's working directory the caller's. Where root may not enter (NFS with root_squash) the user tries.
///
/// A path through a magic link such as `/proc/self/fd/7` leaves the root by a descriptor that was left open (CVE-2024-21626):
/// no such link is followed, and the kernel has to name the directory by a path below the root.
pub(crate) fn enter_working_directory(process: &plan::Process) -> Result<(), Failure> {
    let cwd = &process.cwd;
    let failure = |errno| Failure::at(Step::WorkingDirectory, errno, cwd).with_message("chdir");
    match enter(cwd) {
        Err(errno @ (Errno::ACCESS | Errno::PERM)) if process.uid != geteuid().as_raw() => {
            as_user(process, || enter(cwd)).map_err(failure)?.map_err(|_| failure(errno))?;
        }
        entered => entered.map_err(failure)?,
    }
    require_inside_root(cwd)
}

/// Makes the working directory of a container's own process where it is missing, owned by root, before the root may become read-only.
/// What goes wrong is found when it is entered. A process that is executed into a container finds what there is.
pub(crate) fn make_working_directory(process: &plan::Process) {
    if open(&process.cwd).is_err_and(|errno| errno == Errno::NOENT) {
        let _ = make(&process.cwd);
    }
}

/// Proves that the caller's working directory is below its root.
fn require_inside_root(cwd: &Path) -> Result<(), Failure> {
    let outside = |errno| {
        let message = "current working directory is outside of container mount namespace root";
        Failure::at(Step::WorkingDirectory, errno, cwd).with_message(message)
    };
    match getcwd(Vec::new()) {
        // The raw call succeeds with "(unreachable)/…", libc's fails with ENOENT.
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(outside(Errno::NOENT)),
        Err(errno) => Err(Failure::at(Step::WorkingDirectory, errno, cwd)),
    }
}

fn enter(path: &Path) -> Result<(), Errno> {
    fchdir(open(path)?)
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Makes every directory of an absolute path that is missing, and returns the last.
fn make(path: &Path) -> Result<OwnedFd, Errno> {
    let mut reached = PathBuf::from("/");
    let mut directory = open(&reached)?;
    for component in path.components().skip(1) {
        reached.push(component);
        directory = match open(&reached) {
            Err(Errno::NOENT) => {
                make_one(directory.as_fd(), Path::new(component.as_os_str()))?;
                open(&reached)?
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

fn make_one(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        // Someone else was faster; or it is a dangling symlink, which the next look-up reports.
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Runs `act` with the effective ids and groups of the user. The outer result tells whether there and back went well.
fn as_user<T>(process: &plan::Process, act: impl FnOnce() -> T) -> Result<T, Errno> {
    let (groups, gid, uid) = (getgroups()?, getegid(), geteuid());
    let user_groups: Vec<Gid> = process.additional_gids.iter().copied().map(Gid::from_raw).collect();
    if credentials::groups(&process.additional_gids).is_err() {
        return Err(Errno::PERM);
    }
    let switched = set_thread_res_gid(None, Gid::from_raw(process.gid), None)
        .and_then(|()| set_thread_res_uid(None, Uid::from_raw(process.uid), None));
    let result = switched.map(|()| act());
    // Back to root: only the effective ids were changed, so the saved ones permit it, and the effective capabilities return.
    set_thread_res_uid(None, uid, None)?;
    set_thread_res_gid(None, gid, None)?;
    if groups != user_groups {
        match set_thread_groups(&groups) {
            // The namespace forbids to change them, so they were not.
            Err(Errno::PERM) if getgroups()? == groups => {}
            set => set?,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::process::tests::{in_child, process};

    #[test]
    fn a_missing_working_directory_is_made() {
        in_child("process::cwd::tests::a_missing_working_directory_is_made", || {
            let top = tempfile::tempdir().unwrap();
            let cwd = top.path().join("a/../a/b");
            let process = plan::Process { cwd, ..process() };
            assert_eq!(enter_working_directory(&process).unwrap_err().errno(), Some(Errno::NOENT));
            make_working_directory(&process);
            enter_working_directory(&process).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), top.path().join("a/b"));
            std::env::set_current_dir("/").unwrap();
        });
    }

    #[test]
    fn a_file_or_a_dangling_link_is_no_working_directory() {
        in_child("process::cwd::tests::a_file_or_a_dangling_link_is_no_working_directory", || {
            let top = tempfile::tempdir().unwrap();
            let (file, link) = (top.path().join("file"), top.path().join("link"));
            std::fs::write(&file, "").unwrap();
            std::os::unix::fs::symlink("nowhere", &link).unwrap();
            let errno = |cwd| {
                enter_working_directory(&plan::Process { cwd, ..process() }).unwrap_err().errno().unwrap()
            };
            assert_eq!(errno(file.join("below")), Errno::NOTDIR);
            assert_eq!(errno(file), Errno::NOTDIR);
            assert_eq!(errno(link), Errno::NOENT);
        });
    }

    #[test]
    fn no_descriptor_is_a_way_out_of_the_root() {
        in_child("process::cwd::tests::no_descriptor_is_a_way_out_of_the_root", || {
            let fd = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
            for path in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/usr")] {
                let wanted = plan::Process { cwd: path.into(), ..process() };
                assert_eq!(enter_working_directory(&wanted).unwrap_err().errno(), Some(Errno::LOOP));
            }
            if crate::process::tests::is_root() {
                // Somewhere above the new root, as a leaked descriptor would leave it.
                std::env::set_current_dir("/etc").unwrap();
                rustix::process::chroot("/usr").unwrap();
                let failure = require_inside_root(Path::new("/x")).unwrap_err();
                assert!(failure.to_string().contains("outside of container"), "{failure}");
            }
        });
    }

    #[test]
    fn the_user_enters_where_root_may_not() {
        in_child("process::cwd::tests::the_user_enters_where_root_may_not", || {
            if !crate::process::tests::is_root() {
                return;
            }
            let top = tempfile::tempdir().unwrap();
            std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
            let cwd = top.path().join("home");
            std::fs::create_dir(&cwd).unwrap();
            std::fs::set_permissions(&cwd, std::fs::Permissions::from_mode(0o700)).unwrap();
            rustix::fs::chown(&cwd, Some(Uid::from_raw(1234)), Some(Gid::from_raw(1234))).unwrap();
            // A root that does not get past permissions, as an NFS server sees it.
            let powers = rustix::thread::CapabilitySet::SETUID | rustix::thread::CapabilitySet::SETGID;
            let sets = rustix::thread::CapabilitySets {
                effective: powers,
                permitted: powers,
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, sets).unwrap();
            assert_eq!(enter(&cwd).unwrap_err(), Errno::ACCESS);
            let wanted = plan::Process { cwd: cwd.clone(), uid: 1234, gid: 1234, ..process() };
            enter_working_directory(&wanted).unwrap();
            assert_eq!(rustix::process::geteuid(), Uid::ROOT);
            assert_eq!(rustix::process::getegid(), Gid::ROOT);
            assert_eq!(rustix::thread::capabilities(None).unwrap().effective, powers);
            let other = plan::Process { cwd: cwd.clone(), uid: 1235, gid: 1235, ..process() };
            assert_eq!(enter_working_directory(&other).unwrap_err().errno(), Some(Errno::ACCESS));
            std::fs::remove_dir(cwd).unwrap();
        });
    }
}
