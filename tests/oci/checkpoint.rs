//! Checkpoint and restore, with a real criu.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use podwright_tests::descriptor::receive;
use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Criu, Deadline, Outcome, process, skip, snapshot, watch};
use serde_json::{Value, json};

use super::terminal::read_until;

/// Counts in a variable, which only its memory has, and shows the count in a file.
const COUNT: &str =
    "i=0; while true; do i=$((i+1)); echo $i >/tmp/next; mv /tmp/next /tmp/count; sleep 0.05; done";

/// As [`COUNT`], and a directory for each number: which came first stays to be seen, however late one looks.
const COUNT_ALL: &str = "mkdir -p /tmp/all; i=0; while true; do i=$((i+1)); mkdir /tmp/all/$i; \
                         echo $i >/tmp/next; mv /tmp/next /tmp/count; sleep 0.05; done";

/// A bundle whose `wright` finds criu.
struct Counting {
    bundle: Bundle,
    criu: Criu,
}

impl Counting {
    fn new(script: &str, criu: Criu) -> Result<Self> {
        Ok(Self { bundle: Bundle::new(script)?, criu })
    }

    fn wright(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = self.bundle.command(arguments)?;
        Ok(command.env("PATH", self.criu.path()).output().context("run wright")?.into())
    }

    /// `wright run --detach` or another verb that leaves a container, whose stdio is nothing: criu takes no file of the host's along.
    fn detached(&self, arguments: &[&str]) -> Outcome {
        let log = self.bundle.path().join("log");
        let mut command = self.bundle.command(&[&["--log", &log.to_string_lossy()], arguments].concat())?;
        command.env("PATH", self.criu.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status()?;
        ensure!(status.success(), "{arguments:?}: {}", fs::read_to_string(log).unwrap_or_default());
        Ok(())
    }

    fn run(&self) -> Outcome {
        self.detached(&["run", "--detach", &self.bundle.id])
    }

    fn checkpoint(&self, flags: &[&str]) -> Result<Ran> {
        let images = self.images();
        let images = images.to_string_lossy();
        self.wright(&[&["checkpoint", "--image-path", &*images], flags, &[&*self.bundle.id]].concat())
    }

    fn restore(&self, flags: &[&str]) -> Outcome {
        let images = self.images();
        let images = images.to_string_lossy();
        self.detached(
            &[&["restore", "--detach", "--image-path", &*images], flags, &[&*self.bundle.id]].concat(),
        )
    }

    fn images(&self) -> PathBuf {
        self.bundle.path().join("images")
    }

    fn count_file(&self) -> PathBuf {
        self.bundle.path().join("rootfs/tmp/count")
    }

    /// Blocks until the count is beyond `count`, and returns it.
    fn beyond(&self, count: u64) -> Result<u64> {
        watch::content(&self.count_file(), Deadline::in_seconds(20), |bytes| {
            String::from_utf8_lossy(bytes).trim().parse().ok().filter(|now| *now > count)
        })
    }

    /// What the count is now, and no trace of it any more: what is counted next comes from memory.
    fn take_count(&self) -> Result<u64> {
        let count = fs::read_to_string(self.count_file())?.trim().parse()?;
        fs::remove_file(self.count_file())?;
        Ok(count)
    }

    /// The container's mounts, with their options, without what differs from mount to mount.
    fn mounts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.bundle.pid()?))?;
        let line = |line: &str| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let fields: Vec<_> = mount.split(' ').collect();
            let kind = filesystem.split(' ').next()?;
            if fields.get(3) == Some(&"/null") {
                // What masks a file is the container's own null device, and then the host's.
                return Some(format!("{} masked", fields.get(4)?));
            }
            Some(format!("{} {} {} {kind}", fields.get(3)?, fields.get(4)?, fields.get(5)?))
        };
        let mut mounts: Vec<_> = text.lines().filter_map(line).collect();
        mounts.sort();
        Ok(mounts)
    }

    /// Who its init is and what it may do, of /proc/PID/status.
    fn powers(&self) -> Result<Vec<String>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.bundle.pid()?))?;
        let wanted = ["Umask", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
        let lines = status.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Nothing of the container is left.
    fn is_gone(&self) -> bool {
        snapshot::cgroups(&self.bundle.id).is_empty()
            && !self.bundle.state_root().join(&self.bundle.id).exists()
    }
}

#[test]
fn a_restored_container_goes_on_where_it_was() -> Outcome {
    let Some(criu) = Criu::require("checkpoint::a_restored_container_goes_on_where_it_was") else {
        return Ok(());
    };
    let counting = Counting::new(COUNT, criu)?;
    let bundle = &counting.bundle;
    bundle.edit(|spec| {
        spec["hostname"] = json!("counter");
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [29, 1000], "umask": 0o27});
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO"}],
        });
        spec["linux"]["resources"]["pids"] = json!({"limit": 77});
        spec["hooks"]["poststop"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo gone >> poststop"]}]);
        spec["hooks"]["createRuntime"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo made >> create-runtime"]}]);
    })?;
    counting.run()?;
    counting.beyond(5)?;
    let (mounts, powers) = (counting.mounts()?, counting.powers()?);
    assert!(powers.contains(&"Seccomp:\t2".to_owned()), "{powers:?}");
    counting.checkpoint(&[])?.ok()?;
    assert!(counting.is_gone(), "a container that was checkpointed is deleted");
    assert_eq!(fs::read_to_string(bundle.path().join("poststop"))?, "gone\n");
    let count = counting.take_count()?;
    counting.restore(&["--pid-file", "pid"])?;
    let first = counting.beyond(0)?;
    assert!(first > count, "{first} after {count}: it began anew");
    assert_eq!(fs::read_to_string(bundle.path().join("create-runtime"))?, "made\nmade\n");

    assert_eq!(bundle.status()?, "running");
    assert_eq!(fs::read_to_string(bundle.path().join("pid"))?, bundle.pid()?.to_string());
    assert_eq!(counting.mounts()?, mounts, "mounts and their flags are the same");
    assert_eq!(counting.powers()?, powers, "credentials and the filter are the same");
    let limits: Vec<_> = snapshot::cgroups(&bundle.id)
        .iter()
        .filter_map(|cgroup| fs::read_to_string(cgroup.join("pids.max")).ok())
        .collect();
    assert!(limits.contains(&"77\n".to_owned()), "{limits:?}");
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid()?))?;
    assert!(cgroups.lines().any(|line| line.ends_with(&format!("/{}", bundle.id))), "{cgroups}");
    let seen = counting.wright(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "hostname; cat /sys/class/net/lo/flags; echo $PPID",
    ])?;
    assert_eq!(seen.ok()?, "counter\n0x9\n0\n", "exec is in its namespaces, its loopback is up");

    // What was executed in it is part of it.
    let sleeper = counting.wright(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "sleep 4711 </dev/null >/dev/null 2>&1 & echo $!",
    ])?;
    let sleeper = sleeper.ok()?;
    let again = counting.beyond(first)?;
    counting.checkpoint(&[])?.ok()?;
    counting.restore(&[])?;
    counting.beyond(again)?;
    let found =
        counting.wright(&["exec", &bundle.id, "cat", &format!("/proc/{}/cmdline", sleeper.trim())])?;
    assert_eq!(found.ok()?, "sleep\x004711\0");
    counting.wright(&["pause", &bundle.id])?.ok()?;
    assert_eq!(bundle.status()?, "paused");
    counting.wright(&["resume", &bundle.id])?.ok()?;
    let pid = bundle.pid()?;
    counting.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    counting.wright(&["delete", &bundle.id])?.ok()?;
    assert!(counting.is_gone());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!table.contains(&*bundle.path().to_string_lossy()), "criu's mounts are its own: {table}");
    Ok(())
}

#[test]
fn a_container_may_be_left_running_or_paused() -> Outcome {
    let Some(criu) = Criu::require("checkpoint::a_container_may_be_left_running_or_paused") else {
        return Ok(());
    };
    let counting = Counting::new(COUNT_ALL, criu)?;
    counting.run()?;
    let first = counting.beyond(3)?;
    let pid = counting.bundle.pid()?;
    counting.checkpoint(&["--leave-running", "--work-path", "work"])?.ok()?;
    assert_eq!((counting.bundle.status()?.as_str(), counting.bundle.pid()?), ("running", pid));
    counting.beyond(first)?;
    assert!(
        counting.bundle.path().join("work/dump.log").exists() && !counting.images().join("dump.log").exists()
    );

    counting.wright(&["pause", &counting.bundle.id])?.ok()?;
    counting.checkpoint(&["--leave-running"])?.ok()?;
    assert_eq!(counting.bundle.status()?, "paused", "what was paused stays so");
    // It may have been stopped between making the next directory and showing the number.
    let paused: u64 = fs::read_to_string(counting.count_file())?.trim().parse()?;
    counting.wright(&["resume", &counting.bundle.id])?.ok()?;
    counting.beyond(paused + 3)?;

    // An id in use is not restored into.
    let taken = counting.wright(&["restore", "--detach", "--image-path", "images", &counting.bundle.id])?;
    assert!(taken.code == 1 && taken.stderr.contains("container with given ID already exists"), "{taken:?}");
    assert_eq!(counting.bundle.pid()?, pid);

    counting.wright(&["delete", "--force", &counting.bundle.id])?.ok()?;
    counting.take_count()?;
    let all = counting.bundle.path().join("rootfs/tmp/all");
    fs::remove_dir_all(&all)?;
    fs::create_dir(&all)?;
    counting.restore(&[])?;
    // At least one number that it came to after that.
    counting.beyond(paused + 2)?;
    let numbers: Vec<u64> = fs::read_dir(&all)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect::<Result<_>>()?;
    let restored = numbers.iter().min().context("it counts")?;
    assert!(
        (paused..paused + 3).contains(restored),
        "{restored}: it goes on from the checkpoint, {paused}, not from its end"
    );
    Ok(())
}

#[test]
fn a_pre_dump_is_the_parent_of_a_dump() -> Outcome {
    let test = "checkpoint::a_pre_dump_is_the_parent_of_a_dump";
    let Some(criu) = Criu::require(test) else { return Ok(()) };
    let counting = Counting::new(COUNT, criu)?;
    counting.run()?;
    counting.beyond(3)?;
    let pid = counting.bundle.pid()?;
    let before =
        counting.wright(&["checkpoint", "--pre-dump", "--image-path", "before", &counting.bundle.id])?;
    if before.stderr.contains("criu is missing features") {
        skip::skip(test, "this kernel does not track memory");
        return Ok(());
    }
    before.ok()?;
    assert_eq!((counting.bundle.status()?.as_str(), counting.bundle.pid()?), ("running", pid));
    counting.checkpoint(&["--parent-path", "../before"])?.ok()?;
    assert_eq!(fs::read_link(counting.images().join("parent"))?, Path::new("../before"));
    let count = counting.take_count()?;
    counting.restore(&[])?;
    assert!(counting.beyond(0)? > count);
    Ok(())
}

#[test]
fn stdio_is_that_of_restore_and_the_exit_code_too() -> Outcome {
    let test = "checkpoint::stdio_is_that_of_restore_and_the_exit_code_too";
    let Some(criu) = Criu::require(test) else { return Ok(()) };
    let counting = Counting::new("while read line; do echo got $line; done; exit 7", criu)?;
    let piped = |arguments: &[&str]| -> Result<Child> {
        let mut command = counting.bundle.command(arguments)?;
        command.env("PATH", counting.criu.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command.stderr(Stdio::piped()).spawn()?)
    };
    let talk = |child: &mut Child, word: &str| -> Outcome {
        use std::io::{BufRead as _, BufReader, Write as _};
        let (Some(input), Some(output)) = (&mut child.stdin, &mut child.stdout) else {
            anyhow::bail!("no pipes");
        };
        writeln!(input, "{word}")?;
        let mut line = String::new();
        // One byte at a time, so that nothing is taken that belongs to a later reader.
        BufReader::with_capacity(1, output).read_line(&mut line)?;
        assert_eq!(line, format!("got {word}\n"));
        Ok(())
    };
    let mut first = piped(&["run", &counting.bundle.id])?;
    talk(&mut first, "one")?;
    counting.checkpoint(&[])?.ok()?;
    // Whoever waited for it sees its end.
    first.wait()?;
    let mut second = piped(&["restore", "--image-path", "images", &counting.bundle.id])?;
    talk(&mut second, "two")?;
    let rest = second.wait_with_output()?;
    assert_eq!(rest.status.code(), Some(7), "{}", String::from_utf8_lossy(&rest.stderr));
    assert!(counting.is_gone());
    Ok(())
}

#[test]
fn a_terminal_comes_back_over_the_socket() -> Outcome {
    let Some(criu) = Criu::require("checkpoint::a_terminal_comes_back_over_the_socket") else {
        return Ok(());
    };
    let counting = Counting::new("echo up; while read line; do echo got $line; done", criu)?;
    counting.bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let path = counting.bundle.path().join("console.sock");
    let listener = UnixListener::bind(&path)?;
    let path = path.to_string_lossy();
    counting.detached(&["run", "--detach", "--console-socket", &*path, &counting.bundle.id])?;
    let terminal = receive(&listener)?;
    read_until(&terminal, "up")?;
    counting.checkpoint(&[])?.ok()?;
    drop(terminal);
    let refused = counting.wright(&["restore", "--detach", "--image-path", "images", &counting.bundle.id])?;
    assert!(refused.code == 1 && refused.stderr.contains("without setting console socket"), "{refused:?}");
    counting.restore(&["--console-socket", &*path])?;
    let terminal = receive(&listener)?;
    rustix::io::write(&terminal, b"word\n")?;
    read_until(&terminal, "got word")?;
    Ok(())
}

#[test]
fn what_is_not_its_own_is_found_again() -> Outcome {
    let Some(criu) = Criu::require("checkpoint::what_is_not_its_own_is_found_again") else {
        return Ok(());
    };
    let host = Bundle::new("echo up; sleep 100000; true")?;
    super::start(&host)?;
    let namespace = format!("/proc/{}/ns/net", host.pid()?);
    let counting = Counting::new(COUNT, criu)?;
    let bundle = &counting.bundle;
    for directory in ["outer", "inner", "linked", "nested", "rootfs/real"] {
        fs::create_dir(bundle.path().join(directory))?;
    }
    fs::write(bundle.path().join("outer/file"), "outer")?;
    fs::write(bundle.path().join("inner/file"), "inner")?;
    fs::write(bundle.path().join("single"), "single")?;
    std::os::unix::fs::symlink("/real", bundle.path().join("rootfs/link"))?;
    bundle.edit(|spec| {
        let bind = |source: &str, destination: &str, options: &[&str]| {
            let options = [&["rbind"], options].concat();
            json!({"type": "bind", "source": bundle.path().join(source), "destination": destination, "options": options})
        };
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(bind("outer", "/outer", &["ro", "nosuid", "noexec"]));
            mounts.push(bind("linked", "/link/inside", &["rw"]));
            mounts.push(bind("nested", "/link/inside/deep/nested", &["rw"]));
            mounts.push(bind("single", "/etc/single", &["ro", "nodev"]));
            mounts.push(json!({"type": "tmpfs", "source": "tmpfs", "destination": "/scratch", "options": ["size=64k"]}));
            mounts.push(bind("inner", "/scratch/inner", &["ro"]));
        }
        for space in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if space["type"] == "network" {
                space["path"] = Value::String(namespace.clone());
            }
        }
    })?;
    counting.run()?;
    let first = counting.beyond(0)?;
    counting
        .wright(&["exec", &bundle.id, "sh", "-c", "echo kept >/scratch/file; echo x >/link/inside/x"])?
        .ok()?;
    let mounts = counting.mounts()?;
    counting.checkpoint(&[])?.ok()?;
    // Mount points that creating the container had made, in its root and in a bind's source, and that are gone since.
    fs::remove_dir(bundle.path().join("rootfs/outer"))?;
    fs::remove_dir_all(bundle.path().join("linked/deep"))?;
    fs::write(bundle.path().join("outer/file"), "changed")?;
    counting.restore(&[])?;
    counting.beyond(first)?;
    assert_eq!(counting.mounts()?, mounts);
    let seen = counting.wright(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "cat /outer/file /real/inside/x /etc/single /scratch/inner/file /scratch/file; echo no >/outer/new",
    ])?;
    assert_eq!(seen.stdout, "changedx\nsingleinnerkept\n", "{seen:?}");
    assert!(seen.stderr.contains("Read-only file system"), "{seen:?}");
    let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net"));
    assert_eq!(link(bundle.pid()?)?, link(host.pid()?)?, "it joined the same network namespace");
    Ok(())
}

#[test]
fn connections_are_taken_along_when_asked_for() -> Outcome {
    let test = "checkpoint::connections_are_taken_along_when_asked_for";
    let Some(criu) = Criu::require(test) else { return Ok(()) };
    // The client sends a number and waits for it to come back, over one connection, for ever.
    let script = "nc -l -p 7777 -e cat & mkfifo /tmp/to; \
                  (i=0; echo 0; while read back; do i=$((back+1)); echo $i >/tmp/next; mv /tmp/next /tmp/count; sleep 0.05; echo $i; done </tmp/to) \
                  | (while ! nc 127.0.0.1 7777; do sleep 0.1; done) >/tmp/to; true";
    let counting = Counting::new(script, criu)?;
    counting.run()?;
    let first = counting.beyond(2)?;
    let refused = counting.checkpoint(&[])?;
    assert!(
        refused.code == 1 && refused.stderr.contains("--tcp-established"),
        "criu's own hint: {refused:?}"
    );
    assert!(refused.stderr.contains("dump.log"), "where there is more to read: {refused:?}");
    assert_eq!(counting.bundle.status()?, "running", "a failed checkpoint does no harm");
    counting.beyond(first)?;
    let done = counting.checkpoint(&["--tcp-established"])?;
    done.ok()?;
    let count = counting.take_count()?;
    counting.restore(&["--tcp-established"])?;
    assert!(counting.beyond(0)? > count);
    Ok(())
}

#[test]
fn a_restore_that_fails_leaves_nothing_and_tells_criu_s_reason() -> Outcome {
    let Some(criu) = Criu::require("checkpoint::a_restore_that_fails_leaves_nothing_and_tells_criu_s_reason")
    else {
        return Ok(());
    };
    let counting = Counting::new(COUNT, criu)?;
    counting.run()?;
    counting.beyond(0)?;
    counting.checkpoint(&[])?.ok()?;
    for victim in ["pstree.img", "mountpoints", "core-1.img"] {
        let entries: Vec<_> = fs::read_dir(counting.images())?.flatten().map(|entry| entry.path()).collect();
        let file = entries.iter().find(|path| path.to_string_lossy().contains(victim)).context(victim)?;
        let good = fs::read(file)?;
        fs::write(file, &good[..good.len() / 2])?;
        let failed =
            counting.wright(&["restore", "--detach", "--image-path", "images", &counting.bundle.id])?;
        assert!(failed.code == 1 && failed.stderr.contains("restore.log"), "{victim}: {failed:?}");
        assert!(failed.stderr.contains("Error ("), "{victim}: {failed:?}");
        assert!(counting.is_gone(), "{victim}");
        fs::write(file, good)?;
    }
    fs::remove_file(counting.images().join("descriptors.json"))?;
    let failed = counting.wright(&["restore", "--detach", "--image-path", "images", &counting.bundle.id])?;
    assert!(failed.code == 1 && failed.stderr.contains("descriptors.json"), "{failed:?}");
    assert!(counting.is_gone());
    Ok(())
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_touched() -> Outcome {
    let bundle = Bundle::new("echo up; sleep 100000; true")?;
    let refused = |arguments: &[&str], text: &str| -> Outcome {
        let arguments = [arguments, &[&*bundle.id]].concat();
        let ran: Ran = bundle.command(&arguments)?.env("PATH", "/nowhere").output()?.into();
        ensure!(ran.code == 1 && ran.stderr.contains(text), "{arguments:?}: {ran:?}, not {text:?}");
        Ok(())
    };
    refused(&["checkpoint"], "container does not exist")?;
    bundle.create()?.ok()?;
    refused(&["checkpoint"], "Container cannot be checkpointed in created state")?;
    bundle.wright(&["start", &bundle.id])?.ok()?;
    super::line(&bundle, "up")?;
    fs::write(bundle.path().join("file"), "")?;
    for (flags, text) in [
        (["--parent-path", "/before"], "--parent-path must be relative"),
        (["--parent-path", "before"], "invalid --parent-path"),
        (["--parent-path", "../file"], "invalid --parent-path"),
        (["--page-server", "somewhere"], "Use --page-server ADDRESS:PORT to specify page server"),
        (["--page-server", "somewhere:port"], "Invalid port number"),
        (["--manage-cgroups-mode", "hard"], "invalid manage-cgroups-mode value"),
        (["--empty-ns", "pid"], "is not supported"),
        (["--status-fd", "77"], "invalid --status-fd argument 77"),
        (["--status-fd", "0"], "invalid --status-fd argument 0"),
        (["--image-path", "file"], "file"),
        (["--image-path", "images"], "criu, which checkpoints need, is not on the PATH"),
    ] {
        refused(&[&["checkpoint"], &flags[..]].concat(), text)?;
    }
    assert_eq!(bundle.status()?, "running");
    let pid = bundle.pid()?;
    bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    refused(&["checkpoint"], "Container cannot be checkpointed in stopped state")?;
    refused(&["restore", "--image-path", "images"], "container with given ID already exists")?;
    bundle.wright(&["delete", &bundle.id])?.ok()?;
    refused(&["restore", "--image-path", "missing"], "missing")?;
    fs::write(bundle.path().join("images/descriptors.json"), r#"["/dev/null","/dev/null","/dev/null"]"#)?;
    refused(&["restore", "--image-path", "images"], "criu, which checkpoints need, is not on the PATH")?;
    assert!(snapshot::cgroups(&bundle.id).is_empty() && !bundle.state_root().join(&bundle.id).exists());
    Ok(())
}

/// A process that does not outlive its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(criu: &Criu, arguments: &[&str]) -> Command {
    let mut command = Command::new("criu");
    command.args(arguments).env("PATH", criu.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// criu that can serve pages later, and a container that counts. None: the test is skipped.
fn counting_with_lazy_pages(test: &str) -> Result<Option<(Criu, Counting)>> {
    let Some(criu) = Criu::require(test) else { return Ok(None) };
    if !program(&criu, &["check", "--feature", "uffd-noncoop"]).status()?.success() {
        skip::skip(test, "this kernel has no userfaultfd that criu could use");
        return Ok(None);
    }
    let counting = Counting::new(COUNT, criu.clone())?;
    counting.run()?;
    counting.beyond(3)?;
    Ok(Some((criu, counting)))
}

/// Who asks for pages has to know when there is somebody to ask. (criu takes one that comes and goes for one that has all it wants.)
#[test]
fn a_lazy_dump_tells_when_its_pages_are_served() -> Outcome {
    let test = "checkpoint::a_lazy_dump_tells_when_its_pages_are_served";
    let Some((criu, counting)) = counting_with_lazy_pages(test)? else { return Ok(()) };
    let status = counting.bundle.path().join("status");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &status,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )?;
    let mut reader = fs::File::options().read(true).write(true).open(&status)?;
    // Free a moment ago, and none that the kernel gives to who asks for any (ip(7), ip_local_port_range); loopback only.
    let offset = u16::try_from(std::process::id() % 20_000)?;
    let address = (0..100)
        .find_map(|next| TcpListener::bind(("127.0.0.1", 10_000 + offset + next)).ok()?.local_addr().ok())
        .context("a free port")?;
    let server = address.to_string();
    let flags = ["checkpoint", "--lazy-pages", "--page-server", &server, "--status-fd", "3"];
    let wright =
        counting.bundle.command(&[&flags[..], &["--image-path", "images", &counting.bundle.id]].concat())?;
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 3>status", "sh"]).arg(wright.get_program()).args(wright.get_args());
    command.current_dir(counting.bundle.path()).env("PATH", criu.path()).stdin(Stdio::null());
    let mut dump = Server(
        command
            .stdout(Stdio::null())
            .stderr(fs::File::create(counting.bundle.path().join("log"))?)
            .spawn()?,
    );
    watch::readable(reader.as_fd(), Deadline::in_seconds(60))?;
    let mut told = [1; 2];
    assert_eq!((reader.read(&mut told)?, told[0]), (1, 0));
    drop(TcpStream::connect(address)?);
    process::wait_gone(dump.0.id(), Deadline::in_seconds(60))?;
    let ended = dump.0.wait()?;
    assert!(ended.success(), "{ended}: {}", fs::read_to_string(counting.bundle.path().join("log"))?);
    assert!(counting.is_gone());
    Ok(())
}

#[test]
fn memory_may_come_when_it_is_touched() -> Outcome {
    let test = "checkpoint::memory_may_come_when_it_is_touched";
    let Some((criu, counting)) = counting_with_lazy_pages(test)? else { return Ok(()) };
    counting.checkpoint(&[])?.ok()?;
    let count = counting.take_count()?;
    // Whoever serves the pages listens beside criu's logs.
    let work = counting.bundle.path().join("work");
    fs::create_dir(&work)?;
    let mut server = program(&criu, &["lazy-pages", "--status-fd", "1", "--images-dir"]);
    let (mut told, tells) = std::io::pipe()?;
    server.arg(counting.images()).arg("--work-dir").arg(&work).stdout(tells);
    let mut server = Server(server.spawn()?);
    // Its socket is there a moment before anybody can connect.
    watch::readable(told.as_fd(), Deadline::in_seconds(20))?;
    assert_eq!(told.read(&mut [0])?, 1);
    counting.restore(&["--lazy-pages", "--work-path", &work.to_string_lossy()])?;
    assert!(counting.beyond(0)? > count);
    // It ends when it has served every page.
    process::wait_gone(server.0.id(), Deadline::in_seconds(60))?;
    let ended = server.0.wait()?;
    assert!(ended.success(), "{ended}");
    Ok(())
}

/// Seen with a criu whose restore had failed: it waited for a process that the kernel could not let go.
#[test]
fn a_criu_that_does_nothing_any_more_is_given_up() -> Outcome {
    let bundle = Bundle::new("true")?;
    let directory = bundle.path().join("programs");
    fs::create_dir(&directory)?;
    let program = directory.join("criu");
    fs::write(&program, "#!/bin/sh\nexec sleep 100000\n")?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::create_dir(bundle.path().join("images"))?;
    fs::write(bundle.path().join("images/descriptors.json"), r#"["/dev/null","/dev/null","/dev/null"]"#)?;
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = bundle.command(&["restore", "--image-path", "images", &bundle.id])?;
    let ran = Ran::from(command.env("PATH", path).output()?);
    assert!(ran.code == 1 && ran.stderr.contains("criu did nothing for 60 s and was killed"), "{ran:?}");
    assert!(snapshot::cgroups(&bundle.id).is_empty() && !bundle.state_root().join(&bundle.id).exists());
    assert!(process::belonging_to(&bundle.id)?.is_empty());
    Ok(())
}
