//! Every field of every request, given what nobody would: the daemon answers with a precise code in bounded time, lives, and leaves
//! nothing.
//!
//! The fields are those of the contract itself (`api.proto`, read below), so that a new one is tested the day it is added. A request
//! is a good one followed by the bytes of the absurd field, which protobuf merges (see `support/raw.rs`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use podwright_tests::{HostSnapshot, Node, Outcome, Pod, PodBuilder, Wire, deadline, seconds, v1};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use prost::Message as _;
use tonic::{Code, Status};

const CONTRACT: &str = include_str!("../../cri/proto/runtime/v1/api.proto");

/// How long one answer may take; times ten on slow machines.
const ANSWER_SECONDS: u64 = 20;

/// How long a message's fields are tried one by one, and then together. Each field has its turn whatever that takes, but on slow
/// machines; what there was no time for is said. `PODWRIGHT_ABSURD_SECONDS` is another time.
const BUDGET: Duration = Duration::from_secs(20);

/// The same for messages of a few fields.
const SMALL_BUDGET: Duration = Duration::from_secs(3);

/// How deep messages of messages are followed.
const MAX_DEPTH: usize = 6;

/// A field of a message of the contract.
#[derive(Clone, Debug)]
pub(super) struct Field {
    number: u32,
    pub(super) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Numbers, booleans and enumerations.
    Varint,
    Text,
    Message(String),
    /// From text to text or a number.
    Map,
}

/// The messages of `api.proto` by name. It uses a small part of the language: one declaration a line.
pub(super) fn contract() -> BTreeMap<String, Vec<Field>> {
    let mut messages: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    let mut within: Vec<String> = Vec::new();
    for line in CONTRACT.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("message") if line.ends_with("{}") => {
                messages.entry(words.next().unwrap_or_default().to_owned()).or_default();
            }
            Some("message" | "enum" | "service" | "oneof" | "rpc") if line.ends_with('{') => {
                let name = words.next().unwrap_or_default().to_owned();
                if line.starts_with("message") {
                    messages.entry(name.clone()).or_default();
                }
                within.push(name);
            }
            Some("}") => drop(within.pop()),
            _ => {
                let Some(name) = within.last().cloned() else { continue };
                let (Some(fields), Some((left, right))) = (messages.get_mut(&name), line.split_once('='))
                else {
                    continue;
                };
                let number =
                    right.trim().split([';', ' ', '[']).next().and_then(|number| number.parse().ok());
                let Some(number) = number else { continue };
                let left = left.trim().trim_start_matches("repeated ").trim_start_matches("optional ");
                let (kind, name) = left.rsplit_once(' ').unwrap_or_default();
                let kind = match kind.trim() {
                    kind if kind.starts_with("map<") => Kind::Map,
                    "string" | "bytes" => Kind::Text,
                    "int32" | "int64" | "uint32" | "uint64" | "bool" => Kind::Varint,
                    other => Kind::Message(other.to_owned()),
                };
                fields.push(Field { number, name: name.to_owned(), kind });
            }
        }
    }
    // What is no message is an enumeration.
    let names: Vec<String> = messages.keys().cloned().collect();
    for field in messages.values_mut().flatten() {
        if matches!(&field.kind, Kind::Message(name) if !names.contains(name)) {
            field.kind = Kind::Varint;
        }
    }
    messages
}

/// One absurd field: where, what, and its bytes to be appended to the good request.
#[derive(Clone, Debug)]
struct Case {
    field: String,
    what: String,
    bytes: Wire,
}

/// Every field below a message, each with every absurd value of its kind.
fn cases(message: &str) -> Vec<Case> {
    let contract = contract();
    let mut all = Vec::new();
    descend(&contract, message, message, 0, &|leaf| leaf, &mut all);
    all
}

fn descend(
    contract: &BTreeMap<String, Vec<Field>>,
    message: &str,
    path: &str,
    depth: usize,
    wrap: &dyn Fn(Wire) -> Wire,
    all: &mut Vec<Case>,
) {
    for field in &contract[message] {
        let path = format!("{path}.{}", field.name);
        let number = field.number;
        let mut add = |what: &str, bytes: Wire| {
            all.push(Case { field: path.clone(), what: format!("{path} {what}"), bytes: wrap(bytes) });
        };
        match &field.kind {
            Kind::Varint => {
                for value in [u64::MAX, 1 << 63, i64::MAX.unsigned_abs(), 1 << 31, 1 << 32, 1, 4097] {
                    add(&format!("= {}", value.cast_signed()), Wire::default().varint(number, value));
                }
            }
            Kind::Text => {
                for (what, value) in texts() {
                    add(what, Wire::default().bytes(number, &value));
                }
            }
            Kind::Map => {
                for (what, value) in texts() {
                    let entry = Wire::default().bytes(1, &value).bytes(2, &value);
                    add(what, Wire::default().message(number, &entry));
                }
            }
            Kind::Message(inner) => {
                add("empty", Wire::default().bytes(number, b""));
                add("no message", Wire::default().bytes(number, &[0xff; 9]));
                let many = (0..5000).fold(Wire::default(), |wire, _| wire.bytes(number, b""));
                add("5000 times", many);
                if depth < MAX_DEPTH {
                    let wrap = |leaf: Wire| wrap(Wire::default().message(number, &leaf));
                    descend(contract, inner, &path, depth + 1, &wrap, all);
                }
            }
        }
    }
}

fn texts() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("with NUL", b"a\0b".to_vec()),
        ("of controls", b"a\nb\x1b[2J".to_vec()),
        ("above everything", b"../../../../etc/passwd".to_vec()),
        ("the root", b"/".to_vec()),
        ("a device", b"/dev/zero".to_vec()),
        ("no UTF-8", vec![0xff, 0xfe]),
        ("of white space", b"   ".to_vec()),
        ("a format", b"%s%n{}$(reboot)".to_vec()),
        ("long", vec![b'x'; 70_000]),
        ("in another script", "\u{202e}\u{0}\u{10ffff}ÿ".as_bytes().to_vec()),
    ]
}

/// Whether an answer is one that says what is wrong.
fn precise(result: &Result<Wire, Status>) -> Result<(), String> {
    let Err(status) = result else { return Ok(()) };
    let known = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented
    );
    // tonic's own word for bytes that are no message, UTF-8 included.
    let undecodable = status.code() == Code::Internal && status.message().contains("decode");
    if !known && !undecodable {
        return Err(format!("{:?}: {}", status.code(), status.message()));
    }
    if status.message().chars().any(char::is_control) || status.message().len() > 16 << 10 {
        return Err(format!("a message that is no line: {:?}", status.message()));
    }
    Ok(())
}

/// A call that is tried: its path, the good request, and how what it makes is taken away again.
struct Target<'a> {
    path: &'static str,
    good: Vec<u8>,
    undo: Box<dyn Fn(&Wire) -> Outcome + 'a>,
}

impl Target<'_> {
    /// Sends the good request with the absurd fields after it.
    fn try_out(&self, pod: &Pod, cases: &[&Case]) -> Result<(), String> {
        let mut bytes = self.good.clone();
        for case in cases {
            bytes.extend_from_slice(&case.bytes.0);
        }
        let began = Instant::now();
        let result = pod.client.raw(self.path, bytes);
        let took = began.elapsed();
        if took > seconds(ANSWER_SECONDS) {
            return Err(format!("an answer after {took:?}"));
        }
        precise(&result)?;
        match result {
            Ok(answer) => {
                (self.undo)(&answer).map_err(|error| format!("what it made cannot be undone: {error:#}"))
            }
            Err(_) => Ok(()),
        }
    }
}

/// Every field once, then every field once more with another value, and so on. Neighbours begin with different values.
fn rounds(cases: &[Case]) -> Vec<Vec<&Case>> {
    let mut fields: Vec<Vec<&Case>> = Vec::new();
    for case in cases {
        match fields.last_mut() {
            Some(last) if last[0].field == case.field => last.push(case),
            _ => fields.push(vec![case]),
        }
    }
    let longest = fields.iter().map(Vec::len).max().unwrap_or(0);
    let round = |round: usize| {
        let turn = |(index, values): (usize, &Vec<&'_ Case>)| {
            (round < values.len()).then(|| (index + round) % values.len())
        };
        fields.iter().enumerate().filter_map(|field| Some(field.1[turn(field)?])).collect()
    };
    (0..longest).map(round).collect()
}

#[allow(clippy::print_stderr, reason = "what there was no time for is said")]
/// Tries every field on its own, then several together, and looks whether the daemon is the same and has left nothing.
fn try_all(node: &Node, pod: &Pod, target: &Target<'_>, message: &str, budget: Duration) -> Outcome {
    let given = std::env::var("PODWRIGHT_ABSURD_SECONDS").ok().and_then(|text| text.parse().ok());
    let budget = given.map_or(budget, Duration::from_secs);
    let cases = cases(message);
    ensure!(!cases.is_empty(), "the contract has no {message}");
    target.try_out(pod, &[]).map_err(anyhow::Error::msg).context("the good request")?;
    let before = HostSnapshot::take(node)?;
    let daemon = node.daemon_pid()?;
    let began = Instant::now();
    let mut wrong = Vec::new();
    let mut tried = 0;
    'rounds: for (round, order) in rounds(&cases).into_iter().enumerate() {
        for case in order {
            if began.elapsed() > budget && (round > 0 || deadline::slowness() > 1) {
                eprintln!("{message}: {tried} of {} absurd values in {budget:?}", cases.len());
                break 'rounds;
            }
            tried += 1;
            if let Err(reason) = target.try_out(pod, &[case]) {
                wrong.push(format!("{}: {reason}", case.what));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));

    let config = Config { cases: 48, max_shrink_iters: 64, failure_persistence: None, ..Config::default() };
    let together = proptest::collection::vec(0..cases.len(), 2..6);
    let together_since = Instant::now();
    let ended = TestRunner::new(config).run(&together, |chosen| {
        if together_since.elapsed() > budget {
            return Ok(());
        }
        let chosen: Vec<_> = chosen.into_iter().map(|i| &cases[i]).collect();
        let told = || chosen.iter().map(|case| case.what.clone()).collect::<Vec<_>>().join(", ");
        target.try_out(pod, &chosen).map_err(|reason| TestCaseError::fail(format!("{}: {reason}", told())))
    });
    ended.map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(node.daemon_pid()? == daemon, "the daemon is another");
    let log = std::fs::read_to_string(node.daemon_log())?;
    ensure!(!log.contains("panicked"), "a panic in the daemon's log");
    before.assert_same(&HostSnapshot::take(node)?)
}

#[test]
fn run_pod_sandbox() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "steady").run(&node)?;
    let config = PodBuilder::new(&node, "absurd").own_network().config;
    let good = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let undo = |answer: &Wire| -> Outcome {
        let id = v1::RunPodSandboxResponse::decode(&answer.0[..])?.pod_sandbox_id;
        Ok(pod.client.remove_pod(&id)?)
    };
    let target = Target {
        path: "/runtime.v1.RuntimeService/RunPodSandbox",
        good: good.encode_to_vec(),
        undo: Box::new(undo),
    };
    try_all(&node, &pod, &target, "RunPodSandboxRequest", BUDGET)
}

#[test]
fn create_container() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "steady").run(&node)?;
    let good = v1::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(pod.command(&["true"]).name("absurd").config),
        sandbox_config: Some(pod.config.clone()),
    };
    let undo = |answer: &Wire| -> Outcome {
        let id = v1::CreateContainerResponse::decode(&answer.0[..])?.container_id;
        // What cannot be executed is an error, and what can has ended or is killed.
        let _ = pod.client.start(&id);
        Ok(pod.client.remove(&id)?)
    };
    let target = Target {
        path: "/runtime.v1.RuntimeService/CreateContainer",
        good: good.encode_to_vec(),
        undo: Box::new(undo),
    };
    try_all(&node, &pod, &target, "CreateContainerRequest", BUDGET)
}

/// Calls about a container or pod that is there, which make nothing that has to be undone.
#[test]
fn calls_about_what_is_there() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "steady").run(&node)?;
    let container = pod.command(&["sleep", "100000"]).start()?;
    container.exec("true")?;
    let of_container = Wire::default().bytes(1, container.id.as_bytes()).0;
    let of_exec = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..Default::default()
    };
    let of_attach =
        v1::AttachRequest { container_id: container.id.clone(), stdout: true, ..Default::default() };
    let checkpoint = v1::CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: "/no/such/directory/archive.tar".to_owned(),
        timeout: 10,
    };
    let of_pod = Wire::default().bytes(1, pod.id.as_bytes()).0;
    let exec =
        v1::ExecSyncRequest { container_id: container.id.clone(), cmd: vec!["true".to_owned()], timeout: 0 };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(v1::LinuxContainerResources::default()),
        ..Default::default()
    };
    for (path, good, message) in [
        (
            "/runtime.v1.RuntimeService/UpdateContainerResources",
            update.encode_to_vec(),
            "UpdateContainerResourcesRequest",
        ),
        (
            "/runtime.v1.RuntimeService/UpdatePodSandboxResources",
            of_pod.clone(),
            "UpdatePodSandboxResourcesRequest",
        ),
        ("/runtime.v1.RuntimeService/ExecSync", exec.encode_to_vec(), "ExecSyncRequest"),
        ("/runtime.v1.RuntimeService/ContainerStatus", of_container.clone(), "ContainerStatusRequest"),
        ("/runtime.v1.RuntimeService/PodSandboxStatus", of_pod.clone(), "PodSandboxStatusRequest"),
        ("/runtime.v1.RuntimeService/ContainerStats", of_container, "ContainerStatsRequest"),
        ("/runtime.v1.RuntimeService/ListContainers", Vec::new(), "ListContainersRequest"),
        ("/runtime.v1.RuntimeService/ListPodSandbox", Vec::new(), "ListPodSandboxRequest"),
        ("/runtime.v1.RuntimeService/ListContainerStats", Vec::new(), "ListContainerStatsRequest"),
        ("/runtime.v1.RuntimeService/ListPodSandboxStats", Vec::new(), "ListPodSandboxStatsRequest"),
        ("/runtime.v1.RuntimeService/UpdateRuntimeConfig", Vec::new(), "UpdateRuntimeConfigRequest"),
        ("/runtime.v1.RuntimeService/PodSandboxStats", of_pod.clone(), "PodSandboxStatsRequest"),
        ("/runtime.v1.RuntimeService/Exec", of_exec.encode_to_vec(), "ExecRequest"),
        ("/runtime.v1.RuntimeService/Attach", of_attach.encode_to_vec(), "AttachRequest"),
        ("/runtime.v1.RuntimeService/PortForward", of_pod.clone(), "PortForwardRequest"),
        (
            "/runtime.v1.RuntimeService/CheckpointContainer",
            checkpoint.encode_to_vec(),
            "CheckpointContainerRequest",
        ),
        ("/runtime.v1.RuntimeService/StreamPodSandboxes", Vec::new(), "StreamPodSandboxesRequest"),
        ("/runtime.v1.RuntimeService/StreamContainers", Vec::new(), "StreamContainersRequest"),
        ("/runtime.v1.RuntimeService/StreamContainerStats", Vec::new(), "StreamContainerStatsRequest"),
        ("/runtime.v1.RuntimeService/StreamPodSandboxStats", Vec::new(), "StreamPodSandboxStatsRequest"),
        ("/runtime.v1.ImageService/StreamImages", Vec::new(), "StreamImagesRequest"),
        ("/runtime.v1.RuntimeService/Status", Vec::new(), "StatusRequest"),
        ("/runtime.v1.RuntimeService/Version", Vec::new(), "VersionRequest"),
        ("/runtime.v1.ImageService/ListImages", Vec::new(), "ListImagesRequest"),
    ] {
        let target = Target { path, good, undo: Box::new(|_| Ok(())) };
        try_all(&node, &pod, &target, message, SMALL_BUDGET).context(message)?;
    }
    Ok(())
}

/// Calls that would end what is there if it were named: their ids are the absurd ones.
#[test]
fn calls_about_what_is_not_there() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "steady").run(&node)?;
    pod.command(&["true"]).create()?.remove()?;
    let unknown = || Wire::default().bytes(1, b"0123456789abcdef").0;
    let before = HostSnapshot::take(&node)?;
    for (path, message) in [
        ("/runtime.v1.RuntimeService/StopContainer", "StopContainerRequest"),
        ("/runtime.v1.RuntimeService/RemoveContainer", "RemoveContainerRequest"),
        ("/runtime.v1.RuntimeService/StopPodSandbox", "StopPodSandboxRequest"),
        ("/runtime.v1.RuntimeService/RemovePodSandbox", "RemovePodSandboxRequest"),
        ("/runtime.v1.RuntimeService/StartContainer", "StartContainerRequest"),
        ("/runtime.v1.RuntimeService/ReopenContainerLog", "ReopenContainerLogRequest"),
        ("/runtime.v1.RuntimeService/CheckpointPod", "CheckpointPodRequest"),
        ("/runtime.v1.RuntimeService/RestorePod", "RestorePodRequest"),
        ("/runtime.v1.ImageService/ImageStatus", "ImageStatusRequest"),
        ("/runtime.v1.ImageService/RemoveImage", "RemoveImageRequest"),
        ("/runtime.v1.ImageService/PullImage", "PullImageRequest"),
    ] {
        let image = Wire::default().message(1, &Wire::default().bytes(1, b"no-such-image")).0;
        let good = if path.contains("Image") { image } else { unknown() };
        let target = Target { path, good, undo: Box::new(|_| Ok(())) };
        let wrong: Vec<_> = cases(message)
            .iter()
            .filter_map(|case| Some(format!("{}: {}", case.what, target.try_out(&pod, &[case]).err()?)))
            .collect();
        ensure!(wrong.is_empty(), "{message}:\n{}", wrong.join("\n"));
    }
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn the_contract_is_read_whole() {
    let contract = contract();
    let names = |message: &str| contract[message].iter().map(|field| field.name.clone()).collect::<Vec<_>>();
    assert!(names("ContainerConfig").contains(&"stop_signal".to_owned()));
    assert!(names("Mount").contains(&"mount_options".to_owned()));
    assert!(matches!(contract["LinuxContainerResources"][8].kind, Kind::Map));
    assert!(
        matches!(&contract["CreateContainerRequest"][1].kind, Kind::Message(name) if name == "ContainerConfig")
    );
    assert!(cases("CreateContainerRequest").len() > 500);
    let first = &rounds(&cases("CreateContainerRequest"))[0].len();
    assert!((150..500).contains(first), "each field is in the first round once: {first}");
}

#[test]
fn every_call_of_the_contract_is_tried() {
    let contract = contract();
    let requests = CONTRACT
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split(['(', ')']).nth(1))
        .map(|request| request.trim_start_matches("stream ").trim());
    let mut count = 0;
    for request in requests {
        count += 1;
        // What has no fields has none to be absurd.
        if !contract[request].is_empty() {
            assert!(include_str!("absurd.rs").contains(&format!("\"{request}\"")), "{request}");
        }
    }
    assert!(count > 35, "{count} calls");
}
