//! What is known of one request of MCP and its answer, or of one notification.

use std::sync::Arc;

use super::message::Outcome;
use crate::protocol::{
    Side, head,
    json::{Text, Value},
};

#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks: the client sends requests of HTTP, the server responses.
    pub from: Side,
    /// A number or a string.
    pub id: Option<Value>,
    /// `None`: its beginning was not seen, or all of it.
    pub method: Option<Text>,
    pub params: Option<Value>,
    pub is_notification: bool,
    pub outcome: Option<Outcome>,
    /// The server refused it, with this status of HTTP and nothing else.
    pub status: Option<u16>,
    pub session: Option<Session>,
    /// Of the protocol, as the head says it.
    pub version: Option<Text>,
    /// Where it went.
    pub head: Option<Arc<head::Request>>,
    /// In nanoseconds.
    pub began: u64,
    pub ended: u64,
    pub missing: Missing,
}

/// Messages of one session belong together, whatever exchange they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// What it is told apart by: its id, or the target that requests of it are sent to.
    pub key: Box<str>,
    /// Its id, and what that is called where it stands.
    pub id: Option<(&'static str, Box<str>)>,
}

/// What is not known of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Its request, or a part of it.
    pub request: bool,
    /// Its answer, or a part of it.
    pub response: bool,
    /// It was too long to be kept.
    pub content: bool,
}

impl Missing {
    /// As in records.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let Missing {
            request,
            response,
            content,
        } = self;
        let all = [
            (request, "request"),
            (response, "response"),
            (content, "content"),
        ];
        all.into_iter()
            .filter(|(is_missing, _)| *is_missing)
            .map(|(_, name)| name)
    }
}

/// Longest id of a session that is kept.
const KEY_MAX: usize = 1024;

/// The line of a head that has a session's id.
pub const SESSION: &str = "mcp-session-id";

impl Session {
    /// By the line of a head.
    pub fn of_fields(fields: &head::Fields) -> Option<Session> {
        let id: Box<str> = str::from_utf8(fields.get(SESSION)?).ok()?.into();
        (id.len() <= KEY_MAX).then(|| Session {
            key: id.clone(),
            id: Some((SESSION, id)),
        })
    }

    /// Of the transport before the present one (2024-11-05): by what requests are sent to.
    pub fn of_target(target: &[u8]) -> Option<Session> {
        let target = str::from_utf8(target)
            .ok()
            .filter(|target| target.len() <= KEY_MAX)?;
        let path = match target.split_once("://") {
            Some((_, rest)) => &rest[rest.find('/')?..],
            None => target,
        };
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
        let id = parameters.find_map(|(name, value)| {
            let name = ["session_id", "sessionId"]
                .into_iter()
                .find(|known| *known == name)?;
            Some((name, value.into()))
        });
        Some(Session {
            key: path.into(),
            id,
        })
    }
}

impl Call {
    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        let method = self.method.as_ref().map_or(0, |method| method.kept.len());
        let params = self.params.as_ref().map_or(0, Value::weight);
        let outcome = self.outcome.as_ref().map_or(0, Outcome::weight);
        size_of::<Call>() + method + params + outcome
    }

    pub fn has_method(&self, name: &str) -> bool {
        self.method
            .as_ref()
            .is_some_and(|method| method.kept == name)
    }

    /// A member of its parameters.
    pub fn param(&self, name: &str) -> Option<&Text> {
        self.params.as_ref()?.get(name)?.text()
    }

    /// Nothing more is known of its answer.
    pub fn unanswered(mut self) -> Call {
        self.missing.response = true;
        self
    }
}
