//! Compiled profiles under the real kernel. A filter binds the thread that loads it, so each test has a thread to lose.
#![allow(clippy::unwrap_used)]

use runtime::seccomp::{Program, compile, load};
use rustix::io::Errno;
use serde_json::{Value, json};

/// Loads the profile in a thread of its own, from its byte form, and runs `then` under it.
fn under<T: Send + 'static>(
    profile: Value,
    then: impl FnOnce(Option<std::os::fd::OwnedFd>) -> T + Send + 'static,
) -> T {
    let program = compile(&serde_json::from_value(profile).unwrap()).unwrap();
    let program = Program::from_bytes(&program.to_bytes()).unwrap();
    std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        then(load(&program).unwrap())
    })
    .join()
    .unwrap()
}

#[test]
fn the_kernel_answers_as_the_profile_says() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19},
            {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"},
        ],
    });
    let (mkdir, listener) = under(profile, |listener| {
        (rustix::fs::mkdir("/podwright-no-such-dir/x", rustix::fs::Mode::empty()), listener)
    });
    assert_eq!(mkdir, Err(Errno::NODEV));
    assert!(listener.is_none());
    assert_eq!(rustix::fs::mkdir("/podwright-no-such-dir/x", rustix::fs::Mode::empty()), Err(Errno::NOENT));
}

#[test]
fn a_profile_that_notifies_yields_a_descriptor() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/none.sock",
        "syscalls": [{"names": ["swapoff"], "action": "SCMP_ACT_NOTIFY"}],
    });
    assert!(under(profile, |listener| listener.is_some()));
}

#[test]
fn without_no_new_privs_or_capability_the_kernel_refuses_nothing_we_rely_on() {
    // Root here: CAP_SYS_ADMIN stands in for no_new_privs, as for init until its last act.
    let program =
        compile(&serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap()).unwrap();
    let loaded =
        std::thread::spawn(move || load(&program).map(|listener| listener.is_some())).join().unwrap();
    assert_eq!(loaded, Ok(false));
}
