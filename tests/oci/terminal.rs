//! Terminals: handed over by `--console-socket`, or relayed by wright itself.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context as _, Result};
use podwright_tests::descriptor::receive;
use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, watch};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

/// Reads from a terminal until `wanted` has come.
pub(super) fn read_until(terminal: &OwnedFd, wanted: &str) -> Result<String> {
    let deadline = Deadline::in_seconds(20);
    let mut text = String::new();
    let mut file = File::from(terminal.try_clone()?);
    while !text.contains(wanted) {
        watch::readable(terminal.as_fd(), deadline).with_context(|| format!("so far: {text:?}"))?;
        let mut buffer = [0; 1024];
        let length = file.read(&mut buffer).with_context(|| format!("so far: {text:?}"))?;
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(text)
}

#[test]
fn a_created_containers_terminal_goes_over_the_socket() -> Outcome {
    let bundle = Bundle::new("tty; stty size; echo up; read line; echo got $line")?;
    bundle.edit(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"height": 21, "width": 99});
    })?;
    let path = bundle.path().join("console.sock");
    let listener = UnixListener::bind(&path)?;
    bundle.wright(&["create", "--console-socket", &path.to_string_lossy(), &bundle.id])?.ok()?;
    let terminal = receive(&listener)?;
    bundle.wright(&["start", &bundle.id])?.ok()?;
    let text = read_until(&terminal, "up\r\n")?;
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text:?}");
    assert!(text.contains("21 99"), "{text:?}");
    File::from(terminal.try_clone()?).write_all(b"hello\n")?;
    read_until(&terminal, "got hello")?;
    Ok(())
}

#[test]
fn an_exec_gets_a_terminal_of_its_own() -> Outcome {
    let bundle = Bundle::new("echo up; sleep 100000")?;
    crate::start(&bundle)?;
    let path = bundle.path().join("console.sock");
    let listener = UnixListener::bind(&path)?;
    let socket = path.to_string_lossy();
    bundle
        .wright(&[
            "exec",
            "--tty",
            "--detach",
            "--console-socket",
            &socket,
            &bundle.id,
            "sh",
            "-c",
            "tty; read x; echo got $x",
        ])?
        .ok()?;
    let terminal = receive(&listener)?;
    read_until(&terminal, "/dev/pts/")?;
    File::from(terminal.try_clone()?).write_all(b"it\n")?;
    read_until(&terminal, "got it")?;
    Ok(())
}

#[test]
fn run_relays_its_own_terminal_and_its_size() -> Outcome {
    let bundle = Bundle::new("stty size; read line; echo got $line; exit 6")?;
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 })?;
    let name = ptsname(&master, Vec::new())?.into_string()?;
    let slave = File::options().read(true).write(true).open(name)?;
    let mut command = bundle.command(&["run", &bundle.id])?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    let mut child = command.spawn()?;
    drop(command);
    read_until(&master, "33 77")?;
    File::from(master.try_clone()?).write_all(b"typed\n")?;
    read_until(&master, "got typed")?;
    assert_eq!(child.wait()?.code(), Some(6));
    Ok(())
}

#[test]
fn terminals_nobody_would_hold_are_refused() -> Outcome {
    let bundle = Bundle::new("true")?;
    let ran = bundle.wright(&["create", "--console-socket", "/nowhere", &bundle.id])?;
    assert!(ran.code == 1 && ran.stderr.contains("cannot use console socket"), "{ran:?}");
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let ran = bundle.wright(&["create", &bundle.id])?;
    assert!(ran.code == 1 && ran.stderr.contains("cannot allocate tty"), "{ran:?}");
    Ok(())
}
