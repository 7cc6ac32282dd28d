//! `run` of /bin/true in a busybox bundle by wright, crun and runc in turn.

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
    let mut subjects =
        vec![Subject { name: "wright", program: binaries::find("wright")?, samples: Samples::default() }];
    for name in ["crun", "runc"] {
        match containerd::find(name) {
            Ok(program) => subjects.push(Subject { name, program, samples: Samples::default() }),
            Err(error) => println!("{error}"),
        }
    }
    let directory = tempfile::Builder::new().prefix("pwbench").tempdir()?;
    root::populate(&directory.path().join("rootfs"))?;
    let status = Command::new(&subjects[0].program).arg("spec").current_dir(directory.path()).status()?;
    ensure!(status.success(), "wright spec failed");
    let file = directory.path().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    // Older peers refuse newer versions.
    spec["ociVersion"] = Value::String("1.0.2".to_owned());
    spec["process"]["terminal"] = Value::Bool(false);
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
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
    let ours = subjects[0].samples.median();
    let rows: Vec<_> = subjects
        .iter()
        .map(|subject| {
            vec![
                subject.name.to_owned(),
                format!("{:.1}", subject.samples.percentile(0)),
                format!("{:.1}", subject.samples.median()),
                format!("{:.1}", subject.samples.percentile(95)),
                format!("{:.2}", ours / subject.samples.median()),
            ]
        })
        .collect();
    println!("\n`run` of /bin/true, {rounds} rounds in turn, ms");
    report::table(&["", "min", "median", "p95", "wright's ratio"], &rows);
    Ok(())
}

fn run(subject: &Subject, bundle: &Path, id: &str) -> Result<Duration> {
    let start = Instant::now();
    let output = Command::new(&subject.program)
        .arg("--root")
        .arg(bundle.join(subject.name))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(Stdio::null())
        .output()?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{}: {}", subject.name, String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
