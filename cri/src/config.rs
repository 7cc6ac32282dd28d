//! The configuration: one TOML file and its drop-ins, read whole, checked, and only then used.
//!
//! `config.toml` in this directory documents every key with its default; a test holds it and [`Config::default`]
//! together. Drop-ins live in `<file>.d/*.toml` and are merged in the order of their names. Every file is checked on its
//! own first, so that an error names the file and the line it is in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::network::bridge::leases::Range;

use crate::check;
use crate::translate::{HandlerRules, PrivilegedDevices};

/// The documented configuration file with every default.
pub const DOCUMENTED: &str = include_str!("config.toml");

/// Where the configuration is read from unless the command line says otherwise.
pub const DEFAULT_FILE: &str = "/etc/podwright/config.toml";

/// The longest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or the drop-in directory cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// From 1; 0 where the place is not known.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value that cannot be meant.
    #[error("{key}: {reason}")]
    Value {
        /// As `table.key`.
        key: &'static str,
        /// What would be right.
        reason: String,
    },
}

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The CRI endpoint.
    pub server: Server,
    /// Streaming of exec, attach and port-forward.
    pub streaming: Streaming,
    /// Directories of this instance.
    pub paths: Paths,
    /// Where images are.
    pub rootfs: Rootfs,
    /// CNI.
    pub network: Network,
    /// Control groups.
    pub cgroup: Cgroup,
    /// Devices of containers.
    pub devices: Devices,
    /// The daemon's own log.
    pub log: Log,
    /// RuntimeClass handlers.
    pub runtime: Runtime,
}

/// The CRI endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// A group that may connect too; empty: none.
    pub group: String,
    /// The longest gRPC message in bytes.
    pub max_message_bytes: usize,
    /// How long running calls may take after SIGTERM.
    pub drain_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            socket: "/run/podwright/podwright.sock".into(),
            group: String::new(),
            max_message_bytes: 16 * 1024 * 1024,
            drain_seconds: 10,
        }
    }
}

/// Streaming of exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Where it listens; port 0: a free one.
    pub address: String,
    /// The host in its URLs; empty: the address.
    pub host: String,
    /// PEM file of its certificate chain; empty: no TLS.
    pub tls_cert: PathBuf,
    /// PEM file of the certificate's private key.
    pub tls_key: PathBuf,
    /// PEM file of the CAs that clients' certificates must be of; empty: clients need none.
    pub tls_client_ca: PathBuf,
    /// How long nothing may go over a session's connection before it is closed, in seconds; 0: for ever.
    pub idle_timeout_seconds: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            host: String::new(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_ca: PathBuf::new(),
            idle_timeout_seconds: 4 * 60 * 60,
        }
    }
}

/// Directories of this instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// Survives reboots.
    pub state: PathBuf,
    /// Does not need to.
    pub run: PathBuf,
    /// The monitor's program; empty: searched.
    pub monitor: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { state: "/var/lib/podwright".into(), run: "/run/podwright".into(), monitor: PathBuf::new() }
    }
}

/// Where images are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rootfs {
    /// Searched in this order.
    pub roots: Vec<PathBuf>,
    /// Reference -> path of an entry below a root.
    pub aliases: BTreeMap<String, String>,
}

impl Default for Rootfs {
    fn default() -> Self {
        Self { roots: vec!["/var/lib/podwright/rootfs".into()], aliases: BTreeMap::new() }
    }
}

/// CNI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Configurations.
    pub cni_conf_dirs: Vec<PathBuf>,
    /// Plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long one execution of a plugin may take.
    pub plugin_timeout_seconds: u64,
    /// The network of pods while there is no configuration.
    pub default: DefaultNetwork,
    /// The built-in network.
    pub bridge: BridgeNetwork,
}

/// The built-in network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgeNetwork {
    /// The bridge's name, and its rules' table's.
    pub name: String,
    /// Addresses of pods; empty: none of IPv4.
    pub ipv4: String,
    /// Addresses of pods; empty: none of IPv6.
    pub ipv6: String,
    /// Whether what pods send elsewhere gets the host's address.
    pub masquerade: bool,
    /// The longest packet in bytes; 0: the kernel's choice.
    pub mtu: u32,
}

impl Default for BridgeNetwork {
    fn default() -> Self {
        Self {
            name: "podwright0".into(),
            ipv4: "10.87.0.0/16".into(),
            ipv6: String::new(),
            masquerade: true,
            mtu: 0,
        }
    }
}

/// The network of pods while there is no CNI configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultNetwork {
    /// The built-in bridge, as long as there is no CNI plugin either: plugins without a configuration are those of a node whose
    /// network is about to be configured, and its first pods must not be cut off from the rest of their cluster.
    Bridge,
    /// The built-in bridge, also where there are plugins.
    BridgeAlways,
    /// A loopback interface and nothing else.
    Loopback,
    /// None: pods with a network of their own are refused, and the node is not ready.
    None,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cni_conf_dirs: vec!["/etc/cni/net.d".into()],
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            plugin_timeout_seconds: 60,
            default: DefaultNetwork::Bridge,
            bridge: BridgeNetwork::default(),
        }
    }
}

/// Control groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// Who makes them.
    pub driver: CgroupDriver,
    /// Of the runtime itself, and of pods that name no parent.
    pub runtime: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { driver: CgroupDriver::Cgroupfs, runtime: "/podwright".into() }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupDriver {
    /// podwright, with mkdir(2).
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
}

/// Devices of containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Devices {
    /// Where files of the Container Device Interface are; later ones go before earlier ones. Empty: it is off.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter as tracing's `EnvFilter` reads it.
    pub level: String,
    /// Shape of a line.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What RuntimeClass handlers mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// By name; `""` is the default one and always exists.
    pub handlers: BTreeMap<String, Handler>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { handlers: BTreeMap::from([(String::new(), Handler::default())]) }
    }
}

/// One RuntimeClass handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// The longest part of a log line in bytes.
    pub log_part_bytes: u32,
    /// Annotations of pods that are copied into the runtime-spec; `*` stands for anything.
    pub pod_annotations: Vec<String>,
    /// Annotations of containers that are copied into the runtime-spec; `*` stands for anything.
    pub container_annotations: Vec<String>,
    /// Privileged containers get none of the host's device nodes.
    pub privileged_without_host_devices: bool,
    /// With the former: they may use every device all the same.
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// Containers may make cgroups below their own, on cgroup v2.
    pub cgroup_writable: bool,
    /// CNI configurations of these pods; empty: those of every pod.
    pub cni_conf_dirs: Vec<PathBuf>,
}

impl Default for Handler {
    fn default() -> Self {
        Self {
            log_part_bytes: 16 * 1024,
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            privileged_without_host_devices: false,
            privileged_without_host_devices_all_devices_allowed: false,
            cgroup_writable: false,
            cni_conf_dirs: Vec::new(),
        }
    }
}

impl Handler {
    /// What it decides for its pods.
    pub fn rules(&self) -> HandlerRules {
        HandlerRules {
            pod_annotations: self.pod_annotations.clone(),
            container_annotations: self.container_annotations.clone(),
            privileged_devices: match (
                self.privileged_without_host_devices,
                self.privileged_without_host_devices_all_devices_allowed,
            ) {
                (false, _) => PrivilegedDevices::Nodes,
                (true, true) => PrivilegedDevices::AccessOnly,
                (true, false) => PrivilegedDevices::None,
            },
            cgroup_writable: self.cgroup_writable,
        }
    }
}

impl Streaming {
    fn check(&self) -> Result<(), ConfigError> {
        if self.address.parse::<SocketAddr>().is_err() {
            return value("streaming.address", "expected ADDRESS:PORT");
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
        if !self.host.chars().all(legal) {
            return value("streaming.host", "expected a host name or an IP address, without a port");
        }
        let given = |path: &Path| !path.as_os_str().is_empty();
        if given(&self.tls_cert) != given(&self.tls_key) {
            return value("streaming.tls_key", "a certificate and its key go together");
        }
        if given(&self.tls_client_ca) && !given(&self.tls_cert) {
            return value("streaming.tls_client_ca", "needs streaming.tls_cert");
        }
        Ok(())
    }
}

impl Config {
    /// Reads `file` and its drop-ins. A missing `file` is an error only where `required`: the default one may be absent.
    pub fn load(file: &Path, required: bool) -> Result<Self, ConfigError> {
        let mut merged = Table::new();
        match read(file) {
            Ok(text) => merge(&mut merged, parse(file, &text)?),
            Err(ConfigError::Read { source, .. })
                if !required && source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for path in drop_ins(file)? {
            merge(&mut merged, parse(&path, &read(&path)?)?);
        }
        let mut config: Self = Value::Table(merged).try_into().map_err(|error: toml::de::Error| {
            ConfigError::Parse { path: file.to_owned(), line: 0, message: error.message().to_owned() }
        })?;
        config.runtime.handlers.entry(String::new()).or_default();
        config.check()?;
        Ok(config)
    }

    /// What the types cannot say.
    fn check(&self) -> Result<(), ConfigError> {
        let absolute = |key, path: &Path| {
            if path.is_absolute() {
                return Ok(());
            }
            value(key, format!("{} is not an absolute path", path.display()))
        };
        absolute("server.socket", &self.server.socket)?;
        absolute("paths.state", &self.paths.state)?;
        absolute("paths.run", &self.paths.run)?;
        if !self.paths.monitor.as_os_str().is_empty() {
            absolute("paths.monitor", &self.paths.monitor)?;
        }
        for root in &self.rootfs.roots {
            absolute("rootfs.roots", root)?;
        }
        for directory in &self.network.cni_conf_dirs {
            absolute("network.cni_conf_dirs", directory)?;
        }
        for directory in &self.devices.cdi_spec_dirs {
            absolute("devices.cdi_spec_dirs", directory)?;
        }
        for directory in &self.network.cni_bin_dirs {
            absolute("network.cni_bin_dirs", directory)?;
            // The plugins get them in one string, CNI_PATH.
            if directory.to_string_lossy().contains(':') {
                return value("network.cni_bin_dirs", "a directory's name must not have a colon");
            }
        }
        self.check_bridge()?;
        if !(1..=3600).contains(&self.network.plugin_timeout_seconds) {
            return value("network.plugin_timeout_seconds", "expected 1 to 3600");
        }
        // sun_path has 108 bytes with its NUL.
        if self.server.socket.as_os_str().len() > 107 {
            return value("server.socket", "a unix socket's path has at most 107 bytes");
        }
        if self.server.max_message_bytes < 64 * 1024 {
            return value("server.max_message_bytes", "at least 65536");
        }
        self.streaming.check()?;
        let parts = || self.cgroup.runtime.split('/').filter(|part| !part.is_empty());
        if !self.cgroup.runtime.starts_with('/')
            || parts().next().is_none()
            || parts().any(|part| part == "." || part == "..")
        {
            return value(
                "cgroup.runtime",
                "expected an absolute cgroup path such as /podwright, without `..`",
            );
        }
        for (name, handler) in &self.runtime.handlers {
            if name.len() > check::NAME_BYTES || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return value("runtime.handlers", format!("{} is not a handler's name", check::shown(name)));
            }
            for directory in &handler.cni_conf_dirs {
                absolute("runtime.handlers.*.cni_conf_dirs", directory)?;
            }
            if !(64..=64 * 1024).contains(&handler.log_part_bytes) {
                return value("runtime.handlers.*.log_part_bytes", "expected 64 to 65536");
            }
            if handler.privileged_without_host_devices_all_devices_allowed
                && !handler.privileged_without_host_devices
            {
                return value(
                    "runtime.handlers.*.privileged_without_host_devices_all_devices_allowed",
                    "means something only with privileged_without_host_devices",
                );
            }
        }
        Ok(())
    }
}

impl Config {
    fn check_bridge(&self) -> Result<(), ConfigError> {
        let bridge = &self.network.bridge;
        let ranges =
            [("network.bridge.ipv4", &bridge.ipv4, true), ("network.bridge.ipv6", &bridge.ipv6, false)];
        for (key, text, v4) in ranges {
            if text.is_empty() {
                continue;
            }
            let range = Range::parse(text).map_err(|reason| ConfigError::Value { key, reason })?;
            if range.gateway().address.is_ipv4() != v4 {
                return value(key, format!("{text:?} is of the other family"));
            }
        }
        if bridge.ipv4.is_empty() && bridge.ipv6.is_empty() {
            return value("network.bridge", "one of ipv4 and ipv6 has to be given");
        }
        // IFNAMSIZ, and a part of paths below /proc/sys/net.
        let name = &bridge.name;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty()
            || name.len() > 15
            || !name.chars().all(legal)
            || !name.starts_with(|c: char| c.is_ascii_alphabetic())
        {
            return value(
                "network.bridge.name",
                "expected a link's name: a letter, then letters, digits, '-' and '_', 15 at most",
            );
        }
        if bridge.mtu != 0 && !(1280..=65_535).contains(&bridge.mtu) {
            return value("network.bridge.mtu", "expected 1280 to 65535, or 0");
        }
        Ok(())
    }
}

fn value<T>(key: &'static str, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, reason: reason.into() })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE_BYTES {
        return Err(failed(std::io::Error::other(format!("{length} bytes are too many"))));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The drop-ins of `file` in the order of their names.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let failed = |source| ConfigError::Read { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// One file as a table, after a check of its keys and types that knows the lines.
fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let failed = |error: toml::de::Error| {
        let line =
            error.span().map_or(0, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        ConfigError::Parse { path: path.to_owned(), line, message: error.message().to_owned() }
    };
    toml::from_str::<Config>(text).map_err(failed)?;
    toml::from_str(text).map_err(failed)
}

/// Lays `over` over `base`.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(main: &str, drop_ins: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, main).unwrap();
        std::fs::create_dir(directory.path().join("config.toml.d")).unwrap();
        for (name, text) in drop_ins {
            std::fs::write(directory.path().join("config.toml.d").join(name), text).unwrap();
        }
        Config::load(&file, true)
    }

    #[test]
    fn the_documented_file_holds_the_defaults() {
        assert_eq!(load(DOCUMENTED, &[]).unwrap(), Config::default());
        assert_eq!(load("", &[]).unwrap(), Config::default());
        // And it leaves no key out.
        let documented: Table = toml::from_str(DOCUMENTED).unwrap();
        assert_eq!(Table::try_from(Config::default()).unwrap(), documented);
    }

    #[test]
    fn drop_ins_are_merged_in_order() {
        let config = load(
            "[rootfs]\nroots = ['/a']\n[rootfs.aliases]\nx = 'one'\n",
            &[
                ("20.toml", "[rootfs.aliases]\nx = 'three'\n[log]\nlevel = 'debug'\n"),
                ("10.toml", "[rootfs.aliases]\nx = 'two'\ny = 'two'\n"),
                ("notes.txt", "not read"),
            ],
        )
        .unwrap();
        assert_eq!(config.rootfs.roots, [PathBuf::from("/a")]);
        let aliases: Vec<_> = config.rootfs.aliases.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(aliases, [("x", "three"), ("y", "two")]);
        assert_eq!(config.log.level, "debug");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_file_and_line() {
        let error =
            load("[log]\nlevel = 'info'\n", &[("10.toml", "[server]\n\nsokcet = '/x'\n")]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("10.toml:3: "), "{text}");
        assert!(text.contains("sokcet"), "{text}");
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for (text, key) in [
            ("[server]\nsocket = 'relative'", "server.socket"),
            ("[paths]\nstate = ''", "paths.state"),
            ("[cgroup]\nruntime = '/../x'", "cgroup.runtime"),
            ("[cgroup]\nruntime = '/'", "cgroup.runtime"),
            ("[network.bridge]\nipv4 = '10.0.0.1/16'", "network.bridge.ipv4"),
            ("[network.bridge]\nipv6 = '10.0.0.0/16'", "network.bridge.ipv6"),
            ("[network.bridge]\nipv4 = ''", "network.bridge"),
            ("[network.bridge]\nname = '../x'", "network.bridge.name"),
            ("[network]\nplugin_timeout_seconds = 0", "network.plugin_timeout_seconds"),
            ("[runtime.handlers.x]\nlog_part_bytes = 1", "log_part_bytes"),
            ("[runtime.handlers.'a b']", "runtime.handlers"),
            (
                "[runtime.handlers.x]\nprivileged_without_host_devices_all_devices_allowed = true",
                "all_devices_allowed",
            ),
            ("[streaming]\naddress = 'localhost'", "streaming.address"),
            ("[streaming]\nhost = 'http://x'", "streaming.host"),
            ("[streaming]\ntls_cert = '/x'", "streaming.tls_key"),
            ("[streaming]\ntls_client_ca = '/x'", "streaming.tls_client_ca"),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn the_default_handler_always_exists() {
        let config = load("[runtime.handlers.small]\nlog_part_bytes = 4096", &[]).unwrap();
        assert_eq!(config.runtime.handlers.len(), 2);
    }
}
