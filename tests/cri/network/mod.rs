//! The networks of pods: which one they get, what becomes of it when plugins or the daemon fail, and the real plugins at work.

mod builtin;
mod plugins;
mod stubs;
mod traffic;

use podwright_tests::{Deadline, Node, Outcome, v1, watch};

/// Waits until the condition `NetworkReady` is as wanted and its message contains `text`. A change is told to the daemon's
/// log, which is what wakes this.
fn until_network(node: &Node, ready: bool, text: &str) -> Outcome {
    let client = node.client()?;
    watch::content(&node.daemon_log(), Deadline::in_seconds(20), |_| {
        let reply = client.status(v1::StatusRequest { verbose: false }).ok()?;
        let conditions = reply.status?.conditions;
        let condition = conditions.iter().find(|condition| condition.r#type == "NetworkReady")?;
        (condition.status == ready && condition.message.contains(text)).then_some(())
    })
}
