//! Arguments and environment as execve(2) takes them.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::Path;

use super::home::home;
use crate::plan;
use crate::{Failure, Step};

/// argv and envp. Of variables given twice the last one counts; `HOME`, where it is missing or empty, is the user's in the
/// container's /etc/passwd. To be called in the container's root.
pub(crate) fn strings(process: &plan::Process) -> Result<(Vec<CString>, Vec<CString>), Failure> {
    let mut env = environment(&process.env);
    if variable(&process.env, "HOME").is_none_or(str::is_empty) {
        env.retain(|entry| name(entry) != "HOME");
        env.push(format!("HOME={}", home(Path::new("/etc/passwd"), process.uid)));
    }
    Ok((c_strings("argument", &process.args)?, c_strings("environment variable", &env)?))
}

/// The value that counts of the variable `wanted`; None: it is not set.
pub(super) fn variable<'a>(env: &'a [String], wanted: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.split_once('=').filter(|(name, _)| *name == wanted))
        .map(|(_, value)| value)
}

/// Without the entries that a later one replaces, in the order given.
fn environment(env: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut kept: Vec<_> = env.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    kept.reverse();
    kept
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn c_strings(what: &str, strings: &[String]) -> Result<Vec<CString>, Failure> {
    let converted = strings.iter().map(|string| CString::new(string.as_bytes()));
    converted
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::because(Step::Exec, format!("an {what} contains a nul byte")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::process;

    fn env(entries: &[&str]) -> Vec<String> {
        let env = entries.iter().map(|entry| (*entry).to_owned()).collect();
        // No passwd file knows this user.
        let (_, env) = strings(&plan::Process { env, uid: 4_000_000_000, ..process() }).unwrap();
        env.into_iter().map(|entry| entry.into_string().unwrap()).collect()
    }

    #[test]
    fn the_last_of_a_name_counts() {
        assert_eq!(env(&["A=1", "B=2", "HOME=/h", "A=3", "C"]), ["B=2", "HOME=/h", "A=3", "C"]);
        assert_eq!(variable(&["A=1".into(), "A=2=3".into()], "A"), Some("2=3"));
        assert_eq!(variable(&["A".into()], "A"), None);
    }

    #[test]
    fn home_is_added_where_it_is_missing_or_empty() {
        assert_eq!(env(&["A=1"]), ["A=1", "HOME=/"]);
        assert_eq!(env(&["HOME=", "A=1"]), ["A=1", "HOME=/"]);
        assert_eq!(env(&["HOME=/a", "HOME="]), ["HOME=/"]);
    }

    #[test]
    fn a_nul_byte_is_refused() {
        let args = vec!["a\0b".to_owned()];
        let failure = strings(&plan::Process { args, ..process() }).unwrap_err();
        assert_eq!(failure.to_string(), "exec: an argument contains a nul byte");
        let env = vec!["A=\0".to_owned()];
        assert!(strings(&plan::Process { env, ..process() }).is_err());
    }
}
