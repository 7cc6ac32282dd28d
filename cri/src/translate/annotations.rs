//! `annotations` of the spec: who the container belongs to, for hooks and tools that read the spec.
//!
//! The keys are containerd's, which such tools know. A pod's own annotations get in only where the node's
//! configuration names them; the engine acts on none of either.

use std::collections::{BTreeMap, HashMap};

use super::inputs::ContainerInputs;

/// The annotations of the spec.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> HashMap<String, String> {
    let ContainerInputs { ids, pod, container, image, .. } = inputs;
    let passed = |key: &str| {
        inputs.defaults.passed_annotations.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(head) => key.starts_with(head),
            None => key == pattern,
        })
    };
    let allowed = |map: &BTreeMap<String, String>| {
        map.iter()
            .filter(|(key, _)| passed(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<HashMap<_, _>>()
    };
    let mut annotations = allowed(&pod.annotations);
    annotations.extend(allowed(&container.annotations));
    // Last, so that no pod can pass for another.
    let own = [
        ("container-type", "container"),
        ("container-name", container.metadata.name.as_str()),
        ("image-name", image.reference.as_str()),
        ("sandbox-id", ids.pod),
        ("sandbox-name", pod.metadata.name.as_str()),
        ("sandbox-namespace", pod.metadata.namespace.as_str()),
        ("sandbox-uid", pod.metadata.uid.as_str()),
    ];
    for (key, value) in own {
        annotations.insert(format!("io.kubernetes.cri.{key}"), value.to_owned());
    }
    annotations
}
