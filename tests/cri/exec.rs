//! `ExecSync`.

use podwright_tests::{Deadline, Node, Outcome, PodBuilder};
use tonic::Code;

#[test]
fn output_and_exit_code_come_back() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "exec").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).env("WHO", "me").start()?;
    let output = container.exec("echo out $WHO; echo err >&2; exit 42")?;
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (42, "out me\n", "err\n"));
    let output = pod.client.exec_in(&container.id, &["printf", "%s|", "a b", "", "ü"], 0)?;
    assert_eq!(output.stdout, "a b||ü|");
    assert_eq!(container.exec("kill -9 $$")?.code, 137);
    Ok(())
}

#[test]
fn it_runs_where_the_container_runs() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "where").own_network().run(&node)?;
    let container = pod
        .command(&["sleep", "1000"])
        .user(1000)
        .with(|config| config.working_dir = "/var".to_owned())
        .start()?;
    let script = "id -u; pwd; for n in mnt net pid ipc uts cgroup; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n; done";
    // Another process's namespaces may be read by its own user.
    assert_eq!(container.exec(script)?.stdout, "1000\n/var\n");
    if podwright_tests::snapshot::unified() {
        let cgroup = container.exec("cat /proc/self/cgroup")?.stdout;
        assert_eq!(cgroup, "0::/\n", "the cgroup namespace hides the host's path");
    }
    Ok(())
}

#[test]
fn much_output_arrives_whole() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "much").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let output = container
        .exec("head -c 3000000 /dev/zero | tr '\\0' x; head -c 200000 /dev/zero | tr '\\0' y >&2")?;
    assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 200_000));
    Ok(())
}

#[test]
fn output_without_end_is_capped_and_still_fits_into_an_answer() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "cap").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let output = container.exec("head -c 40000000 /dev/zero; exit 5")?;
    // kubelet takes messages of 16 MiB, all of it included.
    assert_eq!(output.code, 5, "the command was not blocked");
    assert!((8 << 20..16 << 20).contains(&output.stdout.len()), "{} bytes", output.stdout.len());
    Ok(())
}

#[test]
fn a_timeout_kills_the_whole_subtree() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "timeout").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let script = "sleep 5678 & (setsid sleep 5678 &) ; trap '' TERM; sleep 5678";
    let error = pod.client.exec_in(&container.id, &["/bin/sh", "-c", script], 1).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let left: Vec<_> =
        node.pod_processes()?.into_iter().filter(|process| process.command == "sleep 5678").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(container.exec("echo still here")?.stdout, "still here\n");
    Ok(())
}

#[test]
fn a_background_child_that_holds_the_pipe_holds_nobody_up() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "holder").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let deadline = Deadline::in_seconds(10);
    let output = container.exec("echo first; sleep 300 & exit 0")?;
    assert_eq!((output.code, output.stdout.as_str()), (0, "first\n"));
    assert!(deadline.left().is_some(), "it waited for the child");
    Ok(())
}

#[test]
fn many_at_once() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "many").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let clients: Vec<_> = (0..8).map(|_| node.client()).collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            let id = &container.id;
            scope.spawn(move || {
                for round in 0..5 {
                    let text = format!("{number}-{round}");
                    let output = client.exec_in(id, &["echo", &text], 0).unwrap();
                    assert_eq!((output.code, output.stdout), (0, format!("{text}\n")));
                }
            });
        }
    });
    Ok(())
}

#[test]
fn what_cannot_run_is_an_error() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "cannot").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let client = &pod.client;
    let missing = client.exec_in(&container.id, &["/no/such/program"], 0).unwrap_err();
    assert!(missing.message().contains("/no/such/program"), "{missing:?}");
    assert_eq!(client.exec_in(&container.id, &[], 0).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.exec_in(&container.id, &["true"], -1).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.exec_in("0123456789", &["true"], 0).unwrap_err().code(), Code::NotFound);
    container.stop(0)?;
    assert_eq!(client.exec_in(&container.id, &["true"], 0).unwrap_err().code(), Code::FailedPrecondition);
    let created = pod.command(&["true"]).create()?;
    assert_eq!(client.exec_in(&created.id, &["true"], 0).unwrap_err().code(), Code::FailedPrecondition);
    Ok(())
}

#[test]
fn an_exec_that_outlives_its_container_ends_with_it() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "outlive").run(&node)?;
    let container = pod.sh("echo up; while [ ! -e /stop ]; do sleep 0.05; done").start()?;
    container.wait_for_log_line("up")?;
    let client = node.client()?;
    let output = std::thread::scope(|scope| {
        let running =
            scope.spawn(|| client.exec_in(&container.id, &["/bin/sh", "-c", "touch /stop; sleep 1000"], 0));
        container.wait().unwrap();
        running.join().unwrap()
    })?;
    assert_eq!(output.code, 137);
    Ok(())
}
