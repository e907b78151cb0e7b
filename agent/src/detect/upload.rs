//! An upload far beyond what this program usually sends to this peer: by the median of its sizes and the median
//! distance from that, so that a few large ones neither hide the next nor make all others unusual.

use super::{
    About, BODY, Ends, Rule, Suspicion,
    baseline::{Baseline, Sizes, Usual},
};
use crate::{
    amount::size,
    record::{Http, Llm, LlmPart},
};

/// Nothing shorter is an upload that anybody looks at.
const LEAST: u64 = 1 << 20;
/// Requests before anything is unusual: to this peer, and to any where it is a new one.
const ENOUGH: u32 = 20;
const ENOUGH_ANYWHERE: u32 = 100;
/// So often at most was the like of an unusual one seen before, or so seldom: one in these.
const SEVERAL: u32 = 2;
const SELDOM: u32 = 200;
/// In powers of two: as far from the median at the least.
const FAR: u32 = 4;

/// Learns, whatever is told.
pub fn judge(
    (http, about): (&Http, About),
    llm: Option<(&Llm, About)>,
    ends: &Ends,
    baseline: &mut Baseline,
) -> Option<Suspicion> {
    let program = ends.program.as_deref()?;
    let shown = llm.map_or(0, |(llm, _)| media(llm));
    let sent = http.request.as_ref()?.body.size;
    // Images that are shown to a model say nothing about what else is said.
    let sent = sent.saturating_sub(shown);
    if sent == 0 {
        return None;
    }
    let own = &mut baseline.pair(program, &ends.peer).sizes;
    let usual = own.usual().filter(|usual| usual.count >= ENOUGH);
    let to_peer = usual.filter(|usual| is_far(sent, *usual, own));
    own.add(sent);
    let any = &mut baseline.pair(program, "").sizes;
    let anywhere = any
        .usual()
        .filter(|all| usual.is_none() && all.count >= ENOUGH_ANYWHERE && is_far(sent, *all, any));
    any.add(sent);
    let (usual, whom) = match (to_peer, anywhere) {
        (Some(usual), _) => (usual, "to this peer"),
        (None, Some(usual)) => (usual, "to others, and hardly any to this peer"),
        (None, None) => return None,
    };
    let bound = |exponent: u32| size(2 << exponent);
    Some(Suspicion {
        rule: Rule::LargeUpload,
        place: Some(BODY.to_owned()),
        expected: format!(
            "half of {} requests of {program} {whom} are below {}, all below {}",
            usual.count,
            bound(usual.median),
            bound(usual.most),
        ),
        seen: size(sent),
        evidence: None,
        about,
    })
}

fn is_far(sent: u64, usual: Usual, sizes: &Sizes) -> bool {
    // 1.4826: what makes it a standard deviation, were it a normal distribution; five of them.
    let far = FAR.max((5.0 * 1.4826 * f64::from(usual.deviation)).ceil() as u32);
    // Where sizes differ much it is enough to be far beyond the largest.
    let border = (usual.median + far).min(usual.most + FAR);
    sent >= LEAST && sent.ilog2() >= border && sizes.like(sent) <= SEVERAL.max(usual.count / SELDOM)
}

/// Bytes of images, sounds and films, as base64.
fn media(llm: &Llm) -> u64 {
    let parts = llm.input.iter().flat_map(|turn| &turn.parts);
    let sizes = parts.map(|part| match part {
        LlmPart::Blob { modality, size, .. } if *modality != "document" => size.div_ceil(3) * 4,
        _ => 0,
    });
    sizes.sum()
}
