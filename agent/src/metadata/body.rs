//! An answer without an end, as it comes: what a runtime tells of its containers.

use std::io;

use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// The most of an answer that is read, and of an event in one that has no end.
pub const ANSWER_MAX: usize = 4 << 20;

pub struct Body {
    rest: Incoming,
    /// What has come and nobody has taken.
    pub read: BytesMut,
}

impl Body {
    pub fn new(rest: Incoming) -> Body {
        Body {
            rest,
            read: BytesMut::new(),
        }
    }

    /// Waits for more. False: that was the end.
    ///
    /// # Errors
    /// The connection is broken, or nobody has taken anything of [`ANSWER_MAX`] bytes.
    pub async fn more(&mut self) -> io::Result<bool> {
        if self.read.len() > ANSWER_MAX {
            return Err(io::Error::other("an event without an end"));
        }
        let Some(frame) = self.rest.frame().await else {
            return Ok(false);
        };
        if let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() {
            self.read.extend_from_slice(&bytes);
        }
        Ok(true)
    }
}
