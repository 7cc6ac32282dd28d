//! `linux.resources` of the runtime spec, checked once. Pure.
//!
//! [`Limits`] keeps the spec's meaning, not a version's files: [`writes_v1`](super::writes_v1) and
//! [`writes_v2`](super::writes_v2) turn it into what is written where. A field that is absent (or 0 where
//! runc takes 0 for absent) is not written at all, so an update changes only what it names.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice,
};
use thiserror::Error;

use super::devices::Rule;

/// A `linux.resources` field that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LimitError {
    /// A value outside of what the field can hold; the sentence says which values it can.
    #[error("linux.resources.{field}: {value}: {expected}")]
    Range {
        /// The field below `linux.resources`.
        field: &'static str,
        /// The value as given.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A string that would be more than one value when written to a cgroup file.
    #[error("linux.resources.{field}: {value:?} contains a character that is not allowed there")]
    Text {
        /// The field below `linux.resources`.
        field: &'static str,
        /// The value as given.
        value: String,
    },
    /// A device rule without any of r, w and m.
    #[error("device access at {0} field cannot be empty")]
    DeviceAccess(usize),
    /// A device rule of a type that the device controller does not know.
    #[error("linux.resources.devices[{0}]: invalid cgroup device type {1:?}")]
    DeviceType(usize, String),
    /// A rule that takes away a part of what an earlier one gave, which cgroup v1 cannot express.
    #[error(
        "device rule {0:?} takes away a part of what an earlier rule allows; cgroup v1 cannot express that"
    )]
    DeviceHole(String),
    /// v2 needs the memory limit to tell how much of memory+swap is swap.
    #[error("unable to set swap limit without memory limit")]
    SwapWithoutMemory,
    /// The sum of both is smaller than one of them.
    #[error("memory+swap limit should be >= memory limit")]
    SwapBelowMemory,
    /// `unified` on a host whose controllers are v1.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
}

/// The checked limits of one container. `Default` limits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time and placement.
    pub cpu: CpuLimits,
    /// Memory and swap.
    pub memory: MemoryLimits,
    /// Most tasks at once; -1 for no limit. None: unchanged.
    pub pids: Option<i64>,
    /// Block I/O.
    pub io: IoLimits,
    /// `(page size such as 2MB, bytes)`.
    pub hugetlb: Vec<(String, u64)>,
    /// v1 `net_cls.classid`.
    pub net_class: Option<u32>,
    /// v1 `net_prio.ifpriomap`: `(interface, priority)`.
    pub net_priorities: Vec<(String, u32)>,
    /// `(device, most handles, most objects)`.
    pub rdma: Vec<(String, Option<u32>, Option<u32>)>,
    /// v2 files written as given, in the order of their names.
    pub unified: Vec<(String, String)>,
    /// Device rules in the spec's order. None: the spec has none (an update leaves devices alone).
    pub devices: Option<Vec<Rule>>,
}

/// CPU limits; 0 and None mean unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuLimits {
    /// Relative share, 2 to 262144.
    pub shares: u64,
    /// Microseconds of CPU time per period; -1 for no limit.
    pub quota_us: i64,
    /// Length of a period in microseconds.
    pub period_us: u64,
    /// Microseconds that may be saved up and used beyond the quota.
    pub burst_us: Option<u64>,
    /// 1 makes the whole group `SCHED_IDLE`.
    pub idle: Option<i64>,
    /// v1: microseconds of real-time per period.
    pub realtime_runtime_us: i64,
    /// v1: length of the real-time period in microseconds.
    pub realtime_period_us: u64,
    /// List of CPUs, such as `0-2,7`.
    pub cpus: Option<String>,
    /// List of memory nodes.
    pub mems: Option<String>,
}

/// Memory limits in bytes; 0 means unchanged, -1 no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Most memory.
    pub limit: i64,
    /// What reclaim leaves alone when it can.
    pub reservation: i64,
    /// Most memory and swap together (v1's meaning, which the spec keeps).
    pub swap: i64,
    /// v1: 0 to 100.
    pub swappiness: Option<u64>,
    /// v1: tasks that run out of memory wait instead of being killed.
    pub disable_oom_killer: bool,
    /// Refuse a limit that is below what is in use, instead of killing.
    pub check_before_update: bool,
    /// v2: an out-of-memory kill takes the whole cgroup. Not in the spec; the CRI side asks for it.
    pub oom_group: Option<bool>,
}

/// Block I/O limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoLimits {
    /// 10 to 1000; 0 for unchanged.
    pub weight: u16,
    /// v1, 10 to 1000; 0 for unchanged.
    pub leaf_weight: u16,
    /// Per device.
    pub weights: Vec<DeviceWeight>,
    /// Per device and direction.
    pub throttles: Vec<Throttle>,
}

/// A weight for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceWeight {
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// 10 to 1000; 0 for unchanged.
    pub weight: u16,
    /// v1, 10 to 1000; 0 for unchanged.
    pub leaf_weight: u16,
}

/// What a [`Throttle`] bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleKind {
    /// Bytes read per second.
    ReadBps,
    /// Bytes written per second.
    WriteBps,
    /// Reads per second.
    ReadIops,
    /// Writes per second.
    WriteIops,
}

/// One bound on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Device number.
    pub major: i64,
    /// Device number.
    pub minor: i64,
    /// What is bounded.
    pub kind: ThrottleKind,
    /// Per second; 0 removes the bound.
    pub rate: u64,
}

impl Limits {
    /// Checks what the spec asks for.
    pub fn from_spec(resources: &LinuxResources) -> Result<Self, LimitError> {
        let mut limits = Self::default();
        if let Some(cpu) = resources.cpu() {
            limits.cpu = cpu_limits(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            limits.memory = memory_limits(memory)?;
        }
        limits.pids = resources.pids().map(|pids| pids.limit());
        if let Some(io) = resources.block_io() {
            limits.io = io_limits(io)?;
        }
        for page in resources.hugepage_limits().iter().flatten() {
            let size = page.page_size();
            if !is_page_size(size) {
                return Err(text("hugepageLimits.pageSize", size));
            }
            let bytes = u64::try_from(page.limit())
                .map_err(|_| range("hugepageLimits.limit", page.limit(), "must not be negative"))?;
            limits.hugetlb.push((size.clone(), bytes));
        }
        if let Some(network) = resources.network() {
            limits.net_class = network.class_id();
            for priority in network.priorities().iter().flatten() {
                let name = word("network.priorities.name", priority.name())?;
                limits.net_priorities.push((name, priority.priority()));
            }
        }
        for (device, rdma) in resources.rdma().iter().flatten() {
            limits.rdma.push((word("rdma", device)?, rdma.hca_handles(), rdma.hca_objects()));
        }
        limits.rdma.sort();
        for (file, value) in resources.unified().iter().flatten() {
            if file.is_empty() || file.contains('/') || file.chars().any(char::is_control) || file == ".." {
                return Err(text("unified", file));
            }
            limits.unified.push((file.clone(), value.clone()));
        }
        limits.unified.sort();
        if let Some(rules) = resources.devices() {
            limits.devices = Some(Rule::list(rules)?);
        }
        Ok(limits)
    }
}

fn cpu_limits(cpu: &LinuxCpu) -> Result<CpuLimits, LimitError> {
    if let Some(quota) = cpu.quota().filter(|quota| *quota < -1) {
        return Err(range("cpu.quota", quota, "must be -1 or more"));
    }
    Ok(CpuLimits {
        shares: cpu.shares().unwrap_or(0),
        quota_us: cpu.quota().unwrap_or(0),
        period_us: cpu.period().unwrap_or(0),
        burst_us: cpu.burst(),
        idle: cpu.idle(),
        realtime_runtime_us: cpu.realtime_runtime().unwrap_or(0),
        realtime_period_us: cpu.realtime_period().unwrap_or(0),
        cpus: list("cpu.cpus", cpu.cpus().as_deref())?,
        mems: list("cpu.mems", cpu.mems().as_deref())?,
    })
}

fn memory_limits(memory: &LinuxMemory) -> Result<MemoryLimits, LimitError> {
    let bytes = |field: &'static str, value: Option<i64>| match value {
        Some(value) if value < -1 => Err(range(field, value, "must be -1 or more")),
        value => Ok(value.unwrap_or(0)),
    };
    // 200 is v2's bound for reclaim requests, but the spec's field is v1's, whose bound is 100.
    let swappiness = memory.swappiness().filter(|value| *value != u64::MAX);
    if let Some(value) = swappiness.filter(|value| *value > 100) {
        return Err(range("memory.swappiness", value, "valid range is 0-100"));
    }
    Ok(MemoryLimits {
        limit: bytes("memory.limit", memory.limit())?,
        reservation: bytes("memory.reservation", memory.reservation())?,
        swap: bytes("memory.swap", memory.swap())?,
        swappiness,
        disable_oom_killer: memory.disable_oom_killer().unwrap_or(false),
        check_before_update: memory.check_before_update().unwrap_or(false),
        oom_group: None,
    })
}

fn io_limits(io: &LinuxBlockIo) -> Result<IoLimits, LimitError> {
    let weights = io
        .weight_device()
        .iter()
        .flatten()
        .map(|device: &LinuxWeightDevice| DeviceWeight {
            major: device.major(),
            minor: device.minor(),
            weight: device.weight().unwrap_or(0),
            leaf_weight: device.leaf_weight().unwrap_or(0),
        })
        .collect();
    let mut throttles = Vec::new();
    let mut add = |kind: ThrottleKind, devices: &Option<Vec<LinuxThrottleDevice>>| {
        throttles.extend(devices.iter().flatten().map(|device| Throttle {
            major: device.major(),
            minor: device.minor(),
            kind,
            rate: device.rate(),
        }));
    };
    add(ThrottleKind::ReadBps, io.throttle_read_bps_device());
    add(ThrottleKind::WriteBps, io.throttle_write_bps_device());
    add(ThrottleKind::ReadIops, io.throttle_read_iops_device());
    add(ThrottleKind::WriteIops, io.throttle_write_iops_device());
    for weight in [io.weight(), io.leaf_weight()].into_iter().flatten() {
        if weight != 0 && !(10..=1000).contains(&weight) {
            return Err(range("blockIO.weight", weight, "valid range is 10-1000"));
        }
    }
    Ok(IoLimits {
        weight: io.weight().unwrap_or(0),
        leaf_weight: io.leaf_weight().unwrap_or(0),
        weights,
        throttles,
    })
}

/// A cpuset list; empty means absent.
fn list(field: &'static str, value: Option<&str>) -> Result<Option<String>, LimitError> {
    match value.map(str::trim) {
        None | Some("") => Ok(None),
        Some(value) if value.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(value.to_owned())),
        Some(value) => Err(text(field, value)),
    }
}

/// A name that is written beside others on one line.
fn word(field: &'static str, value: &str) -> Result<String, LimitError> {
    if value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(text(field, value));
    }
    Ok(value.to_owned())
}

/// `2MB`, `1GB`, `64KB`, as the hugetlb controller's files are named.
fn is_page_size(size: &str) -> bool {
    let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &size[digits.len()..];
    !digits.is_empty()
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(unit, "KB" | "MB" | "GB")
}

fn range(field: &'static str, value: impl Into<i128>, expected: &'static str) -> LimitError {
    LimitError::Range { field, value: value.into().to_string(), expected }
}

fn text(field: &'static str, value: &str) -> LimitError {
    LimitError::Text { field, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<Limits, LimitError> {
        Limits::from_spec(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn absent_means_unchanged() {
        assert_eq!(parse(serde_json::json!({})), Ok(Limits::default()));
        assert_eq!(parse(serde_json::json!({"cpu": {"cpus": ""}, "memory": {}})), Ok(Limits::default()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_field() {
        let refused = |json| parse(json).unwrap_err().to_string();
        assert_eq!(
            refused(serde_json::json!({"memory": {"limit": -2}})),
            "linux.resources.memory.limit: -2: must be -1 or more"
        );
        assert!(refused(serde_json::json!({"memory": {"swappiness": 101}})).contains("0-100"));
        assert!(refused(serde_json::json!({"cpu": {"cpus": "0\n1"}})).contains("cpu.cpus"));
        assert!(refused(serde_json::json!({"blockIO": {"weight": 5}})).contains("10-1000"));
        assert!(refused(serde_json::json!({"unified": {"../x": "1"}})).contains("unified"));
        for size in ["2mb", "MB", "2M", "02MB", "2MB/", "../2MB"] {
            let json = serde_json::json!({"hugepageLimits": [{"pageSize": size, "limit": 0}]});
            assert!(refused(json).contains("pageSize"), "{size}");
        }
        let json = serde_json::json!({"devices": [{"allow": true, "access": ""}]});
        assert_eq!(refused(json), "device access at 0 field cannot be empty");
    }

    #[test]
    fn a_swappiness_of_minus_one_is_absent() {
        let limits = parse(serde_json::json!({"memory": {"swappiness": u64::MAX}})).unwrap();
        assert_eq!(limits.memory.swappiness, None);
    }
}
