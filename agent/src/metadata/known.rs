//! What the line knows of containers. Each is asked for once, and is forgotten when there are too many and nobody is
//! in it any more.

use std::{collections::BTreeMap, sync::Arc};

use super::{CONTAINERS_MAX, Container};
use crate::{
    policy::{By, Capture, Verdict},
    record,
    redact::Redactor,
};

/// Containers by their ids.
#[derive(Debug, Default)]
pub struct Known {
    /// Somebody is there to be asked.
    is_asked: bool,
    /// The last question had no answer in time: until there is one, nobody waits.
    is_silent: bool,
    containers: BTreeMap<String, State>,
    questions: Vec<String>,
    counts: record::Containers,
    withheld: record::Withheld,
}

#[derive(Debug)]
enum State {
    Asked,
    Told(Box<Judged>),
    /// No runtime has it.
    Unknown,
}

/// A container of which its runtime has told.
#[derive(Debug)]
pub struct Judged {
    pub shown: Arc<record::Container>,
    pub wish: Wish,
    /// What it was judged by, for another policy.
    pub container: Container,
}

/// What is wanted of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The filters want it.
    pub passes: bool,
    pub verdict: Verdict,
}

/// What is to be done with a process that is met in a container.
#[derive(Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The answer may be there soon.
    Wait,
    GoOn,
}

impl Known {
    /// From now on somebody can be asked, or nobody any more.
    pub fn is_asked(&mut self, is_asked: bool) {
        self.is_asked = is_asked;
        self.questions.clear();
    }

    /// A process is in this container. `is_used`: of what else is known somebody is still in it.
    pub fn meet(&mut self, id: &str, is_used: impl Fn(&str) -> bool) -> Meeting {
        if !self.is_asked {
            return Meeting::GoOn;
        }
        match self.containers.get_mut(id) {
            Some(State::Told(_)) => return Meeting::GoOn,
            // It may be younger than the answer. Nobody waits a second time.
            Some(state @ State::Unknown) => {
                *state = State::Asked;
                self.questions.push(id.to_owned());
                return Meeting::GoOn;
            }
            Some(State::Asked) => {}
            None => {
                if !self.has_room(is_used) {
                    return Meeting::GoOn;
                }
                self.containers.insert(id.to_owned(), State::Asked);
                self.questions.push(id.to_owned());
            }
        }
        match self.is_silent {
            true => Meeting::GoOn,
            false => Meeting::Wait,
        }
    }

    /// A process is in a container that is not known yet, and of which nobody is asked: `told` is all that there is to
    /// know of it.
    pub fn meet_named(
        &mut self,
        id: &str,
        is_used: impl Fn(&str) -> bool,
        told: Judged,
    ) -> Meeting {
        if self.has_room(is_used) {
            self.containers.insert(id.to_owned(), State::Asked);
            self.settle(id, Some(told));
        }
        Meeting::GoOn
    }

    /// For one more, if need be without those in which nobody is.
    fn has_room(&mut self, is_used: impl Fn(&str) -> bool) -> bool {
        if self.containers.len() == CONTAINERS_MAX {
            self.containers.retain(|id, _| is_used(id));
        }
        let has_room = self.containers.len() < CONTAINERS_MAX;
        self.counts.unknown += u64::from(!has_room);
        has_room
    }

    /// The answer, and what is wanted of it.
    pub fn told(&mut self, id: &str, container: Option<Judged>) {
        self.is_silent = false;
        self.settle(id, container);
    }

    fn settle(&mut self, id: &str, container: Option<Judged>) {
        let Some(state) = self.containers.get_mut(id) else {
            return;
        };
        *state = match container {
            Some(judged) => {
                self.counts.named += 1;
                if let Some(count) = less(&mut self.withheld, judged.wish.verdict) {
                    *count += 1;
                }
                State::Told(Box::new(judged))
            }
            None => {
                self.counts.unknown += 1;
                State::Unknown
            }
        };
    }

    /// Less may be told of what they are called.
    pub fn redact(&mut self, redactor: &Redactor) {
        for state in self.containers.values_mut() {
            if let State::Told(judged) = state {
                Arc::make_mut(&mut judged.shown).redact(redactor);
            }
        }
    }

    /// Under other filters or another policy. Who is told less of is counted by that from here on.
    pub fn judge_again(&mut self, judge: impl Fn(&str, &Container) -> Wish) {
        for (id, state) in &mut self.containers {
            let State::Told(judged) = state else {
                continue;
            };
            let new = judge(id, &judged.container);
            let old = std::mem::replace(&mut judged.wish, new);
            if let Some(count) = less(&mut self.withheld, old.verdict) {
                *count -= 1;
            }
            if let Some(count) = less(&mut self.withheld, new.verdict) {
                *count += 1;
            }
        }
    }

    /// Somebody has waited for this one in vain.
    pub fn is_late(&mut self) {
        self.is_silent = true;
        self.counts.late += 1;
    }

    /// What is known of it, and what is wanted of it.
    pub fn get(&self, id: &str) -> Option<(&Arc<record::Container>, Wish)> {
        match self.containers.get(id)? {
            State::Told(judged) => Some((&judged.shown, judged.wish)),
            State::Asked | State::Unknown => None,
        }
    }

    /// By what it is judged, if it is known.
    pub fn container(&self, id: &str) -> Option<&Container> {
        match self.containers.get(id)? {
            State::Told(judged) => Some(&judged.container),
            State::Asked | State::Unknown => None,
        }
    }

    /// Ids about which somebody is to be asked, since the last time.
    pub fn questions(&mut self) -> std::vec::Drain<'_, String> {
        self.questions.drain(..)
    }

    /// For `stats`: nothing, where nobody is asked.
    pub fn counts(&self, has_policy: bool) -> Option<record::Containers> {
        let is_used = self.is_asked || self.counts != record::Containers::default();
        is_used.then_some(record::Containers {
            withheld: has_policy.then_some(self.withheld),
            ..self.counts
        })
    }
}

/// Where a container is counted of which less is told, by whom it is that wants so.
fn less(withheld: &mut record::Withheld, verdict: Verdict) -> Option<&mut u64> {
    match verdict {
        Verdict {
            by: By::Pod | By::Misspelt,
            ..
        } => Some(&mut withheld.opted_out),
        Verdict {
            capture: Capture::None,
            ..
        } => Some(&mut withheld.excluded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Option<Judged> {
        of(Verdict::ALL)
    }

    fn of(verdict: Verdict) -> Option<Judged> {
        Some(Judged {
            shown: Arc::default(),
            wish: Wish {
                passes: true,
                verdict,
            },
            container: Container::default(),
        })
    }

    #[test]
    fn each_is_asked_for_once() {
        let mut known = Known::default();
        assert_eq!(known.meet("a", |_| true), Meeting::GoOn, "nobody is asked");
        assert_eq!(
            known.questions().count() + usize::from(known.counts(false).is_some()),
            0
        );
        known.is_asked(true);
        assert_eq!(known.meet("a", |_| true), Meeting::Wait);
        assert_eq!(
            known.meet("a", |_| true),
            Meeting::Wait,
            "the second process in it"
        );
        assert_eq!(known.questions().collect::<Vec<_>>(), ["a"]);
        known.told("a", told());
        assert_eq!(known.meet("a", |_| true), Meeting::GoOn);
        assert!(known.get("a").is_some_and(|(_, wish)| wish.passes));
        known.meet("b", |_| true);
        known.told("b", None);
        assert!(known.get("b").is_none());
        assert_eq!(
            known.meet("b", |_| true),
            Meeting::GoOn,
            "asked again, not waited for"
        );
        assert_eq!(known.questions().collect::<Vec<_>>(), ["b", "b"]);
        known.told("b", told());
        assert!(known.get("b").is_some());
        let counts = known.counts(false).unwrap();
        assert_eq!((counts.named, counts.unknown, counts.late), (2, 1, 0));
    }

    #[test]
    fn a_silent_runtime_is_waited_for_once() {
        let mut known = Known::default();
        known.is_asked(true);
        assert_eq!(known.meet("a", |_| true), Meeting::Wait);
        known.is_late();
        assert_eq!(known.meet("a", |_| true), Meeting::GoOn);
        assert_eq!(known.meet("b", |_| true), Meeting::GoOn);
        assert_eq!(known.questions().count(), 2, "but asked");
        known.told("a", told());
        assert_eq!(known.meet("c", |_| true), Meeting::Wait, "it speaks again");
        assert_eq!(known.counts(false).unwrap().late, 1);
    }

    #[test]
    fn of_a_name_nobody_is_asked() {
        let mut known = Known::default();
        known.meet_named("lxc:a", |_| true, told().unwrap());
        assert!(known.get("lxc:a").is_some_and(|(_, wish)| wish.passes));
        assert_eq!(known.questions().count(), 0);
        assert_eq!(known.counts(false).unwrap().named, 1);
        // It says nothing of whether a runtime would answer.
        known.is_asked(true);
        known.is_late();
        known.meet_named("lxc:b", |_| true, told().unwrap());
        assert_eq!(known.meet("c", |_| true), Meeting::GoOn);
        for number in 0..CONTAINERS_MAX {
            known.meet_named(&number.to_string(), |_| true, told().unwrap());
        }
        assert_eq!(known.containers.len(), CONTAINERS_MAX);
        assert!(known.get("1023").is_none());
    }

    #[test]
    fn of_a_policy_is_counted_who_is_told_less_of() {
        let mut known = Known::default();
        known.is_asked(true);
        let verdicts = [
            (Capture::None, By::Configuration),
            (Capture::None, By::Pod),
            (Capture::Metadata, By::Pod),
            (Capture::None, By::Misspelt),
            (Capture::Metadata, By::Configuration),
        ];
        for (number, (capture, by)) in verdicts.into_iter().enumerate() {
            let id = number.to_string();
            known.meet(&id, |_| true);
            known.told(&id, of(Verdict { capture, by }));
        }
        let count = |known: &Known| {
            let withheld = known.counts(true).unwrap().withheld.unwrap();
            (withheld.excluded, withheld.opted_out)
        };
        assert_eq!(count(&known), (1, 3));
        // Another policy excludes the last one too, and trusts pods to ask for more.
        known.judge_again(|id, _| Wish {
            passes: id == "4",
            verdict: Verdict {
                capture: if id == "0" || id == "4" {
                    Capture::None
                } else {
                    Capture::Full
                },
                by: By::Configuration,
            },
        });
        assert_eq!(count(&known), (2, 0));
        assert_eq!(known.get("4").unwrap().1.verdict.capture, Capture::None);
        assert!(known.get("4").unwrap().1.passes && !known.get("3").unwrap().1.passes);
        assert_eq!(known.counts(false).unwrap().withheld, None);
    }

    #[test]
    fn not_more_than_so_many() {
        let mut known = Known::default();
        known.is_asked(true);
        for number in 0..CONTAINERS_MAX {
            assert_eq!(known.meet(&number.to_string(), |_| true), Meeting::Wait);
        }
        assert_eq!(known.meet("one more", |_| true), Meeting::GoOn);
        assert_eq!(known.questions().count(), CONTAINERS_MAX);
        // Nobody is in most of them.
        assert_eq!(known.meet("one more", |id| id == "7"), Meeting::Wait);
        assert_eq!(known.containers.len(), 2);
        known.told("5", told());
        assert!(known.get("5").is_none(), "forgotten meanwhile");
    }
}
