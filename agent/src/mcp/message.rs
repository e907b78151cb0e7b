//! One message of JSON-RPC 2.0, and what makes it one of MCP.

use crate::protocol::json::{Text, Value};

/// What a message may have. One with anything else is none.
const MEMBERS: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

#[derive(Debug)]
pub enum Message {
    /// A notification if it has no id and all of it came.
    Asks {
        id: Option<Value>,
        method: Text,
        params: Option<Value>,
    },
    Answers {
        id: Option<Value>,
        outcome: Outcome,
    },
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    Result(Value),
    Error {
        /// A number, as it was written.
        code: Option<Box<str>>,
        message: Option<Text>,
        data: Option<Value>,
    },
}

/// May a map with a member of this name be a message?
pub fn is_member(name: &str) -> bool {
    MEMBERS.contains(&name)
}

impl Message {
    /// Of a part of one, `jsonrpc` may be among what is missing.
    pub fn of(value: Value, is_partial: bool) -> Option<Message> {
        let Value::Map(members) = value else {
            return None;
        };
        let [
            mut version,
            mut id,
            mut method,
            mut params,
            mut result,
            mut error,
        ] = [const { None }; 6];
        for (name, value) in members {
            let place = match &*name {
                "jsonrpc" => &mut version,
                "id" => &mut id,
                "method" => &mut method,
                "params" => &mut params,
                "result" => &mut result,
                "error" => &mut error,
                _ => return None,
            };
            place.get_or_insert(value);
        }
        match &version {
            Some(version) if version.str() == Some("2.0") => {}
            None if is_partial => {}
            _ => return None,
        }
        let id = id.filter(|id| matches!(id, Value::Number(_) | Value::Text(_)));
        let error = error.filter(|error| *error != Value::Null);
        match (method, result, error) {
            (Some(Value::Text(method)), None, None) => Some(Message::Asks { id, method, params }),
            (None, _, Some(error)) => Some(Message::Answers {
                id,
                outcome: Outcome::error(&error),
            }),
            (None, Some(result), None) => Some(Message::Answers {
                id,
                outcome: Outcome::Result(result),
            }),
            _ => None,
        }
    }
}

impl Outcome {
    fn error(error: &Value) -> Outcome {
        Outcome::Error {
            code: match error.get("code") {
                Some(Value::Number(code)) => Some(code.clone()),
                _ => None,
            },
            message: error.get("message").and_then(Value::text).cloned(),
            data: error.get("data").cloned(),
        }
    }

    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        match self {
            Outcome::Result(value) => value.weight(),
            Outcome::Error { message, data, .. } => {
                let message = message.as_ref().map_or(0, |message| message.kept.len());
                message + data.as_ref().map_or(0, Value::weight)
            }
        }
    }
}

/// Is this method MCP's, whoever sends it? `initialize` is also that of language servers, whose parameters have no
/// version.
pub fn is_own(method: &str, params: Option<&Value>) -> bool {
    match method {
        "initialize" => params.is_some_and(|params| params.get("protocolVersion").is_some()),
        "server/discover"
        | "tools/list"
        | "tools/call"
        | "resources/list"
        | "resources/templates/list"
        | "resources/read"
        | "resources/subscribe"
        | "resources/unsubscribe"
        | "prompts/list"
        | "prompts/get"
        | "completion/complete"
        | "logging/setLevel"
        | "subscriptions/listen"
        | "roots/list"
        | "sampling/createMessage"
        | "elicitation/create" => true,
        _ => method.starts_with("notifications/"),
    }
}

/// Is it one that others have, too, such as A2A? Where MCP is spoken it is meant.
pub fn is_shared(method: &str) -> bool {
    method == "ping" || method.starts_with("tasks/")
}
