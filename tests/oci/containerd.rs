//! Debian's containerd and its shim with wright in runc's place.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Deadline, Outcome, binaries, process, skip, temporary, watch};
use rustix::process::Signal;

/// A containerd with directories and a socket of its own, ended with the test.
struct Containerd {
    directory: tempfile::TempDir,
    daemon: Child,
}

impl Containerd {
    /// None: there is none here, which has been said.
    fn start(test: &str) -> Result<Option<Self>> {
        let has = |name: &str| {
            Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
        };
        if !has("containerd") || !has("ctr") {
            skip::skip(test, "no containerd: apt-get install containerd (make deps does)");
            return Ok(None);
        }
        // Short: the paths of its shims' sockets are below it.
        let directory = temporary::directory_in("/tmp".as_ref())?;
        let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("opt")
        );
        fs::write(directory.path().join("config.toml"), config)?;
        let log = File::create(directory.path().join("log"))?;
        let daemon = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let containerd = Self { directory, daemon };
        watch::content(&containerd.directory.path().join("log"), Deadline::in_seconds(60), |bytes| {
            String::from_utf8_lossy(bytes).contains("containerd successfully booted").then_some(())
        })?;
        Ok(Some(containerd))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<Ran> {
        let socket = self.directory.path().join("c.sock");
        let mut command = Command::new("ctr");
        command.arg("--address").arg(socket).args(arguments).stdin(Stdio::null());
        Ok(command.output()?.into())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = process::signal(self.daemon.id(), Signal::TERM);
        let _ = self.daemon.wait();
        let directory = self.directory.path().to_string_lossy().into_owned();
        if std::thread::panicking() {
            for left in process::belonging_to(&directory).unwrap_or_default() {
                let _ = process::signal(left.pid, Signal::KILL);
            }
        }
        // A shim ends by itself, a moment after its last task was deleted.
        if let Err(error) = process::wait_all_gone(&directory, Deadline::in_seconds(30)) {
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}

#[test]
fn ctr_runs_execs_and_ends_containers() -> Outcome {
    let Some(containerd) = Containerd::start("oci::containerd::ctr_runs_execs_and_ends_containers")? else {
        return Ok(());
    };
    // Only its root, and a name that nobody else has, are wanted of it.
    let bundle = Bundle::new("true")?;
    let wright = binaries::find("wright")?.to_string_lossy().into_owned();
    let root = bundle.path().join("rootfs").to_string_lossy().into_owned();
    let cgroup = format!("/{}", bundle.id);
    let start = |flags: &[&str], id: &str, command: &[&str]| {
        let mut arguments = vec!["run", "--runc-binary", &wright, "--cgroup", &cgroup];
        arguments.extend(flags);
        arguments.extend(["--rootfs", &root, id]);
        arguments.extend(command);
        containerd.ctr(&arguments)
    };
    let ran = start(&["--rm"], &bundle.id, &["/bin/sh", "-c", "echo hello; exit 3"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "hello\n"), "{ran:?}");
    let ran = start(&["--rm"], &bundle.id, &["/no/such/program"])?;
    assert!(ran.code != 0 && ran.stderr.contains("no such file or directory"), "{ran:?}");

    start(&["--detach"], &bundle.id, &["/bin/sleep", "100000"])?.ok()?;
    let ran = containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "one",
        &bundle.id,
        "/bin/sh",
        "-c",
        "echo inside; exit 4",
    ])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (4, "inside\n"), "{ran:?}");
    containerd.ctr(&["tasks", "pause", &bundle.id])?.ok()?;
    assert!(containerd.ctr(&["tasks", "ls"])?.ok()?.contains("PAUSED"));
    containerd.ctr(&["tasks", "resume", &bundle.id])?.ok()?;
    assert!(containerd.ctr(&["tasks", "ps", &bundle.id])?.ok()?.contains("PID"));
    containerd.ctr(&["tasks", "kill", "--signal", "KILL", &bundle.id])?.ok()?;
    // Without force it is refused until the exit has been noticed; with it, that is waited for. Its status is the task's.
    let _ = containerd.ctr(&["tasks", "delete", "--force", &bundle.id])?;
    containerd.ctr(&["containers", "delete", &bundle.id])?.ok()?;
    Ok(())
}
