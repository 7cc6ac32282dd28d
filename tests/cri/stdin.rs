//! A container's standard input while nobody is attached.

use podwright_tests::{Node, Outcome, PodBuilder, v1};

#[test]
fn without_stdin_there_is_nothing_to_read() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "closed").run(&node)?;
    assert_eq!(pod.sh("cat; echo end").output()?, "end\n");
    assert_eq!(pod.sh("stat -L -c %F /proc/self/fd/0").output()?, "character special file\n");
    Ok(())
}

#[test]
fn with_stdin_a_read_waits_for_a_client() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "open").run(&node)?;
    // timeout(1) says 143 of what it had to end, and 0 of what came to an end.
    let script =
        "timeout 1 cat; echo $?; until test -e /tmp/go; do timeout 1 cat; done; timeout 1 cat; echo then $?";
    for once in [false, true] {
        let with = |config: &mut v1::ContainerConfig| (config.stdin, config.stdin_once) = (true, once);
        assert_eq!(pod.sh("timeout 1 cat; echo $?").with(with).output()?, "143\n");
    }
    let container = pod.sh(script).with(|config| config.stdin = true).start()?;
    container.wait_for_log_line("143")?;
    // Who holds it open is not the daemon.
    node.restart()?;
    node.client()?.exec_in(&container.id, &["touch", "/tmp/go"], 0)?;
    container.wait_for_log_line("then 143")?;
    Ok(())
}

#[test]
fn what_is_execd_reads_nothing_of_it() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "exec").run(&node)?;
    let container = pod.command(&["cat"]).with(|config| config.stdin = true).start()?;
    assert_eq!(container.exec("cat; echo end")?.stdout, "end\n");
    container.stop(0)?;
    assert_eq!(container.status()?.exit_code, 137);
    Ok(())
}
