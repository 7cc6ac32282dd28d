//! AppArmor profiles, where the kernel has AppArmor and a parser is there to load one: in the virtual machine.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use podwright_tests::oci::Bundle;
use podwright_tests::{Outcome, skip};
use serde_json::json;

use crate::start;

/// A profile that was loaded, and is removed again.
struct Profile(String);

impl Profile {
    /// Everything is allowed but what `rules` deny. None: it cannot be had here, which has been said.
    fn load(test: &str, name: &str, rules: &str) -> Result<Option<Self>> {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        if enabled.trim() != "Y" {
            skip::skip(test, "the kernel has no AppArmor");
            return Ok(None);
        }
        let rules = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n file,\n capability,\n network,\n mount,\n umount,\n \
             pivot_root,\n signal,\n ptrace,\n unix,\n {rules}\n}}\n"
        );
        let mut command = Command::new("apparmor_parser");
        let Ok(mut parser) = command.args(["-r", "-W", "-K"]).stdin(Stdio::piped()).spawn() else {
            skip::skip(test, "apparmor_parser is not installed");
            return Ok(None);
        };
        parser.stdin.take().context("stdin")?.write_all(rules.as_bytes())?;
        ensure!(parser.wait()?.success(), "apparmor_parser refuses:\n{rules}");
        Ok(Some(Self(name.to_owned())))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = fs::write("/sys/kernel/security/apparmor/.remove", &self.0);
    }
}

const SCRIPT: &str = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current; \
                      echo x > /tmp/denied 2>/dev/null || echo refused; echo x > /tmp/allowed && echo written";

#[test]
fn a_profile_is_enforced_in_run_and_exec() -> Outcome {
    let test = "oci::apparmor::a_profile_is_enforced_in_run_and_exec";
    let bundle = Bundle::new(&format!("{SCRIPT}; echo up; sleep 100000"))?;
    let name = format!("pw-{}", bundle.id);
    let Some(_profile) = Profile::load(test, &name, "deny /tmp/denied w,")? else { return Ok(()) };
    let other = format!("{name}-exec");
    let Some(_other) = Profile::load(test, &other, "deny /tmp/allowed w,")? else { return Ok(()) };
    bundle.edit(|spec| spec["process"]["apparmorProfile"] = json!(name))?;
    start(&bundle)?;
    let confined = format!("{name} (enforce)\nrefused\nwritten\n");
    assert_eq!(bundle.stdout()?, format!("{confined}up\n"));
    // An exec has its container's profile, also where a process.json does not say so, or the one it names.
    assert_eq!(bundle.wright(&["exec", &bundle.id, "sh", "-c", SCRIPT])?.ok()?, confined);
    let process = bundle.path().join("process.json");
    let own =
        json!({"cwd": "/", "args": ["sh", "-c", SCRIPT], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    fs::write(&process, own.to_string())?;
    assert_eq!(
        bundle.wright(&["exec", "--process", &process.to_string_lossy(), &bundle.id])?.ok()?,
        confined
    );
    let freer = bundle.wright(&["exec", "--apparmor", &other, &bundle.id, "sh", "-c", SCRIPT])?.stdout;
    assert!(freer.starts_with(&format!("{other} (enforce)\n")) && !freer.contains("written"), "{freer}");
    Ok(())
}

#[test]
fn a_profile_that_is_not_loaded_is_refused() -> Outcome {
    let test = "oci::apparmor::a_profile_that_is_not_loaded_is_refused";
    let bundle = Bundle::new("echo ran")?;
    let Some(_present) = Profile::load(test, &format!("pw-{}", bundle.id), "")? else { return Ok(()) };
    bundle.edit(|spec| spec["process"]["apparmorProfile"] = json!("no-such-profile"))?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    assert!(
        ran.code == 1 && ran.stderr.contains("no-such-profile") && !ran.stdout.contains("ran"),
        "{ran:?}"
    );
    Ok(())
}
