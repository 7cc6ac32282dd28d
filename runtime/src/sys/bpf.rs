//! bpf(2), as far as device programs of a cgroup need it (linux/bpf.h).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::cgroup::ebpf::Instruction;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The kernel attaches no more than this many programs of one type to a cgroup.
const MOST_PROGRAMS: usize = 64;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`; the names are the kernel's.
#[allow(clippy::struct_field_names)]
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// For `BPF_PROG_QUERY`; the names are the kernel's.
#[allow(clippy::struct_field_names)]
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// For `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
pub(crate) fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut attr = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        ..Load::default()
    };
    attr.prog_name[..7].copy_from_slice(b"devices");
    // SAFETY: `attr` is the kernel's layout; `insns` and `license` point to memory that outlives the call, of the
    // length given and NUL-terminated respectively. The kernel only reads them.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr)? };
    owned(fd)
}

/// Attaches a program to a cgroup beside those that others attached, or in place of `replaced`.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = Attach {
        target_fd: raw(&cgroup)?,
        attach_bpf_fd: raw(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    if let Some(replaced) = replaced {
        attr.attach_flags |= BPF_F_REPLACE;
        attr.replace_bpf_fd = raw(&replaced)?;
    }
    // SAFETY: `attr` is the kernel's layout and holds descriptors and numbers only.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Takes a program off a cgroup.
pub(crate) fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = Attach {
        target_fd: raw(&cgroup)?,
        attach_bpf_fd: raw(&program)?,
        attach_type: BPF_CGROUP_DEVICE,
        ..Attach::default()
    };
    // SAFETY: as in `attach_device_program`.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// The device programs attached to this very cgroup. One that an LSM keeps from us is left out.
pub(crate) fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut attr = Query {
        target_fd: raw(&cgroup)?,
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().addr() as u64,
        prog_cnt: 64,
        ..Query::default()
    };
    // SAFETY: `attr` is the kernel's layout; `prog_ids` points to `prog_cnt` numbers that the kernel may write and
    // that outlive the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    let count = usize::try_from(attr.prog_cnt).map_err(|_| Errno::OVERFLOW)?;
    let mut programs = Vec::with_capacity(count);
    for prog_id in ids.into_iter().take(count) {
        match by_id(prog_id) {
            Ok(program) => programs.push(program),
            Err(Errno::PERM | Errno::ACCESS | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

fn by_id(prog_id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = ById { prog_id, ..ById::default() };
    // SAFETY: `attr` is the kernel's layout and holds numbers only.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr)? };
    owned(fd)
}

/// bpf(2).
///
/// # Safety
///
/// `attr` must be the command's part of `union bpf_attr`, and every address in it valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<RawFd, Errno> {
    // SAFETY: the caller vouches for what `attr` holds; its size is passed, and the kernel reads and writes no more.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    RawFd::try_from(result).map_err(|_| Errno::OVERFLOW)
}

fn owned(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the kernel has just made the descriptor for us (close-on-exec, as bpf(2) always does), and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &impl AsRawFd) -> Result<u32, Errno> {
    u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)
}
