//! Lines for the person at the terminal.

use std::{
    fmt,
    io::{self, Write as _},
};

use crate::escape;

/// One line on stderr, whatever a stranger's path in it contains. That nobody reads is no error.
pub fn complain(what: impl fmt::Display) {
    let mut line = Vec::new();
    escape::visible(&format!("vortex-agent: {what:#}"), &mut line);
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}
