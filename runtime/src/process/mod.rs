//! What makes a process the one its plan describes, done by the process itself between clone3(2) and execve(2).
//!
//! Everything here acts on the caller, and assumes that it is the only thread of its process. The order in which it is
//! called is the order of privileges: what needs more comes first.
//!
//! | Step | Why then |
//! |---|---|
//! | [`attributes`], [`affinity`] | raising them takes capabilities the program may not have |
//! | [`session_keyring`] | its label is read when it is made |
//! | [`take_terminal`] or [`take_stdio`] | changing an owner takes CAP_CHOWN |
//! | [`make_working_directory`] | while the root is still writable |
//! | [`enter_working_directory`] | a missing directory is made as root |
//! | [`credentials`] | ends all of that |
//! | [`look_up_program`], [`strings`] | what the user may execute is asked as the user |

mod attributes;
mod credentials;
mod cwd;
mod home;
mod lookup;
mod stdio;
mod strings;

pub(crate) use attributes::{affinity, attributes, reset_affinity, session_keyring};
pub(crate) use credentials::credentials;
pub(crate) use cwd::{enter_working_directory, make_working_directory};
pub(crate) use lookup::look_up_program;
pub(crate) use stdio::{take_stdio, take_terminal};
pub(crate) use strings::strings;

#[cfg(test)]
mod tests;
