//! `run` of /bin/true in a busybox bundle by wright, crun and runc in turn, and by a C program that does only what the kernel is needed
//! for: the floor (`floor.c`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podwright_tests::{binaries, root};
use serde_json::Value;

use crate::containerd;
use crate::report::{self, Samples};

struct Subject {
    name: &'static str,
    program: PathBuf,
    samples: Samples,
}

/// Measures `rounds` rounds in turn.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("pwbench").tempdir()?;
    let mut subjects = vec![
        Subject { name: "wright", program: binaries::find("wright")?, samples: Samples::default() },
        Subject { name: FLOOR, program: compile_floor(directory.path())?, samples: Samples::default() },
    ];
    for name in ["crun", "runc"] {
        match containerd::find(name) {
            Ok(program) => subjects.push(Subject { name, program, samples: Samples::default() }),
            Err(error) => println!("{error}"),
        }
    }
    root::populate(&directory.path().join("rootfs"))?;
    let status = Command::new(&subjects[0].program).arg("spec").current_dir(directory.path()).status()?;
    ensure!(status.success(), "wright spec failed");
    let file = directory.path().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    // Older peers refuse newer versions.
    spec["ociVersion"] = Value::String("1.0.2".to_owned());
    spec["process"]["terminal"] = Value::Bool(false);
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    // Six namespaces for everybody: on hosts with version 1 `spec` leaves out the cgroup namespace.
    if let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces")
        && !namespaces.iter().any(|namespace| namespace["type"] == "cgroup")
    {
        namespaces.push(serde_json::json!({"type": "cgroup"}));
    }
    // Hard limits of ours may be lower, and then nobody can raise them.
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("rlimits");
    }
    fs::write(&file, serde_json::to_vec(&spec)?)?;

    for round in 0..=rounds {
        for subject in &mut subjects {
            let id = format!("podwright-bench-{}-{}-{round}", std::process::id(), subject.name);
            let took = run(subject, directory.path(), &id)?;
            // The first round fills caches.
            if round > 0 {
                subject.samples.add(took);
            }
        }
    }
    let (ours, floor) = (subjects[0].samples.median(), subjects[1].samples.median());
    let rows: Vec<_> = subjects
        .iter()
        .map(|subject| {
            vec![
                subject.name.to_owned(),
                format!("{:.1}", subject.samples.percentile(0)),
                format!("{:.1}", subject.samples.median()),
                format!("{:.1}", subject.samples.percentile(95)),
                format!("{:.2}", subject.samples.median() / floor),
                format!("{:.0} %", 100.0 * floor / subject.samples.median()),
                format!("{:.2}", ours / subject.samples.median()),
            ]
        })
        .collect();
    println!("\n`run` of /bin/true, {rounds} rounds in turn, ms");
    report::table(&["", "min", "median", "p95", "x floor", "floor's share", "wright's ratio"], &rows);
    Ok(())
}

/// The name of the floor in the table.
const FLOOR: &str = "floor";

/// Compiles the floor.
fn compile_floor(directory: &Path) -> Result<PathBuf> {
    let (source, program) = (directory.join("floor.c"), directory.join(FLOOR));
    fs::write(&source, include_str!("floor.c"))?;
    let status = Command::new("cc").args(["-O2", "-static", "-o"]).args([&program, &source]).status()?;
    ensure!(status.success(), "cc cannot compile the floor");
    Ok(program)
}

fn run(subject: &Subject, bundle: &Path, id: &str) -> Result<Duration> {
    let mut command = Command::new(&subject.program);
    if subject.name == FLOOR {
        command.arg(bundle.join("rootfs")).arg(id);
    } else {
        command.arg("--root").arg(bundle.join(subject.name)).args(["run", "--bundle"]).arg(bundle).arg(id);
    }
    command.stdin(Stdio::null());
    let start = Instant::now();
    let output = command.output()?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{}: {}", subject.name, String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
