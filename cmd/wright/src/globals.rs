//! The flags before the verb, resolved once.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use runtime::cgroup::Driver;

use crate::cli::{Flag, Parsed, switch, text};
use crate::log::{Format, Log, hear_engine};

/// The flags before the verb.
pub(crate) const FLAGS: [Flag; 6] = [
    switch("debug", None, "enable debug logging"),
    text("log", None, "set the log file to write logs to (default is '/dev/stderr')"),
    text("log-format", None, "set the log format ('text', or 'json')").or("\"text\""),
    text("root", None, "root directory for storage of container state (this should be located in tmpfs)")
        .or("\"/run/wright\""),
    switch(
        "systemd-cgroup",
        None,
        "enable systemd cgroup support, expects cgroupsPath to be of form \"slice:prefix:name\"",
    ),
    text("rootless", None, "ignore cgroup permission errors ('true', 'false', or 'auto')").or("\"auto\""),
];

/// The flags before the verb, resolved.
pub(crate) struct Globals {
    /// Where the containers' state is; absolute.
    pub root: PathBuf,
    /// The root was named by a flag.
    pub root_given: bool,
    /// Where messages go.
    pub log: Arc<Log>,
    /// Who makes cgroups.
    pub driver: Driver,
    /// Cgroups that cannot be made are done without.
    pub rootless: bool,
}

impl Globals {
    /// Resolves the global flags against the environment.
    pub(crate) fn resolve(parsed: &Parsed) -> Result<Self> {
        let format = match parsed.text("log-format") {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => bail!("invalid log-format: {other}"),
        };
        let log = Arc::new(Log::open(parsed.path("log").as_deref(), format, parsed.on("debug"))?);
        hear_engine(&log);
        let unprivileged = !rustix::process::geteuid().is_root();
        let rootless = match parsed.text("rootless") {
            None | Some("" | "auto") => unprivileged || in_user_namespace(),
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => bail!("invalid value {other:?} for --rootless"),
        };
        let driver = if parsed.on("systemd-cgroup") { Driver::Systemd } else { Driver::Cgroupfs };
        let given = parsed.path("root");
        Ok(Self { root_given: given.is_some(), root: root(given, unprivileged)?, log, driver, rootless })
    }
}

/// The state root: as given, or /run/wright, or a user's own runtime directory.
fn root(given: Option<PathBuf>, unprivileged: bool) -> Result<PathBuf> {
    if let Some(given) = given {
        return std::path::absolute(&given).with_context(|| format!("resolve {}", given.display()));
    }
    // Root of a user namespace (USER is not root then) keeps to the user's directory too.
    let user =
        unprivileged || std::env::var_os("USER").is_some_and(|user| user != "root") && in_user_namespace();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| user && !directory.is_empty()) {
        None => Ok(PathBuf::from("/run/wright")),
        Some(directory) => {
            use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
            let root = PathBuf::from(directory).join("wright");
            let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&root);
            made.context("the path in $XDG_RUNTIME_DIR must be writable by the user")?;
            // The sticky bit keeps clean-up programs away (XDG base directory specification).
            let sticky = std::fs::Permissions::from_mode(0o1700);
            std::fs::set_permissions(&root, sticky).with_context(|| format!("protect {}", root.display()))?;
            Ok(root)
        }
    }
}

/// Whether our user namespace is another than the host's: its uid map is then not the identity over all ids.
pub(crate) fn in_user_namespace() -> bool {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => !map.split_ascii_whitespace().eq(["0", "0", "4294967295"]),
        Err(_) => false,
    }
}
