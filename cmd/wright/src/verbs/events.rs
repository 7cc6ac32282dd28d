//! `wright events`: usage and out-of-memory notices, one JSON object per line, until the container is gone.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use runtime::cgroup::{Cgroup, IoEntry, IoOperation, Pressure, PressureLine, Stats};
use runtime::state::Status;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use crate::cli::{Command, Count, Parsed, switch, text};
use crate::container::Container;
use crate::globals::Globals;
use crate::output::print;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "events",
    usage: "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    arguments: "<container-id>",
    description: "By default usage is shown once every 5 seconds.",
    flags: &[
        text("interval", None, "set the stats collection interval").or("5s"),
        switch("stats", None, "display the container's stats then exit"),
    ],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    let interval = match parsed.text("interval") {
        None => Duration::from_secs(5),
        Some(text) => duration(text).with_context(|| format!("invalid value {text:?} for flag -interval"))?,
    };
    if interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let id = &container.record.id;
    if container.status() == Status::Stopped {
        bail!("container with id {id} is not running");
    }
    let cgroup = container.needed_cgroup()?;
    if parsed.on("stats") {
        show(&stats_event(id, &cgroup.stats()?, &cpuset(&cgroup), &intel_rdt(&container)))?;
        return Ok(0);
    }
    follow(&container, &cgroup, interval)?;
    Ok(0)
}

fn show(event: &Value) -> Result<()> {
    print(&format!("{event}\n"))
}

/// Until init is gone: nothing happens in a container without one, and its cgroup is removed soon.
fn follow(container: &Container, cgroup: &Cgroup, interval: Duration) -> Result<()> {
    let id = &container.record.id;
    let Some(exit) = container.pidfd() else { return Ok(()) };
    let oom = cgroup.oom_watch()?;
    let mut next = Instant::now() + interval;
    loop {
        let left = Timespec::try_from(next.saturating_duration_since(Instant::now())).context("interval")?;
        let mut ready = vec![PollFd::new(&exit, PollFlags::IN)];
        if let Some(oom) = &oom {
            ready.push(PollFd::from_borrowed_fd(oom.as_fd(), PollFlags::IN | PollFlags::PRI));
        }
        match poll(&mut ready, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for events"),
        }
        let gone = !ready[0].revents().is_empty();
        drop(ready);
        if let Some(oom) = &oom
            && oom.drain()?
        {
            show(&json!({"type": "oom", "id": id}))?;
        }
        if gone {
            return Ok(());
        }
        if Instant::now() >= next {
            next += interval;
            match cgroup.stats() {
                Ok(stats) => show(&stats_event(id, &stats, &cpuset(cgroup), &intel_rdt(container)))?,
                // It has ended since, and somebody, systemd for one, has been quick to remove its cgroup. How it ended is still to be told.
                Err(_) if has_ended(exit.as_fd())? => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

fn has_ended(exit: BorrowedFd<'_>) -> Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::from_borrowed_fd(exit, PollFlags::IN)], Some(&now));
    Ok(ready.context("look whether the container has ended")? > 0)
}

/// One line of statistics, in the keys that runc's readers know.
fn stats_event(id: &str, stats: &Stats, cpuset: &Value, intel_rdt: &Value) -> Value {
    let hugetlb: BTreeMap<_, _> = stats
        .hugetlb
        .iter()
        .map(|pages| {
            (&pages.size, json!({"usage": pages.usage, "max": pages.peak, "failcnt": pages.limit_hits}))
        })
        .collect();
    json!({"type": "stats", "id": id, "data": {
        "cpu": cpu(stats),
        "cpuset": cpuset,
        "memory": memory(stats),
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit.unwrap_or(0)},
        "blkio": block_io(stats),
        "hugetlb": hugetlb,
        "intel_rdt": intel_rdt,
        "network_interfaces": null
    }})
}

/// What the container's resctrl groups allow and have counted; nothing for one that has none.
fn intel_rdt(container: &Container) -> Value {
    match &container.record.resctrl {
        Some(group) => serde_json::to_value(group.stats()).unwrap_or_else(|_| json!({})),
        None => json!({}),
    }
}

fn cpu(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let mut usage = json!({"total": cpu.usage_ns, "kernel": cpu.system_ns, "user": cpu.user_ns});
    if !cpu.per_cpu_ns.is_empty() {
        usage["percpu"] = json!(cpu.per_cpu_ns);
    }
    let mut value = json!({
        "usage": usage,
        "throttling": {
            "periods": cpu.periods,
            "throttledPeriods": cpu.throttled_periods,
            "throttledTime": cpu.throttled_ns
        }
    });
    put_pressure(&mut value, cpu.pressure);
    value
}

fn memory(stats: &Stats) -> Value {
    let memory = &stats.memory;
    let unlimited = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let raw: Map<String, Value> = memory.raw.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut value = json!({
        "cache": memory.cache,
        "usage": {
            "limit": unlimited(memory.limit),
            "usage": memory.usage,
            "max": memory.peak.unwrap_or(0),
            "failcnt": memory.limit_hits
        },
        "swap": {"limit": unlimited(memory.swap_limit), "usage": memory.swap, "failcnt": 0},
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
        "raw": raw
    });
    put_pressure(&mut value, memory.pressure);
    value
}

fn block_io(stats: &Stats) -> Value {
    let list = |count: fn(&IoEntry) -> u64| -> Vec<Value> {
        let entry = |entry: &IoEntry| {
            json!({
                "major": entry.major,
                "minor": entry.minor,
                "op": match entry.operation {
                    IoOperation::Read => "Read",
                    IoOperation::Write => "Write",
                    IoOperation::Discard => "Discard",
                    IoOperation::Sync => "Sync",
                    IoOperation::Async => "Async",
                    IoOperation::Total => "Total",
                },
                "value": count(entry)
            })
        };
        stats.io.iter().map(entry).collect()
    };
    let mut value = json!({});
    if !stats.io.is_empty() {
        value["ioServiceBytesRecursive"] = list(|entry| entry.bytes).into();
        value["ioServicedRecursive"] = list(|entry| entry.operations).into();
    }
    put_pressure(&mut value, stats.io_pressure);
    value
}

fn put_pressure(value: &mut Value, pressure: Option<Pressure>) {
    let Some(pressure) = pressure else { return };
    let line = |line: PressureLine| {
        let share = |centi: u32| f64::from(centi) / 100.0;
        json!({
            "avg10": share(line.avg10_centi),
            "avg60": share(line.avg60_centi),
            "avg300": share(line.avg300_centi),
            "total": line.total_us
        })
    };
    value["psi"] = json!({"some": line(pressure.some), "full": line(pressure.full)});
}

/// The CPUs and nodes the container may use, as the kernel tells them in effect.
fn cpuset(cgroup: &Cgroup) -> Value {
    let directory = cgroup.directory(runtime::cgroup::Controller::Cpuset).or_else(|| cgroup.directory_v2());
    let list = |names: [&str; 2]| {
        let text = names.iter().find_map(|name| std::fs::read_to_string(directory?.join(name)).ok());
        text.and_then(|text| runtime::plan::number_list(text.trim()).ok()).unwrap_or_default()
    };
    let mut value = json!({});
    for (key, names) in [
        ("cpus", ["cpuset.effective_cpus", "cpuset.cpus.effective"]),
        ("mems", ["cpuset.effective_mems", "cpuset.mems.effective"]),
    ] {
        let list = list(names);
        if !list.is_empty() {
            value[key] = json!(list);
        }
    }
    for (key, name) in [
        ("cpu_exclusive", "cpuset.cpu_exclusive"),
        ("mem_hardwall", "cpuset.mem_hardwall"),
        ("mem_exclusive", "cpuset.mem_exclusive"),
        ("memory_migrate", "cpuset.memory_migrate"),
        ("memory_spread_page", "cpuset.memory_spread_page"),
        ("memory_spread_slab", "cpuset.memory_spread_slab"),
        ("memory_pressure", "cpuset.memory_pressure"),
        ("sched_load_balance", "cpuset.sched_load_balance"),
        ("sched_relax_domain_level", "cpuset.sched_relax_domain_level"),
    ] {
        let number = directory.and_then(|directory| std::fs::read_to_string(directory.join(name)).ok());
        value[key] = json!(number.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0));
    }
    value
}

/// Go's notation of a duration: `5s`, `1m30s`, `100ms`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, seconds) =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
                .into_iter()
                .find(|(unit, _)| {
                    rest.strip_prefix(unit).is_some_and(|after| {
                        after.chars().next().is_none_or(|c| c.is_ascii_digit() || c == '.')
                    })
                })?;
        rest = &rest[unit.len()..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        for wrong in ["", "5", "s", "-1s", "1x", "1..2s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_event_has_runcs_keys_in_order() {
        let event = stats_event("c", &Stats::default(), &json!({}), &json!({}));
        let keys: Vec<_> = event["data"].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"]
        );
    }
}
