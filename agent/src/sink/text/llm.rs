//! Calls to models, for people.

use agent_ebpf::Direction;

use super::{BOLD, CYAN, DIM, Encoder, RED, YELLOW, print};
use crate::{
    escape,
    record::{Llm, Record, Role},
};

impl Encoder {
    /// `openai gpt-5 chat: 12 → 34 tokens (8 cached), stop, in 1.2 s`.
    pub(super) fn llm(&self, record: &Record<'_>, llm: &Llm, out: &mut Vec<u8>) {
        let direction = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => Direction::Received,
            Some(Role::Client) | None => Direction::Sent,
        };
        self.who(record, record.time, Some(llm.exchange), direction, out);
        self.painted(DIM, out, |out| {
            print(out, format_args!("{} ", llm.provider))
        });
        if let Some(model) = llm.response_model.as_ref().or(llm.model.as_ref()) {
            self.painted(BOLD, out, |out| escape::visible(model, out));
            out.push(b' ');
        }
        print(out, format_args!("{}", llm.operation));
        let usage = &llm.usage;
        if usage.input.is_some() || usage.output.is_some() {
            let count = |count: Option<u64>| count.map_or("?".into(), |count| count.to_string());
            self.painted(CYAN, out, |out| {
                print(
                    out,
                    format_args!(", {} → {} tokens", count(usage.input), count(usage.output)),
                );
            });
            if let Some(cached) = usage.cache_read.filter(|count| *count > 0) {
                self.painted(DIM, out, |out| {
                    print(out, format_args!(" ({cached} cached)"))
                });
            }
        }
        for reason in &llm.finish_reasons {
            out.extend_from_slice(b", ");
            escape::visible(reason, out);
        }
        if let Some(error) = &llm.error {
            out.extend_from_slice(b", ");
            self.painted(RED, out, |out| escape::visible(error, out));
        }
        print(out, format_args!(", in {:.1} s", llm.duration));
        if !llm.missing.is_empty() {
            self.painted(YELLOW, out, |out| {
                print(out, format_args!(", missing: {}", llm.missing.join(", ")))
            });
        }
        out.push(b'\n');
    }
}
