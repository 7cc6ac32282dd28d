//! Device rules for cgroup v2: a generated eBPF program that the kernel runs on every access
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`; its context is `struct bpf_cgroup_dev_ctx` of linux/bpf.h).
//!
//! The program walks the rules from the last to the first. Of the accesses asked for (r3), an allowing rule that
//! matches takes its own out of what is still to be decided, and the last one taken means yes; a denying rule that matches and still
//! finds one of its own means no; no rule left means no. So each access is decided by the last rule that speaks of it.
//!
//! ```text
//! r2 = kind  r3 = accesses asked for  r4 = major  r5 = minor
//! for each rule, last first:
//!     if r2 != kind, r4 != major or r5 != minor (each unless it is a wildcard): next
//!     allow: r3 &= ~access; if r3 != 0: next; return 1
//!     deny:  if !(r3 & access): next; return 0
//! return 0
//! ```

use std::os::fd::AsFd;

use crate::Failure;
use crate::sys::bpf;

use super::devices::{Access, Kind, Rule};
use super::files::Dir;

/// One eBPF instruction as the kernel reads it: opcode, registers, offset, immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `dst = *(u32 *)(src + offset)`.
const LOAD_WORD: u8 = 0x61;
/// `dst = imm`, 64 bits.
const MOVE: u8 = 0xb7;
/// `dst = src`, 64 bits.
const MOVE_REGISTER: u8 = 0xbf;
/// `dst &= imm`.
const AND: u8 = 0x57;
/// `dst >>= imm`.
const SHIFT_RIGHT: u8 = 0x77;
/// Jump by offset.
const JUMP: u8 = 0x05;
/// Jump if `dst != imm`.
const JUMP_UNLESS_EQUAL: u8 = 0x55;
/// Jump if `dst & imm`.
const JUMP_IF_SET: u8 = 0x45;
/// Return r0.
const EXIT: u8 = 0x95;

const KIND: u8 = 2;
const ASKED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

impl Instruction {
    fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    fn on(code: u8, register: u8, immediate: i32) -> Self {
        Self::new(code, register, 0, 0, immediate)
    }
}

/// The program for a rule list. Pure.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut out = vec![
        Instruction::new(LOAD_WORD, KIND, 1, 0, 0),
        Instruction::new(MOVE_REGISTER, ASKED, KIND, 0, 0),
        Instruction::on(SHIFT_RIGHT, ASKED, 16),
        Instruction::on(AND, KIND, 0xffff),
        Instruction::new(LOAD_WORD, MAJOR, 1, 4, 0),
        Instruction::new(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.kind == Kind::All {
            // It decides everything: what came before it can never be reached, and the verifier refuses such code.
            answer(&mut out, rule.allow);
            return out;
        }
        emit(&mut out, rule);
    }
    answer(&mut out, false);
    out
}

fn emit(out: &mut Vec<Instruction>, rule: &Rule) {
    // Jumps to the next rule; their offsets are known at its end.
    let mut to_next = Vec::new();
    let kind = if rule.kind == Kind::Block { 1 } else { 2 };
    for (register, wanted) in [(KIND, Some(kind)), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(wanted) = wanted {
            to_next.push(out.len());
            out.push(Instruction::on(JUMP_UNLESS_EQUAL, register, wanted.cast_signed()));
        }
    }
    let access = i32::from(rule.access.bits());
    match (rule.allow, rule.access == Access::ALL) {
        (_, true) => {}
        (true, false) => {
            out.push(Instruction::on(AND, ASKED, !access));
            to_next.push(out.len());
            out.push(Instruction::on(JUMP_UNLESS_EQUAL, ASKED, 0));
        }
        (false, false) => {
            out.push(Instruction::new(JUMP_IF_SET, ASKED, 0, 1, access));
            to_next.push(out.len());
            out.push(Instruction::on(JUMP, 0, 0));
        }
    }
    answer(out, rule.allow);
    for at in to_next {
        let distance = out.len() - at - 1;
        out[at].offset = i16::try_from(distance).expect("a rule is ten instructions at most");
    }
}

fn answer(out: &mut Vec<Instruction>, allow: bool) {
    out.push(Instruction::on(MOVE, 0, i32::from(allow)));
    out.push(Instruction::on(EXIT, 0, 0));
}

/// Loads the rules' program and attaches it to a v2 cgroup. A program that was there is replaced in one step, so that at no time
/// more is allowed than before or after.
pub(crate) fn attach(dir: &Dir, rules: &[Rule]) -> Result<(), Failure> {
    let failed = |errno, what: &str| dir.failed(errno, "").with_message(what.to_owned());
    let program = program(rules);
    let loaded =
        bpf::load_device_program(&program).map_err(|errno| failed(errno, "loading the device program"))?;
    // Where programs cannot be listed or opened (no CAP_SYS_ADMIN), the new one is added: all have to agree, so it can only deny more.
    let old = bpf::attached_device_programs(dir.as_fd()).unwrap_or_default();
    let replaced = match old.as_slice() {
        [one] => bpf::attach_device_program(dir.as_fd(), &loaded, Some(one.as_fd())).is_ok(),
        _ => false,
    };
    if replaced {
        return Ok(());
    }
    bpf::attach_device_program(dir.as_fd(), &loaded, None)
        .map_err(|errno| failed(errno, "attaching the device program"))?;
    // The new one is in force: the old ones may go.
    for one in &old {
        bpf::detach_device_program(dir.as_fd(), one.as_fd())
            .map_err(|errno| failed(errno, "detaching an earlier device program"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One access that the kernel asks about.
    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: Kind,
        access: u8,
        major: u32,
        minor: u32,
    }

    /// What the list means, said another way: each access by itself, first to last.
    fn meant(rules: &[Rule], request: Request) -> bool {
        [1, 2, 4].into_iter().filter(|bit| request.access & bit != 0).all(|bit| {
            let mut allowed = false;
            for rule in rules {
                let all = rule.kind == Kind::All;
                let device = rule.kind == request.kind
                    && rule.major.is_none_or(|major| major == request.major)
                    && rule.minor.is_none_or(|minor| minor == request.minor);
                if all || (device && rule.access.bits() & bit != 0) {
                    allowed = rule.allow;
                }
            }
            allowed
        })
    }

    /// The few instructions in use, interpreted.
    fn run(program: &[Instruction], request: Request) -> bool {
        let kind = if request.kind == Kind::Block { 1 } else { 2 };
        let context = [u32::from(request.access) << 16 | kind, request.major, request.minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let wide = i64::from(immediate).cast_unsigned();
            let mut jump = false;
            match code {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4].into(),
                MOVE => registers[to] = wide,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= wide,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP => jump = true,
                JUMP_UNLESS_EQUAL => jump = registers[to] != wide,
                JUMP_IF_SET => jump = registers[to] & wide != 0,
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
            at += 1 + if jump { usize::try_from(offset).unwrap() } else { 0 };
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || prop_oneof![Just(None), (0_u32..3).prop_map(Some)];
        let kind = prop_oneof![1 => Just(Kind::All), 5 => Just(Kind::Block), 5 => Just(Kind::Char)];
        let access = prop_oneof!["[rwm]", "r[wm]", Just("rwm".to_owned())];
        (any::<bool>(), kind, number(), number(), access).prop_map(|(allow, kind, major, minor, access)| {
            Rule { allow, kind, major, minor, access: Access::parse(&access).unwrap() }
        })
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_list_means(rules in prop::collection::vec(rule(), 0..12)) {
            let program = program(&rules);
            for kind in [Kind::Block, Kind::Char] {
                for access in 1..8 {
                    for (major, minor) in [(0, 0), (0, 2), (1, 1), (2, 0), (9, 9)] {
                        let request = Request { kind, access, major, minor };
                        prop_assert_eq!(run(&program, request), meant(&rules, request), "{:?}", request);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_generated_that_cannot_be_reached() {
        let rule = |allow, kind| Rule { allow, kind, major: None, minor: None, access: Access::ALL };
        let program = program(&[rule(true, Kind::Char), rule(false, Kind::All), rule(true, Kind::Block)]);
        // Head, one rule of a jump and an answer, and the answer of the denial of all.
        assert_eq!(program.len(), 6 + 3 + 2);
    }

    #[test]
    fn an_instruction_is_eight_bytes_as_the_kernel_has_it() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(Instruction::new(LOAD_WORD, KIND, 1, 4, 0).registers, 0x12);
    }
}
