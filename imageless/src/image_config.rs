//! The defaults an image brings for its containers, from a sidecar (OCI image-spec, config.md) or from a bundle's
//! `config.json` (OCI runtime-spec, config.md).
//!
//! Only what a person who writes such a file means as a default is read: Entrypoint, Cmd, Env, `WorkingDir`, User,
//! `StopSignal`, `ExposedPorts`, Volumes; and Labels, which are shown and never acted on, but for the one that names the
//! image. Of a bundle, only `process.args`, `env`, `cwd`, `user` and `annotations`: its mounts, capabilities, hooks and
//! devices would be the author's wishes about the host. Everything else in the file is ignored; a field of the wrong
//! type, a NUL byte or a user that is no user refuses the file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reference::Reference;
use crate::users::UserSpec;

/// Largest sidecar or bundle configuration that is read.
pub const CONFIG_MAX_BYTES: u64 = 4 << 20;
/// The label (sidecar) or annotation (bundle) that names the image: full references, separated by commas or spaces.
/// A value without `/` or `:` is a mere tag, as image layouts use this key, and names nothing.
pub const NAME_LABEL: &str = "org.opencontainers.image.ref.name";
/// Most names one sidecar may give.
const NAMES_MAX: usize = 64;

/// What an image brings for its containers. Empty means that it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command where there is no entrypoint. A bundle's `process.args` is this.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The working directory.
    pub working_dir: Option<String>,
    /// `uid`, `name`, `uid:gid`, `name:group`; parses as a [`UserSpec`].
    pub user: Option<String>,
    /// A signal name or number, as written.
    pub stop_signal: Option<String>,
    /// `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths in the container that hold data, sorted.
    pub volumes: Vec<String>,
    /// Free text about the image.
    pub labels: BTreeMap<String, String>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field of the wrong type or beyond its range.
    #[error("it is not valid JSON of an image or runtime configuration")]
    Json(#[from] serde_json::Error),
    /// Valid JSON of something else.
    #[error("it is neither an OCI image configuration nor an OCI runtime configuration")]
    Neither,
    /// A value that no container could use.
    #[error("{field} {problem}")]
    Value {
        /// The field, as in `config.Env[3]`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Which of the two specifications a configuration follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `ociVersion`: a bundle.
    Runtime,
    /// `architecture`, `config` or a `rootfs` with layers: a sidecar.
    Image,
}

#[derive(Deserialize)]
struct ImageFile {
    config: Option<ImageFileConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ImageFileConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RuntimeFile {
    process: Option<RuntimeProcess>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RuntimeProcess {
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: Option<String>,
    user: Option<RuntimeUser>,
}

#[derive(Deserialize)]
struct RuntimeUser {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

/// The marks by which the dialects are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marks {
    oci_version: Option<serde::de::IgnoredAny>,
    architecture: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    rootfs: Option<serde::de::IgnoredAny>,
}

impl ImageConfig {
    /// Parses either dialect, told apart by content: only a runtime configuration has `ociVersion`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Dialect), ConfigError> {
        let marks: Marks = serde_json::from_slice(bytes)?;
        let (config, dialect) = if marks.oci_version.is_some() {
            (Self::from_runtime(serde_json::from_slice(bytes)?), Dialect::Runtime)
        } else if marks.architecture.is_some() || marks.config.is_some() || marks.rootfs.is_some() {
            (Self::from_image(serde_json::from_slice(bytes)?), Dialect::Image)
        } else {
            return Err(ConfigError::Neither);
        };
        config.check()?;
        Ok((config, dialect))
    }

    /// The names the image gives itself. A name that is no reference is ignored: it is only a label.
    pub fn names(&self) -> Vec<Reference> {
        let Some(label) = self.labels.get(NAME_LABEL) else { return Vec::new() };
        label
            .split([',', ' '])
            .filter(|name| name.contains(['/', ':']))
            .take(NAMES_MAX)
            .filter_map(|name| Reference::parse(name).ok())
            .collect()
    }

    /// The user as the CRI wants it in an image: a number, or a name, without the group.
    pub fn cri_user(&self) -> (Option<u32>, Option<String>) {
        let user = self.user.as_deref().unwrap_or_default().split(':').next().unwrap_or_default();
        match user.parse() {
            Ok(uid) => (Some(uid), None),
            Err(_) if user.is_empty() => (None, None),
            Err(_) => (None, Some(user.to_owned())),
        }
    }

    fn from_image(file: ImageFile) -> Self {
        let config = file.config.unwrap_or_default();
        let keys =
            |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: set(config.working_dir),
            user: set(config.user),
            stop_signal: set(config.stop_signal),
            exposed_ports: keys(config.exposed_ports),
            volumes: keys(config.volumes),
            labels: config.labels.unwrap_or_default(),
        }
    }

    fn from_runtime(file: RuntimeFile) -> Self {
        let labels = file.annotations.unwrap_or_default();
        let Some(process) = file.process else { return Self { labels, ..Self::default() } };
        Self {
            cmd: process.args.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            working_dir: process.cwd.filter(|cwd| !cwd.is_empty()),
            user: process.user.map(|user| format!("{}:{}", user.uid, user.gid)),
            labels,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |field: String, problem: &str| Err(ConfigError::Value { field, problem: problem.to_owned() });
        let lists = [
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
            ("Env", &self.env),
            ("ExposedPorts", &self.exposed_ports),
            ("Volumes", &self.volumes),
        ];
        for (name, list) in lists {
            if let Some(index) = list.iter().position(|value| value.contains('\0')) {
                return refuse(format!("{name}[{index}]"), "holds a NUL byte");
            }
        }
        if let Some(index) = self.env.iter().position(|value| value.find('=').is_none_or(|at| at == 0)) {
            return refuse(format!("Env[{index}]"), "is not NAME=value");
        }
        if let Some(dir) = &self.working_dir
            && (dir.contains('\0') || dir.len() >= 4096)
        {
            return refuse("WorkingDir".to_owned(), "is not a path");
        }
        if let Some(signal) = &self.stop_signal
            && (signal.len() > 32
                || !signal.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-_".contains(&byte)))
        {
            return refuse("StopSignal".to_owned(), "is not a signal name or number");
        }
        if let Some(user) = &self.user
            && let Err(error) = UserSpec::parse(user)
        {
            return refuse("User".to_owned(), &format!("is refused: {error}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<(ImageConfig, Dialect), ConfigError> {
        ImageConfig::parse(text.as_bytes())
    }

    #[test]
    fn a_sidecar_gives_its_defaults_and_nothing_else() {
        let text = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{
            "Entrypoint":["/bin/app"],"Cmd":["-v"],"Env":["PATH=/bin","EMPTY="],"WorkingDir":"/srv","User":"1002",
            "StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"Labels":{"a":"b"},
            "Healthcheck":{"Test":["CMD","x"]},"OnBuild":null}}"#;
        let (config, dialect) = parse(text).unwrap();
        assert_eq!(dialect, Dialect::Image);
        assert_eq!(config.entrypoint, ["/bin/app"]);
        assert_eq!(config.cmd, ["-v"]);
        assert_eq!(config.env, ["PATH=/bin", "EMPTY="]);
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        assert_eq!(config.cri_user(), (Some(1002), None));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.labels["a"], "b");
        let (config, _) = parse(r#"{"config":{"Cmd":null,"User":"www-data:g"}}"#).unwrap();
        assert_eq!(config.cri_user(), (None, Some("www-data".to_owned())));
        let (config, _) = parse(r#"{"architecture":"amd64","config":null}"#).unwrap();
        assert_eq!(config, ImageConfig::default());
    }

    #[test]
    fn a_bundle_gives_its_process() {
        let text = r#"{"ociVersion":"1.2.0","process":{"terminal":true,"user":{"uid":5,"gid":6},"args":["sh"],
            "env":["A=b"],"cwd":"/","capabilities":{"bounding":["CAP_SYS_ADMIN"]}},"root":{"path":"rootfs"},
            "hooks":{"prestart":[{"path":"/bin/evil"}]},
            "annotations":{"org.opencontainers.image.ref.name":"registry.k8s.io/pause:3.9, 1.2 quay.io/x/y"}}"#;
        let (config, dialect) = parse(text).unwrap();
        assert_eq!(dialect, Dialect::Runtime);
        assert_eq!((config.entrypoint.len(), config.cmd.as_slice()), (0, ["sh".to_owned()].as_slice()));
        assert_eq!(config.user.as_deref(), Some("5:6"));
        let names: Vec<String> = config.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["registry.k8s.io/pause:3.9", "quay.io/x/y:latest"]);
    }

    #[test]
    fn hostile_configurations_are_refused_with_the_field() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(refused(r#"{"config":{"Env":["A=b","C"]}}"#), "Env[1] is not NAME=value");
        assert_eq!(refused(r#"{"config":{"Cmd":["a\u0000b"]}}"#), "Cmd[0] holds a NUL byte");
        assert!(refused(r#"{"config":{"User":"4294967296"}}"#).starts_with("User is refused"));
        assert!(refused(r#"{"config":{"StopSignal":"SIG TERM"}}"#).starts_with("StopSignal"));
        assert!(matches!(parse(r#"{"hello":1}"#), Err(ConfigError::Neither)));
        assert!(matches!(parse("[]"), Err(ConfigError::Json(_))));
        assert!(matches!(parse(r#"{"config":{"Cmd":"sh"}}"#), Err(ConfigError::Json(_))));
        let uid = r#"{"ociVersion":"1","process":{"user":{"uid":4294967296,"gid":0}}}"#;
        assert!(matches!(parse(uid), Err(ConfigError::Json(_))));
        let deep = format!(r#"{{"config":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(parse(&deep), Err(ConfigError::Json(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ImageConfig::parse(&bytes);
        }

        #[test]
        fn what_is_accepted_is_usable(env in proptest::collection::vec("[A-Z]{0,2}[=x\\x00]{0,2}", 0..4), user in "\\PC{0,6}") {
            let text = serde_json::json!({"config": {"Env": env, "User": user}}).to_string();
            if let Ok((config, _)) = parse(&text) {
                prop_assert!(config.env.iter().all(|pair| !pair.contains('\0') && pair.find('=') > Some(0)));
                prop_assert!(config.user.is_none_or(|user| UserSpec::parse(&user).is_ok()));
            }
        }
    }
}
