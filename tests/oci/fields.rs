//! Fields of the specification, each seen from inside the container.

use std::fs;

use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Outcome, skip};
use serde_json::{Value, json};

/// Runs `script` with the spec changed, and returns what it wrote.
fn inside(script: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<String> {
    let bundle = Bundle::new(script)?;
    bundle.edit(change)?;
    bundle.wright(&["run", &bundle.id])?.ok()
}

/// Adds a namespace unless the spec has one of its type: `wright spec` gives a cgroup namespace where there is only version 2.
fn add_namespace(spec: &mut Value, namespace: Value) {
    if let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces")
        && !namespaces.iter().any(|other| other["type"] == namespace["type"])
    {
        namespaces.push(namespace);
    }
}

fn add_mount(spec: &mut Value, mount: Value) {
    if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
        mounts.push(mount);
    }
}

#[test]
fn the_process_is_as_described() -> Outcome {
    let script = "id -u; id -g; id -G; umask; pwd; ulimit -n; ulimit -Hn; grep NoNewPrivs /proc/self/status; echo $A; \
                  cat /proc/self/oom_score_adj";
    let text = inside(script, |spec| {
        let process = &mut spec["process"];
        process["user"] = json!({"uid": 11, "gid": 12, "umask": 0o27, "additionalGids": [13, 14]});
        process["cwd"] = json!("/var/log");
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        process["noNewPrivileges"] = json!(false);
        process["oomScoreAdj"] = json!(777);
        process["env"] = json!(["PATH=/bin", "A=1", "A=2"]);
    })?;
    assert_eq!(text, "11\n12\n12 13 14\n0027\n/var/log\n100\n200\nNoNewPrivs:\t0\n2\n777\n");
    Ok(())
}

#[test]
fn capabilities_are_exactly_those_given() -> Outcome {
    let script = "grep Cap /proc/self/status";
    let sets = |text: &str| -> Vec<u64> {
        text.lines().filter_map(|line| u64::from_str_radix(line.rsplit('\t').next()?, 16).ok()).collect()
    };
    let text = inside(script, |spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
        });
        spec["process"]["user"]["uid"] = json!(1000);
    })?;
    // Inheritable, permitted, effective, bounding, ambient: a user's exec keeps what is ambient.
    assert_eq!(sets(&text), [1 << 5, 1 << 5, 1 << 5, 1 << 5 | 1, 1 << 5], "{text}");
    let text = inside(script, |spec| {
        if let Some(process) = spec["process"].as_object_mut() {
            process.remove("capabilities");
        }
    })?;
    assert_eq!(sets(&text), [0, 0, 0, 0, 0], "absent is none: {text}");
    Ok(())
}

#[test]
fn names_sysctls_and_namespaces() -> Outcome {
    let script = "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni; echo $$; \
                  ls /sys/class/net; cat /sys/class/net/lo/operstate";
    let text = inside(script, |spec| {
        spec["hostname"] = json!("box");
        spec["domainname"] = json!("example.org");
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234"});
    })?;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..5], ["box", "example.org", "1", "1234", "1"], "{text}");
    assert!(lines.contains(&"lo"), "{text}");
    Ok(())
}

#[test]
fn time_and_cgroup_namespaces_are_made() -> Outcome {
    let text = inside("cat /proc/self/timens_offsets; cat /proc/self/cgroup", |spec| {
        add_namespace(spec, json!({"type": "time"}));
        add_namespace(spec, json!({"type": "cgroup"}));
        spec["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 7881, "nanosecs": 2_718_281}, "boottime": {"secs": 1337}});
    })?;
    let words: Vec<_> =
        text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(words.contains(&"monotonic 7881 2718281".to_owned()), "{text}");
    assert!(words.contains(&"boottime 1337 0".to_owned()), "{text}");
    let cgroups: Vec<_> =
        text.lines().filter(|line| line.contains("::") || line.contains(":pids:")).collect();
    assert!(!cgroups.is_empty() && cgroups.iter().all(|line| line.ends_with(":/")), "{text}");
    Ok(())
}

#[test]
fn a_user_namespace_is_mapped() -> Outcome {
    let text = inside(
        "id -u; cat /proc/self/uid_map; stat -c %u /root; touch /tmp/x && stat -c %u /tmp/x",
        |spec| {
            add_namespace(spec, json!({"type": "user"}));
            spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        },
    )?;
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "65536", "0", "0"], "{text}");
    Ok(())
}

#[test]
fn joined_namespaces_are_those_of_the_paths() -> Outcome {
    let first = Bundle::new("echo up; sleep 100000")?;
    crate::start(&first)?;
    let pid = first.pid()?;
    let second =
        Bundle::new("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; ls /proc | grep -c '^[0-9]'")?;
    second.edit(|spec| {
        spec["linux"]["namespaces"] = json!([
            {"type": "mount"}, {"type": "uts"}, {"type": "pid", "path": format!("/proc/{pid}/ns/pid")},
            {"type": "network", "path": format!("/proc/{pid}/ns/net")}, {"type": "ipc", "path": format!("/proc/{pid}/ns/ipc")}
        ]);
    })?;
    let text = second.wright(&["run", &second.id])?.ok()?;
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
    let mut lines = text.lines();
    assert_eq!(lines.next(), link("net")?.to_str());
    assert_eq!(lines.next(), link("ipc")?.to_str());
    assert!(
        lines.next().and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count >= 3),
        "{text}"
    );
    Ok(())
}

#[test]
fn mounts_have_their_options() -> Outcome {
    let bundle = Bundle::new(
        "grep -E ' /(ro|noexec|copy|shm2) ' /proc/self/mountinfo; cat /ro/file; touch /ro/x 2>/dev/null || echo refused; \
         cat /copy/passwd | head -1; touch /copy/new && ls /copy | grep -c new",
    )?;
    let source = bundle.path().join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("file"), "bound\n")?;
    std::fs::create_dir_all(bundle.path().join("rootfs/copy"))?;
    std::fs::write(bundle.path().join("rootfs/copy/passwd"), "first\n")?;
    bundle.edit(|spec| {
        // A relative source is the bundle's.
        add_mount(spec, json!({"destination": "/ro", "type": "none", "source": "source", "options": ["bind", "ro", "nosuid"]}));
        add_mount(spec, json!({"destination": "/noexec", "type": "tmpfs", "source": "t", "options": ["noexec", "nodev", "size=64k", "noatime"]}));
        add_mount(spec, json!({"destination": "/copy", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]}));
        add_mount(spec, json!({"destination": "/shm2", "type": "bind", "source": "/proc/self/attr", "options": ["rbind", "rro", "rnosuid"]}));
    })?;
    let text = bundle.wright(&["run", &bundle.id])?.ok()?;
    let mount = |at: &str| text.lines().find(|line| line.contains(at)).unwrap_or_default().to_owned();
    assert!(mount(" /ro ").contains(" ro,nosuid"), "{text}");
    assert!(
        mount(" /noexec ").contains("nodev,noexec,noatime") && mount(" /noexec ").contains("size=64k"),
        "{text}"
    );
    assert!(mount(" /shm2 ").contains(" ro,nosuid"), "{text}");
    assert!(text.contains("bound\nrefused\nfirst\n1\n"), "{text}");
    assert_eq!(
        std::fs::read_dir(bundle.path().join("rootfs/copy"))?.count(),
        1,
        "the root keeps what it had"
    );
    Ok(())
}

#[test]
fn paths_are_masked_and_read_only() -> Outcome {
    let text = inside(
        "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/shmmni || echo refused; touch /x || echo refused",
        |spec| {
            spec["linux"]["sysctl"] = json!({});
            spec["root"]["readonly"] = json!(true);
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
            }
        },
    )?;
    assert_eq!(text, "0\n0\nrefused\nrefused\n");
    Ok(())
}

#[test]
fn devices_are_there_and_limited() -> Outcome {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  stat -c '%t:%T %a %u' /dev/mine; for l in ptmx fd stdin; do readlink /dev/$l; done; head -c 3 /dev/zero | wc -c; \
                  cat /dev/mine >/dev/null 2>&1 || echo forbidden";
    let text = inside(script, |spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 11, "fileMode": 0o640, "uid": 3, "gid": 4}]);
    })?;
    assert_eq!(text, "1:b 640 3\npts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n3\nforbidden\n");
    Ok(())
}

#[test]
fn attributes_of_the_process_reach_the_kernel() -> Outcome {
    let text = inside(
        "cut -d ' ' -f 41 /proc/self/stat; ionice -p $$; uname -m; grep Cpus_allowed_list /proc/self/status",
        |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
            spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
            spec["linux"]["personality"] = json!({"domain": "LINUX32"});
        },
    )?;
    assert!(text.starts_with("3\n") && text.contains("prio 6"), "{text}");
    assert!(text.contains("i686"), "{text}");
    Ok(())
}

#[test]
fn a_memory_policy_is_in_force() -> Outcome {
    let text = inside("head -1 /proc/self/numa_maps", |spec| {
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"});
    })?;
    assert!(text.contains("interleave:0"), "{text}");
    Ok(())
}

#[test]
fn seccomp_refuses_what_it_is_told_to() -> Outcome {
    let text = inside("mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status", |spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]
        });
    })?;
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("Seccomp:\t2"), "{text}");
    Ok(())
}

#[test]
fn without_a_process_nothing_runs_but_it_can_be_created_not() -> Outcome {
    let bundle = Bundle::new("true")?;
    bundle.edit(|spec| {
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("process");
        }
    })?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    assert_eq!(ran.code, 1, "{ran:?}");
    Ok(())
}

#[test]
fn intel_rdt_is_refused_where_there_is_none() -> Outcome {
    if fs::read_to_string("/proc/mounts")?.contains(" resctrl ") {
        skip::skip("oci::fields::intel_rdt_is_refused_where_there_is_none", "this machine has it");
        return Ok(());
    }
    let bundle = Bundle::new("true")?;
    bundle.edit(|spec| spec["linux"]["intelRdt"] = json!({"closID": "gold", "l3CacheSchema": "L3:0=f"}))?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    let words = "linux.intelRdt: intelRdt is specified in config, but Intel RDT is not enabled";
    assert!(ran.code == 1 && ran.stderr.contains(words), "{ran:?}");
    Ok(())
}

#[test]
fn an_idmapped_mount_shows_other_owners() -> Outcome {
    let bundle = Bundle::new("stat -c %u:%g /data/file; touch /data/new")?;
    let data = bundle.path().join("data");
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("file"), "")?;
    std::os::unix::fs::chown(data.join("file"), Some(1000), Some(1001))?;
    std::os::unix::fs::chown(&data, Some(1000), Some(1001))?;
    let map = |disk: u32| json!([{"containerID": disk, "hostID": 0, "size": 1}]);
    bundle.edit(|spec| {
        // What belongs to 1000 on disk is root's in the container.
        add_mount(
            spec,
            json!({"destination": "/data", "type": "none", "source": data, "options": ["bind", "idmap"],
                   "uidMappings": map(1000), "gidMappings": map(1001)}),
        );
    })?;
    assert_eq!(bundle.wright(&["run", &bundle.id])?.ok()?, "0:0\n");
    let made = std::fs::metadata(data.join("new"))?;
    let owner = (std::os::unix::fs::MetadataExt::uid(&made), std::os::unix::fs::MetadataExt::gid(&made));
    assert_eq!(owner, (1000, 1001), "what its root makes there is 1000's on disk");
    Ok(())
}

/// The source of the last mount is what the mounts before it make of the root: on the host nothing is there. It was looked for there only.
#[test]
fn an_idmapped_mount_may_be_of_an_earlier_mount() -> Outcome {
    let bundle = Bundle::new("cat /final/x/file; stat -c %u /final/x/file")?;
    for below in ["a/x", "b"] {
        std::fs::create_dir_all(bundle.path().join("source").join(below))?;
    }
    std::fs::write(bundle.path().join("source/b/file"), "of b\n")?;
    let (uid, gid) = (100_000, 200_000);
    let bind = |source: &std::path::Path, destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    bundle.edit(|spec| {
        let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        spec["linux"]["uidMappings"] = map(uid);
        spec["linux"]["gidMappings"] = map(gid);
        spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
        let source = bundle.path().join("source");
        add_mount(spec, bind(&source.join("a"), "/mnt", &["rbind"]));
        add_mount(spec, bind(&source.join("b"), "/mnt/x", &["rbind"]));
        add_mount(spec, bind(&bundle.path().join("rootfs/mnt"), "/final", &["rbind", "ridmap"]));
    })?;
    // The container's root owns nothing here, and the way here is the host root's only.
    for point in ["mnt", "final"] {
        std::fs::create_dir_all(bundle.path().join("rootfs").join(point))?;
    }
    let output = bundle.wright(&["run", &bundle.id])?.ok()?;
    assert_eq!(output, "of b\n0\n", "what root owns on the host is the container's root's");
    Ok(())
}

/// The host's mounts are then the container's, as with runc. The host is a mount namespace of this test's own.
#[test]
fn without_a_mount_namespace_the_containers_mounts_are_the_hosts() -> Outcome {
    let bundle = Bundle::new("stat -f -c %T /proc; test ! -e /etc/shadow; touch /new 2>&1")?;
    bundle.edit(|spec| {
        spec["root"]["readonly"] = json!(true);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "mount");
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    })?;
    let script = "\"$0\" --root \"$1\" run \"$2\"; echo code $?; grep -c \" $3\" /proc/self/mountinfo";
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(podwright_tests::binaries::find("wright")?);
    command.arg(bundle.state_root()).arg(&bundle.id).arg(bundle.path().join("rootfs"));
    let ran = Ran::from(command.current_dir(bundle.path()).output()?);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(
        matches!(lines[..], ["proc", touched, "code 1", mounts] if touched.contains("Read-only")
        && mounts.parse::<usize>().is_ok_and(|mounts| mounts > 5)),
        "{ran:?}"
    );
    Ok(())
}
