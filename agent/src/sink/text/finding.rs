//! What a person should look at, for people.

use agent_ebpf::Direction;

use super::{BOLD, DIM, Encoder, RED, YELLOW, print};
use crate::{
    detect::Severity,
    escape,
    record::{Finding, Record},
};

impl Encoder {
    /// `finding secret_leaving (high): a secret: aws, in gen_ai.input.messages[2] to a.example (expected: …): "…"`.
    pub(super) fn finding(&self, record: &Record<'_>, finding: &Finding, out: &mut Vec<u8>) {
        self.who(record, record.time, finding.exchange, Direction::Sent, out);
        escape::visible(&finding.peer, out);
        out.extend_from_slice(b": ");
        let colour = match finding.severity {
            Severity::High => RED,
            Severity::Medium => YELLOW,
            Severity::Low | Severity::Off => BOLD,
        };
        let (rule, severity) = (finding.rule.name(), finding.severity.name());
        self.painted(colour, out, |out| {
            print(out, format_args!("finding {rule} ({severity})"));
        });
        out.extend_from_slice(b": ");
        self.painted(BOLD, out, |out| escape::visible(&finding.seen, out));
        if let Some(place) = &finding.place {
            out.extend_from_slice(b" in ");
            escape::visible(place, out);
        }
        if let Some(evidence) = &finding.evidence {
            out.extend_from_slice(b": \"");
            escape::visible(&evidence.text(), out);
            out.push(b'"');
        }
        self.painted(DIM, out, |out| {
            out.extend_from_slice(b"; expected: ");
            escape::visible(&finding.expected, out);
            if finding.suppressed > 0 {
                print(out, format_args!("; {} more like it", finding.suppressed));
            }
        });
        out.push(b'\n');
    }
}
