//! The data of `rules.toml`, and the questions that it answers.

use std::sync::LazyLock;

use serde::Deserialize;

/// Parsed once. The file is part of the program: an error in it is found by any test.
pub static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("rules.toml")).expect("rules.toml is valid");
    Rules {
        named: file.named,
        silent: file.silent,
        owners: file.owner,
        examples: file.example.into_iter().flat_map(|it| it.texts).collect(),
        fillers: file.filler.texts().collect(),
        never: file.never.names,
        media: file.media,
        packed: file.packed,
        plain: file.plain.before,
        fixture: file.fixture.words,
    }
});

pub struct Rules {
    named: Vec<String>,
    silent: Vec<String>,
    owners: Vec<Owner>,
    /// Texts with secrets that are nobody's, and others that redaction may take for one.
    pub examples: Vec<String>,
    pub fillers: Vec<String>,
    media: Media,
    packed: Vec<Packed>,
    plain: Vec<String>,
    fixture: Vec<String>,
    never: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    named: Vec<String>,
    silent: Vec<String>,
    owner: Vec<Owner>,
    example: Vec<Example>,
    media: Media,
    packed: Vec<Packed>,
    plain: Plain,
    fixture: Fixture,
    never: Never,
    filler: Filler,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    kinds: Vec<String>,
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    #[serde(rename = "source")]
    _source: String,
    texts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Media {
    declared: Vec<String>,
    magic: Vec<String>,
    /// Media types of what is attached and is none of these.
    packed: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    name: String,
    magic: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    before: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    words: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filler {
    context: String,
    beginnings: Vec<String>,
    characters: Vec<String>,
    longest: usize,
}

impl Filler {
    fn texts(&self) -> impl Iterator<Item = String> {
        let Filler {
            context,
            beginnings,
            characters,
            longest,
        } = self;
        let pairs = beginnings
            .iter()
            .flat_map(move |beginning| characters.iter().map(move |one| (beginning, one)));
        pairs.flat_map(move |(beginning, one)| {
            (4..=*longest).map(move |length| format!("{context}{beginning}{}", one.repeat(length)))
        })
    }
}

/// How a secret of some kind was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    ByForm,
    ByName,
    /// It says nothing.
    Not,
}

impl Rules {
    pub fn known(&self, kind: &str) -> Known {
        let is_in = |kinds: &[String]| kinds.iter().any(|one| one == kind);
        match kind {
            _ if is_in(&self.silent) => Known::Not,
            _ if is_in(&self.named) => Known::ByName,
            _ => Known::ByForm,
        }
    }

    /// Is a secret of this kind meant for this host?
    pub fn is_owner(&self, kind: &str, host: &str) -> bool {
        let mut owners = self.owners.iter();
        owners.any(|owner| owner.kinds.iter().any(|one| one == kind) && is_at(host, &owner.hosts))
    }

    /// Is a run of encoded characters ordinary, by what stands before it and how it begins?
    pub fn is_media(&self, before: &str, run: &str) -> bool {
        let before = before.to_ascii_lowercase();
        // `data:image/png;base64,`, or a member beside it: what is declared last holds.
        let declared = before
            .rfind("base64,")
            .is_some_and(|at| at + 7 == before.len())
            || before.contains("media_type")
            || before.contains("mimetype")
            || before.contains("mime_type");
        let is_declared = declared
            && self
                .media
                .declared
                .iter()
                .any(|name| before.contains(&**name));
        is_declared
            || self
                .media
                .magic
                .iter()
                .any(|magic| run.starts_with(&**magic))
            || self.is_plain(&before)
    }

    fn is_plain(&self, before: &str) -> bool {
        // A line break, also as JSON writes it, may stand between.
        let mut bare = before.trim_end();
        while let Some(rest) = bare
            .strip_suffix("\\n")
            .or_else(|| bare.strip_suffix("\\r"))
        {
            bare = rest;
        }
        let mut plain = self.plain.iter();
        plain.any(|mark| before.ends_with(&**mark) || bare.ends_with(mark.trim_end()))
    }

    /// What a run of encoded characters is, if its beginning tells.
    pub fn packed(&self, run: &str) -> Option<&str> {
        let begins = |packed: &&Packed| packed.magic.iter().any(|magic| run.starts_with(&**magic));
        self.packed.iter().find(begins).map(|packed| &*packed.name)
    }

    /// Says a text, in lower case, that what follows is nobody's secret?
    pub fn is_fixture(&self, text: &str) -> bool {
        self.fixture.iter().any(|word| text.contains(&**word))
    }

    /// Does a text, in lower case, end in a name of what nobody logs in with?
    pub fn is_never_meant(&self, text: &str) -> bool {
        let end = text.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        self.never.iter().any(|name| end.ends_with(&**name))
    }

    /// Is a file of this media type an archive, or anything?
    pub fn is_packed_media(&self, media: &str) -> bool {
        let media = media.split(';').next().unwrap_or_default().trim();
        self.media
            .packed
            .iter()
            .any(|packed| media.eq_ignore_ascii_case(packed))
    }

    #[cfg(test)]
    pub fn kinds(&self) -> impl Iterator<Item = &String> {
        let owned = self.owners.iter().flat_map(|owner| &owner.kinds);
        owned.chain(&self.named).chain(&self.silent)
    }
}

/// Is it one of these hosts, or below one?
pub fn is_at(host: &str, hosts: &[String]) -> bool {
    hosts.iter().any(|known| {
        let rest = host.strip_suffix(&**known);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}
