//! The verbs over all plugins of a network. Spec: section 3 (execution) and 4 (delegation is the plugins' own).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::config::{NetworkList, PluginConfig, Version};
use super::plugin::{self, Call, PluginError, Subject, Verb, head};
use super::result;
use crate::monitor_client::Program;

/// A network and how its plugins are run.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// Its configuration.
    pub list: &'a NetworkList,
    /// Where plugins are.
    pub bin_dirs: &'a [PathBuf],
    /// How long one execution may take.
    pub limit: Duration,
    /// What plugins are run below.
    pub parent: &'a Program,
}

/// Who is to be attached, or is.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// The pod sandbox's id.
    pub container: &'a str,
    /// Its network namespace; None: it is gone.
    pub netns: Option<&'a Path>,
    /// The interface in it.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// Every capability argument there is, by name.
    pub capability_args: &'a Map<String, Value>,
    /// See [`Subject::input`].
    pub input: &'a Path,
}

impl Network<'_> {
    /// ADD of one plugin: the list's are asked in their order, each with the result of the one before. The last one's result is
    /// the network's. What each has answered is worth recording, so that an interrupted chain can be undone with what was known.
    pub async fn add(
        &self,
        plugin: &PluginConfig,
        who: &Attachment<'_>,
        previous: Option<&Value>,
    ) -> Result<Value, PluginError> {
        let output = self.run(plugin, Verb::Add, who, previous).await?;
        result::parse(&output, self.list.version).map_err(|reason| PluginError::NoResult {
            plugin: plugin.kind.clone(),
            verb: Verb::Add,
            reason: if output.is_empty() { "it printed nothing".to_owned() } else { reason },
            output: head(&output),
        })
    }

    /// DEL: each plugin, last to first, as far as none fails: what was given out first (addresses) is given back last.
    pub async fn del(&self, who: &Attachment<'_>, result: Option<&Value>) -> Result<(), PluginError> {
        // 0.3 knows no prevResult in DEL.
        let result = result.filter(|_| self.list.version >= Version::V0_4);
        for plugin in self.list.plugins.iter().rev() {
            self.run(plugin, Verb::Del, who, result).await?;
        }
        Ok(())
    }

    /// CHECK: is everything still as ADD left it? Ok where the network has no CHECK.
    pub async fn check(&self, who: &Attachment<'_>, result: &Value) -> Result<(), PluginError> {
        if self.list.version < Version::V0_4 || self.list.disable_check {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            self.run(plugin, Verb::Check, who, Some(result)).await?;
        }
        Ok(())
    }

    /// STATUS: could a pod be attached now? Ok where the network has no STATUS.
    pub async fn status(&self) -> Result<(), PluginError> {
        if self.list.version < Version::V1_1 {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            self.run_for_nobody(plugin, Verb::Status, None).await?;
        }
        Ok(())
    }

    /// GC: every plugin forgets all but `valid`, pairs of container id and interface. Ok where the network has no GC.
    /// No attachment may be made or undone meanwhile. All plugins are asked; the first failure is returned.
    pub async fn gc(&self, valid: &[(String, String)]) -> Result<(), PluginError> {
        if self.list.version < Version::V1_1 || self.list.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|(container, ifname)| json!({ "containerID": container, "ifname": ifname }))
            .collect();
        let valid = Value::Array(valid);
        let mut outcome = Ok(());
        for plugin in &self.list.plugins {
            let done =
                self.run_for_nobody(plugin, Verb::Gc, Some(("cni.dev/valid-attachments", &valid))).await;
            outcome = outcome.and(done);
        }
        outcome
    }

    /// VERSION: does every plugin speak the network's version? Which one does not, and what it speaks.
    pub async fn versions(&self) -> Result<(), PluginError> {
        for plugin in &self.list.plugins {
            let call = self.call(plugin, Verb::Version, None);
            let input = json!({ "cniVersion": self.list.version.as_str() }).to_string();
            let output = plugin::run(call, input.as_bytes()).await?;
            let told: Value = serde_json::from_slice(&output).unwrap_or_default();
            let supported: Vec<&str> = told
                .get("supportedVersions")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if !supported.contains(&self.list.version.as_str()) {
                return Err(PluginError::NoResult {
                    plugin: plugin.kind.clone(),
                    verb: Verb::Version,
                    reason: format!("it does not speak {}", self.list.version.as_str()),
                    output: head(&output),
                });
            }
        }
        Ok(())
    }

    fn call<'a>(&'a self, plugin: &'a PluginConfig, verb: Verb, subject: Option<Subject<'a>>) -> Call<'a> {
        let parent = Some(self.parent);
        Call { plugin: &plugin.kind, verb, bin_dirs: self.bin_dirs, limit: self.limit, parent, subject }
    }

    async fn run(
        &self,
        plugin: &PluginConfig,
        verb: Verb,
        who: &Attachment<'_>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, PluginError> {
        let Attachment { container, netns, ifname, args, input, .. } = *who;
        let input = (verb != Verb::Check).then_some(input);
        let subject = Subject { container, netns, ifname, args, input };
        let config = plugin_input(self.list, plugin, Some(who.capability_args), previous);
        plugin::run(self.call(plugin, verb, Some(subject)), config.to_string().as_bytes()).await
    }

    async fn run_for_nobody(
        &self,
        plugin: &PluginConfig,
        verb: Verb,
        extra: Option<(&str, &Value)>,
    ) -> Result<(), PluginError> {
        let mut config = plugin_input(self.list, plugin, None, None);
        if let (Some((key, value)), Some(object)) = (extra, config.as_object_mut()) {
            object.insert(key.to_owned(), value.clone());
        }
        plugin::run(self.call(plugin, verb, None), config.to_string().as_bytes()).await.map(drop)
    }
}

/// What a plugin reads: its configuration with the list's name and version, the capability arguments that it declares, and
/// the result of the plugin before it. Spec: section 3, deriving execution configuration.
pub fn plugin_input(
    list: &NetworkList,
    plugin: &PluginConfig,
    capability_args: Option<&Map<String, Value>>,
    previous: Option<&Value>,
) -> Value {
    let mut config = plugin.raw.clone();
    config.remove("capabilities");
    config.remove("cniVersions");
    config.insert("cniVersion".to_owned(), list.version.as_str().into());
    config.insert("name".to_owned(), list.name.as_str().into());
    let declared: Map<String, Value> = capability_args
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.capabilities.contains(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !declared.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(declared));
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::config::parse;

    #[test]
    fn a_plugin_gets_what_it_declares_and_nothing_else() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"a","mtu":9000},{"type":"b","capabilities":{"dns":true,"mac":false}}]}"#;
        let list = parse(Path::new("/x.conflist"), text).unwrap();
        let args = json!({ "dns": { "servers": [] }, "mac": "02:00:00:00:00:01" });
        let args = args.as_object().unwrap();
        let first = plugin_input(&list, &list.plugins[0], Some(args), None);
        assert_eq!(first, json!({ "type": "a", "mtu": 9000, "cniVersion": "1.0.0", "name": "n" }));
        let previous = json!({ "cniVersion": "1.0.0" });
        let second = plugin_input(&list, &list.plugins[1], Some(args), Some(&previous));
        assert_eq!(
            second,
            json!({
                "type": "b", "cniVersion": "1.0.0", "name": "n",
                "runtimeConfig": { "dns": { "servers": [] } }, "prevResult": { "cniVersion": "1.0.0" },
            })
        );
    }
}
