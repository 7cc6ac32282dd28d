//! AppArmor's default profile: written here, compiled by apparmor_parser(8), loaded into the kernel, and looked after.
//!
//! ```text
//! <state>/apparmor/podwright-default       the policy, apparmor.d(5)
//! <state>/apparmor/cache/                  what the parser made of it, so that a reboot costs no compilation
//! <run>/apparmor-loaded                    the policy that this boot's kernel was given last
//! ```
//!
//! The kernel takes compiled policies only, and only the parser of the AppArmor project compiles them: as for containerd, Docker
//! and Podman, a host without it has no default profile. Containers that ask for none are unconfined there, and those that ask for
//! RuntimeDefault are refused; `Status` and `podwright doctor` say so.
//!
//! Whether the profile is there is asked of the kernel for each container: an administrator's `aa-teardown` is found out, and mended.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runtime::lsm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::translate::APPARMOR_PROFILE;

/// Where the parser may be, before PATH.
const PARSERS: &[&str] = &["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// How long the parser may take. A slow machine compiles for seconds.
const PARSER_DEADLINE: Duration = Duration::from_secs(60);

/// The most of the parser's words that are told, in bytes.
const MAX_PARSER_OUTPUT: u64 = 4096;

/// The default profile on this host.
#[derive(Debug)]
pub struct DefaultProfile {
    enabled: bool,
    parser: Option<PathBuf>,
    state: PathBuf,
    loaded: PathBuf,
    /// One parser at a time. Holds what became of the last attempt, which is told again until the host changes.
    attempt: Mutex<Option<String>>,
}

impl DefaultProfile {
    /// Looks for AppArmor and its parser. Loads nothing yet.
    pub fn new(state: &Path, run: &Path) -> Self {
        let known = PARSERS.iter().map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let searched = std::env::split_paths(&path).map(|directory| directory.join("apparmor_parser"));
        Self {
            enabled: lsm::apparmor_enabled(),
            parser: known.chain(searched).find(|path| path.is_file()),
            state: state.join("apparmor"),
            loaded: run.join("apparmor-loaded"),
            attempt: Mutex::new(None),
        }
    }

    /// Whether this kernel enforces AppArmor profiles.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Makes sure that the kernel has the profile as this version writes it. The error says, for people, why it has not. Blocks.
    pub fn ensure(&self) -> Result<(), String> {
        if !self.enabled {
            return Err("AppArmor is off on this node".to_owned());
        }
        let policy = policy(APPARMOR_PROFILE, &own_profile(), has_abi());
        let mut attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        let there = lsm::apparmor_profile_loaded(APPARMOR_PROFILE) == Some(true);
        if there && fs::read_to_string(&self.loaded).is_ok_and(|loaded| loaded == policy) {
            return Ok(());
        }
        let loaded = self.load(&policy);
        match &loaded {
            Ok(()) => tracing::info!(profile = APPARMOR_PROFILE, "the default AppArmor profile is loaded"),
            // Somebody has loaded one of the name: an older one of ours, or the administrator's own.
            Err(reason) if there => {
                tracing::warn!(%reason, "the default AppArmor profile is used as it is loaded");
                return Ok(());
            }
            Err(reason) if attempt.as_ref() != Some(reason) => {
                tracing::warn!(%reason, "there is no default AppArmor profile: containers that ask for none are unconfined");
            }
            Err(_) => {}
        }
        *attempt = loaded.as_ref().err().cloned();
        loaded
    }

    /// What people have to know about the profile; None: nothing, all is well or AppArmor is off.
    pub fn complaint(&self) -> Option<String> {
        if !self.enabled || lsm::apparmor_profile_loaded(APPARMOR_PROFILE) == Some(true) {
            return None;
        }
        let attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        attempt.clone().or_else(|| self.parser.is_none().then(no_parser))
    }

    fn load(&self, policy: &str) -> Result<(), String> {
        let parser = self.parser.as_ref().ok_or_else(no_parser)?;
        let file = self.state.join(APPARMOR_PROFILE);
        let cache = self.state.join("cache");
        let failed = |path: &Path, error: std::io::Error| format!("write {}: {error}", path.display());
        fs::create_dir_all(&cache).map_err(|error| failed(&cache, error))?;
        // The same file again would be newer than what was made of it.
        if fs::read_to_string(&file).ok().as_deref() != Some(policy) {
            fs::write(&file, policy).map_err(|error| failed(&file, error))?;
        }
        let child = Command::new(parser)
            .arg("--replace")
            .arg("--write-cache")
            .arg(format!("--cache-loc={}", cache.display()))
            .arg(&file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.map_err(|error| format!("start {}: {error}", parser.display()))?;
        wait(child, PARSER_DEADLINE).map_err(|error| format!("{}: {error}", parser.display()))?;
        fs::write(&self.loaded, policy).map_err(|error| failed(&self.loaded, error))
    }
}

fn no_parser() -> String {
    "apparmor_parser is not installed, which the default profile is compiled with (Debian: apt install apparmor)".to_owned()
}

/// Waits for the parser to end well.
fn wait(mut child: Child, limit: Duration) -> Result<(), String> {
    let ended = wait_for_end(&child, limit);
    if !matches!(ended, Ok(true)) {
        // Nothing else is to be done about one that cannot even be killed.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !ended.map_err(|errno| errno.to_string())? {
        return Err(format!("did not end within {limit:?}"));
    }
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_PARSER_OUTPUT).read_to_string(&mut words);
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!("{status}: {words}"))
}

/// Whether the process ends within `limit`.
fn wait_for_end(child: &Child, limit: Duration) -> rustix::io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? == 1)
}

/// The profile that this process, and with it every monitor, is confined by; `unconfined` if by none.
fn own_profile() -> String {
    let files = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    // `name (mode)`; a name that could not stand in a policy is none that a policy was loaded by.
    let name = text.trim_end_matches(['\0', '\n']).split(" (").next().unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '.');
    if name.is_empty() || !name.chars().all(legal) { "unconfined".to_owned() } else { name.to_owned() }
}

/// Whether the parser's own description of what AppArmor 3 knows is installed; without it, the parser assumes an older one.
fn has_abi() -> bool {
    Path::new("/etc/apparmor.d/abi/3.0").is_file()
}

/// The policy: what Docker's and containerd's users are used to, said anew. A container may do what its capabilities, its seccomp
/// filter and its mounts let it do, but for what would reach the host: it mounts nothing, writes to no kernel setting outside of
/// its own processes' directories, and signals and traces nobody outside.
fn policy(name: &str, daemon: &str, abi: bool) -> String {
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    let daemon =
        if daemon == "unconfined" { String::new() } else { format!("  signal (receive) peer={daemon},\n") };
    format!(
        "# Made by podwrightd, and made anew when it starts: changes here are lost.\n\
         {abi}\
         profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         \x20 # Files, networks and capabilities are bounded by other means; these only let them be.\n\
         \x20 file,\n\
         \x20 network,\n\
         \x20 capability,\n\
         \x20 umount,\n\
         \n\
         \x20 # Among themselves; from the host, signals only.\n\
         \x20 signal (send, receive) peer={name},\n\
         \x20 ptrace (trace, tracedby, read, readby) peer={name},\n\
         \x20 signal (receive) peer=unconfined,\n\
         {daemon}\
         \n\
         \x20 # Whatever capabilities it has.\n\
         \x20 deny mount,\n\
         \n\
         \x20 # Of /proc, the directories of processes (their names are numbers), and the settings of System V shared memory,\n\
         \x20 # which are the pod's. Everything else that is written there is the host's.\n\
         \x20 deny /proc/[^0-9]* w,\n\
         \x20 deny /proc/[^0-9s]*/** w,\n\
         \x20 deny /proc/s[^y]*/** w,\n\
         \x20 deny /proc/sy[^s]*/** w,\n\
         \x20 deny /proc/sys[^/]*/** w,\n\
         \x20 deny /proc/sys/[^k]*/** w,\n\
         \x20 deny /proc/sys/k[^e]*/** w,\n\
         \x20 deny /proc/sys/ke[^r]*/** w,\n\
         \x20 deny /proc/sys/kernel/[^s]** w,\n\
         \x20 deny /proc/sys/kernel/s[^h]** w,\n\
         \x20 deny /proc/sys/kernel/sh[^m]** w,\n\
         \x20 deny /proc/kcore rwklx,\n\
         \x20 deny /proc/sysrq-trigger rwklx,\n\
         \n\
         \x20 # Of /sys, cgroups; how far those can be written, the mount says.\n\
         \x20 deny /sys/[^f]** wklx,\n\
         \x20 deny /sys/f[^s]** wklx,\n\
         \x20 deny /sys/fs/[^c]** wklx,\n\
         \x20 deny /sys/fs/c[^g]** wklx,\n\
         \x20 deny /sys/fs/cg[^r]** wklx,\n\
         \x20 deny /sys/firmware/** rwklx,\n\
         \x20 deny /sys/kernel/security/** rwklx,\n\
         \x20 deny /sys/devices/virtual/powercap/** rwklx,\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_itself_and_who_may_signal_it() {
        let text = policy("p", "unconfined", false);
        assert!(text.contains("\nprofile p flags="), "{text}");
        assert!(text.contains("signal (send, receive) peer=p,"), "{text}");
        assert!(!text.contains("abi <"), "{text}");
        assert_eq!(text.matches("peer=unconfined").count(), 1);
        let text = policy("p", "/usr/sbin/podwrightd", true);
        assert!(text.contains("\nabi <abi/3.0>,\n"), "{text}");
        assert!(text.contains("signal (receive) peer=/usr/sbin/podwrightd,"), "{text}");
    }

    #[test]
    fn the_parsers_own_words_are_told() {
        let child = |script: &str| {
            Command::new("/bin/sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap()
        };
        assert_eq!(wait(child("exit 0"), PARSER_DEADLINE), Ok(()));
        let error = wait(child("echo syntax error >&2; exit 1"), PARSER_DEADLINE).unwrap_err();
        assert_eq!(error, "exit status: 1: syntax error");
        let error = wait(child("exec sleep 1000"), Duration::from_millis(20)).unwrap_err();
        assert!(error.contains("did not end within"), "{error}");
    }

    #[test]
    fn without_a_parser_the_reason_says_what_to_install() {
        let directory = tempfile::tempdir().unwrap();
        let mut profile = DefaultProfile::new(directory.path(), directory.path());
        profile.parser = None;
        let reason = profile.ensure().unwrap_err();
        if profile.enabled() {
            assert!(reason.contains("apt install apparmor"), "{reason}");
            assert_eq!(profile.complaint(), Some(reason));
        } else {
            assert!(reason.contains("is off"), "{reason}");
            assert_eq!(profile.complaint(), None);
        }
    }
}
