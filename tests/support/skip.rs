//! A test that cannot run here says why and is counted.
//!
//! The test harness knows no skip at run time, so a skipping test passes after it has written its line
//! to the file `PODWRIGHT_TEST_SKIPS`; `tests/lane.sh` moves it from the passed to the skipped.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Records that `test` does not run, and why. Return `Ok(())` right after it.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("PODWRIGHT_TEST_SKIPS")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}
