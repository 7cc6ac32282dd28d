//! Limits as writes: which value goes to which file, for each cgroup version. Pure.
//!
//! Where the meaning differs between versions, the conversions are those that runc and crun agree on
//! (`github.com/opencontainers/cgroups`, utils.go; the v2 table in crun(1)).

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

use super::Controller;
use super::limits::{CpuLimits, LimitError, Limits, MemoryLimits, Throttle, ThrottleKind};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Whose hierarchy (v1), and whom to name when it is missing.
    pub controller: Controller,
    /// The file's name.
    pub file: Cow<'static, str>,
    /// What is written, in one write(2).
    pub value: String,
    /// A host without the controller or the file is as good: the value asks for what such a host does anyway.
    pub optional: bool,
    /// Written to where it exists, else the next write, for the same meaning, is used.
    pub or_next: bool,
}

impl Write {
    pub(crate) fn new(
        controller: Controller,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
    ) -> Self {
        Self { controller, file: file.into(), value: value.to_string(), optional: false, or_next: false }
    }

    fn optional_if(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }

    fn or_next(mut self) -> Self {
        self.or_next = true;
        self
    }
}

/// The writes for v1 controllers, devices aside ([`super::devices`]).
pub fn writes_v1(limits: &Limits) -> Result<Vec<Write>, LimitError> {
    let mut out = Vec::new();
    cpu_v1(&limits.cpu, &mut out)?;
    cpuset(&limits.cpu, &mut out);
    memory_v1(&limits.memory, &mut out);
    pids(limits, &mut out);
    io_v1(limits, &mut out);
    hugetlb(limits, "limit_in_bytes", &mut out);
    if let Some(class) = limits.net_class.filter(|class| *class != 0) {
        out.push(Write::new(Controller::NetCls, "net_cls.classid", class));
    }
    for (interface, priority) in &limits.net_priorities {
        out.push(Write::new(Controller::NetPrio, "net_prio.ifpriomap", format!("{interface} {priority}")));
    }
    rdma(limits, &mut out);
    Ok(out)
}

/// The writes for v2 controllers, devices aside. `unified` comes last, so that it has the last word.
pub fn writes_v2(limits: &Limits) -> Result<Vec<Write>, LimitError> {
    let mut out = Vec::new();
    cpu_v2(&limits.cpu, &mut out);
    cpuset(&limits.cpu, &mut out);
    memory_v2(&limits.memory, &mut out)?;
    pids(limits, &mut out);
    io_v2(limits, &mut out);
    hugetlb(limits, "max", &mut out);
    rdma(limits, &mut out);
    for (file, value) in &limits.unified {
        let controller = file.split('.').next().and_then(Controller::from_name).unwrap_or(Controller::Core);
        // A value of several lines is several values: a cgroup file takes one per write(2).
        for line in value.lines() {
            out.push(Write::new(controller, file.clone(), line));
        }
    }
    Ok(out)
}

/// v1 `cpu.shares` (2 to 262144, default 1024) as v2 `cpu.weight` (1 to 10000, default 100): the quadratic
/// in log2(shares) that meets both ends and the default. crun 1.23 and runc 1.4 use it in place of the
/// old line from end to end, which made 1024 a weight of 39 (github.com/opencontainers/cgroups, utils.go).
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[allow(clippy::cast_precision_loss)] // below 2^18
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to 10000
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

/// v1 `blkio.weight` (10 to 1000) as v2 `io.weight` (1 to 10000), linear (runtime-spec has no rule; runc's).
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.max(10)) - 10) * 9999 / 990
}

/// v2's swap alone, from the spec's memory and swap together. None: not to be written.
fn swap_max(memory: &MemoryLimits) -> Result<Option<i64>, LimitError> {
    Ok(match (memory.limit, memory.swap) {
        // "No memory limit" with swap unsaid takes swap's limit away too, as v1 would.
        (-1, 0) | (_, -1) => Some(-1),
        (_, 0) => None,
        (-1, swap) => Some(swap),
        (0, _) => return Err(LimitError::SwapWithoutMemory),
        (limit, swap) if swap < limit => return Err(LimitError::SwapBelowMemory),
        (limit, swap) => Some(swap - limit),
    })
}

/// -1 as v2 writes it.
fn max(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

/// Kernel's v1 clamps silently; a request that cannot be met is refused instead.
fn cpu_v1(cpu: &CpuLimits, out: &mut Vec<Write>) -> Result<(), LimitError> {
    let shares_out_of_range =
        |expected| LimitError::Range { field: "cpu.shares", value: cpu.shares.to_string(), expected };
    match cpu.shares {
        0 => {}
        1 => return Err(shares_out_of_range("the minimum allowed cpu-shares is 2")),
        262_145.. => return Err(shares_out_of_range("the maximum allowed cpu-shares is 262144")),
        shares => out.push(Write::new(Controller::Cpu, "cpu.shares", shares)),
    }
    if cpu.period_us != 0 {
        out.push(Write::new(Controller::Cpu, "cpu.cfs_period_us", cpu.period_us));
    }
    if let Some(burst) = cpu.burst_us {
        // Kernels before 5.14 have no burst; runc ignores it there.
        out.push(Write::new(Controller::Cpu, "cpu.cfs_burst_us", burst).optional_if(true));
    }
    if cpu.quota_us != 0 {
        out.push(Write::new(Controller::Cpu, "cpu.cfs_quota_us", cpu.quota_us));
    }
    if let Some(idle) = cpu.idle {
        out.push(Write::new(Controller::Cpu, "cpu.idle", idle));
    }
    if cpu.realtime_period_us != 0 {
        out.push(Write::new(Controller::Cpu, "cpu.rt_period_us", cpu.realtime_period_us));
    }
    if cpu.realtime_runtime_us != 0 {
        out.push(Write::new(Controller::Cpu, "cpu.rt_runtime_us", cpu.realtime_runtime_us));
    }
    Ok(())
}

fn cpu_v2(cpu: &CpuLimits, out: &mut Vec<Write>) {
    if let Some(idle) = cpu.idle {
        out.push(Write::new(Controller::Cpu, "cpu.idle", idle));
    }
    // An idle group has no weight of its own: writing one would be refused with EINVAL.
    if cpu.shares != 0 && cpu.idle != Some(1) {
        out.push(Write::new(Controller::Cpu, "cpu.weight", weight_of_shares(cpu.shares)));
    }
    if let Some(burst) = cpu.burst_us {
        out.push(Write::new(Controller::Cpu, "cpu.max.burst", burst));
    }
    if cpu.quota_us != 0 || cpu.period_us != 0 {
        let quota = if cpu.quota_us > 0 { cpu.quota_us.to_string() } else { "max".to_owned() };
        let period = if cpu.period_us == 0 { 100_000 } else { cpu.period_us };
        out.push(Write::new(Controller::Cpu, "cpu.max", format!("{quota} {period}")));
    }
}

fn cpuset(cpu: &CpuLimits, out: &mut Vec<Write>) {
    if let Some(cpus) = &cpu.cpus {
        out.push(Write::new(Controller::Cpuset, "cpuset.cpus", cpus));
    }
    if let Some(mems) = &cpu.mems {
        out.push(Write::new(Controller::Cpuset, "cpuset.mems", mems));
    }
}

/// The limit goes first; raising it above the old memory+swap fails with EINVAL and is tried again after that
/// was raised (see `apply`), so no order of old and new values needs to be known.
fn memory_v1(memory: &MemoryLimits, out: &mut Vec<Write>) {
    let mut push = |file, value: i64| out.push(Write::new(Controller::Memory, file, value));
    if memory.limit != 0 {
        push("memory.limit_in_bytes", memory.limit);
    }
    if memory.swap != 0 {
        push("memory.memsw.limit_in_bytes", memory.swap);
    } else if memory.limit == -1 {
        out.push(Write::new(Controller::Memory, "memory.memsw.limit_in_bytes", -1).optional_if(true));
    }
    if memory.reservation != 0 {
        out.push(Write::new(Controller::Memory, "memory.soft_limit_in_bytes", memory.reservation));
    }
    if memory.disable_oom_killer {
        out.push(Write::new(Controller::Memory, "memory.oom_control", 1));
    }
    if let Some(swappiness) = memory.swappiness {
        out.push(Write::new(Controller::Memory, "memory.swappiness", swappiness));
    }
}

/// Swap goes first: a smaller memory limit may then push pages out, but no further than allowed.
fn memory_v2(memory: &MemoryLimits, out: &mut Vec<Write>) -> Result<(), LimitError> {
    if let Some(swap) = swap_max(memory)? {
        // A kernel without swap accounting has no such file, and nothing to forbid.
        let optional = swap == -1 || swap == 0;
        out.push(Write::new(Controller::Memory, "memory.swap.max", max(swap)).optional_if(optional));
    }
    if memory.limit != 0 {
        out.push(Write::new(Controller::Memory, "memory.max", max(memory.limit)));
    }
    if memory.reservation != 0 {
        out.push(Write::new(Controller::Memory, "memory.low", max(memory.reservation)));
    }
    if let Some(group) = memory.oom_group {
        out.push(Write::new(Controller::Memory, "memory.oom.group", u8::from(group)));
    }
    Ok(())
}

/// 0 becomes 1, as in runc: systemd's `TasksMax` cannot say 0, and neither lets the container fork.
fn pids(limits: &Limits, out: &mut Vec<Write>) {
    if let Some(limit) = limits.pids {
        let value = if limit < 0 { "max".to_owned() } else { limit.max(1).to_string() };
        out.push(Write::new(Controller::Pids, "pids.max", value));
    }
}

fn io_v1(limits: &Limits, out: &mut Vec<Write>) {
    let io = &limits.io;
    if io.weight != 0 {
        out.push(Write::new(Controller::Io, "blkio.weight", io.weight).or_next());
        out.push(Write::new(Controller::Io, "blkio.bfq.weight", io.weight));
    }
    if io.leaf_weight != 0 {
        out.push(Write::new(Controller::Io, "blkio.leaf_weight", io.leaf_weight));
    }
    for device in &io.weights {
        let line = |weight| format!("{}:{} {weight}", device.major, device.minor);
        if device.weight != 0 {
            out.push(Write::new(Controller::Io, "blkio.weight_device", line(device.weight)).or_next());
            out.push(Write::new(Controller::Io, "blkio.bfq.weight_device", line(device.weight)));
        }
        if device.leaf_weight != 0 {
            out.push(Write::new(Controller::Io, "blkio.leaf_weight_device", line(device.leaf_weight)));
        }
    }
    for Throttle { major, minor, kind, rate } in &io.throttles {
        let file = match kind {
            ThrottleKind::ReadBps => "blkio.throttle.read_bps_device",
            ThrottleKind::WriteBps => "blkio.throttle.write_bps_device",
            ThrottleKind::ReadIops => "blkio.throttle.read_iops_device",
            ThrottleKind::WriteIops => "blkio.throttle.write_iops_device",
        };
        out.push(Write::new(Controller::Io, file, format!("{major}:{minor} {rate}")));
    }
}

fn io_v2(limits: &Limits, out: &mut Vec<Write>) {
    let io = &limits.io;
    if io.weight != 0 {
        out.push(Write::new(Controller::Io, "io.bfq.weight", io.weight).or_next());
        out.push(Write::new(Controller::Io, "io.weight", io_weight(io.weight)));
    }
    for device in io.weights.iter().filter(|device| device.weight != 0) {
        let line = |weight: u64| format!("{}:{} {weight}", device.major, device.minor);
        out.push(Write::new(Controller::Io, "io.bfq.weight", line(device.weight.into())).or_next());
        out.push(Write::new(Controller::Io, "io.weight", line(io_weight(device.weight))));
    }
    for Throttle { major, minor, kind, rate } in &io.throttles {
        let key = match kind {
            ThrottleKind::ReadBps => "rbps",
            ThrottleKind::WriteBps => "wbps",
            ThrottleKind::ReadIops => "riops",
            ThrottleKind::WriteIops => "wiops",
        };
        let rate = if *rate == 0 { "max".to_owned() } else { rate.to_string() };
        out.push(Write::new(Controller::Io, "io.max", format!("{major}:{minor} {key}={rate}")));
    }
}

/// kubelet sends 0 for every page size, also on hosts without the controller: no pages are to be had there anyway.
fn hugetlb(limits: &Limits, suffix: &str, out: &mut Vec<Write>) {
    for (size, bytes) in &limits.hugetlb {
        let file = format!("hugetlb.{size}.{suffix}");
        out.push(Write::new(Controller::Hugetlb, file, bytes).optional_if(*bytes == 0));
        let reserved = format!("hugetlb.{size}.rsvd.{suffix}");
        out.push(Write::new(Controller::Hugetlb, reserved, bytes).optional_if(true));
    }
}

fn rdma(limits: &Limits, out: &mut Vec<Write>) {
    for (device, handles, objects) in &limits.rdma {
        let mut line = device.clone();
        for (key, value) in [("hca_handle", handles), ("hca_object", objects)] {
            if let Some(value) = value {
                let _ = write!(line, " {key}={value}");
            }
        }
        out.push(Write::new(Controller::Rdma, "rdma.max", line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limits(json: Value) -> Limits {
        Limits::from_spec(&serde_json::from_value(json).unwrap()).unwrap()
    }

    fn lines(writes: Result<Vec<Write>, LimitError>) -> Vec<String> {
        writes.unwrap().iter().map(|write| format!("{} {}", write.file, write.value)).collect()
    }

    fn v1(json: Value) -> Vec<String> {
        lines(writes_v1(&limits(json)))
    }

    fn v2(json: Value) -> Vec<String> {
        lines(writes_v2(&limits(json)))
    }

    #[test]
    fn shares_meet_both_ends_and_the_default() {
        for (shares, weight) in
            [(0, 1), (2, 1), (3, 2), (102, 17), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        for (weight, expected) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(weight), expected);
        }
    }

    #[test]
    fn cpu() {
        let all = json!({"cpu": {"shares": 512, "quota": 50000, "period": 100_000, "burst": 1000, "idle": 0,
            "realtimePeriod": 1_000_000, "realtimeRuntime": 950_000, "cpus": "0-1", "mems": "0"}});
        assert_eq!(
            v1(all.clone()),
            [
                "cpu.shares 512",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_burst_us 1000",
                "cpu.cfs_quota_us 50000",
                "cpu.idle 0",
                "cpu.rt_period_us 1000000",
                "cpu.rt_runtime_us 950000",
                "cpuset.cpus 0-1",
                "cpuset.mems 0",
            ]
        );
        assert_eq!(
            v2(all),
            [
                "cpu.idle 0",
                "cpu.weight 59",
                "cpu.max.burst 1000",
                "cpu.max 50000 100000",
                "cpuset.cpus 0-1",
                "cpuset.mems 0"
            ]
        );
        assert_eq!(v2(json!({"cpu": {"quota": -1}})), ["cpu.max max 100000"]);
        assert_eq!(v2(json!({"cpu": {"period": 50000}})), ["cpu.max max 50000"]);
        assert_eq!(v2(json!({"cpu": {"idle": 1, "shares": 1024}})), ["cpu.idle 1"]);
        assert!(writes_v1(&limits(json!({"cpu": {"shares": 1}}))).is_err());
        assert!(writes_v1(&limits(json!({"cpu": {"shares": 300_000}}))).is_err());
    }

    #[test]
    fn memory_on_v1() {
        let cases = [
            (
                json!({"limit": 100, "swap": 200}),
                vec!["memory.limit_in_bytes 100", "memory.memsw.limit_in_bytes 200"],
            ),
            (json!({"limit": 100}), vec!["memory.limit_in_bytes 100"]),
            (json!({"limit": -1}), vec!["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1"]),
            (json!({"reservation": 50, "kernel": 7, "kernelTCP": 8}), vec!["memory.soft_limit_in_bytes 50"]),
            (
                json!({"swappiness": 0, "disableOOMKiller": true}),
                vec!["memory.oom_control 1", "memory.swappiness 0"],
            ),
        ];
        for (memory, expected) in cases {
            assert_eq!(v1(json!({ "memory": memory })), expected);
        }
    }

    #[test]
    fn memory_on_v2() {
        let cases = [
            (json!({"limit": 100, "swap": 300}), vec!["memory.swap.max 200", "memory.max 100"]),
            (json!({"limit": 100, "swap": 100}), vec!["memory.swap.max 0", "memory.max 100"]),
            (json!({"limit": 100, "swap": -1}), vec!["memory.swap.max max", "memory.max 100"]),
            (json!({"limit": 100}), vec!["memory.max 100"]),
            (json!({"limit": -1}), vec!["memory.swap.max max", "memory.max max"]),
            (json!({"limit": -1, "swap": 70}), vec!["memory.swap.max 70", "memory.max max"]),
            (json!({"reservation": 50}), vec!["memory.low 50"]),
            (json!({"swappiness": 10, "disableOOMKiller": true}), vec![]),
        ];
        for (memory, expected) in cases {
            assert_eq!(v2(json!({ "memory": memory })), expected);
        }
        let refused = |memory: Value| writes_v2(&limits(json!({ "memory": memory }))).unwrap_err();
        assert_eq!(refused(json!({"swap": 100})), LimitError::SwapWithoutMemory);
        assert_eq!(refused(json!({"limit": 100, "swap": 99})), LimitError::SwapBelowMemory);
        let mut group = Limits::default();
        group.memory.oom_group = Some(true);
        assert_eq!(lines(writes_v2(&group)), ["memory.oom.group 1"]);
        assert!(lines(writes_v1(&group)).is_empty());
    }

    #[test]
    fn pids_and_their_edges() {
        for (limit, expected) in [(-1, "max"), (0, "1"), (1, "1"), (2048, "2048")] {
            let pids = json!({"pids": {"limit": limit}});
            assert_eq!(v1(pids.clone()), [format!("pids.max {expected}")]);
            assert_eq!(v2(pids), [format!("pids.max {expected}")]);
        }
    }

    #[test]
    fn block_io() {
        let io = json!({"blockIO": {"weight": 500, "leafWeight": 300,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 600}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}});
        assert_eq!(
            v1(io.clone()),
            [
                "blkio.weight 500",
                "blkio.bfq.weight 500",
                "blkio.leaf_weight 300",
                "blkio.weight_device 8:0 600",
                "blkio.bfq.weight_device 8:0 600",
                "blkio.throttle.read_bps_device 8:0 1024",
                "blkio.throttle.write_iops_device 8:0 0",
            ]
        );
        assert_eq!(
            v2(io),
            [
                "io.bfq.weight 500",
                "io.weight 4950",
                "io.bfq.weight 8:0 600",
                "io.weight 8:0 5960",
                "io.max 8:0 rbps=1024",
                "io.max 8:0 wiops=max",
            ]
        );
    }

    #[test]
    fn the_rest() {
        let rest = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
            "network": {"classID": 1_048_577, "priorities": [{"name": "eth0", "priority": 5}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 rbps=2"}});
        assert_eq!(
            v1(rest.clone()),
            [
                "hugetlb.2MB.limit_in_bytes 4194304",
                "hugetlb.2MB.rsvd.limit_in_bytes 4194304",
                "net_cls.classid 1048577",
                "net_prio.ifpriomap eth0 5",
                "rdma.max mlx5_1 hca_handle=3",
            ]
        );
        assert_eq!(
            v2(rest),
            [
                "hugetlb.2MB.max 4194304",
                "hugetlb.2MB.rsvd.max 4194304",
                "rdma.max mlx5_1 hca_handle=3",
                "io.max 8:0 rbps=1",
                "io.max 8:16 rbps=2",
                "memory.high 1000",
            ]
        );
    }

    #[test]
    fn a_huge_page_limit_of_zero_needs_no_controller() {
        let zero = limits(json!({"hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}));
        assert!(writes_v1(&zero).unwrap().iter().all(|write| write.optional));
        let some = limits(json!({"hugepageLimits": [{"pageSize": "1GB", "limit": 1}]}));
        assert!(!writes_v2(&some).unwrap()[0].optional);
    }
}
