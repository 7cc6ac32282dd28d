//! CNI plugins that misbehave on command. They are shell scripts with real side effects: a lease file and a network link for
//! each attachment, which both have to be gone in the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::{self, Process};
use crate::{Node, NodeOptions, deadline, root, snapshot};

/// What a plugin does wrong, always after it has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails with an error as the specification wants it.
    Fail,
    /// Never ends, and has a child, and one that has left its session.
    Hang,
    /// Dies of a signal.
    Crash,
    /// Ends well and prints something else than JSON.
    Garbage,
    /// Writes 100 MB.
    Huge,
    /// Ends well and prints nothing.
    Nothing,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Fail, Self::Hang, Self::Crash, Self::Garbage, Self::Huge, Self::Nothing];

    fn word(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Hang => "hang",
            Self::Crash => "crash",
            Self::Garbage => "garbage",
            Self::Huge => "huge",
            Self::Nothing => "nothing",
        }
    }
}

/// The names of the two plugins of the network, in the order of ADD.
pub const NAMES: [&str; 2] = ["first", "second"];

const SCRIPT: &str = r#"#!/bin/sh
dir=@DIR@
me=${0##*/}
config=$(cat)
echo "$me $CNI_COMMAND $CNI_CONTAINERID" >>"$dir/calls"
echo "$config" >"$dir/config.$me.$CNI_COMMAND"
env >"$dir/env.$me.$CNI_COMMAND"
link=$(printf '%.1s%.10s' "$me" "$CNI_CONTAINERID")
case $CNI_COMMAND in
VERSION)
    [ -e "$dir/fault.$me.VERSION" ] || { echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit 0; }
    ;;
ADD)
    echo "$CNI_NETNS" >"$dir/leases/$me-$CNI_CONTAINERID"
    ip link add name "$link" type bridge
    ;;
DEL)
    ip link del "$link" 2>/dev/null
    rm -f "$dir/leases/$me-$CNI_CONTAINERID"
    ;;
esac
fault=$(cat "$dir/fault.$me.$CNI_COMMAND" 2>/dev/null)
case $fault in
fail) echo '{"cniVersion":"1.0.0","code":117,"msg":"the stub was told to","details":"after its work"}'; exit 1 ;;
hang)
    # Of a session of its own, with nothing of the plugin's open and no parent that is left.
    (setsid sh -c 'while :; do sleep 1000; done' "$dir/escaped" </dev/null >/dev/null 2>&1 &)
    sleep 1000 & echo $! >"$dir/hanging"; wait ;;
crash) kill -SEGV $$ ;;
garbage) echo 'not { JSON'; exit 0 ;;
huge) exec head -c 100000000 /dev/zero ;;
nothing) exit 0 ;;
esac
[ "$CNI_COMMAND" != ADD ] ||
    echo '{"cniVersion":"@VERSION@","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.99.0.5/24","interface":0},{"address":"fd99::5/64","interface":0}]}'
"#;

/// A directory of two such plugins.
#[derive(Debug)]
pub struct StubPlugins {
    directory: PathBuf,
}

impl StubPlugins {
    /// A node whose network they make, in a network namespace of its own. The version is that of the specification.
    pub fn node(version: &str) -> Result<(Node, Self)> {
        let options = NodeOptions {
            own_network: true,
            network: vec![
                // Soon, for those that hang; those that do not have to be done by then, on a busy machine too.
                format!("plugin_timeout_seconds = {}", deadline::slowness().max(5)),
                "default = \"none\"".to_owned(),
            ],
            ..Default::default()
        };
        let node = Node::with(&options)?;
        let stubs = Self::install(&node, version)?;
        stubs.configure(&node, version)?;
        Ok((node, stubs))
    }

    /// Gives a node the plugins, and no configuration yet.
    pub fn install(node: &Node, version: &str) -> Result<Self> {
        let directory = node.path().join("stub");
        fs::create_dir_all(directory.join("leases"))?;
        for name in NAMES {
            install(node, name, &directory, version)?;
        }
        Ok(Self { directory })
    }

    /// Writes the configuration of their network.
    pub fn configure(&self, node: &Node, version: &str) -> Result<()> {
        let plugins = NAMES.map(|name| {
            serde_json::json!({ "type": name, "capabilities": { "portMappings": true, "dns": name == "second" } })
        });
        let list = serde_json::json!({ "cniVersion": version, "name": "stubs", "plugins": plugins });
        Ok(fs::write(node.cni().join("10-stubs.conflist"), list.to_string())?)
    }

    /// Has a plugin do wrong what it is asked for next, or nothing any more.
    pub fn set(&self, name: &str, command: &str, fault: Option<Fault>) -> Result<()> {
        let file = self.directory.join(format!("fault.{name}.{command}"));
        match fault {
            Some(fault) => Ok(fs::write(file, fault.word())?),
            None => Ok(fs::remove_file(file)?),
        }
    }

    /// Processes that a hanging plugin has sent away and that live.
    pub fn escaped(&self) -> Result<Vec<Process>> {
        let name = self.directory.join("escaped").to_string_lossy().into_owned();
        let mut found = process::all()?;
        found.retain(|process| process.command.contains(&name));
        Ok(found)
    }

    /// The executions of one verb so far, as `plugin VERB container`.
    pub fn calls(&self, command: &str) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("calls")).unwrap_or_default();
        text.lines().filter(|line| line.split(' ').nth(1) == Some(command)).map(str::to_owned).collect()
    }

    /// What a plugin read and saw when it was last asked for something: its configuration, its environment.
    pub fn seen(&self, name: &str, command: &str) -> Result<(serde_json::Value, String)> {
        let read = |what: &str| fs::read_to_string(self.directory.join(format!("{what}.{name}.{command}")));
        Ok((serde_json::from_str(&read("config")?)?, read("env")?))
    }

    /// The directory of leases.
    pub fn leases(&self) -> PathBuf {
        self.directory.join("leases")
    }

    /// The file that a hanging plugin writes its child's pid into.
    pub fn hanging(&self) -> PathBuf {
        self.directory.join("hanging")
    }

    /// What is there of all attachments: leases and links.
    pub fn left(&self, node: &Node) -> Result<BTreeSet<String>> {
        let mut left: BTreeSet<String> = fs::read_dir(self.leases())?
            .map(|entry| Ok(format!("lease {}", entry?.file_name().to_string_lossy())))
            .collect::<Result<_>>()?;
        let links = snapshot::links(node.namespace()?.pid())?;
        left.extend(links.into_iter().filter(|link| link != "lo").map(|link| format!("link {link}")));
        Ok(left)
    }
}

fn install(node: &Node, name: &str, directory: &Path, version: &str) -> Result<()> {
    let path = node.path().join("plugins").join(name);
    let text = SCRIPT.replace("@DIR@", &directory.to_string_lossy()).replace("@VERSION@", version);
    root::apart(|| fs::write(&path, text).with_context(|| format!("write {}", path.display())))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}
