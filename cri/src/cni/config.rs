//! Network configuration files: `*.conflist`, and `*.conf` and `*.json` with one plugin each.
//!
//! Directories are searched in their order, the files of one in the order of their names, and the first that can be
//! used is used. One that cannot is named with its line, and the next is tried.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The longest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The most plugins in one list.
const MAX_PLUGINS: usize = 32;

/// The versions of the specification that are spoken here, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version of the specification: an index into [`VERSIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// CHECK, and prevResult for DEL.
    pub const V0_4: Self = Self(2);
    /// Addresses without a `version` key.
    pub const V1_0: Self = Self(3);
    /// STATUS and GC.
    pub const V1_1: Self = Self(4);

    /// None: it is not spoken here.
    pub fn parse(text: &str) -> Option<Self> {
        VERSIONS.iter().position(|version| *version == text).map(Self)
    }

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// A network: plugins that are run one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that its plugins are spoken to in.
    pub version: Version,
    /// CHECK must not be used.
    pub disable_check: bool,
    /// GC must not be used.
    pub disable_gc: bool,
    /// In the order of ADD; at least one.
    pub plugins: Vec<PluginConfig>,
    /// The configuration in the form of a list, as it is recorded with a pod.
    pub raw: Value,
    /// Where it was read from.
    pub file: PathBuf,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// `type`: the name of the program.
    pub kind: String,
    /// The capability arguments it takes.
    pub capabilities: BTreeSet<String>,
    /// Its configuration, with everything that is the plugin's own business.
    pub raw: Map<String, Value>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or a directory that cannot be read.
    pub file: PathBuf,
    /// From 1; 0 where no line is to blame.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl std::fmt::Display for Fault {
    /// `file:line: reason`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.reason),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.reason),
        }
    }
}

/// What directories hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The first configuration that can be used.
    pub list: Option<NetworkList>,
    /// Those before it that cannot.
    pub faults: Vec<Fault>,
}

impl Found {
    /// Whether nobody has put a configuration there, not even a broken one.
    pub fn nothing(&self) -> bool {
        self.list.is_none() && self.faults.is_empty()
    }
}

/// Looks for a network in `directories`. One that does not exist is empty. Blocks.
pub fn load(directories: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for directory in directories {
        let files = match candidates(directory) {
            Ok(files) => files,
            Err(error) => {
                found.faults.push(Fault { file: directory.clone(), line: 0, reason: error.to_string() });
                continue;
            }
        };
        for file in files {
            match read(&file).and_then(|text| parse(&file, &text)) {
                Ok(list) => {
                    found.list = Some(list);
                    return found;
                }
                Err(fault) => found.faults.push(fault),
            }
        }
    }
    found
}

/// The configuration files of a directory, by name.
fn candidates(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if matches!(kind, Some("conf" | "conflist" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String, Fault> {
    let failed = |error: io::Error| Fault {
        file: file.to_owned(),
        line: 0,
        reason: format!("cannot be read: {error}"),
    };
    // A FIFO in its place must not hang the daemon.
    let metadata = fs::metadata(file).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is no file")));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(failed(io::Error::other(format!("{} bytes are too many", metadata.len()))));
    }
    let mut text = String::new();
    File::open(file).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// Parses the text of a configuration file: a list, or one plugin, which is a list of one.
pub fn parse(file: &Path, text: &str) -> Result<NetworkList, Fault> {
    let fault = |line, reason: String| Fault { file: file.to_owned(), line, reason };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // serde_json ends its message with the place, which is told already.
        let message = error.to_string();
        let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
        fault(error.line(), format!("not JSON: {reason}"))
    })?;
    from_value(file, value).map_err(|(key, reason)| fault(line_of(text, key), reason))
}

/// The line of the first use of a key. A guess, but a good one: the keys in question are used once.
fn line_of(text: &str, key: &str) -> usize {
    let place = text.find(&format!("\"{key}\""));
    place.map_or(1, |place| 1 + text[..place].matches('\n').count())
}

/// A wrong key, and what is wrong with it.
type Wrong = (&'static str, String);

/// As [`parse`], of what was parsed as JSON, such as a record's [`NetworkList::raw`].
pub fn from_value(file: &Path, value: Value) -> Result<NetworkList, Wrong> {
    let Value::Object(object) = value else {
        return Err(("", "is no JSON object".to_owned()));
    };
    let object = if object.contains_key("plugins") { object } else { list_of_one(object)? };
    let name = text(&object, "name")?;
    if !is_network_name(name) {
        return Err(("name", format!("{name:?} is not a network's name: letters, digits, '.', '_' and '-'")));
    }
    let name = name.to_owned();
    let version = version(&object)?;
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) if plugins.is_empty() => {
            return Err(("plugins", "plugins is empty".to_owned()));
        }
        Some(Value::Array(plugins)) if plugins.len() > MAX_PLUGINS => {
            return Err((
                "plugins",
                format!("plugins has {} plugins; {MAX_PLUGINS} are allowed", plugins.len()),
            ));
        }
        Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<Vec<_>, _>>()?,
        _ => return Err(("plugins", "plugins is no array".to_owned())),
    };
    Ok(NetworkList {
        name,
        version,
        disable_check: flag(&object, "disableCheck")?,
        disable_gc: flag(&object, "disableGC")?,
        plugins,
        raw: Value::Object(object),
        file: file.to_owned(),
    })
}

/// One plugin's configuration as a list: name and version belong to the list.
fn list_of_one(plugin: Map<String, Value>) -> Result<Map<String, Value>, Wrong> {
    text(&plugin, "type")?;
    let mut list = Map::new();
    for key in ["cniVersion", "cniVersions", "name"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    Ok(list)
}

/// The newest version that both the configuration and this program know.
fn version(list: &Map<String, Value>) -> Result<Version, Wrong> {
    let known = || format!("{} are known here", VERSIONS.join(", "));
    if let Some(Value::Array(versions)) = list.get("cniVersions") {
        let newest = versions.iter().filter_map(Value::as_str).filter_map(Version::parse).max();
        if let Some(version) = newest {
            return Ok(version);
        }
    }
    match list.get("cniVersion") {
        None => Err(("cniVersion", format!("cniVersion is missing; {}", known()))),
        Some(Value::String(version)) => Version::parse(version)
            .ok_or_else(|| ("cniVersion", format!("cniVersion {version:?} is not supported; {}", known()))),
        Some(_) => Err(("cniVersion", "cniVersion is no string".to_owned())),
    }
}

fn plugin(value: &Value) -> Result<PluginConfig, Wrong> {
    let Value::Object(raw) = value else {
        return Err(("plugins", "a plugin is no JSON object".to_owned()));
    };
    let kind = text(raw, "type")?;
    // It becomes part of a path.
    if kind.contains('/') || kind == "." || kind == ".." || kind.contains('\0') {
        return Err(("type", format!("type {kind:?} is not the name of a program")));
    }
    let capabilities = match raw.get("capabilities") {
        None => BTreeSet::new(),
        Some(Value::Object(map)) => {
            map.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect()
        }
        Some(_) => return Err(("capabilities", "capabilities is no object".to_owned())),
    };
    Ok(PluginConfig { kind: kind.to_owned(), capabilities, raw: raw.clone() })
}

fn text<'a>(object: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, Wrong> {
    match object.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(Value::String(_)) | None => Err((key, format!("{key} is missing"))),
        Some(_) => Err((key, format!("{key} is no string"))),
    }
}

/// A boolean, which libcni takes as a string too.
fn flag(object: &Map<String, Value>, key: &'static str) -> Result<bool, Wrong> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
        Some(_) => Err((key, format!("{key} is neither true nor false"))),
    }
}

/// The specification's rule for names.
fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && name.len() <= 255
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "disableCheck": true,
  "plugins": [
    { "type": "bridge", "ipam": { "type": "host-local" } },
    { "type": "portmap", "capabilities": { "portMappings": true, "dns": false } }
  ]
}"#;

    fn file(name: &str) -> PathBuf {
        PathBuf::from("/etc/cni/net.d").join(name)
    }

    fn fault(text: &str) -> String {
        parse(&file("10-x.conflist"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_list_is_read() {
        let list = parse(&file("10-x.conflist"), LIST).unwrap();
        assert_eq!((list.name.as_str(), list.version), ("pods", Version::V1_0));
        assert!(list.disable_check && !list.disable_gc);
        let kinds: Vec<_> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "portmap"]);
        assert_eq!(list.plugins[1].capabilities, BTreeSet::from(["portMappings".to_owned()]));
        assert_eq!(from_value(&list.file, list.raw.clone()).unwrap(), list, "a record brings back the same");
    }

    #[test]
    fn one_plugin_is_a_list_of_one() {
        let text = r#"{"cniVersion":"0.3.1","name":"one","type":"ptp","mtu":1400}"#;
        let list = parse(&file("10.conf"), text).unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("one", 1));
        assert_eq!(list.plugins[0].raw["mtu"], 1400);
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.9.9"],"name":"n","type":"t"}"#;
        assert_eq!(parse(&file("10.conf"), text).unwrap().version, Version::V1_1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        assert!(fault("{\n\n  oops").starts_with("/etc/cni/net.d/10-x.conflist:3: not JSON: "));
        let later = LIST.replace("1.0.0", "2.0.0");
        assert!(
            fault(&later).contains(".conflist:2: cniVersion \"2.0.0\" is not supported"),
            "{}",
            fault(&later)
        );
        assert!(fault(&LIST.replace("\"pods\"", "\"a/b\"")).contains(":3: \"a/b\" is not a network's name"));
        assert!(fault(&LIST.replace("bridge", "../bridge")).contains("not the name of a program"));
        assert!(fault(r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#).contains("plugins"));
        assert!(fault(r#"{"cniVersion":"1.0.0","name":"n"}"#).contains("type is missing"));
        assert!(fault("[]").contains("no JSON object"));
    }

    #[test]
    fn the_first_by_name_that_can_be_used_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&second).unwrap();
        assert!(load(&[first.clone(), second.clone(), "/no/such/directory".into()]).nothing());
        fs::write(second.join("00.conflist"), LIST.replace("pods", "second")).unwrap();
        let name = |found: &Found| found.list.as_ref().unwrap().name.clone();
        assert_eq!(name(&load(&[first.clone(), second.clone()])), "second");
        fs::write(first.join("20.conflist"), LIST.replace("pods", "twenty")).unwrap();
        fs::write(first.join("10.conflist"), "{").unwrap();
        fs::write(first.join("05.txt"), "not looked at").unwrap();
        let found = load(&[first.clone(), second.clone()]);
        assert_eq!(name(&found), "twenty");
        assert_eq!(found.faults.len(), 1);
        assert!(found.faults[0].file.ends_with("10.conflist"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            first.join("11.conf"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let found = load(&[first]);
        assert_eq!((name(&found).as_str(), found.faults.len()), ("twenty", 2), "a FIFO does not hang");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,200}") {
            let _ = parse(&file("10.conf"), &text);
        }

        #[test]
        fn no_json_is_too_strange(name in "\\PC{0,12}", kind in "\\PC{0,12}", version in "[0-9.]{0,6}") {
            let value = serde_json::json!({ "cniVersion": version, "name": name, "plugins": [{ "type": kind }] });
            if let Ok(list) = from_value(&file("10.conflist"), value) {
                prop_assert!(is_network_name(&list.name));
                prop_assert!(!list.plugins[0].kind.contains('/') && !list.plugins[0].kind.is_empty());
            }
        }
    }
}
