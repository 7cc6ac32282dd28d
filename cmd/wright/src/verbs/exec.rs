//! `wright exec`: one more process in a container.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use runtime::cgroup::{Cgroup, Controller};
use runtime::container::Stdio;
use runtime::exec::{ExecRequest, exec};
use runtime::plan::{Plan, Process};
use runtime::spec::{self, Loaded};
use runtime::state::{Record, State, Status};
use serde_json::{Value, json};

use crate::cli::{Command, Count, Parsed, list, switch, text};
use crate::container::{Container, write_whole};
use crate::foreground::{Signals, supervise};
use crate::globals::Globals;
use crate::launch::{
    CONSOLE_SOCKET, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS, check_console, preserved_fds, seccomp_program,
};
use crate::sealed;
use crate::terminal::{Relay, connect, send_fd};

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "exec",
    usage: "execute new process inside the container",
    arguments: "<container-id> <command> [command options]  || -p process.json <container-id>",
    description: "Without --process, the new process is like the container's own, with the differences the options ask for.
   The exit code is that of the process; 255 when it could not be made.",
    flags: &[
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        text("cwd", None, "current working directory in the container"),
        list("env", Some("e"), "set environment variables"),
        switch("tty", Some("t"), "allocate a pseudo-TTY"),
        text("user", Some("u"), "UID (format: <uid>[:<gid>])"),
        list("additional-gids", Some("g"), "additional gids"),
        text("process", Some("p"), "path to the process.json"),
        switch("detach", Some("d"), "detach from the container's process"),
        PID_FILE,
        text("process-label", None, "set the asm process label for the process commonly used with selinux"),
        text("apparmor", None, "set the apparmor profile for the process"),
        switch("no-new-privs", None, "set the no new privileges value for the process"),
        list("cap", Some("c"), "add a capability to the bounding set for the process"),
        PRESERVE_FDS,
        list("cgroup", None, "run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>."),
        switch("ignore-paused", None, "allow exec in a paused container"),
    ],
    count: Count::AtLeast(1),
    interspersed: false,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    run_inner(globals, parsed).context("exec failed")
}

fn run_inner(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    match container.status() {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !parsed.on("ignore-paused") => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => {}
    }
    let preserve_fds = preserved_fds(parsed)?;
    sealed::ensure(globals)?;
    let loaded = container.spec()?;
    let mut process = process(globals, parsed, &loaded)?;
    if preserve_fds.listen > 0 {
        process.env.push(format!("LISTEN_FDS={}", preserve_fds.listen));
        process.env.push("LISTEN_PID=1".to_owned());
    }
    let detach = parsed.on("detach");
    let socket = parsed.path("console-socket");
    check_console(process.terminal, socket.is_some(), detach)?;
    let socket = socket.map(|path| connect(&path)).transpose()?;
    let program = seccomp_program(&loaded)?;
    let plan = Plan::from_spec(&loaded.spec, &loaded.raw, &container.record.bundle)?;
    let mut cgroup = cgroup(parsed, &container)?;
    let init = container.pidfd().context("container not running")?;
    let signals = if detach { None } else { Some(Signals::hold()?) };
    let made = exec(ExecRequest {
        init: container.record.pid.unwrap_or(0),
        init_pidfd: init.as_fd(),
        process: &process,
        cgroup: &mut cgroup,
        stdio: if process.terminal { Stdio::Pty { crlf: detach } } else { Stdio::Inherit },
        seccomp: program.as_ref(),
        container: Some(as_told(&container.record)),
        preserve_fds: preserve_fds.all,
        resctrl: container.record.resctrl.as_ref(),
        personality: plan.personality,
        memory_policy: plan.memory_policy.as_ref(),
    })?;
    let told = tell(parsed, made.pid, &made.pidfd, made.console, socket);
    let attended = told.and_then(|console| match &signals {
        Some(signals) => {
            let relay = console.map(Relay::start).transpose()?;
            supervise(signals, &made.pidfd, relay)
        }
        None => Ok(0),
    });
    if attended.is_err() {
        // Nobody would ever hear of it.
        let _ = rustix::process::pidfd_send_signal(&made.pidfd, rustix::process::Signal::KILL);
    }
    attended
}

/// The container's state as its seccomp agent is told of it.
fn as_told(record: &Record) -> State<'_> {
    State {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: record.pid.unwrap_or(0),
        status: Status::Running,
        bundle: &record.bundle,
        rootfs: None,
        created: None,
        annotations: &record.annotations,
        owner: None,
    }
}

/// What others wait for: the terminal, the descriptor, the pid. The result is the terminal, if it is ours to relay.
fn tell(
    parsed: &Parsed,
    pid: i32,
    pidfd: &OwnedFd,
    console: Option<OwnedFd>,
    socket: Option<UnixStream>,
) -> Result<Option<OwnedFd>> {
    let console = match (console, socket) {
        (Some(console), Some(socket)) => {
            send_fd(&socket, console.as_fd(), "/dev/ptmx")?;
            None
        }
        (console, _) => console,
    };
    if let Some(path) = parsed.path("pidfd-socket") {
        send_fd(&connect(&path)?, pidfd.as_fd(), "pidfd")?;
    }
    if let Some(path) = parsed.path("pid-file") {
        write_whole(&path, &pid.to_string())?;
    }
    Ok(console)
}

/// The process to make: of --process, or the container's own with what the flags change.
fn process(globals: &Globals, parsed: &Parsed, loaded: &Loaded) -> Result<Process> {
    let own = loaded.raw.get("process").cloned().unwrap_or_else(|| json!({}));
    let wanted = match parsed.path("process") {
        Some(path) => confined(spec::load_process(&path)?.1, &own),
        None => from_flags(parsed, own)?,
    };
    let (process, raw, warnings) = spec::parse_process(&serde_json::to_vec(&wanted)?)?;
    for warning in &warnings {
        globals.log.warn(warning);
    }
    Ok(Process::from_spec(&process, &raw)?)
}

/// What a process.json leaves out of its confinement is the container's own, as in runc: a process that is added later is
/// not freer than the first unless somebody says so.
fn confined(mut process: Value, own: &Value) -> Value {
    for key in ["rlimits", "oomScoreAdj", "noNewPrivileges", "apparmorProfile", "selinuxLabel"] {
        if process.get(key).is_none_or(Value::is_null)
            && let Some(value) = own.get(key)
        {
            process[key] = value.clone();
        }
    }
    process
}

/// The container's own process, changed by the flags. Checking is the plan's part, so every rule holds here too.
fn from_flags(parsed: &Parsed, mut process: Value) -> Result<Value> {
    let command = &parsed.positionals[1..];
    if command.is_empty() {
        bail!("exec args cannot be empty");
    }
    process["args"] = json!(command);
    process["terminal"] = json!(parsed.on("tty"));
    for (flag, key) in [("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")] {
        if let Some(value) = parsed.text(flag).filter(|value| !value.is_empty()) {
            process[key] = json!(value);
        }
    }
    if parsed.text("no-new-privs").is_some() {
        process["noNewPrivileges"] = json!(parsed.on("no-new-privs"));
    }
    if let Some(user) = parsed.text("user").filter(|user| !user.is_empty()) {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process["user"]["uid"] = json!(id("uid", uid)?);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(id("gid", gid)?);
        }
    }
    for gids in parsed.list("additional-gids") {
        for gid in gids.split(',') {
            let gid = json!(id("additional gid", gid)?);
            append(&mut process["user"]["additionalGids"], gid);
        }
    }
    for entry in parsed.list("env") {
        append(&mut process["env"], json!(entry));
    }
    // One that is unknown is left out with a warning, as a spec's.
    for name in parsed.list("cap") {
        for set in ["bounding", "effective", "permitted"] {
            append(&mut process["capabilities"][set], json!(name));
        }
        // Inheritable stays as it is, and ambient cannot hold what inheritable does not.
        let inheritable = process["capabilities"]["inheritable"].as_array();
        if inheritable.is_some_and(|names| names.iter().any(|inherited| inherited == name)) {
            append(&mut process["capabilities"]["ambient"], json!(name));
        }
    }
    Ok(process)
}

/// A user or group id: digits that fit 32 bits.
fn id(what: &str, text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(id) if digits && id != u32::MAX => Ok(id),
        _ => bail!("bad {what}: {text:?}"),
    }
}

fn append(list: &mut Value, item: Value) {
    match list {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    }
}

/// The cgroup of the new process: the container's, or those below it that --cgroup names.
fn cgroup(parsed: &Parsed, container: &Container) -> Result<Cgroup> {
    let paths = sub_cgroups(parsed.list("cgroup"))?;
    if paths.is_empty() {
        return container.needed_cgroup();
    }
    let own = container.needed_cgroup()?;
    let joining = || format!("adding pid {} to cgroups", std::process::id());
    if let Some(path) = paths.get("").filter(|_| own.is_v1()) {
        return own.below(path).with_context(joining);
    }
    for controller in paths.keys() {
        let known = controller.is_empty()
            || Controller::from_name(controller)
                .is_some_and(|controller| own.directory(controller).is_some());
        if !known {
            bail!("unknown controller {controller} in SubCgroupPaths");
        }
    }
    own.below_each(&paths).with_context(joining)
}

/// `--cgroup` taken apart: controller to path; for a lone path without a controller, the empty name.
fn sub_cgroups<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, String>> {
    let arguments: Vec<&str> = arguments.collect();
    let mut paths = BTreeMap::new();
    for argument in &arguments {
        let Some((controllers, path)) = argument.split_once(':') else {
            if arguments.len() != 1 {
                bail!("invalid --cgroup argument: {argument} (missing <controller>: prefix)");
            }
            paths.insert(String::new(), (*argument).to_owned());
            continue;
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                bail!("invalid --cgroup argument: {argument} (empty <controller> prefix)");
            }
            if paths.insert(controller.to_owned(), path.to_owned()).is_some() {
                bail!("invalid --cgroup argument(s): controller {controller} specified multiple times");
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(words: &[&str]) -> Result<Value> {
        let words = words.iter().map(|word| (*word).to_owned());
        let parsed = crate::cli::parse(COMMAND.flags, COMMAND.interspersed, words)?;
        let own = json!({"terminal": true, "cwd": "/", "args": ["sh"], "env": ["A=1"], "user": {"uid": 0, "gid": 0}});
        from_flags(&parsed, own)
    }

    #[test]
    fn flags_change_the_containers_own_process() {
        let words =
            ["-u", "7:8", "-g", "9,10", "-e", "B=2", "--cap", "CAP_KILL", "--cwd", "/tmp", "c", "ls", "-l"];
        let expected = json!({
            "terminal": false, "cwd": "/tmp", "args": ["ls", "-l"], "env": ["A=1", "B=2"],
            "user": {"uid": 7, "gid": 8, "additionalGids": [9, 10]},
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
        });
        assert_eq!(changed(&words).unwrap(), expected);
    }

    #[test]
    fn what_a_process_leaves_out_is_the_containers() {
        let own = json!({"oomScoreAdj": 5, "noNewPrivileges": true, "user": {"uid": 9}, "rlimits": [1]});
        let changed = confined(json!({"args": ["a"], "noNewPrivileges": false, "rlimits": null}), &own);
        assert_eq!(
            changed,
            json!({"args": ["a"], "noNewPrivileges": false, "rlimits": [1], "oomScoreAdj": 5})
        );
    }

    #[test]
    fn ids_beyond_32_bits_are_refused() {
        for user in ["4294967296", "4294967295", "-1", "+1", "root", "0:4294967296", "1:", ":1"] {
            assert!(changed(&["-u", user, "c", "id"]).is_err(), "{user}");
        }
        assert!(changed(&["-g", "4294967296", "c", "id"]).is_err());
        assert!(changed(&["c"]).is_err());
    }

    #[test]
    fn sub_cgroups_name_their_controllers() {
        let parse = |words: &[&str]| sub_cgroups(words.iter().copied());
        assert_eq!(parse(&["cpu,memory:/a"]).unwrap().len(), 2);
        assert_eq!(parse(&["/a"]).unwrap()[""], "/a");
        for wrong in [&["/a", "cpu:/b"][..], &[",cpu:/a"], &["cpu:/a", "cpu:/b"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
