//! Seccomp agents: who decides the system calls with `SCMP_ACT_NOTIFY` (runtime-spec `config-linux.md#containerprocessstate`).

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;

use crate::start;
use crate::terminal::receive;

/// An agent that lets everything through, for one process. How many calls it was asked about.
fn agent(listener: UnixListener) -> JoinHandle<anyhow::Result<usize>> {
    std::thread::spawn(move || answer(&receive(&listener)?))
}

fn answer(notifications: &OwnedFd) -> anyhow::Result<usize> {
    let deadline = Deadline::in_seconds(60);
    let mut asked = 0;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(notifications.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&deadline.timespec())) {
            Ok(0) => anyhow::bail!("nothing ended or asked in time; {asked} calls so far"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::HUP) {
            return Ok(asked);
        }
        if !events.contains(PollFlags::IN) {
            continue;
        }
        // Who asked may be dead by now: then neither goes anywhere.
        if let Ok(request) = ScmpNotifReq::receive(notifications.as_raw_fd()) {
            asked += 1;
            let go_on = ScmpNotifResp::new_continue(request.id, ScmpNotifRespFlags::empty());
            let _ = go_on.respond(notifications.as_raw_fd());
        }
    }
}

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
