//! What a cgroup used: read from few files, under one shape for both versions.

use rustix::io::Errno;

use crate::Failure;

use super::files::{Dir, keyed};
use super::{Cgroup, Controller};

/// A cgroup's usage at one moment. What the host cannot tell is 0, None or empty, as its field says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory and swap.
    pub memory: MemoryStats,
    /// Tasks. Not in [`Cgroup::stats_brief`].
    pub pids: PidsStats,
    /// Block I/O per device and operation. Not in [`Cgroup::stats_brief`].
    pub io: Vec<IoEntry>,
    /// Stall of tasks for I/O. None: the kernel has no PSI. Not in [`Cgroup::stats_brief`].
    pub io_pressure: Option<Pressure>,
    /// Per huge page size; empty without the controller. Not in [`Cgroup::stats_brief`].
    pub hugetlb: Vec<HugetlbStats>,
}

/// CPU time in nanoseconds, cumulative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All of it.
    pub usage_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Quota periods that passed.
    pub periods: u64,
    /// Those in which it was throttled.
    pub throttled_periods: u64,
    /// For how long in all.
    pub throttled_ns: u64,
    /// v1 only: per CPU. Not in [`Cgroup::stats_brief`].
    pub per_cpu_ns: Vec<u64>,
    /// Stall of tasks for CPU. None: the kernel has no PSI. Not in [`Cgroup::stats_brief`].
    pub pressure: Option<Pressure>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// What cannot easily be taken back: usage less inactive page cache, as kubelet and cAdvisor compute it.
    pub working_set: u64,
    /// The limit. None: unlimited.
    pub limit: Option<u64>,
    /// Limit less working set. None: unlimited.
    pub available: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Page faults, cumulative.
    pub page_faults: u64,
    /// Page faults that had to read, cumulative.
    pub major_page_faults: u64,
    /// Swap in use.
    pub swap: u64,
    /// Most swap (v2), or most memory and swap together less the memory limit (v1). None: unlimited, or not accounted.
    pub swap_limit: Option<u64>,
    /// Most usage ever; None where the kernel does not keep it. Not in [`Cgroup::stats_brief`].
    pub peak: Option<u64>,
    /// How often the limit was met. Not in [`Cgroup::stats_brief`].
    pub limit_hits: u64,
    /// `memory.stat`, line by line, under the version's own names. Not in [`Cgroup::stats_brief`].
    pub raw: Vec<(String, u64)>,
    /// Stall of tasks for memory. None: the kernel has no PSI. Not in [`Cgroup::stats_brief`].
    pub pressure: Option<Pressure>,
}

/// Tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// At most. None: unlimited.
    pub limit: Option<u64>,
}

/// What an [`IoEntry`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoOperation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards.
    Discard,
    /// v1 only: synchronous ones of any kind.
    Sync,
    /// v1 only: asynchronous ones of any kind.
    Async,
    /// v1 only: all.
    Total,
}

/// Block I/O of one kind on one device, cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoEntry {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// Which operations.
    pub operation: IoOperation,
    /// Bytes moved.
    pub bytes: u64,
    /// Operations done.
    pub operations: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// Page size as in the file names, such as `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// Most ever in use; v1 only, else 0.
    pub peak: u64,
    /// How often the limit was met.
    pub limit_hits: u64,
}

/// Pressure stall information (accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task stalled.
    pub some: PressureLine,
    /// Every task stalled.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PressureLine {
    /// Share of the last 10 s, in hundredths of a percent.
    pub avg10_centi: u32,
    /// Share of the last 60 s, in hundredths of a percent.
    pub avg60_centi: u32,
    /// Share of the last 300 s, in hundredths of a percent.
    pub avg300_centi: u32,
    /// Microseconds in all.
    pub total_us: u64,
}

impl Cgroup {
    /// Everything. A cgroup that is gone fails with ENODEV or ENOENT.
    pub fn stats(&self) -> Result<Stats, Failure> {
        let mut stats = self.stats_brief()?;
        if let Some(dir) = self.of_v1(Controller::Cpuacct) {
            let text = dir.read("cpuacct.usage_percpu").unwrap_or_default();
            stats.cpu.per_cpu_ns = text.split_whitespace().filter_map(|ns| ns.parse().ok()).collect();
        }
        self.memory_more(&mut stats.memory);
        if let Some(dir) = self.of(Controller::Pids) {
            stats.pids.current = dir.number("pids.current").unwrap_or(0);
            stats.pids.limit = dir.number("pids.max");
        }
        stats.io = self.io();
        if let Some(dir) = &self.v2 {
            stats.cpu.pressure = pressure(dir, "cpu.pressure");
            stats.memory.pressure = pressure(dir, "memory.pressure");
            stats.io_pressure = pressure(dir, "io.pressure");
        }
        stats.hugetlb = self.hugetlb();
        Ok(stats)
    }

    /// CPU and memory only: what kubelet asks for every ten seconds, for every container, in five reads.
    pub fn stats_brief(&self) -> Result<Stats, Failure> {
        Ok(Stats { cpu: self.cpu()?, memory: self.memory()?, ..Stats::default() })
    }

    fn cpu(&self) -> Result<CpuStats, Failure> {
        let mut cpu = CpuStats::default();
        if let Some(dir) = &self.v2 {
            // Accounted by the core, so it is there without the cpu controller, on a hybrid host too.
            let text = dir.text("cpu.stat")?;
            cpu.add_v2(&text);
        } else if let Some(dir) = self.of_v1(Controller::Cpuacct) {
            cpu.usage_ns = number(dir, "cpuacct.usage")?;
            cpu.user_ns = dir.number("cpuacct.usage_user").unwrap_or(0);
            cpu.system_ns = dir.number("cpuacct.usage_sys").unwrap_or(0);
        }
        if let Some(dir) = self.of_v1(Controller::Cpu) {
            let text = dir.text("cpu.stat")?;
            cpu.periods = keyed(&text, "nr_periods").unwrap_or(0);
            cpu.throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
            cpu.throttled_ns = keyed(&text, "throttled_time").unwrap_or(0);
        }
        Ok(cpu)
    }

    fn memory(&self) -> Result<MemoryStats, Failure> {
        if let Some(dir) = self.of_v1(Controller::Memory) {
            let usage = number(dir, "memory.usage_in_bytes")?;
            let limit = dir.number("memory.limit_in_bytes").filter(|limit| *limit < UNLIMITED_V1);
            return Ok(memory_v1(&dir.text("memory.stat")?, usage, limit));
        }
        match self.v2.as_ref().filter(|dir| dir.has(Controller::Memory)) {
            // Beside v1 it may not be enabled for this cgroup.
            Some(dir) if self.is_v1() && dir.number("memory.current").is_none() => Ok(MemoryStats::default()),
            Some(dir) => {
                let usage = number(dir, "memory.current")?;
                let mut memory = memory_v2(&dir.text("memory.stat")?, usage, dir.number("memory.max"));
                memory.swap = dir.number("memory.swap.current").unwrap_or(0);
                memory.swap_limit = dir.number("memory.swap.max");
                Ok(memory)
            }
            None => Ok(MemoryStats::default()),
        }
    }

    fn memory_more(&self, memory: &mut MemoryStats) {
        let Some(dir) = self.of(Controller::Memory) else { return };
        let text = dir.read("memory.stat").unwrap_or_default();
        memory.raw = text
            .lines()
            .filter_map(|line| {
                let (key, value) = line.split_once(' ')?;
                Some((key.to_owned(), value.parse().ok()?))
            })
            .collect();
        if dir.label.is_empty() {
            memory.peak = dir.number("memory.peak");
            let events = dir.read("memory.events").unwrap_or_default();
            memory.limit_hits = keyed(&events, "max").unwrap_or(0);
        } else {
            memory.peak = dir.number("memory.max_usage_in_bytes");
            memory.limit_hits = dir.number("memory.failcnt").unwrap_or(0);
            let both = dir.number("memory.memsw.limit_in_bytes").filter(|limit| *limit < UNLIMITED_V1);
            memory.swap_limit = both.map(|both| both.saturating_sub(memory.limit.unwrap_or(0)));
        }
    }

    fn io(&self) -> Vec<IoEntry> {
        if let Some(dir) = self.of_v1(Controller::Io) {
            // bfq counts only what it schedules; the throttling layer sees everything.
            let read = |file| dir.read(file).unwrap_or_default();
            return io_v1(
                &read("blkio.throttle.io_service_bytes_recursive"),
                &read("blkio.throttle.io_serviced_recursive"),
            );
        }
        let text = self.v2.as_ref().and_then(|dir| dir.read("io.stat").ok());
        text.map(|text| io_v2(&text)).unwrap_or_default()
    }

    fn hugetlb(&self) -> Vec<HugetlbStats> {
        let Some(dir) = self.of(Controller::Hugetlb) else { return Vec::new() };
        let v2 = dir.label.is_empty();
        let size = |size: String| {
            let value = |suffix: &str| dir.number(&format!("hugetlb.{size}.{suffix}"));
            let usage = value(if v2 { "current" } else { "usage_in_bytes" })?;
            let limit_hits = if v2 {
                let events = dir.read(&format!("hugetlb.{size}.events")).unwrap_or_default();
                keyed(&events, "max")
            } else {
                value("failcnt")
            };
            let peak = if v2 { None } else { value("max_usage_in_bytes") };
            let (peak, limit_hits) = (peak.unwrap_or(0), limit_hits.unwrap_or(0));
            Some(HugetlbStats { size, usage, peak, limit_hits })
        };
        page_sizes().into_iter().filter_map(size).collect()
    }
}

/// v1 writes "no limit" as the largest multiple of a page that fits an i64.
const UNLIMITED_V1: u64 = 0x7fff_ffff_fff0_0000;

impl CpuStats {
    fn add_v2(&mut self, text: &str) {
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            let value: u64 = value.parse().unwrap_or(0);
            match key {
                "usage_usec" => self.usage_ns = value * 1000,
                "user_usec" => self.user_ns = value * 1000,
                "system_usec" => self.system_ns = value * 1000,
                "nr_periods" => self.periods = value,
                "nr_throttled" => self.throttled_periods = value,
                "throttled_usec" => self.throttled_ns = value * 1000,
                _ => {}
            }
        }
    }
}

fn memory_v1(text: &str, usage: u64, limit: Option<u64>) -> MemoryStats {
    let mut memory = MemoryStats { usage, limit, ..MemoryStats::default() };
    let mut inactive_file = 0;
    for line in text.lines() {
        // The totals include what is below this cgroup.
        let Some((key, value)) = line.strip_prefix("total_").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let value = value.parse().unwrap_or(0);
        match key {
            "rss" => memory.rss = value,
            "cache" => memory.cache = value,
            "swap" => memory.swap = value,
            "pgfault" => memory.page_faults = value,
            "pgmajfault" => memory.major_page_faults = value,
            "inactive_file" => inactive_file = value,
            _ => {}
        }
    }
    memory.conclude(inactive_file)
}

fn memory_v2(text: &str, usage: u64, limit: Option<u64>) -> MemoryStats {
    let mut memory = MemoryStats { usage, limit, ..MemoryStats::default() };
    let mut inactive_file = 0;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let value = value.parse().unwrap_or(0);
        match key {
            "anon" => memory.rss = value,
            "file" => memory.cache = value,
            "pgfault" => memory.page_faults = value,
            "pgmajfault" => memory.major_page_faults = value,
            "inactive_file" => inactive_file = value,
            _ => {}
        }
    }
    memory.conclude(inactive_file)
}

impl MemoryStats {
    fn conclude(mut self, inactive_file: u64) -> Self {
        self.working_set = self.usage.saturating_sub(inactive_file);
        self.available = self.limit.map(|limit| limit.saturating_sub(self.working_set));
        self
    }
}

/// Lines `8:0 Read 1282048`; the two files have the same lines in the same order, but are matched by name.
fn io_v1(bytes: &str, operations: &str) -> Vec<IoEntry> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, operation, value) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        let operation = match operation {
            "Read" => IoOperation::Read,
            "Write" => IoOperation::Write,
            "Discard" => IoOperation::Discard,
            "Sync" => IoOperation::Sync,
            "Async" => IoOperation::Async,
            "Total" => IoOperation::Total,
            _ => return None,
        };
        Some((major.parse().ok()?, minor.parse().ok()?, operation, value.parse::<u64>().ok()?))
    };
    let mut entries: Vec<IoEntry> = bytes
        .lines()
        .filter_map(parse)
        .map(|(major, minor, operation, bytes)| IoEntry { major, minor, operation, bytes, operations: 0 })
        .collect();
    for (major, minor, operation, count) in operations.lines().filter_map(parse) {
        let same =
            |entry: &&mut IoEntry| (entry.major, entry.minor, entry.operation) == (major, minor, operation);
        if let Some(entry) = entries.iter_mut().find(same) {
            entry.operations = count;
        }
    }
    entries
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_v2(text: &str) -> Vec<IoEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else { continue };
        let values: Vec<(&str, u64)> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let value = |key| values.iter().find(|(name, _)| *name == key).map_or(0, |(_, value)| *value);
        for (operation, bytes, operations) in [
            (IoOperation::Read, "rbytes", "rios"),
            (IoOperation::Write, "wbytes", "wios"),
            (IoOperation::Discard, "dbytes", "dios"),
        ] {
            let (bytes, operations) = (value(bytes), value(operations));
            entries.push(IoEntry { major, minor, operation, bytes, operations });
        }
    }
    entries
}

fn pressure(dir: &Dir, file: &str) -> Option<Pressure> {
    // EOPNOTSUPP: built in, but not switched on.
    parse_pressure(&dir.read(file).ok()?)
}

/// Lines `some avg10=0.12 avg60=0.00 avg300=0.00 total=123` and `full …`.
fn parse_pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut found = PressureLine::default();
        for (key, value) in rest.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => found.avg10_centi = centi(value),
                "avg60" => found.avg60_centi = centi(value),
                "avg300" => found.avg300_centi = centi(value),
                "total" => found.total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        Some(found)
    };
    // Before 5.13 cpu.pressure had no line for full.
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

/// `12.34` as 1234.
fn centi(value: &str) -> u32 {
    let (whole, part) = value.split_once('.').unwrap_or((value, "00"));
    let whole: u32 = whole.parse().unwrap_or(0);
    whole * 100 + part.parse::<u32>().unwrap_or(0)
}

/// The kernel's page sizes as the controller's files name them.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kib {
            1_048_576.. => format!("{}GB", kib >> 20),
            1024.. => format!("{}MB", kib >> 10),
            _ => format!("{kib}KB"),
        })
    };
    entries.filter_map(size).collect()
}

/// A number that must be there.
fn number(dir: &Dir, file: &str) -> Result<u64, Failure> {
    let text = dir.text(file)?;
    text.trim().parse().map_err(|_| dir.failed(Errno::INVAL, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_set_is_usage_without_inactive_cache() {
        let text = "cache 1\nrss 2\ntotal_cache 4096\ntotal_rss 8192\ntotal_inactive_file 1000\ntotal_pgfault 7\ntotal_pgmajfault 1\ntotal_swap 3\n";
        let memory = memory_v1(text, 5000, Some(10_000));
        assert_eq!((memory.working_set, memory.available), (4000, Some(6000)));
        assert_eq!((memory.rss, memory.cache, memory.swap), (8192, 4096, 3));
        assert_eq!((memory.page_faults, memory.major_page_faults), (7, 1));
        let memory = memory_v2("anon 5\nfile 6\ninactive_file 600\npgfault 8\n", 500, None);
        assert_eq!((memory.working_set, memory.available, memory.rss), (0, None, 5));
    }

    #[test]
    fn io_of_both_versions() {
        let v1 = io_v1("8:0 Read 10\n8:0 Total 10\nTotal 10\n", "8:0 Read 2\n8:0 Total 2\n");
        assert_eq!(v1.len(), 2);
        assert_eq!((v1[0].bytes, v1[0].operations), (10, 2));
        let v2 = io_v2("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:0 \n");
        assert_eq!(v2.len(), 6);
        assert_eq!((v2[1].minor, v2[1].bytes, v2[1].operations), (16, 2, 4));
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.07 avg300=12.00 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let pressure = parse_pressure(text).unwrap();
        assert_eq!((pressure.some.avg10_centi, pressure.some.avg60_centi), (150, 7));
        assert_eq!((pressure.some.avg300_centi, pressure.full.total_us), (1200, 3));
        assert_eq!(parse_pressure(""), None);
    }

    #[test]
    fn cpu_of_v2() {
        let mut cpu = CpuStats::default();
        cpu.add_v2("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\nthrottled_usec 4\n");
        assert_eq!((cpu.usage_ns, cpu.user_ns, cpu.system_ns), (5000, 3000, 2000));
        assert_eq!((cpu.throttled_periods, cpu.throttled_ns), (1, 4000));
    }
}
