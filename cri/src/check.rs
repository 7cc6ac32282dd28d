//! Rules on the raw strings and numbers of a request.
//!
//! Each function takes the path of a field and its raw value and gives the checked value back, or an error
//! that names the field. Nothing here knows what the value is for beyond its rule: paths stay below the
//! directory they are joined to, nothing carries a control character into a file or a log line, and every
//! length has a bound.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::Error;

/// Longest name of a pod, namespace or container, in bytes: Kubernetes' own limit for object names.
pub const NAME_BYTES: usize = 253;
/// Longest id, in bytes. Ours have 64 hexadecimal digits.
pub const ID_BYTES: usize = 128;
/// Longest path, in bytes: `PATH_MAX` less its NUL.
pub const PATH_BYTES: usize = 4095;
/// Longest path component, in bytes: `NAME_MAX`.
pub const COMPONENT_BYTES: usize = 255;
/// Longest single argument or environment entry, in bytes: execve(2)'s `MAX_ARG_STRLEN` less its NUL.
pub const ARGUMENT_BYTES: usize = 128 * 1024 - 1;
/// All keys and values of a pod's or container's labels or annotations together, in bytes.
pub const MAP_BYTES: usize = 1024 * 1024;
/// Longest host name, in bytes: the kernel's __`NEW_UTS_LEN`.
pub const HOSTNAME_BYTES: usize = 64;
/// Most elements in a repeated field of a configuration.
pub const LIST_ITEMS: usize = 4096;

/// The value as an error shows it: escaped, and cut where it is long.
pub fn shown(value: &str) -> String {
    const KEPT: usize = 60;
    let mut text: String = value.chars().take(KEPT).flat_map(char::escape_debug).collect();
    if value.chars().nth(KEPT).is_some() {
        text.push('…');
    }
    format!("\"{text}\"")
}

/// One line of printable text of at most `limit` bytes; may be empty.
pub fn text<'a>(field: &str, value: &'a str, limit: usize) -> Result<&'a str, Error> {
    if value.len() > limit {
        return Err(Error::invalid(field, format!("is {} bytes long; {limit} are allowed", value.len())));
    }
    if let Some(bad) = value.chars().find(|c| c.is_control()) {
        let shown = bad.escape_debug();
        return Err(Error::invalid(field, format!("must not contain the control character {shown}")));
    }
    Ok(value)
}

/// The name of a pod, namespace or container: one path component, so that it may become part of one.
pub fn name(field: &str, value: &str) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    optional_name(field, value)
}

/// As [`name`], or empty.
pub fn optional_name(field: &str, value: &str) -> Result<String, Error> {
    text(field, value, NAME_BYTES)?;
    if value == "." || value == ".." || value.contains('/') || value.contains(char::is_whitespace) {
        let reason = format!("{} must not be a path nor contain white space", shown(value));
        return Err(Error::invalid(field, reason));
    }
    Ok(value.to_owned())
}

/// The id of a pod, container or image, or the head of one.
pub fn id<'a>(field: &str, value: &'a str) -> Result<&'a str, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if value.len() > ID_BYTES {
        return Err(Error::invalid(field, format!("is {} bytes long; {ID_BYTES} are allowed", value.len())));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if !value.chars().all(legal) || value.starts_with('.') {
        let reason = format!("{} is not an id: letters, digits, '-', '_', '.' and ':'", shown(value));
        return Err(Error::invalid(field, reason));
    }
    Ok(value)
}

/// An image reference: its grammar is checked where it is resolved.
pub fn image(field: &str, value: &str) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must name an image"));
    }
    text(field, value, PATH_BYTES)?;
    if value.contains(char::is_whitespace) {
        return Err(Error::invalid(field, format!("{} must not contain white space", shown(value))));
    }
    Ok(value.to_owned())
}

/// An absolute path without `..`, with doubled and trailing slashes and `.` taken out.
pub fn absolute_path(field: &str, value: &str) -> Result<PathBuf, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if !value.starts_with('/') {
        return Err(Error::invalid(field, format!("{} must be an absolute path", shown(value))));
    }
    let mut path = PathBuf::from("/");
    path.extend(components(field, value)?);
    Ok(path)
}

/// A path that stays below the directory it will be joined to: relative, at least one component, no `..`.
pub fn relative_path(field: &str, value: &str) -> Result<PathBuf, Error> {
    if value.starts_with('/') {
        return Err(Error::invalid(field, format!("{} must be a relative path", shown(value))));
    }
    let path: PathBuf = components(field, value)?.into_iter().collect();
    if path.as_os_str().is_empty() {
        return Err(Error::invalid(field, "must name a file"));
    }
    Ok(path)
}

/// A container's log file relative to the pod's log directory; as [`relative_path`], and no directory.
pub fn log_path(field: &str, value: &str) -> Result<PathBuf, Error> {
    if value.ends_with('/') {
        return Err(Error::invalid(field, format!("{} must name a file, not a directory", shown(value))));
    }
    relative_path(field, value)
}

/// The components of a path, `.` and empty ones left out.
fn components<'a>(field: &str, value: &'a str) -> Result<Vec<&'a str>, Error> {
    text(field, value, PATH_BYTES)?;
    let mut parts = Vec::new();
    for part in value.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(Error::invalid(field, format!("{} must not contain `..`", shown(value)))),
            long if long.len() > COMPONENT_BYTES => {
                let reason =
                    format!("has a component of {} bytes; {COMPONENT_BYTES} are allowed", long.len());
                return Err(Error::invalid(field, reason));
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

/// A host name as sethostname(2) and the lines of /etc/hosts take it: labels of letters, digits, `-` and `_`.
pub fn hostname(field: &str, value: &str) -> Result<String, Error> {
    if value.len() > HOSTNAME_BYTES {
        let reason = format!("is {} bytes long; the kernel keeps {HOSTNAME_BYTES}", value.len());
        return Err(Error::invalid(field, reason));
    }
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if !value.split('.').all(label) {
        let reason = format!("{} is not a host name: dot-separated letters, digits and '-'", shown(value));
        return Err(Error::invalid(field, reason));
    }
    Ok(value.to_owned())
}

/// Labels: keys and values are one line each, and together they stay below [`MAP_BYTES`].
pub fn labels(
    field: &str,
    map: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, Error> {
    bounded_map(field, map, |field, value| text(field, value, MAP_BYTES).map(drop))
}

/// Annotations: as labels, but a value may have any number of lines.
pub fn annotations(
    field: &str,
    map: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, Error> {
    bounded_map(field, map, no_nul)
}

/// What labels and annotations have in common.
fn bounded_map(
    field: &str,
    map: impl IntoIterator<Item = (String, String)>,
    check_value: impl Fn(&str, &str) -> Result<(), Error>,
) -> Result<BTreeMap<String, String>, Error> {
    let map: BTreeMap<String, String> = map.into_iter().collect();
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAP_BYTES {
        return Err(Error::invalid(field, format!("hold {bytes} bytes; {MAP_BYTES} are allowed")));
    }
    for (key, value) in &map {
        if key.is_empty() {
            return Err(Error::invalid(field, "must not have an empty key"));
        }
        let field = format!("{field}[{}]", shown(key));
        text(&field, key, NAME_BYTES + 1 + NAME_BYTES)?;
        check_value(&field, value)?;
    }
    Ok(map)
}

/// A list of bounded length.
pub fn list<T>(field: &str, items: Vec<T>) -> Result<Vec<T>, Error> {
    if items.len() > LIST_ITEMS {
        let reason = format!("has {} elements; {LIST_ITEMS} are allowed", items.len());
        return Err(Error::invalid(field, reason));
    }
    Ok(items)
}

/// An argument of a program: any text that execve(2) can carry.
pub fn argument(field: &str, value: &str) -> Result<(), Error> {
    no_nul(field, value)?;
    if value.len() > ARGUMENT_BYTES {
        let reason = format!("is {} bytes long; the kernel allows {ARGUMENT_BYTES}", value.len());
        return Err(Error::invalid(field, reason));
    }
    Ok(())
}

/// An environment variable as `KEY=value`.
pub fn environment(field: &str, key: &str, value: Vec<u8>) -> Result<String, Error> {
    if key.is_empty() || key.contains('=') {
        return Err(Error::invalid(field, format!("{} cannot be a variable's name", shown(key))));
    }
    text(&format!("{field}.key"), key, ARGUMENT_BYTES)?;
    let value = String::from_utf8(value)
        .map_err(|_| Error::invalid(field, format!("the value of {} is not UTF-8", shown(key))))?;
    let entry = format!("{key}={value}");
    argument(field, &entry)?;
    Ok(entry)
}

/// No NUL, which would end the string early for the kernel.
fn no_nul(field: &str, value: &str) -> Result<(), Error> {
    if value.contains('\0') {
        return Err(Error::invalid(field, "must not contain a NUL character"));
    }
    Ok(())
}

/// A user or group id: what fits the kernel's type, less the value that means "leave it" to it.
pub fn user_id(field: &str, value: i64) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(field, format!("{value} is not an id: 0 to {}", u32::MAX - 1))),
    }
}

/// A port, or 0 for none.
pub fn port(field: &str, value: i32) -> Result<u16, Error> {
    u16::try_from(value).map_err(|_| {
        Error::invalid(field, format!("{value} is not a port: 1 to {}, or 0 for none", u16::MAX))
    })
}

/// An IP address of either family, without a zone.
pub fn ip(field: &str, value: &str) -> Result<IpAddr, Error> {
    value.parse().map_err(|_| Error::invalid(field, format!("{} is not an IP address", shown(value))))
}

/// A word for resolv.conf(5): one line, no white space, not empty.
pub fn resolver_word(field: &str, value: &str) -> Result<String, Error> {
    text(field, value, 1024)?;
    if value.is_empty() || value.contains(char::is_whitespace) {
        return Err(Error::invalid(field, format!("{} must be one word", shown(value))));
    }
    Ok(value.to_owned())
}

/// A list of CPUs or memory nodes such as `0-3,8`, in the form cpuset(7) reads.
pub fn cpu_list(field: &str, value: &str) -> Result<String, Error> {
    /// More CPUs than any kernel is built for; a bound on what the kernel has to parse.
    const HIGHEST: u32 = 65_535;
    let number = |text: &str| -> Option<u32> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|number| digits && *number <= HIGHEST)
    };
    let range = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((low, high)) => matches!((number(low), number(high)), (Some(low), Some(high)) if low <= high),
    };
    if value.len() > PATH_BYTES || !value.split(',').all(range) {
        let reason = format!("{} is not a list of numbers and ranges such as 0-3,8", shown(value));
        return Err(Error::invalid(field, reason));
    }
    Ok(value.to_owned())
}

/// A number within `low..=high`.
pub fn within(field: &str, value: i64, low: i64, high: i64) -> Result<i64, Error> {
    if !(low..=high).contains(&value) {
        return Err(Error::invalid(field, format!("{value} is outside {low} to {high}")));
    }
    Ok(value)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
