//! A container that exists: found by its id, looked at, signalled, taken away.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use runtime::cgroup::{Cgroup, CgroupRecord, remove_ancestors};
use runtime::hooks::{self, Point};
use runtime::plan::{Hooks, Plan};
use runtime::resctrl::Group;
use runtime::spec::{self, Loaded};
use runtime::state::{Record, State, StateDir, StateError, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::globals::Globals;

/// How long killed processes may take to go. A process in an uninterruptible call cannot be waited for for ever.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// An existing container.
pub(crate) struct Container {
    /// Its directory below the state root.
    pub dir: StateDir,
    /// What is remembered of it.
    pub record: Record,
}

impl Container {
    /// Finds a container by its id.
    pub(crate) fn open(globals: &Globals, id: &str) -> Result<Self> {
        let dir = StateDir::open(&globals.root, id)?;
        match dir.read()? {
            Some(record) => Ok(Self { dir, record }),
            // It is just being made, or its making was cut short: it cannot be asked anything.
            None => Err(StateError::NotFound.into()),
        }
    }

    /// Its status at this moment.
    pub(crate) fn status(&self) -> Status {
        self.dir.status(&self.record)
    }

    /// Its cgroup. None: it is gone, or there was none (rootless).
    pub(crate) fn cgroup(&self) -> Option<Cgroup> {
        Cgroup::open_record(&self.record.cgroup).ok()
    }

    /// Its cgroup, for a verb that cannot do without.
    pub(crate) fn needed_cgroup(&self) -> Result<Cgroup> {
        Cgroup::open_record(&self.record.cgroup).context("open the container's cgroup")
    }

    /// A descriptor of its init, unless that has exited (or its pid is another's by now).
    pub(crate) fn pidfd(&self) -> Option<OwnedFd> {
        let pid = self.record.pid?;
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Only now that the descriptor pins the process does its start time prove anything.
        runtime::state::alive(pid, self.record.pid_start_time).then_some(pidfd)
    }

    /// Its processes: those in its cgroup; where it has none (rootless), those in its init's PID namespace.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        if !self.record.cgroup.directories.is_empty() {
            return Ok(match self.cgroup() {
                Some(cgroup) => cgroup.pids(true)?,
                None => Vec::new(),
            });
        }
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let init = self.record.pid.and_then(|pid| u32::try_from(pid).ok());
        let Some(init) = init.filter(|_| self.pidfd().is_some()) else { return Ok(Vec::new()) };
        let wanted = namespace(init);
        if wanted.is_none() || wanted == namespace(std::process::id()) {
            return Ok(vec![init]);
        }
        let entries = std::fs::read_dir("/proc").context("list /proc")?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter(|pid| namespace(*pid) == wanted).collect())
    }

    /// The spec it was made from.
    pub(crate) fn spec(&self) -> Result<Loaded> {
        Ok(spec::parse(&self.dir.read_config()?)?)
    }

    /// The plan it was made from.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let loaded = self.spec()?;
        Ok(Plan::from_spec(&loaded.spec, &loaded.raw, &self.record.bundle)?)
    }

    /// The state that `state` and `list` print.
    pub(crate) fn state<'a>(&'a self, owner: &'a str) -> State<'a> {
        let status = self.status();
        State {
            pid: if status == Status::Stopped { 0 } else { self.record.pid.unwrap_or(0) },
            status,
            rootfs: Some(&self.record.rootfs),
            created: Some(&self.record.created),
            owner: Some(owner),
            ..self.bare_state(status)
        }
    }

    /// The state that hooks read.
    pub(crate) fn bare_state(&self, status: Status) -> State<'_> {
        bare_state(&self.record, status)
    }

    /// The name of the user whose container it is.
    pub(crate) fn owner(&self) -> String {
        let uid = self.dir.owner().unwrap_or(0);
        user_name(uid).unwrap_or_else(|| format!("#{uid}"))
    }

    /// Kills all that is left of it and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        let pidfd = self.pidfd();
        if let Some(pidfd) = &pidfd {
            match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => bail!("kill container init: {errno}"),
            }
        }
        // Also what outlives init in a shared PID namespace, and what is frozen.
        if let Some(cgroup) = self.cgroup() {
            cgroup.kill_all(deadline)?;
        }
        match pidfd {
            Some(pidfd) if !wait_exit(&pidfd, Some(deadline))? => bail!("container init still running"),
            _ => Ok(()),
        }
    }

    /// Takes away what a stopped container left: its cgroup, its poststop hooks' turn, its directory.
    pub(crate) fn destroy(&self, globals: &Globals) -> Result<()> {
        let hooks = self.plan().map(|plan| plan.hooks);
        destroy(globals, &self.dir, &self.record, hooks.as_ref().ok())
    }
}

/// As [`Container::destroy`], for a caller that has the hooks at hand.
pub(crate) fn destroy(
    globals: &Globals,
    dir: &StateDir,
    record: &Record,
    hooks: Option<&Hooks>,
) -> Result<()> {
    remove_cgroup(&record.cgroup)?;
    record.resctrl.iter().for_each(Group::remove);
    if let Some(hooks) = hooks.filter(|hooks| !hooks.poststop.is_empty()) {
        let state = bare_state(record, Status::Stopped).to_json()?;
        for failure in hooks::run_all(Point::Poststop, &hooks.poststop, &state, Some(&record.bundle), None) {
            globals.log.warn(&failure.to_string());
        }
    }
    dir.remove()?;
    Ok(())
}

/// Kills what is left in a cgroup and removes it, with the parents that were made for it.
fn remove_cgroup(record: &CgroupRecord) -> Result<()> {
    if let Ok(cgroup) = Cgroup::open_record(record) {
        let deadline = Instant::now() + KILL_TIMEOUT;
        cgroup.kill_all(deadline)?;
        cgroup.remove(deadline)?;
    }
    remove_ancestors(&record.made_ancestors);
    Ok(())
}

/// The state that hooks read.
pub(crate) fn bare_state(record: &Record, status: Status) -> State<'_> {
    State {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: if status == Status::Stopped { 0 } else { record.pid.unwrap_or(0) },
        status,
        bundle: &record.bundle,
        rootfs: None,
        created: None,
        annotations: &record.annotations,
        owner: None,
    }
}

/// Waits for a process to exit. False: it had not by the deadline.
pub(crate) fn wait_exit(pidfd: &OwnedFd, deadline: Option<Instant>) -> Result<bool> {
    loop {
        let timeout = match deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                Some(Timespec::try_from(left).context("deadline")?)
            }
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for a process"),
        }
    }
}

/// The name of a user in the host's /etc/passwd, which is read directly: a static binary has no name service.
fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let wanted = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == wanted).then(|| name.to_owned())
    })
}

/// Writes `content` to `path` so that a reader sees all of it or no file.
pub(crate) fn write_whole(path: &Path, content: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    std::fs::write(&temporary, content)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}
