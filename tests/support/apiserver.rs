//! As much of a Kubernetes API server as kubectl needs for exec, attach, cp and port-forward, in front of one node.
//!
//! ```text
//! kubectl --GET /api..., a pod--> answered from ListPodSandbox and ListContainers
//! kubectl --upgrade .../pods/NAME/exec?command=...--> CRI Exec --URL--> the request is passed on to that URL, then bytes both ways
//! ```
//!
//! A real API server asks kubelet, which asks the runtime, and both pass SPDY on as it is; so does this. WebSocket is passed on too,
//! so that what a WebSocket client says is the runtime's to answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_cri::v1;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::{Node, client};

/// The longest request head that is read, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The annotation of a container that has a terminal, which CRI's lists do not tell.
pub const TTY: &str = "tests.podwright/tty";

/// A listening server. It ends when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped first: what runs on it ends.
    _tokio: Runtime,
    address: SocketAddr,
}

impl ApiServer {
    /// Serves the pods of `node` on a loopback port.
    pub fn start(node: &Node) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = tokio.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let socket = Arc::new(node.socket());
        tokio.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let socket = socket.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &socket).await {
                        let text = format!("apiserver: {error:#}\n");
                        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
                    }
                });
            }
        });
        Ok(Self { _tokio: tokio, address })
    }

    /// What `--server` wants.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The head of an HTTP request.
struct Head {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    /// Lines but the first, as they came.
    headers: Vec<String>,
    /// What came behind the head.
    rest: Vec<u8>,
}

impl Head {
    /// Reads the next request; None at the end of the connection.
    async fn read(stream: &mut TcpStream, mut bytes: Vec<u8>) -> Result<Option<Self>> {
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            ensure!(bytes.len() < MAX_HEAD_BYTES, "the request is too long");
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
        };
        let rest = bytes.split_off(end + 4);
        let text = String::from_utf8(bytes)?;
        let mut lines = text.trim_end().split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().context("no request line")?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(name), unescape(value))
        });
        Ok(Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.collect(),
            headers: lines.map(str::to_owned).collect(),
            rest,
        }))
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.query.iter().filter(|(candidate, _)| candidate == name).map(|(_, value)| value.clone()).collect()
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.all(name).first().map(String::as_str), Some("true" | "1"))
    }
}

/// Decodes `application/x-www-form-urlencoded`.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).unwrap_or(0);
                u8::try_from(digit() * 16 + digit()).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn serve(mut stream: TcpStream, socket: &Path) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut rest = Vec::new();
    while let Some(head) = Head::read(&mut stream, rest).await? {
        let parts: Vec<_> = head.path.trim_matches('/').split('/').collect();
        let (status, answer) = match parts[..] {
            ["version"] => (200, json!({ "major": "1", "minor": "32", "gitVersion": "v1.32.0" })),
            ["api"] => (200, json!({ "kind": "APIVersions", "versions": ["v1"] })),
            ["apis"] => (200, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
            ["api", "v1"] => (200, resources()),
            ["api", "v1", "namespaces", namespace, "pods", name] => match pod(socket, namespace, name).await?
            {
                Some(pod) => (200, pod),
                None => (404, failure(404, &format!("pods {name:?} not found"))),
            },
            [
                "api",
                "v1",
                "namespaces",
                namespace,
                "pods",
                name,
                what @ ("exec" | "attach" | "portforward"),
            ] => match stream_url(socket, namespace, name, what, &head).await {
                Ok(url) => return relay(stream, &head, &url).await,
                Err(error) => (500, failure(500, &format!("{error:#}"))),
            },
            _ => (404, failure(404, &format!("nothing is at {}", head.path))),
        };
        let body = answer.to_string();
        let reply = format!(
            "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(reply.as_bytes()).await?;
        rest = head.rest;
    }
    Ok(())
}

fn failure(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "InternalError" };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code })
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, verb: &str| json!({ "name": name, "singularName": if name == "pods" { "pod" } else { "" }, "namespaced": true, "kind": kind, "verbs": [verb] });
    json!({
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            resource("pods", "Pod", "get"),
            resource("pods/exec", "PodExecOptions", "create"),
            resource("pods/attach", "PodAttachOptions", "create"),
            resource("pods/portforward", "PodPortForwardOptions", "create"),
        ],
    })
}

async fn runtime(socket: &Path) -> Result<RuntimeServiceClient<Channel>> {
    Ok(RuntimeServiceClient::new(client::connect(socket.to_owned()).await?))
}

/// A pod and its running containers, by their names.
async fn find(
    socket: &Path,
    namespace: &str,
    name: &str,
) -> Result<Option<(String, HashMap<String, v1::Container>)>> {
    let mut runtime = runtime(socket).await?;
    let pods = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    let named = |pod: &v1::PodSandbox| {
        pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name && metadata.namespace == namespace)
    };
    let Some(pod) = pods.into_iter().find(named) else { return Ok(None) };
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let containers = runtime.list_containers(request).await?.into_inner().containers;
    let containers = containers
        .into_iter()
        .map(|container| (container.metadata.clone().unwrap_or_default().name, container))
        .collect();
    Ok(Some((pod.id, containers)))
}

/// The pod as kubectl wants to see it.
async fn pod(socket: &Path, namespace: &str, name: &str) -> Result<Option<Value>> {
    let Some((_, containers)) = find(socket, namespace, name).await? else { return Ok(None) };
    let containers: Vec<_> = containers
        .iter()
        .map(|(name, container)| {
            let tty = container.annotations.contains_key(TTY);
            json!({ "name": name, "image": "busybox", "stdin": true, "tty": tty })
        })
        .collect();
    Ok(Some(json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": { "name": name, "namespace": namespace, "uid": name },
        "spec": { "containers": containers, "nodeName": "node" },
        "status": { "phase": "Running" },
    })))
}

/// Asks the runtime where the stream is.
async fn stream_url(socket: &Path, namespace: &str, name: &str, what: &str, head: &Head) -> Result<String> {
    let (pod, containers) = find(socket, namespace, name).await?.context("no such pod")?;
    let mut runtime = runtime(socket).await?;
    if what == "portforward" {
        let port = head.all("ports").iter().map(|port| port.parse()).collect::<Result<_, _>>()?;
        let request = v1::PortForwardRequest { pod_sandbox_id: pod, port };
        return Ok(runtime.port_forward(request).await?.into_inner().url);
    }
    let container = match head.all("container").first() {
        Some(name) => containers.get(name),
        None => containers.values().next(),
    };
    let container_id = container.context("no such container")?.id.clone();
    let (stdin, stdout, stderr, tty) =
        (head.is_set("stdin"), head.is_set("stdout"), head.is_set("stderr"), head.is_set("tty"));
    if what == "attach" {
        let request = v1::AttachRequest { container_id, stdin, stdout, stderr, tty };
        return Ok(runtime.attach(request).await?.into_inner().url);
    }
    let request = v1::ExecRequest { container_id, cmd: head.all("command"), stdin, stdout, stderr, tty };
    Ok(runtime.exec(request).await?.into_inner().url)
}

/// Sends the request on to the runtime's URL, and everything after it both ways.
async fn relay(mut client: TcpStream, head: &Head, url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").with_context(|| format!("no http URL: {url}"))?;
    let Some((authority, path)) = rest.split_once('/') else { bail!("no path in {url}") };
    let mut runtime = TcpStream::connect(authority).await.with_context(|| format!("connect to {url}"))?;
    runtime.set_nodelay(true)?;
    let mut request = format!("{} /{path} HTTP/1.1\r\nHost: {authority}\r\n", head.method);
    for header in head.headers.iter().filter(|header| !header.to_ascii_lowercase().starts_with("host:")) {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    runtime.write_all(request.as_bytes()).await?;
    runtime.write_all(&head.rest).await?;
    // How either end leaves is its own business.
    let _ = copy_bidirectional(&mut client, &mut runtime).await;
    Ok(())
}

/// The kubectl of a Debian release, as `tests/kubectl.sh` has fetched it.
pub fn kubectl(suite: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("PODWRIGHT_KUBECTL_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join(".kubectl-cache"),
    };
    Some(cache.join(suite).join("kubectl")).filter(|path| path.is_file())
}
