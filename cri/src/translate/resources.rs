//! Limits: the numbers of `LinuxContainerResources`, checked, and as the runtime-spec has them.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use super::inputs::{CgroupVersion, HostFacts};
use crate::check;
use crate::error::Error;
use crate::v1;

/// The kernel's bounds of a CFS period, in microseconds.
const PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// The kernel's CFS period where none is given, in microseconds.
const PERIOD_DEFAULT_US: u64 = 100_000;
/// The kernel's smallest CFS quota, in microseconds.
const QUOTA_MIN_US: i64 = 1_000;
/// Largest quota, in microseconds per period: far more CPUs than exist, and within what the kernel multiplies.
const QUOTA_MAX_US: i64 = 1 << 44;
/// The kernel's bounds of cpu.shares.
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// The smallest memory limit that is not zero pages, in bytes.
const MEMORY_MIN_BYTES: i64 = 4096;
/// The kernel's bounds of `oom_score_adj`.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// Limits that passed every check that needs no knowledge of the host. None: not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds per period; -1: no limit.
    pub cpu_quota: Option<i64>,
    /// Weight on the v1 scale.
    pub cpu_shares: Option<u64>,
    /// CPUs, as a list.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as a list.
    pub cpuset_mems: Option<String>,
    /// Bytes; -1: no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; -1: no limit.
    pub memory_swap_limit: Option<i64>,
    /// Given by every kubelet, so 0 is a value.
    pub oom_score_adj: i32,
    /// Bytes by page size such as `2MB`.
    pub hugepage_limits: BTreeMap<String, i64>,
    /// cgroup v2 files by name.
    pub unified: BTreeMap<String, String>,
    /// The path of the message these came in, for later errors.
    field: String,
}

impl Resources {
    /// Parses a `LinuxContainerResources` found at `field`.
    pub fn parse(field: &str, raw: v1::LinuxContainerResources) -> Result<Self, Error> {
        let at = |name: &str| format!("{field}.{name}");
        let resources = Self {
            cpu_period: given(raw.cpu_period, |n| in_range(&at("cpu_period"), n, &PERIOD_US))?
                .map(i64::unsigned_abs),
            cpu_quota: given(raw.cpu_quota, |n| {
                limit(&at("cpu_quota"), n, QUOTA_MIN_US..=QUOTA_MAX_US, "microseconds")
            })?,
            cpu_shares: given(raw.cpu_shares, |n| in_range(&at("cpu_shares"), n, &SHARES))?
                .map(i64::unsigned_abs),
            cpuset_cpus: cpus(&at("cpuset_cpus"), &raw.cpuset_cpus)?,
            cpuset_mems: cpus(&at("cpuset_mems"), &raw.cpuset_mems)?,
            memory_limit: given(raw.memory_limit_in_bytes, |n| {
                limit(&at("memory_limit_in_bytes"), n, MEMORY_MIN_BYTES..=i64::MAX, "bytes")
            })?,
            memory_swap_limit: given(raw.memory_swap_limit_in_bytes, |n| {
                limit(&at("memory_swap_limit_in_bytes"), n, MEMORY_MIN_BYTES..=i64::MAX, "bytes")
            })?,
            oom_score_adj: i32::try_from(in_range(&at("oom_score_adj"), raw.oom_score_adj, &OOM_SCORE_ADJ)?)
                .unwrap_or_default(),
            hugepage_limits: hugepages(&at("hugepage_limits"), raw.hugepage_limits)?,
            unified: unified(&at("unified"), raw.unified)?,
            field: field.to_owned(),
        };
        if let (Some(memory), Some(both)) = (resources.memory_limit, resources.memory_swap_limit)
            && both != -1
            && (memory == -1 || both < memory)
        {
            let reason = format!("{both} is less than the memory limit {memory}: it counts memory and swap");
            return Err(Error::invalid(at("memory_swap_limit_in_bytes"), reason));
        }
        Ok(resources)
    }

    /// The limits as the runtime-spec has them, for this host; what was not given is left out, so the same value
    /// serves to create a container and to update one.
    pub fn to_oci(&self, host: &HostFacts) -> Result<LinuxResources, Error> {
        if let (None, Some(both), true) = (self.memory_limit, self.memory_swap_limit, host.swap_accounting)
            && both != -1
        {
            let reason = "counts memory and swap, and so needs a memory limit beside it";
            return Err(Error::invalid(format!("{}.memory_swap_limit_in_bytes", self.field), reason));
        }
        let mut resources = LinuxResources::default();
        resources.set_devices(None).set_cpu(self.cpu()).set_memory(self.memory(host));
        let huge = self.hugepages(host)?;
        resources.set_hugepage_limits((!huge.is_empty()).then_some(huge));
        if !self.unified.is_empty() {
            if host.cgroup == CgroupVersion::V1 {
                let reason = "names cgroup v2 files, but this node runs cgroup v1";
                return Err(Error::invalid(format!("{}.unified", self.field), reason));
            }
            resources.set_unified(Some(self.unified.clone().into_iter().collect()));
        }
        Ok(resources)
    }

    /// What a pod's own cgroup is limited to: its containers' sum and the overhead on top. What the sum does not limit stays
    /// unlimited, whatever the overhead.
    #[must_use]
    pub fn plus(&self, overhead: &Self) -> Self {
        let period = self.cpu_period.unwrap_or(PERIOD_DEFAULT_US);
        // The overhead's share of a CPU, in the sum's periods.
        let quota = |quota: i64| match overhead.cpu_quota {
            Some(more) if quota != -1 && more != -1 => {
                let own = i128::from(overhead.cpu_period.unwrap_or(PERIOD_DEFAULT_US).max(1));
                let more = i128::from(more) * i128::from(period) / own;
                quota.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(QUOTA_MAX_US)
            }
            _ => quota,
        };
        let bytes = |own: Option<i64>, more: Option<i64>| match (own, more) {
            (Some(own), Some(more)) if own != -1 && more != -1 => Some(own.saturating_add(more)),
            (own, _) => own,
        };
        Self {
            cpu_quota: self.cpu_quota.map(quota),
            cpu_shares: self
                .cpu_shares
                .map(|shares| (shares + overhead.cpu_shares.unwrap_or(0)).min(SHARES.end().unsigned_abs())),
            memory_limit: bytes(self.memory_limit, overhead.memory_limit),
            memory_swap_limit: bytes(
                self.memory_swap_limit,
                overhead.memory_swap_limit.or(overhead.memory_limit),
            ),
            ..self.clone()
        }
    }

    /// CPU time and placement.
    fn cpu(&self) -> Option<LinuxCpu> {
        let mut cpu = LinuxCpu::default();
        let empty = cpu.clone();
        cpu.set_period(self.cpu_period)
            .set_quota(self.cpu_quota)
            .set_shares(self.cpu_shares)
            .set_cpus(self.cpuset_cpus.clone())
            .set_mems(self.cpuset_mems.clone());
        (cpu != empty).then_some(cpu)
    }

    /// Memory. A container with a limit and no word on swap gets none, as with containerd.
    fn memory(&self, host: &HostFacts) -> Option<LinuxMemory> {
        let mut memory = LinuxMemory::default();
        let empty = memory;
        let swap = self.memory_swap_limit.or(self.memory_limit).filter(|_| host.swap_accounting);
        memory.set_limit(self.memory_limit).set_swap(swap);
        (memory != empty).then_some(memory)
    }

    /// Limits of sizes that the host has. kubelet sends 0 for sizes it knows of: that asks for nothing.
    fn hugepages(&self, host: &HostFacts) -> Result<Vec<LinuxHugepageLimit>, Error> {
        let mut limits = Vec::new();
        for (size, limit) in &self.hugepage_limits {
            if host.hugepage_sizes.contains(size) {
                let mut entry = LinuxHugepageLimit::default();
                entry.set_page_size(size.clone()).set_limit(*limit);
                limits.push(entry);
            } else if *limit != 0 {
                let reason = format!("this node has no hugetlb cgroup for pages of {size}");
                return Err(Error::invalid(format!("{}.hugepage_limits", self.field), reason));
            }
        }
        Ok(limits)
    }
}

/// `pids.max` of the node's configuration.
pub(super) fn pids(limit: Option<u64>) -> Option<LinuxPids> {
    let limit = limit.and_then(|limit| i64::try_from(limit).ok())?;
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    Some(pids)
}

/// Zero means not given.
fn given(raw: i64, check: impl Fn(i64) -> Result<i64, Error>) -> Result<Option<i64>, Error> {
    if raw == 0 { Ok(None) } else { check(raw).map(Some) }
}

/// A number within the kernel's bounds.
fn in_range(field: &str, n: i64, range: &std::ops::RangeInclusive<i64>) -> Result<i64, Error> {
    check::within(field, n, *range.start(), *range.end())
}

/// A limit, or -1 for none.
fn limit(field: &str, n: i64, range: std::ops::RangeInclusive<i64>, unit: &str) -> Result<i64, Error> {
    if n == -1 || range.contains(&n) {
        return Ok(n);
    }
    let low = range.start();
    Err(Error::invalid(field, format!("{n} is no limit: at least {low} {unit}, or -1 for none")))
}

/// A cpuset list; empty means not given.
fn cpus(field: &str, raw: &str) -> Result<Option<String>, Error> {
    if raw.is_empty() { Ok(None) } else { check::cpu_list(field, raw).map(Some) }
}

/// Limits by page size, each size once.
fn hugepages(field: &str, raw: Vec<v1::HugepageLimit>) -> Result<BTreeMap<String, i64>, Error> {
    let mut limits = BTreeMap::new();
    for (i, entry) in check::list(field, raw)?.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| entry.page_size.strip_suffix(unit));
        let legal = |digits: &str| {
            (1..=4).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit())
                && !digits.starts_with('0')
        };
        if !digits.is_some_and(legal) {
            let reason = format!("{} is not a page size such as 2MB", check::shown(&entry.page_size));
            return Err(Error::invalid(format!("{field}.page_size"), reason));
        }
        let limit = i64::try_from(entry.limit).map_err(|_| {
            Error::invalid(format!("{field}.limit"), format!("{} bytes are too many", entry.limit))
        })?;
        if limits.insert(entry.page_size, limit).is_some() {
            return Err(Error::invalid(format!("{field}.page_size"), "is given twice"));
        }
    }
    Ok(limits)
}

/// Names of cgroup v2 interface files of a controller, and one line or several for each.
fn unified(field: &str, raw: HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    for (name, value) in &raw {
        let field = format!("{field}[{}]", check::shown(name));
        let legal = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if name.len() > check::COMPONENT_BYTES || !name.contains('.') || !name.split('.').all(legal) {
            return Err(Error::invalid(field, "is not the name of a cgroup file such as memory.high"));
        }
        // cgroup.procs, cgroup.kill and their like are not limits: they move, stop and end processes.
        if name.starts_with("cgroup.") {
            return Err(Error::invalid(field, "belongs to the runtime"));
        }
        if value.contains('\0') || value.len() > check::PATH_BYTES {
            return Err(Error::invalid(field, "is too long or contains a NUL character"));
        }
    }
    Ok(raw.into_iter().collect())
}
