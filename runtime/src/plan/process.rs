//! The spec's `process`: what is executed and as whom. See the runtime-spec's `config.md#process`.

use oci_spec::runtime::{PosixRlimitType, Process as SpecProcess};
use serde_json::Value;

use super::error::{PlanError, no_nul};
use super::{Capabilities, Process, Rlimit, attributes};
use crate::capabilities;

/// The most supplementary groups the kernel takes. See setgroups(2).
const MAX_GROUPS: usize = 65536;

impl Process {
    /// Resolves a `process` of the spec: a container's own, or one to exec. `raw` is the same as JSON; it is read only for what
    /// the typed spec cannot hold.
    pub fn from_spec(process: &SpecProcess, raw: &Value) -> Result<Self, PlanError> {
        let args = args(process)?;
        let env = process.env().clone().unwrap_or_default();
        for (index, entry) in env.iter().enumerate() {
            let field = || format!("process.env[{index}]");
            no_nul(field, entry)?;
            match entry.split_once('=') {
                Some(("", _)) => {
                    let problem = format!("invalid environment variable {entry:?}: name cannot be empty");
                    return Err(PlanError::invalid(field(), problem));
                }
                Some(_) => {}
                None => {
                    let problem = format!("invalid environment variable {entry:?}: missing '='");
                    return Err(PlanError::invalid(field(), problem));
                }
            }
        }
        cwd(process)?;
        let user = process.user();
        let additional_gids = user.additional_gids().clone().unwrap_or_default();
        if additional_gids.len() > MAX_GROUPS {
            let problem = format!("more than {MAX_GROUPS} groups");
            return Err(PlanError::invalid("process.user.additionalGids", problem));
        }
        for (field, id) in [("process.user.uid", user.uid()), ("process.user.gid", user.gid())] {
            // -1 tells setresuid(2) to change nothing.
            if id == u32::MAX {
                return Err(PlanError::invalid(field, format!("{id} is no id")));
            }
        }
        if let Some(index) = additional_gids.iter().position(|gid| *gid == u32::MAX) {
            let field = format!("process.user.additionalGids[{index}]");
            return Err(PlanError::invalid(field, format!("{} is no id", u32::MAX)));
        }
        if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
            return Err(PlanError::invalid("process.user.umask", format!("{umask:o} is no mask")));
        }
        let affinity = process.exec_cpu_affinity().as_ref();
        let (cpu_affinity_initial, cpu_affinity_final) = attributes::cpu_affinity(affinity)?;
        Ok(Self {
            args,
            env,
            cwd: process.cwd().clone(),
            terminal: process.terminal().unwrap_or(false),
            console_size: console_size(process)?,
            uid: user.uid(),
            gid: user.gid(),
            additional_gids,
            umask: user.umask(),
            capabilities: capability_sets(process),
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: oom_score_adj(process)?,
            apparmor_profile: label("process.apparmorProfile", process.apparmor_profile().as_deref())?,
            selinux_label: label("process.selinuxLabel", process.selinux_label().as_deref())?,
            scheduler: process
                .scheduler()
                .as_ref()
                .map(|scheduler| attributes::scheduler(scheduler, raw))
                .transpose()?,
            io_priority: process.io_priority().as_ref().map(attributes::io_priority).transpose()?,
            cpu_affinity_initial,
            cpu_affinity_final,
        })
    }
}

fn args(process: &SpecProcess) -> Result<Vec<String>, PlanError> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(PlanError::invalid("process.args", "args must not be empty"));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(|| format!("process.args[{index}]"), arg)?;
    }
    Ok(args)
}

fn cwd(process: &SpecProcess) -> Result<(), PlanError> {
    let cwd = process.cwd();
    no_nul(|| "process.cwd".into(), &cwd.to_string_lossy())?;
    if cwd.as_os_str().is_empty() {
        return Err(PlanError::invalid("process.cwd", "Cwd property must not be empty"));
    }
    if !cwd.is_absolute() {
        return Err(PlanError::invalid("process.cwd", "Cwd must be an absolute path"));
    }
    Ok(())
}

/// Without a terminal it means nothing, whatever it is.
fn console_size(process: &SpecProcess) -> Result<Option<(u16, u16)>, PlanError> {
    let Some(console) = process.console_size().filter(|_| process.terminal().unwrap_or(false)) else {
        return Ok(None);
    };
    let side = |field: &str, value: u64| {
        u16::try_from(value).map_err(|_| {
            PlanError::invalid(format!("process.consoleSize.{field}"), format!("{value} is too large"))
        })
    };
    Ok(Some((side("width", console.width())?, side("height", console.height())?)))
}

fn capability_sets(process: &SpecProcess) -> Capabilities {
    let Some(sets) = process.capabilities() else { return Capabilities::default() };
    Capabilities {
        bounding: capabilities::from_spec(sets.bounding().as_ref()),
        effective: capabilities::from_spec(sets.effective().as_ref()),
        inheritable: capabilities::from_spec(sets.inheritable().as_ref()),
        permitted: capabilities::from_spec(sets.permitted().as_ref()),
        ambient: capabilities::from_spec(sets.ambient().as_ref()),
    }
}

fn rlimits(process: &SpecProcess) -> Result<Vec<Rlimit>, PlanError> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = || format!("process.rlimits[{index}]");
        let resource = resource(limit.typ());
        if limits.iter().any(|earlier| earlier.resource == resource) {
            return Err(PlanError::invalid(field(), format!("duplicated {}", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let problem = format!("{}: soft {} is above hard {}", limit.typ(), limit.soft(), limit.hard());
            return Err(PlanError::invalid(field(), problem));
        }
        limits.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn oom_score_adj(process: &SpecProcess) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(PlanError::invalid("process.oomScoreAdj", format!("{score} is not within -1000..=1000")))
        }
        score => Ok(score),
    }
}

/// A label for an LSM; empty is none.
pub(super) fn label(field: &str, label: Option<&str>) -> Result<Option<String>, PlanError> {
    match label {
        None | Some("") => Ok(None),
        Some(label) if label.contains(char::is_control) => {
            Err(PlanError::invalid(field, "contains control characters"))
        }
        Some(label) => Ok(Some(label.to_owned())),
    }
}
