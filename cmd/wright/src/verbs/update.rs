//! `wright update`: other resource limits for a container that runs.

use std::io::Read;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use runtime::cgroup::{Limits, MemoryStats};
use runtime::resctrl::Resctrl;
use runtime::spec;
use runtime::state::Status;
use serde_json::{Map, Value, json};

use crate::cli::{Command, Count, Parsed, text};
use crate::container::Container;
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "update",
    usage: "update container resource constraints",
    arguments: "<container-id>",
    description:
        "With --resources the other options are ignored. Its file holds `linux.resources` of the runtime-spec;
   what it leaves out stays as it is.",
    flags: &[
        text(
            "resources",
            Some("r"),
            "path to the file containing the resources to update or '-' to read from the standard input",
        ),
        text("blkio-weight", None, "Specifies per cgroup weight, range is from 10 to 1000"),
        text(
            "cpu-period",
            None,
            "CPU CFS period to be used for hardcapping (in usecs). 0 to use system default",
        ),
        text("cpu-quota", None, "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period"),
        text("cpu-burst", None, "CPU CFS hardcap burst limit (in usecs)"),
        text("cpu-share", None, "CPU shares (relative weight vs. other containers)"),
        text(
            "cpu-rt-period",
            None,
            "CPU realtime period to be used for hardcapping (in usecs). 0 to use system default",
        ),
        text(
            "cpu-rt-runtime",
            None,
            "CPU realtime hardcap limit (in usecs). Allowed cpu time in a given period",
        ),
        text("cpuset-cpus", None, "CPU(s) to use"),
        text("cpuset-mems", None, "Memory node(s) to use"),
        text("kernel-memory", None, "(obsoleted; do not use)"),
        text("kernel-memory-tcp", None, "(obsoleted; do not use)"),
        text("memory", None, "Memory limit (in bytes)"),
        text("cpu-idle", None, "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE"),
        text("memory-reservation", None, "Memory reservation or soft_limit (in bytes)"),
        text("memory-swap", None, "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
        text("pids-limit", None, "Maximum number of pids allowed in the container"),
        text("l3-cache-schema", None, "The string of Intel RDT/CAT L3 cache schema"),
        text("mem-bw-schema", None, "The string of Intel RDT/MBA memory bandwidth schema"),
    ],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let mut container = Container::open(globals, parsed.id())?;
    if container.status() == Status::Stopped {
        bail!("container not running");
    }
    if container.record.cgroup.directories.is_empty() {
        bail!("cannot update: the container has no cgroup (rootless)");
    }
    let mut resources = match parsed.text("resources") {
        Some("-") => {
            let mut text = Vec::new();
            std::io::stdin()
                .take(spec::MAX_CONFIG_BYTES)
                .read_to_end(&mut text)
                .context("read standard input")?;
            serde_json::from_slice(&text).context("parse the resources")?
        }
        Some(path) => {
            serde_json::from_slice(&spec::read_given(path.as_ref())?).context("parse the resources")?
        }
        None => from_flags(parsed)?,
    };
    settle(&mut resources);
    let cgroup = container.needed_cgroup()?;
    keep_memory(&mut resources, &cgroup.stats().context("read the present limits")?.memory);
    let text = serde_json::to_vec(&resources)?;
    let resources: LinuxResources = spec::parse_value(&text).context("resources")?;
    let classes = intel_rdt(parsed)?;
    if resources
        .memory()
        .as_ref()
        .is_some_and(|memory| memory.kernel().is_some() || memory.kernel_tcp().is_some())
    {
        globals.log.warn("Kernel memory settings are ignored and will be removed");
    }
    let limits = Limits::from_spec(&resources).context("resources")?;
    cgroup.update(&limits)?;
    if let Some(rdt) = classes {
        update_classes(&mut container, &rdt)?;
    }
    Ok(0)
}

/// `linux.resources` as the flags give it.
fn from_flags(parsed: &Parsed) -> Result<Value> {
    let mut resources = Map::new();
    let mut put = |section: &str, key: &str, value: Value| {
        let section = resources.entry(section).or_insert_with(|| json!({}));
        section[key] = value;
    };
    for (flag, key) in [
        ("cpu-burst", "burst"),
        ("cpu-period", "period"),
        ("cpu-rt-period", "realtimePeriod"),
        ("cpu-share", "shares"),
    ] {
        if let Some(number) = given::<u64>(parsed, flag)? {
            put("cpu", key, number.into());
        }
    }
    for (flag, key) in [("cpu-quota", "quota"), ("cpu-rt-runtime", "realtimeRuntime"), ("cpu-idle", "idle")] {
        if let Some(number) = given::<i64>(parsed, flag)? {
            put("cpu", key, number.into());
        }
    }
    for (flag, key) in [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")] {
        if let Some(list) = parsed.text(flag).filter(|list| !list.is_empty()) {
            put("cpu", key, list.into());
        }
    }
    for (flag, key) in [
        ("memory", "limit"),
        ("memory-swap", "swap"),
        ("memory-reservation", "reservation"),
        ("kernel-memory", "kernel"),
        ("kernel-memory-tcp", "kernelTCP"),
    ] {
        if let Some(size) = parsed.text(flag).filter(|size| !size.is_empty()) {
            put(
                "memory",
                key,
                bytes(size).with_context(|| format!("invalid value for {flag}: {size:?}"))?.into(),
            );
        }
    }
    if let Some(weight) = given::<u16>(parsed, "blkio-weight")?.filter(|weight| *weight != 0) {
        put("blockIO", "weight", weight.into());
    }
    if let Some(limit) = given::<i64>(parsed, "pids-limit")? {
        put("pids", "limit", limit.into());
    }
    Ok(Value::Object(resources))
}

/// What one value implies for another, as runc has it: an unlimited memory lifts the swap limit with it.
fn settle(resources: &mut Value) {
    if let Some(memory) = resources.get_mut("memory").and_then(Value::as_object_mut)
        && memory.get("limit").and_then(Value::as_i64) == Some(-1)
        && !memory.contains_key("swap")
    {
        memory.insert("swap".into(), json!(-1));
    }
}

/// What the flags say of Intel RDT; None: nothing.
fn intel_rdt(parsed: &Parsed) -> Result<Option<LinuxIntelRdt>> {
    let mut rdt = json!({});
    for (flag, key, resource, what) in [
        ("l3-cache-schema", "l3CacheSchema", "L3", "CAT: l3 cache schema"),
        ("mem-bw-schema", "memBwSchema", "MB", "MBA: memory bandwidth schema"),
    ] {
        let Some(schema) = parsed.text(flag).filter(|schema| !schema.is_empty()) else { continue };
        if !Resctrl::find().is_some_and(|resctrl| resctrl.allocates(resource)) {
            bail!("Intel RDT/{what} is not enabled");
        }
        rdt[key] = json!(schema);
    }
    if rdt == json!({}) { Ok(None) } else { Ok(Some(serde_json::from_value(rdt)?)) }
}

/// Changes the class of a container; one that has none gets one of its own.
fn update_classes(container: &mut Container, rdt: &LinuxIntelRdt) -> Result<()> {
    if let Some(group) = &container.record.resctrl {
        return Ok(group.update(rdt)?);
    }
    let resctrl = Resctrl::find().context("Intel RDT is not enabled")?;
    let group = resctrl.create(rdt, &container.record.id)?;
    for pid in container.pids()? {
        group.assign(i32::try_from(pid).context("pid")?)?;
    }
    container.record.resctrl = Some(group);
    container.dir.write(&container.record)?;
    Ok(())
}

/// Of memory and of memory and swap together, the one that is not named stays as it is. Version 2 keeps swap alone, so each takes
/// knowing the other.
fn keep_memory(resources: &mut Value, now: &MemoryStats) {
    let Some(memory) = resources.get_mut("memory").and_then(Value::as_object_mut) else { return };
    let limited = |value: Option<&Value>| value.and_then(Value::as_i64).filter(|limit| *limit > 0);
    if limited(memory.get("swap")).is_some() && !memory.contains_key("limit") {
        if let Some(limit) = now.limit {
            memory.insert("limit".into(), json!(limit));
        }
    } else if let Some(limit) = limited(memory.get("limit"))
        && !memory.contains_key("swap")
        && let (Some(before), Some(swap)) = (now.limit, now.swap_limit)
    {
        let both = before.saturating_add(swap);
        if i64::try_from(both).is_ok_and(|both| both >= limit) {
            memory.insert("swap".into(), json!(both));
        }
    }
}

fn given<T: std::str::FromStr>(parsed: &Parsed, flag: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match parsed.text(flag).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => Ok(Some(value.parse().with_context(|| format!("invalid value for {flag}"))?)),
    }
}

/// A size with an optional unit (`64m`, `1.5GiB`), in powers of 1024; -1 is unlimited.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = lower[number.len()..].trim();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift).filter(|size| *size >= 0);
    }
    // A fraction needs no more precision than it is written with.
    let fraction: f64 =
        number.parse().ok().filter(|fraction: &f64| fraction.is_finite() && *fraction >= 0.0)?;
    let size = (fraction * f64::from(2.0_f32).powi(shift)).trunc();
    format!("{size:.0}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("0", 0),
            ("1024", 1024),
            ("64m", 64 << 20),
            ("1GiB", 1 << 30),
            ("1.5k", 1536),
            ("2 MB", 2 << 20),
            ("-1", -1),
        ] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "x", "-2", "1z", "9999999999999g", "nan", "inf", "1e400k"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn flags_become_resources() {
        let words = ["--memory", "64m", "--cpu-quota=-1", "--pids-limit", "20", "--cpuset-cpus", "0", "id"];
        let parsed = crate::cli::parse(COMMAND.flags, true, words.map(str::to_owned)).unwrap();
        let expected =
            json!({"cpu": {"quota": -1, "cpus": "0"}, "memory": {"limit": 64 << 20}, "pids": {"limit": 20}});
        assert_eq!(from_flags(&parsed).unwrap(), expected);
    }

    #[test]
    fn unlimited_memory_lifts_the_swap_limit() {
        let mut resources = json!({"memory": {"limit": -1}});
        settle(&mut resources);
        assert_eq!(resources, json!({"memory": {"limit": -1, "swap": -1}}));
    }
}
