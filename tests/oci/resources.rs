//! Limits, their change, and what `events` and `ps` tell.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use anyhow::Context as _;
use podwright_tests::oci::Bundle;
use podwright_tests::{Outcome, skip, snapshot};
use serde_json::{Value, json};

use crate::start;

const FOREVER: &str = "echo up; sleep 100000";

/// The content of a file of the container's cgroup, by its v1 or its v2 name.
fn limit(bundle: &Bundle, names: [&str; 2]) -> Option<String> {
    snapshot::cgroups(&bundle.id)
        .into_iter()
        .flat_map(|cgroup| names.map(|name| cgroup.join(name)))
        .find_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
}

#[test]
fn limits_are_set_and_changed() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
    })?;
    start(&bundle)?;
    let memory = || limit(&bundle, ["memory.limit_in_bytes", "memory.max"]);
    let pids = || limit(&bundle, ["pids.max", "pids.max"]);
    assert_eq!(memory(), Some((64 << 20).to_string()));
    assert_eq!(pids().as_deref(), Some("50"));
    bundle.wright(&["update", "--memory", "96m", "--pids-limit", "60", &bundle.id])?.ok()?;
    assert_eq!(memory(), Some((96 << 20).to_string()));
    assert_eq!(pids().as_deref(), Some("60"));
    let mut update = bundle.command(&["update", "--resources", "-", &bundle.id])?;
    let mut update = update.stdin(Stdio::piped()).spawn()?;
    update.stdin.take().context("stdin")?.write_all(br#"{"pids": {"limit": 70}}"#)?;
    assert!(update.wait()?.success());
    assert_eq!(pids().as_deref(), Some("70"));
    assert_eq!(memory(), Some((96 << 20).to_string()), "what is left out stays");
    let ran = bundle.wright(&["update", "--memory", "lots", &bundle.id])?;
    assert!(ran.code == 1 && ran.stderr.contains("invalid value for memory"), "{ran:?}");
    Ok(())
}

/// Which controller has the file, what the spec says, the file's names on v1 and on v2, and what is then in it, on either.
type Kind = (&'static str, Value, [&'static str; 2], [&'static str; 2]);

fn kinds() -> Vec<Kind> {
    vec![
        ("cpu", json!({"cpu": {"shares": 512}}), ["cpu.shares", "cpu.weight"], ["512", "59"]),
        (
            "cpu",
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
            ["cpu.cfs_quota_us", "cpu.max"],
            ["50000", "50000 100000"],
        ),
        (
            "cpu",
            json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000}}),
            ["cpu.cfs_burst_us", "cpu.max.burst"],
            ["20000", "20000"],
        ),
        ("cpu", json!({"cpu": {"idle": 1}}), ["cpu.idle", "cpu.idle"], ["1", "1"]),
        ("cpuset", json!({"cpu": {"cpus": "0", "mems": "0"}}), ["cpuset.cpus", "cpuset.cpus"], ["0", "0"]),
        (
            "memory",
            json!({"memory": {"limit": 64 << 20, "reservation": 32 << 20}}),
            ["memory.soft_limit_in_bytes", "memory.low"],
            ["33554432", "33554432"],
        ),
        (
            "hugetlb",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}),
            ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"],
            ["4194304", "4194304"],
        ),
        ("net_cls", json!({"network": {"classID": 1_048_577}}), ["net_cls.classid", ""], ["1048577", ""]),
        ("rdma", json!({"rdma": {"mlx5_9": {"hcaHandles": 3}}}), ["", ""], ["", ""]),
    ]
}

#[test]
fn every_kind_of_limit_reaches_its_file() -> Outcome {
    let mut missing = Vec::new();
    for (controller, resources, files, values) in kinds() {
        let bundle = Bundle::new(FOREVER)?;
        bundle.edit(|spec| {
            if let (Some(all), Some(new)) =
                (spec["linux"]["resources"].as_object_mut(), resources.as_object())
            {
                all.extend(new.clone());
            }
        })?;
        if files == ["", ""] {
            // No such device, and maybe no such controller: a limit that cannot be set is refused by its name.
            let ran = bundle.wright(&["run", &bundle.id])?;
            assert!(ran.code != 0 && ran.stderr.contains(controller), "{ran:?}");
            continue;
        }
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let on_v1 = own.lines().any(|line| {
            line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
        });
        let (file, value) = if on_v1 { (files[0], values[0]) } else { (files[1], values[1]) };
        let on_v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        if file.is_empty() || !on_v1 && !on_v2.split_whitespace().any(|name| name == controller) {
            missing.push(controller);
            continue;
        }
        start(&bundle)?;
        assert_eq!(limit(&bundle, [file, file]).as_deref(), Some(value), "{resources}");
    }
    if !missing.is_empty() {
        let reason = format!("all were right but those of controllers that are not here: {missing:?}");
        skip::skip("oci::resources::every_kind_of_limit_reaches_its_file", &reason);
    }
    Ok(())
}

#[test]
fn stats_have_the_keys_their_readers_know() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let text = bundle.wright(&["events", "--stats", &bundle.id])?.ok()?;
    assert_eq!(text.lines().count(), 1);
    let event: Value = serde_json::from_str(&text)?;
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id)));
    for key in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"] {
        assert!(event["data"].get(key).is_some(), "{key}");
    }
    assert!(event["data"]["pids"]["current"].as_u64().is_some_and(|count| count >= 1), "{event}");
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0), "{event}");
    Ok(())
}

#[test]
fn an_oom_is_one_exact_line_and_events_end_with_the_container() -> Outcome {
    let test = "oci::resources::an_oom_is_one_exact_line_and_events_end_with_the_container";
    if limit_files_missing() {
        skip::skip(test, "no memory controller");
        return Ok(());
    }
    // The shell lives on while its child grows until it is killed.
    let bundle =
        Bundle::new("echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; (tail /dev/zero); sleep 100000")?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    })?;
    start(&bundle)?;
    let mut events = bundle.command(&["events", "--interval", "100ms", &bundle.id])?;
    let mut events = events.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(events.stdout.take().context("stdout")?).lines();
    let is_stats = |line: &str| line.starts_with("{\"type\":\"stats\",");
    // Notices are listened to from before the first statistics.
    let first = lines.next().context("a line")??;
    assert!(is_stats(&first), "{first}");
    fs::write(bundle.path().join("rootfs/tmp/go"), "")?;
    let other = lines.find(|line| !line.as_ref().is_ok_and(|line| is_stats(line))).context("a notice")??;
    assert_eq!(other, format!("{{\"type\":\"oom\",\"id\":\"{}\"}}", bundle.id));
    bundle.wright(&["delete", "--force", &bundle.id])?.ok()?;
    assert!(lines.all(|line| line.is_ok_and(|line| line == other || is_stats(&line))));
    assert!(events.wait()?.success());
    Ok(())
}

fn limit_files_missing() -> bool {
    !snapshot::unified() && !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
}

#[test]
fn ps_shows_only_the_containers_processes() -> Outcome {
    let bundle = Bundle::new("echo up; sleep 31415926")?;
    start(&bundle)?;
    let table = bundle.wright(&["ps", &bundle.id])?.ok()?;
    assert!(table.lines().next().is_some_and(|head| head.contains("PID")), "{table}");
    assert!(table.contains("31415926"), "{table}");
    assert!(table.lines().count() <= 3, "{table}");
    Ok(())
}

#[test]
fn ps_hands_its_options_to_the_hosts_ps() -> Outcome {
    if !std::process::Command::new("ps").args(["-e", "-x"]).output()?.status.success() {
        skip::skip(
            "oci::resources::ps_hands_its_options_to_the_hosts_ps",
            "the host's ps does not know -x: it is busybox's",
        );
        return Ok(());
    }
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let table = bundle.wright(&["ps", &bundle.id, "-e", "-x"])?;
    assert_eq!(table.code, 0, "{table:?}");
    Ok(())
}

#[test]
fn another_containers_cgroup_is_not_taken_over() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let second = format!("{}-second", bundle.id);
    let ran = bundle.wright(&["run", "--detach", &second])?;
    assert!(ran.code == 1 && ran.stderr.contains("container's cgroup is not empty"), "{ran:?}");
    assert_eq!(bundle.status()?, "running");
    Ok(())
}

/// The runtime-spec's `config-linux.md#cgroup-ownership`: what is delegated is the container's user's, and its limits are not.
#[test]
fn a_writable_cgroup_belongs_to_the_containers_user() -> Outcome {
    if !snapshot::unified() {
        let reason = "cgroup v1 hierarchies are not delegated; the virtual machine tests it";
        skip::skip("oci::resources::a_writable_cgroup_belongs_to_the_containers_user", reason);
        return Ok(());
    }
    let script = "cd /sys/fs/cgroup; stat -c '%n %u' . cgroup.procs cgroup.subtree_control pids.max; mkdir own && echo made; \
                  echo $$ > own/cgroup.procs && echo moved; (echo 5 > pids.max) 2>/dev/null || echo limited";
    for (options, owner) in [(json!(["nosuid", "rw"]), "1000"), (json!(["nosuid", "ro"]), "0")] {
        let bundle = Bundle::new(script)?;
        bundle.edit(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["linux"]["resources"]["pids"] = json!({"limit": 50});
            for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
                if mount["destination"] == "/sys/fs/cgroup" {
                    mount["options"] = options.clone();
                }
            }
        })?;
        let text = bundle.wright(&["run", &bundle.id])?.stdout;
        let first = format!(". {owner}\ncgroup.procs {owner}\ncgroup.subtree_control {owner}\npids.max 0\n");
        assert!(text.starts_with(&first) && text.ends_with("limited\n"), "{text}");
        assert_eq!(text.contains("made\nmoved\n"), owner == "1000", "{text}");
    }
    Ok(())
}
