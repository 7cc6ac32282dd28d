//! From what a person types to one pod or container: a full id, a unique prefix of one, or a name.

use anyhow::{Result, bail};
use k8s_cri::v1;

use crate::client::Client;

/// What a person named.
pub(crate) enum Named {
    /// A pod.
    Pod(v1::PodSandbox),
    /// A container.
    Container(v1::Container),
}

/// The pod or container that `text` names. A pod goes first: `podwright run` gives both the same name.
pub(crate) async fn find(client: &mut Client, text: &str) -> Result<Named> {
    if let Some(pod) = pick("pod", client.pods().await?, text, pod_key)? {
        return Ok(Named::Pod(pod));
    }
    match pick("container", client.containers().await?, text, container_key)? {
        Some(container) => Ok(Named::Container(container)),
        None => bail!("no pod or container is called {text:?} (see `podwright pods` and `podwright ps -a`)"),
    }
}

/// The container that `text` names; of a pod's name, its only container.
pub(crate) async fn find_container(client: &mut Client, text: &str) -> Result<v1::Container> {
    let containers = client.containers().await?;
    if let Some(container) = pick("container", containers.clone(), text, container_key)? {
        return Ok(container);
    }
    if let Some(pod) = pick("pod", client.pods().await?, text, pod_key)? {
        let mut inside = containers.into_iter().filter(|c| c.pod_sandbox_id == pod.id);
        return match (inside.next(), inside.next()) {
            (Some(container), None) => Ok(container),
            (None, _) => bail!("pod {text:?} has no container"),
            (Some(_), Some(_)) => {
                bail!("pod {text:?} has several containers: name one (see `podwright ps -a`)")
            }
        };
    }
    bail!("no container is called {text:?} (see `podwright ps -a`)")
}

fn pod_key(pod: &v1::PodSandbox) -> (&str, &str) {
    (&pod.id, pod.metadata.as_ref().map_or("", |m| &m.name))
}

fn container_key(container: &v1::Container) -> (&str, &str) {
    (&container.id, container.metadata.as_ref().map_or("", |m| &m.name))
}

/// The one item with this id, else this name, else an id that begins so.
fn pick<T>(kind: &str, items: Vec<T>, text: &str, key: fn(&T) -> (&str, &str)) -> Result<Option<T>> {
    let rank = |item: &T| match key(item) {
        (id, _) if id == text => Some(0),
        (_, name) if name == text => Some(1),
        (id, _) if !text.is_empty() && id.starts_with(text) => Some(2),
        _ => None,
    };
    let Some(best) = items.iter().filter_map(rank).min() else { return Ok(None) };
    let mut found = items.into_iter().filter(|item| rank(item) == Some(best));
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        _ => bail!("{text:?} names several {kind}s: use an id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick_id<'a>(items: &[(&'a str, &'a str)], text: &str) -> Result<Option<&'a str>> {
        Ok(pick("pod", items.to_vec(), text, |&(id, name)| (id, name))?.map(|(id, _)| id))
    }

    #[test]
    fn an_id_beats_a_name_beats_a_prefix() {
        let items = [("abc1", "x"), ("abc2", "abc1"), ("d", "abc")];
        assert_eq!(pick_id(&items, "abc1").unwrap(), Some("abc1"));
        assert_eq!(pick_id(&items, "abc").unwrap(), Some("d"));
        assert_eq!(pick_id(&items, "abc2").unwrap(), Some("abc2"));
        assert!(pick_id(&items, "ab").is_err());
        assert_eq!(pick_id(&items, "zzz").unwrap(), None);
        assert_eq!(pick_id(&items, "").unwrap(), None);
    }
}
