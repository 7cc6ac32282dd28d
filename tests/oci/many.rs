//! Many short containers, one after the other and at once: none fails, none is lost, nothing stays.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::Context as _;
use podwright_tests::oci::Bundle;
use podwright_tests::{Outcome, binaries, snapshot};

/// How many at once.
const AT_ONCE: usize = 8;
/// How many in all: enough to meet a race of one in a hundred, few enough for a machine that emulates another.
const RUNS: usize = 320;

#[test]
fn hundreds_of_runs_eight_at_a_time_all_end_well() -> Outcome {
    let bundle = Bundle::new("true")?;
    bundle.edit(|spec| {
        spec["process"]["args"] = serde_json::json!(["/bin/true"]);
        if let Some(linux) = spec["linux"].as_object_mut() {
            // Each has its own, by its id.
            linux.remove("cgroupsPath");
        }
    })?;
    let wright = binaries::find("wright")?;
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..AT_ONCE {
            let (bundle, wright, failures) = (&bundle, &wright, &failures);
            scope.spawn(move || {
                for number in 0..RUNS / AT_ONCE {
                    let id = format!("{}-{lane}-{number}", bundle.id);
                    if let Err(problem) = run(bundle, wright, &id)
                        && let Ok(mut all) = failures.lock()
                    {
                        all.push(format!("{id}: {problem:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    assert!(failures.is_empty(), "{} of {RUNS} failed: {failures:#?}", failures.len());
    let left: Vec<_> = std::fs::read_dir(bundle.state_root())?.filter_map(Result::ok).collect();
    assert!(left.is_empty(), "state: {left:?}");
    assert_eq!(snapshot::cgroups(&bundle.id), Vec::<PathBuf>::new());
    Ok(())
}

fn run(bundle: &Bundle, wright: &std::path::Path, id: &str) -> anyhow::Result<()> {
    let mut command = Command::new(wright);
    command.arg("--root").arg(bundle.state_root()).args(["run", "--bundle"]).arg(bundle.path()).arg(id);
    let output = command.stdin(Stdio::null()).output().context("run wright")?;
    anyhow::ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
