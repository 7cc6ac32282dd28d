//! Who the container's process is.
//!
//! The request may give a uid, a gid, a name and groups; the image may give a user; names and the groups of
//! `/etc/group` are looked up inside the root by whoever has it open. This file holds the rules: what may be
//! combined ([`UserRequest::parse`]), what has to be looked up ([`UserRequest::to_look_up`]) and what comes out
//! ([`UserRequest::identity`]), which is what the spec gets and what `ContainerStatus.user` reports.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::check;
use crate::error::Error;
use crate::v1::{self, SupplementalGroupsPolicy};

/// The user and groups as the request gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRequest {
    /// None: the image decides.
    pub user: Option<UserName>,
    /// The primary group; None: the user's own.
    pub group: Option<u32>,
    /// More groups, fsGroup among them.
    pub supplemental: Vec<u32>,
    /// Whether the groups that the image's /etc/group lists for the user are added.
    pub image_groups: bool,
}

/// A user by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserName {
    /// Need not be in the image's passwd.
    Id(u32),
    /// Has to be in the image's passwd.
    Name(String),
}

/// What the look-up inside the root found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// The primary group: of the image's `user:group`, else of the passwd entry, else 0.
    pub gid: u32,
    /// Groups that list the user in /etc/group.
    pub groups: Vec<u32>,
    /// Home directory of the passwd entry; None: no entry, or an empty field.
    pub home: Option<String>,
}

/// The credentials of the container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, ascending, the primary one among them.
    pub groups: Vec<u32>,
}

impl From<&Identity> for v1::ContainerUser {
    fn from(identity: &Identity) -> Self {
        Self {
            linux: Some(v1::LinuxContainerUser {
                uid: identity.uid.into(),
                gid: identity.gid.into(),
                supplemental_groups: identity.groups.iter().copied().map(i64::from).collect(),
            }),
        }
    }
}

impl UserRequest {
    /// Parses the fields that sandboxes and containers have in common; `field` is the security context's path.
    pub(super) fn parse(
        field: &str,
        user: Option<v1::Int64Value>,
        group: Option<v1::Int64Value>,
        name: &str,
        supplemental: Vec<i64>,
    ) -> Result<Self, Error> {
        let user = match (user, name) {
            (Some(_), name) if !name.is_empty() => {
                let field = format!("{field}.run_as_username");
                return Err(Error::invalid(field, "must not be given together with run_as_user"));
            }
            (Some(id), _) => Some(UserName::Id(check::user_id(&format!("{field}.run_as_user"), id.value)?)),
            (None, "") => None,
            (None, name) => Some(UserName::Name(username(&format!("{field}.run_as_username"), name)?)),
        };
        let group_field = format!("{field}.run_as_group");
        let group = group.map(|id| check::user_id(&group_field, id.value)).transpose()?;
        if group.is_some() && user.is_none() {
            return Err(Error::invalid(group_field, "must not be given without run_as_user"));
        }
        let field = format!("{field}.supplemental_groups");
        let supplemental = check::list(&field, supplemental)?;
        let checked = |(i, id): (usize, &i64)| check::user_id(&format!("{field}[{i}]"), *id);
        Ok(Self {
            user,
            group,
            supplemental: supplemental.iter().enumerate().map(checked).collect::<Result<_, _>>()?,
            image_groups: true,
        })
    }

    /// Adds `supplemental_groups_policy`.
    pub(super) fn with_policy(mut self, field: &str, raw: i32) -> Result<Self, Error> {
        self.image_groups = match SupplementalGroupsPolicy::try_from(raw) {
            Ok(SupplementalGroupsPolicy::Merge) => true,
            Ok(SupplementalGroupsPolicy::Strict) => false,
            Err(_) => {
                let field = format!("{field}.supplemental_groups_policy");
                return Err(Error::invalid(field, format!("{raw} is not a policy: Merge or Strict")));
            }
        };
        Ok(self)
    }

    /// The user to look up inside the root, in the form of an image's `User`: the request's, else the image's
    /// (`name`, `uid`, with `:group` or without), else 0. The group of an image's user counts only with it.
    pub fn to_look_up<'a>(&self, image_user: &'a str) -> std::borrow::Cow<'a, str> {
        match &self.user {
            Some(UserName::Id(id)) => id.to_string().into(),
            Some(UserName::Name(name)) => name.clone().into(),
            None if image_user.is_empty() => "0".into(),
            None => image_user.into(),
        }
    }

    /// The credentials, once the user was looked up.
    pub fn identity(&self, resolved: &ResolvedUser) -> Identity {
        let gid = self.group.unwrap_or(resolved.gid);
        let mut groups: BTreeSet<u32> = self.supplemental.iter().copied().collect();
        groups.insert(gid);
        if self.image_groups {
            groups.extend(&resolved.groups);
        }
        Identity { uid: resolved.uid, gid, groups: groups.into_iter().collect() }
    }
}

/// A name as passwd(5) can hold it.
fn username(field: &str, name: &str) -> Result<String, Error> {
    check::text(field, name, check::NAME_BYTES)?;
    if name.contains([':', '/', ',']) || name.contains(char::is_whitespace) || name.starts_with('-') {
        return Err(Error::invalid(field, format!("{} is not a user name", check::shown(name))));
    }
    // A number here would pass for a uid at the look-up; the API has run_as_user for that.
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::invalid(field, format!("{} is a number: use run_as_user", check::shown(name))));
    }
    Ok(name.to_owned())
}
