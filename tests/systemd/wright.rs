//! `wright --systemd-cgroup`: a container is a scope.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Deadline, Outcome, process, watch};
use serde_json::json;

use crate::{cgroup_file, present, property, systemctl};

/// A bundle in a slice of its own.
struct Scoped {
    bundle: Bundle,
    slice: String,
    unit: String,
}

impl Scoped {
    fn new(script: &str) -> Result<Self> {
        let bundle = Bundle::new(script)?;
        // A dash would nest it.
        let slice = format!("{}.slice", bundle.id.replace('-', ""));
        let unit = format!("pw-{}.scope", bundle.id);
        let path = format!("{slice}:pw:{}", bundle.id);
        bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))?;
        Ok(Self { bundle, slice, unit })
    }

    fn wright(&self, arguments: &[&str]) -> Result<Ran> {
        let mut all = vec!["--systemd-cgroup"];
        all.extend(arguments);
        self.bundle.wright(&all)
    }

    /// Creates and starts it, and waits for its line `up`.
    fn start(&self) -> Outcome {
        let out = fs::File::create(self.bundle.path().join("stdout"))?;
        let err = fs::File::create(self.bundle.path().join("stderr"))?;
        let mut create = self.bundle.command(&["--systemd-cgroup", "create", &self.bundle.id])?;
        ensure!(create.stdout(out).stderr(err).status()?.success(), "{}", self.bundle.stderr()?);
        self.wright(&["start", &self.bundle.id])?.ok()?;
        watch::content(&self.bundle.path().join("stdout"), Deadline::in_seconds(20), |bytes| {
            bytes.starts_with(b"up\n").then_some(())
        })
    }

    fn directory(&self) -> Result<String> {
        Ok(format!("/sys/fs/cgroup{}", property(&self.unit, "ControlGroup")?))
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        let _ = self.wright(&["delete", "--force", &self.bundle.id]);
        let _ = systemctl(&["stop", &self.slice]);
    }
}

const FOREVER: &str = "echo up; sleep 100000";

#[test]
fn limits_are_the_scopes_and_the_kernels() -> Outcome {
    if !present("wright::limits_are_the_scopes_and_the_kernels") {
        return Ok(());
    }
    let scoped = Scoped::new(FOREVER)?;
    scoped.bundle.edit(|spec| {
        spec["annotations"]["org.systemd.property.TimeoutStopUSec"] = json!("uint64 123000000");
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
            "pids": {"limit": 77},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
            ]
        });
    })?;
    scoped.start()?;
    let unit = &scoped.unit;
    for (name, wanted) in [
        ("ActiveState", "active"),
        ("Slice", scoped.slice.as_str()),
        ("Delegate", "yes"),
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "33554432"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("TasksMax", "77"),
        ("AllowedCPUs", "0"),
        ("DevicePolicy", "strict"),
        ("TimeoutStopUSec", "2min 3s"),
    ] {
        assert_eq!(property(unit, name)?, wanted, "{name}");
    }
    assert!(
        property(unit, "DeviceAllow")?.contains("/dev/char/1:3 rwm"),
        "{}",
        property(unit, "DeviceAllow")?
    );
    let weight = property(unit, "CPUWeight")?;
    let kernel = || -> Result<[String; 6]> {
        let file = |name: &str| cgroup_file(unit, name);
        Ok([
            file("memory.max")?,
            file("memory.low")?,
            file("cpu.max")?,
            file("pids.max")?,
            file("cpuset.cpus")?,
            file("cpu.weight")?,
        ])
    };
    let wanted = ["67108864", "33554432", "50000 100000", "77", "0", weight.as_str()];
    assert_eq!(kernel()?, wanted);
    // systemd writes its own idea of a unit back when it reloads: it is the same.
    systemctl(&["daemon-reload"])?;
    assert_eq!(kernel()?, wanted);
    // Devices, by the program on the cgroup: what is listed and the usual ones, no other.
    let script = "mknod /tmp/kmsg c 1 11 2>/dev/null; cat /dev/zero | head -c 1 | wc -c; cat /tmp/kmsg >/dev/null 2>&1 || echo forbidden";
    assert_eq!(scoped.wright(&["exec", &scoped.bundle.id, "sh", "-c", script])?.ok()?, "1\nforbidden\n");
    Ok(())
}

#[test]
fn an_update_reaches_systemd_and_the_kernel() -> Outcome {
    if !present("wright::an_update_reaches_systemd_and_the_kernel") {
        return Ok(());
    }
    let scoped = Scoped::new(FOREVER)?;
    scoped.start()?;
    let (unit, id) = (&scoped.unit, &scoped.bundle.id);
    scoped
        .wright(&[
            "update",
            "--memory",
            "96m",
            "--pids-limit",
            "60",
            "--cpu-quota",
            "30000",
            "--cpu-period",
            "100000",
            id,
        ])?
        .ok()?;
    let check = || -> Outcome {
        assert_eq!(property(unit, "MemoryMax")?, (96 << 20).to_string());
        assert_eq!(property(unit, "TasksMax")?, "60");
        assert_eq!(property(unit, "CPUQuotaPerSecUSec")?, "300ms");
        assert_eq!(cgroup_file(unit, "memory.max")?, (96 << 20).to_string());
        assert_eq!(cgroup_file(unit, "pids.max")?, "60");
        assert_eq!(cgroup_file(unit, "cpu.max")?, "30000 100000");
        Ok(())
    };
    check()?;
    systemctl(&["daemon-reload"])?;
    check()
}

#[test]
fn a_scope_is_lived_in_and_vanishes() -> Outcome {
    if !present("wright::a_scope_is_lived_in_and_vanishes") {
        return Ok(());
    }
    let scoped = Scoped::new(FOREVER)?;
    scoped.start()?;
    let id = &scoped.bundle.id;
    let directory = scoped.directory()?;
    assert_eq!(scoped.wright(&["exec", id, "cat", "/proc/self/cgroup"])?.ok()?, "0::/\n");
    scoped.wright(&["pause", id])?.ok()?;
    assert_eq!(
        (scoped.bundle.status()?.as_str(), cgroup_file(&scoped.unit, "cgroup.freeze")?.as_str()),
        ("paused", "1")
    );
    scoped.wright(&["resume", id])?.ok()?;
    assert_eq!(scoped.bundle.status()?, "running");
    let table = scoped.wright(&["ps", "--format", "json", id])?.ok()?;
    assert!(table.contains(&scoped.bundle.pid()?.to_string()), "{table}");
    let pid = scoped.bundle.pid()?;
    scoped.wright(&["kill", id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    assert_eq!(scoped.bundle.status()?, "stopped");
    scoped.wright(&["delete", id])?.ok()?;
    ensure!(!Path::new(&directory).exists(), "{directory} is still there");
    assert_eq!(property(&scoped.unit, "LoadState")?, "not-found");
    // Its name can be used again at once, also where it went by itself.
    scoped.start()
}

#[test]
fn run_leaves_no_unit_behind() -> Outcome {
    if !present("wright::run_leaves_no_unit_behind") {
        return Ok(());
    }
    let scoped = Scoped::new("exit 7")?;
    for _ in 0..5 {
        let ran = scoped.wright(&["run", &scoped.bundle.id])?;
        assert_eq!(ran.code, 7, "{ran:?}");
        assert_eq!(property(&scoped.unit, "LoadState")?, "not-found");
    }
    // Refused once the scope is there, and before.
    scoped.bundle.edit(|spec| spec["process"]["args"] = json!(["/no/such/program"]))?;
    assert_eq!(scoped.wright(&["run", &scoped.bundle.id])?.code, 1);
    assert_eq!(property(&scoped.unit, "LoadState")?, "not-found");
    let name = format!("x-y:pw:{}", scoped.bundle.id);
    scoped.bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(name))?;
    let ran = scoped.wright(&["run", &scoped.bundle.id])?;
    assert!(ran.code == 1 && !ran.stderr.is_empty(), "{ran:?}");
    Ok(())
}

#[test]
fn an_oom_is_told_although_the_scope_vanishes() -> Outcome {
    if !present("wright::an_oom_is_told_although_the_scope_vanishes") {
        return Ok(());
    }
    let script = "echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; exec tail /dev/zero";
    let scoped = Scoped::new(script)?;
    scoped.bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    })?;
    scoped.start()?;
    let mut events =
        scoped.bundle.command(&["--systemd-cgroup", "events", "--interval", "1s", &scoped.bundle.id])?;
    let mut events = events.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(events.stdout.take().context("stdout")?).lines();
    let is_stats = |line: &str| line.starts_with("{\"type\":\"stats\",");
    // Notices are listened to from before the first statistics.
    let first = lines.next().context("a line")??;
    ensure!(is_stats(&first), "{first}");
    fs::write(scoped.bundle.path().join("rootfs/tmp/go"), "")?;
    // The only process of the scope is killed, and the scope goes with it.
    let other = lines.find(|line| !line.as_ref().is_ok_and(|line| is_stats(line))).context("a notice")??;
    assert_eq!(other, format!("{{\"type\":\"oom\",\"id\":\"{}\"}}", scoped.bundle.id));
    drop(lines);
    scoped.wright(&["delete", "--force", &scoped.bundle.id])?.ok()?;
    let _ = events.kill();
    events.wait()?;
    Ok(())
}
