//! Network devices of the host moved into a container. What is the host here is a network namespace of the test's own.

use std::process::Command;

use podwright_tests::Outcome;
use podwright_tests::binaries;
use podwright_tests::oci::{Bundle, Ran};
use serde_json::{Value, json};

/// Runs the bundle's container from a network namespace in which `setup`, a shell script, has been run before and `after` is run once it
/// has ended.
fn run_beside(bundle: &Bundle, setup: &str, after: &str) -> anyhow::Result<Ran> {
    let script = format!("{setup} && \"$0\" --root \"$1\" run \"$2\" && {{ {after}; }}");
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-ec", &script]).arg(binaries::find("wright")?);
    command.arg(bundle.state_root()).arg(&bundle.id).current_dir(bundle.path());
    Ok(command.output()?.into())
}

fn with_devices(script: &str, devices: Value) -> anyhow::Result<Bundle> {
    let bundle = Bundle::new(script)?;
    bundle.edit(|spec| spec["linux"]["netDevices"] = devices)?;
    Ok(bundle)
}

#[test]
fn a_device_moves_with_its_addresses_and_gets_its_new_name() -> Outcome {
    let bundle = with_devices("ip addr show dev lan0", json!({"pwhost": {"name": "lan0"}}))?;
    let setup = "ip link add pwhost type veth && ip link set pwhost address 02:00:00:00:12:34 && ip link set pwhost mtu 1400 && \
                 ip addr add 10.9.8.7/24 dev pwhost && ip addr add 127.0.0.33/32 scope host dev pwhost && \
                 ip addr add fd00:9::7/64 dev pwhost && ip link set pwhost up";
    let text = run_beside(&bundle, setup, "if ip link show dev pwhost; then exit 9; fi")?.ok()?;
    for expected in ["mtu 1400", "02:00:00:00:12:34", "inet 10.9.8.7/24", "inet6 fd00:9::7/64", "UP"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("127.0.0.33"), "it holds on the host only: {text}");
    Ok(())
}

#[test]
fn a_device_keeps_its_name_and_is_there_for_hooks_and_sysctls() -> Outcome {
    let bundle = with_devices("cat /proc/sys/net/ipv4/conf/pwhost/forwarding", json!({"pwhost": {}}))?;
    bundle.edit(|spec| {
        spec["linux"]["sysctl"] = json!({"net/ipv4/conf/pwhost/forwarding": "1"});
        let script = format!("ip link show dev pwhost >{}", bundle.path().join("hooked").display());
        spec["hooks"] = json!({"createContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        }]});
    })?;
    assert_eq!(run_beside(&bundle, "ip link add pwhost type veth", "true")?.ok()?, "1\n");
    let hooked = std::fs::read_to_string(bundle.path().join("hooked"))?;
    assert!(hooked.contains("pwhost"), "{hooked}");
    Ok(())
}

#[test]
fn a_template_is_completed_by_the_kernel() -> Outcome {
    let script = "ip -o link show | cut -d: -f2; ip -o addr show dev lan0; cat /sys/class/net/lan1/flags";
    let bundle = with_devices(script, json!({"pwone": {"name": "lan%d"}, "pwtwo": {"name": "lan%d"}}))?;
    let setup = "ip link add pwone type veth && ip link add pwtwo type veth && ip addr add 10.9.8.7/24 dev pwone && \
                 ip link set pwone up";
    let text = run_beside(&bundle, setup, "true")?.ok()?;
    for expected in ["lan0", "lan1", "10.9.8.7/24"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.trim_end().ends_with('3'), "it is up: {text}");
    Ok(())
}

/// What stays on the host is as it was: nothing is moved when one of the devices cannot be.
#[test]
fn a_device_whose_new_name_is_taken_stays_where_it_is() -> Outcome {
    let devices = json!({"pwhost": {"name": "lan0"}, "pwmore": {"name": "lo"}});
    let bundle = with_devices("true", devices)?;
    let setup = "ip link add pwhost type veth && ip link add pwmore type veth && ip link set pwhost up && \
                 ip addr add fd00:9::7/64 dev pwhost && ip link set pwmore up";
    let script =
        "\"$0\" --root \"$1\" run \"$2\" 2>&1 && exit 9; ip addr show dev pwhost; ip link show dev pwmore";
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-ec", &format!("{setup}; {script}")]).arg(binaries::find("wright")?);
    command.arg(bundle.state_root()).arg(&bundle.id).current_dir(bundle.path());
    let text = Ran::from(command.output()?).ok()?;
    assert!(
        text.contains("pwmore: linux.netDevices: the network namespace has a device of its new name"),
        "{text}"
    );
    assert!(text.contains("fd00:9::7/64") && text.matches(",UP").count() == 2, "{text}");
    Ok(())
}

#[test]
fn a_device_that_is_not_there_is_named() -> Outcome {
    let bundle = with_devices("true", json!({"pwnone": {}}))?;
    let ran = run_beside(&bundle, "true", "true")?;
    assert!(ran.code == 1 && ran.stderr.contains("pwnone"), "{ran:?}");
    Ok(())
}
