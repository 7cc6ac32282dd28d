//! Compiled profiles, asked what they would answer: a small interpreter of classic BPF.
#![allow(clippy::cast_possible_truncation)] // the halves of an argument

use serde_json::{Value, json};

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const fn errno(errno: u32) -> u32 {
    0x0005_0000 | errno
}

fn profile(json: Value) -> Result<Program, SeccompError> {
    compile(&serde_json::from_value(json).unwrap())
}

/// What the kernel would do about a call.
fn ask(program: &Program, arch: u32, number: u32, arguments: &[u64]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        8 | 12 => 0,
        _ => {
            let argument = arguments.get(((offset - 16) / 8) as usize).copied().unwrap_or(0);
            if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
        }
    };
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let Instruction { code, jump_true, jump_false, operand } = program.instructions()[at];
        at += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = word(operand),
            0x54 => accumulator &= operand,
            0x05 => at += operand as usize,
            0x15 => branch(accumulator == operand),
            0x25 => branch(accumulator > operand),
            0x35 => branch(accumulator >= operand),
            0x45 => branch(accumulator & operand != 0),
            0x06 => return operand,
            other => panic!("opcode {other:#x}"),
        }
    }
}

fn ask_here(program: &Program, number: libc::c_long, arguments: &[u64]) -> u32 {
    ask(program, X86_64, u32::try_from(number).unwrap(), arguments)
}

#[test]
fn an_allow_list() {
    let program = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "no_such_call", "close_range"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19},
        ],
    }))
    .unwrap();
    assert_eq!(ask_here(&program, libc::SYS_read, &[]), ALLOW);
    assert_eq!(ask_here(&program, libc::SYS_ptrace, &[]), KILL_PROCESS);
    assert_eq!(ask_here(&program, libc::SYS_mount, &[]), errno(19));
    assert_eq!(ask_here(&program, libc::SYS_reboot, &[]), errno(1));
    // read is 3 on i386, and 0x40000000 on x32.
    assert_eq!(ask(&program, I386, 3, &[]), ALLOW);
    assert_eq!(ask(&program, X86_64, 0x4000_0000, &[]), ALLOW);
    assert_eq!(program.flags(), FLAG_SPEC_ALLOW);
}

#[test]
fn newer_calls_than_the_profile_knows_do_not_exist() {
    let json = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}],
    });
    let program = profile(json).unwrap();
    assert_eq!(ask_here(&program, libc::SYS_openat2, &[]), ALLOW);
    assert_eq!(ask_here(&program, libc::SYS_openat2 - 1, &[]), errno(1));
    for newer in [libc::SYS_openat2 + 1, 462, 100_000] {
        assert_eq!(ask_here(&program, newer, &[]), errno(38), "{newer}");
        assert_eq!(ask(&program, I386, u32::try_from(newer).unwrap(), &[]), errno(38));
    }
    // x32 has numbers of its own from 512 on, and none of them is named.
    assert_eq!(ask(&program, X86_64, 0x4000_0000 + 600, &[]), errno(38));
    assert_eq!(ask(&program, X86_64, 0x4000_0000 + 100, &[]), errno(1));
}

#[test]
fn a_default_that_allows_needs_no_stub() {
    let program = profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
    }))
    .unwrap();
    assert_eq!(ask_here(&program, libc::SYS_chmod, &[]), errno(1));
    assert_eq!(ask_here(&program, 462, &[]), ALLOW);
}

#[test]
fn arguments() {
    let rule = |args: Value| {
        profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args}],
        }))
        .unwrap()
    };
    let one = rule(json!([{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]));
    assert_eq!(ask_here(&one, libc::SYS_personality, &[8]), ALLOW);
    assert_eq!(ask_here(&one, libc::SYS_personality, &[9]), errno(1));
    // Two conditions on one argument: either.
    let either = rule(json!([
        {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 0xffff_ffff_u64, "op": "SCMP_CMP_EQ"},
    ]));
    for value in [0, 0xffff_ffff] {
        assert_eq!(ask_here(&either, libc::SYS_personality, &[value]), ALLOW);
    }
    assert_eq!(ask_here(&either, libc::SYS_personality, &[1]), errno(1));
    // On different arguments: both.
    let both = rule(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_GE"},
        {"index": 1, "value": 2, "op": "SCMP_CMP_LT"},
    ]));
    assert_eq!(ask_here(&both, libc::SYS_personality, &[1, 1]), ALLOW);
    assert_eq!(ask_here(&both, libc::SYS_personality, &[1, 2]), errno(1));
    assert_eq!(ask_here(&both, libc::SYS_personality, &[0, 1]), errno(1));
    let masked = rule(json!([{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]));
    assert_eq!(ask_here(&masked, libc::SYS_personality, &[0x11]), ALLOW);
    assert_eq!(ask_here(&masked, libc::SYS_personality, &[0x0002_0000]), errno(1));
}

#[test]
fn a_long_profile_becomes_a_tree_and_stays_right() {
    let names = [
        "read",
        "write",
        "open",
        "close",
        "stat",
        "fstat",
        "lstat",
        "poll",
        "lseek",
        "mmap",
        "mprotect",
        "munmap",
        "brk",
        "ioctl",
        "access",
        "pipe",
        "select",
        "mremap",
        "msync",
        "mincore",
        "madvise",
        "shmget",
        "shmat",
        "shmctl",
        "dup",
        "dup2",
        "pause",
        "nanosleep",
        "getitimer",
        "alarm",
        "getpid",
        "socket",
        "connect",
        "accept",
        "sendto",
        "recvfrom",
        "statx",
        "clone3",
    ];
    let calls: Vec<Value> =
        names.iter().map(|name| json!({"names": [name], "action": "SCMP_ACT_ALLOW"})).collect();
    let program = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": calls})).unwrap();
    for name in names {
        let number = ScmpSyscall::from_name(name).unwrap().as_raw_syscall();
        assert_eq!(ask_here(&program, number.into(), &[]), ALLOW, "{name}");
    }
    assert_eq!(ask_here(&program, libc::SYS_reboot, &[]), errno(1));
}

#[test]
fn flags_and_the_listener() {
    let notify = |more: Value| {
        let mut json = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        profile(json)
    };
    let flags = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "SECCOMP_FILTER_FLAG_TSYNC"
    ]);
    let program =
        notify(json!({"flags": flags, "listenerPath": "/run/l.sock", "listenerMetadata": "m"})).unwrap();
    assert_eq!(program.flags(), FLAG_LOG | FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV);
    let listener = program.listener().unwrap();
    assert_eq!((listener.path.to_str(), listener.metadata.as_deref()), (Some("/run/l.sock"), Some("m")));
    assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
    assert!(matches!(notify(json!({})), Err(SeccompError::NoListener)));
    assert!(matches!(notify(json!({"listenerMetadata": "m"})), Err(SeccompError::MetadataWithoutListener)));
    assert!(matches!(
        notify(json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
        Err(SeccompError::NotifyByDefault)
    ));
    let unheard = profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    }));
    assert_eq!(unheard.unwrap().flags(), 0);
}

#[test]
fn refused_profiles() {
    let rule = |rule: Value| profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}));
    let bad = rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}));
    assert!(matches!(bad, Err(SeccompError::Argument { index: 6, .. })));
    let bad = rule(json!({"names": [""], "action": "SCMP_ACT_ALLOW"}));
    assert!(matches!(bad, Err(SeccompError::EmptyName)));
    let bad = rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000}));
    assert!(matches!(bad, Err(SeccompError::Errno(5000))));
    let bad = rule(json!({"names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY"}));
    assert!(matches!(bad, Err(SeccompError::NotifyOnSend(_))));
}

#[test]
fn the_byte_form_is_checked() {
    let program = profile(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap();
    let bytes = program.to_bytes();
    assert_eq!(Program::from_bytes(&bytes).unwrap(), program);
    for broken in [&bytes[..7], &bytes[..bytes.len() - 1], b"other", &[&bytes[..], b"x"].concat()] {
        assert!(Program::from_bytes(broken).is_err());
    }
}

#[test]
fn an_errno_is_for_actions_that_return_one() {
    let refused = |profile: Result<Program, SeccompError>| profile.unwrap_err().to_string();
    let by_default = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 3}));
    assert!(refused(by_default).contains("errnoRet 3 makes no sense for SCMP_ACT_ALLOW"));
    let rule = |action: &str| {
        profile(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getcwd"], "action": action, "errnoRet": 38}]}))
    };
    assert!(refused(rule("SCMP_ACT_LOG")).contains("SCMP_ACT_LOG"));
    for action in ["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"] {
        rule(action).unwrap();
    }
}

#[test]
fn an_architecture_that_libseccomp_lacks_is_named() {
    let foreign = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_SHEB"]}));
    // Whether it is known is the library's age.
    if let Err(error) = foreign {
        let text = error.to_string();
        assert!(text.contains("SCMP_ARCH_SHEB is not supported by libseccomp 2."), "{text}");
    }
}
