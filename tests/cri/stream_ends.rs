//! Streaming sessions of containers and pods that are paused, being stopped, or gone.

use podwright_tests::spdy::Spdy;
use podwright_tests::streaming::{Streaming, V5, channel};
use podwright_tests::{Container, Node, Outcome, Pod, PodBuilder, v1};
use tonic::Code;

use crate::hostile::{freeze, thaw};
use crate::port_forward::{echo, serve};

/// Ends when it is told to, some time after it was asked to.
const RELUCTANT: &str =
    "trap 'touch /asked' TERM; echo up; while [ ! -e /go ]; do sleep 0.05; done; echo last words; exit 6";

fn exec(pod: &Pod, container: &Container<'_>, script: &str) -> anyhow::Result<Streaming> {
    let request = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    Streaming::open(&pod.client.exec(request)?.url, Some(V5))
}

fn attach(pod: &Pod, container: &Container<'_>) -> anyhow::Result<Streaming> {
    let request = v1::AttachRequest {
        container_id: container.id.clone(),
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let mut session = Streaming::open(&pod.client.attach(request)?.url, Some(V5))?;
    session.ready()?;
    Ok(session)
}

#[test]
fn a_paused_container_runs_no_commands_and_says_so() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "paused").run(&node)?;
    let container = pod.sh("while :; do echo tick; sleep 0.1; done").start()?;
    container.wait_for_log_line("tick")?;
    let mut attached = attach(&pod, &container)?;
    let mut running = exec(&pod, &container, "echo on; sleep 0.5; echo still")?;
    running.read_text(channel::STDOUT, "on\n")?;
    freeze(container.pid()?)?;
    // As runc, and containerd with it.
    let refused = exec(&pod, &container, "true")?.finish()?;
    assert!(refused.status.contains("is paused") && refused.status.contains("InternalError"), "{refused:?}");
    // Who is at it stays, and sees it go on.
    let mut second = attach(&pod, &container)?;
    thaw(container.pid()?)?;
    attached.read_text(channel::STDOUT, "tick\n")?;
    second.read_text(channel::STDOUT, "tick\n")?;
    let ended = running.finish()?;
    assert_eq!((ended.stdout.as_str(), ended.code()?), ("still\n", 0));
    Ok(())
}

#[test]
fn a_container_that_is_being_stopped_still_has_its_sessions() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "reluctant").run(&node)?;
    let container = pod.sh(RELUCTANT).start()?;
    container.wait_for_log_line("up")?;
    let attached = attach(&pod, &container)?;
    let mut before = exec(&pod, &container, "echo on; exec sleep 1000")?;
    before.read_text(channel::STDOUT, "on\n")?;
    let (client, id) = (node.client()?, container.id.clone());
    std::thread::scope(|scope| -> Outcome {
        let stopping = scope.spawn(|| client.stop(&id, 600));
        let asked = exec(&pod, &container, "while [ ! -e /asked ]; do sleep 0.05; done; exit 5")?.finish()?;
        assert_eq!(asked.code()?, 5, "it is running until it ends");
        let late = attach(&pod, &container)?;
        container.exec("touch /go")?;
        stopping.join().expect("the call does not panic")?;
        for session in [attached, late] {
            assert_eq!(session.finish()?.stdout, "last words\n");
        }
        assert_eq!(before.finish()?.code()?, 137, "what it leaves is killed");
        Ok(())
    })?;
    assert_eq!(container.status()?.exit_code, 6);
    Ok(())
}

#[test]
fn sessions_of_a_pod_end_with_it() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "ended").own_network().run(&node)?;
    let container = pod.sh("echo up; exec sleep 1000").start()?;
    container.wait_for_log_line("up")?;
    let attached = attach(&pod, &container)?;
    let mut running = exec(&pod, &container, "echo on; exec sleep 1000")?;
    running.read_text(channel::STDOUT, "on\n")?;
    let port = serve(&node, &pod, "127.0.0.1:0", echo)?;
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![i32::from(port)] };
    let mut forward = Spdy::open(&pod.client.port_forward(request.clone())?.url, &["portforward.k8s.io"])?;
    let number = port.to_string();
    let connection = |forward: &mut Spdy, id: &str| -> anyhow::Result<(u32, u32)> {
        let headers = |kind| [("streamtype", kind), ("port", number.as_str()), ("requestid", id)];
        Ok((forward.stream(&headers("error"))?, forward.stream(&headers("data"))?))
    };
    let (_, data) = connection(&mut forward, "0")?;
    forward.data(data, b"there", false)?;
    assert_eq!(forward.read(data, 5)?, b"there");

    pod.stop()?;
    assert_eq!(running.finish()?.code()?, 137);
    attached.finish()?;
    // The client's connection stands, and tells of each that it wants that there is nothing to lead it to.
    let (error, _) = connection(&mut forward, "1")?;
    let told = String::from_utf8_lossy(&forward.read(error, 40)?).into_owned();
    assert!(told.starts_with(&format!("error forwarding port {port} to pod {}", pod.id)), "{told}");
    assert_eq!(pod.client.port_forward(request).unwrap_err().code(), Code::FailedPrecondition);
    Ok(())
}
