//! `Attach` over WebSocket: a container's output as it comes, and its stdin.

use podwright_tests::spdy::{self, Spdy};
use podwright_tests::streaming::{Streaming, V5, channel};
use podwright_tests::{Container, Deadline, Node, Outcome, Pod, PodBuilder, v1};
use tonic::Code;

/// The status of a session that ended well.
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

fn request(container: &str, stdin: bool, tty: bool) -> v1::AttachRequest {
    v1::AttachRequest { container_id: container.to_owned(), stdin, tty, stdout: true, stderr: !tty }
}

fn attach(pod: &Pod, container: &Container<'_>, stdin: bool, tty: bool) -> anyhow::Result<Streaming> {
    let mut session = Streaming::open(&pod.client.attach(request(&container.id, stdin, tty))?.url, Some(V5))?;
    session.ready()?;
    Ok(session)
}

#[test]
fn what_follows_is_seen_and_what_was_before_is_not() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "attach").run(&node)?;
    let script = "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo out; echo err >&2; exit 3";
    let container = pod.sh(script).start()?;
    container.wait_for_log_line("before")?;
    let sessions: Vec<_> =
        (0..3).map(|_| attach(&pod, &container, false, false)).collect::<anyhow::Result<_>>()?;
    container.exec("touch /go")?;
    for session in sessions {
        let ended = session.finish()?;
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(ended.status, SUCCESS, "attach tells no exit code");
    }
    assert_eq!(container.wait()?.exit_code, 3);
    Ok(())
}

#[test]
fn a_container_that_is_not_started_shows_all_it_writes() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "early").run(&node)?;
    let container = pod.sh("read line; echo got $line").with(|config| config.stdin = true).create()?;
    let mut session = attach(&pod, &container, true, false)?;
    session.send(channel::STDIN, b"me\n")?;
    container.start()?;
    session.read_text(channel::STDOUT, "got me\n")?;
    session.finish()?;
    Ok(())
}

#[test]
fn stdin_once_ends_with_its_first_client_and_other_stdin_does_not() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "once").run(&node)?;
    let once =
        pod.sh("cat; echo end").with(|config| (config.stdin, config.stdin_once) = (true, true)).start()?;
    let mut session = attach(&pod, &once, true, false)?;
    session.send(channel::STDIN, b"first\n")?;
    session.read_text(channel::STDOUT, "first\n")?;
    session.close_stdin()?;
    assert_eq!(session.finish()?.stdout, "end\n");
    assert_eq!(once.wait()?.exit_code, 0);

    let kept =
        pod.sh("while read line; do echo got $line; done").with(|config| config.stdin = true).start()?;
    for text in ["a", "b"] {
        let mut session = attach(&pod, &kept, true, false)?;
        session.send(channel::STDIN, format!("{text}\n").as_bytes())?;
        session.read_text(channel::STDOUT, &format!("got {text}\n"))?;
    }
    assert_eq!(kept.state()?, v1::ContainerState::ContainerRunning);
    Ok(())
}

/// Asks until it is answered.
fn answered(ask: impl Fn() -> anyhow::Result<bool>) -> Outcome {
    let deadline = Deadline::in_seconds(30);
    while !ask()? {
        anyhow::ensure!(deadline.left().is_some(), "never answered");
    }
    Ok(())
}

/// `echo … | crictl attach -i` hung: a client that has said all was kept until the container's end.
#[test]
fn a_client_that_sends_no_more_leaves_a_container_that_goes_on() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "leaves").run(&node)?;
    let kept =
        pod.sh("while read line; do echo got $line; done").with(|config| config.stdin = true).start()?;
    // The answer to its last line is waited for for half a second, which a busy machine may need for something else.
    answered(|| {
        let mut session = attach(&pod, &kept, true, false)?;
        session.send(channel::STDIN, b"a\n")?;
        session.close_stdin()?;
        let ended = session.finish()?;
        assert_eq!(ended.status, SUCCESS);
        Ok(ended.stdout.ends_with("got a\n"))
    })?;
    answered(|| {
        let mut spdy = Spdy::open(&pod.client.attach(request(&kept.id, true, false))?.url, &[spdy::V5])?;
        let streams = spdy.streams(true, true)?;
        spdy.data(streams.stdin.expect("it was asked for"), b"b\n", true)?;
        let ended = spdy.finish()?;
        assert_eq!(ended.text(streams.error), SUCCESS);
        Ok(ended.text(streams.stdout).ends_with("got b\n"))
    })?;
    assert_eq!(kept.state()?, v1::ContainerState::ContainerRunning);

    // Who has no way to type into the container does not leave by saying so.
    let script = "while [ ! -e /go ]; do sleep 0.05; done; echo end";
    let deaf = pod.sh(script).start()?;
    let mut session = attach(&pod, &deaf, true, false)?;
    session.close_stdin()?;
    deaf.exec("sleep 1; touch /go")?;
    assert_eq!(session.finish()?.stdout, "end\n");
    Ok(())
}

#[test]
fn a_terminal_is_typed_into_and_resized() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "tty").run(&node)?;
    let container = pod
        .sh("stty -echo; while read line; do echo size $(stty size); done")
        .with(|config| (config.stdin, config.tty) = (true, true))
        .start()?;
    let mut session = attach(&pod, &container, true, true)?;
    session.resize(111, 22)?;
    // The size goes another way than what is typed: it is asked for until it is there.
    let deadline = Deadline::in_seconds(20);
    loop {
        session.send(channel::STDIN, b"\n")?;
        if session.read_text(channel::STDOUT, "\r\n")?.contains("size 22 111") {
            break;
        }
        assert!(deadline.left().is_some(), "the size never came");
    }
    drop(session);
    // A terminal does not end with its client.
    let mut again = attach(&pod, &container, true, true)?;
    again.send(channel::STDIN, b"\n")?;
    again.read_text(channel::STDOUT, "size 22 111")?;
    let refused = pod.client.attach(request(&container.id, true, false)).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    Ok(())
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "slow").run(&node)?;
    let script =
        "while [ ! -e /go ]; do sleep 0.05; done; yes 0123456789 | head -c 20000000; echo; echo done";
    let container = pod.sh(script).start()?;
    let slow = attach(&pod, &container, false, false)?;
    let other = attach(&pod, &container, false, false)?;
    container.exec("touch /go")?;
    container.wait_for_log_line("done")?;
    // The log has all of it, and whoever reads sees the end unless it fell behind as well.
    drop((slow, other));
    assert_eq!(container.wait()?.exit_code, 0);
    let bytes: usize = container.log_lines()?.iter().map(|line| line.text.len() + 1).sum();
    assert!(bytes >= 20_000_000, "{bytes} in the log");
    Ok(())
}

#[test]
fn what_cannot_be_attached_to_is_an_error_of_the_call() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    let container = pod.command(&["true"]).start()?;
    container.wait()?;
    let code = |request| pod.client.attach(request).unwrap_err().code();
    assert_eq!(code(request("0123456789", false, false)), Code::NotFound);
    assert_eq!(code(request(&container.id, false, false)), Code::FailedPrecondition);
    let nothing = v1::AttachRequest { container_id: container.id.clone(), ..Default::default() };
    assert_eq!(code(nothing), Code::InvalidArgument);
    Ok(())
}
