//! The index of pods and containers: by id, by the start of an id, by name.
//!
//! Names decide what a second request for the same thing means. kubelet gives up on a slow call and asks again, so
//!
//! ```text
//!   a first request        New       makes it; the name is Busy until it is done
//!   while that is going on Joined    waits for the same outcome
//!   its caller had left    Joined    the first retry is given what was made for it
//!   its caller has its id  Taken     ALREADY_EXISTS
//! ```
//!
//! The lock is held for map operations only, never across an await.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tonic::Status;

use crate::error::Error;
use crate::pod::{ContainerView, PodHandle, PodView};
use crate::translate::{ContainerMetadata, PodMetadata};

/// What is unique on the node: a pod's metadata, or a container's within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A pod sandbox.
    Pod(PodMetadata),
    /// A container of the pod sandbox with this id.
    Container(String, ContainerMetadata),
}

impl Name {
    fn what(&self) -> &'static str {
        match self {
            Self::Pod(_) => "pod sandbox",
            Self::Container(..) => "container",
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(metadata) => metadata.fmt(f),
            Self::Container(_, metadata) => metadata.fmt(f),
        }
    }
}

/// The outcome of making something: its id. None: not known yet.
type Outcome = Option<Result<String, Status>>;

/// Who has a name.
#[derive(Debug)]
enum Holder {
    /// Being made.
    Busy(watch::Receiver<Outcome>),
    /// Made.
    Held {
        id: String,
        /// Its id was given to a caller.
        claimed: bool,
    },
}

/// The index. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Store {
    index: Arc<Mutex<Index>>,
}

#[derive(Debug, Default)]
struct Index {
    pods: BTreeMap<String, PodHandle>,
    /// Container id -> pod id.
    containers: BTreeMap<String, String>,
    names: HashMap<Name, Holder>,
}

/// A container with its pod.
#[derive(Debug, Clone)]
pub struct Found {
    /// The pod.
    pub pod: PodHandle,
    /// The pod as it was when this was looked up.
    pub pod_view: Arc<PodView>,
    /// The container as it was then.
    pub container: Arc<ContainerView>,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what `name` names, once: see the table in the module's head. The work goes on when the caller leaves.
    pub async fn once<F>(&self, name: Name, make: impl FnOnce() -> F) -> Result<String, Status>
    where
        F: Future<Output = Result<String, Error>> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        let mut outcome = {
            let mut index = self.lock();
            match index.names.get_mut(&name) {
                Some(Holder::Busy(receiver)) => receiver.clone(),
                Some(Holder::Held { id, claimed }) if !*claimed => {
                    *claimed = true;
                    return Ok(id.clone());
                }
                Some(Holder::Held { id, .. }) => {
                    let (what, id) = (name.what(), id.clone());
                    return Err(Error::AlreadyExists { what, name: name.to_string(), id }.into());
                }
                None => {
                    index.names.insert(name.clone(), Holder::Busy(receiver.clone()));
                    drop(index);
                    let ticket = Ticket { store: self.clone(), name: name.clone(), sender };
                    let work = tracing::Instrument::in_current_span(make());
                    tokio::spawn(async move { ticket.settle(work.await) });
                    receiver
                }
            }
        };
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(abandoned(&name))),
            Err(_) => Err(abandoned(&name)),
        };
        if result.is_ok()
            && let Some(Holder::Held { claimed, .. }) = self.lock().names.get_mut(&name)
        {
            *claimed = true;
        }
        result
    }

    /// Gives a name to what was found on disk.
    pub fn restore(&self, name: Name, id: &str) {
        self.lock().names.insert(name, Holder::Held { id: id.to_owned(), claimed: true });
    }

    /// Frees the name of what is gone.
    pub fn release(&self, name: &Name) {
        self.lock().names.remove(name);
    }

    /// Adds a pod.
    pub fn add_pod(&self, handle: PodHandle) {
        self.lock().pods.insert(handle.id().to_owned(), handle);
    }

    /// Takes a pod away.
    pub fn remove_pod(&self, id: &str) {
        let mut index = self.lock();
        index.pods.remove(id);
        index.containers.retain(|_, pod| pod != id);
    }

    /// Adds a container of a pod.
    pub fn add_container(&self, id: &str, pod: &str) {
        self.lock().containers.insert(id.to_owned(), pod.to_owned());
    }

    /// Takes a container away.
    pub fn remove_container(&self, id: &str) {
        self.lock().containers.remove(id);
    }

    /// Every pod, by id.
    pub fn pods(&self) -> Vec<PodHandle> {
        self.lock().pods.values().cloned().collect()
    }

    /// The pod with this id, or the only one whose id starts so.
    pub fn pod(&self, id: &str) -> Result<PodHandle, Error> {
        let index = self.lock();
        lookup(&index.pods, id).map(|(_, handle)| handle.clone()).ok_or_else(|| not_found("pod sandbox", id))
    }

    /// The container with this id, or the only one whose id starts so.
    pub fn container(&self, id: &str) -> Result<Found, Error> {
        let missing = || not_found("container", id);
        let (id, pod) = {
            let index = self.lock();
            let (id, pod) = lookup(&index.containers, id).ok_or_else(missing)?;
            (id.clone(), index.pods.get(pod).cloned().ok_or_else(missing)?)
        };
        let pod_view = pod.view();
        let container = pod_view.containers.get(&id).cloned().ok_or_else(missing)?;
        Ok(Found { pod, pod_view, container })
    }
}

/// Settles a name when what it names was made, or was not.
struct Ticket {
    store: Store,
    name: Name,
    sender: watch::Sender<Outcome>,
}

impl Ticket {
    fn settle(self, result: Result<String, Error>) {
        let mut index = self.store.lock();
        match &result {
            // Removed again already: whoever did so freed the name.
            Ok(id) if index.names.contains_key(&self.name) => {
                index.names.insert(self.name.clone(), Holder::Held { id: id.clone(), claimed: false });
            }
            Ok(_) => {}
            Err(_) => {
                index.names.remove(&self.name);
            }
        }
        self.sender.send_replace(Some(result.map_err(Status::from)));
    }
}

impl Drop for Ticket {
    /// A panic on the way must not keep the name busy for ever.
    fn drop(&mut self) {
        let mut index = self.store.lock();
        if self.sender.borrow().is_none() && matches!(index.names.get(&self.name), Some(Holder::Busy(_))) {
            index.names.remove(&self.name);
        }
    }
}

fn abandoned(name: &Name) -> Status {
    Error::internal(format!("make {} {name}", name.what()), "the work was abandoned").into()
}

fn not_found(what: &'static str, id: &str) -> Error {
    Error::NotFound { what, id: crate::check::shown(id).trim_matches('"').to_owned() }
}

/// The entry with this key, or the only one whose key starts so.
fn lookup<'a, T>(map: &'a BTreeMap<String, T>, id: &str) -> Option<(&'a String, &'a T)> {
    if id.is_empty() {
        return None;
    }
    let mut matching = map.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let first = matching.next()?;
    (first.0 == id || matching.next().is_none()).then_some(first)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn name(attempt: u32) -> Name {
        Name::Container("pod".into(), ContainerMetadata { name: "web".into(), attempt })
    }

    #[test]
    fn a_unique_start_of_an_id_is_enough() {
        let map: BTreeMap<String, u8> =
            [("abc", 1), ("abd", 2), ("ab", 3), ("x", 4)].map(|(k, v)| (k.to_owned(), v)).into();
        let at = |id| lookup(&map, id).map(|(_, value)| *value);
        assert_eq!(
            [at("abc"), at("ab"), at("a"), at("x"), at("xy"), at("")],
            [Some(1), Some(3), None, Some(4), None, None]
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_retry_joins_and_a_late_one_is_refused() {
        let store = Store::default();
        let (go, wait) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let store = store.clone();
            async move {
                let make = || async move {
                    wait.await.unwrap();
                    Ok("id1".to_owned())
                };
                store.once(name(0), make).await
            }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let store = store.clone();
            async move { store.once(name(0), || async { unreachable!("it joins") }).await }
        });
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "id1");
        assert_eq!(second.await.unwrap().unwrap(), "id1");
        let third = store.once(name(0), || async { unreachable!("the name is taken") }).await.unwrap_err();
        assert_eq!(third.code(), tonic::Code::AlreadyExists);
        store.release(&name(0));
        assert_eq!(store.once(name(0), || async { Ok("id2".to_owned()) }).await.unwrap(), "id2");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_made_for_a_caller_that_left_is_claimed_by_its_retry() {
        let store = Store::default();
        let (go, wait) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel::<()>();
        let gone = tokio::spawn({
            let store = store.clone();
            async move {
                let make = || async move {
                    wait.await.unwrap();
                    done.send(()).unwrap();
                    Ok("id1".to_owned())
                };
                store.once(name(0), make).await
            }
        });
        tokio::task::yield_now().await;
        gone.abort();
        go.send(()).unwrap();
        finished.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(store.once(name(0), || async { unreachable!("it is claimed") }).await.unwrap(), "id1");
        let again = store.once(name(0), || async { unreachable!("it was claimed") }).await.unwrap_err();
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_failure_frees_the_name() {
        let store = Store::default();
        let failed = store.once(name(0), || async { Err(Error::invalid("x", "y")) }).await.unwrap_err();
        assert_eq!(failed.code(), tonic::Code::InvalidArgument);
        assert!(store.once(name(0), || async { Ok("id".to_owned()) }).await.is_ok());
    }
}
