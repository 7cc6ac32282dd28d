//! Running a container's lifecycle hooks. See the runtime-spec's `config.md#posix-platform-hooks`.
//!
//! A hook gets the container's state on stdin, the environment the spec gives it and nothing else, the bundle as
//! working directory (createContainer hooks: the container's root, startContainer hooks: its `/`), and no descriptor of ours. What it writes is kept for the error message, up to a bound, and read
//! while it runs so that it never blocks on us. One that exceeds its timeout is killed with its process group.
//!
//! Single-threaded callers only need fork+exec and poll(2): no thread is started, and nothing is left to reap.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::plan::Hook;
use crate::{Failure, Step, signal, sys};

/// The most output of one hook that is kept for its error message, in bytes.
const MAX_OUTPUT_BYTES: usize = 4096;

/// The points at which hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Deprecated; with createRuntime, before it.
    Prestart,
    /// In the runtime's namespaces, once the container's stand.
    CreateRuntime,
    /// In the container's namespaces, before pivot_root.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// In the runtime's namespaces, once the program runs.
    Poststart,
    /// In the runtime's namespaces, once the container is gone.
    Poststop,
}

impl Point {
    /// The name in the spec.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// Runs the hooks of one point in order and stops at the first that fails. `state_json` goes to their stdin, `cwd` is their
/// working directory (None: the caller's), and nothing of them lives beyond `deadline`.
pub fn run(
    point: Point,
    hooks: &[Hook],
    state_json: &[u8],
    cwd: Option<&Path>,
    deadline: Option<Instant>,
) -> Result<(), Failure> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(point, index, hook, state_json, cwd, deadline)?;
    }
    Ok(())
}

/// As [`run`], but a hook that fails does not keep the next from running: for poststop, where nothing can be refused any
/// more. The failures are the caller's to log.
pub fn run_all(
    point: Point,
    hooks: &[Hook],
    state_json: &[u8],
    cwd: Option<&Path>,
    deadline: Option<Instant>,
) -> Vec<Failure> {
    let one = |(index, hook): (usize, &Hook)| run_one(point, index, hook, state_json, cwd, deadline).err();
    hooks.iter().enumerate().filter_map(one).collect()
}

fn run_one(
    point: Point,
    index: usize,
    hook: &Hook,
    state_json: &[u8],
    cwd: Option<&Path>,
    deadline: Option<Instant>,
) -> Result<(), Failure> {
    let failed = |problem: String| {
        let text =
            format!("error running {} hook #{index}: {}: {problem}", point.name(), hook.path.display());
        Failure::because(Step::Hook, text)
    };
    let own =
        hook.timeout_seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let until = [own, deadline].into_iter().flatten().min();
    let started = Instant::now();
    let (mut child, output) = spawn(hook, cwd).map_err(|error| failed(errno_of(&error)))?;
    let mut captured = Vec::new();
    match attend(&mut child, &output, state_json, until, &mut captured) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => {
            let output = String::from_utf8_lossy(&captured);
            let output = output.trim();
            let separator = if output.is_empty() { "" } else { ", output: " };
            Err(failed(format!("{}{separator}{output}", describe(status))))
        }
        Ok(None) => {
            end(&mut child);
            Err(failed(format!("hook ran past specified timeout of {:.1}s", started.elapsed().as_secs_f64())))
        }
        Err(error) => {
            end(&mut child);
            Err(failed(errno_of(&error)))
        }
    }
}

/// How a hook ended, in the words that other runtimes' users know.
fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal: {}", signal::describe(signal)),
        None => status.to_string(),
    }
}

fn errno_of(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => crate::failure::errno_text(errno),
        None => error.to_string(),
    }
}

/// Starts the hook with pipes on its stdio; the returned end reads both its stdout and stderr.
fn spawn(hook: &Hook, cwd: Option<&Path>) -> std::io::Result<(Child, OwnedFd)> {
    let (output, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    for entry in hook.env.iter().flatten() {
        // An entry without `=` has no value to give.
        if let Some((key, value)) = entry.split_once('=') {
            command.env(key, value);
        }
    }
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    sys::command::inherit_stdio_only(&mut command);
    Ok((command.spawn()?, output))
}

/// Feeds and drains the hook until it exits. None: the time is over.
fn attend(
    child: &mut Child,
    output: &OwnedFd,
    state_json: &[u8],
    until: Option<Instant>,
    captured: &mut Vec<u8>,
) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let exit = pidfd_open(pid, PidfdFlags::empty())?;
    let mut input = child.stdin.take();
    if let Some(input) = &input {
        rustix::io::ioctl_fionbio(input, true)?;
    }
    let mut rest = state_json;
    let mut open = true;
    loop {
        let timeout = match until {
            None => None,
            Some(until) => match until.checked_duration_since(Instant::now()) {
                None => return Ok(None),
                Some(left) => Some(Timespec::try_from(left).map_err(|_| Errno::INVAL)?),
            },
        };
        let mut ready = Vec::with_capacity(3);
        ready.push(PollFd::new(&exit, PollFlags::IN));
        if open {
            ready.push(PollFd::new(output, PollFlags::IN));
        }
        if let Some(input) = &input {
            ready.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::OUT));
        }
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let exited = !ready[0].revents().is_empty();
        drop(ready);
        if let Some(pipe) = &mut input {
            match pipe.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // A hook need not read its state.
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                input = None;
            }
        }
        if open {
            open = drain(output, captured)?;
        }
        if exited {
            // What a child of the hook still writes is not waited for.
            return child.wait().map(Some);
        }
    }
}

/// Reads what is there, keeping the first [`MAX_OUTPUT_BYTES`]. False: the other end is closed.
fn drain(output: &OwnedFd, captured: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                let room = MAX_OUTPUT_BYTES.saturating_sub(captured.len());
                captured.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Kills the hook with all it started that stayed in its process group, and reaps it.
fn end(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: Some(vec!["GIVEN=1".into()]),
            timeout_seconds: None,
        }
    }

    fn outcome(hook: Hook, state: &[u8]) -> Result<(), String> {
        run(Point::CreateRuntime, &[hook], state, Some(Path::new("/tmp")), None)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_gets_the_state_and_little_else() {
        let script = r#"state=$(cat); [ "$state" = '{"id":"x"}' ] && [ "$GIVEN" = 1 ] && [ -z "$HOME" ] && [ "$(pwd)" = /tmp ]"#;
        outcome(shell(script), br#"{"id":"x"}"#).unwrap();
    }

    #[test]
    fn a_failing_hook_tells_its_point_number_and_output() {
        let hooks = [shell("exit 0"), shell("echo broken >&2; exit 3")];
        let error = run(Point::CreateRuntime, &hooks, b"{}", None, None).unwrap_err().to_string();
        assert!(error.contains("error running createRuntime hook #1:"), "{error}");
        assert!(error.contains("exit status: 3, output: broken"), "{error}");
    }

    #[test]
    fn a_missing_hook_says_so() {
        let hook = Hook { path: "/nonexistent/hook".into(), args: vec![], env: None, timeout_seconds: None };
        let error = outcome(hook, b"{}").unwrap_err();
        assert!(error.contains("/nonexistent/hook: no such file or directory"), "{error}");
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let mut hook = shell("sleep 1000 & sleep 1000");
        hook.timeout_seconds = Some(1);
        let started = Instant::now();
        let error = outcome(hook, b"{}").unwrap_err();
        assert!(error.contains("timeout"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_background_child_that_keeps_the_pipe_is_not_waited_for() {
        let started = Instant::now();
        outcome(shell("sleep 3 & exit 0"), b"{}").unwrap();
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_large_state_and_a_chatty_hook_do_not_block_each_other() {
        let state = vec![b'x'; 1 << 20];
        outcome(shell("yes | head -c 1000000; [ $(cat | wc -c) = 1048576 ]"), &state).unwrap();
        outcome(shell("exit 0"), &state).unwrap();
    }

    #[test]
    fn no_descriptor_of_ours_is_seen() {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        outcome(shell("for fd in /proc/self/fd/*; do case ${fd##*/} in 0|1|2) ;; *) [ -e $fd ] && exit 1;; esac; done; exit 0"), b"{}")
            .unwrap();
    }

    #[test]
    fn poststop_goes_on_after_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let hooks = [shell("exit 1"), shell(&format!(": > {}", mark.display()))];
        let failures = run_all(Point::Poststop, &hooks, b"{}", None, None);
        assert_eq!(failures.len(), 1);
        assert!(mark.exists());
    }
}
