//! Which calls belong together. Most APIs keep nothing: each request says all that was said before, so it goes on from
//! the call whose request and answer it begins with. Others name the answer that they go on from, or a tool's call whose
//! result they bring. Only hashes are kept, and only so many.

use std::collections::{HashMap, VecDeque};

use super::{
    Call,
    call::{Message, Part},
};
use crate::{protocol::json::Text, redact::Key};

/// Most signs that are kept; a call leaves two and one for each tool that it calls.
const SIGNS_MAX: usize = 16 << 10;
/// Shorter ids are counted anew in each conversation.
const ID_MIN: usize = 12;

/// Where in which conversation a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The conversation's, of ours: APIs that keep conversations have ids of their own.
    pub id: u64,
    /// Counts from 1.
    pub turn: u64,
}

impl Place {
    /// Of a call that is not over.
    pub const UNKNOWN: Place = Place { id: 0, turn: 0 };
}

/// All that is known of conversations.
#[derive(Debug)]
pub struct Dialogs {
    key: Key,
    signs: HashMap<Sign, Known>,
    /// In the order in which they came.
    order: VecDeque<Sign>,
    count: u64,
}

type Sign = [u8; 16];

#[derive(Debug)]
struct Known {
    id: u64,
    turn: u64,
    /// Several conversations left it: all that begin with the same question do.
    is_shared: bool,
}

/// What a sign is of.
#[derive(Clone, Copy)]
enum Of {
    /// Messages from the first on.
    Messages = 0,
    Response = 1,
    ToolCall = 2,
    Dialog = 3,
}

impl Dialogs {
    pub fn new(key: Key) -> Dialogs {
        Dialogs {
            key,
            signs: HashMap::new(),
            order: VecDeque::new(),
            count: 0,
        }
    }

    /// Of a call that is over, from now on part of its conversation. `server`: it was seen where it is answered, where
    /// the same call may be another one's.
    pub fn place(&mut self, call: &Call, server: bool) -> Place {
        let (asked, answered) = (&call.request, &call.response);
        let side = [u8::from(server)];
        let said = |message: &&Message| {
            let role = message.role.as_ref().map(|role| &*role.kept);
            // These are written anew by some, with the time in them.
            !matches!(role, Some("system" | "developer"))
        };
        let messages: Vec<_> = asked.messages.iter().filter(said).collect();
        let mut hasher = self.hasher(Of::Messages, &side);
        let mut beginnings = Vec::new();
        for message in &messages {
            hash(message, &mut hasher);
            beginnings.push(sign(&hasher));
        }

        let is_answer = |message: &&Message| {
            message
                .role
                .as_ref()
                .is_some_and(|role| *role.kept == *"assistant")
        };
        // What is said in several messages at once is one answer.
        let answers = messages.chunk_by(|one, next| is_answer(one) == is_answer(next));
        let answers = answers.filter(|some| is_answer(&some[0])).count() as u64;

        let named = asked.previous.as_ref();
        let named = named.map(|id| self.sign(Of::Response, &side, &id.kept));
        let results = asked.messages.iter().flat_map(|message| &message.parts);
        let results = results.filter_map(|part| match part {
            Part::Result(result) => result.id.as_ref().map(|id| &*id.kept),
            _ => None,
        });
        let results: Vec<_> = results
            .filter(|id| id.len() >= ID_MIN)
            .map(|id| self.sign(Of::ToolCall, &side, id))
            .collect();
        // With an answer in it, a beginning that came before is no chance; all of it is one that is asked once more.
        let from = if answers > 0 { 0 } else { 1 };
        let before = beginnings.iter().rev().skip(from).copied();
        let mut signs = named.into_iter().chain(before).chain(results);
        let known = signs.find_map(|sign| self.signs.get(&sign).filter(|known| !known.is_shared));
        let place = match known {
            Some(known) => Place {
                id: known.id,
                turn: if answers > 0 {
                    answers + 1
                } else {
                    known.turn + 1
                },
            },
            None => {
                self.count += 1;
                let hash = self.sign(Of::Dialog, &self.count.to_le_bytes(), "");
                Place {
                    id: u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")),
                    turn: answers + 1,
                }
            }
        };

        self.leaves(beginnings.last().copied(), &place);
        if let Some(message) = answered.messages.first() {
            hash(message, &mut hasher);
            self.leaves(Some(sign(&hasher)), &place);
        }
        let id = answered.id.as_ref();
        self.leaves(
            id.map(|id| self.sign(Of::Response, &side, &id.kept)),
            &place,
        );
        for part in answered.messages.iter().flat_map(|message| &message.parts) {
            if let Part::Call(call) = part
                && let Some(id) = call.id.as_ref().filter(|id| id.kept.len() >= ID_MIN)
            {
                self.leaves(Some(self.sign(Of::ToolCall, &side, &id.kept)), &place);
            }
        }
        place
    }

    /// By this sign the next call is known.
    fn leaves(&mut self, sign: Option<Sign>, place: &Place) {
        let Some(sign) = sign else { return };
        if let Some(known) = self.signs.get_mut(&sign) {
            known.is_shared |= known.id != place.id;
            known.turn = place.turn;
            return;
        }
        if self.order.len() >= SIGNS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.signs.remove(&oldest);
        }
        self.order.push_back(sign);
        let known = Known {
            id: place.id,
            turn: place.turn,
            is_shared: false,
        };
        self.signs.insert(sign, known);
    }

    fn hasher(&self, of: Of, side: &[u8]) -> blake3::Hasher {
        let mut hasher = self.key.hasher();
        hasher.update(&[of as u8]).update(side);
        hasher
    }

    fn sign(&self, of: Of, side: &[u8], id: &str) -> Sign {
        let mut hasher = self.hasher(of, side);
        hasher.update(id.as_bytes());
        sign(&hasher)
    }
}

fn sign(hasher: &blake3::Hasher) -> Sign {
    let hash = hasher.finalize();
    hash.as_bytes()[..16].try_into().expect("sixteen bytes")
}

fn word(text: &Option<Text>) -> &[u8] {
    text.as_ref().map_or(b"", |text| text.kept.as_bytes())
}

/// What comes back as it was sent: words, and which tools were called. Thoughts are left out, arguments written anew.
fn hash(message: &Message, hasher: &mut blake3::Hasher) {
    let mut field = |kind: u8, bytes: &[u8]| {
        hasher
            .update(&[kind])
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    };
    field(0, word(&message.role));
    for part in &message.parts {
        match part {
            Part::Text(text) | Part::Refusal(text) => field(1, text.kept.trim().as_bytes()),
            Part::Call(call) => field(2, word(&call.name)),
            Part::Result(result) => field(3, result.result.kept.as_bytes()),
            Part::Blob { data, .. } => match &data.blob {
                Some(blob) => field(4, &blob.sha256),
                None => field(4, data.kept.as_bytes()),
            },
            Part::Uri { uri: text, .. } | Part::File { id: text, .. } => {
                field(5, text.kept.as_bytes());
            }
            Part::Reasoning(_) | Part::Other { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::call::{ToolCall, ToolResult};

    fn said(role: &str, text: &str) -> Message {
        Message {
            parts: vec![Part::Text(Text::of(text))],
            ..Message::of(role)
        }
    }

    fn calls(name: &str, id: &str) -> Message {
        Message {
            parts: vec![Part::Call(ToolCall {
                id: Some(Text::of(id)),
                name: Some(Text::of(name)),
                arguments: Text::of("{}"),
            })],
            ..Message::of("assistant")
        }
    }

    fn result(id: &str, text: &str) -> Message {
        Message {
            parts: vec![Part::Result(ToolResult {
                id: Some(Text::of(id)),
                result: Text::of(text),
                ..ToolResult::default()
            })],
            ..Message::of("tool")
        }
    }

    fn call(messages: &[Message], answer: Option<Message>) -> Call {
        let mut call = Call::unasked();
        call.request.messages = messages.to_vec();
        call.response.messages.extend(answer);
        call
    }

    fn dialogs() -> Dialogs {
        Dialogs::new(Key::new([1; 32]))
    }

    #[test]
    fn a_request_goes_on_from_what_it_repeats() {
        let mut dialogs = dialogs();
        let mut history = vec![said("system", "Now it is 12:00."), said("user", "Hi")];
        let first = dialogs.place(&call(&history, Some(calls("deploy", "call_1"))), false);
        assert_eq!(first.turn, 1);
        // As a client writes it down: a thought is left out, arguments have another form.
        let mut echo = calls("deploy", "call_1");
        if let Part::Call(call) = &mut echo.parts[0] {
            call.arguments = Text::of("{ }");
        }
        history[0] = said("system", "Now it is 12:01.");
        history.extend([echo, result("call_1", "done")]);
        let mut answer = said("assistant", "Done. ");
        answer.parts.insert(0, Part::Reasoning(Text::of("Hm.")));
        let second = dialogs.place(&call(&history, Some(answer)), false);
        assert_eq!((second.id, second.turn), (first.id, 2));
        history.extend([said("assistant", "Done."), said("user", "Thanks")]);
        let third = dialogs.place(&call(&history, Some(said("assistant", "!"))), false);
        assert_eq!((third.id, third.turn), (first.id, 3));
        // Once more the same, since the answer did not come.
        let again = dialogs.place(&call(&history, None), false);
        assert_eq!(again, third);
        // Where it is answered it is another one's.
        let other = dialogs.place(&call(&history, None), true);
        assert_ne!(other.id, first.id);
        assert_eq!(other.turn, 3);
    }

    #[test]
    fn the_same_question_is_not_the_same_conversation() {
        let mut dialogs = dialogs();
        let question = [said("user", "Hi")];
        let of = |answer: &str| {
            let mut answer = said("assistant", answer);
            // Nobody sends these back.
            let thought = Part::Reasoning(Text::of("Who may that be?"));
            answer.parts.insert(0, thought);
            call(&question, Some(answer))
        };
        let one = dialogs.place(&of("Hello."), false);
        let other = dialogs.place(&of("Good day."), false);
        assert_ne!(one.id, other.id);
        let mut goes_on = |answer: &str| {
            let messages = [
                question[0].clone(),
                said("assistant", answer),
                said("user", "Go on"),
            ];
            dialogs.place(&call(&messages, None), false).id
        };
        assert_eq!(goes_on("Hello."), one.id);
        assert_eq!(goes_on("Good day."), other.id);
        // Neither: no guess.
        let third = goes_on("Who are you?");
        assert!(third != one.id && third != other.id);
    }

    #[test]
    fn who_names_an_answer_or_a_tools_call_goes_on_from_it() {
        let mut dialogs = dialogs();
        let mut first = call(&[said("user", "Hi")], Some(calls("f", "call_0123456789")));
        first.response.id = Some(Text::of("resp_1"));
        let place = dialogs.place(&first, false);
        let mut next = call(&[said("user", "And now?")], None);
        next.request.previous = Some(Text::of("resp_1"));
        next.response.id = Some(Text::of("resp_2"));
        let second = dialogs.place(&next, false);
        assert_eq!((second.id, second.turn), (place.id, 2));
        next.request.previous = Some(Text::of("resp_2"));
        assert_eq!(dialogs.place(&next, false).turn, 3);
        next.request.previous = Some(Text::of("resp_9"));
        next.request.messages = vec![said("user", "Who?")];
        assert_ne!(dialogs.place(&next, false).id, place.id);

        let brings = |id: &str| call(&[result(id, "42")], None);
        let third = dialogs.place(&brings("call_0123456789"), false);
        assert_eq!((third.id, third.turn), (place.id, 2));
        // `call_0` is anybody's.
        let short = call(&[said("user", "Short")], Some(calls("f", "call_0")));
        let short = dialogs.place(&short, false);
        assert_ne!(dialogs.place(&brings("call_0"), false).id, short.id);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut dialogs = dialogs();
        let first = call(&[said("user", "0")], Some(said("assistant", "a")));
        let place = dialogs.place(&first, false);
        let next = |dialogs: &mut Dialogs| {
            let messages = [said("user", "0"), said("assistant", "a"), said("user", "b")];
            dialogs.place(&call(&messages, None), false).id
        };
        assert_eq!(next(&mut dialogs), place.id);
        for number in 1..=SIGNS_MAX {
            let text = number.to_string();
            dialogs.place(
                &call(&[said("user", &text)], Some(said("assistant", "a"))),
                false,
            );
        }
        assert_eq!(dialogs.order.len(), SIGNS_MAX);
        assert_eq!(dialogs.signs.len(), SIGNS_MAX);
        assert_ne!(next(&mut dialogs), place.id);
    }
}
