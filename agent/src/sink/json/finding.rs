//! What a person should look at. There is no convention of OpenTelemetry's for it.

use super::{Object, number};
use crate::record::{Evidence, Finding};

impl Object<'_> {
    /// `run`: the beginning of ids.
    pub(super) fn finding(&mut self, finding: &Finding, run: &[u8]) {
        self.object("finding", |member| {
            member.word("rule", finding.rule.name());
            member.word("severity", finding.severity.name());
            member.string("peer", &finding.peer);
            member.optional_string("place", finding.place.as_deref());
            member.string("expected", &finding.expected);
            member.string("seen", &finding.seen);
            let evidence = finding.evidence.as_ref().map(Evidence::text);
            member.optional_string("evidence", evidence.as_deref());
            member.number("suppressed", finding.suppressed);
            if let Some(about) = finding.about {
                member.key("about");
                member.0.push(b'"');
                member.0.extend_from_slice(run);
                number(about, member.0);
                member.0.push(b'"');
            }
        });
    }
}
