//! Attributes: of the agent, which come once with each request, and of records.

use opentelemetry_proto::tonic::{
    common::v1::{
        AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any,
    },
    resource::v1::Resource as Sent,
};
use serde_json::{Map, Value};

use crate::sink::Origin;

/// Who tells all this.
#[derive(Clone, Debug)]
pub struct Resource {
    origin: Origin,
}

impl Resource {
    pub fn new(origin: &Origin) -> Self {
        Self {
            origin: origin.clone(),
        }
    }

    pub fn sent(&self) -> Option<Sent> {
        let attributes = vec![
            word("service.name", "vortex-agent"),
            word("service.version", env!("CARGO_PKG_VERSION")),
            word("service.instance.id", &self.origin.run),
            word("host.name", &self.origin.host),
        ];
        Some(Sent {
            attributes,
            ..Sent::default()
        })
    }
}

pub fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: "vortex".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    })
}

pub fn word(key: &str, value: &str) -> KeyValue {
    pair(key.to_owned(), Any::StringValue(value.to_owned()))
}

pub fn number(key: &str, value: i64) -> KeyValue {
    pair(key.to_owned(), Any::IntValue(value))
}

pub fn text(value: String) -> Option<AnyValue> {
    Some(AnyValue {
        value: Some(Any::StringValue(value)),
    })
}

fn pair(key: String, value: Any) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// The members by their dotted paths, but for those that `is_left_out` by theirs.
pub fn attributes(members: Map<String, Value>, is_left_out: fn(&str) -> bool) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(64);
    flatten(&mut String::new(), members, is_left_out, &mut attributes);
    attributes
}

fn flatten(
    path: &mut String,
    members: Map<String, Value>,
    is_left_out: fn(&str) -> bool,
    attributes: &mut Vec<KeyValue>,
) {
    let parent = path.len();
    for (key, value) in members {
        path.truncate(parent);
        if parent > 0 {
            path.push('.');
        }
        path.push_str(&key);
        if is_left_out(path) {
            continue;
        }
        match value {
            Value::Object(members) => flatten(path, members, is_left_out, attributes),
            value => attributes.extend(any(value).map(|value| pair(path.clone(), value))),
        }
    }
}

/// `null` is no value.
fn any(value: Value) -> Option<Any> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(bool) => Any::BoolValue(bool),
        Value::String(text) => Any::StringValue(text),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Any::IntValue(number),
            None => Any::DoubleValue(number.as_f64()?),
        },
        Value::Array(items) => Any::ArrayValue(ArrayValue {
            // One that is nothing keeps its place.
            values: items
                .into_iter()
                .map(|item| AnyValue { value: any(item) })
                .collect(),
        }),
        Value::Object(members) => {
            let pairs = members.into_iter();
            let pairs = pairs.filter_map(|(key, value)| Some(pair(key, any(value)?)));
            Any::KvlistValue(KeyValueList {
                values: pairs.collect(),
            })
        }
    })
}
