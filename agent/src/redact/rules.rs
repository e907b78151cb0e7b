//! The rules of `rules.toml`, and what they say of one place of a text.
//!
//! The text is searched for anchors: the fixed beginnings of tokens and the last words of names. At each
//! one [`Rules::judge`] says whether a secret begins there, where, and what ends it. It looks a bounded way
//! to both sides, never goes back, and says so where the answer depends on bytes that have not come yet.

use std::{collections::HashMap, sync::LazyLock};

use serde::Deserialize;

use super::{
    bytes,
    card::{self, card},
    name::{Name, Place, Strength},
    search::Search,
    token::{Left, Token, anchors_of, pattern, private_key, url},
    verdict::{Ending, Verdict, undecided},
};

/// Parsed once. The file is part of the program: an error in it is found by any test.
pub static RULES: LazyLock<Rules> =
    LazyLock::new(|| Rules::parse(include_str!("rules.toml")).expect("rules.toml is valid"));

/// How far a rule looks back from an anchor, at most.
pub const BEHIND: usize = 128;
/// No anchor is longer.
pub const LONGEST: usize = 32;

pub struct Rules {
    search: Search,
    /// By anchor: what may begin there, the first that agrees wins.
    meanings: Vec<Vec<Meaning>>,
    /// All anchors by their first byte, to know half of one at the end of a text.
    beginnings: Vec<Vec<Beginning>>,
    tokens: Vec<Token>,
    names: Vec<Name>,
    headers: HashMap<Vec<u8>, &'static str>,
    /// By anchor: what may end in it.
    words: Vec<Word>,
    pub flags: Vec<Flag>,
}

/// The last word of names.
struct Word {
    ends_header: bool,
    /// In their order.
    names: Vec<usize>,
}

struct Beginning {
    lower: Vec<u8>,
    /// Of a token; else of a name, which is no part of the secret.
    tokens: Vec<Left>,
}

#[derive(Clone, Copy)]
enum Meaning {
    Token(usize),
    /// The last word of a header's name, or of another one.
    Word,
    PrivateKey,
    Url,
    Card,
}

/// An anchor in a text.
#[derive(Clone, Copy)]
pub struct Hit {
    anchor: usize,
    pub start: usize,
    end: usize,
}

impl Rules {
    /// The first anchor at or behind `from`.
    pub fn find(&self, text: &[u8], from: usize) -> Option<Hit> {
        let (anchor, start, end) = self.search.find(text, from)?;
        Some(Hit { anchor, start, end })
    }

    /// Where the first anchor begins that the end of the text cuts off: of any, and of a token.
    pub fn cuts(&self, text: &[u8]) -> (usize, usize) {
        let tail = text.len().saturating_sub(LONGEST)..text.len();
        let is_any = |at: &usize| self.cut(text, *at).next().is_some();
        let Some(any) = tail.clone().find(is_any) else {
            return (text.len(), text.len());
        };
        let is_token = |at: &usize| {
            let mut tokens = self.cut(text, *at).flat_map(|beginning| &beginning.tokens);
            tokens.any(|left| left.allows(text, *at))
        };
        let token = (any..tail.end).find(is_token);
        (any, token.unwrap_or(text.len()))
    }

    fn cut(&self, text: &[u8], at: usize) -> impl Iterator<Item = &Beginning> {
        let tail = &text[at..];
        let all = self.beginnings[usize::from(tail[0].to_ascii_lowercase())].iter();
        all.filter(move |beginning| {
            let lower = &beginning.lower;
            lower.len() > tail.len() && lower[..tail.len()].eq_ignore_ascii_case(tail)
        })
    }

    pub fn judge(&self, text: &[u8], hit: Hit, in_head: bool, ending: Ending) -> Verdict {
        let mut waits = None::<usize>;
        for meaning in &self.meanings[hit.anchor] {
            let verdict = match *meaning {
                Meaning::Token(number) => self.tokens[number].judge(text, hit.start, ending),
                Meaning::Word => self.word(text, hit, in_head, ending),
                Meaning::PrivateKey => private_key(text, (hit.start, hit.end), ending),
                Meaning::Card => card(text, hit.start, ending),
                Meaning::Url => url(text, hit.end, ending, |user| self.find(user, 0).is_some()),
            };
            match verdict {
                Verdict::No => {}
                Verdict::Wait(from) => waits = Some(waits.map_or(from, |other| other.min(from))),
                secret => return secret,
            }
        }
        waits.map_or(Verdict::No, Verdict::Wait)
    }

    /// Are secrets of this kind known by their form alone, and not by a name beside them?
    pub fn have_form(&self, kind: &str) -> bool {
        let is_named = self.names.iter().any(|name| name.kind == kind)
            || self.headers.values().any(|known| *known == kind);
        let is_token = self.tokens.iter().any(|token| token.kind == kind);
        matches!(kind, "card" | "private_key") || is_token && !is_named
    }

    fn word(&self, text: &[u8], hit: Hit, in_head: bool, ending: Ending) -> Verdict {
        let Some(next) = text.get(hit.end) else {
            return undecided(text, ending);
        };
        if bytes::WORD.has(*next) {
            return Verdict::No;
        }
        let place = Place::of(text, hit.end, in_head);
        let word = &self.words[hit.anchor];
        if word.ends_header
            && let Some(kind) = self.headers.get(&place.name(text).to_ascii_lowercase())
            && let Some(verdict) = place.header(text, kind, ending)
        {
            return verdict;
        }
        let mut names = word.names.iter().map(|number| &self.names[*number]);
        let name = names.find(|name| name.ends(text, &place).is_some());
        name.map_or(Verdict::No, |name| place.parameter(text, name, ending))
    }

    /// The kind of a name that is given whole, as a flag or a variable.
    pub fn kind_of(&self, name: &[u8]) -> Option<&'static str> {
        let place = Place::of(name, name.len(), false);
        let known = self
            .names
            .iter()
            .find(|known| known.strength != Strength::Url && known.ends(name, &place).is_some());
        known.map(|known| known.kind)
    }
}

/// What an argument is after a certain flag.
pub struct Flag {
    pub kind: &'static str,
    pub programs: Vec<String>,
    pub flags: Vec<String>,
    pub with: Option<String>,
    pub form: Form,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The next argument.
    Next,
    /// The rest of this one.
    Glued,
    Either,
    /// What is behind the colon of the next one.
    User,
}

mod file {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct File {
        pub token: Vec<Token>,
        pub header: Vec<Header>,
        pub name: Vec<Name>,
        pub flag: Vec<Flag>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Token {
        pub kind: String,
        pub pattern: String,
        #[serde(rename = "source")]
        pub _source: String,
        #[serde(default)]
        pub left: Left,
        #[serde(default)]
        pub fold: bool,
        pub only: Option<Only>,
        pub shows: Option<Shows>,
        #[cfg_attr(not(test), serde(rename = "yes"))]
        #[cfg_attr(not(test), expect(dead_code, reason = "for the tests"))]
        pub yes: Vec<String>,
        #[cfg_attr(not(test), expect(dead_code, reason = "for the tests"))]
        pub no: Vec<String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Only {
        Mixed,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Shows {
        Anchor,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Header {
        pub kind: String,
        pub names: Vec<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Name {
        pub kind: String,
        pub strength: Strength,
        pub names: Vec<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Flag {
        pub kind: String,
        pub programs: Vec<String>,
        pub flags: Vec<String>,
        pub with: Option<String>,
        pub form: Form,
    }
}

impl Rules {
    fn parse(text: &str) -> Result<Rules, String> {
        let file: file::File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut anchors: HashMap<Vec<u8>, Vec<Meaning>> = HashMap::new();
        let mut add = |anchor: &[u8], meaning| {
            let meanings = anchors.entry(anchor.to_ascii_lowercase()).or_default();
            // One look at a name serves all that end in the same word.
            if !(matches!(meaning, Meaning::Word)
                && meanings.iter().any(|other| matches!(other, Meaning::Word)))
            {
                meanings.push(meaning);
            }
        };
        add(b"-----BEGIN ", Meaning::PrivateKey);
        add(b"://", Meaning::Url);
        for prefix in card::prefixes() {
            add(&prefix, Meaning::Card);
        }
        let mut tokens = Vec::new();
        for token in file.token {
            let (pattern, anchor) = pattern(&token.pattern, token.fold)?;
            for beginning in anchors_of(&pattern, anchor) {
                add(&beginning, Meaning::Token(tokens.len()));
            }
            tokens.push(Token {
                kind: token.kind.leak(),
                pattern,
                anchor,
                left: token.left,
                mixed: token.only.is_some(),
                shows_anchor: token.shows.is_some(),
            });
        }
        let mut headers = HashMap::new();
        for header in file.header {
            let kind: &'static str = header.kind.leak();
            for name in header.names {
                let word = name.rsplit('-').next().unwrap_or(&name);
                add(word.as_bytes(), Meaning::Word);
                headers.insert(name.into_bytes(), kind);
            }
        }
        let mut names = Vec::new();
        for group in file.name {
            let kind: &'static str = group.kind.leak();
            for name in group.names {
                let words: Vec<Vec<u8>> = name
                    .split([' ', '-'])
                    .map(|word| word.as_bytes().to_vec())
                    .collect();
                add(&words[words.len() - 1], Meaning::Word);
                names.push(Name {
                    words,
                    kind,
                    strength: group.strength,
                });
            }
        }
        // The search gives the longest anchor at a place: what a shorter one means, it means, too.
        let mut patterns: Vec<Vec<u8>> = anchors.keys().cloned().collect();
        patterns.sort();
        let meanings = patterns
            .iter()
            .map(|pattern| {
                let mut shorter: Vec<&Vec<u8>> = patterns
                    .iter()
                    .filter(|other| pattern.starts_with(other))
                    .collect();
                shorter.sort_by_key(|other| std::cmp::Reverse(other.len()));
                shorter
                    .iter()
                    .flat_map(|other| anchors[*other].clone())
                    .collect()
            })
            .collect();
        let words = patterns.iter().map(|pattern| {
            let ends_header =
                |name: &Vec<u8>| name.rsplit(|byte| *byte == b'-').next() == Some(pattern);
            let ends_name = |number: &usize| {
                let last = names[*number].words.last();
                last.is_some_and(|word| word.eq_ignore_ascii_case(pattern))
            };
            Word {
                ends_header: headers.keys().any(ends_header),
                names: (0..names.len()).filter(ends_name).collect(),
            }
        });
        let words = words.collect();
        let left = |meaning: &Meaning| match meaning {
            Meaning::Token(number) => Some(tokens[*number].left),
            Meaning::PrivateKey => Some(Left::Any),
            Meaning::Card => Some(Left::Number),
            Meaning::Word | Meaning::Url => None,
        };
        let mut beginnings: Vec<Vec<Beginning>> = (0..256).map(|_| Vec::new()).collect();
        for (anchor, meanings) in &anchors {
            beginnings[usize::from(anchor[0])].push(Beginning {
                lower: anchor.clone(),
                tokens: meanings.iter().filter_map(left).collect(),
            });
        }
        Ok(Rules {
            search: Search::new(&patterns),
            meanings,
            beginnings,
            tokens,
            names,
            headers,
            words,
            flags: file
                .flag
                .into_iter()
                .map(|flag| Flag {
                    kind: flag.kind.leak(),
                    programs: flag.programs,
                    flags: flag.flags,
                    with: flag.with,
                    form: flag.form,
                })
                .collect(),
        })
    }
}

/// The tokens of the file, with their examples.
#[cfg(test)]
pub fn examples() -> Vec<file::Token> {
    let file: file::File = toml::from_str(include_str!("rules.toml")).unwrap();
    file.token
}
