//! Attributes of a process the kernel knows by number: scheduler, I/O priority, CPU affinity, personality, memory policy.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerPolicy, Scheduler as SpecScheduler,
};
use serde_json::Value;

use super::error::PlanError;
use super::{MemoryPolicy, Scheduler};

/// The highest CPU or memory node number that is taken: above the kernel's own limits (NR_CPUS 8192, MAX_NUMNODES 1024).
const MAX_LIST_NUMBER: u32 = 65535;

/// sched_setattr(2)'s form of `process.scheduler`; the flags come from its JSON.
pub(super) fn scheduler(scheduler: &SpecScheduler, raw: &Value) -> Result<Scheduler, PlanError> {
    let field = |name: &str| format!("process.scheduler.{name}");
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let nice = scheduler.nice().unwrap_or(0);
    if matches!(policy, 0 | 3) && !(-20..=19).contains(&nice) {
        return Err(PlanError::invalid(field("nice"), format!("invalid scheduler.nice: {nice}")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, 1 | 2) {
        return Err(PlanError::conflict(
            field("priority"),
            "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
        ));
    }
    let priority = u32::try_from(priority).ok().filter(|priority| *priority <= 99);
    let priority = priority.ok_or_else(|| PlanError::invalid(field("priority"), "not within 0..=99"))?;
    let (runtime, deadline, period) = (
        scheduler.runtime().unwrap_or(0),
        scheduler.deadline().unwrap_or(0),
        scheduler.period().unwrap_or(0),
    );
    if policy != 6 && (runtime, deadline, period) != (0, 0, 0) {
        return Err(PlanError::conflict(
            field("runtime"),
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
        ));
    }
    let flags = scheduler_flags(raw.pointer("/scheduler/flags"))?;
    Ok(Scheduler { policy, flags, nice, priority, runtime, deadline, period })
}

/// SCHED_FLAG_* of `linux/sched.h`, by the runtime-spec's names.
fn scheduler_flags(flags: Option<&Value>) -> Result<u64, PlanError> {
    let field = |index: usize| format!("process.scheduler.flags[{index}]");
    let Some(flags) = flags else { return Ok(0) };
    let flags =
        flags.as_array().ok_or_else(|| PlanError::invalid("process.scheduler.flags", "not a list"))?;
    let mut bits = 0;
    for (index, flag) in flags.iter().enumerate() {
        bits |= match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => 0x01,
            Some("SCHED_FLAG_RECLAIM") => 0x02,
            Some("SCHED_FLAG_DL_OVERRUN") => 0x04,
            Some("SCHED_FLAG_KEEP_POLICY") => 0x08,
            Some("SCHED_FLAG_KEEP_PARAMS") => 0x10,
            Some("SCHED_FLAG_UTIL_CLAMP_MIN") => 0x20,
            Some("SCHED_FLAG_UTIL_CLAMP_MAX") => 0x40,
            _ => return Err(PlanError::invalid(field(index), format!("invalid scheduler flag {flag}"))),
        };
    }
    Ok(bits)
}

/// ioprio_set(2)'s (class, priority).
pub(super) fn io_priority(priority: &LinuxIOPriority) -> Result<(u32, u32), PlanError> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).ok().filter(|level| *level <= 7);
    let level = level.ok_or_else(|| {
        let problem = format!("invalid ioPriority.Priority: {}", priority.priority());
        PlanError::invalid("process.ioPriority.priority", problem)
    })?;
    Ok((class, level))
}

/// `execCPUAffinity`'s initial and final lists, each checked.
pub(super) fn cpu_affinity(
    affinity: Option<&ExecCPUAffinity>,
) -> Result<(Option<String>, Option<String>), PlanError> {
    let Some(affinity) = affinity else { return Ok((None, None)) };
    let list = |field: &str, list: Option<&String>| match list.map(String::as_str) {
        None | Some("") => Ok(None),
        Some(list) => number_list(list)
            .map(|_| Some(list.to_owned()))
            .map_err(|problem| PlanError::invalid(format!("process.execCPUAffinity.{field}"), problem)),
    };
    Ok((
        list("initial", affinity.initial().as_ref())?,
        list("final", affinity.cpu_affinity_final().as_ref())?,
    ))
}

/// personality(2)'s persona. Flags are defined by no version of the spec.
pub(super) fn personality(personality: &LinuxPersonality, warnings: &mut Vec<String>) -> u32 {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        warnings.push("linux.personality.flags: ignored: none are defined".into());
    }
    match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    }
}

/// set_mempolicy(2)'s form of `linux.memoryPolicy`, from its JSON: the errors name the word that is unknown.
pub(super) fn memory_policy(policy: &Value) -> Result<MemoryPolicy, PlanError> {
    let field = |name: &str| format!("linux.memoryPolicy.{name}");
    let text = |name: &str| match policy.get(name) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => {
            Err(PlanError::invalid(field(name), format!("invalid memory policy {name}: not a string")))
        }
    };
    let name = text("mode")?;
    let mode = match name {
        "MPOL_DEFAULT" => 0,
        "MPOL_PREFERRED" => 1,
        "MPOL_BIND" => 2,
        "MPOL_INTERLEAVE" => 3,
        "MPOL_LOCAL" => 4,
        "MPOL_PREFERRED_MANY" => 5,
        "MPOL_WEIGHTED_INTERLEAVE" => 6,
        _ => return Err(PlanError::invalid(field("mode"), format!("invalid memory policy mode {name:?}"))),
    };
    let nodes = text("nodes")?;
    let nodes = match nodes.trim() {
        "" => Vec::new(),
        list => number_list(list).map_err(|problem| {
            PlanError::invalid(field("nodes"), format!("invalid memory policy nodes {list:?}: {problem}"))
        })?,
    };
    match mode {
        0 | 4 if !nodes.is_empty() => {
            let problem = format!("invalid memory policy: mode requires 0 nodes but got {}", nodes.len());
            return Err(PlanError::conflict(field("nodes"), problem));
        }
        2 | 3 | 5 | 6 if nodes.is_empty() => {
            let problem = "invalid memory policy: mode requires at least one node but got 0";
            return Err(PlanError::conflict(field("nodes"), problem));
        }
        _ => {}
    }
    let flags = match policy.get("flags") {
        None => [].as_slice(),
        Some(Value::Array(flags)) => flags,
        Some(_) => return Err(PlanError::invalid(field("flags"), "invalid memory policy flags: not a list")),
    };
    let mut bits = 0;
    for flag in flags {
        bits |= match flag.as_str() {
            Some("MPOL_F_NUMA_BALANCING") => 1 << 13,
            Some("MPOL_F_RELATIVE_NODES") => 1 << 14,
            Some("MPOL_F_STATIC_NODES") => 1 << 15,
            _ => {
                return Err(PlanError::invalid(field("flags"), format!("invalid memory policy flag {flag}")));
            }
        };
    }
    Ok(MemoryPolicy { mode: mode | bits, nodes })
}

/// The numbers of a list such as `0-3,7`, ascending, each once. See cpuset(7), "List format".
pub fn number_list(list: &str) -> Result<Vec<u32>, String> {
    let mut numbers = std::collections::BTreeSet::new();
    for part in list.split(',') {
        let number = |text: &str| match text.trim().parse::<u32>() {
            Ok(number) if number <= MAX_LIST_NUMBER => Ok(number),
            _ => Err(format!("{:?} is not a number up to {MAX_LIST_NUMBER}", text.trim())),
        };
        let (start, end) = match part.split_once('-') {
            Some((start, end)) => (number(start)?, number(end)?),
            None => (number(part)?, number(part)?),
        };
        if start > end {
            return Err(format!("{part:?} runs backwards"));
        }
        numbers.extend(start..=end);
    }
    Ok(numbers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_does() {
        assert_eq!(number_list("0-2, 5,1").unwrap(), [0, 1, 2, 5]);
        for wrong in ["", "-", "1-", "3-1", "a", "0,,1", "99999999999", "70000", "-1"] {
            assert!(number_list(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn memory_policies_say_which_word_is_wrong() {
        let wrong = |policy: Value| memory_policy(&policy).unwrap_err().to_string();
        assert!(wrong(json!({"mode": "MPOL_X"})).contains("invalid memory policy mode"));
        assert!(wrong(json!({})).contains("invalid memory policy mode"));
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]});
        assert!(wrong(policy).contains("invalid memory policy flag"));
        assert!(wrong(json!({"mode": "MPOL_BIND", "nodes": "a"})).contains("invalid memory policy nodes"));
        assert!(wrong(json!({"mode": "MPOL_BIND"})).contains("at least one node"));
        assert!(
            wrong(json!({"mode": "MPOL_LOCAL", "nodes": "0-7"})).contains("mode requires 0 nodes but got 8")
        );
    }

    #[test]
    fn a_memory_policy_becomes_numbers() {
        let policy = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]});
        assert_eq!(memory_policy(&policy).unwrap(), MemoryPolicy { mode: 3 | 1 << 15, nodes: vec![0, 1] });
    }
}
