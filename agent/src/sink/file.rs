//! `type = "file"`: a file of this user alone, or one after the other.

use std::path::PathBuf;

use serde::Deserialize;

use super::{OpenError, Target, rotation::Rotate};
use crate::config::{Color, Output, word};

/// Its keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: PathBuf,
    #[serde(default = "json", deserialize_with = "word")]
    pub output: Output,
    #[serde(default, deserialize_with = "word")]
    pub color: Color,
    pub rotate: Option<Rotate>,
}

fn json() -> Output {
    Output::Json
}

impl File {
    pub(super) fn open(&self) -> Result<Target, OpenError> {
        match self.rotate {
            Some(rotate) => Target::rotated(&self.path, rotate),
            None => Target::file(&self.path),
        }
    }
}
