//! Calls of MCP, for people.

use agent_ebpf::Direction;

use super::{BOLD, DIM, Encoder, RED, YELLOW, print};
use crate::{
    escape,
    record::{Mcp, Record, Role},
};

impl Encoder {
    /// `mcp tools/call add: -32602, in 0.2 s`.
    pub(super) fn mcp(&self, record: &Record<'_>, mcp: &Mcp, out: &mut Vec<u8>) {
        let role = record.connection.and_then(|connection| connection.role);
        let is_ours = (role == Some(Role::Server)) == (mcp.initiator == "server");
        let direction = match is_ours {
            true => Direction::Sent,
            false => Direction::Received,
        };
        self.who(record, record.time, Some(mcp.exchange), direction, out);
        self.painted(DIM, out, |out| print(out, format_args!("mcp ")));
        escape::visible(mcp.method.as_deref().unwrap_or("?"), out);
        let targets = [&mcp.tool, &mcp.prompt, &mcp.resource];
        for target in targets.into_iter().flatten() {
            out.push(b' ');
            self.painted(BOLD, out, |out| escape::visible(target, out));
        }
        if let Some(error) = &mcp.error {
            out.extend_from_slice(b", ");
            self.painted(RED, out, |out| escape::visible(error, out));
        }
        if let Some(duration) = mcp.duration {
            print(out, format_args!(", in {duration:.1} s"));
        }
        if !mcp.missing.is_empty() {
            self.painted(YELLOW, out, |out| {
                print(out, format_args!(", missing: {}", mcp.missing.join(", ")))
            });
        }
        out.push(b'\n');
    }
}
