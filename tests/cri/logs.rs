//! The CRI log format, rotation, and hostile log paths.

use std::fs;
use std::os::unix::fs::symlink;

use podwright_tests::pod::parse_log;
use podwright_tests::{Deadline, Node, Outcome, PodBuilder, v1, watch};

#[test]
fn lines_have_time_stream_tag_and_text() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "format").run(&node)?;
    let (_, lines) = pod.sh("echo out; echo err >&2; echo '  spaces  '; echo; printf 'no newline'").run()?;
    let of = |stream: &str| -> Vec<(String, String)> {
        let mine = lines.iter().filter(|line| line.stream == stream);
        mine.map(|line| (line.tag.clone(), line.text.clone())).collect()
    };
    let full = |text: &str| ("F".to_owned(), text.to_owned());
    let out = of("stdout");
    assert_eq!(out[..3], [full("out"), full("  spaces  "), full("")]);
    assert_eq!(out[3].1, "no newline", "the last line is flushed at the exit: {out:?}");
    assert_eq!(of("stderr"), [full("err")]);
    for line in &lines {
        let time = line.time.as_bytes();
        // 2026-01-02T03:04:05.123456789Z
        assert_eq!(time[19], b'.', "{line:?}");
        assert_eq!(time[20..29].iter().filter(|byte| byte.is_ascii_digit()).count(), 9, "{line:?}");
        assert!(line.time[29..] == *"Z" || line.time[29..].starts_with(['+', '-']), "{line:?}");
    }
    Ok(())
}

#[test]
fn bytes_are_kept_as_they_were_written() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "bytes").run(&node)?;
    let container = pod.sh("printf 'a\\rb\\r\\n\\377\\001\\n'").start()?;
    container.wait()?;
    let log = fs::read(&container.log)?;
    assert!(log.windows(7).any(|window| window == b"F a\rb\r\n"), "{:?}", String::from_utf8_lossy(&log));
    assert!(log.windows(5).any(|window| window == b"F \xff\x01\n"), "{:?}", String::from_utf8_lossy(&log));
    Ok(())
}

#[test]
fn a_long_line_comes_in_parts_of_16_kib() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "long").run(&node)?;
    let (_, lines) = pod.sh("head -c 40000 /dev/zero | tr '\\0' z; echo; echo short").run()?;
    let whole: String =
        lines.iter().take_while(|line| line.text != "short").map(|line| line.text.as_str()).collect();
    assert_eq!(whole.len(), 40_000);
    let tags: Vec<_> = lines.iter().map(|line| line.tag.as_str()).collect();
    assert_eq!(tags.iter().filter(|tag| **tag == "F").count(), 2, "{tags:?}");
    assert!(lines.iter().all(|line| line.text.len() <= 16_384));
    assert!(
        lines.iter().filter(|line| line.tag == "P").all(|line| line.text.len() == 16_384),
        "parts are full"
    );
    Ok(())
}

#[test]
fn a_rotation_loses_nothing() -> Outcome {
    const ROTATIONS: usize = 5;
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "rotate").run(&node)?;
    // It writes until it is told to end, so that every rotation falls into its writing.
    let container =
        pod.sh("trap 'echo last; exit 0' TERM; n=0; while :; do n=$((n+1)); echo line $n; done").create()?;
    container.start()?;
    let mut files = Vec::new();
    for number in 0..ROTATIONS {
        watch::content(&container.log, Deadline::in_seconds(20), |bytes| (!bytes.is_empty()).then_some(()))?;
        let old = container.log.with_extension(number.to_string());
        fs::rename(&container.log, &old)?;
        let request = v1::ReopenContainerLogRequest { container_id: container.id.clone() };
        pod.client.reopen_container_log(request)?;
        assert!(container.log.exists(), "the new file exists when the call returns");
        files.push((old.clone(), fs::metadata(&old)?.len()));
    }
    container.stop(60)?;
    assert_eq!(container.wait()?.exit_code, 0, "it ended by itself");
    for (old, size) in &files {
        assert_eq!(fs::metadata(old)?.len(), *size, "{} stays as it is", old.display());
    }
    files.push((container.log.clone(), 0));
    let mut lines = Vec::new();
    for (file, _) in &files {
        lines.extend(parse_log(&fs::read(file)?).into_iter().map(|line| line.text));
    }
    assert_eq!(lines.pop().as_deref(), Some("last"));
    for (line, number) in lines.iter().zip(1..) {
        assert_eq!(*line, format!("line {number}"), "each comes once, in order");
    }
    Ok(())
}

#[test]
fn a_log_path_that_is_a_symlink_does_not_lead_outside() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "symlink").run(&node)?;
    let outside = node.path().join("precious");
    fs::write(&outside, "untouched")?;
    let builder = pod.sh("echo hostile");
    let log = std::path::Path::new(&pod.config.log_directory).join(&builder.config.log_path);
    fs::create_dir_all(log.parent().unwrap())?;
    symlink(&outside, &log)?;
    let result = builder.run();
    assert_eq!(fs::read_to_string(&outside)?, "untouched", "{result:?}");
    Ok(())
}

#[test]
fn a_log_path_that_is_a_fifo_hangs_nobody() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "fifo").run(&node)?;
    let builder = pod.sh("echo into the void");
    let log = std::path::Path::new(&pod.config.log_directory).join(&builder.config.log_path);
    fs::create_dir_all(log.parent().unwrap())?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &log,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )?;
    // Refused or written beside it: the call comes back.
    let deadline = Deadline::in_seconds(20);
    let result = builder.create().and_then(|container| container.start());
    assert!(deadline.left().is_some(), "{result:?}");
    Ok(())
}

#[test]
fn no_log_path_is_no_log() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "none").run(&node)?;
    let container =
        pod.sh("head -c 300000 /dev/zero; exit 4").with(|config| config.log_path.clear()).create()?;
    container.start()?;
    assert_eq!(container.wait()?.exit_code, 4, "the output is drained all the same");
    Ok(())
}

#[test]
fn much_output_arrives_whole() -> Outcome {
    const LINES: usize = 20_000;
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "much").run(&node)?;
    let (status, lines) = pod.sh(&format!("seq 1 {LINES}")).run()?;
    assert_eq!(status.exit_code, 0);
    assert_eq!(lines.len(), LINES);
    assert!(lines.iter().zip(1..).all(|(line, number)| line.text == number.to_string()), "in order");
    Ok(())
}
