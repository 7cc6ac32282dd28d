//! Writing limits and device rules into a cgroup, so that the order of old and new values does not matter.

use rustix::io::Errno;

use crate::Failure;

use super::files::Dir;
use super::writes::Write;
use super::{Cgroup, Controller, LimitError, Limits, create, devices, ebpf, refused, writes_v1, writes_v2};

impl Cgroup {
    /// The limits of a new container, and its devices: the spec's rules followed by every container's defaults.
    pub fn apply(&mut self, limits: &Limits) -> Result<(), Failure> {
        if self.scope.as_mut().is_some_and(|scope| scope.note(limits)) {
            return Ok(());
        }
        self.write_limits(limits)?;
        self.set_devices(&devices::with_defaults(limits.devices.as_deref()))
    }

    /// New limits for a running container. What `limits` does not name stays; devices too, if it has no rules.
    pub fn update(&self, limits: &Limits) -> Result<(), Failure> {
        // First: systemd writes the limit, too.
        if limits.memory.check_before_update {
            self.check_memory_fits(limits)?;
        }
        if let Some(scope) = &self.scope {
            scope.update(limits, self.is_v1())?;
        }
        self.write_limits(limits)?;
        match &limits.devices {
            Some(rules) => self.set_devices(&devices::with_defaults(Some(rules))),
            None => Ok(()),
        }
    }

    fn write_limits(&self, limits: &Limits) -> Result<(), Failure> {
        if self.is_v1() && !limits.unified.is_empty() {
            return Err(refused(&LimitError::UnifiedOnV1));
        }
        let mut writes = Vec::new();
        if self.is_v1() {
            let v1 = writes_v1(limits).map_err(|error| refused(&error))?;
            writes.extend(v1.into_iter().filter(|write| !self.is_v2_only(write.controller)));
        }
        // A plain user's container may be in no cgroup at all: its limits then have nowhere to go, which is told.
        if self.v2.is_some() || !self.is_v1() {
            let v2 = writes_v2(limits).map_err(|error| refused(&error))?;
            let of_v2 = |write: &Write| !self.is_v1() || self.is_v2_only(write.controller);
            writes.extend(v2.into_iter().filter(of_v2));
        }
        self.write_all(&writes)
    }

    /// On a hybrid host: whether v2 has taken this controller, and v1 has not.
    fn is_v2_only(&self, controller: Controller) -> bool {
        self.of_v1(controller).is_none() && self.v2.as_ref().is_some_and(|dir| dir.has(controller))
    }

    /// Writes all of it. Several pairs of files bound each other (memory and memory+swap, quota and period, burst and quota), so that
    /// a value may be invalid only until the next one is written: EINVAL puts it off to the end, where it counts.
    fn write_all(&self, writes: &[Write]) -> Result<(), Failure> {
        let mut put_off = Vec::new();
        let mut skip_next = false;
        for write in writes {
            if std::mem::take(&mut skip_next) {
                continue;
            }
            let Some(dir) = self.target(write)? else { continue };
            let mut written = dir.write(&write.file, &write.value);
            // On a hybrid host nobody has asked for this v2 controller before.
            if written == Err(Errno::NOENT) && !write.optional && self.is_v2_only(write.controller) {
                create::enable(dir, write.controller)?;
                written = dir.write(&write.file, &write.value);
            }
            match written {
                Ok(()) => skip_next = write.or_next,
                Err(Errno::INVAL) => {
                    put_off.push((dir, write));
                    skip_next = write.or_next;
                }
                Err(Errno::NOENT) if write.optional || write.or_next => {}
                Err(errno) => return Err(explain(dir, write, errno)),
            }
        }
        for (dir, write) in put_off {
            dir.write(&write.file, &write.value).map_err(|errno| explain(dir, write, errno))?;
        }
        Ok(())
    }

    /// Where a write goes. None: nowhere, and that is as good.
    fn target(&self, write: &Write) -> Result<Option<&Dir>, Failure> {
        let dir = match write.controller {
            Controller::Core => self.v2.as_ref(),
            controller => self.of(controller),
        };
        match dir {
            Some(dir) => Ok(Some(dir)),
            None if write.optional => Ok(None),
            None => Err(self.missing(write)),
        }
    }

    fn missing(&self, write: &Write) -> Failure {
        let Write { controller, file, .. } = write;
        Failure::because(
            crate::Step::Cgroup,
            if self.rootless {
                format!("cannot set {controller} limit: container could not join or create cgroup")
            } else {
                format!("cannot set {file}: controller {controller} is not available on this host")
            },
        )
    }

    /// v2 kills when a limit is set below what is in use; the spec's `checkBeforeUpdate` asks for a refusal, as v1 gives it by
    /// itself. A limit that is no lower than the present one takes nothing away: a container may well be at it, with its page cache.
    fn check_memory_fits(&self, limits: &Limits) -> Result<(), Failure> {
        let Some(dir) = self.v2.as_ref().filter(|_| self.of_v1(Controller::Memory).is_none()) else {
            return Ok(());
        };
        let Some(usage) = dir.number("memory.current") else { return Ok(()) };
        // No number: `max`. No file: nothing to lower.
        let lowers = |file: &str, limit: u64| {
            let present = dir.read(file).map(|text| text.trim().parse().unwrap_or(u64::MAX));
            present.is_ok_and(|present| limit < present)
        };
        let refused = |what: &str, limit: u64, usage: u64| {
            let message = format!("rejecting {what} limit {limit} <= usage {usage}");
            Err(Failure::os(crate::Step::Cgroup, Errno::BUSY).with_message(message))
        };
        match u64::try_from(limits.memory.limit) {
            Ok(limit) if limit != 0 && limit <= usage && lowers("memory.max", limit) => {
                return refused("memory", limit, usage);
            }
            _ => {}
        }
        let both = usage + dir.number("memory.swap.current").unwrap_or(0);
        let swap = u64::try_from(limits.memory.swap.saturating_sub(limits.memory.limit.max(0)));
        match (u64::try_from(limits.memory.swap), swap) {
            (Ok(limit), Ok(swap)) if limit != 0 && limit <= both && lowers("memory.swap.max", swap) => {
                refused("memory+swap", limit, both)
            }
            _ => Ok(()),
        }
    }

    fn set_devices(&self, rules: &[devices::Rule]) -> Result<(), Failure> {
        let done = if let Some(dir) = self.of_v1(Controller::Devices) {
            write_devices(dir, rules)
        } else if let Some(dir) = &self.v2 {
            ebpf::attach(dir, rules)
        } else {
            Ok(())
        };
        // An unprivileged user can neither load the program nor make device nodes that it would guard.
        match done {
            Err(failure) if self.rootless && matches!(failure.errno(), Some(Errno::PERM | Errno::ACCESS)) => {
                Ok(())
            }
            done => done,
        }
    }
}

/// Twenty rules or so to the same two files: each is opened once.
fn write_devices(dir: &Dir, rules: &[devices::Rule]) -> Result<(), Failure> {
    let writes = devices::writes_v1(rules).map_err(|error| refused(&error))?;
    let mut open: Option<(&str, std::os::fd::OwnedFd)> = None;
    for write in &writes {
        let fd = match &open {
            Some((file, fd)) if *file == write.file => fd,
            _ => {
                let fd = dir
                    .open_file(&write.file, rustix::fs::OFlags::WRONLY)
                    .map_err(|errno| dir.failed(errno, &write.file))?;
                &open.insert((&write.file, fd)).1
            }
        };
        super::files::write_whole(fd, &write.value)
            .map_err(|errno| dir.failed(errno, &write.file).with_message(write.value.clone()))?;
    }
    Ok(())
}

/// Says what errno does not.
fn explain(dir: &Dir, write: &Write, errno: Errno) -> Failure {
    let failure = dir.failed(errno, &write.file);
    match (errno, &*write.file) {
        (Errno::BUSY, "memory.limit_in_bytes") => {
            let read = |file| dir.number(file).unwrap_or(0);
            failure.with_message(format!(
                "unable to set memory limit to {} (current usage: {}, peak usage: {})",
                write.value,
                read("memory.usage_in_bytes"),
                read("memory.max_usage_in_bytes"),
            ))
        }
        (Errno::NOENT, _) => {
            failure.with_message(format!("controller {} is not enabled for this cgroup", write.controller))
        }
        _ => failure.with_message(format!("cannot write {:?}", write.value)),
    }
}
