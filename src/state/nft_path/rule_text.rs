//! A native rule in words, to name it.

use serde_json::{Map, Value};

/// A rule, about as nft prints it. A part that is not known is its JSON.
pub fn rule_text(rule: &Map<String, Value>) -> String {
    let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    let all: Vec<String> = statements
        .filter_map(Value::as_object)
        .flatten()
        .map(|(kind, body)| statement(kind, body))
        .collect();
    all.join(" ")
}

fn statement(kind: &str, body: &Value) -> String {
    match kind {
        "match" => {
            let (left, right) = (value(&body["left"]), value(&body["right"]));
            match body["op"].as_str().unwrap_or_default() {
                "==" | "in" => format!("{left} {right}"),
                op => format!("{left} {op} {right}"),
            }
        }
        "vmap" => format!("{} vmap {}", value(&body["key"]), value(&body["data"])),
        "jump" | "goto" => format!("{kind} {}", body["target"].as_str().unwrap_or_default()),
        _ => kind.to_owned(),
    }
}

fn value(value: &Value) -> String {
    let list = |values: &Vec<Value>, between| {
        values.iter().map(self::value).collect::<Vec<_>>().join(between)
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => list(values, ","),
        Value::Object(of) => match of.iter().next() {
            Some((kind, Value::Array(values))) => match kind.as_str() {
                "set" => format!("{{ {} }}", set(values)),
                "concat" => list(values, " . "),
                "range" => list(values, "-"),
                "&" => list(values, " & "),
                "|" => list(values, "|"),
                _ => value.to_string(),
            },
            Some((kind, body)) => match kind.as_str() {
                "ct" => format!("ct {}", body["key"].as_str().unwrap_or_default()),
                "meta" => match body["key"].as_str().unwrap_or_default() {
                    name @ ("iif" | "oif" | "iifname" | "oifname") => name.to_owned(),
                    key => format!("meta {key}"),
                },
                "payload" => {
                    let field = |name: &str| body[name].as_str().unwrap_or_default();
                    format!("{} {}", field("protocol"), field("field"))
                }
                "prefix" => format!("{}/{}", self::value(&body["addr"]), body["len"]),
                "elem" => self::value(&body["val"]),
                _ => value.to_string(),
            },
            None => value.to_string(),
        },
        _ => value.to_string(),
    }
}

/// The elements of a set, or of a map: a key and its verdict each.
fn set(values: &[Value]) -> String {
    let one = |element: &Value| match element.as_array().map(Vec::as_slice) {
        Some([key, verdict]) => {
            let verdict = verdict.as_object().and_then(|v| v.iter().next());
            let verdict = verdict.map(|(kind, body)| statement(kind, body)).unwrap_or_default();
            format!("{} : {verdict}", value(key))
        }
        _ => value(element),
    };
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}
