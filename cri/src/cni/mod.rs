//! The Container Network Interface: network configurations, and the plugins that carry them out.
//!
//! ```text
//! conf directories --config--> NetworkList --chain--> one execution of each plugin, in order
//!                                              ADD    first to last, each given the result of the one before (prevResult)
//!                                              DEL    last to first, each given the final result
//! ```
//!
//! | file | tells |
//! |---|---|
//! | [`config`] | what a configuration file says; which of several is used |
//! | [`arguments`] | what of a pod is told to plugins: `CNI_ARGS`, capability arguments |
//! | [`plugin`] | one execution: environment, input, output, deadline |
//! | [`chain`] | the verbs over all plugins of a network |
//! | [`result`] | what a result says |
//!
//! Spec: <https://www.cni.dev/docs/spec/>, versions 0.3.0 to 1.1.0; conventions for capability arguments in CONVENTIONS.md beside it.

pub mod arguments;
pub mod chain;
pub mod config;
pub mod plugin;
pub mod result;

pub use chain::Network;
pub use config::{Fault, NetworkList};
pub use plugin::PluginError;
