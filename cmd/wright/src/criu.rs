//! What `checkpoint` and `restore` share: their flags, and where criu's images are.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use runtime::checkpoint::{CgroupsMode, Images, Options};

use crate::cli::{Flag, Parsed, list, switch, text};
use crate::globals::{Globals, in_user_namespace};

/// See [`options`].
pub(crate) const TCP_ESTABLISHED: Flag = switch("tcp-established", None, "allow open tcp connections");
/// See [`options`].
pub(crate) const EXT_UNIX_SK: Flag = switch("ext-unix-sk", None, "allow external unix sockets");
/// See [`options`].
pub(crate) const SHELL_JOB: Flag = switch("shell-job", None, "allow shell jobs");
/// See [`options`].
pub(crate) const LAZY_PAGES: Flag =
    switch("lazy-pages", None, "use userfaultfd to lazily restore memory pages");
/// See [`options`].
pub(crate) const FILE_LOCKS: Flag = switch("file-locks", None, "handle file locks, for safety");
/// See [`options`].
pub(crate) const AUTO_DEDUP: Flag = switch("auto-dedup", None, "enable auto deduplication of memory images");
/// See [`options`].
pub(crate) const CGROUPS_MODE: Flag =
    text("manage-cgroups-mode", None, "cgroups mode: soft|full|strict|ignore (default: criu's, soft)");
/// See [`options`].
pub(crate) const EMPTY_NS: Flag =
    list("empty-ns", None, "create a namespace, but don't restore its properties; always so for network");
/// See [`images`].
pub(crate) const WORK_PATH: Flag = text("work-path", None, "path for saving work files and logs");

/// Where images are without `--image-path`, below the current directory.
const DEFAULT_IMAGES: &str = "checkpoint";

/// criu's configuration for containers, as runc's callers know it. It goes before all flags.
const CONFIG_FILE: &str = "/etc/criu/runc.conf";

/// The annotation that names another configuration; empty: none.
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// `--image-path` and `--work-path`, absolute.
pub(crate) fn images(parsed: &Parsed) -> Result<Images> {
    let absolute = |path: PathBuf| std::path::absolute(path);
    let path = parsed.path("image-path").unwrap_or_else(|| PathBuf::from(DEFAULT_IMAGES));
    Ok(Images { path: absolute(path)?, work: parsed.path("work-path").map(absolute).transpose()? })
}

/// The flags that both have. `annotations` are the spec's.
pub(crate) fn options<'a>(parsed: &Parsed, annotation: impl Fn(&str) -> Option<&'a str>) -> Result<Options> {
    for namespace in parsed.list("empty-ns") {
        if namespace != "network" {
            bail!("namespace {namespace:?} is not supported");
        }
    }
    Ok(Options {
        tcp_established: parsed.on("tcp-established"),
        ext_unix_sockets: parsed.on("ext-unix-sk"),
        shell_job: parsed.on("shell-job"),
        file_locks: parsed.on("file-locks"),
        lazy_pages: parsed.on("lazy-pages"),
        auto_dedup: parsed.on("auto-dedup"),
        cgroups: cgroups_mode(parsed.text("manage-cgroups-mode").unwrap_or_default())?,
        config_file: config_file(annotation(CONFIG_ANNOTATION)),
    })
}

fn cgroups_mode(name: &str) -> Result<CgroupsMode> {
    Ok(match name {
        "" => CgroupsMode::Default,
        "soft" => CgroupsMode::Soft,
        "full" => CgroupsMode::Full,
        "strict" => CgroupsMode::Strict,
        "ignore" => CgroupsMode::Ignore,
        _ => bail!("invalid manage-cgroups-mode value"),
    })
}

fn config_file(annotation: Option<&str>) -> Option<PathBuf> {
    match annotation {
        None => Some(PathBuf::from(CONFIG_FILE)),
        Some("") => None,
        Some(path) => Some(PathBuf::from(path)),
    }
}

/// `--page-server ADDRESS:PORT`, the address of IPv6 in brackets.
pub(crate) fn page_server(text: &str) -> Result<(String, u16)> {
    let split = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.rsplit_once(':').filter(|(address, _)| !address.contains(':')),
    };
    let Some((address, port)) = split.filter(|(address, port)| !address.is_empty() && !port.is_empty())
    else {
        bail!("Use --page-server ADDRESS:PORT to specify page server");
    };
    match port.parse() {
        Ok(port) if port != 0 => Ok((address.to_owned(), port)),
        _ => bail!("Invalid port number"),
    }
}

/// `--parent-path`: relative to the images, which is how criu finds it on another machine too, and there.
pub(crate) fn parent(parsed: &Parsed, images: &Path) -> Result<Option<PathBuf>> {
    let Some(parent) = parsed.path("parent-path") else { return Ok(None) };
    if parent.is_absolute() {
        bail!("--parent-path must be relative");
    }
    // `..` of a directory that is not there leads nowhere.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(images)
        .with_context(|| format!("make {}", images.display()))?;
    let real = images.join(&parent);
    match std::fs::metadata(&real) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(parent)),
        Ok(_) => bail!("invalid --parent-path: {}: not a directory", real.display()),
        Err(error) => bail!("invalid --parent-path: {}: {error}", real.display()),
    }
}

/// criu needs to be root of the host.
pub(crate) fn warn_unprivileged(globals: &Globals, verb: &str) {
    if !rustix::process::geteuid().is_root() || in_user_namespace() {
        globals.log.warn(&format!("wright {verb} is untested with rootless containers"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(page_server("127.0.0.1:27277").unwrap(), ("127.0.0.1".to_owned(), 27277));
        assert_eq!(page_server("[::1]:1").unwrap(), ("::1".to_owned(), 1));
        for bad in ["", "host", ":1", "host:", "::1:2"] {
            assert!(
                page_server(bad).unwrap_err().to_string().contains("--page-server ADDRESS:PORT"),
                "{bad}"
            );
        }
        for bad in ["h:x", "h:0", "h:65536"] {
            assert_eq!(page_server(bad).unwrap_err().to_string(), "Invalid port number");
        }
    }

    #[test]
    fn an_annotation_replaces_the_configuration_of_criu() {
        assert_eq!(config_file(None).unwrap(), Path::new(CONFIG_FILE));
        assert_eq!(config_file(Some("")), None);
        assert_eq!(config_file(Some("/x")).unwrap(), Path::new("/x"));
    }
}
