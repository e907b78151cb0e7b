//! Calls of MCP, by the names of OpenTelemetry's conventions for it (v1.41). What those have no name for is under
//! `mcp`, too: `initiator`, `params`, `result`.

use super::{Object, braces, quoted};
use crate::{
    protocol::json::Value,
    record::Mcp,
    redact::{OwnedContent, Shown},
};

impl Object<'_> {
    pub(super) fn mcp(&mut self, mcp: &Mcp) {
        self.url(&mcp.url);
        self.object("mcp", |member| {
            let objects = [
                ("method", "name", &mcp.method),
                ("session", "id", &mcp.session),
                ("protocol", "version", &mcp.version),
                ("resource", "uri", &mcp.resource),
            ];
            for (key, name, value) in objects {
                member.named(key, name, value.as_deref());
            }
            member.word("initiator", mcp.initiator);
            member.optional_string("traceparent", mcp.traceparent.as_deref());
            member.parts(&[("params", &mcp.params)]);
            if !mcp.is_tool {
                member.parts(&[("result", &mcp.result)]);
            }
        });
        if let Some(id) = &mcp.id {
            self.object("jsonrpc", |member| {
                member.named("request", "id", Some(id));
            });
        }
        if let Some(code) = &mcp.code {
            self.object("rpc", |member| {
                member.named("response", "status_code", Some(code));
            });
        }
        if mcp.is_tool || mcp.prompt.is_some() {
            self.object("gen_ai", |member| member.tool(mcp));
        }
        let has_error = mcp.error.is_some() || mcp.message.is_some() || mcp.data.is_some();
        if has_error {
            self.object("error", |member| {
                member.optional_string("type", mcp.error.as_deref());
                member.parts(&[("message", &mcp.message), ("data", &mcp.data)]);
            });
        }
        self.object("timings", |timings| {
            timings.time("request_start", mcp.began);
            timings.time("end", mcp.ended);
            timings.optional_float("duration", mcp.duration);
        });
        if !mcp.missing.is_empty() {
            self.array("missing", &mcp.missing, |out, name| quoted(name, out));
        }
    }

    fn tool(&mut self, mcp: &Mcp) {
        self.named("prompt", "name", mcp.prompt.as_deref());
        if !mcp.is_tool {
            return;
        }
        self.object("operation", |member| member.word("name", "execute_tool"));
        self.object("tool", |member| {
            member.optional_string("name", mcp.tool.as_deref());
            if mcp.arguments.is_some() || mcp.result.is_some() {
                member.object("call", |member| {
                    member.parts(&[("arguments", &mcp.arguments), ("result", &mcp.result)]);
                });
            }
        });
    }

    /// Texts that stand side by side: each redaction says which one it is of.
    pub(super) fn parts(&mut self, parts: &[(&'static str, &Option<OwnedContent>)]) {
        self.parts_as(parts, |_, _| None);
    }

    /// The same, of which some are values in JSON if they can be read as that.
    pub(super) fn parts_as(
        &mut self,
        parts: &[(&'static str, &Option<OwnedContent>)],
        read: impl Fn(&str, &str) -> Option<Value>,
    ) {
        let mut redactions = Vec::new();
        let mut is_withheld = false;
        for (key, content) in parts {
            let Some(content) = content else {
                continue;
            };
            match content.content().shown() {
                Shown::Text(text, marks) => {
                    self.text_or(key, text, read(key, text));
                    redactions.extend(marks.iter().map(|mark| (*key, *mark)));
                }
                // JSON is UTF-8.
                Shown::Raw(bytes) => {
                    let text = String::from_utf8_lossy(bytes);
                    self.text_or(key, &text, read(key, &text));
                }
                Shown::Encoded => is_withheld = true,
                Shown::Nothing => {}
            }
        }
        if is_withheld {
            self.word("withheld", "encoded");
        }
        if !redactions.is_empty() {
            self.array("redactions", &redactions, |out, (key, mark)| {
                braces(out, |member| {
                    member.word("of", key);
                    member.redaction(mark);
                });
            });
        }
    }

    fn text_or(&mut self, key: &str, text: &str, value: Option<Value>) {
        match value {
            Some(value) => {
                self.key(key);
                value.write_with(quoted, self.0);
            }
            None => self.string(key, text),
        }
    }

    fn named(&mut self, key: &str, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.object(key, |member| member.string(name, value));
        }
    }
}
