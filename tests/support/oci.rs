//! `wright` under test: a bundle of one's own, a state directory of one's own, and the verbs.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::node::unique_name;
use crate::{binaries, process, root, temporary};

/// A bundle with a busybox root, a private `--root`, and a container id nobody else has.
#[derive(Debug)]
pub struct Bundle {
    directory: TempDir,
    /// The container id, which is also in its cgroup's path.
    pub id: String,
}

/// What a command wrote and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output, when the command succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Bundle {
    /// A bundle as `wright spec` makes it, without a terminal, with a writable root and a cgroup of its
    /// own, running a shell script.
    pub fn new(script: &str) -> Result<Self> {
        let directory = temporary::directory()?;
        let id = unique_name(&directory);
        root::populate(&directory.path().join("rootfs"))?;
        let bundle = Self { directory, id };
        let spec = Command::new(binaries::find("wright")?).arg("spec").current_dir(bundle.path()).output()?;
        Ran::from(spec).ok().context("wright spec")?;
        let cgroup = format!("/{}", bundle.id);
        bundle.edit(|spec| {
            spec["process"]["terminal"] = Value::Bool(false);
            spec["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
            spec["root"]["readonly"] = Value::Bool(false);
            spec["linux"]["cgroupsPath"] = Value::String(cgroup);
        })?;
        Ok(bundle)
    }

    /// The bundle directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Rewrites `config.json`.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let path = self.path().join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        change(&mut spec);
        fs::write(path, serde_json::to_vec_pretty(&spec)?)?;
        Ok(())
    }

    /// The private state directory.
    pub fn state_root(&self) -> PathBuf {
        self.path().join("state")
    }

    /// `wright --root … ARGUMENTS`, to be run or changed. Relative paths are below the bundle.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::find("wright")?);
        command.arg("--root").arg(self.state_root()).args(arguments);
        command.current_dir(self.path()).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `wright --root … ARGUMENTS`.
    pub fn wright(&self, arguments: &[&str]) -> Result<Ran> {
        Ok(self.command(arguments)?.output().context("run wright")?.into())
    }

    /// `wright create`, its stdio on files (a pipe would be held open by the container).
    pub fn create(&self) -> Result<Ran> {
        let out = fs::File::create(self.path().join("stdout"))?;
        let err = fs::File::create(self.path().join("stderr"))?;
        let status = self.command(&["create", &self.id])?.stdout(out).stderr(err).status()?;
        Ok(Ran { code: status.code().unwrap_or(-1), stdout: String::new(), stderr: self.stderr()? })
    }

    /// What the created container wrote to its standard output.
    pub fn stdout(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path().join("stdout"))?)
    }

    /// What the created container (and `wright create`) wrote to its standard error.
    pub fn stderr(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path().join("stderr"))?)
    }

    /// `wright state`, parsed.
    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.wright(&["state", &self.id])?.ok()?)?)
    }

    /// The `status` of `wright state`.
    pub fn status(&self) -> Result<String> {
        Ok(self.state()?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The `pid` of `wright state`.
    pub fn pid(&self) -> Result<u32> {
        Ok(u32::try_from(self.state()?["pid"].as_u64().context("state has a pid")?)?)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.wright(&["delete", "--force", &self.id]);
        let mut left: Vec<String> = crate::snapshot::cgroups(&self.id)
            .into_iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        for process in process::belonging_to(&self.id).unwrap_or_default() {
            let _ = process::signal(process.pid, Signal::KILL);
            left.push(format!("{process:?}"));
        }
        for cgroup in left.iter().rev().filter(|path| path.starts_with('/')) {
            let _ = fs::remove_dir(cgroup);
        }
        if !left.is_empty() {
            let text = format!("container {} left behind: {left:#?}", self.id);
            if std::thread::panicking() {
                let _ = writeln!(std::io::stderr(), "{text}");
            } else {
                panic!("{text}");
            }
        }
    }
}
