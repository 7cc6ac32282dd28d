//! The program to execute, found as execvp(3) finds it, but with the container's `PATH`.

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;

use super::strings::variable;
use crate::plan;
use crate::{Failure, Step};

/// execvp(3)'s path where the environment has none.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The path of the program that the plan's first argument names. To be called in the root and working directory it is executed
/// in, and best as the user it is executed as: then the kernel is asked, and before that, only mode bits are read.
pub(crate) fn look_up_program(process: &plan::Process) -> Result<CString, Failure> {
    let name = process.args.first().map_or("", String::as_str);
    let failure = |errno| Failure::at(Step::Exec, errno, name);
    if name.contains('/') {
        return check(name, process).map_err(failure);
    }
    let path = variable(&process.env, "PATH").unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for candidate in candidates(path, name) {
        match check(&candidate, process) {
            Ok(found) => return Ok(found),
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            // Whatever else is wrong with one directory, the program may be in the next.
            Err(_) => {}
        }
    }
    let errno = denied.unwrap_or(Errno::NOENT);
    Err(failure(errno).with_message("executable file not found in $PATH"))
}

/// Where `name` may be. An empty element of the path is the working directory.
fn candidates(path: &str, name: &str) -> impl Iterator<Item = String> {
    let directories = (!name.is_empty()).then(|| path.split(':')).into_iter().flatten();
    directories.map(move |directory| match directory {
        "" => format!("./{name}"),
        directory => format!("{}/{name}", directory.trim_end_matches('/')),
    })
}

/// Whether `path` is a regular file that the process may execute.
fn check(path: &str, process: &plan::Process) -> Result<CString, Errno> {
    let c_path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let stat = rustix::fs::stat(c_path.as_c_str())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    if rustix::process::geteuid().as_raw() != process.uid {
        return may_execute(&stat, process).then_some(c_path).ok_or(Errno::ACCESS);
    }
    match rustix::fs::accessat(CWD, c_path.as_c_str(), Access::EXEC_OK, AtFlags::EACCESS) {
        // Before Linux 5.8.
        Err(Errno::NOSYS) => may_execute(&stat, process).then_some(c_path).ok_or(Errno::ACCESS),
        access => access.map(|()| c_path),
    }
}

/// What the mode bits say to the user of the plan. See path_resolution(7).
fn may_execute(stat: &Stat, process: &plan::Process) -> bool {
    const EXECUTE: u32 = 0o1;
    const CAP_DAC_OVERRIDE: u64 = 1 << 1;
    if process.capabilities.effective & CAP_DAC_OVERRIDE != 0 {
        return stat.st_mode & 0o111 != 0;
    }
    let shift = if stat.st_uid == process.uid {
        6
    } else if stat.st_gid == process.gid || process.additional_gids.contains(&stat.st_gid) {
        3
    } else {
        0
    };
    stat.st_mode >> shift & EXECUTE != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::process::tests::process;

    fn file(path: &Path, mode: u32) {
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn look_up(name: &str, path: Option<String>) -> Result<String, Failure> {
        let env = path.into_iter().map(|path| format!("PATH={path}")).collect();
        let uid = rustix::process::geteuid().as_raw();
        let found = look_up_program(&plan::Process { args: vec![name.into()], env, uid, ..process() });
        found.map(|found| found.into_string().unwrap())
    }

    #[test]
    fn the_path_is_searched_in_order() {
        let top = tempfile::tempdir().unwrap();
        let directory = |name: &str| {
            let path = top.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (a, b, c) = (directory("a"), directory("b"), directory("c"));
        std::fs::create_dir(a.join("tool")).unwrap();
        file(&b.join("tool"), 0o644);
        let path = || Some(format!("/nowhere:{}:{}:{}/", a.display(), b.display(), c.display()));
        let failure = look_up("tool", path()).unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::ACCESS));
        file(&c.join("tool"), 0o755);
        assert_eq!(look_up("tool", path()).unwrap(), c.join("tool").to_str().unwrap());
        let failure = look_up("none", path()).unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::NOENT));
        assert_eq!(failure.path.as_deref(), Some("none"));
        assert!(failure.to_string().contains("executable file not found in $PATH"), "{failure}");
        assert_eq!(look_up("", path()).unwrap_err().errno(), Some(Errno::NOENT));
        assert!(look_up("sh", None).unwrap().ends_with("bin/sh"));
    }

    #[test]
    fn a_slash_is_taken_as_it_is() {
        let top = tempfile::tempdir().unwrap();
        let tool = top.path().join("tool");
        file(&tool, 0o644);
        let name = tool.to_str().unwrap();
        assert_eq!(look_up(name, None).unwrap_err().errno(), Some(Errno::ACCESS));
        file(&tool, 0o755);
        assert_eq!(look_up(name, None).unwrap(), name);
        assert_eq!(look_up(top.path().to_str().unwrap(), None).unwrap_err().errno(), Some(Errno::ACCESS));
        let missing = top.path().join("none");
        assert_eq!(
            look_up(missing.to_str().unwrap(), None).unwrap_err().to_string(),
            format!("exec {}: no such file or directory", missing.display())
        );
        assert_eq!(look_up("./a\0b", None).unwrap_err().errno(), Some(Errno::INVAL));
    }

    #[test]
    fn mode_bits_are_read_by_the_users_class() {
        let top = tempfile::tempdir().unwrap();
        let tool = top.path().join("tool");
        file(&tool, 0o611);
        let mut stat = rustix::fs::stat(&tool).unwrap();
        (stat.st_uid, stat.st_gid) = (10, 20);
        let may = |uid, gid, effective: u64| {
            let capabilities = plan::Capabilities { effective, ..plan::Capabilities::default() };
            may_execute(&stat, &plan::Process { uid, gid, capabilities, ..process() })
        };
        assert!(!may(10, 20, 0));
        assert!(may(10, 20, 2));
        assert!(may(11, 20, 0));
        assert!(may(11, 21, 0));
        stat.st_mode &= !0o10;
        let groups = plan::Process { uid: 11, gid: 21, additional_gids: vec![20], ..process() };
        assert!(!may_execute(&stat, &groups));
    }

    #[test]
    fn an_empty_element_is_the_working_directory() {
        assert_eq!(candidates("/a/::/", "t").collect::<Vec<_>>(), ["/a/t", "./t", "/t"]);
        assert_eq!(candidates("/a", "").count(), 0);
    }
}
