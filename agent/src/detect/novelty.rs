//! What was never there before: a server of models or of tools that nobody on this host has spoken to, and a program
//! that has never spoken to a model.

use super::{
    Ends, Heard, Rule, Suspicion,
    baseline::{Baseline, Novel},
};

/// Learns, whatever is told.
pub fn judge(heard: &Heard<'_>, ends: &Ends, baseline: &mut Baseline) -> Vec<Suspicion> {
    let mut suspicions = Vec::new();
    if let Some((llm, about)) = heard.llm {
        let model = llm.model.as_deref().or(llm.response_model.as_deref());
        let model = model.unwrap_or("a model");
        let known = baseline.known(Novel::ModelEndpoint);
        if baseline.meets(Novel::ModelEndpoint, &ends.peer) {
            suspicions.push(Suspicion {
                rule: Rule::NewModelEndpoint,
                place: None,
                expected: format!("one of the {known} servers of models known on this host"),
                seen: format!("a call to {model} at {}", ends.peer),
                evidence: None,
                about,
            });
        }
        let known = baseline.known(Novel::ModelUser);
        if let Some(program) = &ends.program
            && baseline.meets(Novel::ModelUser, program)
        {
            suspicions.push(Suspicion {
                rule: Rule::NewModelUser,
                place: None,
                expected: format!("one of the {known} programs that speak to models on this host"),
                seen: format!("{program} calls {model} at {}", ends.peer),
                evidence: None,
                about,
            });
        }
    }
    let mut calls = heard.mcp.iter();
    if let Some((mcp, about)) = calls.find(|(mcp, _)| mcp.initiator == "client") {
        let known = baseline.known(Novel::McpServer);
        if baseline.meets(Novel::McpServer, &ends.peer) {
            let method = mcp.method.as_deref().unwrap_or("a call");
            suspicions.push(Suspicion {
                rule: Rule::NewMcpServer,
                place: None,
                expected: format!("one of the {known} MCP servers known on this host"),
                seen: format!("{method} at {}", ends.peer),
                evidence: None,
                about: *about,
            });
        }
    }
    suspicions
}
