//! Cgroups that systemd makes: a transient scope (or slice) per container, asked for over D-Bus
//! (org.freedesktop.systemd1(5), systemd.resource-control(5)).
//!
//! ```text
//! Cgroup::create       checks names; notes the unit. A slice is started here: it needs no process
//! Cgroup::apply        notes the limits
//! Cgroup::join(pid)    StartTransientUnit with PIDs=[pid], Delegate=yes and the limits as properties, waits for JobRemoved;
//!                      then the directories are opened, and made in v1 hierarchies that systemd does not use; then the
//!                      limits are written there, for systemd has no property for some of them
//! Cgroup::update       SetUnitProperties, then the files
//! Cgroup::remove       StopUnit, then what is left
//! ```
//!
//! What is a property is set as one although the file is written too: systemd writes its own idea of a unit back
//! whenever it reloads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::{Failure, Step};

use super::create::{Made, delegate, enter, make_v1, make_v2, refuse_used};
use super::dbus::{BusError, Call, Connection, Value};
use super::devices::{self, Allowed, Kind, Rule};
use super::variant;
use super::{Cgroup, CgroupPath, CreateOptions, Existing, Hierarchies, Limits, weight_of_shares, writes_v2};

/// systemd answers within milliseconds; a machine that is shutting down may not at all.
const DEADLINE: Duration = Duration::from_secs(30);

/// The unit behind a cgroup.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) unit: String,
    /// What starting it takes. None: it runs.
    pending: Option<Box<Pending>>,
}

#[derive(Debug)]
struct Pending {
    slice: String,
    hierarchies: Hierarchies,
    path: CgroupPath,
    properties: Vec<(String, Value)>,
    limits: Option<Limits>,
    owner: Option<u32>,
}

impl Scope {
    /// One that runs, known from a record.
    pub(super) fn running(unit: String) -> Self {
        Self { unit, pending: None }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Keeps limits for the start. False: it has started already.
    pub(super) fn note(&mut self, limits: &Limits) -> bool {
        match &mut self.pending {
            Some(pending) => {
                pending.limits = Some(limits.clone());
                true
            }
            None => false,
        }
    }

    /// New limits for the running unit.
    pub(super) fn update(&self, limits: &Limits, v1: bool) -> Result<(), Failure> {
        let failed = |error| failure(&self.unit, &error);
        let mut systemd = Systemd::open(Instant::now() + DEADLINE).map_err(failed)?;
        let version = systemd.version().map_err(failed)?;
        let mut properties = limit_properties(limits, v1, version);
        if let Some(rules) = &limits.devices {
            properties.extend(device_properties(&devices::with_defaults(Some(rules)), version));
        }
        if properties.is_empty() {
            return Ok(());
        }
        systemd.set_properties(&self.unit, properties).map_err(failed)
    }

    /// Stops the unit; one that is gone is no error.
    pub(super) fn stop(&self) -> Result<(), Failure> {
        if self.is_pending() {
            return Ok(());
        }
        let stopped =
            Systemd::open(Instant::now() + DEADLINE).and_then(|mut systemd| systemd.stop(&self.unit));
        stopped.map_err(|error| failure(&self.unit, &error))
    }
}

impl Cgroup {
    /// For a `slice:prefix:name` path.
    pub(super) fn prepare_unit(
        hierarchies: &Hierarchies,
        path: &CgroupPath,
        (slice, unit): (&str, &str),
        options: &CreateOptions,
    ) -> Result<Self, Failure> {
        if let (Ok(used), Existing::Empty) = (Self::open(hierarchies, path), options.existing) {
            refuse_used(&used)?;
        }
        let mut properties = Vec::new();
        for (name, text) in &options.unit_properties {
            let property = variant::property(name, text).ok_or_else(|| {
                let message = format!("annotation org.systemd.property.{name}={text} is no unit property");
                Failure::because(Step::Config, message)
            })?;
            properties.push(property);
        }
        let pending = Pending {
            slice: slice.to_owned(),
            hierarchies: hierarchies.clone(),
            path: path.clone(),
            properties,
            limits: None,
            owner: options.owner,
        };
        let scope = Scope { unit: unit.to_owned(), pending: Some(Box::new(pending)) };
        let mut cgroup = Self {
            v1: Vec::new(),
            v2: None,
            made_ancestors: Vec::new(),
            rootless: options.rootless,
            scope: Some(scope),
        };
        if unit.strip_suffix(".slice").is_some() {
            cgroup.start_unit(None)?;
        }
        Ok(cgroup)
    }

    /// Starts the unit around `pid`, and completes what systemd leaves to us.
    pub(super) fn start_unit(&mut self, pid: Option<u32>) -> Result<(), Failure> {
        let Some(scope) = &mut self.scope else { return Ok(()) };
        let Some(pending) = scope.pending.take() else { return Ok(()) };
        let unit = scope.unit.clone();
        let v1 = !pending.hierarchies.v1.is_empty();
        let start = || {
            let mut systemd = Systemd::open(Instant::now() + DEADLINE)?;
            let version = systemd.version()?;
            let mut properties = unit_properties(&unit, &pending.slice, pid);
            if let Some(limits) = &pending.limits {
                properties.extend(limit_properties(limits, v1, version));
                let rules = devices::with_defaults(limits.devices.as_deref());
                properties.extend(device_properties(&rules, version));
            }
            properties.extend(pending.properties.iter().cloned());
            systemd.start(&unit, properties)
        };
        start().map_err(|error| failure(&unit, &error))?;
        let mut made = Made::default();
        let completed = self.complete_unit(&pending, pid, &mut made);
        if completed.is_err() {
            made.take_back();
        }
        completed
    }

    fn complete_unit(&mut self, pending: &Pending, pid: Option<u32>, made: &mut Made) -> Result<(), Failure> {
        for hierarchy in &pending.hierarchies.v1 {
            let dir = make_v1(hierarchy, &pending.path, made)?;
            if let Some(pid) = pid {
                enter(&dir, pid)?;
            }
            self.v1.push(dir);
        }
        if let Some(hierarchy) = &pending.hierarchies.v2 {
            let unified = pending.hierarchies.v1.is_empty();
            let dir = make_v2(hierarchy, &pending.path, unified, made)?;
            if let Some(owner) = pending.owner.filter(|_| unified) {
                delegate(&dir, owner, self.rootless)?;
            }
            // systemd has moved the process into its own hierarchy, and on unified hosts that is this one.
            if let Some(pid) = pid.filter(|_| !unified) {
                enter(&dir, pid)?;
            }
            self.v2 = Some(dir);
        }
        self.made_ancestors.clone_from(&made.ancestors);
        match &pending.limits {
            Some(limits) => self.apply(limits),
            None => Ok(()),
        }
    }
}

fn failure(unit: &str, error: &BusError) -> Failure {
    let mut message = format!("systemd unit {unit}: {error}");
    if let Some(source) = std::error::Error::source(error) {
        message = format!("{message}: {source}");
    }
    Failure::because(Step::Cgroup, message)
}

/// systemd's manager object.
struct Systemd {
    connection: Connection,
    deadline: Instant,
}

const fn manager(member: &str) -> Call<'_> {
    Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
    }
}

impl Systemd {
    /// systemd's own socket, else the bus; the user's instance for anyone but root.
    fn open(deadline: Instant) -> Result<Self, BusError> {
        let user = rustix::process::geteuid();
        let (private, bus) = if user.is_root() {
            (PathBuf::from("/run/systemd/private"), PathBuf::from("/run/dbus/system_bus_socket"))
        } else {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR")
                .map_or_else(|| PathBuf::from(format!("/run/user/{}", user.as_raw())), PathBuf::from);
            (runtime.join("systemd/private"), runtime.join("bus"))
        };
        let connection = Connection::open(&private, false, deadline)
            .or_else(|_| Connection::open(&bus, true, deadline))?;
        Ok(Self { connection, deadline })
    }

    fn call(&mut self, call: &Call<'_>, body: &[Value]) -> Result<Vec<Value>, BusError> {
        self.connection.call(call, body, self.deadline)
    }

    /// The number in `252.38-1~deb12u1` or `v255`; what later ones need is left out when it is not there.
    fn version(&mut self) -> Result<u32, BusError> {
        let property = Call { interface: "org.freedesktop.DBus.Properties", ..manager("Get") };
        let answer =
            self.call(&property, &[Value::text("org.freedesktop.systemd1.Manager"), Value::text("Version")])?;
        Ok(version_number(answer.first().and_then(Value::as_text).unwrap_or_default()))
    }

    /// Starts a transient unit. One of that name that failed earlier and was never looked at is forgotten first.
    fn start(&mut self, unit: &str, properties: Vec<(String, Value)>) -> Result<(), BusError> {
        self.listen()?;
        let body = [
            Value::text(unit),
            Value::text("replace"),
            property_list(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let started = match self.call(&manager("StartTransientUnit"), &body) {
            Err(BusError::Remote { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
                let _ = self.call(&manager("ResetFailedUnit"), &[Value::text(unit)]);
                self.call(&manager("StartTransientUnit"), &body)?
            }
            started => started?,
        };
        self.finished(&started)
    }

    fn stop(&mut self, unit: &str) -> Result<(), BusError> {
        self.listen()?;
        match self.call(&manager("StopUnit"), &[Value::text(unit), Value::text("replace")]) {
            Err(BusError::Remote { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
            Err(error) => Err(error),
            Ok(job) => {
                self.finished(&job)?;
                let _ = self.call(&manager("ResetFailedUnit"), &[Value::text(unit)]);
                Ok(())
            }
        }
    }

    fn set_properties(&mut self, unit: &str, properties: Vec<(String, Value)>) -> Result<(), BusError> {
        let body = [Value::text(unit), Value::Bool(true), property_list(properties)];
        self.call(&manager("SetUnitProperties"), &body).map(drop)
    }

    /// On the bus, signals come to who asks for them; on systemd's own socket, to all.
    fn listen(&mut self) -> Result<(), BusError> {
        if !self.connection.is_bus() {
            return Ok(());
        }
        let add = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "AddMatch",
        };
        let rule = "type='signal',sender='org.freedesktop.systemd1',\
            interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
        self.call(&add, &[Value::text(rule)])?;
        self.call(&manager("Subscribe"), &[]).map(drop)
    }

    /// Waits for `JobRemoved(id, job, unit, result)` of the job that a call returned.
    fn finished(&mut self, job: &[Value]) -> Result<(), BusError> {
        let job = job.first().and_then(Value::as_text).unwrap_or_default();
        loop {
            let signal = self.connection.signal(self.deadline)?;
            let [_, path, _, result] = signal.body.as_slice() else { continue };
            if signal.member.as_deref() != Some("JobRemoved") || path.as_text() != Some(job) {
                continue;
            }
            return match result.as_text().unwrap_or_default() {
                "done" => Ok(()),
                other => Err(BusError::Remote { name: "job".to_owned(), message: other.to_owned() }),
            };
        }
    }
}

fn property_list(properties: Vec<(String, Value)>) -> Value {
    let properties = properties.into_iter().map(|(name, value)| Value::property(name, value));
    Value::Array("(sv)".to_owned(), properties.collect())
}

fn version_number(text: &str) -> u32 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// What every unit of ours has.
fn unit_properties(unit: &str, slice: &str, pid: Option<u32>) -> Vec<(String, Value)> {
    let mut out = vec![("Description".to_owned(), Value::text(format!("container {unit}")))];
    let mut set = |name: &str, value| out.push((name.to_owned(), value));
    let slice = match (slice, rustix::process::geteuid().is_root()) {
        ("", true) => "system.slice",
        ("", false) => "user.slice",
        (slice, _) => slice,
    };
    match pid {
        Some(pid) => {
            set("Slice", Value::text(slice));
            set("PIDs", Value::Array("u".to_owned(), vec![Value::Uint32(pid)]));
            set("Delegate", Value::Bool(true));
        }
        // A slice has its place by its name, and takes no processes.
        None => set("Wants", Value::texts([slice.to_owned()])),
    }
    for name in ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"] {
        set(name, Value::Bool(true));
    }
    set("DefaultDependencies", Value::Bool(false));
    out
}

/// Limits that systemd has a property for.
fn limit_properties(limits: &Limits, v1: bool, version: u32) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    let mut set = |name: &str, value| out.push((name.to_owned(), value));
    let cpu = &limits.cpu;
    if cpu.shares != 0 {
        if v1 {
            set("CPUShares", Value::Uint64(cpu.shares));
        } else if cpu.idle != Some(1) {
            set("CPUWeight", Value::Uint64(weight_of_shares(cpu.shares)));
        }
    }
    // systemd takes 0 for "idle" since 252.
    if !v1 && cpu.idle == Some(1) && version >= 252 {
        if cpu.shares != 0 {
            // In the words that tools know.
            tracing::warn!("unable to apply both CPUWeight and CpuIdle to systemd, ignoring CPUWeight");
        }
        set("CPUWeight", Value::Uint64(0));
    }
    if cpu.period_us != 0 && version >= 242 {
        set("CPUQuotaPeriodUSec", Value::Uint64(cpu.period_us));
    }
    if cpu.quota_us != 0 || cpu.period_us != 0 {
        set("CPUQuotaPerSecUSec", Value::Uint64(quota_per_second(cpu.quota_us, cpu.period_us)));
    }
    if version >= 244 && !v1 {
        for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
            if let Some(bits) = list.as_deref().and_then(bitmask) {
                let bits = bits.into_iter().map(Value::Byte).collect();
                set(name, Value::Array("y".to_owned(), bits));
            }
        }
    }
    if let Some(limit) = limits.pids {
        let most = u64::try_from(limit).map_or(u64::MAX, |limit| limit.max(1));
        set("TasksMax", Value::Uint64(most));
    }
    if v1 {
        if limits.memory.limit != 0 {
            set("MemoryLimit", Value::Uint64(unlimited(limits.memory.limit)));
        }
        if limits.io.weight != 0 {
            set("BlockIOWeight", Value::Uint64(limits.io.weight.into()));
        }
        return out;
    }
    // The same conversions as for the files, and what `unified` says besides, or instead.
    let writes = writes_v2(limits).unwrap_or_default();
    let idle = writes.iter().any(|write| write.file == "cpu.idle" && write.value == "1");
    for write in writes {
        if write.file == "cpu.weight" && idle && cpu.idle != Some(1) && version >= 252 {
            tracing::warn!("unable to apply both cpu.weight and cpu.idle to systemd, ignoring cpu.weight");
            continue;
        }
        let name = match &*write.file {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "io.weight" if !write.value.contains(' ') => "IOWeight",
            "cpu.weight" if cpu.shares == 0 => "CPUWeight",
            // Of the unified map.
            "cpu.idle" if idle && cpu.idle != Some(1) && version >= 252 => {
                set("CPUWeight", Value::Uint64(0));
                continue;
            }
            "pids.max" if limits.pids.is_none() => "TasksMax",
            _ => continue,
        };
        let value = if write.value == "max" { Some(u64::MAX) } else { write.value.parse().ok() };
        if let Some(value) = value {
            set(name, Value::Uint64(value));
        }
    }
    out
}

/// -1 as systemd says infinity.
fn unlimited(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// systemd keeps a quota as microseconds per second, in steps of 10 ms: rounded up, so that it never undercuts the file.
fn quota_per_second(quota_us: i64, period_us: u64) -> u64 {
    const STEP: u64 = 10_000;
    match u64::try_from(quota_us) {
        Ok(quota) if quota > 0 => {
            let period = if period_us == 0 { 100_000 } else { period_us };
            (quota.saturating_mul(1_000_000) / period).next_multiple_of(STEP)
        }
        _ => u64::MAX,
    }
}

/// `0-2,7` as bytes of bits, the lowest first. None: not such a list.
fn bitmask(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if to < from || to >= 1 << 16 {
            return None;
        }
        for number in from..=to {
            if bits.len() <= number / 8 {
                bits.resize(number / 8 + 1, 0_u8);
            }
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits)
}

/// systemd knows lists of what is allowed, and "everything". What is neither is left to the rules that we install ourselves.
fn device_properties(rules: &[Rule], version: u32) -> Vec<(String, Value)> {
    let entries = |entries| ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), entries));
    let policy = |policy: &str| ("DevicePolicy".to_owned(), Value::text(policy));
    let list = match devices::allowed(rules) {
        Allowed::These(list) => list,
        Allowed::Everything => return vec![policy("auto"), entries(Vec::new())],
        Allowed::Otherwise => return Vec::new(),
    };
    let entry = |rule: &Rule| {
        let class = if rule.kind == Kind::Block { "block" } else { "char" };
        let device = match (rule.major, rule.minor) {
            (Some(major), Some(minor)) => format!("/dev/{class}/{major}:{minor}"),
            // By number since 240.
            (Some(major), None) if version >= 240 => format!("{class}-{major}"),
            (None, None) => format!("{class}-*"),
            _ => return None,
        };
        Some(Value::Struct(vec![Value::text(device), Value::text(rule.access.letters())]))
    };
    // The empty list first: it takes away what the unit may have had.
    vec![policy("strict"), entries(Vec::new()), entries(list.iter().filter_map(entry).collect())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn properties(json: Json, v1: bool, version: u32) -> Vec<(String, Value)> {
        let limits = Limits::from_spec(&serde_json::from_value(json).unwrap()).unwrap();
        limit_properties(&limits, v1, version)
    }

    fn numbers(list: &[(String, Value)]) -> Vec<String> {
        list.iter()
            .map(|(name, value)| match value {
                Value::Uint64(number) if *number == u64::MAX => format!("{name}=infinity"),
                Value::Uint64(number) => format!("{name}={number}"),
                other => format!("{name}={other:?}"),
            })
            .collect()
    }

    #[test]
    fn limits_become_properties() {
        let all = json!({
            "cpu": {"shares": 1024, "quota": 150_001, "period": 100_000, "cpus": "0-2,9"},
            "memory": {"limit": 100, "swap": 300, "reservation": 50},
            "pids": {"limit": -1},
            "unified": {"memory.high": "90", "memory.min": "max"},
        });
        assert_eq!(
            numbers(&properties(all.clone(), false, 252)),
            [
                "CPUWeight=100",
                "CPUQuotaPeriodUSec=100000",
                "CPUQuotaPerSecUSec=1510000",
                "AllowedCPUs=Array(\"y\", [Byte(7), Byte(2)])",
                "TasksMax=infinity",
                "MemorySwapMax=200",
                "MemoryMax=100",
                "MemoryLow=50",
                "MemoryHigh=90",
                "MemoryMin=infinity",
            ]
        );
        assert_eq!(
            numbers(&properties(all, true, 239)),
            ["CPUShares=1024", "CPUQuotaPerSecUSec=1510000", "TasksMax=infinity", "MemoryLimit=100"]
        );
        assert_eq!(properties(json!({}), false, 252), []);
        assert_eq!(
            numbers(&properties(json!({"cpu": {"quota": -1}}), false, 252)),
            ["CPUQuotaPerSecUSec=infinity"]
        );
    }

    #[test]
    fn a_scope_is_delegated_and_a_slice_has_no_process() {
        let scope = unit_properties("x.scope", "machine.slice", Some(7));
        let value = |list: &[(String, Value)], name: &str| {
            list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        assert_eq!(value(&scope, "PIDs"), Some(Value::Array("u".into(), vec![Value::Uint32(7)])));
        assert_eq!(value(&scope, "Delegate"), Some(Value::Bool(true)));
        assert_eq!(value(&scope, "Slice"), Some(Value::text("machine.slice")));
        let slice = unit_properties("x.slice", "", None);
        assert_eq!(value(&slice, "PIDs"), None);
        assert!(value(&slice, "Wants").is_some());
    }

    #[test]
    fn device_lists() {
        let rules = |json: Json| {
            Rule::list(&serde_json::from_value::<Vec<oci_spec::runtime::LinuxDeviceCgroup>>(json).unwrap())
                .unwrap()
        };
        let listed = device_properties(
            &rules(json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 136, "access": "rw"},
                {"allow": true, "type": "b", "access": "m"},
            ])),
            252,
        );
        assert_eq!(listed[0], ("DevicePolicy".into(), Value::text("strict")));
        let pair = |a: &str, b: &str| Value::Struct(vec![Value::text(a), Value::text(b)]);
        assert_eq!(
            listed[2].1,
            Value::Array(
                "(ss)".into(),
                vec![pair("/dev/char/1:3", "rwm"), pair("char-136", "rw"), pair("block-*", "m")]
            )
        );
        let all = device_properties(&rules(json!([{"allow": true, "access": "rwm"}])), 252);
        assert_eq!(all[0], ("DevicePolicy".into(), Value::text("auto")));
        let but = rules(json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"},
        ]));
        assert_eq!(device_properties(&but, 252), []);
    }

    #[test]
    fn versions_and_lists() {
        assert_eq!(version_number("252.38-1~deb12u1"), 252);
        assert_eq!(version_number("v255"), 255);
        assert_eq!(version_number(""), 0);
        assert_eq!(bitmask("0"), Some(vec![1]));
        assert_eq!(bitmask("15,0"), Some(vec![1, 128]));
        assert_eq!(bitmask("3-1"), None);
        assert_eq!(bitmask("0-999999"), None);
        assert_eq!(quota_per_second(1, 0), 10_000);
    }

    #[test]
    fn an_idle_unit_has_no_weight() {
        let weights = |json: Json, version: u32| numbers(&properties(json, false, version));
        assert_eq!(weights(json!({"cpu": {"shares": 200, "idle": 1}}), 252), ["CPUWeight=0"]);
        assert_eq!(weights(json!({"cpu": {"idle": 0, "shares": 1024}}), 252), ["CPUWeight=100"]);
        let unified = json!({"unified": {"cpu.idle": "1", "cpu.weight": "8"}});
        assert_eq!(weights(unified.clone(), 252), ["CPUWeight=0"]);
        // Before, systemd knows of no such thing, and the files alone tell.
        assert_eq!(weights(unified, 249), ["CPUWeight=8"]);
        assert_eq!(weights(json!({"unified": {"cpu.weight": "8"}}), 252), ["CPUWeight=8"]);
    }
}
