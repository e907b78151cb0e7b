//! `type = "stdout"`: standard output, or standard error where the command has that one.

use serde::Deserialize;

use super::{OpenError, Target};
use crate::config::{Color, Output, word};

/// Its keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stdout {
    #[serde(default = "text", deserialize_with = "word")]
    pub output: Output,
    #[serde(default, deserialize_with = "word")]
    pub color: Color,
}

fn text() -> Output {
    Output::Text
}

impl Stdout {
    pub(super) fn open(&self, with_command: bool) -> Result<Target, OpenError> {
        Ok(match with_command {
            // As strace does: stdout is CMD's.
            true => Target::stderr()?,
            false => Target::stdout()?,
        })
    }
}
