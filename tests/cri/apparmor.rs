//! AppArmor: the default profile, profiles by name, and what is said where there is none.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use podwright_tests::{ContainerBuilder, Node, NodeOptions, Outcome, PodBuilder, skip, v1};
use tonic::Code;
use v1::security_profile::ProfileType;

/// The daemon's name for its profile.
const DEFAULT: &str = "podwright-default";

fn enabled() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn has_parser() -> bool {
    ["/usr/sbin", "/sbin", "/bin"].iter().any(|path| Path::new(path).join("apparmor_parser").exists())
}

/// Whether the test cannot run here; says why.
fn skipped(test: &str) -> bool {
    let reason = match (enabled(), has_parser()) {
        (true, true) => return false,
        (false, _) => "this kernel does not enforce AppArmor",
        (true, false) => "apparmor_parser is not installed",
    };
    skip::skip(test, reason);
    true
}

fn profile<'pod>(
    builder: ContainerBuilder<'pod>,
    kind: ProfileType,
    reference: &str,
) -> ContainerBuilder<'pod> {
    builder.security(|security| {
        security.apparmor =
            Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() });
    })
}

const SHOW: &[&str] = &["cat", "/proc/self/attr/current"];

#[test]
fn a_profile_is_refused_where_apparmor_is_off() -> Outcome {
    if enabled() {
        skip::skip("a_profile_is_refused_where_apparmor_is_off", "AppArmor is on here");
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "off").run(&node)?;
    for (kind, reference) in [(ProfileType::RuntimeDefault, ""), (ProfileType::Localhost, "mine")] {
        let error = profile(pod.command(&["true"]), kind, reference).create().unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert!(error.message().contains("AppArmor is off"), "{error:?}");
    }
    profile(pod.command(&["true"]), ProfileType::Unconfined, "").output()?;
    pod.command(&["true"]).output()?;
    Ok(())
}

#[test]
fn the_default_profile_confines_who_asks_for_it_and_who_asks_for_nothing() -> Outcome {
    if skipped("the_default_profile_confines_who_asks_for_it_and_who_asks_for_nothing") {
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "default")
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let enforced = format!("{DEFAULT} (enforce)\n");
    assert_eq!(pod.command(SHOW).output()?, enforced, "nil");
    assert_eq!(profile(pod.command(SHOW), ProfileType::RuntimeDefault, "").output()?, enforced);
    assert_eq!(profile(pod.command(SHOW), ProfileType::Unconfined, "").output()?, "unconfined\n");
    let privileged = |builder: ContainerBuilder<'_>| -> anyhow::Result<String> {
        builder.security(|security| security.privileged = true).output()
    };
    assert_eq!(privileged(pod.command(SHOW))?, "unconfined\n");
    assert_eq!(privileged(profile(pod.command(SHOW), ProfileType::RuntimeDefault, ""))?, "unconfined\n");

    let status = node.client()?.status(v1::StatusRequest { verbose: true })?;
    let host: serde_json::Value = serde_json::from_str(&status.info["host"])?;
    assert_eq!(host["apparmorDefaultProfile"], true);
    Ok(())
}

#[test]
fn the_default_profile_takes_away_what_capabilities_would_give() -> Outcome {
    if skipped("the_default_profile_takes_away_what_capabilities_would_give") {
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "denied").own_network().run(&node)?;
    // Nothing is masked or read-only for such a container: only the profile stands between.
    let script = "mount -t tmpfs x /mnt 2>/dev/null && echo mounted || echo no mount
        (echo 1 >/proc/sys/kernel/core_uses_pid) 2>/dev/null && echo set || echo no sysctl
        (echo h >/proc/sysrq-trigger) 2>/dev/null && echo triggered || echo no sysrq
        head -c 1 /proc/kcore >/dev/null 2>&1 && echo read || echo no kcore
        ls /sys/kernel/security >/dev/null 2>&1 && cat /sys/kernel/security/lsm >/dev/null 2>&1 && echo read || echo no securityfs
        echo 0 >/proc/self/oom_score_adj && echo own processes
        echo x >/tmp/x && chmod 600 /tmp/x && ln /tmp/x /tmp/y && rm /tmp/x && echo files
        sleep 100 & kill $! && echo signals; ping -c 1 -W 20 127.0.0.1 >/dev/null && echo network";
    let admin = |security: &mut v1::LinuxContainerSecurityContext| {
        security.capabilities =
            Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
    };
    let confined = profile(pod.sh(script).security(admin), ProfileType::RuntimeDefault, "").output()?;
    assert_eq!(
        confined,
        "no mount\nno sysctl\nno sysrq\nno kcore\nno securityfs\nown processes\nfiles\nsignals\nnetwork\n"
    );
    let free =
        profile(pod.sh("mount -t tmpfs x /mnt && echo mounted").security(admin), ProfileType::Unconfined, "");
    assert_eq!(free.output()?, "mounted\n");
    Ok(())
}

#[test]
fn a_confined_container_is_stopped_entered_and_traced_from_outside_only_by_signals() -> Outcome {
    if skipped("a_confined_container_is_stopped_entered_and_traced_from_outside_only_by_signals") {
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stop").run(&node)?;
    let builder = pod.sh("trap 'exit 7' TERM; echo up; while true; do sleep 0.05; done");
    let container = profile(builder, ProfileType::RuntimeDefault, "").start()?;
    container.wait_for_log_line("up")?;
    let output = container.exec("cat /proc/self/attr/current; cat /proc/1/attr/current")?;
    assert_eq!(output.stdout, format!("{DEFAULT} (enforce)\n{DEFAULT} (enforce)\n"), "in exec too");
    container.stop(600)?;
    assert_eq!(container.status()?.exit_code, 7);
    Ok(())
}

#[test]
fn a_profile_by_name_applies_where_it_is_loaded_and_is_refused_where_not() -> Outcome {
    if skipped("a_profile_by_name_applies_where_it_is_loaded_and_is_refused_where_not") {
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "named")
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let name = format!("podwright-test-{}", node.unique());
    let error = profile(pod.command(SHOW), ProfileType::Localhost, &name).create().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains(&name) && error.message().contains("not loaded"), "{error:?}");

    let file = node.path().join("profile");
    let policy = format!(
        "profile {name} flags=(attach_disconnected) {{ file, network, capability, signal, deny /etc/passwd r, }}\n"
    );
    fs::write(&file, policy)?;
    let parser = |flag: &str| {
        let ran = Command::new("apparmor_parser").args([flag, "--skip-cache"]).arg(&file).output();
        ran.context("apparmor_parser")
    };
    let loaded = parser("--replace")?;
    anyhow::ensure!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let script = "cat /proc/self/attr/current; cat /etc/passwd >/dev/null 2>&1 || echo denied";
    let expected = format!("{name} (enforce)\ndenied\n");
    for reference in [name.clone(), format!("localhost/{name}")] {
        assert_eq!(profile(pod.sh(script), ProfileType::Localhost, &reference).output()?, expected);
    }
    let privileged = profile(pod.sh(script), ProfileType::Localhost, &name)
        .security(|security| security.privileged = true);
    assert_eq!(privileged.output()?, expected, "by name it is meant for a privileged container too");
    parser("--remove")?;
    Ok(())
}

#[test]
fn without_the_parser_the_default_is_refused_with_what_to_do_and_nothing_else_is() -> Outcome {
    let test = "without_the_parser_the_default_is_refused_with_what_to_do_and_nothing_else_is";
    if !enabled() || has_parser() {
        skip::skip(test, "this needs a kernel with AppArmor and a userland without its parser");
        return Ok(());
    }
    let node = Node::with(&NodeOptions::default())?;
    let pod = PodBuilder::new(&node, "bare").run(&node)?;
    let error = profile(pod.command(&["true"]), ProfileType::RuntimeDefault, "").create().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("apt install apparmor"), "{error:?}");
    assert_eq!(pod.command(SHOW).output()?, "unconfined\n", "who asks for nothing runs");
    let conditions =
        node.client()?.status(v1::StatusRequest::default())?.status.unwrap_or_default().conditions;
    let ready =
        conditions.iter().find(|condition| condition.r#type == "RuntimeReady").context("RuntimeReady")?;
    assert!(ready.status && ready.message.contains("apt install apparmor"), "{ready:?}");
    Ok(())
}
