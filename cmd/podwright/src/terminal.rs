//! This program's own terminal while a session has it: raw, so that every key goes to the other side, and as it was afterwards.

use std::io::Stdin;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal is raw until this is dropped, or the program panics.
pub(crate) struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// Makes the terminal at stdin raw. None: stdin is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("make the terminal raw")?;
        // A panic may end the program without dropping anything.
        let (saved, earlier) = (before.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &saved);
            earlier(info);
        }));
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell, and nothing else to try.
        let _ = tcsetattr(&self.stdin, OptionalActions::Flush, &self.before);
    }
}

/// Columns and rows of the terminal at stdin.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    Some((size.ws_col, size.ws_row))
}
