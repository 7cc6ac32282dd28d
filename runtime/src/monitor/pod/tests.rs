use proptest::prelude::*;

use super::*;

const KILLED: End = End { exit_code: 137, signal: Some(9) };

fn caller(request: u64) -> Caller {
    Caller { connection: 1, request }
}

fn create_request(id: &str) -> CreateRequest {
    CreateRequest {
        container: id.to_owned(),
        bundle: "/bundle".into(),
        log_path: None,
        log_part_bytes: 0,
        stdin: false,
        stdin_once: false,
        fds: Vec::new(),
    }
}

fn sandbox_request() -> SandboxRequest {
    SandboxRequest {
        netns: None,
        ipc: true,
        uts: true,
        pid: false,
        hostname: None,
        sysctls: Vec::new(),
        user_namespace: None,
    }
}

fn request(pod: &mut Pod, number: u64, op: Op) -> Vec<Action> {
    pod.step(Input::Request { caller: caller(number), op })
}

/// A pod with a sandbox and container `c`, created.
fn pod_with_container() -> Pod {
    let mut pod = Pod::new(1);
    request(&mut pod, 1, Op::Sandbox(sandbox_request()));
    pod.step(Input::SandboxMade { caller: caller(1), result: Ok(10) });
    request(&mut pod, 2, Op::Create(create_request("c")));
    pod.step(Input::Created { caller: caller(2), container: "c".into(), result: Ok(11) });
    pod
}

fn start(pod: &mut Pod, at_ns: i64) {
    let actions = request(pod, 3, Op::Start { container: "c".into() });
    assert_eq!(actions, [Action::OpenGate { container: "c".into() }]);
    let actions = pod.step(Input::GateOutcome { container: "c".into(), outcome: Ok(()), at_ns });
    assert_eq!(actions, [reply(caller(3), Ok(Reply::Running { started_at_ns: at_ns }))]);
}

fn exit(pod: &mut Pod, end: End, at_ns: i64) -> Vec<Action> {
    pod.step(Input::Exited { container: "c".into(), end, oom_kills: false, at_ns })
}

fn record_of(actions: &[Action]) -> &ExitRecord {
    match &actions[0] {
        Action::Record { record, .. } => record,
        other => panic!("expected a record first, not {other:?}"),
    }
}

#[test]
fn a_life_is_recorded_then_announced() {
    let mut pod = pod_with_container();
    start(&mut pod, 1000);
    let actions = exit(&mut pod, End { exit_code: 3, signal: None }, 2000);
    let record = record_of(&actions).clone();
    assert_eq!((record.exit_code, record.started_at_ns, record.finished_at_ns), (3, Some(1000), 2000));
    assert_eq!(actions[1], Action::Announce(Event::Exited { container: "c".into(), record }));
    let actions = request(&mut pod, 4, Op::Delete { container: "c".into() });
    assert_eq!(actions, [Action::Remove { container: "c".into() }, reply(caller(4), Ok(Reply::Done))]);
}

#[test]
fn a_clock_set_back_does_not_end_a_container_before_its_start() {
    let mut pod = pod_with_container();
    start(&mut pod, 5000);
    assert_eq!(record_of(&exit(&mut pod, KILLED, 10)).finished_at_ns, 5000);
}

#[test]
fn a_program_that_cannot_be_executed_fails_the_start_and_gives_its_exit_code() {
    for (errno, code) in [(Errno::NOENT, 127), (Errno::ACCESS, 126), (Errno::NOEXEC, 126), (Errno::IO, 128)] {
        let mut pod = pod_with_container();
        request(&mut pod, 3, Op::Start { container: "c".into() });
        let failure = Failure::at(Step::Exec, errno, "/nope");
        let actions =
            pod.step(Input::GateOutcome { container: "c".into(), outcome: Err(failure.clone()), at_ns: 1 });
        assert_eq!(actions, [reply(caller(3), Err(failure.clone()))]);
        let actions = exit(&mut pod, End { exit_code: 1, signal: None }, 2);
        let record = record_of(&actions);
        assert_eq!((record.exit_code, record.started_at_ns), (code, None));
        assert_eq!(record.start_failure.as_ref(), Some(&failure));
    }
}

#[test]
fn killed_before_its_start() {
    let mut pod = pod_with_container();
    let record = record_of(&exit(&mut pod, KILLED, 7)).clone();
    assert_eq!((record.exit_code, record.started_at_ns, record.start_failure), (137, None, None));
    let actions = request(&mut pod, 3, Op::Start { container: "c".into() });
    assert!(matches!(&actions[..], [Action::Reply { result: Err(_), .. }]));
}

#[test]
fn oom_killed_needs_both_the_counter_and_a_failure() {
    for (oom_kills, end, flag) in [
        (true, KILLED, true),
        (false, KILLED, false),
        (true, End { exit_code: 0, signal: None }, false),
        (true, End { exit_code: 137, signal: None }, true),
        (false, End { exit_code: 137, signal: None }, false),
    ] {
        let mut pod = pod_with_container();
        start(&mut pod, 1);
        let actions = pod.step(Input::Exited { container: "c".into(), end, oom_kills, at_ns: 2 });
        assert_eq!(record_of(&actions).oom_killed, flag);
    }
}

#[test]
fn deleting_a_running_container_kills_it_and_answers_after_its_record() {
    let mut pod = pod_with_container();
    start(&mut pod, 1);
    assert_eq!(
        request(&mut pod, 4, Op::Delete { container: "c".into() }),
        [Action::KillAll { container: "c".into() }]
    );
    let actions = exit(&mut pod, KILLED, 2);
    assert!(matches!(
        &actions[..],
        [
            Action::Record { .. },
            Action::Announce(Event::Exited { .. }),
            Action::Remove { .. },
            Action::Reply { result: Ok(Reply::Done), .. }
        ]
    ));
    assert_eq!(
        request(&mut pod, 5, Op::Delete { container: "c".into() }),
        [reply(caller(5), Ok(Reply::Done))]
    );
}

#[test]
fn stopping_kills_containers_then_pause_then_answers() {
    let mut pod = pod_with_container();
    start(&mut pod, 1);
    assert_eq!(request(&mut pod, 4, Op::StopSandbox), [Action::KillAll { container: "c".into() }]);
    assert!(matches!(
        &request(&mut pod, 5, Op::Create(create_request("d")))[..],
        [Action::Reply { result: Err(_), .. }]
    ));
    let actions = exit(&mut pod, KILLED, 2);
    assert_eq!(actions.last(), Some(&Action::KillPause));
    let actions = pod.step(Input::PauseExited);
    assert_eq!(actions, [Action::Announce(Event::PauseExited), reply(caller(4), Ok(Reply::Done))]);
    assert_eq!(request(&mut pod, 6, Op::StopSandbox), [reply(caller(6), Ok(Reply::Done))]);
    let actions = request(&mut pod, 7, Op::Shutdown);
    assert_eq!(
        actions,
        [Action::Remove { container: "c".into() }, reply(caller(7), Ok(Reply::Done)), Action::Quit]
    );
}

#[test]
fn a_daemon_of_another_version_is_refused() {
    let mut pod = Pod::new(1);
    let actions = request(&mut pod, 1, Op::Hello { protocols: vec![PROTOCOL + 1], execs: Vec::new() });
    assert!(matches!(&actions[..], [Action::Reply { result: Err(_), .. }]));
}

#[test]
fn hello_tells_all_that_lives() {
    let mut pod = pod_with_container();
    start(&mut pod, 9);
    let actions = request(&mut pod, 8, Op::Hello { protocols: vec![PROTOCOL], execs: Vec::new() });
    let [Action::Reply { result: Ok(Reply::Hello(hello)), .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((hello.pid, hello.pause), (1, Some(10)));
    assert_eq!(hello.containers.len(), 1);
    assert_eq!(hello.containers[0].state, ContainerState::Running);
    assert_eq!(hello.containers[0].pid, Some(11));
}

#[test]
fn hello_tells_of_the_execs_that_it_is_asked_for() {
    let mut pod = pod_with_container();
    start(&mut pod, 9);
    let exec = |pod: &mut Pod, name: &str| {
        let op = Op::Exec(ExecRequest {
            container: "c".into(),
            exec: name.into(),
            stdio: [false; 3],
            own_cgroup: false,
            limit_ms: None,
        });
        request(pod, 8, op);
        pod.step(Input::Execed { caller: caller(8), exec: name.into(), result: Ok(20) });
    };
    let end = |pod: &mut Pod, name: &str, exit_code| {
        pod.step(Input::ExecExited { exec: name.into(), end: End { exit_code, signal: None } });
    };
    exec(&mut pod, "runs");
    exec(&mut pod, "ended");
    end(&mut pod, "ended", 3);
    let told = |pod: &mut Pod, asked: &[&str]| {
        let execs = asked.iter().map(|name| (*name).to_owned()).collect();
        let actions = request(pod, 9, Op::Hello { protocols: vec![PROTOCOL], execs });
        let [Action::Reply { result: Ok(Reply::Hello(hello)), .. }] = &actions[..] else {
            panic!("{actions:?}")
        };
        hello.execs.iter().map(|report| (report.exec.clone(), report.exit_code)).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut pod, &[]), []);
    let known = [("runs".to_owned(), None), ("ended".to_owned(), Some(3))];
    assert_eq!(told(&mut pod, &["runs", "never", "ended"]), known);
    for number in 0..MAX_ENDED_EXECS {
        exec(&mut pod, &number.to_string());
        end(&mut pod, &number.to_string(), 0);
    }
    assert_eq!(told(&mut pod, &["runs", "ended", "0"]), [("runs".into(), None), ("0".into(), Some(0))]);
}

/// What a random test asks of the machine, or tells it. Small id spaces, so that they meet.
#[derive(Debug, Clone)]
enum Stimulus {
    Op(Op),
    /// The gate of a starting container answers.
    Gate(String, bool),
    /// A living container's init exits.
    Exit(String),
    /// A running exec exits.
    ExecExit(String),
    /// Pause dies by itself.
    PauseDies,
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), Just("b".to_owned())]
}

fn stimulus() -> impl Strategy<Value = Stimulus> {
    let op = prop_oneof![
        3 => Just(Op::Sandbox(sandbox_request())),
        6 => id().prop_map(|id| Op::Create(create_request(&id))),
        6 => id().prop_map(|container| Op::Start { container }),
        2 => (id(), any::<bool>()).prop_map(|(container, all)| Op::Kill { container, signal: 9, all }),
        3 => (id(), id()).prop_map(|(container, exec)| Op::Exec(ExecRequest {
            container, exec, stdio: [false; 3], own_cgroup: false, limit_ms: None })),
        1 => id().prop_map(|exec| Op::KillExec { exec, signal: 9 }),
        1 => id().prop_map(|container| Op::Pause { container }),
        1 => id().prop_map(|container| Op::ReopenLog { container }),
        3 => id().prop_map(|container| Op::Delete { container }),
        1 => Just(Op::StopSandbox),
        1 => Just(Op::Shutdown),
    ];
    prop_oneof![
        8 => op.prop_map(Stimulus::Op),
        4 => (id(), any::<bool>()).prop_map(|(id, ok)| Stimulus::Gate(id, ok)),
        3 => id().prop_map(Stimulus::Exit),
        1 => id().prop_map(Stimulus::ExecExit),
        1 => Just(Stimulus::PauseDies),
    ]
}

/// A kernel that does what actions say, and the checks of what must hold.
#[derive(Default)]
struct World {
    pause: bool,
    /// Containers whose init lives, and whether the gate was opened.
    inits: BTreeMap<String, bool>,
    execs: std::collections::BTreeSet<String>,
    asked: u64,
    answered: std::collections::BTreeSet<u64>,
    recorded: Option<String>,
    quit: bool,
    clock_ns: i64,
}

impl World {
    fn run(&mut self, pod: &mut Pod, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in pod.step(input) {
                assert!(!self.quit, "nothing follows the end: {action:?}");
                inputs.extend(self.act(action));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        let unannounced = self.recorded.take();
        match action {
            Action::Reply { caller, .. } | Action::Serve { caller, .. } => {
                assert!(self.answered.insert(caller.request), "answered twice: {caller:?}");
            }
            Action::Record { container, record } => {
                assert!(record.started_at_ns.is_none_or(|started| started <= record.finished_at_ns));
                self.recorded = Some(container);
            }
            Action::Announce(Event::Exited { container, .. }) => {
                assert_eq!(unannounced.as_ref(), Some(&container), "announced without a record");
            }
            Action::MakeSandbox { caller, .. } => {
                assert!(!self.pause);
                self.pause = true;
                return Some(Input::SandboxMade { caller, result: Ok(1) });
            }
            Action::Create { caller, request } => {
                assert!(self.pause);
                assert!(self.inits.insert(request.container.clone(), false).is_none());
                return Some(Input::Created { caller, container: request.container, result: Ok(2) });
            }
            Action::OpenGate { container } => *self.inits.get_mut(&container).expect("it lives") = true,
            Action::Exec { caller, request } => {
                assert!(self.inits.contains_key(&request.container));
                assert!(self.execs.insert(request.exec.clone()));
                return Some(Input::Execed { caller, exec: request.exec, result: Ok(3) });
            }
            Action::KillAll { container } => {
                return self.inits.contains_key(&container).then(|| self.exit(container));
            }
            Action::KillPause => {
                assert!(self.inits.is_empty(), "pause outlives the containers");
                assert!(std::mem::take(&mut self.pause));
                return Some(Input::PauseExited);
            }
            Action::Remove { container } => assert!(!self.inits.contains_key(&container)),
            Action::Quit => self.quit = true,
            Action::Announce(_) | Action::Signal { .. } | Action::SignalExec { .. } => {}
        }
        None
    }

    fn exit(&mut self, container: String) -> Input {
        self.inits.remove(&container);
        self.clock_ns -= 1;
        Input::Exited { container, end: KILLED, oom_kills: false, at_ns: self.clock_ns }
    }

    fn input(&mut self, stimulus: Stimulus) -> Option<Input> {
        match stimulus {
            Stimulus::Op(op) => {
                self.asked += 1;
                Some(Input::Request { caller: caller(self.asked), op })
            }
            Stimulus::Gate(container, ok) => {
                let opened = self.inits.get_mut(&container).filter(|opened| **opened)?;
                *opened = false;
                let failure = Failure::because(Step::Exec, "no");
                let outcome = if ok { Ok(()) } else { Err(failure) };
                Some(Input::GateOutcome { container, outcome, at_ns: self.clock_ns })
            }
            Stimulus::Exit(container) => self.inits.contains_key(&container).then(|| self.exit(container)),
            Stimulus::ExecExit(exec) => {
                self.execs.remove(&exec).then_some(Input::ExecExited { exec, end: KILLED })
            }
            Stimulus::PauseDies => std::mem::take(&mut self.pause).then_some(Input::PauseExited),
        }
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_and_every_exit_recorded(
        stimuli in prop::collection::vec(stimulus(), 0..60),
    ) {
        let (mut pod, mut world) = (Pod::new(1), World::default());
        for stimulus in stimuli {
            if world.quit {
                break;
            }
            if let Some(input) = world.input(stimulus) {
                world.run(&mut pod, input);
            }
        }
        if !world.quit {
            let input = world.input(Stimulus::Op(Op::Shutdown)).unwrap();
            world.run(&mut pod, input);
        }
        prop_assert!(world.quit && world.inits.is_empty() && !world.pause);
        prop_assert_eq!(world.answered.len() as u64, world.asked);
    }
}
