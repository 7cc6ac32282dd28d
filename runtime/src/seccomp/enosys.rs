//! ENOSYS for system calls that are newer than a profile.
//!
//! A profile that denies by default with EPERM also denies what did not exist when it was written, and a libc that tries a new call
//! takes EPERM for the answer instead of falling back. So, for each architecture, numbers above the highest one that
//! the profile names answer ENOSYS before the profile is asked (runc does the same since 1.0-rc93):
//!
//! ```text
//! for each architecture:
//!     A = arch;  if A != architecture: next
//!     A = nr
//!     (x86_64 only, where bit 30 of the number tells x32 from it) if the bit is not as it should be: next
//!     if A > highest: return ENOSYS
//! the profile's own program
//! ```
//!
//! Numbers are not given in order of age everywhere, so this is a good guess, as runc's is. The multiplexed `setup` of s390 is not treated.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::LinuxSyscall;

use super::Instruction;

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const JUMP_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const JUMP_SET: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offset of `nr` in `struct seccomp_data`.
const NR: u32 = 0;
/// Offset of `arch` there.
const ARCH: u32 = 4;
/// Set in the numbers of x32.
const X32_BIT: u32 = 0x4000_0000;
/// `AUDIT_ARCH_X86_64`, which x32 shares.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// `SECCOMP_RET_ERRNO | ENOSYS`.
const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS.unsigned_abs();

/// The highest number a profile names on one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// As `struct seccomp_data` has it (`AUDIT_ARCH_*`).
    audit_arch: u32,
    /// Whether numbers carry [`X32_BIT`]. None: the architecture has no such twin.
    x32: Option<bool>,
    number: u32,
}

/// Looks every name up on every architecture. One on which the profile names nothing is left to the profile.
pub fn newest_calls(architectures: &[ScmpArch], calls: &[LinuxSyscall]) -> Vec<Newest> {
    let newest = |arch: &ScmpArch| {
        let (audit_arch, x32) = audit_arch(*arch)?;
        let names = calls.iter().flat_map(LinuxSyscall::names);
        let number = names
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, *arch).ok())
            // Calls that an architecture does not have get negative numbers.
            .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
            .max()?;
        Some(Newest { audit_arch, x32, number })
    };
    architectures.iter().filter_map(newest).collect()
}

/// The instructions to put before the profile's.
pub fn stub(newest: &[Newest]) -> Vec<Instruction> {
    let step = |code, operand, jump_true, jump_false| Instruction { code, jump_true, jump_false, operand };
    let mut out = Vec::new();
    for Newest { audit_arch, x32, number } in newest {
        let tail = if x32.is_some() { 4 } else { 3 };
        out.push(step(LOAD, ARCH, 0, 0));
        out.push(step(JUMP_EQUAL, *audit_arch, 0, tail));
        out.push(step(LOAD, NR, 0, 0));
        match x32 {
            Some(true) => out.push(step(JUMP_SET, X32_BIT, 0, 2)),
            Some(false) => out.push(step(JUMP_SET, X32_BIT, 2, 0)),
            None => {}
        }
        out.push(step(JUMP_GREATER, *number, 0, 1));
        out.push(step(RETURN, RETURN_ENOSYS, 0, 0));
    }
    out
}

/// libseccomp's numbers for architectures are linux/audit.h's, but for x32. None: one that this build cannot tell.
fn audit_arch(arch: ScmpArch) -> Option<(u32, Option<bool>)> {
    Some(match arch {
        ScmpArch::X8664 => (AUDIT_ARCH_X86_64, Some(false)),
        ScmpArch::X32 => (AUDIT_ARCH_X86_64, Some(true)),
        ScmpArch::X86 => (0x4000_0003, None),
        ScmpArch::Arm => (0x4000_0028, None),
        ScmpArch::Aarch64 => (0xc000_00b7, None),
        ScmpArch::Riscv64 => (0xc000_00f3, None),
        ScmpArch::Loongarch64 => (0xc000_0102, None),
        ScmpArch::Mips => (0x0000_0008, None),
        ScmpArch::Mips64 => (0x8000_0008, None),
        ScmpArch::Mips64N32 => (0xa000_0008, None),
        ScmpArch::Mipsel => (0x4000_0008, None),
        ScmpArch::Mipsel64 => (0xc000_0008, None),
        ScmpArch::Mipsel64N32 => (0xe000_0008, None),
        ScmpArch::Ppc => (0x0000_0014, None),
        ScmpArch::Ppc64 => (0x8000_0015, None),
        ScmpArch::Ppc64Le => (0xc000_0015, None),
        ScmpArch::S390 => (0x0000_0016, None),
        ScmpArch::S390X => (0x8000_0016, None),
        _ => return None,
    })
}
