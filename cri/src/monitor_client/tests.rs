//! The client against a scripted peer on a real socket: what it does with answers in any order, and with none.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

use runtime::monitor::protocol::{ContainerReport, ContainerState, ExitRecord};

use super::*;

/// Listens in `directory` and plays the monitor's part with `script` on the first connection, after its hello.
fn peer(directory: &Path, script: impl FnOnce(&OwnedFd) + Send + 'static) -> JoinHandle<()> {
    let listening = launch::listen(directory).unwrap();
    std::thread::spawn(move || {
        let socket = rustix::net::accept(&listening).unwrap();
        let hello = take(&socket);
        assert_eq!(hello.op, Op::Hello { protocols: vec![PROTOCOL], execs: Vec::new() });
        let report = ContainerReport {
            id: "c1".into(),
            pid: Some(7),
            state: ContainerState::Created,
            started_at_ns: None,
            exit: None,
        };
        let all =
            Hello { protocol: PROTOCOL, pid: 5, pause: Some(6), containers: vec![report], execs: Vec::new() };
        give(&socket, &Message::Reply { id: hello.id, result: Ok(Reply::Hello(all)) });
        script(&socket);
    })
}

fn take(socket: &OwnedFd) -> Request {
    wire::receive::<Request>(socket.as_fd(), &mut wire::buffer()).unwrap().unwrap().message
}

fn give(socket: &OwnedFd, message: &Message) {
    wire::send(socket.as_fd(), message, &[]).unwrap();
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "current_thread")]
async fn answers_find_who_asked_in_any_order() {
    let directory = tempfile::tempdir().unwrap();
    let peer = peer(directory.path(), |socket| {
        let (first, second) = (take(socket), take(socket));
        give(socket, &Message::Reply { id: second.id, result: Ok(Reply::Started { pid: 2 }) });
        give(socket, &Message::Reply { id: first.id, result: Ok(Reply::Started { pid: 1 }) });
    });
    let Connected { client, hello, mut notices } = connect(directory.path(), LONG).await.unwrap();
    assert_eq!(hello.pause, Some(6));
    let ask = |container: &str| client.request(Op::Start { container: container.into() }, Vec::new());
    let (first, second) = tokio::join!(ask("a"), ask("b"));
    assert_eq!((first.unwrap(), second.unwrap()), (Reply::Started { pid: 1 }, Reply::Started { pid: 2 }));
    assert!(matches!(notices.recv().await, Some(Notice::Gone(_))));
    assert!(matches!(ask("c").await, Err(ClientError::Gone)));
    peer.join().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_is_told_that_the_monitor_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let peer = peer(directory.path(), |socket| {
        take(socket);
    });
    let Connected { client, mut notices, .. } = connect(directory.path(), LONG).await.unwrap();
    let mut exit = client.exec_exit("e1");
    let asked = client.request(Op::StopSandbox, Vec::new()).await;
    assert!(matches!(asked, Err(ClientError::Gone)), "{asked:?}");
    let Some(Notice::Gone(execs)) = notices.recv().await else { panic!("no end") };
    assert!(matches!(exit.try_recv(), Err(oneshot::error::TryRecvError::Empty)), "it may be taken up");
    drop(execs);
    assert!(exit.await.is_err());
    peer.join().unwrap();
}

/// As one that is stopped, or waits for a disk.
#[tokio::test(flavor = "current_thread")]
async fn no_request_waits_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let peer = peer(directory.path(), move |_socket| {
        let _ = ended.recv();
    });
    let Connected { client, notices: _notices, .. } = connect(directory.path(), LONG).await.unwrap();
    // From here on the clock goes on by itself whenever nothing else is to be done.
    tokio::time::pause();
    let slow = client.request(Op::StopSandbox, Vec::new()).await.unwrap_err();
    assert!(matches!(slow, ClientError::Slow(REQUEST_DEADLINE)), "{slow:?}");
    drop(end);
    peer.join().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn an_exit_goes_to_the_pod_and_an_execs_exit_to_its_caller() {
    let directory = tempfile::tempdir().unwrap();
    let record = ExitRecord {
        exit_code: 3,
        signal: None,
        oom_killed: false,
        started_at_ns: Some(1),
        finished_at_ns: 2,
        start_failure: None,
    };
    let told = record.clone();
    let peer = peer(directory.path(), move |socket| {
        let asked = take(socket);
        give(socket, &Message::Event(Event::ExecExited { exec: "nobody".into(), exit_code: 1 }));
        give(socket, &Message::Event(Event::ExecExited { exec: "e1".into(), exit_code: 9 }));
        give(socket, &Message::Event(Event::Exited { container: "c1".into(), record: told }));
        give(socket, &Message::Reply { id: asked.id, result: Ok(Reply::Done) });
    });
    let connecting = connect(directory.path(), LONG);
    let Connected { client, mut notices, .. } = connecting.await.unwrap();
    let exit = client.exec_exit("e1");
    client.order(Op::StopSandbox).await.unwrap();
    assert_eq!(exit.await.unwrap(), 9);
    let Some(Notice::Event(event)) = notices.recv().await else { panic!("no event") };
    assert_eq!(event, Event::Exited { container: "c1".into(), record });
    peer.join().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_monitor_that_was_never_there_is_told_from_one_that_is_slow() {
    let directory = tempfile::tempdir().unwrap();
    assert!(connect(directory.path(), LONG).await.unwrap_err().is_gone(), "no socket");
    let listening = launch::listen(directory.path()).unwrap();
    let slow = connect(directory.path(), Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(slow, ClientError::Slow(_)) && !slow.is_gone(), "{slow:?}");
    drop(listening);
    assert!(connect(directory.path(), LONG).await.unwrap_err().is_gone(), "nobody listens any more");
}
