//! `linux.intelRdt`: cache and memory bandwidth by the resctrl filesystem (the kernel's `filesystems/resctrl.rst`, runtime-spec
//! `config-linux.md#intelrdt`).
//!
//! ```text
//! <resctrl>/<class>/schemata                 what the class may use: a line per resource
//! <resctrl>/<class>/tasks                    a pid, written: that task is of this class; what it forks is too
//! <resctrl>/<class>/mon_groups/<id>/tasks    the same, for counting
//! ```
//!
//! A class that the spec names (`closID`) belongs to whoever named it: it stays when the container goes. One that it does not name is
//! the container's own, is called by its id, and goes with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Failure, Step};

/// Where the filesystem is mounted by convention.
const MOUNT_POINT: &str = "/sys/fs/resctrl";
/// `RDTGROUP_SUPER_MAGIC` of linux/magic.h.
const RESCTRL_MAGIC: u64 = 0x0765_5821;

/// The resctrl groups of one container, as they are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The directory of its class.
    pub class: PathBuf,
    /// The directory it is counted by. None: it is not counted by itself.
    pub monitoring: Option<PathBuf>,
    /// The directories that were made for it and go with it, innermost first.
    pub made: Vec<PathBuf>,
}

/// The mounted filesystem.
#[derive(Debug, Clone)]
pub struct Resctrl(PathBuf);

impl Resctrl {
    /// Finds it: where it belongs, or wherever this mount namespace has it. None: it is not mounted, or this machine has none.
    pub fn find() -> Option<Self> {
        let is_there = |fs: rustix::fs::StatFs| u64::try_from(fs.f_type) == Ok(RESCTRL_MAGIC);
        if rustix::fs::statfs(MOUNT_POINT).is_ok_and(is_there) {
            return Some(Self(MOUNT_POINT.into()));
        }
        mount_point(&std::fs::read_to_string("/proc/self/mountinfo").ok()?).map(Self)
    }

    /// Whether a resource, such as `L3` or `MB`, can be allocated.
    pub fn allocates(&self, resource: &str) -> bool {
        // With code and data prioritisation L3 is split in two.
        let names = [resource.to_owned(), format!("{resource}CODE")];
        names.iter().any(|name| self.0.join("info").join(name).is_dir())
    }

    /// Makes or finds the class and the monitoring group of container `id`, and writes the class's schemata.
    ///
    /// # Errors
    /// [`Step::Config`] for what this machine cannot do or another user of the class contradicts; [`Step::Cgroup`] for what the kernel
    /// refuses, with its own explanation. What was made is taken away then.
    pub fn create(&self, rdt: &LinuxIntelRdt, id: &str) -> Result<Group, Failure> {
        let mut group = Group { class: self.class(rdt, id), monitoring: None, made: Vec::new() };
        match self.set_up(rdt, id, &mut group) {
            Ok(()) => Ok(group),
            Err(failure) => {
                group.remove();
                Err(failure)
            }
        }
    }

    fn set_up(&self, rdt: &LinuxIntelRdt, id: &str, group: &mut Group) -> Result<(), Failure> {
        for (field, schema, resource) in
            [("l3CacheSchema", rdt.l3_cache_schema(), "L3"), ("memBwSchema", rdt.mem_bw_schema(), "MB")]
        {
            if schema.as_deref().is_some_and(|schema| !schema.is_empty()) && !self.allocates(resource) {
                let message = format!(
                    "intelRdt.{field} is specified in config, but {resource} allocation is not enabled"
                );
                return Err(Failure::because(Step::Config, message));
            }
        }
        let named = rdt.clos_id().as_deref().is_some_and(|id| !id.is_empty());
        let lines = schemata(rdt);
        let existed = group.class.is_dir();
        if named && lines.is_empty() && !existed {
            return Err(failed(Errno::NOENT, &group.class).with_message(
                "the class must exist already when schemata, l3CacheSchema and memBwSchema are empty",
            ));
        }
        if !existed {
            make(&group.class)?;
            // A named class is kept for others; so is one that the container only found.
            if !named {
                group.made.push(group.class.clone());
            }
        }
        if named && existed {
            agree(rdt, &group.class)?;
        } else if !lines.is_empty() {
            self.write(&group.class.join("schemata"), &lines)?;
        }
        if let Some(whole) = rdt.schemata().as_deref().filter(|_| named && existed) {
            self.write(&group.class.join("schemata"), &joined(whole.iter().map(String::as_str)))?;
        }
        if rdt.enable_monitoring().unwrap_or(false) {
            let directory = group.class.join("mon_groups").join(id);
            make(&directory)?;
            group.made.insert(0, directory.clone());
            group.monitoring = Some(directory);
        }
        Ok(())
    }

    /// The directory of the class: a lone `/` is the root's.
    fn class(&self, rdt: &LinuxIntelRdt, id: &str) -> PathBuf {
        match rdt.clos_id().as_deref() {
            Some("/") => self.0.clone(),
            Some(class) if !class.is_empty() => self.0.join(class),
            _ => self.0.join(id),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Failure> {
        std::fs::write(path, text).map_err(|error| {
            failed(errno(&error), path).with_message(format!("write {text:?}{}", self.explanation()))
        })
    }

    /// What the kernel said about the last refusal.
    fn explanation(&self) -> String {
        match std::fs::read_to_string(self.0.join("info/last_cmd_status")) {
            Ok(text) if text.trim() != "ok" => format!(" ({})", text.trim()),
            _ => String::new(),
        }
    }
}

impl Group {
    /// Takes a process, and what it will fork, into the groups.
    pub fn assign(&self, pid: i32) -> Result<(), Failure> {
        for directory in [Some(&self.class), self.monitoring.as_ref()].into_iter().flatten() {
            let path = directory.join("tasks");
            std::fs::write(&path, pid.to_string())
                .map_err(|error| Failure::at(Step::Cgroup, errno(&error), &path))?;
        }
        Ok(())
    }

    /// Writes other limits for the class.
    pub fn update(&self, rdt: &LinuxIntelRdt) -> Result<(), Failure> {
        let path = self.class.join("schemata");
        std::fs::write(&path, schemata(rdt)).map_err(|error| Failure::at(Step::Cgroup, errno(&error), &path))
    }

    /// Removes what was made for the container. What is gone already, or has got tasks of others, stays as it is.
    pub fn remove(&self) {
        for directory in &self.made {
            if let Err(error) = std::fs::remove_dir(directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(directory = %directory.display(), %error, "a resctrl group is left");
            }
        }
    }
}

/// What a container's groups allow and have counted, in the keys that runc's readers know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The class's schemata, a line per resource.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// Its line for the L3 cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// Its line for the memory bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Bytes moved to and from memory, a row per L3 cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mbm_stats: Vec<Bandwidth>,
    /// Bytes held, a row per L3 cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmt_stats: Vec<Occupancy>,
}

/// Memory traffic through one L3 cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bandwidth {
    /// Bytes in all.
    pub mbm_total_bytes: u64,
    /// Bytes of memory of the same node.
    pub mbm_local_bytes: u64,
}

/// What is in one L3 cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Bytes.
    pub llc_occupancy: u64,
}

impl Group {
    /// Reads what the kernel tells of the groups. What cannot be read is left out.
    pub fn stats(&self) -> Stats {
        let text = std::fs::read_to_string(self.class.join("schemata")).unwrap_or_default();
        let schemata: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        let line = |resource: &str| schemata.iter().find(|line| line.starts_with(resource)).cloned();
        let counted = self.monitoring.as_ref().unwrap_or(&self.class).join("mon_data");
        let mut caches: Vec<_> = std::fs::read_dir(counted)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        caches.sort_unstable();
        let number = |directory: &Path, file: &str| -> Option<u64> {
            std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
        };
        let bandwidth = |cache: &PathBuf| {
            Some(Bandwidth {
                mbm_total_bytes: number(cache, "mbm_total_bytes")?,
                mbm_local_bytes: number(cache, "mbm_local_bytes").unwrap_or(0),
            })
        };
        let occupancy = |cache: &PathBuf| Some(Occupancy { llc_occupancy: number(cache, "llc_occupancy")? });
        Stats {
            l3_cache_schema: line("L3"),
            mem_bw_schema: line("MB"),
            mbm_stats: caches.iter().filter_map(bandwidth).collect(),
            cmt_stats: caches.iter().filter_map(occupancy).collect(),
            schemata,
        }
    }
}

/// All that is to be written to a class's schemata, a line each; later lines win, and `schemata` comes last.
fn schemata(rdt: &LinuxIntelRdt) -> String {
    let old = [rdt.l3_cache_schema().as_deref(), rdt.mem_bw_schema().as_deref()];
    let whole = rdt.schemata().iter().flatten().map(String::as_str);
    joined(old.into_iter().flatten().chain(whole))
}

fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Whether each domain of `line` has, in `schemata`, the same value. Blanks and leading zeros do not count, nor does the order.
fn contains(schemata: &str, line: &str) -> bool {
    let Some((resource, wanted)) = parse(line) else { return false };
    schemata.lines().filter_map(parse).any(|(other, domains)| {
        other == resource && wanted.iter().all(|(domain, value)| domains.get(domain) == Some(value))
    })
}

/// `L3:0=ff;1=c0` as a resource and its domains' values.
fn parse(line: &str) -> Option<(&str, BTreeMap<&str, String>)> {
    let (resource, domains) = line.trim().split_once(':')?;
    let mut values = BTreeMap::new();
    for domain in domains.split(';') {
        let (name, value) = domain.split_once('=')?;
        values.insert(name.trim(), value.trim().trim_start_matches('0').to_ascii_lowercase());
    }
    Some((resource.trim(), values))
}

/// Refuses other limits than those an existing class has.
fn agree(rdt: &LinuxIntelRdt, class: &Path) -> Result<(), Failure> {
    let path = class.join("schemata");
    let now = std::fs::read_to_string(&path).map_err(|error| failed(errno(&error), &path))?;
    let wanted = [rdt.l3_cache_schema(), rdt.mem_bw_schema()];
    for line in wanted.into_iter().flatten().filter(|line| !line.is_empty()) {
        if !contains(&now, line) {
            let message = format!("linux.intelRdt: {line:?} differs from what {} has", class.display());
            return Err(Failure::because(Step::Config, message));
        }
    }
    Ok(())
}

fn make(directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir(directory).map_err(|error| failed(errno(&error), directory))
}

fn failed(errno: Errno, path: &Path) -> Failure {
    Failure::at(Step::Cgroup, errno, path)
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The mount point of a resctrl filesystem in a `mountinfo` (proc_pid_mountinfo(5)).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        (after.split(' ').next() == Some("resctrl")).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rdt(value: serde_json::Value) -> LinuxIntelRdt {
        serde_json::from_value(value).unwrap()
    }

    /// A directory laid out as the kernel does, without its behaviour: what is written can be read.
    fn tree() -> (tempfile::TempDir, Resctrl) {
        let top = tempfile::tempdir().unwrap();
        for directory in ["info/L3", "info/MB", "mon_groups", "shared/mon_groups"] {
            std::fs::create_dir_all(top.path().join(directory)).unwrap();
        }
        std::fs::write(top.path().join("schemata"), "    L3:0=fff;1=fff\n").unwrap();
        std::fs::write(top.path().join("shared/schemata"), "    L3:0=0ff;1=0c0\n    MB:0= 20;1= 70\n")
            .unwrap();
        let resctrl = Resctrl(top.path().to_owned());
        (top, resctrl)
    }

    #[test]
    fn lines_are_written_in_order_and_the_whole_schemata_last() {
        let rdt = rdt(
            json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "schemata": ["L2:0=3", "L3:0=ff"]}),
        );
        assert_eq!(schemata(&rdt), "L3:0=f\nMB:0=20\nL2:0=3\nL3:0=ff\n");
        assert_eq!(schemata(&super::tests::rdt(json!({"l3CacheSchema": ""}))), "");
    }

    #[test]
    fn values_are_compared_as_the_kernel_writes_them() {
        let now = "    L3:0=000ff;1=000c0\n    MB:0= 20;1= 70\n";
        assert!(contains(now, "L3:1=c0;0=FF") && contains(now, "MB:0=20"));
        assert!(!contains(now, "L3:0=f") && !contains(now, "L2:0=ff") && !contains(now, "MB:2=20"));
        assert!(!contains(now, "nonsense") && !contains(now, "L3:x"));
    }

    #[test]
    fn a_class_of_its_own_is_called_by_the_container_and_goes_with_it() {
        let (top, resctrl) = tree();
        std::fs::create_dir(top.path().join("c1")).unwrap();
        std::fs::remove_dir(top.path().join("c1")).unwrap();
        let group = resctrl.create(&rdt(json!({})), "c1").unwrap();
        assert_eq!(group.class, top.path().join("c1"));
        assert_eq!(group.made, [top.path().join("c1")]);
        group.remove();
        assert!(!group.class.exists());
        // Again: nothing is left to remove, which is no error.
        group.remove();
    }

    #[test]
    fn a_named_class_must_exist_or_be_described_and_stays() {
        let (top, resctrl) = tree();
        let refused = resctrl.create(&rdt(json!({"closID": "new"})), "c1").unwrap_err();
        assert!(refused.to_string().contains("must exist already"), "{refused}");
        let group = resctrl.create(&rdt(json!({"closID": "new", "l3CacheSchema": "L3:0=f"})), "c1").unwrap();
        assert_eq!(std::fs::read_to_string(group.class.join("schemata")).unwrap(), "L3:0=f\n");
        group.remove();
        assert!(top.path().join("new").exists());
        let root = resctrl.create(&rdt(json!({"closID": "/", "enableMonitoring": true})), "c1").unwrap();
        assert_eq!(root.class, top.path());
        assert_eq!(root.monitoring.as_deref(), Some(&*top.path().join("mon_groups/c1")));
        root.remove();
        assert!(top.path().exists() && !top.path().join("mon_groups/c1").exists());
    }

    #[test]
    fn an_existing_class_is_not_changed_behind_the_others_back() {
        let (_top, resctrl) = tree();
        let shared = |schema: &str| rdt(json!({"closID": "shared", "l3CacheSchema": schema}));
        resctrl.create(&shared("L3:0=ff"), "c1").unwrap();
        let refused = resctrl.create(&shared("L3:0=f"), "c1").unwrap_err();
        assert!(refused.to_string().contains("differs"), "{refused}");
    }

    #[test]
    fn what_the_machine_cannot_allocate_is_refused_by_its_field() {
        let (top, resctrl) = tree();
        std::fs::remove_dir(top.path().join("info/MB")).unwrap();
        let refused = resctrl.create(&rdt(json!({"memBwSchema": "MB:0=20"})), "c1").unwrap_err();
        assert!(refused.to_string().contains("intelRdt.memBwSchema"), "{refused}");
        assert!(!top.path().join("c1").exists());
    }

    #[test]
    fn a_process_is_told_to_both_groups() {
        let (_top, resctrl) = tree();
        let group =
            resctrl.create(&rdt(json!({"closID": "shared", "enableMonitoring": true})), "c1").unwrap();
        group.assign(42).unwrap();
        for directory in [&group.class, group.monitoring.as_ref().unwrap()] {
            assert_eq!(std::fs::read_to_string(directory.join("tasks")).unwrap(), "42");
        }
    }

    #[test]
    fn statistics_are_of_the_containers_own_group() {
        let (_top, resctrl) = tree();
        let group =
            resctrl.create(&rdt(json!({"closID": "shared", "enableMonitoring": true})), "c1").unwrap();
        let data = group.monitoring.as_ref().unwrap().join("mon_data/mon_L3_00");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("llc_occupancy"), "4096\n").unwrap();
        let stats = serde_json::to_value(group.stats()).unwrap();
        assert_eq!(stats["schemata"], json!(["L3:0=0ff;1=0c0", "MB:0= 20;1= 70"]));
        assert_eq!(stats["cmt_stats"], json!([{"llc_occupancy": 4096}]));
        assert_eq!(stats.get("mbm_stats"), None);
    }

    #[test]
    fn it_is_found_wherever_it_is_mounted() {
        let text = "22 1 0:5 / / rw - ext4 /dev/x rw\n30 22 0:9 / /mnt/rdt rw,relatime shared:1 - resctrl resctrl rw\n";
        assert_eq!(mount_point(text), Some("/mnt/rdt".into()));
        assert_eq!(mount_point("22 1 0:5 / /resctrl rw - ext4 resctrl rw\n"), None);
    }
}
