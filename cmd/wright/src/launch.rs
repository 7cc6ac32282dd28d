//! From a bundle to a container: what `create` and `run` share, up to init at its gate, and the same for `restore`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use runtime::cgroup::{CgroupPath, CgroupRecord, CreateOptions, Hierarchies};
use runtime::checkpoint::{self, RestoreOptions, RestoreRequest};
use runtime::container::{CreateRequest, StartGate, Stdio, create};
use runtime::plan::{NamespaceKind, Plan};
use runtime::spec::{self, CONFIG, Loaded};
use runtime::state::{Record, StateDir};
use runtime::{resctrl, seccomp, state};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{Flag, Parsed, switch, text};
use crate::container::{destroy, write_whole};
use crate::globals::Globals;
use crate::terminal::{connect, send_fd};
use crate::{criu, gate, sealed};

/// The flags `create` and `run` share.
pub(crate) const BUNDLE: Flag =
    text("bundle", Some("b"), "path to the root of the bundle directory, defaults to the current directory");
/// See [`BUNDLE`].
pub(crate) const CONSOLE_SOCKET: Flag = text(
    "console-socket",
    None,
    "path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the console's pseudoterminal",
);
/// See [`BUNDLE`].
pub(crate) const PIDFD_SOCKET: Flag = text(
    "pidfd-socket",
    None,
    "path to an AF_UNIX socket which will receive a file descriptor referencing the init process",
);
/// See [`BUNDLE`].
pub(crate) const PID_FILE: Flag = text("pid-file", None, "specify the file to write the process id to");
/// See [`BUNDLE`].
pub(crate) const NO_PIVOT: Flag = switch(
    "no-pivot",
    None,
    "do not use pivot root to jail process inside rootfs; for a rootfs on top of a ramdisk",
);
/// See [`BUNDLE`].
pub(crate) const NO_NEW_KEYRING: Flag = switch(
    "no-new-keyring",
    None,
    "do not create a new session keyring for the container, which then has the calling process's",
);
/// See [`BUNDLE`].
pub(crate) const PRESERVE_FDS: Flag = text(
    "preserve-fds",
    None,
    "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)",
);

/// A container up to its gate.
pub(crate) struct Launched {
    /// Its directory.
    pub dir: StateDir,
    /// Its record, written.
    pub record: Record,
    /// What it was made from.
    pub plan: Plan,
    /// Its init.
    pub pidfd: OwnedFd,
    /// Its terminal, unless that was handed over.
    pub console: Option<OwnedFd>,
    /// The gate, unless it is on disk.
    pub gate: Option<StartGate>,
}

/// Where the gate is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateKind {
    /// A socket on disk, for a later `start`.
    OnDisk,
    /// This process's, to be opened at once.
    Ours,
}

/// Makes the container. `detached` says that this process will not stay with it.
pub(crate) fn launch(globals: &Globals, parsed: &Parsed, kind: GateKind, detached: bool) -> Result<Launched> {
    let id = parsed.id();
    state::check_id(id)?;
    let preserve_fds = preserved_fds(parsed)?;
    sealed::ensure(globals)?;
    let (bundle, text, loaded) = read_bundle(parsed)?;
    let mut plan = Plan::from_spec(&loaded.spec, &loaded.raw, &bundle)?;
    plan.rootfs.no_pivot = parsed.on("no-pivot");
    plan.new_keyring = !parsed.on("no-new-keyring");
    listen_fds(&mut plan, preserve_fds.listen);
    for warning in loaded.warnings.iter().chain(&plan.warnings) {
        globals.log.warn(warning);
    }
    check_host(&plan)?;
    let console = console(&plan, parsed, &bundle, detached)?;
    let program = seccomp_program(&loaded)?;
    if let Some(program) = &program {
        globals.log.debug(|| format!("seccomp filter flags: {}", program.flags()));
    }
    let hierarchies = Hierarchies::detect()?;
    let cgroup_path = CgroupPath::parse(plan.cgroups_path.as_deref().map(Path::new), id, globals.driver)?;
    let dir = StateDir::create(&globals.root, id)?;
    let undo = Undo(Some(&dir));
    dir.write_config(&text)?;
    let (gate, child_gate) = match kind {
        GateKind::OnDisk => (None, gate::listen(&dir)?),
        GateKind::Ours => {
            let (ours, theirs) = StartGate::pair()?;
            (Some(ours), theirs)
        }
    };
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
    let request = CreateRequest {
        id,
        bundle: &bundle,
        plan: &plan,
        hierarchies: &hierarchies,
        cgroup_path: &cgroup_path,
        cgroup_options: cgroup_options(globals, &plan),
        root: None,
        stdio: if terminal { Stdio::Pty { crlf: detached } } else { Stdio::Inherit },
        preserve_fds: preserve_fds.all,
        gate: child_gate,
        seccomp: program.as_ref(),
        late_exec_errors: false,
    };
    let created = create(&request)?;
    // With our copy of init's end of the gate, so that its end is seen.
    drop(request);
    let made = Made { pid: created.pid, cgroup: created.cgroup.record(), resctrl: created.resctrl.clone() };
    let record = record(globals, id, bundle, &plan, made)?;
    let finished = finish(parsed, &dir, &record, &created.pidfd, created.console, console)
        .and_then(|console| Ok(created.hold.release().map(|()| console)?));
    undo.disarm();
    match finished {
        Ok(console) => Ok(Launched { dir, record, plan, pidfd: created.pidfd, console, gate }),
        Err(error) => {
            // Init exits with its gate, or by this; what it leaves is taken away.
            let _ = rustix::process::pidfd_send_signal(&created.pidfd, rustix::process::Signal::KILL);
            let _ = destroy(globals, &dir, &record, Some(&plan.hooks));
            Err(error)
        }
    }
}

/// Restores the container from its images. `detached` says that this process will not stay with it.
pub(crate) fn restore(globals: &Globals, parsed: &Parsed, detached: bool) -> Result<Launched> {
    let id = parsed.id();
    state::check_id(id)?;
    let (bundle, text, loaded) = read_bundle(parsed)?;
    let plan = Plan::from_spec(&loaded.spec, &loaded.raw, &bundle)?;
    for warning in loaded.warnings.iter().chain(&plan.warnings) {
        globals.log.warn(warning);
    }
    let console = console(&plan, parsed, &bundle, detached)?;
    let hierarchies = Hierarchies::detect()?;
    let cgroup_path = CgroupPath::parse(plan.cgroups_path.as_deref().map(Path::new), id, globals.driver)?;
    let images = criu::images(parsed)?;
    let options = RestoreOptions {
        common: criu::options(parsed, |name| plan.annotations.get(name).map(String::as_str))?,
        lsm_profile: parsed.text("lsm-profile").filter(|text| !text.is_empty()).map(str::to_owned),
        lsm_mount_context: parsed
            .text("lsm-mount-context")
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
    };
    let dir = StateDir::create(&globals.root, id)?;
    let undo = Undo(Some(&dir));
    dir.write_config(&text)?;
    let restored = checkpoint::restore(&RestoreRequest {
        id,
        bundle: &bundle,
        plan: &plan,
        directory: dir.path(),
        hierarchies: &hierarchies,
        cgroup_path: &cgroup_path,
        cgroup_options: cgroup_options(globals, &plan),
        images: &images,
        options: &options,
    })?;
    let made = Made { pid: restored.pid, cgroup: restored.cgroup.record(), resctrl: None };
    let record = record(globals, id, bundle, &plan, made)?;
    let finished = finish(parsed, &dir, &record, &restored.pidfd, restored.console, console);
    undo.disarm();
    match finished {
        Ok(console) => Ok(Launched { dir, record, plan, pidfd: restored.pidfd, console, gate: None }),
        Err(error) => {
            let _ = destroy(globals, &dir, &record, Some(&plan.hooks));
            Err(error)
        }
    }
}

/// The bundle's absolute path, and its spec as it is and as it is read.
fn read_bundle(parsed: &Parsed) -> Result<(PathBuf, Vec<u8>, Loaded)> {
    let bundle = parsed.path("bundle").unwrap_or_else(|| PathBuf::from("."));
    let bundle = bundle.canonicalize().with_context(|| format!("bundle {}", bundle.display()))?;
    let text = spec::read_capped(&bundle.join(CONFIG))?;
    let loaded = spec::parse(&text)?;
    Ok((bundle, text, loaded))
}

/// What is there of a container once the engine has made it.
struct Made {
    pid: i32,
    cgroup: CgroupRecord,
    resctrl: Option<resctrl::Group>,
}

fn record(globals: &Globals, id: &str, bundle: PathBuf, plan: &Plan, made: Made) -> Result<Record> {
    Ok(Record {
        oci_version: plan.oci_version.clone(),
        id: id.to_owned(),
        pid: Some(made.pid),
        pid_start_time: state::start_time(made.pid).unwrap_or(0),
        bundle,
        rootfs: plan.rootfs.path.clone(),
        created: OffsetDateTime::now_utc().format(&Rfc3339).context("time")?,
        annotations: plan.annotations.clone(),
        cgroup: made.cgroup,
        resctrl: made.resctrl,
        systemd: globals.driver == runtime::cgroup::Driver::Systemd,
    })
}

fn cgroup_options(globals: &Globals, plan: &Plan) -> CreateOptions {
    CreateOptions {
        rootless: globals.rootless,
        unit_properties: unit_properties(plan),
        ..CreateOptions::default()
    }
}

/// What must be told to others once init exists. The result is the terminal, if it is ours to relay.
fn finish(
    parsed: &Parsed,
    dir: &StateDir,
    record: &Record,
    pidfd: &OwnedFd,
    terminal: Option<OwnedFd>,
    console: Option<UnixStream>,
) -> Result<Option<OwnedFd>> {
    dir.write(record)?;
    let terminal = match (terminal, console) {
        (Some(terminal), Some(socket)) => {
            send_fd(&socket, terminal.as_fd(), "/dev/ptmx")?;
            None
        }
        (terminal, _) => terminal,
    };
    if let Some(path) = parsed.path("pidfd-socket") {
        send_fd(&connect(&path)?, pidfd.as_fd(), "pidfd")?;
    }
    if let Some(path) = parsed.path("pid-file") {
        write_whole(&path, &record.pid.unwrap_or(0).to_string())?;
    }
    Ok(terminal)
}

/// Removes a container's directory unless its making succeeds.
struct Undo<'a>(Option<&'a StateDir>);

impl Undo<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.0 {
            // The error that brought us here is the one to tell.
            let _ = dir.remove();
        }
    }
}

/// How many descriptors from 3 on a container gets.
pub(crate) struct PreservedFds {
    /// Those of socket activation, which come first.
    pub listen: u32,
    /// All.
    pub all: u32,
}

/// `--preserve-fds` and socket activation, every one of them checked to be there.
pub(crate) fn preserved_fds(parsed: &Parsed) -> Result<PreservedFds> {
    let asked: u32 = parsed.number("preserve-fds")?.unwrap_or(0);
    let ours = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let listen = match ours("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => ours("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    };
    let all =
        asked.checked_add(listen).filter(|all| *all < 1 << 20).context("too many descriptors to preserve")?;
    for number in 3..3 + all {
        // One of our own is close-on-exec; one that was given to us is not.
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let inherited = flags.is_some_and(|flags| flags & libc::O_CLOEXEC.unsigned_abs() == 0);
        ensure!(inherited, "unable to stat preserved-fd {number} (of {all}): no such file or directory");
    }
    Ok(PreservedFds { listen, all })
}

/// Tells the container's program of its activated sockets. Its pid is 1 in a namespace of its own.
fn listen_fds(plan: &mut Plan, count: u32) {
    if count == 0 {
        return;
    }
    if let Some(process) = &mut plan.process {
        process.env.push(format!("LISTEN_FDS={count}"));
        process.env.push("LISTEN_PID=1".to_owned());
    }
}

/// Whether a terminal and its socket were asked for in a way that can work; connects to the socket.
fn console(plan: &Plan, parsed: &Parsed, bundle: &Path, detached: bool) -> Result<Option<UnixStream>> {
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
    check_console(terminal, parsed.path("console-socket").is_some(), detached)?;
    match parsed.path("console-socket") {
        // Relative to the bundle, as runc, which works there.
        Some(path) => Ok(Some(connect(&bundle.join(path))?)),
        None => Ok(None),
    }
}

/// Refuses a terminal that nobody would hold, and a socket that nothing would come over.
pub(crate) fn check_console(terminal: bool, socket: bool, detached: bool) -> Result<()> {
    if detached && terminal && !socket {
        bail!("cannot allocate tty if wright will detach without setting console socket");
    }
    if socket && !(detached && terminal) {
        bail!("cannot use console socket if wright will not detach or allocate tty");
    }
    Ok(())
}

/// The compiled seccomp profile of a spec.
pub(crate) fn seccomp_program(loaded: &Loaded) -> Result<Option<seccomp::Program>> {
    let profile = loaded.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.map(|profile| seccomp::compile(profile).context("linux.seccomp")).transpose()
}

/// The annotations that are properties of the unit systemd makes.
fn unit_properties(plan: &Plan) -> Vec<(String, String)> {
    let property = |(name, value): (&String, &String)| {
        let name = name.strip_prefix("org.systemd.property.")?;
        Some((name.to_owned(), value.clone()))
    };
    plan.annotations.iter().filter_map(property).collect()
}

/// What the plan, being pure, could not see: a path may name a namespace of the host's.
fn check_host(plan: &Plan) -> Result<()> {
    let Some(path) = plan.namespaces.joined(NamespaceKind::Network) else { return Ok(()) };
    let Some((name, _)) = plan.sysctls.iter().find(|(name, _)| name.starts_with("net/")) else {
        return Ok(());
    };
    let theirs = rustix::fs::stat(path).with_context(|| format!("namespace {}", path.display()))?;
    let ours = rustix::fs::stat("/proc/self/ns/net").context("namespace /proc/self/ns/net")?;
    ensure!(
        (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino),
        "sysctl {:?} not allowed in host network namespace",
        name.replace('/', ".")
    );
    Ok(())
}
