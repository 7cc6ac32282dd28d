//! Seccomp agents: who decides the system calls with `SCMP_ACT_NOTIFY` (runtime-spec `config-linux.md#containerprocessstate`).

use std::os::unix::net::UnixListener;

use podwright_tests::Outcome;
use podwright_tests::oci::Bundle;
use podwright_tests::seccomp::agent;
use serde_json::json;

use crate::start;

/// Whatever the runtime itself does between loading the filter and executing the program may be the agent's to decide, execve included.
/// It hung where it was told of the listener only once the program ran.
#[test]
fn an_agent_may_decide_all_that_it_takes_to_create_and_to_exec() -> Outcome {
    let bundle = Bundle::new("echo up; exec sleep 100000")?;
    let path = bundle.path().join("agent.sock");
    let listener = UnixListener::bind(&path)?;
    bundle.edit(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{
                "names": ["execve", "recvmsg", "recvfrom", "poll", "accept4", "close", "close_range", "fcntl",
                          "signalfd4", "rt_sigprocmask", "openat", "read"],
                "action": "SCMP_ACT_NOTIFY"
            }]
        });
    })?;
    let of_init = agent(listener.try_clone()?);
    start(&bundle)?;
    let of_exec = agent(listener);
    assert_eq!(bundle.wright(&["exec", &bundle.id, "echo", "in"])?.ok()?, "in\n");
    let asked = of_exec.join().expect("the agent's thread")?;
    assert!(asked > 3, "{asked} calls");
    bundle.wright(&["delete", "--force", &bundle.id])?.ok()?;
    let asked = of_init.join().expect("the agent's thread")?;
    assert!(asked > 3, "{asked} calls");
    Ok(())
}

#[test]
fn without_its_agent_nothing_is_created() -> Outcome {
    let bundle = Bundle::new("true")?;
    bundle.edit(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bundle.path().join("none.sock"),
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
        });
    })?;
    let ran = bundle.create()?;
    let told = bundle.stderr()?;
    assert!(ran.code == 1 && told.contains("failed to connect with seccomp agent"), "{ran:?} {told}");
    assert_eq!(bundle.wright(&["state", &bundle.id])?.code, 1);
    Ok(())
}
