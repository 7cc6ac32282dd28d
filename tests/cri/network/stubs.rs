//! Plugins that misbehave at every step of a pod's life, with and without the daemon's death: nothing is left in the end.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use podwright_tests::snapshot::links;
use podwright_tests::stub_plugin::{Fault, NAMES, StubPlugins};
use podwright_tests::watch::{self, DirectoryWatch};
use podwright_tests::{Deadline, Node, NodeOptions, Outcome, PodBuilder, deadline, process, v1};
use tonic::Code;

use super::until_network;

/// Waits until no lease and no link is left.
fn until_clean(node: &Node, stubs: &StubPlugins) -> Outcome {
    let watch = DirectoryWatch::new(&stubs.leases())?;
    let deadline = Deadline::in_seconds(30);
    while !stubs.left(node)?.is_empty() {
        watch.next(deadline).with_context(|| format!("left behind: {:?}", stubs.left(node)))?;
    }
    Ok(())
}

fn pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let config = PodBuilder::new(node, name).own_network().config;
    fs::create_dir_all(&config.log_directory).unwrap_or_default();
    config
}

#[test]
fn plugins_are_told_what_the_pod_is() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    let pod = PodBuilder::new(&node, "told")
        .own_network()
        .with(|config| {
            config.hostname = "told-0.svc".to_owned();
            config.dns_config =
                Some(v1::DnsConfig { servers: vec!["10.0.0.10".to_owned()], ..Default::default() });
            config.port_mappings =
                vec![v1::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        })
        .run(&node)?;
    let (config, env) = stubs.seen("second", "ADD")?;
    assert_eq!(config["runtimeConfig"]["dns"]["servers"][0], "10.0.0.10");
    assert_eq!(config["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert_eq!(config["prevResult"]["ips"][0]["address"], "10.99.0.5/24");
    assert!(config.get("capabilities").is_none());
    assert!(stubs.seen("first", "ADD")?.0["runtimeConfig"].get("dns").is_none(), "it did not ask for it");
    let netns = format!("CNI_NETNS={}", node.path().join("run/pods").join(&pod.id).join("netns").display());
    for wanted in [
        "CNI_COMMAND=ADD",
        &format!("CNI_CONTAINERID={}", pod.id),
        "CNI_IFNAME=eth0",
        &netns,
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=tests;K8S_POD_NAME=told;",
    ] {
        assert!(env.contains(wanted), "{wanted} is not in {env}");
    }
    let status = pod.status()?.network.context("no network status")?;
    assert_eq!((status.ip.as_str(), status.additional_ips[0].ip.as_str()), ("10.99.0.5", "fd99::5"));
    let hosts = pod.sh("cat /etc/hosts").output()?;
    assert!(hosts.contains("10.99.0.5\ttold-0.svc told-0\n"), "{hosts}");

    // What made it undoes it, whatever the configuration says by then, and in reverse.
    fs::write(
        node.cni().join("10-stubs.conflist"),
        r#"{"cniVersion":"1.0.0","name":"other","type":"none"}"#,
    )?;
    node.restart()?;
    let client = node.client()?;
    let known = client.pod(&pod.id)?.network.context("no network status")?;
    assert_eq!(known, status, "known to the next daemon");
    client.stop_pod(&pod.id)?;
    let dels: Vec<String> = stubs.calls("DEL").iter().map(|call| call[..6].trim().to_owned()).collect();
    assert_eq!(dels, ["second", "first"]);
    let (config, _) = stubs.seen("first", "DEL")?;
    assert_eq!(
        (config["name"].as_str(), &config["prevResult"]["ips"][1]["address"]),
        (Some("stubs"), &"fd99::5/64".into())
    );
    assert!(stubs.left(&node)?.is_empty());
    client.stop_pod(&pod.id)?;
    client.remove_pod(&pod.id)?;
    assert_eq!(stubs.calls("DEL").len(), 2, "DEL is done once when it succeeded");
    Ok(())
}

/// Runs a pod while a plugin does ADD wrong: it is refused, and its DEL follows.
fn failed_add(node: &Node, stubs: &StubPlugins, plugin: &str, fault: Fault, kill: bool) -> Outcome {
    stubs.set(plugin, "ADD", Some(fault))?;
    let config = pod(node, &format!("add-{plugin}-{fault:?}-{kill}").to_lowercase());
    if kill && fault == Fault::Hang {
        // In the middle of the ADD.
        let _ = fs::remove_file(stubs.hanging());
        let client = node.client()?;
        std::thread::scope(|scope| {
            let call = scope.spawn(|| client.run_pod(&config));
            watch::file(&stubs.hanging(), Deadline::in_seconds(20))?;
            node.kill9()?;
            ensure!(call.join().is_ok_and(|reply| reply.is_err()), "a dead daemon answered");
            Ok(())
        })?;
    } else {
        let Err(error) = node.client()?.run_pod(&config) else {
            bail!("a pod whose plugin does {fault:?} was made");
        };
        let text = error.message();
        let wanted = match fault {
            Fault::Fail => "the stub was told to (after its work) (code 117)",
            Fault::Hang => "killed with its children",
            Fault::Crash => "signal: 11",
            Fault::Garbage => "not JSON",
            Fault::Huge => "wrote more than",
            Fault::Nothing => "it printed nothing",
        };
        ensure!(
            text.contains(wanted) && text.contains(&format!("plugin {plugin} (ADD)")),
            "{fault:?}: {text}"
        );
        if kill {
            node.kill9()?;
        }
    }
    stubs.set(plugin, "ADD", None)?;
    if kill {
        node.launch()?;
    }
    until_clean(node, stubs)?;
    ensure!(stubs.escaped()?.is_empty(), "not killed with the plugin: {:?}", stubs.escaped());
    Ok(())
}

/// Stops a pod while a plugin does DEL wrong: it is refused until the plugin works, and done then.
fn failed_del(node: &Node, stubs: &StubPlugins, plugin: &str, fault: Fault, kill: bool) -> Outcome {
    let config = pod(node, &format!("del-{plugin}-{fault:?}-{kill}").to_lowercase());
    let client = node.client()?;
    let id = client.run_pod(&config)?;
    stubs.set(plugin, "DEL", Some(fault))?;
    if kill && fault == Fault::Hang {
        let _ = fs::remove_file(stubs.hanging());
        std::thread::scope(|scope| {
            let call = scope.spawn(|| client.stop_pod(&id));
            watch::file(&stubs.hanging(), Deadline::in_seconds(20))?;
            node.kill9()?;
            ensure!(call.join().is_ok_and(|reply| reply.is_err()), "a dead daemon answered");
            Ok(())
        })?;
    } else {
        let stopped = client.stop_pod(&id);
        // A DEL has no result: what ended well has done it.
        let fine = matches!(fault, Fault::Garbage | Fault::Nothing);
        ensure!(stopped.is_ok() == fine, "{fault:?}: {stopped:?}");
        if kill {
            node.kill9()?;
        }
    }
    stubs.set(plugin, "DEL", None)?;
    if kill {
        node.launch()?;
    }
    let client = node.client()?;
    client.stop_pod(&id)?;
    ensure!(stubs.left(node)?.is_empty(), "{fault:?}: left behind: {:?}", stubs.left(node));
    let done = stubs.calls("DEL").len();
    client.stop_pod(&id)?;
    client.remove_pod(&id)?;
    ensure!(stubs.calls("DEL").len() == done, "DEL was repeated after it had succeeded");
    ensure!(stubs.escaped()?.is_empty(), "not killed with the plugin: {:?}", stubs.escaped());
    Ok(())
}

fn every_fault(act: fn(&Node, &StubPlugins, &str, Fault, bool) -> Outcome) -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    for (first, fault) in Fault::ALL.into_iter().enumerate() {
        for (second, plugin) in NAMES.into_iter().enumerate() {
            for kill in [false, true] {
                // Every fault of one plugin with a death, and of the other without, where each costs seconds.
                if deadline::slowness() > 1 && (first + second + usize::from(kill)) % 2 == 1 {
                    continue;
                }
                act(&node, &stubs, plugin, fault, kill)
                    .with_context(|| format!("{fault:?} of the {plugin} plugin, kill -9: {kill}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_failed_add_is_followed_by_del_whatever_dies() -> Outcome {
    every_fault(failed_add)
}

#[test]
fn a_failed_del_is_repeated_until_it_succeeds_whatever_dies() -> Outcome {
    every_fault(failed_del)
}

#[test]
fn a_del_that_fails_after_a_failed_add_is_repeated_by_itself() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    stubs.set("second", "ADD", Some(Fault::Fail))?;
    stubs.set("first", "DEL", Some(Fault::Fail))?;
    node.client()?.run_pod(&pod(&node, "both")).unwrap_err();
    assert_eq!(node.client()?.pods()?.len(), 0, "nobody was told its id");
    assert_eq!(fs::read_dir(node.path().join("state/pods"))?.count(), 1, "its record stays");
    stubs.set("second", "ADD", None)?;
    stubs.set("first", "DEL", None)?;
    let pods = node.path().join("state/pods");
    until(&pods, || Ok(fs::read_dir(&pods)?.next().is_none()))?;
    until_clean(&node, &stubs)
}

/// Waits, woken by changes of a directory, until something holds.
pub(super) fn until(directory: &Path, holds: impl Fn() -> Result<bool>) -> Outcome {
    let watch = DirectoryWatch::new(directory)?;
    while !holds()? {
        watch.next(Deadline::in_seconds(30))?;
    }
    Ok(())
}

#[test]
fn a_hanging_plugin_holds_up_nobody_else() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    stubs.set("first", "ADD", Some(Fault::Hang))?;
    let (client, config) = (node.client()?, pod(&node, "hangs"));
    let started = Instant::now();
    std::thread::scope(|scope| -> Outcome {
        let hanging = scope.spawn(|| client.run_pod(&config));
        watch::file(&stubs.hanging(), Deadline::in_seconds(20))?;
        let other = PodBuilder::new(&node, "hostnet").run(&node)?;
        other.remove()?;
        let error = hanging.join().map_err(|_| anyhow::anyhow!("panicked"))?.unwrap_err();
        ensure!(error.message().contains("did not end within"), "{}", error.message());
        Ok(())
    })?;
    assert!(started.elapsed() < deadline::seconds(30), "killed at its own deadline");
    let child: u32 = fs::read_to_string(stubs.hanging())?.trim().parse()?;
    process::wait_gone(child, Deadline::in_seconds(10))?;
    stubs.set("first", "ADD", None)?;
    until_clean(&node, &stubs)
}

#[test]
fn pods_of_before_a_reboot_are_detached() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    let id = node.client()?.run_pod(&pod(&node, "reboot"))?;
    node.kill9()?;
    for process in node.pod_processes()?.iter().filter(|process| process.name.starts_with("podwright")) {
        process::signal(process.pid, rustix::process::Signal::KILL)?;
        process::wait_gone(process.pid, Deadline::in_seconds(20))?;
    }
    let run = node.path().join("run/pods").join(&id);
    for mount in ["netns", "shm"] {
        rustix::mount::unmount(run.join(mount), rustix::mount::UnmountFlags::DETACH)?;
    }
    fs::remove_dir_all(&run)?;
    let record = node.pod_state(&id).join("sandbox.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let text = fs::read_to_string(&record)?;
    fs::write(&record, text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000"))?;
    // The lease is on a disk; that its link is here still is only because the machine was not really restarted.
    node.launch()?;
    until_clean(&node, &stubs)?;
    let (_, env) = stubs.seen("first", "DEL")?;
    assert!(env.contains("CNI_NETNS=\n"), "its namespace is gone: {env}");
    until(&node.path().join("run/pods"), || Ok(!run.exists()))?;
    assert_eq!(node.client()?.pod(&id)?.state(), v1::PodSandboxState::SandboxNotready);
    Ok(())
}

#[test]
fn the_namespace_taken_away_behind_our_back_keeps_nothing_from_being_undone() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    let id = node.client()?.run_pod(&pod(&node, "gone"))?;
    let netns = node.path().join("run/pods").join(&id).join("netns");
    rustix::mount::unmount(&netns, rustix::mount::UnmountFlags::DETACH)?;
    fs::remove_file(&netns)?;
    node.client()?.stop_pod(&id)?;
    assert!(stubs.left(&node)?.is_empty());
    assert!(stubs.seen("second", "DEL")?.1.contains("CNI_NETNS=\n"));
    Ok(())
}

#[test]
fn garbage_is_collected_with_the_live_set_at_start_and_on_demand() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.1.0")?;
    let id = node.client()?.run_pod(&pod(&node, "live"))?;
    let collection = node.path().join("run/network-collection.json");
    // So that what is read is the next daemon's.
    node.terminate()?;
    fs::remove_file(&collection).unwrap_or_default();
    node.launch()?;
    let collected = |reload: u64| {
        watch::content(&collection, Deadline::in_seconds(20), |bytes| {
            let told: serde_json::Value = serde_json::from_slice(bytes).ok()?;
            (told["reload"] == reload).then_some(told)
        })
    };
    collected(0)?;
    let valid = |plugin| -> Result<serde_json::Value> {
        Ok(stubs.seen(plugin, "GC")?.0["cni.dev/valid-attachments"].clone())
    };
    assert_eq!(valid("second")?, serde_json::json!([{ "containerID": id, "ifname": "eth0" }]));
    stubs.set("second", "CHECK", Some(Fault::Fail))?;
    node.signal(rustix::process::Signal::HUP)?;
    let told = collected(1)?;
    assert!(
        told["not_as_made"][0].as_str().is_some_and(|text| text.contains(&id)),
        "what lives is checked: {told}"
    );
    node.client()?.stop_pod(&id)?;
    stubs.set("second", "GC", Some(Fault::Fail))?;
    node.signal(rustix::process::Signal::HUP)?;
    let told = collected(2)?;
    let doctor = |wanted: &str| -> Outcome {
        let mut command = std::process::Command::new(podwright_tests::binaries::find("podwright")?);
        let output = command.arg("--socket").arg(node.socket()).args(["doctor", "--fix"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains(wanted), "{wanted:?} is not in {text}");
        Ok(())
    };
    doctor("the stub was told to")?;
    stubs.set("second", "GC", None)?;
    doctor("leftovers collected")?;
    assert_eq!(valid("first")?, serde_json::json!([]));
    assert!(told["error"].as_str().is_some_and(|text| text.contains("the stub was told to")), "{told}");
    Ok(())
}

#[test]
fn the_condition_follows_the_configuration() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.1.0")?;
    until_network(&node, true, "")?;
    let list = node.cni().join("10-stubs.conflist");
    let text = fs::read_to_string(&list)?;

    fs::remove_file(&list)?;
    until_network(&node, false, "there is no CNI configuration in")?;
    let error = node.client()?.run_pod(&pod(&node, "none")).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{}", error.message());
    PodBuilder::new(&node, "hostnet").run(&node)?.remove()?;

    fs::write(&list, "{\n  \"cniVersion\": \"1.0.0\",\n  oops\n}")?;
    until_network(&node, false, "10-stubs.conflist:3: not JSON")?;
    // Another one behind the broken one is used, and the broken one still named.
    fs::write(node.cni().join("20-good.conflist"), &text)?;
    until_network(&node, true, "10-stubs.conflist:3: not JSON")?;
    node.client()?.remove_pod(&node.client()?.run_pod(&pod(&node, "behind"))?)?;
    fs::remove_file(&list)?;
    until_network(&node, true, "")?;

    // A plugin that is missing, says no, or speaks another version.
    let program = node.path().join("plugins/second");
    fs::rename(&program, node.path().join("second"))?;
    until_network(&node, false, "plugin second is not installed: there is none in")?;
    fs::rename(node.path().join("second"), &program)?;
    until_network(&node, true, "")?;
    stubs.set("first", "STATUS", Some(Fault::Fail))?;
    until_network(&node, false, "plugin first (STATUS): the stub was told to")?;
    stubs.set("first", "STATUS", None)?;
    until_network(&node, true, "")?;
    fs::write(node.cni().join("10-old.conflist"), text.replace("1.1.0", "0.3.1"))?;
    until_network(&node, false, "it does not speak 0.3.1")?;
    fs::remove_file(node.cni().join("10-old.conflist"))?;

    // The whole directory may go and come.
    fs::rename(node.cni(), node.path().join("elsewhere"))?;
    until_network(&node, false, "there is no CNI configuration in")?;
    fs::rename(node.path().join("elsewhere"), node.cni())?;
    until_network(&node, true, "")?;
    let instances = podwright_tests::snapshot::descriptors(node.daemon_pid()?)?;
    let count =
        |name: &str| instances.iter().find(|(target, _)| target == name).map_or(0, |(_, count)| *count);
    assert_eq!(count("anon_inode:inotify"), 1, "{instances:?}");
    Ok(())
}

/// As one does that is being installed at that moment. No event tells that it would do better now.
#[test]
fn a_plugin_that_could_not_tell_its_version_is_asked_again() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    // The first has answered when the second is asked.
    watch::content(&stubs.leases().with_file_name("calls"), Deadline::in_seconds(20), |calls| {
        String::from_utf8_lossy(calls).contains("second VERSION").then_some(())
    })?;
    stubs.set("first", "VERSION", Some(Fault::Fail))?;
    fs::rename(node.cni().join("10-stubs.conflist"), node.cni().join("20-stubs.conflist"))?;
    until_network(&node, false, "plugin first (VERSION): the stub was told to")?;
    stubs.set("first", "VERSION", None)?;
    until_network(&node, true, "")
}

#[test]
fn a_host_port_has_one_pod() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    let with_port = |name: &str, ip: &str| {
        PodBuilder::new(&node, name).own_network().with(|config| {
            config.port_mappings = vec![v1::PortMapping {
                container_port: 80,
                host_port: 8080,
                host_ip: ip.to_owned(),
                ..Default::default()
            }];
        })
    };
    let first = with_port("first", "").run(&node)?;
    let calls = stubs.calls("ADD").len();
    let refused = |name: &str| -> Outcome {
        let error = node.client()?.run_pod(&with_port(name, "10.0.0.1").config).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        let text = error.message();
        assert!(
            text.contains("host port 8080/TCP is in use by pod sandbox") && text.contains(&first.id),
            "{text}"
        );
        Ok(())
    };
    refused("second")?;
    node.kill9()?;
    node.launch()?;
    refused("third")?;
    assert_eq!(stubs.calls("ADD").len(), calls, "refused before anything was made");
    node.client()?.stop_pod(&first.id)?;
    with_port("fourth", "").run(&node)?;
    Ok(())
}

#[test]
fn a_runtime_class_may_have_a_network_of_its_own() -> Outcome {
    let (node, stubs) = StubPlugins::node("1.0.0")?;
    let (special, drop_in) = (node.path().join("special"), node.path().join("config.toml.d/special.toml"));
    fs::create_dir(&special)?;
    let text = fs::read_to_string(node.cni().join("10-stubs.conflist"))?;
    fs::write(special.join("10.conflist"), text.replace("\"stubs\"", "\"special\""))?;
    fs::write(drop_in, format!("[runtime.handlers.special]\ncni_conf_dirs = [{special:?}]\n"))?;
    node.restart()?;
    let client = node.client()?;
    let request = v1::RunPodSandboxRequest {
        config: Some(pod(&node, "special")),
        runtime_handler: "special".to_owned(),
    };
    client.run_pod_sandbox(request)?;
    assert_eq!(stubs.seen("first", "ADD")?.0["name"], "special");
    client.run_pod(&pod(&node, "usual"))?;
    assert_eq!(stubs.seen("first", "ADD")?.0["name"], "stubs");
    Ok(())
}

#[test]
fn without_configuration_a_pod_has_what_the_node_says() -> Outcome {
    let node = Node::with(&NodeOptions { own_network: true, ..Default::default() })?;
    until_network(&node, true, "loopback interface only")?;
    let pod = PodBuilder::new(&node, "loopback").own_network().run(&node)?;
    assert_eq!(pod.status()?.network.unwrap_or_default().ip, "");
    let before = links(node.namespace()?.pid())?;
    assert_eq!(before.len(), 1, "{before:?}");
    Ok(())
}
