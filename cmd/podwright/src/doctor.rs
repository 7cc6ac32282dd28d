//! `podwright doctor`: what this host lacks to run pods, and how to mend it. It only looks, unless it is told to [`fix`](crate::fix).

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use k8s_cri::v1;
use serde::Serialize;

use crate::Outcome;
use crate::client::{self, Client};
use crate::output::{self, Columns};

/// The oldest kernel the engine is tested on, as (major, minor).
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// Nothing to do.
    Ok,
    /// Pods run, but something of theirs will not work.
    Warning,
    /// Pods cannot run.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// How to mend it; empty where nothing is to be mended.
    remedy: String,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn missing(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Missing, found: found.into(), remedy: remedy.into() }
    }
}

/// Prints every check; exits with 1 if something that pods need is missing.
pub(crate) async fn doctor(socket: &Path, fix: bool, json: bool) -> Outcome {
    let mut checks = vec![
        kernel(),
        root(),
        cgroups(&read("/proc/self/mountinfo")),
        overlay(&read("/proc/filesystems")),
        namespaces(),
        user_namespaces(&read("/proc/sys/user/max_user_namespaces")),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        capabilities(&read("/proc/self/status")),
        inotify(&read("/proc/sys/fs/inotify/max_user_instances")),
        apparmor(&read("/sys/module/apparmor/parameters/enabled"), has_parser()),
        forwarding(&read("/proc/sys/net/ipv4/ip_forward")),
    ];
    checks.extend(daemon(socket).await);
    if fix {
        checks.push(match crate::fix::networks(socket).await {
            Ok(troubles) if troubles.is_empty() => {
                Check::ok("pod networks", "leftovers collected, all as they were made")
            }
            Ok(troubles) => Check::warning(
                "pod networks",
                troubles.join("; "),
                "remove these pods; kubelet makes new ones",
            ),
            Err(error) => Check::missing(
                "pod networks",
                client::one_line(&error),
                "leftovers were not collected: see the daemon's log and the plugins' own",
            ),
        });
    }

    let bad = checks.iter().any(|c| c.verdict == Verdict::Missing);
    if json {
        output::json(&checks)?;
    } else {
        let mut table = Columns::new(&["CHECK", "STATE", "FOUND"]);
        for check in &checks {
            let state = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Missing => "missing",
            };
            table.row(vec![check.what.to_owned(), state.to_owned(), check.found.clone()]);
        }
        table.print();
        for check in checks.iter().filter(|c| !c.remedy.is_empty()) {
            output::line(&format!("\n{}: {}", check.what, check.remedy));
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A small kernel file; empty where it is not there.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        Check::ok("kernel", release)
    } else {
        Check::missing("kernel", release, "podwright is tested on Linux 6.1 and later: upgrade the kernel")
    }
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("user", "root")
    } else {
        Check::warning(
            "user",
            "not root",
            "the daemon must run as root; run doctor as root to check as it would",
        )
    }
}

fn cgroups(mountinfo: &str) -> Check {
    // The filesystem type is the first field behind the lone dash.
    let types: Vec<&str> = mountinfo
        .lines()
        .filter_map(|l| l.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()))
        .filter(|t| t.starts_with("cgroup"))
        .collect();
    match (types.contains(&"cgroup2"), types.contains(&"cgroup")) {
        (true, false) => Check::ok("cgroups", "version 2"),
        (true, true) => Check::ok("cgroups", "version 1 controllers beside version 2"),
        (false, true) => Check::ok("cgroups", "version 1"),
        (false, false) => Check::missing(
            "cgroups",
            "not mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup, or boot with systemd, which does",
        ),
    }
}

fn overlay(filesystems: &str) -> Check {
    if filesystems.lines().any(|l| l.trim_start_matches("nodev").trim() == "overlay") {
        Check::ok("overlayfs", "available")
    } else {
        Check::missing(
            "overlayfs",
            "not registered",
            "modprobe overlay, and write `overlay` to /etc/modules-load.d/podwright.conf",
        )
    }
}

fn namespaces() -> Check {
    let missing: Vec<&str> = ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user", "time"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    if missing.is_empty() {
        Check::ok("namespaces", "all eight kinds")
    } else {
        let found = format!("the kernel lacks {}", missing.join(", "));
        Check::missing(
            "namespaces",
            found,
            "use a kernel built with these namespaces (every Debian kernel is)",
        )
    }
}

fn user_namespaces(max: &str) -> Check {
    match max.trim() {
        "" | "0" => Check::warning(
            "user namespaces",
            "switched off",
            "sysctl -w user.max_user_namespaces=15000, for pods with hostUsers: false",
        ),
        max => Check::ok("user namespaces", format!("{max} at most")),
    }
}

fn seccomp(actions: &str) -> Check {
    if actions.contains("errno") {
        Check::ok("seccomp", "filters available")
    } else {
        Check::missing("seccomp", "no filters", "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

fn capabilities(status: &str) -> Check {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_SYS_RESOURCE: u32 = 24;
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_SYS_ADMIN) == 0 {
        Check::missing("capabilities", "no CAP_SYS_ADMIN", "run the daemon as root with all capabilities")
    } else if effective & (1 << CAP_SYS_RESOURCE) == 0 {
        Check::warning(
            "capabilities",
            "no CAP_SYS_RESOURCE",
            "negative oom_score_adj and higher hard limits are clamped until the daemon has it",
        )
    } else {
        Check::ok("capabilities", "all that are needed")
    }
}

fn inotify(instances: &str) -> Check {
    match instances.trim().parse::<u32>() {
        Ok(instances) if instances >= 128 => Check::ok("inotify", format!("{instances} instances a user")),
        _ => Check::warning(
            "inotify",
            format!("{} instances a user", instances.trim()),
            "sysctl -w fs.inotify.max_user_instances=8192: kubelet and workloads need many",
        ),
    }
}

/// Whether the program that compiles AppArmor policies is where the daemon looks for it.
fn has_parser() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&path);
    let known = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    known.into_iter().chain(searched).any(|directory| directory.join("apparmor_parser").is_file())
}

fn apparmor(enabled: &str, parser: bool) -> Check {
    if enabled.trim() == "Y" {
        if parser {
            return Check::ok("AppArmor", "enabled");
        }
        Check::warning(
            "AppArmor",
            "enabled, but apparmor_parser is not installed",
            "apt install apparmor: without it there is no default profile, and pods that ask for RuntimeDefault are refused",
        )
    } else {
        Check::ok("AppArmor", "not enabled: profiles other than unconfined are refused")
    }
}

fn forwarding(value: &str) -> Check {
    if value.trim() == "1" {
        Check::ok("IPv4 forwarding", "on")
    } else {
        Check::warning(
            "IPv4 forwarding",
            "off",
            "sysctl -w net.ipv4.ip_forward=1, for pods to reach other hosts through most CNI plugins",
        )
    }
}

/// Whether the daemon answers and is ready, and what it can run.
async fn daemon(socket: &Path) -> Vec<Check> {
    match ask_daemon(socket).await {
        Ok(checks) => checks,
        Err(error) => vec![Check::missing(
            "daemon",
            client::one_line(&error),
            "start podwrightd (systemctl start podwrightd), or name its socket with --socket",
        )],
    }
}

async fn ask_daemon(socket: &Path) -> Result<Vec<Check>> {
    let mut client = Client::connect(socket).await?;
    let version = client.version().await?;
    let mut checks =
        vec![Check::ok("daemon", format!("{} {}", version.runtime_name, version.runtime_version))];
    let status = client.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
    for condition in status.status.unwrap_or_default().conditions {
        let what = match condition.r#type.as_str() {
            "RuntimeReady" => "runtime",
            "NetworkReady" => "pod network",
            _ => continue,
        };
        checks.push(if condition.status {
            Check::ok(what, if condition.message.is_empty() { "ready".to_owned() } else { condition.message })
        } else {
            Check::missing(what, condition.reason, condition.message)
        });
    }
    let request = v1::ListImagesRequest { filter: None };
    let images = client.image.list_images(request).await?.into_inner().images;
    checks.push(if images.is_empty() {
        Check::warning(
            "root filesystems",
            "none",
            "put a root filesystem directory below one of the configured roots (default /var/lib/podwright/rootfs)",
        )
    } else {
        Check::ok("root filesystems", format!("{} found", images.len()))
    });
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_cgroups_or_overlay_is_told_how_to_get_them() {
        let check = cgroups("22 1 0:20 / /proc rw - proc proc rw");
        assert_eq!(check.verdict, Verdict::Missing);
        assert!(check.remedy.contains("cgroup2"));
        assert_eq!(overlay("nodev\tproc\n\text4\n").verdict, Verdict::Missing);
        assert_eq!(overlay("nodev\toverlay\n").verdict, Verdict::Ok);
    }

    #[test]
    fn apparmor_without_its_parser_is_a_warning() {
        assert_eq!(apparmor("N\n", false).verdict, Verdict::Ok);
        assert_eq!(apparmor("Y\n", true).verdict, Verdict::Ok);
        let check = apparmor("Y\n", false);
        assert!(check.verdict == Verdict::Warning && check.remedy.contains("apt install"), "{check:?}");
    }

    #[test]
    fn cgroup_versions_are_told_apart() {
        let v2 = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroups(v2).found, "version 2");
        let v1 = "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(cgroups(v1).found, "version 1");
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff").verdict, Verdict::Ok);
        assert_eq!(capabilities("CapEff:\t000001fffeffffff").verdict, Verdict::Warning);
        assert_eq!(capabilities("").verdict, Verdict::Missing);
    }
}
