//! Cgroups on the real kernel: whatever hierarchies this host has, under names of our own, leaving none.
//!
//! Needs root. The same tests run on hybrid hosts and on pure v2.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runtime::cgroup::{
    Cgroup, CgroupPath, Controller, CreateOptions, Driver, Existing, Hierarchies, Limits, join_self_runtime,
    remove_ancestors,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// A cgroup of the test's own below a parent of its own; both are gone at its end, whatever happens.
struct Scratch {
    hierarchies: Hierarchies,
    parent: String,
    cgroup: Option<Cgroup>,
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Scratch {
    fn new() -> Self {
        Self::on(Hierarchies::detect().unwrap())
    }

    fn on(hierarchies: Hierarchies) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let parent = format!("/podwright-cgtest-{}-{number}", std::process::id());
        let mut scratch = Self { hierarchies, parent, cgroup: None };
        scratch.cgroup = Some(scratch.create("c").unwrap());
        scratch
    }

    fn path(&self, name: &str) -> CgroupPath {
        CgroupPath::parse(Some(Path::new(&format!("{}/{name}", self.parent))), "", Driver::Cgroupfs).unwrap()
    }

    fn create(&self, name: &str) -> Result<Cgroup, runtime::Failure> {
        Cgroup::create(&self.hierarchies, &self.path(name), &CreateOptions::default())
    }

    fn cgroup(&mut self) -> &mut Cgroup {
        self.cgroup.as_mut().unwrap()
    }

    /// Directories of that name in any hierarchy.
    fn left(&self) -> Vec<PathBuf> {
        let mounts = self.hierarchies.v1.iter().chain(&self.hierarchies.v2);
        mounts.map(|one| one.mount.join(&self.parent[1..])).filter(|path| path.exists()).collect()
    }

    fn has_controllers(&self) -> bool {
        self.hierarchies.with(Controller::Memory).is_some()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill_all(soon());
            let removed = cgroup.remove(soon());
            remove_ancestors(cgroup.made_ancestors());
            if !std::thread::panicking() {
                removed.unwrap();
                assert_eq!(self.left(), Vec::<PathBuf>::new());
            }
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A shell that waits for a line before it runs the script, so that it can be put into a cgroup first.
fn shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn go(child: &mut Child) {
    drop(child.stdin.take());
}

fn run_in(cgroup: &mut Cgroup, script: &str) -> String {
    let mut child = shell(script);
    cgroup.join(child.id()).unwrap();
    go(&mut child);
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn limits(json: Value) -> Limits {
    Limits::from_spec(&serde_json::from_value(json).unwrap()).unwrap()
}

fn read(cgroup: &Cgroup, controller: Controller, file: &str) -> String {
    let path = cgroup.directory(controller).unwrap().join(file);
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn a_cgroup_is_made_everywhere_and_its_parents_are_remembered() {
    let scratch = Scratch::new();
    let cgroup = scratch.cgroup.as_ref().unwrap();
    let everywhere = scratch.hierarchies.v1.len() + usize::from(scratch.hierarchies.v2.is_some());
    assert_eq!(cgroup.record().directories.len(), everywhere);
    assert_eq!(cgroup.made_ancestors().len(), everywhere);
    assert!(cgroup.record().directories.iter().all(|one| one.path.is_dir()));
    let beside = scratch.create("d").unwrap();
    assert!(beside.made_ancestors().is_empty());
    beside.remove(soon()).unwrap();
    beside.remove(soon()).unwrap();
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mut scratch = Scratch::new();
    let cgroup = scratch.cgroup.take().unwrap();
    cgroup.remove(soon()).unwrap();
    remove_ancestors(cgroup.made_ancestors());
    // A file is in the way, but only below parents that have to be made first.
    let failure = scratch.create("a/b/cgroup.procs/c").unwrap_err();
    assert_eq!(failure.errno(), Some(rustix::io::Errno::NOTDIR));
    assert_eq!(scratch.left(), Vec::<PathBuf>::new());
}

#[test]
fn used_cgroups_are_refused_in_runcs_words() {
    let mut scratch = Scratch::new();
    let mut child = shell("exec sleep 1000");
    scratch.cgroup().join(child.id()).unwrap();
    let failure = scratch.create("c").unwrap_err().to_string();
    assert!(failure.contains("container's cgroup is not empty: 1 process(es) found"), "{failure}");
    let any = CreateOptions { existing: Existing::Any, ..CreateOptions::default() };
    Cgroup::create(&scratch.hierarchies, &scratch.path("c"), &any).unwrap();
    scratch.cgroup().kill_all(soon()).unwrap();
    child.wait().unwrap();
    scratch.create("c").unwrap();
    scratch.cgroup().freeze(soon()).unwrap();
    let failure = scratch.create("c").unwrap_err().to_string();
    assert!(failure.contains("container's cgroup unexpectedly frozen"), "{failure}");
}

#[test]
fn a_record_finds_it_again() {
    let mut scratch = Scratch::new();
    let record = scratch.cgroup().record();
    let text = serde_json::to_string(&record).unwrap();
    let again = Cgroup::open_record(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(again.record(), record);
    let opened = Cgroup::open(&scratch.hierarchies, &scratch.path("c")).unwrap();
    assert_eq!(opened.record().directories, record.directories);
    let absent = Cgroup::open(&scratch.hierarchies, &scratch.path("absent")).unwrap_err();
    assert_eq!(absent.errno(), Some(rustix::io::Errno::NOENT));
}

#[test]
fn limits_are_written_and_changed_in_any_order() {
    let mut scratch = Scratch::new();
    if !scratch.has_controllers() {
        return skip("no memory controller");
    }
    let v1 = scratch.cgroup().is_v1();
    let mib = |n: i64| n << 20;
    scratch
        .cgroup()
        .apply(&limits(json!({
            "memory": {"limit": mib(64), "swap": mib(128), "reservation": mib(32)},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 77},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        })))
        .unwrap();
    let cgroup = scratch.cgroup.as_ref().unwrap();
    let memory = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(read(cgroup, Controller::Memory, memory), mib(64).to_string());
    assert_eq!(read(cgroup, Controller::Pids, "pids.max"), "77");
    assert_eq!(read(cgroup, Controller::Cpuset, "cpuset.cpus"), "0");
    if v1 {
        assert_eq!(read(cgroup, Controller::Cpu, "cpu.shares"), "512");
        assert_eq!(read(cgroup, Controller::Cpu, "cpu.cfs_quota_us"), "50000");
        assert_eq!(read(cgroup, Controller::Memory, "memory.memsw.limit_in_bytes"), mib(128).to_string());
    } else {
        assert_eq!(read(cgroup, Controller::Cpu, "cpu.weight"), "59");
        assert_eq!(read(cgroup, Controller::Cpu, "cpu.max"), "50000 100000");
        assert_eq!(read(cgroup, Controller::Memory, "memory.low"), mib(32).to_string());
    }
    // Both up, both down, both off, both on: old and new values exclude each other in every order but one.
    for (limit, swap) in [(256, 512), (16, 32), (16, 16), (-1, -1), (64, 64), (-1, 0), (32, 64)] {
        let bytes = |n: i64| if n > 0 { mib(n) } else { n };
        let update = limits(json!({"memory": {"limit": bytes(limit), "swap": bytes(swap)}}));
        cgroup.update(&update).unwrap_or_else(|failure| panic!("{limit} {swap}: {failure}"));
        let now = read(cgroup, Controller::Memory, memory);
        if limit > 0 {
            assert_eq!(now, mib(limit).to_string());
        }
    }
    for (quota, period) in [(10_000, 20_000), (200_000, 1_000_000), (-1, 100_000), (1000, 1000)] {
        cgroup.update(&limits(json!({"cpu": {"quota": quota, "period": period}}))).unwrap();
    }
    assert_eq!(read(cgroup, Controller::Pids, "pids.max"), "77");
    assert_eq!(cgroup.stats().unwrap().memory.limit, Some(32 << 20));
}

#[test]
fn a_limit_that_cannot_be_set_is_named() {
    let mut scratch = Scratch::new();
    let cgroup = scratch.cgroup();
    if cgroup.is_v1() {
        let failure = cgroup.apply(&limits(json!({"unified": {"memory.high": "1"}}))).unwrap_err();
        assert!(failure.to_string().contains("cannot use unified on cgroup v1"), "{failure}");
        let rdma = limits(json!({"rdma": {"mlx": {"hcaHandles": 1}}}));
        let failure = cgroup.apply(&rdma).unwrap_err().to_string();
        assert!(failure.contains("controller rdma is not available"), "{failure}");
    }
    let failure = cgroup.apply(&limits(json!({"cpu": {"cpus": "4000"}}))).unwrap_err().to_string();
    assert!(failure.contains("cpuset.cpus"), "{failure}");
}

#[test]
fn a_fork_bomb_is_killed() {
    let mut scratch = Scratch::new();
    if scratch.has_controllers() {
        scratch.cgroup().apply(&limits(json!({"pids": {"limit": 60}}))).unwrap();
    }
    let mut child = shell("i=0; while [ $i -lt 200 ]; do (while :; do (:) ; done) & i=$((i+1)); done; wait");
    scratch.cgroup().join(child.id()).unwrap();
    go(&mut child);
    while scratch.cgroup().pids(true).unwrap().len() < 20 {
        std::thread::yield_now();
    }
    scratch.cgroup().kill_all(soon()).unwrap();
    assert!(scratch.cgroup().pids(true).unwrap().is_empty());
    child.wait().unwrap();
}

#[test]
fn a_fork_bomb_is_killed_without_v2_too() {
    let mut hierarchies = Hierarchies::detect().unwrap();
    if hierarchies.v1.is_empty() {
        return skip("no v1 hierarchy");
    }
    hierarchies.v2 = None;
    let mut scratch = Scratch::on(hierarchies);
    scratch.cgroup().apply(&limits(json!({"pids": {"limit": 40}}))).unwrap();
    let mut child = shell("i=0; while [ $i -lt 200 ]; do (while :; do (:) ; done) & i=$((i+1)); done; wait");
    scratch.cgroup().join(child.id()).unwrap();
    go(&mut child);
    while scratch.cgroup().pids(true).unwrap().len() < 10 {
        std::thread::yield_now();
    }
    scratch.cgroup().kill_all(soon()).unwrap();
    child.wait().unwrap();
    // Frozen and stopped processes die as well, and freezing works by itself.
    let mut child = shell("kill -STOP $$");
    scratch.cgroup().join(child.id()).unwrap();
    go(&mut child);
    scratch.cgroup().freeze(soon()).unwrap();
    assert!(scratch.cgroup().is_frozen().unwrap());
    scratch.cgroup().kill_all(soon()).unwrap();
    assert!(!scratch.cgroup().is_frozen().unwrap());
    child.wait().unwrap();
}

#[test]
fn what_is_frozen_stands_still_and_dies_when_killed() {
    let mut scratch = Scratch::new();
    let mut child = shell("while :; do :; done");
    let cgroup = scratch.cgroup();
    cgroup.join(child.id()).unwrap();
    go(&mut child);
    cgroup.freeze(soon()).unwrap();
    assert!(cgroup.is_frozen().unwrap());
    let before = cgroup.stats_brief().unwrap().cpu.usage_ns;
    // Another one as busy comes to its end in the meantime.
    let free =
        Command::new("sh").args(["-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"]).status().unwrap();
    assert!(free.success());
    assert_eq!(cgroup.stats_brief().unwrap().cpu.usage_ns, before);
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.freeze(soon()).unwrap();
    cgroup.kill_all(soon()).unwrap();
    child.wait().unwrap();
    cgroup.thaw().unwrap();
    // Frozen behind our back, through v1.
    if let Some(freezer) = cgroup.directory(Controller::Freezer).map(Path::to_owned) {
        let mut child = shell("while :; do :; done");
        cgroup.join(child.id()).unwrap();
        std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
        assert!(cgroup.is_frozen().unwrap());
        cgroup.kill_all(soon()).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_light_child_is_killed_alone() {
    let mut scratch = Scratch::new();
    let mut init = shell("exec sleep 1000");
    let mut exec = shell("sleep 1000 & sleep 1000 & wait");
    let cgroup = scratch.cgroup();
    cgroup.join(init.id()).unwrap();
    let mut light = cgroup.child("exec-1").unwrap();
    light.join(exec.id()).unwrap();
    go(&mut exec);
    while light.pids(true).unwrap().len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(cgroup.pids(false).unwrap(), [init.id()]);
    assert_eq!(cgroup.pids(true).unwrap().len(), 4);
    light.kill_all(soon()).unwrap();
    light.remove(soon()).unwrap();
    exec.wait().unwrap();
    assert_eq!(cgroup.pids(true).unwrap(), [init.id()]);
    assert!(init.try_wait().unwrap().is_none());
    cgroup.kill_all(soon()).unwrap();
    init.wait().unwrap();
    assert!(cgroup.child("../x").is_err());
    assert!(cgroup.below("a/../../x").is_err());
}

#[test]
fn cgroups_that_the_container_made_are_removed_with_it() {
    let mut scratch = Scratch::new();
    for directory in scratch.cgroup().record().directories {
        std::fs::create_dir_all(directory.path.join("inner/most")).unwrap();
    }
    let mut child = shell("exec sleep 1000");
    scratch.cgroup().join(child.id()).unwrap();
    let busy = scratch.cgroup().remove(Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert_eq!(busy.errno(), Some(rustix::io::Errno::BUSY));
    // On its way out: remove waits for the exit instead of failing.
    child.kill().unwrap();
    scratch.cgroup().remove(soon()).unwrap();
    child.wait().unwrap();
    assert!(scratch.cgroup().record().directories.iter().all(|one| !one.path.exists()));
}

#[test]
fn running_out_of_memory_is_counted_and_announced() {
    let mut scratch = Scratch::new();
    if !scratch.has_controllers() {
        return skip("no memory controller");
    }
    let cgroup = scratch.cgroup();
    cgroup.apply(&limits(json!({"memory": {"limit": 16 << 20, "swap": 512 << 20}}))).unwrap();
    assert_eq!(cgroup.oom_kill_count(), Some(0));
    let watch = cgroup.oom_watch().unwrap().unwrap();
    assert!(!watch.drain().unwrap());
    run_in(cgroup, "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null");
    let mut fds = [PollFd::new(&watch, PollFlags::IN)];
    let second = Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&second)).unwrap(), 1);
    assert!(watch.drain().unwrap());
    assert!(cgroup.oom_kill_count().unwrap() >= 1);
    assert!(cgroup.stats().unwrap().memory.limit_hits > 0);
}

#[test]
fn usage_is_seen() {
    let mut scratch = Scratch::new();
    let cgroup = scratch.cgroup();
    let mut child = shell("x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo done; read more");
    cgroup.join(child.id()).unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let mut line = [0_u8; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let stats = cgroup.stats().unwrap();
    assert!(stats.cpu.usage_ns > 10_000_000, "{stats:?}");
    assert!(stats.cpu.user_ns + stats.cpu.system_ns > 0);
    if cgroup.directory(Controller::Memory).is_some() {
        assert!(stats.memory.rss > 10_000_000 && stats.memory.page_faults > 0, "{stats:?}");
        assert!(stats.memory.working_set <= stats.memory.usage);
        assert_eq!((stats.memory.limit, stats.memory.available), (None, None));
        assert!(!stats.memory.raw.is_empty());
    }
    assert_eq!(stats.pids.current, 1);
    assert_eq!(stats.pids.limit, None);
    if cgroup.is_v1() {
        assert!(!stats.cpu.per_cpu_ns.is_empty());
    }
    let brief = cgroup.stats_brief().unwrap();
    assert_eq!(brief.memory.rss, stats.memory.rss);
    cgroup.kill_all(soon()).unwrap();
    child.wait().unwrap();
}

/// `/dev/kmsg` is 1:11 and not among the default devices; null is.
const OPEN: &str = "(: </dev/null) && echo null; (: </dev/kmsg) 2>/dev/null && echo kmsg; (: >/dev/kmsg) 2>/dev/null && echo write";

fn devices_are_guarded(scratch: &mut Scratch) {
    let cgroup = scratch.cgroup();
    cgroup.apply(&Limits::default()).unwrap();
    assert_eq!(run_in(cgroup, OPEN), "null\n");
    let deny = json!({"allow": false, "access": "rwm"});
    let kmsg = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
    cgroup.update(&limits(json!({"devices": [deny, kmsg]}))).unwrap();
    assert_eq!(run_in(cgroup, OPEN), "null\nkmsg\n");
    // An update without rules leaves them.
    cgroup.update(&Limits::default()).unwrap();
    assert_eq!(run_in(cgroup, OPEN), "null\nkmsg\n");
    cgroup.update(&limits(json!({"devices": [{"allow": true, "access": "rwm"}]}))).unwrap();
    assert_eq!(run_in(cgroup, OPEN), "null\nkmsg\nwrite\n");
    cgroup.update(&limits(json!({"devices": [deny]}))).unwrap();
    assert_eq!(run_in(cgroup, OPEN), "null\n");
}

#[test]
fn devices_as_this_host_guards_them() {
    devices_are_guarded(&mut Scratch::new());
}

#[test]
fn devices_by_a_program_on_v2() {
    let mut hierarchies = Hierarchies::detect().unwrap();
    hierarchies.v1.clear();
    // Whatever controllers it has stay as they are on this host.
    match &mut hierarchies.v2 {
        Some(v2) => v2.controllers.clear(),
        None => return skip("no v2 hierarchy"),
    }
    devices_are_guarded(&mut Scratch::on(hierarchies));
}

#[test]
fn many_at_once_under_a_new_parent() {
    let scratch = Scratch::new();
    let (scratch, ancestors) = (&scratch, std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let ancestors = &ancestors;
            scope.spawn(move || {
                for round in 0..10 {
                    let cgroup = scratch.create(&format!("p{round}/q/t{thread}")).unwrap();
                    ancestors.lock().unwrap().extend(cgroup.made_ancestors().to_vec());
                    cgroup.remove(soon()).unwrap();
                }
            });
        }
    });
    remove_ancestors(&ancestors.into_inner().unwrap());
}

#[test]
fn a_process_puts_itself_into_the_runtimes_cgroup() {
    let scratch = Scratch::new();
    let parent = format!("{}/monitors", scratch.parent);
    let text = helper("helper_joins_the_runtimes_cgroup", &parent);
    let inside: Vec<&str> = text.lines().filter(|line| line.ends_with(&parent)).collect();
    let monitors = Cgroup::open(&scratch.hierarchies, &scratch.path("monitors")).unwrap();
    assert_eq!(inside.len(), monitors.record().directories.len(), "{text}");
    monitors.remove(soon()).unwrap();
    if scratch.hierarchies.v1.iter().any(|one| one.controllers.contains(&Controller::Cpu)) {
        assert_eq!(monitors.directory(Controller::Cpu), None);
    }
}

/// Runs in a process of its own, started by the test above.
#[test]
#[ignore = "a helper that another test starts"]
fn helper_joins_the_runtimes_cgroup() {
    let Ok(path) = std::env::var("PODWRIGHT_TEST_CGROUP") else { return };
    let path = CgroupPath::parse(Some(Path::new(&path)), "", Driver::Cgroupfs).unwrap();
    let controllers = [Controller::Memory, Controller::Pids, Controller::Freezer];
    join_self_runtime(&Hierarchies::detect().unwrap(), &path, &controllers).unwrap();
    println!("\n{}", std::fs::read_to_string("/proc/thread-self/cgroup").unwrap());
}

#[test]
fn a_process_puts_itself_into_a_containers_cgroup() {
    let mut scratch = Scratch::new();
    let record = serde_json::to_string(&scratch.cgroup().record()).unwrap();
    let text = helper("helper_joins_by_itself", &record);
    let inside = text.lines().filter(|line| line.ends_with(&format!("{}/c", scratch.parent))).count();
    assert_eq!(inside, scratch.cgroup().record().directories.len(), "{text}");
}

/// Runs in a process of its own, started by the test above.
#[test]
#[ignore = "a helper that another test starts"]
fn helper_joins_by_itself() {
    let Ok(record) = std::env::var("PODWRIGHT_TEST_CGROUP") else { return };
    let cgroup = Cgroup::open_record(&serde_json::from_str(&record).unwrap()).unwrap();
    let before = Instant::now();
    cgroup.join_self_v1().unwrap();
    println!("us: join_self_v1 {}", before.elapsed().as_micros());
    cgroup.join_self().unwrap();
    println!("{}", std::fs::read_to_string("/proc/thread-self/cgroup").unwrap());
}

/// Runs one of the helpers and returns what it prints.
fn helper(name: &str, argument: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env("PODWRIGHT_TEST_CGROUP", argument)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines().filter(|line| line.starts_with("us: ")) {
        println!("{line}");
    }
    text
}

#[test]
fn systemd_makes_a_scope() {
    if !Path::new("/run/systemd/private").exists() {
        return skip("systemd does not run here");
    }
    let hierarchies = Hierarchies::detect().unwrap();
    let name = format!("system.slice:podwright:test-{}", std::process::id());
    let path = CgroupPath::parse(Some(Path::new(&name)), "", Driver::Systemd).unwrap();
    let options = CreateOptions {
        unit_properties: vec![
            ("TimeoutStopSec".into(), "2".into()),
            ("CollectMode".into(), "'inactive-or-failed'".into()),
        ],
        ..CreateOptions::default()
    };
    let mut cgroup = Cgroup::create(&hierarchies, &path, &options).unwrap();
    assert!(cgroup.joins_by_parent_only());
    cgroup
        .apply(&limits(json!({
            "memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
            "devices": [{"allow": false, "access": "rwm"}],
        })))
        .unwrap();
    let mut child = shell("exec sleep 1000");
    cgroup.join(child.id()).unwrap();
    assert!(!cgroup.joins_by_parent_only());
    let unit = format!("podwright-test-{}.scope", std::process::id());
    let at = cgroup.directory_v2().unwrap().to_owned();
    assert!(at.ends_with(Path::new("system.slice").join(&unit)), "{at:?}");
    assert_eq!(cgroup.pids(true).unwrap(), [child.id()]);
    assert_eq!(run_in(&mut cgroup, OPEN), "null\n");
    let memory = |cgroup: &Cgroup| cgroup.stats_brief().unwrap().memory.limit;
    assert_eq!(memory(&cgroup), Some(64 << 20));
    // It is found again by its record, and systemd knows of the change.
    let record = cgroup.record();
    assert_eq!(record.unit.as_deref(), Some(unit.as_str()));
    let cgroup = Cgroup::open_record(&record).unwrap();
    cgroup.update(&limits(json!({"memory": {"limit": 32 << 20}}))).unwrap();
    assert_eq!(memory(&cgroup), Some(32 << 20));
    let shown = Command::new("systemctl").args(["show", "-p", "MemoryMax,TasksMax,Delegate", &unit]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    for expected in ["MemoryMax=33554432", "TasksMax=50", "Delegate=yes"] {
        assert!(shown.contains(expected), "{shown}");
    }
    let used = Cgroup::create(&hierarchies, &path, &CreateOptions::default()).unwrap_err().to_string();
    assert!(used.contains("container's cgroup is not empty"), "{used}");
    cgroup.kill_all(soon()).unwrap();
    child.wait().unwrap();
    cgroup.remove(soon()).unwrap();
    cgroup.remove(soon()).unwrap();
    assert!(!at.exists());
}

#[test]
fn the_cost_of_a_cgroup() {
    let mut scratch = Scratch::new();
    let usual = limits(json!({
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}, "pids": {"limit": 100},
        "memory": {"limit": 64 << 20}, "devices": [{"allow": false, "access": "rwm"}],
    }));
    let rounds = 50;
    let mut steps = [Duration::ZERO; 5];
    for round in 0..rounds {
        let mut child = shell(":");
        let mut at = Instant::now();
        let mut step = |index: usize| {
            steps[index] += at.elapsed();
            at = Instant::now();
        };
        let mut cgroup = scratch.create(&format!("cost-{round}")).unwrap();
        step(0);
        if scratch.has_controllers() {
            cgroup.apply(&usual).unwrap();
        }
        step(1);
        cgroup.join(child.id()).unwrap();
        step(2);
        cgroup.stats_brief().unwrap();
        step(3);
        cgroup.kill_all(soon()).unwrap();
        child.wait().unwrap();
        at = Instant::now();
        cgroup.remove(soon()).unwrap();
        steps[4] += at.elapsed();
    }
    let us = steps.map(|step| step.as_micros() / rounds);
    println!("us: create {} apply {} join {} stats_brief {} remove {}", us[0], us[1], us[2], us[3], us[4]);
    assert!(scratch.cgroup().as_v2_fd_is_open());
}

/// What the engine hands to clone3.
trait V2Fd {
    fn as_v2_fd_is_open(&self) -> bool;
}

impl V2Fd for Cgroup {
    fn as_v2_fd_is_open(&self) -> bool {
        self.dirfd_v2().is_none_or(|fd| rustix::fs::fstat(fd.as_fd()).is_ok())
    }
}

fn skip(why: &str) {
    println!("skipped: {why}");
}
