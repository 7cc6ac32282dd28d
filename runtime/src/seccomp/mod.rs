//! `linux.seccomp` of the runtime spec, compiled to the program that the kernel runs on every system call (seccomp(2)).
//!
//! Compiling needs memory, libseccomp and a millisecond or so; it is done once, by the daemon or by `wright`. The [`Program`]
//! travels as bytes in a memfd, and the container's init, as its last act before execve(2), only hands it to the kernel
//! ([`load`]): nothing is allocated and nothing else is called there.
//!
//! As with runc, names that libseccomp does not know are left out, rules that say what the default says are too, two
//! conditions on one argument mean "either", and system calls that are newer than everything the profile names fail with ENOSYS
//! ([`enosys`]), so that a libc falls back to the older one instead of taking EPERM for an answer.

pub(crate) mod agent;
pub mod enosys;

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use libseccomp::error::SeccompError as LibraryError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `SECCOMP_FILTER_FLAG_LOG`.
const FLAG_LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// A system call has no more arguments than these.
const MOST_ARGUMENTS: usize = 6;
/// `BPF_MAXINSNS`: the kernel takes no longer program.
const MOST_INSTRUCTIONS: usize = 4096;
/// Beyond this many rules a binary tree beats a list; libseccomp's level 2. (runc's bound, for 2.5's four calls per leaf.)
const RULES_FOR_A_TREE: usize = 32;

/// Why a profile could not be compiled.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The call that hands the listener over cannot itself wait for the listener.
    #[error("SCMP_ACT_NOTIFY cannot be used for the {0} syscall")]
    NotifyOnSend(String),
    /// As above, for every call.
    #[error("SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyByDefault,
    /// Somebody has to listen.
    #[error("linux.seccomp.listenerPath is not set, and SCMP_ACT_NOTIFY needs it")]
    NoListener,
    /// There is nobody to give it to.
    #[error("linux.seccomp.listenerMetadata needs linux.seccomp.listenerPath")]
    MetadataWithoutListener,
    /// An empty entry of `names`.
    #[error("linux.seccomp.syscalls: empty string is not a valid syscall")]
    EmptyName,
    /// An argument that no system call has.
    #[error("linux.seccomp.syscalls: {name}: argument {index} (0 to 5 exist)")]
    Argument {
        /// The system call.
        name: String,
        /// The index as given.
        index: usize,
    },
    /// An errno that the kernel would cut off.
    #[error("linux.seccomp: errnoRet {0} is above 4095")]
    Errno(u32),
    /// An errno for an action that returns none.
    #[error("linux.seccomp: errnoRet {errno} makes no sense for {action}, which returns no errno")]
    ErrnoForNothing {
        /// The errno.
        errno: u32,
        /// The action, as the profile names it.
        action: String,
    },
    /// An architecture that libseccomp has none for, or refuses beside the others.
    #[error("linux.seccomp.architectures: {name} is not supported by libseccomp {}", library_version())]
    Architecture {
        /// As the profile names it.
        name: String,
        /// Why.
        #[source]
        source: LibraryError,
    },
    /// A rule that libseccomp refuses.
    #[error("linux.seccomp.syscalls: {0}")]
    Rule(String, #[source] LibraryError),
    /// A step of libseccomp's that does not depend on a single rule.
    #[error("seccomp: {0}")]
    Library(&'static str, #[source] LibraryError),
    /// The memory file that libseccomp writes to.
    #[error("seccomp: exporting the program")]
    Export(#[source] std::io::Error),
    /// The profile is too large for the kernel.
    #[error("seccomp: the program has {0} instructions, the kernel takes 4096")]
    TooLong(usize),
    /// Bytes that no [`Program::to_bytes`] made.
    #[error("seccomp: not a compiled program: {0}")]
    Malformed(&'static str),
}

/// One classic BPF instruction, as `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions skipped when a comparison is true.
    pub jump_true: u8,
    /// Instructions skipped when it is false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: u32,
    listener: Option<Listener>,
}

/// Who decides the calls with `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The unix socket to send the descriptor to.
    pub path: PathBuf,
    /// Sent along, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// Head of the byte form; the digit is its version.
const MAGIC: [u8; 8] = *b"pwscmp1\n";

impl Program {
    /// Who is to get the descriptor that [`load`] returns. None: there will be none.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// The program for the kernel.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Flags for seccomp(2).
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// For a memfd or a file: head, flags, number of instructions, these, and the listener as JSON. In this machine's byte order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let listener = self.listener.as_ref().map(serde_json::to_vec);
        let listener = listener.transpose().ok().flatten().unwrap_or_default();
        let mut out = Vec::with_capacity(16 + 8 * self.instructions.len() + listener.len());
        out.extend(MAGIC);
        out.extend(self.flags.to_ne_bytes());
        out.extend(u32::try_from(self.instructions.len()).unwrap_or(u32::MAX).to_ne_bytes());
        for Instruction { code, jump_true, jump_false, operand } in &self.instructions {
            out.extend(code.to_ne_bytes());
            out.extend([*jump_true, *jump_false]);
            out.extend(operand.to_ne_bytes());
        }
        out.extend(listener);
        out
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SeccompError> {
        let short = || SeccompError::Malformed("it ends too early");
        let rest = bytes.strip_prefix(&MAGIC).ok_or(SeccompError::Malformed("its head is another"))?;
        let (flags, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (count, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let count = usize::try_from(u32::from_ne_bytes(*count)).unwrap_or(usize::MAX);
        if count == 0 || count > MOST_INSTRUCTIONS {
            return Err(SeccompError::Malformed("its length is impossible"));
        }
        let (code, listener) = rest.split_at_checked(8 * count).ok_or_else(short)?;
        let listener = match listener {
            [] => None,
            json => Some(
                serde_json::from_slice(json)
                    .map_err(|_| SeccompError::Malformed("its listener is not JSON"))?,
            ),
        };
        Ok(Self { instructions: instructions(code), flags: u32::from_ne_bytes(*flags), listener })
    }
}

/// Puts the calling thread under the filter, for ever; its children and what it executes inherit it. Needs `no_new_privs` or
/// `CAP_SYS_ADMIN`. Returns the notification descriptor for [`Program::listener`]. Allocates nothing.
pub fn load(program: &Program) -> Result<Option<OwnedFd>, Errno> {
    crate::sys::seccomp::set_filter(
        &program.instructions,
        program.flags,
        program.flags & FLAG_NEW_LISTENER != 0,
    )
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let listener = listener(profile, calls)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let library = SeccompError::Library;
    let mut filter = ScmpFilterContext::new(default).map_err(|error| library("making a filter", error))?;
    let mut architectures = vec![ScmpArch::native()];
    for given in profile.architectures().iter().flatten() {
        let arch = architecture(*given);
        filter
            .add_arch(arch)
            .map_err(|source| SeccompError::Architecture { name: as_written(given), source })?;
        if arch != ScmpArch::Native && !architectures.contains(&arch) {
            architectures.push(arch);
        }
    }
    if calls.len() > RULES_FOR_A_TREE {
        // libseccomp before 2.5 has lists only: slower, and as right.
        let _ = filter.set_ctl_optimize(2);
    }
    for call in calls {
        add_call(&mut filter, call, default)?;
    }
    let mut instructions = match profile.default_action() {
        // What such a default lets through answers ENOSYS by itself.
        LinuxSeccompAction::ScmpActAllow
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActTrace => Vec::new(),
        LinuxSeccompAction::ScmpActErrno if default == ScmpAction::Errno(libc::ENOSYS) => Vec::new(),
        _ => enosys::stub(&enosys::newest_calls(&architectures, calls)),
    };
    instructions.extend(export(&filter)?);
    if instructions.len() > MOST_INSTRUCTIONS {
        return Err(SeccompError::TooLong(instructions.len()));
    }
    let flags = flags(profile, listener.is_some());
    Ok(Program { instructions, flags, listener })
}

/// Checks what the spec says about listening. Some only if some rule notifies.
fn listener(profile: &LinuxSeccomp, calls: &[LinuxSyscall]) -> Result<Option<Listener>, SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::NotifyByDefault);
    }
    let mut notifies = false;
    for call in calls.iter().filter(|call| call.action() == LinuxSeccompAction::ScmpActNotify) {
        notifies = true;
        // init sends the descriptor from under the filter: `sendmsg`; runc's `write` is refused too, for profiles are tested with it.
        if let Some(name) = call.names().iter().find(|name| matches!(name.as_str(), "write" | "sendmsg")) {
            return Err(SeccompError::NotifyOnSend(name.clone()));
        }
    }
    match (notifies, profile.listener_path(), profile.listener_metadata()) {
        (_, None, Some(_)) => Err(SeccompError::MetadataWithoutListener),
        (true, None, None) => Err(SeccompError::NoListener),
        (true, Some(path), metadata) => Ok(Some(Listener { path: path.clone(), metadata: metadata.clone() })),
        (false, _, _) => Ok(None),
    }
}

/// Absent flags mean `SPEC_ALLOW`, as in runc: Spectre mitigations of the kernel's that slow every program are not what a
/// container profile is about. TSYNC is meaningless here: the filter is loaded by one thread, right before it executes.
fn flags(profile: &LinuxSeccomp, listens: bool) -> u32 {
    let given = profile.flags().as_deref().unwrap_or(&[LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow]);
    let mut flags = if listens { FLAG_NEW_LISTENER } else { 0 };
    for flag in given {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // The kernel refuses it where nobody listens.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => FLAG_WAIT_KILLABLE_RECV,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv
            | LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        };
    }
    flags
}

fn add_call(
    filter: &mut ScmpFilterContext,
    call: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), SeccompError> {
    let action = action(call.action(), call.errno_ret())?;
    if call.names().iter().any(String::is_empty) {
        return Err(SeccompError::EmptyName);
    }
    if action == default {
        return Ok(());
    }
    for name in call.names() {
        let Ok(number) = ScmpSyscall::from_name(name) else {
            tracing::debug!(name, "seccomp: system call unknown to libseccomp, rule left out");
            continue;
        };
        let refused = |error| SeccompError::Rule(name.clone(), error);
        let conditions = call
            .args()
            .iter()
            .flatten()
            .map(|argument| condition(name, argument))
            .collect::<Result<Vec<_>, _>>()?;
        if conditions.is_empty() {
            filter.add_rule(action, number).map_err(refused)?;
        } else if repeats(call.args().as_deref().unwrap_or_default()) {
            for one in conditions {
                filter.add_rule_conditional(action, number, &[one]).map_err(refused)?;
            }
        } else {
            filter.add_rule_conditional(action, number, &conditions).map_err(refused)?;
        }
    }
    Ok(())
}

/// Whether some argument has two conditions.
fn repeats(arguments: &[LinuxSeccompArg]) -> bool {
    let mut seen = [false; MOST_ARGUMENTS];
    arguments.iter().any(|argument| std::mem::replace(&mut seen[argument.index()], true))
}

/// For `MASKED_EQ` the spec's `value` is the mask and `valueTwo` what has to be left of the argument.
fn condition(name: &str, argument: &LinuxSeccompArg) -> Result<ScmpArgCompare, SeccompError> {
    let index = argument.index();
    let Some(number) = u32::try_from(index).ok().filter(|_| index < MOST_ARGUMENTS) else {
        return Err(SeccompError::Argument { name: name.to_owned(), index });
    };
    let value = argument.value();
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or(0))
        }
    };
    Ok(ScmpArgCompare::new(number, operator, datum))
}

/// The version of the libseccomp that compiles profiles, as `2.5.4`.
pub fn library_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}

/// A word of a profile's as it is written there.
fn as_written(word: &impl Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// EPERM where the profile names no errno. The runtime-spec wants an errno refused where the action has no use for it.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let takes_errno = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    if let Some(errno) = errno.filter(|_| !takes_errno) {
        return Err(SeccompError::ErrnoForNothing { errno, action: as_written(&action) });
    }
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    let checked =
        || u16::try_from(errno).ok().filter(|errno| *errno < 4096).ok_or(SeccompError::Errno(errno));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(checked()?.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).map_err(|_| SeccompError::Errno(errno))?)
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// libseccomp before 2.6 writes to a descriptor only.
fn export(filter: &ScmpFilterContext) -> Result<Vec<Instruction>, SeccompError> {
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)
        .map_err(|errno| SeccompError::Export(errno.into()))?;
    let mut file = std::fs::File::from(memory);
    filter.export_bpf(&file).map_err(|error| SeccompError::Library("exporting the program", error))?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(SeccompError::Export)?;
    Ok(instructions(&bytes))
}

fn instructions(bytes: &[u8]) -> Vec<Instruction> {
    let (whole, _) = bytes.as_chunks::<8>();
    whole
        .iter()
        .map(|[c0, c1, jump_true, jump_false, k0, k1, k2, k3]| Instruction {
            code: u16::from_ne_bytes([*c0, *c1]),
            jump_true: *jump_true,
            jump_false: *jump_false,
            operand: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
        })
        .collect()
}

#[cfg(test)]
mod tests;
