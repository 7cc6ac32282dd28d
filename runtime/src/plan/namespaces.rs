//! Which namespaces are made, which are joined, and what their kinds need: id maps, time offsets.
//! See the runtime-spec's `config-linux.md#namespaces` and namespaces(7).

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::error::{PlanError, absolute};
use super::{IdMap, NamespaceKind, Namespaces};

/// The most lines the kernel takes in one id map. See user_namespaces(7).
const MAX_ID_MAPS: usize = 340;

impl Namespaces {
    /// Whether the container has a namespace of this kind apart from the caller's, new or joined.
    pub fn contains(&self, kind: NamespaceKind) -> bool {
        self.is_new(kind) || self.joined(kind).is_some()
    }

    /// Whether one of this kind is made.
    pub fn is_new(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    /// Who the root of the container's user namespace is outside of it, uid and gid, as the maps say. None: the container has no
    /// user namespace, or one that maps no root.
    pub fn root_outside(&self) -> Option<(u32, u32)> {
        let outside = |maps: &[IdMap]| maps.iter().find(|map| map.container_id == 0).map(|map| map.host_id);
        if !self.contains(NamespaceKind::User) {
            return None;
        }
        outside(&self.uid_maps).zip(outside(&self.gid_maps))
    }

    /// The path of the one that is joined.
    pub fn joined(&self, kind: NamespaceKind) -> Option<&PathBuf> {
        self.join.iter().find(|(joined, _)| *joined == kind).map(|(_, path)| path)
    }
}

impl From<LinuxNamespaceType> for NamespaceKind {
    fn from(kind: LinuxNamespaceType) -> Self {
        match kind {
            LinuxNamespaceType::Mount => Self::Mount,
            LinuxNamespaceType::Cgroup => Self::Cgroup,
            LinuxNamespaceType::Uts => Self::Uts,
            LinuxNamespaceType::Ipc => Self::Ipc,
            LinuxNamespaceType::User => Self::User,
            LinuxNamespaceType::Pid => Self::Pid,
            LinuxNamespaceType::Network => Self::Network,
            LinuxNamespaceType::Time => Self::Time,
        }
    }
}

/// The namespaces of a spec. What is deprecated but harmless is told in `warnings`.
pub(super) fn from_spec(linux: Option<&Linux>, warnings: &mut Vec<String>) -> Result<Namespaces, PlanError> {
    let Some(linux) = linux else { return Ok(Namespaces::default()) };
    let mut namespaces = Namespaces::default();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let kind = NamespaceKind::from(namespace.typ());
        if namespaces.contains(kind) {
            let field = format!("linux.namespaces[{index}].type");
            return Err(PlanError::invalid(field, format!("duplicated ns {:?}", namespace.typ())));
        }
        match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() => {
                absolute(|| format!("linux.namespaces[{index}].path"), path)?;
                namespaces.join.push((kind, path.clone()));
            }
            _ => namespaces.new.push(kind),
        }
    }
    namespaces.new.sort_unstable();
    namespaces.join.sort_unstable();
    user_maps(linux, &mut namespaces, warnings)?;
    time_offsets(linux, &mut namespaces)?;
    Ok(namespaces)
}

fn user_maps(
    linux: &Linux,
    namespaces: &mut Namespaces,
    warnings: &mut Vec<String>,
) -> Result<(), PlanError> {
    let uid_maps = id_maps("linux.uidMappings", linux.uid_mappings().as_deref())?;
    let gid_maps = id_maps("linux.gidMappings", linux.gid_mappings().as_deref())?;
    let mapped = !uid_maps.is_empty() || !gid_maps.is_empty();
    if namespaces.is_new(NamespaceKind::User) {
        for (field, maps) in [("linux.uidMappings", &uid_maps), ("linux.gidMappings", &gid_maps)] {
            if maps.is_empty() {
                return Err(PlanError::conflict(
                    field,
                    "user namespaces enabled, but no mappings to apply specified",
                ));
            }
        }
    } else if namespaces.joined(NamespaceKind::User).is_some() {
        if mapped {
            // containerd and CRI-O write the joined namespace's own maps here; it keeps those it has.
            warnings
                .push("linux.uidMappings, linux.gidMappings: a joined user namespace keeps its own".into());
        }
    } else if mapped {
        let field = if uid_maps.is_empty() { "linux.gidMappings" } else { "linux.uidMappings" };
        return Err(PlanError::conflict(
            field,
            "user namespace mappings specified, but user namespace isn't enabled in the config",
        ));
    }
    namespaces.uid_maps = uid_maps;
    namespaces.gid_maps = gid_maps;
    Ok(())
}

/// Checks a list of id maps: within u32, and no id twice on either side.
pub(super) fn id_maps(field: &str, maps: Option<&[LinuxIdMapping]>) -> Result<Vec<IdMap>, PlanError> {
    let maps: Vec<IdMap> = maps
        .unwrap_or_default()
        .iter()
        .map(|map| IdMap { container_id: map.container_id(), host_id: map.host_id(), length: map.size() })
        .collect();
    if maps.len() > MAX_ID_MAPS {
        return Err(PlanError::invalid(field, format!("more than {MAX_ID_MAPS} mappings")));
    }
    for (index, map) in maps.iter().enumerate() {
        let invalid = |problem: String| Err(PlanError::invalid(format!("{field}[{index}]"), problem));
        if map.length == 0 {
            return invalid("size is 0".into());
        }
        if map.container_id.checked_add(map.length - 1).is_none()
            || map.host_id.checked_add(map.length - 1).is_none()
        {
            return invalid("reaches beyond the largest id".into());
        }
        let overlaps = |a: u32, a_length: u32, b: u32, b_length: u32| {
            u64::from(a) < u64::from(b) + u64::from(b_length)
                && u64::from(b) < u64::from(a) + u64::from(a_length)
        };
        for other in &maps[..index] {
            if overlaps(map.container_id, map.length, other.container_id, other.length)
                || overlaps(map.host_id, map.length, other.host_id, other.length)
            {
                return invalid("overlaps another mapping".into());
            }
        }
    }
    Ok(maps)
}

fn time_offsets(linux: &Linux, namespaces: &mut Namespaces) -> Result<(), PlanError> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
        return Ok(());
    };
    let field = "linux.timeOffsets";
    if namespaces.joined(NamespaceKind::Time).is_some() {
        return Err(PlanError::conflict(field, "both a time namespace path and time offsets are specified"));
    }
    if !namespaces.is_new(NamespaceKind::Time) {
        return Err(PlanError::conflict(
            field,
            "time namespace offsets specified, but time namespace isn't enabled in the config",
        ));
    }
    for (clock, offset) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(PlanError::invalid(format!("{field}.{clock}"), "not one of monotonic, boottime"));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(PlanError::invalid(format!("{field}.{clock}.nanosecs"), "a second or more"));
        }
        namespaces.time_offsets.push((clock.clone(), offset.secs().unwrap_or(0), nanoseconds));
    }
    namespaces.time_offsets.sort_unstable();
    Ok(())
}
