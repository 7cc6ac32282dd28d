//! User, groups, capabilities, no_new_privs and umask of the caller. See capabilities(7), credentials(7).
//!
//! | Step | Why here |
//! |---|---|
//! | bounding set | dropping takes CAP_SETPCAP, which goes with the user |
//! | no_new_privs | needs nothing; before the filter that may depend on it |
//! | groups, gid | take CAP_SETGID, which goes with the user |
//! | uid, with KEEPCAPS | a change away from root would clear the permitted set |
//! | umask | belongs to nobody |
//! | permitted, effective, inheritable | the change of user has cleared the effective set |
//! | ambient | only what is permitted and inheritable by now can be raised |
//! | not dumpable | the change of user has reset it to a sysctl's value |

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{self, CapabilitySet, CapabilitySets, Gid, Uid};

use crate::plan::{self, Capabilities};
use crate::{Failure, Step, capabilities};

/// What a process gets whose plan names no mask, as other runtimes have it.
const DEFAULT_UMASK: u32 = 0o022;

/// Gives the caller the plan's user, groups and capabilities, for good.
///
/// `keep_sys_admin` leaves CAP_SYS_ADMIN permitted and effective beyond the plan, for the load of a seccomp filter right before
/// execve(2), which then takes it away: it is neither in the bounding set nor inheritable nor ambient unless the plan asks for it.
pub(crate) fn credentials(process: &plan::Process, keep_sys_admin: bool) -> Result<(), Failure> {
    let known = known_capabilities().map_err(|errno| failure(errno, "read the bounding set"))?;
    reduce_bounding_set(process.capabilities.bounding, known)?;
    if process.no_new_privileges {
        thread::set_no_new_privs(true).map_err(|errno| failure(errno, "set no_new_privs"))?;
    }
    thread::set_keep_capabilities(true).map_err(|errno| failure(errno, "keep capabilities"))?;
    groups(&process.additional_gids)?;
    let (gid, uid) = (Gid::from_raw(process.gid), Uid::from_raw(process.uid));
    thread::set_thread_res_gid(gid, gid, gid).map_err(|errno| id_failure(errno, "gid", process.gid))?;
    thread::set_thread_res_uid(uid, uid, uid).map_err(|errno| id_failure(errno, "uid", process.uid))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK)));
    capability_sets(process.capabilities, known, keep_sys_admin)?;
    thread::set_keep_capabilities(false).map_err(|errno| failure(errno, "stop keeping capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| failure(errno, "stay undumpable"))
}

/// The supplementary groups. A user namespace without the privilege over its groups forbids to change them at all, which is in
/// order as long as none are asked for.
pub(super) fn groups(wanted: &[u32]) -> Result<(), Failure> {
    let wanted: Vec<Gid> = wanted.iter().copied().map(Gid::from_raw).collect();
    match thread::set_thread_groups(&wanted) {
        Err(Errno::PERM) if wanted.is_empty() && may_change_groups_in_principle()? => {
            tracing::debug!("the user namespace does not let its groups be changed");
            Ok(())
        }
        set => set.map_err(|errno| {
            failure(errno, if errno == Errno::INVAL { "a group is not mapped" } else { "set the groups" })
        }),
    }
}

/// The privilege is there or the groups are none already: so it is the namespace (`/proc/PID/setgroups`) that said no, not a caller
/// who would smuggle his groups in.
fn may_change_groups_in_principle() -> Result<bool, Failure> {
    let none = rustix::process::getgroups().map_err(|errno| failure(errno, "read the groups"))?.is_empty();
    let sets = thread::capabilities(None).map_err(|errno| failure(errno, "read the capabilities"))?;
    Ok(none || sets.effective.contains(CapabilitySet::SETGID))
}

/// The capabilities this kernel knows, as bits: those beyond its last cannot be set.
fn known_capabilities() -> Result<u64, Errno> {
    let mut known = 0;
    for number in 0..u64::BITS {
        match thread::capability_is_in_bounding_set(one(number)) {
            Ok(_) => known |= 1 << number,
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(known)
}

fn reduce_bounding_set(wanted: u64, known: u64) -> Result<(), Failure> {
    for number in bits(known & !wanted) {
        let dropped = match thread::capability_is_in_bounding_set(one(number)) {
            Ok(true) => thread::remove_capability_from_bounding_set(one(number)),
            read => read.map(drop),
        };
        dropped.map_err(|errno| failure(errno, &format!("drop {} from the bounding set", name(number))))?;
    }
    Ok(())
}

fn capability_sets(wanted: Capabilities, known: u64, keep_sys_admin: bool) -> Result<(), Failure> {
    let held = thread::capabilities(None).map_err(|errno| failure(errno, "read the capabilities"))?;
    let (held, inherited) = (held.permitted.bits(), held.inheritable.bits());
    let sets = resolve(wanted, known, held, inherited);
    let missing = (wanted.permitted | wanted.effective) & known & !held;
    if missing != 0 {
        let missing = capabilities::names(missing).join(",");
        tracing::warn!(missing, "capabilities that the runtime does not have itself");
    }
    let extra = if keep_sys_admin { CapabilitySet::SYS_ADMIN.bits() & held } else { 0 };
    let new = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective | extra),
        permitted: CapabilitySet::from_bits_retain(sets.permitted | extra),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    thread::set_capabilities(None, new).map_err(|errno| failure(errno, "unable to apply caps"))?;
    ambient(sets.ambient, known)
}

/// The ambient set. One that cannot be raised is left out with a warning: the process then has less than it was to have, never more.
fn ambient(wanted: u64, known: u64) -> Result<(), Failure> {
    if known == 0 {
        return Ok(());
    }
    thread::clear_ambient_capability_set()
        .map_err(|errno| failure(errno, "clear the ambient capabilities"))?;
    for number in bits(wanted & known) {
        match thread::configure_capability_in_ambient_set(one(number), true) {
            Err(errno @ Errno::PERM) => {
                let why = crate::failure::errno_text(errno.raw_os_error());
                tracing::warn!("can't raise ambient capability {}: {why}", name(number));
            }
            raised => raised.map_err(|errno| failure(errno, &format!("raise ambient {}", name(number))))?,
        }
    }
    Ok(())
}

/// What of the plan's sets can be had: nothing this kernel does not know, and nothing the caller does not hold.
fn resolve(wanted: Capabilities, known: u64, held: u64, inherited: u64) -> Capabilities {
    let permitted = wanted.permitted & known & held;
    Capabilities {
        bounding: wanted.bounding & known,
        // Beyond the permitted set it stays as written where it could be had, for the kernel to refuse.
        effective: wanted.effective & known & held,
        inheritable: wanted.inheritable & known & (held | inherited),
        permitted,
        ambient: wanted.ambient & known,
    }
}

fn one(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

fn bits(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |number| set & (1 << number) != 0)
}

fn name(number: u32) -> String {
    capabilities::name(number).map_or_else(|| format!("capability {number}"), str::to_owned)
}

fn failure(errno: Errno, what: &str) -> Failure {
    Failure::os(Step::Credentials, errno).with_message(what)
}

fn id_failure(errno: Errno, kind: &str, id: u32) -> Failure {
    match errno {
        Errno::INVAL => failure(errno, &format!("{kind} {id} is not mapped in the user namespace")),
        errno => failure(errno, &format!("set {kind} {id}")),
    }
}
