//! `annotations` of the spec: who the container belongs to, for hooks and tools that read the spec.
//!
//! The keys are containerd's, which such tools know. A pod's own annotations get in only where the node's
//! handler names them; the engine acts on none of either.

use std::collections::{BTreeMap, HashMap};

use super::inputs::ContainerInputs;

/// The annotations of the spec.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> HashMap<String, String> {
    let ContainerInputs { ids, pod, container, image, .. } = inputs;
    let allowed = |map: &BTreeMap<String, String>, patterns: &[String]| {
        map.iter()
            .filter(|(key, _)| patterns.iter().any(|pattern| matches(pattern, key)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<HashMap<_, _>>()
    };
    let handler = inputs.handler();
    let mut annotations = allowed(&pod.annotations, &handler.pod_annotations);
    annotations.extend(allowed(&container.annotations, &handler.container_annotations));
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

/// Whether a key is what a pattern means: the same, with anything in the place of each `*`.
fn matches(pattern: &str, key: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == key };
    let Some(mut key) = key.strip_prefix(head) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return key.ends_with(part);
        }
        // The first place will do: what follows has the more to be found in.
        let Some(at) = key.find(part) else { return false };
        key = &key[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, key, matched) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*", "", true),
            ("*.example.com", "x.example.com", true),
            ("*.example.com", "x.example.com.evil", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, key), matched, "{pattern} {key}");
        }
    }
}
